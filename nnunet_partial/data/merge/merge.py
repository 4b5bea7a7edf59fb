"""Merge raw datasets that annotate different organs into one partially labelled raw dataset.

The result is an ordinary nnU-Net raw dataset: dataset.json refers to the images where they lie (nnU-Net's ``dataset``
key), the label files are written anew with the merged values, and the key ``nnunet_partial`` states what each case
annotates. Nothing appears under the final name before everything is written and checked.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import SimpleITK as sitk

from nnunet_partial import __version__, paths
from nnunet_partial.data import images
from nnunet_partial.data.fingerprint import NOT_FINITE, connected, fingerprint
from nnunet_partial.data.grids import read_label_on
from nnunet_partial.data.merge.granularity import check_granularity, words
from nnunet_partial.data.merge.patients import joined, known_patients
from nnunet_partial.data.merge.sources import MergedCase, Source, SourceSpec, some
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.data.presence import ShownClasses, far_from_source, sparse_sources
from nnunet_partial.data.raw import RawDataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import write_json
from nnunet_partial.labels import KEY, PROVENANCE_KEY, Annotations, CaseAnnotation, Union, members, settled, told_apart

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")
PICTURE_ENDINGS = (".png", ".bmp")
NIBABEL_ENDINGS = (".nii.gz", ".nii")
_REORIENTING = {i: i + "WithReorient" for i in ("SimpleITKIO", "NibabelIO")}
_TEMPORARY = ".merging-"


@dataclass(frozen=True)
class MergeResult:
    """``folder`` of the merged dataset, its ``annotations``, and ``warnings``: lines that a user should read."""

    folder: Path
    annotations: Annotations
    warnings: tuple


def merge_datasets(
    dataset_id: int,
    name: str,
    sources: Sequence[SourceSpec],
    classes: Sequence[str] | None = None,
    headers_only: bool = False,
    allow_absent: bool = False,
    processes: int | None = None,
    progress: bool = True,
    allow_parts: bool = False,
    patients: Mapping[str, str] | None = None,
    replace_not_finite: float | None = None,
    taught: Sequence[str] = (),
) -> MergeResult:
    """Write nnUNet_raw/Dataset``dataset_id``_``name`` from ``sources``.

    ``classes``: all classes in the order of their values 1 .. K; None: in the order in which the sources mention them.
    ``headers_only``: read the images' headers alone; neither truncated images, nor equal ones, nor NaN are noticed then.
    ``allow_absent``: whether a source may annotate a class that no label file of it holds.
    ``allow_parts``: whether sources may cut a structure differently (see :mod:`granularity`).
    ``patients``: case of the merged dataset -> patient, where neither source nor name tells it, or wrongly.
    ``replace_not_finite``: images with NaN or infinite voxels, else an error, are copied with this value in their place.
    ``taught``: classes that no source annotates by themselves, because a model knows them (pseudo labels, soft labels).
    Raises :class:`UserError` for input that collides or contradicts itself; nothing is left behind then.
    """
    if headers_only and replace_not_finite is not None:
        raise UserError("--replace-not-finite needs the images' voxels: leave --headers-only out.")
    folder = free_folder(dataset_id, name)
    loaded = _load_sources(sources)
    cases, content = _planned(loaded, classes, allow_parts, folder, taught)
    known = known_patients(loaded, patients or {})
    warnings = _split_class_warnings(loaded)
    annotations = Annotations.from_dataset_json(content, str(folder / "dataset.json"))
    with _temporary_folder(folder) as temporary:
        values = {**annotations.labels(), **{i: annotations.values_of(i)[0] for i in annotations.unions}}
        jobs = [
            _CaseToMerge(i, values, str(temporary), content["file_ending"], loaded[0].raw.is_ct, headers_only, replace_not_finite)
            for i in cases
        ]
        done = dict(zip((i.name for i in cases), map_cases(_merge_case, jobs, processes, "merging", progress)))
        warnings += _check_presence(cases, list(done.values()), values, allow_absent) + _far_cases(annotations, values, done)
        annotations, more = _with_patients(annotations, known, done)
        same_images = [i for i in connected({k: v.keys for k, v in done.items()}) if len(i) > 1]
        warnings += _same_image_warnings(same_images) + more + _use_copies(content, done)
        content[KEY] = annotations.to_json()
        content[PROVENANCE_KEY]["same_image"] = same_images
        _name_reader(content, {i.orientation for i in done.values()} - {""})
        write_json(content, temporary / "dataset.json")
    return MergeResult(folder, annotations, tuple(warnings))


def preview(
    folder: Path,
    sources: Sequence[SourceSpec],
    classes: Sequence[str] | None = None,
    allow_parts: bool = False,
    patients: Mapping[str, str] | None = None,
    raws: Mapping[str, RawDataset] = MappingProxyType({}),
    taught: Sequence[str] = (),
) -> dict:
    """dataset.json of the dataset that :func:`merge_datasets` would write to ``folder``, as far as it is known without
    reading an image.

    ``raws``: name of a source -> what its dataset will be, where that is not written yet. Raises :class:`UserError` for
    sources that collide or contradict each other.
    """
    loaded = _load_sources(sources, raws)
    content = _planned(loaded, classes, allow_parts, folder, taught)[1]
    known_patients(loaded, patients or {})
    Annotations.from_dataset_json(content, str(folder / "dataset.json"))
    return content


def _planned(
    loaded: Sequence[Source], classes: Sequence[str] | None, allow_parts: bool, folder: Path, taught: Sequence[str]
) -> tuple:
    """``(cases, dataset.json)`` of the merged dataset as far as it is known before images are read."""
    merged_classes = _merged_classes(loaded, classes, taught)
    if not allow_parts:
        check_granularity(loaded)
    cases = [_ordered(i, merged_classes) for i in _unique_cases(loaded)]
    _check_told_apart(cases, [i for i in merged_classes if i not in taught])
    content = _dataset_json(loaded, merged_classes, cases, folder)
    if taught:
        content[PROVENANCE_KEY]["taught"] = list(taught)
    return cases, content


def _with_patients(annotations: Annotations, known: Mapping[str, str], done: Mapping[str, "_Done"]) -> tuple:
    patients, warnings = joined(known, {k: v.keys for k, v in done.items()})
    cases = {k: replace(v, patient=patients.get(k)) for k, v in (annotations.cases or {}).items()}
    return Annotations(annotations.classes, cases, annotations.ignore_label, annotations.file), warnings


def _name_reader(content: dict, orientations: set) -> None:
    """Files whose axes differ in order need the reader that brings them together; the plain one reads them as they are."""
    reader = content.get("overwrite_image_reader_writer", "SimpleITKIO")
    if len(orientations) > 1 and reader in _REORIENTING:
        content["overwrite_image_reader_writer"] = _REORIENTING[reader]


def reader_and_ending(loaded: Sequence[Source]) -> tuple:
    """``(file ending of the label files, nnU-Net reader that must be named in dataset.json or None)``."""
    endings = {i.raw.file_ending: i for i in loaded}
    for ending, source in endings.items():
        if ending not in VOLUME_ENDINGS + PICTURE_ENDINGS:
            raise UserError(
                f"{source.raw.json_file}: file ending {ending!r} cannot be merged. Convert source "
                f"{source.spec.name} to one of {', '.join(VOLUME_ENDINGS + PICTURE_ENDINGS)}."
            )
    if len({ending in PICTURE_ENDINGS for ending in endings}) > 1:
        raise UserError(f"pictures and volumes cannot be merged: the sources have the file endings {', '.join(endings)}.")
    reader = _explicit_reader(loaded)
    if len(endings) == 1:
        return next(iter(endings)), reader
    if any(i in PICTURE_ENDINGS for i in endings):
        return ".png", reader
    # nnU-Net would choose a reader for .nii.gz by the first image alone
    return ".nii.gz", reader or "SimpleITKIO"


def _explicit_reader(loaded: Sequence[Source]) -> str | None:
    readers = {i.raw.content.get("overwrite_image_reader_writer", "None"): i for i in loaded}
    readers.pop("None", None)
    for plain, reorienting in _REORIENTING.items():
        if reorienting in readers:  # reads whatever the plain one reads
            readers.pop(plain, None)
    if len(readers) > 1:
        (first, a), (second, b) = list(readers.items())[:2]
        raise UserError(
            f"{a.raw.json_file} and {b.raw.json_file} demand different readers "
            f"(overwrite_image_reader_writer {first} and {second}). Make them equal; one dataset has one "
            "reader."
        )
    for reader, source in readers.items():
        unreadable = [i for i in loaded if reader.startswith("Nibabel") and i.raw.file_ending not in NIBABEL_ENDINGS]
        if unreadable:
            raise UserError(
                f"{source.raw.json_file} demands the reader {reader}, which cannot read the "
                f"{unreadable[0].raw.file_ending} files of source {unreadable[0].spec.name}. Remove its "
                "overwrite_image_reader_writer or convert them."
            )
        return reader
    return None


@dataclass(frozen=True)
class _CaseToMerge:
    case: MergedCase
    values: Mapping[str, int]
    folder: str
    ending: str
    is_ct: bool
    headers_only: bool
    replace_not_finite: float | None


@dataclass(frozen=True)
class _Done:
    """``values`` in the label file; ``keys`` that identify the image; ``copies``: number of a channel -> its file, below
    the merged dataset, for images that had to be written anew."""

    values: tuple
    keys: tuple
    orientation: str
    copies: Mapping[int, str]


def _merge_case(job: _CaseToMerge) -> _Done:
    """Check one case, write its label file; return the values in it and what identifies its image."""
    case, files = job.case, job.case.raw.images
    first = images.read_geometry(files[0])
    geometry = first.spatial()
    for channel in files[1:]:
        images.require_same_geometry(geometry, files[0], images.read_geometry(channel).spatial(), channel)
    label = _merged_label(case, job.values, geometry)
    images.write_label(label, geometry, os.path.join(job.folder, "labelsTr", case.name + job.ending))
    keys, copies = tuple(("file", os.path.realpath(i)) for i in files), {}
    if not job.headers_only:
        found = fingerprint(files, job.is_ct)
        keys, copies = found.keys, _finite_copies(job) if found.not_finite else {}
    return _Done(images.present_values(label), keys, first.orientation, copies)


def _finite_copies(job: _CaseToMerge) -> dict:
    """Copies of those images of a case that hold NaN or infinite voxels, with the value that was asked for instead."""
    copies = {}
    for number, file in enumerate(job.case.raw.images):
        image = images.read_image(file)
        array = sitk.GetArrayFromImage(image)
        wrong = images.not_finite(file).reshape(array.shape)
        if wrong.any() and job.replace_not_finite is None:
            raise UserError(
                f"image {file} of case {job.case.name} holds {np.count_nonzero(wrong)} voxels that are NaN or infinite: "
                f"{NOT_FINITE}. Mend the file, leave the case out with --cases, or add "
                "--replace-not-finite VALUE (-1024 is air in CT), which copies such images."
            )
        if wrong.any():
            array[wrong] = job.replace_not_finite
            mended = sitk.GetImageFromArray(array, isVector=image.GetNumberOfComponentsPerPixel() > 1)
            mended.CopyInformation(image)
            copies[number] = f"imagesTr/{job.case.name}_{number:04d}{job.ending}"
            images.write_image(mended, os.path.join(job.folder, copies[number]))
    return copies


def _use_copies(content: dict, done: Mapping[str, _Done]) -> list:
    copied = {case: i.copies for case, i in done.items() if i.copies}
    for case, copies in copied.items():
        for number, file in copies.items():
            content["dataset"][case]["images"][number] = file
    if not copied:
        return []
    return [f"{len(copied)} cases have images with NaN or infinite voxels, copied with these replaced: {some(copied)}."]


def _merged_label(case: MergedCase, values: Mapping[str, int], geometry: images.Geometry) -> np.ndarray:
    dtype = np.uint8 if max(values.values()) < 256 else np.uint16
    if not case.targets:
        return np.zeros(geometry.shape_zyx, dtype)
    assert case.raw.label is not None  # a case with targets is of a labelled source
    label = read_label_on(case.raw.label, geometry, case.raw.images[0])
    present = images.present_values(label)
    unknown = [i for i in present if i not in case.targets]
    if unknown:
        raise UserError(
            f"label file {case.raw.label} holds the value {unknown[0]}, but dataset.json lets this case "
            f"have only {', '.join(map(str, sorted(case.targets)))}. Correct the file, or declare the "
            "label."
        )
    table = np.zeros(max(present, default=0) + 1, dtype)
    for value in present:
        table[value] = values[case.targets[value]]
    return table[label]


def free_folder(dataset_id: int, name: str) -> Path:
    """``nnUNet_raw/DatasetNNN_NAME``. Raises :class:`UserError` if nnU-Net could not use the name, or the id is taken."""
    if not 1 <= dataset_id <= 999:
        raise UserError(f"--dataset-id {dataset_id}: nnU-Net's dataset ids are 1 to 999.")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*", name):
        raise UserError(
            f"--name {name!r}: letters, digits, '.', '-' and single '_' are allowed, because it becomes part of folder names."
        )
    taken = paths.dataset_folders(dataset_id)
    if taken:
        raise UserError(f"dataset id {dataset_id} is taken by {taken[0]}. Choose another --dataset-id, or remove that folder.")
    return paths.root("nnUNet_raw") / f"Dataset{dataset_id:03d}_{name}"


def _load_sources(specs: Sequence[SourceSpec], raws: Mapping[str, RawDataset] = MappingProxyType({})) -> list:
    if not specs:
        raise UserError("no source given. Name at least one: --source NAME=ID:CLASS")
    names = [i.name for i in specs]
    twice = [i for i in names if names.count(i) > 1]
    if twice:
        raise UserError(f"source name {twice[0]!r} is given twice. Every source needs a name of its own.")
    loaded = [Source(i, raw=raws.get(i.name)) for i in specs]
    regions = {name: union for i in loaded for name, union in i.regions.items()}
    if regions:  # a class of another source may be the whole of them
        loaded = [Source(i, regions, raws.get(i.name)) for i in specs]
    for other in loaded[1:]:
        _check_same_channels(loaded[0], other)
    return loaded


def _check_same_channels(first: Source, other: Source) -> None:
    # nnU-Net chooses the normalisation by the name and ignores case
    a, b = first.raw.channel_names, other.raw.channel_names
    if [i.casefold() for i in a] != [i.casefold() for i in b]:
        raise UserError(
            f"channel_names differ: {first.raw.json_file} has {', '.join(a)}, {other.raw.json_file} has "
            f"{', '.join(b)}. One dataset has one set of channels; correct the file that is wrong, or "
            "leave that source out."
        )


def _merged_classes(loaded: Sequence[Source], order: Sequence[str] | None, taught: Sequence[str] = ()) -> tuple:
    _check_taught(loaded, taught)
    annotated = (name for source in loaded for item in source.classes for name in members(item))
    mentioned = tuple(dict.fromkeys((*annotated, *taught)))
    if not mentioned:
        raise UserError("no source annotates anything. Give at least one dataset with labels as --source.")
    for name in mentioned:
        _check_class_name(name)
    by_key: dict = {}
    for name in mentioned:
        other = by_key.setdefault(words(name) or name, name)
        if other != name:
            raise UserError(
                f"the sources have the classes {other!r} and {name!r}, which look like the same organ. "
                f"Give them one name with --map SOURCE:{name}={other!r}"
            )
    if order is None:
        return mentioned
    if sorted(order) != sorted(mentioned):
        wrong = sorted(set(order) ^ set(mentioned)) or [i for i in order if list(order).count(i) > 1]
        raise UserError(
            f"--classes {','.join(order)} must hold every class of the sources once; {wrong[0]!r} is "
            f"unknown, missing or repeated. {did_you_mean(wrong[0], mentioned)}Classes of the sources: {','.join(mentioned)}"
        )
    return tuple(order)


def _check_taught(loaded: Sequence[Source], taught: Sequence[str]) -> None:
    for name in taught:
        by_themselves = next((i.spec.name for i in loaded if name in i.classes), None)
        if by_themselves is not None:
            raise UserError(f"--taught {name}: source {by_themselves} annotates it. Leave it out, or take it from that source.")
        if list(taught).count(name) > 1:
            raise UserError(f"--taught names {name} twice. Name it once.")


def _ordered(case: MergedCase, classes: Sequence[str]) -> MergedCase:
    """The case with the members of its unions in the order of ``classes``."""
    made: dict[str, Union] = {i: Union(sorted(i.members, key=classes.index)) for i in case.annotated if isinstance(i, Union)}
    if not made:
        return case
    annotated = frozenset(made.get(i, i) for i in case.annotated)
    return replace(case, annotated=annotated, targets={k: made.get(v, v) for k, v in case.targets.items()})


def _check_told_apart(cases: Sequence[MergedCase], classes: Sequence[str]) -> None:
    """Classes that every source that has them has in the same union cannot be learned one by one."""
    items = dict.fromkeys(item for case in cases for item in case.annotated)
    learned = told_apart(items)
    missing = [i for i in classes if i not in learned]
    if missing:
        union = next(i for i in items if missing[0] in members(i))
        raise UserError(
            f"no source tells {missing[0]!r} apart from the rest of {str(union)!r}, so nothing could teach it. Make it one class: "
            f"--map SOURCE:LABEL={'_or_'.join(members(union))}, add a source that annotates its parts, or, if a model knows "
            f"them, --taught {','.join(i for i in members(union) if i in missing)}"
        )


def _check_class_name(name: str) -> None:
    """Commands separate names by commas, and write NAME=VALUE, SOURCE:NAME and A+B."""
    wrong = next((i for i in ",=+:*" if i in name), None)
    if wrong or name != name.strip() or not name:
        what = f"holds {wrong!r}" if wrong else "is empty, or begins or ends with a space"
        raise UserError(
            f"class {name!r} {what}, so that no command could name it. Rename that label in the source's dataset.json."
        )


def _unique_cases(loaded: Sequence[Source]) -> list:
    cases: dict = {}
    owners: dict = {}
    for source in loaded:
        for case in source.cases:
            owner = owners.setdefault(case.source, source.spec.name)
            if owner != source.spec.name:
                raise UserError(
                    f"source {source.spec.name} brings cases of a source named {case.source}, which is "
                    f"also the name of another source. Rename source {owner}."
                )
            if case.name in cases:
                raise UserError(
                    f"two cases would be called {case.name}: {cases[case.name].raw.images[0]} and "
                    f"{case.raw.images[0]}. Choose source names that do not run into case names."
                )
            cases[case.name] = case
    return list(cases.values())


def _dataset_json(loaded: Sequence[Source], classes: Sequence[str], cases: Sequence[MergedCase], folder: Path) -> dict:
    ignore_label = len(classes) + 1 if any(i.has_ignore_label for i in loaded) else None
    contract = {i.name: CaseAnnotation(i.source, settled(i.annotated, classes)) for i in cases}
    annotations = Annotations(classes, contract, ignore_label)
    ending, reader = reader_and_ending(loaded)
    return {
        "name": folder.name,
        "description": f"Partially labelled, merged from {', '.join(i.raw.folder.name for i in loaded)}",
        "channel_names": {str(i): name for i, name in enumerate(loaded[0].raw.channel_names)},
        "labels": annotations.labels(),
        "numTraining": len(cases),
        "file_ending": ending,
        **({} if reader is None else {"overwrite_image_reader_writer": reader}),
        "dataset": {i.name: {"images": image_references(i, folder.parent), "label": f"labelsTr/{i.name}{ending}"} for i in cases},
        KEY: annotations.to_json(),
        PROVENANCE_KEY: {
            "written_by": f"nnunet_partial {__version__} merge",
            "sources": {i.spec.name: _origin(i) for i in loaded},
        },
    }


def _origin(source: Source) -> dict:
    content = source.raw.content
    kept = {i: content[i] for i in ("reference", "licence", "license", "release", PROVENANCE_KEY) if i in content}
    return {"dataset": source.raw.folder.name, "cases": len(source.cases), "labels": dict(source.targets), **kept}


def image_references(case: MergedCase, raw_root: Path) -> list:
    """The images of a case as the merged dataset.json names them, so that it outlives a move of nnUNet_raw.

    Images below nnUNet_raw: relative to the merged dataset's folder (``../Dataset101_LiTS/...``). Elsewhere:
    absolute, or as the source says where that begins with an environment variable, which nnU-Net expands.
    """
    texts = case.raw.references or case.raw.images
    return [_reference(text, path, raw_root) for text, path in zip(texts, case.raw.images)]


def _reference(text: str, path: str, raw_root: Path) -> str:
    expanded = os.path.expandvars(text)
    if expanded != text and os.path.isabs(expanded):
        return text
    root = Path(os.path.abspath(raw_root))
    if Path(path).is_relative_to(root):
        return "../" + Path(path).relative_to(root).as_posix()
    return path


def _split_class_warnings(loaded: Sequence[Source]) -> list:
    return [
        f"source {source.spec.name}: {count} cases annotate only some of the labels that become {name!r}; they "
        "count as not annotating it."
        for source in loaded
        for name, count in source.split_classes().items()
    ]


def _check_presence(cases: Sequence[MergedCase], done: Sequence[_Done], values: Mapping[str, int], allow_absent: bool) -> list:
    """A class that a source annotates but never shows would be taught as background everywhere."""
    present, annotating = set(), {}
    for case, result in zip(cases, done):
        for name in case.annotated:
            annotating.setdefault((case.source, name), []).append(case)
            if values[name] in result.values:
                present.add((case.source, name))
    warnings = []
    for (source, name), those in sorted(annotating.items()):
        if (source, name) not in present:
            message = (
                f"source {source} annotates {str(name)!r}, but none of its {len(those)} label files "
                f"({those[0].raw.label}, ...) holds it: training would take all of it for background."
            )
            if not allow_absent:
                raise UserError(
                    f"{message} Leave {name!r} out of the source's classes (map its label to background), "
                    "or, if these scans really lack it, add --allow-absent"
                )
            warnings.append(message)
    return warnings


def _far_cases(annotations: Annotations, values: Mapping[str, int], done: Mapping[str, _Done]) -> list:
    """Per source: cases that show much less than the others, as the first of them is told."""
    shown = [
        ShownClasses(case, entry.source, entry.annotated, [i for i in entry.annotated if values[i] in done[case].values])
        for case, entry in (annotations.cases or {}).items()
    ]
    groups: dict = {}
    for case in far_from_source(shown):
        groups.setdefault(case.source, []).append(case)
    return [
        f"source {source}: {len(cases)} cases annotate less than they declare, it seems ({some(i.case for i in cases)}): "
        f"{cases[0].case} {cases[0].in_words()}"
        for source, cases in groups.items()
    ] + [i.in_words() for i in sparse_sources(shown)]


def _same_image_warnings(groups: Sequence[Sequence[str]]) -> list:
    if not groups:
        return []
    shown = "; ".join(" = ".join(i) for i in groups[:5]) + ("; ..." if len(groups) > 5 else "")
    return [
        f"{len(groups)} images belong to several cases: {shown}. They count as one patient, whom this package's splits keep "
        "together; splits made elsewhere must do so too, or images leak from training into validation."
    ]


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that becomes it when the block ends well, and is removed when it does not.

    What earlier, killed runs of this machine left is removed first. nnU-Net does not see the name.
    """
    temporary = folder.parent / f"{_TEMPORARY}{folder.name}-{socket.gethostname()}-{os.getpid()}"
    for leftover in folder.parent.glob(f"{_TEMPORARY}{folder.name}-*"):
        _remove_leftover(leftover)
    try:
        (temporary / "labelsTr").mkdir(parents=True)
        yield temporary
        if folder.exists():
            raise UserError(f"{folder} was made by someone else meanwhile. Choose another --dataset-id.")
        os.rename(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{temporary} cannot be written: {error.strerror or error}. Free some space there, or correct "
            "the permissions of nnUNet_raw."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftover(leftover: Path) -> None:
    name, _, process = leftover.name.rpartition("-")
    if not name.endswith("-" + socket.gethostname()) or not process.isdigit() or _is_running(int(process)):
        raise UserError(
            f"{leftover} belongs to another merge into this dataset. Wait until it ends; if it was killed, remove that folder."
        )
    shutil.rmtree(leftover)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()
