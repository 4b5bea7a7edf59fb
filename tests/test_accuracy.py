"""The accuracy study: scores outlive models, what is finished is never trained again, and no table of less than it claims."""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.data.check.same_patient import spread_mm, suspected
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.statistics import paired_permutation_test
from nnunet_partial.files import read_json

ROOT = Path(__file__).resolve().parents[1]
CLASSES, CASES = ("liver", "kidney"), 12


def load(monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scores(monkeypatch):
    return load(monkeypatch, "scores")


@pytest.fixture
def accuracy(monkeypatch, scores):
    return load(monkeypatch, "accuracy")


# ------------------------------------------------------------------ training, over the stub commands of the comparison


class Study:
    """accuracy.py over stub commands: datasets of two sources below WORK, and a log of every command that was started."""

    def __init__(self, accuracy, monkeypatch, folder):
        self.module, self.monkeypatch = accuracy, monkeypatch
        self.work, self.results, self.log = folder / "work", folder / "results", folder / "stub.log"
        self._stubs(folder / "programs")
        design = {"sources": {"kits": ("kidney",), "lits": ("liver",)}, "variant": {}}
        monkeypatch.setitem(accuracy.DESIGNS, "hippocampus", design)
        monkeypatch.setattr(accuracy, "prepare", self.prepare)
        # of the checkout's git a study asks at every start, and somebody may be at work there
        code = {"commit": "c", "versions": {"torch": "0"}, "machine": "", "command": ""}
        monkeypatch.setattr(accuracy, "circumstances", lambda: code)
        monkeypatch.setattr(accuracy, "run", lambda argv, log: cli.main([*map(str, argv[1:]), "--executor", "debug"]))
        monkeypatch.setattr(accuracy.Budget, "_validation_rows", lambda *_: [])
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(name, "")  # so that what the study sets is forgotten afterwards

    def _stubs(self, folder):
        folder.mkdir()
        source = (ROOT / "tests" / "orchestration" / "compare" / "comparison_stub.py").read_text()
        for name in ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnunet_partial"):
            (folder / name).write_text(f"#!{sys.executable} -SE\n{source}")
            (folder / name).chmod(0o755)
        for name, value in (("NNUNET_PARTIAL_PROGRAMS", folder), ("STUB_LOG", self.log), ("OMP_NUM_THREADS", 1)):
            self.monkeypatch.setenv(name, str(value))

    def prepare(self, arguments):
        """Two sources of two cases, planned, with a test set of two."""
        cases = {
            f"{s}_{i}": {"source": s, "annotated": [o]} for s, o in (("kits", "kidney"), ("lits", "liver")) for i in range(2)
        }
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1, "kidney": 2},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
        }
        contract = {"nnunet_partial": {"version": 1, "cases": cases}}
        for name, more in (("Dataset611_Partial", contract), ("Dataset621_Full", {})):
            for root in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
                (arguments.base / root / name).mkdir(parents=True, exist_ok=True)
                (arguments.base / root / name / "dataset.json").write_text(json.dumps({**content, **more}))
            plans = arguments.base / "nnUNet_preprocessed" / name / "nnUNetPlans.json"
            own = [{"train": ["kits_0", "lits_0"], "val": ["kits_1", "lits_1"]}]
            plans.with_name("splits_final.json").write_text(json.dumps(own))
            if not plans.exists():
                plans.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"2d": {}}}))
        folders = [arguments.base / "test" / i for i in ("imagesTs", "labelsTs")]
        for folder, ending in zip(folders, ("_0000", "")):
            folder.mkdir(parents=True, exist_ok=True)
            for case in ("a", "b"):
                (folder / f"{case}{ending}.nii.gz").write_text(case)
        split = {"sources": {s: {"train": [f"{s}_0"], "val": [f"{s}_1"]} for s in ("kits", "lits")}, "test": ["a", "b"]}
        (arguments.base / "split.json").write_text(json.dumps(split))
        return folders

    def __call__(self, *more, methods="naive,mskd,full", seeds=(0,)):
        """What was started: (command, last part of its model or output)."""
        self.log.unlink(missing_ok=True)
        argv = ["hippocampus", "--work", self.work, "--results", self.results, "--methods", methods, "--seeds", *seeds, *more]
        self.monkeypatch.setattr(sys, "argv", ["accuracy.py", *map(str, argv)])
        self.module.main()
        return self.started()

    def started(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def trained(self):
        return [i.split(" -tr ")[1].split()[0].removeprefix("nnUNetTrainer") for i in self.started() if "nnUNetv2_train" in i]

    def files(self):
        return {str(i.relative_to(self.results)): i.read_text() for i in sorted(self.results.rglob("*.json"))}


@pytest.fixture
def study(accuracy, monkeypatch, tmp_path):
    return Study(accuracy, monkeypatch, tmp_path)


def test_finished_scores_are_not_trained_again_when_the_models_are_gone(study, capsys):
    study(seeds=(0, 1))
    kept = study.files()
    assert sorted(kept) == [f"hippocampus/2d-4000/{m}_seed{s}.json" for m in ("full", "mskd", "naive") for s in (0, 1)]
    shutil.rmtree(study.work)
    assert study(seeds=(0, 1)) == [] and "nothing to train" in capsys.readouterr().out and not study.work.exists()
    study(seeds=(0, 1, 2))
    assert all("-s2" in i or "seed=2" in i or "s2" in i for i in study.started() if "nnUNetv2" in i)
    assert sorted(study.trained()) == ["Individual", "Individual", "MSKD", "Naive", "Partial"]
    assert {k: v for k, v in study.files().items() if "seed2" not in k} == kept and len(study.files()) == 9


def test_what_was_finished_before_a_failure_is_kept(study, monkeypatch):
    monkeypatch.setenv("STUB_FAILS", "nnUNetTrainerMSKD")
    with pytest.raises(SystemExit) as end:
        study()
    assert end.value.code == 2
    kept = study.files()
    assert "hippocampus/2d-4000/naive_seed0.json" in kept and "hippocampus/2d-4000/mskd_seed0.json" not in kept
    monkeypatch.delenv("STUB_FAILS")
    study()
    assert study.trained() == ["MSKD"] and len(study.files()) == 3 and kept.items() <= study.files().items()


def test_record_trains_nothing(study, accuracy, monkeypatch):
    study(methods="naive")
    shutil.rmtree(study.results)
    monkeypatch.setattr(accuracy, "circumstances", lambda: {"commit": "another", "versions": {}, "machine": ""})  # it only reads
    assert study("--record", methods="naive,mskd") == []
    assert list(study.files()) == ["hippocampus/2d-4000/naive_seed0.json"]


def test_a_score_says_what_it_rests_on(study):
    study(methods="mskd")
    score = json.loads(next(iter(study.files().values())))
    metrics = study.work / "hippocampus" / "comparison" / "2d-4000" / "evaluation" / "mskd" / "s0" / "metrics.json"
    rows = json.loads(metrics.read_text())["rows"]
    assert score["classes"] == ["kidney", "liver"] and {
        (c, score["classes"][n]): v for c, own in score["test"]["dice"].items() for n, v in enumerate(own)
    } == {(i["case"], i["class"]): pytest.approx(i["dice"], abs=1e-5) for i in rows}
    trainings = {k: v for k, v in score["commands"].items() if v["part"] in ("teachers", "training")}
    assert list(trainings) == ["s0-teacher-kits-fold0", "s0-teacher-lits-fold0", "s0-mskd-train-fold0"]
    assert all(i["core_seconds"] >= 0 and i["seconds"] > 0 for i in trainings.values())
    assert score["command"] == "python benchmarks/accuracy.py hippocampus --work WORK --steps 4000 --methods mskd --seeds 0"
    assert score["settings"]["num_iterations_per_epoch"] == "400" and "torch" in score["versions"] and "commit" in score
    assert str(study.work) not in json.dumps(score)


def test_budgets_and_settings_have_scores_of_their_own(study):
    study("--steps", 500, 4000, methods="naive")
    study("--set", "oversample_foreground_percent=0.66", methods="naive")
    assert [i.split("/")[1] for i in study.files()] == ["2d-4000", "2d-4000-oversample-foreground-percent-0-66", "2d-500"]


def test_other_cases_and_other_loops_have_scores_of_their_own(accuracy):
    def name(*more, study="hippocampus-few"):
        return accuracy.budget_name(accuracy.arguments_of([study, *more]), 4000)

    assert name() == name("--labelled", "4") == name("--atso-generations", "3") == "2d-4000"
    assert name("--labelled", "8") == "2d-4000-labelled-8"
    assert name("--average") == "2d-4000-average"
    assert name("--cases", "60", "--test-cases", "9", study="union") == "2d-4000-cases-60-test-cases-9"
    assert name("--atso-generations", "5", "--atso-fine-tune-epochs", "3") == "2d-4000-atso-generations-5-atso-fine-tune-epochs-3"


def test_work_does_not_go_on_with_other_code(study, accuracy, monkeypatch, capsys):
    study(methods="naive")
    monkeypatch.setattr(accuracy, "circumstances", lambda: {"commit": "another", "versions": {}, "machine": ""})
    with pytest.raises(SystemExit):
        study(methods="mskd")
    error = capsys.readouterr().err
    assert "another now" in error and "git worktree add" in error and study.trained() == []


def test_the_average_of_co_training_fits_the_budget(accuracy):
    def settings(steps, *more):
        return accuracy.settings(accuracy.arguments_of(["hippocampus", *more]), steps)

    # a quarter of the training: 1 / (1 - decay) = steps / 4, at most the paper's
    steps, expected = (500, 1000, 4000, 8000), ["0.992", "0.996", "0.999", "0.999"]
    assert [settings(i)["co_training.ema_decay"] for i in steps] == expected
    assert [settings(i, "--average")["ema_decay"] for i in steps] == expected
    assert "ema_decay" not in settings(4000)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "405", "--work", "w"], "multiple of 10"),
        ([], "--work is missing"),
        (["--table"], "--out is missing"),
        (["--table", "--out", "o", "--seeds", "0", "1"], "needs 3 seeds"),
        (["--table", "--out", "o", "--steps", "500", "1000"], "one budget"),
        (["--work", "w", "--methods", "none"], "no such method"),
    ],
)
def test_bad_arguments_are_one_line(accuracy, monkeypatch, capsys, argv, message):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "hippocampus", *argv])
    with pytest.raises(SystemExit) as end:
        accuracy.main()
    error = capsys.readouterr().err.strip()
    assert end.value.code == 2 and message in error and "\n" not in error


