"""The tables of a report as plain data: headings and rows of text, ready for the page and for Markdown."""

import math
import platform
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.ranking import HIGHER_IS_BETTER, Pair, Ranked
from nnunet_partial.evaluation.report.inputs import Inputs, TrainedModel
from nnunet_partial.evaluation.results import COLUMNS, GLOBAL_COLUMNS, ROW_KEYS, heading
from nnunet_partial.labels import Annotations, foreground_classes

PARTS = ("teachers", "labels", "training", "prediction")  # of a comparison's commands
PACKAGES = ("nnunet_partial", "nnunetv2", "torch", "numpy", "scipy", "SimpleITK", "surface-distance")


@dataclass(frozen=True)
class Cell:
    """``shade`` 0 to 1: how strongly the cell is coloured; None for none. ``strong``: the best of its column."""

    text: str
    shade: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """``rows``: the heading of the row, then cells. ``caption`` says what the table shows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple]
    corner: str = ""


def annotated_matrix(dataset: Mapping[str, Any], file: str) -> Table:
    """What is annotated where: sources x classes, each with the number of cases that annotate the class."""
    classes = dataset_classes(dataset, file)
    caption = "Training cases of each source, and how many of them annotate each class"
    try:
        annotations = Annotations.from_dataset_json(dataset, file)
    except UserError:  # regions: fully labelled, since the contract does not know them
        annotations = None
    if annotations is None or annotations.cases is None:
        count = dataset.get("numTraining", len(dataset.get("dataset", {})))
        return Table(
            caption, ["cases", *classes], [("all", [Cell(str(count)), *[Cell(str(count), 1.0)] * len(classes)])], "source"
        )
    classes, rows = (*annotations.classes, *annotations.unions), []
    for source in annotations.sources:
        own = [i.annotated for i in annotations.cases.values() if i.source == source]
        known = Counter(name for i in own for name in i)
        counts = [known[name] for name in classes]
        rows.append((source, [Cell(str(len(own))), *(Cell(str(n) if n else "none", n / len(own)) for n in counts)]))
    return Table(caption, ["cases", *classes], rows, "source")


def dataset_classes(dataset: Mapping[str, Any], file: str) -> tuple:
    """Names of the foreground classes, regions included, in the order of dataset.json."""
    try:
        return foreground_classes(dataset, file)[0]
    except UserError:
        return tuple(i for i in dataset.get("labels", {}) if i not in ("background", "ignore"))


# ------------------------------------------------------------------ results


def results(summaries: Mapping[str, Mapping], classes: Sequence[str], metric: str, title: str | None = None) -> Table:
    """Methods x classes: mean over cases with its 95 % bootstrap interval; ``summaries`` of every method's cases, of their
    means over seeds where there are several. ``title``: what the metric is called, where that is more than its name."""
    best = {name: _best(summaries, name, metric) for name in classes}
    rows = []
    for method, summary in summaries.items():
        cells = [
            _result_cell(summary["classes"].get(name, {}).get(metric), metric, best[name] == method and len(summaries) > 1)
            for name in classes
        ]
        rows.append((method, [*cells, _result_cell(summary["mean_over_classes"].get(metric), metric)]))
    title = title or heading(metric)
    return Table(f"{title}: mean over cases [95 % bootstrap interval]", [*classes, "mean over classes"], rows, "method")


def global_results(summaries: Mapping[str, Mapping], classes: Sequence[str]) -> list:
    """Methods x classes of Dice and of IoU over the voxels of all cases together; nothing for rows without these counts."""
    if not all(i.get("global") for i in summaries.values()):
        return []
    tables = []
    for metric, title in GLOBAL_COLUMNS.items():
        rows = []
        for method, summary in summaries.items():
            own = summary["global"][metric]
            values = [*(own["classes"].get(name, math.nan) for name in classes), own["mean"]]
            rows.append((method, [Cell(number(i, metric) if math.isfinite(i) else "-") for i in values]))
        caption = f"{title}: voxels are counted over all cases before the ratio"
        tables.append(Table(caption, [*classes, "mean over classes"], rows, "method"))
    return tables


def _best(summaries: Mapping[str, Mapping], name: str, metric: str) -> str | None:
    if metric not in HIGHER_IS_BETTER:
        return None
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    means = {
        m: sign * s["classes"][name][metric]["mean"]
        for m, s in summaries.items()
        if name in s["classes"] and math.isfinite(s["classes"][name][metric]["mean"])
    }
    return max(means, key=means.__getitem__) if means else None


def _result_cell(values: Mapping | None, metric: str, strong: bool = False) -> Cell:
    if values is None:
        return Cell("-")
    text = number(values["mean"], metric) if math.isfinite(values["mean"]) else "-"
    if all(math.isfinite(i) for i in values["ci"]):
        text += f" [{number(values['ci'][0], metric)}, {number(values['ci'][1], metric)}]"
    if values.get("n_infinite"):
        text += f", {values['n_infinite']} missed or invented"
    return Cell(text, strong=strong)


def number(value: float, metric: str) -> str:
    """A value of a metric as people read it."""
    return COLUMNS.get(metric, ("", "{:.3g}"))[1].format(value)


def metrics_of(inputs: Inputs) -> list:
    """The metrics that every evaluation has and that are worth a table, the one of the ranking first."""
    common = set.intersection(*(set(i.rows[0]) - set(ROW_KEYS) for evaluations in inputs.methods.values() for i in evaluations))
    return sorted((i for i in COLUMNS if i in common), key=lambda i: i != inputs.metric)


def ranking(ranked: Sequence[Ranked], pairs: Sequence[Pair], metric: str, title: str) -> Table:
    """Methods in their order, each with its p value against the first. ``title``: what the metric is called."""
    first, rows = ranked[0].name, []
    for place, one in enumerate(ranked, 1):
        pair = next((i for i in pairs if {i.a, i.b} == {first, one.name}), None)
        cells = [
            Cell(str(place)),
            Cell(f"{number(one.mean, metric)} [{number(one.low, metric)}, {number(one.high, metric)}]"),
            Cell("-" if math.isnan(one.seed_sd) else f"{one.seed_sd:.2g}"),
            Cell(f"{one.mean_rank:.2f}"),
            Cell(f"{one.n_missed} of {one.n_structures}"),
            Cell("-" if pair is None else p_value(pair.p_holm)),
        ]
        rows.append((one.name, cells))
    return Table(
        f"Ranking by {title}, on the cases and classes that every method was evaluated on",
        [
            "place",
            f"{title}, mean over classes",
            "SD over seeds",
            "mean rank",
            "missed or invented",
            f"p against {first}",
        ],
        rows,
        "method",
    )


def significance(names: Sequence[str], pairs: Sequence[Pair]) -> Table:
    """Method of the row minus method of the column, and the adjusted p value; shaded where it is significant."""
    known = {(i.a, i.b): i for i in pairs}
    rows = []
    for a in names:
        cells = []
        for b in names:
            pair, sign = (known[a, b], 1) if (a, b) in known else (known.get((b, a)), -1)
            cells.append(
                Cell("same" if a == b else "-")
                if pair is None or pair.n == 0
                else Cell(f"{sign * pair.difference:+.4f} (p {p_value(pair.p_holm)})", 0.5 if pair.significant else None)
            )
        rows.append((a, cells))
    return Table(
        "Difference, row minus column, of the cases' means over classes; p: paired permutation test, adjusted for all "
        "pairs (Holm); shaded: p below 0.05",
        names,
        rows,
        "method",
    )


def p_value(p: float) -> str:
    """``0.012``, ``< 0.001``, ``-``."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


