"""Every command that writes: killed at any moment it ends where it would have; on a full disk it says so in one line."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ORGANS = {"background": 0, "liver": 1, "kidney": 2}
CASES = {"lits_0": ["liver"], "kits_0": ["kidney"], "none_0": []}
MODEL = "Dataset501_Abdomen/nnUNetTrainer__nnUNetPlans_mine__3d_fullres"
SHAPE = (16, 20, 18)
pytestmark = pytest.mark.filterwarnings("ignore")


def module_of(file):
    spec = importlib.util.spec_from_file_location(Path(file).stem, Path(__file__).parent / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


faults = module_of("faults.py")


def write(array, file, spacing=(2.0, 1.5, 2.5)):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file), True)


def scan(seed):
    """Image and complete label map; the noise keeps the files from being compressed to nothing."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    label[3:8, 4:10, 3:9], label[8:14, 9:16, 8:15] = 1, 2
    return rng.normal(0, 20, SHAPE).astype(np.float32) + 100 * label, label * (rng.random(SHAPE) < 0.9).astype(np.uint8)


def write_raw(folder, cases, organs=ORGANS):
    """``organs``: name -> value of the dataset's own classes, all by default."""
    for seed, (case, annotated) in enumerate(cases.items()):
        image, label = scan(seed)
        own = sum((label == ORGANS[i]) * organs[i] for i in annotated) if annotated else np.zeros_like(label)
        write(image, folder / "imagesTr" / f"{case}_0000.nii.gz")
        write(own.astype(np.uint8), folder / "labelsTr" / f"{case}.nii.gz")
    contract = {case: {"source": case.split("_")[0], "annotated": annotated} for case, annotated in cases.items()}
    content = {"channel_names": {"0": "CT"}, "labels": organs, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, "nnunet_partial": {"version": 1, "cases": contract}}))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the commands read: raw and preprocessed data, a model, probabilities, predictions, an evaluation."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    root, models = tmp_path_factory.mktemp("inputs"), module_of("inference/test_export.py")
    raw = root / "raw" / "Dataset501_Abdomen"
    write_raw(raw, CASES)
    dataset_json, plans = json.loads((raw / "dataset.json").read_text()), models.plans()
    del plans["nnunet_partial"]
    preprocessed = root / "preprocessed" / "Dataset501_Abdomen"
    (preprocessed / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    shutil.copy(raw / "dataset.json", preprocessed)
    (preprocessed / "nnUNetPlans_mine.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    for case in CASES:
        files = [str(raw / "imagesTr" / f"{case}_0000.nii.gz")], str(raw / "labelsTr" / f"{case}.nii.gz")
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case(*files, manager, configuration, dataset_json)
        target = str(preprocessed / "nnUNetPlans_3d_fullres" / case)
        nnUNetDatasetBlosc2.save_case(data, seg, properties, target)
    model = root / "model"
    model.mkdir()
    (model / "plans.json").write_text(json.dumps(plans))
    shutil.copy(raw / "dataset.json", model)
    (model / "fold_0").mkdir()
    torch.save(models.checkpoint(1, trainer="nnUNetTrainer"), model / "fold_0" / "checkpoint_final.pth")
    write_probabilities(root / "probabilities", plans)
    write_predictions(root / "predictions")
    return root


def write_probabilities(root, plans):
    properties = {
        "sitk_stuff": {"spacing": (1.0, 2.0, 3.0), "origin": (0.0,) * 3, "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}
    }
    for seed, organ in enumerate(("liver", "kidney")):
        folder = root / organ
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, organ: 1}}))
        (folder / "plans.json").write_text(json.dumps(plans))
        for case in range(4):
            foreground = np.random.default_rng(10 * seed + case).random((1, *SHAPE)).astype(np.float32)
            np.savez_compressed(folder / f"c{case}.npz", probabilities=np.concatenate([1 - foreground, foreground]))
            (folder / f"c{case}.pkl").write_bytes(pickle.dumps({**properties, "spacing": [3.0, 2.0, 1.0]}))


