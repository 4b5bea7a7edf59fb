"""Compare folders of predictions with folders of truth, on the classes that each case annotates.

Three questions are kept apart, because in practice the answers come from different places:

* which value is which class in the predictions (the dataset.json that ``nnUNetv2_predict`` leaves beside them),
* which value is which class in the truth (the dataset.json beside or above the truth folder),
* which classes a truth file distinguishes at all (the contract in dataset.json; without it, it is fully labelled).

Classes that a truth file does not tell apart are one structure, their union, with a row of its own; so is a region.

For formats that store no spacing (png, bmp, tif) distances are in pixels, as in nnU-Net.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_partial import _moved, paths
from nnunet_partial.data.grids import read_label_on
from nnunet_partial.data.images import present_values, read_label
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.evaluation.metrics import DEFAULT_TOLERANCE_MM, METRICS, all_metrics
from nnunet_partial.evaluation.results import write_results
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import FULLY_LABELLED_SOURCE, KEY, Annotations, CaseAnnotation, Union, members

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff")
SOURCE_OF_UNLISTED = "unlisted"  # source of a case that the contract does not list

# Tolerances of the surface Dice in the FLARE22 challenge, in mm, under the names that its organs go by.
FLARE22_TOLERANCE_MM = {
    **dict.fromkeys(("liver", "pancreas", "stomach"), 5.0),
    **dict.fromkeys(
        (
            "kidney",
            "kidneys",
            "right kidney",
            "left kidney",
            "kidney right",
            "kidney left",
            "rk",
            "lk",
            "spleen",
            "esophagus",
            "oesophagus",
        ),
        3.0,
    ),
    **dict.fromkeys(
        (
            "aorta",
            "ivc",
            "inferior vena cava",
            "postcava",
            "gallbladder",
            "gall bladder",
            "right adrenal gland",
            "left adrenal gland",
            "adrenal gland right",
            "adrenal gland left",
            "rag",
            "lag",
        ),
        2.0,
    ),
    "duodenum": 7.0,
}


@dataclass(frozen=True)
class LabelMap:
    """What the values of a folder's label files mean. ``values``: class -> its values; ``file`` is what errors name.

    ``annotations`` is the contract, None without one. ``closed``: any other value than the known ones is an error.
    """

    values: Mapping[str, tuple]
    file: str
    ignore: int | None = None
    annotations: Annotations | None = None
    closed: bool = True

    @classmethod
    def of_dataset_json(cls, content: Mapping[str, Any], file: str) -> "LabelMap":
        """From the labels of a dataset.json; a region is a class of several values."""
        labels = content.get("labels")
        if not isinstance(labels, dict) or "background" not in labels:
            raise UserError(
                f"{file}: 'labels' must map 'background' to 0 and every class to its value, found {str(labels)[:80]}."
            )
        values = {
            k: tuple(map(int, v)) if isinstance(v, (list, tuple)) else (int(v),)
            for k, v in labels.items()
            if k not in ("background", "ignore")
        }
        annotations = Annotations.from_dataset_json(content, file) if KEY in content else None
        return cls(values, file, labels.get("ignore"), annotations)

    @classmethod
    def given(cls, assignments: Sequence[str], option: str, classes: Iterable[str]) -> "LabelMap":
        """From ``["liver=5", "kidney=2+3"]`` (or with commas); values that are not named are background."""
        values = {}
        for part in [j for i in assignments for j in i.split(",")]:
            name, _, text = part.partition("=")
            numbers = text.split("+")
            if not name or not all(i.isdigit() and int(i) > 0 for i in numbers) or name in values:
                raise UserError(
                    f"{option} {part}: write each class once, as NAME=VALUE or NAME=VALUE+VALUE, for "
                    f"example {option} liver=5 kidney=2+3"
                )
            if name not in classes:
                raise UserError(
                    f"{option} {part}: {name!r} is not a class of the dataset. {did_you_mean(name, classes)}Classes: {', '.join(classes)}."
                )
            values[name] = tuple(int(i) for i in numbers)
        return cls(values, option, closed=False)

    def check(self, label: np.ndarray, path: Path, case: str | None = None) -> None:
        """Raise UserError for a value that the labels, or the annotated set of ``case``, do not allow."""
        if not self.closed:
            return
        allowed = {0, self.ignore, *(v for values in self.values.values() for v in values)}
        if case is not None and self.annotations is not None and self.lists(case):
            allowed = set(self.annotations.values(case))
        surplus = [i for i in present_values(label) if i not in allowed]
        if surplus:
            on_case = f" for case {case}" if case is not None and self.lists(case) else ""
            raise UserError(
                f"{path} holds the value {surplus[0]}, which {self.file} does not allow{on_case} (allowed: "
                f"{', '.join(str(i) for i in sorted(allowed - {None}))}). Correct the file, or say what "
                f"its values mean: --truth-labels or --pred-labels NAME=VALUE ..."
            )

    def knows(self, name: str) -> bool:
        """Whether the files hold this structure: a class, all classes of a union, or a union as one."""
        return set(members(name)) <= set(self.values) or self.knows_as_one(name)

    def knows_as_one(self, name: str) -> bool:
        """Whether the files have this union as a label of its own: a teacher's ``a+b``, or one of nnU-Net's regions.

        A class may be called as a region is and be but a part of it.
        """
        return name in self.values and ("+" in name or len(self.values[name]) > 1)

    def values_of(self, name: str) -> tuple:
        """The values of a structure that is known; a union has those of its classes."""
        known = set(members(name)) <= set(self.values)
        return tuple(v for i in members(name) for v in self.values[i]) if known else self.values[name]

    def of_case(self, case: str) -> "LabelMap":
        """What a process needs to know for this case: the contract's other cases stay here."""
        if self.annotations is None:
            return self
        cases = {case: self.annotations.of(case)} if self.lists(case) else {}
        known = Annotations(self.annotations.classes, cases, self.annotations.ignore_label, self.annotations.file)
        return replace(self, annotations=known)

    def lists(self, case: str) -> bool:
        """Whether the contract lists this case."""
        return self.annotations is not None and case in (self.annotations.cases or {})

    def annotation(self, case: str) -> CaseAnnotation | None:
        """What the contract says of a case; None for one that it does not list."""
        return self.annotations.of(case) if self.annotations is not None and self.lists(case) else None