# ------------------------------------------------------------------ models, costs, versions


def training(models: Sequence[TrainedModel]) -> Table:
    """What was trained for how long."""
    rows = []
    for model in models:
        settings = model.plans.get("nnunet_partial", {})
        epochs = len(model.curves.get("train_losses", ()))
        steps = settings.get("num_iterations_per_epoch", 250)
        dice = model.curves.get("ema_fg_dice") or [math.nan]
        rows.append(
            (
                f"{model.label} ({model.folder.name.split('__')[1]})",
                [
                    Cell(model.trainer),
                    Cell(model.configuration),
                    Cell(f"{epochs} of {settings.get('num_epochs', 1000)}"),
                    Cell(str(steps)),
                    Cell(duration(model.seconds)),
                    Cell(f"{dice[-1]:.3f}"),
                ],
            )
        )
    return Table(
        "Trained models", ["trainer", "configuration", "epochs", "steps an epoch", "time in epochs", "pseudo Dice"], rows, "model"
    )


def duration(seconds: float) -> str:
    """``41 s``, ``3.5 min``, ``12.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def costs(commands: Sequence[Mapping[str, Any]], models: Sequence[TrainedModel] = ()) -> Table | None:
    """Time of everything that each method needed, by what it was for; None unless the commands tell it.

    A training counts at least the time of its epochs, which are all in its log however often it was interrupted and wherever
    it was trained.
    """
    epochs = {i.names: i.seconds for i in models}
    known = [{**i, "seconds": _seconds(i, epochs)} for i in commands if i.get("methods")]
    known = [i for i in known if i["seconds"] is not None]
    if not known:
        return None
    parts = [i for i in PARTS if any(one.get("part") == i for one in known)]
    rows = []
    for method in dict.fromkeys(name for i in known for name in i["methods"]):
        seconds = [sum(i["seconds"] for i in known if method in i["methods"] and i["part"] == part) for part in parts]
        rows.append((method, [*(Cell(duration(i) if i else "-") for i in seconds), Cell(duration(sum(seconds)))]))
    return Table(
        "Time of everything that a method needed, interrupted attempts included (what several methods share counts for each)",
        [*parts, "together"],
        rows,
        "method",
    )


def _seconds(command: Mapping[str, Any], epochs: Mapping[tuple, float]) -> float | None:
    seconds, argv = command.get("seconds"), shlex.split(command["command"])
    if argv[:1] != ["nnUNetv2_train"]:
        return seconds
    options = dict(zip(argv[4:], argv[5:]))
    trained = epochs.get((*argv[1:4], options.get("-tr", "nnUNetTrainer"), options.get("-p", "nnUNetPlans")))
    return trained if seconds is None else max(seconds, trained or 0.0)


def efficiency(content: Mapping[str, Any]) -> Table:
    """The cost of a prediction, as nnunet_partial.inference.efficiency.measure has measured it."""
    columns = (
        ("time (s)", "total", "wall_time_s", 1),
        ("peak memory (MB)", "total", "peak_memory_mb", 1),
        ("peak GPU memory (MB)", "total", "peak_gpu_memory_mb", 1),
        ("GPU memory-time (MB s)", "total", "gpu_memory_time_area_mb_s", 1),
        ("CPU-time (% s)", "total", "cpu_time_area_percent_s", 1),
        ("parameters (M)", "network", "parameters", 1e6),
        ("multiply-accumulates a pass (G)", "network", "multiply_accumulates", 1e9),
    )
    rows = []
    for name, method in content["methods"].items():
        values = [method.get(part, {}).get(key) for _, part, key, _ in columns]
        rows.append(
            (
                name,
                [
                    Cell(str(len(method.get("cases", ())))),
                    *(Cell("-" if v is None else f"{v / c[3]:.4g}") for v, c in zip(values, columns)),
                ],
            )
        )
    machine = ", ".join(f"{k} {v}" for k, v in content.get("machine", {}).items() if v is not None)
    return Table(f"Cost of prediction, all cases together ({machine})", ["cases", *(i[0] for i in columns)], rows, "method")


def plans(models: Sequence[TrainedModel]) -> Table:
    """What nnU-Net planned, one line a method and configuration."""
    rows, seen = [], set()
    for model in models:
        own = resolved_configuration(model.plans, model.configuration)
        cells = [_short(own.get(k)) for k in ("spacing", "patch_size", "batch_size", "normalization_schemes")]
        network = own.get("architecture", {}).get("arch_kwargs", {})
        cells += [_short(network.get("features_per_stage")), _short(network.get("n_stages"))]
        key = (model.method, *cells)
        if key not in seen:
            seen.add(key)
            rows.append((f"{model.method} ({model.configuration})", [Cell(i) for i in cells]))
    return Table("What was planned", ["spacing (mm)", "patch", "batch", "normalisation", "features", "stages"], rows, "method")


def resolved_configuration(content: Mapping[str, Any], name: str) -> dict:
    """A configuration with what it inherits."""
    own = content.get("configurations", {}).get(name, {})
    parent = resolved_configuration(content, own["inherits_from"]) if own.get("inherits_from") else {}
    return {**parent, **own}


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{i:.3g}" if isinstance(i, float) else str(i) for i in value)
    return "-" if value is None else str(value)


def versions() -> list:
    """``(package, version)`` of what the figures depend on, Python first."""
    found = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return [*found, ("system", f"{platform.system()} {platform.machine()}")]


def markdown(table: Table) -> str:
    """The table in Markdown; the best of a column in bold."""
    lines = [f"| {table.corner} | " + " | ".join(table.columns) + " |", "|---|" + "---|" * len(table.columns)]
    for name, cells in table.rows:
        lines.append(f"| {name} | " + " | ".join(f"**{i.text}**" if i.strong else i.text for i in cells) + " |")
    return "\n".join(lines)
