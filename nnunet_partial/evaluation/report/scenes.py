"""The cases of each page that can be scrolled through: read from where the page's static pictures come from, along the
patient's axes. What is in 2D, or no longer there, is left out: the page has its picture, or says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial import palette
from nnunet_partial.data import images
from nnunet_partial.data.check.audit import Audit
from nnunet_partial.data.check.inspection import Inspection, values_in_file
from nnunet_partial.data.check.page import choose as choose_cases
from nnunet_partial.data.fingerprint import patient_axes
from nnunet_partial.data.images import Geometry
from nnunet_partial.data.preprocessed.label_directory import load_labels
from nnunet_partial.data.raw import RawDataset
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.atso_report.pictures import direction_of
from nnunet_partial.evaluation.report import cases
from nnunet_partial.evaluation.report.inputs import Inputs
from nnunet_partial.evaluation.report.viewer import Layer, Scene
from nnunet_partial.evaluation.results import rows_by_class
from nnunet_partial.files import read_json
from nnunet_partial.labels import Union
from nnunet_partial.safe_read import load_pickle, open_array

ORDER = ("worst", "only", "median", "best")
SHOWN = 8
LAYERS = (palette.TRUTH, palette.PREDICTION, *(i for i in palette.ON_GREY if i not in (palette.TRUTH, palette.PREDICTION)))


def oriented(array: np.ndarray, geometry: Geometry) -> "sitk.Image":
    """An array (z, y, x) of this geometry, with its axes along the patient's left, back and head."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return patient_axes(image)


# ------------------------------------------------------------------ the report


def of_report(inputs: Inputs, methods: Sequence[str], classes: Sequence[str]) -> Iterator[Scene]:
    """Worst, median and best case of every class of the first of ``methods``, as all of them segment it; each file is read once."""
    own = rows_by_class(inputs.methods[methods[0]][0].rows)
    chosen = [
        (row["case"], ORDER.index(place), number, row)
        for number, name in enumerate(classes)
        for place, row in cases.choose(own.get(name, ()), name, inputs.metric)
    ]
    for case, group in groupby(sorted(chosen, key=lambda i: i[:3]), key=lambda i: i[0]):
        files = _Files(inputs, methods, case)
        for _, place, number, row in group:
            what = f"{row['class']}, {ORDER[place]}: {case}, {inputs.heading(inputs.metric)} of {methods[0]} {row[inputs.metric]:.3g}"
            scene = files.scene(row["class"], what, (place, number))
            if scene is not None:
                yield scene


class _Files:
    """What a report's pages show of one case: image, truth, and the predictions that are there."""

    def __init__(self, inputs: Inputs, methods: Sequence[str], case: str):
        self.evaluations = {i: inputs.methods[i][0] for i in methods}
        first = self.evaluations[methods[0]]
        channels = inputs.dataset.get("channel_names", {})
        self.channel = str(next(iter(channels.values()), ""))
        self.truth = _read(first.truth(case))
        self.predictions = {name: _read(i.prediction(case)) for name, i in self.evaluations.items()}
        file = inputs.image(case, first)
        self.image = None if file is None or self.truth is None else _first_channel(images.read_image(file))
        self.values = first.values

    def scene(self, name: str, text: str, rank: tuple) -> Scene | None:
        """One class; None without its truth, without any prediction, and in 2D."""
        if self.truth is None or self.truth.GetDimension() != 3:
            return None
        found = {"truth": (self.truth, self.values("truth", name))}
        for method, label in self.predictions.items():
            if label is not None and label.GetSize() == self.truth.GetSize():
                found[method] = (label, self.evaluations[method].values("pred", name))
        layers = [
            Layer(one, _mask(label, values), {1: (name, palette.of(LAYERS, n))}, shown=n < 2)
            for n, (one, (label, values)) in enumerate(found.items())
        ]
        return None if len(layers) < 2 else _scene(text, self.image, self.truth, layers, self.channel, rank)


def _read(file: Path | None) -> "sitk.Image | None":
    try:
        return None if file is None else oriented(*images.read_label(file))
    except UserError:  # the static picture says why
        return None


def _mask(label: "sitk.Image", values: Sequence[int]) -> np.ndarray:
    return np.isin(sitk.GetArrayViewFromImage(label), values).astype(np.uint8)


def _first_channel(image: "sitk.Image") -> "sitk.Image":
    """The image itself, or the first of several that one file holds."""
    return patient_axes(image[..., 0] if image.GetDimension() == 4 else image)


def _scene(name: str, image: "sitk.Image | None", space: "sitk.Image", layers: list, channel: str, rank: tuple) -> Scene:
    array = None
    if image is not None and image.GetSize() == space.GetSize() and image.GetNumberOfComponentsPerPixel() == 1:
        array = sitk.GetArrayFromImage(image)
    return Scene(name, array, layers, space.GetSpacing()[::-1], space.GetOrigin(), channel, rank)


# ------------------------------------------------------------------ check


