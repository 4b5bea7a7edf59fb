"""Is it the same scan? What identifies the voxels of an image, whatever its file's type, compression and order of axes."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import images

# Soft tissue, which windows applied to abdominal CT leave as it is
WINDOW_HU = (-150, 250)
NOT_FINITE = "readers make 0 of them, which is soft tissue in CT, or pass them on, and one turns the loss of a training into NaN"
_ENOUGH_VOXELS = 1000  # within the window, for its values to identify a scan


@dataclass(frozen=True)
class Fingerprint:
    """``content``: hash of the voxels along the patient's axes; ``bag``: of the voxel values in any order, equal for
    mirrored copies; ``tissue``: as content, of CT clipped to ``WINDOW_HU``, equal for copies that a wider window has
    clipped (empty if it is no CT or shows too little of it); ``not_finite``: number of voxels that are NaN or infinite.
    """

    content: str
    bag: str
    tissue: str
    not_finite: int

    @property
    def keys(self) -> tuple:
        """Images that share one of these show the same scan."""
        return tuple((kind, getattr(self, kind)) for kind in ("content", "bag", "tissue") if getattr(self, kind))


def fingerprint(files: Sequence[str], is_ct: bool = False) -> Fingerprint:
    """Fingerprint of an image, whose channels may be several ``files``. Reads all of it; see :func:`images.read_image`."""
    content, tissue = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    total = not_finite = within = 0
    for file in files:
        image, wrong = images.read_image_and_count(file)
        not_finite += wrong
        image = patient_axes(image)
        for digest in (content, tissue):
            digest.update(str(image.GetSize()).encode())
        for part in sitk.GetArrayViewFromImage(image):
            values = np.ascontiguousarray(part, np.float32) + np.float32(0)
            content.update(values.data)
            total += _bag(values.view(np.uint32))
            if is_ct:
                clipped = np.rint(np.clip(np.nan_to_num(values), *WINDOW_HU)).astype(np.int16)
                tissue.update(clipped.data)
                within += int(np.count_nonzero((clipped > WINDOW_HU[0]) & (clipped < WINDOW_HU[1])))
    known = tissue.hexdigest() if within >= _ENOUGH_VOXELS else ""
    return Fingerprint(content.hexdigest(), f"{total % 2**64:016x}", known, not_finite)


def patient_axes(image: "sitk.Image") -> "sitk.Image":
    """The image with its axes along the patient's left, back and head; 2D and 4D images as they are."""
    return sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else image


def _bag(bits: np.ndarray) -> int:
    """Sum of a hash of every value (splitmix64's finaliser): the same whatever the order of the values."""
    z = bits.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))


def connected(keys: Mapping[str, Iterable[Hashable]]) -> list:
    """Groups of the names whose keys overlap, directly or through others; in the order of ``keys``, every name once."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = list(keys)
    numbers: dict = {}
    edges = [(n, len(names) + numbers.setdefault(key, len(numbers))) for n, name in enumerate(names) for key in keys[name]]
    size = len(names) + len(numbers)
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    _, component = connected_components(coo_matrix((np.ones(len(edges)), (rows, columns)), shape=(size, size)), directed=False)
    groups: dict = {}
    for name, number in zip(names, component):
        groups.setdefault(int(number), []).append(name)
    return list(groups.values())
