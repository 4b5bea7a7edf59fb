"""Label directories: labels in preprocessed space beside a preprocessed dataset, whose images are stored once.

::

    DIR/<case>_seg.b2nd       labels (1, *S), -1 outside the body as nnU-Net has it, shape of the preprocessed image; the value
                              after those of the classes where nobody vouches for a label, which no loss then looks at
    DIR/<case>_soft.b2nd      on request, probabilities (:mod:`nnunet_partial.data.preprocessed.soft_labels`)
    DIR/<case>.pkl            nnU-Net's properties of the case with fresh ``class_locations``
    DIR/records/<case>.json   what the case was made from and what came out; written last, so it marks the case as done
    DIR/provenance.json       which models, which checkpoints, when, and all records; written once every case is done

A case is done or not there: each file is written to a temporary name and moved, and the record is removed before the
labels of a case are replaced. Training reads a directory only once provenance.json is there. A folder whose subfolders
are label directories of different cases reads as one.
"""

import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial.errors import UserError
from nnunet_partial.files import END_OF_A_PROCESS, PathLike, atomic_path, read_json, try_lock, write_json
from nnunet_partial.labels import Annotations, check_case_names, check_file_name, items_from_json, settled
from nnunet_partial.outputs import are_same, stamp
from nnunet_partial.safe_read import load_pickle, open_array

PROVENANCE = "provenance.json"
LOCK = ".lock"
SOFT = "_soft.b2nd"
VERSION = 1


# ---- writing


@contextmanager
def writing(folder: PathLike) -> Iterator[None]:
    """Write cases inside this block: one process tree at a time, and without what a killed one left behind.

    The lock ends with the process that holds it, however it ends. Raises :class:`UserError` if another one writes.
    """
    folder = Path(folder)
    with _unwritable(folder):
        (folder / "records").mkdir(parents=True, exist_ok=True)
        handle = try_lock(folder / LOCK, END_OF_A_PROCESS)
    if handle is None:
        raise UserError(
            f"another process is writing the label directory {folder}. Wait for it to end, or choose another directory."
        )
    with handle:
        for leftover in (*folder.glob(".tmp-*"), *(folder / "records").glob(".tmp-*")):
            leftover.unlink()
        yield


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"label directory {folder} cannot be written: {error.strerror or error}. Choose another one.") from error


def write_case(
    folder: PathLike,
    case: str,
    seg: np.ndarray,
    properties: Mapping[str, Any],
    label_manager,
    patch_size: Sequence[int],
    record: Mapping[str, Any],
    soft: np.ndarray | None = None,
) -> None:
    """Write the labels of one case, ``seg`` (1, *S) int, and ``soft`` (channels, *S) uint8, then its properties, then its record.

    ``label_manager`` is nnU-Net's; ``patch_size`` decides how the files are cut into chunks. ``properties`` are not
    changed. Raises :class:`UserError` where nothing can be written.
    """
    folder = Path(folder)
    check_file_name(case, "case")
    discard_case(folder, case)
    _write_array(folder / f"{case}_seg.b2nd", seg, patch_size)
    if soft is None:
        (folder / f"{case}{SOFT}").unlink(missing_ok=True)  # of labels that are replaced
    else:
        _write_array(folder / f"{case}{SOFT}", soft, patch_size)
    with atomic_path(folder / f"{case}.pkl") as temporary, open(temporary, "wb") as handle:
        pickle.dump({**properties, "class_locations": class_locations(seg, label_manager)}, handle)
    write_json({**record, "outputs": {k: stamp(v) for k, v in _outputs(folder, case).items()}}, _record_file(folder, case))


def _write_array(file: Path, array: np.ndarray, patch_size: Sequence[int]) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    blocks, chunks = comp_blosc2_params(array.shape, tuple(patch_size), array.itemsize)
    with atomic_path(file) as temporary:
        # save_seg adds the ending itself
        nnUNetDatasetBlosc2.save_seg(np.ascontiguousarray(array), temporary[: -len(".b2nd")], chunks, blocks)


def _outputs(folder: Path, case: str) -> dict:
    files = {i: folder / (case + i) for i in ("_seg.b2nd", SOFT, ".pkl")}
    return {k: v for k, v in files.items() if k != SOFT or v.is_file()}


def is_written(folder: PathLike, case: str) -> bool:
    """Whether the files of a case are those that its record says."""
    return are_same(_outputs(Path(folder), case), (read_record(folder, case) or {}).get("outputs"))


