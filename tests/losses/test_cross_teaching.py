import math

import numpy as np
import pytest
import torch

from nnunet_partial.losses import cross_teaching as ct
from nnunet_partial.losses.partial import groups_from_annotated

SIZES = {"2d": (4, 5), "3d": (3, 2, 4)}
SMOOTH = 1e-5
ANNOTATED = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def random(*shape, seed=0, dtype=torch.float64):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def three(size, num_samples=3, dtype=torch.float64):
    """Logits of the student and of both teachers."""
    return [random(num_samples, 4, *size, seed=k, dtype=dtype).requires_grad_() for k in range(3)]


def softmax(logits):
    z = logits.detach().double().flatten(2).numpy()
    p = np.zeros_like(z)
    for b, v in np.ndindex(z.shape[0], z.shape[2]):
        e = [math.exp(x - z[b, :, v].max()) for x in z[b, :, v]]
        p[b, :, v] = [x / sum(e) for x in e]
    return p


def dice(p, y, pairs, batch_dice=True):
    """1 - mean Dice of p (B, C, N) and labels y (B, N) over the (sample, class) pairs given, looped."""
    sums = {}
    for b, c in pairs:
        overlap = sum(p[b, c, v] for v in range(p.shape[2]) if y[b, v] == c)
        total = sum(p[b, c, v] + (y[b, v] == c) for v in range(p.shape[2]))
        key = c if batch_dice else (b, c)
        sums[key] = np.add(sums.get(key, (0, 0)), (overlap, total))
    values = [1 - (2 * o + SMOOTH) / (t + SMOOTH) for o, t in sums.values()]
    return sum(values) / len(values) if values else 0


def every_pair(p):
    return [(b, c) for b in range(p.shape[0]) for c in range(1, p.shape[1])]


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, allow_unused=True)


# ---- the equations


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_dice", [True, False])
def test_cross_teaching_is_its_equation(size, batch_dice):
    _, p1, p2 = three(size)
    a, b = softmax(p1), softmax(p2)
    expected = dice(a, b.argmax(1), every_pair(a), batch_dice) + dice(b, a.argmax(1), every_pair(a), batch_dice)
    loss = ct.cross_teaching(p1, p2, batch_dice=batch_dice)
    assert loss.ndim == 0 and loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_dice", [True, False])
def test_pseudo_supervision_is_its_equation(size, batch_dice):
    s, p1, p2 = three(size)
    mean = (softmax(p1) + softmax(p2)) / 2
    expected = dice(softmax(s), mean.argmax(1), every_pair(mean), batch_dice)
    loss = ct.pseudo_supervision(s, p1, p2, batch_dice=batch_dice)
    assert loss.ndim == 0 and loss.item() == pytest.approx(expected, abs=1e-12)


def test_pseudo_labels_are_those_of_mean_probabilities_not_of_mean_logits():
    # mean probabilities (.45, .275, .275) say background; the product (.00009, .025, .02499), that is the mean of the
    # logits, says class 1
    p1 = torch.tensor([0.90, 0.05, 0.05], dtype=torch.float64).log()[None, :, None]
    p2 = torch.tensor([0.0001, 0.5, 0.4999], dtype=torch.float64).log()[None, :, None]
    certain_of_1 = torch.tensor([-60.0, 60, -60], dtype=torch.float64)[None, :, None]
    # class 1 is predicted and not labelled: 1; class 2 is neither: 0
    assert ct.pseudo_supervision(certain_of_1, p1, p2).item() == pytest.approx((1 + 0) / 2, abs=1e-4)
    certain_of_0 = certain_of_1[:, [1, 0, 2]]
    assert ct.pseudo_supervision(certain_of_0, p1, p2).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_distillation_is_its_equation(size):
    s, p1, p2 = three(size)
    q, p = (softmax(p1) + softmax(p2)) / 2, softmax(s)
    total = sum(q[i] * math.log(q[i] / p[i]) for i in np.ndindex(*q.shape))
    loss = ct.distillation(s, p1, p2)
    assert loss.ndim == 0 and loss.item() == pytest.approx(total / (q.shape[0] * q.shape[2]), abs=1e-12)


