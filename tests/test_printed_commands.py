"""Commands that the README and the documentation print are typed here, word by word, on phantoms; what is not is listed.

A page's commands are typed in their order, in a folder in which the files lie that the page speaks of. What is listed in ELSEWHERE is
typed by another test; what is in PARSED is parsed alone (tests/test_readme.py), for the reason that stands beside it.
"""

import importlib.util
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial import cli
from nnunet_partial.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("readme_commands", Path(__file__).with_name("test_readme.py"))
readme = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(readme)

TRAINS, CLUSTER = "trains for hours", "needs a SLURM cluster"
# (page, beginning of the command) -> the test file that types it, or why it is only parsed
ELSEWHERE = {
    ("extending.md", "nnunet_partial variant"): "training/test_extending.py",
    ("README.md", "nnunet_partial predict-dicom"): "inference/dicom_seg/test_command.py",
    ("dicom.md", "nnunet_partial predict-dicom"): "inference/dicom_seg/test_command.py",
    ("one_more_organ.md", "nnunet_partial"): "training/test_one_more_organ.py",
    ("project_file.md", "nnunet_partial run examples/demo.toml"): "test_examples.py",
    ("tutorial.md", "nnunet_partial convert"): "test_first_hour.py",
    ("tutorial.md", "nnunet_partial merge"): "test_first_hour.py",
    ("tutorial.md", "nnunet_partial predict -i /data/new -o /data/tiny_masks"): "test_first_hour.py",
    ("tutorial.md", "nnunet_partial variant"): "test_first_hour.py",
}
PARSED = {
    ("README.md", "nnunet_partial run project.toml"): TRAINS,
    ("README.md", "nnunet_partial run examples/demo.toml"): TRAINS,
    ("methods.md", "nnunet_partial fuse"): "reads probabilities of nnUNetv2_predict; inference/test_fuse.py",
    ("dicom.md", "nnunet_partial predict -i"): "is half a command, named in passing; the tutorial's is typed",
    ("extending.md", "nnunet_partial compare"): "its trainer is an example; training/test_extending.py trains it",
    ("one_more_organ.md", "nnunet_partial evaluate"): "its folders are placeholders; the tutorial's evaluation is typed",
    (
        "project_file.md",
        "nnunet_partial run project.toml --status",
    ): "of a run that trains for hours; orchestration/run asks stubs",
    (
        "project_file.md",
        "nnunet_partial run project.toml --until plan",
    ): "plans with nnU-Net; orchestration/run does so with stubs",
    ("project_file.md", "nnunet_partial run project.toml --executor slurm"): CLUSTER,
    ("project_file.md", "nnunet_partial run project.toml"): TRAINS,
    ("pseudo_labels.md", "nnunet_partial pseudo-label 501 --configuration 2d"): (
        "its models are placeholders; inference/test_pseudo_labels.py lets several decide"
    ),
    ("security.md", "nnunet_partial variant"): "its teacher is a placeholder; test_attacks.py has those that are refused",
    ("totalsegmentator.md", "nnunet_partial pseudo-label 501 --configuration 3d_fullres --from"): (
        "its model is a placeholder; inference/test_predictions.py has masks and models in one command"
    ),
    (
        "troubleshooting.md",
        "nnunet_partial postprocessing",
    ): "reads the validation of a training; training/test_stock_commands.py",
    (
        "tutorial.md",
        "nnunet_partial check 101 --accept",
    ): "nothing is wrong with the phantoms; data/check/test_dataset.py accepts",
    ("tutorial.md", "nnunet_partial compare --demo"): TRAINS,
}
# commands that train, typed with --dry-run: everything is read and planned, nothing is done
DRY = ("nnunet_partial compare 501", "nnunet_partial atso run")
# words of a page that stand for the reader's own
INSTEAD = {
    "features=8,16,32,64": "features=8,16,32",  # the phantoms are too small for four stages
    "MODEL_FOLDER": "model",
    "EVALUATION": "evaluation",
    "--from MODEL ": "--from model/fold_0 ",
    "Dataset501_AbdomenPartial": "Dataset501_Tiny",
    "Dataset501_Abdomen": "Dataset501_Tiny",
    "convert NAME": "convert lits",
}
PREPARES = ("init", "convert", "check", "relabel", "merge", "demo")  # verbs of raw data


