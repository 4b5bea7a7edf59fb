"""Scores of finished trainings, one small file a method and seed, and the tables and curves that are made of these alone.

::

    RESULTS/hippocampus/2d-4000/mskd_seed0.json

holds the Dice (and 95 % Hausdorff distance) of every test case and every validation case, with the settings, the command, the
commit, the machine, the versions and the core seconds of every step. A file that is there is never trained again, on no machine:
models may go. Files of one study that were made on other cases, or with other settings, are not put side by side.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_partial import palette
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.ranking import average_over_seeds, pairwise, rank
from nnunet_partial.evaluation.results import json_values
from nnunet_partial.evaluation.statistics import bootstrap_ci
from nnunet_partial.files import read_json, write_text

VERSION = 1
METRICS = ("dice", "hausdorff95_mm")
SEEDS_OF_A_TABLE = 3
CONVERGED_DSC = 0.5  # the most that twice the steps may move full supervision, in points of DSC
FULL, NAIVE = "full", "naive"
AS_LONG = "as-long"  # the row of training on the labelled cases alone with twice the steps
CALLED = {FULL: "full supervision", "partial": "training on the labelled cases alone"}  # what a budget converges by
_REQUIRED = ("study", "budget", "steps", "method", "title", "seed", "settings", "classes", "cases", "commands", "test")
SMALLEST_P = 2e-4  # of a two-sided permutation test with 9999 resamples
TEACHES_NOTHING_NEW = (NAIVE, "individual", FULL)  # everything else is a single student of partial labels


# ------------------------------------------------------------------ files


def score_file(results: Path, study: str, budget: str, method: str, seed: int) -> Path:
    return Path(results) / study / budget / f"{method}_seed{seed}.json"


def digest(content) -> str:
    """Short name of which cases a study trains, validates and tests on."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def by_case(rows: Iterable[Mapping], classes: Sequence[str]) -> dict:
    """metric -> case -> a value a class (None: nothing to measure, "inf": missed or invented) of rows of ``evaluate``."""
    found = {}
    for row in rows:
        for metric in METRICS:
            if metric in row:
                values = found.setdefault(metric, {}).setdefault(row["case"], [None] * len(classes))
                value = float(row[metric])
                values[classes.index(row["class"])] = json_values(round(value, 5) if math.isfinite(value) else value)
    return found


