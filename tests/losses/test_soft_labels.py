"""Self-training on probabilities and classes that no teacher knows, against readings voxel by voxel in float64."""

import numpy as np
import pytest
import torch

from nnunet_partial.losses import ms_kd
from nnunet_partial.losses.partial import MarginalDiceCELoss
from nnunet_partial.losses.soft_labels import completed_distribution, soft_marginal_cross_entropy

SIZE = (4, 5)
CLASSES = 6  # with background
#: sample 0 annotates 1 and the union of 2 and 3, which the models divide; 4 is pseudo, 5 nobody tells. Sample 1 annotates nothing
GROUPS = torch.tensor([[0, 1, 2, 3, 4, 0], [0, 1, 2, 2, 4, 5]])
TRUTH_GROUPS = torch.tensor([[0, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0]])
OUTPUTS = [(1, 4), (2, 3), ((2, 3), 5), (4,)]


def probabilities(seed=0):
    rng = np.random.default_rng(seed)
    logits = [2 * rng.normal(size=(2, len(i) + 1, *SIZE)) for i in OUTPUTS]
    return [torch.softmax(torch.from_numpy(i), 1) for i in logits]


def read_distribution(probs, labels):
    """As the docstring says, one voxel at a time."""
    found = np.zeros((2, CLASSES, *SIZE))
    for b in range(2):
        groups, truth = GROUPS[b].tolist(), TRUTH_GROUPS[b].tolist()
        for v in np.ndindex(*SIZE):
            label = int(labels[(b, *v)])
            if truth[label]:
                found[(b, groups[label], *v)] = 1
                continue
            best = dict.fromkeys(groups, 0.0)
            for p, outputs in zip(probs, OUTPUTS):
                p = p[b].numpy()[(slice(None), *v)]
                usable = []
                for value, output in zip(p[1:], outputs):
                    those = output if isinstance(output, tuple) else (output,)
                    group = groups[those[0]]
                    if all(groups[c] == group and not truth[c] for c in those) and group:
                        usable.append((group, value))
                total, claims = p[0] + sum(i for _, i in usable), {}
                for group, value in usable:
                    claims[group] = claims.get(group, 0) + value / total
                for group, value in claims.items():
                    best[group] = max(best[group], value)
            total = sum(v for g, v in best.items() if g)
            for group, value in best.items():
                if group:
                    found[(b, group, *v)] = value / max(total, 1)
            found[(b, 0, *v)] = max(1 - total, 0)
    return found


def completed_labels(seed=0):
    labels = np.random.default_rng(seed).integers(0, CLASSES, (2, *SIZE))
    return torch.from_numpy(np.where(labels == 5, 0, labels))


def test_the_completed_distribution_is_its_definition():
    probs, labels = probabilities(), completed_labels()
    kept = [i.clone() for i in probs]
    found = completed_distribution(probs, OUTPUTS, labels, GROUPS, TRUTH_GROUPS)
    np.testing.assert_allclose(found.numpy(), read_distribution(probs, labels), atol=1e-12)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-12)
    assert all(torch.equal(i, j) for i, j in zip(probs, kept))


def test_what_is_annotated_is_hard_and_what_nobody_knows_is_background():
    labels = completed_labels()
    found = completed_distribution(probabilities(), OUTPUTS, labels, GROUPS, TRUTH_GROUPS)
    for value in (1, 2, 3):  # of sample 0: annotated by itself, or an outline that is divided
        assert (found[0, value][labels[0] == value] == 1).all() and (found[0, value][labels[0] != value] == 0).all()
    assert not found[0, 5].any()
    silent = completed_distribution([torch.ones(2, 2, *SIZE) / 2], [(5,)], labels, torch.zeros_like(GROUPS), TRUTH_GROUPS * 0)
    assert (silent[:, 0] == 1).all()


def test_soft_cross_entropy_voxel_by_voxel_with_its_gradient():
    probs, labels = probabilities(), completed_labels()
    distribution = completed_distribution(probs, OUTPUTS, labels, GROUPS, TRUTH_GROUPS)
    logits = torch.from_numpy(2 * np.random.default_rng(3).normal(size=(2, CLASSES, *SIZE))).requires_grad_()
    valid = torch.from_numpy(np.random.default_rng(4).random((2, *SIZE)) < 0.7)
    expected = 0
    for b in range(2):
        for v in np.ndindex(*SIZE):
            if valid[(b, *v)]:
                p = torch.softmax(logits[(b, slice(None), *v)], 0)
                for g in set(GROUPS[b].tolist()):
                    t = distribution[(b, g, *v)].item()
                    expected = expected - t * torch.log(p[GROUPS[b] == g].sum())
    expected = expected / valid.sum()
    found = soft_marginal_cross_entropy(logits, distribution, GROUPS, valid)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(i, logits, retain_graph=True)[0] for i in (found, expected)))


def test_a_hard_distribution_gives_the_hard_cross_entropy():
    logits = torch.from_numpy(2 * np.random.default_rng(5).normal(size=(2, CLASSES, *SIZE))).requires_grad_()
    labels = completed_labels(6)
    of_voxel = torch.stack([g[i] for g, i in zip(GROUPS, labels)])
    hard = torch.zeros(2, CLASSES, *SIZE, dtype=torch.float64).scatter_(1, of_voxel[:, None], 1)
    found = soft_marginal_cross_entropy(logits, hard, GROUPS)
    expected = MarginalDiceCELoss(batch_dice=False, weight_dice=0)(logits, labels, GROUPS)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(i, logits)[0] for i in (found, expected)))


# ------------------------------------------------------------------ classes that no teacher knows


def test_classes_that_no_teacher_knows_are_merged_with_background():
    """Equal, gradient included, to distillation of a student whose classes 2 and 5 were merged with background by hand."""
    logits = torch.from_numpy(2 * np.random.default_rng(7).normal(size=(2, CLASSES, *SIZE))).requires_grad_()
    teachers = [torch.from_numpy(2 * np.random.default_rng(8 + i).normal(size=(2, 3 - i, *SIZE))) for i in range(2)]
    found = ms_kd.logit_loss(logits, teachers, [(1, 3), (4,)], unknown=(2, 5))
    log_p = logits.log_softmax(1)
    few = torch.stack([torch.logsumexp(log_p[:, [0, 2, 5]], 1), log_p[:, 1], log_p[:, 3], log_p[:, 4]], 1)
    expected = ms_kd.logit_loss(few, teachers, [(1, 2), (3,)])
    for one, other in zip(found, expected):
        assert one > 0
        torch.testing.assert_close(one, other)
        gradients = [torch.autograd.grad(i, logits, retain_graph=True)[0] for i in (one, other)]
        torch.testing.assert_close(*gradients)


def test_a_class_cannot_be_known_and_unknown():
    with pytest.raises(ValueError, match="which no teacher knows"):
        ms_kd.logit_loss(torch.zeros(1, 4, 2, 2), [torch.zeros(1, 2, 2, 2)], [(1,)], unknown=(1,))
