"""The one place that knows where nnU-Net keeps what."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError, did_you_mean

FINAL_CHECKPOINT = "checkpoint_final.pth"  # nnU-Net's, at the end of a training
_ROOTS = {"nnUNet_raw": "raw datasets", "nnUNet_preprocessed": "preprocessed datasets", "nnUNet_results": "trained models"}


def root(variable: str) -> Path:
    """The folder that ``nnUNet_raw``, ``nnUNet_preprocessed`` or ``nnUNet_results`` names."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"the environment variable {variable} is not set. Set it to the folder of nnU-Net's "
            f"{_ROOTS[variable]}: export {variable}=/path/to/{variable}"
        )
    return Path(value)


def dataset_folders(dataset_id: int, *variables: str) -> list:
    """Every folder ``DatasetNNN_*`` of this id below the given roots (all three by default), where they are set."""
    found = []
    for variable in variables or _ROOTS:
        value = os.environ.get(variable)
        if value and os.path.isdir(value):
            found += sorted(i for i in Path(value).glob(f"Dataset{dataset_id:03d}_*") if i.is_dir())
    return found


def dataset_name(dataset: int | str) -> str:
    """``501`` or ``"501"`` or ``"Dataset501_X"`` -> ``"Dataset501_X"``. Raises :class:`UserError` if there is none or several."""
    text = str(dataset)
    if re.fullmatch(r"Dataset\d{3}_[^/\\\0]+", text):
        return text
    if not text.isdigit():
        raise UserError(
            f"dataset {text!r} is neither a number nor a name such as Dataset501_AbdomenPartial. {_datasets_in_words(text)}"
        )
    names = sorted({i.name for i in dataset_folders(int(text))})
    if len(names) != 1:
        found = (
            f"found {', '.join(names)}; keep one"
            if names
            else f"found none; convert or merge it first. {_datasets_in_words(text)}"
        )
        raise UserError(
            f"dataset id {int(text):03d} must belong to exactly one dataset of nnUNet_raw, nnUNet_preprocessed and "
            f"nnUNet_results: {found}{'.' if names else ''}"
        )
    return names[0]


def _datasets_in_words(wanted: str, most: int = 8) -> str:
    """The sentence that follows when a dataset is not there: those that are."""
    names = sorted({i.name for v in _ROOTS for i in Path(os.environ.get(v) or os.devnull).glob("Dataset[0-9][0-9][0-9]_*")})
    if not names:
        return "There is no dataset in nnUNet_raw, nnUNet_preprocessed and nnUNet_results."
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{did_you_mean(wanted, names)}There are: {', '.join(names[:most])}{more}."


def dataset_number(name: str) -> int:
    """``"Dataset501_X"`` -> 501."""
    return int(name[len("Dataset") :][:3])


def raw_dataset(dataset: int | str) -> Path:
    """Raw folder of a dataset; it must hold dataset.json."""
    folder = root("nnUNet_raw") / dataset_name(dataset)
    if not (folder / "dataset.json").is_file():
        raise UserError(
            f"{folder / 'dataset.json'} does not exist. Convert or merge dataset {dataset} first. {_datasets_in_words(folder.name)}"
        )
    return folder


def preprocessed_dataset(dataset: int | str) -> Path:
    """Preprocessed folder of a dataset; it must hold dataset.json."""
    name = dataset_name(dataset)
    folder = root("nnUNet_preprocessed") / name
    if not (folder / "dataset.json").is_file():
        raise UserError(f"{folder / 'dataset.json'} does not exist. Run nnUNetv2_plan_and_preprocess -d {dataset_number(name)}")
    return folder


def plans_file(dataset: int | str, plans: str = "nnUNetPlans") -> Path:
    """Plans file of a dataset. Raises :class:`UserError` that lists the ones there are."""
    folder = preprocessed_dataset(dataset)
    path = folder / f"{plans}.json"
    if not path.is_file():
        others = sorted(i.stem for i in folder.glob("*Plans*.json"))
        raise UserError(
            f"{path} does not exist. {did_you_mean(plans, others)}Plans of this dataset: {', '.join(others) or 'none'}."
        )
    return path


def require_configuration(plans: Mapping[str, Any], configuration: str) -> None:
    """Raises :class:`UserError` that lists the configurations of ``plans`` unless they have this one."""
    names = list(plans.get("configurations", {}))
    if configuration not in names:
        raise UserError(
            f"plans {plans.get('plans_name')} have no configuration {configuration!r}. {did_you_mean(configuration, names)}"
            f"They have: {', '.join(names)}."
        )


def model_folder(dataset: int | str, trainer: str, plans: str, configuration: str) -> Path:
    """``nnUNet_results/DatasetNNN_X/TRAINER__PLANS__CONFIGURATION``, there or not."""
    return root("nnUNet_results") / dataset_name(dataset) / f"{trainer}__{plans}__{configuration}"


def trained_models() -> list:
    """Every model folder below nnUNet_results, where that is set, of which a fold is trained to its end; sorted."""
    value = os.environ.get("nnUNet_results")
    found = Path(value).glob(f"Dataset*/*__*__*/fold_*/{FINAL_CHECKPOINT}") if value else ()
    return sorted({i.parent.parent for i in found})


def trained_models_in_words(most: int = 6) -> str:
    """The sentence that follows when a model is not there: those that are."""
    found = trained_models()
    if not found:
        return "No model is trained in nnUNet_results: train one with nnUNetv2_train."
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"Trained are: {', '.join(map(str, found[:most]))}{more}."


def fold_folder(model: str | Path, fold: int | str) -> Path:
    """``MODEL/fold_N``."""
    return Path(model) / f"fold_{fold}"


def final_checkpoint(model: str | Path, fold: int | str) -> Path:
    """The checkpoint at the end of the training of one fold, there or not."""
    return fold_folder(model, fold) / FINAL_CHECKPOINT
