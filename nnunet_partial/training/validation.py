"""Validation that scores a class only on the cases that annotate it.

nnU-Net compares whatever stands in ``fold_N/validation`` with the label files, here and again in
``nnUNetv2_find_best_configuration``. In a label file, organs that are not annotated are background. The predictions in
``validation`` therefore show them as background too: all of nnU-Net's figures are then those of the annotated classes.
The complete predictions are kept beside it in ``validation_all_classes``.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, save_summary_json

from nnunet_partial.data.images import write_segmentation
from nnunet_partial.data.parallel import in_threads
from nnunet_partial.files import atomic_path
from nnunet_partial.labels import Annotations
from nnunet_partial.outputs import require_whole
from nnunet_partial.safe_read import load_npz

ALL_CLASSES_FOLDER = "validation_all_classes"


def annotated_counts(
    logits: torch.Tensor,
    target: torch.Tensor,
    annotated: torch.Tensor,
    ignore_label: int | None,
    count: Callable,
    groups: torch.Tensor | None = None,
    unions: Sequence[Sequence[int]] = (),
) -> dict:
    """True and false positives and false negatives of the K foreground classes, then of the U ``unions``, summed over the
    samples that annotate them.

    logits (B, K + 1, *S); target (B, 1, *S); annotated (B, K + 1) bool; ``count`` is nnU-Net's ``get_tp_fp_fn_tn``.
    On a sample, a class that is not annotated there counts as background, in the prediction as in the label. ``unions`` hold
    the values of their members, lowest first, and ``groups`` (B, K + 1) int says which samples outline them as one. A union
    is a structure of its own: nothing of it counts for its members.
    """
    onehot = torch.zeros(logits.shape, dtype=torch.float16, device=logits.device)
    onehot.scatter_(1, logits.argmax(1, keepdim=True), 1)
    mask = None
    if ignore_label is not None:
        mask = (target != ignore_label).float()
        target = torch.where(target == ignore_label, 0, target)
    tp, fp, fn, _ = count(onehot, target, axes=list(range(2, logits.ndim)), mask=mask)
    foreground = annotated[:, 1:].to(tp.dtype)
    counts = [(value[:, 1:] * foreground).sum(0) for value in (tp, fp, fn)]
    for union in unions:
        assert groups is not None  # who names unions says which samples outline them
        rows = _annotating(groups, union).to(logits.device)
        own = _union_counts(onehot[rows], target[rows], union, None if mask is None else mask[rows])
        counts = [torch.cat((i, j[None].to(i.dtype))) for i, j in zip(counts, own)]
    # float64, which a checkpoint keeps as it is: nnU-Net's running mean then goes on exactly after a resume
    return {name: value.cpu().double().numpy() for name, value in zip(("tp_hard", "fp_hard", "fn_hard"), counts)}


def _annotating(groups: torch.Tensor, union: Sequence[int]) -> torch.Tensor:
    """(B,) bool: the samples of which the classes ``union`` and no others are one group."""
    of_union = groups == min(union)
    return of_union[:, list(union)].all(1) & (of_union.sum(1) == len(union))


def _union_counts(onehot: torch.Tensor, target: torch.Tensor, union: Sequence[int], mask: torch.Tensor | None) -> tuple:
    """True and false positives and false negatives of the union, of a one-hot prediction (B, K + 1, *S) and target (B, 1, *S)."""
    predicted = onehot[:, list(union)].sum(1, keepdim=True) > 0
    true = torch.isin(target, torch.tensor(union, device=target.device, dtype=target.dtype))
    valid = torch.ones_like(true) if mask is None else mask.bool()
    return tuple((i & valid).sum() for i in (predicted & true, predicted & ~true, ~predicted & true))


def metrics_on_annotated(
    annotations: Annotations,
    folder_truth: str,
    folder_predicted: str,
    output_file: str,
    image_reader_writer,
    file_ending: str,
    labels: Sequence[int],
    ignore_label: int | None = None,
    num_processes: int = default_num_processes,
    chill: bool = True,
    label_map: Mapping[int, int] | None = None,
) -> dict:
    """nnU-Net's ``compute_metrics_on_folder`` for partially annotated cases; same arguments after the first.

    ``label_map``: value in the label files -> value that the network predicts, for a network that knows only some of
    the dataset's classes. Predictions in ``folder_predicted`` are replaced by their annotated part, in which a union has the
    value of its lowest class, as in the label files. In what is returned a union has an entry of its own, its key the tuple of
    its values, as nnU-Net keys regions.
    """
    cases = [i[: -len(file_ending)] for i in sorted(os.listdir(folder_predicted)) if i.endswith(file_ending)]
    keep_annotated = partial(_keep_annotated, Path(folder_predicted), file_ending, image_reader_writer)
    in_threads(lambda i: keep_annotated(i, annotations.groups(i)), cases, num_processes)
    with tempfile.TemporaryDirectory() as temporary:
        if label_map is not None:
            copy = tempfile.mkdtemp(dir=temporary)
            _relabelled(folder_truth, copy, cases, file_ending, image_reader_writer, label_map)
            folder_truth = copy
        values = _values_of_unions(annotations)
        if values:
            folder_truth, folder_predicted = (
                _with_unions_apart(annotations, values, i, temporary, cases, file_ending, image_reader_writer)
                for i in (folder_truth, folder_predicted)
            )
            labels = [*labels, *values.values()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # classes without an annotated case have no mean
            compare: Any = compute_metrics_on_folder  # which is declared to take no None
            result = compare(
                folder_truth, folder_predicted, None, image_reader_writer, file_ending, labels, ignore_label, num_processes, chill
            )
            _name_unions(result, annotations, values)
            labels = list(result["mean"])
            # nnU-Net's mean over classes is NaN as soon as one class is annotated nowhere
            result["foreground_mean"] = {
                metric: float(np.nanmean([result["mean"][i][metric] for i in labels])) for metric in result["foreground_mean"]
            }
    with atomic_path(output_file) as temporary_file:
        save_summary_json(result, temporary_file)
    return result


def _values_of_unions(annotations: Annotations) -> dict:
    """union -> a value that no class has, for files that are compared and thrown away."""
    first = len(annotations.classes) + 2  # beyond the ignore label
    return {union: value for value, union in enumerate(annotations.unions, first)}


def _with_unions_apart(
    annotations: Annotations,
    values: Mapping[str, int],
    folder: str,
    temporary: str,
    cases: Sequence[str],
    file_ending: str,
    image_reader_writer,
) -> str:
    """A copy of ``folder`` in which unions have ``values`` instead of that of a class."""
    copy = tempfile.mkdtemp(dir=temporary)
    for case in cases:
        own = {annotations.values_of(i)[0]: values[i] for i in annotations.of(case).annotated if i in values}
        label_map = {i: own.get(i, i) for i in range(len(annotations.classes) + 2)}
        _relabelled(folder, copy, [case], file_ending, image_reader_writer, label_map)
    return copy


def _name_unions(result: dict, annotations: Annotations, values: Mapping[str, int]) -> None:
    """Give the unions in nnU-Net's ``result`` their keys."""
    keys = {value: annotations.values_of(union) for union, value in values.items()}
    result["mean"] = {keys.get(k, k): v for k, v in result["mean"].items()}
    for case in result["metric_per_case"]:
        case["metrics"] = {keys.get(k, k): v for k, v in case["metrics"].items()}


