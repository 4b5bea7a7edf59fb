"""One change at a time to a method, on the teachers that the method itself was taught by: what the change brings, at which budget.

    python benchmarks/one_change.py mskd-start hippocampus --work WORK --steps 600 4000 --seeds 0 1 2
    python benchmarks/one_change.py mskd-start hippocampus --table --out OUT

mskd-start: how the student of multi-scale distillation may start sooner, against nnUNetTrainerMSKD (the row mskd of benchmarks/accuracy.py)

full-scale     Eq. 8 on the full resolution alone, as the paper states it (deep_supervision=false), not on every resolution of the decoder
foreground     twice as many patches around an annotated voxel (oversample_foreground_percent=0.66)
by-region      the logit terms divided by the voxels of each region at first, by all (Eq. 4) from half of the training on
               (mskd.by_region=0.5)
from-teacher   the student begins with the weights of the first source's teacher (setting initial_weights: the outputs that it does not know
               begin as equal parts of its background)
from-partial   the same with the weights of nnUNetTrainerPartial, which has had as many steps itself
longer         twice the steps, by the same teachers: what the steps of from-partial, Partial's own included, bring from scratch

mskd-alone: distillation without labels beside it, by the very teachers of nnUNetTrainerMSKDPlus (mskdplus)

own-weights: nnUNetTrainerCoTrainingWA (cotraining-wa) predicting with the weights of the network itself, where the method predicts with
             their average: what the average brings at prediction, and what as a teacher. Nothing is trained for it

region-mask: co-training with its region mask (nnUNetTrainerCoTraining), by the very teachers of the rows of Table 1 without it
             (cotraining-ctwa) and with instance-batch normalisation beside it (cotraining-ibn)

soft-labels: MSKDLW from probabilities that lie beside the labels (pseudo-label --soft, mskd.teachers=soft), against teachers in memory (mskdlw)

min-confidence: self-training without the voxels of which no teacher is surer than 0.8 (pseudo-label --min-confidence 0.8), against all
               of them (selftraining)

Data, splits, budgets and files of scores are those of benchmarks/accuracy.py, in the same WORK: teachers and Partial are trained there
unless they are there, and a finished row and seed is never trained again.
"""

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accuracy  # beside this file, as the others are
import scores
import studies
from circumstances import command

from nnunet_partial import paths
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.results import json_values
from nnunet_partial.files import load_checkpoint, read_json, save_checkpoint, write_json, write_text
from nnunet_partial.labels import Annotations
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.compare.methods import TEACHER
from nnunet_partial.orchestration.executors import Job, make_executor
from nnunet_partial.settings import merged
from nnunet_partial.variants import write_variant

MSKD, PARTIAL_TRAINER = "nnUNetTrainerMSKD", "nnUNetTrainerPartial"


@dataclass(frozen=True)
class Row:
    """A change. ``trainer``: the method's; ``settings``: of its plans; ``start``: trainer whose weights it begins with; ``labels``:
    options of pseudo-label, for a row that learns from labels which the teachers have completed; ``times``: its steps, in those of the
    budget; ``own_weights``: the model of the question's reference, predicting with its network's own weights."""

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer: str = MSKD
    start: str | None = None
    labels: tuple | None = None
    times: int = 1
    own_weights: bool = False

    @property
    def needs_teachers(self) -> bool:
        """Whether its training asks the teachers."""
        return self.trainer == MSKD


@dataclass(frozen=True)
class Question:
    """Changes to one method, ``reference``: a row of benchmarks/accuracy.py. ``title``: of the page. ``controls``: row -> the row that
    has all of it but the change in question. ``others``: further rows of benchmarks/accuracy.py, of the same teachers, that the rows
    are subtracted from."""

    title: str
    reference: str
    rows: Mapping[str, Row]
    controls: Mapping[str, str] = field(default_factory=dict)
    others: tuple = ()


