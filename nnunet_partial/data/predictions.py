"""Predictions of any tool as files: label maps, or one mask an organ, in the images' own space.

::

    DIR/CASE.nii.gz                        a label map; DIR/dataset.json names its values ("labels"), or a mapping does
    DIR/CASE/ORGAN.nii.gz                  one mask an organ, as TotalSegmentator writes them
    DIR/CASE/segmentations/ORGAN.nii.gz    as TotalSegmentator's own dataset keeps them

A mask is 0 and 1, or holds the organ's probability. Nothing is interpolated here, and nothing is believed: a file must lie on
the grid of its image (along whatever axes it is stored), masks must not overlap, and what is left out is an error.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.grids import read_label_on, require_on_grid
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, sha256
from nnunet_partial.labels import check_source_name, members, structure

DATASET_ORGANS = "segmentations"  # the folder within a case's in TotalSegmentator's dataset
NOTHING = "background"  # what a label is mapped to that is not used
AIR_HU, OUTSIDE_BODY = -300, 0.5  # more of the masks than this share lies in the air around the body: not this patient's
_BODY_GRID = 128  # the outline of the body needs no more voxels along an edge


@dataclass(frozen=True)
class Predictions:
    """What a tool says about the cases of a dataset.

    ``labels``: organ, or value of the label maps -> the class, or union of classes, that it stands for; several may stand for
    one. ``one_mask_an_organ``: whether a case is a folder of masks.
    """

    name: str
    folder: Path
    labels: Mapping[Any, str]
    one_mask_an_organ: bool

    @classmethod
    def find(
        cls, name: str, folder: PathLike, mapping: Mapping[str, str], classes: Sequence[str], cases: Sequence[str]
    ) -> "Predictions":
        """Which files there are, and what they stand for in a dataset of these ``classes``; no image is read.

        ``mapping``  label, or value of label maps -> class, union of classes (``left+right``) or ``background``; a label
                     that is not in it stands for the class of its name, if there is one
        raises       :class:`UserError` for a folder without files of a case, an organ that some cases lack, and a mapping
                     that does not fit
        """
        check_source_name(name)
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"--predictions {name}={folder}: there is no such folder.")
        masks = any((folder / i).is_dir() for i in cases)
        names = _organs(folder, cases) if masks else _values(folder)
        labels = _mapped(name, folder, names, mapping, classes)
        made = cls(name, folder, labels, masks)
        for case in cases:
            made.files(case)
        return made

    @cached_property
    def structures(self) -> tuple:
        """What is known, each once, in the order of ``labels``."""
        return tuple(dict.fromkeys(self.labels.values()))

    def to_json(self) -> dict:
        """The entry in provenance.json."""
        return {
            "name": self.name,
            "predictions": str(self.folder),
            "labels": {str(k): str(v) for k, v in self.labels.items()},
            "classes": [str(i) for i in self.structures],
        }

    def inputs(self, case: str) -> dict:
        """What the labels of a case are made from: the meaning of each label, and the hash of each file."""
        files = self.files(case)
        return {
            "labels": {str(k): str(v) for k, v in self.labels.items()},
            "sha256": {str(k): sha256(v) for k, v in files.items()},
        }

    def files(self, case: str) -> dict:
        """Organ -> file of a case, or ``"all"`` -> its label map. Raises :class:`UserError` for one that is missing."""
        if not self.one_mask_an_organ:
            return {"all": _file(self.folder, case, f"predictions of {self.name}: case {case}")}
        within = _case_folder(self.folder, case)
        what = f"predictions of {self.name}: {{}} of case {case}, which other cases have or --map names,"
        return {i: _file(within, i, what.format(i)) for i in self.labels}

    def check_geometry(self, case: str, geometry: Geometry, image: PathLike) -> None:
        """Raise :class:`UserError` unless every file of the case lies on the grid of its ``image``. Reads headers alone."""
        for file in self.files(case).values():
            require_on_grid(images.read_geometry(file), file, geometry, image)

    def read(self, case: str, geometry: Geometry, image: PathLike, placed: Callable[[np.ndarray], np.ndarray]) -> "Reading":
        """What the files of a case say.

        ``placed``  brings an array of probabilities (z, y, x) where it is needed; one organ's is in memory at a time
        raises      :class:`UserError` for a file that cannot be used, values out of range, and masks that overlap
        """
        files = self.files(case)
        if not self.one_mask_an_organ:
            return Reading(self._of_map(files["all"], geometry, image), None)
        labels = self._of_masks(files, geometry, image)
        return Reading(labels, None) if labels is not None else Reading(None, self._probabilities(files, geometry, image, placed))

    def _of_map(self, file: Path, geometry: Geometry, image: PathLike) -> np.ndarray:
        """Numbers of the structures (z, y, x), 0 for none of them."""
        label = read_label_on(file, geometry, image)
        table = np.zeros(max(self.labels) + 1, np.uint16)
        for value, name in self.labels.items():
            table[value] = self.structures.index(name) + 1
        return table[np.where(label < len(table), label, 0)]

    def _of_masks(self, files: Mapping[str, Path], geometry: Geometry, image: PathLike) -> np.ndarray | None:
        """Numbers of the structures (z, y, x); None where a mask holds probabilities."""
        label = np.zeros(geometry.shape_zyx, np.uint16)
        for organ, name in self.labels.items():
            values = _read_probability(files[organ], geometry, image)
            mask = values > 0
            if np.count_nonzero(mask) != np.count_nonzero(values == 1):
                return None
            number = self.structures.index(name) + 1
            self._require_apart(label, mask, number, files[organ])
            label[mask] = number
        return label

    def _require_apart(self, label: np.ndarray, mask: np.ndarray, number: int, file: Path) -> None:
        others = label[mask & (label != 0) & (label != number)]
        if others.size:
            other = self.structures[np.bincount(others).argmax() - 1]
            raise UserError(
                f"{file} overlaps the masks of {other} in {others.size} voxels: one voxel is one organ. Leave out one of them "
                f"(--map {self.name}:LABEL={NOTHING}), map both to one class, or write probabilities."
            )

    def _probabilities(
        self, files: Mapping[str, Path], geometry: Geometry, image: PathLike, placed: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """(n, *S) float32 as ``placed`` gives them; of labels that stand for one structure the sum, at most 1."""
        found: list = [None] * len(self.structures)
        for organ, name in self.labels.items():
            values, number = placed(_read_probability(files[organ], geometry, image)), self.structures.index(name)
            found[number] = values if found[number] is None else np.minimum(found[number] + values, 1)
        return np.stack(found)


@dataclass(frozen=True)
class Reading:
    """What the files of a case say: either ``labels``, numbers of the structures on the image's grid (z, y, x), 0 for none; or
    ``probabilities`` (n, *S) of the structures, where they were asked for."""

    labels: np.ndarray | None
    probabilities: np.ndarray | None


def outside_body(ct: np.ndarray, mask: np.ndarray) -> float:
    """Share of ``mask`` that lies in the air around the body on ``ct`` in HU, both (z, y, x): air that reaches the edge of its
    slice. Lungs and bowel gas lie within. 0 for an empty mask."""
    from scipy import ndimage

    step = tuple(slice(None, None, max(1, n // _BODY_GRID)) for n in ct.shape)
    inside = mask[step]
    beside = [[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3]
    labelled: Any = ndimage.label(ct[step] <= AIR_HU, structure=beside)
    regions = labelled[0]
    edges = np.concatenate([i.ravel() for i in (regions[:, 0], regions[:, -1], regions[:, :, 0], regions[:, :, -1])])
    around = np.zeros(regions.max() + 1, bool)
    around[edges] = True
    around[0] = False
    return float(around[regions[inside]].mean()) if inside.any() else 0.0


# ------------------------------------------------------------------ files


def _file(folder: Path, stem: str, what: str) -> Path:
    found = next((folder / (stem + i) for i in images.ENDINGS if (folder / (stem + i)).is_file()), None)
    if found is None:
        raise UserError(
            f"{what} has no file {folder / stem}{images.ENDINGS[0]}. Write it, empty if there is nothing to see, or leave the "
            "case out with --cases."
        )
    return found


def _case_folder(folder: Path, case: str) -> Path:
    inner = folder / case / DATASET_ORGANS
    return inner if inner.is_dir() else folder / case


def _organs(folder: Path, cases: Sequence[str]) -> dict:
    """Name -> name of every organ that some case has a mask of."""
    names: dict = {}
    for case in cases:
        within = _case_folder(folder, case)
        files = sorted(os.listdir(within)) if within.is_dir() else []
        names.update((i, i) for i in map(_stem, files) if i)
    return names


def _stem(file: str) -> str | None:
    ending = next((i for i in images.ENDINGS if file.lower().endswith(i)), None)
    return None if ending is None or file.startswith(".") else file[: -len(ending)]


def _values(folder: Path) -> dict:
    """Name -> value of label maps, as the dataset.json beside them says; empty without one."""
    file = folder / "dataset.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(i, int | str) and str(i).isdigit() for i in labels.values()):
        raise UserError(f"{file}: 'labels' must map every name to one value, found {str(labels)[:80]}. Predict without regions.")
    return {name: int(value) for name, value in labels.items() if int(value) and name != "ignore"}


def _mapped(name: str, folder: Path, names: Mapping[str, Any], mapping: Mapping[str, str], classes: Sequence[str]) -> dict:
    """Organ or value -> structure of the dataset, of all that is used."""
    keys = set(names.values())
    labels = {key: structure(label, classes) for label, key in names.items()}
    for label, target in mapping.items():
        key = names.get(label, int(label) if label.isdigit() else None)
        if not key or (keys and key not in keys):
            known = ", ".join(map(str, names)) or "none: name values"
            raise UserError(f"--map {name}:{label}={target}: {folder} has no label {label!r}. It has: {_short(known)}.")
        labels[key] = require_structure(target, classes, f"--map {name}:{label}={target}")
    used = {key: item for key, item in labels.items() if item is not None}
    if not used:
        raise UserError(
            f"--predictions {name}={folder}: {_short(', '.join(map(str, names))) or 'values without names'}: none is a class of "
            f"this dataset ({_short(', '.join(classes))}). Say what they stand for: --map {name}:LABEL=CLASS."
        )
    require_disjoint(used.values(), f"--predictions {name}")
    return used


def require_structure(target: str, classes: Sequence[str], where: str) -> str | None:
    """The class or union of classes that the target of a mapping means; None for ``background``. Raises :class:`UserError`."""
    found = structure(target, classes)
    if found is None and target != NOTHING:
        raise UserError(f"{where}: {target!r} is no class of this dataset ({_short(', '.join(classes))}), nor {NOTHING!r}.")
    return found


def require_disjoint(structures: Iterable[str], where: str) -> None:
    """Raise :class:`UserError` for a class in two of these structures."""
    owner: dict = {}
    for item in dict.fromkeys(structures):
        for name in members(item):
            if owner.setdefault(name, item) != item:
                raise UserError(f"{where}: {name} is part of {owner[name]} and of {item}. Map one of them to {NOTHING}.")


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + " ..."


def _read_probability(file: Path, geometry: Geometry, image: PathLike) -> np.ndarray:
    """A mask or the probability of an organ, on the image's grid (z, y, x), 0 to 1."""
    read, wrong = images.read_image_and_count(file)
    values = sitk.GetArrayFromImage(read)
    if read.GetNumberOfComponentsPerPixel() > 1 or values.ndim > 3:
        raise UserError(f"{file} holds several values a voxel. Store one mask a file.")
    low, high = values.min(), values.max()
    if wrong or not low >= 0 or not high <= 1:
        found = "NaN" if wrong or not np.isfinite([low, high]).all() else f"{low if low < 0 else high:g}"
        raise UserError(f"{file} holds the value {found}: a mask is 0 and 1, a probability lies between. Write it so.")
    return require_on_grid(images.read_geometry(file), file, geometry, image).apply(values)
