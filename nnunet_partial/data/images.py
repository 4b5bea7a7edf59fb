"""Reading and writing image files without surprises: geometry, label maps, whether a file is whole.

Pixels and geometry come from SimpleITK, which nnU-Net reads with too, except the pixels of NIfTI files: SimpleITK fills
the missing part of a truncated NIfTI file with zeros and says nothing. Every file that cannot be used is a
:class:`UserError` of one line. Arrays are (z, y, x), sizes and spacings (x, y, z), positions in mm, LPS.
"""

import gzip
import io
import math
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, atomic_path, temporary_folder

# A header is the same if no voxel of a volume of 500 voxels an edge moves by more than about a tenth of a voxel. Exact
# comparison would refuse real data: NIfTI stores float32, others round to a few decimals.
SPACING_TOLERANCE = 1e-4  # relative
ORIGIN_TOLERANCE = 0.05  # voxels, of the smallest spacing
DIRECTION_TOLERANCE = 1e-4  # direction cosines

_PICTURES = (".png", ".bmp", ".tif", ".tiff")  # have no position, and the resolution some of them state is for printing
_POSITIONED = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")  # keep spacing, origin and direction
ENDINGS = (".nii.gz", *(i for i in (*_POSITIONED, *_PICTURES) if i != ".nii.gz"))  # the longest first
_DEFLATE_RATIO = 1032  # no file is compressed further by gzip, zlib or png
_CHUNK_BYTES = 1 << 24


class ShearedError(UserError):
    """The axes of an image are not at right angles to each other."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie. ``direction``: the direction cosines row by row, as SimpleITK gives them."""

    size_xyz: tuple
    spacing_mm: tuple
    origin_mm: tuple
    direction: tuple

    @classmethod
    def of(cls, image) -> "Geometry":
        """Geometry of a ``SimpleITK.Image`` or of a ``SimpleITK.ImageFileReader`` that has read the header."""
        return cls(*(tuple(i) for i in (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())))

    @property
    def dimensions(self) -> int:
        return len(self.size_xyz)

    @property
    def shape_zyx(self) -> tuple:
        """Shape of the array of voxels."""
        return self.size_xyz[::-1]

    @property
    def orientation(self) -> str:
        """``LPS``: the axes of the file run towards the patient's left, back and head, as ITK names it; empty in 2D."""
        if self.dimensions < 3:
            return ""
        return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.spatial().direction)

    def spatial(self) -> "Geometry":
        """Without the fourth axis, along which one file may hold several channels."""
        if self.dimensions < 4:
            return self
        direction = tuple(np.reshape(self.direction, (self.dimensions, self.dimensions))[:3, :3].ravel().tolist())
        return Geometry(self.size_xyz[:3], self.spacing_mm[:3], self.origin_mm[:3], direction)

    def difference(self, other: "Geometry") -> str | None:
        """What differs from ``other`` by more than the tolerances of this module, in words; or None.

        This one's value comes first. Only the first difference is told, in the order size, spacing, direction, origin:
        the later ones often follow from the earlier.
        """
        if self.size_xyz != other.size_xyz:
            return f"size {self.size_xyz} and {other.size_xyz} voxels"
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=SPACING_TOLERANCE, atol=0):
            return f"spacing {_rounded(self.spacing_mm)} and {_rounded(other.spacing_mm)} mm"
        if not np.allclose(self.direction, other.direction, rtol=0, atol=DIRECTION_TOLERANCE):
            return f"direction {_rounded(self.direction)} and {_rounded(other.direction)}"
        if not np.allclose(self.origin_mm, other.origin_mm, rtol=0, atol=ORIGIN_TOLERANCE * min(self.spacing_mm)):
            return f"origin {_rounded(self.origin_mm)} and {_rounded(other.origin_mm)} mm"
        return None


def _rounded(values) -> tuple:
    return tuple(round(float(i), 5) + 0.0 for i in values)


def read_geometry(path: PathLike) -> Geometry:
    """Geometry of an image file, from its header alone."""
    return _read_header(_existing_file(path))[0]


def number_of_channels(path: PathLike) -> int:
    """Number of channels that one image file holds: colours, or the length of the fourth axis. Reads the header."""
    geometry, components = _read_header(_existing_file(path))
    return components * math.prod(geometry.size_xyz[3:])


