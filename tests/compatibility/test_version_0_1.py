"""What version 0.1 wrote is read by this one: plans variants, models, label directories, a loop and a comparison half done.

``v0_1.zip`` was written by the code of version 0.1 on phantoms of three balls, 2D, features 4, 8, 8: two teachers, completed
labels, MSKD trained to the end, co-training stopped after the first of two epochs, the masks that MSKD predicts; and, over the
stand-in commands of tests/orchestration, an ATSO loop and a comparison that were killed on the way. ``@ROOT@`` stands for
the folder that it lay in.
"""

import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial.files import load_checkpoint, read_json

HERE = Path(__file__).parent
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TEXT = {".json", ".txt", ".csv", ".md"}
DATASET, PLANS = "Dataset501_Tiny", "nnUNetPlans_tiny"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The fixture's files in a folder of their own, in nnU-Net's variables."""
    root = tmp_path / "v0_1"
    with zipfile.ZipFile(HERE / "v0_1.zip") as archive:
        archive.extractall(root)
    for file in root.rglob("*"):
        if file.suffix in TEXT and file.is_file():
            file.write_text(file.read_text().replace("@ROOT@", str(root)))
    for name in FOLDERS:
        monkeypatch.setenv(name, str(root / name))
    return SimpleNamespace(
        root=root,
        preprocessed=root / FOLDERS[1] / DATASET,
        results=root / FOLDERS[2] / DATASET,
        labels=root / "labels" / "fold_0",
    )


def model_of(old, trainer, plans=PLANS):
    return old.results / f"{trainer}__{plans}__2d"


def test_plans_variants(old):
    from nnunet_partial.settings import RunSettings

    files = sorted(old.preprocessed.glob("nnUNetPlans*.json"))
    assert len(files) == 5
    settings = {i.stem: RunSettings.from_plans(read_json(i)) for i in files}
    assert settings[PLANS].num_epochs == 2 and settings[PLANS].seed == 7
    assert settings[f"{PLANS}_lits"].source == "lits"
    assert settings[f"{PLANS}_pseudo"].labels == str(old.labels)


def test_a_model_predicts_what_it_predicted(old, run_command):
    made = old.root / "again"
    model = model_of(old, "nnUNetTrainerMSKD")
    run_command("nnunet_partial", "predict", 501, "--configuration", "2d", "--model", model, "-o", made, "--device", "cpu")
    expected = sorted((old.root / "predicted").glob("*.nii.gz"))
    assert len(expected) == 7
    for file in expected:
        before, after = (sitk.GetArrayFromImage(sitk.ReadImage(str(i))) for i in (file, made / file.name))
        assert np.mean(before != after) < 1e-3  # another processor may round a tie to the other side


def test_a_label_directory(old):
    from nnunet_partial.data.preprocessed.label_directory import LabelDirectory

    labels = LabelDirectory.read(str(old.labels))
    labels.require_fit(DATASET, "nnUNetPlans_2d", ("liver", "kidney", "pancreas"), "")


def test_co_training_goes_on_where_it_was(old, one_thread):
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    plans = f"{PLANS}_pseudo"
    stopped = load_checkpoint(model_of(old, "nnUNetTrainerCoTraining", plans) / "fold_0" / "checkpoint_latest.pth")
    trainer = get_trainer_from_args("501", "2d", 0, "nnUNetTrainerCoTraining", plans, True, torch.device("cpu"))
    maybe_load_checkpoint(trainer, True, False)
    assert trainer.current_epoch == stopped["current_epoch"] == 1
    kept = trainer.network.state_dict()
    for name, value in stopped["network_weights"].items():
        assert name in kept and kept[name].shape == value.shape
    trainer.run_training()
    assert (model_of(old, "nnUNetTrainerCoTraining", plans) / "fold_0" / "checkpoint_final.pth").is_file()


@pytest.fixture
def stand_ins(tmp_path):
    def write(source, commands):
        folder = tmp_path / "programs"
        folder.mkdir()
        for name in commands:
            (folder / name).write_text(f"#!{sys.executable} -SE\n{Path(source).read_text()}")
            (folder / name).chmod(0o755)
        return folder

    return write


COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnunet_partial")
ORCHESTRATION = HERE.parent / "orchestration"


def environment(folder, programs):
    folders = {i: str(folder / i) for i in FOLDERS}
    return {"NNUNET_PARTIAL_PROGRAMS": str(programs), "STUB_LOG": str(folder / "stub.log"), **folders}


def test_an_atso_loop_goes_on(old, stand_ins, run_command):
    place = old.root / "atso"
    journal = place / "nnUNet_results" / "Dataset777_Stub" / "atso" / "atso_2d_fold0" / "journal.json"
    before = {k: v for k, v in json.loads(journal.read_text())["stages"].items() if v["state"] == "done"}
    assert len(before) >= 4
    programs = stand_ins(ORCHESTRATION / "stub.py", COMMANDS)
    arguments = ["--dataset", 777, "--configuration", "2d", "--device", "cpu", "--validation", "none", "--generations", 2]
    arguments += ["--test-images", place / "images", "--executor", "debug"]
    script = HERE.parents[1] / "scripts" / "atso_loop.py"
    run_command(sys.executable, script, *arguments, env=environment(place, programs))
    stages = json.loads(journal.read_text())["stages"]
    assert {v["state"] for v in stages.values()} == {"done"}
    assert {k: stages[k] for k in before} == before  # nothing that was done was done again


def test_a_comparison_goes_on(old, stand_ins, run_command):
    place = old.root / "compare"
    programs = stand_ins(ORCHESTRATION / "compare" / "comparison_stub.py", COMMANDS)
    done = {i: i.read_bytes() for i in (place / "out" / "jobs").glob("*/result.json")}
    assert len(done) >= 2
    arguments = ["--configuration", "2d", "--methods", "naive", "individual", "mskd", "selftraining", "--executor", "debug"]
    arguments += ["--test-images", place / "imagesTs", "--test-labels", place / "labelsTs", "--out", place / "out"]
    run_command("nnunet_partial", "compare", 777, *arguments, "--device", "cpu", env=environment(place, programs))
    assert {i: i.read_bytes() for i in done} == done  # nothing that was done was done again
    assert list((place / "out").glob("report.*"))