def listed(page, command):
    """What the lists have for a command: the entry of the longest beginning."""
    fitting = [(len(start), i) for (of, start), i in {**ELSEWHERE, **PARSED}.items() if of == page and command.startswith(start)]
    return max(fitting)[1] if fitting else None


def typed(page, *verbs):
    """The commands of a page that are typed here, in order."""
    found = [i for name, i in readme.OWN if name == page and not listed(name, i)]
    return [i for i in found if not verbs or i.split()[1] in verbs]


def type_in(command, folder):
    """Type one command in the present folder."""
    for old, new in INSTEAD.items():
        command = command.replace(old, new)
    command = command.replace("/data/", f"{folder}/data/")
    command += " --dry-run" if command.startswith(DRY) else ""
    argv = shlex.split(os.path.expandvars(command))[1:]
    if argv[0] in ("predict", "pseudo-label", "efficiency"):
        argv += ["--device", "cpu"]
    argv += (
        ["--processes", "1"]
        if argv[0] in ("check", "convert", "merge", "evaluate") and "--labels" not in argv and "--help" not in argv
        else []
    )
    try:
        code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    assert code in (0, None), command


def write(array, file, spacing=(2.0, 2.0, 2.5)):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file), True)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The folder in which commands are typed, with nnU-Net's three folders, all empty."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raw_dataset(folder, number, name, labels, values, **more):
    """Two cases of this dataset, on whose labels these values lie side by side."""
    dataset = folder / "nnUNet_raw" / f"Dataset{number}_{name}"
    rng = np.random.default_rng(number)
    for case in ("a", "b", "c"):
        array = np.zeros((12, 14, 16), np.uint8)
        for place, value in enumerate(values):
            array[4:9, 4:9, 2 + 3 * place : 5 + 3 * place] = value
        write(rng.normal(0, 30, array.shape).astype(np.int16) + array * 100, dataset / "imagesTr" / f"{case}_0000.nii.gz")
        write(array, dataset / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, **labels}, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json({**content, **more}, dataset / "dataset.json")
    return dataset


# ------------------------------------------------------------------ raw data


@pytest.fixture
def downloads(desk):
    """What the demo makes: three releases as they unpack, and a test set."""
    return prepare_downloads(desk)


def prepare_downloads(desk):
    type_in("nnunet_partial demo --downloads-only --quick --out demo", desk)
    names = {"LiTS": "lits", "KiTS19": "kits", "Pancreas-CT": "nih"}
    (desk / "data").mkdir()
    found = {i.name: i for i in (desk / "demo").rglob("*") if i.is_dir()}
    for name, made in names.items():
        (desk / "data" / name).symlink_to(next(v for k, v in found.items() if k.lower().startswith(made)))
    return desk


def test_readme_from_downloads_to_a_merged_dataset(downloads):
    for command in typed("README.md", *PREPARES):
        type_in(command, downloads)
    merged = read_json(downloads / "nnUNet_raw" / "Dataset501_AbdomenPartial" / "dataset.json")
    assert set(merged["labels"]) == {"background", "liver", "kidney", "pancreas"}
    assert (downloads / "project.toml").is_file()


def test_project_file(downloads):
    (downloads / "data" / "testset").symlink_to(next(i.parent for i in (downloads / "demo").rglob("imagesTs")))
    for command in typed("project_file.md", "init", "demo"):
        type_in(command, downloads)
    type_in("nnunet_partial run project.toml --dry-run", downloads)
    assert not any((downloads / "nnUNet_raw").iterdir())


def test_converters(downloads, monkeypatch):
    ward = downloads / "data" / "ward"
    array = np.zeros((12, 14, 16), np.uint8)
    array[4:8, 4:8, 2:6], array[4:8, 4:8, 7:10], array[4:8, 4:8, 11:13] = 1, 2, 3
    lines = ["case,image,label,annotated"]
    for case in ("anna", "bert"):
        image = np.random.default_rng(len(case)).normal(300, 30, array.shape).astype(np.int16)
        write(image, ward / "scans" / f"{case}.nrrd")
        write((array == 1).astype(np.uint8), ward / "masks" / f"{case}.nii.gz")
        write(image - 400, ward / "img" / f"{case}.nii.gz")
        write(array, ward / "lab" / f"{case}.nii.gz")
        write(np.where(array < 3, array, 0).astype(np.uint8), ward / "two" / f"{case}.nii.gz")
        lines.append(f"{case},scans/{case}.nrrd,two/{case}.nii.gz,liver+spleen")
    (ward / "cases.csv").write_text("\n".join(lines) + "\n")
    (downloads / "cases.csv").write_text((ward / "cases.csv").read_text())
    for command in typed("converters.md"):
        for again in (downloads / "nnUNet_raw").glob("Dataset200_*"):  # the page has two ways to make one
            shutil.rmtree(again)
        type_in(command, downloads)


