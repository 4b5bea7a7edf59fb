"""A network that knows some of the dataset's classes sees labels numbered anew."""

from collections.abc import Mapping
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import SegOnlyTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset


class RelabelTransform(SegOnlyTransform):
    """Label ``old`` becomes ``label_map[old]``; labels that are not in the map become background; -1 (outside) stays."""

    def __init__(self, label_map: Mapping[int, int]):
        super().__init__()
        self.table = torch.zeros(max(label_map) + 2, dtype=torch.int16)
        self.table[0] = -1
        for old, new in label_map.items():
            self.table[old + 1] = new

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params) -> torch.Tensor:
        known = segmentation.clamp(-1, len(self.table) - 2)
        known = torch.where(segmentation == known, known, 0)
        return self.table[known.long() + 1].to(segmentation.dtype)


def relabel_locations(dataset: nnUNetBaseDataset, label_map: Mapping[int, int], num_classes: int) -> nnUNetBaseDataset:
    """The dataset with its ``class_locations``, from which foreground patches are drawn, under the new labels.

    With an ignore label nnU-Net also keeps a key for "anything annotated", a tuple of all labels.
    """
    load_case: Any = dataset.load_case  # of the abstract class, which is declared to give nothing

    def load_relabelled(identifier):
        data, seg, previous, properties = load_case(identifier)
        locations = {}
        for old, voxels in properties["class_locations"].items():
            new = tuple(range(-1, num_classes + 1)) if isinstance(old, tuple) else label_map.get(old)
            if new is not None and (new not in locations or len(voxels)):  # of classes that became one, one has voxels
                locations[new] = voxels
        return data, seg, previous, {**properties, "class_locations": locations}

    dataset.load_case = load_relabelled  # pyright: ignore[reportAttributeAccessIssue]  # of this dataset alone
    return dataset
