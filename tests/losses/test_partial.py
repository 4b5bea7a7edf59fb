import math

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_partial.losses import partial
from nnunet_partial.losses.partial import MarginalDiceCELoss, groups_from_annotated, marginal_log_probs

SMOOTH = 1e-5
SIZES = {"2d": (5, 4), "3d": (3, 4, 2)}

# partitions of 5 classes: annotated {1, 3}; all; super-classes {1, 2} and {3, 4}; none; arbitrary ids, {0, 2}, {1, 4}, {3}
ONE_THREE = [0, 1, 0, 3, 0]
ALL = [0, 1, 2, 3, 4]
SUPER = [0, 1, 1, 3, 3]
NONE = [0, 0, 0, 0, 0]
ODD = [7, -3, 7, 100, -3]


def batch(size, num_samples, num_classes=5, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((num_samples, num_classes, *size), generator=g, dtype=torch.float64)
    target = torch.randint(0, num_classes, (num_samples, 1, *size), generator=g)
    return logits.to(dtype).requires_grad_(), target


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def probabilities(logits):
    """(B, C, N) softmax of float64 logits, one voxel at a time."""
    z = logits.detach().double().flatten(2).numpy()
    p = np.zeros_like(z)
    for b in range(z.shape[0]):
        for v in range(z.shape[2]):
            e = [math.exp(z[b, c, v] - z[b, :, v].max()) for c in range(z.shape[1])]
            p[b, :, v] = [x / sum(e) for x in e]
    return p


def read_loss(logits, target, groups, batch_dice, ignore=None):
    """The docstring of MarginalDiceCELoss, voxel by voxel, over sets of classes."""
    p, y = probabilities(logits), target.reshape(target.shape[0], -1).tolist()
    ce, voxels, sums = 0.0, 0, {}
    for b in range(p.shape[0]):
        sets = {frozenset(c for c, h in enumerate(groups[b]) if h == g) for g in groups[b]}
        for s in sets:
            if 0 not in s and len(sets) > 1:
                i = q = n = 0.0
                for v in range(p.shape[2]):
                    if y[b][v] != ignore:
                        prob = sum(p[b, c, v] for c in s)
                        i, q, n = i + prob * (y[b][v] in s), q + prob, n + (y[b][v] in s)
                key = min(s) if batch_dice else (b, min(s))
                sums[key] = np.add(sums.get(key, (0, 0, 0)), (i, q, n))
        for v in range(p.shape[2]):
            if y[b][v] != ignore:
                voxels += 1
                ce -= math.log(sum(p[b, c, v] for s in sets if y[b][v] in s for c in s))
    dice = [(2 * i + SMOOTH) / (q + n + SMOOTH) for i, q, n in sums.values()]
    return ce / max(voxels, 1) - (sum(dice) / len(dice) if dice else 0)


def nnunet_loss(batch_dice, ignore=None):
    return DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": SMOOTH, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )


# ---- groups and merged probabilities


def test_groups_from_annotated():
    annotated = torch.tensor([[True, True, False, True], [True, False, False, False], [False, True, True, True]])
    groups = groups_from_annotated(annotated)
    assert groups.dtype == torch.int64
    assert groups.tolist() == [[0, 1, 0, 3], [0, 0, 0, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_marginal_log_probs_is_the_sum_of_probabilities(size):
    logits, _ = batch(size, 5)
    groups = [ONE_THREE, ALL, SUPER, NONE, ODD]
    result = marginal_log_probs(logits, torch.tensor(groups)).detach().flatten(2).numpy()
    p = probabilities(logits)
    for b, row in enumerate(groups):
        for c in range(5):
            members = [k for k in range(5) if row[k] == row[c]]
            expected = np.log(p[b, members].sum(0)) if c == min(members) else np.full(p.shape[2], -np.inf)
            np.testing.assert_allclose(result[b, c], expected, atol=1e-12)


def test_marginal_log_probs_gradient_is_that_of_the_sum():
    logits, _ = batch((3,), 3, num_classes=4)
    groups = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
    torch.autograd.gradcheck(lambda z: torch.nan_to_num(marginal_log_probs(z, groups), neginf=0), logits)


def test_marginal_log_probs_any_integer_names_a_group():
    logits, _ = batch((4,), 1)
    a = marginal_log_probs(logits, torch.tensor([[0, 1, 0, 3, 1]]))
    b = marginal_log_probs(logits, torch.tensor([[9, -5, 9, 4, -5]], dtype=torch.int32))
    assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_marginal_log_probs_stays_finite(dtype, scale):
    logits = (scale * torch.tensor([[1.0, -1, 1, -1, 0], [-1, -1, 1, -1, 1]])).to(dtype)[:, :, None].requires_grad_()
    result = marginal_log_probs(logits, torch.tensor([ONE_THREE, SUPER]))
    present = result != -torch.inf
    assert result.dtype == torch.float32 and present.sum() == 3 + 3 and torch.isfinite(result[present]).all()
    assert torch.isfinite(gradient(result[present].sum(), logits)).all()


# ---- the loss against nnU-Net's


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_annotated_is_nnunets_loss(size, batch_dice, ignore, dtype):
    logits, target = batch(size, 3, dtype=dtype)
    target[target == 2] = 1  # a class that no voxel has
    if ignore is not None:
        target[1, :, 1:] = ignore
    groups = torch.arange(5).repeat(3, 1)
    ours = MarginalDiceCELoss(batch_dice, smooth=SMOOTH, ignore_label=ignore)(logits, target.float(), groups)
    theirs = nnunet_loss(batch_dice, ignore)(logits, target.float())
    assert ours.ndim == 0 and abs(ours.item() - theirs.item()) < 1e-6
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_everything_ignored_is_nnunets_loss(batch_dice):
    logits, target = batch((3, 3), 2)
    target.fill_(5)
    ours = MarginalDiceCELoss(batch_dice, ignore_label=5)(logits, target, torch.arange(5).repeat(2, 1))
    assert ours.item() == pytest.approx(nnunet_loss(batch_dice, 5)(logits, target).item(), abs=1e-6)
    assert gradient(ours, logits).abs().max() == 0


# ---- the loss against its equation


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 5])
@pytest.mark.parametrize(
    "groups",
    [[ONE_THREE, ALL], [SUPER, SUPER], [NONE, ONE_THREE, ALL], [ODD, SUPER], [NONE]],
    ids=["mixed", "super", "with unlabelled", "any partition", "nothing"],
)
def test_loss_is_its_equation(size, batch_dice, ignore, groups):
    logits, target = batch(size, len(groups))
    if ignore is not None:
        target[0, :, :2] = ignore
    loss = MarginalDiceCELoss(batch_dice, smooth=SMOOTH, ignore_label=ignore)(logits, target, torch.tensor(groups))
    assert loss.item() == pytest.approx(read_loss(logits, target, groups, batch_dice, ignore), abs=1e-9)


def test_loss_at_one_voxel_by_hand():
    # p = (1, 2, 3, 2) / 8. Class 1 is annotated; 2 and 3 are merged with background: p_bg = 6/8, p_1 = 2/8.
    logits = torch.tensor([1.0, 2, 3, 2], dtype=torch.float64).log()[None, :, None]
    groups = groups_from_annotated(torch.tensor([[True, True, False, False]]))
    loss = MarginalDiceCELoss(False, smooth=0.0)
    expected_organ = -math.log(2 / 8) - 2 * (2 / 8) / (2 / 8 + 1)
    assert loss(logits, torch.ones(1, 1, 1), groups).item() == pytest.approx(expected_organ, abs=1e-12)
    for merged_label in (0, 2, 3):  # a label that is merged with background is background
        expected = -math.log(6 / 8) - 0 / (2 / 8 + 0)
        assert loss(logits, torch.full((1, 1), merged_label), groups).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, 5])