def test_data_contract(desk):
    organs = {"liver": 1, "left_kidney": 2, "right_kidney": 3}
    raw_dataset(desk, 105, "BTCV", organs, (1, 2, 3))
    kits = raw_dataset(desk, 102, "KiTS", {"kidney": 1}, (1,))
    brats = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    raw_dataset(desk, 101, "BraTS", brats, (1, 2, 3), regions_class_order=[1, 2, 3])
    merges = typed("data_contract.md", "merge")
    type_in(merges[0], desk)
    merged = read_json(desk / "nnUNet_raw" / "Dataset501_Abdomen" / "dataset.json")["nnunet_partial"]
    assert merged["version"] == 2 and merged["cases"]["kits_a"]["annotated"] == [["left_kidney", "right_kidney"]]
    shutil.rmtree(kits)
    clinic = raw_dataset(desk, 102, "Clinic", {"tumour": 1}, (1,))
    type_in(merges[1], desk)
    assert (desk / "nnUNet_raw" / "Dataset510_Glioma" / "dataset.json").is_file()
    shutil.rmtree(clinic)
    kits = raw_dataset(desk, 102, "KiTS", {"kidney": 1, "tumor": 2, "cyst": 3}, (1, 2, 3))
    shutil.copytree(kits / "labelsTr", desk / "predictions")
    page = (ROOT / "docs" / "data_contract.md").read_text(encoding="utf-8")
    (desk / "kits23.json").write_text(re.search(r"```json\n(\{\"kidney and masses.*?)```", page, re.DOTALL)[1])
    for command in typed("data_contract.md", "evaluate"):
        type_in(command, desk)
    assert "kidney and masses" in (desk / "evaluation" / "metrics.csv").read_text()


def test_labels_are_turned_as_the_tutorial_says(desk):
    dataset = raw_dataset(desk, 101, "Livers", {"liver": 1}, (1,))
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (dataset / part / f"a{ending}").rename(dataset / part / f"ANNA{ending}")
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr" / "ANNA.nii.gz")))
    for command in typed("tutorial.md", "relabel", "check"):
        type_in(command, desk)
    after = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "labelsTr" / "ANNA.nii.gz")))
    assert np.array_equal(after, before[::-1])


# ------------------------------------------------------------------ a preprocessed dataset and its models


@pytest.fixture
def planned(desk, tiny, monkeypatch):
    """Dataset 501 of the sources lits, kits and nih, preprocessed, with models that have been built, not trained."""
    for folder in (tiny.folders.raw, tiny.folders.preprocessed):
        others = shutil.ignore_patterns("nnUNetPlans_*.json")  # variants that other tests have written
        shutil.copytree(folder / tiny.name, desk / folder.name / tiny.name, ignore=others)
    return finish(desk, tiny.name)


def finish(desk, name):
    """Models of the dataset, and files that the pages speak of."""
    type_in("nnunet_partial variant 501 --per-source", desk)
    preprocessed = desk / "nnUNet_preprocessed" / name
    for source in ("lits", "kits", "nih"):
        build(preprocessed, "nnUNetTrainerIndividual", f"nnUNetPlans_{source}")
    partial = build(preprocessed, "nnUNetTrainerPartial", "nnUNetPlans")
    shutil.copytree(partial, desk / "model")
    for copy in ("nnUNetTrainerMSKD__nnUNetPlans", "nnUNetTrainerMSKDPlus__nnUNetPlans_compare-s0"):
        shutil.copytree(partial, partial.with_name(f"{copy}__3d_fullres"))
    for case in ("nih_010", "nih_011"):
        scan = desk / "nnUNet_raw" / name / "imagesTr" / f"{case}_0000.nii.gz"
        for place in ("test/imagesTs", "testset/imagesTs"):
            copy_to(scan, desk / place)
        for place in ("SCANS", "data/new"):  # as they are called
            copy_to(scan, desk / place).rename(desk / place / f"{case}.nii.gz")
        for place in ("predictions", "labels", "test/labelsTs", "testset/labelsTs"):
            copy_to(desk / "nnUNet_raw" / name / "labelsTr" / f"{case}.nii.gz", desk / place)
    return desk


