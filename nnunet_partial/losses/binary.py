"""One class against all others: Dice plus binary cross-entropy, on the annotated classes of each case.

The loss of DoDNet (Zhang et al. 2021); conditionCNN is trained with it too: a class that a case does not annotate has no term there,
and no merged class stands in for it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ._common import working_dtype


def annotated_pairs(annotated: Tensor) -> Tensor:
    """(P, 2) int64: every sample with every foreground class that it annotates, counted from 0; ``annotated`` (B, K + 1) bool."""
    return annotated[:, 1:].nonzero()


class BinaryDiceBCELoss(nn.Module):
    """Over pairs i of a sample b and a class k that it annotates, with logit s, p = sigmoid(s) and t = [label = k]:

        BCE_i  = sum_{v in V_b} (log(1 + e^s) - s t) / |V_b|
        Dice_i = -(2 sum_{v in V_b} p t + smooth) / (sum_{v in V_b} p + sum_{v in V_b} t + smooth)
        L      = mean_i BCE_i + mean_i Dice_i

    V_b are the voxels of the sample that are not ignored. With ``batch_dice`` the three sums of Dice run over all pairs of the
    class as well, and its mean over the classes that are there. No pair: 0. No voxel left: BCE 0, Dice -1, as nnU-Net's.

    ``all_gather``  with several ranks: a differentiable function from a tensor to the stack of that tensor over ranks. Dice
                    and the means are then those of the whole batch, given that DDP averages gradients over ranks.
    """

    def __init__(
        self,
        batch_dice: bool,
        smooth: float = 1e-5,
        ignore_label: int | None = None,
        all_gather: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.batch_dice, self.smooth, self.ignore_label, self.all_gather = batch_dice, smooth, ignore_label, all_gather

    def forward(self, logits: Tensor, target: Tensor, pairs: Tensor, num_classes: int) -> Tensor:
        """``logits`` (P, *S), ``target`` (B, 1, *S) of labels, ``pairs`` (P, 2) int64 of ``num_classes`` K -> 0-dim tensor."""
        pairs = pairs.to(logits.device)
        samples, classes = pairs.unbind(1)
        s = logits.flatten(1).to(working_dtype(logits))
        labels = target[:, 0].flatten(1)[samples]
        t = (labels == classes[:, None] + 1).to(s.dtype)
        cross_entropy, p = softplus(s) - s * t, s.sigmoid()
        voxels = torch.full_like(s[:, 0], s.shape[1])
        if self.ignore_label is not None:
            valid = (labels != self.ignore_label).to(s.dtype)
            cross_entropy, p, voxels = cross_entropy * valid, p * valid, valid.sum(1)
        bce = cross_entropy.sum(1) / voxels.clamp_min(1)
        sums = torch.stack(((p * t).sum(1), p.sum(1), t.sum(1)), 1)
        return bce.sum() / self._number(len(pairs), bce) + self._dice(sums, classes, num_classes)

    def _dice(self, sums: Tensor, classes: Tensor, num_classes: int) -> Tensor:
        """-Dice from ``sums`` (P, 3) over voxels: of both, predicted, true."""
        if not self.batch_dice:
            return -self._ratio(sums).sum() / self._number(len(sums), sums)
        ones = torch.cat((sums, torch.ones_like(sums[:, :1])), 1)
        pooled = torch.zeros(num_classes, 4, dtype=sums.dtype, device=sums.device).index_add(0, classes, ones)
        if self.all_gather is not None:
            pooled = self.all_gather(pooled).sum(0)
        there = (pooled[:, 3] > 0).to(sums.dtype)
        return -(self._ratio(pooled[:, :3]) * there).sum() / there.sum().clamp_min(1)

    def _ratio(self, sums: Tensor) -> Tensor:
        both, predicted, true = sums.unbind(1)
        return (2 * both + self.smooth) / (predicted + true + self.smooth).clamp_min(1e-8)

    def _number(self, number: int, like: Tensor) -> Tensor:
        """What to divide a sum over pairs by: their number, with several ranks its mean over ranks."""
        counted = torch.tensor(float(number), dtype=like.dtype, device=like.device)
        if self.all_gather is not None:
            counted = self.all_gather(counted).mean(0)
        return torch.where(counted > 0, counted, 1)
