"""The report of an ATSO run: tables, curves and pictures, and one HTML file that holds all of it.

Written to ``RUN/report``: ``summary.csv`` (a line a generation), ``scores.csv`` (model, set and class), ``changes.csv``
(case and class of every generation), ``times.csv``, ``generations.png``, ``pictures/`` and ``index.html``.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import paths
from nnunet_partial.evaluation.atso_report import generations
from nnunet_partial.evaluation.atso_report.generations import CHANGES, SCORES, SUMMARY, Run, mean, read_seg
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
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito: told apart by everyone
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ccc}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{margin:1.5em 0}caption{text-align:left;color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}img{background:#fff}td,th{border-color:#444}}"""


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
    o = run.options
    parts = [
        f"<h1>ATSO on {html.escape(run.plan['dataset'])}</h1>",
        f"<p>{html.escape(o['strategy'])}, {html.escape(str(o['generations']))} generations, {html.escape(str(o['subsets']))} subset(s), "
        f"{html.escape(o['configuration'])}, fold {html.escape(str(o['fold']))}, {html.escape(o['plans'])}. The run "
        f"returns the model {html.escape(run.plan['returned_model'])}.</p>",
        "<h2>Generations</h2>",
        "<p>Dice in percent. Generation 0 is M0. A high agreement with M0 is what the paper "
        "calls lazy mimicking. Of the pseudo-labelled classes alone where labels are compared.</p>",
        _figure(curves, "Dice of the generations"),
        table(summary, TITLES, percent=True),
        "<h2>Most changed cases</h2>",
        *(_figure(file, text) for file, text in cases),
        "<h2>Scores by class</h2>",
        table(scores, {i: i for i in ("generation", "model", "set", "class", "cases", "dice")}, percent=True),
        '<section id="times"><h2>Time</h2>',
        table(times, {"stage": "stage", "state": "state", "seconds": "seconds"}),
        "</section>",
    ]
    file = run.report / "index.html"
    write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>ATSO on {html.escape(run.plan['dataset'])}</title><style>{_STYLE}</style><body>"
        f"{''.join(i for i in parts if i)}</body></html>\n",
        file,
    )
    return file


def table(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], percent: bool = False) -> str:
    """Rows as an HTML table; columns that are empty throughout are left out."""
    columns = [i for i in titles if any(row[i] is not None for row in rows)]
    head = "".join(f"<th scope=col>{html.escape(titles[i])}</th>" for i in columns)
    body = "".join("<tr>" + "".join(f"<td>{_text(row[i], percent)}</td>" for i in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else "<p>Nothing yet.</p>"


def _text(value: Any, percent: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{100 * value:.2f}" if percent else f"{value:.1f}"
    return html.escape(str(value))


def _figure(file: Path | None, text: str) -> str:
    if file is None:
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"><figcaption>{html.escape(text)}'
        f"</figcaption></figure>"
    )


# ---- pictures


def _figure_and_axes(*args, **kwargs):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **kwargs)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*args)


def _save(figure, file: Path) -> Path:
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return file


def draw_curves(summary: Sequence[Mapping[str, Any]], file: Path) -> Path | None:
    """Every column of the summary over the generations."""
    columns = [i for i in TITLES if i != "generation" and any(row[i] is not None for row in summary)]
    if not columns:
        return None
    figure, axes = _figure_and_axes(figsize=(8, 4.5))
    names = [drawn(row["generation"]) for row in summary]
    for colour, column in zip(COLOURS, columns):
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
    figure, axes = _figure_and_axes(1, 2, figsize=(9, 4.5))
    for axis, seg, name in zip(axes, segs, names):
        axis.imshow(
            image, cmap="gray", vmin=np.percentile(image, 1), vmax=max(np.percentile(image, 99), np.percentile(image, 1) + 1e-6)
        )
        for value in range(1, len(run.classes) + 1):
            mask = seg[index] == value
            if mask.any() and not mask.all():
                axis.contour(mask, levels=[0.5], colors=[COLOURS[(value - 1) % len(COLOURS)]], linewidths=1.5)
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
