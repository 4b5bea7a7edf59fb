"""Metrics of one structure on one case: overlap, distances between surfaces, volumes.

The surface metrics are those of google-deepmind's ``surface-distance`` (Nikolov et al. 2018, "Deep learning to achieve
clinically applicable segmentation of head and neck anatomy for radiotherapy"): surface elements lie at the corners of
voxels, and each counts with its area. Their areas and the metrics come from that library; the distances are found with
a k-d tree of the surface elements, which gives the same numbers sooner and in less memory than a distance map. They are
computed once for a :class:`MaskPair`, whatever number of metrics is derived from them.

Masks are arrays (z, y, x) or (y, x) of any type, where everything but 0 belongs to the structure; ``spacing_mm`` is the
distance between voxel centres in mm along the same axes. An image of one voxel along an axis is a plane: such an axis
is dropped, so that its contour counts and not its two faces (a structure of one slice in a larger image stays in 3D).

Empty masks:

============================  ============  ====================  =================
metric                        both empty    prediction empty      truth empty
============================  ============  ====================  =================
dice, iou, surface_dice       NaN           0                     0
hausdorff_mean, hausdorff95,  NaN           inf                   inf
average_surface_distance
volume_difference_ml          0             minus true volume     predicted volume
volume_difference_percent     NaN           -100                  inf
voxels_both                   0             0                     0
============================  ============  ====================  =================

NaN says that there was nothing to measure (nnU-Net leaves such cases out of its means as well); ``inf`` says that a
structure was missed or invented, which no finite distance would tell honestly.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]  # the stubs lack it

DEFAULT_TOLERANCE_MM = 2.0

# Edge, in voxels, of the blocks that the search for the farthest voxel starts from: near the fastest on organs at
# 1 to 3 mm, be the masks near each other or far apart.
_BLOCK = 4


def dice(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float] | None = None) -> float:
    """Dice similarity coefficient, ``2 |P & G| / (|P| + |G|)``, in [0, 1]. It does not depend on the spacing."""
    return MaskPair(pred, truth, (1,) * np.ndim(pred) if spacing_mm is None else spacing_mm).dice()


def iou(pred: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union, ``|P & G| / |P or G|``, in [0, 1]: the Jaccard index."""
    return MaskPair(pred, truth, (1,) * np.ndim(pred)).iou()


