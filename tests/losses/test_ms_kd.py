import math

import numpy as np
import pytest
import torch

from nnunet_partial.losses import ms_kd

SIZES = {"2d": (4, 3), "3d": (3, 2, 4)}
CLASSES = [(1,), (3, 2), (4,)]
NUM_CLASSES = 5


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def teachers(size, classes=CLASSES, dtype=torch.float64):
    return [2 * random(2, len(c) + 1, *size, seed=10 + k, dtype=dtype) for k, c in enumerate(classes)]


def softmax(values):
    e = [math.exp(x - max(values)) for x in values]
    return [x / sum(e) for x in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def read_logit_loss(student, teacher_logits, classes):
    """Eqs. 2 to 6, voxel by voxel."""
    s = student.detach().double().flatten(2).numpy()
    ts = [t.detach().double().flatten(2).numpy() for t in teacher_logits]
    organ = background = 0.0
    for b in range(s.shape[0]):
        for v in range(s.shape[2]):
            q_s, q_hats, masks = softmax(s[b, :, v]), [], []
            for t, cs in zip(ts, classes):
                q, q_hat = softmax(t[b, :, v]), [0.0] * s.shape[1]
                for j, c in enumerate((0, *cs)):
                    q_hat[c] = q[j]
                q_hats.append(q_hat)
                masks.append(int(np.argmax(t[b, :, v])) > 0)
                organ += kl(q_hat, q_s) * masks[-1]
            if not any(masks):
                background += kl(np.mean(q_hats, 0), q_s)
    return organ / (s.shape[0] * s.shape[2]), background / (s.shape[0] * s.shape[2])


def read_feature_loss(student, features, masks):
    """Eq. 7, voxel by voxel."""
    s, voxels, total = student.detach().double().flatten(2).numpy(), masks[0].numel(), 0.0
    for f, m in zip(features, masks):
        f, m = f.detach().double().flatten(2).numpy(), m.flatten(1).numpy()
        for b, v in zip(*np.nonzero(m)):
            total += kl(sorted(softmax(f[b, :, v])), sorted(softmax(s[b, :, v]))) / voxels
    return total


# ---- regions and transfer


def test_regions_by_hand():
    # voxels: no teacher | teacher 0 | teacher 1, second organ | both | ties, which are background
    first = torch.tensor([[[1.0, 0, 1, 0, 1], [0.0, 1, 0, 1, 1]]])
    second = torch.tensor([[[2.0, 2, 0, 0, 1], [0.0, 0, 0, 1, 1], [1.0, 0, 1, 0, 1]]])
    organs, background = ms_kd.teacher_regions([first, second])
    assert organs[0].tolist() == [[False, True, False, True, False]]
    assert organs[1].tolist() == [[False, False, True, True, False]]
    assert background.tolist() == [[True, False, False, False, True]]
    assert background.dtype == torch.bool


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_regions_are_argmax(size):
    logits = teachers(size)
    organs, background = ms_kd.teacher_regions(logits)
    for region, t in zip(organs, logits):
        assert torch.equal(region, t.argmax(1) > 0)
    assert torch.equal(background, torch.stack([t.argmax(1) == 0 for t in logits]).all(0))


def test_transfer_by_hand():
    probs = torch.tensor([[[0.5, 0.25], [0.2, 0.25], [0.3, 0.5]]])
    assert (
        ms_kd.transfer(probs, (3, 1), 5).tolist()
        == torch.tensor([[[0.5, 0.25], [0.3, 0.5], [0, 0], [0.2, 0.25], [0, 0]]]).tolist()
    )


# ---- logits


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("classes", [CLASSES, [(1,), (2,)], [(2,), (2, 1)]], ids=["several organs", "two", "shared organ"])
def test_logit_loss_is_its_equations(size, classes):
    student, logits = random(2, NUM_CLASSES, *size), teachers(size, classes)
    organs, _ = ms_kd.teacher_regions(logits)
    assert (sum(o.int() for o in organs) > 1).any(), "the case of overlapping regions must occur"
    organ, background = ms_kd.logit_loss(student, logits, classes)
    expected = read_logit_loss(student, logits, classes)
    assert organ.ndim == background.ndim == 0
    assert organ.item() == pytest.approx(expected[0], abs=1e-12)
    assert background.item() == pytest.approx(expected[1], abs=1e-12)


@pytest.mark.parametrize("b", (0.25, 1.0))
def test_by_region_each_term_is_divided_by_its_own_voxels(b):
    """Against the equations: KL of every voxel, summed over a region, by |R| and by the region's voxels."""
    size = SIZES["3d"]
    student, logits, valid = random(2, NUM_CLASSES, *size), teachers(size), random(2, *size, seed=4) > -1
    organs, everywhere = ms_kd.teacher_regions(logits)
    q_hats = [ms_kd.transfer(t.softmax(1), c, NUM_CLASSES) for t, c in zip(logits, CLASSES)]
    log_q = student.log_softmax(1)
    dense = [(torch.xlogy(q, q) - q * log_q).sum(1) for q in (*q_hats, sum(q_hats) / len(q_hats))]
    for counted in (torch.ones_like(everywhere), valid):
        regions = [i & counted for i in (*organs, everywhere)]
        sums, sizes, all_voxels = (
            [d[m].sum().item() for d, m in zip(dense, regions)],
            [m.sum().item() for m in regions],
            counted.sum(),
        )
        assert min(sizes) > 0
        expected = [(1 - b) * i / all_voxels.item() + b * i / n for i, n in zip(sums, sizes)]
        given = None if counted is not valid else valid
        organ, background = ms_kd.logit_loss(student, logits, CLASSES, given, by_region=b)
        assert organ.item() == pytest.approx(sum(expected[:-1]), abs=1e-12)
        assert background.item() == pytest.approx(expected[-1], abs=1e-12)


def test_by_region_ends_as_the_equations_are_and_leaves_empty_regions_at_zero():
    student, logits = random(1, 3, 2, 2).requires_grad_(), [torch.tensor([[9.0, -9]], dtype=torch.float64).reshape(1, 2, 1, 1)]
    logits = [i.expand(1, 2, 2, 2) for i in logits]  # the teacher sees no organ
    organ, background = ms_kd.logit_loss(student, logits, [(1,)], by_region=1.0)
    assert organ.item() == 0 and background.item() > 0
    (gradient,) = torch.autograd.grad(organ + 0 * background, student)
    assert not gradient.any()
    size = SIZES["2d"]
    plain = ms_kd.logit_loss(random(2, NUM_CLASSES, *size), teachers(size), CLASSES)
    assert ms_kd.logit_loss(random(2, NUM_CLASSES, *size), teachers(size), CLASSES, by_region=0.0) == plain
    with pytest.raises(ValueError, match="by_region is 1.5"):
        ms_kd.logit_loss(random(2, NUM_CLASSES, *size), teachers(size), CLASSES, by_region=1.5)


def test_logit_loss_at_one_voxel_by_hand():
    # teacher: q = (1/4, 3/4), organ 2 of 2; student: (1/2, 1/4, 1/4)
    teacher = torch.tensor([1.0, 3], dtype=torch.float64).log()[None, :, None]
    student = torch.tensor([2.0, 1, 1], dtype=torch.float64).log()[None, :, None]
    organ, background = ms_kd.logit_loss(student, [teacher], [(2,)])
    assert organ.item() == pytest.approx(1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 4)))
    assert background.item() == 0
    # the same teacher with its outputs exchanged calls the voxel background
    organ, background = ms_kd.logit_loss(student, [teacher.flip(1)], [(2,)])
    assert organ.item() == 0
    assert background.item() == pytest.approx(3 / 4 * math.log((3 / 4) / (1 / 2)) + 1 / 4 * math.log((1 / 4) / (1 / 4)))


