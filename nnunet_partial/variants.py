"""Plans variants: other settings, network, batch or patch size; the same preprocessing."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, write_json
from nnunet_partial.labels import Annotations, check_source_name
from nnunet_partial.methods import find_trainer_source, trainers_with_block
from nnunet_partial.recipes import Recipe, read_recipe, samples_of_an_epoch
from nnunet_partial.settings import BLOCKS, KEY, NETWORK_CHANGES, RunSettings, merged, unknown_blocks
from nnunet_partial.trust import check_plans, find_trainer

_PER_STAGE = ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage")


def variant_identifier(base: str, name: str) -> str:
    """``nnUNetPlans`` and ``tiny`` -> ``nnUNetPlans_tiny``."""
    return f"{base}_{check_source_name(name)}"


def write_variant(
    dataset: int | str,
    name: str,
    changes: Mapping[str, Any],
    base: str = "nnUNetPlans",
    configuration: str | None = None,
    overwrite: bool = False,
    trainers: Sequence[str] = (),
    recipe: str | None = None,
) -> Path:
    """Write ``<base>_<name>.json`` beside the plans ``base`` and return its path.

    ``changes`` are settings of :class:`~nnunet_partial.settings.RunSettings` (nested) and the changes of nnU-Net's own
    configuration ``features``, ``batch_size`` and ``patch_size``, which apply to ``configuration`` or, without it, to
    every configuration that they fit. Settings of ``base`` stay unless changed. ``trainers``: names of those whose own
    settings are among them, as stock nnU-Net finds them. ``recipe``: a paper's settings (:mod:`nnunet_partial.recipes`), all
    of which are written; ``changes`` override them. Raises :class:`UserError`.
    """
    base_file = paths.plans_file(dataset, base)
    target = base_file.with_name(variant_identifier(base, name) + ".json")
    planned, axes_of = read_json(base_file), {}
    if recipe is not None:
        changes, axes_of = _with_recipe(read_recipe(recipe), planned, base_file.parent, changes, configuration)
    plans = make_variant(planned, target.stem, changes, configuration, trainers, axes_of)
    source = plans[KEY].get("source")
    if source is not None:
        Annotations.read(base_file.parent).restricted_to_source(source)
    if target.exists() and not overwrite and read_json(target) != plans:
        raise UserError(
            f"{target} exists with other settings. Choose another --name, or replace it with --overwrite "
            f"(models trained with it keep their own copy)."
        )
    write_json(plans, target)
    return target


def write_plans_of_model(dataset: int | str, name: str, model: PathLike, overwrite: bool = False, trusted: bool = False) -> Path:
    """Write ``nnUNetPlans_<name>.json`` for ``dataset``: the plans of a trained model, so that images are preprocessed as it saw
    them and networks are as its own. Its settings of this package stay behind.

    ``model``: an nnU-Net model folder. ``trusted``: the user vouches for the architecture that its plans name. The data of these
    plans is preprocessed by itself (nnUNetv2_preprocess). Raises :class:`UserError`.
    """
    folder, file = paths.preprocessed_dataset(dataset), Path(model) / "plans.json"
    planned = read_json(file, "A model folder, such as nnUNetTrainer__nnUNetPlans__3d_fullres, holds it.")
    check_plans(planned, file, trusted)
    plans = _moved(planned, folder.name, variant_identifier("nnUNetPlans", name))
    plans["image_reader_writer"] = _reader(folder, planned["image_reader_writer"])
    target = folder / f"{plans['plans_name']}.json"
    if target.exists() and not overwrite and read_json(target) != plans:
        raise UserError(f"{target} exists with other plans. Choose another --name, or replace it with --overwrite.")
    write_json(plans, target)
    return target


def _moved(plans: Mapping[str, Any], dataset: str, identifier: str) -> dict:
    """Plans of another dataset as ``identifier`` of this one, as nnUNetv2_move_plans_between_datasets names things."""
    moved = {k: deepcopy(v) for k, v in plans.items() if k not in (KEY, "continue_training")}
    moved.update(dataset_name=dataset, plans_name=identifier)
    for configuration in moved["configurations"].values():
        if "data_identifier" in configuration:
            end = configuration["data_identifier"].removeprefix(plans["plans_name"]).removeprefix("_")
            configuration["data_identifier"] = f"{identifier}_{end}"
    return moved


def _reader(folder: Path, models: str) -> str:
    """The reader of this dataset's images, as its own plans have it; the model's where there are none."""
    own = sorted(folder.glob("nnUNet*Plans.json"))
    return read_json(own[0]).get("image_reader_writer", models) if own else models


def write_source_variants(
    dataset: int | str,
    changes: Mapping[str, Any] | None = None,
    base: str = "nnUNetPlans",
    configuration: str | None = None,
    overwrite: bool = False,
    trainers: Sequence[str] = (),
    recipe: str | None = None,
) -> list:
    """One variant ``<base>_<source>`` for every source that annotates something: the plans of the teachers."""
    annotations = Annotations.read(paths.preprocessed_dataset(dataset))
    return [
        write_variant(dataset, i, {**(changes or {}), "source": i}, base, configuration, overwrite, trainers, recipe)
        for i in annotations.annotated_sources
    ]


def make_variant(
    plans: Mapping[str, Any],
    identifier: str,
    changes: Mapping[str, Any],
    configuration: str | None = None,
    trainers: Sequence[str] = (),
    axes_of: Mapping[str, int] = MappingProxyType({}),
) -> dict:
    """The variant as a dict; ``plans`` stays unchanged. ``axes_of``: change of nnU-Net's configuration -> the number of axes of
    the patches of those that it applies to; without an entry to all."""
    variant = deepcopy(dict(plans))
    network_changes = {k: v for k, v in changes.items() if k in NETWORK_CHANGES}
    settings = {k: v for k, v in changes.items() if k not in NETWORK_CHANGES}
    variant["plans_name"] = identifier
    variant[KEY] = merged(plans.get(KEY, {}), {**settings, "base_plans": plans["plans_name"]})
    check_settings(variant, trainers)
    for name in _target_configurations(variant, configuration):
        axes = patch_axes(variant, name)
        own = {k: v for k, v in network_changes.items() if axes_of.get(k, axes) == axes}
        _change_configuration(variant["configurations"], name, own, chosen=configuration is not None)
    _check_all_used(plans, variant, network_changes)
    check_deep_supervision(variant, network_changes)
    return variant


def _with_recipe(
    recipe: Recipe, plans: Mapping[str, Any], folder: Path, changes: Mapping[str, Any], configuration: str | None
) -> tuple:
    """``(settings of the recipe with changes laid over them, axes of those that are not for every configuration)``."""
    names = _target_configurations(plans, configuration)
    axes = {patch_axes(plans, i) for i in names}
    if configuration is None and recipe.axes is not None and recipe.axes not in axes:
        raise UserError(
            f"--recipe {recipe.name} is of networks with patches of {recipe.axes} axes, and plans {plans['plans_name']} have no "
            f"such configuration. Plan one with nnUNetv2_plan_and_preprocess -c {'2d' if recipe.axes == 2 else '3d_fullres'}, or "
            f"take what does not depend on it: --configuration {names[0]}"
        )
    counts = samples_of_an_epoch(folder, plans)
    settings = recipe.values(None if configuration is None else axes.pop(), counts, changes.get("batch_size"))
    axes_of = {k: v for k, v in recipe.axes_of.items() if k not in changes}
    return merged(settings, {**changes, "recipe": recipe.name}), axes_of


def check_settings(variant: dict, trainers: Sequence[str]) -> None:
    """Check every setting of the plans ``variant``, and note in it which of ``trainers`` a block belongs to."""
    owners, settings = {}, variant[KEY]
    # settings of the plans that this variant was made from may be changed without naming their trainer again
    for name in dict.fromkeys((*trainers, *settings.get("trainers", {}).values())):
        block, cls = declared_block(name)
        if block is not None:
            owners[block] = (name, cls)
    blocks = {block: cls for block, (_, cls) in owners.items()}
    for block in unknown_blocks(settings, blocks):
        candidates = trainers_with_block(block)
        if candidates:
            raise UserError(f"{block} holds settings of {' and '.join(candidates)}: add --trainer {candidates[0]}.")
    try:
        RunSettings.from_plans(variant, blocks)
    except UserError as error:
        raise UserError(f"{error} Of nnU-Net's own configuration these can be changed: {', '.join(NETWORK_CHANGES)}.") from None
    noted = {block: name for block, (name, _) in owners.items() if block in settings and block not in BLOCKS}
    if noted:
        settings["trainers"] = {**settings.get("trainers", {}), **noted}


def declared_block(trainer: str) -> tuple:
    """``(name of its block of settings, dataclass)`` of a trainer that stock nnU-Net finds; ``(None, None)`` if it has none.

    Raises :class:`UserError` for one that is not found. Only a trainer whose block is not in
    :data:`~nnunet_partial.settings.BLOCKS` is imported, and torch with it.
    """
    block = find_trainer_source(trainer).settings_name
    if block is None or block in BLOCKS:
        return block, BLOCKS.get(block or "")
    found: Any = find_trainer(trainer, "--trainer")
    return found.settings_name, found.settings_class


def _target_configurations(plans: Mapping[str, Any], configuration: str | None) -> list:
    names = list(plans["configurations"])
    if configuration is None:
        return [i for i in names if "inherits_from" not in plans["configurations"][i]]
    paths.require_configuration(plans, configuration)
    return [configuration]


def patch_axes(plans: Mapping[str, Any], configuration: str) -> int:
    """Number of axes of the patches of a configuration."""
    return len(_resolved(plans["configurations"], configuration)["patch_size"])


def _resolved(configurations: Mapping[str, Any], name: str) -> dict:
    own = configurations[name]
    parent = _resolved(configurations, own["inherits_from"]) if "inherits_from" in own else {}
    return {**parent, **deepcopy(own)}


def _change_configuration(configurations: dict, name: str, changes: Mapping[str, Any], chosen: bool) -> None:
    resolved, own = _resolved(configurations, name), configurations[name]
    if "batch_size" in changes:
        own["batch_size"] = _positive_integers([changes["batch_size"]], "batch_size")[0]
    if "features" in changes:
        own["architecture"] = _with_features(resolved["architecture"], changes["features"])
    if "patch_size" in changes:
        patch_size = _positive_integers(changes["patch_size"], "patch_size")
        if len(patch_size) == len(resolved["patch_size"]):
            own["patch_size"] = patch_size
        elif chosen:
            raise UserError(
                f"patch_size {patch_size} does not fit configuration {name}, whose patches have "
                f"{len(resolved['patch_size'])} axes."
            )
    _check_patch_size(_resolved(configurations, name), name)


def _positive_integers(values: Any, name: str) -> list:
    values = values if isinstance(values, (list, tuple)) else [values]
    if not values or any(isinstance(i, bool) or not isinstance(i, int) or i < 1 for i in values):
        raise UserError(f"{name} must be made of whole numbers from 1, found {values!r}.")
    return list(values)


def _with_features(architecture: Mapping[str, Any], features: Any) -> dict:
    """Other features per stage. Fewer features than planned stages drop the deepest stages."""
    features = _positive_integers(features, "features")
    result = deepcopy(dict(architecture))
    arguments = result["arch_kwargs"]
    planned = arguments["n_stages"]
    if not 2 <= len(features) <= planned:
        raise UserError(f"features must name 2 to {planned} stages (the plan has {planned}), found {features}.")
    arguments["n_stages"] = len(features)
    arguments["features_per_stage"] = features
    for key in _PER_STAGE:
        if isinstance(arguments.get(key), list):
            arguments[key] = arguments[key][: len(features)]
    if isinstance(arguments.get("n_conv_per_stage_decoder"), list):
        arguments["n_conv_per_stage_decoder"] = arguments["n_conv_per_stage_decoder"][: len(features) - 1]
    return result


def _check_patch_size(configuration: Mapping[str, Any], name: str) -> None:
    factors = np.prod(configuration["architecture"]["arch_kwargs"]["strides"], axis=0).astype(int).tolist()
    if any(i % j for i, j in zip(configuration["patch_size"], factors)):
        raise UserError(
            f"patch_size {configuration['patch_size']} of configuration {name} must be divisible by {factors}, the "
            f"product of the network's strides."
        )


def _check_all_used(plans: Mapping[str, Any], variant: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    if "patch_size" in changes and not any(
        i.get("patch_size") == list(changes["patch_size"]) for i in variant["configurations"].values()
    ):
        axes = sorted({len(i["patch_size"]) for i in plans["configurations"].values() if "patch_size" in i})
        raise UserError(
            f"patch_size {changes['patch_size']} fits no configuration of {plans['plans_name']}, whose patches have "
            f"{' or '.join(map(str, axes))} axes."
        )


def check_deep_supervision(variant: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """nnU-Net gives the lowest of its outputs weight 0: with two stages that is the only one, and the loss becomes NaN."""
    if len(changes.get("features", (0, 0, 0))) < 3 and variant[KEY].get("deep_supervision", True):
        raise UserError(
            f"features {changes['features']}: deep supervision needs three stages. Name three, or add "
            f"--set deep_supervision=false."
        )
