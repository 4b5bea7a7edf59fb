"""DICOM series as volumes: slices in the order of their positions, grey values rescaled, gaps and mixtures refused.

File names and instance numbers are not looked at. Positions and axes come from the headers (pydicom), voxels from
SimpleITK (GDCM), which applies rescale slope and intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.conversion.voxels import pieces_of_array
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

_TAGS = [
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SOPClassUID",
    "Modality",
    "SOPInstanceUID",
]
_SPACING_TOLERANCE_MM = 0.02  # positions are rounded to a few decimals; real gaps are a slice or more
_DIRECTION_TOLERANCE = 1e-4
_FILES_AT_ONCE = 16


@dataclass(frozen=True)
class Slice:
    """One slice of a series: a file, or a frame of a multi-frame file (``frame``, counted in the file)."""

    file: str
    frame: int
    series: str
    position_mm: tuple
    orientation: tuple
    spacing_mm: tuple  # (along a row, between rows)
    size_xy: tuple


@dataclass(frozen=True)
class Series:
    """Slices from low to high position along the normal, and the geometry of the volume they make."""

    slices: tuple
    geometry: Geometry


@lru_cache(maxsize=1)
def read_headers(files: tuple) -> Series:
    """Order the slices of one series. Raises :class:`UserError` for anything but one complete volume.

    The last series stays in memory, and so do the voxels of :func:`read_volume`, because a case looks at them twice.
    """
    slices = [s for file in files for s in _slices_of_file(file)]
    if not slices:
        raise UserError(f"no DICOM image among {len(files)} files")
    series = sorted({s.series for s in slices})
    folder = Path(slices[0].file).parent
    if len(series) > 1:
        counts = [sum(s.series == i for s in slices) for i in series]
        raise UserError(
            f"{folder} holds {len(series)} series ({', '.join(f'{n} slices' for n in counts)}). Keep one series per folder"
        )
    for name in ("orientation", "spacing_mm", "size_xy"):
        first = getattr(slices[0], name)
        for other in slices:
            if not np.allclose(getattr(other, name), first, atol=_DIRECTION_TOLERANCE):
                raise UserError(f"{other.file} differs from {slices[0].file} in {name}: {getattr(other, name)} and {first}")
    return _in_order(slices)


def _in_order(slices: Sequence[Slice]) -> Series:
    row, column = np.reshape(slices[0].orientation, (2, 3))
    normal = np.cross(row, column)
    if abs(row @ column) > 1e-3 or abs(np.linalg.norm(normal) - 1) > 1e-3:
        raise UserError(
            f"{slices[0].file}: ImageOrientationPatient {slices[0].orientation} is not a pair of unit vectors at right angles"
        )
    slices = sorted(slices, key=lambda s: float(np.dot(s.position_mm, normal)))
    heights = np.array([np.dot(s.position_mm, normal) for s in slices])
    gap = _check_gaps(slices, heights)
    geometry = Geometry(
        (*slices[0].size_xy, len(slices)),
        (*slices[0].spacing_mm, gap),
        tuple(map(float, slices[0].position_mm)),
        tuple(float(i) for i in np.stack([row, column, normal], 1).ravel()),
    )
    drift = np.asarray(slices[-1].position_mm) - slices[0].position_mm - normal * (heights[-1] - heights[0])
    if np.abs(drift).max() > max(0.1, 0.1 * min(slices[0].spacing_mm)):
        raise UserError(
            f"{Path(slices[0].file).parent}: the slices are shifted against each other (a tilted gantry): "
            f"{np.abs(drift).max():.1f} mm over the volume. Resample it onto a grid with right angles first"
        )
    return Series(tuple(slices), geometry)


def _check_gaps(slices: Sequence[Slice], heights: np.ndarray) -> float:
    folder = Path(slices[0].file).parent
    if len(slices) < 2:
        raise UserError(f"{folder} holds one slice; a volume has several")
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    tolerance = max(_SPACING_TOLERANCE_MM, 0.01 * usual)
    if gaps.min() < tolerance:
        twin = int(np.argmin(gaps))
        raise UserError(
            f"{slices[twin].file} and {slices[twin + 1].file} lie at the same position. Remove one, or separate the series"
        )
    if gaps.max() - usual > tolerance:
        before = int(np.argmax(gaps))
        missing = int(round(gaps[before] / usual)) - 1
        raise UserError(
            f"{folder}: {max(missing, 1)} slice(s) missing behind {Path(slices[before].file).name}: a gap of "
            f"{gaps[before]:.2f} mm where slices are {usual:.2f} mm apart. Download the series again"
        )
    if usual - gaps.min() > tolerance:
        raise UserError(
            f"{folder}: slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart. Resample the series to one distance first"
        )
    return float(heights[-1] - heights[0]) / (len(slices) - 1)


def _slices_of_file(file: Path) -> list:
    import pydicom
    from pydicom.uid import UID

    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        if "Rows" not in dataset:
            if "Image Storage" in getattr(dataset.file_meta, "MediaStorageSOPClassUID", UID("")).name:
                raise UserError(f"{file} is truncated or damaged. Download the series again")
            return []  # a DICOMDIR, a report, a structure set
        is_multiframe = "PerFrameFunctionalGroupsSequence" in dataset
        return _frames(dataset, str(file)) if is_multiframe else [_single(dataset, str(file))]
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file} is not a DICOM image that can be placed in space ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''})"
        ) from None


def _single(dataset, file: str) -> Slice:
    return _slice(file, 0, dataset, dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing)


def _frames(dataset, file: str) -> list:
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else {}

    def group(frame, name):
        return (frame if name in frame else shared)[name].value[0]

    return [
        _slice(
            file,
            index,
            dataset,
            group(frame, "PlanePositionSequence").ImagePositionPatient,
            group(frame, "PlaneOrientationSequence").ImageOrientationPatient,
            group(frame, "PixelMeasuresSequence").PixelSpacing,
        )
        for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence)
    ]


def _slice(file, frame, dataset, position, orientation, spacing) -> Slice:
    between_rows, along_row = (float(i) for i in spacing)
    return Slice(
        file,
        frame,
        str(dataset.SeriesInstanceUID),
        tuple(map(float, position)),
        tuple(map(float, orientation)),
        (along_row, between_rows),
        (int(dataset.Columns), int(dataset.Rows)),
    )


@lru_cache(maxsize=1)
def read_volume(series: Series) -> "sitk.Image":
    """The voxels of a series in its order, rescaled, with its geometry. int16 where that holds them."""
    files = list(dict.fromkeys(s.file for s in series.slices))
    try:
        with images._reading(Path(files[0]).parent):
            image = _read_one_file(files[0], series) if len(files) == 1 else _read_files(files, series.geometry)
    except UserError:
        for file in files:  # names the one that cannot be read
            images.read_image(file)
        raise
    if image.GetSize() != series.geometry.size_xyz:
        raise UserError(
            f"{Path(files[0]).parent}: {image.GetSize()} voxels were read where the headers promise {series.geometry.size_xyz}"
        )
    image.SetSpacing(series.geometry.spacing_mm)
    image.SetOrigin(series.geometry.origin_mm)
    image.SetDirection(series.geometry.direction)
    return image


def _read_one_file(file: str, series: Series) -> "sitk.Image":
    image = _frames_in_order(sitk.ReadImage(file), series)
    return _as_int16(image) or _at_most_float32(image)


def _read_files(files: Sequence[str], geometry: Geometry) -> "sitk.Image":
    """A few files at a time, because SimpleITK reads rescaled voxels into four bytes or eight where two are enough."""
    image, start = sitk.Image(geometry.size_xyz, sitk.sitkInt16), 0
    for some in np.array_split(files, max(1, len(files) // _FILES_AT_ONCE)):
        part = _as_int16(sitk.ReadImage(some.tolist()))
        if part is None:
            return _at_most_float32(sitk.ReadImage(files))
        image[:, :, start : start + len(some)] = part
        start += len(some)
    return image


def _as_int16(image: "sitk.Image") -> Optional["sitk.Image"]:
    """The image as int16 if that holds every value, else None."""
    if image.GetPixelID() == sitk.sitkInt16:
        return image
    whole = all(
        part.min() >= -32768 and part.max() <= 32767 and (part.dtype.kind in "iu" or np.array_equal(part, np.rint(part)))
        for part in pieces_of_array(sitk.GetArrayViewFromImage(image))
    )
    return sitk.Cast(image, sitk.sitkInt16) if whole else None


def _at_most_float32(image: "sitk.Image") -> "sitk.Image":
    return sitk.Cast(image, sitk.sitkFloat32) if image.GetPixelID() == sitk.sitkFloat64 else image


def forget() -> None:
    """Free the last series."""
    read_headers.cache_clear()
    read_volume.cache_clear()


def _frames_in_order(image: "sitk.Image", series: Series) -> "sitk.Image":
    order = [s.frame for s in series.slices]
    if order == list(range(len(order))):
        return image
    if order == list(range(len(order)))[::-1]:
        return sitk.Flip(image, (False, False, True))
    return sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image)[order])
