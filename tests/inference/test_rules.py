"""Rules of fusion, by hand."""

import numpy as np
import pytest

from nnunet_partial.inference.rules import CLAIMS, RULES, Fusion

# three models, probabilities of (background, a, b) in four voxels
MODELS = (
    [(0.1, 0.5, 0.4), (0.4, 0.5, 0.1), (0.9, 0.1, 0.0), (0.6, 0.4, 0.0)],
    [(0.1, 0.5, 0.4), (0.1, 0.0, 0.9), (0.4, 0.5, 0.1), (0.6, 0.4, 0.0)],
    [(0.0, 0.1, 0.9), (0.8, 0.1, 0.1), (0.2, 0.2, 0.6), (0.2, 0.8, 0.0)],
)
EXPECTED = {
    # two of three; one vote each: the highest mean decides (0.433 background; b 0.367), (0.5 background); two of three
    "vote": [(1, 1.1 / 3), (0, 1.3 / 3), (0, 1.5 / 3), (0, 1.4 / 3)],
    # b 1.7 against a 1.1; background 1.3 against b 1.1; background 1.5; a 1.6 against background 1.4
    "mean": [(2, 1.7 / 3), (0, 1.3 / 3), (0, 1.5 / 3), (1, 1.6 / 3)],
    "max": [(2, 0.9), (2, 0.9), (0, 0.9), (1, 0.8)],
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule):
    fusion = Fusion(rule)
    for model in MODELS:
        fusion.add(np.array(model).T.reshape(3, 2, 2))
    index, probability = fusion.result()
    assert index.flatten().tolist() == [i for i, _ in EXPECTED[rule]]
    assert probability.flatten() == pytest.approx([i for _, i in EXPECTED[rule]], abs=1e-6)


def test_the_order_of_models_is_of_no_effect():
    for rule in RULES:
        results = []
        for order in ((0, 1, 2), (2, 0, 1)):
            fusion = Fusion(rule)
            for i in order:
                fusion.add(np.array(MODELS[i]).T)
            results.append(fusion.result()[0].tolist())
        assert results[0] == results[1]


SUPER = {
    # {a, b} has 0.9, 0.6, 0.1, 0.4; 0.9, 0.9, 0.6, 0.4; 1.0, 0.2, 0.8, 0.8: votes 3, 2, 2, 1 of three. Its best member by the mean
    "vote": [(2, 2.8 / 3), (2, 1.7 / 3), (1, 1.5 / 3), (0, 1.4 / 3)],
    "mean": [(2, 2.8 / 3), (2, 1.7 / 3), (1, 1.5 / 3), (1, 1.6 / 3)],
    "max": [(2, 1.0), (2, 0.9), (0, 0.9), (1, 0.8)],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_super_classes(rule):
    fusion = Fusion(rule, groups=[0, 1, 1])
    for model in MODELS:
        fusion.add(np.array(model).T)
    index, probability = fusion.result()
    found = list(zip(index.tolist(), probability.tolist()))
    for voxel, (expected, p) in enumerate(SUPER[rule]):
        if voxel != 2 or rule == "max":  # a tie of a and b there, or of background and {a, b}: either is right
            assert found[voxel] == (expected, pytest.approx(p, abs=1e-6)), voxel
    alone = Fusion(rule)
    each = Fusion(rule, groups=[0, 1, 2])
    for model in MODELS:
        alone.add(np.array(model).T)
        each.add(np.array(model).T)
    assert all(np.array_equal(i, j) for i, j in zip(alone.result(), each.result()))


def test_an_unknown_rule_and_no_model():
    with pytest.raises(ValueError, match="vote"):
        Fusion(CLAIMS)
    with pytest.raises(ValueError, match="no model"):
        Fusion("mean").result()
