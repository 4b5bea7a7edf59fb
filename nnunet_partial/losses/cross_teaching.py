"""Knowledge distillation from cross-teaching teachers: supervised, cross-teaching, pseudo-supervision and KD losses.

Choi, "Knowledge Distillation from Cross Teaching Teachers for Efficient Semi-Supervised Abdominal Organ Segmentation
in CT", 2022, section 2.2 (its equations bear no numbers); where the paper is silent, the code it names
(github.com/jwc-rad/MISLight, branch flare22).

    Dice(P, Y) = 1 - 1/|D| sum_{c in D} (2 sum P_c Y_c + s) / (sum P_c + sum Y_c + s)

over the foreground classes D, with sums over all voxels of the batch (``batch_dice``, as in the code) or of each sample,
s = 1e-5. It is 0 where P is certain of Y, and 0 where D is empty.

P1, P2 are the teachers, S the student. A case annotated only in part is labelled for its annotated classes and unlabelled for
the rest: ``groups`` (B, C) restricts a loss to the classes that are a group of their own. For labelled cases that is
``groups_from_annotated(annotated)``, for what is left to cross teaching ``groups_from_annotated(~annotated)``. None stands
for every class. ``possible`` (B, C, *S) bool restricts what a network says as a teacher: ``possible_classes`` makes it of
outlines that are not divided; None for everything. ``valid`` (B, *S) bool marks the voxels that count (an ignore label's do not): every sum and mean runs over
these alone; None for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import check_voxels, log_softmax, softmax
from .partial import MarginalDiceCELoss, lowest_class, marginal_log_probs, within_outlines


def dice_focal(
    logits: Tensor,
    target: Tensor,
    groups: Tensor | None = None,
    alpha: float = 0.5,
    gamma: float = 2.0,
    weight_focal: float = 1.0,
    valid: Tensor | None = None,
    **dice: Any,
) -> Tensor:
    """The supervised loss of all three networks.

        L_seg = Dice(P, Y) + Focal(P, Y),   Focal = - alpha (1 - p)^gamma log p, mean over all voxels

    with p the probability of the label's group. alpha is a plain factor: the code weighs background with alpha and all
    other classes with 1 - alpha, and the paper has alpha = 0.5.

    ``logits``  (B, C, *S)
    ``target``  (B, 1, *S) or (B, *S), labels; anything where ``valid`` is False
    ``groups``  (B, C) int, as ``MarginalDiceCELoss`` takes them; None for every class on its own
    ``weight_focal``  of the second term. The number of (valid) voxels over that of the samples with labels makes it the mean
                over the latter alone
    ``dice``    ``batch_dice``, ``smooth`` and ``all_gather`` of ``MarginalDiceCELoss``
    returns     0-dim. A sample whose classes are all one group adds 0
    """
    groups = _singletons(logits) if groups is None else groups
    target = target[:, 0] if target.ndim == logits.ndim else target
    return _dice(logits, target, groups, valid, **dice) + weight_focal * _focal(logits, target, groups, alpha, gamma, valid)


def cross_teaching(
    p1_logits: Tensor,
    p2_logits: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    possible: Tensor | None = None,
    **dice: Any,
) -> Tensor:
    """Each teacher is taught by what the other one says.

        L_ctl = Dice(P_T1, argmax(P_T2)) + Dice(P_T2, argmax(P_T1))

    ``p1_logits``, ``p2_logits``  (B, C, *S), the P are their softmax; gradients reach both, but no argmax
    ``groups``, ``dice``          as in ``dice_focal``
    returns                       0-dim
    """
    groups = _singletons(p1_logits) if groups is None else groups
    first = _dice(p1_logits, _argmax(p2_logits, possible), groups, valid, **dice)
    return first + _dice(p2_logits, _argmax(p1_logits, possible), groups, valid, **dice)


def pseudo_supervision(
    s_logits: Tensor,
    p1_logits: Tensor,
    p2_logits: Tensor,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
    possible: Tensor | None = None,
    **dice: Any,
) -> Tensor:
    """The student is taught by what the teachers say together.

        L_psv = Dice(P_S, argmax(P_T)),   P_T = (P_T1 + P_T2) / 2

    All logits (B, C, *S); the gradient reaches the student alone. ``groups``, ``dice`` as in ``dice_focal``. 0-dim.
    """
    groups = _singletons(s_logits) if groups is None else groups
    return _dice(s_logits, _argmax(_mean_teacher(p1_logits, p2_logits), possible), groups, valid, **dice)


def distillation(
    s_logits: Tensor,
    p1_logits: Tensor,
    p2_logits: Tensor,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
    possible: Tensor | None = None,
) -> Tensor:
    """The student learns the teachers' mean probabilities.

        L_kd = KL(P_T || P_S) = sum_c P_T,c (log P_T,c - log P_S,c),   P_T = (P_T1 + P_T2) / 2

    mean over all voxels, temperature 1. The paper prints KL(P_S, P_T); the teachers are the reference, as in its code
    and in Hinton et al., which it follows.

    All logits (B, C, *S), background included; the gradient reaches the student alone. ``weights`` (B,) multiply the
    voxels of each sample and are not divided out again; None for 1. 0-dim; 0 where S says what the teachers say.
    """
    log_student = log_softmax(s_logits)
    teacher = within_outlines(_mean_teacher(p1_logits, p2_logits), possible).to(log_student.dtype)
    divergence = F.kl_div(log_student, teacher, reduction="none")
    if valid is not None:
        check_voxels("valid", valid, s_logits)
        divergence = divergence * valid[:, None]
    divergence = divergence.flatten(1).sum(1)
    if weights is not None:
        divergence = divergence * weights.to(divergence)
    if valid is not None:
        return divergence.sum() / valid.sum().clamp_min(1)
    return divergence.sum() * log_student.shape[1] / max(log_student.numel(), 1)


def _mean_teacher(p1_logits: Tensor, p2_logits: Tensor) -> Tensor:
    with torch.no_grad():
        return (softmax(p1_logits) + softmax(p2_logits)) / 2


def _argmax(scores: Tensor, possible: Tensor | None) -> Tensor:
    """The most probable class (B, *S) of those that are possible."""
    scores = scores.detach()
    return (scores if possible is None else scores.masked_fill(~possible, -torch.inf)).argmax(1)


def _singletons(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1]).expand(logits.shape[:2])


def _dice(
    logits: Tensor,
    target: Tensor,
    groups: Tensor,
    valid: Tensor | None = None,
    batch_dice: bool = True,
    smooth: float = 1e-5,
    all_gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    ignore_label = None
    if valid is not None:
        check_voxels("valid", valid, logits)
        ignore_label = logits.shape[1]  # no class
        target = torch.where(valid, target, ignore_label)
    loss = MarginalDiceCELoss(
        batch_dice, smooth=smooth, weight_ce=0, ignore_label=ignore_label, all_gather=all_gather, one_minus_dice=True
    )
    return loss(logits, target, groups)


def _focal(logits: Tensor, target: Tensor, groups: Tensor, alpha: float, gamma: float, valid: Tensor | None) -> Tensor:
    lowest = lowest_class(groups)
    target = target if valid is None else torch.where(valid, target, 0)
    labels = lowest.to(logits.device).gather(1, target.flatten(1).long())
    log_prob = marginal_log_probs(logits, groups).flatten(2).gather(1, labels[:, None])[:, 0]
    telling = (lowest != 0).any(1).to(logits.device)  # else 1 - p is 0 only up to rounding
    wrong = (-torch.expm1(log_prob)).clamp_min(0)  # a merged log probability may pass 0 by a rounding error
    voxels = -(wrong**gamma) * log_prob
    if valid is None:
        return alpha * (voxels.sum(1) * telling).sum() / max(labels.numel(), 1)
    return alpha * ((voxels * valid.flatten(1)).sum(1) * telling).sum() / valid.sum().clamp_min(1)
