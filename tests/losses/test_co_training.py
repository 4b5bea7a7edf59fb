import math

import numpy as np
import pytest
import torch

from nnunet_partial.losses import co_training

SIZES = {"2d": (5, 4), "3d": (3, 4, 2)}
ALPHA = [0.5, 1.0, 2.0, 3.0]


def case(size, num_samples=2, num_classes=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((num_samples, num_classes, *size), generator=g, dtype=torch.float64)
    target = torch.randint(0, num_classes, (num_samples, *size), generator=g)
    return logits.to(dtype).requires_grad_(), target


def softmax(logits):
    """(B, C, N) of float64 logits, one voxel at a time."""
    z = logits.detach().double().flatten(2).numpy()
    p = np.zeros_like(z)
    for b, v in np.ndindex(z.shape[0], z.shape[2]):
        e = [math.exp(x - z[b, :, v].max()) for x in z[b, :, v]]
        p[b, :, v] = [x / sum(e) for x in e]
    return p


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


# ---- Eq. 1


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_is_its_equation(size, gamma):
    logits, target = case(size)
    p, y = softmax(logits), target.flatten(1).tolist()
    terms = [
        -ALPHA[y[b][v]] * (1 - p[b, y[b][v], v]) ** gamma * math.log(p[b, y[b][v], v])
        for b, v in np.ndindex(p.shape[0], p.shape[2])
    ]
    loss = co_training.focal_loss(logits, target, torch.tensor(ALPHA), gamma)
    assert loss.ndim == 0 and loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


def test_focal_by_hand():
    # two voxels, p = 1/4 of class 1 with weight 2, and p = 3/4 of background with weight 1
    logits = torch.tensor([[3.0, 3], [1, 1]], dtype=torch.float64).log()[None]
    loss = co_training.focal_loss(logits, torch.tensor([[1, 0]]), [1.0, 2.0])
    assert loss.item() == pytest.approx((2 * (3 / 4) ** 2 * math.log(4) + 1 * (1 / 4) ** 2 * math.log(4 / 3)) / 2)


def test_focal_of_gamma_0_is_cross_entropy_without_division_by_weights():
    logits, target = case((4, 3))
    expected = torch.nn.functional.cross_entropy(logits, target, torch.tensor(ALPHA).double(), reduction="none").mean()
    torch.testing.assert_close(co_training.focal_loss(logits, target, ALPHA, gamma=0), expected)


def test_focal_is_zero_with_zero_gradient_where_the_network_is_right():
    target = torch.tensor([[0, 1, 3]])
    logits = (1e4 * torch.nn.functional.one_hot(target, 4).movedim(-1, 1).double()).requires_grad_()
    loss = co_training.focal_loss(logits, target, ALPHA)
    assert loss.item() == 0 and gradient(loss, logits).abs().max() == 0


# ---- Eq. 2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_dice_is_its_equation(size, smooth):
    logits, target = case(size)
    p, y, total = softmax(logits), target.flatten(1).numpy(), 0.0
    for b in range(p.shape[0]):
        for c in range(1, p.shape[1]):
            overlap = sum(p[b, c, v] for v in range(p.shape[2]) if y[b, v] == c)
            sizes = sum(y[b, v] == c for v in range(p.shape[2])) + sum(p[b, c, v] for v in range(p.shape[2]))
            total += 1 - 2 * (overlap + smooth) / (sizes + smooth)
    loss = co_training.soft_dice_loss(logits, target, smooth)
    assert loss.ndim == 0 and loss.item() == pytest.approx(total / p.shape[0], abs=1e-12)


def test_dice_at_a_match_and_at_an_absent_organ():
    # organ 1 is found in its 2 voxels: 1 - 2 (2 + e) / (4 + e); organ 2 is nowhere: 1 - 2 e / e
    target = torch.tensor([[1, 1, 0]])
    logits = 1e4 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    assert co_training.soft_dice_loss(logits, target, smooth=0.5).item() == pytest.approx(1 - 2 * 2.5 / 4.5 - 1)


# ---- Eqs. 4 and 5


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_soft_cross_entropy_is_its_equation(size):
    logits, _ = case(size)
    teacher = torch.softmax(case(size)[0].detach().flip(0), 1)
    region = torch.rand(2, *size, generator=torch.Generator().manual_seed(1)) < 0.4
    p, q, t = softmax(logits), teacher.flatten(2).numpy(), region.flatten(1).numpy()
    total = -sum(q[b, c, v] * math.log(p[b, c, v]) for b, v in zip(*np.nonzero(t)) for c in range(4))
    loss = co_training.soft_cross_entropy(logits, teacher, region)
    assert loss.ndim == 0 and loss.item() == pytest.approx(total / t.sum(), abs=1e-12)


def test_soft_cross_entropy_of_the_subset_is_that_of_the_mask():
    logits, _ = case((6, 3))
    teacher = torch.softmax(torch.randn(2, 4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 1)
    region = torch.zeros(2, 6, 3, dtype=torch.bool)
    region[:, 2:5] = True
    masked = co_training.soft_cross_entropy(logits, teacher, region)
    subset = co_training.soft_cross_entropy(logits[:, :, 2:5], teacher[:, :, 2:5], region[:, 2:5])
    torch.testing.assert_close(masked, subset)
    grad = gradient(masked, logits)
    torch.testing.assert_close(grad, gradient(subset, logits))
    assert torch.equal(grad.abs().amax(1) > 0, region)


def test_soft_cross_entropy_pulls_towards_the_teacher_alone():
    logits, _ = case((4, 3))
    teacher = torch.softmax(logits.detach(), 1).requires_grad_()
    loss = co_training.soft_cross_entropy(logits, teacher, torch.ones(2, 4, 3, dtype=torch.bool))
    student_gradient, teacher_gradient = torch.autograd.grad(loss, [logits, teacher], allow_unused=True)
    # not zero at equality, it is the teacher's entropy, but it has no slope there
    assert loss.item() > 0 and student_gradient.abs().max() < 1e-15 and teacher_gradient is None


def test_soft_cross_entropy_of_an_empty_region():
    logits, _ = case((4, 3))
    loss = co_training.soft_cross_entropy(logits, torch.softmax(logits, 1), torch.zeros(2, 4, 3, dtype=torch.bool))
    assert loss.item() == 0 and gradient(loss, logits).abs().max() == 0


# ---- the region mask


def test_region_of_the_equation():
    # classes 1 and 3 are annotated in the first sample, nothing is in the second, everything in the third
    target = torch.tensor([[0, 1, 2, 3]] * 3)
    annotated = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    region = co_training.region_mask(target, annotated)
    assert region.dtype == torch.bool
    assert region.int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_dilated_region_by_hand():
    annotated = torch.tensor([[True, True, False]])
    pseudo = torch.tensor([[0, 0, 0, 2, 0, 1, 1, 0, 0]])
    region = co_training.region_mask(pseudo, annotated, "dilated", iterations=2)
    assert region.int().tolist() == [[0, 1, 1, 1, 1, 0, 0, 0, 0]], "two voxels around organ 2, but never on organ 1"
    truth = torch.where(pseudo == 1, pseudo, 0)
    assert torch.equal(co_training.region_mask(truth, annotated, "dilated", pseudo, iterations=2), region)
    assert not co_training.region_mask(truth, annotated, "dilated", iterations=2).any(), "no pseudo label, no region"


@pytest.mark.parametrize("size", [(7, 6), (5, 6, 4), (1, 5, 4)], ids=["2d", "3d", "one slice"])
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_dilated_region_is_the_neighbourhood(size, iterations):
    target = torch.randint(0, 40, (2, *size), generator=torch.Generator().manual_seed(0)).clamp_max(4) % 4
    target = torch.where(torch.rand(2, *size, generator=torch.Generator().manual_seed(1)) < 0.8, 0, target)
    annotated = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    region = co_training.region_mask(target, annotated, "dilated", iterations=iterations)
    for index in np.ndindex(2, *size):
        b, voxel = index[0], index[1:]
        label = target[index].item()
        near = any(
            target[(b, *other)] > 0
            and not annotated[b, target[(b, *other)]]
            and max(abs(i - j) for i, j in zip(voxel, other)) <= iterations
            for other in np.ndindex(*size)
        )
        assert region[index].item() == (near and not (label > 0 and annotated[b, label].item()))


# ---- class weights


def test_class_weights_by_hand():
    # 1/1, 1/2, 1/4 have the mean 7/12
    weights = co_training.class_weights_from_volumes([1.0, 2.0, 4.0])
    assert weights.tolist() == pytest.approx([1, 12 / 7, 6 / 7, 3 / 7])
    assert weights[1:].mean().item() == pytest.approx(1)
    assert co_training.class_weights_from_volumes(torch.tensor([1000.0, 2000, 4000]), background=0.3).tolist() == pytest.approx(
        [0.3, 12 / 7, 6 / 7, 3 / 7]
    ), "the unit does not matter"


# ---- precision, arguments, errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_loss_of_the_rounded_logits(dtype):
    logits, target = case((5, 4), dtype=dtype)
    teacher, region = torch.softmax(logits.detach().double(), 1), target > 0
    exact = logits.detach().double().requires_grad_()
    for loss in (
        lambda z: co_training.focal_loss(z, target, ALPHA),
        lambda z: co_training.soft_dice_loss(z, target),
        lambda z: co_training.soft_cross_entropy(z, teacher.to(z.dtype), region),
    ):
        ours, expected = loss(logits), loss(exact)
        assert ours.dtype == torch.float32
        rel = 1e-5 if dtype == torch.float16 else 1e-3
        assert ours.item() == pytest.approx(expected.item(), rel=max(rel, 2 * torch.finfo(dtype).eps))
        assert gradient(ours, logits).dtype == dtype


@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype, scale):
    logits, target = case((4, 3))
    logits = (scale * logits.detach().sign()).to(dtype).requires_grad_()
    teacher = torch.softmax(-logits.detach().float(), 1)
    loss = (
        co_training.focal_loss(logits, target, ALPHA)
        + co_training.soft_dice_loss(logits, target)
        + co_training.soft_cross_entropy(logits, teacher, target > 0)
    )
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, logits)).all()