def class_locations(seg: np.ndarray, label_manager) -> dict:
    """nnU-Net's sample of voxels of each class in ``seg`` (1, *S), as its preprocessing makes it."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    classes = list(label_manager.foreground_labels)
    if label_manager.has_ignore_label:
        classes.append([-1, *label_manager.all_labels])
    return DefaultPreprocessor._sample_foreground_locations(seg, classes)


def discard_case(folder: PathLike, case: str) -> None:
    """Mark a case, and with it the directory, as not done."""
    for file in (Path(folder) / PROVENANCE, _record_file(folder, case)):
        file.unlink(missing_ok=True)


def read_record(folder: PathLike, case: str) -> dict | None:
    """The record of a case that is done, else None."""
    file = _record_file(folder, case)
    return read_json(file, "Remove it; the case is then done again.") if file.is_file() else None


def finish(folder: PathLike, header: Mapping[str, Any], cases: Sequence[str]) -> Path:
    """Write provenance.json: ``header`` (dataset, data_identifier, classes, models, ...) and each case's record."""
    file = Path(folder) / PROVENANCE
    records = {i: {k: v for k, v in read_json(_record_file(folder, i)).items() if k != "outputs"} for i in sorted(cases)}
    write_json({"version": VERSION, **header, "cases": records}, file)
    return file


def _record_file(folder: PathLike, case: str) -> Path:
    # in a folder of their own: a case may be called "provenance"
    return Path(folder) / "records" / f"{case}.json"


# ---- reading


def require_last_voxel(load: Callable[[], Any], what: str, folder: Path, remedy: str = "") -> None:
    """Raises :class:`UserError`, which names ``what``, unless ``load()`` gives an array that can be read to its end."""
    try:
        array = load()
        array[tuple(i - 1 for i in array.shape)]
    except UserError as error:
        raise UserError(f"{error} {remedy}") from None
    except Exception as error:  # blosc2 raises many kinds for damaged files
        raise UserError(
            f"{what} cannot be read ({type(error).__name__}: {error}). Remove {folder} and make it again. {remedy}"
        ) from error