@pytest.mark.parametrize("weights", [(1, 1), (2, 0), (0, 3)])
@pytest.mark.parametrize("groups", [[ONE_THREE, ALL, ODD, NONE], [SUPER, ALL], [ONE_THREE]], ids=["mixed", "super", "one"])
def test_gradient_is_that_of_the_value(batch_dice, ignore, weights, groups):
    logits, target = batch((2, 2), len(groups))
    if ignore is not None:
        target[0, :, :1] = ignore
    loss = MarginalDiceCELoss(batch_dice, weight_ce=weights[0], weight_dice=weights[1], ignore_label=ignore, smooth=0.1)
    torch.autograd.gradcheck(lambda z: loss(z, target, torch.tensor(groups)), logits)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_weights_multiply_the_two_parts(batch_dice):
    logits, target = batch((4, 3), 2)
    groups = torch.tensor([ONE_THREE, ALL])
    ce, dice, both = (
        MarginalDiceCELoss(batch_dice, weight_ce=c, weight_dice=d)(logits, target, groups).item()
        for c, d in ((1, 0), (0, 1), (2, 0.5))
    )
    assert both == pytest.approx(2 * ce + 0.5 * dice, abs=1e-12) and dice < 0 < ce


# ---- invariants


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nothing_annotated_gives_exactly_nothing(batch_dice, dtype):
    logits, target = batch((4, 3), 2, dtype=dtype)
    loss = MarginalDiceCELoss(batch_dice)(logits, target, torch.tensor([NONE, NONE]))
    assert loss.item() == 0 and gradient(loss, logits).abs().max() == 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_unlabelled_sample_only_counts_its_voxels(batch_dice):
    logits, target = batch((4, 3), 2)
    alone = {
        w: MarginalDiceCELoss(batch_dice, **w_kw)(logits[:1], target[:1], torch.tensor([ONE_THREE])).item()
        for w, w_kw in (("ce", {"weight_dice": 0}), ("dice", {"weight_ce": 0}))
    }
    loss = MarginalDiceCELoss(batch_dice)(logits, target, torch.tensor([ONE_THREE, NONE]))
    assert loss.item() == pytest.approx(alone["ce"] / 2 + alone["dice"], abs=1e-12)
    assert gradient(loss, logits)[1].abs().max() == 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_only_the_sum_of_merged_probabilities_matters(batch_dice):
    logits, target = batch((4, 3), 1)
    groups = torch.tensor([ONE_THREE])
    merged, kept = [0, 2, 4], [1, 3]
    other = logits.detach().clone()
    # another split of the same probability between the merged classes: softmax of noise, scaled to the same sum
    split = torch.log_softmax(torch.randn(1, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 1)
    other[:, merged] = split + logits.detach()[:, merged].logsumexp(1, keepdim=True)
    loss = MarginalDiceCELoss(batch_dice)
    a, b = loss(logits, target, groups), loss(other.requires_grad_(), target, groups)
    ga, gb = gradient(a, logits), gradient(b, other)
    assert (logits - other).abs().max() > 0.5
    assert a.item() == pytest.approx(b.item(), abs=1e-12)
    torch.testing.assert_close(ga[:, kept], gb[:, kept], rtol=0, atol=1e-12)
    torch.testing.assert_close(ga[:, merged].sum(1), gb[:, merged].sum(1), rtol=0, atol=1e-12)
    # along a direction that moves merged logits against each other at a constant sum there is no slope
    shares = torch.softmax(logits.detach()[:, merged], 1)
    direction = torch.randn(shares.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction -= (direction * shares).sum(1, keepdim=True)
    assert (ga[:, merged] * direction).sum(1).abs().max() < 1e-15


def test_ignored_voxels_are_as_if_cut_away():
    logits, target = batch((6, 3), 2)
    target[:, :, 4:] = 5
    groups = torch.tensor([ONE_THREE, SUPER])
    for batch_dice in (False, True):
        whole = MarginalDiceCELoss(batch_dice, ignore_label=5)(logits, target, groups)
        subset = MarginalDiceCELoss(batch_dice)(logits[:, :, :4], target[:, :, :4], groups)
        assert whole.item() == pytest.approx(subset.item(), abs=1e-12)
        torch.testing.assert_close(gradient(whole, logits), gradient(subset, logits), rtol=0, atol=1e-15)
        assert gradient(MarginalDiceCELoss(batch_dice, ignore_label=5)(logits, target, groups), logits)[:, :, 4:].abs().max() == 0


def test_perfect_prediction():
    # cross-entropy 0 and Dice 1 in both pairs
    target = torch.tensor([[[0, 1, 1, 3]]])
    logits = 60 * torch.nn.functional.one_hot(target[0], 5).movedim(-1, 1).double()
    assert MarginalDiceCELoss(False)(logits, target, torch.tensor([ONE_THREE])).item() == pytest.approx(-1, abs=1e-12)


def test_one_minus_dice_is_zero_at_a_match_and_where_nothing_is_annotated():
    logits, target = batch((4, 3), 2)
    groups = torch.tensor([ONE_THREE, ALL])
    for batch_dice in (False, True):
        plain, shifted = (MarginalDiceCELoss(batch_dice, weight_dice=2, one_minus_dice=o) for o in (False, True))
        assert shifted(logits, target, groups).item() == pytest.approx(plain(logits, target, groups).item() + 2, abs=1e-12)
        assert shifted(logits, target, torch.tensor([NONE, NONE])).item() == 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_no_sample_gives_zero(batch_dice):
    logits, target = batch((4, 3), 1)
    loss = MarginalDiceCELoss(batch_dice)(logits[:0], target[:0], torch.tensor([ALL])[:0])
    assert loss.item() == 0 and gradient(loss, logits).abs().max() == 0


@pytest.mark.parametrize("target_dtype", [torch.int16, torch.int64, torch.float32])
def test_label_shapes_and_types_do_not_matter(target_dtype):
    logits, target = batch((4, 3), 2)
    groups = torch.tensor([ONE_THREE, ALL], dtype=torch.int32)
    loss = MarginalDiceCELoss(True)
    expected = loss(logits, target, groups.long())
    assert torch.equal(loss(logits, target.to(target_dtype), groups), expected)
    assert torch.equal(loss(logits, target[:, 0].to(target_dtype), groups), expected)


def test_arguments_come_back_unchanged():
    logits, target = batch((4, 3), 2)
    target[0, 0, 0] = 5
    groups = torch.tensor([ONE_THREE, ALL])
    before = [x.detach().clone() for x in (logits, target, groups)]
    loss = MarginalDiceCELoss(True, ignore_label=5)(logits, target, groups)
    loss.backward(retain_graph=True)
    first = logits.grad.clone()
    logits.grad = None
    loss.backward()  # what was saved for the gradient is not consumed either
    marginal_log_probs(logits, groups).logsumexp(1).sum().backward()
    groups_from_annotated(groups > 0)
    assert all(torch.equal(x.detach(), y) for x, y in zip((logits, target, groups), before))
    assert torch.isfinite(first).all()


def test_second_backward_gives_the_same_gradient():
    logits, target = batch((4, 3), 2)
    loss = MarginalDiceCELoss(True)(logits, target, torch.tensor([ONE_THREE, ALL]))
    a, b = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_half_precision_is_the_loss_of_the_rounded_logits(dtype, batch_dice):
    logits, target = batch((5, 4), 2, dtype=dtype)
    groups = torch.tensor([ONE_THREE, ALL])
    loss = MarginalDiceCELoss(batch_dice)(logits, target, groups)
    exact = logits.detach().double().requires_grad_()
    expected = MarginalDiceCELoss(batch_dice)(exact, target, groups)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), abs=1e-5)
    grad = gradient(loss, logits)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), gradient(expected, exact), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_stay_finite_and_still_pull(dtype, scale):
    # voxel 0: the label's merged group is certainly wrong; voxel 1: certainly right; voxel 2: a certain organ, wrong
    signs = torch.tensor([[-1.0, 1, -1, 0, -1], [1, -1, -1, -1, -1], [1, -1, 0, -1, 1]]).T[None]
    logits = (scale * signs).to(dtype).requires_grad_()
    target = torch.tensor([[0, 0, 1]])
    loss = MarginalDiceCELoss(False)(logits, target, torch.tensor([ONE_THREE]))
    grad = gradient(loss, logits)
    assert torch.isfinite(loss) and torch.isfinite(grad).all()
    assert grad[0, 1, 0] > 0 and grad[0, [0, 2, 4], 0].max() < 0, "the merged group must be pulled up, the organ down"
    assert grad[0, 1, 2] < 0


