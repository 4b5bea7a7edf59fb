"""Mirror the label map of one case, where it was stored mirrored against its image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.raw import RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike, read_json, write_json

#: direction in the patient -> axis of (x, y, z) in DICOM's frame
DIRECTIONS = {"left-right": 0, "front-back": 1, "head-feet": 2}
_SAME = {"left-to-right": "left-right", "front-to-back": "front-back", "head-to-feet": "head-feet"}
RECORD = "relabelled.json"


def flip_labels(dataset: PathLike, cases: Sequence[str], directions: Sequence[str]) -> list:
    """Mirror the label files of ``cases`` of the raw dataset in a folder along ``directions``; returns the files.

    A direction is the patient's, whatever order and sense the file's axes have. The image and the header stay as they are;
    doing it again undoes it. ``relabelled.json`` in the folder says what was done. Raises :class:`UserError` before anything is
    written: for an unknown case or direction, and for a label file that lies outside the dataset, where others may use it.
    """
    raw = read_raw_dataset(dataset)
    axes = [_axis(i) for i in dict.fromkeys(directions)]
    files = {case: _label_file(raw, case) for case in dict.fromkeys(cases)}
    for case, file in files.items():
        label, geometry = images.read_label(file)
        if geometry.dimensions != 3:
            raise UserError(f"{file} is an image in 2D, whose directions in the patient are unknown. Mirror it by hand.")
        images.write_label(np.ascontiguousarray(np.flip(label, tuple(_array_axis(geometry, i) for i in axes))), geometry, file)
        _note(raw.folder / RECORD, case, directions)
    return list(files.values())


def _axis(direction: str) -> int:
    name = _SAME.get(direction, direction)
    if name not in DIRECTIONS:
        raise UserError(f"--flip {direction}: write {', '.join(DIRECTIONS)}. {did_you_mean(direction, DIRECTIONS)}".strip())
    return DIRECTIONS[name]


def _array_axis(geometry: images.Geometry, axis: int) -> int:
    """Axis of the array (z, y, x) that runs most nearly along axis ``axis`` of the patient's (x, y, z)."""
    return 2 - int(np.argmax(np.abs(np.reshape(geometry.direction, (3, 3))[axis])))


def _label_file(raw: RawDataset, case: str) -> Path:
    if case not in raw.cases:
        raise UserError(f"{raw.folder.name} has no case {case!r}. {did_you_mean(case, raw.cases)}".strip())
    file = raw.cases[case].label
    if file is None:
        raise UserError(f"case {case} of {raw.folder.name} has no label file.")
    if not Path(file).absolute().is_relative_to(raw.folder.absolute()):
        raise UserError(f"the label of {case} is {file}, outside {raw.folder.name}: change it there, or convert again.")
    return Path(file)


def _note(file: Path, case: str, directions: Sequence[str]) -> None:
    content = read_json(file) if file.is_file() else {}
    write_json({**content, case: [*content.get(case, []), *directions]}, file)
