"""Supervision by labels that distinguish only some of the classes: the marginal loss.

A label file that annotates the classes A says "background" wherever a class outside A lies. So the classes outside A
are merged with background, and the network is asked for the probability of the merged class. In general every sample
of the batch brings a *partition* of the classes into groups, and the label is trusted to name the right group.

This is the marginal loss of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ
segmentation", Medical Image Analysis 70, 2021, over nnU-Net's own Dice and cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._common import log_softmax, working_dtype

#: a class c; the M classes that are merged under c in any sample, None for all; and what to add to their log
#: probabilities, (B, M, 1): 0 for those that the sample at hand merges, -inf for the others
MergedGroup = tuple[int, Tensor | None, Tensor]


def groups_from_annotated(annotated: Tensor) -> Tensor:
    """The partition that a set of annotated classes stands for: {A's singletons, everything else with background}.

    ``annotated``  (B, K+1) bool, background at 0, which is in its own group whatever is given there
    returns        (B, K+1) int64: c where class c is annotated, else 0
    """
    classes = torch.arange(annotated.shape[1], device=annotated.device)
    return torch.where(annotated.bool(), classes, 0)


def lowest_class(groups: Tensor) -> Tensor:
    """The lowest class of every class's group, (B, C) int -> (B, C) int64 on the CPU, where partitions are handled."""
    groups = groups.cpu()
    same = groups[:, :, None] == groups[:, None, :]
    return torch.where(same, torch.arange(groups.shape[1]), groups.shape[1]).amin(-1)


def alone_in_group(groups: Tensor) -> Tensor:
    """Which classes are a group of their own: (B, C) int -> (B, C) bool on the CPU, background always true."""
    groups = groups.cpu()
    alone = (groups[:, :, None] == groups[:, None, :]).sum(-1) == 1
    alone[:, 0] = True
    return alone


def possible_classes(target: Tensor, groups: Tensor) -> Tensor | None:
    """Which classes an outline of several classes together leaves possible.

    A group of several classes without background is a union: its outline is known, how it divides is not. Inside the outline
    its members alone are possible, outside none of them. Other classes are restricted by outlines of unions alone.

    ``target``  (B, *S), labels: inside an outline that of any member
    ``groups``  (B, C) int, the partition of the classes that the labels tell apart for certain
    returns     (B, C, *S) bool on the device of ``target``; None where no sample has a union, so that everything is possible
    """
    lowest = lowest_class(groups)
    in_union = ~alone_in_group(groups) & (lowest != 0)
    if not in_union.any():
        return None
    union = torch.where(in_union, lowest, 0).to(target.device)  # of every class; 0 for none
    labels = target.flatten(1).long()
    known = (labels >= 0) & (labels < union.shape[1])  # an ignore label is in no outline
    of_voxel = union.gather(1, labels * known)
    return (union[:, :, None] == of_voxel[:, None]).reshape(*union.shape, *target.shape[1:])


def within_outlines(probs: Tensor, possible: Tensor | None) -> Tensor:
    """``probs`` (B, C, *S) with the classes that are not ``possible`` (B, C, *S) at 0 and the others' sum at 1 again."""
    if possible is None:
        return probs
    kept = probs * possible
    return kept / kept.sum(1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)


def marginal_log_probs(logits: Tensor, groups: Tensor) -> Tensor:
    """Log probability of each group of classes.

        log p_g = logsumexp_{c in g} log softmax(z)_c

    ``logits`` z  (B, C, *S)
    ``groups``    (B, C) int, the group of every class; any integers will do, equal ones are one group. It is read on the
                  host, so a tensor on the CPU spares the accelerator a synchronisation
    returns       (B, C, *S) with log p_g at the lowest class of g and -inf at the other classes of g; float32 for half
                  precision logits

    Probabilities are merged, never logits. The gradient at the -inf entries is zero, not NaN. Where a group holds
    every class the result is 0 up to rounding.
    """
    _check_groups(groups, logits)
    log_probs = log_softmax(logits)
    lowest = lowest_class(groups)
    merged = _merged_groups(lowest, log_probs)
    if not merged:
        return log_probs
    channels = list(log_probs.unbind(1))
    for c, members, log_member in merged:
        channels[c] = torch.logsumexp(_members(log_probs.flatten(2), members, log_member), 1).reshape(channels[c].shape)
    absent = (lowest != torch.arange(logits.shape[1])).to(logits.device)
    return torch.stack(channels, 1).masked_fill(absent.reshape(*absent.shape, *[1] * (logits.ndim - 2)), -torch.inf)


class MarginalDiceCELoss(nn.Module):
    """nnU-Net's Dice plus cross-entropy over groups of classes.

        L = w_ce * CE + w_dice * Dice
        CE   = -1/|V| sum_{b, v in V} log p_{b, g(y_bv)}(v)
        Dice = -1/|D| sum_{d in D} (2 sum_v p_d [g(y_v) = d] + s) / (sum_v p_d + sum_v [g(y_v) = d] + s)

    with p_{b, g} the probability of group g (``marginal_log_probs``), V the voxels of all samples of the batch that are
    not ignored, and D the pairs of a sample and a group of it that does not hold background. With ``batch_dice`` the
    three sums run over the samples that distinguish the group as well, and D holds the groups that at least one sample
    of the batch (of all ranks, with ``all_gather``) distinguishes.

    With every class a group of its own this is ``DC_and_CE_loss`` with ``MemoryEfficientSoftDiceLoss`` and
    ``do_bg=False``. Decided where there is nothing to copy:

    * A label whose class is merged with background is background: the loss cannot tell the two apart.
    * A sample with a single group tells nothing: its loss and its gradient are exactly 0. Its voxels still count in |V|,
      as in a batch whose labels are all known, so that a sample weighs the same whatever it is paired with.
    * D empty: the Dice part is 0, not the -1 of a perfect score.
    * No sample at all: 0, with a gradient of the shape of the logits.
    * No voxel left by ``ignore_label``: CE is 0; Dice is s / s = 1 for every pair, as in nnU-Net.
    * ``batch_dice`` pools groups of different samples by their lowest class.
    * Several ranks: CE is the mean of the rank, averaged over ranks by DDP, as in nnU-Net.

    ``batch_dice``    sum over the batch before the ratio
    ``smooth``        s
    ``weight_ce``, ``weight_dice``  w_ce, w_dice; a part of weight 0 adds nothing
    ``ignore_label``  label of voxels that are left out of every sum, or None
    ``one_minus_dice``  True: the Dice part is 1 - Dice, 0 at a perfect match, instead of nnU-Net's -Dice. D empty gives 0
    ``all_gather``    with several ranks: a differentiable function from a tensor to the stack of that tensor over ranks,
                      (world, ...), such as ``AllGatherGrad.apply`` of nnU-Net. Dice is then that of the whole batch
    """

    def __init__(
        self,
        batch_dice: bool,
        smooth: float = 1e-5,
        weight_ce: float = 1.0,
        weight_dice: float = 1.0,
        ignore_label: int | None = None,
        all_gather: Callable[[Tensor], Tensor] | None = None,
        one_minus_dice: bool = False,
    ):
        super().__init__()
        self.batch_dice = batch_dice
        self.smooth = smooth
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.ignore_label = ignore_label
        self.all_gather = all_gather
        self.one_minus_dice = one_minus_dice

    def forward(self, logits: Tensor, target: Tensor, groups: Tensor) -> Tensor:
        """``logits`` (B, C, *S), ``target`` (B, 1, *S) or (B, *S) of labels, ``groups`` (B, C) int -> 0-dim tensor.

        ``groups`` is read on the host, so a tensor on the CPU spares the accelerator a synchronisation.
        """
        _check_groups(groups, logits)
        labels, valid = self._labels(logits, target)
        voxels = max(labels.numel(), 1) if valid is None else valid.sum().clamp_min(1)
        lowest = lowest_class(groups)
        telling = (lowest != 0).any(1)  # a sample of one group says nothing, and need not be computed
        if not telling.all():
            logits, labels, lowest = _samples(telling, logits, labels, lowest)
            valid = None if valid is None else _samples(telling, valid)[0]
        log_likelihood, intersect, predicted, present, is_group = _sums(logits, labels, lowest, valid)

        loss = self.weight_ce * -log_likelihood.sum() / voxels
        if self.weight_dice != 0:
            loss = loss + self.weight_dice * self._dice(intersect, predicted, present, is_group)
        return loss

    def _labels(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Labels (B, N) int64, and which of them count: (B, 1, N) of 0 and 1, or None for all."""
        if target.ndim == logits.ndim and target.shape[1] == 1:
            target = target[:, 0]
        if target.shape != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"target has shape {tuple(target.shape)}, expected (B, *S) or (B, 1, *S) of logits of shape {tuple(logits.shape)}"
            )
        target = target.flatten(1)
        if self.ignore_label is None:
            return target.long(), None
        valid = target != self.ignore_label
        return (target * valid).long(), valid[:, None].to(working_dtype(logits))

    def _dice(self, intersect: Tensor, predicted: Tensor, present: Tensor, is_group: Tensor) -> Tensor:
        """-Dice over the foreground groups; all arguments (B, C), ``is_group`` 1 at the lowest class of a group."""
        weight = torch.cat((torch.zeros_like(is_group[:, :1]), is_group[:, 1:]), 1)
        if self.batch_dice:
            sums = torch.stack([(x * weight).sum(0) for x in (intersect, predicted, present)] + [weight.sum(0)])
            if self.all_gather is not None:
                sums = self.all_gather(sums).sum(0)
            intersect, predicted, present, weight = sums
            weight = (weight > 0).to(sums.dtype)
        dice = (2 * intersect + self.smooth) / (present + predicted + self.smooth).clamp_min(1e-8)
        pairs = weight.sum()
        if self.all_gather is not None and not self.batch_dice:
            # ranks differ in how many pairs they hold, and DDP averages over ranks: divided by the mean number of pairs,
            # the average of the ranks is the mean over all pairs
            pairs = self.all_gather(pairs.detach()).mean(0)
        return ((float(self.one_minus_dice) - dice) * weight).sum() / torch.where(pairs > 0, pairs, 1)


def _samples(wanted: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The samples for which ``wanted`` (B,) bool on the CPU is true, of tensors (B, ...)."""
    index = wanted.nonzero()[:, 0]
    return [x.index_select(0, index.to(x.device)) for x in tensors]


def _sums(logits: Tensor, labels: Tensor, lowest: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
    """Of ``logits`` (B, C, *S), ``labels`` (B, N), ``lowest`` (B, C) and ``valid`` (B, 1, N) or None: the sums of
    ``_GroupSums`` with ``predicted`` by group, and 1 at the lowest class of every group (B, C)."""
    merged = _merged_groups(lowest, logits)
    lowest = lowest.to(logits.device)
    if merged:
        labels = lowest.gather(1, labels)
    log_likelihood, intersect, predicted, present = _GroupSums.apply(logits.flatten(2), labels[:, None], merged, valid)
    if merged:
        predicted = torch.zeros_like(predicted).scatter_add(1, lowest, predicted)
    is_group = (lowest == torch.arange(lowest.shape[1], device=lowest.device)).to(predicted.dtype)
    return log_likelihood, intersect, predicted, present, is_group


class _GroupSums(torch.autograd.Function):
    """The sums over voxels that cross-entropy and Dice are made of, from one log-softmax.

        log_likelihood_b = sum_v log p_y(v)         intersect_bg = sum_v [y_v = g] p_g(v)
        predicted_bc     = sum_v p_c(v)             present_bg   = sum_v [y_v = g]

    y is the lowest class of the label's group, p_g the probability of group g, p_c that of class c. With the gradients
    l_b, i_bg, q_bc of the first three, and m_y(v) = l + i_y p_y(v),

        dL/dz_c = p_c (q_c - sum_c' p_c' q_c' - m_y) + m_y [c in y] p_c / p_y

    Written by hand because autograd keeps and allocates several more tensors of the size of the logits, and that, not
    arithmetic, is what this loss would cost over nnU-Net's.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, merged: list[MergedGroup], valid: Tensor | None):
        log_probs = log_softmax(logits)
        label_log_prob = log_probs.gather(1, labels)
        scratch, shares = None, []
        for c, members, log_member in merged:
            scratch = _members(log_probs, members, log_member)
            share = torch.softmax(scratch, 1)
            # logsumexp is the peak less the log of the softmax there: exact for any logits, and the softmax is its gradient
            group_log_prob = scratch.amax(1, keepdim=True).sub_(share.amax(1, keepdim=True).log_())
            inside = labels == c
            label_log_prob.mul_(~inside).add_(group_log_prob.mul_(inside))  # three times as fast as where on a CPU
            shares.append(share)
        if scratch is None or scratch.shape != log_probs.shape:
            scratch = torch.empty_like(log_probs)
        probs, label_prob = log_probs.exp_(), label_log_prob.exp()
        if valid is not None:
            label_prob.mul_(valid)
            label_log_prob.mul_(valid)
        ctx.save_for_backward(probs, label_prob, labels, valid, *shares)
        ctx.merged, ctx.dtype = merged, logits.dtype

        predicted = (probs if valid is None else torch.mul(probs, valid, out=scratch)).sum(-1)
        present = scratch.zero_().scatter_(1, labels, 1 if valid is None else valid).sum(-1)
        intersect = scratch.mul_(label_prob).sum(-1)
        ctx.mark_non_differentiable(present)
        return label_log_prob.sum((1, 2)), intersect, predicted, present

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # once_differentiable is declared to hide its names
        ctx, grad_log_likelihood: Tensor, grad_intersect: Tensor, grad_predicted: Tensor, _
    ):
        probs, label_prob, labels, valid, *shares = ctx.saved_tensors
        pull = grad_intersect.gather(1, labels[:, 0])[:, None]
        pull.mul_(label_prob).add_(grad_log_likelihood[:, None, None])
        grad = probs * grad_predicted[:, :, None]
        if valid is not None:
            pull.mul_(valid)
            grad.mul_(valid)
        grad.addcmul_(probs, grad.sum(1, keepdim=True).add_(pull), value=-1)
        for (c, members, _), share in zip(ctx.merged, shares):
            inside = pull * (labels == c)
            if members is None:
                grad.addcmul_(share, inside)
            else:
                grad.index_add_(1, members, share * inside)
            pull.sub_(inside)
        grad.scatter_add_(1, labels, pull)
        return grad.to(ctx.dtype), None, None, None


def _members(log_probs: Tensor, members: Tensor | None, log_member: Tensor) -> Tensor:
    """The log probabilities of a group's classes, (B, C, N) -> (B, M, N) new memory, -inf for classes outside it."""
    if members is None:
        return log_probs + log_member
    return log_probs.index_select(1, members) + log_member


def _merged_groups(lowest: Tensor, logits: Tensor) -> list[MergedGroup]:
    """The groups of more than one class, in any sample, by their lowest class. ``lowest`` (B, C) lies on the CPU."""
    classes = torch.arange(lowest.shape[1])
    merged = []
    for c in sorted(set(lowest[lowest != classes].tolist())):
        # where the sample has no such group, c stands for itself: never read, and no row is empty
        inside = (lowest == c) | (classes == c)
        members = inside.any(0).nonzero()[:, 0]
        log_member = torch.zeros(inside.shape, dtype=working_dtype(logits)).masked_fill_(~inside, -torch.inf)[:, members]
        everything = len(members) == len(classes)
        merged.append((c, None if everything else members.to(logits.device), log_member[:, :, None].to(logits.device)))
    return merged


def _check_groups(groups: Tensor, logits: Tensor) -> None:
    if groups.shape != logits.shape[:2] or groups.is_floating_point():
        raise ValueError(
            f"groups is {groups.dtype} of shape {tuple(groups.shape)}, expected integers of shape (B, C) = "
            f"{tuple(logits.shape[:2])} for logits of shape {tuple(logits.shape)}"
        )