@dataclass(frozen=True)
class CaseToScore:
    """One case to evaluate; everything that a process needs, as plain values."""

    case: str
    source: str
    pred: Path
    truth: Path
    classes: tuple
    pred_labels: LabelMap
    truth_labels: LabelMap
    metrics: tuple
    tolerance_mm: Mapping[str, float]


def evaluate_folder(
    pred: PathLike | Sequence[PathLike],
    truth: PathLike,
    dataset: int | str | PathLike,
    out: PathLike | None = None,
    *,
    annotated: str | Sequence[str] = "auto",
    metrics: Sequence[str] = (),
    tolerance_mm: float | Sequence[str] = DEFAULT_TOLERANCE_MM,
    truth_dataset: int | str | PathLike | None = None,
    truth_labels: Sequence[str] = (),
    pred_labels: Sequence[str] = (),
    allow_missing: bool = False,
    processes: int | None = None,
    progress: bool = True,
    command: str | None = None,
    regions: PathLike | Mapping[str, Any] | None = None,
) -> list:
    """Evaluate predictions on annotated classes; one row (dict) a case and class, in the order of cases and classes.

    ``pred`` one folder or several (the validation folders of all folds). ``dataset`` id, name, or a dataset.json: it
    names the classes. ``annotated``: which classes a case's truth distinguishes; ``"auto"`` (the contract of the
    truth's dataset.json; without a contract all its classes), ``"contract"``, ``"all"``, or a list of class names for
    every case. ``metrics`` names of :data:`~nnunet_partial.evaluation.metrics.METRICS`, all by default.
    ``tolerance_mm`` of the surface Dice: a number, or see :func:`parse_tolerances`. ``truth_dataset``,
    ``truth_labels``, ``pred_labels``: what the values mean where no dataset.json lies with the files. ``processes``
    None: all cores. ``command``: how it was called, to be kept with the results. ``regions``: structures made of classes, which
    are evaluated instead of these, see :func:`read_regions`.

    A union that a case's truth does not divide has its own row, called ``a+b``, and counts for neither class. Rows hold ``case``, ``source``, ``class`` and the metrics (NaN: nothing to measure; inf: missed or invented). With
    ``out``, ``metrics.json`` and ``metrics.csv`` are written there. Raises :class:`UserError`.
    """
    content, file = read_dataset_json(dataset)
    classes = tuple(LabelMap.of_dataset_json(content, file).values)
    tolerances = parse_tolerances(tolerance_mm, classes)
    known_pred, known_truth = _label_maps(pred, truth, content, file, truth_dataset, truth_labels, pred_labels)
    known_regions = None if regions is None else read_regions(regions, content, classes)
    plan = plan_cases(_folders(pred), Path(truth), classes, known_pred, known_truth, annotated, allow_missing, known_regions)
    tolerances = {i: _tolerance_mm(i, tolerances) for _, _, _, names in plan.cases for i in names}
    names = check_metrics(metrics)
    jobs = [
        CaseToScore(
            case, source, files[0], files[1], evaluated, known_pred.of_case(case), known_truth.of_case(case), names, tolerances
        )
        for case, source, files, evaluated in plan.cases
    ]
    rows = [row for result in map_cases(evaluate_case, jobs, processes, "evaluating", progress) for row in result]
    if out is not None:
        structures = list(dict.fromkeys(i for _, _, _, names in plan.cases for i in names))
        evaluated = {row["class"] for row in rows}
        about = {
            "dataset": content.get("name", Path(file).parent.name),
            "pred": [os.path.abspath(i) for i in _folders(pred)],
            "truth": os.path.abspath(truth),
            "pred_labels": known_pred.file,
            "truth_labels": known_truth.file,
            "pred_values": {**known_pred.values, **{i: known_pred.values_of(i) for i in structures}},
            "truth_values": {**known_truth.values, **{i: known_truth.values_of(i) for i in structures}},
            "command": command,
            "annotated": annotated if isinstance(annotated, str) else list(annotated),
            "tolerance_mm": {i: tolerances[i] for i in sorted(evaluated, key=list(tolerances).index)},
            **({} if known_regions is None else {"regions": {str(i): list(i.members) for i in known_regions}}),
            "not_evaluated": {k: v for k, v in vars(plan).items() if k != "cases"},
        }
        write_results(rows, out, about)
    return rows


