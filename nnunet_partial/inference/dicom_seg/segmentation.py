"""A label map as DICOM SEG on the very planes of its series: written by highdicom, of which this is the only caller.

Patient, study, frame of reference, positions and orientation are those of the source instances, each frame refers to the
instance that it lies on, and a class is one binary segment, which every viewer reads. Needs the extra ``dicom``:
``pip install "nnunet_partial[dicom]"``.
"""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import __version__, palette
from nnunet_partial.data.conversion.dicom import Series
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, atomic_path
from nnunet_partial.inference.dicom_seg.codes import CATEGORIES, PRIVATE, PRIVATE_NAME, SIDES, Codes, Structure

_LONG, _TEXT, _MOST_NUMBER = 64, 10240, 2**31 - 1  # characters of DICOM's long string and long text; the largest integer string
_SEXES = ("M", "F", "O", "")
_OF_PATIENT_AND_STUDY = (  # there, or empty, in every image of the standard; anonymised ones have lost some of them
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


@dataclass(frozen=True)
class SegmentingModel:
    """What is recorded of who made a segmentation. ``version``: tells trained weights apart. ``details``: what else is worth
    knowing, words -> words."""

    dataset: str
    name: str
    version: str
    details: Mapping[str, str]


def require_packages() -> None:
    """Raise :class:`UserError` unless highdicom is there."""
    if importlib.util.find_spec("highdicom") is None:
        raise UserError('DICOM SEG needs the package highdicom: pip install "nnunet_partial[dicom]".')


def classes_of(labels: Mapping[str, Any]) -> dict:
    """Class -> the values of its voxels, of the ``labels`` of a dataset.json; nnU-Net's regions have several values each."""
    values = {k: tuple(v) if isinstance(v, (list, tuple)) else (int(v),) for k, v in labels.items()}
    return {k: v for k, v in values.items() if v != (0,) and k != "ignore"}


def write_dicom_seg(
    labels: np.ndarray, series: Series, classes: Mapping[str, Sequence[int]], codes: Codes, model: SegmentingModel, file: PathLike
) -> dict:
    """Write the classes that are there as segments 1, 2, ... in the order of ``classes``; return class -> voxels, of all classes.

    ``labels``   (z, y, x) as the slices of ``series`` lie
    ``classes``  :func:`classes_of`; they may overlap
    Nothing is written where there is none of them. Raises :class:`UserError` for a series that a segmentation cannot refer
    to, and when the file cannot be written.
    """
    if labels.shape != series.geometry.shape_zyx:
        raise ValueError(f"label map of shape {labels.shape} does not fit the series {series.geometry.shape_zyx}")
    counts = np.bincount(labels.ravel(), minlength=1)
    voxels = {name: int(sum(counts[v] for v in values if v < len(counts))) for name, values in classes.items()}
    found = [name for name, n in voxels.items() if n]
    if found:
        sources, order = _sources(series)
        segmentation = _segmentation(
            _pixels(labels[order], [classes[i] for i in found]),
            sources,
            series,
            _descriptions(found, codes, _algorithm(model, voxels)),
            _texts(model, found, voxels),
        )
        with atomic_path(file) as temporary:
            segmentation.save_as(temporary, enforce_file_format=True)
    return voxels


def _sources(series: Series) -> tuple:
    """``(headers, order)``: the instances as highdicom wants them, and the slice that belongs to each of their frames."""
    import pydicom

    files = list(dict.fromkeys(s.file for s in series.slices))
    headers = [pydicom.dcmread(i, stop_before_pixels=True) for i in files]
    for file, header in zip(files, headers):
        _complete(header, file)
        if not header.get("SliceThickness"):
            header.SliceThickness = series.geometry.spacing_mm[2]
    uids = {str(i.SOPInstanceUID) for i in headers}
    if len(uids) < len(headers):
        raise UserError(
            f"{Path(files[0]).parent}: {len(headers)} instances share {len(uids)} SOPInstanceUIDs: nothing could tell them apart. Export the series again."
        )
    if len(files) == len(series.slices):
        return headers, list(range(len(files)))
    if len(files) > 1 or "PerFrameFunctionalGroupsSequence" not in headers[0]:
        what = f"comes in {len(files)} multi-frame files" if len(files) > 1 else "is a multi-frame file of the old kind"
        raise UserError(
            f"{files[0]}: the series {what}, to whose frames a segmentation cannot refer. Export it as single slices."
        )
    return headers, np.argsort([s.frame for s in series.slices]).tolist()


def _complete(header: Any, file: str) -> None:
    """Attributes that anonymisation took out, as empty ones. Raises :class:`UserError` for what nothing can stand in for."""
    for name in ("FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not header.get(name):
            raise UserError(
                f"{file} has no {name}, without which a segmentation could not say where it belongs. Export the series again."
            )
    for name in _OF_PATIENT_AND_STUDY:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in _SEXES:
        header.PatientSex = ""


def _pixels(labels: np.ndarray, values: Sequence[Sequence[int]]) -> np.ndarray:
    """(z, y, x) with the number of the segment, or for classes that overlap (z, y, x, segment) of 0 and 1."""
    single = [v[0] for v in values if len(v) == 1]
    if len(set(single)) < len(values):
        return np.stack([np.isin(labels, v) for v in values], -1).astype(np.uint8)
    numbers = np.zeros(max(int(labels.max()), *single) + 1, np.uint8 if len(values) < 256 else np.uint16)
    numbers[single] = np.arange(1, len(single) + 1)
    return numbers[labels]


def _segmentation(pixels: np.ndarray, sources: list, series: Series, descriptions: list, texts: Mapping[str, Any]) -> Any:
    import highdicom

    between_columns, between_rows, between_slices = series.geometry.spacing_mm
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about how the patient's name is written
            return highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type="BINARY",
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=_series_number(sources[0].get("SeriesNumber")),
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                pixel_measures=highdicom.PixelMeasuresSequence(
                    (between_rows, between_columns), float(sources[0].SliceThickness), between_slices
                ),
                specific_character_set="ISO_IR 192",  # UTF-8: names of classes and of patients in one file
                content_label="SEGMENTATION",
                coding_schemes=_coding_schemes(descriptions),
                **texts,
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{series.slices[0].file}: a segmentation cannot refer to this series ({reason}).") from error


def _series_number(source: Any) -> int:
    """One that tells where it comes from: series 5 -> 501."""
    return 100 * min(max(int(source or 0), 0), _MOST_NUMBER // 100 - 1) + 1


def _descriptions(names: Sequence[str], codes: Codes, algorithm: Any) -> list:
    import highdicom

    result = []
    for number, name in enumerate(names, 1):
        structure = codes.of(name)
        colour = highdicom.color.CIELabColor.from_string(palette.of(palette.ON_GREY, number - 1))
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_text(name, _LONG),
            segmented_property_category=_coded(*CATEGORIES[structure.kind]),
            segmented_property_type=_code(structure),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=colour,
        )
        if structure.side:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [_side(structure)]
        if structure.region:
            region = _code(structure.region)
            if structure.region.side:
                region.AnatomicRegionModifierSequence = [_side(structure.region)]
            description.AnatomicRegionSequence = [region]
        result.append(description)
    return result


def _code(structure: Structure) -> Any:
    return _coded(structure.scheme, structure.code, structure.meaning)


def _side(structure: Structure) -> Any:
    return _coded("SCT", *SIDES[structure.side])


def _coded(scheme: str, code: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code, scheme, meaning)


def _coding_schemes(descriptions: Sequence[Any]) -> list | None:
    """What our own scheme is, where it is used."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    if all(i.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator != PRIVATE for i in descriptions):
        return None
    return [CodingSchemeIdentificationItem(designator=PRIVATE, name=PRIVATE_NAME, responsible_organization="nnunet_partial")]


def _algorithm(model: SegmentingModel, voxels: Mapping[str, int]) -> Any:
    """The model, what it looks for and what it did not find, as its parameters (KEY=VALUE, separated by commas)."""
    import highdicom
    from pydicom.sr.codedict import codes

    said = {
        "dataset": model.dataset,
        "model": model.name,
        **model.details,
        "classes": "; ".join(voxels),
        "not found": "; ".join(i for i, n in voxels.items() if not n) or "none",
    }
    sequence = highdicom.AlgorithmIdentificationSequence(
        name=_text(f"{model.dataset} {model.name}", _LONG),
        family=codes.cid7162.ArtificialIntelligence,
        version=_text(model.version, _LONG),
        source=f"nnunet_partial {__version__}",
        parameters=said,
    )
    sequence[0].AlgorithmParameters = sequence[0].AlgorithmParameters[:_TEXT]
    return sequence


def _texts(model: SegmentingModel, found: Sequence[str], voxels: Mapping[str, int]) -> dict:
    return {
        "series_description": _text(f"{model.dataset}: {', '.join(found)}", _LONG),
        "content_description": _text(f"{len(found)} of {len(voxels)} classes found by {model.name}", _LONG),
        "manufacturer": "nnunet_partial",
        "manufacturer_model_name": _text(model.name, _LONG),
        "software_versions": f"nnunet_partial {__version__}",
        "device_serial_number": _text(model.version, _LONG),
    }


def _text(words: str, limit: int) -> str:
    """Without what DICOM's strings may not hold; what is too long ends with three dots."""
    clean = " ".join(words.replace("\\", "/").split())
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."
