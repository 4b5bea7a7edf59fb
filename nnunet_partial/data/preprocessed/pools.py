"""Batches whose samples come from several pools of cases in fixed shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_partial.labels import Annotations


@dataclass(frozen=True)
class Pools:
    """``pools``: groups of cases, in which a case may stand more than once. Sample i of a batch is drawn from pool i modulo
    their number, so that pools have equal shares.

    Over several devices ``first`` is the number of this device's first sample in the whole batch of ``batch_size``. The
    samples of a last, incomplete round come from pools drawn at random. ``weights``: case -> how often it is drawn, beside
    the others of its pool; None, or weights of 0 alone: all alike.
    """

    pools: Sequence[Sequence[str]]
    batch_size: int
    first: int = 0
    weights: Mapping[str, float] | None = None

    def draw(self, number: int) -> np.ndarray:
        """Names of ``number`` cases, from numpy's global generator, as nnU-Net draws them."""
        pools = [self._pool(self.first + i) for i in range(number)]
        return np.array([np.random.choice(i, p=self._shares(i)) for i in pools])

    def _shares(self, pool: Sequence[str]) -> np.ndarray | None:
        if self.weights is None:
            return None
        weights = np.array([self.weights[i] for i in pool], dtype=np.float64)
        return weights / weights.sum() if weights.any() else None

    def _pool(self, sample: int) -> Sequence[str]:
        complete = self.batch_size - self.batch_size % len(self.pools)
        return self.pools[sample % len(self.pools) if sample < complete else np.random.randint(len(self.pools))]


def case_weights(annotations: Annotations, cases: Sequence[str], sampling: str) -> dict | None:
    """Case -> share of the draws, 1 in all; None for ``sampling`` ``case``, where all are alike.

    ``source``: every source of ``cases`` is drawn as often, whatever its size. ``class``: whatever is annotated is drawn as
    often, then one of the cases that annotate it by hand; cases that annotate nothing are one more class.
    """
    if sampling == "case":
        return None
    groups: dict = {}
    for case in cases:
        entry = annotations.of(case)
        for group in [entry.source] if sampling == "source" else entry.annotated or [None]:
            groups.setdefault(group, []).append(case)
    weights = dict.fromkeys(cases, 0.0)
    for members in groups.values():
        for case in members:
            weights[case] += 1 / len(groups) / len(members)
    return weights


class PoolDataLoader(nnUNetDataLoader):
    """nnU-Net's loader; a dataset with an attribute ``pools`` (:class:`Pools`) is drawn from as that says."""

    def get_indices(self):
        pools = getattr(self._data, "pools", None)
        return super().get_indices() if pools is None else pools.draw(self.batch_size)
