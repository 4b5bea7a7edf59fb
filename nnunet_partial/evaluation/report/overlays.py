"""Planes of a scan with outlines and filled areas on them, in mm: rows of pictures at one height.

Outlines are never thicker than a quarter of what they surround, so that a small organ is not hidden by its own outline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_partial.evaluation.report.charts import bare_figure

GAP_INCHES = 0.04
POINTS = 72  # of an inch
MOST_POINTS, LEAST_POINTS = 1.4, 0.25  # of an outline
PAGE_INCHES, MOST_INCHES = 10.5, 3.4  # width of a picture, and height of a row
WIDEST = 2.5  # width over height of a plane; one that is wider is padded
FILLED = 0.45  # how far a filled area covers the image
LEGEND_COLUMNS = 6


@dataclass(frozen=True)
class Plane:
    """One picture: ``image`` (rows, columns) of grey values, or (rows, columns, 3) of 0 to 255; ``outlines`` and ``fills``:
    ``(mask (rows, columns) bool, colour)``; ``aspect``: height over width of a pixel; ``window``: grey values of black and white.
    """

    title: str
    image: np.ndarray
    window: tuple
    aspect: float
    outlines: Sequence[tuple] = field(default_factory=tuple)
    fills: Sequence[tuple] = field(default_factory=tuple)

    @property
    def ratio(self) -> float:
        """Width over height, in mm."""
        rows, columns = self.image.shape[:2]
        return columns / (rows * self.aspect)

    def padded(self) -> "Plane":
        """The same with black above and below, or beside it, where it is much wider than high, or higher than wide."""
        rows, columns = self.image.shape[:2]
        more_rows = max(0, round((self.ratio / WIDEST - 1) * rows))
        more_columns = max(0, round((1 / (self.ratio * WIDEST) - 1) * columns))
        if not more_rows and not more_columns:
            return self
        border = [(i // 2, i - i // 2) for i in (more_rows, more_columns)]

        def grown(array: np.ndarray, value: Any) -> np.ndarray:
            return np.pad(array, border + [(0, 0)] * (array.ndim - 2), constant_values=value)

        return replace(
            self,
            image=grown(self.image, 0 if self.image.ndim == 3 else self.window[0]),
            outlines=[(grown(mask, False), colour) for mask, colour in self.outlines],
            fills=[(grown(mask, False), colour) for mask, colour in self.fills],
        )

    def coloured(self) -> np.ndarray:
        """(rows, columns, 3) of 0 to 1: the image in grey, or in its colours, with the filled areas."""
        from matplotlib.colors import to_rgb

        if self.image.ndim == 3:
            shown = self.image[..., :3].astype(float) / 255
        else:
            low, high = self.window
            grey = np.clip((self.image.astype(float) - low) / (high - low), 0, 1)
            shown = np.repeat(grey[..., None], 3, axis=-1)
        for mask, colour in self.fills:
            shown[mask] = (1 - FILLED) * shown[mask] + FILLED * np.array(to_rgb(colour))
        return shown


def draw_rows(
    planes: Sequence[Plane],
    columns: int,
    fontsize: float = 9,
    legend: Mapping[str, str] | None = None,
    areas: Mapping[str, str] | None = None,
):
    """A figure of planes, ``columns`` in a row; all rows have one height. ``legend``: what each outline's colour is, below them;
    ``areas``: that of filled areas."""
    planes = [i.padded() for i in planes]
    rows = [planes[i : i + columns] for i in range(0, len(planes), columns)]
    gaps = GAP_INCHES * (columns + 1)
    height = min(MOST_INCHES, *((PAGE_INCHES - gaps) / sum(i.ratio for i in row) for row in rows))
    lines = max(i.title.count("\n") + 1 if i.title else 0 for i in planes)
    legend, areas = legend or {}, areas or {}
    above, below = lines * 1.3 * fontsize / POINTS + GAP_INCHES, _height_of(len(legend) + len(areas), fontsize)
    width = max(sum(i.ratio * height for i in row) + GAP_INCHES * (len(row) + 1) for row in rows)
    size = (width, len(rows) * (height + above + GAP_INCHES) + below)
    figure = bare_figure(*size)
    # one pair of axes in inches: with a pair each, and their layout found by trial, a picture takes five times as long
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]), autoscale_on=False)
    axis.set_axis_off()
    for number, row in enumerate(rows):
        left, top = GAP_INCHES, size[1] - number * (height + above + GAP_INCHES) - above
        for plane in row:
            _draw(axis, plane, left, top, height)
            middle = left + plane.ratio * height / 2
            axis.text(middle, top + GAP_INCHES / 2, plane.title, ha="center", va="bottom", fontsize=fontsize)
            left += plane.ratio * height + GAP_INCHES
    if legend or areas:
        _draw_legend(axis, legend, areas, fontsize)
    return figure


def _draw(axis, plane: Plane, left: float, top: float, height: float) -> None:
    rows, columns = plane.image.shape[:2]
    step_y = height / rows
    step_x = step_y / plane.aspect
    extent = (left, left + columns * step_x, top - height, top)
    axis.imshow(plane.coloured(), extent=extent, aspect="auto", vmin=0, vmax=1)
    x, y = left + (np.arange(columns) + 0.5) * step_x, top - (np.arange(rows) + 0.5) * step_y
    for mask, colour in plane.outlines:
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            width = outline_points(mask, step_y, step_x)
            axis.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=width)


def outline_points(mask: np.ndarray, step_y: float, step_x: float) -> float:
    """Thickness of the outline of ``mask``, whose pixels are so many inches high and wide: a quarter of the structure's own."""
    # the middle of a pixel is half a pixel from its edge
    distances: Any = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=(step_y, step_x))
    depth = distances.max() - min(step_y, step_x) / 2
    return float(np.clip(2 * depth * POINTS / 4, LEAST_POINTS, MOST_POINTS))


def _height_of(entries: int, fontsize: float) -> float:
    return 0.1 + -(-entries // LEGEND_COLUMNS) * 1.6 * fontsize / POINTS if entries else 0.0


def _draw_legend(axis, legend: Mapping[str, str], areas: Mapping[str, str], fontsize: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in legend.items()]
    handles += [Patch(color=colour, alpha=FILLED, label=name) for name, colour in areas.items()]
    axis.legend(handles=handles, loc="lower center", ncols=LEGEND_COLUMNS, fontsize=fontsize, frameon=False, borderpad=0)
