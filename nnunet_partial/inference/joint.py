"""Pseudo labels of several models that all know the same classes, such as the three views of Huo et al. 2021, by one rule."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from nnunet_partial.inference.preprocessed import restricted_probabilities
from nnunet_partial.inference.rules import Fusion
from nnunet_partial.labels import Union


class JointLabels:
    """Takes the logits of one model after another.

    ``rule``      one of :data:`~nnunet_partial.inference.rules.RULES`
    ``lacking``   the structures that may be anywhere, beside background
    ``outlines``  union -> (*S) bool: within it only the members of the union may be
    ``groups``    super-class of each of ``lacking``, from 1; None without super-classes
    ``value``     structure -> its value in the labels
    """

    def __init__(
        self,
        rule: str,
        lacking: Sequence[str],
        outlines: Mapping[Union, np.ndarray],
        groups: Sequence[int] | None,
        value: Callable[[str], int],
    ):
        self.lacking, self.outlines, self.value = lacking, {k: v for k, v in outlines.items() if v.any()}, value
        self.everywhere = Fusion(rule, None if groups is None else [0, *groups])
        self.inside = {union: Fusion(rule) for union in self.outlines}

    def add(self, classes: Sequence[str], logits: torch.Tensor) -> None:
        """``logits`` (1 + n, *S) of one model, background first, then its n ``classes``."""
        self.everywhere.add(restricted_probabilities(logits, [classes.index(i) + 1 for i in self.lacking]))
        for union, inside in self.outlines.items():
            rows, mask = [classes.index(i) + 1 for i in union.members], torch.from_numpy(inside)
            self.inside[union].add(torch.softmax(torch.stack([logits[i][mask] for i in rows]).float(), 0).numpy())

    def result(self) -> tuple:
        """``(labels (*S) int16, probability (*S) float32 of each voxel's label, background included)``."""
        index, probability = self.everywhere.result()
        labels = np.array([0, *(self.value(i) for i in self.lacking)], np.int16)[index]
        for union, inside in self.outlines.items():
            index, probability[inside] = self.inside[union].result()
            labels[inside] = np.array([self.value(i) for i in union.members], np.int16)[index]
        return labels, probability