def test_distillation_by_hand():
    # teachers (3/4, 1/4) and (1/4, 3/4) are (1/2, 1/2) together; the student says (1/4, 3/4)
    a, b = (torch.tensor(x, dtype=torch.float64).log()[None, :, None] for x in ([3.0, 1.0], [1.0, 3.0]))
    expected = 1 / 2 * math.log((1 / 2) / (1 / 4)) + 1 / 2 * math.log((1 / 2) / (3 / 4))
    assert ct.distillation(b, a, b).item() == pytest.approx(expected)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("partial", [False, True], ids=["all", "partly annotated"])
def test_supervised_loss_is_its_equation(size, batch_dice, partial):
    logits = three(size)[0]
    target = torch.randint(0, 4, (3, *size), generator=torch.Generator().manual_seed(5))
    annotated = ANNOTATED if partial else torch.ones_like(ANNOTATED)
    p, y, focal = softmax(logits), target.flatten(1).numpy(), 0.0
    for b, v in np.ndindex(p.shape[0], p.shape[2]):
        c = y[b, v]
        background = [0] + [k for k in range(1, 4) if not annotated[b, k]]
        prob = sum(p[b, k, v] for k in (background if c in background else [c]))
        focal -= 0.5 * (1 - prob) ** 2 * math.log(prob)
    expected = focal / (p.shape[0] * p.shape[2]) + dice(p, y, [(b, c) for b, c in every_pair(p) if annotated[b, c]], batch_dice)
    groups = groups_from_annotated(annotated) if partial else None
    loss = ct.dice_focal(logits, target[:, None].float(), groups, batch_dice=batch_dice)
    assert loss.ndim == 0 and loss.item() == pytest.approx(expected, abs=1e-12)


# ---- a partly annotated case is unlabelled for the rest


@pytest.mark.parametrize("batch_dice", [True, False])
def test_losses_on_the_classes_that_are_not_annotated(batch_dice):
    s, p1, p2 = three(SIZES["2d"])
    rest = groups_from_annotated(~ANNOTATED)
    a, b, c = softmax(p1), softmax(p2), softmax(s)
    pairs = [(i, k) for i, k in every_pair(a) if not ANNOTATED[i, k]]
    assert ct.cross_teaching(p1, p2, rest, batch_dice=batch_dice).item() == pytest.approx(
        dice(a, b.argmax(1), pairs, batch_dice) + dice(b, a.argmax(1), pairs, batch_dice), abs=1e-12
    )
    assert ct.pseudo_supervision(s, p1, p2, rest, batch_dice=batch_dice).item() == pytest.approx(
        dice(c, ((a + b) / 2).argmax(1), pairs, batch_dice), abs=1e-12
    )


def test_nothing_left_gives_exactly_zero():
    s, p1, p2 = three(SIZES["2d"])
    nothing = groups_from_annotated(torch.zeros(3, 4, dtype=torch.bool))
    target = torch.ones(3, *SIZES["2d"])
    for loss, inputs in (
        (ct.cross_teaching(p1, p2, nothing), (p1, p2)),
        (ct.pseudo_supervision(s, p1, p2, nothing), (s,)),
        (ct.dice_focal(s, target, nothing), (s,)),
        (ct.dice_focal(s, target, nothing, gamma=1.5), (s,)),
    ):
        assert loss.item() == 0 and all(g.abs().max() == 0 for g in gradients(loss, *inputs))


def test_no_sample_gives_zero():
    s, p1, p2 = three(SIZES["2d"])
    empty = [x[:0] for x in (s, p1, p2)]
    total = (
        ct.cross_teaching(*empty[1:])
        + ct.pseudo_supervision(*empty)
        + ct.distillation(*empty)
        + ct.dice_focal(empty[0], torch.ones(0, *SIZES["2d"]))
    )
    assert total.item() == 0 and all(g is None or g.abs().max() == 0 for g in gradients(total, s, p1, p2))


# ---- zero at equality, gradients where they belong


