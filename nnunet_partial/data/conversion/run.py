"""A whole conversion: find the cases, convert them on all cores, publish the dataset when it is complete.

A new dataset grows in a hidden folder ``.converting-DatasetNNN_NAME`` of nnUNet_raw and gets its name in one step. A
conversion that was killed continues there. An existing dataset is brought up to date in place: labels are replaced one
by one, each in one step, and dataset.json comes last.
"""

import argparse
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_partial import __version__, labels, paths
from nnunet_partial.bars import Bar
from nnunet_partial.data.conversion.cases import Case, MaskFiles, Skip
from nnunet_partial.data.conversion.dicom import UNSCALED_CT
from nnunet_partial.data.conversion.finished import RECORD, FinishedCases, fingerprint
from nnunet_partial.data.conversion.organs import OrganMap, choose_organs
from nnunet_partial.data.conversion.source import SourceFolder, natural_key
from nnunet_partial.data.conversion.voxels import OutputError
from nnunet_partial.data.conversion.worker import CaseToConvert, Converted, convert_case
from nnunet_partial.data.parallel import default_processes, in_processes
from nnunet_partial.errors import UserError
from nnunet_partial.files import END_OF_A_PROCESS, read_json, replace_folder, restore_folder, try_lock, write_json

LOW_HU = -50  # a CT scan has voxels below it
READER = "SimpleITKIOWithReorient"  # brings all cases to the same axes, whatever order their files store them in


class Unfinished(UserError):
    """The conversion stopped, and what is finished stays for the next run."""


@dataclass(frozen=True)
class Download:
    """What a converter finds in SRC.

    ``structures``: name -> label values of the download. ``cases``: every :class:`Case` and :class:`Skip`.
    ``default``: classes without ``--organs``, all structures by default. ``ignored``: label values that become
    nnU-Net's ignore label. ``release``: which release of the dataset it is, and how that is known, for people.
    ``expected``: names of files that would have been taken, for people. Where the user describes the data, and a release
    does not: ``label_option`` names label values, ``hounsfield`` says that nobody has said what the grey values are, so that
    they must look like Hounsfield units, ``all_shown`` that a class which no label shows is an error.
    """

    structures: Mapping[str, tuple]
    cases: Iterable
    default: Sequence[str] = ()
    channels: Sequence[str] = ("CT",)
    ignored: frozenset = frozenset()
    reader: str = READER
    ending: str = ".nii.gz"
    files: Mapping[str, object] = field(default_factory=dict)  # further JSON files: name -> content
    release: str = ""
    expected: str = ""
    label_option: str = ""
    hounsfield: bool = False
    all_shown: bool = False


@dataclass(frozen=True)
class Converter:
    """A dataset that can be converted: ``read(source, options)`` finds its cases.

    ``names_are_guessed``: its cases are found by what a user says of names, not by those of a release, so that a missing
    file is likely a mistake of the command; of a release it is a download that is not complete.
    """

    name: str
    dataset_name: str
    description: str | None
    read: Callable[[SourceFolder, argparse.Namespace], Download]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    names_are_guessed: bool = False


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    folder: Path
    organs: OrganMap
    converted: Mapping[str, Converted]
    skipped: Mapping[str, str]
    unchanged: tuple
    left_out: frozenset = frozenset()  # those skipped because the download lacks a file or labels of them, or on purpose
    preprocessed: bool = False  # nnU-Net has preprocessed an earlier state of this dataset
    release: str = ""

    @property
    def warning(self) -> str:
        """The last line of a conversion that kept fewer cases than it found, or nothing."""
        found = len(self.converted) + len(self.skipped)
        return (
            f"ATTENTION: {len(self.skipped)} of {found} cases are NOT in {self.folder.name}, for the reasons above. Mend them and "
            "run the same command again, or leave them out with --skip-bad"
            if self.skipped
            else ""
        )

    @property
    def lost(self) -> set:
        """Cases that are there and could not be converted; of cases found by a user's patterns all that are not there."""
        return set(self.skipped) - self.left_out

    def lines(self) -> list:
        """The summary for people."""
        how = [h for i in self.converted.values() for h in i.how]
        labelled = sum(bool(i.annotated) for i in self.converted.values())
        lines = [
            f"{self.folder}: {len(self.converted)} cases, {labelled} labelled, {len(self.skipped)} skipped; "
            f"{'classes ' + ', '.join(self.organs.classes) if self.organs.classes else 'no classes'}",
            f"images: {', '.join(f'{how.count(k)} {k}' for k in dict.fromkeys(how))}",
        ]
        if self.release:
            lines.append(f"release: {self.release}")
        if self.unchanged:
            lines.append(f"{len(self.unchanged)} cases were finished before and have not changed")
        if self.preprocessed and len(self.unchanged) < len(self.converted):
            lines.append("nnUNet_preprocessed holds an earlier state of this dataset: preprocess it again")
        notes = _grouped((note, case.case) for case in self.converted.values() for note in case.notes)
        reasons = _grouped((reason, name) for name, reason in self.skipped.items())
        lines += [f"note: {note}: {cases}" for note, cases in notes.items()]
        return lines + [f"skipped: {cases}: {reason}" for reason, cases in reasons.items()]


