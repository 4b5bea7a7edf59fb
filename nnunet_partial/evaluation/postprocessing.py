"""nnU-Net's postprocessing for partially annotated cases: largest components, decided class by class.

nnU-Net first tries the largest component of all classes together. ``fold_N/validation`` shows only what a case annotates,
often one organ, so that this test cannot see that it deletes the other organs of a complete prediction. Here each class is
judged by itself on the cases that annotate it, and classes are never taken together. The files are nnU-Net's own:
``nnUNetv2_apply_postprocessing`` applies them.

:func:`determine_postprocessing` has the arguments of nnU-Net's function of this name. Where this package is installed it
takes the place of nnU-Net's for partially labelled datasets (:mod:`nnunet_partial_autoload`), so that
``nnUNetv2_determine_postprocessing`` and ``nnUNetv2_find_best_configuration`` decide in the same way.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from nnunet_partial.data.parallel import map_cases
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, atomic_path, plain, read_json, write_json
from nnunet_partial.labels import KEY, Annotations
from nnunet_partial.trust import check_dataset_json, check_plans

FILE, SUMMARY = "postprocessing.pkl", "postprocessing.json"


@dataclass(frozen=True)
class Decision:
    """What was found of one class: mean Dice over the ``cases`` that annotate it, before and with the largest component
    alone (NaN if it is neither in the truth nor in a prediction)."""

    name: str
    value: int
    cases: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def chosen(self) -> bool:
        """nnU-Net's rule: the mean Dice rises."""
        return self.after["Dice"] > self.before["Dice"]

    @property
    def result(self) -> Mapping[str, float]:
        """The means that hold after the decision."""
        return self.after if self.chosen else self.before


def is_for_us(dataset_json: PathLike | Mapping[str, Any] | None, folder_predictions: PathLike) -> bool:
    """Whether a dataset.json (a file, its content, or that of the folder) says that some case annotates only a part."""
    content, file = _content(dataset_json, folder_predictions)
    if KEY not in content:
        return False
    annotations = Annotations.from_dataset_json(content, file)
    return any(not all(annotations.mask(case)) for case in annotations.cases or ())


def determine_postprocessing(
    folder_predictions: PathLike,
    folder_ref: PathLike,
    plans_file_or_dict: PathLike | Mapping[str, Any] | None = None,
    dataset_json_file_or_dict: PathLike | Mapping[str, Any] | None = None,
    num_processes: int = 1,
    keep_postprocessed_files: bool = True,
) -> tuple:
    """Decide for every class, write ``postprocessing.pkl``, ``postprocessing.json`` and ``postprocessed/`` as nnU-Net
    does, and return its ``(functions, their arguments)``.

    Raises :class:`UserError` for a folder without predictions, a prediction without truth, or a case that dataset.json
    does not know.
    """
    decisions = decide(folder_predictions, folder_ref, plans_file_or_dict, dataset_json_file_or_dict, num_processes)
    steps = _steps(decisions)
    folder = Path(folder_predictions)
    if keep_postprocessed_files:
        _apply(folder, steps, plans_file_or_dict, dataset_json_file_or_dict, decisions, num_processes)
    with atomic_path(folder / FILE) as temporary, open(temporary, "wb") as handle:
        pickle.dump(steps, handle)
    write_json(_summary(decisions, steps), folder / SUMMARY)
    for decision in decisions:
        print(_line(decision))
    return steps


def decide(
    folder_predictions: PathLike,
    folder_ref: PathLike,
    plans: PathLike | Mapping[str, Any] | None = None,
    dataset_json: PathLike | Mapping[str, Any] | None = None,
    num_processes: int = 1,
    progress: bool = True,
) -> list[Decision]:
    """One :class:`Decision` a class, in the order of the label values. Nothing is written."""
    content, file = _content(dataset_json, folder_predictions)
    annotations = Annotations.from_dataset_json(content, file)
    reader, ending = _reader(plans, folder_predictions), content["file_ending"]
    cases = sorted(i[: -len(ending)] for i in os.listdir(folder_predictions) if i.endswith(ending) and not i.startswith("."))
    if not cases:
        raise UserError(f"{folder_predictions} holds no prediction CASE{ending}.")
    jobs = []
    for case in cases:
        files = [str(Path(i) / f"{case}{ending}") for i in (folder_predictions, folder_ref)]
        if not os.path.isfile(files[1]):
            raise UserError(f"{files[1]} does not exist; {files[0]} has no truth. Give the folder of its label files.")
        jobs.append((*files, reader, _own_values(annotations, case), annotations.ignore_label))
    found = map_cases(_compare_case, jobs, num_processes, "largest components", progress)
    return [_decision(annotations, value, found) for value in range(1, len(annotations.classes) + 1)]