@pytest.mark.parametrize("model_knows", [("liver",), CLASSES])
def test_validation_is_of_the_classes_that_a_case_annotates(accuracy, monkeypatch, tmp_path, model_knows):
    """A teacher knows no more; the files of nnU-Net's validation of a partially labelled case hold no more."""
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, :2], truth[1, 2:] = 1, 2
    predicted = np.zeros_like(truth)
    predicted[0, :1] = 1  # 4 of 8 voxels of the liver, in a file of a model that knows the liver alone
    labels = {"background": 0, "liver": 1, "kidney": 2}
    files = {tmp_path / "pre" / "Dataset621_Full" / "gt_segmentations" / "c.nii.gz": truth}
    model = tmp_path / "model"
    files[model / "fold_0" / "validation" / "c.nii.gz"] = predicted
    for file, array in files.items():
        file.parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(file))
    content = {"channel_names": {"0": "CT"}, "numTraining": 1, "file_ending": ".nii.gz"}
    (tmp_path / "pre" / "Dataset621_Full" / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
    (model / "dataset.json").write_text(json.dumps({**content, "labels": {i: labels[i] for i in ("background", *model_knows)}}))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / "pre"))
    budget = accuracy.Budget.__new__(accuracy.Budget)
    budget.seed = 0
    contract = {"version": 1, "cases": {"c": {"source": "lits", "annotated": ["liver"]}}}
    (tmp_path / "pre" / "Dataset611_Partial").mkdir()
    partial = {**content, "labels": labels, "nnunet_partial": contract}
    (tmp_path / "pre" / "Dataset611_Partial" / "dataset.json").write_text(json.dumps(partial))
    planner = SimpleNamespace(models=lambda *_: [model])
    rows = budget._validation_rows(planner, "individual")
    assert [(i["case"], i["class"], i["dice"]) for i in rows] == [("c", "liver", pytest.approx(2 * 4 / (4 + 8)))]
    if len(model_knows) == 2:  # with the labels of all classes, a class that was missed counts
        assert [(i["class"], i["dice"]) for i in budget._validation_rows(planner, "full")][1] == ("kidney", 0)


# ------------------------------------------------------------------ how MS-KD starts


@pytest.fixture
def one_change(study, monkeypatch):
    """``one_change(question, *arguments)`` on the stub commands; returns the trainings of rows that it started."""
    module = load(monkeypatch, "one_change")

    def evaluate_folder(folder, *_, **__):
        assert (folder / "predict_from_raw_data_args.json").exists() or (folder / "summary.json").exists()
        case = "kits_1" if folder.name == "validation" else "a"
        return [{"case": case, "class": i, "dice": 0.5, "hausdorff95_mm": 1.0} for i in ("kidney", "liver")]

    def write_variant(dataset, name, changes, base, configuration):
        file = study.work / "hippocampus" / "nnUNet_preprocessed" / "Dataset611_Partial" / f"{base}_{name}.json"
        file.write_text(json.dumps({"plans_name": file.stem, "nnunet_partial": changes}))
        return file

    monkeypatch.setattr(module, "evaluate_folder", evaluate_folder)
    monkeypatch.setattr(module, "write_variant", write_variant)  # the stub's plans are none

    def call(question, *more):
        study.log.unlink(missing_ok=True)
        given = [question, "hippocampus", "--results", str(study.results), *map(str, more)]
        monkeypatch.setattr(sys, "argv", ["one_change.py", *given])
        module.main()
        rows = "|".join(module.QUESTIONS[question].rows)
        return [i for i in study.started() if re.search(rf"_train .* -p \S+_({rows}) ", i)]

    return call


