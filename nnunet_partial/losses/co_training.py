"""Co-training weight-averaged models: the losses of each network.

Huang et al., "Multi-organ Segmentation via Co-training Weight-averaged Models from Few-organ Datasets", 2020. Equation
numbers are the paper's. The paper sums over images and voxels; here sums over voxels are means over the voxels of the
batch, and sums over images are means over its samples, so that weights do not depend on the batch. ``valid`` (B, *S) bool
marks the voxels that count (an ignore label's do not): every sum and mean runs over these alone; None for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ._common import check_voxels, log_softmax, softmax


def focal_loss(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | Sequence[float],
    gamma: float = 2.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Class-weighted focal loss on hard labels.

        L_focal = - sum_c alpha_c (1 - F_c)^gamma log F_c                                                    (1)

    where F_c is "the estimated probability that a pixel is correctly classified", so that one term stays at each voxel,
    that of its label; mean over all voxels, weights are not divided out again.

    ``logits``         (B, C, *S), F is their softmax
    ``target``         (B, *S) or (B, 1, *S), labels 0 to C - 1; anything where ``valid`` is False
    ``class_weights``  alpha, (C,), background first; see ``class_weights_from_volumes``
    ``gamma``          0 (weighted cross-entropy) or at least 1; the slope of what lies between is infinite at F = 1
    returns            0-dim; 0 without a voxel
    """
    if not (gamma == 0 or gamma >= 1):
        raise ValueError(f"gamma is {gamma}, expected 0 or at least 1")
    target = _labels(target, logits, valid)
    log_prob = log_softmax(logits).gather(1, target[:, None])[:, 0]
    weights = torch.as_tensor(class_weights, dtype=log_prob.dtype, device=logits.device)
    if weights.shape != logits.shape[1:2]:
        raise ValueError(
            f"class_weights has shape {tuple(weights.shape)}, expected one weight for each of the {logits.shape[1]} classes"
        )
    wrong = -torch.expm1(log_prob)  # 1 - F, exact where F is near 1
    return -_voxel_mean(weights[target] * wrong**gamma * log_prob, valid)


def soft_dice_loss(logits: Tensor, target: Tensor, smooth: float = 1e-5, valid: Tensor | None = None) -> Tensor:
    """Soft Dice loss on hard labels, of each image, summed over organs.

        L_dice = sum_c (1 - 2 (sum y_c F_c + eps) / (sum y_c + sum F_c + eps))                               (2)

    with sums over the voxels of an image, c = 1 to C the organs (background is none), mean over the samples.

    ``logits``  (B, C + 1, *S), F is their softmax
    ``target``  (B, *S) or (B, 1, *S), labels 0 to C; y_c is 1 where the label is c; anything where ``valid`` is False
    ``smooth``  eps
    returns     0-dim; 0 without a sample

    eps stands inside the bracket that 2 multiplies, as printed. An organ that is neither labelled nor predicted
    therefore adds 1 - 2 eps / eps = -1, and a perfect match -eps / (2 |y| + eps), not 0; gradients are those of any Dice.
    """
    target = _labels(target, logits, valid).flatten(1)
    probs = softmax(logits).flatten(2)
    counts = torch.ones_like(target) if valid is None else valid.flatten(1)
    counts = counts[:, None].to(probs.dtype)
    if valid is not None:
        probs = probs * counts
    chosen = probs.gather(1, target[:, None])
    # only a voxel's own class overlaps: scattered, not multiplied by a one-hot of every class
    overlap = torch.zeros_like(probs).scatter(1, target[:, None], chosen).sum(-1)
    with torch.no_grad():
        present = torch.zeros_like(probs).scatter_(1, target[:, None], counts).sum(-1)
    dice = 2 * (overlap + smooth) / (present + probs.sum(-1) + smooth)
    return (1 - dice[:, 1:]).sum() / max(logits.shape[0], 1)


def soft_cross_entropy(logits: Tensor, teacher_probs: Tensor, region: Tensor) -> Tensor:
    """Cross-entropy to the soft labels of the other network's weight average, inside the region mask.

        L_soft(theta_1 | theta_2) = - sum T F(x | E(theta_2)) log F(x | theta_1)                        (4), (5)

    summed over classes, divided by the number of voxels with T = 1.

    ``logits``         (B, C, *S), F(x | theta_1) is their softmax
    ``teacher_probs``  (B, C, *S), F(x | E(theta_2)), probabilities; no gradient reaches them
    ``region``         T, (B, *S) bool; see ``region_mask``
    returns            0-dim; an empty region gives 0, with a gradient of 0
    """
    if teacher_probs.shape != logits.shape:
        raise ValueError(f"teacher_probs has shape {tuple(teacher_probs.shape)}, logits {tuple(logits.shape)}; expected equal")
    check_voxels("region", region, logits)
    log_probs = log_softmax(logits)
    cross = -(teacher_probs.detach().to(log_probs.dtype) * log_probs).sum(1)
    return (cross * region).sum() / region.sum().clamp_min(1)


