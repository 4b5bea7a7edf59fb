"""A trained model as a folder and zip that stock nnU-Net runs on a machine without this package.

What stands in the exported checkpoints is what nnU-Net's predictor reads and nothing else: the weights, the
configuration, the mirroring axes and the name of a trainer that stock nnU-Net has. No optimiser, no averages, no
pickled objects.
"""

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunet_partial import __version__, paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import (
    PathLike,
    atomic_path,
    json_text,
    load_checkpoint,
    replace_folder,
    restore_folder,
    save_checkpoint,
    sha256,
    temporary_folder,
    write_json,
    write_texts,
)
from nnunet_partial.inference import model_card
from nnunet_partial.inference.model_card import Trained
from nnunet_partial.labels import check_file_name
from nnunet_partial.networks.models import build_network, find_checkpoint
from nnunet_partial.paths import FINAL_CHECKPOINT
from nnunet_partial.settings import KEY
from nnunet_partial.trust import check_model, find_trainer

STOCK_TRAINER = "nnUNetTrainer"
# paths of images on the machine that trained the model
PRIVATE_DATASET_KEYS = ("dataset",)
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: the same model is the same file whenever it is exported


def export_model(
    model: PathLike,
    out: PathLike | None = None,
    zip_file: PathLike | None = None,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = FINAL_CHECKPOINT,
    overwrite: bool = False,
    trusted: bool = False,
    evaluations: Sequence[PathLike] = (),
) -> str:
    """Export a model folder; return ``DatasetNNN_X/TRAINER__PLANS__CONFIGURATION``, its place below ``out`` and in the
    zip.

    ``model``: a folder with plans.json, dataset.json and fold_N. ``folds``: all that hold ``checkpoint`` by default
    (``fold_all`` only where there is no other). ``trusted``: the user vouches for the architecture that its plans name.
    ``zip_file`` is what ``nnUNetv2_install_pretrained_model_from_zip`` takes. ``evaluations``: files ``metrics.json`` of this
    model, or folders with one, whose figures its card tells; the card (:mod:`nnunet_partial.inference.model_card`) lies in the
    folder and beside the zip. All appear complete or not at all, and the
    same model gives the same bytes: what a killed export has finished already stays. Raises :class:`UserError` for a model
    that stock nnU-Net cannot run, for damaged files, and for a target that holds something else, unless ``overwrite``.
    """
    if out is None and zip_file is None:
        raise UserError("say where to export to: --out DIR, --zip FILE, or both.")
    model = Path(model)
    if not model.is_dir():
        raise UserError(f"the model {model} is not there: train it first. {paths.trained_models_in_words()}")
    plans, dataset_json, _ = check_model(model, trusted=trusted)
    files = find_checkpoints(model, folds, checkpoint)
    contents = {fold: load_checkpoint(file) for fold, file in files.items()}
    trainer, configuration = _common_values(contents, files)
    exported_trainer = stock_trainer_name(trainer, model)
    _check_weights({files[fold]: i for fold, i in contents.items()}, plans, dataset_json, configuration, exported_trainer)
    name = os.path.join(plans["dataset_name"], f"{exported_trainer}__{plans['plans_name']}__{configuration}")
    target, zip_file = (Path(out) / name if out else None), (Path(zip_file) if zip_file else None)
    place = target or zip_file
    assert place is not None
    new_folders = [i for i in place.absolute().parents if not i.exists()]
    try:
        if target:
            restore_folder(target)
        with temporary_folder(place) as temporary:
            trained = Trained(model, plans, dataset_json, contents, trainer, configuration, exported_trainer)
            _write_model(temporary / name, trained, model_card.make_card(trained, evaluations))
            _move_into_place(temporary, name, target, zip_file, overwrite)
    except UserError:
        _remove_empty(new_folders)
        raise
    except OSError as error:
        _remove_empty(new_folders)
        raise UserError(
            f"{place} cannot be written: {error.strerror or error}. Free some space there, or choose another place."
        ) from error
    return name