def test_students_start_where_their_row_says_and_are_trained_once(study, one_change):
    given = ("--work", study.work, "--steps", 600, "--seeds", 0)
    started = {i.split(" -p ")[1].split()[0].rpartition("_")[2]: i for i in one_change("mskd-start", *given)}
    assert sorted(started) == ["by-region", "foreground", "from-partial", "from-teacher", "full-scale", "longer"]
    assert len([i for i in study.trained() if i == "Individual"]) == 2  # one for each source, for all rows
    preprocessed = study.work / "hippocampus" / "nnUNet_preprocessed" / "Dataset611_Partial"
    written = {i: json.loads((preprocessed / f"nnUNetPlans_2d-600-s0_{i}.json").read_text())["nnunet_partial"] for i in started}
    assert {k: Path(i["initial_weights"]).parts[-3] for k, i in written.items() if "initial_weights" in i} == {
        "from-teacher": "nnUNetTrainerIndividual__nnUNetPlans_2d-600-s0_kits__2d",
        "from-partial": "nnUNetTrainerPartial__nnUNetPlans_2d-600-s0__2d",
    }
    assert written["by-region"]["mskd"]["by_region"] == 0.5 and set(written["by-region"]["mskd"]["teachers"]) == {"kits", "lits"}
    assert [written[i].get("num_iterations_per_epoch") for i in ("longer", "from-partial")] == [120, None]
    own = written["full-scale"]
    assert own["deep_supervision"] is False and "600-s0_lits" in own["mskd"]["teachers"]["lits"]
    score = json.loads((study.results / "hippocampus-mskd-start/2d-600/longer_seed0.json").read_text())
    assert score["settings"]["num_iterations_per_epoch"] == "120"
    score = json.loads((study.results / "hippocampus-mskd-start/2d-600/full-scale_seed0.json").read_text())
    assert score["settings"]["deep_supervision"] == "False" and score["settings"]["num_iterations_per_epoch"] == "60"
    assert score["validation"]["dice"] == {"kits_1": [0.5, None]}  # the kidney alone is annotated
    assert set(score["commands"]) == {"s0-full-scale-train", "s0-full-scale-predict"}
    shutil.rmtree(study.work)
    assert one_change("mskd-start", *given) == [] and not study.work.exists()
    one_change("mskd-start", "--table", "--out", study.results / "start")
    compared = [(i["title"], i["reference"]) for i in json.loads((study.results / "start.json").read_text())["differences"]]
    assert compared == [("MSKD from Partial", "MSKD, twice the steps")]  # there is no score of MSKD itself


@pytest.mark.parametrize(
    "question, row, options, trainer, soft",
    [
        ("soft-labels", "soft", "--soft", "nnUNetTrainerMSKDLW", {"teachers": "soft"}),
        ("min-confidence", "confident", "--min-confidence 0.8", "nnUNetTrainerSelfTraining", None),
        ("region-mask", "masked", "--overwrite", "nnUNetTrainerCoTraining", None),
    ],
)
def test_labels_of_a_row_come_from_the_teachers_of_the_method(study, one_change, question, row, options, trainer, soft):
    (started,) = one_change(question, "--work", study.work, "--steps", 600, "--seeds", 0)
    assert f" -tr {trainer} " in started
    assert study.trained()[:2] == ["Individual", "Individual"] and "Partial" not in study.trained()
    (labelling,) = [i for i in study.started() if f"/{row}_seed0/labels " in i]
    assert labelling.endswith(options) and "--from teachers" in labelling and "--fold 0" in labelling
    file = f"nnUNet_preprocessed/Dataset611_Partial/nnUNetPlans_2d-600-s0_{row}.json"
    written = json.loads((study.work / "hippocampus" / file).read_text())["nnunet_partial"]
    assert written["labels"].endswith(f"/{row}_seed0/labels") and written.get("mskd") == soft
    score = json.loads((study.results / f"hippocampus-{question}/2d-600/{row}_seed0.json").read_text())
    assert set(score["commands"]) == {f"s0-{row}-{i}" for i in ("labels", "train", "predict")}


def test_the_region_mask_is_subtracted_from_both_rows_of_the_same_teachers(study, one_change):
    study("--steps", 600, "--seeds", 0, methods="cotraining-ctwa,cotraining-ibn")
    one_change("region-mask", "--work", study.work, "--steps", 600, "--seeds", 0)
    one_change("region-mask", "--table", "--out", study.results / "mask")
    content = json.loads((study.results / "mask.json").read_text())
    compared = [(i["method"], i["reference"]) for i in content["differences"]]
    assert compared == [("masked", "CoTraining CT+WA"), ("masked", "CoTraining IBN")]
    assert {i["method"] for i in content["points"]} == {"cotraining-ctwa", "cotraining-ibn", "masked"}


def test_distillation_alone_is_taught_by_the_teachers_of_mskdplus(study, one_change):
    (started,) = one_change("mskd-alone", "--work", study.work, "--steps", 600, "--seeds", 0)
    assert " -tr nnUNetTrainerMSKD " in started and study.trained() == ["Individual", "Individual", "MSKD"]
    file = "nnUNet_preprocessed/Dataset611_Partial/nnUNetPlans_2d-600-s0_alone.json"
    written = json.loads((study.work / "hippocampus" / file).read_text())["nnunet_partial"]
    teachers = {k: Path(i).parts[-1] for k, i in written.pop("mskd")["teachers"].items()}
    assert teachers == {i: f"nnUNetTrainerIndividual__nnUNetPlans_2d-600-s0_{i}__2d" for i in ("kits", "lits")}
    assert written == {}  # nothing else is changed


