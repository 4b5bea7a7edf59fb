"""The exclusion loss against an independent reading in float64."""

import numpy as np
import pytest
import torch

from nnunet_partial.losses.exclusion import exclusion_loss
from nnunet_partial.losses.partial import groups_from_annotated


def inputs(shape=(3, 4), classes=5, samples=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, classes, *shape, generator=generator, dtype=dtype) * 2
    target = torch.randint(classes, (samples, *shape), generator=generator)
    return logits, target


def read(logits, target, annotated, valid=None, smooth=1e-5):
    """``annotated`` per sample: the foreground classes that it annotates."""
    z = logits.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dice, cross, voxels = [], 0.0, 0
    for b, known in enumerate(annotated):
        counts = np.ones(target[b].shape, bool) if valid is None else valid[b].numpy()
        organ = np.isin(target[b].numpy(), list(known)) & counts
        voxels += counts.sum()
        for n in range(1, z.shape[1]):
            if n not in known:
                dice.append(2 * p[b, n][organ].sum() / (organ.sum() + p[b, n][counts].sum() + smooth))
                cross += np.log(1 + p[b, n][organ]).sum()
    return (np.mean(dice) if dice else 0.0) + cross / voxels


def groups_of(annotated, classes=5):
    return groups_from_annotated(torch.tensor([[i == 0 or i in known for i in range(classes)] for known in annotated]))


@pytest.mark.parametrize("shape", ((3, 4), (2, 3, 4)))
@pytest.mark.parametrize("annotated", ([{1}, {2, 3}, {4}], [{1, 2, 3, 4}, {1}, set()]))
def test_it_is_the_equation(shape, annotated):
    logits, target = inputs(shape)
    for b, known in enumerate(annotated):  # a label file holds nothing else
        target[b][~torch.isin(target[b], torch.tensor(list(known) or [0]))] = 0
    valid = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    for given in (None, valid):
        expected = read(logits, target, annotated, given)
        ignored = target if given is None else torch.where(given, target, 99)
        for labels in (ignored, ignored[:, None]):
            found = exclusion_loss(logits, labels, groups_of(annotated), given)
            assert found.item() == pytest.approx(expected, rel=1e-12)


def test_a_union_that_is_annotated_is_an_organ_and_excluded_from_nothing():
    logits, target = inputs()
    target = torch.where(target == 1, 1, 0)  # the union of 1 and 2 has the value of its lowest class
    groups = torch.tensor([[0, 1, 1, 0, 0]] * 3)
    assert exclusion_loss(logits, target, groups).item() == pytest.approx(read(logits, target, [{1, 2}] * 3), rel=1e-12)


@pytest.mark.parametrize("annotated", ({1, 2, 3, 4}, set()))
def test_all_or_nothing_annotated_costs_nothing(annotated):
    logits, target = inputs()
    target = target if annotated else torch.zeros_like(target)
    logits.requires_grad_()
    loss = exclusion_loss(logits, target, groups_of([annotated] * 3))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_gradient_takes_an_unknown_class_off_annotated_organs_alone():
    logits, target = inputs()
    target = torch.where(target == 1, 1, 0)
    logits.requires_grad_()
    exclusion_loss(logits, target, groups_of([{1}] * 3), smooth=0).backward()
    assert (logits.grad[:, 2:].movedim(1, -1)[target == 1] > 0).any(-1).all()
    half = logits.detach().half()
    single = exclusion_loss(half.float(), target, groups_of([{1}] * 3))
    torch.testing.assert_close(exclusion_loss(half, target, groups_of([{1}] * 3)), single)
