"""Which method is best, and whether that is more than chance: ranks over cases and paired tests between all methods.

A method's evaluation is a list of rows (see :mod:`nnunet_partial.evaluation.results`); with several seeds there are
several, which :func:`average_over_seeds` makes into one, because the cases are what is drawn at random, not the seeds.
Everything here looks at the cases and classes that every method was evaluated on: a method is not ranked higher for
having left out what is hard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.results import CONFIDENCE, ROW_KEYS, is_missed_or_invented
from nnunet_partial.evaluation.statistics import bootstrap_cis, finite_pairs, holm, paired_permutation_test, paired_wilcoxon

HIGHER_IS_BETTER = {
    "dice": True,
    "iou": True,
    "surface_dice": True,
    "hausdorff_mean_mm": False,
    "hausdorff95_mm": False,
    "average_surface_distance_mm": False,
}
SIGNIFICANT = 1 - CONFIDENCE


@dataclass(frozen=True)
class Ranked:
    """A method's place. ``mean`` over classes of the means over cases, with its bootstrap interval; ``seed_sd`` the
    standard deviation of that mean over seeds (NaN for one); ``mean_rank`` over cases and classes, 1 is best;
    ``n_infinite`` values (a structure missed or invented) that ``mean`` leaves out and ``mean_rank`` puts last; ``n_missed``
    structures that were missed or invented, of ``n_structures`` in all seeds, whatever the metric."""

    name: str
    mean: float
    low: float
    high: float
    mean_rank: float
    n_infinite: int
    seed_sd: float = float("nan")
    n_missed: int = 0
    n_structures: int = 0


@dataclass(frozen=True)
class Pair:
    """Method ``a`` against ``b`` over the ``n`` cases' means over classes: mean of a - b with its interval, and p values
    of the paired permutation test (as it is, and adjusted for all pairs) and of the Wilcoxon signed-rank test."""

    a: str
    b: str
    n: int
    difference: float
    low: float
    high: float
    p_permutation: float
    p_wilcoxon: float
    p_holm: float = float("nan")

    @property
    def significant(self) -> bool:
        return self.p_holm < SIGNIFICANT


def average_over_seeds(evaluations: Sequence[Sequence[Mapping]]) -> list:
    """One row a case and class from several evaluations of the same cases: means over the seeds that measured something.

    Raises :class:`UserError` when the evaluations are of different cases or classes.
    """
    if len(evaluations) == 1:
        return [dict(i) for i in evaluations[0]]
    tables = [{(row["case"], row["class"]): row for row in rows} for rows in evaluations]
    for table in tables[1:]:
        different = sorted(set(table) ^ set(tables[0]))
        if different:
            raise UserError(
                f"evaluations of one method under several seeds must be of the same cases and classes; case "
                f"{different[0][0]}, {different[0][1]} is in one of them alone. Evaluate all of them again."
            )
    metrics = [i for i in evaluations[0][0] if i not in ROW_KEYS]
    return [
        {**{k: row[k] for k in ROW_KEYS}, **{m: _known_mean([t[key][m] for t in tables]) for m in metrics}}
        for key, row in tables[0].items()
    ]


def _known_mean(values: Sequence[float]) -> float:
    known = [i for i in values if i == i]
    return float(np.mean(known)) if known else float("nan")


def rank(methods: Mapping[str, Sequence[Sequence[Mapping]]], metric: str = "dice") -> list:
    """:class:`Ranked` for every method, best first. ``methods``: name -> evaluations, one a seed."""
    check_metric(metric)
    averaged = {name: average_over_seeds(i) for name, i in methods.items()}
    keys = common_keys(averaged, metric)
    values = {name: _values(rows, keys, metric) for name, rows in averaged.items()}
    ranks = _mean_ranks(values, metric)
    result = []
    intervals = bootstrap_cis([_case_table(i, keys) for i in values.values()], CONFIDENCE)
    for (name, evaluations), (low, high) in zip(methods.items(), intervals):
        by_seed = [_mean_over_classes(_values(rows, keys, metric), keys) for rows in evaluations]
        result.append(
            Ranked(
                name,
                _mean_over_classes(values[name], keys),
                low,
                high,
                ranks[name],
                int(np.isinf(values[name]).sum()),
                float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else float("nan"),
                *_missed(evaluations, keys),
            )
        )
    sign = -1 if HIGHER_IS_BETTER[metric] else 1
    return sorted(result, key=lambda i: (np.isnan(i.mean), sign * i.mean, i.mean_rank))


def _missed(evaluations: Sequence[Sequence[Mapping]], keys: Sequence[tuple]) -> tuple:
    """(structures that were missed or invented, structures) of all seeds."""
    wanted = set(keys)
    rows = [row for one in evaluations for row in one if (row["case"], row["class"]) in wanted]
    return sum(map(is_missed_or_invented, rows)), len(rows)


def pairwise(methods: Mapping[str, Sequence[Sequence[Mapping]]], metric: str = "dice", seed: int = 0) -> list:
    """:class:`Pair` for every pair of methods, adjusted for testing all of them (Holm 1979)."""
    check_metric(metric)
    averaged = {name: average_over_seeds(i) for name, i in methods.items()}
    keys = common_keys(averaged, metric)
    # a distance that is infinite cannot be averaged: such a case and class is left out of all methods alike
    tables = {name: _values(rows, keys, metric) for name, rows in averaged.items()}
    finite = np.all([np.isfinite(i) for i in tables.values()], axis=0)
    keys = [key for key, usable in zip(keys, finite) if usable]
    means = {name: _case_means(values[finite], keys) for name, values in tables.items()}
    names = list(combinations(methods, 2))
    intervals = bootstrap_cis([means[a] - means[b] for a, b in names], CONFIDENCE, seed=seed)
    pairs = [_pair(a, b, means[a], means[b], interval, seed) for (a, b), interval in zip(names, intervals)]
    return [Pair(**{**vars(i), "p_holm": p}) for i, p in zip(pairs, holm([i.p_permutation for i in pairs]))]


def _pair(name_a: str, name_b: str, a: np.ndarray, b: np.ndarray, interval: tuple, seed: int) -> Pair:
    a, b = finite_pairs(a, b)
    if not len(a):
        return Pair(name_a, name_b, 0, *[float("nan")] * 5)
    difference, (low, high) = float(np.mean(a - b)), interval
    p_permutation, p_wilcoxon = paired_permutation_test(a, b, seed=seed), paired_wilcoxon(a, b)
    return Pair(name_a, name_b, len(a), difference, low, high, p_permutation, p_wilcoxon)


def check_metric(metric: str) -> None:
    """Raise :class:`UserError` for a metric that methods cannot be ranked by."""
    if metric not in HIGHER_IS_BETTER:
        raise UserError(f"methods cannot be ranked by {metric!r}. Metrics: {', '.join(HIGHER_IS_BETTER)}.")


def common_keys(averaged: Mapping[str, Sequence[Mapping]], metric: str) -> list:
    """``(case, class)`` that every method was evaluated on and that measured something for at least one of them."""
    tables = [{(row["case"], row["class"]): row.get(metric) for row in rows} for rows in averaged.values()]
    lacking = [name for name, table in zip(averaged, tables) if None in table.values() or not table]
    if lacking:
        raise UserError(f"the evaluation of {lacking[0]} has no {metric}. Evaluate it again with --metrics all.")
    keys = [i for i in tables[0] if all(i in table for table in tables)]
    keys = [i for i in keys if not all(np.isnan(table[i]) for table in tables)]
    if not keys:
        raise UserError(
            f"{', '.join(averaged)} have no case and class in common, so they cannot be compared. Evaluate "
            "all methods on the same images."
        )
    return keys


def _values(rows: Sequence[Mapping], keys: Sequence[tuple], metric: str) -> np.ndarray:
    table = {(row["case"], row["class"]): float(row[metric]) for row in rows}
    return np.array([table[i] for i in keys])


def _mean_ranks(values: Mapping[str, np.ndarray], metric: str) -> dict:
    """Mean over cases and classes of each method's rank; equal values share theirs. NaN (nothing there and nothing
    predicted) is as good as can be."""
    from scipy.stats import rankdata

    table = np.array(list(values.values()))
    table = np.where(np.isnan(table), -np.inf, -table if HIGHER_IS_BETTER[metric] else table)
    return dict(zip(values, rankdata(table, axis=0).mean(axis=1).tolist()))


def _case_table(values: np.ndarray, keys: Sequence[tuple]) -> np.ndarray:
    """(cases, classes), NaN where nothing finite was measured."""
    cases, classes = ({name: i for i, name in enumerate(dict.fromkeys(k[n] for k in keys))} for n in (0, 1))
    table = np.full((len(cases), len(classes)), np.nan)
    for (case, name), value in zip(keys, values):
        table[cases[case], classes[name]] = value if np.isfinite(value) else np.nan
    return table


def _mean_over_classes(values: np.ndarray, keys: Sequence[tuple]) -> float:
    by_class = {}
    for (_, name), value in zip(keys, values):
        if np.isfinite(value):
            by_class.setdefault(name, []).append(value)
    return float(np.mean([np.mean(i) for i in by_class.values()])) if by_class else float("nan")


def _case_means(values: np.ndarray, keys: Sequence[tuple]) -> np.ndarray:
    by_case: dict = {}
    for (case, _), value in zip(keys, values):
        by_case.setdefault(case, []).append(value)
    return np.array([np.mean(i) for i in by_case.values()])
