"""What became of the generations of an ATSO run: scores, changes of the pseudo labels, how near every model is to M0.

Truth is read here and nowhere else. Everything but the times is the same however often the run was interrupted.
:mod:`nnunet_partial.evaluation.atso_report.page` writes it down.
"""

import csv
import io
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import paths
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory, load_labels, read_record
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.metrics import dice
from nnunet_partial.evaluation.report.inputs import TrainedModel, read_models
from nnunet_partial.files import PathLike, read_json, read_names, write_json
from nnunet_partial.labels import check_file_name, items_from_json, members
from nnunet_partial.trust import check_plans

DONE = "done"  # in the words of the journal
CHANGES = ("generation", "case", "class", "dice_to_previous", "dice_to_m0", "dice_to_truth")
SCORES = ("generation", "model", "set", "class", "cases", "dice")
SUMMARY = (
    "generation",
    "test_dice",
    "best_test_dice",
    "reference_dice",
    "dice_to_previous",
    "dice_to_m0",
    "test_dice_to_m0",
    "pseudo_dice",
)
TIMES = ("stage", "state", "seconds")


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None of nothing."""
    known = [float(i) for i in values if i is not None and i == i]
    return sum(known) / len(known) if known else None


# ---- leaving cases out


def exclude_cases(labels: PathLike, by: str, share: float, out: PathLike, previous: PathLike | None = None) -> list:
    """Write the cases that the filter leaves out to ``out``; returns their names.

    ``by`` ``disagreement``: the mean Dice of the pseudo-labelled classes with the ``previous`` generation's labels is
    lowest; ``confidence``: their mean confidence is. ``share`` of the cases, rounded down; ties go by name.
    """
    current = LabelDirectory.read(labels)
    if by == "disagreement":
        assert previous is not None  # the command asks for them
        before = LabelDirectory.read(previous)
        scores = {i: mean(agreement(current, before, i).values()) for i in sorted(current.known)}
    else:
        scores = {i: mean(_record(current, i)["mean_confidence"].values()) for i in sorted(current.known)}
    # nothing labelled, now or before, is no disagreement
    ranked = sorted(scores, key=lambda i: (1.0 if scores[i] is None else scores[i], i))
    excluded = sorted(ranked[: int(share * len(ranked))])
    write_json({"by": by, "share": share, "excluded": excluded, "scores": scores}, out)
    return excluded


def agreement(labels: LabelDirectory, others: LabelDirectory, case: str) -> dict:
    """Class -> Dice of two label directories on one case, of the classes that are pseudo-labelled."""
    if case not in others.known:
        return {}
    return compare(labels, read_seg(labels, case), read_seg(others, case), case)


def compare(labels: LabelDirectory, seg: np.ndarray, other: np.ndarray, case: str) -> dict:
    """Structure -> Dice of two label maps, of the classes and unions that ``labels`` has pseudo labels of on ``case``."""
    pseudo = items_from_json(_record(labels, case)["pseudo"])
    values = {i: [labels.classes.index(c) + 1 for c in members(i)] for i in pseudo}
    return {name: dice(np.isin(seg, own), np.isin(other, own)) for name, own in values.items()}


def _record(labels: LabelDirectory, case: str) -> dict:
    record = read_record(labels.folder_of(case), case)
    assert record is not None  # its provenance, which was read, lists finished cases alone
    return record


def read_seg(labels: LabelDirectory, case: str) -> np.ndarray:
    """Labels (*S) of one case."""
    return np.asarray(load_labels(labels.folder_of(case), case)[0][:])[0]


# ---- the run


class Run:
    """A run's files, as ``plan.json`` names them."""

    def __init__(self, folder: PathLike):
        self.folder = Path(folder).absolute()
        self.plan = read_json(self.folder / "plan.json", "Give the folder of a run of nnunet_partial atso run.")
        _check_plan(self.plan, self.folder / "plan.json")
        self.options, self.generations = self.plan["options"], self.plan["generations"]
        self.report = self.folder / "report"

    @property
    def classes(self) -> list:
        dataset = read_json(paths.preprocessed_dataset(self.plan["dataset"]) / "dataset.json")["labels"]
        return [i for i in sorted(dataset, key=dataset.get) if i not in ("background", "ignore")]

    def labels(self, generation: Mapping[str, Any]) -> LabelDirectory | None:
        """The pseudo labels that the models of a generation made, if all of them are there."""
        folder = generation["labels"]
        if folder is None or not Path(folder).is_dir():
            return None
        parts = [Path(folder), *(i for i in Path(folder).iterdir() if i.is_dir())]
        if not any((i / "provenance.json").is_file() for i in parts):
            return None
        found = LabelDirectory.read(folder)
        return found if set(found.known) >= set(read_names(self.plan["reference"])) else None

    def model(self, name: str) -> Mapping[str, Any] | None:
        """What ``plan.json`` says of a model."""
        return next((i["models"][name] for i in self.generations if name in i["models"]), None)

    def is_trained(self, model: Mapping[str, Any]) -> bool:
        """Whether a model of the plan has been trained to its end."""
        return paths.final_checkpoint(Path(model["folder"]), self.options["fold"]).is_file()

    @property
    def stages(self) -> Mapping[str, Any]:
        """What the journal says of every stage that has begun."""
        file = self.folder / "journal.json"
        return read_json(file)["stages"] if file.is_file() else {}

    def predictions(self, model: Mapping[str, Any]) -> Path | None:
        """The test predictions of a model, if they are done."""
        folder = model["predictions"] and Path(model["predictions"])
        done = ("predict_from_raw_data_args.json", "fusion.json")  # of one view, of several
        return folder if folder and any((folder / i).is_file() for i in done) else None


