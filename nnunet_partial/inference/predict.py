"""Masks of a dataset's own cases from their preprocessed files: on the scans' voxels, without preprocessing them again.

The prediction is that of :mod:`nnunet_partial.inference.preprocessed`; the way back to the scan's geometry is nnU-Net's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_partial import paths
from nnunet_partial.bars import bar
from nnunet_partial.data.images import ENDINGS, write_segmentation
from nnunet_partial.data.preprocessed.splits import all_cases
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, claim, read_json, sha256, write_json
from nnunet_partial.inference.preprocessed import (
    case_file,
    find_model,
    load_case,
    load_predictor,
    predict_logits,
    preprocessed_images,
    require_case,
)
from nnunet_partial.labels import Annotations
from nnunet_partial.outputs import Records
from nnunet_partial.paths import FINAL_CHECKPOINT

REQUEST = "prediction.json"  # in the folder of the masks: what they are made from


def predict_cases(
    dataset: int | str,
    configuration: str,
    model: PathLike,
    out: PathLike,
    *,
    fold: int | str = 0,
    plans: str = "nnUNetPlans",
    checkpoint: str = FINAL_CHECKPOINT,
    cases: Sequence[str] | None = None,
    mirroring: bool = True,
    device: str = "cpu",
    overwrite: bool = False,
    trusted: bool = False,
    progress: bool = True,
) -> list:
    """Write one mask a case, in its scan's geometry and the dataset's label values; return the cases that were done.

    ``model``      a model folder, of which fold ``fold`` is taken or else fold ``all``; or a fold's own folder. It may
                   know some of the dataset's classes only, as a teacher does, and comes from any trainer
    ``cases``      names (None: every case of the dataset)
    ``overwrite``  do cases again that are in ``out``; without it they are skipped, or an error if made by something else
    ``trusted``    the user vouches for the architecture that the model's plans name
    A case whose preprocessed image has changed since, or whose mask is not what was written, is done again. Raises
    :class:`UserError` for anything missing or unfit, before predicting.
    """
    folder, out = paths.preprocessed_dataset(dataset), Path(out)
    dataset_json = read_json(folder / "dataset.json")
    annotations = Annotations.from_dataset_json(dataset_json, str(folder / "dataset.json"))
    content = read_json(paths.plans_file(folder.name, plans))
    images = preprocessed_images(folder, content, configuration)
    files = find_model(model, fold, annotations.classes, content, configuration, checkpoint, trusted)
    cases = sorted(all_cases(folder, annotations) if cases is None else cases)
    if not cases:
        raise UserError(f"{folder}: there is no case to predict. Correct its splits_final.json, or choose other --cases.")
    for case in cases:
        require_case(images, case)
    ending = dataset_json["file_ending"]
    request = {
        "dataset": folder.name,
        "data_identifier": images.name,
        "model": files.folder.absolute().name,
        "sha256": sha256(files.checkpoint),
        "plans": sha256(files.folder / "plans.json"),
        "classes": list(files.classes),
        "mirroring": mirroring,
    }
    predictor = load_predictor(files, torch.device(device), mirroring)  # raises before anything is written
    claim_masks(out, request, {i: out / (i + ending) for i in cases}, overwrite)
    write_json(
        {k: dataset_json[k] for k in ("channel_names", "labels", "file_ending") if k in dataset_json}, out / "dataset.json"
    )
    records = Records(out)
    sources = {case: {"image": case_file(images, case)} for case in cases}
    todo = [i for i in cases if not records.is_done(i, {}, sources[i], [out / (i + ending)])]
    values = np.array([0, *(annotations.classes.index(i) + 1 for i in files.classes)])
    for case in bar(todo, "predicting", shown=progress, done=len(cases) - len(todo)):
        begun = records.begin(case, {}, sources[case])
        image, _, properties = load_case(images, case)
        _write(predictor, values, predict_logits(predictor, image), properties, out / (case + ending))
        records.end(case, begun, [out / (case + ending)])
    return todo


def claim_masks(
    out: Path, request: Mapping[str, Any], files: Mapping[str, Path], overwrite: bool, ending: str | tuple = ENDINGS
) -> None:
    """Note in ``out`` what masks there are made from, and forget those that are made again.

    ``files``: case -> its mask; ``ending``: how masks end. Raises :class:`UserError` for a folder with anything that this command
    has not made, and, without ``overwrite``, for one with masks that are made from something else.
    """
    masks = [i for i in out.rglob("*") if i.name.lower().endswith(ending) and not i.name.startswith(".")]
    ours = (out / REQUEST).is_file()
    foreign = [*masks, *out.glob("dataset.json")]
    if foreign and not ours:  # truth, for example, or a raw dataset
        raise UserError(f"{out} holds files that this command has not made, such as {foreign[0].name}. Choose another folder.")
    if overwrite and ours:
        same = read_json(out / REQUEST) == request
        made = {} if same else _masks_made(out)
        strange = [] if same else [i for i in masks if i not in made and i not in files.values()]
        if strange:
            raise UserError(f"{strange[0]} is not of this command, which would replace everything there. Choose another folder.")
        for case in {*files, *made.values()}:
            Records(out).forget(case)
        for file in files.values() if same else [*made, *files.values(), out / REQUEST]:
            file.unlink(missing_ok=True)
    claim(out / REQUEST, request, "predictions made from something else")


def _masks_made(out: Path) -> dict:
    """Every mask below ``out`` that this command has noted as done -> its case."""
    records = Records(out)
    return {out / mask: case for case in records.cases() for mask in (records.read(case) or {}).get("outputs", {})}


def _write(predictor, values: np.ndarray, logits: torch.Tensor, properties: Mapping[str, Any], file: Path) -> None:
    """``values``: the dataset's value of each of the model's."""
    mask = labels_of_logits(predictor, logits, properties)
    write_segmentation(values[mask], file, predictor.plans_manager.image_reader_writer_class(), properties)


def labels_of_logits(predictor: Any, logits: torch.Tensor, properties: Mapping[str, Any]) -> np.ndarray:
    """Logits (classes, *S) of a preprocessed case -> its label map on the scan's voxels, in the model's values.

    The way back is nnU-Net's, one class at a time where classes exclude each other (:func:`resampled_labels`).
    """
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    configuration: Any = predictor.configuration_manager
    labels: Any = predictor.label_manager
    if not labels.has_regions:
        configuration, labels = _LabelsForLogits(configuration), _LabelsStay(labels)
    found: Any = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, predictor.plans_manager, configuration, labels, dict(properties), num_threads_torch=torch.get_num_threads()
    )
    return found  # without probabilities, which were not asked for


def resampled_labels(resample: Callable, logits: torch.Tensor, *geometry: Any) -> np.ndarray:
    """The most probable class of every voxel after resampling, the first of equal ones: (C, *S) -> (*S') int16.

    ``resample`` is nnU-Net's function for logits and ``geometry`` its other arguments. It treats every class by itself,
    so the labels are those of all classes resampled together, of which nnU-Net would hold two copies, one in float64 and
    one of the scan's size: tens of gigabytes with TotalSegmentator's 117 classes.
    """
    best = np.array(resample(logits[:1], *geometry)[0])
    labels = np.zeros(best.shape, np.int16)
    for c in range(1, len(logits)):
        value = np.asarray(resample(logits[c : c + 1], *geometry)[0])
        better = value > best
        labels[better], best[better] = c, value[better]
    return labels


class _Wrapped:
    """Everything of ``wrapped`` but for what the subclass has."""

    def __init__(self, wrapped: Any):
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


class _LabelsForLogits(_Wrapped):
    """A configuration of nnU-Net that resamples logits and returns labels."""

    def resampling_fn_probabilities(self, logits: torch.Tensor, *geometry: Any) -> np.ndarray:
        return resampled_labels(self._wrapped.resampling_fn_probabilities, logits, *geometry)


class _LabelsStay(_Wrapped):
    """A label manager of nnU-Net that is given labels where it expects logits."""

    def convert_logits_to_segmentation(self, labels: np.ndarray) -> np.ndarray:
        return labels
