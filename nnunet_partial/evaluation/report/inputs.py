"""What a report is made from: evaluations, trained models, images, measured efficiency, commands."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial import _moved, paths
from nnunet_partial.data.raw import resolve
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.evaluate import ENDINGS, read_dataset_json
from nnunet_partial.evaluation.results import heading, read_metrics
from nnunet_partial.files import PathLike, load_checkpoint, read_json
from nnunet_partial.labels import Annotations
from nnunet_partial.paths import FINAL_CHECKPOINT

CHECKPOINTS = (FINAL_CHECKPOINT, "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Evaluation:
    """One ``metrics.json``: rows, and what it says about where predictions and truth lie."""

    rows: Sequence[Mapping]
    about: Mapping[str, Any]

    def prediction(self, case: str) -> Path | None:
        """The predicted label file of a case, if it is still there."""
        return next((i for folder in self.about.get("pred", ()) if (i := _image_file(Path(folder), case))), None)

    def truth(self, case: str) -> Path | None:
        """The true label file of a case, if it is still there."""
        return _image_file(Path(self.about.get("truth", "")), case) if self.about.get("truth") else None

    def values(self, side: str, name: str) -> tuple:
        """Label values of a class in the predictions (``pred``) or in the truth (``truth``)."""
        return tuple(self.about.get(f"{side}_values", {}).get(name, ()))


@dataclass(frozen=True)
class TrainedModel:
    """One fold of a trained model. ``curves``: nnU-Net's logged values, one an epoch, for every key."""

    method: str
    folder: Path
    fold: str
    curves: Mapping[str, Sequence]
    plans: Mapping[str, Any]
    fully_supervised: bool = False  # its dataset annotates every class on every case

    @property
    def trainer(self) -> str:
        return self.folder.name.split("__")[0]

    @property
    def configuration(self) -> str:
        return self.folder.name.split("__")[-1]

    @property
    def label(self) -> str:
        return f"{self.method}, fold {self.fold}"

    @property
    def names(self) -> tuple:
        """What a command that trains it names: dataset, configuration, fold, trainer, plans."""
        trainer, plans, configuration = self.folder.name.split("__")
        return self.folder.parent.name, configuration, self.fold, trainer, plans

    @property
    def command(self) -> str:
        """The stock command that trains it, as the names of its folder say."""
        dataset, (trainer, plans, configuration) = self.folder.parent.name, self.folder.name.split("__")
        number = re.match(r"Dataset0*(\d+)_", dataset)
        return (
            f"nnUNetv2_train {number[1] if number else dataset} {configuration} {self.fold} -tr {trainer}"
            f"{'' if plans == 'nnUNetPlans' else f' -p {plans}'}"
        )

    @property
    def seconds(self) -> float:
        """Time spent in epochs; final validation is not in it."""
        start, end = (self.curves.get(f"epoch_{i}_timestamps", ()) for i in ("start", "end"))
        return float(sum(b - a for a, b in zip(start, end)))


@dataclass(frozen=True)
class Inputs:
    """Everything that the page shows, read and checked. ``methods``: name -> evaluations, one a seed."""

    dataset: Mapping[str, Any]
    dataset_file: str
    methods: Mapping[str, Sequence[Evaluation]]
    models: Sequence[TrainedModel] = ()
    images: Sequence[Path] = ()
    efficiency: Mapping[str, Any] | None = None
    commands: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    metric: str = "dice"
    title: str = ""

    def heading(self, metric: str) -> str:
        """Name of a metric for people, with the tolerances that were evaluated with."""
        evaluations = [i for those in self.methods.values() for i in those]
        return heading(metric, {k: v for i in evaluations for k, v in _tolerances(i)})

    @property
    def rows(self) -> dict:
        """name -> one list of rows a seed."""
        return {name: [i.rows for i in evaluations] for name, evaluations in self.methods.items()}

    def image(self, case: str, evaluation: Evaluation) -> Path | None:
        """The image (first channel) of a case: in the given folders, in the dataset, or beside the truth's folder."""
        entry = self.dataset.get("dataset", {}).get(case)
        if entry:
            file = Path(resolve(entry["images"][0], Path(self.dataset_file).parent))
            if file.is_file():
                return file
        return next(
            (i for folder in [*self.images, *_image_folders(evaluation)] if (i := _image_file(folder, f"{case}_0000"))), None
        )


def read_inputs(
    dataset: PathLike,
    evaluations: Sequence[tuple],
    models: Sequence[tuple] = (),
    images: Sequence[PathLike] = (),
    efficiency: PathLike | None = None,
    commands: PathLike | None = None,
    **other: Any,
) -> Inputs:
    """Read everything. ``evaluations`` and ``models`` are ``(name, folder)``; a name may come again, once a seed or fold.

    Raises :class:`UserError` for what is missing or is not what it is said to be.
    """
    content, file = read_dataset_json(dataset)
    methods: dict = {}
    for name, folder in evaluations:
        methods.setdefault(name, []).append(read_evaluation(folder))
    if not methods:
        raise UserError("nothing to report: give at least one --evaluation NAME=DIR that nnunet_partial evaluate wrote.")
    given = [name for name, _ in models]
    trained = [i for name, folder in models for i in read_models(name, folder)]
    trained += [i for name, those in methods.items() if name not in given for one in those for i in told_models(name, one)]
    return Inputs(
        content,
        file,
        methods,
        trained,
        [_folder(i) for i in images],
        None if efficiency is None else _read_efficiency(efficiency),
        () if commands is None else read_commands(commands),
        **other,
    )


