"""LiTS: batches, compressed or not, placeholder voxel sizes, masks with other headers, mixed orientations."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError

LIVER = {1: 1, 2: 1}
IRCADB_NOTE = "part of 3D-IRCADb-01: do not test on that dataset"


@pytest.fixture
def pair(src, tools):
    """Write one volume with its segmentation; returns (path of the volume, label)."""

    def write(number, batch="Training Batch 1", ending=".nii", label_geometry=None, **geometry):
        label = tools.label_with(number, (1, 2))
        volume = tools.write(src / batch / f"volume-{number}{ending}", tools.grey(number), **geometry)
        tools.write(src / batch / f"segmentation-{number}{ending}", label, **(label_geometry or geometry))
        return volume, label

    return write


def test_two_batches_mixed_endings_and_orientations(src, tools, pair, run):
    volumes = {
        0: pair(0),
        7: pair(7, ending=".nii.gz", direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        101: pair(101, "Training Batch 2", direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1)),
    }
    tools.write(src / "Test" / "test-volume-3.nii", tools.grey(9))
    before = tools.hashes(src)
    report = run("lits", src)
    tools.check(
        report,
        source="lits",
        classes=["liver"],
        cases={f"lits_{n:03d}": ([volume], tools.remap(label, LIVER), ["liver"]) for n, (volume, label) in volumes.items()},
        skipped={"lits_test_003": "it has no label of the classes; --unlabelled includes such cases"},
    )
    assert tools.hashes(src) == before


def test_liver_and_tumour_are_two_classes_on_request(src, tools, pair, run):
    volume, label = pair(0)
    report = run("lits", src, "--organs", "liver,tumor", "--source-name", "lits17")
    tools.check(
        report,
        source="lits17",
        classes=["liver", "tumor"],
        cases={"lits_000": ([volume], tools.remap(label, {1: 1, 2: 2}), ["liver", "tumor"])},
    )


def test_liver_without_tumour(src, tools, pair, run):
    volume, label = pair(0)
    report = run("lits", src, "--organs", "liver=liver_parenchyma")
    tools.check(report, source="lits", classes=["liver"], cases={"lits_000": ([volume], tools.remap(label, {1: 1}), ["liver"])})


def test_unlabelled_test_cases_annotate_nothing(src, tools, pair, run):
    volume, label = pair(0)
    test = tools.write(src / "test-volume-12.nii", tools.grey(1))
    report = run("lits", src, "--unlabelled")
    tools.check(
        report,
        source="lits",
        classes=["liver"],
        cases={"lits_000": ([volume], tools.remap(label, LIVER), ["liver"]), "lits_test_012": ([test], None, [])},
    )


def test_cases_of_ircadb_are_flagged_or_left_out(src, tools, pair, run):
    volume, label = pair(27)
    pair(48)
    report = run("lits", src)
    assert report.converted["lits_027"].notes == () and report.converted["lits_048"].notes == (IRCADB_NOTE,)
    assert any(IRCADB_NOTE in line and "lits_048" in line for line in report.lines())
    report = run("lits", src, "--without-ircadb", dataset_id=8)
    assert set(report.converted) == {"lits_027"} and "3D-IRCADb-01" in report.skipped["lits_048"]


def test_placeholder_voxel_size_is_told_and_mended_from_the_original_without_a_copy(src, tmp_path, tools, pair, run):
    volume, label = pair(28, spacing=(1, 1, 1), origin=(0, 0, 0), direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    report = run("lits", src)
    assert "the voxel size 1 mm is a placeholder; give --ircadb DIR" in report.converted["lits_028"].notes
    tools.check(report, source="lits", classes=["liver"], cases={"lits_028": ([volume], tools.remap(label, LIVER), ["liver"])})

    original = tools.image(tools.grey(28), spacing=(0.57, 0.57, 1.6))
    series = phantoms.write_dicom_series(original, tmp_path / "ircadb" / "3Dircadb1.1" / "PATIENT_DICOM")
    for file in list(series.iterdir()):
        file.rename(series / f"image_{int(file.stem.split('-')[1]) - 1}")
    report = run("lits", src, "--ircadb", tmp_path / "ircadb", dataset_id=8)
    mended = sitk.ReadImage(str(volume))
    mended.SetSpacing((0.57, 0.57, 1.6))
    assert "voxel size from 3D-IRCADb-01" in report.converted["lits_028"].notes
    assert report.converted["lits_028"].how == ("through a header of its own",)
    assert (report.folder / report.converted["lits_028"].images[0]).stat().st_size < 1000
    (report.folder.parent / "Dataset007_LiTS").rename(tmp_path / "elsewhere")
    tools.check(report, source="lits", classes=["liver"], cases={"lits_028": ([mended], tools.remap(label, LIVER), ["liver"])})


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI"])
def test_mask_with_another_header_lies_on_the_liver_all_the_same(orientation, src, tools, run):
    """As cases 48 to 52: the voxels of mask and image correspond, the headers do not."""
    patient = phantoms.make_patient(3, tools.tiny["lits"])
    ct = sitk.DICOMOrient(patient.ct_image(), orientation)
    mask = sitk.DICOMOrient(patient.label_image({phantoms.LIVER: 1, phantoms.LIVER_TUMOUR: 2}), orientation)
    expected = sitk.GetArrayFromImage(mask) > 0
    mask.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    mask.SetOrigin((0, 0, 0))
    sitk.WriteImage(ct, str(src / "volume-50.nii"))
    sitk.WriteImage(mask, str(src / "segmentation-50.nii"))
    report = run("lits", src)
    tools.check(report, source="lits", classes=["liver"], cases={"lits_050": ([src / "volume-50.nii"], expected, ["liver"])})
    assert "the header of the label disagrees with the image's, which was used" in report.converted["lits_050"].notes


def test_mirrored_mask_is_found_by_the_image(src, tools, run):
    patient = phantoms.make_patient(3)
    mask = patient.label_image({phantoms.LIVER: 1, phantoms.LIVER_TUMOUR: 1})
    expected = sitk.GetArrayFromImage(mask)
    wrong = sitk.GetImageFromArray(np.ascontiguousarray(expected[:, ::-1]))
    sitk.WriteImage(patient.ct_image(), str(src / "volume-1.nii"))
    sitk.WriteImage(wrong, str(src / "segmentation-1.nii"))
    report = run("lits", src)
    tools.check(report, source="lits", classes=["liver"], cases={"lits_001": ([src / "volume-1.nii"], expected, ["liver"])})
    assert any("mirrored along y" in note for note in report.converted["lits_001"].notes)


def test_the_same_case_twice_is_refused(src, pair, run):
    pair(3)
    pair(3, ending=".nii.gz")
    with pytest.raises(UserError, match="lits_003 is there twice"):
        run("lits", src)