def test_arguments_come_back_unchanged():
    logits, target = case((4, 3))
    weights, annotated = torch.tensor(ALPHA), torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    teacher, region, volumes = torch.softmax(logits.detach(), 1), target > 1, torch.tensor([1.0, 2.0])
    everything = [logits, target, weights, annotated, teacher, region, volumes]
    before = [x.detach().clone() for x in everything]
    (
        co_training.focal_loss(logits, target, weights)
        + co_training.soft_dice_loss(logits, target)
        + co_training.soft_cross_entropy(logits, teacher, region)
    ).backward()
    co_training.region_mask(target, annotated, "dilated", target)
    co_training.class_weights_from_volumes(volumes)
    assert all(torch.equal(x.detach(), y) for x, y in zip(everything, before))


def test_labels_may_have_a_channel_and_be_floats():
    logits, target = case((4, 3))
    other = target[:, None].float()
    assert torch.equal(co_training.focal_loss(logits, other, ALPHA), co_training.focal_loss(logits, target, ALPHA))
    assert torch.equal(co_training.soft_dice_loss(logits, other), co_training.soft_dice_loss(logits, target))


def test_gradients_are_those_of_the_values():
    logits, target = case((2, 2), num_samples=1)
    teacher = torch.softmax(logits.detach().flip(1), 1)
    torch.autograd.gradcheck(
        lambda z: (
            co_training.focal_loss(z, target, ALPHA),
            co_training.soft_dice_loss(z, target),
            co_training.soft_cross_entropy(z, teacher, target > 0),
        ),
        logits,
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda z, y: co_training.focal_loss(z, y, [1.0, 2.0]), "one weight for each of the 4 classes"),
        (lambda z, y: co_training.focal_loss(z, y, ALPHA, gamma=0.5), "gamma is 0.5"),
        (lambda z, y: co_training.focal_loss(z, y[:, :2], ALPHA), "target has shape"),
        (lambda z, y: co_training.soft_dice_loss(z, y[:1]), "target has shape"),
        (lambda z, y: co_training.soft_cross_entropy(z, z[:, :2], y > 0), "teacher_probs has shape"),
        (lambda z, y: co_training.soft_cross_entropy(z, z, y[:1] > 0), "region has shape"),
        (lambda z, y: co_training.region_mask(y, torch.ones(2, 4) > 0, "both"), "'equation' or 'dilated'"),
        (lambda z, y: co_training.region_mask(y, torch.ones(4) > 0), "annotated has shape"),
        (lambda z, y: co_training.class_weights_from_volumes([1.0, 0.0]), "positive mean volume"),
        (lambda z, y: co_training.class_weights_from_volumes([]), "positive mean volume"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*case((4, 3)))
