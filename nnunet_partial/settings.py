"""The settings of a run, each with its default, unit and check; and the plans variants that carry them.

nnU-Net gives a trainer nothing but plans, configuration, fold and dataset.json, and saves the plans with the model.
What a run does differently therefore stands in its plans file, under the key ``nnunet_partial``. A plans variant is a
plans file that differs from the planned one in such settings (and, on request, in network, batch and patch size), never
in preprocessing: it names the same ``data_identifier``, so nothing is preprocessed again.

:class:`RunSettings` is what every trainer has. What a method needs beyond that is a *block*: a mapping under a name of its
own, read into the frozen dataclass that its trainer declares (``settings_name``, ``settings_class``). The blocks in
:data:`BLOCKS` stand here because commands that never import torch write and check them; any other is known through its
trainer alone.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.paths import FINAL_CHECKPOINT

KEY = "nnunet_partial"
#: what a variant may change of nnU-Net's own configuration, with its meaning; everything else is a setting
NETWORK_CHANGES = MappingProxyType(
    {
        "features": "features of each stage of the network; fewer stages than planned drop the deepest ones",
        "batch_size": "patches of a training step",
        "patch_size": "size of a patch, in the order of the plans; divisible by the network's strides",
    }
)
SGD_MOMENTUM = 0.99  # nnU-Net's
POLY_EXPONENT = 0.9  # nnU-Net's
# nnU-Net's first trainer waited for 30 epochs; factor and threshold are those of Feng et al. 2021
PLATEAU = MappingProxyType({"factor": 0.8, "threshold": 1e-3, "patience": 30})
#: what optimizer=paper meant until version 0.1, whatever else the plans said
OPTIMIZER_PAPER = MappingProxyType(
    {"optimizer": "sgd", "initial_lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": False, "schedule": "cosine"}
)


class _Dataclass(Protocol):
    """Any dataclass, as the standard library knows them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Block = TypeVar("Block", bound=_Dataclass)


def setting(
    default: Any,
    help: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with what a user needs to know about it: meaning, unit, and the allowed range or values.

    ``methods``: the short names of those that read it, () for none that is trained; None: every one that has the block.
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices, "methods": methods}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class MSKDSettings:
    """MS-KD (Feng et al. 2021), Eq. 8. The weights are the paper's, whose logit terms are at full resolution alone: ``scales=full``."""

    lambda_background: float = setting(1.0, "weight of the background logit term (lambda_1)", low=0)
    lambda_feature: float = setting(10.0, "weight of the feature term (lambda_2)", low=0, methods=("mskd", "mskdplus"))
    lambda_marginal: float = setting(1.0, "weight of the marginal loss on annotated voxels", low=0, methods=("mskdplus",))
    feature_level: int = setting(
        1, "decoder level of the feature term, 0 = full resolution", unit="levels", low=0, methods=("mskd", "mskdplus")
    )
    teachers: dict | str = setting(
        {},
        "source -> model folder of its teacher; sources not named are found by convention. soft: the soft labels of the label "
        "directory (setting labels) take the teachers' place",
        choices=("soft",),
    )
    sources: list | None = setting(None, "sources whose teachers teach; None: every source that annotates something")
    teacher_checkpoint: str = setting(FINAL_CHECKPOINT, "file name of the teachers' checkpoints")
    trust: bool = setting(False, "build the teachers' networks whatever classes their plans name; only for models you trust")
    scales: str = setting(
        "all",
        "resolutions of the logit terms: all that the decoder is trained on, with nnU-Net's weights, or full, as Eq. 8 is "
        "printed; deep_supervision=false trains nothing else in any term",
        choices=("all", "full"),
    )
    by_region: float = setting(
        0.0,
        "share of training at whose start the logit terms are divided by the voxels of each region, which turns evenly into all "
        "voxels (Eqs. 4 and 6) at its end: small organs are found sooner",
        low=0,
        high=1,
    )

    @property
    def learns_from_soft_labels(self) -> bool:
        """Whether soft labels take the teachers' place."""
        return self.teachers == "soft"

    @property
    def teacher_folders(self) -> Mapping[str, str]:
        """source -> model folder, as far as the setting names them."""
        return self.teachers if isinstance(self.teachers, Mapping) else {}


