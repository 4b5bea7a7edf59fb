"""Convert one case. Runs in worker processes; writes whole files only."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_partial import _moved
from nnunet_partial.data import grids, images
from nnunet_partial.data.conversion import alignment, sheared, voxels
from nnunet_partial.data.conversion.cases import Case, LabelFile, forget
from nnunet_partial.data.conversion.organs import OrganMap
from nnunet_partial.data.conversion.views import header_conflict
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

REORDERED = "the label stores its axes in another order than the image; it was reordered, no voxel changed"


@dataclass(frozen=True)
class CaseToConvert:
    """One case and where it goes: ``folder`` of the new dataset, ``ending`` of its label files.

    ``unlabelled``: whether a case whose label file shows none of the classes stays, as an unlabelled one.
    ``resample_sheared``: whether files with sheared axes are resampled (see :mod:`sheared`), or their case is skipped.
    """

    case: Case
    organs: OrganMap
    folder: Path
    ending: str = ".nii.gz"
    copy_images: bool = False
    unlabelled: bool = False
    resample_sheared: bool = False


@dataclass(frozen=True)
class Converted:
    """``images`` and ``label`` as for dataset.json. ``skipped``: why the case was left out, or None.

    ``shown``: the classes of which the label has a voxel.
    """

    case: str
    images: tuple = ()
    label: str | None = None
    annotated: tuple = ()
    how: tuple = ()
    range: tuple = ()
    notes: tuple = ()
    skipped: str | None = None
    patient: str | None = None
    shown: tuple = ()


def convert_case(job: CaseToConvert) -> Converted:
    """Write the label of one case and place its images. What is wrong with the case becomes ``skipped``."""
    try:
        if not job.resample_sheared:
            return _convert(job)
        with tempfile.TemporaryDirectory() as folder:
            case = sheared.straightened(job.case, Path(folder))
            return _convert(job if case is job.case else replace(job, case=case, copy_images=True))
    except images.ShearedError as error:
        return Converted(job.case.name, skipped=str(error).rstrip(".") + "; --resample-sheared does it")
    except UserError as error:
        return Converted(job.case.name, skipped=str(error).rstrip("."))
    finally:
        forget()


def _convert(job: CaseToConvert) -> Converted:
    case = job.case
    geometry = _common_geometry(case)
    conflicts = tuple(note for image in case.images for note in header_conflict(image.files[0], image.stored_geometry()))
    path = job.folder / "labelsTr" / (case.name + job.ending)
    annotated, partly = _annotated(job)
    job = replace(job, organs=replace(job.organs, only=annotated))
    label, notes = _label(job, geometry)
    voxels.write_label(label, geometry, path)
    present = images.present_values(label)
    shown = tuple(name for number, name in enumerate(job.organs.classes, start=1) if number in present)
    notes += _few_classes(case, job.organs, shown)
    placed = [
        image.place(job.folder / "imagesTr" / f"{case.name}_{channel:04d}", geometry, job.copy_images)
        for channel, image in enumerate(case.images)
    ]
    return Converted(
        case.name,
        tuple(_reference(i.path, job.folder) for i in placed),
        _reference(path, job.folder),
        annotated,
        tuple(i.how for i in placed),
        (min(i.low for i in placed), max(i.high for i in placed)),
        tuple(dict.fromkeys((*case.notes, *partly, *notes, *conflicts, *(note for i in placed for note in i.notes)))),
        patient=case.patient,
        shown=shown,
    )


def _annotated(job: CaseToConvert) -> tuple:
    """``(classes that the case annotates, notes)``."""
    case, organs = job.case, job.organs
    if case.label is None or not case.present:
        return case.classes(organs), ()
    assert isinstance(case.label, LabelFile)  # those that the option --annotated-from is about
    shown = case.label.values()
    annotated = organs.annotated(shown)
    if not annotated and not job.unlabelled:
        raise UserError("its label file shows none of the classes; --unlabelled includes such cases")
    return annotated, tuple(
        f"{name} counts as not annotated: the label file shows its value {', '.join(map(str, sorted(shown & set(values))))} "
        f"but not {', '.join(map(str, sorted(set(values) - shown)))}"
        for name, values in zip(organs.classes, organs.values)
        if name not in annotated and shown & set(values)
    )


def _common_geometry(case: Case) -> Geometry:
    first, *others = case.images
    geometry = first.geometry()
    for other in others:
        images.require_same_geometry(geometry, first.files[0], other.geometry(), other.files[0])
    return geometry


def _label(job: CaseToConvert, geometry: Geometry) -> tuple:
    """``(label map of the case on the grid of its image, notes)``."""
    case, organs = job.case, job.organs
    if case.label is None or not organs.annotated():
        return np.zeros(geometry.shape_zyx, organs.dtype), ()
    label, claimed = case.label.read(organs, case.available, geometry)
    stored = case.images[0].stored_geometry()
    order = grids.reordering(claimed, stored if case.label.mirrors else geometry)
    reordered = order is not None and not order.only_flips
    if order is not None and reordered:
        label, claimed, order = order.apply(label), geometry, None
    if claimed.size_xyz != geometry.size_xyz:
        raise UserError(
            f"{case.label.files[0]} has {claimed.size_xyz} voxels, its image {case.images[0].files[0]} {geometry.size_xyz}"
        )
    if not case.label.mirrors:
        label, notes = _as_its_header_says(case.label.files[0], label, geometry, claimed, order)
    else:
        differs = reordered or claimed.difference(stored) is not None
        label, notes = _onto_the_organs(job, label, differs, order.flips if order else None)
    return label, (*((REORDERED,) if reordered else ()), *notes)


def _few_classes(case: Case, organs: OrganMap, shown: tuple) -> tuple:
    """A note if a case that is taken to annotate every class shows few of them: perhaps nobody outlined the others."""
    annotated = organs.annotated(case.available) if case.label is not None else ()
    names = [name for name in annotated if name in shown]
    if case.present or case.annotated is not None or len(annotated) < 3 or 2 * len(names) > len(annotated):
        return ()
    return (
        f"shows {len(names)} of {len(annotated)} classes ({', '.join(names[:6]) or 'none'}) and counts as annotating all: if the "
        "others were not outlined, they are taught as background (generic --annotated-from says so)",
    )


def _onto_the_organs(job: CaseToConvert, label: np.ndarray, header_differs: bool, claimed: tuple | None) -> tuple:
    """``(label, notes)`` for a label whose header is not to be trusted. ``claimed``: axes to flip by that header."""
    case = job.case
    assert case.label is not None
    if not header_differs and case.label.mirrors[0] == ():
        return label, ()
    claimed = claimed if isinstance(case.label, LabelFile) and case.label.own_header else None
    try:
        choice = alignment.find_mirror(
            case.images[0].array(), label, case.label.mirrors, job.organs.labels().get("ignore"), claimed
        )
    except UserError as error:
        raise UserError(f"{case.label.files[0]}: {error}") from None
    notes = ("the header of the label disagrees with the image's, which was used",) if header_differs else ()
    if choice.mirror != case.label.mirrors[0]:
        notes += (f"the label was mirrored along {alignment.in_words(choice.mirror)}, because only so it lies on its organs",)
    if claimed is not None and choice.mirror == claimed != case.label.mirrors[0]:
        notes = (f"the label is mirrored along {alignment.in_words(claimed)}, as its own header says and the image confirms",)
    if choice.doubt is not None:
        notes += (
            f"a close call: the label {'mirrored along ' + alignment.in_words(choice.doubt) if choice.doubt else 'as stored'} "
            "fits the image nearly as well. Look at this case",
        )
    return np.ascontiguousarray(np.flip(label, choice.mirror)), notes


def _as_its_header_says(file: Path, label: np.ndarray, geometry: Geometry, claimed: Geometry, order) -> tuple:
    """``(label, notes)`` for a label whose header counts."""
    if claimed.difference(geometry) is None:
        return label, ()
    if grids.is_same(claimed, geometry):
        return label, ("the header of the label differs from the image's by a rounding error; the image's was used",)
    if order is not None:
        return order.apply(label), (REORDERED,)
    raise UserError(
        f"{file} and its image differ in {claimed.difference(geometry)}: {grids.corner_distance(claimed, geometry):.1f} voxels "
        "apart. Mend the header that is wrong"
    )


def _reference(path: Path, folder: Path) -> str:
    """Files of the dataset relative to it, because it moves when it is complete; others as they are."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


__getattr__ = _moved.renamed(__name__, {"Job": "CaseToConvert"})