def _own_values(annotations: Annotations, case: str) -> tuple:
    """Values that the case shows by themselves; of what it does not tell apart nothing is learnt."""
    annotated = annotations.of(case).annotated
    return tuple(value for value, name in enumerate(annotations.classes, 1) if name in annotated)


def _compare_case(job: tuple) -> dict[int, tuple]:
    """Annotated value -> nnU-Net's metrics (before, with the largest component alone)."""
    prediction_file, truth_file, reader, values, ignore_label = job
    prediction, truth = reader.read_seg(prediction_file)[0][0], reader.read_seg(truth_file)[0][0]
    if prediction.shape != truth.shape:
        raise UserError(
            f"{prediction_file} has {prediction.shape} voxels, {truth_file} {truth.shape}. Predict the case again from the "
            "image that the label file belongs to."
        )
    ignored = None if ignore_label is None else truth == ignore_label
    keep = _nnunet().remove_all_but_largest_component_from_segmentation
    return {i: tuple(_metrics(truth == i, j == i, ignored) for j in (prediction, keep(prediction, i))) for i in values}


def _metrics(truth: np.ndarray, prediction: np.ndarray, ignored: np.ndarray | None) -> dict[str, float]:
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn

    tp, fp, fn, tn = (int(i) for i in compute_tp_fp_fn_tn(truth, prediction, cast(np.ndarray, ignored)))  # None, too
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (tp + union) if union else float("nan"),
        "IoU": tp / union if union else float("nan"),
        **{"FP": fp, "TP": tp, "FN": fn, "TN": tn, "n_pred": fp + tp, "n_ref": fn + tp},
    }


def _decision(annotations: Annotations, value: int, found: Sequence[Mapping[int, tuple]]) -> Decision:
    pairs = [i[value] for i in found if value in i]
    empty = dict.fromkeys(("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref"), float("nan"))
    before, after = ([i[k] for i in pairs] or [empty] for k in (0, 1))
    return Decision(annotations.classes[value - 1], value, len(pairs), _means(before), _means(after))