@dataclass(frozen=True)
class PartialSettings:
    """Marginal and exclusion loss (Shi et al. 2021) of nnUNetTrainerPartial."""

    lambda_exclusion: float = setting(
        0.0, "weight of the exclusion loss: classes that a case does not annotate are not where it shows annotated ones", low=0
    )


@dataclass(frozen=True)
class CoTrainingSettings:
    """Co-training of weight-averaged models (Huang et al. 2020), Eqs. 1 to 6. The defaults are the paper's where it
    gives them."""

    lambda_focal: float = setting(1.0, "weight of the focal loss", low=0)
    lambda_dice: float = setting(0.1, "weight of the Dice loss", low=0)
    lambda_soft: float = setting(0.1, "weight of the soft labels after the ramp-up", low=0)
    gamma: float = setting(2.0, "exponent of the focal loss: 0, or at least 1", low=0)
    ema_decay: float = setting(0.999, "alpha of the weight averages (Eq. 3)", low=0, high=1)
    ramp: float = setting(0.25, "share of the training over which the soft labels' weight rises", low=0, high=1)
    region: str = setting(
        "equation",
        "region mask: equation (all but annotated organs) or dilated (near pseudo labels)",
        choices=("equation", "dilated"),
    )
    region_dilation: int = setting(3, "dilation of the pseudo labels for region=dilated", unit="voxels", low=0)
    class_weights: list | None = setting(
        None, "weights of the foreground classes in the focal loss; None: inverse to the mean organ volume"
    )
    background_weight: float = setting(1.0, "weight of the background in the focal loss; the organs' mean is 1", low=0)


@dataclass(frozen=True)
class ATSOSettings:
    """Asynchronous teacher-student optimisation (Huo et al. 2021), Algorithm 1: one model of one generation."""

    initial_weights: str | None = setting(None, "checkpoint whose network weights, all of them, the training starts from")
    super_classes: dict = setting({}, "super-class -> classes; pseudo labels are trusted at this level only")
    task: str = setting(
        "classes",
        "what the network tells apart: classes, or super_classes alone, unions of classes as a task of its own",
        choices=("classes", "super_classes"),
    )
    exclude: str | None = setting(None, "JSON file whose 'excluded' names pseudo-labelled cases to leave out")
    final_validation: bool = setting(True, "predict the fold's validation cases after training, as nnU-Net does")


