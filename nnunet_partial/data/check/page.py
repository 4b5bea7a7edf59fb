"""One page of pictures of a raw dataset: what is annotated where, volumes, voxel sizes, and cases with their labels."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial import palette
from nnunet_partial.data import images
from nnunet_partial.data.check.inspection import Finding, Inspection, values_in_file
from nnunet_partial.data.fingerprint import patient_axes
from nnunet_partial.data.raw import RawCase, RawDataset
from nnunet_partial.files import PathLike, atomic_path
from nnunet_partial.labels import Union, drawn

SHOWN = 8


def draw(inspection: Inspection, raw: RawDataset, path: PathLike) -> None:
    """Write the page as PNG or PDF, by the ending of ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.7, 8.3), dpi=110, layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(1, 1.9))  # the stubs know a single one alone
    top, bottom = panels
    figure.suptitle(f"{drawn(inspection.name)}: {len(inspection.facts)} cases", fontsize=12)
    matrix, volumes, spacings = top.subplots(1, 3)
    _draw_matrix(inspection, matrix)
    _draw_volumes(inspection, volumes)
    _draw_spacings(inspection, spacings)
    chosen = choose(inspection)
    axes = bottom.subplots(2, SHOWN // 2, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, facts in zip(axes, chosen):
        _draw_case(inspection, raw.cases[facts.case], raw, axis)
    _draw_legend(inspection, bottom)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:])


def choose(inspection: Inspection) -> list:
    """Cases to show: those with the gravest findings first, then the first ones of every source in turn."""
    rank = {"error": 0, "warning": 1}
    gravity = {}
    for finding in inspection.findings:
        if finding.level in rank:
            gravity[finding.case] = min(gravity.get(finding.case, 9), rank[finding.level])
    seen: dict = {}
    turn = {i.case: seen.setdefault(i.source, []).append(i) or len(seen[i.source]) for i in inspection.facts}
    readable = [i for i in inspection.facts if i.problem is None]
    return sorted(readable, key=lambda i: (gravity.get(i.case, 9), turn[i.case]))[:SHOWN]


def _draw_matrix(inspection: Inspection, axis) -> None:
    sources = list(dict.fromkeys(i.source for i in inspection.facts))
    counts = np.array(
        [
            [sum(name in i.annotated for i in inspection.facts if i.source == source) for name in inspection.classes]
            for source in sources
        ]
    ).reshape(len(sources), len(inspection.classes))
    axis.imshow(np.sqrt(counts), cmap="Blues", aspect="auto", vmin=0)
    if counts.size <= 120:
        for (row, column), count in np.ndenumerate(counts):
            colour = "black" if count < counts.max() / 3 else "white"
            axis.text(column, row, count, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(inspection.classes)), [drawn(i) for i in inspection.classes], rotation=60, ha="right", fontsize=6)
    axis.set_yticks(range(len(sources)), [drawn(i or "all") for i in sources], fontsize=7)
    axis.set_box_aspect(min(0.9, 0.14 * max(1, len(sources))))  # one row is a strip, not a third of the page
    axis.set_title("annotated cases per source", fontsize=9)


def _draw_volumes(inspection: Inspection, axis) -> None:
    names = [n for n in inspection.classes if any(n in i.volumes_ml for i in inspection.facts)]
    suspicious = {i.case for i in inspection.findings if i.kind == "volume"}
    for column, name in enumerate(names):
        cases = [i for i in inspection.facts if name in i.volumes_ml]
        shift = np.linspace(-0.25, 0.25, len(cases))
        colours = [palette.REMARKABLE if i.case in suspicious else palette.BLUE for i in cases]
        axis.scatter(column + shift, [i.volumes_ml[name] for i in cases], s=6, c=colours)
    if names:
        axis.set_yscale("log")
    axis.set_xticks(range(len(names)), [drawn(i) for i in names], rotation=60, ha="right", fontsize=6)
    axis.tick_params(axis="y", labelsize=6)
    axis.set_title("volume in ml (outliers orange)", fontsize=9)


