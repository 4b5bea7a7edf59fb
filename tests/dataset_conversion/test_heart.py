"""ACDC and the left atrium: frames, films, nrrd, h5, NIfTI, and the real data."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

CLASSES = ["right_ventricle", "myocardium", "left_ventricle"]


def real(folder: str) -> Path:
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    return Path(os.environ["NNUNET_PARTIAL_DATA"]) / folder


def test_acdc(src, tools, run):
    cases = {}
    for part, patient, frames in (("training", 1, (1, 12)), ("testing", 101, (1,))):
        folder = src / "ACDC" / part / f"patient{patient:03d}"
        for frame in frames:
            name = f"patient{patient:03d}_frame{frame:02d}"
            image = tools.write(folder / f"{name}.nii.gz", tools.grey(frame))
            label = tools.label_with(frame, (1, 2, 3))
            tools.write(folder / f"{name}_gt.nii.gz", label)
            cases[name] = ([image], label, CLASSES)
        sitk.WriteImage(
            sitk.JoinSeries([tools.image(tools.grey(i)) for i in range(3)]), str(folder / f"patient{patient:03d}_4d.nii.gz")
        )
        (folder / "Info.cfg").write_text("ED: 1\n")
    report = run("acdc", src)
    training = {k: v for k, v in cases.items() if "101" not in k}
    patients = dict.fromkeys(training, "patient001")
    tools.check(report, source="acdc", classes=CLASSES, channels=("cine MR",), cases=training, patients=patients)
    assert set(run("acdc", src, "--with-testing", dataset_id=8).converted) == set(cases)


def test_acdc_as_kaggle_unzips_it(src, tools, run):
    folder = src / "database" / "training" / "patient007"
    image = tools.write(folder / "patient007_frame01.nii" / "patient007_frame01.nii", tools.grey(0))
    label = tools.label_with(0, (1, 2, 3))
    tools.write(folder / "patient007_frame01_gt.nii" / "patient007_frame01_gt.nii", label)
    expected = {"patient007_frame01": ([image], label, CLASSES)}
    patients = {"patient007_frame01": "patient007"}
    tools.check(run("acdc", src), source="acdc", classes=CLASSES, channels=("cine MR",), cases=expected, patients=patients)


def test_left_atrium_challenge_files(src, tools, run):
    image = tools.write(src / "Training Set" / "06SR5RBREL16DQ6M8LWS" / "lgemri.nrrd", tools.grey(0))
    label = tools.label_with(0, (255,))
    tools.write(image.with_name("laendo.nrrd"), label)
    report = run("left_atrium", src)
    tools.check(
        report,
        source="left_atrium",
        classes=["left_atrium"],
        channels=("LGE MR",),
        cases={"06SR5RBREL16DQ6M8LWS": ([image], np.where(label, 1, 0), ["left_atrium"])},
    )


def write_h5(path: Path, **datasets) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            file.create_dataset(name, data=array, compression="gzip")
    return path


def test_left_atrium_h5(src, tools, run):
    image = np.random.default_rng(0).normal(size=(7, 8, 6)).astype(np.float32)  # x, y, z
    label = (image > 1).astype(np.uint8)
    write_h5(src / "2018LA_Seg_Training Set" / "0RZDK210BSMWAA6467LU" / "mri_norm2.h5", image=image, label=label)
    expected = tools.image(np.ascontiguousarray(image.transpose(2, 1, 0)), spacing=(0.625,) * 3, origin=(0, 0, 0))
    report = run("left_atrium", src)
    tools.check(
        report,
        source="left_atrium",
        classes=["left_atrium"],
        channels=("LGE MR",),
        cases={"0RZDK210BSMWAA6467LU": ([expected], label.transpose(2, 1, 0), ["left_atrium"])},
    )


@pytest.mark.parametrize("folder, name, number", [("ACDC", "acdc", 138), ("LeftAtrium", "left_atrium", 80)])
def test_real_data(folder, name, number, run):
    source = real(folder)
    report = run(name, source, "--processes", "2")
    assert len(report.converted) == number and not report.skipped
    assert all(i.how == ("in place",) for i in report.converted.values())
    for case in list(report.converted.values())[::25]:
        image = Path(case.images[0])
        truth = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz")) if name == "acdc" else source / "labels" / image.name
        original, written = sitk.ReadImage(str(truth)), sitk.ReadImage(str(report.folder / case.label))
        assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(original))
        assert np.allclose(written.GetSpacing(), sitk.ReadImage(str(image)).GetSpacing())
