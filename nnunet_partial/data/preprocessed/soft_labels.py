"""Soft labels: how probable each predicted class is at every voxel, beside the labels of a label directory.

``<case>_soft.b2nd`` is uint8 of shape (channels, *S), 255 = 1: one channel for each class of each model, model after model, all
of them on every case. What a model leaves to background is what is missing to 255. ``provenance.json`` lists the models'
classes under ``soft``. In training they are cropped and augmented with the image, as batchgeneratorsv2's
``regression_target``, and stand where teachers would (Eqs. 3 to 6 of :mod:`nnunet_partial.losses.ms_kd`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.preprocessed.label_directory import SOFT, LabelDirectory
from nnunet_partial.data.preprocessed.pools import PoolDataLoader
from nnunet_partial.errors import UserError
from nnunet_partial.labels import items_from_json, members
from nnunet_partial.safe_read import open_array

ONE = 255  # probability 1


def quantised(logits: torch.Tensor, slab: int = 16) -> np.ndarray:
    """Logits (1 + n, *S) of a model, background first -> its n classes' probabilities (n, *S) uint8.

    ``slab`` voxels along the first axis are computed at a time. A probability is off by 1 / 510 at most.
    """
    soft = np.empty((len(logits) - 1, *logits.shape[1:]), np.uint8)
    for start in range(0, logits.shape[1], slab):
        part = slice(start, start + slab)
        soft[:, part] = torch.softmax(logits[:, part].float(), 0)[1:].mul_(ONE).round_().to(torch.uint8).numpy()
    return soft


def log_probabilities(soft: torch.Tensor) -> torch.Tensor:
    """Soft labels (B, n, *S) uint8 of one model -> log probabilities (B, n + 1, *S) float32, background first: what its logits
    would be. Where rounding has made the classes more than 1, they share 1 in the same proportions."""
    classes = soft.float()
    background = (ONE - classes.sum(1, keepdim=True)).clamp_min_(0)
    probabilities = torch.cat((background, classes), 1)
    return probabilities.div_(probabilities.sum(1, keepdim=True)).log_()


@dataclass(frozen=True)
class SoftLabels:
    """The soft labels of a label directory. ``models``: the classes, and unions of classes, of each model's channels."""

    directory: LabelDirectory
    models: tuple

    @classmethod
    def of(cls, directory: LabelDirectory, remedy: str = "") -> "SoftLabels":
        """Raises :class:`UserError` with ``remedy`` for a directory without soft labels."""
        if not directory.soft:
            raise UserError(f"label directory {directory.folder} has no soft labels. {remedy}")
        models: tuple = ()
        try:
            models = tuple(items_from_json(i) for i in directory.soft)
            known = all(models) and {c for i in models for item in i for c in members(item)} <= set(directory.classes)
        except TypeError:  # whatever else JSON can hold
            known = False
        if not known:
            raise UserError(f"{directory.folder}: its provenance lists soft labels of what is no class of it. {remedy}")
        return cls(directory, models)

    @property
    def channels(self) -> int:
        """How many there are."""
        return sum(len(i) for i in self.models)

    def load(self, case: str) -> Any:
        """(channels, *S) uint8, left on disk until it is indexed. Raises :class:`UserError` for a file of another kind."""
        file = Path(self.directory.folder_of(case)) / f"{case}{SOFT}"
        array = open_array(file)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] != self.channels:
            raise UserError(
                f"{file} is {array.dtype} of shape {array.shape}, expected uint8 with {self.channels} channels. Make the label "
                "directory again."
            )
        return array

    def require_cases(self, cases: Sequence[str], remedy: str = "") -> None:
        """Raises :class:`UserError` for the first case without soft labels, or whose file cannot be read."""
        for case in cases:
            if case not in self.directory.known:
                raise UserError(f"label directory {self.directory.folder} has no labels of the training case {case}. {remedy}")
            folder = self.directory.folder_of(case)
            what = f"soft labels of case {case} in {folder}"
            label_directory.require_last_voxel(lambda case=case: self.load(case), what, folder, remedy)

    def split(self, soft: torch.Tensor) -> tuple:
        """The channels (B, channels, *S) of all models -> those of each."""
        return soft.split([len(i) for i in self.models], 1)


class SoftDataLoader(PoolDataLoader):
    """A loader whose batches also hold ``soft`` (B, channels, *S) uint8 if its dataset has an attribute ``soft``
    (:class:`SoftLabels`), cropped and augmented as the image is."""

    def __init__(self, data: Any, *args: Any, transforms: Any = None, **kwargs: Any):
        super().__init__(data, *args, transforms=transforms, **kwargs)
        self.soft: SoftLabels | None = getattr(data, "soft", None)
        if self.soft is not None:
            self.augment, self.transforms = transforms, self._with_soft_labels

    def generate_train_batch(self) -> dict:
        batch = super().generate_train_batch()
        return batch if self.soft is None else {**batch, "soft": torch.stack(self._samples)}

    def get_indices(self):
        self._keys, self._samples = super().get_indices(), []
        return self._keys

    def get_bbox(self, data_shape, *args: Any, **kwargs: Any):
        """nnU-Net asks for the box of one sample after another, and augments each before it asks for the next."""
        lower, upper = super().get_bbox(data_shape, *args, **kwargs)
        if self.soft is not None:
            case = str(self._keys[len(self._samples)])
            soft = self.soft.load(case)
            if tuple(soft.shape[1:]) != tuple(data_shape):
                raise UserError(
                    f"the soft labels of case {case} have shape {tuple(soft.shape[1:])}, the preprocessed image "
                    f"{tuple(data_shape)}: it was preprocessed again since. Make the label directory again."
                )
            self._cropped = torch.from_numpy(crop_and_pad_nd(soft, [list(i) for i in zip(lower, upper)], 0))
        return lower, upper

    def _with_soft_labels(self, image: torch.Tensor, segmentation: torch.Tensor) -> Mapping[str, Any]:
        cropped = self._cropped[:, 0] if self.patch_size_was_2d else self._cropped
        sample = {"image": image, "segmentation": segmentation, "regression_target": cropped.float()}
        sample = sample if self.augment is None else self.augment(**sample)
        self._samples.append(sample["regression_target"].round_().clamp_(0, ONE).to(torch.uint8))
        return sample