def _relabelled(
    folder: str, copy: str, cases: Sequence[str], file_ending: str, image_reader_writer, label_map: Mapping[int, int]
) -> None:
    """Write the label files of ``cases`` to the folder ``copy`` under other values."""
    for case in cases:
        source, target = (os.path.join(i, case + file_ending) for i in (folder, copy))
        _relabel(source, target, image_reader_writer, label_map)


def _keep_annotated(folder: Path, file_ending: str, image_reader_writer, case: str, groups: Sequence[int]) -> None:
    """Keep the complete prediction of a case in ``validation_all_classes``; leave its annotated part where it was."""
    file = folder / (case + file_ending)
    require_whole(file)  # nnU-Net exports in processes of its own, and SimpleITK says nothing of a full disk
    complete = folder.parent / ALL_CLASSES_FOLDER / file.name
    complete.parent.mkdir(exist_ok=True)
    with atomic_path(complete) as temporary:
        shutil.copyfile(file, temporary)
    segmentation, properties = image_reader_writer.read_seg(str(file))
    group_of = np.zeros(max(len(groups), int(segmentation.max()) + 1), segmentation.dtype)
    group_of[: len(groups)] = groups
    annotated = group_of[segmentation.astype(np.int64)]  # nnU-Net's readers give float32
    if not np.array_equal(annotated, segmentation):
        write_segmentation(annotated[0], file, image_reader_writer, properties)
    probabilities = folder / (case + ".npz")
    if probabilities.is_file():
        _keep_annotated_probabilities(probabilities, groups)


def _keep_annotated_probabilities(file: Path, groups: Sequence[int]) -> None:
    """Background gets the highest probability of all classes that are not annotated, the lowest class of a union that of its
    members, and the others get 0: the argmax, also of an ensemble's single member, is then the annotated part of the complete
    argmax."""
    content = load_npz(file)
    probabilities = content["probabilities"]
    unknown = [i for i, group in enumerate(groups) if i != group]
    if not unknown:
        return
    for group in {groups[i] for i in unknown}:
        probabilities[group] = probabilities[[i for i, own in enumerate(groups) if own == group]].max(0)
    probabilities[unknown] = 0
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, **content)


def _relabel(file: str, output_file: str, image_reader_writer, label_map: Mapping[int, int]) -> None:
    segmentation, properties = image_reader_writer.read_seg(file)
    relabelled = np.zeros(segmentation.shape, dtype=np.uint8 if max(label_map.values(), default=0) < 256 else np.uint16)
    for old, new in label_map.items():
        relabelled[segmentation == old] = new
    write_segmentation(relabelled[0], output_file, image_reader_writer, properties)
