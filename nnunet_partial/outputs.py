"""When an output is done: a record says what it was made from and what was written, and both are still so.

Neither the existence of a file nor its time alone says that: it may be cut off, or of something else. Standard library
only, for those too that wait for commands that are not ours.
"""

import gzip
import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial import _moved
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, sha256, write_json

FOLDER = "records"
_HEADER_BYTES = 348  # of NIfTI-1
_SMALL_BYTES = 1 << 20  # up to which a file is read to see whether it changed
_DATES = {"created", "written", "mtime_ns"}  # keys that say when, not what
_PIECE_BYTES = 1 << 22


def stamp(file: PathLike) -> dict:
    """Size, time and hash of a file."""
    status = os.stat(file)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(file)}


def is_same(file: PathLike, known: Mapping[str, Any]) -> bool:
    """Whether a file is the one that was stamped. Its content is read only where its time is another one, as of a copy."""
    try:
        status = os.stat(file)
    except OSError:
        return False
    if status.st_size != known.get("bytes"):
        return False
    return status.st_mtime_ns == known.get("mtime_ns") or sha256(file) == known.get("sha256")


def are_same(files: Mapping[str, PathLike], known: Any) -> bool:
    """Whether these are the files, by name, that were stamped."""
    return isinstance(known, Mapping) and set(known) == set(files) and all(is_same(file, known[i]) for i, file in files.items())


# ---- what a step of a plan has read


def read_stamp(file: PathLike) -> dict | None:
    """What tells later whether a step has read the file as it is now; None where there is none.

    The content of a small file, a JSON file's without the dates in it; size and time of a large one, whose reading takes time;
    of a checkpoint also the hash, so that a copied folder of results is not trained again.
    """
    try:
        status = os.stat(file)
    except OSError:
        return None
    if status.st_size <= _SMALL_BYTES:
        return {"sha256": _content_sha256(file)}
    if os.fspath(file).endswith(".pth"):
        return stamp(file)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def is_as_read(file: PathLike, known: Any) -> bool:
    """Whether a file is as :func:`read_stamp` found it. What version 0.1 kept, size and time or a size alone, counts too."""
    if isinstance(known, Mapping) and {"bytes", "sha256"} <= set(known):
        return is_same(file, known)
    if isinstance(known, (list, int)):
        found = size_and_time(file)
        return found is not None and known in (found, found[0])
    return read_stamp(file) == known