@dataclass(frozen=True)
class CrossTeachingSettings:
    """Distillation from cross-teaching teachers (Choi 2022). The defaults are the paper's where it gives them."""

    size: str = setting(
        "plans",
        "networks with the stages, features and kernels of the plans, or paper: the paper's (3D, features 32 to 512)",
        choices=("plans", "paper"),
    )
    blocks_per_stage: list | None = setting(None, "residual blocks of each encoder stage; None: 1, 2, 3, ...")
    weighting: str = setting(
        "paper",
        "weight of distillation on unlabelled cases: paper (lambda_ssl lambda_distillation "
        "r^2) or code (lambda_distillation r^2)",
        choices=("paper", "code"),
    )
    lambda_distillation: float = setting(10.0, "weight of distillation after the ramp-up", low=0)
    lambda_ssl: float = setting(0.1, "weight of cross teaching and pseudo-supervision after the ramp-up", low=0)
    alpha: float = setting(0.5, "factor of the focal loss", low=0)
    gamma: float = setting(2.0, "exponent of the focal loss: 0, or at least 1", low=0)
    batch_dice: bool = setting(True, "Dice of the whole batch, as in the paper's code, not of each sample")
    sampling: str = setting(
        "balanced",
        "balanced: half of a batch from labelled cases, half from cases that lack classes; uniform: every case alike",
        choices=("balanced", "uniform"),
    )


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run. ``None`` keeps nnU-Net's own value."""

    num_epochs: int = setting(1000, "length of the training", unit="epochs", low=1)
    num_iterations_per_epoch: int = setting(250, "training steps of an epoch", unit="steps", low=1)
    num_val_iterations_per_epoch: int = setting(50, "validation steps of an epoch", unit="steps", low=1)
    optimizer: str = setting(
        "sgd", "sgd (nnU-Net's), adam (weight decay is part of the gradient) or adamw", choices=("sgd", "adam", "adamw")
    )
    momentum: float | None = setting(None, "momentum of sgd; None: nnU-Net's 0.99", low=0, high=1)
    nesterov: bool | None = setting(None, "Nesterov's momentum with sgd; None: wherever there is momentum, as in nnU-Net")
    initial_lr: float = setting(1e-2, "learning rate at the start of the schedule", low=0)
    schedule: str = setting(
        "poly",
        "learning rate over the epochs: poly (nnU-Net's), cosine, constant, or plateau (times plateau_factor when the training "
        "loss has stopped falling)",
        choices=("poly", "cosine", "plateau", "constant"),
    )
    plateau_factor: float | None = setting(None, "schedule=plateau: factor of the learning rate; None: 0.8", low=0, high=1)
    plateau_threshold: float | None = setting(
        None, "schedule=plateau: a smaller fall below the best epoch's loss is none; None: 1e-3", low=0
    )
    plateau_patience: int | None = setting(
        None, "schedule=plateau: epochs in a row without a fall that are let pass; None: 30", unit="epochs", low=0
    )
    weight_decay: float = setting(3e-5, "weight decay", low=0)
    clip_gradient: float = setting(12.0, "largest norm of a network's gradient (nnU-Net's: 12); 0: any", low=0)
    ema_decay: float | None = setting(
        None,
        "predict and validate with the exponential average of the weights, of this decay after each step (0.999 averages over a "
        "thousand steps); the training is the same. None: with the weights as they are, as nnU-Net does. Co-training's rows that "
        "have averages go by co_training.ema_decay instead",
        low=0,
        high=1,
    )
    mirroring: list | None = setting(
        None,
        "axes of the patch that are mirrored in training and prediction, [] for none, so that left and right classes can be "
        "told apart; None: all, as in nnU-Net",
        unit="axes",
    )
    sampling: str = setting(
        "case",
        "how training cases are drawn: case (all alike, as in nnU-Net), source (every source as often), or class (every class "
        "that is annotated by hand as often, and cases that annotate nothing as one class)",
        choices=("case", "source", "class"),
    )
    oversample_foreground_percent: float = setting(0.33, "share of patches around an annotated voxel", low=0, high=1)
    deep_supervision: bool = setting(True, "train on every resolution of the decoder, as nnU-Net does")
    save_every: int = setting(50, "checkpoint_latest.pth is written this often", unit="epochs", low=1)
    seed: int | None = setting(
        None, "seed of initialisation and augmentation; exact with single-threaded augmentation only", low=0
    )
    final_validation: bool = setting(
        True,
        "predict the fold's validation cases after the training, as nnU-Net does; on short trainings it takes longer than they do. "
        "nnUNetv2_train ... --val does it later in any case",
    )
    source: str | None = setting(None, "the one source that nnUNetTrainerIndividual trains on", methods=("individual",))
    initial_weights: str | None = setting(
        None,
        "checkpoint that the training starts from (nnU-Net, MultiTalent, nnssl): layers that fit are taken, classes by their names; "
        "the encoder must fit. {fold} in it stands for the fold",
    )
    labels: str | None = setting(
        None, "label directory of the training cases (nnunet_partial pseudo-label); {fold} in it stands for the fold"
    )
    exclude: str | None = setting(
        None,
        "text file of cases, one a line, whose pseudo labels are left out (nnunet_partial check --labels --worst writes one): they "
        "train on what is annotated by hand, or, where a method cannot, not at all; {fold} in it stands for the fold",
    )
    untaught: str = setting(
        "refuse",
        "classes that no training case of the fold annotates: refuse to train, or mask: train without them, and never predict them",
        choices=("refuse", "mask"),
    )
    base_plans: str | None = setting(None, "plans that this variant was made from; nnunet_partial variant sets it", methods=())
    recipe: str | None = setting(
        None, "the recipe that settings were taken from; nnunet_partial variant --recipe sets it", methods=()
    )
    trainers: dict = setting(
        {}, "block of settings -> trainer that declares it; nnunet_partial variant --trainer sets it", methods=()
    )

    @property
    def sgd(self) -> dict:
        """``momentum`` and ``nesterov`` of SGD, where they are left out nnU-Net's."""
        momentum = SGD_MOMENTUM if self.momentum is None else self.momentum
        return {"momentum": momentum, "nesterov": momentum > 0 if self.nesterov is None else self.nesterov}

    @property
    def plateau(self) -> dict:
        """``factor``, ``threshold`` and ``patience`` of the schedule ``plateau``."""
        given = {i: getattr(self, f"plateau_{i}") for i in PLATEAU}
        return {i: PLATEAU[i] if value is None else value for i, value in given.items()}

    def learning_rate(self, epoch: int) -> float | None:
        """The learning rate of an epoch, counted from 0, as the schedule sets it; None where that goes by the loss."""
        begun = epoch / self.num_epochs
        factors = {"poly": (1 - begun) ** POLY_EXPONENT, "cosine": (1 + math.cos(math.pi * begun)) / 2, "constant": 1.0}
        return self.initial_lr * factors[self.schedule] if self.schedule in factors else None

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], blocks: Mapping[str, type] = MappingProxyType({})) -> "RunSettings":
        """Read the settings of a plans dict and check its blocks. ``blocks``: those known beyond :data:`BLOCKS`.

        Raises :class:`UserError` naming plans, key and what is allowed.
        """
        return read_run_settings(plans.get(KEY, {}), _where(plans), blocks)


