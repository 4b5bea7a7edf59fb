"""Dice + BCE on annotated pairs against an independent float64 reading."""

import numpy as np
import pytest
import torch

from nnunet_partial.losses.binary import BinaryDiceBCELoss, annotated_pairs

IGNORE, SMOOTH = 4, 1e-5
ANNOTATED = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)


def example(seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = annotated_pairs(ANNOTATED)
    logits = 3 * torch.randn(len(pairs), 4, 5, 3, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, IGNORE + 1, (3, 1, 4, 5, 3), generator=generator), pairs


def reading(logits, target, pairs, batch_dice, ignore_label):
    """Voxel by voxel as the docstring says."""
    entropies, sums = [], []
    for s, (b, k) in zip(logits.numpy(), pairs.tolist()):
        labels = target[b, 0].numpy()
        valid = labels != ignore_label if ignore_label is not None else np.ones(labels.shape, bool)
        t, p = (labels == k + 1)[valid], 1 / (1 + np.exp(-s[valid]))
        entropies.append(-np.mean(np.where(t, np.log(p), np.log(1 - p))))
        sums.append((k, (p * t).sum(), p.sum(), t.sum()))
    if batch_dice:
        sums = [(k, *np.sum([i[1:] for i in sums if i[0] == k], 0)) for k in sorted({i[0] for i in sums})]
    return np.mean(entropies) - np.mean([(2 * tp + SMOOTH) / (p + t + SMOOTH) for _, tp, p, t in sums])


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore_label", [None, IGNORE])
def test_is_its_equation(batch_dice, ignore_label):
    logits, target, pairs = example()
    assert pairs.tolist() == [[0, 0], [0, 2], [1, 2]]
    found = BinaryDiceBCELoss(batch_dice, SMOOTH, ignore_label)(logits, target, pairs, 3)
    assert found.item() == pytest.approx(reading(logits, target, pairs, batch_dice, ignore_label), rel=1e-12)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_gradient(batch_dice):
    logits, target, pairs = example(1)
    loss = BinaryDiceBCELoss(batch_dice, ignore_label=IGNORE)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, pairs, 3), logits.requires_grad_())


@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_do_not_matter(batch_dice):
    logits, target, pairs = example(2)
    loss = BinaryDiceBCELoss(batch_dice, ignore_label=IGNORE)
    before = loss(logits.requires_grad_(), target, pairs, 3)
    before.backward()
    ignored = (target == IGNORE)[pairs[:, 0], 0]
    assert ignored.any() and not logits.grad[ignored].any() and logits.grad[~ignored].all()
    assert torch.equal(loss(torch.where(ignored, 9.0, logits), target, pairs, 3), before)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_nothing_annotated_and_nothing_valid(batch_dice):
    logits, target, pairs = example(3)
    loss = BinaryDiceBCELoss(batch_dice, ignore_label=IGNORE)
    nothing = loss(logits[:0].requires_grad_(), target, pairs[:0], 3)
    nothing.backward()
    assert nothing.item() == 0
    assert loss(logits, torch.full_like(target, IGNORE), pairs, 3).item() == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_two_ranks_average_to_the_whole_batch(batch_dice):
    """As DDP does: the mean over ranks of their gradients is that of one batch that holds all samples."""
    logits, target, pairs = example(4)
    whole = logits.clone().requires_grad_()
    BinaryDiceBCELoss(batch_dice)(whole, target, pairs, 3).backward()
    parts = [pairs[:, 0] < 1, pairs[:, 0] >= 1]  # 2 pairs and 1
    leaves = [logits[i].clone().requires_grad_() for i in parts]

    def collect(rank):
        seen = []
        BinaryDiceBCELoss(batch_dice, all_gather=lambda x: seen.append(x) or x[None])(leaves[rank], target, pairs[parts[rank]], 3)
        return seen

    gathered = [torch.stack(i) for i in zip(collect(0), collect(1))]
    total = 0
    for rank in (0, 1):
        waiting = iter(gathered)
        loss = BinaryDiceBCELoss(batch_dice, all_gather=lambda x, w=waiting: next(w))
        total = total + loss(leaves[rank], target, pairs[parts[rank]], 3) / 2
    total.backward()
    torch.testing.assert_close(torch.cat([i.grad for i in leaves]), whole.grad, rtol=1e-10, atol=1e-14)


def test_half_precision_is_summed_in_single():
    logits, target, pairs = example(5)
    found = BinaryDiceBCELoss(True)(logits.half(), target, pairs, 3)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(reading(logits, target, pairs, True, None), rel=1e-2)
