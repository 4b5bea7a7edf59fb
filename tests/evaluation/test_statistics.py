"""Bootstrap intervals and paired tests: exact small cases, known distributions, degenerate input."""

import itertools
import math

import numpy as np
import pytest

from nnunet_partial.evaluation.statistics import (
    MEAN_OVER_CLASSES,
    bootstrap_ci,
    bootstrap_cis,
    compare,
    holm,
    paired_permutation_test,
    paired_wilcoxon,
)


def test_bootstrap_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    low, high = bootstrap_ci(values)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_ci(rng.normal(size=40), n_resamples=500)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_of_two_values_is_exact():
    # the mean of two draws from {0, 1} is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_ci([0.0, 1.0], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_ci([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_is_deterministic_and_depends_on_the_seed():
    values = np.random.default_rng(2).random(30)
    assert bootstrap_ci(values, seed=3) == bootstrap_ci(values, seed=3) != bootstrap_ci(values, seed=4)


def test_bootstrap_leaves_out_what_was_not_measured():
    values = np.random.default_rng(2).random(30)
    assert bootstrap_ci([*values, math.nan, math.inf]) == bootstrap_ci(values)
    assert all(math.isnan(i) for i in bootstrap_ci([0.5]) + bootstrap_ci([]))


def test_bootstrap_of_classes_draws_whole_cases():
    rng = np.random.default_rng(5)
    case_effect = rng.normal(size=(60, 1))
    dependent = np.repeat(case_effect, 4, axis=1)
    assert bootstrap_ci(dependent) == pytest.approx(bootstrap_ci(case_effect[:, 0]))


def test_bootstrap_of_classes_weighs_classes_equally():
    values = np.full((40, 2), np.nan)
    values[:30, 0], values[30:, 1] = 1.0, 0.0  # 30 cases of one class, 10 of the other
    low, high = bootstrap_ci(values)
    assert low == high == 0.5


def interval_drawn_for_itself(values, seed, confidence=0.95, n_resamples=9999):
    """One array at a time, every resample drawn for it, 500 at a time: how intervals were made one by one."""
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    values = values[np.isfinite(values).any(axis=1)]
    if len(values) < 2:
        return math.nan, math.nan
    rng, statistics, n = np.random.default_rng(seed), [], len(values)
    for start in range(0, n_resamples, 500):
        for drawn in rng.multinomial(n, np.full(n, 1 / n), size=min(500, n_resamples - start)):
            cases = np.repeat(values, drawn, axis=0)
            by_class = [np.mean(i[np.isfinite(i)]) for i in cases.T if np.isfinite(i).any()]
            statistics.append(np.mean(by_class))
    return tuple(np.quantile(statistics, [(1 - confidence) / 2, (1 + confidence) / 2]))


@pytest.mark.parametrize("seed", [0, 3])
def test_intervals_made_together_are_those_made_alone(seed):
    rng = np.random.default_rng(4)
    table = rng.random((30, 3))
    table[:12, 0], table[5, :], table[20:, 2] = math.nan, math.nan, math.inf
    arrays = [
        rng.random(30),
        rng.normal(size=30),
        table,
        [*rng.random(28), math.nan, math.inf],
        table[:, 0],
        rng.random(29),
        [0.5],
        [],
        [math.nan, math.inf, 0.1],
        np.full(30, 0.25),
        rng.random((29, 2)),
    ]
    together = bootstrap_cis(arrays, seed=seed)
    for values, interval in zip(arrays, together):
        assert interval == pytest.approx(interval_drawn_for_itself(values, seed), rel=1e-12, nan_ok=True)
        assert interval == pytest.approx(bootstrap_ci(values, seed=seed), rel=1e-12, nan_ok=True)


def test_draws_are_made_once_for_arrays_of_one_length(monkeypatch):
    made = []

    class Counting:
        def __init__(self, seed):
            self.rng = np.random.Generator(np.random.PCG64(seed))

        def multinomial(self, n, *args, size):
            made.append((n, size))
            return self.rng.multinomial(n, *args, size=size)

    monkeypatch.setattr(np.random, "default_rng", Counting)
    values = np.linspace(0, 1, 12)
    bootstrap_cis([values, 1 - values, values[:7], values**2, values[:7] + 1])
    assert sum(size for n, size in made if n == 12) == sum(size for n, size in made if n == 7) == 9999


