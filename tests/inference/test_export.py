"""Exported models: what they hold, what they refuse, and that nnU-Net predicts with them where this package is not."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_partial import cli, files
from nnunet_partial.errors import UserError
from nnunet_partial.inference import export
from nnunet_partial.inference.export import export_model, stock_trainer_name

NAME = "Dataset501_Abdomen/nnUNetTrainer__nnUNetPlans_mine__3d_fullres"
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "kidney": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
    "dataset": {"lits_0": {"images": ["/home/me/patient.nii.gz"], "label": "/home/me/l.nii.gz"}},
    "nnunet_partial": {"version": 1, "cases": {"lits_0": {"source": "lits", "annotated": ["liver"]}}},
}
MIRRORING_AXES = (0, 2)
plans_by_hand = runpy.run_path(str(Path(__file__).parents[1] / "plans.py"))["plans_by_hand"]


def plans():
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    made = plans_by_hand(
        "Dataset501_Abdomen", "nnUNetPlans_mine", (16, 16, 16), [2.5, 2.0, 2.0], (20, 24, 24), strides, [4, 8, 8]
    )
    return {**made, "nnunet_partial": {"mskd": {"teachers": {"lits": "/home/me/teacher"}}}}


def network(seed=0):
    torch.manual_seed(seed)
    manager = PlansManager(plans())
    built = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, False)
    for name, parameter in built.named_parameters():
        if "seg_layers" in name:  # a segmentation of one class would compare nothing
            torch.nn.init.normal_(parameter, std=1.0 if name.endswith("weight") else 0.0)
    return built


def checkpoint(seed=0, trainer="nnUNetTrainerMSKD", configuration="3d_fullres", fold=0, **changes):
    """What a trainer leaves: optimiser, log with numpy numbers, averages, settings, paths."""
    weights = network(seed).state_dict()
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: torch.ones(3)}},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {
            "plans": plans(),
            "configuration": configuration,
            "fold": fold,
            "dataset_json": DATASET,
            "device": torch.device("cpu"),
        },
        "nnunet_partial": {"ema": weights},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": MIRRORING_AXES,
        **changes,
    }


def write_fold(model, fold, **changes):
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(seed=hash(fold) % 7, **{"fold": fold, **changes}), folder / "checkpoint_final.pth")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "results" / "Dataset501_Abdomen" / "nnUNetTrainerMSKD__nnUNetPlans_mine__3d_fullres"
    for fold in (0, 1):
        write_fold(folder, fold)
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return folder


def files_of(folder):
    return sorted(str(i.relative_to(folder)) for i in folder.rglob("*") if i.is_file())


def test_checkpoint_holds_what_predicts_and_nothing_else(model, tmp_path):
    assert export_model(model, tmp_path / "out") == NAME
    exported = torch.load(tmp_path / "out" / NAME / "fold_1" / "checkpoint_final.pth", weights_only=True)
    assert set(exported) == {"network_weights", "init_args", "inference_allowed_mirroring_axes", "trainer_name"}
    assert exported["trainer_name"] == "nnUNetTrainer" and exported["inference_allowed_mirroring_axes"] == MIRRORING_AXES
    assert exported["init_args"] == {"configuration": "3d_fullres", "fold": 1}
    original = torch.load(model / "fold_1" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert list(exported["network_weights"]) == list(original)
    assert all(torch.equal(exported["network_weights"][k], v) for k, v in original.items())


def test_files(model, tmp_path):
    export_model(model, tmp_path / "out")
    folder = tmp_path / "out" / NAME
    assert files_of(tmp_path / "out") == [
        f"{NAME}/{i}"
        for i in (
            "MODEL_CARD.md",
            "dataset.json",
            "dataset_fingerprint.json",
            "export.json",
            "fold_0/checkpoint_final.pth",
            "fold_1/checkpoint_final.pth",
            "model_card.json",
            "plans.json",
        )
    ]
    exported = json.loads((folder / "dataset.json").read_text())
    assert exported == {k: v for k, v in DATASET.items() if k != "dataset"} and "nnunet_partial" in exported
    assert json.loads((folder / "plans.json").read_text()) == {k: v for k, v in plans().items() if k != "nnunet_partial"}
    assert json.loads((folder / "export.json").read_text())["trained_with"] == {
        "0": "nnUNetTrainerMSKD",
        "1": "nnUNetTrainerMSKD",
    }
    assert not any(b"/home/me" in i.read_bytes() for i in folder.rglob("*") if i.is_file())


def test_zip_holds_the_folder(model, tmp_path):
    export_model(model, tmp_path / "out", tmp_path / "model.zip")
    export_model(model, zip_file=tmp_path / "alone" / "model.zip")
    for file in (tmp_path / "model.zip", tmp_path / "alone" / "model.zip"):
        with zipfile.ZipFile(file) as archive:
            assert sorted(archive.namelist()) == files_of(tmp_path / "out")
    beside = {"MODEL_CARD.md": "model.MODEL_CARD.md", "model_card.json": "model.model_card.json"}
    assert sorted(os.listdir(tmp_path / "alone")) == sorted([*beside.values(), "model.zip"])
    for within, name in beside.items():
        assert (tmp_path / "alone" / name).read_text() == (tmp_path / "out" / NAME / within).read_text()


def test_folds(model, tmp_path):
    export_model(model, tmp_path / "one", folds=["1"])
    assert sorted(i.name for i in (tmp_path / "one" / NAME).glob("fold_*")) == ["fold_1"]
    write_fold(model, "all")
    export_model(model, tmp_path / "numbered")
    assert sorted(i.name for i in (tmp_path / "numbered" / NAME).glob("fold_*")) == ["fold_0", "fold_1"]
    export_model(model, tmp_path / "all", folds=["all"])
    assert sorted(i.name for i in (tmp_path / "all" / NAME).glob("fold_*")) == ["fold_all"]
    with pytest.raises(UserError, match="fold_3/checkpoint_final.pth does not exist. Folds with checkpoint_final.pth: 0, 1, all"):
        export_model(model, tmp_path / "out", folds=[0, 3])
    with pytest.raises(UserError, match="holds no fold_N/checkpoint_best.pth"):
        export_model(model, tmp_path / "out", checkpoint="checkpoint_best.pth")
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_becomes_the_final_one(model, tmp_path):
    best = checkpoint(seed=5)
    torch.save(best, model / "fold_0" / "checkpoint_best.pth")
    export_model(model, tmp_path / "out", checkpoint="checkpoint_best.pth")
    assert [i.name for i in (tmp_path / "out" / NAME).glob("fold_*/*")] == ["checkpoint_final.pth"]
    exported = torch.load(tmp_path / "out" / NAME / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert all(torch.equal(exported["network_weights"][k], v) for k, v in best["network_weights"].items())


def test_nothing_is_overwritten_unless_asked(model, tmp_path):
    export_model(model, tmp_path / "out", folds=[0])
    with pytest.raises(UserError, match="exists. Remove it, or replace it with --overwrite"):
        export_model(model, tmp_path / "out", folds=[1])
    (tmp_path / "model.zip").write_text("mine")
    with pytest.raises(UserError, match="model.zip exists"):
        export_model(model, tmp_path / "new", tmp_path / "model.zip")
    assert not (tmp_path / "new").exists() and (tmp_path / "model.zip").read_text() == "mine"
    export_model(model, tmp_path / "out", tmp_path / "model.zip", folds=[1], overwrite=True)
    assert sorted(i.name for i in (tmp_path / "out" / NAME).glob("fold_*")) == ["fold_1"]
    assert zipfile.is_zipfile(tmp_path / "model.zip")
    assert sorted(os.listdir(tmp_path / "out" / "Dataset501_Abdomen")) == [Path(NAME).name]


def test_a_failure_leaves_what_was_there(model, tmp_path, monkeypatch):
    export_model(model, tmp_path / "out", tmp_path / "model.zip", folds=[0])
    before = files_of(tmp_path / "out"), (tmp_path / "model.zip").read_bytes()

    def disk_full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_checkpoint", disk_full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export_model(model, tmp_path / "out", tmp_path / "model.zip", folds=[1], overwrite=True)
    monkeypatch.undo()
    replace = os.replace
    failing = {str(tmp_path / "out" / NAME)}  # fails once, when the new folder is to take the place of the old one
    monkeypatch.setattr(files, "_exchange", lambda *names: False)  # as on a file system that cannot exchange them
    monkeypatch.setattr(
        files.os, "replace", lambda a, b: disk_full() if str(b) in failing and "/.tmp-" in str(a) else replace(a, b)
    )
    with pytest.raises(UserError, match="cannot be written"):
        export_model(model, tmp_path / "out", folds=[1], overwrite=True)
    assert (files_of(tmp_path / "out"), (tmp_path / "model.zip").read_bytes()) == before


def test_the_same_model_is_the_same_bytes_and_exporting_it_again_changes_nothing(model, tmp_path):
    for name in ("one", "two"):
        export_model(model, tmp_path / name, tmp_path / f"{name}.zip")
        time.sleep(0.01)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    before = (tmp_path / "one.zip").stat().st_ino, (tmp_path / "one" / NAME).stat().st_ino
    shutil.rmtree(tmp_path / "two")  # as after a kill between the zip and the folder
    export_model(model, tmp_path / "two", tmp_path / "two.zip")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    export_model(model, tmp_path / "one", tmp_path / "one.zip", overwrite=True)
    assert before == ((tmp_path / "one.zip").stat().st_ino, (tmp_path / "one" / NAME).stat().st_ino)


class nnUNetTrainerOther(nnUNetTrainer):
    """Builds something else."""

    @staticmethod
    def build_network_architecture(*args, **kwargs):
        raise NotImplementedError


def test_trainer_of_the_export(monkeypatch, tmp_path):
    assert stock_trainer_name("nnUNetTrainerMSKD", tmp_path) == "nnUNetTrainer"
    assert stock_trainer_name("nnUNetTrainerNoMirroring", tmp_path) == "nnUNetTrainer"
    assert stock_trainer_name("nnUNetTrainerBN", tmp_path) == "nnUNetTrainerBN"  # nnU-Net has it, with its own architecture
    with pytest.raises(UserError, match="the trainer nnUNetTrainerNobodyHas of .* is not found"):
        stock_trainer_name("nnUNetTrainerNobodyHas", tmp_path)
    monkeypatch.setattr("nnunetv2.utilities.find_objects.recursive_find_trainer_class_by_name", lambda name: nnUNetTrainerOther)
    with pytest.raises(UserError, match="builds an architecture of its own"):
        stock_trainer_name("nnUNetTrainerOther", tmp_path)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"network_weights": {"encoder.conv": torch.ones(1)}},
            "fold_1/checkpoint_final.pth do not fit the network of its plans.json",
        ),
        ({"trainer_name": "nnUNetTrainerPartial"}, "fold 0 with nnUNetTrainerMSKD, .*fold 1 with nnUNetTrainerPartial"),
        ({"init_args": {}}, "names no trainer or no configuration"),
        ({"trainer_name": None}, "names no trainer"),
    ],
)
def test_models_that_do_not_fit(model, tmp_path, changes, message):
    write_fold(model, 1, **changes)
    with pytest.raises(UserError, match=message):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_architecture_of_this_package_in_the_plans(model, tmp_path):
    content = plans()
    content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = (
        "nnunet_partial.networks.usenet.ResidualUSENet"
    )
    (model / "plans.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="architecture nnunet_partial.networks.usenet.ResidualUSENet, which stock nnU-Net does not"
    ):
        export_model(model, tmp_path / "out")


def test_damaged_input(model, tmp_path):
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="fold_0/checkpoint_final.pth"):
        export_model(model, tmp_path / "out")
    os.remove(model / "plans.json")
    with pytest.raises(UserError, match="plans.json does not exist"):
        export_model(model, tmp_path / "out")
    with pytest.raises(UserError, match="--out DIR, --zip FILE, or both"):
        export_model(model)


def test_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name, raising=False)
    assert (
        cli.main(
            [
                "export",
                "--dataset",
                "501",
                "--trainer",
                "nnUNetTrainerMSKD",
                "--plans",
                "nnUNetPlans_mine",
                "--configuration",
                "3d_fullres",
                "--zip",
                str(tmp_path / "a.zip"),
                "--folds",
                "0",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert f"nnUNetv2_install_pretrained_model_from_zip {tmp_path}/a.zip" in told
    dataset, stock = NAME.split("/")
    trainer, plans, configuration = stock.split("__")
    assert trainer == "nnUNetTrainer"
    assert (
        f"predict with: nnUNetv2_predict -i IMAGES -o PREDICTIONS -d {dataset} -tr {trainer} -p {plans} -c {configuration} -f 0\n"
        in told
    )
    assert cli.main(["export", str(model), "--out", str(tmp_path / "out")]) == 0
    assert f"-m {tmp_path}/out/{NAME} -f 0 1" in capsys.readouterr().out
    for arguments, message in (
        ([], "give either MODEL_FOLDER or --dataset"),
        (["--dataset", "501"], "--dataset needs --trainer and --configuration"),
        ([str(model), "--out", str(tmp_path / "out"), "--folds", "0"], "exists. Remove it"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err


# -------------------------------------------------------------------------- prediction without this package

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("nnunet_partial"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Run a command of this environment as if this package were not installed."""
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    environment = {k: v for k, v in os.environ.items() if k not in ("nnUNet_extTrainer", "nnUNet_raw", "nnUNet_preprocessed")}
    environment.update(
        PYTHONPATH=str(tmp_path / "blocker"),
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
        OMP_NUM_THREADS="1",
        nnUNet_results=str(tmp_path / "installed"),
    )
    (tmp_path / "installed").mkdir()

    def run(*command):
        argv = [str(Path(sys.executable).parent / command[0]), *map(str, command[1:])]
        return subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True)

    broken = run("python", "-c", "import torch, nnunet_partial")
    assert broken.returncode != 0 and "No module named 'nnunet_partial'" in broken.stderr
    return run


