"""What lies in a folder: a download that one of the converters knows, or a raw dataset that is there already."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.data.conversion.command import chosen, converters, required_options
from nnunet_partial.data.conversion.run import survey
from nnunet_partial.data.conversion.source import SourceFolder
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike

_ANY_ID = 999  # surveys are of numbers that nothing is written to


@dataclass(frozen=True)
class Recognised:
    """A folder as a source. ``converter`` None: a raw dataset ``dataset``; ``generic``: nobody knows it.

    ``organs``: classes that its converter writes unless told otherwise; ``labelled``, ``unlabelled``: numbers of cases;
    ``reason``: why cases would be left out, if any would.
    """

    path: Path
    converter: str | None
    dataset: int | None = None
    release: str = ""
    organs: tuple = ()
    labelled: int = 0
    unlabelled: int = 0
    reason: str = ""

    def __str__(self) -> str:
        if self.converter == "generic":
            return f"{self.path}: no converter knows it; say under options where its images and labels are"
        what = f"dataset {self.dataset}" if self.converter is None else self.release or self.converter
        unlabelled = f", {self.unlabelled} without labels" if self.unlabelled else ""
        left = f" ({self.reason})" if self.reason else ""
        return f"{self.path}: {what}, {self.labelled} labelled cases{unlabelled}; {', '.join(self.organs) or 'no classes'}{left}"


def recognise(folder: PathLike) -> Recognised:
    """The converter that makes most of a folder. Raises :class:`UserError` for a folder that is not there."""
    path = Path(os.path.abspath(folder))
    source = SourceFolder(path)
    there = _raw_dataset(path)
    if there is not None:
        return there
    source.require_unpacked()
    found = [i for name in converters() if name != "generic" and (i := _by(name, path))]
    best = max(found, key=lambda i: (i.labelled, i.unlabelled), default=None)
    return best or Recognised(path, "generic")


def _raw_dataset(path: Path) -> Recognised | None:
    """A folder of nnUNet_raw."""
    named = re.fullmatch(r"Dataset(\d{3})_.+", path.name)
    if not named or not (path / "dataset.json").is_file():
        return None
    if Path(os.path.abspath(paths.root("nnUNet_raw"))) != path.parent:
        raise UserError(f"{path} is a raw dataset of nnU-Net, but not in nnUNet_raw. Set nnUNet_raw to {path.parent}.")
    raw = read_raw_dataset(path, labelled=False)
    labelled = sum(i.label is not None for i in raw.cases.values())
    organs = tuple(i for i in raw.labels if i not in ("background", "ignore"))
    return Recognised(path, None, int(named[1]), "", organs, labelled, len(raw.cases) - labelled)


def _by(name: str, path: Path) -> Recognised | None:
    """What a converter makes of the folder; None if nothing."""
    try:
        converter, options = chosen(name, path, _ANY_ID)
        if required_options(converter):
            return None
        options.name = "Recognised"
        every = survey(converter, SourceFolder(path), _with(options, unlabelled=True))
    except UserError:
        return None
    labelled = [i for i in every.cases if i.label is not None]
    if not every.cases:
        return None
    reason = f"{len(every.skipped)} left out: {next(iter(every.skipped.values()))}" if every.skipped else ""
    release = every.download.release
    return Recognised(path, name, None, release, every.organs.classes, len(labelled), len(every.cases) - len(labelled), reason)


def _with(options, **changes):
    vars(options).update(changes)
    return options


def source_names(found: Sequence[Recognised]) -> list:
    """A name for each, all different."""
    names: list = []
    for one in found:
        text = one.converter if one.converter not in (None, "generic") else one.path.name.partition("_")[2] or one.path.name
        base = re.sub(r"[^A-Za-z0-9]+", "-", text or "").strip("-").lower() or "source"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