QUESTIONS = {
    "mskd-start": Question(
        "how MS-KD starts",
        "mskd",
        {
            "full-scale": Row("MSKD, full scale", {"deep_supervision": False}),
            "foreground": Row("MSKD, more foreground", {"oversample_foreground_percent": 0.66}),
            "by-region": Row("MSKD, by region at first", {"mskd": {"by_region": 0.5}}),
            "from-teacher": Row("MSKD from a teacher", start=TEACHER),
            "from-partial": Row("MSKD from Partial", start=PARTIAL_TRAINER),
            "longer": Row("MSKD, twice the steps", times=2),
        },
        controls={"from-partial": "longer"},
    ),
    "mskd-alone": Question(
        "distillation without labels beside it",
        "mskdplus",
        {"alone": Row("MSKD, MSKDPlus's teachers")},
    ),
    "own-weights": Question(
        "the network itself and its average",
        "cotraining-wa",
        {"itself": Row("CoTraining WA, its network itself", trainer="nnUNetTrainerCoTrainingWA", own_weights=True)},
    ),
    "region-mask": Question(
        "rows of co-training's Table 1 by the same teachers",
        "cotraining-ctwa",
        {"masked": Row("CoTraining", trainer="nnUNetTrainerCoTraining", labels=())},
        others=("cotraining-ibn",),
    ),
    "soft-labels": Question(
        "MSKDLW from soft labels",
        "mskdlw",
        {"soft": Row("MSKDLW, soft labels", {"mskd": {"teachers": "soft"}}, trainer="nnUNetTrainerMSKDLW", labels=("--soft",))},
    ),
    "min-confidence": Question(
        "self-training without doubtful voxels",
        "selftraining",
        {"confident": Row("SelfTraining, confident", trainer="nnUNetTrainerSelfTraining", labels=("--min-confidence", "0.8"))},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("study", choices=accuracy.DESIGNS)
    parser.add_argument("--work", type=Path, help="folder of data, models and predictions of benchmarks/accuracy.py")
    parser.add_argument(
        "--results", type=Path, default=accuracy.RESULTS, help="scores per case (default: benchmarks/results/accuracy)"
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[600, 4000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="default: all of the question")
    parser.add_argument(
        "--table", action="store_true", help="train nothing: write OUT.json and OUT.md of the scores that are there"
    )
    parser.add_argument("--out", type=Path, help="of --table")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as benchmarks/accuracy.py takes them")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        rows = QUESTIONS[arguments.question].rows
        unknown = [i for i in arguments.rows if i not in rows]
        if unknown:
            raise UserError(f"--rows {unknown[0]}: {arguments.question} has {', '.join(rows)}.")
        arguments.rows = arguments.rows or list(rows)
        needed, what = ("out", "the files to write") if arguments.table else ("work", "the folder of benchmarks/accuracy.py")
        if getattr(arguments, needed) is None:
            raise UserError(f"--{needed} is missing: {what}.")
        publish(arguments) if arguments.table else train_and_record(arguments)


def study_name(arguments):
    return f"{arguments.study}-{arguments.question}"


def score_file(arguments, budget, row, seed):
    return scores.score_file(arguments.results, study_name(arguments), budget, row, seed)


def train_and_record(arguments):
    """Every row, seed and budget that has no scores yet."""
    for seed in arguments.seeds:
        for steps in arguments.steps:
            given = [arguments.study, "--work", str(arguments.work), "--steps", str(steps), "--device", arguments.device]
            o = accuracy.arguments_of([*given, *(j for i in arguments.set for j in ("--set", i))])
            budget = accuracy.budget_name(o, steps)
            missing = [i for i in arguments.rows if not score_file(arguments, budget, i, seed).is_file()]
            if missing:
                o.base = o.work.absolute() / o.study
                studies.use_folders(o.base, o.device)
                test_set = accuracy.prepare(o)
                accuracy.keep_code(o)
                one = accuracy.Budget(o, steps, seed, *test_set)
                question = QUESTIONS[arguments.question]
                rows = [question.rows[i] for i in missing]
                partial = ["partial"] if PARTIAL_TRAINER in {i.start for i in rows} else []
                reference = [question.reference] if any(i.own_weights for i in rows) else []
                one.train(["individual", *partial, *reference])
                for row in missing:
                    content = Student(one, arguments.question, row).score()
                    scores.write_score(content, score_file(arguments, budget, row, seed))
                    print(f"{content['title']}, seed {seed}, {steps} steps: {scores.mean_dsc(content):.2f} DSC", flush=True)


class Student:
    """One row: a plans variant, a training, a prediction of the test images, in the folders of a budget."""

    def __init__(self, budget, question, row):
        self.budget, self.question, self.name, self.device = budget, question, row, budget.arguments.device
        self.row = QUESTIONS[question].rows[row]
        self.planner = budget.comparison("individual").plan
        self.base = self.planner.plans(budget.seed)
        self.out = budget.out / question.replace("-", "_") / f"{row}_seed{budget.seed}"

    def score(self):
        if self.row.own_weights:
            return self._score_of_own_weights()
        if self.row.labels is not None:
            self._run("labels", self._labelling(), self._label_directory / "provenance.json")
        o = self.planner.options
        plans = write_variant(accuracy.PARTIAL, self.name, self._settings, self.base, o.configuration).stem
        model = self.planner.model(self.row.trainer, plans)
        self._run("train", self._training(plans), paths.fold_folder(model, "0") / "validation" / "summary.json")
        self._run("predict", self._prediction(model), self.out / "predictions" / "predict_from_raw_data_args.json")
        return self._content(paths.fold_folder(model, "0") / "validation", {"train": "training", "predict": "prediction"})

    def _score_of_own_weights(self):
        """Test and validation cases, predicted by a copy of the reference's model that holds the weights which were trained."""
        reference = QUESTIONS[self.question].reference
        (source,) = self.budget.comparison(reference).plan.models(reference, self.budget.seed)
        model, validation = self.out / "model", self.out / "validation"
        checkpoint = load_checkpoint(paths.final_checkpoint(source, "0"))
        checkpoint["network_weights"] = checkpoint["nnunet_partial"]["trained_weights"]
        paths.fold_folder(model, "0").mkdir(parents=True, exist_ok=True)
        for name in ("plans.json", "dataset.json"):
            write_json(read_json(source / name), model / name)
        save_checkpoint(checkpoint, paths.final_checkpoint(model, "0"))
        images = studies.link(self.out / "validation_images", accuracy.images_of("val"))
        for name, given, out in (
            ("predict", self.planner.options.test_images, self.out / "predictions"),
            ("validate", images, validation),
        ):
            self._run(name, self._prediction(model, given, out), out / "predict_from_raw_data_args.json")
        return self._content(validation, {"predict": "prediction", "validate": "prediction"})

    @property
    def _settings(self):
        found = {**self.row.settings, **self._length}
        if self.row.needs_teachers:
            found = merged({"mskd": {"teachers": dict(zip(self.planner.sources, map(str, self._teachers)))}}, found)
        if self.row.labels is not None:
            found = merged(found, {"labels": str(self._label_directory)})
        return merged(found, self._initial_weights)

    @property
    def _length(self):
        key = "num_iterations_per_epoch"
        return {} if self.row.times == 1 else {key: self.row.times * int(self.budget.settings[key])}

    @property
    def _initial_weights(self):
        if self.row.start is None:
            return {}
        model = self._teachers[0] if self.row.start == TEACHER else self.planner.model(self.row.start, self.base)
        return {"initial_weights": str(paths.fold_folder(model, "0") / "checkpoint_final.pth")}

    @property
    def _teachers(self):
        return self.planner.models("individual", self.budget.seed)

    @property
    def _label_directory(self):
        return self.out / "labels"

    def _labelling(self):
        """What compare asks of pseudo-label for the cases of this fold, and what the row changes about it."""
        o = self.planner.options
        argv = ["nnunet_partial", "pseudo-label", self.planner.dataset, "--configuration", o.configuration, "--fold", "0"]
        argv += ["--plans", self.base, "--from", "teachers", "--out", self._label_directory, "--device", self.device]
        return [*argv, "--disable-tta", "--overwrite", *self.row.labels]

    def _training(self, plans):
        argv = [
            "nnUNetv2_train",
            self.planner.dataset,
            self.planner.options.configuration,
            "0",
            "-tr",
            self.row.trainer,
            "-p",
            plans,
        ]
        model = paths.fold_folder(self.planner.model(self.row.trainer, plans), "0")
        more = ["--c"] if any(model.glob("checkpoint_*.pth")) else []
        return [*argv, "-device", self.device, *more]

    def _prediction(self, model, images=None, out=None):
        images, out = images or self.planner.options.test_images, out or self.out / "predictions"
        argv = ["nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out, "-m", model, "-f", "0", "-device", self.device]
        return [*argv, "-npp", "1", "-nps", "1", "--disable_progress_bar", "--disable_tta"]

    def _run(self, name, argv, done):
        """One command, unless it ended well before; its seconds are kept in its job."""
        result = runner.read_result(self.out / "jobs" / name)
        if done.is_file() and result is not None and result["exit_code"] == 0:
            return
        job = Job(name, tuple(map(str, argv)), self.out / "logs" / f"{name}.log")
        print(f"{self.name}, seed {self.budget.seed}: {shlex.join(job.argv)}", flush=True)
        make_executor("debug", self.out).run([job])

    def _content(self, validation, parts):
        """``validation``: folder of the predicted validation cases; ``parts``: of the row's commands -> part of the method."""
        about = self.budget.about()
        more = {"metrics": scores.METRICS, "annotated": "all", "allow_missing": True, "processes": 1, "progress": False}
        truth = paths.preprocessed_dataset(accuracy.FULL) / "gt_segmentations"
        test = evaluate_folder(self.out / "predictions", self.planner.truth, str(accuracy.PARTIAL), **more)
        validation = evaluate_folder(validation, truth, str(accuracy.FULL), **more)
        validation = accuracy.on_annotated(validation, Annotations.read(paths.preprocessed_dataset(self.planner.dataset)))
        o, seed = self.budget.arguments, self.budget.seed
        given = ["python", "benchmarks/one_change.py", self.question, o.study, "--work", "WORK", "--steps", self.budget.steps]
        parts = {**({"labels": "labels"} if self.row.labels is not None else {}), **parts}
        return {
            **about,
            "study": f"{o.study}-{self.question}",
            "method": self.name,
            "title": self.row.title,
            "settings": {**self.budget.settings, **{k: str(v) for k, v in {**self.row.settings, **self._length}.items()}},
            "begins_with": self.row.start,
            "labelled_with": self.row.labels,
            "command": shlex.join(
                map(str, [*given, "--rows", self.name, "--seeds", seed, *(j for i in o.set for j in ("--set", i))])
            ),
            "commands": {f"s{seed}-{self.name}-{i}": {"part": part, **self._seconds(i)} for i, part in parts.items()},
            "test": scores.by_case(test, about["classes"]),
            "validation": scores.by_case(validation, about["classes"]),
        }

    def _seconds(self, name):
        result = runner.read_result(self.out / "jobs" / name)
        return {"seconds": round(runner.all_seconds(result), 1), "core_seconds": round(runner.all_cpu_seconds(result), 1)}


def publish(arguments):
    """DSC by steps of every row, of the method that they change, and of the differences between both."""
    question = QUESTIONS[arguments.question]
    own = scores.read_study(arguments.results, study_name(arguments))
    budgets = {i["budget"]: i["steps"] for i in own}
    compared = scores.read_study(arguments.results, arguments.study, tuple(budgets))
    reference, *others = ([i for i in compared if i["method"] == name] for name in (question.reference, *question.others))
    seeds = {i["seed"] for i in own}  # other seeds of a reference have no row to be compared with
    points = scores.curve([*(i for other in (reference, *others) for i in other if i["seed"] in seeds), *own], budgets)
    if not own:
        raise UserError(f"there are no scores of {study_name(arguments)} in {arguments.results}. Train some first.")
    for other in (i for i in own if i["cases"] != reference[0]["cases"]) if reference else ():
        raise UserError(
            f"{other['method']} with seed {other['seed']} was trained or tested on other cases than {question.reference}: they cannot be "
            "subtracted. Train one of them on the cases of the other."
        )
    differences = [i for other in (reference, *others) for i in scores.differences(own, other, budgets)]
    for row, control in question.controls.items():
        pair = [[i for i in own if i["method"] == name] for name in (row, control)]
        differences += scores.differences(*pair, budgets)
    page = scores.curve_page(f"{arguments.study}, {question.title}", points, [], command(), differences)
    content = json_values({"command": command(), "points": points, "differences": differences})
    write_json(content, arguments.out.with_suffix(".json"))
    write_text(page, arguments.out.with_suffix(".md"))
    print(page)


if __name__ == "__main__":
    main()
