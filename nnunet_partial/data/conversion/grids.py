"""Grids of voxels that are one grid: the same places in another order of the axes, or headers that differ by rounding."""

from dataclasses import dataclass

import numpy as np

from nnunet_partial.data.images import Geometry

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


def is_same(first: Geometry, second: Geometry) -> bool:
    """Whether two headers mean one grid, up to rounding."""
    same_size = first.size_xyz == second.size_xyz
    return same_size and (first.difference(second) is None or corner_distance(first, second) <= ROUNDING_VOXELS)


def reordering(given: Geometry, wanted: Geometry) -> Reordering | None:
    """How voxels on the grid ``given`` are brought into the order of ``wanted``, if both are the same voxels in space;
    None where they are not. Nothing is interpolated."""
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
    if not is_same(result, wanted):
        return None
    return Reordering(tuple(2 - int(order[2 - a]) for a in range(3)), tuple(2 - i for i in (2, 1, 0) if signs[i] < 0))


def corner_distance(first: Geometry, second: Geometry) -> float:
    """Largest distance between the same corners of two grids of one size, in voxels of the smallest spacing."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.size_xyz])).reshape(first.dimensions, -1)

    def place(geometry):
        axes = np.reshape(geometry.direction, (geometry.dimensions,) * 2) * geometry.spacing_mm
        return axes @ corners + np.array(geometry.origin_mm)[:, None]

    return float(np.linalg.norm(place(first) - place(second), axis=0).max() / min(first.spacing_mm))
