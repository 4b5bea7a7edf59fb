"""Convert one case. Runs in worker processes; writes whole files only."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.conversion import alignment, voxels
from nnunet_partial.data.conversion.cases import Case, forget
from nnunet_partial.data.conversion.organs import OrganMap
from nnunet_partial.data.conversion.views import header_conflict
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

ROUNDING_VOXELS = 0.5  # headers that differ by less at every corner of the volume mean the same grid


@dataclass(frozen=True)
class Job:
    """One case and where it goes: ``folder`` of the new dataset, ``ending`` of its label files."""

    case: Case
    organs: OrganMap
    folder: Path
    ending: str = ".nii.gz"
    copy_images: bool = False


@dataclass(frozen=True)
class Converted:
    """``images`` and ``label`` as for dataset.json. ``skipped``: why the case was left out, or None."""

    case: str
    images: tuple = ()
    label: str | None = None
    annotated: tuple = ()
    how: tuple = ()
    range: tuple = ()
    notes: tuple = ()
    skipped: str | None = None


def convert_case(job: Job) -> Converted:
    """Write the label of one case and place its images. What is wrong with the case becomes ``skipped``."""
    try:
        return _convert(job)
    except UserError as error:
        return Converted(job.case.name, skipped=str(error).rstrip("."))
    finally:
        forget()


def _convert(job: Job) -> Converted:
    case = job.case
    geometry = _common_geometry(case)
    conflicts = tuple(note for image in case.images for note in header_conflict(image.files[0], image.stored_geometry()))
    path = job.folder / "labelsTr" / (case.name + job.ending)
    notes = _write_label(job, geometry, path)
    placed = [
        image.place(job.folder / "imagesTr" / f"{case.name}_{channel:04d}", geometry, job.copy_images)
        for channel, image in enumerate(case.images)
    ]
    return Converted(
        case.name,
        tuple(_reference(i.path, job.folder) for i in placed),
        _reference(path, job.folder),
        job.organs.annotated(case.available) if case.label else (),
        tuple(i.how for i in placed),
        (min(i.low for i in placed), max(i.high for i in placed)),
        tuple(dict.fromkeys((*case.notes, *notes, *conflicts, *(note for i in placed for note in i.notes)))),
    )


def _common_geometry(case: Case) -> Geometry:
    first, *others = case.images
    geometry = first.geometry()
    for other in others:
        images.require_same_geometry(geometry, first.files[0], other.geometry(), other.files[0])
    return geometry


def _write_label(job: Job, geometry: Geometry, path: Path) -> tuple:
    """Write the label map of the case on the grid of its image; returns notes."""
    if job.case.label is None:
        voxels.write_label(np.zeros(geometry.shape_zyx, np.uint8), geometry, path)
        return ()
    label, claimed = job.case.label.read(job.organs, job.case.available, geometry)
    if claimed.size_xyz != geometry.size_xyz:
        raise UserError(
            f"{job.case.label.files[0]} has {claimed.size_xyz} voxels, its image {job.case.images[0].files[0]} "
            f"{geometry.size_xyz}"
        )
    if not job.case.label.mirrors:
        notes = _check_header(job.case.label.files[0], geometry, claimed)
    else:
        label, notes = _onto_the_organs(job, label, claimed.difference(job.case.images[0].stored_geometry()) is not None)
    voxels.write_label(label, geometry, path)
    return notes


def _onto_the_organs(job: Job, label: np.ndarray, header_differs: bool) -> tuple:
    """``(label, notes)`` for a label whose header says nothing about where it lies."""
    case = job.case
    if not header_differs and case.label.mirrors[0] == ():
        return label, ()
    array = case.images[0].array()
    try:
        mirror = alignment.find_mirror(array, label, case.label.mirrors, job.organs.labels().get("ignore"))
    except UserError as error:
        raise UserError(f"{case.label.files[0]}: {error}") from None
    notes = ("the header of the label disagrees with the image's, which was used",) if header_differs else ()
    if mirror != case.label.mirrors[0]:
        notes += (f"the label was mirrored along {alignment.in_words(mirror)}, because only so it lies on its organs",)
    return np.ascontiguousarray(np.flip(label, mirror)), notes


def _check_header(file: Path, geometry: Geometry, claimed: Geometry) -> tuple:
    difference = claimed.difference(geometry)
    if difference is None:
        return ()
    distance = corner_distance(claimed, geometry)
    if distance > ROUNDING_VOXELS:
        raise UserError(
            f"{file} and its image differ in {difference}: {distance:.1f} voxels apart. Mend the header that is wrong"
        )
    return ("the header of the label differs from the image's by a rounding error; the image's was used",)


def corner_distance(first: Geometry, second: Geometry) -> float:
    """Largest distance between the same corners of two grids of one size, in voxels of the smallest spacing."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in first.size_xyz])).reshape(first.dimensions, -1)

    def place(geometry):
        axes = np.reshape(geometry.direction, (geometry.dimensions,) * 2) * geometry.spacing_mm
        return axes @ corners + np.array(geometry.origin_mm)[:, None]

    return float(np.linalg.norm(place(first) - place(second), axis=0).max() / min(first.spacing_mm))


def _reference(path: Path, folder: Path) -> str:
    """Files of the dataset relative to it, because it moves when it is complete; others as they are."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
