"""Files of strangers run no code: models, pickles, names and locks that try to, at every command that reads them.

Each is refused with one line and exit code 2, and what it wanted to run has not run. That the attacks are real is shown too:
with ``--trust``, which is the user's word, the same file runs.
"""

import json
import os
import pickle
import runpy
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_partial import cli
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.label_directory import writing as writing_labels
from nnunet_partial.errors import UserError
from nnunet_partial.files import sha256
from nnunet_partial.labels import Annotations
from nnunet_partial.networks.models import ModelFiles
from nnunet_partial.networks.teachers import load_teacher
from nnunet_partial.orchestration.atso import command as atso
from nnunet_partial.trust import check_plans, find_trainer

DATASET = "Dataset601_Strange"
CASES = [f"lits_{i}" for i in range(5)]
SHAPE = (16, 16, 16)
plans_by_hand = runpy.run_path(str(Path(__file__).with_name("plans.py")))["plans_by_hand"]
C2F = {"version": 1, "source": DATASET, "channels": ["CT"], "file_ending": ".nii.gz", "settings": {}}


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def plans(residual=False):
    return plans_by_hand(DATASET, "nnUNetPlans", SHAPE, [1.0, 1.0, 1.0], SHAPE, [[1, 1, 1], [2, 2, 2]], [2, 4], residual)


def dataset_json(cases=CASES):
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "nnunet_partial": {"version": 1, "cases": {i: {"source": "lits", "annotated": ["liver"]} for i in cases}},
    }


def write(content, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def old_style(content):
    """The same plans as nnU-Net wrote them before it named classes in them."""
    for configuration in content["configurations"].values():
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=2,
            unet_max_num_features=4,
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            num_pool_per_axis=[1, 1, 1],
            pool_op_kernel_sizes=arguments["strides"],
            conv_kernel_sizes=arguments["kernel_sizes"],
        )
    return content