def _read_header(path: str) -> tuple:
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    with _reading(path):
        reader.ReadImageInformation()
    geometry = Geometry.of(reader)
    if path.lower().endswith(_PICTURES):
        ones, zeros = (1.0,) * geometry.dimensions, (0.0,) * geometry.dimensions
        geometry = Geometry(geometry.size_xyz, ones, zeros, geometry.direction)
    return geometry, reader.GetNumberOfComponents()


def check_same_geometry(image: PathLike, label: PathLike) -> Geometry:
    """Raise :class:`UserError` unless both files have the same geometry, which is returned. Reads headers alone."""
    geometry = read_geometry(image).spatial()
    require_same_geometry(geometry, image, read_geometry(label), label)
    return geometry


def require_same_geometry(geometry: Geometry, file: PathLike, other: Geometry, other_file: PathLike) -> None:
    """As :func:`check_same_geometry`, for headers that have been read already."""
    difference = geometry.difference(other)
    if difference:
        raise UserError(
            f"{file} and {other_file} differ in {difference}. Resample the label map onto its image, or "
            "mend the header that is wrong."
        )


def read_image(path: PathLike) -> "sitk.Image":
    """An image with its voxels. A truncated NIfTI file is an error here, unlike in SimpleITK."""
    return read_image_and_count(path)[0]


def read_image_and_count(path: PathLike) -> tuple:
    """``(image, number of its voxels that are NaN or infinite in the file)``, as :func:`read_image`.

    The file's own voxels are counted: SimpleITK reads such voxels of a NIfTI file as 0, without a word.
    """
    path = _existing_file(path)
    count = sum(_count_not_finite(i) for i in _nifti_voxels(path)) if _is_nifti(path) else None
    with _reading(path):
        image = sitk.ReadImage(path)
    return image, _count_not_finite(sitk.GetArrayViewFromImage(image)) if count is None else count


def not_finite(path: PathLike) -> np.ndarray:
    """Which voxels of an image file are NaN or infinite, flat, in the order of the file (that of a SimpleITK array)."""
    return np.concatenate([~np.isfinite(i) for i in _voxels(_existing_file(path))])


def _count_not_finite(values: np.ndarray) -> int:
    return values.size - int(np.count_nonzero(np.isfinite(values))) if values.dtype.kind == "f" else 0


def read_label(path: PathLike) -> tuple:
    """``(label map, geometry)`` of a label file.

    The label map is (z, y, x), or (y, x) for a file in 2D, of the smallest of uint8, uint16 and int64 that holds it.
    Raises :class:`UserError` for a file that is missing, unreadable or truncated, or that holds several values a voxel,
    NaN, fractions or negative values.
    """
    path = _existing_file(path)
    geometry, channels = _read_header(path)
    if geometry.dimensions > 3 or channels > 1:
        raise UserError(
            f"label file {path} holds several values per voxel (size {geometry.size_xyz}, {channels} "
            "components). Store one label value per voxel."
        )
    # piece by piece, so that label maps stored as float64 do not take eight times their memory
    pieces = [_as_labels(i, path) for i in _voxels(path)]
    if not sum(i.size for i in pieces):
        raise UserError(f"label file {path} holds no voxels, size {geometry.size_xyz}.")
    return np.concatenate(pieces).reshape(geometry.shape_zyx), geometry


def label_values(path: PathLike) -> tuple:
    """The label values that a label file holds, ascending."""
    return present_values(read_label(path)[0])


def present_values(label: np.ndarray) -> tuple:
    """The values that a label map holds, ascending."""
    if label.dtype in (np.uint8, np.uint16):
        return tuple(int(i) for i in np.flatnonzero(np.bincount(label.ravel())))
    return tuple(int(i) for i in np.unique(label))


def write_label(label: np.ndarray, reference: Geometry, path: PathLike) -> None:
    """Write a label map (z, y, x), or (y, x), with the geometry of ``reference``.

    It is compressed, and uint8 where that is enough. Raises :class:`UserError` as :func:`write_image` does.
    """
    if label.shape != reference.shape_zyx:
        raise ValueError(f"label map of shape {label.shape} does not fit the geometry {reference.shape_zyx}")
    image = sitk.GetImageFromArray(label.astype(_smallest_type(label), copy=False))
    image.SetSpacing(reference.spacing_mm)
    image.SetOrigin(reference.origin_mm)
    image.SetDirection(reference.direction)
    write_image(image, path)


