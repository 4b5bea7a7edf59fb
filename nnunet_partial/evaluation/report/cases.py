"""Best, median and worst case of every class, as pictures: truth and prediction drawn on the image in three planes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_partial import palette
from nnunet_partial.bars import bar
from nnunet_partial.data.fingerprint import patient_axes
from nnunet_partial.data.images import read_image, read_label
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.ranking import HIGHER_IS_BETTER
from nnunet_partial.evaluation.report import overlays
from nnunet_partial.evaluation.report.charts import Picture, as_png
from nnunet_partial.evaluation.report.inputs import Evaluation, Inputs
from nnunet_partial.evaluation.results import rows_by_class
from nnunet_partial.labels import drawn

PLACES = ("best", "median", "worst")
PLANES = ("axial", "coronal", "sagittal")
MARGIN_MM, LEAST_MARGIN_MM = 20.0, 5.0
CT_WINDOW_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class Shown:
    """One case of one class at its place; ``picture`` None with the ``reason`` when a file is missing."""

    place: str
    case: str
    value: float
    picture: Picture | None
    reason: str = ""


def choose(rows: Sequence[Mapping], name: str, metric: str) -> list:
    """``(place, row)`` of the best, the median and the worst case of a class; fewer if there are fewer cases.

    An infinite distance is the worst there is; a case with nothing to measure is not chosen.
    """
    own = [i for i in rows if i["class"] == name and not math.isnan(i[metric])]
    own = sorted(own, key=lambda i: i[metric], reverse=HIGHER_IS_BETTER[metric])
    if len(own) < 2:
        return [("only", i) for i in own]
    if len(own) == 2:
        return [("best", own[0]), ("worst", own[1])]
    return [("best", own[0]), ("median", own[len(own) // 2]), ("worst", own[-1])]


def shown_cases(inputs: Inputs, method: str, rows: Sequence[Mapping], classes: Sequence[str], progress: bool = False) -> dict:
    """class -> :class:`Shown` of one method, drawn from its first seed."""
    evaluation, own = inputs.methods[method][0], rows_by_class(rows)
    return {
        name: [_shown(inputs, evaluation, method, place, row) for place, row in choose(own.get(name, ()), name, inputs.metric)]
        for name in bar(classes, "drawing cases", "structure", progress)
    }


def _shown(inputs: Inputs, evaluation: Evaluation, method: str, place: str, row: Mapping) -> Shown:
    case, name, value = row["case"], row["class"], row[inputs.metric]
    try:
        view = read_view(inputs, evaluation, case, name)
    except UserError as error:
        return Shown(place, case, value, None, str(error))
    what = f"{place} case for {name}: {case}, {inputs.heading(inputs.metric)} {value:.3g}"
    planes = "three planes" if view.dimensions == 3 else "the image's plane"
    alt = (
        f"{name} in case {case} in {planes}, the {place} of {method}: truth {view.truth.sum()} voxels, prediction "
        f"{view.pred.sum()} voxels, {(view.truth & view.pred).sum()} in both"
        f"{'' if view.image is not None else '; without the image'}."
    )
    outside = _outside(view)
    if outside > 0.005:
        what += f"; {100 * outside:.0f} % of the prediction lies outside the picture"
    return Shown(place, case, value, Picture(as_png(draw_planes(view)), alt, f"{method}, {what}", "overlay"))


@dataclass(frozen=True)
class View:
    """Image and both masks of a class, (z, y, x) along the patient's left, back and head, or (y, x) in 2D."""

    image: np.ndarray | None
    truth: np.ndarray
    pred: np.ndarray
    spacing_mm: tuple
    window: tuple

    @property
    def dimensions(self) -> int:
        return self.truth.ndim


def read_view(inputs: Inputs, evaluation: Evaluation, case: str, name: str) -> View:
    """Read what is drawn. A missing image leaves the masks; a missing mask is a :class:`UserError`."""
    masks = {}
    for side, file in (("truth", evaluation.truth(case)), ("pred", evaluation.prediction(case))):
        if file is None or not evaluation.values(side, name):
            where = evaluation.about.get(side, "nowhere")
            raise UserError(
                f"no picture: {case} is no longer in {where}, or metrics.json does not say its values; evaluate again."
            )
        label, geometry = read_label(file)
        masks[side] = _mask(label, geometry, evaluation.values(side, name))
    truth, pred = (sitk.GetArrayFromImage(i) > 0 for i in (masks["truth"], masks["pred"]))
    image_file = inputs.image(case, evaluation)
    image = None if image_file is None else _first_channel(patient_axes(read_image(image_file)))
    if image is not None and image.shape[: truth.ndim] != truth.shape:
        image = None
    return View(image, truth, pred, masks["truth"].GetSpacing()[::-1], _window(image, inputs.dataset))


def _mask(label: np.ndarray, geometry, values: Sequence[int]) -> "sitk.Image":
    mask = sitk.GetImageFromArray(np.isin(label, values).astype(np.uint8))
    mask.SetSpacing(geometry.spacing_mm)
    mask.SetOrigin(geometry.origin_mm)
    mask.SetDirection(geometry.direction)
    return patient_axes(mask)


def _first_channel(image: "sitk.Image") -> np.ndarray:
    array = sitk.GetArrayFromImage(image)
    return array[0] if image.GetDimension() == 4 else array