def write_model(folder, content=None, trainer="nnUNetTrainer", weights_of=None, **more):
    """A model folder of one fold: weights of an untrained network, and the log with numpy's numbers that nnU-Net leaves."""
    content = content or plans()
    manager = PlansManager(deepcopy(weights_of or content))
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 2, False)
    write(content, folder / "plans.json")
    write({**dataset_json(), **more}, folder / "dataset.json")
    (folder / "fold_0").mkdir(exist_ok=True)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "plans": content, "device": torch.device("cpu")},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0,),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def properties():
    return {
        "spacing": (1.0, 1.0, 1.0),
        "shape_before_cropping": SHAPE,
        "bbox_used_for_cropping": [[0, i] for i in SHAPE],
        "shape_after_cropping_and_before_resampling": SHAPE,
        "class_locations": {1: np.array([[0, 2, 2, 2]])},
        "sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())},
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A preprocessed dataset, a model of strangers that wants to run something, and what it would leave behind."""
    roots = {i: tmp_path / i for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in roots.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    folder = roots["nnUNet_preprocessed"] / DATASET
    write(plans(), folder / "nnUNetPlans.json")
    write(dataset_json(), folder / "dataset.json")
    write([{"train": CASES[1:], "val": CASES[:1]}], folder / "splits_final.json")
    images = folder / "nnUNetPlans_3d_fullres"
    images.mkdir()
    rng = np.random.default_rng(0)
    for case in CASES:
        blosc2.asarray(rng.normal(size=(1, *SHAPE)).astype(np.float32), urlpath=str(images / f"{case}.b2nd"))
        blosc2.asarray(np.zeros((1, *SHAPE), np.int8), urlpath=str(images / f"{case}_seg.b2nd"))
        (images / f"{case}.pkl").write_bytes(pickle.dumps(properties()))
    scans = tmp_path / "scans"
    scans.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(rng.normal(size=SHAPE).astype(np.float32)), str(scans / "a_0000.nii.gz"))
    return SimpleNamespace(
        root=tmp_path, folder=folder, images=images, scans=scans, marker=tmp_path / "has_run", out=tmp_path / "out", **roots
    )


@pytest.fixture
def refused(world, capfd):
    """``refused(main, argv, *words)``: exit code 2, one line of error with these words, and the payload has not run."""

    def check(main, argv, *words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(i) for i in argv])
        errors = [i for i in capfd.readouterr().err.splitlines() if i.startswith("nnunet_partial: error:")]
        assert ended.value.code == 2 and len(errors) == 1, errors
        assert all(i in errors[0] for i in words), errors[0]
        assert not world.marker.exists()
        return errors[0]

    return check


def evil_plans(marker):
    content = plans()
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(
        nonlin="os.system", nonlin_kwargs={"command": f"touch {marker}"}
    )
    return content


def evil_model(world, name="model", **more):
    return write_model(world.root / name, evil_plans(world.marker), weights_of=plans(), **more)


def prediction(world, model, *more):
    argv = [
        "predict",
        601,
        "--configuration",
        "3d_fullres",
        "--model",
        model,
        "-o",
        world.out,
        "--device",
        "cpu",
        "--disable-tta",
    ]
    return [*argv, *more]


def labelling(world, *models):
    argv = ["pseudo-label", 601, "--configuration", "3d_fullres", "--fold", 0, "--disable-tta"]
    return [*argv, "--from", *models, "--out", world.out, "--device", "cpu"]


# ------------------------------------------------------------------ what plans.json names

MODEL_COMMANDS = {
    "predict": lambda w, m: prediction(w, m),
    "pseudo-label": lambda w, m: labelling(w, m),
    "export": lambda w, m: ["export", m, "--out", w.out],
    "export onnx": lambda w, m: ["export", m, "--onnx", w.root / "model.onnx"],
    "efficiency": lambda w, m: ["efficiency", "-i", w.scans, "--out", w.root / "e.json", "--model", f"a={m}", "--device", "cpu"],
    "coarse-to-fine": lambda w, m: (
        ["coarse-to-fine", "predict", "-i", w.scans, "-o", w.out, "--coarse", m, "--fine", m, "--device", "cpu"]
    ),
}


@pytest.mark.parametrize("command", MODEL_COMMANDS)
def test_plans_that_name_a_function_are_refused(command, world, refused):
    model = evil_model(world, coarse_to_fine={**C2F, "stage": "coarse"})
    refused(cli.main, MODEL_COMMANDS[command](world, model), "plans.json", "nonlin is 'os.system'", "--trust")
    assert not world.out.exists() or not list(world.out.rglob("*.*"))


def test_the_attack_is_real(world, capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(i) for i in prediction(world, evil_model(world), "--trust")])
    assert world.marker.exists() and ended.value.code == 2  # what os.system returns is no layer
    assert "cannot be built" in capfd.readouterr().err


def test_coarse_model_of_a_derived_dataset(world, refused):
    raw = world.nnUNet_raw / DATASET
    for case in CASES:
        for folder, name in (("imagesTr", f"{case}_0000"), ("labelsTr", case)):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.uint8)), str(raw / folder / f"{name}.nii.gz"))
    write(dataset_json(), raw / "dataset.json")
    model = evil_model(world, coarse_to_fine={**C2F, "stage": "coarse"})
    argv = ["coarse-to-fine", "prepare", "fine", 601, "--id", 602, "--coarse", model, "--device", "cpu"]
    refused(cli.main, argv, "nonlin is 'os.system'")


def test_teacher_by_setting(world, refused):
    model = evil_model(world)
    write({**plans(), "nnunet_partial": {"mskd": {"teachers": {"lits": str(model)}}}}, world.folder / "nnUNetPlans.json")
    contract = json.loads((world.folder / "dataset.json").read_text())
    contract["nnunet_partial"]["cases"]["none"] = {"source": "plain", "annotated": []}
    write(contract, world.folder / "dataset.json")
    shutil.copy(world.images / "lits_0.b2nd", world.images / "none.b2nd")
    shutil.copy(world.images / "lits_0_seg.b2nd", world.images / "none_seg.b2nd")
    shutil.copy(world.images / "lits_0.pkl", world.images / "none.pkl")
    refused(cli.main, labelling(world, "teachers"), "nonlin is 'os.system'", "mskd.trust")
    files = ModelFiles("lits", model, model / "fold_0" / "checkpoint_final.pth", ("liver",))
    annotations = Annotations(("liver",))
    with pytest.raises(UserError, match="mskd.trust=true"):  # as the trainers of MS-KD load theirs
        load_teacher(files, annotations, torch.device("cpu"))
    assert not world.marker.exists()


def looped(world, model, *more):
    argv = ["--dataset", 601, "--configuration", "3d_fullres", "--initial-model", model, "--device", "cpu", "--executor", "debug"]
    return [*argv, *more]


@pytest.fixture
def lacking(world):
    """A case that lacks its labels, so that the loop has something to do."""
    content = dataset_json()
    content["nnunet_partial"]["cases"]["lits_4"]["annotated"] = []
    write(content, world.folder / "dataset.json")


def test_initial_model_of_the_loop(world, refused, lacking):
    refused(atso.main, looped(world, evil_model(world)), "nonlin is 'os.system'", "--trust")
    model = write_model(world.root / "pickled")
    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), "logging": Payload(world.marker)}, file)
    refused(atso.main, looped(world, model), "checkpoint_final.pth", "system")
    refused(atso.main, looped(world, model, "--trust"), "system")  # the user's word is for classes, not for pickles
    assert not (world.nnUNet_results / DATASET).exists()


def test_models_that_a_comparison_finds(world, refused):
    """A model under the name of one of its own would be taken over, and unpickled by nnU-Net when it predicts."""
    argv = [
        *("compare", 601, "--methods", "partial", "--test-images", world.scans, "--test-labels", world.scans),
        *("--out", world.out, "--device", "cpu", "--executor", "debug"),
    ]
    write([{"train": CASES[1:], "val": CASES[:1]}], world.folder / "splits_final.json")
    variant = cli.main(["variant", "601", "--name", "compare-s0", "--configuration", "3d_fullres", "--set", "seed=0"])
    model = world.nnUNet_results / DATASET / "nnUNetTrainerPartial__nnUNetPlans_compare-s0__3d_fullres"
    content = json.loads((world.folder / "nnUNetPlans_compare-s0.json").read_text())
    write_model(model, content, "nnUNetTrainerPartial")
    write({}, model / "fold_0" / "validation" / "summary.json")
    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), "logging": Payload(world.marker)}, file)
    assert variant == 0
    refused(cli.main, argv, "checkpoint_final.pth", "system")


LAYERS = (
    "os.system",
    "exec",
    "builtins.exec",
    "subprocess.Popen",
    "torch.hub.load",
    "torch.load",
    "torch.nn.modules.os.system",  # the same function, reached by an attribute of an allowed module
    "torch.nn.modules.module.Module.load_state_dict",
    "torch.nn.Module.__class__",
    "torch.nn.functional.relu",
    "dynamic_network_architectures.architectures.unet.np.load",
    "dynamic_network_architectures.architectures.dinov2_eva.Dinov2PrimusEncL.load_pretrained_weights",
    "nnunet_partial.networks.usenet.np.load",
    "nnunetv2.run.run_training.run_training_entry",
    "nnunet_partial.cli.main",
    "torch.nn.there_is_no_such_layer",
    ["os.system"],
    {"deep": [{"deeper": "os.system"}]},
    3,
)


@pytest.mark.parametrize("name", LAYERS, ids=str)
@pytest.mark.parametrize("key", ("nonlin", "conv_op", "not_listed"))
def test_layers_that_are_refused(name, key):
    content = plans()
    architecture = content["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"][key] = name
    if key == "not_listed" and (name in ("exec", 3)):  # a word or a number that nothing looks up
        check_plans(content, "plans.json")
        architecture["_kw_requires_import"].append(key)
    with pytest.raises(UserError, match="plans.json: 3d_fullres: architecture.* could run code.*--trust"):
        check_plans(content, "plans.json")
    check_plans(content, "plans.json", trusted=True)


@pytest.mark.parametrize("name", ("torch.nn.GELU", "torch.nn.modules.activation.ReLU", "torch.nn.Identity"))
def test_layers_that_are_allowed(name):
    content = plans()
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = name
    check_plans(content, "plans.json")


@pytest.mark.parametrize(
    ("key", "name"),
    (
        ("image_reader_writer", "os"),
        ("image_reader_writer", "os.system"),
        ("label_manager", "recursive_find_python_class"),
        ("experiment_planner_used", "os"),
        ("preprocessor_name", "load_pickle"),
        ("normalization_schemes", ["ZScoreNormalization", "ABC"]),
        ("normalization_schemes", [3]),
        ("resampling_fn_seg", "np"),
        ("resampling_fn_data", "os.system"),
        ("resampling_fn_probabilities", "recursive_find_python_class"),
        ("UNet_class_name", "os"),
        ("dataset_name", "../x"),
        ("data_identifier", "../x"),
        ("previous_stage", "a/b"),
        ("next_stage", ["3d_fullres", "../x"]),
    ),
)
def test_other_names_of_plans(key, name):
    content = plans()
    (content if key in content else content["configurations"]["3d_fullres"])[key] = name
    for trusted in (False, True):  # nnU-Net finds these in its own packages alone: there is nothing to trust
        with pytest.raises(UserError, match="plans.json.*"):
            check_plans(content, "plans.json", trusted=trusted)


@pytest.mark.parametrize(
    "content", ([], {}, {"configurations": []}, {"configurations": {"2d": 3}}, {"configurations": {"../x": {}}})
)
def test_plans_that_are_none(content):
    with pytest.raises(UserError, match="plans.json"):
        check_plans(content, "plans.json")


@pytest.mark.parametrize("name", ("os", "os.system", "nnUNetPredictor", "NoSuchTrainer", 3, None, "nnUNetTrainer.x"))
def test_trainers_that_are_none(name):
    with pytest.raises(UserError, match="checkpoint x"):
        find_trainer(name, "checkpoint x")


# ------------------------------------------------------------------ models that users have


@pytest.mark.parametrize("kind", ("plain", "residual", "old plans"))
@pytest.mark.parametrize("trainer", ("nnUNetTrainer", "nnUNetTrainerMSKD"))
def test_models_that_users_have_need_no_word(kind, trainer, world):
    content = plans(residual=kind == "residual")
    if kind == "old plans":
        content = old_style(content)
    model = write_model(world.root / "model", content, trainer)
    assert cli.main([str(i) for i in prediction(world, model)]) == 0
    assert sorted(i.name for i in world.out.glob("*.nii.gz")) == [f"{i}.nii.gz" for i in CASES]
    assert cli.main(["export", str(model), "--out", str(world.root / "exported")]) == 0


# ------------------------------------------------------------------ pickles


def test_pickle_of_a_preprocessed_case(world, refused):
    model = write_model(world.root / "model")
    (world.images / "lits_0.pkl").write_bytes(pickle.dumps({**properties(), "more": Payload(world.marker)}))
    refused(cli.main, prediction(world, model), "lits_0.pkl", "system", "Preprocess the dataset again")
    (world.images / "lits_0.pkl").write_bytes(b"\x80\x04broken")
    refused(cli.main, prediction(world, model), "lits_0.pkl", "cannot be read")


def trainer_of(world, name, **settings):
    from nnunet_partial import trainers

    content = {**plans(), "nnunet_partial": settings}
    content["continue_training"] = False  # as nnUNetv2_train puts it there
    return getattr(trainers, name)(content, "3d_fullres", "all", dataset_json(), torch.device("cpu"))


@pytest.fixture
def label_directory(world):
    folder = world.root / "labels"
    cases = {i: {"annotated": ["liver"], "pseudo": [], "volume_mm3": {"liver": 1.0}} for i in CASES}
    header = {"dataset": DATASET, "data_identifier": "nnUNetPlans_3d_fullres", "classes": ["liver"]}
    write({"version": 1, **header, "cases": cases}, folder / "provenance.json")
    for case in CASES:
        blosc2.asarray(np.zeros((1, *SHAPE), np.int8), urlpath=str(folder / f"{case}_seg.b2nd"))
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties()))
    return folder


@pytest.mark.parametrize("where", ("labels", "preprocessed"))
def test_pickles_that_a_training_reads(where, world, label_directory, capfd):
    own = trainer_of(world, "nnUNetTrainerSelfTraining", labels=str(label_directory))
    file = (label_directory if where == "labels" else world.images) / "lits_3.pkl"
    file.write_bytes(pickle.dumps({**properties(), "more": Payload(world.marker)}))
    with pytest.raises(SystemExit) as ended:
        own.on_train_start()
    assert ended.value.code == 2 and "lits_3.pkl" in capfd.readouterr().err
    with pytest.raises(UserError, match="lits_3.pkl"):  # nor do the processes that draw patches
        own.get_tr_and_val_datasets()[0].load_case("lits_3")
    assert not world.marker.exists()


def test_a_training_reads_cases_as_nnunet_does(world, label_directory):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

    own = trainer_of(world, "nnUNetTrainerPartial").get_tr_and_val_datasets()[0]
    stock = nnUNetDatasetBlosc2(str(world.images), CASES)
    for a, b in zip(own.load_case("lits_1")[:2], stock.load_case("lits_1")[:2]):
        assert np.array_equal(a[:], b[:]) and a.dtype == b.dtype
    ours, theirs = own.load_case("lits_1")[3], stock.load_case("lits_1")[3]
    assert np.array_equal(ours.pop("class_locations")[1], theirs.pop("class_locations")[1]) and ours == theirs
    # nnU-Net names both functions that read files: if it no longer does, ours do not stand in for them
    names = nnUNetDatasetBlosc2.load_case.__code__.co_names, nnUNetDatasetNumpy.load_case.__code__.co_names
    assert {"load_pickle", "blosc2"} <= set(names[0]) and {"load_pickle", "np"} <= set(names[1])


def test_pretrained_weights(world, capfd):
    from nnunetv2.run import run_training

    own = trainer_of(world, "nnUNetTrainerPartial")
    own.initialize()
    file = write_model(world.root / "model") / "fold_0" / "checkpoint_final.pth"
    run_training.load_pretrained_weights(own.network, str(file))
    torch.save({"network_weights": own.network.state_dict(), "more": Payload(world.marker)}, file)
    with pytest.raises(SystemExit) as ended:
        run_training.load_pretrained_weights(own.network, str(file))
    assert ended.value.code == 2 and "system" in capfd.readouterr().err and not world.marker.exists()


@pytest.fixture
def predictions(world):
    folder = world.root / "predictions"
    write(plans(), folder / "plans.json")
    write(dataset_json(), folder / "dataset.json")
    np.savez(folder / "a.npz", probabilities=np.zeros((2, *SHAPE), np.float32))
    (folder / "a.pkl").write_bytes(pickle.dumps(properties()))
    return folder


def test_fuse(world, refused, predictions):
    argv = ["fuse", "--pred", predictions, "--dataset", 601, "--out", world.out]
    assert cli.main([str(i) for i in argv]) == 0 and (world.out / "a.nii.gz").is_file()
    shutil.rmtree(world.out)
    (predictions / "a.pkl").write_bytes(pickle.dumps({**properties(), "more": Payload(world.marker)}))
    refused(cli.main, argv, "a.pkl", "system")
    np.savez(predictions / "a.npz", probabilities=np.array([Payload(world.marker)], object))
    refused(cli.main, argv, "a.npz", "could run code")
    write({**plans(), "image_reader_writer": "os"}, predictions / "plans.json")
    refused(cli.main, argv, "image_reader_writer is 'os'")


def test_arrays_that_are_expressions(world, refused):
    """blosc2 keeps expressions, which it evaluates, in files of the same ending."""
    a = blosc2.asarray(np.ones(SHAPE), urlpath=str(world.root / "a.b2nd"))
    (a + 1).save(urlpath=str(world.root / "expression.b2nd"))
    shutil.copy(world.root / "expression.b2nd", world.images / "lits_0.b2nd")
    refused(cli.main, prediction(world, write_model(world.root / "model")), "lits_0.b2nd", "not opened")


# ------------------------------------------------------------------ names

NAMES = ("x/../../escaped", "..", "a/b", "a\\b", "a\0b", "a\nb", "\ud800", "-rf", ".hidden", "")


def raw_with_case(world, name):
    """A raw dataset whose dataset.json gives one case this name."""
    raw = world.nnUNet_raw / "Dataset605_Names"
    raw.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones(SHAPE, np.uint8)), str(raw / "a.nii.gz"))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "dataset": {name: {"images": ["a.nii.gz"], "label": "a.nii.gz"}},
    }
    write(content, raw / "dataset.json")
    return content, raw


@pytest.mark.parametrize("name", NAMES)
def test_case_names_that_merge_would_write(name, world, refused):
    raw_with_case(world, name)
    before = sorted(world.root.rglob("*"))
    error = refused(cli.main, ["merge", "--dataset-id", 606, "--name", "Merged", "--source", "lits=605"], "dataset.json: case")
    assert error.isprintable() and sorted(world.root.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_case_names_that_predict_would_write(name, world, refused):
    content = dataset_json([*CASES, name])
    write(content, world.folder / "dataset.json")
    refused(cli.main, prediction(world, write_model(world.root / "model")), "dataset.json: case")
    write(dataset_json(), world.folder / "dataset.json")
    write([{"train": CASES, "val": [name]}], world.folder / "splits_final.json")
    refused(cli.main, prediction(world, world.root / "model", "--cases", "validation"), "case")


@pytest.mark.parametrize("name", ("a/../../b", "a\nb", "\ud800"))
def test_case_names_of_label_directories(name, label_directory):
    content = json.loads((label_directory / "provenance.json").read_text())
    content["cases"][name] = content["cases"]["lits_0"]
    write(content, label_directory / "provenance.json")
    with pytest.raises(UserError, match="provenance.json: case"):
        LabelDirectory.read(label_directory)


@pytest.mark.parametrize("key", ("dataset_name", "plans_name"))
def test_names_in_plans_that_export_would_write(key, world, refused):
    model = write_model(world.root / "model", {**plans(), key: "../../escaped"})
    refused(cli.main, ["export", model, "--out", world.out, "--zip", world.root / "a.zip"], f"plans.json: {key}")
    assert not (world.root / "a.zip").exists()


def test_names_in_the_plan_of_a_run(world, refused):
    run = world.root / "run"
    generation = {"generation": "../../escaped", "models": {"m0": {}}, "labels": None}
    content = {
        "dataset": DATASET,
        "returned_model": "m0",
        "options": {"plans": "nnUNetPlans", "configuration": "3d_fullres"},
        "generations": [generation],
    }
    write(content, run / "plan.json")
    refused(cli.main, ["atso", "report", run], "plan.json: name")
    write([], run / "plan.json")
    refused(cli.main, ["atso", "report", run], "plan.json is not the plan")


# ------------------------------------------------------------------ locks


@pytest.fixture
def link(world):
    """``link(file)``: a link in the place of a lock, and what it leads to, which must stay as it is."""
    target = world.root / "precious"
    target.write_text("precious")

    def make(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)
        return target

    return make


def test_a_lock_does_not_follow_links(world, link):
    from nnunet_partial.data.conversion.run import _lock
    from nnunet_partial.orchestration import job

    folder = world.root / "locks"
    holders = {
        folder / "labels" / ".lock": lambda i: writing_labels(i.parent),
        folder / "job" / "lock": job.locked,
        folder / ".converting-D.lock": lambda i: _lock(folder / "D"),
    }
    for file, hold in holders.items():
        target = link(file)
        before = sha256(target)
        with pytest.raises(UserError, match="not a file of its own"), hold(file):
            pass
        assert sha256(target) == before and file.is_symlink()
    with pytest.raises(UserError, match="not a file of its own"):
        job.try_lock(folder / "job" / "lock")
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match="is not a file"):
        job.try_lock(folder / "pipe")


def test_commands_with_a_link_in_the_place_of_their_lock(world, refused, link, lacking):
    link(world.out / ".lock")
    refused(cli.main, labelling(world, write_model(world.root / "model")), "/out/.lock", "Remove it")
    link(world.nnUNet_results / DATASET / "atso" / "atso_3d_fullres_fold0" / "loop.lock")
    refused(atso.main, looped(world, world.root / "model"), "loop.lock", "Remove it")
    assert Path(world.root / "precious").read_text() == "precious"


# ------------------------------------------------------------------ names that are shown

MATHEMATICS = "$x^{$"  # matplotlib stumbles over it
MARKUP = "<script>alert(1)</script>"


def test_names_in_pictures_are_no_mathematics(world, monkeypatch):
    from nnunet_partial.evaluation.report import charts
    from nnunet_partial.training import progress

    content, raw = raw_with_case(world, "a$1$")
    content["labels"] = {"background": 0, MATHEMATICS: 1}
    write(content, raw / "dataset.json")
    with pytest.raises(SystemExit, match="1"):  # the image is the same everywhere, which is a finding
        cli.main(["check", "605", "--out", str(world.out), "--processes", "1"])
    assert (world.out / "check.png").stat().st_size > 1000
    rows = {f"method {MATHEMATICS}": [{"case": "1", "class": MATHEMATICS, "dice": 0.5}]}
    assert MATHEMATICS in charts.box_plot(rows, [MATHEMATICS], "dice").alt
    logged = {"loss/marginal": [1.0], "dice_per_class_or_region": [[0.5]]}
    logger = SimpleNamespace(local_logger=SimpleNamespace(my_fantastic_logging=logged))
    monkeypatch.setenv("NNUNET_PARTIAL_TEST_PICTURES", "1")  # tests/pictures.py
    progress.plot_terms(logger, ["marginal"], [MATHEMATICS], str(world.out))
    assert (world.out / "progress_terms.png").is_file()
    for module in (charts, progress):  # the same picture without the escape
        monkeypatch.setattr(module, "drawn", str)
    with pytest.raises(ValueError, match="x"):
        charts.box_plot(rows, [MATHEMATICS], "dice")
    with pytest.raises(ValueError, match="x"):
        progress.plot_terms(logger, ["marginal"], [MATHEMATICS], str(world.out))


def test_names_on_the_page_of_a_run_are_no_markup(world):
    from nnunet_partial.evaluation.atso_report.page import write_page

    plan = {"dataset": MARKUP, "returned_model": MARKUP}
    options = dict.fromkeys(("strategy", "generations", "subsets", "configuration", "fold", "plans"), MARKUP)
    run = SimpleNamespace(plan=plan, options=options, report=world.out, generations=[], classes=[], labels=lambda i: None)
    vars(run).update(model=lambda i: None, stages={MARKUP: {"state": "done", "seconds": 1.0, "argv": [MARKUP]}}, folder=world.out)
    times = [{"stage": MARKUP, "state": MARKUP, "seconds": 1.0}]
    scores = [{"generation": MARKUP, "model": MARKUP, "set": MARKUP, "class": MARKUP, "cases": MARKUP, "dice": 0.5}]
    text = write_page(run, [], scores, [], times, 6).read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 14


@pytest.mark.parametrize("name", ("a\nb", "\ud800", "a\0", "\x1b[2J", ""))
def test_classes_that_cannot_be_shown(name, world, refused):
    write({**dataset_json(), "labels": {"background": 0, name: 1}}, world.folder / "dataset.json")
    refused(cli.main, prediction(world, write_model(world.root / "model")), "dataset.json: labels has the name")