def write_predictions(root):
    for case in range(4):
        image, label = scan(case)
        write(image, root / "images" / f"c{case}_0000.nii.gz")
        write(label, root / "truth" / f"c{case}.nii.gz")
        write(np.roll(label, 1, 1), root / "pred" / f"c{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": ORGANS, "numTraining": 4, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))


# ---- the commands


def convert(inputs):
    def prepare(root):
        for case in range(3):
            image, label = scan(case)
            write(image.astype(np.int16), root / "src" / f"volume-{case}.nii.gz")
            write(label, root / "src" / f"segmentation-{case}.nii.gz")
        (root / "nnUNet_raw").mkdir()

    return prepare, lambda root: ["convert", "lits", root / "src", "--dataset-id", 7, "--processes", 1, "--copy-images"]


def merge(inputs):
    def prepare(root):
        for number, organ in ((101, "liver"), (102, "kidney")):
            cases = {f"{organ}_{i}": [organ] for i in range(3)}
            write_raw(root / "nnUNet_raw" / f"Dataset{number}_{organ}", cases, {"background": 0, organ: 1})

    names = {"liver": 101, "kidney": 102}
    sources = [i for organ, number in names.items() for i in ("--source", f"{organ}={number}:{organ}")]
    return prepare, lambda root: ["merge", "--dataset-id", 501, "--name", "Both", *sources, "--processes", 1]


def preprocessed(inputs, root):
    shutil.copytree(inputs / "preprocessed", root / "nnUNet_preprocessed")
    shutil.copytree(inputs / "model", root / "model")


SPACE = ["501", "--configuration", "3d_fullres", "--plans", "nnUNetPlans_mine", "--fold", "0", "--device", "cpu", "--disable-tta"]


def predict(inputs):
    return lambda root: preprocessed(inputs, root), lambda root: [
        "predict",
        *SPACE,
        "--model",
        root / "model",
        "-o",
        root / "out",
    ]


def pseudo_label(inputs):
    def prepare(root):
        preprocessed(inputs, root)
        (root / "cases.txt").write_text("\n".join(CASES))

    return prepare, lambda root: [
        "pseudo-label",
        *SPACE,
        "--from",
        root / "model",
        "--cases",
        root / "cases.txt",
        "--out",
        root / "out",
    ]


def fuse(inputs):
    def prepare(root):
        shutil.copytree(inputs / "probabilities", root / "probabilities")
        shutil.copy(inputs / "predictions" / "dataset.json", root)

    def argv(root):
        folders = [root / "probabilities" / i for i in ("liver", "kidney")]
        return ["fuse", "--pred", *folders, "--dataset", root / "dataset.json", "--out", root / "out"]

    return prepare, argv


def coarse_to_fine(inputs):
    """Its volumes; planning and preprocessing are nnU-Net's."""
    code = """if True:
        from nnunet_partial.inference.coarse_to_fine.derived import prepare
        sizes = {"coarse_size": [16, 16, 16], "patch_size": [16, 8, 16], "fine_size": [16, 8, 16]}
        prepare("coarse", 501, 701, changes=sizes, plan=False, progress=False)
    """
    return lambda root: shutil.copytree(inputs / "raw", root / "nnUNet_raw"), code


def coarse_to_fine_predict(inputs):
    """Both stages are the untrained network, as if it had been trained on datasets that ``prepare`` made."""

    def prepare(root):
        from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings
        from nnunet_partial.inference.coarse_to_fine.stages import Description

        settings = CoarseToFineSettings(coarse_size=[16, 16, 16], patch_size=[16, 16, 16], fine_size=[16, 16, 16])
        for stage in ("coarse", "fine"):
            shutil.copytree(inputs / "model", root / stage)
            content = json.loads((root / stage / "dataset.json").read_text())
            described = Description(stage, "Dataset501_Abdomen", ("CT",), ".nii.gz", settings).to_json()
            (root / stage / "dataset.json").write_text(json.dumps({**content, "coarse_to_fine": described}))
        shutil.copytree(inputs / "predictions" / "images", root / "images")

    def argv(root):
        models = ["--coarse", root / "coarse", "--fine", root / "fine"]
        return ["coarse-to-fine", "predict", "-i", root / "images", "-o", root / "out", *models, "--device", "cpu"]

    return prepare, argv