def _grouped(pairs: Iterable, most: int = 12) -> dict:
    """``{text: names that share it}``, long lists shortened."""
    groups: dict = {}
    for text, name in pairs:
        groups.setdefault(text, []).append(name)
    return {k: ", ".join(v[:most]) + (f" and {len(v) - most} more" if len(v) > most else "") for k, v in groups.items()}


@dataclass(frozen=True)
class Survey:
    """What a conversion would write, from names and headers of the files: no voxel is read, nothing is written.

    ``folder`` of the dataset, there or not; ``cases``: those that can be converted; ``skipped``: name -> why not,
    those ``left_out`` because the download lacks a file or labels of them, or on purpose. ``settings``: what the dataset depends on beside the files.
    """

    folder: Path
    download: Download
    organs: OrganMap
    cases: Sequence[Case]
    skipped: Mapping[str, str]
    left_out: frozenset
    settings: Mapping[str, object]


def survey(converter: Converter, source: SourceFolder, options: argparse.Namespace) -> Survey:
    """Find the cases of a download. Raises :class:`UserError` for options and folders of which no dataset can be made."""
    labels.check_source_name(options.source_name or converter.name)
    final = dataset_folder(options.dataset_id, options.name or converter.dataset_name)
    source.require_unpacked()
    download = converter.read(source, options)
    download = replace(download, cases=tuple(download.cases), expected=download.expected or _expected(converter))
    organs = _organs(options, download)
    cases, skipped = _usable_cases(download.cases, organs, source, options)
    left_out = frozenset() if converter.names_are_guessed else _left_out(download.cases, organs, options)
    settings = {
        "converter": converter.name,
        "source_name": options.source_name or converter.name,
        "organs": {k: list(v) for k, v in zip(organs.classes, organs.values)},
        "ignored": sorted(organs.ignored),
        "channels": list(download.channels),
        "copy_images": options.copy_images,
        "resample_sheared": options.resample_sheared,
    }
    return Survey(final, download, organs, cases, skipped, left_out, settings)


def require_possible(found: Survey, source: SourceFolder, strict: bool = False, written: bool = False) -> None:
    """Raise :class:`UserError` for a survey of which no dataset could come, or, unless it is known to be ``written`` by just
    this conversion, a dataset of this name is of other settings."""
    _require_cases([i.name for i in found.cases], found.skipped, found.download, source)
    _require_none_skipped(found.skipped, strict)
    if found.folder.exists() and not written:
        _check_same_settings(found.folder, found.settings)