# ---------------------------------------------------------------------------------------------- what is what


def read_dataset_json(dataset: int | str | PathLike) -> tuple:
    """``(content, file)`` of a dataset.json, given as such, as its folder, or as the id or name of a dataset.

    Of a dataset, the raw folder counts, else the preprocessed one.
    """
    path = Path(str(dataset))
    if path.is_dir() and (path / "dataset.json").is_file():
        path = path / "dataset.json"
    if path.suffix == ".json":
        return read_json(path), str(path)
    name = paths.dataset_name(str(dataset))
    files = [
        i / "dataset.json"
        for i in paths.dataset_folders(paths.dataset_number(name), "nnUNet_raw", "nnUNet_preprocessed")
        if i.name == name and (i / "dataset.json").is_file()
    ]
    if not files:
        raise UserError(
            f"dataset {dataset} has no dataset.json in nnUNet_raw or nnUNet_preprocessed. Convert or merge "
            f"it first, or give the path of a dataset.json."
        )
    return read_json(files[0]), str(files[0])


def _label_maps(pred, truth, content, file, truth_dataset, truth_labels, pred_labels) -> tuple:
    """The label maps of the predictions and of the truth: as given, else of a file beside them, else of the dataset."""
    classes = LabelMap.of_dataset_json(content, file).values
    if pred_labels:
        known_pred = LabelMap.given(pred_labels, "--pred-labels", classes)
    else:
        known_pred = _common_label_map([_dataset_json_of_predictions(i) for i in _folders(pred)], content, file)
    if truth_labels and truth_dataset is not None:
        raise UserError("give --truth-labels or --truth-dataset, not both.")
    if truth_labels:
        return known_pred, LabelMap.given(truth_labels, "--truth-labels", classes)
    if truth_dataset is not None:
        return known_pred, LabelMap.of_dataset_json(*read_dataset_json(truth_dataset))
    return known_pred, _common_label_map([_first_file(truth, Path(truth).absolute().parent)], content, file)


def _folders(pred: PathLike | Sequence[PathLike]) -> list:
    return [Path(i) for i in ([pred] if isinstance(pred, (str, os.PathLike)) else pred)]


