"""Voxels in pieces, so that a volume need not be held several times."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Pair

_PIECE_VOXELS = 1 << 22


class OutputError(Exception):
    """A result cannot be written. That is not the fault of one case, so the whole conversion stops."""


def is_nifti(path: Path) -> bool:
    return str(path).lower().endswith((".nii", ".nii.gz"))


def pieces(path: Path) -> Iterator[np.ndarray]:
    """The voxels of an image file in the order of the file. A file that is not whole is a :class:`UserError`."""
    if is_nifti(path):
        yield from images._nifti_voxels(str(path))
    else:
        image = images.read_image(path)  # has a name, because a view does not keep its image alive
        yield from pieces_of_array(sitk.GetArrayViewFromImage(image))


def pieces_of_array(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE_VOXELS):
        yield flat[start : start + _PIECE_VOXELS]


def value_range(parts: Iterator[np.ndarray], name) -> tuple:
    """``(lowest, highest)`` value. NaN, infinite values and colours are a :class:`UserError`."""
    low, high = np.inf, -np.inf
    for part in parts:
        if part.dtype.kind not in "buif":
            raise UserError(f"{name} holds voxels of type {part.dtype} where numbers are expected")
        low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(f"{name} holds NaN or infinite values. Replace them, for CT by -1024")
    return float(low), float(high)


def nifti_image(path: Path) -> "Nifti1Pair":
    """A NIfTI file, of which nibabel has read the header alone."""
    import nibabel

    return cast("Nifti1Pair", nibabel.load(path))  # load is declared to give any of nibabel's images


def mapped_label(path: Path, apply: Callable[[np.ndarray], np.ndarray]) -> tuple:
    """``(apply(label map), geometry)`` of a label file, read and mapped in pieces; ``apply`` works voxel by voxel."""
    if not is_nifti(path):
        label, geometry = images.read_label(path)
        return apply(label), geometry
    geometry = images.read_geometry(path)
    if geometry.dimensions == 4 and geometry.size_xyz[3] == 1:
        geometry = geometry.spatial()
    if geometry.dimensions > 3:
        raise UserError(f"label file {path} has {geometry.dimensions} dimensions, size {geometry.size_xyz}")
    result, end = np.empty(0), 0
    for part in pieces(path):
        mapped = apply(images._as_labels(part, str(path)))
        if not end:
            result = np.empty(int(np.prod(geometry.size_xyz)), mapped.dtype)
        result[end : end + part.size] = mapped
        end += part.size
    return result.reshape(geometry.shape_zyx), geometry


def label_values(path: Path) -> frozenset:
    """The values that a label file shows, background left out."""
    found: set = set()
    for part in pieces(path):
        found.update(images.present_values(images._as_labels(part, str(path))))
    return frozenset(found - {0})


def write(image: "sitk.Image", path: Path, geometry: Geometry | None = None) -> None:
    """Write an image compressed; under its name it appears whole. Raises :class:`OutputError`."""
    if geometry is not None:
        image.SetSpacing(geometry.spacing_mm)
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(geometry.direction)
    try:
        images.write_image(image, path)
    except UserError as error:
        raise OutputError(str(error)) from None


def write_label(label: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a label map (z, y, x), uint8 or uint16."""
    write(sitk.GetImageFromArray(label), path, geometry)
