"""What is an annotated organ is no other organ: the exclusion loss, beside the marginal loss.

Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Medical Image Analysis 70,
2021. The marginal loss merges a class that a case does not annotate with background; this loss also says where that class
is not: on the voxels of the organs that the case does annotate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_voxels, softmax


def exclusion_loss(logits: Tensor, target: Tensor, groups: Tensor, valid: Tensor | None = None, smooth: float = 1e-5) -> Tensor:
    """Overlap of the classes that a sample does not annotate with the organs that it does.

        e_b(v) = 1 where sample b's label at v is an annotated organ, else 0
        L = 1/|N| sum_{(b, n) in N} 2 sum_v e_b p_bn / (sum_v e_b + sum_v p_bn + s)  +  1/|V| sum_{b, v} e_b sum_{n of b} log(1 + p_bn)

    the exclusion Dice and the exclusion cross-entropy, whose epsilon is 1: it is bounded, and 0 where p is. N holds the pairs
    of a sample and a class that it merges with background, V the voxels of all samples that count.

    ``logits``  (B, C, *S), p is their softmax
    ``target``  (B, *S) or (B, 1, *S), labels 0 to C - 1; anything where ``valid`` is False
    ``groups``  (B, C) int, the group of every class; classes in the group of background are not annotated. Read on the host
    ``valid``   (B, *S) bool, the voxels that count; None for all
    ``smooth``  s; in the denominator alone, so that a sample without an annotated organ in sight costs nothing
    returns     0-dim; 0 with a gradient of 0 where every class or no class is annotated
    """
    target = target[:, 0] if target.ndim == logits.ndim else target
    check_voxels("target", target, logits)
    counts = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
    check_voxels("valid", counts, logits)
    groups = groups.cpu()
    merged = groups == groups[:, :1]
    merged[:, 0] = False
    probs = softmax(logits).flatten(2) * counts.flatten(1)[:, None]
    unknown = merged.to(logits.device, probs.dtype)
    labels = torch.where(counts, target, 0).long().flatten(1)
    organ = (groups != groups[:, :1]).to(logits.device, probs.dtype).gather(1, labels)[:, None]

    overlap, predicted = (organ * probs).sum(-1), probs.sum(-1)
    dice = (2 * overlap / (organ.sum(-1) + predicted + smooth) * unknown).sum() / unknown.sum().clamp_min(1)
    cross_entropy = (torch.log1p(probs) * organ).sum(-1).mul(unknown).sum() / counts.sum().clamp_min(1)
    return dice + cross_entropy
