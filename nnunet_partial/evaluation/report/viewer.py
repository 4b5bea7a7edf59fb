"""Cases to scroll through within a page: image, truth and predictions as layers, in three planes and as a volume.

NiiVue (BSD-2-Clause, https://github.com/niivue/niivue) draws them. Its program comes from the package ``ipyniivue``, the extra
``viewer``; it and the voxels are written into the page, which loads nothing and opens without a network. Without the package
the page is the same, with one line that says how to get it.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from nnunet_partial.evaluation.report import html

PAGE_BYTES = 25_000_000
VOXELS = 1_500_000  # of a case; larger ones are shown in blocks of their voxels
MARGIN_MM = 20.0
CT_RANGE_HU, CT_STEP_HU = (-1024, 3072), 4  # noise below the step would fill the page, and no window shows it
CT_WINDOWS_HU = (("abdomen", -160, 240), ("lung", -1350, 150), ("bone", -500, 1300))
PERCENTILES = ((1, 99), (5, 95), (0.1, 99.9))
PACKAGE = "ipyniivue"
INSTALL = 'pip install "nnunet_partial[viewer]"'
# where its program makes a NiiVue; what the class is called there changes from build to build
_CLASS = re.compile(r'"Creating new Niivue instance"\);.{0,120}?=new ([\w$]+)\(')


@dataclass(frozen=True)
class Layer:
    """Labels (z, y, x) that are switched on and off together. ``colours``: value -> (name, colour), up to 255; others are not
    drawn. ``shown``: on when the case is opened."""

    name: str
    labels: np.ndarray
    colours: Mapping[int, tuple]
    shown: bool = True


@dataclass(frozen=True)
class Scene:
    """One case, (z, y, x) along the patient's left, back and head.

    ``origin_mm``: (x, y, z) of the first voxel in DICOM's frame. ``channel``: what dataset.json calls the image. ``rank``: those
    of low rank are listed first, and kept where a page has no room for all.
    """

    name: str
    image: np.ndarray | None
    layers: Sequence[Layer]
    spacing_mm: Sequence[float]
    origin_mm: Sequence[float] = (0.0, 0.0, 0.0)
    channel: str = ""
    rank: tuple = ()


def render(template: str, content: Mapping[str, Any], scenes: Callable[[], Iterable[Scene]]) -> str:
    """The page of ``template`` with as many ``scenes`` as it has room for; they are read only where they can be shown."""
    program, reason = niivue()
    if not program:
        return html.render(template, {**content, "viewer": Viewer(reason=reason)})
    programs = (program, (Path(__file__).parent / "viewer.js").read_text(encoding="utf-8"))
    bare = html.render(template, {**content, "viewer": Viewer(programs=programs)})
    packed = sorted(((i.rank, i.name, _as_json(pack(i))) for i in scenes()), key=lambda i: i[0])
    kept, left_out = fit([i[1:] for i in packed], PAGE_BYTES - len(bare.encode()))
    return html.render(template, {**content, "viewer": Viewer(kept, left_out, programs if kept else ())})


@dataclass(frozen=True)
class Viewer:
    """What the template shows. ``cases``: JSON of each; ``left_out``: names of those without room; ``reason``: why there is none."""

    cases: Sequence[str] = ()
    left_out: Sequence[str] = ()
    programs: Sequence[str] = ()
    reason: str = ""

    @property
    def policy(self) -> str:
        """The only scripts that may run, for the page's Content-Security-Policy."""
        hashes = (base64.b64encode(hashlib.sha256(i.encode()).digest()).decode() for i in self.programs)
        return "".join(f" 'sha256-{i}'" for i in hashes)


# ------------------------------------------------------------------ the program


@cache
def niivue() -> tuple:
    """``(program, "")``: a script that sets ``globalThis.Niivue``; or ``("", what to do)``."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        return "", f"To scroll through these cases: {INSTALL}, then make this page again."
    file = Path(found.origin).parent / "static" / "widget.js"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    name = _CLASS.search(text)
    if name is None or re.search("</script|<!--|\r", text):
        version = metadata.version(PACKAGE)
        return (
            "",
            f"There is no viewer, because this version of {PACKAGE}, {version}, is not known: {INSTALL}, then make this page again.",
        )
    return f"/* NiiVue, as {PACKAGE} ships it.\n{_licence()} */\n{text}\nglobalThis.Niivue = {name[1]};\n", ""


def _licence() -> str:
    files = [i for i in metadata.files(PACKAGE) or () if i.name.startswith("LICENSE")]
    return "".join(i.read_text() for i in files).replace("*/", "* /").replace("\r", "")


# ------------------------------------------------------------------ what is shown


def fit(packed: Sequence[tuple], room: int) -> tuple:
    """Of ``(name, JSON)``: the JSON of those that fit into so many bytes, the first ones first, and the names of the others."""
    kept, left_out = [], []
    for name, text in packed:
        size = len(text) + len(name.encode()) + 20  # the name is told where the case is left out
        if size <= room:
            room -= size
            kept.append(text)
        else:
            left_out.append(name)
    return kept, left_out


def _as_json(content: Any) -> str:
    """JSON that ends no script element, whatever names are in it."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def pack(scene: Scene) -> dict:
    """A scene as the viewer reads it: cropped, in as few bytes as do no harm. Every volume is a compressed NIfTI."""
    box, spacing = crop(scene), np.asarray(scene.spacing_mm, float)
    steps = blocks([i.stop - i.start for i in box], scene.spacing_mm)
    labels = [replace(i, labels=_majority(i.labels[box], i.colours, steps)) for i in scene.layers]
    image = np.zeros(labels[0].labels.shape) if scene.image is None else _mean(scene.image[box], steps)
    stored, windows = _stored(image, scene.image is not None and is_ct(scene.image, scene.channel))
    affine = _affine(scene, box, spacing, steps)
    notes = ["The image is not there."] if scene.image is None else []
    notes += [f"Shown in blocks of {' x '.join(str(i) for i in steps[::-1])} voxels."] if max(steps) > 1 else []
    return {
        "name": scene.name,
        "note": " ".join(notes),
        "image": stored(affine),
        "windows": [] if scene.image is None else windows,
        "start": _start(labels, affine),
        "layers": [
            {
                "name": i.name,
                "shown": i.shown,
                "labels": _nifti(i.labels, affine, intent="label"),
                "colours": [[value, name, colour] for value, (name, colour) in i.colours.items()],
            }
            for i in labels
        ],
    }


