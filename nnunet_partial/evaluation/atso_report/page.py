"""The report of an ATSO run: tables, curves and pictures, and one HTML file that holds all of it.

Written to ``RUN/report``: ``summary.csv`` (a line a generation), ``scores.csv`` (model, set and class), ``changes.csv``
(case and class of every generation), ``times.csv``, ``generations.png``, ``pictures/`` and ``index.html``.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import palette, paths
from nnunet_partial.evaluation.atso_report import generations
from nnunet_partial.evaluation.atso_report.generations import CHANGES, SCORES, SUMMARY, Run, mean, read_seg
from nnunet_partial.evaluation.report import html
from nnunet_partial.evaluation.report.charts import Picture, new_figure
from nnunet_partial.evaluation.report.tables import Cell, Table
from nnunet_partial.files import PathLike, atomic_path, read_json, write_text
from nnunet_partial.labels import drawn
from nnunet_partial.safe_read import open_array

TITLES = {
    "generation": "generation",
    "test_dice": "test, mean of its models",
    "best_test_dice": "test, best model",
    "reference_dice": "reference set",
    "dice_to_previous": "labels against the generation before",
    "dice_to_m0": "labels against M0's",
    "test_dice_to_m0": "test predictions against M0's",
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
        ("times", times, ("stage", "state", "seconds")),
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
    cases = draw_cases(run, changes, pictures)
    names = {i: i for i in ("generation", "model", "set", "class", "cases", "dice")}
    content = {
        "title": f"ATSO on {run.plan['dataset']}",
        "options": run.options,
        "returned_model": run.plan["returned_model"],
        "curves": curves and _picture(curves, "Dice of the generations"),
        "summary": table("Dice in percent of every generation", summary, TITLES, percent=True),
        "cases": [_picture(file, text) for file, text in cases],
        "scores": table("Dice in percent of every model, set and class", scores, names, percent=True),
        "times": table("Seconds of every stage", times, {i: i for i in ("stage", "state", "seconds")}),
    }
    file = run.report / "index.html"
    write_text(html.render(TEMPLATE, content), file)
    return file


def table(caption: str, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], percent: bool = False) -> Table | None:
    """Rows as a table of a page; columns that are empty throughout are left out. None without rows."""
    first, *others = [i for i in titles if any(row[i] is not None for row in rows)] or [None]
    if first is None:
        return None
    cells = [(_text(row[first], percent), [Cell(_text(row[i], percent)) for i in others]) for row in rows]
    return Table(caption, [titles[i] for i in others], cells, titles[first])


def _text(value: Any, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{100 * value:.2f}" if percent else f"{value:.1f}"
    return str(value)


def _picture(file: Path, text: str) -> Picture:
    return Picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode(), text, text)


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
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    names = [drawn(row["generation"]) for row in summary]
    for colour, column in zip(palette.ON_WHITE, columns):
        points = [(i, 100 * row[column]) for i, row in enumerate(summary) if row[column] is not None]
        axes.plot(*zip(*points), marker="o", color=colour, label=TITLES[column])
    axes.set(xlabel="generation", ylabel="Dice (%)")
    axes.set_xticks(range(len(names)), names)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _save(figure, file)


def most_changed(changes: Sequence[Mapping[str, Any]], number: int) -> list:
    """``(generation, case, Dice to the generation before)``, the most changed first."""
    found = {}
    for row in changes:
        if row["dice_to_previous"] is not None:
            found.setdefault((str(row["generation"]), row["case"]), []).append(row["dice_to_previous"])
    ranked = sorted((mean(values), *key) for key, values in found.items())
    return [(generation, case, score) for score, generation, case in ranked[:number]]


def draw_cases(run: Run, changes: Sequence[Mapping[str, Any]], number: int) -> list:
    """A picture of each most changed case, labels before and after: ``[(file, caption), ...]``."""
    by_name = {str(i["generation"]): i for i in run.generations}
    with_labels = [i for i in by_name if run.labels(by_name[i]) is not None]
    pictures = []
    for generation, case, score in most_changed(changes, number):
        before = with_labels[with_labels.index(generation) - 1]
        segs = [read_seg(run.labels(by_name[i]), case) for i in (before, generation)]
        file = run.report / "pictures" / f"{generation}_{case}.png"
        text = f"{case}: labels of generation {before} and of {generation}, Dice between them {100 * score:.1f} %"
        pictures.append((_draw_case(run, case, segs, (before, generation), file), text))
    for old in set((run.report / "pictures").glob("*.png")) - {file for file, _ in pictures}:
        old.unlink()  # of an earlier report
    return pictures


def _draw_case(run: Run, case: str, segs: Sequence[np.ndarray], names: Sequence[str], file: Path) -> Path:
    """The slice in which most voxels changed, twice."""
    changed = (segs[0] != segs[1]).reshape(len(segs[0]), -1).sum(1)
    index = int(changed.argmax())
    image = _image(run, case)[index]
    figure = new_figure(9, 4.5)
    axes = figure.subplots(1, 2)
    for axis, seg, name in zip(axes, segs, names):
        axis.imshow(
            image, cmap="gray", vmin=np.percentile(image, 1), vmax=max(np.percentile(image, 99), np.percentile(image, 1) + 1e-6)
        )
        for value in range(1, len(run.classes) + 1):
            mask = seg[index] == value
            if mask.any() and not mask.all():
                axis.contour(mask, levels=[0.5], colors=[palette.of(palette.ON_GREY, value - 1)], linewidths=1.5)
        axis.set_title(f"generation {drawn(name)}, slice {index}", fontsize="small")
        axis.axis("off")
    return _save(figure, file)


def _image(run: Run, case: str) -> np.ndarray:
    """The first channel (*S) of the preprocessed image of a case."""
    plans = read_json(paths.plans_file(run.plan["dataset"], run.options["plans"]))
    configuration = plans["configurations"][run.options["configuration"]]
    while "data_identifier" not in configuration:
        configuration = plans["configurations"][configuration["inherits_from"]]
    folder = paths.preprocessed_dataset(run.plan["dataset"]) / configuration["data_identifier"]
    return np.asarray(open_array(folder / f"{case}.b2nd")[0])
