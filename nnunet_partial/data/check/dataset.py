"""Strict check of a raw dataset: its files, their geometry, and every label file against dataset.json's contract."""

from dataclasses import dataclass

import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.grids import read_label_on
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike
from nnunet_partial.labels import KEY, Annotations


def check_dataset(folder: PathLike, processes: int | None = None, progress: bool = True) -> Annotations | None:
    """Check the raw dataset in ``folder``; its contract is returned (None: an ordinary, fully labelled dataset).

    Every case has its images and its label file, all of one geometry; the contract knows exactly these cases; and a
    label file holds background, the classes that its case annotates and the ignore label, nothing else. Raises
    :class:`UserError` that names the first file that breaks this and says how many more do.
    """
    raw = read_raw_dataset(folder)
    problems = dataset_problems(raw, processes, progress)
    if problems:
        more = f" ({len(problems) - 1} more cases have problems.)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return raw.annotations()


def dataset_problems(raw: RawDataset, processes: int | None = None, progress: bool = True) -> list:
    """What is wrong with the files of each case: at most one line a case, in the order of the cases."""
    annotations = raw.annotations()
    declared = tuple(sorted({value for values in raw.labels.values() for value in values}))
    jobs = [
        _CaseToCheck(case, declared if annotations is None else annotations.values(case.name), raw.json_file, raw.reorients)
        for case in raw.cases.values()
    ]
    return [i for i in map_cases(_problem, jobs, processes, "checking", progress) if i]


@dataclass(frozen=True)
class _CaseToCheck:
    case: RawCase
    allowed: tuple
    json_file: str
    reorients: bool


def _problem(job: _CaseToCheck) -> str | None:
    try:
        _check_case(job)
    except UserError as error:
        return str(error)
    return None


def _check_case(job: _CaseToCheck) -> None:
    case = job.case
    first, *others = case.images
    geometry = images.read_geometry(first).spatial()
    for channel in others:
        images.require_same_geometry(geometry, first, images.read_geometry(channel).spatial(), channel)
    label = _label(job, geometry, first)
    surplus = [i for i in images.present_values(label) if i not in job.allowed]
    if surplus:
        raise UserError(
            f"label file {case.label} holds the value {surplus[0]}, but {job.json_file} lets case "
            f"{case.name} have only {', '.join(map(str, job.allowed))} ('labels', '{KEY}.cases'). Correct "
            "the file, or merge again."
        )


def _label(job: _CaseToCheck, geometry: images.Geometry, image: str) -> np.ndarray:
    """The label map. The order of its axes may differ from the image's only where nnU-Net's reader brings both together."""
    assert job.case.label is not None  # cases without a label file are not read
    label = read_label_on(job.case.label, geometry, image)
    own = images.read_geometry(job.case.label)
    if not job.reorients and geometry.difference(own):
        raise UserError(
            f"{image} and {job.case.label} store the same grid along other axes ({geometry.orientation} and "
            f"{own.orientation}), which nnU-Net's reader does not bring together: nnunet_partial merge writes the label along "
            'the axes of its image, or add "overwrite_image_reader_writer": "SimpleITKIOWithReorient" to dataset.json.'
        )
    return label