def _dataset_json_of_predictions(folder: Path) -> Path | None:
    """``nnUNetv2_predict`` leaves it beside the predictions; ``fold_0/validation`` lies two levels below the model."""
    model = folder.absolute().parent.parent
    return _first_file(folder, *([model] if (model / "plans.json").is_file() else []))


def _first_file(*folders: PathLike) -> Path | None:
    return next((Path(i) / "dataset.json" for i in folders if (Path(i) / "dataset.json").is_file()), None)


def _common_label_map(files: Sequence[Path | None], content: Mapping[str, Any], file: str) -> LabelMap:
    maps = [LabelMap.of_dataset_json(*((content, file) if i is None else (read_json(i), str(i)))) for i in files]
    different = [i for i in maps if i.values != maps[0].values]
    if different:
        raise UserError(
            f"{maps[0].file} and {different[0].file} give the classes different values. Evaluate these folders one by one."
        )
    return maps[0]


def parse_tolerances(given: float | str | Sequence[str], classes: Sequence[str]) -> dict:
    """Tolerance of the surface Dice in mm for every class.

    A number for all classes, or a list of: ``NAME=NUMBER`` for a class; ``flare22``, the challenge's own for the organs
    that it names; ``NUMBER`` for all classes that these two leave.
    """
    if isinstance(given, (int, float)):
        given = [str(given)]
    general, named, flare = DEFAULT_TOLERANCE_MM, {}, {}
    for part in [j for i in ([given] if isinstance(given, str) else given) for j in i.split(",")]:
        name, equals, number = part.rpartition("=")
        if part == "flare22":
            flare = {i: FLARE22_TOLERANCE_MM[_spoken(i)] for i in classes if _spoken(i) in FLARE22_TOLERANCE_MM}
        elif equals and name not in classes:
            raise UserError(
                f"--tolerance-mm {part}: {name!r} is not a class. {did_you_mean(name, classes)}Classes: {', '.join(classes)}."
            )
        elif equals:
            named[name] = _positive_mm(number, part)
        else:
            general = _positive_mm(number, part)
    return {**dict.fromkeys(classes, general), **flare, **named}


def _tolerance_mm(name: str, tolerances: Mapping[str, float]) -> float:
    """That of a class; of a union the largest of its classes'."""
    return tolerances[name] if name in tolerances else max(tolerances[i] for i in members(name))


