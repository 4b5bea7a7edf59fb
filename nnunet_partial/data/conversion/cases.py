"""What a converter finds in a download: cases, each with images and a label, described without reading a voxel.

The classes say where an image or a label is and how it is to be read; reading happens later, in worker processes.

An image has ``files``, ``geometry()``, ``stored_geometry()`` before any mending of its header, ``array()``, and
``place(target, geometry, copy)``, which checks every voxel and makes the image available to nnU-Net. A label has
``files``, ``read(organs, available, geometry)``, which gives the label map of the new dataset and the geometry that
the label's own header claims, and ``mirrors``: empty if that header is to be trusted; otherwise voxels of label and
image correspond, after flipping the axes (of z, y, x) of one of these tuples, the first unless the image says
otherwise (see :mod:`alignment`). Arrays are (z, y, x), sizes (x, y, z), mm, LPS.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import grids, images
from nnunet_partial.data.conversion import dicom, views, voxels
from nnunet_partial.data.conversion.organs import OrganMap
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

IN_PLACE = "in place"
# mirrors: as the voxels are stored, or else any other
AS_STORED = ((), (1,), (0,), (0, 1), (2,), (2, 1), (2, 0), (2, 1, 0))


class Label(Protocol):
    """What a label has, wherever it is stored."""

    @property
    def files(self) -> tuple: ...

    @property
    def mirrors(self) -> tuple: ...

    def read(self, organs: OrganMap, available: frozenset | None, geometry: Geometry) -> tuple: ...


@dataclass(frozen=True)
class Skip:
    """A case that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Case:
    """``images``: one per channel, or one with all channels. ``label`` None: unlabelled.

    ``available``: label values of the download that this case distinguishes (None: all). ``present``: it distinguishes
    what its label file shows. ``annotated``: it distinguishes these classes of the dataset; the two others do not count.
    ``patient``: whom it shows, where there are several cases of one. ``notes``: what a user should know about it.
    """

    name: str
    images: tuple
    label: Label | None = None
    available: frozenset | None = None
    notes: tuple = ()
    present: bool = False
    annotated: tuple | None = None
    patient: str | None = None

    @property
    def files(self) -> tuple:
        """All files of the download that this case is made from."""
        return tuple(f for part in (*self.images, *([self.label] if self.label else [])) for f in part.files)

    def classes(self, organs: OrganMap) -> tuple:
        """Classes that the case annotates as far as is known before its label file is opened."""
        if self.label is None:
            return ()
        if self.annotated is not None:
            return tuple(i for i in organs.classes if i in self.annotated)
        return organs.classes if self.present else organs.annotated(self.available)


def pair(
    images_: Mapping[str, tuple], labels: Mapping[str, Label], unlabelled: Callable[[str], bool] = lambda name: False, **facts
) -> Iterator:
    """Cases from images and labels of the same name; :class:`Skip` where one of them is missing.

    ``unlabelled(name)``: whether the dataset never had a label for this case. ``facts``: further fields of every case.
    """
    for name in (*images_, *(i for i in labels if i not in images_)):
        if name not in images_:
            yield Skip(name, f"{labels[name].files[0].name} has no image")
        elif name in labels or unlabelled(name):
            yield Case(name, images_[name], labels.get(name), **facts)
        else:
            yield Skip(name, f"{images_[name][0].files[0].name} has no label")


@dataclass(frozen=True)
class Placed:
    """An image of the new dataset: its path, how it got there, the range of its values, what to know about them."""

    path: Path
    how: str
    low: float
    high: float
    notes: tuple = ()


@lru_cache(maxsize=8)
def _read_geometry(path: Path) -> Geometry:
    return images.read_geometry(path)


def forget() -> None:
    """Free what is kept while one case is converted."""
    _read_geometry.cache_clear()
    dicom.forget()


