"""Does a label lie on its organs? For labels whose headers are not to be trusted, the CT image itself decides.

An organ is nearly uniform in grey value. A label in the right place covers nearly one value per structure; mirrored, it
covers a mixture of fat, muscle and air.
"""

from collections.abc import Sequence

import numpy as np

from nnunet_partial.errors import UserError

WINDOW_HU = 60  # half width around the median of a structure
SAMPLES = 20000  # voxels per structure that are looked at
PLAUSIBLE, CLEARLY = 0.5, 0.15  # share of a structure's voxels within the window; difference that settles it
AXES = "zyx"


def find_mirror(ct: np.ndarray, label: np.ndarray, mirrors: Sequence[tuple], ignored: int | None = None) -> tuple:
    """The one of ``mirrors`` (axes of (z, y, x) to flip) that puts the label on its organs.

    It is the first, unless another is clearly better.

    ``ct`` and ``label``: (z, y, x) of one shape; ``ignored``: a label value that is no structure. Raises
    :class:`UserError` when even the best is not plausible.
    """
    samples = sample(label, ignored)
    scores = [uniformity(ct, samples, mirror) for mirror in mirrors]
    best = int(np.argmax(scores))
    if scores[best] - scores[0] <= CLEARLY:
        best = 0
    if scores[best] < PLAUSIBLE:
        raise UserError(
            f"the label does not lie on its organs: {scores[best]:.0%} of its voxels are within {WINDOW_HU} HU "
            f"of the structure's median. Is it the label of another image?"
        )
    return mirrors[best]


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


def uniformity(ct: np.ndarray, samples: Sequence[tuple], mirror: tuple = ()) -> float:
    """Mean over structures of the share of their voxels near their median grey value, 0 to 1; 1 for no structure."""
    shares = []
    for indices in samples:
        places = [n - 1 - i if axis in mirror else i for axis, (i, n) in enumerate(zip(indices, ct.shape))]
        hu = ct[tuple(places)].astype(np.float32)
        middle = np.median(hu)
        shares.append(np.mean(np.abs(hu - middle) <= WINDOW_HU) if middle > -200 else 0.0)
    return float(np.mean(shares)) if shares else 1.0


def in_words(mirror: tuple) -> str:
    return " and ".join(AXES[i] for i in mirror)