def _move_into_place(temporary: Path, name: str, target: Path | None, zip_file: Path | None, overwrite: bool) -> None:
    """Give what was written below ``temporary`` its names; nothing is touched if one of them belongs to something else."""
    folder, archive = temporary / name, temporary / "model.zip"
    made = {target: folder} if target else {}
    if zip_file:
        _write_zip(temporary, name, archive)
        made |= {archive_card: folder / i for i, archive_card in cards_beside(zip_file).items()} | {zip_file: archive}
    wanted = [path for path, new in made.items() if not _is_the_same(path, new)]
    for path in wanted:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists. Remove it, or replace it with --overwrite.")
    for path in wanted:
        if path == target:
            continue
        with atomic_path(path) as written:  # may lie on another disk
            shutil.copyfile(made[path], written)
    if target in wanted:
        replace_folder(folder, target)


def _is_the_same(path: Path, new: Path) -> bool:
    if new.is_dir():
        return _hashes(path) == _hashes(new)
    return path.is_file() and sha256(path) == sha256(new)


def cards_beside(file: PathLike) -> dict:
    """Name of each file of a model card -> where it lies beside an exported model that is one file."""
    return {i: Path(file).with_suffix(f".{i}") for i in (model_card.MARKDOWN, model_card.JSON)}


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _hashes(folder: Path) -> dict:
    """Hash of every file below a folder, by its name there."""
    return {i.relative_to(folder).as_posix(): sha256(i) for i in sorted(folder.rglob("*")) if i.is_file()}


def find_checkpoints(model: Path, folds: Sequence[int | str] | None, checkpoint: str) -> dict:
    """fold -> checkpoint file. Raises :class:`UserError` for a fold that is not there."""
    there = {i.name[len("fold_") :]: i / checkpoint for i in sorted(model.glob("fold_*")) if (i / checkpoint).is_file()}
    if not there:
        raise UserError(
            f"{model} holds no fold_N/{checkpoint}. Train the model to its end, or name another --checkpoint. "
            f"{paths.trained_models_in_words()}"
        )
    if folds is None:
        return {k: v for k, v in there.items() if k != "all"} or there
    missing = [i for i in folds if str(i) not in there]
    if missing:
        raise UserError(
            f"{paths.fold_folder(model, missing[0]) / checkpoint} does not exist. Folds with {checkpoint}: {', '.join(there)}."
        )
    return {str(i): there[str(i)] for i in folds}


def _common_values(contents: Mapping[str, Mapping], files: Mapping[str, Path]) -> tuple:
    """Trainer and configuration, which all folds must share."""
    for fold, content in contents.items():
        if not isinstance(content.get("trainer_name"), str) or "configuration" not in content.get("init_args", {}):
            raise UserError(
                f"checkpoint {files[fold]} names no trainer or no configuration; it is not one of nnU-Net "
                f"v2. Export a model that nnUNetv2_train wrote."
            )
    for fold, content in contents.items():  # they become a part of the exported folder's name
        check_file_name(content["init_args"]["configuration"], f"checkpoint {files[fold]}: configuration")
    values = {fold: (i["trainer_name"], i["init_args"]["configuration"]) for fold, i in contents.items()}
    if len(set(values.values())) > 1:
        described = ", ".join(f"fold {k} with {v[0]}, {v[1]}" for k, v in values.items())
        raise UserError(
            f"the folds of {next(iter(files.values())).parent.parent} were trained differently: {described}."
            f" Export one with --folds."
        )
    return next(iter(values.values()))