def read_evaluation(folder: PathLike) -> Evaluation:
    """The ``metrics.json`` of a folder (or the file itself)."""
    path = Path(folder)
    path = path / "metrics.json" if path.is_dir() or path.suffix != ".json" else path
    rows = read_metrics(path)
    if not rows:
        raise UserError(f"{path} holds no rows: nothing was evaluated.")
    return Evaluation(rows, {k: v for k, v in read_json(path).items() if k not in ("rows", "summary", "sources")})


def told_models(name: str, evaluation: Evaluation) -> list:
    """The :class:`TrainedModel` whose predictions were evaluated, where the folders of the predictions tell it and it is there.

    nnU-Net's own validation lies in the folder of its fold; other predictions have a copy of the model's plans beside them,
    which tell it if one model alone was trained with them.
    """
    found: dict = {}
    for folder in map(Path, evaluation.about.get("pred", ())):
        model = folder.parent.parent if folder.name == "validation" else _model_of_plans(folder)
        if model is not None:
            with suppress(UserError):
                found.update({i.folder / i.fold: i for i in read_models(name, model)})
    return list(found.values())


def _model_of_plans(predictions: Path) -> Path | None:
    """The one trained model with the plans that lie beside predictions; None without plans, or with several models of them."""
    if not (predictions / "plans.json").is_file() or not os.environ.get("nnUNet_results"):
        return None
    plans = read_json(predictions / "plans.json")
    if not isinstance(plans, dict):
        return None
    folder = paths.root("nnUNet_results") / str(plans.get("dataset_name", ""))
    models = [i for i in folder.glob("*__*__*") if i.name.split("__")[1] == plans.get("plans_name")]
    return models[0] if len(models) == 1 else None


def read_models(name: str, folder: PathLike) -> list:
    """A :class:`TrainedModel` for every trained fold of a model folder."""
    folder = _folder(folder)
    if len(folder.name.split("__")) != 3 or not (folder / "plans.json").is_file():
        raise UserError(f"{folder} is not a model folder of nnU-Net (TRAINER__PLANS__CONFIGURATION with a plans.json).")
    plans, full = read_json(folder / "plans.json"), _annotates_everything(folder)
    found = []
    for fold in sorted(folder.glob("fold_*")):
        checkpoint = next((fold / i for i in CHECKPOINTS if (fold / i).is_file()), None)
        if checkpoint is not None:
            logged = load_checkpoint(checkpoint, mmap=True).get("logging", {})
            found.append(TrainedModel(name, folder, fold.name[len("fold_") :], _curves(logged), plans, full))
    if not found:
        raise UserError(f"{folder} holds no checkpoint ({', '.join(CHECKPOINTS)}) in any fold. Train it first.")
    return found


def _annotates_everything(folder: Path) -> bool:
    """Whether every case of the dataset.json in ``folder`` annotates every class; False where it is not there."""
    try:
        return (folder / "dataset.json").is_file() and not Annotations.read(folder).is_partial
    except UserError:  # regions: fully labelled, since the contract does not know them
        return True


def _tolerances(evaluation: Evaluation) -> list:
    found = evaluation.about.get("tolerance_mm")
    return list(found.items()) if isinstance(found, Mapping) else []


def _curves(logged: Mapping[str, Any]) -> dict:
    """Plain numbers; a list of them where nnU-Net logs one value a class."""
    return {
        k: [[float(j) for j in i] if isinstance(i, (list, tuple)) else float(i) for i in v]
        for k, v in logged.items()
        if isinstance(v, (list, tuple))
    }


def _read_efficiency(path: PathLike) -> dict:
    content = read_json(path, "It is written by nnunet_partial.inference.efficiency.measure.write_report.")
    if not isinstance(content, dict) or not isinstance(content.get("methods"), dict):
        raise UserError(f"{path} is no efficiency report: the key 'methods' is missing.")
    return content


def read_commands(path: PathLike) -> list:
    """``[{"command": ..., "seconds": ...}]`` from JSON, or one command a line from any other text file."""
    path = Path(path)
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, list) or not all(isinstance(i, dict) and isinstance(i.get("command"), str) for i in content):
            raise UserError(f"{path} must be a list of objects with the key 'command'.")
        return content
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from None
    return [{"command": i.strip()} for i in lines if i.strip()]


def _folder(path: PathLike) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder.")
    return path.absolute()


def _image_file(folder: Path, name: str) -> Path | None:
    return next((folder / (name + i) for i in ENDINGS if os.path.isfile(folder / (name + i))), None)


def _image_folders(evaluation: Evaluation) -> list:
    """``imagesTr`` beside ``labelsTr``, ``imagesTs`` beside ``labelsTs``: nnU-Net's names."""
    truth = Path(evaluation.about.get("truth", "."))
    return [truth.with_name(truth.name.replace("labels", "images"))] if truth.name.startswith("labels") else []


def finite(value: Any) -> bool:
    """Whether a logged value is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


__getattr__ = _moved.renamed(__name__, {"Model": "TrainedModel"})