def _window(image: np.ndarray | None, dataset: Mapping) -> tuple:
    if image is None:
        return 0.0, 1.0
    first = str(next(iter(dataset.get("channel_names", {"0": ""}).values()))).lower()
    if first == "ct" and image.min() < -200:
        return CT_WINDOW_HU
    low, high = np.percentile(image, (1, 99))
    return float(low), float(max(high, low + 1e-6))


# ------------------------------------------------------------------ drawing


def draw_planes(view: View):
    """A figure with one panel a plane through the middle of the structure, cropped around it."""
    box = crop(view)
    if view.dimensions != 3:
        return overlays.draw_rows([_plane("", _slice(view, None, box), view.window)], 1)
    panels = [_plane(name, _slice(view, axis, box), view.window) for axis, name in enumerate(PLANES)]
    return overlays.draw_rows(panels, len(panels))


def crop(view: View) -> tuple:
    """Slices around the truth (without truth, the prediction) with a margin; everything if both are empty.

    The margin is as large as a small structure itself, so that it fills a third of the picture. The prediction is inside as far
    as it reaches no further from the truth than that is large, so that one stray voxel does not shrink the picture.
    """
    shape, spacing = view.truth.shape, view.spacing_mm
    own = _bounds_mm(view.truth if view.truth.any() else view.pred, spacing)
    if own is None:
        return tuple(slice(0, n) for n in shape)
    low, high = own
    size = float((high - low).max())
    other = _bounds_mm(view.pred, spacing)
    if other is not None:
        reach = max(size, MARGIN_MM)
        low, high = np.maximum(np.minimum(low, other[0]), low - reach), np.minimum(np.maximum(high, other[1]), high + reach)
    margin = min(MARGIN_MM, max(size, LEAST_MARGIN_MM))
    # planes of one row are of similar shape where the scan goes on
    short = np.maximum(0, (high - low).max() / 2 - (high - low)) / 2
    low, high = (low - margin - short) / spacing, (high + margin + short) / spacing
    return tuple(slice(max(0, int(np.floor(a))), min(n, int(np.ceil(b)))) for a, b, n in zip(low, high, shape))


def _bounds_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple | None:
    """(low, high) edges of what is in a mask, in mm from its first corner; None of an empty one."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return None
    return tuple(np.array([getattr(i, end) * s for i, s in zip(found[0], spacing_mm)]) for end in ("start", "stop"))


def _outside(view: View) -> float:
    """Share of the predicted voxels that lie outside the picture."""
    return 0.0 if not view.pred.any() else 1 - view.pred[crop(view)].sum() / view.pred.sum()


def _slice(view: View, axis: int | None, box: Sequence[slice]) -> dict:
    """Picture, masks and pixel size of the plane across ``axis`` that shows most truth (or prediction, without truth)."""
    parts = [None if i is None else i[tuple(box)] for i in (view.image, view.truth, view.pred)]
    if axis is None:
        return dict(zip(("image", "truth", "pred"), parts), aspect=view.spacing_mm[0] / view.spacing_mm[1])
    truth, pred = view.truth[tuple(box)], view.pred[tuple(box)]
    counted = truth if truth.any() else pred
    amount = counted.sum(tuple(i for i in range(3) if i != axis))
    most = np.flatnonzero(amount == amount.max())
    index = int(most[len(most) // 2])  # of equal ones the middle, where both masks are most likely to be
    rows, columns = [view.spacing_mm[i] for i in range(3) if i != axis]
    # the head is up in coronal and sagittal planes
    planes = [None if i is None else np.take(i, index, axis) for i in parts]
    planes = [i if i is None or axis == 0 else i[::-1] for i in planes]
    return dict(zip(("image", "truth", "pred"), planes), aspect=rows / columns)


def _plane(title: str, found: Mapping, window: tuple) -> overlays.Plane:
    """Both masks as outlines; what only one of them has is filled."""
    truth, pred = found["truth"], found["pred"]
    image = np.zeros(truth.shape) if found["image"] is None else found["image"]
    return overlays.Plane(
        title,
        image,
        window,
        found["aspect"],
        outlines=[(truth, palette.TRUTH), (pred, palette.PREDICTION)],
        fills=[(pred & ~truth, palette.PREDICTION), (truth & ~pred, palette.TRUTH)],
    )


def side_by_side(inputs: Inputs, name: str, case: str, methods: Sequence[str], values: Mapping[str, float]) -> Picture | None:
    """One case as every method sees it, in the axial plane through the truth. None if files are missing."""
    views = {}
    for method in methods:
        try:
            views[method] = read_view(inputs, inputs.methods[method][0], case, name)
        except UserError:
            continue
    if len(views) < 2:
        return None
    box = _joint_crop(list(views.values()))
    panels = [
        _plane(f"{drawn(method)}\n{values[method]:.3g}", _slice(view, 0 if view.dimensions == 3 else None, box), view.window)
        for method, view in views.items()
    ]
    figure = overlays.draw_rows(panels, min(5, len(panels)), 8)
    metric = inputs.heading(inputs.metric)
    alt = f"{name} in case {case} as each method sees it. {metric}: " + ", ".join(f"{m} {values[m]:.3g}" for m in views) + "."
    return Picture(as_png(figure), alt, f"{name}: case {case}, each method's {metric} above it", "overlay")


def _joint_crop(views: Sequence[View]) -> tuple:
    boxes = [crop(i) for i in views]
    return tuple(slice(min(i.start for i in axis), max(i.stop for i in axis)) for axis in zip(*boxes))