def convert(converter: Converter, source: SourceFolder, options: argparse.Namespace) -> Report:
    """Convert a download into the nnU-Net raw dataset ``options.dataset_id``. Raises :class:`UserError`."""
    found = survey(converter, source, options)
    final, download, organs, cases, settings = found.folder, found.download, found.organs, found.cases, found.settings
    skipped = dict(found.skipped)
    with _working_folder(final, settings, options.overwrite) as folder:
        _check_none_is_lost(final, folder, [case.name for case in cases], skipped)
        so_far = FinishedCases(folder, settings)
        prints = {case.name: fingerprint(case, settings) for case in cases}
        unchanged = tuple(c.name for c in cases if so_far.finished(c.name, prints[c.name]))
        jobs = [
            CaseToConvert(c, organs, folder, download.ending, options.copy_images, options.unlabelled, options.resample_sheared)
            for c in cases
            if c.name not in unchanged
        ]
        for result in _run(jobs, options.processes, converter.name):
            if result.skipped is None:
                if download.hounsfield:
                    _check_hounsfield(result)
                so_far.add(result.case, _record(result, prints[result.case], folder))
            else:
                skipped[result.case] = result.skipped
        names = sorted((c.name for c in cases if c.name not in skipped), key=natural_key)
        _publish(folder, final, so_far, names, download, organs, skipped, options, source)
    converted = {i: _from_record(i, so_far.cases[i]) for i in names}
    preprocessed = bool(paths.dataset_folders(options.dataset_id, "nnUNet_preprocessed"))
    return Report(final, organs, converted, skipped, unchanged, found.left_out, preprocessed, download.release)


def _expected(converter: Converter) -> str:
    """The names that a converter looks for, as its description begins to tell them."""
    told = re.search(r"Download: (.*?)(?:\. |\.?\n\n|\.?$)", converter.description or "", re.DOTALL)
    names = f"expected are {told[1]}; " if told else ""
    return f"{names}nnunet_partial convert {converter.name} --help says more"


def _organs(options: argparse.Namespace, download: Download) -> OrganMap:
    if not download.structures:  # images alone
        return OrganMap((), (), frozenset())
    default = download.default or tuple(download.structures)
    organs = choose_organs(options.organs, download.structures, default, download.ignored)
    return replace(organs, option=download.label_option)


def _check_hounsfield(case: Converted) -> None:
    """Air and fat lie below -50 HU and fill part of every CT scan; grey values of MR, and of CT that has lost its rescale,
    begin at 0, and normalised ones span a few units."""
    low, high = case.range
    if low > LOW_HU and UNSCALED_CT not in case.notes:  # a header that says CT answers the question; the note says the rest
        raise UserError(
            f"{case.case}: its values, {low:g} to {high:g}, are no Hounsfield units, and nnU-Net would clip and scale them as "
            "such. Name what the image shows: --channels MR (any name but CT), or --channels CT if it is CT all the same."
        )


def dataset_folder(dataset_id: int, name: str) -> Path:
    """``nnUNet_raw/DatasetNNN_NAME``; the id must not belong to a dataset of another name."""
    if not 0 < dataset_id < 1000 or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(
            f"Dataset{dataset_id:03d}_{name} is not a name of a dataset: ids are 1 to 999, names of letters, digits, - and _."
        )
    folder = paths.root("nnUNet_raw") / f"Dataset{dataset_id:03d}_{name}"
    others = [i for i in paths.dataset_folders(dataset_id) if i.name != folder.name]
    if others:
        raise UserError(
            f"dataset id {dataset_id:03d} belongs to {others[0]}. Choose another --dataset-id, or --name "
            f"{others[0].name.partition('_')[2]}."
        )
    return folder


def _usable_cases(found: Iterable, organs: OrganMap, source: SourceFolder, options) -> tuple:
    """``(cases, skipped)``; a case whose files cannot be read safely is skipped, two cases of one name are an error."""
    cases, skipped = {}, {}
    for item in found:
        if isinstance(item, Skip):
            skipped[item.name] = item.reason.rstrip(".")
            continue
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", item.name) or "__" in item.name:
            raise UserError(
                f"{item.files[0]}: {item.name!r} is not usable as the name of a case: letters, digits, '.', '-', '_'."
            )
        if item.name in cases:
            raise UserError(f"{item.name} is there twice: {cases[item.name].files[0]} and {item.files[0]}. Remove one.")
        cases[item.name] = _as_needed(item, organs)
    for name, case in list(cases.items()):
        problem = _problem(case, source, options)
        if problem:
            skipped[name] = problem.rstrip(".")
            del cases[name]
    return sorted(cases.values(), key=lambda c: natural_key(c.name)), skipped


