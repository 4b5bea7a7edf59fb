"""How sure a mean is, and whether two methods differ: bootstrap intervals and paired tests over cases.

Values are arrays of one metric. NaN means that nothing was measured on a case; infinite distances (a structure missed
or invented) cannot be averaged. Both are left out, pair by pair in the tests; whoever reports a result reports their
number.
All functions are deterministic for a seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nnunet_partial import _moved

_CHUNK = 500  # resamples at a time: bounds memory to chunk x cases


def bootstrap_ci(values: ArrayLike, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0) -> tuple:
    """:func:`bootstrap_cis` of one array."""
    return bootstrap_cis([values], confidence, n_resamples, seed)[0]


def bootstrap_cis(arrays: Sequence, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0) -> list:
    """Percentile bootstrap interval of a mean, by drawing cases with replacement.

    ``arrays``: each (cases,), or (cases, classes) with NaN where a class was not measured; the statistic of the latter
    is the mean over classes of the mean over cases, and a case is drawn with all its classes, because they are not
    independent.
    Returns ``(low, high)`` for each array; NaN for fewer than two cases. Every interval is that of its array alone: the
    draws depend on the seed and the number of measured cases, so arrays that agree in both share them, and drawing is
    most of the work.
    """
    measured = [_measured(i) for i in arrays]
    quantiles = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = [(float("nan"), float("nan"))] * len(measured)
    for n in sorted({len(i) for i in measured} - {0, 1}):
        own = [i for i, values in enumerate(measured) if len(values) == n]
        for i, means in zip(own, _resampled_means([measured[i] for i in own], n, n_resamples, seed)):
            low, high = np.quantile(means, quantiles)
            intervals[i] = float(low), float(high)
    return intervals


def _measured(values: ArrayLike) -> np.ndarray:
    """(cases, classes) of the cases with a finite value; NaN for what is not finite."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    table = np.where(np.isfinite(table), table, np.nan)
    return table[~np.isnan(table).all(axis=1)]


def _resampled_means(arrays: Sequence[np.ndarray], n: int, n_resamples: int, seed: int) -> np.ndarray:
    """The statistic of each array (n, classes) in every resample: (arrays, n_resamples)."""
    stacked = np.concatenate(arrays, axis=1)
    known = np.isfinite(stacked)
    partly = ~known.all(axis=0)  # a column that knows every case is drawn n times, whatever is drawn
    filled, gaps = np.where(known, stacked, 0.0), known[:, partly].astype(np.float64)
    edges = np.cumsum([0, *(i.shape[1] for i in arrays)])
    rng, means = np.random.default_rng(seed), np.empty((len(arrays), n_resamples))
    for start in range(0, n_resamples, _CHUNK):
        size = min(_CHUNK, n_resamples - start)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        count = np.full((size, stacked.shape[1]), float(n))
        count[:, partly] = drawn @ gaps
        by_column = np.divide(drawn @ filled, count, out=np.full(count.shape, np.nan), where=count > 0)
        for i, (first, last) in enumerate(zip(edges, edges[1:])):
            means[i, start : start + size] = np.nanmean(by_column[:, first:last], axis=1)
    return means


def paired_wilcoxon(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p value of the Wilcoxon signed-rank test on ``a[i], b[i]``; NaN without a pair, 1 if all are equal."""
    from scipy.stats import wilcoxon

    a, b = finite_pairs(a, b)
    if len(a) == 0:
        return float("nan")
    if np.array_equal(a, b):
        return 1.0
    test: Any = wilcoxon(a, b)
    return float(test.pvalue)


def paired_permutation_test(a: ArrayLike, b: ArrayLike, n_resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of the mean difference when ``a[i]`` and ``b[i]`` may be exchanged; exact for few pairs."""
    from scipy.stats import permutation_test

    a, b = finite_pairs(a, b)
    if len(a) == 0:
        return float("nan")
    if len(a) == 1:  # either order is as likely
        return 1.0
    rng = np.random.default_rng(seed)
    return float(
        permutation_test(
            (a, b),
            _mean_difference,
            permutation_type="samples",
            vectorized=True,
            n_resamples=n_resamples,
            batch=_CHUNK,
            random_state=rng,  # pyright: ignore[reportCallIssue]  # the stubs know its newer name, rng, alone
        ).pvalue
    )


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(a - b, axis=axis)


def finite_pairs(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of which both values are finite."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values must be two lists of one length, found shapes {first.shape} and {second.shape}")
    known = np.isfinite(first) & np.isfinite(second)
    return first[known], second[known]


def holm(p_values: Sequence) -> list:
    """p values adjusted for testing all of them (Holm 1979); NaN stays NaN and does not count."""
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(given), np.nan)
    order = [i for i in np.argsort(given) if np.isfinite(given[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[i]))
        adjusted[i] = largest
    return [float(i) for i in adjusted]


@dataclass(frozen=True)
class PairedDifference:
    """Method A against method B on one class (or on the mean over classes of each case) and one metric.

    ``n`` pairs; ``difference`` the mean of A - B with its bootstrap interval ``low, high``; p values of the paired
    tests, of which ``p_holm`` is the permutation test's, adjusted over the classes (NaN for the mean over classes).
    """

    n: int
    difference: float
    low: float
    high: float
    p_wilcoxon: float
    p_permutation: float
    p_holm: float = float("nan")


MEAN_OVER_CLASSES = "mean over classes"


def compare(rows_a: Iterable[Mapping], rows_b: Iterable[Mapping], metric: str = "dice", seed: int = 0) -> dict:
    """Compare two evaluations of the same cases: class -> :class:`PairedDifference`, and one of the means over classes.

    ``rows_a``, ``rows_b``: rows of :func:`nnunet_partial.evaluation.evaluate.evaluate_folder` or ``read_metrics``. Rows
    that only one of them has are left out.
    """
    a, b = ({(i["case"], i["class"]): float(i[metric]) for i in rows} for rows in (rows_a, rows_b))
    keys = [i for i in a if i in b and np.isfinite(a[i]) and np.isfinite(b[i])]
    by_class, by_case = {}, {}
    for key in keys:
        by_case.setdefault(key[0], []).append(key)
        by_class.setdefault(key[1], []).append(key)
    pairs = {name: tuple(np.array([values[i] for i in ours]) for values in (a, b)) for name, ours in by_class.items()}
    intervals = bootstrap_cis([ours - theirs for ours, theirs in pairs.values()], seed=seed)
    result = {name: _compare(pair[0], pair[1], interval, seed) for (name, pair), interval in zip(pairs.items(), intervals)}
    adjusted = holm([i.p_permutation for i in result.values()])
    result = {name: PairedDifference(**{**vars(i), "p_holm": p}) for (name, i), p in zip(result.items(), adjusted)}
    if keys:
        ours, theirs = (np.array([np.mean([values[i] for i in own]) for own in by_case.values()]) for values in (a, b))
        result[MEAN_OVER_CLASSES] = _compare(ours, theirs, bootstrap_ci(ours - theirs, seed=seed), seed)
    return result


def _compare(a: np.ndarray, b: np.ndarray, interval: tuple, seed: int) -> PairedDifference:
    """``a``, ``b`` (pairs,), all finite; ``interval`` of the mean of ``a - b``."""
    tests = paired_wilcoxon(a, b), paired_permutation_test(a, b, seed=seed)
    return PairedDifference(len(a), float(np.mean(a - b)), interval[0], interval[1], *tests)


__getattr__ = _moved.renamed(__name__, {"Comparison": "PairedDifference"})