#: block -> its dataclass
BLOCKS: Mapping[str, type] = MappingProxyType(
    {
        "partial": PartialSettings,
        "mskd": MSKDSettings,
        "co_training": CoTrainingSettings,
        "atso": ATSOSettings,
        "cross_teaching": CrossTeachingSettings,
    }
)


def read_run_settings(content: Any, where: str, blocks: Mapping[str, type] = MappingProxyType({})) -> RunSettings:
    """The common settings in ``content``, after a check of everything in it.

    A block is checked where its dataclass is known: in :data:`BLOCKS` or ``blocks``. One of another method is left alone if
    ``trainers`` says whose it is; that trainer checks it. Raises :class:`UserError` for any other key.
    """
    known, common = {**BLOCKS, **blocks}, {}
    declared = content.get("trainers", {}) if isinstance(content, Mapping) else {}
    for name, value in _mapping(content, where, KEY).items():
        if name in known:
            read_settings(known[name], value, where, f"{name}.")
        elif not (isinstance(declared, Mapping) and name in declared and isinstance(value, Mapping)):
            common[name] = value
    if common.get("optimizer") == "paper":
        values = " ".join(f"--set {k}={json.dumps(v)}" for k, v in OPTIMIZER_PAPER.items())
        raise UserError(
            f"{where}: optimizer=paper is no more: it meant one paper's optimiser whatever the method. Take all settings of a "
            f"paper with nnunet_partial variant --recipe (its own was huang2020), or write the optimiser out: {values}"
        )
    settings = read_settings(RunSettings, common, where)
    _check_combinations(settings, where)
    return settings