def _means(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over cases; NaN counts nowhere, as in nnU-Net."""
    result = {}
    for name in metrics[0]:
        values = [i[name] for i in metrics if not np.isnan(i[name])]
        result[name] = float(np.mean(values)) if values else float("nan")
    return result


def _steps(decisions: Sequence[Decision]) -> tuple:
    """What nnU-Net applies, one after the other: its own function with the value of each chosen class."""
    keep = _nnunet().remove_all_but_largest_component_from_segmentation
    chosen = [i for i in decisions if i.chosen]
    return [keep] * len(chosen), [{"labels_or_regions": i.value} for i in chosen]


def _apply(
    folder: Path,
    steps: tuple,
    plans: PathLike | Mapping[str, Any] | None,
    dataset_json: PathLike | Mapping[str, Any] | None,
    decisions: Sequence[Decision],
    processes: int,
) -> None:
    out = folder / "postprocessed"
    if out.is_dir():
        shutil.rmtree(out)
    # nnU-Net adds the slash between folder and file itself, and reads both descriptions from the folder by default
    _nnunet().apply_postprocessing_to_folder(str(folder), str(out), *steps, plans, dataset_json, processes)
    means = {str(i.value): i.result for i in decisions}
    write_json(
        plain({"foreground_mean": _means(list(means.values())), "mean": means, "metric_per_case": []}), out / "summary.json"
    )


def _summary(decisions: Sequence[Decision], steps: tuple) -> dict:
    """nnU-Net's postprocessing.json, and on how many cases each class was judged."""
    parts: dict = {}
    for name, of in (("input_folder", lambda i: i.before), ("postprocessed", lambda i: i.result)):
        means = {str(i.value): of(i) for i in decisions}
        parts[name] = {"foreground_mean": _means(list(means.values())), "mean": means}
    return plain(
        {
            **parts,
            "postprocessing_fns": [i.__name__ for i in steps[0]],
            "postprocessing_kwargs": steps[1],
            "judged_on_cases": {i.name: i.cases for i in decisions},
        }
    )


def _line(decision: Decision) -> str:
    if not decision.cases:
        return f"{decision.name}: left as it is, no case of this folder annotates it"
    what = "largest component alone" if decision.chosen else "left as it is"
    before, after = decision.before["Dice"], decision.after["Dice"]
    return f"{decision.name}: {what}; Dice {before:.4f}, with the largest component alone {after:.4f} ({decision.cases} cases)"


def _content(dataset_json: PathLike | Mapping[str, Any] | None, folder: PathLike) -> tuple:
    if isinstance(dataset_json, Mapping):
        return dataset_json, "dataset.json"
    file = Path(folder) / "dataset.json" if dataset_json is None else Path(dataset_json)
    return read_json(file, "Give the dataset.json of the model."), str(file)


def _reader(plans: PathLike | Mapping[str, Any] | None, folder: PathLike) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = Path(folder) / "plans.json" if plans is None or isinstance(plans, Mapping) else plans
    content = plans if isinstance(plans, Mapping) else read_json(file, "Give the plans.json of the model.")
    check_plans(content, file, networks=False)  # nothing but the reader is taken from them
    return PlansManager(dict(content)).image_reader_writer_class()


def _nnunet() -> Any:
    from nnunetv2.postprocessing import remove_connected_components

    return remove_connected_components


# ---- the folds of a model


def determine_for_model(model: PathLike, folds: Sequence[int | str], num_processes: int = 1) -> Path:
    """Gather the validation predictions of a model's folds as ``nnUNetv2_find_best_configuration`` does, decide on them,
    and return the path of ``postprocessing.pkl``.

    For a dataset whose cases all annotate every class nnU-Net decides. Raises :class:`UserError` for a fold without
    validation.
    """
    from nnunetv2.evaluation.accumulate_cv_results import accumulate_cv_results
    from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

    model, folds = Path(model), tuple(folds)
    content = read_json(model / "dataset.json", "A model folder holds it.")
    check_dataset_json(content, model / "dataset.json")
    check_plans(read_json(model / "plans.json", "A model folder holds it."), model / "plans.json", networks=False)
    for fold in folds:
        validation = model / f"fold_{fold}" / "validation"
        if not validation.is_dir() or not any(i.name.endswith(content["file_ending"]) for i in validation.iterdir()):
            raise UserError(f"{validation} holds no predictions. Train the fold to its end, or run nnUNetv2_train with --val.")
    for_nnunet = cast(tuple[int, ...], folds)  # it takes "all", too
    merged = model / f"crossval_results_folds_{folds_tuple_to_string(for_nnunet)}"
    accumulate_cv_results(str(model), str(merged), for_nnunet, num_processes, True)
    _decide_as_fits(merged, truth_folder(model), num_processes)
    return merged / FILE


def _decide_as_fits(folder: Path, truth: Path, processes: int) -> None:
    nnunet: Callable = _nnunet().determine_postprocessing
    ours = is_for_us(None, folder)
    function: Callable = determine_postprocessing if ours else getattr(nnunet, "__wrapped__", nnunet)
    function(str(folder), str(truth), None, None, processes, True)


def truth_folder(model: PathLike) -> Path:
    """nnU-Net's copies of the label files of the dataset that a model was trained on."""
    from nnunet_partial import paths

    name = read_json(Path(model) / "plans.json", "A model folder holds it.")["dataset_name"]
    return paths.preprocessed_dataset(name) / "gt_segmentations"


def determine_for_folder(predictions: PathLike, truth: PathLike, num_processes: int = 1) -> Path:
    """The same for a folder of predictions of cases of the dataset, with its dataset.json and plans.json."""
    if not os.path.isdir(predictions):
        raise UserError(f"{predictions} is not a folder.")
    _decide_as_fits(Path(predictions), Path(truth), num_processes)
    return Path(predictions) / FILE
