"""Connected components of label maps: which classes are one piece in the manual labels, and the largest piece alone.

Keeping the largest component of a class deletes one of two kidneys and all but one lesion. It is therefore done only for
classes that the manual labels show as one piece in nearly all cases.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cc3d
import fastremap
import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike
from nnunet_partial.labels import Annotations

# a class is one piece in a case if its largest component holds this share of its voxels: a few stray voxels of a
# manual outline are no second organ
PIECE_SHARE = 0.99
# and it is one piece in the dataset if it is so in this share of the cases that show it
CASE_SHARE = 0.95


def largest_components(mask: np.ndarray, values: Sequence[int] | None = None) -> np.ndarray:
    """``mask`` (*S) with only the largest 26-connected component of each class in ``values`` (None: of every class).

    Of equally large components the first in memory stays; other classes stay as they are.
    """
    if values is not None:
        chosen = np.isin(mask, values)
        if not chosen.any():
            return mask
        return np.where(chosen, largest_components(np.where(chosen, mask, 0).astype(np.uint16)), mask).astype(mask.dtype)
    components, largest = _components(mask)
    class_of = np.zeros(int(components.max(initial=0)) + 1, mask.dtype)
    for value, (_, component) in largest.items():
        class_of[component] = value
    return class_of[components]


def pieces(mask: np.ndarray) -> dict[int, float]:
    """Foreground value -> share of its voxels that its largest 26-connected component holds."""
    _, largest = _components(mask)
    values, voxels = fastremap.unique(mask, return_counts=True)
    return {int(v): largest[v][0] / n for v, n in zip(values, voxels) if v}


def _components(mask: np.ndarray) -> tuple:
    """All components (*S), and value -> (voxels, number) of its largest one."""
    components = cc3d.connected_components(mask, connectivity=26)
    classes = fastremap.component_map(components, mask)
    largest: dict = {}
    for component, voxels in zip(*fastremap.unique(components, return_counts=True)):
        value = classes[component]
        if value and voxels > largest.get(value, (0, 0))[0]:
            largest[value] = (int(voxels), component)
    return components, largest


def one_piece_classes(
    annotations: Annotations, label_files: Mapping[str, PathLike | None], processes: int | None = 1, progress: bool = True
) -> tuple:
    """The classes whose manual labels are one piece in at least 95 % of the cases that annotate and show them.

    ``label_files``: case -> label file; None for one that annotates nothing. A class counts by itself alone: where it is not annotated, or not told apart
    from another one, the case says nothing. A class that no case shows is not among the result. Raises
    :class:`UserError` for a label file that cannot be read.
    """
    jobs = [(str(file), _own_values(annotations, case)) for case, file in sorted(label_files.items())]
    found = map_cases(_pieces_of_file, [i for i in jobs if i[1]], processes, "components of the manual labels", progress)
    chosen = []
    for value, name in enumerate(annotations.classes, 1):
        shares = [case[value] >= PIECE_SHARE for case in found if value in case]
        if shares and np.mean(shares) >= CASE_SHARE:
            chosen.append(name)
    return tuple(chosen)


def one_piece_classes_of_dataset(folder: PathLike, annotations: Annotations, cases: Sequence[str], file_ending: str) -> tuple:
    """:func:`one_piece_classes` of these cases of a preprocessed dataset, from nnU-Net's copies of the label files."""
    return one_piece_classes(annotations, {i: Path(folder) / "gt_segmentations" / f"{i}{file_ending}" for i in cases}, None)


def _own_values(annotations: Annotations, case: str) -> tuple:
    annotated = annotations.of(case).annotated
    return tuple(value for value, name in enumerate(annotations.classes, 1) if name in annotated)


def _pieces_of_file(job: tuple) -> dict[int, float]:
    file, values = job
    label = images.read_label(file)[0]
    return pieces(np.where(np.isin(label, values), label, 0).astype(np.uint16))


def checked_classes(names: Sequence[str], annotations: Annotations, where: str) -> tuple:
    """``names`` as a tuple. Raises :class:`UserError` that calls them ``where`` for one that is no class."""
    unknown = [i for i in names if i not in annotations.classes]
    if unknown:
        raise UserError(
            f"{where} {unknown[0]} is no class of this dataset. {did_you_mean(unknown[0], annotations.classes)}Classes: {', '.join(annotations.classes)}."
        )
    return tuple(names)
