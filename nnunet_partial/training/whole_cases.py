"""Dice of a network on whole validation cases, at the planned spacing: what a method chooses between its networks by.

nnU-Net's own running figure is of random patches. This is of the cases as they are preprocessed, predicted by nnU-Net's sliding
window without mirroring; nothing is resampled or written, so it costs a fraction of the final validation.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import nn

from nnunet_partial.labels import Annotations
from nnunet_partial.networks.heads import can_switch_deep_supervision
from nnunet_partial.networks.onednn import onednn_convolutions
from nnunet_partial.networks.predictor import make_predictor
from nnunet_partial.networks.unwrap import unwrap


def dice_of_cases(trainer: Any, network: nn.Module, cases: Sequence[str], annotations: Annotations) -> dict:
    """Case -> structure that the case annotates -> Dice of ``network`` (0 to 1; NaN: neither there nor predicted).

    ``trainer`` gives plans, device and preprocessed cases. Voxels to be ignored do not count.
    """
    plain, found = unwrap(network), {}
    with _predicting(plain), onednn_convolutions(plain):
        predictor = _predictor(trainer, plain)
        for case, data, target in _loaded(trainer, cases):
            segmentation = predictor.predict_sliding_window_return_logits(data).argmax(0).cpu().numpy()
            valid = target != trainer.ignored_value if trainer.ignored_value is not None else np.ones(target.shape, bool)
            structures = {i: annotations.values_of(i) for i in annotations.of(case).annotated}
            found[case] = {name: _dice(segmentation, target, values, valid) for name, values in structures.items()}
    return found


def mean_dice(of_cases: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over structures of the mean over the cases that annotate them; NaN where nothing was measured."""
    structures = sorted({name for own in of_cases.values() for name in own})
    values = [[own[name] for own in of_cases.values() if name in own and np.isfinite(own[name])] for name in structures]
    means = [float(np.mean(i)) for i in values if i]
    return float(np.mean(means)) if means else float("nan")


def _dice(segmentation: np.ndarray, target: np.ndarray, values: Iterable[int], valid: np.ndarray) -> float:
    own = list(values)
    predicted, true = np.isin(segmentation, own) & valid, np.isin(target, own) & valid
    size = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / size if size else float("nan")


def _predictor(trainer: Any, network: nn.Module) -> nnUNetPredictor:
    predictor = make_predictor(trainer.device, mirroring=False)
    plans, configuration, dataset_json = trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json
    predictor.manual_initialization(network, plans, configuration, None, dataset_json, type(trainer).__name__, None)
    return predictor


def _loaded(trainer: Any, cases: Sequence[str]) -> Iterator[tuple]:
    """(case, image (channels, *S) with a previous stage's classes after it, label (*S)) of each case."""
    before = trainer.folder_with_segs_from_previous_stage
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases), folder_with_segs_from_previous_stage=before)
    for case in dataset.identifiers:
        image, target, previous, _ = dataset.load_case(case)
        image = np.array(image[:], dtype=np.float32)
        if trainer.is_cascaded:
            classes = trainer.label_manager.foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], classes, output_dtype=image.dtype)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as nnU-Net does, of arrays that cannot be written to
            yield case, torch.from_numpy(image), np.asarray(target[0])


@contextmanager
def _predicting(network: Any) -> Iterator[None]:
    """In evaluation mode and with its full resolution alone, for as long as the context lasts."""
    decoder = network.decoder if can_switch_deep_supervision(network) else None
    training, deep = network.training, None if decoder is None else decoder.deep_supervision
    network.eval()
    if decoder is not None:
        decoder.deep_supervision = False
    try:
        yield
    finally:
        network.train(training)
        if decoder is not None:
            decoder.deep_supervision = deep