def test_own_weights_of_a_trained_average_predict_without_training(study, one_change, monkeypatch):
    module, read, written = sys.modules["one_change"], [], {}

    def load_checkpoint(file):
        read.append(file)
        return {"network_weights": "average", "nnunet_partial": {"trained_weights": "network"}}

    def save_checkpoint(content, file):
        written[file] = content["network_weights"]
        file.write_text("0")  # the stub reads text

    image = study.work / "hippocampus" / "test" / "imagesTs" / "a_0000.nii.gz"
    monkeypatch.setattr(study.module, "images_of", lambda part: {"kits_1_0000.nii.gz": image} if part == "val" else {})
    monkeypatch.setattr(module, "load_checkpoint", load_checkpoint)
    monkeypatch.setattr(module, "save_checkpoint", save_checkpoint)
    # the stub's model has neither
    monkeypatch.setattr(module, "read_json", lambda file: {} if file.name in ("plans.json", "dataset.json") else read_json(file))
    assert one_change("own-weights", "--work", study.work, "--steps", 600, "--seeds", 0) == []  # no row is trained
    assert study.trained() == ["Individual", "Individual", "CoTrainingWA"]
    assert [i.parts[-3] for i in read] == ["nnUNetTrainerCoTrainingWA__nnUNetPlans_2d-600-s0_completed__2d"]
    out = study.work / "hippocampus" / "comparison" / "2d-600" / "own_weights" / "itself_seed0"
    assert written == {out / "model" / "fold_0" / "checkpoint_final.pth": "network"}
    predictions = [i for i in study.started() if f" -m {out}/model " in i]
    assert [i.split(" -i ")[1].split()[0].split("/")[-1] for i in predictions] == ["imagesTs", "validation_images"]
    score = json.loads((study.results / "hippocampus-own-weights/2d-600/itself_seed0.json").read_text())
    assert set(score["commands"]) == {"s0-itself-predict", "s0-itself-validate"} and score["method"] == "itself"


def test_a_row_of_another_question_is_refused(one_change, capsys):
    with pytest.raises(SystemExit) as end:
        one_change("soft-labels", "--work", "x", "--rows", "full-scale")
    assert end.value.code == 2 and "soft-labels has soft" in capsys.readouterr().err


def test_the_table_of_starts_subtracts_seed_by_seed(study, one_change, scores, tmp_path):
    one_change("mskd-start", "--work", study.work, "--steps", 600, "--seeds", 0, "--rows", "full-scale")
    own = json.loads((study.results / "hippocampus-mskd-start/2d-600/full-scale_seed0.json").read_text())
    reference = {**own, "study": "hippocampus", "method": "mskd", "title": "MSKD", "test": {"dice": {"a": [0.4, 0.2]}}}
    for seed in (0, 1):  # the row has no seed 1
        file = scores.score_file(study.results, "hippocampus", "2d-600", "mskd", seed)
        scores.write_score({**reference, "seed": seed}, file)
    one_change("mskd-start", "--table", "--out", tmp_path / "out")
    (row,) = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert (row["title"], row["seeds"], row["test"]) == ("MSKD, full scale", [0], pytest.approx(100 * (0.1 + 0.3) / 2))
    assert row["by_seed"] == pytest.approx([row["test"]], abs=1e-9) and "+20.00 (0)" in (tmp_path / "out.md").read_text()


def test_few_labels_are_dealt_at_random_and_the_rest_keeps_none(accuracy):
    units = {f"c{i:03d}": [f"c{i:03d}"] for i in range(100)}
    given = SimpleNamespace(study="hippocampus-few", test_cases=None, cases=None, labelled=8)
    shares, test = accuracy.divide(given, units)
    counts = {k: (len(i["train"]), len(i["val"])) for k, i in shares.items()}
    assert counts == {"labelled": (8, 10), "unlabelled": (100 - 53 - 18, 0)} and len(test) == 53
    every = [c for i in shares.values() for part in i.values() for c in part] + test
    assert sorted(every) == sorted(units) and shares["labelled"]["train"] != sorted(shares["labelled"]["train"])
    given.labelled = None
    assert [len(accuracy.divide(given, units)[0]["labelled"][i]) for i in ("train", "val")] == [4, 10]
    assert accuracy.classes_of("hippocampus-few") == ["anterior", "posterior"]
    given.study, units = "no-union-few", {f"c{i:03d}": [f"c{i:03d}"] for i in range(213)}
    shares, _ = accuracy.divide(given, units)
    assert {k: (len(i["train"]), len(i["val"])) for k, i in shares.items()} == {"front": (10, 10), "back": (10, 10)}
    labels = accuracy.classes_of("ACDC-few")
    assert accuracy.source_of("unlabelled", (), labels, ["x"]).labelled is False
    assert accuracy.source_of("labelled", labels, labels, ["x"]).labelled is True


def test_the_score_of_a_loop_says_how_good_its_labels_were_and_how_far_from_those_of_m0(
    accuracy, scores, written, monkeypatch, tmp_path
):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr(accuracy.paths, "dataset_name", lambda _: "Dataset611_Partial")
    monkeypatch.setattr(accuracy.paths, "preprocessed_dataset", lambda number: tmp_path / str(number))
    folder = tmp_path / "Dataset611_Partial" / "atso" / "2d-4000-s1-stso_2d_fold0"
    folder.mkdir(parents=True)
    options = {"plans": "nnUNetPlans", "configuration": "2d", "reference_truth": None}
    plan = {"dataset": "Dataset611_Partial", "returned_model": "m1", "options": options, "generations": []}
    (folder / "plan.json").write_text(json.dumps(plan))

    def changes(run):
        assert run.options["reference_truth"] == str(tmp_path / str(accuracy.FULL) / "gt_segmentations")
        assert run.report.parent == tmp_path / "labels_and_truth", "the loop's own report knows no truth"
        dice = [(0, 1.0, 0.5), (0, 1.0, 0.7), (1, 0.9, 0.8), (1, 0.7, None), ("final", 0.8, 0.9)]
        return [{"generation": g, "dice_to_m0": m0, "dice_to_truth": truth} for g, m0, truth in dice]

    monkeypatch.setattr(accuracy, "all_changes", changes)
    given = accuracy.arguments_of(["hippocampus-few", "--work", str(tmp_path)])
    given.base = tmp_path
    one = accuracy.Budget(given, 4000, 1, None, None)
    command = "python -m nnunet_partial.orchestration.atso.command --dataset d --run 2d-4000-s1-stso --generations 3"
    commands = [{"step": "s1-stso-loop-fold0", "command": command}, {"step": "s1-partial-train-fold0", "command": "x"}]
    comparison = SimpleNamespace(commands=lambda: commands)
    generations = [("0", 1.0, 0.6), ("1", 0.8, 0.8), ("final", 0.8, 0.9)]
    expected = {g: {"dice_to_m0": m0, "dice_to_truth": truth} for g, m0, truth in generations}
    assert one._of_loop(comparison, "stso") == {"pseudo_labels": expected}
    assert one._of_loop(comparison, "partial") == {}

    found = scores.complete(scores.read_study(written.folder, "hippocampus"), "2d-4000", ["partial", "full"], [0, 1])
    last = [{"dice_to_m0": 0.7, "dice_to_truth": 0.95}, {"dice_to_m0": 0.8, "dice_to_truth": 0.85}]
    found["partial"] = [{**i, "pseudo_labels": {**expected, "final": own}} for i, own in zip(found["partial"], last)]
    content = scores.tabulate(found, None)
    assert content["pseudo_labels"]["PARTIAL"][1] == {"dice_to_m0": 0.8, "dice_to_truth": 0.8}
    page = scores.table_page(content, (), "command")
    assert "| pseudo labels: DSC to the truth | M0 | generation 1 | generation 2 | the last, to those of M0 |" in page
    assert "| PARTIAL | 60.0 | 80.0 | 90.0 | 75.0 |" in page