def region_mask(
    target: Tensor,
    annotated: Tensor,
    mode: str = "equation",
    pseudo: Tensor | None = None,
    iterations: int = 3,
    valid: Tensor | None = None,
) -> Tensor:
    """Where the soft labels supervise.

        T = 0 in regions with ground-truth annotations of an organ, 1 in "regions without annotations or background"

    and 0 where ``valid`` is False.

    ``target``      (B, *S), labels; an organ's voxels are ground truth where the sample annotates it
    ``annotated``   (B, K + 1) bool, background at 0
    ``mode``        "equation": T as printed. "dilated": the paper's text, which dilates the pseudo labels of un-annotated
                    organs; T is 1 in the dilated labels, and 0 elsewhere and on ground-truth organs
    ``pseudo``      (B, *S), for "dilated": labels with the pseudo labels of the un-annotated organs filled
                    in; ``target`` when left out, which then must be such a completed label map
    ``iterations``  for "dilated": by how many voxels, with the full neighbourhood (26 in 3D, 8 in 2D)
    returns         (B, *S) bool

    A sample without annotations has T = 1 everywhere ("equation") or wherever a pseudo label is near ("dilated").
    """
    if mode not in ("equation", "dilated"):
        raise ValueError(f"mode is {mode!r}, expected 'equation' or 'dilated'")
    counts = True if valid is None else valid
    if valid is not None:
        target, pseudo = torch.where(valid, target, 0), None if pseudo is None else torch.where(valid, pseudo, 0)
    truth = _organ_of(target, annotated.bool())
    if mode == "equation":
        return ~truth & counts
    pseudo = target if pseudo is None else pseudo
    return _dilate(_organ_of(pseudo, ~annotated.bool()), iterations) & ~truth & counts


def class_weights_from_volumes(volumes: Tensor | Sequence[float], background: float = 1.0) -> Tensor:
    """alpha of Eq. 1: "the weight of each organ c, which is inversely proportional to each organ's average size".

        alpha_c = (1 / v_c) / mean_c' (1 / v_c')

    ``volumes``     v, (K,), mean volume of each organ, in any unit
    ``background``  its weight. The paper weighs organs; by its volume background would weigh nothing and false positives
                    would cost nothing, so it gets the mean weight of the organs
    returns         (K + 1,) float64, background first; the organs' mean is 1
    """
    volumes = torch.as_tensor(volumes, dtype=torch.float64)
    if volumes.ndim != 1 or not len(volumes) or not (torch.isfinite(volumes) & (volumes > 0)).all():
        raise ValueError(f"volumes are {volumes.tolist()}, expected a positive mean volume of each organ")
    inverse = 1 / volumes
    return torch.cat((torch.full_like(inverse[:1], background), inverse / inverse.mean()))


def _voxel_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of ``values`` (B, *S) over the voxels that ``valid`` (B, *S) bool marks, None for all; 0 where there are none."""
    if valid is None:
        return values.sum() / max(values.numel(), 1)
    return (values * valid).sum() / valid.sum().clamp_min(1)


def _labels(target: Tensor, logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Labels (B, *S) int64 on the voxels of the logits; 0 where they do not count."""
    target = target[:, 0] if target.ndim == logits.ndim and target.shape[1] == 1 else target
    check_voxels("target", target, logits)
    if valid is None:
        return target.long()
    check_voxels("valid", valid, logits)
    return torch.where(valid, target, 0).long()


def _organ_of(labels: Tensor, classes: Tensor) -> Tensor:
    """(B, *S) bool: the label is a foreground class for which ``classes`` (B, K + 1) bool is true."""
    if classes.ndim != 2 or classes.shape[0] != labels.shape[0]:
        raise ValueError(
            f"annotated has shape {tuple(classes.shape)}, expected (B, K + 1) for labels of shape {tuple(labels.shape)}"
        )
    classes = classes.to(labels.device)
    classes = torch.cat((torch.zeros_like(classes[:, :1]), classes[:, 1:]), 1)
    return classes.gather(1, labels.flatten(1).long()).reshape(labels.shape)


def _dilate(mask: Tensor, iterations: int) -> Tensor:
    """Dilation of (B, *S) bool by the full neighbourhood, ``iterations`` times, one axis at a time."""
    result = mask.float()
    for axis in range(1, mask.ndim):
        line = result.movedim(axis, -1)
        flat = F.max_pool1d(line.flatten(0, -2)[:, None], 2 * iterations + 1, stride=1, padding=iterations)
        result = flat.reshape(line.shape).movedim(-1, axis)
    return result > 0