def without_optimizer_paper(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """``plans`` with what ``optimizer=paper`` meant until version 0.1 written out, for models that are trained already."""
    content = plans.get(KEY, {})
    if not isinstance(content, Mapping) or content.get("optimizer") != "paper":
        return plans
    return {**plans, KEY: {**content, **OPTIMIZER_PAPER}}


def _check_combinations(settings: RunSettings, where: str) -> None:
    """A setting that has no effect beside the others is an error, not a silent surprise."""
    given = {i.name: getattr(settings, i.name) for i in dataclasses.fields(settings)}
    for needed, value, names in (
        ("optimizer", "sgd", ("momentum", "nesterov")),
        ("schedule", "plateau", tuple(f"plateau_{i}" for i in PLATEAU)),
    ):
        idle = next((i for i in names if given[i] is not None), None)
        if given[needed] != value and idle:
            raise UserError(
                f"{where}: setting {idle}={json.dumps(given[idle])} has no effect with {needed}={given[needed]}. Leave it out "
                f"(--set {idle}=None), or set {needed}={value}."
            )
    if settings.sgd["nesterov"] and not settings.sgd["momentum"]:
        raise UserError(f"{where}: setting nesterov=true has no effect without momentum. Set momentum above 0, or leave it out.")
    if settings.plateau_factor is not None and not 0 < settings.plateau_factor < 1:
        raise UserError(f"{where}: setting plateau_factor must lie between 0 and 1, found {settings.plateau_factor}.")
    if settings.ema_decay is not None and settings.ema_decay >= 1:
        raise UserError(f"{where}: setting ema_decay must be below 1, found {settings.ema_decay}: an average that never changes.")
    axes = settings.mirroring or []
    if len(set(map(str, axes))) < len(axes) or any(type(i) is not int or not 0 <= i <= 2 for i in axes):
        raise UserError(f"{where}: setting mirroring must list different axes of 0, 1, 2, or be [] for none, found {axes}.")


def read_block(plans: Mapping[str, Any], name: str, cls: type[Block]) -> Block:
    """The settings ``cls`` of one method, from the block ``name`` of a plans dict. Raises :class:`UserError`."""
    return read_settings(cls, plans.get(KEY, {}).get(name, {}), _where(plans), f"{name}.")


def unknown_blocks(content: Mapping[str, Any], blocks: Mapping[str, type] = MappingProxyType({})) -> list:
    """Names of the blocks in a mapping of settings that nothing here can check, and that no trainer is named for."""
    known = {*BLOCKS, *blocks, *(i.name for i in dataclasses.fields(RunSettings)), *content.get("trainers", {})}
    return [name for name, value in content.items() if isinstance(value, Mapping) and name not in known]


def _where(plans: Mapping[str, Any]) -> str:
    return f"plans {plans.get('plans_name', '?')}"


def _mapping(content: Any, where: str, name: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {name} must be a mapping of settings, found {content!r}.")
    return content


def read_settings(cls: type[Block], content: Any, where: str, prefix: str = "") -> Block:
    """Build the settings dataclass ``cls`` from a dict, checking names, types and ranges."""
    content = _mapping(content, where, prefix or KEY)
    fields = {i.name: i for i in dataclasses.fields(cls)}
    unknown = [i for i in content if i not in fields]
    if unknown:
        raise UserError(
            f"{where}: unknown setting {prefix}{unknown[0]!s}. {did_you_mean(prefix + str(unknown[0]), setting_names(fields, prefix))}Valid settings: {', '.join(prefix + i for i in fields)}."
        )
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = read_settings(hints[name], value, where, f"{prefix}{name}.")
        else:
            values[name] = _checked(value, hints[name], fields[name].metadata, f"{where}: setting {prefix}{name}")
    return cls(**values)


def setting_names(fields: Iterable[str], prefix: str = "") -> list:
    """What may have been meant by a name that is no setting: those of the same block, and all that are known."""
    own = [prefix + i for i in fields]
    common = [i.name for i in dataclasses.fields(RunSettings)]
    blocks = [f"{block}.{i.name}" for block, cls in BLOCKS.items() for i in dataclasses.fields(cls)]
    return [*own, *common, *NETWORK_CHANGES, *blocks]


def _checked(value: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hints = [i for i in typing.get_args(hint) if i is not type(None)]
        hint = next((i for i in hints if isinstance(value, i)), hints[0])
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        remedy = f" Write it as {json.dumps([value])}." if hint is list else ""
        raise UserError(f"{where} must be of type {hint.__name__}, found {value!r}.{remedy}")
    low, high, choices = metadata.get("low"), metadata.get("high"), metadata.get("choices")
    # written so that NaN fails too
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{where} must be {limits}, found {value!r}.")
    if choices and isinstance(value, str) and value not in choices:
        raise UserError(f"{where} must be one of {', '.join(choices)}, found {value!r}.")
    return value


def parse_assignments(assignments: Sequence[str]) -> dict:
    """``["num_epochs=20", "mskd.lambda_feature=5"]`` -> nested dict. Values are JSON if they parse, else text."""
    result: dict = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"--set {assignment}: write it as name=value, for example --set num_epochs=100.")
        target = result
        *parents, last = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {assignment}: {parent} already has a value of its own.")
        target[last] = _parse_value(text)
    return result


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    parts = text.split(",")
    if len(parts) > 1:
        return [_parse_value(i.strip()) for i in parts]
    return {"None": None, "True": True, "False": False}.get(text, text)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict:
    """``base`` with ``changes`` laid over it, nested dicts merged."""
    result = deepcopy(dict(base))
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if nested else deepcopy(value)
    return result