def test_any_trainer_is_a_row(study):
    row = "trainer=nnUNetTrainerCrossTeachingFSL"
    study(methods=f"naive,{row}")
    (score,) = [json.loads(v) for k, v in study.files().items() if k.endswith("trainer-nnUNetTrainerCrossTeachingFSL_seed0.json")]
    assert score["method"] == row and row in score["command"] and score["test"]["dice"]
    assert study(methods=f"naive,{row}") == []


def test_contrasts_are_of_methods_that_there_are(accuracy, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "benchmarks" / "trainers"))
    assert accuracy.find_methods(dict.fromkeys(i for _, *pair in accuracy.CONTRASTS for i in pair))


def test_labelled_is_of_few_labels_alone(accuracy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "hippocampus", "--work", "x", "--labelled", "4"])
    with pytest.raises(SystemExit) as end:
        accuracy.main()
    assert end.value.code == 2 and "hippocampus-few, LeftAtrium-few, ACDC-few" in capsys.readouterr().err


# ------------------------------------------------------------------ tables from files alone


LEVEL = {"naive": 0.70, "individual": 0.90, "partial": 0.80, "mskd": 0.84, "full": 0.845}


@pytest.fixture
def written(scores, tmp_path):
    """Scores of five methods and three seeds, and of full supervision with twice the steps; returns their folder."""

    def write(method, seed, steps=4000, shift=0.0, validation_shift=0.0, **changed):
        rng = np.random.default_rng([seed, steps, *method.encode()])
        test, validation = (LEVEL[method] + shift + rng.normal(0, 0.02, (n, 2)) for n in (CASES, 8))
        content = {
            "study": "hippocampus",
            "budget": f"2d-{steps}",
            "steps": steps,
            "method": method,
            "title": {"full": "fully supervised"}.get(method, method.upper()),
            "seed": seed,
            "settings": {"num_iterations_per_epoch": str(steps // 10)},
            "classes": list(CLASSES),
            "cases": "abc",
            "commands": {
                f"s{seed}-{method}-train-fold0": {"part": "training", "seconds": 900.0, "core_seconds": 300.0},
                **(
                    {f"s{seed}-teacher": {"part": "teachers", "seconds": 900.0, "core_seconds": 240.0}}
                    if method in ("mskd", "individual")
                    else {}
                ),
            },
            "machine": "a machine",
            "versions": {"torch": "2"},
            "commit": "f00",
            "test": {"dice": {f"t{i}": list(v) for i, v in enumerate(test)}},
            "validation": {"dice": {f"v{i}": list(v + validation_shift) for i, v in enumerate(validation)}},
            **changed,
        }
        scores.write_score(content, scores.score_file(tmp_path, "hippocampus", content["budget"], method, seed))

    for seed in range(3):
        for method in LEVEL:
            write(method, seed)
    write.folder = tmp_path
    return write


def publish(accuracy, monkeypatch, folder, *more, out="out"):
    argv = ["accuracy.py", "hippocampus", "--results", str(folder), "--out", str(folder / out), *more]
    monkeypatch.setattr(sys, "argv", argv)
    accuracy.main()


def dice(folder, method, seed, part="test"):
    content = json.loads((folder / "hippocampus" / "2d-4000" / f"{method}_seed{seed}.json").read_text())
    return np.array(list(content[part]["dice"].values()), dtype=np.float64)


def test_the_table_is_made_of_the_files_alone(accuracy, written, monkeypatch):
    for seed in range(3):
        table = dice(written.folder, "full", seed, "validation")  # twice the steps: 0.3 points more
        values = {f"v{i}": list(v + 0.003) for i, v in enumerate(table)}
        written("full", seed, 8000, validation={"dice": values})
    publish(accuracy, monkeypatch, written.folder, "--table")
    content = json.loads((written.folder / "out.json").read_text())
    every = {m: np.stack([dice(written.folder, m, s) for s in range(3)]) for m in LEVEL}  # (seeds, cases, classes)
    for own in content["ranking"]:
        values = every[{"fully supervised": "full"}.get(own["name"], own["name"].lower())]
        assert own["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert own["seed_sd"] == pytest.approx(values.mean((1, 2)).std(ddof=1), abs=1e-6)
        assert own["classes"] == pytest.approx(dict(zip(CLASSES, values.mean((0, 1)))), abs=1e-6)
        assert own["low"] < own["mean"] < own["high"]
    pair = next(i for i in content["pairs"] if {i["a"], i["b"]} == {"MSKD", "NAIVE"})
    gain = every["mskd"].mean() - every["naive"].mean()
    assert abs(pair["difference"]) == pytest.approx(gain, abs=1e-6) and pair["p_holm"] < 0.05
    assert content["converged"]["validation"] == pytest.approx(0.3, abs=1e-3) and content["converged"]["seeds"] == [0, 1, 2]
    # 300 s of its own and 240 s of its teacher; the teacher of a seed counts once in the whole
    assert content["core_minutes"]["MSKD"] == pytest.approx(9) and content["core_minutes"]["PARTIAL"] == pytest.approx(5)
    assert content["core_hours_in_all"] == pytest.approx(3 * (5 * 300 + 240) / 3600)
    page = (written.folder / "out.md").read_text()
    by_seed = 100 * (every["mskd"].mean((1, 2)) - every["full"].mean((1, 2)))
    assert ", ".join(f"{i:+.2f}" for i in by_seed) in next(i for i in page.splitlines() if i.startswith("| MSKD |"))
    gained = 100 * (every["mskd"].mean((1, 2)) - every["partial"].mean((1, 2)))
    (row,) = [i for i in page.splitlines() if i.startswith("| distillation: MSKD against PARTIAL |")]
    assert f"{gained.mean():+.2f} [" in row and ", ".join(f"{i:+.2f}" for i in gained) in row and "co-training" not in page
    assert (
        f"best single student, MSKD against NAIVE | >= +8.0 | {100 * gain:+.2f}" in page and "a machine" in page and "f00" in page
    )


@pytest.mark.parametrize("cases", [2, 6, 13, 40])
def test_no_p_is_smaller_than_that_of_a_difference_of_one_sign(scores, cases):
    p = paired_permutation_test(np.arange(1.0, cases + 1), np.zeros(cases))
    assert scores.smallest_p({"test_cases": cases, "pairs": [None] * 3}) == pytest.approx(min(1.0, 3 * p))


def test_the_best_student_is_chosen_on_validation_cases(scores, written):
    for seed in range(3):  # worse on the test cases, better on those that may choose
        written("partial", seed, validation_shift=0.1)
    chosen = scores.complete(scores.read_study(written.folder, "hippocampus"), "2d-4000", [], (0, 1, 2))
    rows = scores.verdicts(
        scores.tabulate(chosen, None), (("student", "full", -0.5), ("mskd", "naive", 8.0), ("atso", "full", 0.0))
    )
    assert [(i[0], i[3]) for i in rows] == [
        ("best single student, PARTIAL against fully supervised", "MISSED"),
        ("MSKD against NAIVE", "met"),
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda write: (write.folder / "hippocampus/2d-4000/mskd_seed1.json").unlink(), "lacks mskd with seed 1"),
        (lambda write: write("full", 0, 8000, cases="other"), "other cases"),
        (lambda write: write("mskd", 1, settings={"initial_lr": "1"}), "other settings"),
        (lambda write: write("full", 0, 8000, shift=0.1), "has not converged: twice the steps move full supervision by +"),
        (lambda write: None, "no seed of the method full has 2d-8000"),
        (lambda write: (write.folder / "hippocampus/2d-4000/full_seed0.json").write_text("{}"), "is no score file"),
    ],
)
def test_no_table_of_less_than_it_claims(accuracy, written, monkeypatch, capsys, spoil, message):
    spoil(written)
    with pytest.raises(SystemExit) as end:
        publish(accuracy, monkeypatch, written.folder, "--table")
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(written.folder.glob("out*"))


def test_few_labels_converge_by_what_the_labelled_cases_teach(scores, written):
    found = scores.read_study(written.folder, "hippocampus")
    with pytest.raises(UserError, match="no seed of the method partial has 2d-8000"):
        scores.require_converged(found, "2d-4000", "2d-8000", "partial")
    written("partial", 0, 8000, shift=0.1)
    with pytest.raises(UserError, match="twice the steps move training on the labelled cases alone by"):
        scores.require_converged(scores.read_study(written.folder, "hippocampus"), "2d-4000", "2d-8000", "partial")


def test_few_labels_may_be_learnt_by_heart(scores, written):
    """Twice the steps make it worse: more of them are not what it lacks. Of full supervision the same is not accepted."""
    for method in ("partial", "full"):
        written(method, 0, 8000, shift=-0.1, validation_shift=-0.1)
    found = scores.read_study(written.folder, "hippocampus")
    assert scores.require_converged(found, "2d-4000", "2d-8000", "partial")["validation"] < -5
    with pytest.raises(UserError, match="has not converged"):
        scores.require_converged(found, "2d-4000", "2d-8000")


def test_few_labels_are_compared_with_training_as_long(scores, written):
    found = scores.read_study(written.folder, "hippocampus")
    assert scores.as_long(found, "2d-8000", [0, 1, 2], "partial") == {}
    for seed in (0, 1, 2):
        written("partial", seed, 8000, shift=0.05)
    found = scores.read_study(written.folder, "hippocampus")
    chosen = scores.complete(found, "2d-4000", ["partial", "full"], [0, 1, 2]) | scores.as_long(
        found, "2d-8000", [0, 1, 2], "partial"
    )
    content = scores.tabulate(chosen, None)
    once, twice = (content["dsc_by_seed"][i] for i in ("PARTIAL", "PARTIAL, twice the steps"))
    assert np.subtract(twice, once) == pytest.approx([5.0] * 3, abs=0.5) and content["budget"] == "2d-4000"
    assert scores.verdicts(content, ((scores.AS_LONG, "partial", 0.0),))[0][3] == "met"


def test_scores_of_another_split_have_tables_of_their_own(accuracy, written, monkeypatch):
    """Another number of cases is another budget: it neither enters nor hinders the table and the curve of the others."""
    validation = {"dice": {f"v{i}": list(v) for i, v in enumerate(dice(written.folder, "full", 0, "validation"))}}
    written("full", 0, 8000, validation=validation)  # converged
    written("full", 0, 8000, budget="2d-8000-cases-60", cases="other")
    publish(accuracy, monkeypatch, written.folder, "--table")
    publish(accuracy, monkeypatch, written.folder, "--curve", "--methods", "full")
    points = json.loads((written.folder / "out.json").read_text())["points"]
    assert [(i["steps"], i["seeds"]) for i in points] == [(4000, [0, 1, 2]), (8000, [0])]


def test_movement_is_over_paired_seeds_and_cases(scores, written):
    written("full", 1, 8000, shift=0.02)
    moved = scores.movement(scores.read_study(written.folder, "hippocampus"), "2d-4000", "2d-8000")
    content = json.loads((written.folder / "hippocampus/2d-8000/full_seed1.json").read_text())
    expected = np.array(list(content["test"]["dice"].values())).mean() - dice(written.folder, "full", 1).mean()
    assert moved["seeds"] == [1] and moved["test"] == pytest.approx(100 * expected, abs=1e-3)
    assert moved["test_interval"][0] < moved["test"] < moved["test_interval"][1]


def test_the_curve_has_a_point_a_method_and_budget(accuracy, written, monkeypatch):
    written("mskd", 0, 500, shift=-0.3)
    publish(accuracy, monkeypatch, written.folder, "--curve", "--methods", "mskd,naive")
    content = json.loads((written.folder / "out.json").read_text())
    assert [(i["method"], i["steps"], i["seeds"]) for i in content["points"]] == [
        ("mskd", 500, [0]),
        ("mskd", 4000, [0, 1, 2]),
        ("naive", 4000, [0, 1, 2]),
    ]
    expected = np.mean([dice(written.folder, "mskd", i).mean() for i in range(3)])
    assert content["points"][1]["dsc"] == pytest.approx(100 * expected, abs=1e-3)
    assert (written.folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "No accuracy table" in (written.folder / "out.md").read_text()


def test_the_figure_has_a_line_a_method_of_several_budgets_the_best_first(scores):
    def point(title, steps, dsc):
        return {"title": title, "steps": steps, "dsc": dsc, "interval": (dsc - 1, dsc + 1)}

    points = [point("slow", 500, 0.0), point("slow", 1000, 60.0), point("good", 500, 95.0), point("good", 1000, 100.0)]
    figure = scores.draw_curve("phantom", [*points, point("once", 1000, 70.0)])
    figure.canvas.draw()
    assert [i.get_text() for i in figure.legends[0].get_texts()] == ["good", "slow"]
    low, high = figure.axes[0].get_ylim()
    assert low < 0 and 95 < high < 100, "a Dice of 0 is on the figure, and 100 does not take the axis to infinity"
    assert scores.draw_curve("phantom", points[:1]).legends, "a single point is drawn too"


def test_missed_structures_come_through_a_file(scores, tmp_path):
    rows = [
        {"case": "a", "class": "liver", "dice": 0.0, "hausdorff95_mm": math.inf},
        {"case": "a", "class": "kidney", "dice": math.nan, "hausdorff95_mm": 1.25},
    ]
    values = scores.by_case(rows, CLASSES)
    assert json.loads(json.dumps(values)) == {"dice": {"a": [0.0, None]}, "hausdorff95_mm": {"a": ["inf", 1.25]}}
    back = scores.rows_of({"test": values, "classes": CLASSES})
    assert back[0]["hausdorff95_mm"] == math.inf and math.isnan(back[1]["dice"])


def test_committed_scores_can_be_read(scores):
    """Every study's files are of one split, but for budgets whose name says that they have other cases, and of code that had no changes."""
    folder = ROOT / "benchmarks" / "results" / "accuracy"
    for study in sorted(i.name for i in folder.iterdir() if i.is_dir()):
        budgets = sorted(i.name for i in (folder / study).iterdir() if i.is_dir())
        other = [i for i in budgets if re.search(r"-(cases|labelled)-\d+", i)]
        groups = [[i for i in budgets if i not in other], *([i] for i in other)]
        for score in (score for group in groups for score in scores.read_study(folder, study, group)):
            assert score["study"] == study and score["commit"] and "changes" not in score["commit"]
            assert 0 <= scores.mean_dsc(score) <= 100 and "/" not in re.sub(r"benchmarks/\w+\.py", "", score["command"])


def test_the_version_is_that_of_the_code_that_runs(monkeypatch):
    """Not of what is installed: an older study goes on with its own commit first on PYTHONPATH."""
    monkeypatch.setattr("nnunet_partial.__version__", "0.0.1")
    assert load(monkeypatch, "circumstances").versions()["nnunet_partial"] == "0.0.1"


def test_the_commit_says_when_files_differ(monkeypatch, tmp_path):
    circumstances = load(monkeypatch, "circumstances")

    def git(*argv):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *argv], check=True, capture_output=True
        )

    package = tmp_path / "nnunet_partial"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setitem(sys.modules, "nnunet_partial", SimpleNamespace(__file__=str(package / "__init__.py")))
    assert circumstances.commit() == ""
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = circumstances.commit()
    assert len(clean) == 12
    (package / "__init__.py").write_text("changed = 1")
    assert circumstances.commit() == f"{clean}+changes"


