"""Pseudo labels as images that every viewer opens: label maps on the scans' own voxels, the way back that predictions take."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nnunet_partial import paths
from nnunet_partial.bars import bar
from nnunet_partial.data.images import write_segmentation
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory, load_labels
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, write_json
from nnunet_partial.inference.predict import claim_masks, labels_of_logits
from nnunet_partial.outputs import Records


def write_label_images(
    folder: PathLike,
    out: PathLike,
    configuration: str,
    plans: str = "nnUNetPlans",
    overwrite: bool = False,
    progress: bool = True,
) -> list:
    """Write ``out/CASE`` for every case of a finished label directory, in the dataset's format and values; returns the cases.

    Voxels that nobody vouches for (an ignore label, ``--min-confidence``) are 0. Cases that are there are skipped, unless their
    labels have changed; files made from other labels are an error, or with ``overwrite`` made again.
    """
    labels, out = LabelDirectory.read(folder, "Make it with nnunet_partial pseudo-label."), Path(out)
    preprocessed = paths.preprocessed_dataset(labels.dataset)
    content, dataset_json = read_json(paths.plans_file(labels.dataset, plans)), read_json(preprocessed / "dataset.json")
    way_back = _way_back(content, configuration, dataset_json, labels.data_identifier)
    ending, cases = dataset_json["file_ending"], sorted(labels.known)
    files = {i: out / (i + ending) for i in cases}
    claim_masks(out, {"dataset": labels.dataset, "labels": str(labels.folder.absolute())}, files, overwrite)
    kept = {k: dataset_json[k] for k in ("channel_names", "labels", "file_ending")}
    write_json(kept, out / "dataset.json")
    records, made = Records(out), []
    for case in bar(cases, "writing images of the labels", shown=progress):
        source = {"labels": labels.folder_of(case) / f"{case}_seg.b2nd"}
        if records.is_done(case, {}, source, [files[case]]):
            continue
        begun = records.begin(case, {}, source)
        seg, properties = load_labels(labels.folder_of(case), case)
        mask = labels_of_logits(way_back, _as_logits(np.asarray(seg[0]), len(labels.classes)), properties)
        write_segmentation(mask, files[case], way_back.plans_manager.image_reader_writer_class(), properties)
        records.end(case, begun, [files[case]])
        made.append(case)
    return made


def _way_back(plans: dict, configuration: str, dataset_json: dict, identifier: str) -> Any:
    """What :func:`labels_of_logits` reads of a predictor."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    paths.require_configuration(plans, configuration)
    manager = PlansManager(plans)
    found = manager.get_configuration(configuration)
    if found.data_identifier != identifier:
        raise UserError(
            f"the labels are of {identifier}, {configuration} of plans {manager.plans_name} has {found.data_identifier}."
        )
    return SimpleNamespace(
        plans_manager=manager, configuration_manager=found, label_manager=manager.get_label_manager(dataset_json)
    )


def _as_logits(label: np.ndarray, classes: int) -> torch.Tensor:
    """Label map (*S) -> (classes + 1, *S) float16, 1 where the class is and 0 elsewhere; what is no class is background."""
    values = torch.from_numpy(np.where((label > 0) & (label <= classes), label, 0).astype(np.int64))
    return torch.stack([values == i for i in range(classes + 1)]).half()
