"""Frozen teachers: found by convention or by setting, checked, loaded without running code from the checkpoint."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_partial import paths
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import read_json
from nnunet_partial.labels import Annotations, foreground_classes, members, structure
from nnunet_partial.networks.features import FeatureTap
from nnunet_partial.networks.models import ModelFiles, cascaded, find_checkpoint, load_network, preprocessing_pairs
from nnunet_partial.settings import KEY, MSKDSettings
from nnunet_partial.trust import check_plans

TEACHER_TRAINER = "nnUNetTrainerIndividual"


def find_teachers(
    annotations: Annotations,
    settings: MSKDSettings,
    plans: Mapping[str, Any],
    configuration: str,
    fold: Any,
    trusted: bool = False,
    device: str | None = None,
) -> list:
    """One :class:`ModelFiles` per source, checked against the student's plans. Raises UserError that names all that are
    missing, or the first that does not fit, with the commands that train them on ``device``. Reads no checkpoint.
    ``trusted``: as the setting mskd.trust."""
    _check_sources(annotations, settings)
    sources = settings.sources if settings.sources is not None else annotations.annotated_sources
    configuration = teachers_configuration(plans, configuration)
    found, missing = [], []
    for source in sources:
        try:
            found.append(_find_teacher(source, annotations, settings, plans, configuration, fold, trusted))
        except _MissingTeacher as error:
            missing.append(error)
    if missing:
        raise _all_missing(missing, plans, configuration, fold, device)
    return found


class _MissingTeacher(UserError):
    def __init__(self, source: str, given: str | None, message: str):
        super().__init__(message)
        self.source, self.given = source, given


def _all_missing(
    missing: Sequence[_MissingTeacher], plans: Mapping[str, Any], configuration: str, fold: Any, device: str | None
) -> UserError:
    """One error for every teacher that is not there, with all commands; they train the plans of the student."""
    trained = [i.source for i in missing if i.given is None]
    sources = f"{trained[0]!r}" if len(trained) == 1 else ", ".join(map(repr, trained))
    wrong = [str(i) for i in missing if i.given is not None]
    if not trained:
        return UserError(" ".join(wrong))
    commands = training_commands(trained, plans, configuration, fold, device)
    subject = f"the teacher of source {sources} is" if len(trained) == 1 else f"the teachers of the sources {sources} are"
    where = next(i for i in missing if i.given is None) if len(trained) == 1 else None
    looked = f": {str(where).partition(': ')[2]}" if where else f" for fold {fold} of plans {plans['plans_name']}."
    return UserError(" ".join([*wrong, f"{subject} missing{looked} Train {'it' if where else 'them'} with: {commands}"]))


def teachers_configuration(plans: Mapping[str, Any], configuration: str) -> str:
    """The configuration that the teachers of a student are trained with: its own, or for the second stage of a cascade the
    one whose data it shares, such as 3d_fullres. Teachers see the image alone, never a previous stage."""
    while cascaded(plans, configuration):
        configuration = plans["configurations"][configuration]["inherits_from"]
    return configuration


def _check_sources(annotations: Annotations, settings: MSKDSettings) -> None:
    known = annotations.annotated_sources
    for name, given in (("mskd.teachers", settings.teacher_folders), ("mskd.sources", settings.sources or ())):
        unknown = [i for i in given if i not in known]
        if unknown:
            raise UserError(
                f"setting {name}: {unknown[0]!r} is not a source that annotates anything. {did_you_mean(unknown[0], known)}Such sources: {', '.join(known)}."
            )
    if not (settings.sources is None and known) and not settings.sources:
        raise UserError(f"{annotations.file}: no source annotates anything, so there is nothing to teach.")


def _find_teacher(
    source: str,
    annotations: Annotations,
    settings: MSKDSettings,
    plans: Mapping[str, Any],
    configuration: str,
    fold: Any,
    trusted: bool,
) -> ModelFiles:
    given = settings.teacher_folders.get(source)
    candidates = [Path(given)] if given else conventional_folders(source, plans, configuration)
    for folder in candidates:
        checkpoint = find_checkpoint(folder, fold, settings.teacher_checkpoint)
        if checkpoint is not None:
            model = checkpoint.parent.parent
            trusted = trusted or settings.trust
            classes = _check_fit(source, model, annotations, plans, configuration, trusted)
            return ModelFiles(source, model, checkpoint, classes, trusted)
    remedy = f" Correct the setting mskd.teachers.{source}." if given else ""
    raise _MissingTeacher(
        source,
        given,
        f"the teacher of source {source!r} is missing: no fold_{fold}/{settings.teacher_checkpoint} in "
        f"{' or '.join(map(str, candidates))}.{remedy}",
    )


def conventional_folders(source: str, plans: Mapping[str, Any], configuration: str) -> list:
    """Model folders of ``nnUNetTrainerIndividual`` for this source: plans of the student first, then those it was made from."""
    return [
        paths.model_folder(plans["dataset_name"], TEACHER_TRAINER, f"{i}_{source}", configuration) for i in _plans_ancestry(plans)
    ]


def _plans_ancestry(plans: Mapping[str, Any]) -> list:
    names = [plans["plans_name"]]
    base = plans.get(KEY, {}).get("base_plans")
    while base is not None and base not in names:
        names.append(base)
        file = Path(os.environ.get("nnUNet_preprocessed", "")) / plans["dataset_name"] / f"{base}.json"
        base = read_json(file).get(KEY, {}).get("base_plans") if file.is_file() else None
    return names


def training_commands(
    sources: Sequence[str], plans: Mapping[str, Any], configuration: str, fold: Any, device: str | None = None
) -> str:
    """The commands that make teachers under their conventional names, of the student's plans, on the device that it has."""
    number, base = paths.dataset_number(plans["dataset_name"]), plans["plans_name"]
    where = f" -device {device}" if device not in (None, "cuda") else ""
    first = training_command(sources[0], plans, configuration, fold)
    if len(sources) == 1:
        return first + where
    trainings = [f"nnUNetv2_train {number} {configuration} {fold} -tr {TEACHER_TRAINER} -p {base}_{i}{where}" for i in sources]
    return " && ".join([f"nnunet_partial variant {number} --base {base} --per-source", *trainings])


