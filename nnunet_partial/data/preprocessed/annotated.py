"""From the case names of a batch to what is annotated on each of its samples."""

from collections.abc import Sequence

import torch

from nnunet_partial.labels import Annotations


class AnnotatedLookup:
    """Annotated masks of many cases as one table, checked once for all of them."""

    def __init__(self, annotations: Annotations, cases: Sequence[str]):
        self.rows = {case: i for i, case in enumerate(cases)}
        self.table = torch.tensor([annotations.mask(i) for i in cases], dtype=torch.bool)

    def __call__(self, cases: Sequence[str]) -> torch.Tensor:
        """``cases``: the B names in batch order (``batch['keys']``) -> annotated (B, K + 1) bool, background first."""
        return self.table[[self.rows[str(i)] for i in cases]]