def test_errors_are_of_the_user(scores, tmp_path):
    with pytest.raises(UserError, match="lacks every method"):
        scores.complete([], "2d-4000", [], (0,))


# ------------------------------------------------------------------ labels of coarser granularity


def test_a_source_may_know_two_classes_as_one_structure(accuracy):
    labels = accuracy.classes_of("union")
    whole = accuracy.source_of("whole", (accuracy.WHOLE,), labels, ["a"])
    front = accuracy.source_of("front", ("anterior",), labels, ["b"])
    assert labels == ["anterior", "posterior"]
    assert whole.mapping == dict.fromkeys(labels, "anterior+posterior") and whole.classes == ("anterior+posterior",)
    assert front.mapping == {"posterior": "background"}


def test_leaving_a_source_out_changes_no_other_source_and_no_test_case(accuracy):
    units = {f"case_{i:03d}": [f"case_{i:03d}"] for i in range(200)}
    given = SimpleNamespace(study="union", test_cases=None, cases=None, labelled=None)
    shares, test = accuracy.divide(given, units)
    without, same_test = accuracy.divide(SimpleNamespace(**{**vars(given), "study": "no-union"}), units)
    assert (
        set(shares) == {"front", "back", "whole"} and without == {k: shares[k] for k in ("front", "back")} and same_test == test
    )