def evaluated(inputs, root):
    shutil.copytree(inputs / "predictions", root / "predictions")


def evaluate(inputs):
    def argv(root):
        folder = root / "predictions"
        pair = [
            "--pred",
            folder / "pred",
            "--truth",
            folder / "truth",
            "--dataset",
            folder / "dataset.json",
            "--annotated",
            "all",
        ]
        return ["evaluate", *pair, "--out", root / "out", "--processes", 1]

    return lambda root: evaluated(inputs, root), argv


def report(inputs):
    def prepare(root):
        from nnunet_partial.evaluation.evaluate import evaluate_folder

        evaluated(inputs, root)
        folder = root / "predictions"
        more = {"annotated": "all", "processes": 1, "progress": False}
        evaluate_folder(folder / "pred", folder / "truth", folder / "dataset.json", root / "evaluation", **more)

    def argv(root):
        named = ["--evaluation", f"Mine={root / 'evaluation'}", "--images", root / "predictions" / "images"]
        return ["report", "--dataset", root / "predictions" / "dataset.json", *named, "--out", root / "out" / "report.html"]

    return prepare, argv


def export(inputs):
    def prepare(root):
        shutil.copytree(inputs / "model", root / "model")

    return prepare, lambda root: ["export", root / "model", "--out", root / "out", "--zip", root / "zips" / "model.zip"]


COMMANDS = (convert, merge, predict, pseudo_label, fuse, coarse_to_fine, coarse_to_fine_predict, evaluate, report, export)


@pytest.fixture
def command(inputs, forked, tmp_path):
    def make(factory):
        prepare, what = factory(inputs)
        root = tmp_path / "work"
        given = {"code": what} if isinstance(what, str) else {"argv": what(root)}
        return faults.Command(forked, root, prepare, **given)

    return make


@pytest.mark.parametrize("factory", COMMANDS, ids=lambda i: i.__name__)
def test_killed_at_any_moment(factory, command):
    faults.check_kills(command(factory))


@pytest.mark.parametrize("factory", COMMANDS, ids=lambda i: i.__name__)
def test_full_disk(factory, command):
    faults.check_full_disk(command(factory))


# ---- an input that has changed since


def another_scan(file, label=None):
    image, labels = scan(seed=77)
    write(image.astype(np.int16) if label else image, file)
    if label:
        write(labels, label)


def another_preprocessed(root):
    """The image of one case, as another preprocessing would leave it."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    images = root / "nnUNet_preprocessed" / "Dataset501_Abdomen" / "nnUNetPlans_3d_fullres"
    data, seg, _, properties = nnUNetDatasetBlosc2(str(images)).load_case("none_0")
    data, seg = data[:] + np.random.default_rng(1).normal(0, 3, data.shape).astype(data.dtype), seg[:]
    for file in images.glob("none_0*"):
        file.unlink()
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(images / "none_0"))


CHANGES = (  # merge is not here: it refuses a dataset that is there already
    (convert, lambda root: another_scan(root / "src" / "volume-1.nii.gz", root / "src" / "segmentation-1.nii.gz")),
    (predict, another_preprocessed),
    (pseudo_label, another_preprocessed),
    (coarse_to_fine, lambda root: another_scan(root / "nnUNet_raw" / "Dataset501_Abdomen" / "imagesTr" / "lits_0_0000.nii.gz")),
    (coarse_to_fine_predict, lambda root: another_scan(root / "images" / "c1_0000.nii.gz")),
)


@pytest.mark.parametrize("factory, change", CHANGES, ids=lambda i: getattr(i, "__name__", "")[:20])
def test_made_again_when_an_image_or_label_has_changed(factory, change, command):
    faults.check_changed_input(command(factory), change)