@dataclass(frozen=True)
class ImageFile:
    """An image in a file that SimpleITK reads; it stays where it is.

    ``volume``: index along the fourth axis of a file with several channels. ``spacing_mm``: what the header should say.
    Neither needs a copy: a text header refers to the voxels in place (see :mod:`views`).
    """

    path: Path
    volume: int | None = None
    spacing_mm: tuple | None = None

    @property
    def files(self) -> tuple:
        return (self.path,)

    def geometry(self) -> Geometry:
        geometry = self.stored_geometry()
        return geometry if self.spacing_mm is None else replace(geometry, spacing_mm=self.spacing_mm)

    def stored_geometry(self) -> Geometry:
        """As the header of the file has it."""
        geometry = _read_geometry(self.path)
        volumes = geometry.size_xyz[3] if geometry.dimensions == 4 else 1
        if not (self.volume or 0) < volumes or (self.volume is None and volumes > 1):
            raise UserError(
                f"{self.path} holds {volumes} volumes along a fourth axis where "
                f"{'one is' if self.volume is None else f'at least {self.volume + 1} are'} expected"
            )
        geometry = geometry.spatial()
        if min(geometry.size_xyz) < 1 or not min(geometry.spacing_mm) > 0:
            raise UserError(f"{self.path} has size {geometry.size_xyz} and spacing {geometry.spacing_mm}")
        return geometry

    def array(self) -> np.ndarray:
        return sitk.GetArrayFromImage(images.read_image(self.path))

    def place(self, target: Path, geometry: Geometry, copy: bool) -> Placed:
        low, high = voxels.value_range(voxels.pieces(self.path), self.path)
        if copy:
            return Placed(*views.write_copy(self.path, self.volume, geometry, target), low, high)
        if self.spacing_mm is None and _read_geometry(self.path).dimensions < 4:
            return Placed(self.path, IN_PLACE, low, high)
        return Placed(*views.write_view(self.path, self.volume or 0, geometry, target), low, high)


@dataclass(frozen=True)
class DicomSeries:
    """The files of one DICOM series, in any order. They are always copied: their rescaling and order need it."""

    files: tuple

    def geometry(self) -> Geometry:
        return dicom.read_headers(self.files).geometry

    stored_geometry = geometry

    def array(self) -> np.ndarray:
        return sitk.GetArrayViewFromImage(dicom.read_volume(dicom.read_headers(self.files)).image)

    def place(self, target: Path, geometry: Geometry, copy: bool) -> Placed:
        volume = dicom.read_volume(dicom.read_headers(self.files))
        pieces = voxels.pieces_of_array(sitk.GetArrayViewFromImage(volume.image))
        low, high = voxels.value_range(pieces, self.files[0].parent)
        path = target.with_name(target.name + ".nii.gz")
        voxels.write(volume.image, path, geometry)
        return Placed(path, views.COPY, low, high, volume.notes)


@dataclass(frozen=True)
class LabelFile:
    """A label map in a file that SimpleITK reads. ``own_header``: the mirroring that its header claims is likely, too."""

    path: Path
    mirrors: tuple = ()
    own_header: bool = False

    @property
    def files(self) -> tuple:
        return (self.path,)

    def read(self, organs: OrganMap, available, geometry: Geometry) -> tuple:
        return voxels.mapped_label(self.path, lambda label: _apply(organs, label, available, self.path))

    def values(self) -> frozenset:
        """The values that the file shows."""
        return voxels.label_values(self.path)


@dataclass(frozen=True)
class MaskFiles:
    """One file per structure: ``masks`` of (label value, path). Where masks overlap, the later one counts."""

    masks: tuple
    mirrors: tuple = ()

    @property
    def files(self) -> tuple:
        return tuple(path for _, path in self.masks)

    def restricted(self, organs: OrganMap) -> "MaskFiles":
        """Only the masks that belong to a class."""
        return replace(self, masks=tuple(i for i in self.masks if organs.uses(i[0])))

    def read(self, organs: OrganMap, available, geometry: Geometry) -> tuple:
        result, claimed = np.zeros(geometry.shape_zyx, organs.dtype), geometry
        for value, path in self.masks:
            target = int(organs.apply(np.array([value]), available)[0])
            mask, own = voxels.mapped_label(path, lambda label: (label > 0).astype(np.uint8))
            order = None if grids.is_same(own, geometry) else grids.reordering(own, geometry)
            if order is not None:
                mask, own = order.apply(mask), geometry
            if own.size_xyz != geometry.size_xyz:
                raise UserError(f"{path} has {own.size_xyz} voxels, its image {geometry.size_xyz}")
            claimed = own if claimed.difference(geometry) is None else claimed
            result[mask > 0] = target
        return result, claimed


def _apply(organs: OrganMap, label: np.ndarray, available, path: Path) -> np.ndarray:
    try:
        return organs.apply(label, available)
    except UserError as error:
        raise UserError(f"{path} {error}") from None
