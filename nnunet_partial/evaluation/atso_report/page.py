"""The report of an ATSO run: tables, curves and pictures, and one HTML file that holds all of it.

Written to ``RUN/report``: ``summary.csv`` (a line a generation), ``scores.csv`` (model, set and class), ``changes.csv``
(case and class of every generation), ``times.csv``, ``generations.png``, ``pictures/`` and ``index.html``.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_partial import palette
from nnunet_partial.evaluation.atso_report import generations, verdict
from nnunet_partial.evaluation.atso_report.generations import CHANGES, SCORES, SUMMARY, Run
from nnunet_partial.evaluation.atso_report.pictures import draw_cases
from nnunet_partial.evaluation.atso_report.to_scroll import changed_cases
from nnunet_partial.evaluation.report import tables, viewer
from nnunet_partial.evaluation.report.charts import LINES, PAGE_INCHES, PLOT, Picture, new_figure
from nnunet_partial.evaluation.report.page import links
from nnunet_partial.evaluation.report.tables import Cell, Table
from nnunet_partial.files import PathLike, atomic_path, write_text
from nnunet_partial.labels import drawn

TITLES = {
    "generation": "generation",
    "test_dice": "test, mean of its models",
    "best_test_dice": "test, best model",
    "reference_dice": "reference set",
    "dice_to_previous": "labels against the generation before",
    "dice_to_m0": "labels against M0's",
    "test_dice_to_m0": "test predictions against M0's",
    "pseudo_dice": "pseudo Dice at the end of training",
}
TEMPLATE = "atso.html.j2"


def write_report(folder: PathLike, pictures: int = 6) -> Path:
    """Write the report of a run on what is there of it; returns index.html."""
    run = Run(folder)
    for leftover in run.report.rglob(".tmp-*"):  # of a report that was killed while it was written
        leftover.unlink(missing_ok=True)
    changes = generations.all_changes(run)
    scores = generations.all_scores(run, changes)
    summary = generations.summarise(run, changes, scores)
    times = generations.stage_times(run)
    for name, rows, columns in (
        ("changes", changes, CHANGES),
        ("scores", scores, SCORES),
        ("summary", summary, SUMMARY),
        ("times", times, generations.TIMES),
    ):
        write_text(generations.as_csv(rows, columns), run.report / f"{name}.csv")
    return write_page(run, summary, scores, changes, times, pictures)


def write_page(
    run: Run,
    summary: Sequence[Mapping],
    scores: Sequence[Mapping],
    changes: Sequence[Mapping],
    times: Sequence[Mapping],
    pictures: int,
) -> Path:
    """Draw everything and write index.html, which needs no other file; returns its path."""
    curves = draw_curves(summary, run.report / "generations.png")
    cases, models = draw_cases(run, changes, pictures), generations.trained_models(run)
    names = {i: i for i in ("generation", "model", "set", "class", "cases", "dice")}
    content = {
        "title": f"ATSO on {run.plan['dataset']}",
        "options": run.options,
        "returned_model": run.plan["returned_model"],
        "verdict": verdict.verdict(run, changes),
        "curves": curves and _picture(curves, "Dice of the generations; generation 0 is M0", PLOT),
        "summary": table("Dice in percent of every generation", summary, TITLES, percent=True),
        "cases": [_picture(file, text) for file, text in cases],
        "scores": table("Dice in percent of every model, set and class", scores, names, percent=True),
        "times": table("Seconds of every stage, interrupted attempts included", times, {i: i for i in generations.TIMES}),
        "training": tables.training(models) if models else None,
        "commands": generations.commands(run),
        "test_commands": verdict.commands_for_test_cases(run),
        "links": links({i.method: i.folder / f"fold_{i.fold}" for i in models}, generations.logs(run), run.report),
        "versions": tables.versions(),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    file = run.report / "index.html"
    write_text(viewer.render(TEMPLATE, content, lambda: changed_cases(run, changes, pictures)), file)
    return file


def table(caption: str, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], percent: bool = False) -> Table | None:
    """Rows as a table of a page; columns that are empty throughout are left out. None without rows."""
    filled = [i for i in titles if any(row[i] is not None for row in rows)]
    if not filled:
        return None
    first, *others = filled
    cells = [(_text(row[first], percent), [Cell(_text(row[i], percent)) for i in others]) for row in rows]
    return Table(caption, [titles[i] for i in others], cells, titles[first])


def _text(value: Any, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{100 * value:.2f}" if percent else f"{value:.1f}"
    return str(value)


def _picture(file: Path, text: str, kind: str = "overlay") -> Picture:
    return Picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode(), text, text, kind)


# ---- pictures


def _save(figure, file: Path) -> Path:
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return file


def draw_curves(summary: Sequence[Mapping[str, Any]], file: Path) -> Path | None:
    """Every column of the summary over the generations."""
    columns = [i for i in TITLES if i != "generation" and any(row[i] is not None for row in summary)]
    if not columns:
        return None
    figure = new_figure(PAGE_INCHES, 4.5)
    axes = figure.subplots()
    names = [drawn(row["generation"]) for row in summary]
    for number, column in enumerate(columns):
        points = [(i, 100 * row[column]) for i, row in enumerate(summary) if row[column] is not None]
        colour, style = palette.of(palette.ON_WHITE, number), LINES[number % len(LINES)]
        axes.plot(*zip(*points), style, marker="o", color=colour, label=TITLES[column])
    axes.set(xlabel="generation", ylabel="Dice (%)")
    axes.set_xticks(range(len(names)), names)
    axes.grid(color=palette.GRID)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _save(figure, file)
