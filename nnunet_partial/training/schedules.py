"""Learning rates over the epochs that nnU-Net has no schedule for."""

import math
from collections.abc import Mapping
from typing import Any

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


class CosineScheduler(PolyLRScheduler):
    """``lr = initial_lr (1 + cos(pi epoch / epochs)) / 2``, set by ``step(epoch)`` as nnU-Net's own schedule is."""

    def step(self, current_step=None):
        super().step(current_step)
        if current_step is None or current_step == -1:
            current_step = self.ctr - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (1 + math.cos(math.pi * current_step / self.max_steps)) / 2
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PlateauScheduler:
    """``lr = lr * factor`` once more than ``patience`` epochs in a row have not been better than the best by ``threshold``.

    nnU-Net sets a rate by ``step(epoch)`` where an epoch begins, which changes nothing here; :meth:`observe` tells the epoch's
    training loss where it ends. What is remembered of earlier epochs is in :meth:`state_dict`; the rate itself is in that of
    the optimiser.
    """

    def __init__(self, optimizer: Optimizer, factor: float, threshold: float, patience: int):
        self.plateau = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=threshold, threshold_mode="abs")

    def step(self, current_step=None):
        """The rate stays what it is."""

    def observe(self, loss: float) -> None:
        """The mean training loss of an epoch that is over."""
        self.plateau.step(loss)

    def state_dict(self) -> dict:
        """Best loss and epochs without a better one."""
        return {i: getattr(self.plateau, i) for i in ("best", "num_bad_epochs", "last_epoch")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self.plateau, name, value)


def make_schedule(name: str, optimizer: Optimizer, initial_lr: float, epochs: int, plateau: Mapping[str, Any]):
    """The schedule that the setting ``schedule`` names: an object with ``step(epoch)``."""
    if name == "plateau":
        return PlateauScheduler(optimizer, **plateau)
    if name == "constant":
        return PolyLRScheduler(optimizer, initial_lr, epochs, exponent=0)
    return {"poly": PolyLRScheduler, "cosine": CosineScheduler}[name](optimizer, initial_lr, epochs)
