"""What the files of a model make nnU-Net import and call, found and checked before anything is built from them.

nnU-Net finds classes and functions by the names that plans.json, dataset.json and checkpoints give. Whoever writes these
files therefore chooses what runs. Allowed are classes of torch.nn and dynamic_network_architectures, nnU-Net's own and this
package's, by where they really live; others need the user's word, ``--trust``. Every command that reads a model of any origin
comes through here. The checkpoint itself is read by :func:`nnunet_partial.files.load_checkpoint`, trusted or not.
"""

import functools
import io
import os
import pydoc
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import FunctionType
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, load_checkpoint, read_json
from nnunet_partial.labels import check_dataset_names, check_file_name

TORCH, ARCHITECTURES = "torch.nn", "dynamic_network_architectures"
# where a class that plans name in full may live; nnU-Net's and ours only where networks are
ROOTS = (TORCH, ARCHITECTURES, "nnunetv2.training", "nnunet_partial.networks")
# imported by name whether or not plans list them under _kw_requires_import: some trainers do so on their own
_IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_OLD_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")  # what nnU-Net converts old plans of
# key -> package of nnU-Net in which it looks for a class (or function) of that name, and what it must be
_OF_PLANS = {
    "image_reader_writer": ("imageio", "imageio.base_reader_writer.BaseReaderWriter"),
    "label_manager": ("utilities.label_handling", "utilities.label_handling.label_handling.LabelManager"),
    "experiment_planner_used": (
        "experiment_planning",
        "experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner",
    ),
}
_OF_CONFIGURATIONS: dict[str, tuple[str, str | None]] = {
    "preprocessor_name": ("preprocessing", "preprocessing.preprocessors.default_preprocessor.DefaultPreprocessor"),
    "normalization_schemes": (
        "preprocessing.normalization",
        "preprocessing.normalization.default_normalization_schemes.ImageNormalization",
    ),
    **dict.fromkeys(
        ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"), ("preprocessing.resampling", None)
    ),
}
_NAMES = ("data_identifier", "previous_stage", "next_stage", "inherits_from")  # these become names of folders


def check_model(folder: PathLike, checkpoint: PathLike | None = None, trusted: bool = False) -> tuple:
    """Check everything that a model's files make nnU-Net import: ``(plans, dataset.json, checkpoint or None)``.

    ``trusted``: the user vouches for the architecture that plans.json names. Raises :class:`UserError` for the first thing
    that is not allowed, or for a file that cannot be read.
    """
    folder = Path(folder)
    plans, dataset_json = (read_json(folder / i, "A model folder holds it.") for i in ("plans.json", "dataset.json"))
    check_plans(plans, folder / "plans.json", trusted)
    check_dataset_json(dataset_json, folder / "dataset.json")
    if checkpoint is None:
        return plans, dataset_json, None
    content = load_checkpoint(checkpoint)
    configuration = content.get("init_args", {}).get("configuration")
    if not isinstance(content.get("trainer_name"), str) or configuration is None:
        raise UserError(
            f"checkpoint {checkpoint} names no trainer or no configuration; it is not one of nnU-Net v2. Use a model that "
            f"nnUNetv2_train wrote."
        )
    check_file_name(configuration, f"checkpoint {checkpoint}: configuration")
    find_trainer(content["trainer_name"], f"checkpoint {checkpoint}")
    return plans, dataset_json, content


def check_plans(plans: Any, file: PathLike, trusted: bool = False, networks: bool = True) -> None:
    """Raises :class:`UserError` for the first name in plans that must not be imported, or become a path.

    ``networks``: check architectures too. Plans in nnUNet_preprocessed are the user's own (nnUNetv2_train builds whatever they
    name), so of these only the rest is checked.
    """
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise UserError(f"{file} is not nnU-Net's plans: it has no 'configurations'. Copy the model again.")
    for key in ("dataset_name", "plans_name"):
        if key in plans:
            check_file_name(plans[key], f"{file}: {key}")
    for key, place in _OF_PLANS.items():
        if key in plans:
            _check_own(plans[key], *place, f"{file}: {key}")
    for name, configuration in plans["configurations"].items():
        check_file_name(name, f"{file}: configuration")
        _check_configuration(configuration, f"{file}: {name}", trusted or not networks)


def check_dataset_json(content: Any, file: PathLike) -> None:
    """Raises :class:`UserError` for a reader that must not be imported, and for names that must not become paths."""
    check_dataset_names(content, str(file))
    reader = content.get("overwrite_image_reader_writer", "None")
    if reader != "None":
        _check_own(reader, *_OF_PLANS["image_reader_writer"], f"{file}: overwrite_image_reader_writer")


def find_trainer(name: Any, where: str) -> type:
    """The trainer of this name, as nnU-Net finds it: its own, ours, and those of the folders in ``nnUNet_extTrainer``, which
    whoever sets that variable trusts. Raises :class:`UserError`, which names ``where``, if there is none."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"{where} names the trainer {str(name)[:80]!r}, which is no name of a class. Do not use this model.")
    try:
        with redirect_stdout(io.StringIO()):  # nnU-Net tells how it searches
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):
        raise UserError(
            f"the trainer {name} of {where} is not found, so its architecture is unknown. Install what it comes from, or add "
            f"its folder to nnUNet_extTrainer."
        ) from None


def find_planner(name: Any, where: str) -> type:
    """nnU-Net's experiment planner of this name. Raises :class:`UserError`, which names ``where``, if there is none."""
    _check_own(name, *_OF_PLANS["experiment_planner_used"], where)
    found = _own(name, "experiment_planning")
    if found is None:
        raise UserError(
            f"{where}: nnU-Net has no experiment planner {name!r}. Plan the dataset again with nnUNetv2_plan_experiment."
        )
    return found