def write_image(image: "sitk.Image", path: PathLike) -> None:
    """Write an image, compressed where the format can be.

    On a full disk SimpleITK leaves part of a file and says nothing, so the file is read again, to its last voxel, before
    it gets its name. Raises :class:`UserError` when it cannot be written completely.
    """
    path = Path(path)
    voxel_bytes = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    _require_space(path, voxel_bytes)
    with atomic_path(path) as temporary, _written(path):
        with _without_stderr():
            sitk.WriteImage(image, temporary, True)
        _require_image(temporary, image)


def write_segmentation(labels: np.ndarray, path: PathLike, reader_writer, properties: Mapping[str, Any]) -> None:
    """Write a label map (z, y, x) by one of nnU-Net's readers and writers, which may store it along other axes.

    ``properties``: as its reader gave them. Verified as :func:`write_image` does; what such a writer puts beside the file
    comes with it. Raises :class:`UserError` when it cannot be written completely.
    """
    path = Path(path)
    labels = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16, copy=False)
    _require_space(path, labels.nbytes)
    with temporary_folder(path) as folder, _written(path):
        with _without_stderr():
            reader_writer.write_seg(labels, str(folder / path.name), dict(properties))
        _require_labels(folder / path.name, labels, reader_writer)
        for file in sorted(folder.iterdir(), key=lambda i: i.name == path.name):  # itself last
            os.replace(file, path.parent / file.name)


def _require_space(path: Path, voxel_bytes: int) -> None:
    """Raise :class:`UserError` where not even the best compression could find room."""
    parent = next(i for i in path.absolute().parents if i.exists())
    disk = shutil.disk_usage(parent)
    needed = voxel_bytes if path.name.lower().endswith(".nii") else voxel_bytes // _DEFLATE_RATIO
    if disk.total and disk.free < max(needed, 1):  # some network file systems tell nothing
        raise _incomplete(path, parent)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """What goes wrong while ``path`` is written and read again, as one line."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # those without are of a writer's own making
            raise
        raise _incomplete(path, path.parent, str(error)) from None
    except RuntimeError as error:
        raise _incomplete(path, path.parent, _reason(error)) from None
    except UserError as error:  # about the temporary file
        raise _incomplete(path, path.parent) from error


def _incomplete(path: Path, folder: Path, reason: str = "") -> UserError:
    return UserError(
        f"{path} cannot be written completely{f' ({reason})' if reason else ''}; "
        f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there. Is the disk full? Free some space, or check the quota "
        "and the file's format."
    )


def _require_image(path: str, image: "sitk.Image") -> None:
    """Raise :class:`UserError` unless a file that was just written holds this image: header, type and every voxel."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    with _reading(path):
        reader.ReadImageInformation()
    wanted, found = Geometry.of(image), Geometry.of(reader)
    positioned = wanted.dimensions == 3 and path.lower().endswith(_POSITIONED)
    difference = wanted.difference(found) if positioned or wanted.size_xyz != found.size_xyz else None
    if difference:
        raise UserError(f"it reads with another {difference}")
    if reader.GetPixelID() != image.GetPixelID():
        raise UserError(f"it holds voxels of type {reader.GetPixelIDValue()}, not {image.GetPixelIDTypeAsString()}")
    if _is_nifti(path):  # gzip's checksum, or the number of bytes, vouches for the values
        for _ in _nifti_voxels(path):
            pass
        return
    with _reading(path):
        read = sitk.ReadImage(path)
    if not np.array_equal(sitk.GetArrayViewFromImage(read), sitk.GetArrayViewFromImage(image)):
        raise UserError("it holds other voxels")


def _require_labels(path: Path, labels: np.ndarray, reader_writer) -> None:
    """Raise :class:`UserError` unless the file holds as many voxels of each value, along the same axes in some order."""
    if _is_nifti(str(path)):
        shape, values = read_geometry(path).size_xyz, [_as_labels(i, str(path)) for i in _nifti_voxels(str(path))]
    else:
        values = [reader_writer.read_seg(str(path))[0].astype(labels.dtype)]
        shape = values[0].shape
    axes = [sorted(i for i in lengths if i != 1) for lengths in (shape, labels.shape)]
    counts = sum(np.bincount(i.ravel(), minlength=2**16) for i in values)
    if axes[0] != axes[1] or not np.array_equal(counts, np.bincount(labels.ravel(), minlength=2**16)):
        raise UserError("it holds other labels than it was given")


def _smallest_type(label: np.ndarray) -> type:
    largest = int(label.max(initial=0))
    return np.uint8 if largest <= 255 else np.uint16 if largest <= 65535 else np.int64


