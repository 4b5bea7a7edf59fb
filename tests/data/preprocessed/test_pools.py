"""How training cases are drawn."""

import numpy as np
import pytest

from nnunet_partial.data.preprocessed.pools import Pools, case_weights
from nnunet_partial.labels import Annotations, CaseAnnotation

# 2 cases of a small source, 8 of a large one, 2 that annotate nothing
CASES = {
    **{f"small{i}": CaseAnnotation("small", ("pancreas",)) for i in range(2)},
    **{f"large{i}": CaseAnnotation("large", ("liver", "kidney") if i < 2 else ("liver",)) for i in range(8)},
    **{f"none{i}": CaseAnnotation("none", ()) for i in range(2)},
}
ANNOTATIONS = Annotations(("liver", "kidney", "pancreas"), CASES)


def test_every_source_or_class_is_drawn_as_often():
    cases = list(CASES)
    assert case_weights(ANNOTATIONS, cases, "case") is None
    by_source = case_weights(ANNOTATIONS, cases, "source")
    assert [by_source[i] for i in ("small0", "large0", "none1")] == pytest.approx([1 / 6, 1 / 24, 1 / 6])
    # four kinds: liver on 8 cases, kidney on 2 of these, pancreas on 2, nothing on 2
    by_class = case_weights(ANNOTATIONS, cases, "class")
    expected = [1 / 8, 1 / 32 + 1 / 8, 1 / 32, 1 / 8]
    assert [by_class[i] for i in ("small0", "large0", "large5", "none0")] == pytest.approx(expected)
    for weights in (by_source, by_class):
        assert list(weights) == cases and sum(weights.values()) == pytest.approx(1)


def test_only_the_cases_at_hand_count():
    assert case_weights(ANNOTATIONS, ["small0", "large1"], "source") == {"small0": 0.5, "large1": 0.5}
    complete = Annotations(("liver",), None)
    assert case_weights(complete, ["a", "b"], "class") == {"a": 0.5, "b": 0.5}


def test_draws_follow_the_weights_and_the_seed():
    cases = list(CASES)
    pools = Pools([cases], 2, weights=case_weights(ANNOTATIONS, cases, "source"))
    np.random.seed(0)
    drawn = pools.draw(6000)
    shares = [np.mean([CASES[i].source == j for i in drawn]) for j in ("small", "large", "none")]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)
    np.random.seed(0)
    assert np.array_equal(pools.draw(6000), drawn)


def test_weights_are_those_within_a_pool():
    weights = {"a": 0.8, "b": 0.1, "c": 0.1, "d": 0.0}
    np.random.seed(1)
    drawn = Pools([["a"], ["b", "c"]], 4000, weights=weights).draw(4000)
    assert set(drawn[::2]) == {"a"} and np.mean(drawn[1::2] == "b") == pytest.approx(0.5, abs=0.04)
    assert set(Pools([["d"]], 1, weights=weights).draw(3)) == {"d"}