def test_logit_loss_uses_transfer():
    size = SIZES["3d"]
    student, logits = random(2, NUM_CLASSES, *size), teachers(size)
    organs, everywhere = ms_kd.teacher_regions(logits)
    q_hats = [ms_kd.transfer(t.softmax(1), c, NUM_CLASSES) for t, c in zip(logits, CLASSES)]
    log_q = student.log_softmax(1)
    dense = [(torch.xlogy(q, q) - q * log_q).sum(1) for q in (*q_hats, sum(q_hats) / len(q_hats))]
    organ, background = ms_kd.logit_loss(student, logits, CLASSES)
    torch.testing.assert_close(organ, sum((d * m).mean() for d, m in zip(dense, organs)))
    torch.testing.assert_close(background, (dense[-1] * everywhere).mean())


def test_logit_loss_is_zero_where_the_student_says_the_same():
    # one teacher whose organs are all of the student's: q_hat is a permutation that the student can equal
    teacher = 3 * random(2, 3, 4, 3)
    student = teacher[:, [0, 2, 1]].clone().requires_grad_()
    organ, background = ms_kd.logit_loss(student, [teacher], [(2, 1)])
    assert abs(organ.item()) < 1e-15 and abs(background.item()) < 1e-15
    assert torch.autograd.grad(organ + background, student)[0].abs().max() < 1e-15