def test_large_half_precision_patch_does_not_overflow():
    # 90,000 voxels: counts pass 65504, the end of float16
    logits = torch.zeros((1, 2, 300, 300), dtype=torch.float16, requires_grad=True)
    loss = MarginalDiceCELoss(True)(logits, torch.ones(1, 1, 300, 300), torch.tensor([[0, 1]]))
    n = 300 * 300
    assert loss.item() == pytest.approx(math.log(2) - 2 * n / 2 / (n + n / 2), abs=1e-5)
    assert torch.isfinite(gradient(loss, logits)).all()


# ---- several ranks


def test_batch_dice_over_ranks_is_batch_dice_of_the_whole_batch():
    logits, target = batch((4, 3), 4)
    groups = torch.tensor([ONE_THREE, NONE, ONE_THREE, ALL])
    halves = [(logits[i : i + 2], target[i : i + 2], groups[i : i + 2]) for i in (0, 2)]

    def sums_of(rank):
        seen = []
        MarginalDiceCELoss(True, weight_ce=0, all_gather=lambda x: (seen.append(x), x[None])[1])(*halves[rank])
        return seen[0]

    whole = MarginalDiceCELoss(True, weight_ce=0)(logits, target, groups)
    expected_gradient = gradient(whole, logits)
    for rank in (0, 1):
        other = sums_of(1 - rank)
        loss = MarginalDiceCELoss(True, weight_ce=0, all_gather=lambda x: torch.stack((x, other)))(*halves[rank])
        assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
        torch.testing.assert_close(gradient(loss, logits), expected_gradient, rtol=0, atol=1e-12)


