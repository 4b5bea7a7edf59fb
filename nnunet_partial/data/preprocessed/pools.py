"""Batches whose samples come from several pools of cases in fixed shares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


@dataclass(frozen=True)
class Pools:
    """``pools``: groups of cases, in which a case may stand more than once. Sample i of a batch is drawn from pool i modulo
    their number, so that pools have equal shares.

    Over several devices ``first`` is the number of this device's first sample in the whole batch of ``batch_size``. The
    samples of a last, incomplete round come from pools drawn at random.
    """

    pools: Sequence[Sequence[str]]
    batch_size: int
    first: int = 0

    def draw(self, number: int) -> np.ndarray:
        """Names of ``number`` cases, from numpy's global generator, as nnU-Net draws them."""
        return np.array([np.random.choice(self._pool(self.first + i)) for i in range(number)])

    def _pool(self, sample: int) -> Sequence[str]:
        complete = self.batch_size - self.batch_size % len(self.pools)
        return self.pools[sample % len(self.pools) if sample < complete else np.random.randint(len(self.pools))]


class PoolDataLoader(nnUNetDataLoader):
    """nnU-Net's loader; a dataset with an attribute ``pools`` (:class:`Pools`) is drawn from as that says."""

    def get_indices(self):
        pools = getattr(self._data, "pools", None)
        return super().get_indices() if pools is None else pools.draw(self.batch_size)