def write_score(content: Mapping, file: Path) -> None:
    """One line a key, so that a difference between two files can be read."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in {"version": VERSION, **content}.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text("{\n" + ",\n".join(lines) + "\n}\n", file)


def read_score(file: Path) -> dict:
    remedy = "Remove it and run benchmarks/accuracy.py again."
    content = read_json(file, remedy)
    missing = [i for i in _REQUIRED if i not in content] if isinstance(content, dict) else ["an object"]
    if missing or content.get("version") != VERSION:
        raise UserError(
            f"{file} is no score file of version {VERSION}: {', '.join(missing) or 'the version'} is missing. {remedy}"
        )
    return content


def read_study(results: Path, study: str, budgets: Sequence[str] | None = None) -> list:
    """Every score of a study, or of some budgets alone, checked to be of the same cases; by budget, method and seed."""
    files = sorted((Path(results) / study).glob("*/*_seed*.json"))
    files = [i for i in files if budgets is None or i.parent.name in budgets]
    scores = [read_score(i) for i in files]
    for file, score in zip(files, scores):
        if score["cases"] != scores[0]["cases"]:
            raise UserError(
                f"{file} was made on other cases than {files[0]}. Keep the results of other splits in another --results."
            )
    return scores


def rows_of(score: Mapping, part: str = "test") -> list:
    """Rows as ``nnunet_partial evaluate`` has them, of the ``test`` or the ``validation`` cases."""
    values = score[part]
    return [
        {"case": case, "source": "", "class": name, **{m: _number(values[m][case][n]) for m in values}}
        for case in values.get("dice", {})
        for n, name in enumerate(score["classes"])
    ]


def _number(value) -> float:
    return math.nan if value is None else float(value)


def mean_dsc(score: Mapping, part: str = "test") -> float:
    """Mean over classes of the mean over cases, in points (0 to 100); NaN where nothing was measured."""
    table = _table(rows_of(score, part), score["classes"])
    return (
        float(np.mean([np.nanmean(i) if np.isfinite(i).any() else math.nan for i in table.T])) * 100 if len(table) else math.nan
    )


def _table(rows: Sequence[Mapping], classes: Sequence[str], metric: str = "dice") -> np.ndarray:
    """(cases, classes) of Dice or another metric; cases by name, so that tables of the same cases can be subtracted."""
    cases = sorted({i["case"] for i in rows})
    table = np.full((len(cases), len(classes)), np.nan)
    for row in rows:
        table[cases.index(row["case"]), classes.index(row["class"])] = row.get(metric, math.nan)
    return table


# ------------------------------------------------------------------ has it converged?


def movement(scores: Sequence[Mapping], budget: str, twice: str, method: str = FULL) -> dict | None:
    """How ``method`` moves from one budget to twice its steps, over the seeds that have both: points of DSC on the validation
    cases, by which budgets are chosen, and on the test cases with a 95 % bootstrap interval over them. None without such seeds."""
    found = {(i["budget"], i["seed"]): i for i in scores if i["method"] == method}
    seeds = [seed for name, seed in found if name == budget and (twice, seed) in found]
    if not seeds:
        return None
    return {"from": budget, "to": twice, "method": method, **_paired([(found[budget, i], found[twice, i]) for i in seeds])}


def _paired(pairs: Sequence[tuple]) -> dict:
    """Mean of b - a over ``(a, b)`` of the same seed, case by case."""
    classes = pairs[0][0]["classes"]
    moved = np.mean([_table(rows_of(b), classes) - _table(rows_of(a), classes) for a, b in pairs], axis=0)
    return {
        "seeds": [a["seed"] for a, _ in pairs],
        "validation": float(np.mean([mean_dsc(b, "validation") - mean_dsc(a, "validation") for a, b in pairs])),
        "test": float(np.mean(np.nanmean(moved, axis=0))) * 100,
        "test_interval": [100 * i for i in bootstrap_ci(moved)],
        "by_seed": [mean_dsc(b) - mean_dsc(a) for a, b in pairs],
    }


def require_converged(scores: Sequence[Mapping], budget: str, twice: str, method: str = FULL) -> dict:
    """The movement of ``method``; raises :class:`UserError` where it is not known to be small. Few labelled cases are learnt by heart:
    of anything but full supervision twice the steps may lose what they like, so long as they do not bring more."""
    moved = movement(scores, budget, twice, method)
    if moved is None:
        raise UserError(
            f"nobody knows yet whether {budget} is enough: no seed of the method {method} has {twice} as well. Run it with twice the steps."
        )
    if not (abs(moved["validation"]) if method == FULL else moved["validation"]) < CONVERGED_DSC:
        raise UserError(
            f"{budget} has not converged: twice the steps move {CALLED[method]} by {moved['validation']:+.2f} DSC on the validation "
            f"cases, and the bar is {CONVERGED_DSC}. Take {twice} for the table; --curve shows what is there."
        )
    return moved


# ------------------------------------------------------------------ the table


def complete(scores: Sequence[Mapping], budget: str, methods: Sequence[str], seeds: Sequence[int]) -> dict:
    """method -> its scores, one a seed; raises :class:`UserError` unless all are there, with the same settings."""
    found = {(i["method"], i["seed"]): i for i in scores if i["budget"] == budget}
    methods = list(methods) or list(dict.fromkeys(i["method"] for i in scores if i["budget"] == budget))
    missing = [f"{m} with seed {s}" for m in methods for s in seeds if (m, s) not in found]
    if missing or not methods:
        raise UserError(
            f"{budget} lacks {', '.join(missing) or 'every method'}: not an accuracy table yet. Train it, or name the methods that "
            "are complete with --methods."
        )
    chosen = {m: [found[m, s] for s in seeds] for m in methods}
    first = chosen[methods[0]][0]
    for score in (i for own in chosen.values() for i in own):
        if score["settings"] != first["settings"]:
            raise UserError(
                f"{budget}: {score['method']} with seed {score['seed']} has other settings than {first['method']}. Remove the file "
                "of one of them and train it again."
            )
    return chosen


def as_long(scores: Sequence[Mapping], twice: str, seeds: Sequence[int], method: str) -> dict:
    """A row more, of ``method`` with twice the steps: what a loop of several trainings has to be compared with. Nothing where a seed
    lacks it."""
    found = {i["seed"]: i for i in scores if (i["budget"], i["method"]) == (twice, method)}
    if any(i not in found for i in seeds):
        return {}
    return {AS_LONG: [{**found[i], "title": f"{found[i]['title']}, twice the steps"} for i in seeds]}


def tabulate(chosen: Mapping[str, Sequence[Mapping]], moved: Mapping | None) -> dict:
    """Everything that a table says, ready for JSON. ``chosen``: method -> scores, one a seed."""
    first = next(iter(chosen.values()))[0]
    title = {m: own[0]["title"] for m, own in chosen.items()}
    evaluations = {title[m]: [rows_of(i) for i in own] for m, own in chosen.items()}
    machines = _distinct(chosen, "machine")
    return json_values(
        {
            "version": VERSION,
            "study": first["study"],
            "budget": first["budget"],
            "seeds": [i["seed"] for i in next(iter(chosen.values()))],
            "settings": first["settings"],
            "spacing_mm": first.get("spacing_mm"),
            "training_cases_per_source": first.get("training_cases_per_source"),
            "test_cases": len(first["test"]["dice"]),
            "validation_cases": len(first["validation"].get("dice", {})),
            "converged": moved,
            "ranking": [{**vars(i), "classes": _class_means(evaluations[i.name], first["classes"])} for i in rank(evaluations)],
            "pairs": [vars(i) for i in pairwise(evaluations)],
            "dsc_by_seed": {title[m]: [mean_dsc(i) for i in own] for m, own in chosen.items()},
            "hausdorff95_mm": {title[m]: float(np.mean([_mean_hd95(i) for i in own])) for m, own in chosen.items()},
            "validation_dsc": {title[m]: float(np.mean([mean_dsc(i, "validation") for i in own])) for m, own in chosen.items()},
            "pseudo_labels": {
                title[m]: _pseudo_labels(own) for m, own in chosen.items() if all("pseudo_labels" in i for i in own)
            },
            "core_minutes": {title[m]: core_seconds(own) / 60 / len(own) for m, own in chosen.items()},
            "core_hours_in_all": core_seconds([i for own in chosen.values() for i in own]) / 3600,
            "single_students": [title[m] for m in chosen if m not in TEACHES_NOTHING_NEW],
            "titles": title,
            "commits": _distinct(chosen, "commit"),
            "chosen_with": {
                commit: sorted({title[m] for m, own in chosen.items() if any(i.get("chosen_with") == commit for i in own)})
                for commit in _distinct(chosen, "chosen_with")
                if commit is not None
            },
            "machines": {
                i: sorted({title[m] for m, own in chosen.items() for j in own if j.get("machine") == i}) for i in machines
            },
            "versions": _distinct(chosen, "versions"),
        }
    )


def _mean_hd95(score: Mapping) -> float:
    """Mean over classes of the mean over the test cases in which it is finite, mm."""
    table = _table(rows_of(score), score["classes"], "hausdorff95_mm")
    return float(np.mean([np.mean(i[np.isfinite(i)]) if np.isfinite(i).any() else math.nan for i in table.T]))


def _pseudo_labels(own: Sequence[Mapping]) -> list:
    """Generation by generation, M0 first: mean over seeds of the Dice of the pseudo labels to those of M0 and to the truth."""
    by_seed = [list(i["pseudo_labels"].values()) for i in own]
    return [{name: float(np.mean([i[name] for i in one])) for name in one[0]} for one in zip(*by_seed)]


def _class_means(evaluations: Sequence[Sequence[Mapping]], classes: Sequence[str]) -> dict:
    rows = average_over_seeds(evaluations)
    return dict(zip(classes, map(float, np.nanmean(_table(rows, classes), axis=0))))


def core_seconds(scores: Sequence[Mapping]) -> float:
    """Of all steps that these scores rest on; teachers that several methods of one seed share count once, and twice where they
    were trained twice."""
    steps = {(step, values["core_seconds"]) for score in scores for step, values in score["commands"].items()}
    return math.fsum(seconds or 0 for _, seconds in steps)  # in whatever order a set has


def _distinct(chosen: Mapping[str, Sequence[Mapping]], key: str) -> list:
    found = []
    for score in (i for own in chosen.values() for i in own):
        if score.get(key) not in found:
            found.append(score.get(key))
    return found


def verdicts(content: Mapping, bars: Sequence[tuple]) -> list:
    """Bars of a study as rows: what, bar, measured, met. ``bars``: (a, b, least difference a - b in DSC); a may be ``student``,
    the best single student of partial labels, which is chosen on the validation cases."""
    students, titles = content["single_students"], content["titles"]
    best = max(students, key=lambda i: content["validation_dsc"][i] or -1) if students else None
    rows = []
    for a, b, least in bars:
        name, other = (best if a == "student" else titles.get(a)), titles.get(b)
        pair = _pair(content["pairs"], name, other)
        if pair is not None:
            what = f"{'best single student, ' if a == 'student' else ''}{name} against {other}"
            measured = f"{pair[0]:+.2f} [{pair[1]:+.2f}, {pair[2]:+.2f}]"
            rows.append((what, f">= {least:+.1f}", measured, "met" if pair[0] >= least else "MISSED"))
    return rows


def _pair(pairs: Sequence[Mapping], a: str | None, b: str | None) -> tuple | None:
    """``(difference a - b, low, high, p)`` in points of DSC."""
    for i in pairs:
        if (i["a"], i["b"]) == (a, b):
            return 100 * i["difference"], 100 * i["low"], 100 * i["high"], i["p_holm"]
        if (i["a"], i["b"]) == (b, a):
            return -100 * i["difference"], -100 * i["high"], -100 * i["low"], i["p_holm"]
    return None


def smallest_p(content: Mapping) -> float:
    """The smallest adjusted p value that a table can hold: n cases have 2^n exchanges, two of which are the extreme ones."""
    return min(1.0, max(SMALLEST_P, 2.0 ** (1 - content["test_cases"])) * len(content["pairs"]))


def contrasts(content: Mapping, asked: Sequence[tuple]) -> list:
    """Rows of what one part of a method brings: (what, difference with its interval, by seed, p). ``asked``: (what, a, b), of which
    those stay whose methods are in the table."""
    titles, smallest, rows = content["titles"], smallest_p(content), []
    for what, a, b in asked:
        pair = _pair(content["pairs"], titles.get(a), titles.get(b))
        if pair is not None:
            by_seed = _signed(_minus(content["dsc_by_seed"], titles[a], titles[b]))
            difference = f"{pair[0]:+.2f} [{pair[1]:+.2f}, {pair[2]:+.2f}]"
            rows.append((f"{what}: {titles[a]} against {titles[b]}", difference, by_seed, _p_value(pair[3], smallest)))
    return rows


def table_page(content: Mapping, bars: Sequence[tuple], command: str, asked: Sequence[tuple] = ()) -> str:
    """The table as Markdown. ``asked``: as :func:`contrasts` takes them."""
    classes, full = list(content["ranking"][0]["classes"]), content["titles"].get(FULL)
    head = [
        "method",
        *classes,
        "mean [95 % interval over cases]",
        "SD over seeds",
        "HD95 mm",
        "against full supervision",
        "by seed",
        "p",
        "core minutes",
    ]
    lines = [_line(head), _line(["---"] * len(head))]
    smallest = smallest_p(content)
    for own in content["ranking"]:
        pair = _pair(content["pairs"], own["name"], full)
        lines.append(
            _line(
                [
                    own["name"],
                    *(f"{100 * own['classes'][i]:.2f}" for i in classes),
                    f"{100 * own['mean']:.2f} [{100 * own['low']:.2f}, {100 * own['high']:.2f}]",
                    f"{100 * own['seed_sd']:.2f}" if own["seed_sd"] is not None else "",
                    _number_or_nothing(content["hausdorff95_mm"][own["name"]]),
                    f"{pair[0]:+.2f} [{pair[1]:+.2f}, {pair[2]:+.2f}]" if pair else "",
                    _signed(_minus(content["dsc_by_seed"], own["name"], full)) if pair else "",
                    _p_value(pair[3], smallest) if pair else "",
                    f"{content['core_minutes'][own['name']]:.1f}",
                ]
            )
        )
    parts = [
        f"# {content['study']}: {content['test_cases']} test cases, seeds {', '.join(map(str, content['seeds']))}",
        f"DSC in percent, {content['budget']} steps a network. Intervals: bootstrap over test cases of the mean over seeds; they say how "
        "the mean would change with other cases, and nothing of other trainings, for which see the differences by seed. p: paired "
        f"permutation test over cases, adjusted for all {len(content['pairs'])} pairs (Holm); the smallest that it can give is "
        f"{smallest:.3f}. HD95: mean over classes of the mean over cases. Core minutes of one seed, with the teachers that a method needs, "
        "on the machines named below, which differ in speed.",
        "\n".join(lines),
    ]
    judged = verdicts(content, bars)
    if judged:
        parts.append("\n".join([_line(["bar", "DSC", "measured", ""]), _line(["---"] * 4), *map(_line, judged)]))
    found = contrasts(content, asked)
    if found:
        head = ["what it brings", "DSC [95 % interval over cases]", "by seed", "p"]
        parts.append("\n".join([_line(head), _line(["---"] * len(head)), *map(_line, found)]))
    if content.get("pseudo_labels"):
        parts.append(_pseudo_label_table(content["pseudo_labels"]))
    parts += [_convergence_line(content["converged"]), _origin(content), f"`{command}`"]
    return "\n\n".join(i for i in parts if i) + "\n"


def _pseudo_label_table(labels: Mapping[str, Sequence[Mapping]]) -> str:
    most = max(map(len, labels.values()))
    head = ["pseudo labels: DSC to the truth", "M0", *(f"generation {i}" for i in range(1, most)), "the last, to those of M0"]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, own in labels.items():
        to_truth = [f"{100 * i['dice_to_truth']:.1f}" for i in own]
        lines.append(_line([name, *to_truth, *[""] * (most - len(own)), f"{100 * own[-1]['dice_to_m0']:.1f}"]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number_or_nothing(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _minus(by_seed: Mapping[str, Sequence[float]], name: str, other: str | None) -> list:
    return [a - b for a, b in zip(by_seed[name], by_seed[other])] if other else []


def _signed(values: Iterable[float]) -> str:
    return ", ".join(f"{i:+.2f}" for i in values)


def _p_value(value: float, smallest: float) -> str:
    if value <= smallest * 1.001:
        return f"<= {smallest:.3f}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _convergence_line(moved: Mapping | None) -> str:
    if moved is None:
        return ""
    low, high = moved["test_interval"]
    bar = f"the bar is {CONVERGED_DSC}" if moved["method"] == FULL else f"it may lose, and must not gain {CONVERGED_DSC}"
    return (
        f"Twice the steps move {CALLED[moved['method']]} by {moved['validation']:+.2f} DSC on the validation cases ({bar}; "
        f"{_number_of(moved['seeds'], 'seed')}), by {moved['test']:+.2f} [{low:+.2f}, {high:+.2f}] on the test cases."
    )


def _number_of(values: Sequence, what: str) -> str:
    return f"{len(values)} {what}{'' if len(values) == 1 else 's'}"


def _millimetres(spacing: Sequence[float]) -> str:
    return " x ".join(f"{i:g}" for i in spacing)


def _origin(content: Mapping) -> str:
    settings = ", ".join(f"`{k}={v}`" for k, v in content["settings"].items())
    cases = ", ".join(f"{k} {v}" for k, v in (content["training_cases_per_source"] or {}).items())
    versions = "; ".join(", ".join(f"{k} {v}" for k, v in (i or {}).items()) for i in content["versions"])
    machines = "; ".join(f"{k} ({', '.join(v)})" for k, v in content["machines"].items())
    return "\n".join(
        [
            f"- {content['core_hours_in_all']:.2f} core hours in all; machines: {machines}",
            f"- training cases per source: {cases}",
            f"- settings: {settings}",
            *(
                [f"- trained and predicted at {_millimetres(content['spacing_mm'])} mm, judged at the resolution of the scans"]
                if content["spacing_mm"]
                else []
            ),
            *(
                f"- trained before, and which of its networks is deployed chosen with commit {commit}: {', '.join(names)}"
                for commit, names in (content.get("chosen_with") or {}).items()
            ),
            f"- commits {', '.join(map(str, content['commits']))}; {versions}",
        ]
    )


# ------------------------------------------------------------------ the curve: DSC against steps


def curve(scores: Sequence[Mapping], budgets: Mapping[str, int], methods: Sequence[str] = ()) -> list:
    """One point a method and budget, over the seeds that are there. ``budgets``: name -> steps. NaN where nothing is known."""
    points = []
    names = list(methods) or list(dict.fromkeys(i["method"] for i in scores))
    for method in names:
        for budget, steps in sorted(budgets.items(), key=lambda i: i[1]):
            own = [i for i in scores if (i["method"], i["budget"]) == (method, budget)]
            if own:
                table = np.mean([_table(rows_of(i), own[0]["classes"]) for i in own], axis=0)
                test = [mean_dsc(i) for i in own]
                points.append(
                    {
                        "method": method,
                        "title": own[0]["title"],
                        "steps": steps,
                        "seeds": sorted(i["seed"] for i in own),
                        "dsc": float(np.mean(test)),
                        "interval": [100 * i for i in bootstrap_ci(table)],
                        "seed_sd": float(np.std(test, ddof=1)) if len(test) > 1 else math.nan,
                        "validation_dsc": float(np.mean([mean_dsc(i, "validation") for i in own])),
                        "core_minutes": core_seconds(own) / 60 / len(own),
                    }
                )
    return points


def differences(scores: Sequence[Mapping], reference: Sequence[Mapping], budgets: Mapping[str, int]) -> list:
    """A method of ``scores`` minus the one method of ``reference``, over the cases and the seeds that both have, a row a method and
    budget: points of DSC on the validation cases, and on the test cases with their interval."""
    found, rows = {(i["budget"], i["seed"]): i for i in reference}, []
    for method in dict.fromkeys(i["method"] for i in scores):
        for budget in sorted(budgets, key=budgets.get):
            own = [i for i in scores if (i["method"], i["budget"]) == (method, budget) and (budget, i["seed"]) in found]
            if own:
                rows.append(
                    {
                        "method": method,
                        "title": own[0]["title"],
                        "budget": budget,
                        "reference": reference[0]["title"],
                        **_paired([(found[budget, i["seed"]], i) for i in own]),
                    }
                )
    return rows


def curve_page(
    study: str, points: Sequence[Mapping], movements: Sequence[Mapping], command: str, differences: Sequence[Mapping] = ()
) -> str:
    steps = sorted({i["steps"] for i in points})
    found = {(i["title"], i["steps"]): i for i in points}
    lines = [_line(["method", *map(str, steps)]), _line(["---"] * (len(steps) + 1))]
    for title in dict.fromkeys(i["title"] for i in points):
        own = [found.get((title, i)) for i in steps]
        lines.append(_line([title, *(f"{i['dsc']:.1f} ({len(i['seeds'])})" if i else "" for i in own)]))
    parts = [
        f"# {study}: DSC against steps",
        "Mean test DSC in percent by steps a network; in brackets the number of seeds. No accuracy table: points of one seed are here "
        "to show how methods start and when they stop gaining. Intervals are over test cases, of the mean over seeds; where seeds differ by "
        "more, they say little. Differences are not adjusted for their number.",
        "\n".join(lines),
    ]
    for what, moved, name in (
        ("twice the steps", movements, lambda i: (i["method"], f"{i['from']} to {i['to']}")),
        ("budget", differences, lambda i: (f"{i['title']} minus {i['reference']}", i["budget"])),
    ):
        if moved:
            head = ["method", what, "validation cases", "test cases [95 % interval over cases]", "test cases by seed"]
            parts.append("\n".join([_line(head), _line(["---"] * len(head)), *(_line([*name(i), *_moved(i)]) for i in moved)]))
    return "\n\n".join([*parts, f"`{command}`"]) + "\n"


def _moved(i: Mapping) -> list:
    low, high = i["test_interval"]
    by_seed = ", ".join(f"{j:+.2f} ({seed})" for seed, j in zip(i["seeds"], i["by_seed"]))
    return [f"{i['validation']:+.2f}", f"{i['test']:+.2f} [{low:+.2f}, {high:+.2f}]", by_seed]


def draw_curve(study: str, points: Sequence[Mapping]):
    """Figure: a line a method that has several budgets, the best at the end first; whiskers are 95 % intervals over the test cases.

    Both axes are logarithmic, DSC in what is missing to 100, so that a slow start and differences of half a point at the end are both seen.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    lines = {title: [i for i in points if i["title"] == title] for title in dict.fromkeys(i["title"] for i in points)}
    lines = {title: own for title, own in lines.items() if len(own) > 1} or lines
    for number, title in enumerate(sorted(lines, key=lambda i: -lines[i][-1]["dsc"])):
        own = lines[title]
        x = np.array([i["steps"] for i in own]) * 1.02 ** (number - (len(lines) - 1) / 2)  # whiskers beside each other
        y = np.array([i["dsc"] for i in own])
        whiskers = np.abs(np.array([i["interval"] for i in own], dtype=float).T - y)
        axis.errorbar(
            x, y, whiskers, marker="os^Dv<>P"[number % 8], ms=5, lw=1.5, elinewidth=0.8, color=f"C{number % 10}", label=title
        )
    steps = sorted({i["steps"] for own in lines.values() for i in own})
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, [str(i) for i in steps], rotation=45)
    low, high = axis.get_ylim()
    axis.set_yscale("function", functions=(_missing_to_100, _of_missing))
    axis.set_ylim(low, min(high, 99.5))
    axis.set_yticks([i for i in (0, 20, 40, *range(50, 80, 5), *range(80, 100)) if low <= i <= high])
    axis.minorticks_off()
    axis.set_xlabel("steps a network")
    axis.set_ylabel("DSC in percent, mean over classes and test cases")
    axis.set_title(study)
    axis.grid(color=palette.GRID)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right upper")
    return figure


def _missing_to_100(dsc):
    return -np.log(np.maximum(100 - dsc, 1e-3))


def _of_missing(value):
    return 100 - np.exp(-value)
