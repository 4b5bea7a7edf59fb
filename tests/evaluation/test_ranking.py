"""Ranks and tests between methods, on numbers whose order is known."""

import math

import numpy as np
import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.ranking import average_over_seeds, pairwise, rank

INF, NAN = math.inf, math.nan


def rows(values, name="liver", metric="dice"):
    return [{"case": f"case_{i}", "source": "all", "class": name, metric: float(v)} for i, v in enumerate(values)]


def test_methods_stand_in_the_order_of_their_means():
    methods = {"low": [rows([0.5, 0.6])], "high": [rows([0.8, 0.9])], "middle": [rows([0.7, 0.7])]}
    ranked = rank(methods)
    assert [i.name for i in ranked] == ["high", "middle", "low"]
    assert [i.mean for i in ranked] == pytest.approx([0.85, 0.7, 0.55])
    assert [i.mean_rank for i in ranked] == [1, 2, 3]
    # resampled means of two cases lie between the smaller and the larger one
    assert (ranked[0].low, ranked[0].high) == pytest.approx((0.8, 0.9))
    assert all(math.isnan(i.seed_sd) for i in ranked)


def test_a_smaller_distance_is_better_and_a_missed_structure_is_last():
    methods = {
        "near": [rows([2, 4], metric="hausdorff95_mm")],
        "far": [rows([9, 9], metric="hausdorff95_mm")],
        "missed": [rows([1, INF], metric="hausdorff95_mm")],
    }
    ranked = {i.name: i for i in rank(methods, "hausdorff95_mm")}
    assert ranked["missed"].n_infinite == 1 and ranked["missed"].mean == 1
    # ranks by case: near 2, far 3, missed 1; then near 1, far 2, missed 3
    assert {k: v.mean_rank for k, v in ranked.items()} == {"near": 1.5, "far": 2.5, "missed": 2.0}


def test_the_mean_is_over_classes_and_not_over_rows():
    own = rows([0.2] * 9) + rows([0.8], "kidney")
    assert rank({"a": [own]})[0].mean == pytest.approx((0.2 + 0.8) / 2)


def test_only_what_every_method_was_evaluated_on_counts():
    methods = {"all": [rows([0.5, 0.5]) + rows([0.0, 0.0], "kidney")], "liver alone": [rows([0.4, 0.4])]}
    assert [(i.name, i.mean) for i in rank(methods)] == [("all", 0.5), ("liver alone", 0.4)]


def test_equal_values_share_their_rank_and_nothing_to_measure_is_best():
    methods = {"a": [rows([0.5, NAN])], "b": [rows([0.5, 0.0])]}
    assert {i.name: i.mean_rank for i in rank(methods)} == {"a": (1.5 + 1) / 2, "b": (1.5 + 2) / 2}


def test_seeds_are_averaged_case_by_case():
    seeds = [rows([0.2, 0.4, NAN]), rows([0.4, 0.8, 0.6])]
    assert [i["dice"] for i in average_over_seeds(seeds)] == pytest.approx([0.3, 0.6, 0.6])
    one = rank({"a": [rows([0.2, 0.4]), rows([0.4, 0.8])]})[0]
    assert one.mean == pytest.approx(0.45) and one.seed_sd == pytest.approx(np.std([0.3, 0.6], ddof=1))


def test_seeds_of_other_cases_are_refused():
    with pytest.raises(UserError, match="same cases"):
        average_over_seeds([rows([0.1]), rows([0.1, 0.2])])


def test_every_pair_is_tested_and_adjusted():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.6, 20)
    methods = {"a": [rows(base + 0.2)], "b": [rows(base)], "c": [rows(base + rng.normal(0, 1e-3, 20))]}
    pairs = {(i.a, i.b): i for i in pairwise(methods)}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairs["a", "b"].difference == pytest.approx(0.2) and pairs["a", "b"].n == 20
    assert [i.significant for i in pairs.values()] == [True, True, False]
    # Holm: the smallest of three is multiplied by three
    smallest = min(i.p_permutation for i in pairs.values())
    assert pairs["a", "b"].p_holm == pytest.approx(3 * smallest)
    assert all(i.p_holm >= i.p_permutation for i in pairs.values())


def test_a_case_that_is_infinite_for_one_method_is_left_out_of_all():
    methods = {"a": [rows([1, INF, 3], metric="hausdorff95_mm")], "b": [rows([2, 2, 5], metric="hausdorff95_mm")]}
    (pair,) = pairwise(methods, "hausdorff95_mm")
    assert pair.n == 2 and pair.difference == pytest.approx(((1 - 2) + (3 - 5)) / 2)


@pytest.mark.parametrize(
    "methods,metric,message",
    [
        ({"a": [rows([0.1])], "b": [rows([0.1], "spleen")]}, "dice", "no case and class in common"),
        ({"a": [rows([0.1])]}, "volume_difference_ml", "cannot be ranked"),
        ({"a": [rows([0.1])]}, "surface_dice", "has no surface_dice"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, metric, message):
    for function in (rank, pairwise):
        with pytest.raises(UserError, match=message):
            function(methods, metric)