@dataclass(frozen=True)
class LabelDirectory:
    """A finished label directory.

    ``known``: case -> classes and unions that its labels distinguish, annotated or pseudo; ``volumes_mm3``: case -> class ->
    volume; ``parts``: case -> folder of its files, where that is not ``folder`` itself; ``soft``: the structures of each model's
    soft labels, as JSON has them, empty without soft labels; ``ignored``: the value of voxels that nobody vouches for, which is
    no class, None without such voxels.
    """

    folder: Path
    dataset: str
    data_identifier: str
    classes: tuple
    known: Mapping[str, tuple]
    volumes_mm3: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Path] = field(default_factory=dict)
    soft: Sequence[Sequence[Any]] = ()
    ignored: int | None = None

    @classmethod
    def read(cls, folder: PathLike, remedy: str = "") -> "LabelDirectory":
        """Read provenance.json. Raises :class:`UserError` with ``remedy``, the command that makes the directory."""
        folder = Path(folder)
        file = folder / PROVENANCE
        if not file.is_file() and _parts(folder):
            return cls._joined(folder, [cls.read(i, remedy) for i in _parts(folder)])
        if folder.is_dir() and not file.is_file():
            raise UserError(f"label directory {folder} is not finished: it has no {PROVENANCE}. {remedy}")
        content = read_json(file, remedy)
        try:
            if content["version"] != VERSION:
                raise UserError(f"{file} has version {content['version']!r}, expected {VERSION}. {remedy}")
            cases = content["cases"]
            check_case_names(cases, str(file))
            classes = tuple(content["classes"])
            return cls(
                folder,
                content["dataset"],
                content["data_identifier"],
                classes,
                {k: settled(items_from_json([*v["annotated"], *v["pseudo"]]), classes) for k, v in cases.items()},
                {k: v["volume_mm3"] for k, v in cases.items()},
                soft=content.get("soft", ()),
                ignored=_ignored(content.get("ignored"), classes, file),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{file} is not the provenance of a label directory ({error!r}). {remedy}") from None

    @classmethod
    def _joined(cls, folder: Path, parts: Sequence["LabelDirectory"]) -> "LabelDirectory":
        """Label directories of different cases as one."""
        first, known, volumes, folders = parts[0], {}, {}, {}
        for part in parts:
            part.require_fit(first.dataset, first.data_identifier, first.classes)
            twice = sorted(set(known) & set(part.known))
            if twice:
                raise UserError(f"case {twice[0]} has labels in {folders[twice[0]]} and in {part.folder}. Remove one.")
            known.update(part.known)
            volumes.update(part.volumes_mm3)
            folders.update(dict.fromkeys(part.known, part.folder))
        soft = first.soft if all(i.soft == first.soft for i in parts) else ()
        ignored = next((i.ignored for i in parts if i.ignored is not None), None)
        return cls(folder, first.dataset, first.data_identifier, first.classes, known, volumes, folders, soft, ignored)

    def without(self, cases: Collection[str]) -> "LabelDirectory":
        """The same directory, as if it had no labels of these cases."""
        return replace(self, known={k: v for k, v in self.known.items() if k not in cases})

    def folder_of(self, case: str) -> Path:
        """The folder that holds the files of a case."""
        return self.parts.get(case, self.folder)

    def require_fit(self, dataset: str, data_identifier: str, classes: Sequence[str], remedy: str = "") -> None:
        """Raises :class:`UserError` unless the labels lie on these preprocessed images' voxels, with these classes."""
        for name, found, expected in (
            ("dataset", self.dataset, dataset),
            ("preprocessed data", self.data_identifier, data_identifier),
            ("classes", ", ".join(self.classes), ", ".join(classes)),
        ):
            if found != expected:
                raise UserError(
                    f"label directory {self.folder} was made for the {name} {found}, this run has {expected}. {remedy}"
                )

    def require_cases(self, cases: Sequence[str], remedy: str = "") -> None:
        """Raises :class:`UserError` for the first case without labels here."""
        for case in cases:
            folder = self.folder_of(case)
            files = (folder / f"{case}_seg.b2nd", folder / f"{case}.pkl")
            if case not in self.known or not all(i.is_file() for i in files):
                raise UserError(
                    f"label directory {self.folder} has no labels of the training case {case} "
                    f"({len(self.known)} cases are there). {remedy}"
                )

    def require_readable(self, cases: Sequence[str], remedy: str = "") -> None:
        """Raises :class:`UserError` for the first case whose files cannot be read, before training stumbles over it."""
        for case in cases:
            folder = self.folder_of(case)
            what = f"{folder / case}_seg.b2nd or its .pkl"
            require_last_voxel(lambda folder=folder, case=case: load_labels(folder, case)[0], what, folder, remedy)

    def require_all_classes(self, cases: Sequence[str], remedy: str = "") -> None:
        """Raises :class:`UserError` for the first case with a class that is neither annotated nor pseudo-labelled."""
        for case in cases:
            missing = [i for i in self.classes if i not in self.known[case]]
            if missing:
                raise UserError(
                    f"label directory {self.folder}: case {case} has labels of "
                    f"{', '.join(self.known[case])} but not of {missing[0]}. Give a model that knows "
                    f"{missing[0]} too: {remedy}"
                )

    def annotations(self, truth: Annotations) -> Annotations:
        """The annotated sets of ``truth``, with the pseudo classes added where this directory has them; a union that they
        divide gives way to its members."""
        if truth.cases is None:
            return truth
        cases = {k: replace(v, annotated=self._union(truth, k)) for k, v in truth.cases.items()}
        return Annotations(truth.classes, cases, truth.ignore_label, truth.file)

    def _union(self, truth: Annotations, case: str) -> tuple:
        return settled((*truth.of(case).annotated, *self.known.get(case, ())), truth.classes)

    def mean_volumes_mm3(self, cases: Sequence[str]) -> list:
        """Mean volume of each class, over those of ``cases`` that show it. Raises :class:`UserError` if none does."""
        volumes = []
        for name in self.classes:
            present = [self.volumes_mm3[i][name] for i in cases if self.volumes_mm3[i].get(name, 0) > 0]
            if not present:
                raise UserError(
                    f"label directory {self.folder}: no training case shows {name}, so its size is "
                    f"unknown. Check the labels of {name}, or set co_training.class_weights."
                )
            volumes.append(sum(present) / len(present))
        return volumes

    def over(self, images, own: Collection[str] = ()) -> "LabelledDataset":
        """nnU-Net's dataset ``images`` with the labels and properties of this directory, but for the cases ``own``, which
        keep theirs."""
        return LabelledDataset(images, self.folder, self.parts, own)


class LabelledDataset:
    """Images of one of nnU-Net's datasets, labels and properties of a label directory.

    It has what nnU-Net's data loader uses of a dataset: ``identifiers`` and ``load_case``.
    """

    def __init__(self, images, folder: PathLike, parts: Mapping[str, Path] | None = None, own: Collection[str] = ()):
        self.images, self.folder = images, Path(folder)
        self.parts, self.own = dict(parts or {}), frozenset(own)
        self.identifiers = images.identifiers
        self.source_folder = images.source_folder

    def __getitem__(self, identifier: str) -> tuple:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple:
        """(image, labels, labels of the previous stage or None, properties), as nnU-Net's datasets give them."""
        data, truth, previous, properties = self.images.load_case(identifier)
        if identifier in self.own:
            return data, truth, previous, properties
        folder = self.parts.get(identifier, self.folder)
        seg, properties = load_labels(folder, identifier)
        if tuple(seg.shape) != tuple(truth.shape):
            raise UserError(
                f"{folder / identifier}_seg.b2nd has shape {tuple(seg.shape)}, the preprocessed image "
                f"{tuple(truth.shape)}: it was preprocessed again since. Make the label directory again."
            )
        return data, seg, previous, properties


def _ignored(value: Any, classes: Sequence[str], file: Path) -> int | None:
    if value not in (None, len(classes) + 1):
        raise UserError(f"{file}: 'ignored' must be {len(classes) + 1}, the value after those of the classes, found {value!r}.")
    return value


def _parts(folder: Path) -> list:
    """Subfolders that are label directories, finished or not."""
    return sorted(i.parent for i in folder.glob("*/records")) if folder.is_dir() else []


def load_labels(folder: PathLike, case: str) -> tuple:
    """Labels (1, *S), left on disk until they are indexed, and properties of one case of a label directory."""
    return open_array(Path(folder) / f"{case}_seg.b2nd"), load_pickle(Path(folder) / f"{case}.pkl")
