"""nnU-Net raw datasets, read strictly: folders imagesTr and labelsTr, or the ``dataset`` key of dataset.json."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial.data import images
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import Annotations, check_case_names, check_dataset_names


@dataclass(frozen=True)
class RawCase:
    """One training case. ``references`` are the images as dataset.json gives them, or None for files of imagesTr."""

    name: str
    images: tuple
    label: str | None
    references: tuple | None = None


@dataclass(frozen=True)
class RawDataset:
    """A raw dataset. ``labels``: name -> label values (several for a region), background and ``ignore`` included."""

    folder: Path
    content: Mapping[str, Any]
    labels: Mapping[str, tuple]
    channel_names: tuple
    file_ending: str
    cases: Mapping[str, RawCase]

    @property
    def json_file(self) -> str:
        return str(self.folder / "dataset.json")

    @property
    def is_ct(self) -> bool:
        """Whether the first channel is CT, as nnU-Net decides it by the name."""
        return self.channel_names[0].casefold() == "ct"

    @property
    def reorients(self) -> bool:
        """Whether nnU-Net's reader brings files to one order of axes."""
        return str(self.content.get("overwrite_image_reader_writer")).endswith("WithReorient")

    def annotations(self) -> Annotations | None:
        """The contract of a partially labelled dataset, checked against the cases; None for an ordinary one."""
        if "nnunet_partial" not in self.content:
            return None
        annotations = Annotations.from_dataset_json(self.content, self.json_file)
        for case in self.cases:
            annotations.of(case)
        surplus = sorted(set(annotations.cases or ()) - set(self.cases))
        if surplus:
            raise UserError(
                f"{self.json_file}: case {surplus[0]} is listed under 'nnunet_partial.cases' but has no "
                f"image. Restore {self.folder / 'imagesTr' / surplus[0]}_0000{self.file_ending} or merge "
                "again."
            )
        return annotations


def read_raw_dataset(folder: PathLike, labelled: bool = True) -> RawDataset:
    """Read dataset.json and find the files of every training case; no image is opened.

    ``labelled``: whether every case must have a label file. Raises :class:`UserError` for what is missing or
    contradictory.
    """
    folder = Path(folder)
    file = str(folder / "dataset.json")
    content = read_json(file, "A raw dataset needs a dataset.json; convert it first.")
    for key in ("labels", "numTraining", "file_ending"):
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{file}: the key {key!r} is missing. nnU-Net requires it; see its documentation of dataset.json.")
    check_dataset_names(content, file)
    channels = _channel_names(content, file)
    if "dataset" in content:
        cases = _referenced_cases(folder, content["dataset"], file)
    else:
        cases = _cases_of_folders(folder, content)
    if len(cases) != content["numTraining"]:
        raise UserError(
            f"{file}: 'numTraining' is {content['numTraining']} but {len(cases)} training cases are there. "
            "Restore the missing files, or correct the number."
        )
    check_case_names(cases, file)
    for case in cases.values():
        _check_files(case, len(channels), labelled, folder, content["file_ending"])
    return RawDataset(folder, content, _labels(content["labels"], file), channels, content["file_ending"], cases)


def _channel_names(content: Mapping[str, Any], file: str) -> tuple:
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, dict) or sorted(names, key=str) != sorted(map(str, range(len(names)))) or not names:
        raise UserError(f"{file}: 'channel_names' must be {{'0': NAME, '1': NAME, ...}}, found {names}.")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _labels(labels: Any, file: str) -> dict:
    """name -> tuple of values; background first."""
    if not isinstance(labels, dict):
        raise UserError(f"{file}: 'labels' must map names to values, found {str(labels)[:80]}.")
    values = {}
    for name, value in labels.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not parts or not all(str(i).isdigit() for i in parts):
            raise UserError(f"{file}: label {name!r} must have a whole number or a list of them, found {value!r}.")
        values[name] = tuple(int(i) for i in parts)
    if values.get("background") != (0,):
        raise UserError(f"{file}: 'labels' must hold 'background' with the value 0, found {labels}.")
    return values


def _cases_of_folders(folder: Path, content: Mapping[str, Any]) -> dict:
    ending = content["file_ending"]
    if not (folder / "imagesTr").is_dir():
        raise UserError(
            f"{folder / 'imagesTr'} does not exist. A raw dataset has its images there, or names them "
            "under 'dataset' in dataset.json."
        )
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    found: dict = {}
    for name in sorted(os.listdir(folder / "imagesTr")):
        match = pattern.fullmatch(name)
        if match and not name.startswith("."):
            found.setdefault(match[1], []).append(name)
        elif name.endswith(ending):
            raise UserError(
                f"{folder / 'imagesTr' / name} is not named CASE_0000{ending} (the four digits are the "
                "channel, no dot in front), and nnU-Net would take it for a case. Rename or remove it."
            )
    return {
        case: RawCase(case, tuple(str(folder / "imagesTr" / i) for i in names), _label_in_folder(folder, case, ending))
        for case, names in found.items()
    }


def _label_in_folder(folder: Path, case: str, ending: str) -> str | None:
    label = folder / "labelsTr" / (case + ending)
    return str(label) if label.exists() else None


def _referenced_cases(folder: Path, dataset: Any, file: str) -> dict:
    if not isinstance(dataset, dict):
        raise UserError(f"{file}: 'dataset' must map cases to their files, found {str(dataset)[:80]}.")
    cases = {}
    for case, entry in dataset.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or not entry["images"]:
            raise UserError(
                f"{file}: case {case} under 'dataset' must be {{'images': [...], 'label': ...}}, found {str(entry)[:80]}."
            )
        label = entry.get("label")
        paths = tuple(resolve(i, folder) for i in entry["images"])
        cases[case] = RawCase(case, paths, None if label is None else resolve(label, folder), tuple(entry["images"]))
    return cases


def resolve(reference: str, folder: Path) -> str:
    """A path as dataset.json gives it, as nnU-Net reads it: variables expanded, relative to the dataset's folder."""
    return os.path.abspath(os.path.join(folder, os.path.expandvars(reference)))


def _check_files(case: RawCase, channels: int, labelled: bool, folder: Path, ending: str) -> None:
    for path in case.images:
        if not os.path.isfile(path):
            raise UserError(f"image {path} of case {case.name} does not exist. Restore it, or correct {folder / 'dataset.json'}.")
    if case.references is None:
        _check_channel_numbers(case, ending)
    in_one_file = len(case.images) == 1 != channels and images.number_of_channels(case.images[0]) == channels
    if len(case.images) != channels and not in_one_file:
        raise UserError(
            f"case {case.name} has {len(case.images)} image files ({case.images[0]}, ...) but "
            f"{folder / 'dataset.json'} names {channels} channels. Restore the missing file, or correct "
            f"'channel_names'."
        )
    if labelled and (case.label is None or not os.path.isfile(case.label)):
        label = case.label or folder / "labelsTr" / (case.name + ending)
        raise UserError(
            f"label file {label} of case {case.name} does not exist. Restore it, or, if the dataset has no "
            "labels, merge it with --unlabelled."
        )


def _check_channel_numbers(case: RawCase, ending: str) -> None:
    for channel, path in enumerate(case.images):
        if not path.endswith(f"_{channel:04d}{ending}"):
            raise UserError(f"case {case.name}: channel {channel:04d} is missing in {os.path.dirname(path)}, found {path}.")
