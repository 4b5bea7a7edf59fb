"""The commands that a user types, in processes of their own: nothing is set but nnU-Net's three folders."""

import os
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.files import read_json
from tests import fork_server, pictures

SMALL = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", pictures.VARIABLE: "1"}


def command(*argv, check=True):
    environment = {k: v for k, v in {**os.environ, **SMALL}.items() if k != "nnUNet_extTrainer"}
    result = fork_server.run(argv, environment)
    assert not check or result.returncode == 0, f"{argv}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
    return result


@pytest.fixture(scope="module")
def trained(tiny, teachers):
    """nnUNetTrainerPartial in 2D and 3D, and nnUNetTrainerMSKD, all with final validation."""
    command("nnUNetv2_train", 501, "3d_fullres", 0, "-tr", "nnUNetTrainerPartial", "-p", tiny.plans, "-device", "cpu", "--npz")
    command("nnUNetv2_train", 501, "2d", 0, "-tr", "nnUNetTrainerPartial", "-p", tiny.plans, "-device", "cpu", "--npz")
    command("nnUNetv2_train", 501, "2d", 0, "-tr", "nnUNetTrainerMSKD", "-p", tiny.plans, "-device", "cpu")
    return tiny


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.mark.parametrize(
    "trainer, configuration",
    [("nnUNetTrainerPartial", "3d_fullres"), ("nnUNetTrainerPartial", "2d"), ("nnUNetTrainerMSKD", "2d")],
)
def test_validation_holds_annotated_classes_and_keeps_the_complete_prediction(trained, trainer, configuration):
    fold = trained.results / f"{trainer}__{trained.plans}__{configuration}" / "fold_0"
    contract = read_json(trained.preprocessed / "dataset.json")
    labels = contract["labels"]
    cases = sorted(i.name[:-7] for i in (fold / "validation").glob("*.nii.gz"))
    assert cases == sorted(read_json(trained.preprocessed / "splits_final.json")[0]["val"])
    for case in cases:
        complete, annotated = (read(fold / i / f"{case}.nii.gz") for i in ("validation_all_classes", "validation"))
        values = [labels[i] for i in contract["nnunet_partial"]["cases"][case]["annotated"]]
        assert np.array_equal(annotated, np.where(np.isin(complete, values), complete, 0))
    summary = read_json(fold / "validation" / "summary.json")
    means = [summary["mean"][str(labels[i])]["Dice"] for i in ("liver", "kidney", "pancreas")]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.nanmean(means))
    assert (fold / "progress.png").is_file() and (fold / "progress_terms.png").is_file()


def test_probabilities_agree_with_the_annotated_prediction(trained):
    fold = trained.results / f"nnUNetTrainerPartial__{trained.plans}__3d_fullres" / "fold_0" / "validation"
    files = sorted(fold.glob("*.npz"))
    assert len(files) == 3
    for file in files:
        assert np.array_equal(np.load(file)["probabilities"].argmax(0), read(fold / f"{file.stem}.nii.gz"))


def test_predict(trained, tmp_path, stock_predict):
    image, predicted = stock_predict(trained, "nnUNetTrainerPartial", trained.plans, tmp_path, command)
    assert read(predicted).shape == read(image).shape


def test_find_best_configuration(trained):
    result = command(
        "nnUNetv2_find_best_configuration",
        501,
        "-p",
        trained.plans,
        "-tr",
        "nnUNetTrainerPartial",
        "-c",
        "2d",
        "3d_fullres",
        "-f",
        0,
        "-np",
        1,
    )
    best = read_json(trained.results / "inference_information.json")
    assert set(best["all_results"]) >= {f"nnUNetTrainerPartial__{trained.plans}__{i}" for i in ("2d", "3d_fullres")}
    for name, dice in best["all_results"].items():
        if not name.startswith("ensemble"):
            own = read_json(trained.results / name / "fold_0" / "validation" / "summary.json")
            assert dice == pytest.approx(own["foreground_mean"]["Dice"])
    assert "Best" in result.stdout


def test_export_model_to_zip(trained, tmp_path):
    command(
        "nnUNetv2_export_model_to_zip",
        "-d",
        501,
        "-o",
        tmp_path / "model.zip",
        "-c",
        "2d",
        "-tr",
        "nnUNetTrainerMSKD",
        "-p",
        trained.plans,
        "-f",
        0,
    )
    names = zipfile.ZipFile(tmp_path / "model.zip").namelist()
    assert any(i.endswith(f"nnUNetTrainerMSKD__{trained.plans}__2d/fold_0/checkpoint_final.pth") for i in names)


def test_validation_alone_needs_no_teachers(trained):
    """--val after the teachers are gone."""
    hidden = [(i, i.with_name("hidden-" + i.name)) for i in trained.results.glob("nnUNetTrainerIndividual*")]
    refused = trained.results / f"nnUNetTrainerMSKD__{trained.plans}__3d_fullres"
    before = sorted(refused.rglob("*"))  # other tests of the same process may have built this trainer
    for here, away in hidden:
        here.rename(away)
    try:
        command("nnUNetv2_train", 501, "2d", 0, "-tr", "nnUNetTrainerMSKD", "-p", trained.plans, "-device", "cpu", "--val")
        missing = command(
            "nnUNetv2_train", 501, "3d_fullres", 0, "-tr", "nnUNetTrainerMSKD", "-p", trained.plans, "-device", "cpu", check=False
        )
    finally:
        for here, away in hidden:
            away.rename(here)
    assert missing.returncode == 2 and "nnUNetTrainerIndividual" in missing.stderr
    assert sorted(refused.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("501", "2d", 0, "-tr", "nnUNetTrainerMSKD", "-p", "nnUNetPlan_tiny"), "Did you mean nnUNetPlans_tiny"),
        (
            ("501", "2dd", 0, "-tr", "nnUNetTrainerPartial"),
            "plans nnUNetPlans have no configuration '2dd'. Did you mean 2d? They have: 2d, 3d_fullres.",
        ),
        (("510", "2d", 0, "-tr", "nnUNetTrainerPartial"), "found none; convert or merge it first. There are: Dataset501_Tiny."),
    ],
)
def test_what_a_training_names_and_there_is_not_is_one_line(tiny, arguments, told):
    before = set(tiny.folders.results.rglob("*"))
    result = command("nnUNetv2_train", *arguments, "-device", "cpu", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    (line,) = [i for i in result.stderr.splitlines() if i.startswith("nnunet_partial: error: ")]
    assert told in line
    assert set(tiny.folders.results.rglob("*")) == before