def test_unions_are_compared_over_the_same_seeds_and_cases(monkeypatch, scores, tmp_path, capsys):
    unions = load(monkeypatch, "unions")
    base = {"budget": "2d-10", "steps": 10, "settings": {}, "classes": ["anterior"], "commands": {}, "validation": {"dice": {}}}
    for study, method, seed, dice, *steps in (
        ("union", "partial", 0, [0.8, 0.9]),
        ("no-union", "partial", 0, [0.7, 0.6]),
        ("union", "naive", 0, [0.5, 0.5]),
        ("union", "partial", 1, [0.1, 0.1]),  # has no counterpart
        ("union", "partial", 0, [0.9, 0.9], 20),
    ):
        own = {"study": study, "method": method, "title": method, "seed": seed, "cases": study}
        own["test"] = {"dice": {"a": [dice[0]], "b": [dice[1]]}}
        own["budget"] = f"2d-{(steps or [10])[0]}"
        scores.write_score({**base, **own}, scores.score_file(tmp_path, study, own["budget"], method, seed))
    argv = ["unions.py", "--results", str(tmp_path), "--steps", "10", "--longer", "20", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    unions.main()
    found = json.loads((tmp_path / "out.json").read_text())["differences"]
    assert [(i["title"], i["reference"], round(i["test"], 6), i["seeds"]) for i in found] == [
        ("partial, union", "partial, no-union", 20.0, [0]),
        ("partial, union", "naive, union", 35.0, [0]),
        ("partial, union, 20 steps", "partial, no-union", 25.0, [0]),
    ]
    assert "| partial, union | partial, no-union | +20.00 |" in (tmp_path / "out.md").read_text()


# ------------------------------------------------------------------ training images, by whether their source annotates a class


def own_source_scores(scores, results, method, seed, by_case, study="abdomen-training-images"):
    content = {"study": study, "budget": "2d-10", "steps": 10, "settings": {}, "commands": {}, "validation": {}, "cases": "c"}
    content |= {"classes": ["liver", "kidney", "pancreas", "spleen"], "method": method, "title": method.upper(), "seed": seed}
    scores.write_score({**content, "test": {"dice": by_case}}, scores.score_file(results, study, "2d-10", method, seed))


@pytest.fixture
def own_source(accuracy, monkeypatch):
    return load(monkeypatch, "own_source")


def test_training_images_are_told_apart_by_their_source(own_source, scores, monkeypatch, tmp_path):
    for seed in (0, 1):
        seen = {"lits_1": [0.9, 0.2, 0, 0], "kits_1": [0.6, 0.8, 0, 0], "kits_2": [0.4, 0.6, 0, 0]}
        seen |= {"nih_1": [0.5, 0.1 * seed, 0.7, 0], "msd_1": [0.5, 0, 0.2, 1]}
        own_source_scores(scores, tmp_path, "dodnet", seed, seen)
        own_source_scores(scores, tmp_path, "dodnet", seed, {"a": [0.5, 0.5, 0, 0], "b": [0.7, 0.5, 0, 0]}, "abdomen")
    argv = ["own_source.py", "abdomen", "--results", tmp_path, "--methods", "dodnet", "--seeds", 0, 1, "--steps", 10]
    monkeypatch.setattr(sys, "argv", [*map(str, argv), "--table", "--out", str(tmp_path / "out")])
    own_source.main()
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["own_source"]["classes"] == pytest.approx([90, 70, 70, 100])
    assert row["other_sources"]["classes"] == pytest.approx([50, 100 * (0.2 / 3 + 0.3 / 3) / 2, 5, 0])
    assert row["other_sources"]["seeds"] == pytest.approx([(50 + 20 / 3 + 5) / 4, (50 + 10 + 5) / 4])
    assert row["test"]["classes"] == pytest.approx([60, 50, 0, 0])
    assert (
        "| DODNET | training images, own source | 90.0 | 70.0 | 70.0 | 100.0 | 82.5 | 82.5, 82.5 |"
        in (tmp_path / "out.md").read_text()
    )


def test_training_images_are_predicted_once_and_no_others(own_source, study, monkeypatch, tmp_path, capsys):
    study(methods="mskd,individual")
    images = {i: str(tmp_path / f"{i}.nii.gz") for i in ("kits_0", "kits_1", "lits_0", "lits_1")}
    file, asked = study.work / "hippocampus" / "nnUNet_raw" / "Dataset621_Full" / "dataset.json", []
    prepare = study.prepare

    def with_images(arguments):
        prepared = prepare(arguments)
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "dataset": {k: {"images": [v]} for k, v in images.items()}}))
        return prepared

    def predict(argv, log):
        folder = Path(argv[argv.index("-i") + 1])
        asked.append(({i.name: os.readlink(i) for i in folder.iterdir()}, Path(argv[argv.index("-m") + 1]).name))

    def evaluate(folder, truth, dataset, **more):
        return [{"case": i, "class": name, "dice": 0.5} for i in ("kits_0", "lits_0") for name in ("liver", "kidney")]

    monkeypatch.setattr(own_source.accuracy, "prepare", with_images)
    monkeypatch.setattr(own_source, "run", predict)
    monkeypatch.setattr(own_source, "evaluate_folder", evaluate)
    argv = ["own_source.py", "hippocampus", "--work", study.work, "--results", study.results, "--seeds", 0, "--methods", "mskd"]
    monkeypatch.setattr(sys, "argv", [str(i) for i in argv])
    model = next((study.work / "hippocampus" / "nnUNet_results").glob("*/nnUNetTrainerMSKD__*"))
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.unlink()
    with pytest.raises(SystemExit):
        own_source.main()
    assert f"{checkpoint} is not there" in capsys.readouterr().err
    checkpoint.touch()
    for _ in range(2):
        own_source.main()
    assert asked == [({f"{i}_0000.nii.gz": images[i] for i in ("kits_0", "lits_0")}, model.name)]
    score = json.loads((study.results / "hippocampus-training-images" / "2d-4000" / "mskd_seed0.json").read_text())
    assert score["test"]["dice"] == {"kits_0": [0.5, 0.5], "lits_0": [0.5, 0.5]} and score["title"] == "MSKD"
    monkeypatch.setattr(sys, "argv", [*map(str, argv[:-1]), "individual"])
    with pytest.raises(SystemExit) as end:
        own_source.main()
    assert end.value.code == 2 and "it has 2 networks" in capsys.readouterr().err


