"""Self-training on probabilities: what models say of the classes that a case lacks, completed by what is annotated.

Huang et al. 2020 (Table 1, self-training) and others train on the most probable class of each voxel. Here cross-entropy sees the
probabilities (Hinton et al. 2015, temperature 1). Targets are constants: no gradient reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._common import check_voxels, working_dtype
from .ms_kd import Output
from .partial import marginal_log_probs


def completed_distribution(
    model_probs: Sequence[Tensor], outputs: Sequence[Sequence[Output]], labels: Tensor, groups: Tensor, truth_groups: Tensor
) -> Tensor:
    """How probable each group of classes is at every voxel of completed labels.

    Where a label is annotated by hand: 1 for its group. Elsewhere, with q^k the probabilities of model k over background and
    those of its classes that the sample lacks (its others are annotated, so known not to be here, and 1 is shared by the rest):

        t_g = max_k q^k_g,  divided by sum_g t_g if that is above 1;   t_0 = 1 - sum_g t_g

    ``model_probs``   list of (B, n_k + 1, *S), background first
    ``outputs``       the class, or tuple of classes, of each of their n_k foreground outputs
    ``labels``        (B, *S) int, completed; an ignored voxel gets any distribution
    ``groups``        (B, C) int, the partition that completed labels tell apart (a group has its lowest class's value)
    ``truth_groups``  (B, C) int, the partition that annotations alone tell apart; 0 where a class is not annotated
    returns           t (B, C, *S), at the lowest class of each group, 0 elsewhere; sums to 1
    """
    completed = torch.stack(
        [_claims([p[i] for p in model_probs], outputs, *row) for i, row in enumerate(zip(groups, truth_groups))]
    )
    total = completed.sum(1, keepdim=True)
    completed = completed / total.clamp_min(1)
    completed[:, :1] = (1 - completed.sum(1, keepdim=True)).clamp_min(0)
    known = labels.clamp(0, groups.shape[1] - 1).long().flatten(1)
    by_hand = (truth_groups.to(labels.device).gather(1, known) != 0).view_as(labels)[:, None]
    group = groups.to(labels.device).gather(1, known).view_as(labels)[:, None]
    return torch.where(by_hand, torch.zeros_like(completed).scatter_(1, group, 1), completed)


def _claims(model_probs: Sequence[Tensor], outputs: Sequence[Sequence[Output]], groups: Tensor, truth_groups: Tensor) -> Tensor:
    """max_k q^k (C, *S) of one sample, 0 for background; ``groups`` and ``truth_groups`` (C,)."""
    best = model_probs[0].new_zeros((len(groups), *model_probs[0].shape[1:]))
    for probs, classes in zip(model_probs, outputs):
        lacking = [(i, _lacking_group(c, groups, truth_groups)) for i, c in enumerate(classes, 1)]
        rows = [(i, g) for i, g in lacking if g]
        if rows:
            wanted, of_group = (list(i) for i in zip(*rows))
            possible = probs[[0, *wanted]]
            possible = possible / possible.sum(0, keepdim=True).clamp_min(torch.finfo(possible.dtype).tiny)
            index = torch.tensor(of_group, device=probs.device)
            best = torch.maximum(best, torch.zeros_like(best).index_add_(0, index, possible[1:]))
    return best


def _lacking_group(output: Output, groups: Tensor, truth_groups: Tensor) -> int:
    """The group that a model's output is about; 0 if it is annotated, or the completed labels do not have it."""
    classes = [output] if isinstance(output, int) else list(output)
    found = set(groups[classes].tolist())
    return found.pop() if len(found) == 1 and not truth_groups[classes].any() else 0


def soft_marginal_cross_entropy(logits: Tensor, distribution: Tensor, groups: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy to a distribution over groups of classes.

        L = -1/|V| sum_{v in V} sum_g t_g(v) log p_g(v)

    ``logits``        (B, C, *S); p_g is the sum of their softmax over the classes of group g
    ``distribution``  t (B, C, *S), at the lowest class of each group, 0 elsewhere
    ``groups``        (B, C) int
    ``valid``         V, (B, *S) bool; None for all voxels
    returns           0-dim; a hard t gives the cross-entropy of ``MarginalDiceCELoss``
    """
    log_probs = marginal_log_probs(logits, groups)
    target = distribution.detach().to(working_dtype(logits))
    terms = -(target * log_probs.masked_fill(target == 0, 0)).sum(1)
    if valid is None:
        return terms.sum() / max(terms.numel(), 1)
    check_voxels("valid", valid, logits)
    return (terms * valid).sum() / valid.sum().clamp_min(1)