def _left_out(found: Iterable, organs: OrganMap, options) -> frozenset:
    """Names of the cases that the download does not have whole, and, unless asked for, of those that it has no labels of."""
    return frozenset(
        i.name for i in found if isinstance(i, Skip) or not options.unlabelled and _as_needed(i, organs).label is None
    )


def _as_needed(case: Case, organs: OrganMap) -> Case:
    """The case with those of its label files that the chosen classes need; unlabelled if it annotates none of them."""
    if case.label is not None and not case.classes(organs):
        return replace(case, label=None)
    return replace(case, label=case.label.restricted(organs)) if isinstance(case.label, MaskFiles) else case


def _problem(case: Case, source: SourceFolder, options) -> str | None:
    if case.label is None and not options.unlabelled:
        return "it has no label of the classes; --unlabelled includes such cases"
    try:
        for path in case.files:
            source.check(path)
            if os.path.expandvars(path) != os.fspath(path):
                raise UserError(f"{path} contains '$' followed by the name of a variable, which nnU-Net would replace; rename it")
    except UserError as error:
        return str(error)
    return None


@contextmanager
def _working_folder(final: Path, settings: Mapping, overwrite: bool) -> Iterator[Path]:
    """The folder to write into, locked. A new dataset that fails is removed; a killed one stays for the next run."""
    staging = final.with_name(f".converting-{final.name}")
    with _lock(final):
        restore_folder(final)
        if final.exists() and not overwrite:
            _check_same_settings(final, settings)
        folder = final if final.exists() and not overwrite else staging
        for part in ("labelsTr", "imagesTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob(".tmp-*"):
            leftover.unlink()
        try:
            yield folder
        except Unfinished:
            raise
        except (UserError, OutputError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise UserError(str(error)) from None


def _check_same_settings(final: Path, settings: Mapping) -> None:
    if not (final / RECORD).is_file():
        raise UserError(
            f"{final} exists and was not written by this command. Choose another --dataset-id or --name, "
            f"or replace it with --overwrite."
        )
    previous = read_json(final / RECORD, "Replace the dataset with --overwrite.")["settings"]
    for key, value in settings.items():
        if previous.get(key, False) != value:  # what an older version did not know was off
            raise UserError(
                f"{final} exists with other settings: {key} {previous.get(key, False)}, now {value}. Choose "
                f"another --dataset-id, or replace it with --overwrite."
            )


@contextmanager
def _lock(final: Path) -> Iterator[None]:
    path = final.with_name(f".converting-{final.name}.lock")
    try:
        handle = try_lock(path, END_OF_A_PROCESS)
    except OSError as error:
        raise UserError(f"{final.parent} cannot be written: {error.strerror}. Set nnUNet_raw to a folder of yours.") from None
    if handle is None:
        raise UserError(f"{final} is being converted by another process. Wait for it to finish.")
    with handle:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _run(jobs: Sequence[CaseToConvert], processes: int | None, name: str) -> Iterator[Converted]:
    """Results as they come. Processes are spawned, and end when this one does, however it ends."""
    processes = min(default_processes() if processes is None else processes, len(jobs))
    with Bar(len(jobs), f"converting {name}") as bar:
        for result in _results(jobs, processes):
            bar.update()
            yield result


def _results(jobs: Sequence[CaseToConvert], processes: int) -> Iterator[Converted]:
    if processes < 2:
        yield from map(convert_case, jobs)
        return
    killed = Unfinished(
        "a process was killed, most likely because memory ran out. Run the command again with --processes "
        f"{max(1, processes // 2)}; it continues where it was."
    )
    yield from in_processes(convert_case, jobs, processes, killed)


def _record(result: Converted, print_: str, folder: Path) -> dict:
    own = [i for i in (*result.images, result.label) if i is not None and not os.path.isabs(i)]
    return {
        "fingerprint": print_,
        "images": list(result.images),
        "label": result.label,
        "annotated": list(result.annotated),
        "how": list(result.how),
        "range": list(result.range),
        "notes": list(result.notes),
        "patient": result.patient,
        "shown": list(result.shown),
        "written": {i: (folder / i).stat().st_size for i in own},
    }


def _from_record(case: str, record: Mapping) -> Converted:
    return Converted(
        case,
        tuple(record["images"]),
        record["label"],
        tuple(record["annotated"]),
        tuple(record["how"]),
        tuple(record["range"]),
        tuple(record["notes"]),
        patient=record["patient"],
    )


def _publish(folder, final, so_far, names, download, organs, skipped, options, source) -> None:
    _require_cases(names, skipped, download, source)
    _require_none_skipped(skipped, options.strict)
    _check_none_is_lost(final, folder, names, skipped)
    if download.all_shown:
        _check_all_shown(organs, [so_far.cases[i] for i in names])
    name = so_far.settings["source_name"]
    records = {i: so_far.cases[i] for i in names}
    annotations = {k: labels.CaseAnnotation(name, tuple(v["annotated"]), v["patient"]) for k, v in records.items()}
    references = {i: {"images": so_far.cases[i]["images"], "label": so_far.cases[i]["label"]} for i in names}
    content = {
        "name": final.name,
        "channel_names": {str(i): c for i, c in enumerate(download.channels)},
        "labels": organs.labels(),
        "numTraining": len(names),
        "file_ending": download.ending,
        "overwrite_image_reader_writer": download.reader,
        "dataset": references,
        labels.KEY: labels.Annotations(organs.classes, annotations).to_json(),
        labels.PROVENANCE_KEY: {
            "written_by": f"nnunet_partial {__version__} convert",
            "converter": so_far.settings["converter"],
            "release": download.release,
        },
    }
    for file, other in download.files.items():
        write_json(other, folder / file)
    write_json(content, folder / "dataset.json")
    _remove_strangers(folder, {f for i in names for f in so_far.cases[i]["written"]})
    so_far.close(names, source=str(source.root), release=download.release, skipped=skipped)
    if folder != final:
        replace_folder(folder, final)


def _require_cases(names: Sequence[str], skipped: Mapping[str, str], download: Download, source: SourceFolder) -> None:
    if not names:
        reasons = _grouped(((reason, name) for name, reason in skipped.items()), most=3)
        reason = "; ".join(f"{cases}: {reason}" for reason, cases in reasons.items())
        there = ", ".join(source.paths()[:3]) or "no file"
        raise UserError(
            f"no case could be converted from {source.given}: "
            f"{reason or f'its files are not named as in the release ({there}, ...): {download.expected}'}"
        )


def _require_none_skipped(skipped: Mapping[str, str], strict: bool) -> None:
    if strict and skipped:
        raise UserError(
            f"{len(skipped)} cases would be skipped (--strict), the first: {next(iter(skipped))}: {next(iter(skipped.values()))}."
        )


def _check_none_is_lost(final: Path, folder: Path, names: Sequence[str], skipped: Mapping[str, str]) -> None:
    """A dataset that is there keeps its cases: with fewer, models of it could not be told from models of the new one."""
    if folder != final or not (final / RECORD).is_file():
        return
    lost = [i for i in read_json(final / RECORD)["cases"] if i not in names]
    if lost:
        reason = skipped.get(lost[0], "it is not found any more")
        raise UserError(
            f"{final} holds {len(lost)} cases that would go, the first: {lost[0]}: {reason}. Nothing is replaced. Mend them, "
            "choose another --dataset-id, or replace the dataset with --overwrite."
        )


def _check_all_shown(organs: OrganMap, records: Sequence[Mapping]) -> None:
    shown = {name for i in records for name in i.get("shown", organs.classes)}  # older records do not say
    absent = [i for i in organs.classes if i not in shown]
    if absent and any(i["annotated"] for i in records):
        raise UserError(
            f"{organs.option} names {', '.join(absent)}, which no label file shows; as a class that is annotated and absent "
            f"everywhere it would be taught as background. Leave it out, mend its value, or accept it with --allow-absent."
        )


def _remove_strangers(folder: Path, known: set) -> None:
    """Files of cases that are no longer in the source."""
    for part in ("labelsTr", "imagesTr"):
        for path in (folder / part).iterdir():
            if path.is_file() and f"{part}/{path.name}" not in known:
                path.unlink()
    if not any((folder / "imagesTr").iterdir()):
        (folder / "imagesTr").rmdir()