def locate(name: str) -> Any:
    """What a name in plans stands for, as nnU-Net imports it; None if there is nothing of that name."""
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{name}, which plans name, cannot be imported ({error.value}).") from None


# ------------------------------------------------------------------ one configuration


def _check_configuration(content: Any, where: str, trusted: bool) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a configuration of nnU-Net's plans. Copy the model again.")
    for key in _NAMES:
        for name in content[key] if isinstance(content.get(key), list) else [content.get(key)]:
            if name is not None:
                check_file_name(name, f"{where}: {key}")
    for key, (package, base) in _OF_CONFIGURATIONS.items():
        for name in content[key] if isinstance(content.get(key), list) else [content.get(key)]:
            if name is not None:
                _check_own(name, package, base, f"{where}: {key}")
    if content.get("UNet_class_name", _OLD_NETWORKS[0]) not in _OLD_NETWORKS:
        _refuse(content["UNet_class_name"], f"{where}: UNet_class_name", f"one of {', '.join(_OLD_NETWORKS)}")
    if "architecture" in content and not trusted:
        _check_architecture(content["architecture"], f"{where}: architecture")


def _check_architecture(content: Any, where: str) -> None:
    wellformed = isinstance(content, dict) and isinstance(content.get("arch_kwargs"), dict)
    listed = content.get("_kw_requires_import", []) if wellformed else None
    if not isinstance(listed, list) or not all(isinstance(i, str) for i in listed):
        raise UserError(f"{where} is not an architecture of nnU-Net's plans. Copy the model again.")
    name = content.get("network_class_name")
    found = _locate_allowed(name, f"{where}.network_class_name") or _moved_network(str(name))
    if not _is_network(found):
        _refuse(name, f"{where}.network_class_name", f"a network of {', '.join(ROOTS)}", _MAY_BE_TRUSTED)
    for key, value in _imports(content["arch_kwargs"], {*listed, *_IMPORTED}):
        found = _locate_allowed(value, f"{where}.{key}")
        if not _is_layer(found):
            _refuse(value, f"{where}.{key}", f"a class of {', '.join(ROOTS)}", _MAY_BE_TRUSTED)


def _imports(value: Any, imported: set, key: str = "") -> Iterator[tuple]:
    """(key, value) of everything in keyword arguments, nested ones too, that is or may be imported."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _imports(inner, imported, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _imports(inner, imported, key)
    elif value is not None and (key in imported or isinstance(value, str) and _DOTTED.fullmatch(value)):
        yield key, value


def _locate_allowed(name: Any, where: str) -> Any:
    """What the name stands for. Looked up only below the allowed packages: looking up imports modules."""
    if not isinstance(name, str) or not _DOTTED.fullmatch(name) or not name.startswith(tuple(i + "." for i in ROOTS)):
        _refuse(name, where, f"a class of {', '.join(ROOTS)}", _MAY_BE_TRUSTED)
    return locate(name)


def _moved_network(name: str) -> Any:
    """Where nnU-Net looks for a network that is not where plans say."""
    import dynamic_network_architectures
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(dynamic_network_architectures.__path__[0], "architectures")
    return recursive_find_python_class(folder, name.split(".")[-1], "dynamic_network_architectures.architectures")


def _is_network(found: Any) -> bool:
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module) and _lives_below(found, *ROOTS)


def _is_layer(found: Any) -> bool:
    """A network, or anything that dynamic_network_architectures itself defines at the top of a module."""
    own = isinstance(found, (type, FunctionType)) and _lives_below(found, ARCHITECTURES) and "." not in found.__qualname__
    return _is_network(found) or own


def _lives_below(found: Any, *roots: str) -> bool:
    return f"{found.__module__}.".startswith(tuple(i + "." for i in roots))


def _check_own(name: Any, package: str, base: str | None, where: str) -> None:
    """A bare name that nnU-Net looks for in a package of its own. What it does not find it does not import either."""
    what = f"one of nnU-Net's own in nnunetv2.{package}"
    if not isinstance(name, str) or not name.isidentifier():
        _refuse(name, where, what)
    found = _own(name, package)
    if found is None:
        return
    if base is None:
        allowed = isinstance(found, FunctionType) and _lives_below(found, f"nnunetv2.{package}")
    else:
        allowed = isinstance(found, type) and issubclass(found, locate(f"nnunetv2.{base}")) and _lives_below(found, "nnunetv2")
    if not allowed:
        _refuse(name, where, what)


@functools.lru_cache(maxsize=64)
def _own(name: str, package: str) -> Any:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    return recursive_find_python_class(os.path.join(nnunetv2.__path__[0], *package.split(".")), name, f"nnunetv2.{package}")


_MAY_BE_TRUSTED = "If you trust whoever made this model, add --trust (for teachers of a training: --set mskd.trust=true)."


def _refuse(name: Any, where: str, allowed: str, remedy: str = "Use the model as nnU-Net wrote it.") -> None:
    raise UserError(
        f"{where} is {ascii(name)[:80]}, which is not {allowed}: using it could run code, so it is not used. {remedy}"
    )
