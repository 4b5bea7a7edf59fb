"""Grids of voxels that are one grid: the same places in another order of the axes, or headers that differ by rounding."""

from dataclasses import dataclass

import numpy as np

from nnunet_partial.data.images import Geometry, read_label, require_same_geometry
from nnunet_partial.files import PathLike

ROUNDING_VOXELS = 0.5  # headers that differ by less at every corner of the volume mean the same grid


@dataclass(frozen=True)
class Reordering:
    """``np.flip(array.transpose(axes), flips)`` of an array (z, y, x) has the axes of the other grid."""

    axes: tuple
    flips: tuple

    @property
    def only_flips(self) -> bool:
        return self.axes == (0, 1, 2)

    def apply(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.flip(array.transpose(self.axes), self.flips))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`apply`."""
        return np.ascontiguousarray(np.flip(array, self.flips).transpose(np.argsort(self.axes)))


def is_same(first: Geometry, second: Geometry) -> bool:
    """Whether two headers mean one grid, up to rounding."""
    same_size = first.size_xyz == second.size_xyz
    return same_size and (first.difference(second) is None or corner_distance(first, second) <= ROUNDING_VOXELS)


def reordering(given: Geometry, wanted: Geometry) -> Reordering | None:
    """How voxels on the grid ``given`` are brought into the order of ``wanted``, if both are the same voxels in space up to
    rounding; None where they are not. Nothing is interpolated."""
    found = _turned(given, wanted)
    return found[0] if found is not None and is_same(found[1], wanted) else None


def require_on_grid(own: Geometry, path: PathLike, geometry: Geometry, file: PathLike) -> Reordering:
    """How the voxels of ``path``, whose grid is ``own``, are brought into the order of ``file``, whose grid is ``geometry``.

    Raises :class:`~nnunet_partial.errors.UserError` where they are not the same voxels in space.
    """
    if own.difference(geometry) is None:
        return Reordering(tuple(range(own.dimensions)), ())
    found = _turned(own, geometry)
    if found is None or found[1].size_xyz != geometry.size_xyz:
        require_same_geometry(geometry, file, own, path)
    assert found is not None  # the same geometry would have been found
    require_same_geometry(geometry, file, found[1], path)  # told along the axes of the image
    return found[0]


def read_label_on(path: PathLike, geometry: Geometry, file: PathLike) -> np.ndarray:
    """The label map of a label file on the grid ``geometry`` of ``file``.

    A file that stores the same grid along other axes is reordered, which loses nothing. Raises
    :class:`~nnunet_partial.errors.UserError` for every other grid, and as :func:`images.read_label`.
    """
    label, own = read_label(path)
    return require_on_grid(own, path, geometry, file).apply(label)


def _turned(given: Geometry, wanted: Geometry) -> tuple | None:
    """``(reordering, the grid that it gives)`` for the axes of ``given`` to run like those of ``wanted``, wherever they lie."""
    if given.dimensions != 3 or wanted.dimensions != 3:
        return None
    axes_given, axes_wanted = (np.reshape(i.direction, (3, 3)) for i in (given, wanted))
    cosines = axes_wanted.T @ axes_given  # of every wanted axis with every given one, (x, y, z)
    order = np.argmax(np.abs(cosines), axis=1)
    if sorted(order) != [0, 1, 2]:
        return None
    signs = np.sign(cosines[range(3), order])
    size = tuple(given.size_xyz[i] for i in order)
    spacing = tuple(given.spacing_mm[i] for i in order)
    reached = [(n - 1) * s * (sign < 0) for n, s, sign in zip(size, spacing, signs)]
    origin = np.array(given.origin_mm) + axes_given[:, order] @ reached
    result = Geometry(size, spacing, tuple(origin.tolist()), tuple((axes_given[:, order] * signs).ravel().tolist()))
    axes = tuple(2 - int(order[2 - a]) for a in range(3))
    return Reordering(axes, tuple(2 - i for i in (2, 1, 0) if signs[i] < 0)), result


def corner_distance(first: Geometry, second: Geometry) -> float:
    """Largest distance between the same corners of two grids of one size, in voxels of the smallest spacing."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.size_xyz])).reshape(first.dimensions, -1)

    def place(geometry):
        axes = np.reshape(geometry.direction, (geometry.dimensions,) * 2) * geometry.spacing_mm
        return axes @ corners + np.array(geometry.origin_mm)[:, None]

    return float(np.linalg.norm(place(first) - place(second), axis=0).max() / min(first.spacing_mm))
