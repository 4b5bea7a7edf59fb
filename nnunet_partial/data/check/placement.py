"""Does a label lie on its organs? On CT an organ is nearly uniform, and a label that is mirrored or of another patient covers
a mixture of fat, muscle and air.

Per structure the share of voxels near its median is measured (see :mod:`nnunet_partial.data.conversion.alignment`), in
place and under the seven mirrorings of the label, and compared with the other cases of the source.

Measured on CT painted onto 151 real label maps of eight abdominal organs (of 25 patients, most of them deformed copies; with bowel,
muscle and lesions as distractors, three levels of noise and contrast): labels in place that are suspected, mirrored and exchanged labels that are found.

=================  ============  ==============  ==============  ==============  ===============
classes            false alarms  head to feet    front to back   left to right   another patient
=================  ============  ==============  ==============  ==============  ===============
all eight          0 of 151      151 of 151      151 of 151      151 of 151      150 of 151
liver              0 of 151      145 of 151      143 of 151      147 of 151      125 of 151
both kidneys       0 of 151      139 of 151      142 of 151      128 of 151      122 of 151
pancreas           0 of 151      123 of 151      141 of 151      141 of 151      107 of 151
aorta              0 of 151      147 of 151      142 of 151      125 of 151       98 of 151
spleen             0 of 142       97 of 142      104 of 142       82 of 142       75 of 131
gallbladder        0 of 138       64 of 138       81 of 138       88 of 138       64 of 131
stomach            0 of 151       49 of 151       58 of 151       30 of 151       34 of 151
=================  ============  ==============  ==============  ==============  ===============

On a real scan no organ, bone or lung is suspected (they would be, if bone and air were expected to be even). One scan is no
rate; so every finding is a warning.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from nnunet_partial.data.conversion import alignment

MIRRORS = tuple(axes for n in range(4) for axes in combinations((0, 1, 2), n))  # of (z, y, x); the first mirrors nothing
GAIN, LOSS = 0.25, 0.1  # a mirrored label is better: some structure gains that much uniformity, none loses that much
DROP, MEAN_DROP = 0.3, 0.2  # below what is usual: one structure, or all of a case on average
DEVIATIONS, ENOUGH_CASES = 3.5, 6
SOFT_HU = (-200, 120)  # median of a structure that may be a mirrored or shifted organ
BONE_HU, BONE_SHARE = 250, 0.15
MIN_VOXELS = 100
_SIDES = {0: "head to feet", 1: "front to back", 2: "left to right"}


@dataclass(frozen=True)
class Evenness:
    """``shares``: uniformity of a structure under each of :data:`MIRRORS`, 0 to 1. ``soft``: whether it covers soft tissue, of
    which alone uniformity can be expected; bone and lungs are no mirrored liver."""

    shares: tuple
    soft: bool = True


def evenness(ct: np.ndarray, label: np.ndarray, values: Mapping[str, int]) -> dict:
    """class -> :class:`Evenness` of each that the label shows. ``ct`` in HU and ``label`` (z, y, x) along LPS."""
    present = [int(i) for i in np.flatnonzero(np.bincount(label.reshape(-1))) if i]
    samples = dict(zip(present, alignment.sample(label)))
    return {name: _evenness(ct, samples[value]) for name, value in values.items() if value in samples}


def _evenness(ct: np.ndarray, sample: tuple) -> Evenness:
    hu = ct[sample]
    soft = SOFT_HU[0] < np.median(hu) < SOFT_HU[1] and np.mean(hu > BONE_HU) < BONE_SHARE and len(hu) >= MIN_VOXELS
    return Evenness(tuple(alignment.uniformities(ct, [sample], i)[0] for i in MIRRORS), bool(soft))


def mirrored(found: Mapping[str, Evenness]) -> str | None:
    """Along which direction the label of a case must be mirrored to lie on its organs, in words; None: it lies on them.

    ``found``: what :func:`evenness` gives. The structure that fits worst decides: one that lands in its neighbour is no
    proof.
    """
    shares = np.array([i.shares for i in found.values() if i.soft])
    if not len(shares):
        return None
    gains = shares - shares[:, :1]
    better = (gains.max(0) >= GAIN) & (gains.min(0) >= -LOSS)
    if not better.any():
        return None
    best = int(np.argmax(np.where(better, gains.mean(0), -np.inf)))
    return " and ".join(_SIDES[i] for i in MIRRORS[best])


def misplaced(cases: Mapping[str, Mapping[str, Evenness]]) -> Iterator[tuple]:
    """``(case, class, share, usual share)`` of the cases of one source whose labels cover no uniform tissue.

    ``cases``: case -> what :func:`evenness` gives. A source with too few cases for anything to be usual is not judged.
    """
    values: dict = {}
    for found in cases.values():
        for name, own in found.items():
            values.setdefault(name, []).append(own.shares[0])
    usual = {name: _usual(i) for name, i in values.items() if len(i) >= ENOUGH_CASES}
    for case, found in cases.items():
        drops = {name: usual[name][0] - own.shares[0] for name, own in found.items() if name in usual}
        worst = max(drops, key=drops.__getitem__, default=None)
        if worst is None:
            continue
        middle, deviation = usual[worst]
        alone = drops[worst] >= max(DROP, DEVIATIONS * deviation)
        if alone or len(drops) > 1 and np.mean(list(drops.values())) >= MEAN_DROP:
            yield case, worst, found[worst].shares[0], middle


def _usual(values: Sequence[float]) -> tuple:
    """``(median, standard deviation as the median deviation tells it)``."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(np.array(values) - middle)))
