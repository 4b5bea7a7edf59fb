"""The two trained models of coarse to fine, and the prediction of files with them.

What a stage was trained on travels in dataset.json, which nnU-Net keeps beside every model::

    "coarse_to_fine": {"version": 1, "stage": "coarse", "source": "Dataset501_Abdomen", "channels": ["CT"],
                       "file_ending": ".nii.gz", "settings": {"coarse_size": [96, 96, 96], ...}}
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_partial import paths
from nnunet_partial.bars import bar
from nnunet_partial.data import images
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, claim, read_json, sha256
from nnunet_partial.inference.coarse_to_fine import passes as c2f
from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings
from nnunet_partial.labels import check_file_name, foreground_classes
from nnunet_partial.networks.models import ModelFiles, find_checkpoint, load_network
from nnunet_partial.networks.onednn import use_onednn_convolutions
from nnunet_partial.outputs import Records
from nnunet_partial.paths import FINAL_CHECKPOINT
from nnunet_partial.settings import read_settings

KEY = "coarse_to_fine"
VERSION = 1
STAGES = ("coarse", "fine")
TRAINER, VARIANT, CONFIGURATION = "nnUNetTrainerCrossTeaching", "c2f", "3d_fullres"
REQUEST = "coarse_to_fine.json"
_COARSE_SETTINGS = ("coarse_size", "patch_size", "window_overlap")


@dataclass(frozen=True)
class Description:
    """What dataset.json says of a stage. ``channels``: names of the source's channels; ``file_ending``: of its images."""

    stage: str
    source: str
    channels: tuple
    file_ending: str
    settings: CoarseToFineSettings

    def to_json(self) -> dict:
        """The value of the ``coarse_to_fine`` key."""
        return {"version": VERSION, **asdict(self), "channels": list(self.channels)}

    @classmethod
    def read(cls, dataset_json: Mapping[str, Any], file: PathLike, stage: str) -> "Description":
        """Raises :class:`UserError` if the dataset is not one of this stage."""
        content = dataset_json.get(KEY)
        if not isinstance(content, Mapping) or content.get("version") != VERSION or content.get("stage") != stage:
            found = f"it is of the {content.get('stage')} stage" if isinstance(content, Mapping) else f"no key {KEY!r}"
            raise UserError(
                f"{file} does not describe a dataset of the {stage} stage ({found}). Make one with: "
                f"nnunet_partial coarse-to-fine prepare {stage} DATASET --id N"
            )
        return cls(
            stage,
            content["source"],
            tuple(content["channels"]),
            content["file_ending"],
            read_settings(CoarseToFineSettings, content["settings"], str(file), "settings."),
        )

    @property
    def normalise(self) -> c2f.Normalise:
        """The paper's normalisation for channels named CT, mean 0 and standard deviation 1 for others, each by itself."""
        return Normaliser(tuple(i.casefold() == "ct" for i in self.channels))


@dataclass(frozen=True)
class Normaliser:
    """Volume (channels, z, y, x) -> the same, normalised channel by channel. ``is_ct``: one bool a channel."""

    is_ct: tuple

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        return np.stack([(c2f.clip_and_standardise if ct else c2f.standardise)(i) for ct, i in zip(self.is_ct, volume)])


