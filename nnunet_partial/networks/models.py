"""Trained models of any kind: their files, what must agree between two of them, and loading without running their code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike
from nnunet_partial.trust import check_model, find_trainer

# what must agree for a model to see another's patches as it saw its own
_PREPROCESSING = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies, and what it knows.

    ``classes``: the classes of the dataset at hand that its outputs 1 .. n stand for; a :class:`~nnunet_partial.labels.Union`
    for an output that does not tell several apart. ``trusted``: the user vouches for the architecture
    that its plans name, whatever it is.
    """

    source: str
    folder: Path
    checkpoint: Path
    classes: tuple
    trusted: bool = False


def find_checkpoint(folder: Path, fold: Any, name: str) -> Path | None:
    """The checkpoint of this fold, or else of fold ``all``; ``folder`` may also be a fold's own folder."""
    candidates = (
        [folder / name]
        if folder.name.startswith("fold_")
        else [paths.fold_folder(folder, fold) / name, paths.fold_folder(folder, "all") / name]
    )
    return next((i for i in candidates if i.is_file()), None)


def preprocessing_pairs(theirs: Mapping[str, Any], ours: Mapping[str, Any], configuration: str, model: Path) -> list:
    """(name, teacher's value, student's value) of everything that decides how a patch looks.

    ``model`` is the teacher's folder, whose name tells nnU-Net's configuration; a renamed one counts as ``configuration``.
    """
    parts = model.absolute().name.split("__")
    trained = parts[2] if len(parts) == 3 else configuration
    pairs = [(i, theirs.get(i), ours.get(i)) for i in ("transpose_forward", "foreground_intensity_properties_per_channel")]
    own, other = _resolved(ours, configuration), _resolved(theirs, trained)
    return [(i, other.get(i), own.get(i)) for i in _PREPROCESSING] + pairs


def _resolved(plans: Mapping[str, Any], configuration: str) -> dict:
    content = plans.get("configurations", {}).get(configuration, {})
    parent = content.get("inherits_from")
    return {**(_resolved(plans, parent) if parent else {}), **content}


def cascaded(plans: Mapping[str, Any], configuration: str) -> bool:
    """Whether a network of this configuration takes the output of a previous stage beside the image."""
    return _resolved(plans, configuration).get("previous_stage") is not None


@dataclass(frozen=True)
class LoadedNetwork:
    """A trained network without deep supervision, on the CPU, with nnU-Net's managers of what it was trained with."""

    network: nn.Module
    plans: Any
    configuration: Any
    dataset_json: dict
    trainer_name: str
    mirroring_axes: tuple | None


def build_network(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any], trainer: str, file: PathLike
) -> tuple:
    """``(network without deep supervision, plans manager, configuration manager)`` of checked plans, as nnU-Net builds it.

    The trainer is asked for its architecture only, never instantiated: its constructor would make folders. ``file`` is what
    errors name. Raises :class:`UserError` for plans that no network can be built from.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    build = find_trainer(trainer, str(file)).build_network_architecture
    try:
        manager = PlansManager(dict(plans))
        planned = manager.get_configuration(configuration)
        network = build(
            manager,
            planned,
            determine_num_input_channels(manager, planned, dict(dataset_json)),
            manager.get_label_manager(dict(dataset_json)).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    except (MemoryError, UserError):
        raise
    except Exception as error:  # whatever a constructor raises for arguments that it cannot use
        raise UserError(
            f"{file}: its network cannot be built ({type(error).__name__}: {error}). Copy the model again."
        ) from error
    return network, manager, planned


def load_network(files: ModelFiles) -> LoadedNetwork:
    """Build a network as nnU-Net's predictor does, with the weights of its checkpoint.

    Raises :class:`UserError` for files that name what may not be imported (:mod:`nnunet_partial.trust`).
    """
    plans, dataset_json, checkpoint = check_model(files.folder, files.checkpoint, files.trusted)
    network, manager, configuration = build_network(
        plans, checkpoint["init_args"]["configuration"], dataset_json, checkpoint["trainer_name"], files.folder / "plans.json"
    )
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {files.checkpoint} does not fit the network of {files.folder / 'plans.json'}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from None
    return LoadedNetwork(
        network,
        manager,
        configuration,
        dataset_json,
        checkpoint["trainer_name"],
        checkpoint.get("inference_allowed_mirroring_axes"),
    )