def stock_trainer_name(trainer: str, model: Path) -> str:
    """Name of a trainer of stock nnU-Net that builds the same architecture as ``trainer``."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    cls = find_trainer(trainer, str(model))
    if cls.build_network_architecture is nnUNetTrainer.build_network_architecture:
        return STOCK_TRAINER
    if cls.__module__.startswith("nnunetv2."):
        return trainer
    raise UserError(
        f"{trainer} of {model} builds an architecture of its own, which stock nnU-Net does not have. "
        f"Predict with it where nnunet_partial is installed."
    )


def _check_weights(
    contents: Mapping[Path, Mapping], plans: Mapping[str, Any], dataset_json: Mapping[str, Any], configuration: str, trainer: str
) -> None:
    """Load the weights into the network that stock nnU-Net will build, as it will do it."""
    where = next(iter(contents)).parent.parent / "plans.json"
    for architecture in (i.get("architecture", {}) for i in plans["configurations"].values()):
        name = architecture.get("network_class_name", "")
        if name.startswith("nnunet_partial."):
            raise UserError(
                f"the plans name the architecture {name}, which stock nnU-Net does "
                f"not have. Predict with this model where nnunet_partial is installed."
            )
    network = build_network(_without_own_key(plans), configuration, dataset_json, trainer, where)[0]
    for file, content in contents.items():
        try:
            network.load_state_dict(content["network_weights"])
        except RuntimeError as error:
            raise UserError(
                f"the weights of {file} do not fit the network of its plans.json: {str(error).splitlines()[-1].strip()}"
            ) from None


def _without_own_key(content: Mapping[str, Any]) -> dict:
    return {k: v for k, v in content.items() if k != KEY}


def _write_model(folder: Path, trained: Trained, card: Mapping[str, Any]) -> None:
    """The contract stays in dataset.json, as documentation; the run's settings, which name folders, leave plans.json."""
    model, contents = trained.folder, trained.checkpoints
    write_json(_without_own_key(trained.plans), folder / "plans.json")
    write_json({k: v for k, v in trained.dataset_json.items() if k not in PRIVATE_DATASET_KEYS}, folder / "dataset.json")
    if (model / "dataset_fingerprint.json").is_file():
        shutil.copyfile(model / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
    write_card(card, {i: folder / i for i in (model_card.MARKDOWN, model_card.JSON)})
    trained_with = {fold: i["trainer_name"] for fold, i in contents.items()}
    write_json({"nnunet_partial": __version__, "trained_with": trained_with}, folder / "export.json")
    for fold, content in contents.items():
        save_checkpoint(
            {
                "network_weights": {k: v.detach().cpu() for k, v in content["network_weights"].items()},
                "init_args": {
                    "configuration": content["init_args"]["configuration"],
                    "fold": content["init_args"].get("fold", fold),
                },
                "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
                "trainer_name": trained.exported_as,
            },
            paths.fold_folder(folder, fold) / FINAL_CHECKPOINT,
        )


def write_card(card: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write a model card, both files or none; ``files``: where each of the two goes, by its name."""
    write_texts({files[model_card.JSON]: json_text(card), files[model_card.MARKDOWN]: model_card.in_words(card)})


def card_of(
    model: PathLike, fold: Any, checkpoint: str = FINAL_CHECKPOINT, trusted: bool = False, evaluations: Sequence[PathLike] = ()
) -> dict:
    """The card of one fold of a model that is exported in another form than as nnU-Net's."""
    file = find_checkpoint(Path(model), fold, checkpoint)
    if file is None:
        raise UserError(f"{model} holds no fold_{fold}/{checkpoint}. Train it with nnUNetv2_train, or name another fold.")
    folder, fold = file.parent.parent, file.parent.name.removeprefix("fold_")
    plans, dataset_json, _ = check_model(folder, trusted=trusted)
    contents = {fold: load_checkpoint(file)}
    trainer, configuration = _common_values(contents, {fold: file})
    return model_card.make_card(Trained(folder, plans, dataset_json, contents, trainer, configuration, None), evaluations)


def _write_zip(root: Path, name: str, zip_file: Path) -> None:
    with zipfile.ZipFile(zip_file, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(i for i in (root / name).rglob("*") if i.is_file()):
            entry = zipfile.ZipInfo.from_file(file, file.relative_to(root).as_posix())
            entry.date_time, entry.external_attr, entry.compress_type = _ZIP_DATE, 0o100644 << 16, zipfile.ZIP_DEFLATED
            with open(file, "rb") as source, archive.open(entry, "w") as written:
                shutil.copyfileobj(source, written, 1 << 20)
