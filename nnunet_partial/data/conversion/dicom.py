"""DICOM series as volumes: slices in the order of their positions, grey values rescaled, gaps and mixtures refused.

File names and instance numbers are not looked at. pydicom reads headers and stored values (compressed ones with GDCM).
Rescale slope and intercept may differ from slice to slice and from frame to frame, and are applied to each by itself:
SimpleITK takes those of the first frame for a whole multi-frame file, and the voxel type of the first file for a series.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

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
    "SamplesPerPixel",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
]
_SPACING_TOLERANCE_MM = 0.02  # positions are rounded to a few decimals; real gaps are a slice or more
_DIRECTION_TOLERANCE = 1e-4
UNSCALED_CT = (
    "a CT series without rescale slope and intercept; its values are used as stored, and may be no Hounsfield units. Look at "
    "this image"
)
_NO_RESCALE = (1.0, 0.0)
_COMPANIONS = ("thumbs.db", "desktop.ini", ".ds_store", "dicomdir")  # lie in folders of images and are none


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
    rescale: tuple | None = None  # (slope, intercept); None: the header has neither
    has_table: bool = False  # a modality lookup table takes the place of slope and intercept
    modality: str = ""


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
    _refuse_4d(slices, heights)
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


def _refuse_4d(slices: Sequence[Slice], heights: np.ndarray) -> None:
    """Several volumes in one series: phases, echoes, points in time."""
    starts = np.flatnonzero(np.diff(heights, prepend=-np.inf) >= _SPACING_TOLERANCE_MM)
    counts = set(np.diff(starts, append=len(heights)).tolist())
    if len(starts) > 1 and len(counts) == 1 and counts != {1}:
        raise UserError(
            f"{Path(slices[0].file).parent}: the series has {counts.pop()} images at each of its {len(starts)} positions (4D: phases, "
            "echoes or points in time). Separate it into series of one volume each"
        )


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
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        if "Rows" not in dataset:
            if "Image Storage" in getattr(dataset.file_meta, "MediaStorageSOPClassUID", UID("")).name:
                raise UserError(f"{file} is truncated or damaged. Download the series again")
            return []  # a DICOMDIR, a report, a structure set
        return _slices(dataset, str(file))
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, InvalidDicomError) and is_companion(file):
            return []
        raise UserError(
            f"{file} is not a DICOM image that can be placed in space ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''})"
        ) from None


def is_companion(file: Path) -> bool:
    """Whether a file that is no DICOM is no lost slice either: a licence, a list, what a file manager leaves behind.

    Its name does not end in ``.dcm``, and it is known by name or holds text.
    """
    name = os.path.basename(file).lower()
    if name in _COMPANIONS:
        return True
    with open(file, "rb") as stream:
        start = stream.read(4096)
    return not name.endswith(".dcm") and bool(start) and all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)


def _slices(dataset, file: str) -> list:
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise UserError(f"{file} is a picture in colour, not a slice of a scan. Move it out of the folder")
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return _frames(dataset, file)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        return _frames_without_positions(dataset, file)
    return [
        _slice(file, 0, dataset, dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset)
    ]


def _frames(dataset, file: str) -> list:
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else {}

    def group(frame, name):
        found = frame if name in frame else shared
        return found[name].value[0] if name in found else dataset

    return [
        _slice(
            file,
            index,
            dataset,
            group(frame, "PlanePositionSequence").ImagePositionPatient,
            group(frame, "PlaneOrientationSequence").ImageOrientationPatient,
            group(frame, "PixelMeasuresSequence").PixelSpacing,
            group(frame, "PixelValueTransformationSequence"),
        )
        for index, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence)
    ]


def _frames_without_positions(dataset, file: str) -> list:
    """An old multi-frame file says where its first frame lies and, if at all, how far apart frames are."""
    frames = int(dataset.NumberOfFrames)
    if not dataset.get("SpacingBetweenSlices"):
        raise UserError(
            f"{file} holds {frames} frames without positions of their own (an old multi-frame file: neither functional groups "
            "nor SpacingBetweenSlices), so that nothing says where they lie. Export the series as single slices, or as an "
            "enhanced multi-frame file"
        )
    position, orientation = (np.array(i, float) for i in (dataset.ImagePositionPatient, dataset.ImageOrientationPatient))
    step = np.cross(orientation[:3], orientation[3:]) * float(dataset.SpacingBetweenSlices)
    return [
        _slice(file, i, dataset, position + i * step, dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset)
        for i in range(frames)
    ]


def _slice(file, frame, dataset, position, orientation, spacing, values) -> Slice:
    between_rows, along_row = (float(i) for i in spacing)
    stated = [values.get(i) for i in ("RescaleSlope", "RescaleIntercept")]
    rescale = tuple(default if i is None else float(i) for i, default in zip(stated, _NO_RESCALE))
    return Slice(
        file,
        frame,
        str(dataset.SeriesInstanceUID),
        tuple(map(float, position)),
        tuple(map(float, orientation)),
        (along_row, between_rows),
        (int(dataset.Columns), int(dataset.Rows)),
        None if stated == [None, None] else rescale,
        "ModalityLUTSequence" in dataset,
        str(dataset.get("Modality", "")),
    )


@dataclass(frozen=True)
class Volume:
    """The voxels of a series with its geometry, and what a user should know about them."""

    image: "sitk.Image"
    notes: tuple = ()


@lru_cache(maxsize=1)
def read_volume(series: Series) -> Volume:
    """The voxels of a series in its order, each slice rescaled as its own header says. int16 where that holds them, else
    float32; nothing is cut. Raises :class:`UserError` for a file that cannot be decoded."""
    array, doubtful = np.zeros(series.geometry.shape_zyx, np.int16), {}
    rescaled_somewhere = any(s.rescale for s in series.slices)
    for index, stored in _stored_values(series.slices):
        part = series.slices[index]
        if part.rescale is None and rescaled_somewhere and not part.has_table:
            doubtful[index] = stored.copy()
        else:
            array = _with_slice(array, index, _rescaled(stored, _NO_RESCALE if part.has_table else part.rescale or _NO_RESCALE))
    for index, stored in doubtful.items():
        array = _with_slice(array, index, _like_its_neighbour(stored, index, array, series.slices))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(series.geometry.spacing_mm)
    image.SetOrigin(series.geometry.origin_mm)
    image.SetDirection(series.geometry.direction)
    return Volume(image, _notes(series, doubtful))


def _notes(series: Series, doubtful) -> tuple:
    if not any(i.rescale or i.has_table for i in series.slices) and series.slices[0].modality == "CT":
        return (UNSCALED_CT,)
    if not doubtful:
        return ()
    return (
        f"{len(doubtful)} of {len(series.slices)} slices have no rescale slope and intercept; their values, as stored or "
        "rescaled like the next slice, were chosen to fit that slice. Look at this image",
    )


def _stored_values(slices: Sequence[Slice]) -> Iterator[tuple]:
    """``(index, stored values (y, x))`` of every slice, file by file; through the modality lookup table if there is one."""
    from pydicom.pixels.utils import iter_pixels

    places: dict = {}
    for index, part in enumerate(slices):
        places.setdefault(part.file, []).append(index)
    for file, indices in places.items():
        try:
            frames = iter_pixels(file, indices=[slices[i].frame for i in indices])
            for index, frame in zip(indices, frames, strict=True):
                if frame.shape != slices[index].size_xy[::-1]:
                    raise ValueError(f"{frame.shape} voxels where the header promises {slices[index].size_xy[::-1]}")
                yield index, _through_table(frame, file) if slices[index].has_table else frame
        except (ValueError, AttributeError, KeyError, RuntimeError, OSError, EOFError, NotImplementedError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{file} is truncated or damaged, or cannot be decoded ({reason}). Download the series again"
            ) from None


def _through_table(frame: np.ndarray, file: str) -> np.ndarray:
    import pydicom
    from pydicom.pixels.processing import apply_modality_lut

    return apply_modality_lut(frame, pydicom.dcmread(file, stop_before_pixels=True))


def _rescaled(stored: np.ndarray, rescale: tuple) -> np.ndarray:
    """Whole numbers stay whole numbers."""
    if all(i.is_integer() for i in rescale) and stored.dtype.kind in "iu":
        slope, intercept = map(int, rescale)
        return stored.astype(np.int64) * slope + intercept if slope != 1 else stored.astype(np.int32) + intercept
    return stored * np.float64(rescale[0]) + np.float64(rescale[1])


def _with_slice(volume: np.ndarray, index: int, values: np.ndarray) -> np.ndarray:
    """``volume`` with a slice put in; it becomes float32 when int16 does not hold the values."""
    whole = values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))
    if volume.dtype == np.int16 and not (whole and values.min() >= -32768 and values.max() <= 32767):
        volume = volume.astype(np.float32)
    volume[index] = values
    return volume


def _like_its_neighbour(stored: np.ndarray, index: int, volume: np.ndarray, slices: Sequence[Slice]) -> np.ndarray:
    """A slice without rescale in a series that has one: as stored, or rescaled as the next slice that says how, whichever
    is nearer to that slice's values."""
    known = [i for i, s in enumerate(slices) if s.rescale]
    neighbour = min(known, key=lambda i: abs(i - index))
    candidates = [_rescaled(stored, i) for i in (_NO_RESCALE, slices[neighbour].rescale or _NO_RESCALE)]
    return min(candidates, key=lambda values: float(np.abs(values - volume[neighbour].astype(np.float64)).mean()))


def forget() -> None:
    """Free the last series."""
    read_headers.cache_clear()
    read_volume.cache_clear()