def read_regions(given: PathLike | Mapping[str, Any], content: Mapping[str, Any], classes: Sequence[str]) -> tuple:
    """Regions (:class:`~nnunet_partial.labels.Union` with names of their own) of a JSON file, or of its content.

    ``{"whole": ["edema", "core"], "core": ["core"]}`` by classes of the dataset, or ``{"whole": [1, 2], "core": 2}`` by their
    values in the dataset's dataset.json ``content``; a dataset.json with regions is such a file under its key ``labels``.
    Raises :class:`UserError`.
    """
    where = "--regions" if isinstance(given, Mapping) else f"--regions {given}"
    found = given if isinstance(given, Mapping) else read_json(given)
    found = found.get("labels", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not set(found) - {"background", "ignore"}:
        raise UserError(f'{where} must be {{"REGION": ["CLASS", ...], ...}}, found {str(found)[:80]}.')
    of_value = {}
    for name in classes:
        value = content["labels"][name]
        of_value.update({int(v): name for v in (value if isinstance(value, (list, tuple)) else [value])})
    return tuple(
        Union(_members_of_region(region, value, of_value, classes, where), name=region)
        for region, value in found.items()
        if region not in ("background", "ignore")
    )


def _members_of_region(region: str, value: Any, of_value: Mapping[int, str], classes: Sequence[str], where: str) -> tuple:
    parts = value if isinstance(value, (list, tuple)) else [value]
    names = [of_value.get(i, i) if isinstance(i, int) else i for i in parts]
    unknown = next((i for i in names if i not in classes), None)
    if not names or unknown is not None or len(set(names)) < len(names):
        what = f"{unknown!r}, which is no class or value of the dataset" if unknown is not None else f"{value!r}"
        raise UserError(f"{where}: region {region!r} holds {what}. Write each of its classes once: {', '.join(classes)}.")
    return tuple(names)


def _spoken(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _positive_mm(text: str, part: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--tolerance-mm {part}: write millimetres as 2, a class's own as liver=5, or flare22.")
    return value


def check_metrics(names: Sequence[str]) -> tuple:
    """``names`` in the order of tables, all for none; raises UserError for an unknown one."""
    unknown = [i for i in names if i not in METRICS]
    if unknown:
        raise UserError(
            f"--metrics {unknown[0]}: there is no such metric. {did_you_mean(unknown[0], METRICS)}Metrics: {', '.join(METRICS)}."
        )
    return tuple(i for i in METRICS if i in names or not names)


# ---------------------------------------------------------------------------------------------- which cases


@dataclass(frozen=True)
class Plan:
    """``cases``: (case, source, (prediction, truth), classes). The other lists name cases that are not evaluated.

    ``other_classes``: cases that annotate nothing that the predictions know.
    """

    cases: list
    unlabelled: list
    missing_prediction: list
    missing_truth: list
    other_classes: list


def plan_cases(
    pred: Sequence[Path],
    truth: Path,
    classes: Sequence[str],
    known_pred: LabelMap,
    known_truth: LabelMap,
    annotated: str | Sequence[str] = "auto",
    allow_missing: bool = False,
    regions: Sequence[Union] | None = None,
) -> Plan:
    """Find the files of every case and decide what to evaluate on it, before any image is read."""
    predictions: dict = {}
    for folder in pred:
        files = files_by_case(folder)
        twice = sorted(set(files) & set(predictions))
        if twice:
            raise UserError(f"case {twice[0]} has two predictions, {predictions[twice[0]]} and {files[twice[0]]}. Keep one.")
        predictions.update(files)
    truths = files_by_case(truth)
    if not set(truths) & set(predictions):
        raise UserError(
            f"no case has both a truth in {truth} ({_examples(truths)}) and a prediction in "
            f"{', '.join(map(str, pred))} ({_examples(predictions)}). File names without ending must be "
            f"equal."
        )
    chosen = _chosen_classes(annotated, classes, known_truth, known_pred)
    unlabelled = {  # in order, and quick to look into
        i: None
        for i in truths
        if annotated in ("auto", "contract") and (entry := known_truth.annotation(i)) is not None and not entry.annotated
    }
    missing = [i for i in truths if i not in predictions and i not in unlabelled]
    if missing and not allow_missing:
        raise UserError(
            f"{truth} holds {len(missing)} of {len(truths)} cases without a prediction in "
            f"{', '.join(map(str, pred))}, the first is {missing[0]}. Predict them, or leave them out with "
            f"--allow-missing."
        )
    wanted = {
        i: _annotated_classes(i, annotated, chosen, known_truth) for i in truths if i in predictions and i not in unlabelled
    }
    if regions is not None:
        wanted = {case: _regions_of_case(case, names, regions, known_truth) for case, names in wanted.items()}
    known = {case: tuple(i for i in names if known_pred.knows(i)) for case, names in wanted.items()}
    if not any(known.values()):
        raise UserError(
            f"nothing to evaluate: no case of {truth} annotates a class that {known_pred.file} knows "
            f"({', '.join(known_pred.values)})."
        )
    cases = [
        (case, _source(case, known_truth), (predictions[case], truths[case]), names) for case, names in known.items() if names
    ]
    return Plan(
        cases,
        list(unlabelled),
        missing,
        missing_truth=sorted(set(predictions) - set(truths)),
        other_classes=[case for case, names in known.items() if not names],
    )


def files_by_case(folder: Path) -> dict:
    """case -> file of a folder of label files, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.")
    files: dict = {}
    for name in sorted(os.listdir(folder)):
        ending = next((i for i in ENDINGS if name.endswith(i)), None)
        if ending is None or name.startswith("."):
            continue
        case = name[: -len(ending)]
        if case in files:
            raise UserError(f"case {case} has two files in {folder}: {files[case].name} and {name}. Remove one.")
        files[case] = folder / name
    if not files:
        raise UserError(f"{folder} holds no label files ({', '.join(ENDINGS)}).")
    return files


def _examples(files: Mapping[str, Path]) -> str:
    return ", ".join(list(files)[:2]) + (", ..." if len(files) > 2 else "")


def _chosen_classes(annotated: str | Sequence[str], classes: Sequence[str], known_truth: LabelMap, known_pred: LabelMap) -> tuple:
    """The classes that may be evaluated at all; those that the user names must exist on both sides."""
    if isinstance(annotated, str):
        return tuple(i for i in classes if i in known_truth.values)
    for name in annotated:
        for known, where in (
            (classes, "the dataset"),
            (known_truth.values, known_truth.file),
            (known_pred.values, known_pred.file),
        ):
            if name not in known:
                raise UserError(
                    f"--annotated {name}: there is no such class in {where}. {did_you_mean(name, known)}Classes there: {', '.join(known)}."
                )
    return tuple(i for i in classes if i in annotated)


def _annotated_classes(case: str, annotated: str | Sequence[str], chosen: Sequence[str], known_truth: LabelMap) -> tuple:
    if annotated == "all" or not isinstance(annotated, str):
        return tuple(chosen)
    if annotated not in ("auto", "contract"):
        raise UserError(f"--annotated {annotated}: write auto, contract, all, or names of classes.")
    entry = known_truth.annotation(case)
    if entry is not None:
        return tuple(i for i in entry.annotated if set(members(i)) <= set(chosen))
    if annotated == "auto" and known_truth.annotations is None:
        return tuple(chosen)
    raise UserError(
        f"{known_truth.file} does not say which classes are annotated on case {case}. If the truth is "
        f"fully labelled (a test set), add --annotated all; else name its classes: --annotated "
        f"{' '.join(chosen[:2])}"
    )


def _regions_of_case(case: str, names: Sequence[str], regions: Sequence[Union], known_truth: LabelMap) -> tuple:
    """The regions that a case's truth tells: made of structures ``names`` that it distinguishes, or called as in its file."""
    whole = [r for r in regions if known_truth.annotations is None and known_truth.knows_as_one(r)]
    parts = {r: {c for i in names if set(members(i)) <= set(r.members) for c in members(i)} for r in regions}
    return tuple(r for r in regions if r in whole or parts[r] == set(r.members))


def _source(case: str, known_truth: LabelMap) -> str:
    if known_truth.annotations is None:
        return FULLY_LABELLED_SOURCE
    return known_truth.annotations.of(case).source if known_truth.lists(case) else SOURCE_OF_UNLISTED


# ---------------------------------------------------------------------------------------------- one case


def evaluate_case(job: CaseToScore) -> list:
    """The rows of one case. Raises UserError for files that cannot be read, do not fit, or hold unknown values."""
    pred, geometry = read_label(job.pred)
    truth = read_label_on(job.truth, geometry, job.pred)  # the same voxels along other axes are the same truth
    job.pred_labels.check(pred, job.pred)
    job.truth_labels.check(truth, job.truth, job.case)
    if job.truth_labels.ignore is not None:
        ignored = truth == job.truth_labels.ignore
        pred, truth = np.where(ignored, 0, pred), np.where(ignored, 0, truth)
    spacing_mm = geometry.spacing_mm[::-1]
    boxes = [
        ndimage.find_objects(label, max(j for i in labels.values.values() for j in i))
        for label, labels in ((pred, job.pred_labels), (truth, job.truth_labels))
    ]
    rows = []
    for name in job.classes:
        values = job.pred_labels.values_of(name), job.truth_labels.values_of(name)
        box = _joint_box([*_boxes_of(values[0], boxes[0]), *_boxes_of(values[1], boxes[1])], truth.shape)
        masks = [np.isin(label[box], i) for label, i in zip((pred, truth), values)]
        result = all_metrics(masks[0], masks[1], spacing_mm, job.tolerance_mm[name], job.metrics)
        rows.append({"case": job.case, "source": job.source, "class": str(name), **result})
    return rows


def _boxes_of(values: Sequence[int], boxes: Sequence[tuple | None]) -> list:
    return [boxes[i - 1] for i in values if boxes[i - 1] is not None]


def _joint_box(boxes: Sequence[tuple], shape: tuple) -> tuple:
    """The box around all boxes and a voxel more: a structure of one slice must not look like an image in 2D."""
    if not boxes:
        return tuple(slice(0, 2) for _ in shape)
    return tuple(
        slice(max(0, min(i.start for i in axis) - 1), min(length, max(i.stop for i in axis) + 1))
        for axis, length in zip(zip(*boxes), shape)
    )


__getattr__ = _moved.renamed(__name__, {"CaseJob": "CaseToScore"})