def _as_labels(values: np.ndarray, path: str) -> np.ndarray:
    if values.dtype.kind not in "buif":
        raise UserError(f"label file {path} holds voxels of type {values.dtype}. Store one whole number per voxel.")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise UserError(f"label file {path} holds NaN or infinite values. Store whole numbers.")
        rounded = np.rint(values)
        # scale factors in the header turn whole numbers into 2.9999999
        wrong = np.abs(values - rounded) > 1e-3
        if wrong.any():
            raise UserError(
                f"label file {path} holds the value {values[wrong][0]:.6g}, which is not a whole number. "
                "Store label values, not probabilities, and resample with nearest neighbour."
            )
        values = rounded
    if values.min(initial=0) < 0:
        raise UserError(
            f"label file {path} holds the negative value {int(values.min())}. Label values are 0 (background) and up."
        )
    return values.astype(_smallest_type(values), copy=False)


def _existing_file(path: PathLike) -> str:
    path = os.fspath(path)
    if not os.path.exists(path):
        broken = " (it is a broken link)" if os.path.islink(path) else ""
        raise UserError(f"{path} does not exist{broken}.")
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: permission denied.")
    return path


def _is_nifti(path: str) -> bool:
    return path.lower().endswith((".nii", ".nii.gz"))


def _voxels(path: str) -> Iterator[np.ndarray]:
    """The voxels of an image file in pieces, flat, in the order of the file."""
    if _is_nifti(path):
        yield from _nifti_voxels(path)
        return
    with _reading(path):
        image = sitk.ReadImage(path)
    yield sitk.GetArrayFromImage(image).ravel()


def _nifti_voxels(path: str) -> Iterator[np.ndarray]:
    """The voxels of a NIfTI file in pieces, in the order of the file, scaled as the header says; all must be there."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.volumeutils import apply_read_scaling

    opener = gzip.open if path.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            header = _nifti_header(stream)
            slope, intercept = header.get_slope_inter()
            dtype = header.get_data_dtype()
            missing = math.prod(header.get_data_shape()) * dtype.itemsize
            stream.seek(max(int(header.get_data_offset()), header.sizeof_hdr))
            while missing:
                piece = _read_exactly(stream, min(missing, _CHUNK_BYTES - _CHUNK_BYTES % dtype.itemsize))
                missing -= len(piece)
                voxels = np.frombuffer(piece, dtype)
                yield apply_read_scaling(voxels, 1.0 if slope is None else slope, intercept or 0.0)
            while stream.read(_CHUNK_BYTES):  # gzip compares its checksum at the very end
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}). Download or convert it again.") from None
    except (ImageFileError, HeaderDataError) as error:
        raise UserError(f"{path} has a damaged NIfTI header ({error}). Download or convert it again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None


def _nifti_header(stream):
    import nibabel

    start = stream.read(348)
    if len(start) < 348:
        raise EOFError("it ends within its header")
    return nibabel.Nifti1Header.from_fileobj(io.BytesIO(start))


def _read_exactly(stream, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = stream.read(missing)
        if not part:
            raise EOFError("it ends before its last voxel")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


@contextmanager
def _reading(path: PathLike):
    """SimpleITK's failures as one clear line; its warnings, several lines each on stderr, are silenced meanwhile."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        reason = _reason(error)
        if "Unable to determine ImageIO" in reason:
            reason = "it is damaged, or of a format that SimpleITK does not read"
        if "orthonormal" in reason:
            raise ShearedError(
                f"{path} has axes that are not at right angles to each other (a sheared or damaged affine "
                "in its header), which SimpleITK and so nnU-Net's standard reader refuse. Resample image "
                "and label onto a grid with right angles, or mend the affine if it is only "
                "rounded."
            ) from None
        raise UserError(f"{path} cannot be read as an image ({reason}). Download or convert it again.") from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


_silence = threading.Lock()
_silent: list = []  # the real stderr, once for each that wants silence


@contextmanager
def _without_stderr():
    """Silence the C libraries below SimpleITK, which print to stderr directly. Several threads may be in here."""
    with _silence:
        sys.stderr.flush()
        _silent.append(os.dup(2) if not _silent else _silent[0])
        if len(_silent) == 1:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        with _silence:
            saved = _silent.pop()
            if not _silent:
                os.dup2(saved, 2)
                os.close(saved)


def _reason(error: Exception) -> str:
    """The last line of an ITK exception, without the place in ITK's source."""
    lines = [i for i in str(error).splitlines() if i.strip()]
    return lines[-1].replace("sitk::ERROR:", "").replace("ITK ERROR:", "").strip() if lines else type(error).__name__
