"""NIH Pancreas-CT: DICOM, labels whose header mirrors them, withdrawn duplicates, missing cases."""

import pydicom
import pytest
import SimpleITK as sitk

from nnunet_partial.demo import phantoms

MIRRORED = (1, 0, 0, 0, -1, 0, 0, 0, 1)
NOTE = "the header of the label disagrees with the image's, which was used"


@pytest.fixture
def case(src, tools):
    """Write series and label of one case; returns (CT, label array)."""

    def write(number, nested="11-24-2015-x/Pancreas-1", image=True, label=True, ending=".dcm", intercept=-1024.0, slope=1.0):
        patient = phantoms.make_patient(number, tools.tiny["nih"])
        ct = patient.ct_image()
        if image:
            folder = phantoms.write_dicom_series(
                ct, src / "Pancreas-CT" / f"PANCREAS_{number:04d}" / nested, intercept=intercept, slope=slope
            )
            for file in list(folder.iterdir()):
                file.rename(file.with_name(file.stem + ending))
        mask = patient.label_image({phantoms.PANCREAS: 1})
        array = sitk.GetArrayFromImage(mask)
        if label:
            tools.write(src / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz", array, direction=MIRRORED)
        return ct, array

    return write


def test_release(src, tools, case, run):
    found = {1: case(1), 12: case(12, nested="", ending=""), 82: case(82, slope=0.5)}
    case(25), case(70)
    case(3, image=False)
    case(4, label=False)
    (src / "Pancreas-CT" / "LICENSE").write_text("CC BY 3.0")
    (src / "Pancreas-CT" / "PANCREAS_0001" / "notes.txt").write_text("not a slice")
    before = tools.hashes(src)
    report = run("nih", src)
    duplicate = "the same patient as pancreas_0002, withdrawn in 2020 (--keep-duplicates keeps it)"
    tools.check(
        report,
        source="nih",
        classes=["pancreas"],
        cases={f"pancreas_{n:04d}": ([ct], label, ["pancreas"]) for n, (ct, label) in found.items()},
        skipped={
            "pancreas_0025": duplicate,
            "pancreas_0070": duplicate,
            "pancreas_0003": "label0003.nii.gz has no image",
            "pancreas_0004": "1-001.dcm has no label",
        },
    )
    assert all(i.notes == (NOTE,) and i.how == ("copied",) for i in report.converted.values())
    assert tools.hashes(src) == before


def test_duplicates_can_be_kept(src, case, run):
    case(25)
    assert set(run("nih", src, "--keep-duplicates").converted) == {"pancreas_0025"}


def test_slices_are_ordered_by_position_not_by_name_or_instance_number(src, tools, case, run):
    ct, label = case(1)
    files = sorted(src.rglob("*.dcm"))
    for new, file in enumerate(sorted(files, key=lambda f: hash(f.name) % 97)):
        dataset = pydicom.dcmread(file)
        dataset.InstanceNumber = 1000 - new
        dataset.save_as(file.with_name(f"{new:04d}-shuffled.dcm"))
        file.unlink()
    tools.check(run("nih", src), source="nih", classes=["pancreas"], cases={"pancreas_0001": ([ct], label, ["pancreas"])})


def test_a_landmark_keeps_its_place_in_the_world(src, tools, run):
    """One bright voxel of the CT and the same voxel of the mirrored label meet again, where the patient has it."""
    patient = phantoms.make_patient(9, tools.tiny["nih"])
    k, j, i = 5, 3, 14
    patient.ct[k, j, i] = 1234
    position = patient.ct_image().TransformIndexToPhysicalPoint((i, j, k))
    phantoms.write_dicom_series(patient.ct_image(), src / "PANCREAS_0009" / "a" / "b")
    label = patient.organs * 0
    label[k, j, i] = 1
    tools.write(src / "label0009.nii.gz", label, direction=MIRRORED)
    report = run("nih", src)
    for file, value in ((report.converted["pancreas_0009"].images[0], 1234), (report.converted["pancreas_0009"].label, 1)):
        image = sitk.ReadImage(str(report.folder / file))
        assert image[image.TransformPhysicalPointToIndex(position)] == value