def test_zero_where_all_say_the_same_with_certainty():
    labels = torch.randint(0, 4, (2, 6, 5), generator=torch.Generator().manual_seed(0))
    logits = 1e3 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).double()
    for loss in (ct.cross_teaching(logits, logits), ct.pseudo_supervision(logits, logits, logits), ct.dice_focal(logits, labels)):
        assert abs(loss.item()) < 1e-12


def test_distillation_is_zero_where_the_student_says_the_same():
    p1 = three(SIZES["2d"])[1]
    s = p1.detach().clone().requires_grad_()
    loss = ct.distillation(s, p1, p1)
    assert abs(loss.item()) < 1e-15 and gradients(loss, s)[0].abs().max() < 1e-15


def test_pseudo_supervision_and_distillation_teach_the_student_alone():
    s, p1, p2 = three(SIZES["2d"])
    for loss in (ct.pseudo_supervision(s, p1, p2), ct.distillation(s, p1, p2)):
        student, first, second = gradients(loss, s, p1, p2)
        assert student.abs().max() > 0 and first is None and second is None


def test_cross_teaching_teaches_both_but_not_through_the_labels():
    _, p1, p2 = three(SIZES["2d"])
    first, second = gradients(ct.cross_teaching(p1, p2), p1, p2)
    # with the other teacher frozen each gets the gradient of its own term
    torch.testing.assert_close(first, gradients(ct.cross_teaching(p1, p2.detach()), p1)[0])
    torch.testing.assert_close(second, gradients(ct.cross_teaching(p1.detach(), p2), p2)[0])
    # scaling a teacher changes its probabilities but not its labels, and so not what it teaches
    torch.testing.assert_close(first, gradients(ct.cross_teaching(p1, 3 * p2), p1)[0])


def test_gradients_are_those_of_the_values():
    s, p1, p2 = three((2, 2))
    target = torch.randint(0, 4, (3, 2, 2), generator=torch.Generator().manual_seed(5))
    groups = groups_from_annotated(ANNOTATED)
    torch.autograd.gradcheck(
        lambda z: (
            ct.pseudo_supervision(z, p1, p2),
            ct.distillation(z, p1, p2),
            ct.cross_teaching(z, p1),
            ct.dice_focal(z, target, groups),
        ),
        s,
    )


# ---- precision, arguments


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_loss_of_the_rounded_logits(dtype):
    half = three(SIZES["3d"], dtype=dtype)
    exact = [x.detach().double() for x in half]
    target = torch.randint(0, 4, (3, *SIZES["3d"]), generator=torch.Generator().manual_seed(5))
    for loss in (
        lambda s, a, b: ct.cross_teaching(a, b),
        ct.pseudo_supervision,
        ct.distillation,
        lambda s, a, b: ct.dice_focal(s, target, groups_from_annotated(ANNOTATED)),
    ):
        ours = loss(*half)
        assert ours.dtype == torch.float32 and ours.item() == pytest.approx(loss(*exact).item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype, scale):
    s, p1, p2 = ((scale * x.detach().sign()).to(dtype).requires_grad_() for x in three(SIZES["2d"]))
    target = torch.randint(0, 4, (3, *SIZES["2d"]), generator=torch.Generator().manual_seed(5))
    loss = (
        ct.cross_teaching(p1, p2)
        + ct.pseudo_supervision(s, p1, p2)
        + ct.distillation(s, p1, p2)
        + ct.dice_focal(s, target, groups_from_annotated(ANNOTATED))
    )
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients(loss, s, p1, p2))


def test_arguments_come_back_unchanged():
    s, p1, p2 = three(SIZES["2d"])
    target, groups = torch.ones(3, *SIZES["2d"], dtype=torch.long), groups_from_annotated(ANNOTATED)
    before = [x.detach().clone() for x in (s, p1, p2, target, groups)]
    (
        ct.cross_teaching(p1, p2, groups)
        + ct.pseudo_supervision(s, p1, p2, groups)
        + ct.distillation(s, p1, p2)
        + ct.dice_focal(s, target, groups)
    ).backward()
    assert all(torch.equal(x.detach(), y) for x, y in zip((s, p1, p2, target, groups), before))