def of_check(inspection: Inspection, raw: RawDataset) -> Iterator[Scene]:
    """The cases of the page of pictures, those with the gravest findings first, with all that is annotated."""
    for number, facts in enumerate(choose_cases(inspection)):
        case = raw.cases[facts.case]
        image = _first_channel(images.read_image(case.images[0]))
        label = None if case.label is None else _read(Path(case.label))
        if label is None or label.GetDimension() != 3:
            continue
        named = {i for i in inspection.classes if not isinstance(i, Union)}
        values = values_in_file(facts.annotated, {i: raw.labels[i][0] for i in named})
        colours = {values[n]: (str(n), _colour(i)) for i, n in enumerate(inspection.classes) if n in facts.annotated}
        found = [i for i in inspection.findings if i.case == facts.case and i.level != "note"]
        text = "; ".join([facts.case, *(f"{i.kind}: {i.text}" for i in found[:1])])
        layer = Layer("labels", sitk.GetArrayFromImage(label), colours)
        yield _scene(text, image, label, [layer], inspection.channels[0], (number,))


def _colour(number: int) -> str:
    return palette.of(palette.ON_GREY, number)


# ------------------------------------------------------------------ preprocessed cases


def of_audit(audit: Audit) -> Iterator[Scene]:
    """The most suspicious cases of a label directory, the middle one and the least suspicious."""
    reasons, labels = dict(audit.ranking), audit.labels
    ranked = audit.worst(len(audit.ranking))
    chosen = dict.fromkeys([*ranked[: SHOWN - 2], *ranked[len(ranked) // 2 : len(ranked) // 2 + 1], *ranked[-1:]])
    space = Preprocessed(audit.images)
    for number, case in enumerate(chosen):
        seg = np.asarray(load_labels(labels.folder_of(case), case)[0][0])
        by_hand = {_value(labels.classes, i.name) for i in audit.rows if i.case == case and i.annotated}
        colours = {n + 1: (name, _colour(n)) for n, name in enumerate(labels.classes)}
        layers = {
            "pseudo labels": {k: v for k, v in colours.items() if k not in by_hand},
            "manual labels": {k: v for k, v in colours.items() if k in by_hand},
        }
        row = reasons[case]
        text = f"{case}: {row.name}: {row.why}" if row.why else case
        scene = space.scene(text, case, [(name, seg, i, True) for name, i in layers.items() if i], (number,))
        if scene is not None:
            yield scene


def _value(classes: Sequence[str], name: str) -> int:
    """The value of a class, or of the lowest class of a union."""
    return classes.index(name if name in classes else name.split("+")[0]) + 1


class Preprocessed:
    """Preprocessed cases of one configuration, in ``folder``, brought back along the patient's axes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.transpose = _transpose(folder)

    def scene(self, text: str, case: str, layers: Sequence[tuple], rank: tuple) -> Scene | None:
        """``layers``: (name, labels (*S), colours, shown). None in 2D, and where nobody knows how the voxels lie."""
        array = np.asarray(open_array(self.folder / f"{case}.b2nd")[0])
        properties = load_pickle(self.folder / f"{case}.pkl")
        if array.ndim != 3 or min(array.shape) < 2 or "spacing" not in properties:
            return None
        geometry = self.geometry(properties, array.shape)
        back = np.argsort(self.transpose)
        image = oriented(np.ascontiguousarray(array.transpose(back).astype(np.float32)), geometry)
        found = []
        for name, labels, colours, shown in layers:
            values = np.ascontiguousarray(np.where(labels < 0, 0, labels).astype(np.uint8).transpose(back))
            found.append(Layer(name, sitk.GetArrayFromImage(oriented(values, geometry)), colours, shown))
        return _scene(text, image, image, found, "", rank)

    def geometry(self, properties: Mapping[str, Any], shape: Sequence[int]) -> Geometry:
        """Of the voxels (z, y, x) after cropping and resampling, from what nnU-Net keeps of the file."""
        ratio = np.array(properties["shape_after_cropping_and_before_resampling"]) / np.array(shape)
        first = np.array([i[0] for i in properties["bbox_used_for_cropping"]]) + (ratio - 1) / 2
        back = np.argsort(self.transpose)
        ratio, first = ratio[back][::-1], first[back][::-1]  # (x, y, z)
        old = np.array(properties["spacing"], float)[::-1]
        origin, direction = _placed(properties)
        corner = origin + direction @ (first * old)
        size = tuple(np.array(shape)[back][::-1].tolist())
        return Geometry(size, tuple((old * ratio).tolist()), tuple(corner.tolist()), tuple(direction.ravel().tolist()))


def _placed(properties: Mapping[str, Any]) -> tuple:
    """Origin and directions in DICOM's frame, as nnU-Net's readers of SimpleITK and of nibabel keep them."""
    direction = direction_of(properties)
    if direction is None:
        return np.zeros(3), np.eye(3)
    stuff = properties.get("nibabel_stuff", {})
    affine = stuff.get("reoriented_affine", stuff.get("original_affine"))
    # nibabel counts to the right and front
    origin = properties["sitk_stuff"]["origin"] if affine is None else np.asarray(affine)[:3, 3] * (-1, -1, 1)
    return np.array(origin, float), np.reshape(direction, (3, 3))


def _transpose(folder: Path) -> tuple:
    """``transpose_forward`` of the plans that ``folder`` was preprocessed with."""
    for file in sorted(folder.parent.glob("*.json")):
        content = read_json(file)
        configurations = content.get("configurations", {}) if isinstance(content, dict) else {}
        if any(isinstance(i, dict) and i.get("data_identifier") == folder.name for i in configurations.values()):
            return tuple(content.get("transpose_forward", (0, 1, 2)))
    return (0, 1, 2)
