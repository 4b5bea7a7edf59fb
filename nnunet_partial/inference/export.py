"""A trained model as a folder and zip that stock nnU-Net runs on a machine without this package.

What stands in the exported checkpoints is what nnU-Net's predictor reads and nothing else: the weights, the
configuration, the mirroring axes and the name of a trainer that stock nnU-Net has. No optimiser, no averages, no
pickled objects.
"""

import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from nnunet_partial import __version__, paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, atomic_path, load_checkpoint, read_json, save_checkpoint, write_json
from nnunet_partial.settings import KEY

CHECKPOINT = "checkpoint_final.pth"
STOCK_TRAINER = "nnUNetTrainer"
# paths of images on the machine that trained the model
PRIVATE_DATASET_KEYS = ("dataset",)


def export_model(
    model: PathLike,
    out: PathLike | None = None,
    zip_file: PathLike | None = None,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = CHECKPOINT,
    overwrite: bool = False,
) -> str:
    """Export a model folder; return ``DatasetNNN_X/TRAINER__PLANS__CONFIGURATION``, its place below ``out`` and in the
    zip.

    ``model``: a folder with plans.json, dataset.json and fold_N. ``folds``: all that hold ``checkpoint`` by default
    (``fold_all`` only where there is no other). ``zip_file`` is what ``nnUNetv2_install_pretrained_model_from_zip``
    takes. Both appear complete or not at all. Raises :class:`UserError` for a model that stock nnU-Net cannot run, for
    damaged files, and for a target that exists, unless ``overwrite``.
    """
    if out is None and zip_file is None:
        raise UserError("say where to export to: --out DIR, --zip FILE, or both.")
    model = Path(model)
    plans, dataset_json = (read_json(model / i, "A model folder holds it.") for i in ("plans.json", "dataset.json"))
    files = find_checkpoints(model, folds, checkpoint)
    contents = {fold: load_checkpoint(file) for fold, file in files.items()}
    trainer, configuration = _common_values(contents, files)
    exported_trainer = stock_trainer_name(trainer, model)
    _check_weights({files[fold]: i for fold, i in contents.items()}, plans, dataset_json, configuration, exported_trainer)
    name = os.path.join(plans["dataset_name"], f"{exported_trainer}__{plans['plans_name']}__{configuration}")
    targets = [Path(i) for i in (out and os.path.join(out, name), zip_file) if i]
    for target in targets:
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists. Remove it, or replace it with --overwrite.")
    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=_existing_parent(targets[0])) as temporary:
            folder = Path(temporary) / name
            _write_model(folder, model, contents, plans, dataset_json, exported_trainer)
            if zip_file is not None:
                _write_zip(Path(temporary), name, zip_file)
            if out is not None:
                with _replaced_folder(Path(out) / name):
                    os.replace(folder, Path(out) / name)
    except OSError as error:
        raise UserError(
            f"{targets[0]} cannot be written: {error.strerror or error}. Free some space there, or choose another place."
        ) from error
    return name


def find_checkpoints(model: Path, folds: Sequence[int | str] | None, checkpoint: str) -> dict:
    """fold -> checkpoint file. Raises :class:`UserError` for a fold that is not there."""
    there = {i.name[len("fold_") :]: i / checkpoint for i in sorted(model.glob("fold_*")) if (i / checkpoint).is_file()}
    if not there:
        raise UserError(f"{model} holds no fold_N/{checkpoint}. Train the model to its end, or name another --checkpoint.")
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
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with redirect_stdout(io.StringIO()):  # nnU-Net tells how it searches
            cls = recursive_find_trainer_class_by_name(trainer)
    except RuntimeError:
        raise UserError(
            f"the trainer {trainer} of {model} is not found, so its architecture is unknown. Install what "
            f"it comes from, or add its folder to nnUNet_extTrainer."
        ) from None
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
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(_without_own_key(plans))
    planned = manager.get_configuration(configuration)
    if planned.network_arch_class_name.startswith("nnunet_partial."):
        raise UserError(
            f"the plans name the architecture {planned.network_arch_class_name}, which stock nnU-Net does "
            f"not have. Predict with this model where nnunet_partial is installed."
        )
    network = recursive_find_trainer_class_by_name(trainer).build_network_architecture(
        manager,
        planned,
        determine_num_input_channels(manager, planned, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    for file, content in contents.items():
        try:
            network.load_state_dict(content["network_weights"])
        except RuntimeError as error:
            raise UserError(
                f"the weights of {file} do not fit the network of its plans.json: {str(error).splitlines()[-1].strip()}"
            ) from None


def _without_own_key(content: Mapping[str, Any]) -> dict:
    return {k: v for k, v in content.items() if k != KEY}


def _write_model(
    folder: Path,
    model: Path,
    contents: Mapping[str, Mapping],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    trainer: str,
) -> None:
    """The contract stays in dataset.json, as documentation; the run's settings, which name folders, leave plans.json."""
    write_json(_without_own_key(plans), folder / "plans.json")
    write_json({k: v for k, v in dataset_json.items() if k not in PRIVATE_DATASET_KEYS}, folder / "dataset.json")
    if (model / "dataset_fingerprint.json").is_file():
        shutil.copyfile(model / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
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
                "trainer_name": trainer,
            },
            paths.fold_folder(folder, fold) / CHECKPOINT,
        )


def _existing_parent(target: Path) -> Path:
    """Folder of the target, made if need be, so that a move into place stays on one disk."""
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _write_zip(root: Path, name: str, zip_file: PathLike) -> None:
    with atomic_path(zip_file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(i for i in (root / name).rglob("*") if i.is_file()):
            archive.write(file, file.relative_to(root))


@contextmanager
def _replaced_folder(target: Path) -> Iterator[None]:
    """Make room for a folder; what was there is removed afterwards, or put back if the block fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        yield
        return
    with tempfile.TemporaryDirectory(prefix=".tmp-replaced-", dir=target.parent) as old:
        os.replace(target, os.path.join(old, target.name))
        try:
            yield
        except BaseException:
            os.replace(os.path.join(old, target.name), target)
            raise
