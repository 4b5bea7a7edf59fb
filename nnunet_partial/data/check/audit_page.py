"""One page of pictures of pseudo labels: volumes against the manual ones, confidence, disagreement, and the worst cases."""

from typing import Any

import numpy as np

from nnunet_partial import palette
from nnunet_partial.data.check.audit import Audit, AuditedCase
from nnunet_partial.data.preprocessed.label_directory import load_labels
from nnunet_partial.files import PathLike, atomic_path
from nnunet_partial.labels import drawn
from nnunet_partial.safe_read import open_array

SHOWN = 8


def draw(audit: Audit, path: PathLike) -> None:
    """Write the page as PNG or PDF, by the ending of ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.7, 8.3), dpi=110, layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(1, 1.7))  # the stubs know a single one alone
    top, bottom = panels
    figure.suptitle(drawn(f"{audit.labels.dataset}: pseudo labels of {len(audit.ranking)} cases"), fontsize=12)
    volumes, confidence, disagreement = top.subplots(1, 3, width_ratios=(2, 1, 1))
    _draw_volumes(audit, volumes)
    _draw_shares(audit, confidence, "confidence", "mean confidence")
    _draw_shares(audit, disagreement, "disagreement", "share that models disagree about")
    axes = bottom.subplots(2, SHOWN // 2, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    suspicious = dict(audit.ranking)
    for axis, case in zip(axes, audit.worst(SHOWN)):
        _draw_case(audit, suspicious[case], axis)
    _draw_legend(audit, bottom)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=str(path).rpartition(".")[2])


def _names(audit: Audit) -> list:
    return [i for i in dict.fromkeys(row.name for row in audit.rows) if any(r.volume_ml > 0 for r in audit.rows if r.name == i)]


def _draw_volumes(audit: Audit, axis) -> None:
    names = _names(audit)
    for column, name in enumerate(names):
        for manual, shift, colour in ((True, -0.18, palette.BLUE), (False, 0.18, palette.ORANGE)):
            rows = [i for i in audit.rows if i.name == name and i.annotated == manual and i.volume_ml > 0]
            colours = [palette.REMARKABLE if not manual and i.suspicion >= 1 else colour for i in rows]
            places = column + shift + np.linspace(-0.1, 0.1, len(rows))
            axis.scatter(places, [i.volume_ml for i in rows], s=7, c=colours, marker="o" if manual else "^")
    if names:
        axis.set_yscale("log")
    _label_classes(axis, names)
    axis.set_title("volume in ml: by hand (blue dots), pseudo (orange; red: remarkable)", fontsize=8)


def _draw_shares(audit: Audit, axis, field: str, title: str) -> None:
    names = _names(audit)
    for column, name in enumerate(names):
        values = [i for i in audit.rows if i.name == name and getattr(i, field) is not None]
        colours = [palette.REMARKABLE if i.suspicion >= 1 else palette.ORANGE for i in values]
        places = column + np.linspace(-0.2, 0.2, len(values))
        axis.scatter(places, [getattr(i, field) for i in values], s=7, c=colours, marker="^")
    axis.set_ylim(-0.03, 1.03)
    _label_classes(axis, names)
    axis.set_title(title, fontsize=8)


def _label_classes(axis, names: list) -> None:
    axis.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axis.set_xticks(range(len(names)), [drawn(i) for i in names], rotation=60, ha="right", fontsize=6)
    axis.tick_params(axis="y", labelsize=6)


def _draw_case(audit: Audit, row: AuditedCase, axis) -> None:
    """The slice (of the preprocessed image) that shows most of the suspicious class, or of all where it is absent."""
    seg = load_labels(audit.labels.folder_of(row.case), row.case)[0][0]
    image = open_array(audit.images / f"{row.case}.b2nd")
    value = _value(audit, row.name)
    amount = np.count_nonzero(seg == value if (seg == value).any() else seg > 0, axis=(1, 2))
    index = int(amount.argmax()) if amount.any() else len(amount) // 2
    picture, labels = np.asarray(image[0, index]), seg[index]
    low, high = np.percentile(picture, (1, 99))
    axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-3))
    for number in range(1, len(audit.labels.classes) + 1):
        mask = labels == number
        if mask.any() and not mask.all():
            width = 1.6 if number == value else 0.7
            axis.contour(mask, levels=[0.5], colors=palette.of(palette.ON_GREY, number - 1), linewidths=width)
    title = f"{row.case}\n{row.name}: {row.why}"[:110]
    axis.set_title(drawn(title), fontsize=5.5, color=palette.REMARKABLE if row.suspicion >= 1 else "black", wrap=True)


def _value(audit: Audit, name: str) -> int:
    """The value of a class, or of the lowest class of a union."""
    return audit.labels.classes.index(name if name in audit.labels.classes else name.split("+")[0]) + 1


def _draw_legend(audit: Audit, figure) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=palette.of(palette.ON_GREY, i), label=drawn(name))
        for i, name in enumerate(audit.labels.classes[:24])
    ]
    title = "the most suspicious cases, in preprocessed space"
    figure.legend(handles=lines, loc="outside lower center", ncols=8, fontsize=6, frameon=False, title=title, title_fontsize=6)