class Stage:
    """A trained network of one stage on a device; called as a network: (1, channels, z, y, x) -> logits.

    ``labels``: ``labels`` of its dataset.json.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        description: Description,
        labels: Mapping[str, int],
        checkpoint: Path,
        device: torch.device,
    ):
        self.network, self.description, self.labels = network.to(device).eval(), description, dict(labels)
        self.checkpoint, self.device = checkpoint, device

    @property
    def one_piece_values(self) -> tuple:
        """Values of the classes that keep their largest component alone; none if the stage was prepared without a say."""
        return tuple(self.labels[i] for i in self.description.settings.largest_components or ())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), mixed:
            return self.network(x)


def load_stage(
    model: str | PathLike,
    stage: str,
    fold: Any = 0,
    checkpoint: str = FINAL_CHECKPOINT,
    device: torch.device = torch.device("cpu"),
    trainer: str = TRAINER,
    trusted: bool = False,
) -> Stage:
    """A trained stage. ``model``: a model folder, or the id of a prepared dataset, whose model of ``trainer`` is taken.
    ``trusted``: the user vouches for the architecture that its plans name.

    Raises :class:`UserError` for a model that is missing, with the command that trains it, or of another stage.
    """
    folder = model_folder(model, trainer)
    file = find_checkpoint(folder, fold, checkpoint)
    if file is None:
        number = str(model) if str(model).isdigit() else "ID"
        raise UserError(
            f"{folder} holds no fold_{fold}/{checkpoint}. Train it with: nnunet_partial coarse-to-fine train "
            f"{number} --fold {fold}"
        )
    folder = file.parent.parent
    dataset_json = read_json(folder / "dataset.json", "A model folder holds it.")
    description = Description.read(dataset_json, folder / "dataset.json", stage)
    classes, _ = foreground_classes(dataset_json, str(folder / "dataset.json"))
    loaded = load_network(ModelFiles(stage, folder, file, classes, trusted))
    network = use_onednn_convolutions(loaded.network) if device.type == "cpu" else loaded.network
    return Stage(network, description, dataset_json["labels"], file, device)


def model_folder(model: str | PathLike, trainer: str = TRAINER) -> Path:
    """The model folder that a dataset id stands for; a folder stands for itself."""
    if str(model).isdigit():
        return paths.model_folder(str(model), trainer, f"nnUNetPlans_{VARIANT}", CONFIGURATION)
    return Path(model)


def joint_settings(coarse: Stage, fine: Stage) -> CoarseToFineSettings:
    """The settings of both stages. Raises :class:`UserError` if the fine one was prepared for another coarse one."""
    ours, theirs = asdict(fine.description.settings), asdict(coarse.description.settings)
    pairs = [(f"the setting {i}", theirs[i], ours[i]) for i in _COARSE_SETTINGS]
    pairs += [
        ("the labels", coarse.labels, fine.labels),
        ("the channels", coarse.description.channels, fine.description.channels),
    ]
    for name, first, second in pairs:
        if first != second:
            raise UserError(
                f"{coarse.checkpoint} and {fine.checkpoint} do not belong together: {name} are {first} and "
                f"{second}. Prepare the fine stage with this coarse model."
            )
    return fine.description.settings


def predict_case(files: Sequence[PathLike], output: PathLike, coarse: Stage, fine: Stage) -> None:
    """Segment one case (one file per channel) and write the mask in its exact geometry."""
    channels = [images.read_image(i) for i in files]
    if len(channels) != len(coarse.description.channels):
        raise UserError(f"{files[0]}: {len(channels)} files for the channels {', '.join(coarse.description.channels)}.")
    geometry = images.Geometry.of(channels[0])
    mask = c2f.predict(
        channels,
        coarse,
        fine,
        joint_settings(coarse, fine),
        coarse.description.normalise,
        fine.description.normalise,
        coarse.device,
        fine.one_piece_values,
    )
    images.write_label(sitk.GetArrayFromImage(mask), geometry, output)


def predict_folder(
    folder: PathLike,
    out: PathLike,
    coarse: Stage,
    fine: Stage,
    overwrite: bool = False,
    around: Callable = nullcontext,
    progress: bool = True,
) -> list:
    """Segment every case of a folder named as nnU-Net names images; returns the names of the cases that were done.

    Cases that are done are skipped, so that an interrupted prediction goes on, unless their images have changed; with other
    models they are refused, or done again with ``overwrite``. ``around(case)`` is a context around each case, such as a measurement.
    """
    joint_settings(coarse, fine)
    ending, out = fine.description.file_ending, Path(out)
    cases, records = cases_of(folder, ending), Records(out)
    request: dict[str, Any] = {"coarse": sha256(coarse.checkpoint), "fine": sha256(fine.checkpoint)}
    request["largest_components"] = list(fine.one_piece_values)
    if overwrite:
        for file in (REQUEST, *(f"{i}{ending}" for i in cases)):
            (out / file).unlink(missing_ok=True)
        for case in cases:
            records.forget(case)
    claim(out / REQUEST, request, "predictions of other models")
    sources = {case: {f"image {i}": file for i, file in enumerate(files)} for case, files in cases.items()}
    todo = [i for i in cases if not records.is_done(i, {}, sources[i], [out / f"{i}{ending}"])]
    for case in bar(todo, "coarse to fine", shown=progress, done=len(cases) - len(todo)):
        begun = records.begin(case, {}, sources[case])
        with around(case):
            predict_case(cases[case], out / f"{case}{ending}", coarse, fine)
        records.end(case, begun, [out / f"{case}{ending}"])
    return todo


def cases_of(folder: PathLike, file_ending: str) -> dict:
    """case -> its files, one per channel, of a folder with ``CASE_0000.ending`` as nnU-Net predicts it."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder.")
    pattern, cases = re.compile(r"(.+)_\d{4}" + re.escape(file_ending)), {}
    for name in sorted(os.listdir(folder)):  # nnU-Net's own function starts a dozen processes for this
        match = pattern.fullmatch(name)
        if match and not name.startswith("."):
            cases.setdefault(check_file_name(match[1], f"{folder}: case"), []).append(os.path.join(folder, name))
    if not cases:
        raise UserError(f"{folder} holds no image CASE_0000{file_ending}.")
    return cases