def crop(scene: Scene) -> tuple:
    """Slices around all layers with a margin; everything where nothing is labelled."""
    labelled = np.any([np.isin(i.labels, list(i.colours)) for i in scene.layers], axis=0)
    found = ndimage.find_objects(labelled.astype(np.uint8))
    if not found:
        return tuple(slice(0, n) for n in labelled.shape)
    margins = [int(np.ceil(MARGIN_MM / i)) for i in scene.spacing_mm]
    return tuple(slice(max(0, i.start - m), min(n, i.stop + m)) for i, m, n in zip(found[0], margins, labelled.shape))


def blocks(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple:
    """How many voxels of each axis become one, so that no more than ``VOXELS`` are left: the shortest edge is doubled first."""
    steps = [1] * len(shape)
    while np.prod([max(1, n // s) for n, s in zip(shape, steps)]) > VOXELS:
        axis = int(np.argmin([d * s if n > s else np.inf for d, s, n in zip(spacing_mm, steps, shape)]))
        steps[axis] += 1
    return tuple(steps)


def _mean(array: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means of blocks; what does not fill a block at the end of an axis is left out."""
    sizes = [n // s for n, s in zip(array.shape, steps)]
    whole = array[tuple(slice(0, n * s) for n, s in zip(sizes, steps))]
    if max(steps) == 1:
        return whole
    split = whole.reshape([i for pair in zip(sizes, steps) for i in pair])
    return split.mean(axis=tuple(range(1, 2 * len(steps), 2)), dtype=np.float32)


def _majority(labels: np.ndarray, colours: Mapping[int, tuple], steps: Sequence[int]) -> np.ndarray:
    """The value, of those with a colour, that fills at least half of each block, else 0."""
    result = None
    for value in colours:
        inside = _mean(labels == value, steps) >= 0.5
        result = np.zeros(inside.shape, np.uint8) if result is None else result
        result[inside] = value
    return np.zeros([n // s for n, s in zip(labels.shape, steps)], np.uint8) if result is None else result


def _stored(image: np.ndarray, hounsfield: bool) -> tuple:
    """``(affine -> NIfTI, [[name, black, white], ...])``: Hounsfield units in steps, others in 256 grey values."""
    if hounsfield:
        units = np.clip(image, *CT_RANGE_HU) / CT_STEP_HU
        rounded = (np.round(units) * CT_STEP_HU).astype(np.int16)
        return lambda affine: _nifti(rounded, affine), [list(i) for i in CT_WINDOWS_HU]
    ends = [[float(i) for i in np.percentile(image, pair)] for pair in PERCENTILES]
    windows = [[f"{a:g} to {b:g} %", low, max(high, low + 1e-6)] for (a, b), (low, high) in zip(PERCENTILES, ends)]
    low, high = windows[-1][1:]
    slope = (high - low) / 255
    grey = np.round((np.clip(image, low, high) - low) / slope).astype(np.uint8)
    return lambda affine: _nifti(grey, affine, slope, low), windows


def is_ct(image: np.ndarray, channel: str) -> bool:
    """Whether values are Hounsfield units: dataset.json says CT, and there is something like air."""
    return channel.lower() == "ct" and float(image.min()) < -200


def _affine(scene: Scene, box: Sequence[slice], spacing: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Of (x, y, z) to NIfTI's world, right, front and head, in mm; the first voxel is the middle of the first block."""
    first = np.array([i.start + (s - 1) / 2 for i, s in zip(box, steps)]) * spacing
    towards = np.array([-1.0, -1.0, 1.0])  # DICOM counts to the left and back
    affine = np.diag([*(towards * (spacing * steps)[::-1]), 1.0])
    affine[:3, 3] = towards * (np.asarray(scene.origin_mm) + first[::-1])
    return affine


def _start(layers: Sequence[Layer], affine: np.ndarray) -> list:
    """Where to look first, in NIfTI's world: the middle of the largest axial cut through the first layer with anything in it."""
    masks = (np.isin(i.labels, list(i.colours)) for i in layers)
    mask = next((i for i in masks if i.any()), None)
    if mask is None:
        place = (np.array(layers[0].labels.shape) - 1) / 2
    else:
        areas = mask.sum((1, 2))
        largest = np.flatnonzero(areas == areas.max())
        z = int(largest[len(largest) // 2])
        place = np.array([z, *np.argwhere(mask[z]).mean(0)])
    return [float(i) for i in (affine @ [*place[::-1], 1.0])[:3].round(2)]


def _nifti(array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0, intent: str = "none") -> str:
    """An array (z, y, x) as compressed NIfTI, in base64; the same array gives the same text."""
    image = nib.Nifti1Image(np.ascontiguousarray(array.transpose()), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_intent(intent)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()
