"""Unions: classes that a label or a teacher does not tell apart. Every loss equals itself on classes merged by hand."""

import numpy as np
import pytest
import torch

from nnunet_partial.losses import co_training, cross_teaching, ms_kd
from nnunet_partial.losses.partial import (
    MarginalDiceCELoss,
    alone_in_group,
    groups_from_annotated,
    marginal_log_probs,
    possible_classes,
    within_outlines,
)

SIZES = {"2d": (5, 4), "3d": (3, 4, 2)}
CLASSES = 6  # background and five
SEEDS = range(4)


def random_partition(rng):
    """Groups (C,) of labels that tell some classes apart, some not, and some not from background; the lowest of each."""
    groups = np.zeros(CLASSES, int)
    item = rng.integers(0, 4, CLASSES - 1)  # 0: not annotated
    for i in range(1, 4):
        own = 1 + np.flatnonzero(item == i)
        groups[own] = own.min() if len(own) else 0
    return groups


def merged(logits, groups):
    """Logits (B, G, *S) of the groups of one partition, from summed probabilities; and group value -> channel."""
    probs = torch.softmax(logits, 1)
    values = sorted(set(groups.tolist()))
    return torch.stack([probs[:, groups == v].sum(1) for v in values], 1).log(), {v: i for i, v in enumerate(values)}


def sample(seed, size, batch=1):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((batch, CLASSES, *size), generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, CLASSES, (batch, *size), generator=generator)


def assert_equal_with_gradients(loss, by_hand, logits):
    torch.testing.assert_close(loss, by_hand)
    own, expected = (torch.autograd.grad(i, logits, retain_graph=True)[0] for i in (loss, by_hand))
    torch.testing.assert_close(own, expected)
    assert own.abs().max() > 0


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_supervision_is_that_of_classes_merged_by_hand(seed, size):
    logits, target = sample(seed, size)
    groups = torch.from_numpy(random_partition(np.random.default_rng(seed)))
    if not groups.any():
        groups[1:3] = 1
    few, channel = merged(logits, groups)
    few_target = torch.tensor([channel[int(groups[i])] for i in range(CLASSES)])[target]
    every = torch.arange(few.shape[1])[None]
    for loss in (MarginalDiceCELoss(batch_dice=False), MarginalDiceCELoss(batch_dice=True, weight_ce=0.5)):
        assert_equal_with_gradients(loss(logits, target, groups[None]), loss(few, few_target, every), logits)
    assert_equal_with_gradients(
        cross_teaching.dice_focal(logits, target, groups[None]), cross_teaching.dice_focal(few, few_target, every), logits
    )
    torch.testing.assert_close(marginal_log_probs(logits, groups[None])[:, sorted(channel)], few.log_softmax(1))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_distillation_is_that_of_classes_merged_by_hand(seed, size):
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(random_partition(rng))
    groups[4:] = 4  # a union at least
    outputs = [tuple(np.flatnonzero(groups == v).tolist()) for v in sorted(set(groups.tolist()) - {0})]
    outputs = [i[0] if len(i) == 1 else i for i in outputs]
    teachers = [list(i) for i in (outputs[:1], outputs[1:], outputs) if i]
    logits, _ = sample(seed, size, batch=2)
    references = [2 * torch.from_numpy(rng.normal(size=(2, len(i) + 1, *size))) for i in teachers]
    for i in references:
        i[:, 0] += 3  # there is background
    # background of the partition is no group of the teachers: its classes stay by themselves
    own = torch.where(groups == 0, torch.arange(CLASSES), groups)
    few, channel = merged(logits, own)
    few_classes = [[channel[min(j) if isinstance(j, tuple) else j] for j in i] for i in teachers]
    for found, expected in zip(ms_kd.logit_loss(logits, references, teachers), ms_kd.logit_loss(few, references, few_classes)):
        assert_equal_with_gradients(found, expected, logits)


def test_teachers_that_cut_differently_voxel_by_voxel():
    rng = np.random.default_rng(3)
    classes, student = [[(1, 2)], [1, 2], [3, (4, 5)]], 2 * rng.normal(size=(CLASSES, 40))
    teachers = [2 * rng.normal(size=(len(i) + 1, 40)) for i in classes]
    organ = background = 0.0
    for v in range(40):
        q = np.exp(student[:, v]) / np.exp(student[:, v]).sum()
        references, said = [], []
        for logits, outputs in zip(teachers, classes):
            t = np.exp(logits[:, v]) / np.exp(logits[:, v]).sum()
            reference = np.zeros(CLASSES)
            reference[0] = t[0]
            for p, output in zip(t[1:], outputs):
                of = list(output) if isinstance(output, tuple) else [output]
                reference[of] = p * q[of] / q[of].sum()
            references.append(reference)
            said.append(t[1:].max() > t[0])
            if said[-1]:  # Eq. 4 on the teacher's own outputs
                sums = [q[0], *(q[list(i) if isinstance(i, tuple) else [i]].sum() for i in outputs)]
                organ += sum(a * np.log(a / b) for a, b in zip(t, sums))
        mean = np.mean(references, 0)
        background += 0 if any(said) else sum(a * np.log(a / b) for a, b in zip(mean, q) if a)
    as_tensor = [torch.from_numpy(i)[None] for i in (student, *teachers)]
    found = ms_kd.logit_loss(as_tensor[0], as_tensor[1:], classes)
    np.testing.assert_allclose([float(i) for i in found], [organ / 40, background / 40], rtol=1e-10)