def _draw_spacings(inspection: Inspection, axis) -> None:
    readable = [i for i in inspection.facts if i.problem is None]
    sources = list(dict.fromkeys(i.source for i in readable))
    for number, source in enumerate(sources):
        spacings = np.array([i.spacing_mm for i in readable if i.source == source])
        axis.scatter(
            spacings.min(1), spacings.max(1), s=8, color=palette.of(palette.ON_GREY, number), label=drawn(source or "all")
        )
    axis.set_xlabel("smallest voxel edge in mm", fontsize=7)
    axis.set_ylabel("largest", fontsize=7)
    axis.tick_params(labelsize=6)
    if sources:
        axis.legend(fontsize=6)
    axis.set_title("voxel sizes", fontsize=9)


def _draw_case(inspection: Inspection, case: RawCase, raw: RawDataset, axis) -> None:
    picture, label, aspect = slice_of(case)
    axis.imshow(picture, cmap=None if picture.ndim == 3 else "gray", aspect=aspect, **_window(picture, inspection.channels[0]))
    annotated = next(i.annotated for i in inspection.facts if i.case == case.name)
    classes = [i for i in inspection.classes if not isinstance(i, Union)]
    values = values_in_file(annotated, {name: raw.labels[name][0] for name in classes})
    for number, name in enumerate(inspection.classes):
        mask = label == values.get(name, -1)
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=palette.of(palette.ON_GREY, number), linewidths=0.9)
    worst = next(
        (i for level in ("error", "warning") for i in inspection.findings if i.case == case.name and i.level == level), None
    )
    axis.set_title(
        drawn("\n".join([case.name, *_title(worst)])),
        fontsize=6,
        color=palette.REMARKABLE if worst else "black",
    )


def _title(finding: Finding | None, width: int = 52) -> list:
    """At most two lines about a finding, never cut within a word."""
    return textwrap.wrap(f"{finding.kind}: {finding.text}", width, max_lines=2, placeholder=" ...") if finding else []


def _draw_legend(inspection: Inspection, figure) -> None:
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=palette.of(palette.ON_GREY, i), label=drawn(name)) for i, name in enumerate(inspection.classes[:24])
    ]
    if lines:
        figure.legend(
            handles=lines,
            loc="outside lower center",
            ncols=8,
            fontsize=6,
            frameon=False,
            title="slices seen from the feet: the patient's right is on the left",
            title_fontsize=6,
        )


def slice_of(case: RawCase) -> tuple:
    """``(picture, label, height/width of a pixel)`` of the axial slice with most label, or the middle one; seen from
    the feet.
    """
    image = patient_axes(images.read_image(case.images[0]))
    array = sitk.GetArrayViewFromImage(image)
    label = np.zeros(array.shape[: image.GetDimension()], np.uint8)
    if case.label is not None:
        values, geometry = images.read_label(case.label)
        if values.shape == geometry.shape_zyx and np.prod(values.shape) == label.size:
            other = sitk.GetImageFromArray(values)
            other.SetSpacing(geometry.spacing_mm)
            other.SetOrigin(geometry.origin_mm)
            other.SetDirection(geometry.direction)
            oriented = sitk.GetArrayFromImage(patient_axes(other))
            label = oriented if oriented.shape == label.shape else label
    if image.GetDimension() == 2:
        return np.array(array), label, 1.0
    amount = np.count_nonzero(label, axis=(1, 2))
    index = int(np.argmax(amount)) if amount.any() else len(array) // 2
    return np.array(array[index]), label[index], image.GetSpacing()[1] / image.GetSpacing()[0]


def _window(picture: np.ndarray, channel: str) -> dict:
    if picture.ndim == 3:
        return {}
    if channel == "CT" and picture.min() < -200:
        return {"vmin": -160, "vmax": 240}
    low, high = np.percentile(picture, (1, 99))
    return {"vmin": low, "vmax": max(high, low + 1)}
