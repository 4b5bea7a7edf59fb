"""Learning rates over the epochs that nnU-Net has no schedule for."""

import math

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler


class CosineScheduler(PolyLRScheduler):
    """``lr = initial_lr (1 + cos(pi epoch / epochs)) / 2``, set by ``step(epoch)`` as nnU-Net's own schedule is."""

    def step(self, current_step=None):
        super().step(current_step)
        if current_step is None or current_step == -1:
            current_step = self.ctr - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (1 + math.cos(math.pi * current_step / self.max_steps)) / 2
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
