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
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, save_summary_json

from nnunet_partial.data.images import write_segmentation
from nnunet_partial.files import atomic_path
from nnunet_partial.labels import Annotations
from nnunet_partial.outputs import require_whole
from nnunet_partial.safe_read import load_npz

ALL_CLASSES_FOLDER = "validation_all_classes"


def annotated_counts(
    logits: torch.Tensor, target: torch.Tensor, annotated: torch.Tensor, ignore_label: int | None, count: Callable
) -> dict:
    """True and false positives and false negatives of the K foreground classes, summed over the samples that annotate them.

    logits (B, K + 1, *S); target (B, 1, *S); annotated (B, K + 1) bool; ``count`` is nnU-Net's ``get_tp_fp_fn_tn``.
    On a sample, a class that is not annotated there counts as background, in the prediction as in the label.
    """
    onehot = torch.zeros(logits.shape, dtype=torch.float16, device=logits.device)
    onehot.scatter_(1, logits.argmax(1, keepdim=True), 1)
    mask = None
    if ignore_label is not None:
        mask = (target != ignore_label).float()
        target = torch.where(target == ignore_label, 0, target)
    tp, fp, fn, _ = count(onehot, target, axes=list(range(2, logits.ndim)), mask=mask)
    foreground = annotated[:, 1:].to(tp.dtype)
    # float64, which a checkpoint keeps as it is: nnU-Net's running mean then goes on exactly after a resume
    return {
        name: (value[:, 1:] * foreground).sum(0).cpu().double().numpy()
        for name, value in (("tp_hard", tp), ("fp_hard", fp), ("fn_hard", fn))
    }


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
    the dataset's classes. Predictions in ``folder_predicted`` are replaced by their annotated part.
    """
    cases = [i[: -len(file_ending)] for i in sorted(os.listdir(folder_predicted)) if i.endswith(file_ending)]
    keep_annotated = partial(_keep_annotated, Path(folder_predicted), file_ending, image_reader_writer)
    with ThreadPool(min(num_processes, len(cases))) as pool:  # reading and writing: threads start in no time
        pool.starmap(keep_annotated, [(i, annotations.values(i)) for i in cases])
    with tempfile.TemporaryDirectory() as temporary:
        if label_map is not None:
            for case in cases:
                _relabel(
                    os.path.join(folder_truth, case + file_ending),
                    os.path.join(temporary, case + file_ending),
                    image_reader_writer,
                    label_map,
                )
            folder_truth = temporary
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # classes without an annotated case have no mean
            result = compute_metrics_on_folder(
                folder_truth, folder_predicted, None, image_reader_writer, file_ending, labels, ignore_label, num_processes, chill
            )
            # nnU-Net's mean over classes is NaN as soon as one class is annotated nowhere
            result["foreground_mean"] = {
                metric: float(np.nanmean([result["mean"][i][metric] for i in labels])) for metric in result["foreground_mean"]
            }
    with atomic_path(output_file) as temporary_file:
        save_summary_json(result, temporary_file)
    return result


def _keep_annotated(folder: Path, file_ending: str, image_reader_writer, case: str, values: Sequence[int]) -> None:
    """Keep the complete prediction of a case in ``validation_all_classes``; leave its annotated part where it was."""
    file = folder / (case + file_ending)
    require_whole(file)  # nnU-Net exports in processes of its own, and SimpleITK says nothing of a full disk
    complete = folder.parent / ALL_CLASSES_FOLDER / file.name
    complete.parent.mkdir(exist_ok=True)
    with atomic_path(complete) as temporary:
        shutil.copyfile(file, temporary)
    segmentation, properties = image_reader_writer.read_seg(str(file))
    annotated = np.where(np.isin(segmentation, values), segmentation, 0)
    if not np.array_equal(annotated, segmentation):
        write_segmentation(annotated[0], file, image_reader_writer, properties)
    probabilities = folder / (case + ".npz")
    if probabilities.is_file():
        _keep_annotated_probabilities(probabilities, values)


def _keep_annotated_probabilities(file: Path, values: Sequence[int]) -> None:
    """Background gets the highest probability of all classes that are not annotated, they get 0: the argmax, also of an
    ensemble's single member, is then the annotated part of the complete argmax."""
    content = load_npz(file)
    probabilities = content["probabilities"]
    unknown = [i for i in range(len(probabilities)) if i not in values]
    if not unknown:
        return
    probabilities[0] = probabilities[[0, *unknown]].max(0)
    probabilities[unknown] = 0
    with atomic_path(file) as temporary:
        np.savez_compressed(temporary, **content)


def _relabel(file: str, output_file: str, image_reader_writer, label_map: Mapping[int, int]) -> None:
    segmentation, properties = image_reader_writer.read_seg(file)
    relabelled = np.zeros(segmentation.shape, dtype=np.uint8 if max(label_map.values(), default=0) < 256 else np.uint16)
    for old, new in label_map.items():
        relabelled[segmentation == old] = new
    write_segmentation(relabelled[0], output_file, image_reader_writer, properties)
