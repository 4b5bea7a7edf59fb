"""Do two cases show one patient? Copies that were mirrored, sheared or turned, and follow-up scans, look new to a comparison of
voxels; in training and validation at once they make every figure too good.

What such a copy keeps is every organ's volume, and its spread: the sixth root of the determinant of the covariance of its voxels'
positions, which no linear map that keeps volumes changes. Two cases are suspected where at least three organs that both label agree
in both up to 3 %, and these are at least a third of the organs that both label whole enough to be measured.

Measured on 151 public label maps of eight abdominal organs, which are of 25 patients (BTCV, 22 of them as they are; all others are
mirrored, sheared and cropped copies): none of the 10,802 pairs of two patients is suspected; 327 of the 523 pairs of one are, and so
are 118 of the 144 maps that show a patient again. Organs that a crop has cut do not agree, and fewer than three organs tell nothing.
"""

from collections.abc import Iterator, Mapping

import numpy as np

SAME, MIN_ORGANS, MIN_SHARE = 0.03, 3, 1 / 3
MIN_VOXELS = 200


def spread_mm(mask: np.ndarray, spacing_zyx) -> float | None:
    """Sixth root of the determinant of the covariance of the positions of ``mask`` (z, y, x), in mm; None if there are fewer than
    ``MIN_VOXELS`` or they lie in a plane. ``spacing_zyx``: mm."""
    count = int(np.count_nonzero(mask))
    if count < MIN_VOXELS:
        return None
    positions = [np.arange(n, dtype=float) for n in mask.shape]
    # by projections: positions of every voxel of a liver would need more memory than the scan
    planes = {(a, b): mask.sum(axis=3 - a - b, dtype=float) for a, b in ((0, 1), (0, 2), (1, 2))}
    lines = (planes[0, 1].sum(1), planes[0, 1].sum(0), planes[0, 2].sum(0))
    means = [(line * at).sum() / count for line, at in zip(lines, positions)]
    covariance = np.diag([(line * at**2).sum() / count - m**2 for line, at, m in zip(lines, positions, means)])
    for (a, b), plane in planes.items():
        covariance[a, b] = covariance[b, a] = positions[a] @ plane @ positions[b] / count - means[a] * means[b]
    determinant = np.linalg.det(covariance) * float(np.prod(np.square(spacing_zyx)))
    return float(determinant ** (1 / 6)) if determinant > 0 else None


def suspected(sizes: Mapping[str, Mapping[str, tuple]], patients: Mapping[str, str]) -> Iterator[tuple]:
    """``(case, other, organs)``: a case that may show the patient of ``other``, which comes before it, and the organs that say so.

    ``sizes``: case -> organ -> (volume in ml, spread in mm). ``patients``: case -> patient, where it is known; cases of which that
    is known of both are not compared.
    """
    names, organs = list(sizes), list(dict.fromkeys(organ for i in sizes.values() for organ in i))
    unknown = (np.nan, np.nan)
    logs = np.log(
        np.array([[sizes[i].get(organ, unknown) for organ in organs] for i in names], float).reshape(len(names), len(organs), 2)
    )
    for number, case in enumerate(names):
        alike = (np.abs(logs[:number] - logs[number]) < np.log1p(SAME)).all(2)
        both = ~np.isnan(logs[:number] + logs[number]).any(2)
        found = alike.sum(1)
        for other in np.flatnonzero((found >= MIN_ORGANS) & (found >= MIN_SHARE * both.sum(1))):
            if case not in patients or names[other] not in patients:
                yield case, names[other], [organ for organ, same in zip(organs, alike[other]) if same]
                break
