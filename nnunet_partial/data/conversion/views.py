"""Images whose header is wrong, or that share a file, without a copy of their voxels.

A NRRD header in a file of its own (``.nhdr``, about 300 bytes) can refer to voxels in another file, compressed or
not, from a byte onwards. SimpleITK, and with it nnU-Net, reads it like any image. So a wrong spacing, or one channel
of a file in 4D, costs a text file. Format: https://teem.sourceforge.net/nrrd/format.html, sections 3 and 5.
"""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.conversion.voxels import is_nifti, nifti_image, write
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError
from nnunet_partial.files import write_text

VIEW, COPY = "through a header of its own", "copied"
_TYPES = {
    "u1": "uint8",
    "i1": "int8",
    "u2": "uint16",
    "i2": "int16",
    "u4": "uint32",
    "i4": "int32",
    "f4": "float",
    "f8": "double",
}


def write_view(path: Path, volume: int, geometry: Geometry, target: Path) -> tuple[Path, str]:
    """Make volume number ``volume`` of a file available with ``geometry``. ``target``: the new file without ending.

    Returns ``(path of the new file, VIEW or COPY)``. Only files that are not NIfTI, or that hold scale factors, which a
    NRRD header cannot express, are copied.
    """
    layout = _layout(path)
    if layout is None:
        return write_copy(path, volume, geometry, target)
    dtype, offset = layout
    offset += volume * dtype.itemsize * int(np.prod(geometry.size_xyz))
    view = target.with_name(target.name + ".nhdr")
    write_text(_header(path, geometry, dtype, offset), view)
    return view, VIEW


def write_copy(path: Path, volume: int | None, geometry: Geometry, target: Path) -> tuple[Path, str]:
    """Write volume number ``volume`` of a file as ``.nii.gz`` with ``geometry``. Returns ``(path, COPY)``."""
    image = images.read_image(path)
    if image.GetDimension() == 4:
        image = image[:, :, :, volume or 0]
    copy = target.with_name(target.name + ".nii.gz")
    write(image, copy, geometry)
    return copy, COPY


def header_conflict(path: Path, geometry: Geometry) -> tuple:
    """A note if a NIfTI header holds geometries that disagree: qform, sform, voxel sizes.

    ``geometry``: what ITK reads. Other programs may place such an image differently. Raises :class:`UserError` for
    voxel sizes of 0, which ITK silently replaces by 1.
    """
    if not is_nifti(path):
        return ()
    image = nifti_image(path)
    if geometry.dimensions != 3 or image.ndim < 3:
        return ()
    if (_stored_voxel_size(path) <= 0).any():
        raise UserError(f"{path} has a voxel size of 0 in its header. Mend the header, or download the file again")
    axes = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing_mm)
    used = np.diag([-1, -1, 1]) @ np.column_stack([axes, geometry.origin_mm])  # NIfTI counts to the right and front
    stored = [image.affine, image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]]
    if all(np.allclose(i[:3], used, atol=1e-2 * min(geometry.spacing_mm)) for i in stored if i is not None):
        return ()
    return ("the header holds geometries that disagree (qform, sform, voxel size); ITK's, and so nnU-Net's, was used",)


def _stored_voxel_size(path: Path) -> np.ndarray:
    """pixdim[1:4] as it is in the file; libraries mend it while they read."""
    opener = gzip.open if str(path).lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        start = stream.read(128)
    version_2 = 540 in (int.from_bytes(start[:4], order) for order in ("little", "big"))
    kind, offset, size = ("f8", 104, 540) if version_2 else ("f4", 76, 348)
    order = "<" if int.from_bytes(start[:4], "little") == size else ">"
    return np.frombuffer(start, np.dtype(order + kind), 4 if not version_2 else 3, offset)[1:]


def _layout(path: Path) -> tuple | None:
    """``(dtype with byte order, byte of the first voxel)`` of a NIfTI file whose values need no scaling, else None."""
    if not is_nifti(path):
        return None
    proxy: Any = nifti_image(path).dataobj  # its header object would say offset 0 and no scaling
    if proxy.slope != 1 or proxy.inter != 0 or proxy.dtype.str[1:] not in _TYPES:
        return None
    return proxy.dtype, proxy.offset


def _header(path: Path, geometry: Geometry, dtype: np.dtype, offset: int) -> str:
    name = os.path.abspath(path)
    if name != name.strip() or "\n" in name or "%" in name:
        raise UserError(f"{path}: a path with '%', a line break, or a space at its ends cannot be referred to; rename the folder")
    axes = np.reshape(geometry.direction, (3, 3)).T * np.array(geometry.spacing_mm)[:, None]
    fields = {
        "type": _TYPES[dtype.str[1:]],
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, geometry.size_xyz)),
        "space directions": " ".join(map(_vector, axes)),
        "kinds": "domain domain domain",
        "endian": "big" if dtype.byteorder == ">" else "little",
        "encoding": "gzip" if name.lower().endswith(".gz") else "raw",
        "byte skip": offset,
        "space origin": _vector(geometry.origin_mm),
        "data file": name,
    }
    return "NRRD0005\n" + "".join(f"{key}: {value}\n" for key, value in fields.items())


def _vector(values) -> str:
    return "(" + ",".join(f"{float(i):.17g}" for i in values) + ")"