def training_command(source: str, plans: Mapping[str, Any], configuration: str, fold: Any) -> str:
    """The commands that make a teacher under its conventional name."""
    number, base = paths.dataset_number(plans["dataset_name"]), plans["plans_name"]
    return (
        f"nnunet_partial variant {number} --base {base} --name {source} --set source={source} && "
        f"nnUNetv2_train {number} {configuration} {fold} -tr {TEACHER_TRAINER} -p {base}_{source}"
    )


def _check_fit(
    source: str, model: Path, annotations: Annotations, plans: Mapping[str, Any], configuration: str, trusted: bool
) -> tuple:
    """Foreground classes of the teacher, after checking that plans and classes fit the student's."""
    remedy = f"Train it on these plans: {training_command(source, plans, configuration, 0)}"
    teacher_plans = read_json(model / "plans.json", remedy)
    check_plans(teacher_plans, model / "plans.json", trusted)
    names, _ = foreground_classes(read_json(model / "dataset.json", remedy), str(model / "dataset.json"))
    classes = tuple(structure(i, annotations.classes) for i in names)
    trained = model.absolute().name.split("__")[-1]
    if cascaded(teacher_plans, trained):
        raise UserError(
            f"the teacher of source {source!r} in {model} is the second stage of a cascade, which needs the first one's output; "
            f"a teacher sees the image alone. Train it with: {training_command(source, plans, configuration, 0)}"
        )
    for name, theirs, ours in preprocessing_pairs(teacher_plans, plans, configuration, model):
        if theirs != ours:
            raise UserError(
                f"the teacher of source {source!r} in {model} was trained with {name} {_short(theirs)}, the student "
                f"has {_short(ours)}. {remedy}"
            )
    expected = annotations.classes_of_source(source)
    if None in classes or not all(i in classes or set(members(i)) <= set(classes) for i in expected):
        raise UserError(
            f"the teacher of source {source!r} in {model} segments {', '.join(names)}; it must segment "
            f"{', '.join(expected)} and may know no class but {', '.join(annotations.classes)}. {remedy}"
        )
    return classes


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Teacher(nn.Module):
    """A frozen network that runs in inference mode.

    ``classes``: values of the student's classes that its foreground outputs 1 .. n stand for; a tuple of values for a union.
    """

    def __init__(self, files: ModelFiles, network: nn.Module, classes: Sequence[int], feature_level: int | None = None):
        super().__init__()
        self.files = files
        self.classes = tuple(classes)
        self.network = network.requires_grad_(False)
        self.eval()
        self.tap = None if feature_level is None else FeatureTap(network, feature_level)

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher is always in evaluation mode."""
        return super().train(False)

    def forward(self, data: torch.Tensor) -> tuple:
        """data (B, channels, *S) -> logits (B, n + 1, *S) and features (B, F, *S_level) or None. No graph is built."""
        with torch.inference_mode():
            logits = self.network(data)
        return logits, None if self.tap is None else self.tap.take()


def load_teacher(files: ModelFiles, annotations: Annotations, device: torch.device, feature_level: int | None = None) -> Teacher:
    """A frozen teacher with the weights of its checkpoint."""
    return Teacher(files, load_network(files).network.to(device), annotations.outputs(files.classes), feature_level)
