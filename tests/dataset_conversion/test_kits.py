"""KiTS19, 21 and 23: off-diagonal affine, slices of another size, aggregated masks, kits.json."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.errors import UserError

SLICES_FIRST = {"spacing": (0.5, 0.92, 0.92), "origin": (0, 0, 0), "direction": (0, 0, 1, 0, 1, 0, -1, 0, 0)}
KIDNEY = {1: 1, 2: 1, 3: 1}


@pytest.fixture
def case(src, tools):
    """Write the files of one case; returns (path of the image, label)."""

    def write(number, values=(1, 2), names=("segmentation.nii.gz",), folder="data", image=True, label=True, shape=None):
        where = src / folder / f"case_{number:05d}"
        shape = shape or tools.shape
        content = tools.label_with(number, values, shape)
        if image:
            tools.write(where / "imaging.nii.gz", tools.grey(number, shape), **SLICES_FIRST)
        for name in names if label else ():
            tools.write(where / name, content if "OR" not in name else np.where(content, 1, 0).astype(np.uint8), **SLICES_FIRST)
        return where / "imaging.nii.gz", content

    return write


def test_kits19(src, tools, case, run):
    images = {0: case(0), 160: case(160, shape=(9, 5, 8))}
    case(210, label=False)
    case(3, image=False)
    case(4, label=False)
    report = run("kits", src)
    tools.check(
        report,
        source="kits",
        classes=["kidney"],
        cases={f"case_{n:05d}": ([image], tools.remap(label, KIDNEY), ["kidney"]) for n, (image, label) in images.items()},
        skipped={
            "case_00210": "it has no label of the classes; --unlabelled includes such cases",
            "case_00004": "imaging.nii.gz has no label",
            "case_00003": "segmentation.nii.gz has no image",
        },
    )


def test_test_cases_of_kits19_are_unlabelled(src, tools, case, run):
    image, label = case(0)
    test, _ = case(299, label=False)
    report = run("kits", src, "--unlabelled", "--organs", "kidney,tumor")
    tools.check(
        report,
        source="kits",
        classes=["kidney", "tumor"],
        cases={"case_00000": ([image], tools.remap(label, {1: 1, 2: 2}), ["kidney", "tumor"]), "case_00299": ([test], None, [])},
    )


def test_kits19_has_no_cysts(src, case, run):
    case(0)
    with pytest.raises(
        UserError, match="'cyst' is not a structure of this dataset. Structures: kidney, tumor, kidney_parenchyma"
    ):
        run("kits", src, "--organs", "kidney,cyst")


def test_kits21_uses_the_majority_of_its_annotators_or_what_is_asked_for(src, tools, case, run):
    names = [f"aggregated_{i}_seg.nii.gz" for i in ("MAJ", "AND", "OR")]
    image, label = case(5, (1, 2, 3), names, folder="kits21/data")
    report = run("kits", src, "--organs", "kidney,tumor,cyst")
    tools.check(
        report,
        source="kits",
        classes=["kidney", "tumor", "cyst"],
        cases={"case_00005": ([image], label, ["kidney", "tumor", "cyst"])},
    )
    report = run("kits", src, "--aggregation", "OR", "--name", "KiTS_OR", dataset_id=8)
    (report.folder.parent / "Dataset007_KiTS").rename(src.parent / "first")
    tools.check(report, source="kits", classes=["kidney"], cases={"case_00005": ([image], np.where(label, 1, 0), ["kidney"])})


def test_kits23_is_recognised_by_its_new_cases(src, tools, case, run):
    image, label = case(412, (1, 2, 3))
    report = run("kits", src, "--organs", "mass=tumor+cyst,kidney=kidney")
    tools.check(
        report,
        source="kits",
        classes=["mass", "kidney"],
        cases={"case_00412": ([image], tools.remap(label, {1: 2, 2: 1, 3: 1}), ["mass", "kidney"])},
    )


def test_part_of_kits23_is_recognised_by_a_cyst_in_its_labels(src, tools, case, run):
    """No folder of instances, no case from 300 on: only the labels tell it from KiTS19."""
    cases = {n: case(n, values) for n, values in ((0, (1, 2)), (1, (1, 3)))}
    report = run("kits", src)
    tools.check(
        report,
        source="kits",
        classes=["kidney"],
        cases={f"case_{n:05d}": ([image], tools.remap(label, KIDNEY), ["kidney"]) for n, (image, label) in cases.items()},
    )
    assert "release: KiTS23 (recognised by the cyst in case_00001)" in report.lines()


@pytest.mark.parametrize(
    "number, label, line",
    [
        (0, True, "KiTS19 (no label shows a cyst; --release 23 if it is a part of KiTS23)"),
        (210, False, "KiTS19 (recognised by cases from 210 on without labels)"),
        (400, True, "KiTS23 (recognised by cases from 300 on)"),
    ],
)
def test_the_release_is_named(src, case, run, number, label, line):
    case(0)
    case(number, label=label)
    assert f"release: {line}" in run("kits", src).lines()


def test_kits_json_is_compared_with_the_headers(src, tools, case, run):
    case(0), case(1)
    entry = {"captured_pixel_width": 0.92, "captured_slice_thickness": 0.5}
    (src / "data" / "kits.json").write_text(
        json.dumps([{"case_id": "case_00000", **entry}, {"case_id": "case_00001", **entry, "captured_slice_thickness": 5.0}])
    )
    report = run("kits", src)
    assert report.converted["case_00000"].notes == ()
    assert report.converted["case_00001"].notes == ("voxel size (0.5, 0.92, 0.92) mm, (5.0, 0.92, 0.92) in kits.json",)


def test_real_segmentation(src, run):
    """A published KiTS19 segmentation: off-diagonal affine, 85 x 512 x 512. The image is made to fit."""
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    published = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "kits19" / "case_00048" / "segmentation.nii.gz"
    (src / "case_00048").mkdir()
    shutil.copy(published, src / "case_00048")
    original = nibabel.load(published)
    label = np.asarray(original.dataobj).astype(np.uint8)
    image = nibabel.Nifti1Image(label.astype(np.int16) * 90 - 10, original.affine)
    nibabel.save(image, src / "case_00048" / "imaging.nii.gz")
    report = run("kits", src, "--organs", "kidney,tumor")
    written = nibabel.load(report.folder / report.converted["case_00048"].label)
    assert np.array_equal(np.asarray(written.dataobj), label)
    assert np.allclose(written.affine, original.affine, atol=1e-3)
    assert np.count_nonzero(np.abs(written.affine[:3, :3]) > 1e-6) == 3 and abs(written.affine[0, 0]) < 1e-6
    one_kidney = np.argwhere(np.asarray(written.dataobj) == 2).mean(0)
    truth = sitk.ReadImage(str(published))
    position = truth.TransformContinuousIndexToPhysicalPoint([float(i) for i in one_kidney])
    image = sitk.ReadImage(report.converted["case_00048"].images[0])
    assert np.allclose(image.TransformPhysicalPointToContinuousIndex(position), one_kidney, atol=1e-2)