@pytest.mark.parametrize("sign, silent", [(1, 1), (-1, 0)], ids=["no background", "no organ"])
def test_empty_region_gives_exactly_zero(sign, silent):
    student = random(1, 3, 4, 3).requires_grad_()
    teacher = sign * torch.tensor([-5.0, 5])[None, :, None, None].expand(1, 2, 4, 3)
    terms = ms_kd.logit_loss(student, [teacher], [(1,)])
    grad = torch.autograd.grad(terms[silent], student, retain_graph=True)[0]
    assert terms[silent].item() == 0 and grad.abs().max() == 0
    assert terms[1 - silent].item() > 0


def test_logit_gradient_stays_in_its_region_and_off_the_teachers():
    size = SIZES["2d"]
    student = random(2, NUM_CLASSES, *size).requires_grad_()
    logits = [t.requires_grad_() for t in teachers(size)]
    organs, everywhere = ms_kd.teacher_regions(logits)
    for term, region in zip(ms_kd.logit_loss(student, logits, CLASSES), (torch.stack(organs).any(0), everywhere)):
        grad = torch.autograd.grad(term, [student, *logits], retain_graph=True, allow_unused=True)
        assert torch.equal(grad[0].abs().amax(1) > 0, region)
        assert all(g is None for g in grad[1:])


def test_logit_gradient_is_that_of_the_value():
    logits = [t[:1] for t in teachers((2, 2))]
    student = random(1, NUM_CLASSES, 2, 2).requires_grad_()
    for b in (0.0, 0.4, 1.0):
        torch.autograd.gradcheck(lambda s, b=b: ms_kd.logit_loss(s, logits, CLASSES, by_region=b), student)


# ---- features


def feature_case(size, dtype=torch.float64, channels=6):
    student = random(2, channels, *size, seed=1, dtype=dtype)
    features = [2 * random(2, channels, *size, seed=2 + k, dtype=dtype) for k in range(2)]
    masks = [random(2, *size, seed=5 + k) > 0.3 for k in range(2)]
    return student, features, masks


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_feature_loss_is_its_equation(size):
    student, features, masks = feature_case(size)
    loss = ms_kd.feature_loss(student, features, masks)
    assert loss.ndim == 0 and loss.item() == pytest.approx(read_feature_loss(student, features, masks), abs=1e-12)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_features_of_the_mask_alone_are_features_times_the_mask(size):
    student, features, masks = feature_case(size)
    student.requires_grad_()
    log_s = student.log_softmax(1).sort(1).values
    dense = sum(
        ((torch.xlogy(q, q) - q * log_s).sum(1) * m).mean()
        for q, m in ((f.softmax(1).sort(1).values, m) for f, m in zip(features, masks))
    )
    loss = ms_kd.feature_loss(student, features, masks)
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], torch.autograd.grad(dense, student)[0])