def test_how_a_union_divides_is_no_business_of_its_teacher():
    logits, _ = sample(0, (4, 4))
    teacher = [torch.randn((1, 2, 4, 4), dtype=torch.float64)]
    before = ms_kd.logit_loss(logits, teacher, [[(2, 4)]])
    share = torch.rand((1, 4, 4), dtype=torch.float64)
    other = torch.softmax(logits.detach(), 1)
    both = other[:, 2] + other[:, 4]
    other[:, 2], other[:, 4] = both * share, both * (1 - share)
    after = ms_kd.logit_loss(other.log(), teacher, [[(2, 4)]])
    torch.testing.assert_close(torch.stack(before), torch.stack(after))
    same = torch.stack([both, 1 - both])[:, 0].flip(0)[None].log()  # a teacher that says what the student says, on two classes
    two = torch.cat([other[:, :1] + other[:, [1, 3, 5]].sum(1, keepdim=True), other[:, 2:3], other[:, 4:5]], 1).log()
    assert max(i.abs() for i in ms_kd.logit_loss(two, [same], [[(1, 2)]])) < 1e-12


@pytest.mark.parametrize("classes, words", [([[(1, 2), 2]], "distinct"), ([[(1, 9), 2]], "lie in"), ([[(), 2]], "distinct")])
def test_outputs_that_overlap_are_refused(classes, words):
    logits, _ = sample(0, (2, 2))
    with pytest.raises(ValueError, match=words):
        ms_kd.logit_loss(logits, [torch.zeros((1, 3, 2, 2))], classes)
    assert ms_kd.transfer(torch.ones(1, 3, 2), [(4, 2), 1], CLASSES)[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_outlines_leave_their_members_inside_and_the_others_outside(seed):
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(np.stack([random_partition(rng) for _ in range(3)] + [np.arange(CLASSES), [0, 1, 1, 0, 0, 5]]))
    _, target = sample(seed, (4, 3), batch=5)
    target[0, 0, 0] = CLASSES  # an ignore label
    possible = possible_classes(target, groups)
    for b, label in np.ndindex(5, 12):
        own, value = groups[b].tolist(), int(target[b].flatten()[label])
        unions = {g for g in own if g and own.count(g) > 1}
        here = own[value] if value < CLASSES and own[value] in unions else None
        expected = [(own[c] == here) if here is not None else own[c] not in unions for c in range(CLASSES)]
        assert possible[b].flatten(1)[:, label].tolist() == expected
    assert possible_classes(target, groups_from_annotated(torch.ones(5, CLASSES))) is None
    alone = alone_in_group(groups)
    assert alone[3].all() and alone[4].tolist() == [True, False, False, False, False, True]


def test_soft_labels_divide_an_outline_and_leave_it_where_it_is():
    logits, target = sample(1, (6, 5))
    groups = torch.tensor([[0, 1, 1, 3, 0, 5]])
    teacher = torch.softmax(sample(2, (6, 5))[0].detach(), 1)
    before, region = teacher.clone(), torch.rand((1, 6, 5)) > 0.3
    found = co_training.soft_cross_entropy(logits, within_outlines(teacher, possible_classes(target, groups)), region)
    total, log_probs = 0.0, logits.detach().log_softmax(1).numpy()
    for y, x in zip(*np.nonzero(region[0].numpy())):
        allowed = [1, 2] if int(target[0, y, x]) in (1, 2) else [0, 3, 4, 5]
        p = teacher[0, allowed, y, x].numpy()
        total -= (p / p.sum() * log_probs[0, allowed, y, x]).sum()
    assert found.item() == pytest.approx(total / int(region.sum()), rel=1e-10)
    assert torch.equal(teacher, before)


def test_cross_teaching_divides_an_outline_and_leaves_it_where_it_is():
    (first, target), (second, _) = sample(4, (6, 5)), sample(5, (6, 5))
    groups = torch.tensor([[0, 1, 1, 3, 0, 5]])
    possible = possible_classes(target, groups)
    lacking = torch.tensor([[0, 1, 2, 0, 4, 0]])

    def restricted(logits):
        inside = torch.isin(target, torch.tensor([1, 2]))
        within, outside = logits[:, [1, 2]].argmax(1) + 1, torch.tensor([0, 3, 4, 5])[logits[:, [0, 3, 4, 5]].argmax(1)]
        return torch.where(inside, within, outside)

    dice = MarginalDiceCELoss(batch_dice=True, weight_ce=0, one_minus_dice=True)
    found = cross_teaching.cross_teaching(first, second, lacking, possible=possible)
    torch.testing.assert_close(found, dice(first, restricted(second), lacking) + dice(second, restricted(first), lacking))
    mean = (first.softmax(1) + second.softmax(1)) / 2
    student, _ = sample(6, (6, 5))
    found = cross_teaching.pseudo_supervision(student, first, second, lacking, possible=possible)
    torch.testing.assert_close(found, dice(student, restricted(mean), lacking))
    found = cross_teaching.distillation(student, first, second, possible=possible)
    p = torch.where(possible, mean, 0)
    p = (p / p.sum(1, keepdim=True)).detach()
    by_hand = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - student.log_softmax(1)), 0).sum(1).mean()
    torch.testing.assert_close(found, by_hand)
