"""Which DICOM series a folder holds: files of any name, several series beside each other, one series in several folders."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial.bars import bar
from nnunet_partial.data.conversion import SourceFolder
from nnunet_partial.data.conversion.dicom import is_companion
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike
from nnunet_partial.inference.new_scans import Scan

ENDING = ".dcm"
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImageType",
    "ImagePositionPatient",
    "Rows",
]
# what a channel of nnU-Net is called -> the modality that its DICOM files have
_MODALITIES = (
    (re.compile(r"ct|cta|ncct|ctp"), "CT"),
    (re.compile(r"mri?|t1\w*|t2\w*|flair|adc|dwi|swi|pdw?"), "MR"),
    (re.compile(r"pe?t|suv"), "PT"),
)
_DERIVED = ("SEG", "PR", "RTDOSE", "RTIMAGE", "REG", "SR", "KO", "RTSTRUCT", "RTPLAN", "SC", "DOC")  # never a scan


@dataclass(frozen=True)
class Contents:
    """``scans``: one a series that the model could segment. ``left_out``: one line for each series of something else.
    ``damaged``: one line for each file that should be DICOM and cannot be read. ``notes``: one line for each oddity."""

    scans: tuple
    left_out: tuple = ()
    damaged: tuple = ()
    notes: tuple = ()


@dataclass(frozen=True)
class _Instance:
    file: Path
    uid: str
    series: str
    number: str
    description: str
    modality: str
    is_localizer: bool
    position: tuple

    @property
    def words(self) -> str:
        return f"{self.modality or 'no modality'}, series {self.number or 'without number'} {self.description!r}"


def modality_of(channel: str) -> str | None:
    """The DICOM modality of what a channel of nnU-Net shows, None where its name does not say."""
    words = re.findall(r"[a-z0-9]+", channel.lower())
    found = [modality for pattern, modality in _MODALITIES if any(pattern.fullmatch(i) for i in words)]
    return found[0] if len(found) == 1 else None


def series_of(source: PathLike, out: PathLike, channel: str, modality: str | None = None, progress: bool = True) -> Contents:
    """The series in a folder and the folders in it, or in the one file that ``source`` names, in the order of their first file.

    ``out``      where segmentations go: what lies there is no scan
    ``channel``  what the model takes: a series of another modality is left out, if the name of the channel tells one
    ``modality`` DICOM's word for it, ``MR`` for example, where the name does not, or is wrong
    Raises :class:`UserError` where nothing is left.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"{source} does not exist. Give the folder of the DICOM series with -i.")
    folder = source if source.is_dir() else source.parent
    root = SourceFolder(folder, follow_links=True)
    files = [root.root / i for i in root.paths() if source.is_dir() or i == source.name]
    if out.resolve() != root.root:
        files = [i for i in files if not i.is_relative_to(out.resolve())]
    groups, damaged = _grouped(files, progress)
    contents = _chosen(groups, modality or modality_of(channel), damaged)
    if not contents.scans:
        raise UserError(
            f"{source} holds no DICOM series that this model ({channel}) could segment: {_why(files, contents).rstrip('.')}."
        )
    return contents


def _grouped(files: Sequence[Path], progress: bool) -> tuple:
    """``(series UID -> instances, lines about damaged files)``; files without an image are in neither."""
    groups: dict = {}
    damaged = []
    for file in bar(files, "reading headers", "file", progress):
        try:
            instance = _instance(file)
        except UserError as error:
            damaged.append(str(error))
            continue
        if instance:
            groups.setdefault(instance.series, []).append(instance)
    return groups, damaged


def _instance(file: Path) -> _Instance | None:
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import UID

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        if "Rows" not in header:
            if "Image Storage" in header.file_meta.get("MediaStorageSOPClassUID", UID("")).name:
                raise UserError(f"{file} is truncated or damaged. Copy the series again.")
            return None  # a DICOMDIR, a report, a structure set
        return _read(header, file)
    except UserError:
        raise
    except InvalidDicomError:
        if file.suffix.lower() not in ("", ".dcm", ".ima", ".dicom") or is_companion(file):
            return None
        raise UserError(f"{file} is no DICOM file though it is called like one. Copy the series again, or remove it.") from None
    except Exception as error:  # pydicom raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"{file} cannot be read as DICOM ({type(error).__name__}: {reason}). Copy the series again.") from None


def _read(header: Any, file: Path) -> _Instance:
    series, uid = str(header.get("SeriesInstanceUID") or ""), str(header.get("SOPInstanceUID") or "")
    if not re.fullmatch(r"[0-9][0-9.]{0,63}", series) or not uid:
        raise UserError(f"{file} has no SeriesInstanceUID or SOPInstanceUID, so that nothing can refer to it. Export it again.")
    return _Instance(
        file,
        uid,
        series,
        str(header.get("SeriesNumber") or ""),
        str(header.get("SeriesDescription") or ""),
        str(header.get("Modality") or ""),
        "LOCALIZER" in (header.get("ImageType") or ()),
        tuple(float(i) for i in header.get("ImagePositionPatient") or ()),
    )


def _chosen(groups: dict, wanted: str | None, damaged: Sequence[str]) -> Contents:
    scans, left_out, notes = [], [], []
    for series, instances in groups.items():
        first = instances[0]
        if first.modality in _DERIVED:
            left_out.append(f"{series} ({first.words}): no scan")
        elif wanted and first.modality != wanted:
            left_out.append(f"{series} ({first.words}): the model takes {wanted}")
        elif all(i.is_localizer for i in instances):
            left_out.append(f"{series} ({first.words}): a localizer")
        else:
            files, copies = _without_copies(instances)
            scans.append(Scan(series + ENDING, tuple(files), is_dicom=True))
            if copies:
                notes.append(f"{series}: {copies} files are copies of others (the same SOPInstanceUID) and are not read")
    return Contents(tuple(scans), tuple(left_out), tuple(damaged), tuple(notes))


def _without_copies(instances: Sequence[_Instance]) -> tuple:
    """``(files, number of copies left out)``. Instances that differ in position are none, whatever their UIDs say."""
    first: dict = {}
    for i in instances:
        first.setdefault((i.uid, i.position), i.file)
    return list(first.values()), len(instances) - len(first)


def _why(files: Sequence[Path], contents: Contents) -> str:
    if contents.damaged:
        return f"{len(contents.damaged)} files are damaged, the first: {contents.damaged[0]}"
    if not contents.left_out:
        return f"none of its {len(files)} files is a DICOM image"
    kinds = Counter(i.partition("(")[2].partition(",")[0] for i in contents.left_out)
    return "it has " + ", ".join(f"{n} of {kind}" for kind, n in kinds.items()) + f"; the first: {contents.left_out[0]}"