def test_feature_loss_ignores_the_order_of_channels():
    student, features, masks = feature_case((4, 3))
    permuted = student[:, [3, 0, 5, 1, 4, 2]].requires_grad_()
    loss = ms_kd.feature_loss(permuted, [student, student], masks)
    assert abs(loss.item()) < 1e-15
    assert torch.autograd.grad(loss, permuted)[0].abs().max() < 1e-15
    assert ms_kd.feature_loss(student, features, masks).item() > 0.01


def test_feature_gradient_stays_in_its_region_and_off_the_teachers():
    student, features, masks = feature_case((4, 3))
    for x in (student, *features):
        x.requires_grad_()
    grads = torch.autograd.grad(ms_kd.feature_loss(student, features, masks), [student, *features], allow_unused=True)
    assert torch.equal(grads[0].abs().amax(1) > 0, masks[0] | masks[1])
    assert grads[1] is None and grads[2] is None


def test_feature_gradient_is_that_of_the_value():
    student, features, masks = feature_case((2, 2), channels=3)
    torch.autograd.gradcheck(lambda s: ms_kd.feature_loss(s, features, masks), student.requires_grad_())


@pytest.mark.parametrize("num_teachers", [0, 1, 2])
def test_empty_masks_give_zero_with_a_zero_gradient(num_teachers):
    student, features, masks = feature_case((4, 3))
    student.requires_grad_()
    empty = [torch.zeros_like(m) for m in masks]
    loss = ms_kd.feature_loss(student, features[:num_teachers], empty[:num_teachers])
    grad = torch.autograd.grad(loss, student)[0]
    assert loss.item() == 0 and grad.shape == student.shape and grad.abs().max() == 0


def test_no_sample_gives_zero():
    student = random(2, NUM_CLASSES, 4, 3).requires_grad_()
    nothing = student[:0]
    terms = ms_kd.logit_loss(nothing, [t[:0] for t in teachers((4, 3))], CLASSES)
    feature = ms_kd.feature_loss(nothing, [nothing], [torch.zeros(0, 4, 3, dtype=torch.bool)])
    assert sum(terms).item() == feature.item() == 0
    assert torch.autograd.grad(sum(terms) + feature, student)[0].abs().max() == 0


def test_one_empty_mask_of_two():
    student, features, masks = feature_case((4, 3))
    both = ms_kd.feature_loss(student, features, [masks[0], torch.zeros_like(masks[1])])
    torch.testing.assert_close(both, ms_kd.feature_loss(student, features[:1], masks[:1]))


@pytest.mark.parametrize("full, level", [((4, 6), (2, 3)), ((4, 4, 6), (4, 2, 3)), ((5, 7), (3, 4)), ((1, 4), (1, 2))])
def test_reduce_mask_takes_the_voxel_at_the_centre(full, level):
    mask = random(2, *full) > 0
    reduced = ms_kd.reduce_mask(mask, level)
    assert reduced.dtype == torch.bool and reduced.shape == (2, *level)
    for index in np.ndindex(*level):
        source = [int((i + 0.5) * f / n) for i, f, n in zip(index, full, level)]
        assert torch.equal(reduced[(slice(None), *index)], mask[(slice(None), *source)])


def test_reduce_mask_at_its_own_resolution_is_the_mask():
    mask = random(2, 4, 3) > 0
    assert torch.equal(ms_kd.reduce_mask(mask, (4, 3)), mask)


# ---- precision, arguments, errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_teacher_and_student(dtype):
    size = SIZES["3d"]
    student, logits = random(2, NUM_CLASSES, *size, dtype=dtype).requires_grad_(), teachers(size, dtype=dtype)
    terms = ms_kd.logit_loss(student, logits, CLASSES)
    assert [t.item() for t in terms] == pytest.approx(read_logit_loss(student, logits, CLASSES), rel=1e-5)
    features = feature_case(size, dtype)
    loss = ms_kd.feature_loss(*features)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(read_feature_loss(*features), rel=1e-5)
    assert torch.autograd.grad(sum(terms), student)[0].dtype == dtype