def _check_plan(plan: Any, file: Path) -> None:
    """Raises :class:`UserError` unless the names in ``plan.json``, which become names of files, can be that."""
    try:
        names = [plan["dataset"], plan["returned_model"], plan["options"]["plans"], plan["options"]["configuration"]]
        for generation in plan["generations"]:
            names += [str(generation["generation"]), *generation["models"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not the plan of a run of nnunet_partial atso run ({error!r}).") from None
    for name in names:
        check_file_name(name, f"{file}: name")


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV; numbers to six places, what is unknown empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row[i] is None else f"{row[i]:.6f}" if isinstance(row[i], float) else row[i] for i in columns])
    return text.getvalue()


# ---- pseudo labels


def all_changes(run: Run) -> list:
    """A row for each generation, case and pseudo-labelled class. A generation's rows are computed once and kept."""
    rows, first, previous, truth = [], None, None, None
    for generation in run.generations:
        labels = run.labels(generation)
        if labels is None:
            continue
        first = first or labels
        cache = run.report / "cache" / f"generation_{generation['generation']}.json"
        if cache.is_file():
            own = read_json(cache)
        else:
            truth = truth or _truth_reader(run)
            own = _changes(generation["generation"], labels, previous, first, truth)
            write_json(own, cache)
        rows += own
        previous = labels
    return rows


def _changes(name: Any, labels: LabelDirectory, previous: LabelDirectory | None, first: LabelDirectory, truth) -> list:
    rows = []
    for case in sorted(labels.known):
        seg = read_seg(labels, case)
        to_truth = truth(case, labels, seg)
        to_m0 = compare(labels, seg, read_seg(first, case), case)
        to_previous = {} if previous is None else compare(labels, seg, read_seg(previous, case), case)
        rows += [
            {
                "generation": name,
                "case": case,
                "class": i,
                "dice_to_previous": _known(to_previous.get(i)),
                "dice_to_m0": _known(to_m0[i]),
                "dice_to_truth": _known(to_truth.get(i)),
            }
            for i in to_m0
        ]
    return rows


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _truth_reader(run: Run):
    """``(case, labels, seg) -> class -> Dice`` with the truth; of a run without truth, nothing."""
    truth = reference_truth(run)

    def read(case: str, labels: LabelDirectory, seg: np.ndarray) -> dict:
        true = truth(case, labels, seg.shape)
        return {} if true is None else compare(labels, seg, true, case)

    return read


def reference_truth(run: Run) -> Callable[[str, LabelDirectory, Sequence[int]], np.ndarray | None]:
    """``(case, labels, shape)`` -> true labels (*S) on the preprocessed voxels; None of a case, or a run, without truth."""
    folder = run.options["reference_truth"]
    if not folder:
        return lambda case, labels, shape: None
    space = PreprocessedSpace(run)

    def read(case: str, labels: LabelDirectory, shape: Sequence[int]) -> np.ndarray | None:
        file = Path(folder) / f"{case}{space.file_ending}"
        if not file.is_file():
            return None
        return space.seg(file, load_labels(labels.folder_of(case), case)[1], shape)

    return read


class PreprocessedSpace:
    """Brings label files onto the voxels of the preprocessed images, as nnU-Net's preprocessing does with labels."""

    def __init__(self, run: Run):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        file = paths.plans_file(run.plan["dataset"], run.options["plans"])
        content = read_json(file)
        check_plans(content, file, networks=False)
        plans = PlansManager(content)
        self.configuration = plans.get_configuration(run.options["configuration"])
        self.transpose, self.reader = plans.transpose_forward, plans.image_reader_writer_class()
        dataset = read_json(paths.preprocessed_dataset(run.plan["dataset"]) / "dataset.json")
        self.file_ending = dataset["file_ending"]

    def seg(self, file: Path, properties: Mapping[str, Any], shape: Sequence[int]) -> np.ndarray:
        """Labels (*S) of ``file``; ``properties`` are those that preprocessing kept of the case."""
        seg, own = self.reader.read_seg(str(file))
        seg = seg.transpose([0, *[i + 1 for i in self.transpose]])
        seg = seg[(slice(None), *(slice(*i) for i in properties["bbox_used_for_cropping"]))]
        if seg.shape[1:] != tuple(shape):
            spacing = [own["spacing"][i] for i in self.transpose]
            target = [*([spacing[0]] if len(self.configuration.spacing) == 2 else []), *self.configuration.spacing]
            seg = self.configuration.resampling_fn_seg(seg, tuple(shape), spacing, target)
        return np.asarray(seg)[0]


# ---- test images


