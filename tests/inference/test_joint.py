"""Pseudo labels by a rule over models of the same classes: what is lacking, what is outlined, super-classes, doubt."""

import numpy as np
import pytest
import torch

from nnunet_partial.errors import UserError
from nnunet_partial.inference import pseudo_labels
from nnunet_partial.inference.joint import JointLabels
from nnunet_partial.inference.rules import Fusion
from nnunet_partial.labels import Union

VALUES = {"left": 1, "right": 2, "spleen": 3}
KIDNEYS = Union(("left", "right"))
# the same classes in another order
ORDERS = (("left", "right", "spleen"), ("spleen", "left", "right"), ("right", "spleen", "left"))


def logits_of(seed, order):
    """Logits (4, 2, 3, 3), whatever the order the same of each class."""
    drawn = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return drawn[[0, *(VALUES[i] for i in order)]].float()


def restricted(logits, names):
    """Softmax (1 + n, *S) over background and these classes, in float64."""
    rows = np.exp(logits.numpy().astype(np.float64)[[0, *(VALUES[i] for i in names)]])
    return rows / rows.sum(0)


@pytest.mark.parametrize("rule", ("vote", "mean", "max"))
def test_a_case_that_outlines_a_union_and_lacks_an_organ(rule):
    inside = np.zeros((2, 3, 3), bool)
    inside[1] = True
    joint = JointLabels(rule, ("spleen",), {KIDNEYS: inside}, None, VALUES.__getitem__)
    everywhere, sides = Fusion(rule), Fusion(rule)
    for seed, order in enumerate(ORDERS):
        joint.add(order, logits_of(seed, order))
        own = logits_of(seed, ORDERS[0])
        everywhere.add(restricted(own, ("spleen",)))
        both = np.exp(own.numpy().astype(np.float64)[1:3])
        sides.add((both / both.sum(0))[:, inside])
    labels, probability = joint.result()
    index, expected = everywhere.result()
    assert np.array_equal(labels[~inside], 3 * index[~inside]) and set(labels[inside]) <= {1, 2}
    assert probability[~inside] == pytest.approx(expected[~inside], abs=1e-6)
    index, expected = sides.result()
    assert np.array_equal(labels[inside], index + 1) and probability[inside] == pytest.approx(expected, abs=1e-6)


def test_a_super_class_wins_a_voxel_that_none_of_its_members_would():
    joint = JointLabels("vote", ("left", "right", "spleen"), {}, [1, 1, 2], VALUES.__getitem__)
    for p in ((0.4, 0.32, 0.18, 0.1), (0.4, 0.3, 0.2, 0.1), (0.9, 0.05, 0.03, 0.02)):
        joint.add(ORDERS[0], torch.tensor(p).log().reshape(4, 1, 1, 1))
    labels, probability = joint.result()
    assert labels.item() == 1 and probability.item() == pytest.approx((0.5 + 0.5 + 0.08) / 3, abs=1e-6)


@pytest.fixture
def drawn(monkeypatch):
    """Models draw what ``numbers`` says of them: model -> probability of (background, liver) in two voxels that count."""
    numbers = {}
    monkeypatch.setattr(pseudo_labels, "load_predictor", lambda files, device, mirroring: files.folder.name)

    def predict(name, image):
        logits = torch.full((4, *image.shape[1:]), -20.0)
        logits[0] = 0
        for voxel, p in enumerate(numbers[name]):
            logits[0, 0, 0, voxel], logits[1, 0, 0, voxel] = np.log(1 - p), np.log(p)
        return logits

    monkeypatch.setattr(pseudo_labels, "predict_logits", predict)
    return numbers


@pytest.fixture
def three(monkeypatch, drawn, tmp_path):
    """Three models of all classes, found under the names a, b and c."""
    from nnunet_partial.inference.knowledge import KnownModel
    from nnunet_partial.networks.models import ModelFiles

    def find(source, mappings, fold, classes, *rest):
        file = tmp_path / source / "fold_0" / "checkpoint_final.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        return KnownModel(ModelFiles(source, file.parent.parent, file, tuple(classes) if source != "half" else ("liver",)))

    monkeypatch.setattr(pseudo_labels, "find_known_model", find)
    drawn.update(a=(0.6, 0.3), b=(0.7, 0.3), c=(0.1, 0.9))
    return drawn


def labelled(tiny, out, **changes):
    given = {"plans": tiny.plans, "fold": 0, "sources": ["a", "b", "c"], "cases": ["plain_015"], "progress": False, **changes}
    pseudo_labels.pseudo_label(tiny.id, "3d_fullres", out, **given)
    return pseudo_labels.label_directory.load_labels(out, "plain_015")[0][:][0, 0, 0, :2].tolist()


def test_the_rules_as_pseudo_labels_and_their_doubt(tiny, three, tmp_path):
    # voxel 0: 0.6, 0.7, 0.1, mean 0.467; voxel 1: 0.3, 0.3, 0.9, mean 0.5 (more than background in float32 or not): max
    assert labelled(tiny, tmp_path / "vote", rule="vote") == [1, 0]
    assert labelled(tiny, tmp_path / "mean", rule="mean")[0] == 0
    assert labelled(tiny, tmp_path / "max", rule="max")[1] == 1
    assert labelled(tiny, tmp_path / "claims") == [1, 1]
    # the probability that doubts is the mean of the models: 0.467 of liver, 0.5 of background
    assert labelled(tiny, tmp_path / "some", rule="vote", min_confidence=0.48) == [4, 0]
    assert labelled(tiny, tmp_path / "all", rule="vote", min_confidence=0.51) == [4, 4]


def test_what_a_rule_is_not_for(tiny, three, tmp_path):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            labelled(tiny, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()

    refused("--rule most: there is no such rule. Rules: claims, vote, mean, max", rule="most")
    refused("--rule vote: with one model there is nothing to fuse", rule="vote", sources=["a"])
    refused("half knows liver, the model .*a liver, kidney, pancreas, and --rule mean is for", rule="mean", sources=["a", "half"])
    assert labelled(tiny, tmp_path / "kept", rule="vote") == [1, 0]
    with pytest.raises(UserError, match="made from other choices of --rule"):
        labelled(tiny, tmp_path / "kept", rule="max")