def hausdorff_mean(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Mean of both directed Hausdorff distances in mm, ``(d(P, G) + d(G, P)) / 2`` (Huang et al. 2020, section 4).

    ``d(P, G)`` is the largest distance from a voxel centre of ``P`` to the nearest one of ``G``.
    """
    return MaskPair(pred, truth, spacing_mm).hausdorff_mean()


def hausdorff95(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Larger of both directed 95th percentiles of the distances between the surfaces, in mm, weighted by area."""
    return MaskPair(pred, truth, spacing_mm).hausdorff95()


def average_surface_distance(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Mean of both directed average distances between the surfaces, in mm, weighted by area."""
    return MaskPair(pred, truth, spacing_mm).average_surface_distance()


def surface_dice(
    pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float = DEFAULT_TOLERANCE_MM
) -> float:
    """Normalised surface Dice (NSD): share of both surfaces within ``tolerance_mm`` of the other one, in [0, 1]."""
    return MaskPair(pred, truth, spacing_mm).surface_dice(tolerance_mm)


def volume_difference_ml(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Predicted minus true volume in ml; NaN for masks in 2D."""
    return MaskPair(pred, truth, spacing_mm).volume_difference_ml()


def volume_difference_percent(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Predicted minus true volume (area in 2D) in percent of the true one."""
    return MaskPair(pred, truth, spacing_mm).volume_difference_percent()


def all_metrics(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    names: Iterable[str] = (),
) -> dict:
    """The metrics ``names`` (default: all of :data:`METRICS`) of one structure, name -> float; distances found once."""
    pair = MaskPair(pred, truth, spacing_mm)
    return {name: METRICS[name](pair, tolerance_mm) for name in (names or METRICS)}


class MaskPair:
    """A predicted and a true mask, cropped to the box around both, and what is measured between them.

    Raises ``ValueError`` for masks or a spacing that do not fit each other.
    """

    def __init__(self, pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]):
        pred, truth = np.asarray(pred).astype(bool, copy=False), np.asarray(truth).astype(bool, copy=False)
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if pred.shape != truth.shape or pred.ndim not in (2, 3):
            raise ValueError(f"prediction and truth must be in 2D or 3D and of one shape, found {pred.shape} and {truth.shape}")
        if spacing.shape != (pred.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
            raise ValueError(f"spacing_mm must be {pred.ndim} positive numbers, found {spacing_mm}")
        self.voxel_ml = float(np.prod(spacing)) / 1000 if pred.ndim == 3 else math.nan
        flat = _axes_to_drop(pred.shape)
        self.spacing_mm = np.delete(spacing, flat)
        box = _bounding_box(pred.squeeze(flat) | truth.squeeze(flat))
        self.pred, self.truth = pred.squeeze(flat)[box], truth.squeeze(flat)[box]

    @cached_property
    def voxels(self) -> tuple:
        """Number of voxels of the prediction, of the truth, and of both."""
        return tuple(int(np.count_nonzero(i)) for i in (self.pred, self.truth, self.pred & self.truth))

    @property
    def empty(self) -> tuple:
        """Whether the prediction and whether the truth has no voxel."""
        return self.voxels[0] == 0, self.voxels[1] == 0

    @cached_property
    def surface_distances(self) -> Mapping[str, np.ndarray]:
        """What ``surface_distance.compute_surface_distances(truth, pred, spacing_mm)`` returns; none may be empty."""
        truth, truth_areas = _surface(self.truth, self.spacing_mm)
        pred, pred_areas = _surface(self.pred, self.spacing_mm)
        to_pred, truth_areas = _sorted_by_distance(_tree(pred).query(truth)[0], truth_areas)
        to_truth, pred_areas = _sorted_by_distance(_tree(truth).query(pred)[0], pred_areas)
        return {
            "distances_gt_to_pred": to_pred,
            "surfel_areas_gt": truth_areas,
            "distances_pred_to_gt": to_truth,
            "surfel_areas_pred": pred_areas,
        }

    def dice(self) -> float:
        pred, truth, both = self.voxels
        return 2 * both / (pred + truth) if pred + truth else math.nan

    def iou(self) -> float:
        pred, truth, both = self.voxels
        return both / (pred + truth - both) if pred + truth else math.nan

    def hausdorff_mean(self) -> float:
        if any(self.empty):
            return _distance_without_surface(self.empty)
        there = _directed_hausdorff_mm(self.pred, self.truth, self.spacing_mm)
        back = _directed_hausdorff_mm(self.truth, self.pred, self.spacing_mm)
        return (there + back) / 2

    def hausdorff95(self) -> float:
        if any(self.empty):
            return _distance_without_surface(self.empty)
        from surface_distance import compute_robust_hausdorff

        return float(compute_robust_hausdorff(self.surface_distances, 95))

    def average_surface_distance(self) -> float:
        if any(self.empty):
            return _distance_without_surface(self.empty)
        from surface_distance import compute_average_surface_distance

        return float(np.mean(compute_average_surface_distance(self.surface_distances)))

    def surface_dice(self, tolerance_mm: float = DEFAULT_TOLERANCE_MM) -> float:
        if any(self.empty):
            return math.nan if all(self.empty) else 0.0
        from surface_distance import compute_surface_dice_at_tolerance

        return float(compute_surface_dice_at_tolerance(self.surface_distances, tolerance_mm))

    def volume_difference_ml(self) -> float:
        return (self.voxels[0] - self.voxels[1]) * self.voxel_ml

    def volume_difference_percent(self) -> float:
        pred, truth, _ = self.voxels
        if truth == 0:
            return math.inf if pred else math.nan
        return 100 * (pred - truth) / truth

    def volume_pred_ml(self) -> float:
        return self.voxels[0] * self.voxel_ml

    def volume_truth_ml(self) -> float:
        return self.voxels[1] * self.voxel_ml


# name -> (pair, tolerance in mm) -> value; the order is that of tables
METRICS: Mapping[str, Callable] = {
    "dice": lambda pair, tolerance_mm: pair.dice(),
    "iou": lambda pair, tolerance_mm: pair.iou(),
    "surface_dice": lambda pair, tolerance_mm: pair.surface_dice(tolerance_mm),
    "hausdorff_mean_mm": lambda pair, tolerance_mm: pair.hausdorff_mean(),
    "hausdorff95_mm": lambda pair, tolerance_mm: pair.hausdorff95(),
    "average_surface_distance_mm": lambda pair, tolerance_mm: pair.average_surface_distance(),
    "volume_difference_ml": lambda pair, tolerance_mm: pair.volume_difference_ml(),
    "volume_difference_percent": lambda pair, tolerance_mm: pair.volume_difference_percent(),
    "volume_pred_ml": lambda pair, tolerance_mm: pair.volume_pred_ml(),
    "volume_truth_ml": lambda pair, tolerance_mm: pair.volume_truth_ml(),
    "voxels_pred": lambda pair, tolerance_mm: float(pair.voxels[0]),
    "voxels_truth": lambda pair, tolerance_mm: float(pair.voxels[1]),
    "voxels_both": lambda pair, tolerance_mm: float(pair.voxels[2]),
}


def _axes_to_drop(shape: tuple) -> tuple:
    """Axes of length 1, but never so many that fewer than two axes stay."""
    return tuple(i for i, length in enumerate(shape) if length == 1)[: len(shape) - 2]


def _bounding_box(mask: np.ndarray) -> tuple:
    return (ndimage.find_objects(mask.view(np.uint8)) or [(slice(0, 0),) * mask.ndim])[0]


def _distance_without_surface(empty: tuple) -> float:
    return math.nan if all(empty) else math.inf


def _tree(points_mm: np.ndarray) -> cKDTree:
    """Points of a grid are spread evenly, so a tree neither balanced nor compact is built and searched sooner."""
    return cKDTree(points_mm, leafsize=32, balanced_tree=False, compact_nodes=False)


def _sorted_by_distance(distances: np.ndarray, areas: np.ndarray) -> tuple:
    order = np.argsort(distances)
    return distances[order], areas[order]


def _surface(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple:
    """``(positions in mm (n, axes), areas in mm^2, or lengths in mm in 2D (n,))`` of the surface elements of a mask.

    An element lies at a corner of voxels. Which of the voxels around the corner belong to the mask makes its code,
    which ``surface-distance`` maps to the area; the positions are relative to the first corner of the array.
    """
    kernel, areas = _tables(tuple(float(i) for i in spacing_mm))
    padded = np.pad(mask.view(np.uint8), 1)
    code = np.zeros([i + 1 for i in mask.shape], np.uint8)
    for corner, weight in np.ndenumerate(kernel.astype(np.uint8)):
        code += weight * padded[tuple(slice(i, i + length) for i, length in zip(corner, code.shape))]
    on_surface = (code != 0) & (code != kernel.sum())
    return np.argwhere(on_surface) * spacing_mm, areas[code[on_surface]]


@lru_cache(maxsize=64)
def _tables(spacing_mm: tuple) -> tuple:
    """``(kernel that makes the codes, area or length of every code)``: 25 ms of work that the spacing alone decides."""
    from surface_distance import lookup_tables as tables

    if len(spacing_mm) == 3:
        return tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL, tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    return tables.ENCODE_NEIGHBOURHOOD_2D_KERNEL, tables.create_table_neighbour_code_to_contour_length(spacing_mm)


def _directed_hausdorff_mm(from_mask: np.ndarray, to_mask: np.ndarray, spacing_mm: np.ndarray) -> float:
    """Largest distance from a voxel of one mask to the nearest voxel of the other; neither may be empty.

    The distance to a mask changes by no more than the way between two voxels. So one voxel of each block is looked at
    first, and the others only in blocks that can hold a larger distance than the largest seen.
    """
    outside = np.argwhere(from_mask & ~to_mask)
    if len(outside) == 0:
        return 0.0
    # the nearest voxel of a mask always has a neighbour outside of it
    tree = _tree(np.argwhere(to_mask & np.logical_not(ndimage.binary_erosion(to_mask))) * spacing_mm)
    blocks = np.ravel_multi_index((outside // _BLOCK).T, from_mask.shape)
    _, first, block = np.unique(blocks, return_index=True, return_inverse=True)
    distance = tree.query(outside[first] * spacing_mm)[0]
    reachable = distance + np.linalg.norm((_BLOCK - 1) * spacing_mm)
    candidates = outside[(reachable > distance.max())[block]]
    return float(tree.query(candidates * spacing_mm)[0].max())
