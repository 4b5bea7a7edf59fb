"""Does a label lie on its organs? For labels whose headers are not to be trusted, the CT image itself decides.

An organ is nearly uniform in grey value. A label in the right place covers nearly one value per structure; mirrored, it
covers a mixture of fat, muscle and air. A small structure may land within a large organ and look as uniform as before (a
tumour within the liver), so every structure is scored by itself and the worst one decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_partial.errors import UserError

WINDOW_HU = 60  # half width around the median of a structure
SAMPLES = 20000  # voxels per structure that are looked at
FEW = 30  # voxels; the share of a smaller structure says little, and counts only where there is no larger one
PLAUSIBLE, CLEARLY = 0.5, 0.15  # share of a structure's voxels within the window; difference that settles it
SAME_PLACE = 0.9  # share of the label's voxels that a mirrored copy shares with it; two such places need no decision
AXES = "zyx"


@dataclass(frozen=True)
class Choice:
    """``mirror``: axes of (z, y, x) to flip. ``doubt``: another mirror that fits nearly as well, or None."""

    mirror: tuple
    doubt: tuple | None = None


def find_mirror(
    ct: np.ndarray, label: np.ndarray, mirrors: Sequence[tuple], ignored: int | None = None, claimed: tuple | None = None
) -> Choice:
    """The one of ``mirrors`` (axes of (z, y, x) to flip) that puts the label on its organs.

    It is the first, or ``claimed``, the one that the label's own header names, whichever fits the image better; another
    one only if it fits clearly better still.

    ``ct`` and ``label``: (z, y, x) of one shape; ``ignored``: a label value that is no structure. Raises
    :class:`UserError` when even the chosen one is not plausible.
    """
    samples = sample(label, ignored)
    if not samples:
        return Choice(mirrors[0])
    shares = {mirror: uniformities(ct, samples, mirror) for mirror in mirrors}
    worst = {mirror: min(_of_large(samples, i)) for mirror, i in shares.items()}
    likely = [mirrors[0], *([claimed] if claimed in mirrors else [])]
    chosen, best = max(likely, key=worst.__getitem__), max(mirrors, key=worst.__getitem__)
    if worst[best] - worst[chosen] > CLEARLY:
        chosen = best
    if np.mean(shares[chosen]) < PLAUSIBLE:
        raise UserError(
            f"the label does not lie on its organs: {np.mean(shares[chosen]):.0%} of its voxels are within {WINDOW_HU} HU "
            f"of the structure's median. Is it the label of another image?"
        )
    return Choice(chosen, _doubt(label, samples, worst, chosen, likely))


def _of_large(samples: Sequence[tuple], shares: Sequence[float]) -> list:
    large = [share for indices, share in zip(samples, shares) if len(indices[0]) >= FEW]
    return large or list(shares)


def _doubt(label: np.ndarray, samples: Sequence[tuple], worst: dict, chosen: tuple, likely: Sequence[tuple]) -> tuple | None:
    """The likely place of the label that was not chosen, if it fits nearly as well and is a place of its own."""
    for other in likely:
        apart = tuple(set(other) ^ set(chosen))
        if apart and worst[chosen] - worst[other] <= CLEARLY and _shared(label, samples, apart) < SAME_PLACE:
            return other
    return None


def _shared(label: np.ndarray, samples: Sequence[tuple], mirror: tuple) -> float:
    """Share of the voxels of a label that have the same value when it is mirrored; the smallest of the structures."""
    return min(float(np.mean(label[_mirrored(i, mirror, label.shape)] == label[i])) for i in samples)


def sample(label: np.ndarray, ignored: int | None = None) -> list:
    """Indices (z, y, x) of at most ``SAMPLES`` voxels, evenly chosen, of every structure of a label map."""
    places = np.flatnonzero(label)
    values = label.reshape(-1)[places]
    found = []
    for value in np.flatnonzero(np.bincount(values)):
        if value != ignored:
            own = places[values == value]
            found.append(np.unravel_index(own[:: max(1, len(own) // SAMPLES)], label.shape))
    return found


def uniformities(ct: np.ndarray, samples: Sequence[tuple], mirror: tuple = ()) -> list:
    """For every structure the share of its voxels near their median grey value, 0 to 1; 0 in air."""
    shares = []
    for indices in samples:
        hu = ct[_mirrored(indices, mirror, ct.shape)].astype(np.float32)
        middle = np.median(hu)
        shares.append(float(np.mean(np.abs(hu - middle) <= WINDOW_HU)) if middle > -200 else 0.0)
    return shares


def _mirrored(indices: tuple, mirror: tuple, shape: tuple) -> tuple:
    return tuple(n - 1 - i if axis in mirror else i for axis, (i, n) in enumerate(zip(indices, shape)))


def in_words(mirror: tuple) -> str:
    return " and ".join(AXES[i] for i in mirror)