def test_dice_per_sample_is_the_mean_over_the_pairs_of_all_ranks():
    """One rank holds three pairs, the other one: the average of both ranks is the loss of the whole batch."""
    logits, target = batch((4, 3), 2)
    groups = torch.tensor([ALL, groups_from_annotated(torch.tensor([[1, 1, 0, 0, 0]], dtype=torch.bool))[0].tolist()])
    expected = MarginalDiceCELoss(False)(logits, target, groups)
    pairs = [torch.tensor(4.0, dtype=logits.dtype), torch.tensor(1.0, dtype=logits.dtype)]
    ranks = [
        MarginalDiceCELoss(False, all_gather=lambda own: torch.stack(pairs))(
            logits[i : i + 1], target[i : i + 1], groups[i : i + 1]
        )
        for i in (0, 1)
    ]
    torch.testing.assert_close(sum(ranks) / 2, expected)


# ---- torch.compile, errors, imports


def test_traced_by_torch_compile():
    logits, target = batch((4, 3), 2)
    target[0, 0, 0] = 5
    groups = torch.tensor([ONE_THREE, ALL])
    loss = MarginalDiceCELoss(True, ignore_label=5)
    compiled = torch.compile(loss, backend="aot_eager")(logits, target, groups)
    expected = loss(logits, target, groups)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient(compiled, logits), gradient(expected, logits))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda z, y, g: (z, y, g[:, :4]), r"groups .* expected integers of shape \(B, C\)"),
        (lambda z, y, g: (z, y, g.float()), "groups is torch.float32"),
        (lambda z, y, g: (z, y[:, :, :2], g), "target has shape"),
        (lambda z, y, g: (z, torch.cat((y, y), 1), g), "target has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    logits, target = batch((4, 3), 2)
    with pytest.raises(ValueError, match=message):
        MarginalDiceCELoss(True)(*change(logits, target, torch.tensor([ALL, ALL])))


def test_nothing_but_torch_is_imported():
    import ast
    import pathlib
    import sys

    for path in pathlib.Path(partial.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
            for name in names:
                assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"
