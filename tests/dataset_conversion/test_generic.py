"""Any folder: every format, several channels, DICOM, unlabelled cases, real CT, globs."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion.generic import Glob, parse_labels
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_stays_in_place(ending, src, tools, run):
    image = tools.write(src / "images" / f"anna{ending}", tools.grey(0))
    label = tools.label_with(0, (1, 4))
    tools.write(src / "labels" / f"anna{ending}", label)
    report = run(
        "generic", src, "--image-glob", f"images/*{ending}", "--label-glob", f"labels/*{ending}", "--labels", "liver=1,kidney=4"
    )
    tools.check(
        report,
        source="generic",
        classes=["liver", "kidney"],
        cases={"anna": ([image], tools.remap(label, {1: 1, 4: 2}), ["liver", "kidney"])},
    )


def test_dicom_folders_and_labels_beside_them(src, tools, run):
    cases = {}
    for number in (1, 2):
        patient = phantoms.make_patient(number, tools.tiny["nih"])
        phantoms.write_dicom_series(patient.ct_image(), src / f"patient {number}" / "CT")
        mask = patient.label_image({phantoms.LIVER: 1})
        sitk.WriteImage(mask, str(src / f"patient {number}" / "liver.nrrd"))
        cases[f"patient_{number}"] = ([patient.ct_image()], sitk.GetArrayFromImage(mask), ["liver"])
    report = run("generic", src, "--image-glob", "*/CT", "--label-glob", "*/liver.nrrd", "--labels", "liver=1")
    tools.check(report, source="generic", classes=["liver"], cases=cases)


def test_two_channels_and_a_case_that_lacks_one(src, tools, run):
    paths = [
        [tools.write(src / f"{case}_{channel}.mha", tools.grey(i + j)) for j, channel in enumerate(("t1", "t2"))]
        for i, case in enumerate("ab")
    ]
    tools.write(src / "c_t1.mha", tools.grey(7))
    label = tools.label_with(0, (1,))
    for case in "abc":
        tools.write(src / f"{case}_seg.mha", label)
    report = run(
        "generic",
        src,
        "--image-glob",
        "*_t1.mha",
        "--image-glob",
        "*_t2.mha",
        "--channels",
        "T1,T2",
        "--label-glob",
        "*_seg.mha",
        "--labels",
        "tumor=1",
    )
    tools.check(
        report,
        source="generic",
        classes=["tumor"],
        channels=("T1", "T2"),
        skipped={"c": "one of its channels is missing"},
        cases={"a": (paths[0], label, ["tumor"]), "b": (paths[1], label, ["tumor"])},
    )


def test_unlabelled_folder(src, tools, run):
    image = tools.write(src / "deep" / "er" / "x.nii.gz", tools.grey(0))
    report = run("generic", src, "--image-glob", "**/*.nii.gz", "--unlabelled", "--source-name", "ward3")
    tools.check(report, source="ward3", classes=["foreground"], cases={"deep_er_x": ([image], None, [])})


def test_real_ct(src, run):
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "ct"
    (src / "case1").mkdir()
    for name, new in (("example_ct_sm", "ct"), ("example_seg_fast", "seg")):
        (src / "case1" / f"{new}.nii.gz").write_bytes((folder / f"{name}.nii.gz").read_bytes())
    label = sitk.ReadImage(str(src / "case1" / "seg.nii.gz"))
    values = np.unique(sitk.GetArrayFromImage(label))[1:]
    names = ",".join(f"organ{v}={v}" for v in values)
    report = run("generic", src, "--image-glob", "*/ct.nii.gz", "--label-glob", "*/seg.nii.gz", "--labels", names)
    written = sitk.ReadImage(str(report.folder / report.converted["case1"].label))
    assert np.array_equal(sitk.GetArrayFromImage(written), np.searchsorted(values, sitk.GetArrayFromImage(label), side="right"))
    assert np.allclose(written.GetOrigin(), label.GetOrigin()) and report.converted["case1"].range == (-1100.0, 1207.0)


@pytest.mark.parametrize(
    "glob, path, case",
    [
        ("*/CT", "anna/CT", "anna"),
        ("images/*.nii.gz", "images/a b.nii.gz", "a_b"),
        ("**/img?.mha", "x/y/img3.mha", "x_y_3"),
        ("**/scan.nii", "scan.nii", "case"),
        ("*.nii", "x.nii.gz", None),
        ("a/*.nii", "a/b/c.nii", None),
    ],
)
def test_names_of_cases(glob, path, case):
    assert Glob(glob).case(path) == case


def test_labels_are_parsed():
    assert parse_labels("liver=1, kidney=2+3") == {"liver": (1,), "kidney": (2, 3)}
    for wrong in ("liver", "liver=0", "liver=x", "liver=1+"):
        with pytest.raises(UserError, match="is not NAME=VALUE"):
            parse_labels(wrong)