def size_and_time(file: PathLike) -> list | None:
    """Size in bytes and time in ns of a file, None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def first_changed(files: Iterable[PathLike], known: Mapping[str, Any]) -> str | None:
    """The first of ``files``, or of those that ``known`` (name -> stamp) has and they have not, that is not as it was read."""
    names = [str(i) for i in files]
    for name in dict.fromkeys([*known, *names]):
        if name not in known or name not in names or not is_as_read(name, known[name]):
            return name
    return None


def _content_sha256(file: PathLike) -> str:
    if not os.fspath(file).endswith(".json"):
        return sha256(file)
    try:
        content = read_json(file)
    except UserError:  # half a file is a file too
        return sha256(file)
    return hashlib.sha256(json.dumps(_undated(content), sort_keys=True).encode()).hexdigest()


def _undated(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _undated(v) for k, v in content.items() if k not in _DATES}
    return [_undated(i) for i in content] if isinstance(content, list) else content


class Records:
    """The records of the cases of one folder: ``FOLDER/records/CASE.json``.

    ``inputs`` are plain values, ``sources`` name -> file that a case was made from, ``outputs`` its files, in the folder.
    A case without a record is not done, so a record goes before the files of its case are replaced, and comes last.
    """

    def __init__(self, folder: PathLike):
        self.folder = Path(folder)

    def is_done(self, case: str, inputs: Mapping[str, Any], sources: Mapping[str, PathLike], outputs: Iterable[PathLike]) -> bool:
        """Whether the case was made from these, and its files are still those that were written."""
        record = self.read(case)
        if record is None or record.get("inputs") != dict(inputs):
            return False
        return are_same(sources, record.get("sources")) and self.is_written(case, outputs)

    def is_written(self, case: str, outputs: Iterable[PathLike]) -> bool:
        """Whether the files of the case are those that were written, whatever they were made from."""
        files = {Path(i).relative_to(self.folder).as_posix(): i for i in outputs}
        return are_same(files, (self.read(case) or {}).get("outputs"))

    def begin(self, case: str, inputs: Mapping[str, Any], sources: Mapping[str, PathLike]) -> dict:
        """Forget the case; returns what :meth:`end` is to note: its sources as they are before anything is read of them."""
        self.forget(case)
        return {"inputs": dict(inputs), "sources": {name: stamp(file) for name, file in sources.items()}}

    def end(self, case: str, begun: Mapping[str, Any], outputs: Iterable[PathLike]) -> None:
        """Note that the case is done: its files are written."""
        written = {Path(i).relative_to(self.folder).as_posix(): stamp(i) for i in outputs}
        write_json({**begun, "outputs": written}, self._file(case))

    def read(self, case: str) -> dict | None:
        """The record of a case; None if there is none or it cannot be understood."""
        try:
            content = read_json(self._file(case))
        except UserError:
            return None
        return content if isinstance(content, dict) else None

    def cases(self) -> list:
        """Names of the cases that have a record."""
        folder = self.folder / FOLDER
        return sorted(i.relative_to(folder).as_posix()[: -len(".json")] for i in folder.rglob("*.json"))

    def forget(self, case: str) -> None:
        """Mark a case as not done."""
        self._file(case).unlink(missing_ok=True)

    def _file(self, case: str) -> Path:
        return self.folder / FOLDER / f"{case}.json"


# ---- what commands of nnU-Net leave


@dataclass(frozen=True)
class ExpectedPredictions:
    """What ``nnUNetv2_predict`` makes of the folder ``images`` in ``out``; it may end well and leave part of it.

    ``dataset_json``: of the model's dataset, which tells how files end.
    """

    images: Path
    out: Path
    dataset_json: Path

    def files(self) -> list:
        """The label map of every case."""
        ending = read_json(self.dataset_json)["file_ending"]
        try:
            there = sorted(os.listdir(self.images))
        except OSError as error:
            raise UserError(f"{self.images} cannot be read ({error.strerror}).") from None
        return [Path(self.out) / (case + ending) for case in cases_of(there, ending)]

    def read(self) -> list:
        """The images that they are made of."""
        folder = Path(self.images)
        return sorted(i for i in folder.iterdir() if i.is_file() and not i.name.startswith(".")) if folder.is_dir() else []

    def check(self) -> dict:
        """Stamp (:func:`read_stamp`) of every file, by name. Raises :class:`UserError` for the first that is missing or not whole."""
        for file in self.files():
            require_whole(file)
        return self.stamps()

    def stamps(self) -> dict:
        """Stamp of every file, None for one that is not there."""
        return {i.name: read_stamp(i) for i in self.files()}

    def are(self, known: Mapping[str, Any]) -> bool:
        """Whether they are those of which :meth:`check` gave the stamps."""
        files = {i.name: i for i in self.files()}
        return set(files) == set(known) and all(is_as_read(file, known[name]) for name, file in files.items())


def cases_of(names: Iterable[str], ending: str) -> list:
    """The cases among names of files, as nnU-Net tells them: ``CASE_0000.nii.gz``."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    found = (pattern.fullmatch(i) for i in names if not i.startswith("."))
    return list(dict.fromkeys(i[1] for i in found if i))


def require_whole(file: PathLike) -> None:
    """Raise :class:`UserError` for an image file that is missing, empty or cut off.

    What is compressed by gzip is read to its end, with the checksum; a NIfTI file must hold all voxels of its header.
    """
    file = os.fspath(file)
    try:
        with (gzip.open if file.lower().endswith(".gz") else open)(file, "rb") as stream:
            header = stream.read(_HEADER_BYTES)
            found = len(header)
            while piece := stream.read(_PIECE_BYTES):
                found += len(piece)
    except FileNotFoundError:
        raise UserError(f"{file} was not written. {_REMEDY}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file} is truncated or damaged ({error}). {_REMEDY}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}). {_REMEDY}") from None
    expected = _nifti_bytes(header) if file.lower().endswith((".nii", ".nii.gz")) else 1
    if found < expected:
        raise UserError(f"{file} is truncated: it holds {found} of {expected} bytes. {_REMEDY}")


_REMEDY = "Is the disk full? Free some space and start the command again."


def _nifti_bytes(header: bytes) -> int:
    """Bytes of a NIfTI-1 file from its header, of any other file of this name those of a header."""
    for order in "<>":
        if len(header) == _HEADER_BYTES and struct.unpack_from(order + "i", header)[0] == _HEADER_BYTES:
            dimensions, *lengths = struct.unpack_from(order + "8h", header, 40)
            (bits,), (offset,) = struct.unpack_from(order + "h", header, 72), struct.unpack_from(order + "f", header, 108)
            return int(offset) + math.prod(lengths[:dimensions]) * bits // 8
    return _HEADER_BYTES


__getattr__ = _moved.renamed(__name__, {"Predictions": "ExpectedPredictions"})
