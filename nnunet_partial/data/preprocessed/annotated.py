"""From the case names of a batch to what is annotated on each of its samples."""

from collections.abc import Sequence

import torch

from nnunet_partial.labels import Annotations


class AnnotatedLookup:
    """What many cases annotate as one table, checked once for all of them."""

    def __init__(self, annotations: Annotations, cases: Sequence[str]):
        self.rows = {case: i for i, case in enumerate(cases)}
        self.table = torch.tensor([annotations.mask(i) for i in cases], dtype=torch.bool)
        self._groups = torch.tensor([annotations.groups(i) for i in cases], dtype=torch.int64)

    def __call__(self, cases: Sequence[str]) -> torch.Tensor:
        """``cases``: the B names in batch order (``batch['keys']``) -> the classes that are annotated by themselves
        (B, K + 1) bool, background first."""
        return self.table[self._numbers(cases)]

    def groups(self, cases: Sequence[str]) -> torch.Tensor:
        """The partition that each case tells apart, (B, K + 1) int64: a class's own value, its union's lowest, or 0."""
        return self._groups[self._numbers(cases)]

    def _numbers(self, cases: Sequence[str]) -> list:
        return [self.rows[str(i)] for i in cases]
