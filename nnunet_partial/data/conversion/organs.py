"""Which structures of a download become which classes: ``--organs liver,kidney=left_kidney+right_kidney``."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_partial.errors import UserError, did_you_mean

MOST_CLASSES = 65000  # uint16
Structures = Mapping[str, tuple]  # name -> label values of the download that belong to it


@dataclass(frozen=True)
class OrganMap:
    """Label values of a download -> classes 1 .. K of the dataset.

    ``classes``: names; ``values``: for each, the values of the download that belong to it; ``known``: every value
    that a label file of the download may hold; ``ignored``: values that become nnU-Net's ignore label, K + 1. ``only``:
    the classes that one case annotates, None: all. ``option``: of the command line, which names label values; empty where
    the release fixes them.
    """

    classes: tuple
    values: tuple
    known: frozenset
    ignored: frozenset = frozenset()
    only: tuple | None = None
    option: str = ""

    @property
    def dtype(self) -> type:
        """The voxel type of label maps: uint8 as long as that leaves a value for what is unknown."""
        return np.uint8 if len(self.classes) < 254 else np.uint16

    def labels(self) -> dict:
        """``labels`` of dataset.json."""
        labels = {"background": 0, **{name: i + 1 for i, name in enumerate(self.classes)}}
        return {**labels, "ignore": len(self.classes) + 1} if self.ignored else labels

    def uses(self, value: int) -> bool:
        """Whether a value of the download belongs to any class."""
        return any(value in values for values in self.values)

    def annotated(self, available: Iterable[int] | None = None) -> tuple:
        """Classes all of whose values are among ``available`` (None: all)."""
        chosen = [(n, v) for n, v in zip(self.classes, self.values) if self.only is None or n in self.only]
        available = None if available is None else set(available)
        return tuple(name for name, values in chosen if available is None or available.issuperset(values))

    def apply(self, label: np.ndarray, available: Iterable[int] | None = None) -> np.ndarray:
        """Label map of the download -> label map of the dataset. Raises :class:`UserError` for an unknown value.

        A value of several classes goes to the one with the fewest values: with organs ``liver`` (1, 2) and ``tumor``
        (2,) a tumour is a tumour; with ``liver`` alone it is liver.
        """
        unknown_value = np.iinfo(self.dtype).max
        table = np.full(max(self.known | self.ignored | {0}) + 1, unknown_value, self.dtype)
        table[list(self.known | {0})] = 0
        annotated = self.annotated(available)
        for name, values in sorted(zip(self.classes, self.values), key=lambda i: -len(i[1])):
            if name in annotated:
                table[list(values)] = self.classes.index(name) + 1
        table[list(self.ignored)] = len(self.classes) + 1
        mapped = table[np.minimum(label, len(table) - 1)]
        unknown = (label >= len(table)) | (mapped == unknown_value)
        if unknown.any():
            raise UserError(
                f"holds the label value {int(label[unknown][0])}; known values are "
                f"{', '.join(str(i) for i in sorted(self.known | self.ignored | {0}))}{self._remedy(label)}"
            )
        return mapped

    def _remedy(self, label: np.ndarray) -> str:
        """How to name the values of ``label``: its only value is the only class, whatever number a program gave it."""
        if not self.option:
            return ""
        found = np.unique(label[label > 0]).tolist()
        if len(found) == len(self.classes) == 1:
            return f"; if that is {self.classes[0]}, write {self.option} {self.classes[0]}={found[0]}"
        return f"; the file shows {', '.join(map(str, found[:12]))}: name them all with {self.option} NAME=VALUE"


def choose_organs(requested: str | None, structures: Structures, default: Sequence[str], ignored: Iterable[int] = ()) -> OrganMap:
    """Parse ``--organs``: names, or NAME=STRUCTURE+STRUCTURE, separated by commas. None: ``default``."""
    known = frozenset(v for values in structures.values() for v in values)
    classes: dict = {}
    for name, parts in _items(requested, default):
        for part in parts:
            if part not in structures:
                raise UserError(
                    f"--organs: {part!r} is not a structure of this dataset. {did_you_mean(part, structures)}Structures: {', '.join(structures)}. "
                    f"Write NAME or NAME=STRUCTURE+STRUCTURE, separated by commas."
                )
        _check_name(name, classes)
        classes[name] = tuple(sorted({v for part in parts for v in structures[part]}))
    if not classes:
        raise UserError("the download names no structure that could become a class")
    _check_no_class_vanishes(classes)
    if len(classes) > MOST_CLASSES:
        raise UserError(f"--organs: {len(classes)} classes; at most {MOST_CLASSES} are supported.")
    return OrganMap(tuple(classes), tuple(classes.values()), known, frozenset(ignored))


def _items(requested: str | None, default: Sequence[str]) -> list:
    """``(name of the class, names of its structures)``; names of the download itself are taken as they are."""
    if requested is None:
        return [(name, (name,)) for name in default]
    items = [item.strip().partition("=") for item in requested.split(",")]
    return [(name, tuple((parts or name).split("+"))) for name, _, parts in items]


def _check_name(name: str, classes: Mapping[str, tuple]) -> None:
    separators = sorted(set(name) & set(",=+:"))
    if separators:
        raise UserError(
            f"the structure {name!r} of the download has {separators[0]!r} in its name, which separates names on the command "
            "line, so that no later command could name the class. Rename it in the download."
        )
    if name in classes or name in ("background", "ignore") or not re.fullmatch(r"[\w .-]+", name):
        raise UserError(f"--organs: {name!r} is not usable as the name of a class (given twice, reserved, or empty).")


def _check_no_class_vanishes(classes: Mapping[str, tuple]) -> None:
    for name, values in classes.items():
        others = {v for other, o in classes.items() if other != name and len(o) <= len(values) for v in o}
        if others.issuperset(values):
            raise UserError(f"--organs: nothing would be left of {name!r}, because the other classes take all of it.")