def copy_to(file, folder):
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(file, folder))


def build(preprocessed, name, plans):
    """A model of plans as a training of no step leaves it; returns its folder."""
    import nnunet_partial.trainers as trainers

    plans_json, dataset_json = (read_json(preprocessed / f"{i}.json") for i in (plans, "dataset"))
    plans_json["continue_training"] = False
    made = getattr(trainers, name)(plans_json, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    made.initialize()
    folder = Path(os.environ["nnUNet_results"]) / preprocessed.name / f"{name}__{plans}__3d_fullres"
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    made.save_checkpoint(str(folder / "fold_0" / "checkpoint_final.pth"))
    write_json(made.plans_manager.plans, folder / "plans.json")
    write_json(made.dataset_json, folder / "dataset.json")
    return folder


ON_MODELS = [
    "README.md",
    "atso.md",
    "gpu_node.md",
    "how_long.md",
    "methods.md",
    "model_card.md",
    "security.md",
    "settings.md",
    "troubleshooting.md",
    "tutorial.md",
    "which_method.md",
]


@pytest.mark.parametrize("page", ON_MODELS)
def test_commands_on_a_preprocessed_dataset(page, planned):
    preprocessed = planned / "nnUNet_preprocessed" / "Dataset501_Tiny"
    if page == "model_card.md":
        type_in(*typed("tutorial.md", "evaluate"), planned)
    if page == "README.md":
        shutil.rmtree(planned / "predictions")  # that page makes them
    if page == "troubleshooting.md":
        raw_dataset(planned, 101, "Livers", {"liver": 1}, (1,))
    for command in typed(page):
        if command.split()[1] in PREPARES and page in ("README.md", "tutorial.md"):
            continue  # typed above, on raw data
        if " --name " in command and command.split()[1] == "variant":  # two pages may call plans the same
            for earlier in preprocessed.glob("nnUNetPlans_*.json"):
                if earlier.stem != "nnUNetPlans_lits":  # the plans of a teacher that is there
                    earlier.unlink()
        type_in(command, planned)


def test_pseudo_labels(planned):
    """From the README's teachers to a list of the worst, as the page goes on from there."""
    for command in typed("README.md", "pseudo-label"):
        type_in(command, planned)
    for command in typed("pseudo_labels.md"):
        type_in(command, planned)
    assert len((planned / "worst.txt").read_text().split()) >= 1
    assert (planned / "labels" / "again" / "provenance.json").is_file()


def test_masks_in_totalsegmentators_layout(planned, tiny):
    from tests.conftest import phantom

    cases = sorted(read_json(planned / "nnUNet_raw" / tiny.name / "dataset.json")["nnunet_partial"]["cases"])
    for case in cases:
        number = int(case.split("_")[1])
        kidney = (phantom(number)[1] == 2).astype(np.uint8)
        left = kidney.copy()
        left[..., :8] = 0
        write(left, planned / "masks" / case / "kidney_left.nii.gz")
        write(kidney - left, planned / "masks" / case / "kidney_right.nii.gz")
    for command in typed("totalsegmentator.md"):
        type_in(command, planned)
    assert read_json(planned / "labels" / "totalseg" / "provenance.json")["cases"]


# ------------------------------------------------------------------ the lists


def test_every_printed_command_is_typed_or_listed_with_the_reason():
    pages = {"converters.md", "data_contract.md", "project_file.md", "pseudo_labels.md", "totalsegmentator.md", *ON_MODELS}
    new = [f"{page}: {command}" for page, command in readme.OWN if page not in pages and not listed(page, command)]
    assert new == [], "type them here, or say in ELSEWHERE or PARSED why not"
    assert not ELSEWHERE.keys() & PARSED.keys()


def test_the_lists_name_what_is_printed_and_tests_that_are_there():
    for page, start in (*ELSEWHERE, *PARSED):
        assert any(of == page and i.startswith(start) for of, i in readme.OWN), f"{page} prints no {start}"
    named = [*ELSEWHERE.values(), *re.findall(r"[\w/]+/test_\w+\.py", " ".join(PARSED.values()))]
    assert [i for i in named if not (ROOT / "tests" / i).is_file()] == []
