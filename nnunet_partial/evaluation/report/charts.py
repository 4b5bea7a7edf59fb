"""The charts of a report, as SVG in data addresses: nothing is loaded from anywhere, and they are sharp at any size.

They are drawn as wide as the page.

Methods differ by line style or hatching beside their colour.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_partial import palette
from nnunet_partial.evaluation.report.inputs import TrainedModel, finite
from nnunet_partial.evaluation.results import heading, rows_by_class
from nnunet_partial.labels import drawn

LINES = ("-", "--", "-.", ":")
PAGE_INCHES = 12.0
PLOT = "plot"  # a picture that is shown as wide as the page
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


@dataclass(frozen=True)
class Picture:
    """A picture on the page. ``alt`` says in words what it shows; ``caption`` stands below it."""

    address: str
    alt: str
    caption: str
    kind: str = ""


def new_figure(width: float, height: float):
    """A figure that needs no display and that nothing else of the process knows; what is in it is laid out."""
    figure = bare_figure(width, height)
    figure.set_layout_engine("constrained")
    return figure


def bare_figure(width: float, height: float):
    """As :func:`new_figure`, for one that places everything itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def as_svg(figure) -> str:
    """The figure as a data address; the same figure gives the same text."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nnunet_partial"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def as_png(figure, dpi: int = 90) -> str:
    """The figure as a data address, for what is mostly pixels."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


# ------------------------------------------------------------------ results


def box_plot(
    rows: Mapping[str, Sequence[Mapping]], classes: Sequence[str], metric: str, title: str | None = None
) -> Picture | None:
    """Box plots of one metric: a group a class, a box a method, and every case as a dot. None without finite values.

    ``title``: what the metric is called, where that is more than its name."""
    values = {method: _finite_values(own, metric) for method, own in rows.items()}
    names = [n for n in classes if any(own.get(n) for own in values.values())]
    if not names:
        return None
    title = title or heading(metric)
    figure = new_figure(max(PAGE_INCHES, min(18, 2.2 + 0.45 * len(names) * (len(rows) + 1))), 4.2)
    axis = figure.subplots()
    width = 0.8 / len(rows)
    for number, (method, own) in enumerate(values.items()):
        at = np.arange(len(names)) + (number - (len(rows) - 1) / 2) * width
        _boxes(axis, [own.get(name, []) for name in names], at, width, number, method)
    axis.set_xticks(range(len(names)), [drawn(i) for i in names])
    axis.set_ylabel(drawn(title))
    axis.grid(axis="y", color=palette.GRID)
    axis.set_axisbelow(True)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return Picture(
        as_svg(figure),
        _box_plot_alt(values, names, title),
        f"{title} of every case (dots); box: quartiles and median, whiskers: up to 1.5 times the box.",
        PLOT,
    )


def _boxes(axis, values: Sequence[Sequence[float]], at: np.ndarray, width: float, number: int, method: str) -> None:
    colour = palette.of(palette.ON_WHITE, number)
    boxes = axis.boxplot(
        values,
        positions=at,
        widths=0.8 * width,
        manage_ticks=False,
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black", "linewidth": 1.5},
    )
    for box in boxes["boxes"]:
        box.set(facecolor=colour, alpha=0.55, hatch=HATCHES[number % len(HATCHES)])
    boxes["boxes"][0].set_label(drawn(method))
    for position, own in zip(at, values):
        spread = np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else np.zeros(len(own))
        axis.scatter(position + width * spread, own, s=9, color=colour, edgecolor="black", linewidth=0.3, zorder=3)


def _finite_values(rows: Sequence[Mapping], metric: str) -> dict:
    """class -> its finite values."""
    return {name: [i[metric] for i in own if math.isfinite(i[metric])] for name, own in rows_by_class(rows).items()}


def _box_plot_alt(values: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str], title: str) -> str:
    medians = []
    for name in names:
        own = [(method, i.get(name, ())) for method, i in values.items()]
        medians.append(f"{name}: " + ", ".join(f"{method} {np.median(v):.3g}" for method, v in own if v))
    return f"Box plots of {title}. Medians. {'; '.join(medians)}."


# ------------------------------------------------------------------ training


def training_curves(models: Sequence[TrainedModel]) -> list:
    """For every method: loss and pseudo Dice over epochs, a line a model."""
    methods = dict.fromkeys(i.method for i in models)
    return [i for method in methods if (i := _method_curves(method, [m for m in models if m.method == method]))]


def _method_curves(method: str, models: Sequence[TrainedModel]) -> Picture | None:
    shown = [i for i in models if i.curves.get("train_losses")]
    if not shown:
        return None
    figure = new_figure(PAGE_INCHES, 3.6)
    loss, dice = figure.subplots(1, 2)
    for number, model in enumerate(shown):
        colour, label = palette.of(palette.ON_WHITE, number), _model_label(model, shown)
        _line(loss, model.curves["train_losses"], f"{label} training", colour, "-")
        _line(loss, model.curves.get("val_losses", ()), f"{label} validation", colour, "--")
        _line(dice, model.curves.get("mean_fg_dice", ()), f"{label} epoch", colour, ":")
        _line(dice, model.curves.get("ema_fg_dice", ()), f"{label} running mean", colour, "-")
    for axis, name in ((loss, "loss"), (dice, "pseudo Dice where annotated (validation)")):
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color=palette.GRID)
        axis.legend(fontsize=7)
    dice.set_ylim(0, 1)
    return Picture(
        as_svg(figure),
        _curves_alt(method, shown),
        f"Training of {method}: loss (left) and nnU-Net's pseudo Dice on validation patches (right).",
        PLOT,
    )


def _model_label(model: TrainedModel, among: Sequence[TrainedModel]) -> str:
    """What tells a model from the others of its method: plans (seeds, sources) and fold."""
    plans = model.folder.name.split("__")[1]
    return f"{plans} fold {model.fold}" if len({i.folder for i in among}) > 1 else f"fold {model.fold}"


def _line(axis, values: Sequence, label: str, colour: str, style: str) -> None:
    known = [(epoch, value) for epoch, value in enumerate(values, 1) if finite(value)]
    if known:
        axis.plot(*zip(*known), style, color=colour, label=drawn(label), marker="o" if len(known) == 1 else None)


def _curves_alt(method: str, models: Sequence[TrainedModel]) -> str:
    parts = []
    for model in models:
        losses, dice = model.curves["train_losses"], model.curves.get("ema_fg_dice") or [math.nan]
        parts.append(
            f"{_model_label(model, models)}: training loss from {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} "
            f"epochs, pseudo Dice at the end {dice[-1]:.3g}"
        )
    return f"Training curves of {method}. {'; '.join(parts)}."