def brute_force_permutation_p(a, b):
    difference = np.subtract(a, b)
    means = [np.mean(difference * signs) for signs in itertools.product((1, -1), repeat=len(a))]
    return np.mean(np.abs(means) >= abs(difference.mean()) - 1e-12)


def test_permutation_test_is_exact_for_few_pairs():
    rng = np.random.default_rng(7)
    a, b = rng.random(9), rng.random(9)
    assert paired_permutation_test(a, b) == pytest.approx(brute_force_permutation_p(a, b))


def test_one_sign_in_all_pairs_gives_the_smallest_p():
    a = np.linspace(0.5, 0.9, 8)
    b = a - np.linspace(0.01, 0.02, 8)
    # of 2^8 sign patterns, all plus and all minus are as extreme
    assert paired_permutation_test(a, b) == pytest.approx(2 / 2**8)
    assert paired_wilcoxon(a, b) == pytest.approx(2 / 2**8)


def test_many_pairs():
    rng = np.random.default_rng(8)
    a = rng.random(80)
    for test in (paired_permutation_test, paired_wilcoxon):
        assert test(a + 0.05, a + rng.normal(0, 0.05, 80)) < 0.001
        assert test(a + rng.normal(0, 0.05, 80), a + rng.normal(0, 0.05, 80)) > 0.01


@pytest.mark.parametrize("test", [paired_permutation_test, paired_wilcoxon])
def test_degenerate_pairs(test):
    assert test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]) == 1
    assert test([0.5], [0.4]) == 1
    assert math.isnan(test([], []))
    assert math.isnan(test([math.nan, 1.0], [1.0, math.inf]))
    assert test([0.1, 0.3, 0.2, math.nan], [0.2, 0.5, 0.5, 1.0]) == test([0.1, 0.3, 0.2], [0.2, 0.5, 0.5])
    with pytest.raises(ValueError, match="shapes"):
        test([1.0, 2.0], [1.0])


def test_holm():
    # sorted: 0.01 * 4, then 0.02 * 3, then 0.03 * 2 = 0.06, then 0.5 * 1
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)
    assert holm([]) == []


def rows(values, metric="dice"):
    return [{"case": case, "source": "all", "class": name, metric: value} for (case, name), value in values.items()]


def test_compare_pairs_rows_by_case_and_class():
    better = {("a", "liver"): 0.9, ("b", "liver"): 0.8, ("c", "liver"): 0.7, ("a", "kidney"): 0.6, ("d", "kidney"): 0.5}
    worse = {("b", "liver"): 0.7, ("a", "liver"): 0.8, ("a", "kidney"): 0.6, ("e", "kidney"): 0.1}
    result = compare(rows(better), rows(worse))
    assert list(result) == ["liver", "kidney", MEAN_OVER_CLASSES]
    assert result["liver"].n == 2 and result["liver"].difference == pytest.approx(0.1)
    assert result["kidney"].n == 1 and result["kidney"].difference == pytest.approx(0) and result["kidney"].p_wilcoxon == 1
    # a: ((0.9 - 0.8) + (0.6 - 0.6)) / 2, b: 0.1
    assert result[MEAN_OVER_CLASSES].difference == pytest.approx((0.05 + 0.1) / 2)
    assert result["liver"].p_permutation == pytest.approx(0.5)  # exact: of 4 sign patterns, 2 are as extreme
    assert result["liver"].p_holm == pytest.approx(1.0)


def test_compare_leaves_out_pairs_with_an_infinite_distance():
    a = rows({("a", "liver"): 4.0, ("b", "liver"): math.inf, ("c", "liver"): 2.0}, "hausdorff95_mm")
    b = rows({("a", "liver"): 5.0, ("b", "liver"): 3.0, ("c", "liver"): 1.0}, "hausdorff95_mm")
    assert compare(a, b, "hausdorff95_mm")["liver"].n == 2


def test_compare_without_common_rows():
    assert compare(rows({("a", "liver"): 1.0}), rows({("b", "liver"): 1.0})) == {}