def all_scores(run: Run, changes: Sequence[Mapping[str, Any]]) -> list:
    """Mean Dice of each class: on R (every generation), and on the test images with truth and with M0 (every model)."""
    rows = []
    for generation in run.generations:
        name = generation["generation"]
        own = [i for i in changes if i["generation"] == name]
        for kind, column in (("reference", "dice_to_truth"), ("reference, to M0", "dice_to_m0")):
            rows += _by_class(run, name, "all", kind, [(i["class"], i[column]) for i in own])
        for model, entry in generation["models"].items():
            for kind, those in model_scores(run, model, entry).items():
                rows += _by_class(run, name, model, kind, [(i["class"], i["dice"]) for i in those])
    return rows


def _by_class(run: Run, generation: Any, model: str, kind: str, pairs: Sequence[tuple]) -> list:
    rows = []
    for name in run.classes:
        values = [value for c, value in pairs if c == name and value is not None]
        if values:
            rows.append(
                {"generation": generation, "model": model, "set": kind, "class": name, "cases": len(values), "dice": mean(values)}
            )
    return rows


def model_scores(run: Run, model: str, entry: Mapping[str, Any]) -> dict:
    """``{"test": [row, ...], "test, to M0": ...}`` of one model, rows of case, class and Dice, computed once and kept."""
    cache = run.report / "cache" / f"scores_{model}.json"
    if cache.is_file():
        return read_json(cache)
    predictions, m0 = run.predictions(entry), run.predictions(run.generations[0]["models"]["m0"])
    if predictions is None:
        return {}
    found = {}
    if run.options["test_labels"]:
        found["test"] = _evaluate(run, predictions, run.options["test_labels"])
    if m0 is not None:
        found["test, to M0"] = _evaluate(run, predictions, m0)
    write_json(found, cache)
    return found


def _evaluate(run: Run, predictions: Path, truth: PathLike) -> list:
    from nnunet_partial.evaluation.evaluate import evaluate_folder

    rows = evaluate_folder(
        predictions,
        truth,
        run.plan["dataset"],
        annotated="all",
        metrics=["dice"],
        progress=False,
        processes=int(os.environ.get("nnUNet_def_n_proc", "1")),
    )
    return [{"case": i["case"], "class": i["class"], "dice": _known(i["dice"])} for i in rows]


# ---- a line a generation


def summarise(run: Run, changes: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> list:
    """One row a generation: means over classes, and over the models of the generation where there are several."""
    rows, trained = [], {i.method: i for i in trained_models(run)}
    for generation in run.generations:
        name = generation["generation"]
        own = [i for i in scores if i["generation"] == name]
        tested = [mean(i["dice"] for i in own if i["model"] == m and i["set"] == "test") for m in generation["models"]]
        row = {
            "generation": name,
            "test_dice": mean(tested),
            "best_test_dice": max((i for i in tested if i is not None), default=None),
            "reference_dice": mean(i["dice"] for i in own if i["set"] == "reference"),
            "dice_to_previous": mean(i["dice_to_previous"] for i in changes if i["generation"] == name),
            "dice_to_m0": mean(i["dice"] for i in own if i["set"] == "reference, to M0"),
            "test_dice_to_m0": mean(i["dice"] for i in own if i["set"] == "test, to M0"),
            "pseudo_dice": mean(pseudo_dice(trained[i]) for i in generation["models"] if i in trained),
        }
        if any(value is not None for key, value in row.items() if key != "generation"):
            rows.append(row)
    return rows


def trained_models(run: Run) -> list:
    """A model of the report (:class:`~nnunet_partial.evaluation.report.inputs.TrainedModel`) for each of the run's that is trained."""
    found = []
    for generation in run.generations:
        for name, entry in generation["models"].items():
            if run.is_trained(entry):
                found += [i for i in read_models(name, entry["folder"]) if i.fold == str(run.options["fold"])]
    return found


def pseudo_dice(model: TrainedModel) -> float | None:
    """nnU-Net's running mean of the Dice on validation patches, where they are annotated, at the end of training."""
    curve = model.curves.get("ema_fg_dice") or [None]
    return curve[-1]


def stage_times(run: Run) -> list:
    """Stage, state and seconds, in the order in which they were begun; the time of a stage that is not over is not known.

    A report does not list itself: it is written while its own stage runs.
    """
    listed = {k: v for k, v in run.stages.items() if v["state"] == DONE or not k.endswith("report")}
    return [
        {"stage": k, "state": v["state"], "seconds": float(v["seconds"]) if v["state"] == DONE else None}
        for k, v in listed.items()
    ]


def commands(run: Run) -> list:
    """The command of every stage, in the order in which they were begun, with the seconds that it took."""
    times = {i["stage"]: i["seconds"] for i in stage_times(run)}
    found = [(k, v["argv"]) for k, v in run.stages.items() if v.get("argv")]
    return [{"command": shlex.join(argv), "seconds": times.get(name)} for name, argv in found]


def logs(run: Run) -> list:
    """``{"step", "log"}`` of every stage."""
    return [{"step": i, "log": str(run.folder / "logs" / f"{i}.log")} for i in run.stages]