# ------------------------------------------------------------------ the data of the abdomen


# label0041 and on are made of these, in turn
COPIED = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)


@pytest.mark.skipif("NNUNET_PARTIAL_DATA" not in os.environ, reason="needs NNUNET_PARTIAL_DATA")
def test_the_abdomen_has_one_label_map_of_each_patient(monkeypatch, scores):
    """And the figures of nnunet_partial/data/check/same_patient.py."""
    studies = load(monkeypatch, "studies")
    used = {i.name for i in studies.abdomen_label_maps()}
    files = sorted((studies.data_folder() / "abdomen_labels").glob("label*.nii.gz"))
    sizes = {i.name: organs_of(i) for i in files}
    numbers = {i: int(i[5:9]) for i in sizes}
    patient = {i: number if number <= 40 else COPIED[(number - 41) % len(COPIED)] for i, number in numbers.items()}
    assert (len(sizes), len(set(patient.values())), len(used), len({patient[i] for i in used})) == (151, 25, 22, 22)
    pairs = list(itertools.combinations(sizes, 2))
    found = [i for i in pairs if list(suspected({j: sizes[j] for j in i}, {}))]
    same = [(one, other) for one, other in pairs if patient[one] == patient[other]]
    assert (len(pairs) - len(same), len(set(found) - set(same))) == (10_802, 0)
    assert (len(same), len(found)) == (523, 327)
    assert (len({i for pair in same for i in pair}), len({i for pair in found for i in pair})) == (144, 118)


def organs_of(file):
    """Organ -> (volume in ml, spread in mm) of a label map of abdomen_labels."""
    image = sitk.ReadImage(str(file))
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    masks = {str(i): array == i for i in range(1, 9)}
    sizes = {i: (mask.sum() * np.prod(spacing) / 1000, spread_mm(mask, spacing)) for i, mask in masks.items()}
    return {i: size for i, size in sizes.items() if size[1] is not None}


# ------------------------------------------------------------------ what everything took


def test_core_hours_count_what_is_shared_once(accuracy, scores, monkeypatch, tmp_path, capsys):
    def write(study, budget, method, seed, commands, cases="c"):
        content = {
            "study": study,
            "budget": budget,
            "steps": 10,
            "settings": {},
            "cases": cases,
            "classes": ["liver"],
            "test": {},
        }
        content |= {"method": method, "title": method, "seed": seed}
        content["commands"] = {k: {"seconds": v, "core_seconds": v} for k, v in commands.items()}
        scores.write_score(content, scores.score_file(tmp_path, study, budget, method, seed))

    module = load(monkeypatch, "core_hours")
    monkeypatch.setattr(sys, "argv", ["core_hours.py", "--results", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        module.main()
    assert "there are no scores in" in capsys.readouterr().err
    write("a", "2d-10", "mskd", 0, {"s0-teacher": 3600, "s0-mskd": 1800})
    write("a", "2d-10", "mskdplus", 0, {"s0-teacher": 3600, "s0-mskdplus": 900})
    write("a", "2d-10-cases-4", "full", 0, {"s0-full": 900}, cases="others")  # the times of other splits count too
    write("b", "2d-10", "full", 0, {"s0-full": 36000, "s0-evaluate": None})
    module.main()
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["core_hours"] == {"b": 10, "a": 2} and content["in_all"] == 12
    assert list(content["core_hours"]) == ["b", "a"] and "| in all | 12.00 |" in (tmp_path / "out.md").read_text()
