"""What an evaluation says: summary, files, table. Rows are dicts of ``case``, ``source``, ``class`` and the metrics."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import __version__
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.statistics import bootstrap_cis
from nnunet_partial.files import PathLike, json_text, read_json, write_texts

CONFIDENCE = 0.95
ROW_KEYS = ("case", "source", "class")

COUNTS = ("voxels_pred", "voxels_truth", "voxels_both")

# metric -> heading and format of the table of means
COLUMNS = {
    "dice": ("Dice", "{:.4f}"),
    "iou": ("IoU", "{:.4f}"),
    "surface_dice": ("surface Dice", "{:.4f}"),
    "hausdorff_mean_mm": ("HD mm (mean of both directions)", "{:.2f}"),
    "hausdorff95_mm": ("HD95 mm (larger direction)", "{:.2f}"),
    "average_surface_distance_mm": ("ASD mm", "{:.2f}"),
    "volume_difference_ml": ("dV ml", "{:+.2f}"),
    "volume_difference_percent": ("dV %", "{:+.1f}"),
}
# of counts that are summed over cases
GLOBAL_COLUMNS = {"dice": "global Dice", "iou": "global IoU"}


def summarise(rows: Sequence[Mapping], seed: int = 0, metrics: Sequence[str] | None = None) -> dict:
    """Mean over classes, and for each class: mean, SD, median, numbers of cases and bootstrap interval of each metric.

    ``n`` counts the cases with a finite value, of which mean, SD and interval are made; ``n_infinite`` the cases where
    the structure was missed or invented, which count in the median only; ``n_undefined`` those with nothing to measure.
    ``metrics``: those to summarise (None: all that the rows have). ``global``: see :func:`global_overlap`.
    """
    metrics = ([i for i in rows[0] if i not in (*ROW_KEYS, *COUNTS)] if rows else []) if metrics is None else metrics
    classes, cases = rows_by_class(rows), list(dict.fromkeys(i["case"] for i in rows))
    columns = {(name, metric): np.array([i[metric] for i in own]) for name, own in classes.items() for metric in metrics}
    tables = [_cases_by_classes(rows, metric, cases, list(classes)) for metric in metrics]
    intervals = iter(bootstrap_cis([*columns.values(), *tables], CONFIDENCE, seed=seed))
    by_class = {name: {metric: _describe(columns[name, metric], next(intervals)) for metric in metrics} for name in classes}
    mean = {
        metric: {"mean": _mean([by_class[i][metric]["mean"] for i in classes]), "ci": list(next(intervals))} for metric in metrics
    }
    return {"n_cases": len(cases), "mean_over_classes": mean, "classes": by_class, "global": global_overlap(rows)}


def global_overlap(rows: Sequence[Mapping]) -> dict:
    """Dice and IoU of all cases as one: voxels are counted over the cases before the ratio, so large structures weigh more.

    ``{"dice": {"mean": over classes, "classes": {name: value}}, "iou": ...}``: the global Dice of LiTS, and the mean IoU of
    Cityscapes. A class without a voxel on either side is NaN. Empty for rows without the counts, as those of version 0.1.0.
    """
    if not rows or not all(set(COUNTS) <= set(row) for row in rows):
        return {}
    overlap: dict = {"dice": {}, "iou": {}}
    for name, own in rows_by_class(rows).items():
        pred, truth, both = (math.fsum(row[i] for row in own) for i in COUNTS)
        overlap["dice"][name] = 2 * both / (pred + truth) if pred + truth else math.nan
        overlap["iou"][name] = both / (pred + truth - both) if pred + truth else math.nan
    return {metric: {"mean": _mean(list(values.values())), "classes": values} for metric, values in overlap.items()}


def heading(metric: str, tolerance_mm: Mapping[str, float] | None = None) -> str:
    """Name of a metric for people; that of the surface Dice says its tolerance, ``tolerance_mm`` of each class."""
    name = COLUMNS.get(metric, (metric.replace("_", " "),))[0]
    if metric != "surface_dice" or not tolerance_mm:
        return name
    least, most = min(tolerance_mm.values()), max(tolerance_mm.values())
    return f"{name} at {least:g} mm" if least == most else f"{name} at {least:g} to {most:g} mm"


def is_missed_or_invented(row: Mapping) -> bool:
    """Whether one side alone has the structure. Rows of version 0.1 have no counts: their distances are infinite then."""
    if set(COUNTS) <= set(row):
        return (float(row["voxels_pred"]) == 0) != (float(row["voxels_truth"]) == 0)
    return any(math.isinf(float(v)) for k, v in row.items() if k not in ROW_KEYS and v is not None)


def rows_by_class(rows: Sequence[Mapping]) -> dict:
    """class -> its rows, both in the order of ``rows``."""
    found: dict = {}
    for row in rows:
        found.setdefault(row["class"], []).append(row)
    return found


def _describe(values: np.ndarray, interval: tuple) -> dict:
    values = np.asarray(values, dtype=np.float64)
    finite, measured = values[np.isfinite(values)], values[~np.isnan(values)]
    return {
        "mean": _mean(values),
        "sd": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
        "median": float(np.median(measured)) if len(measured) else math.nan,
        "ci": list(interval),
        "n": len(finite),
        "n_infinite": int(np.isinf(values).sum()),
        "n_undefined": int(np.isnan(values).sum()),
    }


def _mean(values: Iterable[float]) -> float:
    finite = [i for i in values if math.isfinite(i)]
    return float(np.mean(finite)) if finite else math.nan


def _cases_by_classes(rows: Sequence[Mapping], metric: str, cases: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    table = np.full((len(cases), len(classes)), np.nan)
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (cases, classes))
    for row in rows:
        table[row_of[row["case"]], column_of[row["class"]]] = row[metric]
    return table


def write_results(rows: Sequence[Mapping], out: PathLike, about: Mapping[str, Any]) -> None:
    """Write ``metrics.csv`` (a line a case and class) and ``metrics.json`` (``about``, summaries, rows), both or none."""
    out, sources = Path(out), {}
    for row in rows:
        sources.setdefault(row["source"], []).append(row)
    summary = summarise(rows)
    content = {
        "version": 1,
        "nnunet_partial": __version__,
        **about,
        "confidence": CONFIDENCE,
        "summary": summary,
        "sources": {i: summary if len(sources) == 1 else summarise(sources[i]) for i in sorted(sources)},
        "rows": list(rows),
    }
    write_texts({out / "metrics.csv": _csv(rows), out / "metrics.json": json_text(json_values(content))})


def format_summary(content: Mapping[str, Any]) -> str:
    """A table of the means from the content of a ``metrics.json``: a line a class, and what was left out below."""
    summary = content["summary"]
    metrics = [i for i in COLUMNS if i in summary["mean_over_classes"]]
    overall = summary.get("global", {})  # absent from files of version 0.1.0
    headings = [heading(i, content.get("tolerance_mm")) for i in metrics]
    lines = [["", "n", *headings, *(GLOBAL_COLUMNS[i] for i in overall), "missed or invented"]]
    numbers = Counter(row["class"] for row in content["rows"])
    missed = Counter(row["class"] for row in content["rows"] if is_missed_or_invented(row))
    for name, values in summary["classes"].items():
        lines.append(
            [
                name,
                str(numbers[name]),
                *(_cell(values[i]["mean"], i) for i in metrics),
                *(_cell(i["classes"][name], metric) for metric, i in overall.items()),
                str(missed[name]),
            ]
        )
    lines.append(
        [
            "mean over classes",
            str(summary["n_cases"]),
            *(_cell(summary["mean_over_classes"][i]["mean"], i) for i in metrics),
            *(_cell(i["mean"], metric) for metric, i in overall.items()),
            str(missed.total()),
        ]
    )
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = ["  ".join([line[0].ljust(widths[0]), *(i.rjust(n) for i, n in zip(line[1:], widths[1:]))]).rstrip() for line in lines]
    for reason, cases in content.get("not_evaluated", {}).items():
        if cases:
            text.append(
                f"not evaluated, {reason.replace('_', ' ')}: {len(cases)} ({', '.join(cases[:3])}"
                f"{', ...' if len(cases) > 3 else ''})"
            )
    return "\n".join(text)


def mean_dice(rows: Sequence[Mapping], classes: Sequence[str]) -> dict:
    """Class -> mean DSC over the cases that show or were given it, in percent; ``mean`` over the classes."""
    values = {name: [i["dice"] for i in rows if i["class"] == name] for name in classes}
    means = {name: float(np.nanmean(own)) * 100 if own else math.nan for name, own in values.items()}
    return {**means, "mean": float(np.mean([means[i] for i in classes]))}


def markdown_table(results: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> str:
    """Rows name -> class -> DSC in percent, as a table; a class that a model does not know stays empty."""
    columns = [*classes, "mean"]
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, values in results.items():
        known = [values.get(i) for i in columns]
        shown = ["" if i is None or math.isnan(i) else f"{i:.2f}" for i in known]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(value: Any, metric: str) -> str:
    return "-" if value is None else COLUMNS[metric][1].format(value)


def _csv(rows: Sequence[Mapping]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return stream.getvalue()


def json_values(content: Any) -> Any:
    """JSON knows neither NaN nor infinity: null and ``"inf"`` instead."""
    if isinstance(content, Mapping):
        return {k: json_values(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [json_values(i) for i in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content


def read_metrics(path: PathLike) -> list:
    """The rows of a ``metrics.json`` or ``metrics.csv``, or a folder with one, as ``evaluate_folder`` returns them."""
    path = Path(path)
    path, remedy = path / "metrics.json" if path.is_dir() else path, "Write it with nnunet_partial evaluate."
    if path.suffix == ".csv":
        rows = _read_csv(path)
    else:
        content = read_json(path, remedy)
        rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(i, dict) and set(ROW_KEYS) < set(i) for i in rows):
        raise UserError(f"{path} holds no rows of case, source, class and metrics. {remedy}")
    return [{k: v if k in ROW_KEYS else _number(v) for k, v in row.items()} for row in rows]


def _number(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


def _read_csv(path: Path) -> list:
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            return list(csv.DictReader(handle))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Write it with nnunet_partial evaluate.") from None
