"""Voxels of an ignore label are in no sum and no mean of any loss: computing with the mask is computing on the rest alone."""

import numpy as np
import pytest
import torch

from nnunet_partial.losses import co_training, cross_teaching, ms_kd
from nnunet_partial.losses.partial import groups_from_annotated

B, C, N, KEPT = 2, 4, 30, 17
IGNORE = C  # the value of an ignore label is one above the classes
ALPHA = (1.0, 0.5, 2.0, 0.7)
ANNOTATED = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)
GROUPS = groups_from_annotated(ANNOTATED)


def logits(seed, channels=C):
    return 2 * torch.randn(B, channels, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case():
    """Labels (B, N) with ignored voxels, where they count, and the voxels that count of any tensor (B, ..., N)."""
    generator = torch.Generator().manual_seed(9)
    kept = torch.stack([torch.randperm(N, generator=generator)[:KEPT].sort()[0] for _ in range(B)])
    valid = torch.zeros(B, N, dtype=torch.bool).scatter_(1, kept, True)
    target = torch.where(valid, torch.randint(C, (B, N), generator=generator), IGNORE)

    def rest(x):
        return torch.stack([x[b].index_select(-1, kept[b]) for b in range(B)])

    return target, valid, rest


TEACHERS = [(1,), (2, 3)]

# name -> loss of (logits of the student, two peers', two teachers'), labels, what counts, whether labels are read
LOSSES = {
    "focal": lambda z, y, valid: co_training.focal_loss(z[0], y, ALPHA, valid=valid),
    "cross-entropy": lambda z, y, valid: co_training.focal_loss(z[0], y, ALPHA, 0, valid),
    "dice": lambda z, y, valid: co_training.soft_dice_loss(z[0], y, valid=valid),
    "soft": lambda z, y, valid: co_training.soft_cross_entropy(
        z[0], torch.softmax(z[1], 1), co_training.region_mask(y, ANNOTATED, valid=valid)
    ),
    "supervised": lambda z, y, valid: cross_teaching.dice_focal(z[0], y, GROUPS, valid=valid),
    "supervised by sample": lambda z, y, valid: cross_teaching.dice_focal(z[0], y, GROUPS, valid=valid, batch_dice=False),
    "cross teaching": lambda z, y, valid: cross_teaching.cross_teaching(z[1], z[2], GROUPS, valid),
    "pseudo-supervision": lambda z, y, valid: cross_teaching.pseudo_supervision(*z[:3], GROUPS, valid),
    "distillation": lambda z, y, valid: cross_teaching.distillation(*z[:3], torch.tensor([1.0, 3.0]), valid),
    "organ": lambda z, y, valid: ms_kd.logit_loss(z[0], z[3:], TEACHERS, valid)[0],
    "background": lambda z, y, valid: ms_kd.logit_loss(z[0], z[3:], TEACHERS, valid)[1],
    "feature": lambda z, y, valid: ms_kd.feature_loss(z[0], z[1:3], ms_kd.teacher_regions(z[3:])[0], valid),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_mask_is_the_rest_alone(name):
    loss, (target, valid, rest) = LOSSES[name], case()
    inputs = [logits(i, c).requires_grad_() for i, c in enumerate((C, C, C, 2, 3))]
    masked = loss(inputs, target, valid)
    gradients = torch.autograd.grad(masked, inputs, allow_unused=True)
    alone = [rest(i.detach()).requires_grad_() for i in inputs]
    expected = loss(alone, rest(target), None)
    assert masked.item() == pytest.approx(expected.item(), rel=1e-12) and masked.item() != 0
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, alone, allow_unused=True)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(rest(ours), theirs)
            assert not ours.masked_select(~valid[:, None]).any()  # nothing reaches an ignored voxel


@pytest.mark.parametrize("name", LOSSES)
def test_all_true_is_none_and_all_false_is_finite(name):
    loss, (_, valid, _) = LOSSES[name], case()
    target = torch.randint(C, (B, N), generator=torch.Generator().manual_seed(3))
    inputs = [logits(i, c).requires_grad_() for i, c in enumerate((C, C, C, 2, 3))]
    assert loss(inputs, target, torch.ones_like(valid)).item() == pytest.approx(loss(inputs, target, None).item(), rel=1e-12)
    nothing = loss(inputs, target, torch.zeros_like(valid))
    assert torch.isfinite(nothing)
    for gradient in torch.autograd.grad(nothing, inputs, allow_unused=True):
        assert gradient is None or not gradient.any()


def test_an_independent_reading_of_focal_dice_and_soft():
    """Looped, voxel by voxel, in float64."""
    target, valid, _ = case()
    z, t = logits(0), torch.softmax(logits(1), 1)
    p = np.exp(z.numpy())
    p /= p.sum(1, keepdims=True)
    voxels = [(b, v) for b in range(B) for v in range(N) if valid[b, v]]
    focal = np.mean([-ALPHA[target[b, v]] * (1 - p[b, target[b, v], v]) ** 2 * np.log(p[b, target[b, v], v]) for b, v in voxels])
    assert co_training.focal_loss(z, target, ALPHA, valid=valid).item() == pytest.approx(focal, rel=1e-12)

    dice = 0
    for b in range(B):
        own = [v for sample, v in voxels if sample == b]
        for c in range(1, C):
            overlap = sum(p[b, c, v] for v in own if target[b, v] == c)
            total = sum(p[b, c, v] + float(target[b, v] == c) for v in own)
            dice += (1 - 2 * (overlap + 1e-5) / (total + 1e-5)) / B
    assert co_training.soft_dice_loss(z, target, valid=valid).item() == pytest.approx(dice, rel=1e-12)

    # T is 1 but on annotated organs, and but where nothing counts
    region = [(b, v) for b, v in voxels if not (target[b, v] and ANNOTATED[b, target[b, v]])]
    soft = np.mean([-sum(t[b, c, v].item() * np.log(p[b, c, v]) for c in range(C)) for b, v in region])
    mask = co_training.region_mask(target, ANNOTATED, valid=valid)
    assert sorted(map(tuple, mask.nonzero().tolist())) == region
    assert co_training.soft_cross_entropy(z, t, mask).item() == pytest.approx(soft, rel=1e-12)


def test_pseudo_labels_are_dilated_into_ignored_voxels_but_not_counted_there():
    target = torch.tensor([[0, 0, 2, IGNORE, 0, 0, IGNORE, 1]])
    valid = target != IGNORE
    annotated = torch.tensor([[1, 1, 0, 0]], dtype=torch.bool)  # 2 is a pseudo label, 1 is not
    mask = co_training.region_mask(target, annotated, "dilated", iterations=2, valid=valid)
    assert mask.int().tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("name", ("focal", "dice", "supervised", "distillation", "organ", "feature"))
def test_a_mask_of_another_shape_is_named(name):
    inputs = [logits(i, c) for i, c in enumerate((C, C, C, 2, 3))]
    with pytest.raises(ValueError, match="valid has shape"):
        LOSSES[name](inputs, torch.zeros(B, N, dtype=torch.long), torch.ones(B, N - 1, dtype=torch.bool))