def test_half_precision_teacher_of_a_full_precision_student():
    student, features, masks = feature_case((4, 3), torch.float32)
    half = [f.half() for f in features]
    assert ms_kd.feature_loss(student, half, masks).item() == pytest.approx(read_feature_loss(student, half, masks), rel=1e-5)
    logits = [t.half() for t in teachers((4, 3))]
    student = random(2, NUM_CLASSES, 4, 3, dtype=torch.float32)
    assert ms_kd.logit_loss(student, logits, CLASSES)[0].item() == pytest.approx(
        read_logit_loss(student, logits, CLASSES)[0], rel=1e-5
    )


@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values_stay_finite(dtype, scale):
    size = (3, 2)
    student = (scale * random(2, NUM_CLASSES, *size).sign()).to(dtype).requires_grad_()
    logits = [(scale * t.sign()).to(dtype) for t in teachers(size)]
    organ, background = ms_kd.logit_loss(student, logits, CLASSES)
    features = ms_kd.feature_loss(
        student, [scale * random(2, NUM_CLASSES, *size, seed=3).sign().to(dtype)], [torch.ones(2, *size, dtype=torch.bool)]
    )
    total = organ + background + features
    assert torch.isfinite(total) and torch.isfinite(torch.autograd.grad(total, student)[0]).all()


def test_arguments_come_back_unchanged():
    student, features, masks = feature_case((4, 3), channels=NUM_CLASSES)
    logits = teachers((4, 3))
    everything = [student, *features, *masks, *logits]
    before = [x.clone() for x in everything]
    ms_kd.logit_loss(student, logits, CLASSES)
    ms_kd.feature_loss(student, features, masks)
    ms_kd.teacher_regions(logits)
    ms_kd.transfer(logits[1], CLASSES[1], NUM_CLASSES)
    ms_kd.reduce_mask(masks[0], (2, 2))
    assert all(torch.equal(x, y) for x, y in zip(everything, before))
    assert CLASSES == [(1,), (3, 2), (4,)] and len(logits) == 3


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ms_kd.teacher_regions([]), "no teachers"),
        (lambda: ms_kd.teacher_regions([torch.zeros(1, 1, 2)]), r"expected \(B, 2.., \*S\)"),
        (lambda: ms_kd.teacher_regions([torch.zeros(1, 2, 2), torch.zeros(1, 2, 3)]), "one B and one S"),
        (lambda: ms_kd.transfer(torch.zeros(1, 3, 2), (1,), 4), "expected 2 of them"),
        (lambda: ms_kd.transfer(torch.zeros(1, 3, 2), (1, 1), 4), "must be distinct"),
        (lambda: ms_kd.transfer(torch.zeros(1, 2, 2), (4,), 4), "1 to 3"),
        (lambda: ms_kd.transfer(torch.zeros(1, 2, 2), (0,), 4), "1 to 3"),
        (lambda: ms_kd.logit_loss(torch.zeros(1, 3, 2), [torch.zeros(1, 2, 2)], []), "1 teachers but the classes of 0"),
        (lambda: ms_kd.logit_loss(torch.zeros(1, 3, 2), [torch.zeros(1, 2, 3)], [(1,)]), "a teacher's output has shape"),
        (
            lambda: ms_kd.feature_loss(torch.zeros(1, 4, 2), [torch.zeros(1, 8, 2)], [torch.ones(1, 2) > 0]),
            r"student features have shape \(1, 4, 2\), teacher features \(1, 8, 2\)",
        ),
        (lambda: ms_kd.feature_loss(torch.zeros(1, 4, 2), [torch.zeros(1, 4, 2)], [torch.ones(1, 4) > 0]), "mask has shape"),
        (lambda: ms_kd.feature_loss(torch.zeros(1, 4, 2), [torch.zeros(1, 4, 2)], []), "1 teachers but masks of 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