def write_image(path):
    path.parent.mkdir(parents=True)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 24, 22)).astype(np.float32))
    image.SetSpacing((2.0, 2.1, 2.5))
    sitk.WriteImage(image, str(path))


def expected_segmentation(image):
    """The ensemble of both folds, networks built here and given to the predictor as they are."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    manager = PlansManager({k: v for k, v in plans().items() if k != "nnunet_partial"})
    predictor.manual_initialization(
        network(0),
        manager,
        manager.get_configuration("3d_fullres"),
        [network(0).state_dict(), network(1).state_dict()],
        DATASET,
        "nnUNetTrainer",
        MIRRORING_AXES,
    )
    data, properties = manager.image_reader_writer_class().read_images([str(image)])
    return predictor.predict_single_npy_array(data, properties)


def test_stock_nnunet_predicts_where_this_package_is_not_installed(model, tmp_path, elsewhere):
    write_image(tmp_path / "images" / "x_0000.nii.gz")
    export_model(model, tmp_path / "out", tmp_path / "model.zip")
    installed = elsewhere("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    assert installed.returncode == 0, installed.stderr
    assert files_of(tmp_path / "installed") == files_of(tmp_path / "out")
    assert (tmp_path / "installed" / NAME / "fold_0" / "checkpoint_final.pth").read_bytes() == (
        tmp_path / "out" / NAME / "fold_0" / "checkpoint_final.pth"
    ).read_bytes()
    expected = expected_segmentation(tmp_path / "images" / "x_0000.nii.gz")
    assert np.bincount(expected.ravel().astype(int), minlength=3).min() > 0.02 * expected.size  # all classes are there
    # nnU-Net finds the model by the number of its dataset in the folder that the zip was installed to
    result = elsewhere(
        "nnUNetv2_predict",
        "-d",
        501,
        "-c",
        "3d_fullres",
        "-p",
        "nnUNetPlans_mine",
        "-f",
        0,
        1,
        "-device",
        "cpu",
        "-npp",
        1,
        "-nps",
        1,
        "-i",
        tmp_path / "images",
        "-o",
        tmp_path / "predicted",
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "predicted" / "x.nii.gz")))
    assert np.mean(predicted != expected) < 1e-4  # the number of threads changes the last bit of a sum


def test_the_student_as_onnx(model, tmp_path, capsys):
    """The light student, which stock nnU-Net does not have: --onnx is its way out."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra onnx is not installed")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from nnunet_partial.inference.onnx import onnx_difference
    from nnunet_partial.trainers import nnUNetTrainerCrossTeaching

    manager = PlansManager(plans())
    student = nnUNetTrainerCrossTeaching.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3)
    write_fold(model, 1, trainer_name="nnUNetTrainerCrossTeaching", network_weights=student.state_dict())
    file = tmp_path / "student.onnx"
    argv = ["export", str(model), "--folds", "1", "--onnx", str(file)]
    assert cli.main(argv) == 0 and "wrote" in capsys.readouterr().out
    written = onnx.load(file)
    properties = {i.key: i.value for i in written.metadata_props}
    assert properties["trainer"] == "nnUNetTrainerCrossTeaching" and json.loads(properties["labels"]) == DATASET["labels"]
    assert json.loads(properties["patch_size"]) == [16, 16, 16] and json.loads(properties["spacing_mm"]) == [2.5, 2.0, 2.0]
    student.decoder.deep_supervision = False
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    assert onnx_difference(file, student.eval(), image) <= 1e-4
    for wrong, word in (
        (argv, "exists"),
        ([*argv[:2], "--folds", "0", "1", "--onnx", "x.onnx"], "takes one fold"),
        ([*argv[:2], "--folds", "7", "--onnx", "x.onnx"], "holds no fold_7"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(wrong)
        assert end.value.code == 2 and word in capsys.readouterr().err
