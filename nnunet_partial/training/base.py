"""The trainer that all methods share: partial labels, several networks in one step, exact resume.

What stays nnU-Net's is called, not copied. A method declares its settings (``settings_name``, ``settings_class``) and adds
the networks it needs (:meth:`PartialTrainer.build_peers`), their weight averages (:meth:`PartialTrainer.build_averages`),
what is frozen (:meth:`PartialTrainer.load_frozen`) and its losses (:meth:`PartialTrainer.compute_losses`).
``self.network`` is what is deployed, unless ``deployed_average`` names an average; so does the setting ``ema_decay``.
"""

import io
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import isfile, join
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_module
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import autocast, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_partial import paths
from nnunet_partial.data.merge.granularity import opposites
from nnunet_partial.data.preprocessed.annotated import AnnotatedLookup
from nnunet_partial.data.preprocessed.cases import require_readable, safe_dataset_class
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.pools import Pools, case_weights
from nnunet_partial.data.preprocessed.soft_labels import SoftDataLoader, SoftLabels
from nnunet_partial.data.preprocessed.splits import stratified_splits
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import load_checkpoint, read_names, save_checkpoint, write_json
from nnunet_partial.labels import Annotations, told_apart
from nnunet_partial.losses.partial import MarginalDiceCELoss
from nnunet_partial.networks.ema import EMA
from nnunet_partial.networks.heads import can_switch_deep_supervision, mask_outputs
from nnunet_partial.networks.onednn import onednn_convolutions
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import BLOCKS, RunSettings, read_block, without_optimizer_paper
from nnunet_partial.training import initial_weights, pretrained, progress, validation
from nnunet_partial.training.schedules import PlateauScheduler, make_schedule

CHECKPOINT_KEY = "nnunet_partial"
MOST_OF_THE_START = 0.05  # weight of the first weights in the last average from which on it is warned
NAN_STEPS = 3  # in a row, after which training stops


@dataclass
class Member:
    """A network that is trained, with what trains it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any


@dataclass
class Batch:
    """One batch on the device.

    ``data`` (B, channels, *S) float, in a cascade with the previous stage's classes after the image; ``target`` (B, 1, *S) or,
    with deep supervision, a list of these from full resolution down; ``annotated`` (B, K + 1) bool, what the labels distinguish;
    ``groups`` (B, K + 1) int, on the host; ``cases`` B names; ``truth`` (B, K + 1) bool, which of these are annotated and not
    pseudo labels; ``truth_groups`` (B, K + 1) int, on the host, the partition that the annotations alone tell apart: classes of
    a union share a group, although pseudo labels may divide it; ``soft`` (B, channels, *S) uint8, soft labels if the method
    learns from them.
    """

    data: torch.Tensor
    target: Any
    annotated: torch.Tensor
    groups: torch.Tensor
    cases: Sequence[str]
    truth: torch.Tensor | None = None
    image_channels: int | None = None
    truth_groups: torch.Tensor = None  # pyright: ignore[reportAssignmentType]  # the groups, where there are no pseudo labels
    soft: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.truth_groups is None:  # no pseudo labels
            self.truth_groups = self.groups

    @property
    def image(self) -> torch.Tensor:
        """(B, image channels, *S): ``data`` without the previous stage of a cascade."""
        return self.data[:, : self.image_channels]

    @property
    def targets(self) -> list:
        """The labels (B, 1, *S) at every resolution that is trained, full resolution first; one without deep supervision."""
        return self.target if isinstance(self.target, list) else [self.target]

    @property
    def full_resolution_target(self) -> torch.Tensor:
        """(B, 1, *S), with and without deep supervision."""
        return self.targets[0]


class PartialTrainer(nnunet_module.nnUNetTrainer):
    """Base of all trainers of this package. Settings come from the plans, annotated sets from dataset.json.

    Bad settings, a broken contract and missing teachers end the command with one line and exit code 2 before anything
    is written.

    A method describes itself by class attributes. ``short_name``, ``title``, ``needs_teachers``, ``needs_labels`` and
    ``settings_name`` are also read from the source (:mod:`nnunet_partial.methods`), so they are plain values.
    """

    #: what ``nnunet_partial compare --methods`` calls it; without one it is trainer=CLASS
    short_name: str | None = None
    #: what reports call it; None: the class name
    title: str | None = None
    #: whether it is taught by one trained teacher per source
    needs_teachers = False
    #: the frozen dataclass of its own settings, and the key of the plans' settings that holds them
    settings_name: str | None = None
    settings_class: type | None = None
    has_trained = False  # whether this process has begun to train
    #: name of the average (:meth:`build_averages`) that is deployed instead of ``self.network``
    deployed_average: str | None = None
    #: names of the loss terms that :meth:`compute_losses` returns; they are logged under ``loss/<name>``
    loss_terms: tuple = ("marginal",)
    #: the supervised loss at one resolution, made with ``batch_dice``, ``ignore_label`` and ``all_gather``
    loss_class: Callable[..., nn.Module] = MarginalDiceCELoss
    #: whether the method needs pseudo-completed labels, that is, the setting ``labels``
    needs_labels = False
    #: whether these must be of every class on every case
    needs_complete_labels = False
    #: cases whose pseudo labels the setting ``exclude`` leaves out
    left_out: frozenset = frozenset()
    #: whether that label directory must hold soft labels
    needs_soft_labels = False
    #: the soft labels that it learns from; :meth:`read_soft_labels` sets them
    soft: SoftLabels | None = None
    #: whether a training case that annotates nothing teaches the method anything; such cases are left out if not
    learns_from_unlabelled = True

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = torch.device("cuda")
    ):
        with exit_on_user_error():
            finished = self.training_is_finished(plans, configuration, fold)
            paths.require_configuration(plans, configuration)
            self.settings, self.own = self._read_settings(without_optimizer_paper(plans) if finished else plans)
            self.given_device = device.type
            self._check_mirroring(plans, configuration)
            # what the dataset holds; a method may restrict what it trains on (self.annotations) in preflight
            self.dataset_annotations = Annotations.from_dataset_json(dataset_json, f"dataset.json of {plans.get('dataset_name')}")
            self.annotations = self.dataset_annotations
            self.labels_command = labels_command(plans, configuration, fold, self.settings.labels)
            self._find_labels = partial(self._read_labels, plans, configuration, fold)
            # validation alone needs none, and a finished training is not continued as a rule (see on_train_start)
            self.labels = None if finished else self._find_labels()
            self.initial_weights = None if finished else self._find_initial_weights(plans, configuration, fold)
            dataset_json = self.preflight(plans, configuration, fold, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and device.type != "cuda":  # nnU-Net takes it for granted that DDP runs on GPUs
            self.device, self.grad_scaler = device, None
        self._apply_settings()
        self.members: dict[str, Member] = {}
        #: name -> :class:`~nnunet_partial.networks.ema.EMA`; what :meth:`build_averages` returned
        self.averages: dict[str, EMA] = {}
        self._registered: dict[str, Any] = {}
        self.steps_of_epoch = 0
        #: values of the classes that nothing teaches, if the setting ``untaught`` allows it; they are never predicted
        self.untaught: tuple = ()
        self._nan_batches: list = []
        self._resume_rng = None
        progress.register_terms(self.logger, self.loss_terms)
        self.curves = progress.Curves()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if (cls.settings_name is None) != (cls.settings_class is None):
            raise TypeError(f"{cls.__name__}: settings_name and settings_class belong together.")
        if cls.settings_name is None:
            return
        other = BLOCKS.get(cls.settings_name, cls.settings_class)
        if other is not cls.settings_class or cls.settings_name in {i.name for i in fields(RunSettings)}:
            raise TypeError(f"{cls.__name__}: settings_name {cls.settings_name!r} is taken. Choose another.")

    def _read_settings(self, plans: Mapping[str, Any]) -> tuple:
        """The common settings, and those that this method declares."""
        if self.settings_name is None or self.settings_class is None:
            return RunSettings.from_plans(plans), None
        settings = RunSettings.from_plans(plans, {self.settings_name: self.settings_class})
        return settings, read_block(plans, self.settings_name, self.settings_class)

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        """Check what this method needs before anything is written; return the dataset.json to train with."""
        return dataset_json

    def training_is_finished(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> bool:
        """Whether this run has written its final checkpoint, so that only validation may be left to do."""
        model = paths.model_folder(plans["dataset_name"], type(self).__name__, plans["plans_name"], configuration)
        return (paths.final_checkpoint(model, fold)).is_file()

    def _read_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory | None:
        """The label directory of this run, checked against plans and dataset; None where labels are nnU-Net's own."""
        if self.settings.labels is None and self.needs_labels:
            raise UserError(
                f"plans {plans['plans_name']}: {type(self).__name__} needs the setting labels, a directory "
                f"of pseudo-completed labels. Make both with: {self.labels_command}"
            )
        if self.settings.labels is None and self.settings.exclude is not None:
            raise UserError(f"plans {plans['plans_name']}: setting exclude has no effect without labels. Leave it out.")
        if self.settings.labels is None:
            return None
        labels = LabelDirectory.read(self.settings.labels.replace("{fold}", str(fold)), self._labels_remedy)
        identifier = PlansManager(dict(plans)).get_configuration(configuration).data_identifier
        labels.require_fit(plans["dataset_name"], identifier, self.dataset_annotations.classes, self._labels_remedy)
        self.left_out = self._read_left_out(fold)
        return labels.without(self.left_out)

    def _read_left_out(self, fold: Any) -> frozenset:
        if self.settings.exclude is None:
            return frozenset()
        file = self.settings.exclude.replace("{fold}", str(fold))
        names = read_names(file)
        known = self.dataset_annotations.cases
        unknown = next((i for i in names if known is not None and i not in known), None)
        if unknown is not None:
            raise UserError(f"setting exclude: {file} names {unknown}, which is no case of this dataset. Correct the file.")
        return frozenset(names)

    def read_soft_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory:
        """Have batches hold the soft labels of the directory that the setting ``labels`` names; returns the directory, checked."""
        self.labels_command = labels_command(plans, configuration, fold, self.settings.labels, soft=True)
        if self.settings.labels is None:
            raise UserError(
                f"plans {plans['plans_name']}: {type(self).__name__} needs the setting labels, a directory of soft labels. Make "
                f"both with: {self.labels_command}"
            )
        labels = PartialTrainer._read_labels(self, plans, configuration, fold)
        assert labels is not None
        self.soft = SoftLabels.of(labels, self._labels_remedy)
        return labels

    @property
    def _labels_remedy(self) -> str:
        return f"Make it with: {self.labels_command}"

    def _check_mirroring(self, plans: Mapping[str, Any], configuration: str) -> None:
        axes = len(PlansManager(dict(plans)).get_configuration(configuration).patch_size)
        wrong = [i for i in self.settings.mirroring or () if i >= axes]
        if wrong:
            raise UserError(
                f"plans {plans['plans_name']}: setting mirroring names axis {wrong[0]}, but patches of {configuration} have the "
                f"axes {', '.join(map(str, range(axes)))}."
            )

    # nnU-Net declares axes alone, and takes None
    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.settings.mirroring is not None:
            axes = tuple(sorted(self.settings.mirroring)) or None  # nnU-Net takes None for none
            self.inference_allowed_mirroring_axes = axes  # of the model, wherever it predicts
        return rotation, dummy_2d, patch_size, axes

    def _apply_settings(self) -> None:
        for name in (
            "num_epochs",
            "num_iterations_per_epoch",
            "num_val_iterations_per_epoch",
            "initial_lr",
            "weight_decay",
            "oversample_foreground_percent",
            "save_every",
        ):
            setattr(self, name, getattr(self.settings, name))
        self.enable_deep_supervision = self.settings.deep_supervision

    # ------------------------------------------------------------------ networks, optimisers, losses

    def initialize(self) -> None:
        """Build every network with its optimiser. nnU-Net builds the deployed one; DDP then wraps all of them alike."""
        with exit_on_user_error():
            self._build()
        pretrained.check_weights_for(type(self).__name__)

    def _build(self) -> None:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if self.device.type == "cpu" and threads.isdigit() and int(threads) > 0:
            torch.set_num_threads(int(threads))  # nnUNetv2_train takes every core of the machine, whatever it was given
        if self.settings.seed is not None:
            seed_everything(self.settings.seed + self.local_rank)
        is_ddp, self.is_ddp = self.is_ddp, False
        try:
            super().initialize()
        finally:
            self.is_ddp = is_ddp
        if self.is_ddp:
            self._set_batch_size_and_oversample()
        assert self.optimizer is not None  # nnU-Net has just made it
        self.members = {"network": Member(self.network, self.optimizer, self.lr_scheduler)}
        for name, network in self.build_peers().items():
            self.members[name] = self._new_member(network)
        if self.is_ddp:
            for member in self.members.values():
                member.network = self._distribute(member.network)
            self.network = self.members["network"].network
        self.loss = self._build_loss()
        self._start_from_initial_weights()
        self._set_averages(self.build_averages() or self._average_that_predicts())
        self.on_networks_built()

    def _find_initial_weights(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> str | None:
        if self.settings.initial_weights is None:
            return None
        model = paths.model_folder(plans["dataset_name"], type(self).__name__, plans["plans_name"], configuration)
        if plans.get("continue_training") and any(paths.fold_folder(model, fold).glob("checkpoint_*.pth")):
            return None  # nnU-Net takes these; without one --c begins a training
        file = self.settings.initial_weights.replace("{fold}", str(fold))
        if not os.path.isfile(file):
            raise UserError(
                f"plans {plans['plans_name']}: initial_weights {file} does not exist. Give the checkpoint of a trained model "
                f"(MODEL/fold_0/{paths.FINAL_CHECKPOINT}), or leave the setting out."
            )
        return file

    def _start_from_initial_weights(self) -> None:
        """Into ``self.network`` all that fits; into peers the encoder alone, so that networks that teach each other differ."""
        if self.initial_weights is None:
            return
        classes = self.annotations.classes
        source = initial_weights.read_source(self.initial_weights, classes)
        for name, member in self.members.items():
            done = initial_weights.transfer(member.network, source, classes, name != "network", not self.is_cascaded)
            self.print_to_log_file(f"Weights of {self.initial_weights} for {name}:", *done.lines())

    @property
    def dataset_class(self) -> type | None:
        """nnU-Net's class of the preprocessed data, which nnU-Net sets, read without running what its files hold."""
        return self._dataset_class

    @dataset_class.setter
    def dataset_class(self, value: type | None) -> None:
        self._dataset_class = safe_dataset_class(value)

    def build_peers(self) -> dict:
        """Further networks that are trained beside ``self.network``: name -> module on the device."""
        return {}

    def build_averages(self) -> dict:
        """Weight averages of trained networks: name -> :class:`~nnunet_partial.networks.ema.EMA`.

        They are updated after every step, started again where weights were loaded before the first, checkpointed, and, if
        ``deployed_average`` names one, deployed. They give full resolution only: nothing else is asked of them.
        """
        return {}

    @property
    def average_decay(self) -> tuple:
        """Name and value of the setting that averages the weights; the value is None where there are no averages."""
        return "ema_decay", self.settings.ema_decay

    def _average_that_predicts(self) -> dict:
        """The setting ``ema_decay``, for methods that have no averages of their own."""
        if self.settings.ema_decay is None:
            return {}
        self.deployed_average = "network"
        return {"network": EMA(self.network, self.settings.ema_decay)}

    def _warn_of_slow_averages(self) -> None:
        name, decay = self.average_decay
        steps = self.num_epochs * self.num_iterations_per_epoch
        if decay is None or decay**steps <= MOST_OF_THE_START:
            return
        self.print_to_log_file(
            f"WARNING: {name} {decay:g} averages over about {1 / (1 - decay):.0f} steps, and "
            f"this training has {steps}: {decay**steps:.0%} of what is deployed would be the weights it began with. "
            f"For so few steps set {name}={0.01 ** (1 / steps):.3f} or lower."
        )

    def _set_averages(self, averages: dict) -> None:
        self.averages = averages
        for average in averages.values():
            if can_switch_deep_supervision(average.module):
                average.module.decoder.deep_supervision = False
            elif self.enable_deep_supervision:
                raise UserError(
                    f"{type(self).__name__} keeps averages that give full resolution alone, but {type(average.module).__name__} "
                    "has no decoder.deep_supervision to switch. Train it without: --set deep_supervision=false"
                )
        compiles = self._do_i_compile()
        self.average_networks = {k: torch.compile(v.module) if compiles else v.module for k, v in averages.items()}

    @torch.no_grad()
    def average_logits(self, data: torch.Tensor) -> dict:
        """Full-resolution logits (B, K + 1, *S) of each average for data (B, channels, *S), as constants."""
        return {name: network(data) for name, network in self.average_networks.items()}

    def register(self, name: str, thing: Any) -> Any:
        """Keep ``thing``, which has ``state_dict()`` and ``load_state_dict(state)``, in every checkpoint; returns it.

        For what a method holds beside networks and averages: a schedule that follows the loss, a memory, a further module. Its
        state is of tensors and plain values. To be called in :meth:`on_networks_built`, before a checkpoint is loaded.
        """
        self._registered[name] = thing
        return thing

    def on_networks_built(self) -> None:
        """Called once all networks and averages exist, before a checkpoint is loaded: the place for hooks, and to register."""

    def _new_member(self, network: nn.Module) -> Member:
        network = network.to(self.device)
        if self._do_i_compile():
            network = cast(nn.Module, torch.compile(network))
        return Member(network, *self._optimizer_for(network))

    @property
    def trains_every_scale(self) -> bool:
        """Whether every output of the decoder is in the loss, not full resolution alone."""
        return self.enable_deep_supervision

    def _distribute(self, network: nn.Module) -> nn.Module:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if not self.trains_every_scale:  # DDP would wait for the gradients of heads that nothing asks
            for head in list(getattr(getattr(unwrap(network), "decoder", None), "seg_layers", ()))[:-1]:
                head.requires_grad_(False)
        return DistributedDataParallel(network, device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def configure_optimizers(self):
        return self._optimizer_for(self.network)

    def _optimizer_for(self, network: nn.Module) -> tuple:
        """Optimiser and schedule of one network, as the settings say."""
        settings = self.settings
        given = {"lr": self.initial_lr, "weight_decay": self.weight_decay}
        if settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(network.parameters(), **given, **settings.sgd)
        else:
            optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](network.parameters(), **given)
        return optimizer, make_schedule(settings.schedule, optimizer, self.initial_lr, self.num_epochs, settings.plateau)

    def _build_loss(self) -> Any:
        """nnU-Net's deep supervision around the loss of one resolution instead of around Dice + CE."""
        loss: Any = super()._build_loss()
        own = self.loss_class(
            batch_dice=self.configuration_manager.batch_dice,
            ignore_label=self.ignored_value,
            all_gather=AllGatherGrad.apply if self.is_ddp else None,
        )
        if not isinstance(loss, DeepSupervisionWrapper):
            return own
        loss.loss = own
        return loss

    def marginal_loss(self, output: Any, batch: Batch) -> torch.Tensor:
        """Supervision on annotated classes (METHODS section 0) at every resolution of the output, maybe full alone."""
        if isinstance(output, (list, tuple)):
            return self.loss(output, batch.target, [batch.groups] * len(output))
        loss = self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss
        return loss(output, batch.full_resolution_target, batch.groups)

    def valid(self, target: torch.Tensor) -> torch.Tensor | None:
        """(B, *S) bool, the voxels of ``target`` (B, 1, *S) that count: all but ignored ones. None for all."""
        ignored = self.ignored_value
        return None if ignored is None else target[:, 0] != ignored

    @property
    def ignored_value(self) -> int | None:
        """Label of voxels that no loss looks at: nnU-Net's ignore label, or that of pseudo labels that are doubtful."""
        own = self.label_manager.ignore_label
        return self.labels.ignored if own is None and self.labels is not None else own

    def deep_supervision_weights(self) -> tuple:
        """nnU-Net's weight of each resolution, full resolution first; ``(1,)`` without deep supervision."""
        return self.loss.weight_factors if isinstance(self.loss, DeepSupervisionWrapper) else (1.0,)

    def at_every_scale(
        self, loss: Callable[..., torch.Tensor], outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """``loss(output, target)`` at each resolution, full resolution first, with nnU-Net's weights of deep supervision."""
        weights = self.deep_supervision_weights()
        return cast(torch.Tensor, sum(weight * loss(i, j) for weight, i, j in zip(weights, outputs, targets) if weight))

    def compute_losses(self, batch: Batch) -> dict:
        """The weighted loss terms of one step, name -> 0-dim tensor. Their sum is minimised."""
        return {"marginal": self.marginal_loss(self.network(batch.data), batch)}

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """nnU-Net switches it back on after validation whatever the trainer wants; this heeds the setting."""
        if can_switch_deep_supervision(self.network):
            decoder: Any = unwrap(self.network).decoder
            decoder.deep_supervision = enabled and self.enable_deep_supervision

    # ------------------------------------------------------------------ data

    def do_split(self) -> tuple:
        assert self.preprocessed_dataset_folder_base is not None  # of a trainer that trains
        splits_file, known = join(self.preprocessed_dataset_folder_base, "splits_final.json"), self.dataset_annotations.cases
        if self.fold != "all" and known is not None and not isfile(splits_file):
            # every process of DDP writes the same: those that do not wait for the first would find none and make nnU-Net's own
            with exit_on_user_error():
                write_json(stratified_splits(self.dataset_annotations, list(known)), splits_file)
        training, validating = cast(tuple[list[str], list[str]], super().do_split())
        training = [i for i in training if i not in self.left_out or self._learns_without_pseudo_labels(i)]
        if self.learns_from_unlabelled:
            return training, validating
        annotated = [i for i in training if self.dataset_annotations.of(i).annotated]
        if not annotated:
            with exit_on_user_error():
                raise UserError(
                    f"fold {self.fold} has no training case that annotates anything, and {type(self).__name__} learns "
                    "from annotations alone. Train another fold, or a method that learns from unlabelled cases."
                )
        return annotated, validating

    def _learns_without_pseudo_labels(self, case: str) -> bool:
        annotated = told_apart(self.dataset_annotations.of(case).annotated)
        if self.needs_complete_labels or self.soft is not None:
            return self.soft is None and len(annotated) == len(self.dataset_annotations.classes)
        return bool(annotated)

    def get_dataloaders(self):
        self.annotated_lookup = self._annotated_lookup(self.annotations)
        # a training case's labels may be completed by pseudo labels; a validation case's never are
        self.training_lookup = (
            self.annotated_lookup if self.labels is None else self._annotated_lookup(self.completed_annotations())
        )
        with mock.patch.object(nnunet_module, "nnUNetDataLoader", SoftDataLoader):
            return super().get_dataloaders()

    def get_tr_and_val_datasets(self) -> tuple:
        training, validating = cast(tuple[Any, Any], super().get_tr_and_val_datasets())
        if self.is_cascaded:
            self._require_previous_stage([*training.identifiers, *validating.identifiers])
        if self.labels is not None:
            training = cast(Any, self.labels.over(training, self.cases_with_own_labels(training.identifiers)))
        weights = self.case_weights()
        if weights is not None:
            training.pools = Pools([list(training.identifiers)], self.batch_size, weights=weights)
        if self.soft is not None:
            training.soft = self.soft
        return training, validating

    def _require_previous_stage(self, cases: Sequence[str]) -> None:
        folder = Path(cast(str, self.folder_with_segs_from_previous_stage))
        lacking = [i for i in cases if not any((folder / f"{i}{j}").is_file() for j in (".b2nd", ".npy", ".npz"))]
        if lacking:
            with exit_on_user_error():
                raise UserError(
                    f"{folder} lacks what the first stage says of {len(lacking)} of {len(cases)} cases, such as {lacking[0]}. nnU-Net writes "
                    f"it in the first stage's final validation: train {self.configuration_manager.previous_stage_name} with this trainer in all "
                    "folds. A case that no fold validates (an unlabelled scan; the only case of a class) cannot be in a cascade: merge "
                    "without it, or train 3d_fullres."
                )

    def completed_annotations(self) -> Annotations:
        """What the labels of the training cases tell apart, pseudo labels included where the run has a label directory."""
        return self.annotations if self.labels is None else self.labels.annotations(self.annotations)

    def case_weights(self) -> dict | None:
        """How often each training case is drawn, as the setting ``sampling`` says; None: all alike."""
        return case_weights(self.dataset_annotations, self.do_split()[0], self.settings.sampling)

    def cases_with_own_labels(self, cases: Sequence[str]) -> Sequence[str]:
        """Those of the training cases that keep their own labels although the run has a label directory."""
        return [i for i in cases if i in self.left_out]

    def _annotated_lookup(self, annotations: Annotations) -> AnnotatedLookup:
        with exit_on_user_error():
            training, validating = self.do_split()
            return AnnotatedLookup(annotations, sorted({*training, *validating}))

    def to_device(self, batch: Mapping[str, Any], training: bool = True) -> Batch:
        """The augmenters' batch on the device, with what the labels of its cases distinguish."""
        truth = self.annotated_lookup(batch["keys"])
        # on the host, where the loss reads the groups
        lookup = self.training_lookup if training else self.annotated_lookup
        annotated = lookup(batch["keys"])
        target = batch["target"]
        target = (
            [i.to(self.device, non_blocking=True) for i in target]
            if isinstance(target, list)
            else target.to(self.device, non_blocking=True)
        )
        data = batch["data"].to(self.device, non_blocking=True)
        return Batch(
            data,
            target,
            annotated.to(self.device, non_blocking=True),
            lookup.groups(batch["keys"]),
            [str(i) for i in batch["keys"]],
            truth.to(self.device, non_blocking=True),
            self.image_channels,
            self.annotated_lookup.groups(batch["keys"]),
            batch["soft"].to(self.device, non_blocking=True) if "soft" in batch else None,
        )

    @property
    def image_channels(self) -> int:
        """Channels of the images themselves; a cascade's network also takes the previous stage's classes."""
        assert self.num_input_channels is not None  # of a trainer with networks
        return self.num_input_channels - (len(self.label_manager.foreground_labels) if self.is_cascaded else 0)

    # ------------------------------------------------------------------ the step

    def on_train_start(self) -> None:
        self.has_trained = True
        if self.current_epoch < self.num_epochs:  # else nothing but nnU-Net's last steps is left of a finished training
            with exit_on_user_error():
                self._prepare_training()
        self._mask_untaught()
        for average in self.averages.values():
            if not average.num_updates:  # weights may have been loaded since it was built
                average.restart()
        super().on_train_start()
        self._warn_of_slow_averages()
        progress.describe(self.logger, self.loss_terms, self.scored_structures)
        if self._resume_rng is not None:  # making the data loaders has drawn random numbers
            set_rng_state(self._resume_rng)
            self._resume_rng = None

    def _prepare_training(self) -> None:
        """Check and load everything that a step needs. A finished training may be continued with more epochs."""
        if self.labels is None:
            self.labels = self._find_labels()
        cases, validating = self.do_split()
        assert self.preprocessed_dataset_folder is not None
        require_readable(self.preprocessed_dataset_folder, sorted({*cases, *validating}))
        self.check_cases(cases)
        self.untaught = self._find_untaught(cases)
        self._tell_of_mirrored_sides()
        if self.labels is not None:
            self.check_labels(self.labels, [i for i in cases if i not in self.left_out])
        self.load_frozen()
        self.prepare_losses(cases)

    def taught_classes(self, cases: Sequence[str]) -> set:
        """Names of the classes that these training cases teach this method: those annotated or completed on any of them."""
        known = self.completed_annotations()
        return told_apart(name for case in cases for name in known.of(case).annotated)

    def _find_untaught(self, cases: Sequence[str]) -> tuple:
        taught = self.taught_classes(cases)
        untaught = [i for i in self.annotations.classes if i not in taught]
        if not untaught:
            return ()
        names = ", ".join(untaught)
        if self.settings.untaught == "refuse":
            raise UserError(
                f"fold {self.fold} has no training case that annotates {names}, so nothing teaches {type(self).__name__} what "
                "that is. Train another fold, or 'all'; or move a case that annotates it into the fold's training cases "
                "(splits_final.json); or let a model teach it (nnunet_partial pseudo-label --from MODEL, setting labels); or train "
                "without, and never predict it: nnunet_partial variant ... --set untaught=mask"
            )
        self.print_to_log_file(
            f"WARNING: no training case of fold {self.fold} annotates {names}: never predicted (untaught=mask)."
        )
        return tuple(self.annotations.classes.index(i) + 1 for i in untaught)

    def _tell_of_mirrored_sides(self) -> None:
        pairs = opposites(self.annotations.classes)
        axes = self.inference_allowed_mirroring_axes
        if pairs and axes and self.settings.mirroring is None:
            self.print_to_log_file(
                f"NOTE: {' and '.join(pairs[0])} may look alike when mirrored, and patches are mirrored along all axes "
                f"({', '.join(map(str, axes))}), as in nnU-Net. Leave out the axis that tells them "
                "apart, or all: nnunet_partial variant ... --set mirroring=[] (docs/results.md)"
            )

    def _mask_untaught(self) -> None:
        """In every trained network, so in averages and checkpoints too; optimisers decay weights, so after each step."""
        if self.untaught:
            with exit_on_user_error():
                for member in self.members.values():
                    self.mask_classes(member.network, self.untaught)

    def mask_classes(self, network: nn.Module, classes: Sequence[int]) -> None:
        """Let a trained network never predict ``classes``, label values; by its weights alone. Raises UserError."""
        mask_outputs(network, classes)

    def check_cases(self, cases: Sequence[str]) -> None:
        """Check that the training cases of this fold are what this method can learn from. Raises UserError."""

    def check_labels(self, labels: LabelDirectory, cases: Sequence[str]) -> None:
        """Check that the label directory holds what this method needs of its training cases. Raises UserError."""
        labels.require_cases(cases, self._labels_remedy)
        labels.require_readable(cases, self._labels_remedy)
        if self.soft is not None:
            self.soft.require_cases(cases, self._labels_remedy)

    def load_frozen(self) -> None:
        """Load what is frozen (teachers). Raises UserError."""

    def prepare_losses(self, cases: Sequence[str]) -> None:
        """Take from the training cases what the losses need, class weights for example. Raises UserError."""

    def autocast(self):
        """nnU-Net's mixed precision: on CUDA only."""
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context()

    def train_step(self, batch: dict) -> dict:
        made = self.to_device(batch)
        for member in self.members.values():
            member.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            losses = self.compute_losses(made)
            total = torch.stack([i.float() for i in losses.values()]).sum()
        self._backward_and_step(total)
        self._mask_untaught()
        for average in self.averages.values():
            average.update()
        self.steps_of_epoch += 1
        self.after_step()
        values = torch.stack([total.detach(), *(losses[i].detach().float() for i in self.loss_terms)]).cpu().numpy()
        self._stop_at_nan(dict(zip(self.loss_terms, values[1:])), values[0], made.cases)
        return {"loss": values[0], **{progress.key(name): value for name, value in zip(self.loss_terms, values[1:])}}

    def _stop_at_nan(self, terms: Mapping[str, float], total: float, cases: Sequence[str]) -> None:
        """One such step may pass in mixed precision; several in a row, or one at the end of an epoch, never do."""
        if np.isfinite(total):
            self._nan_batches = []
            return
        self._nan_batches.append((self.current_epoch, self.steps_of_epoch, terms, cases))
        if len(self._nan_batches) >= NAN_STEPS or self.steps_of_epoch >= self.num_iterations_per_epoch:
            epoch, step, terms, cases = self._nan_batches[0]
            found = ", ".join(f"{k} {v:g}" for k, v in terms.items() if not np.isfinite(v)) or f"sum {total:g}"
            with exit_on_user_error():
                raise UserError(
                    f"the loss is not a number since step {step} of epoch {epoch} ({found}); the cases of that batch: "
                    f"{', '.join(sorted(set(cases)))}. Look for NaN or infinite voxels in them (nnunet_partial check), or set a "
                    "lower initial_lr; then go on from the last checkpoint with --c."
                )

    def _backward_and_step(self, total: torch.Tensor) -> None:
        """One backward pass for all networks; each is clipped and stepped by itself; the scaler is updated once."""
        scaler = self.grad_scaler
        (total if scaler is None else scaler.scale(total)).backward()
        for member in self.members.values():
            if scaler is not None:
                scaler.unscale_(member.optimizer)
            if self.settings.clip_gradient:
                nn.utils.clip_grad_norm_(member.network.parameters(), self.settings.clip_gradient)
            if scaler is None:
                member.optimizer.step()
            else:
                scaler.step(member.optimizer)
        if scaler is not None:
            scaler.update()

    def after_step(self) -> None:
        """Called after all optimisers have stepped and all averages were updated."""

    @property
    def elapsed_epochs(self) -> float:
        """Epochs that are over, with the part of the present one that is: what ramps go by."""
        return self.current_epoch + self.steps_of_epoch / self.num_iterations_per_epoch

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_of_epoch = 0
        for name, member in self.members.items():
            if name != "network":  # nnU-Net has seen to the deployed one
                member.network.train()
                member.lr_scheduler.step(self.current_epoch)

    def on_train_epoch_end(self, train_outputs: list) -> None:
        super().on_train_epoch_end(train_outputs)
        for name in self.loss_terms:
            self.logger.log(
                progress.key(name), float(np.mean([i[progress.key(name)] for i in train_outputs])), self.current_epoch
            )
        logged: Any = self.logger.get_value("train_losses", step=-1)  # of all devices
        loss = float(logged)
        for schedule in self.plateaus.values():
            schedule.observe(loss)

    @property
    def plateaus(self) -> dict:
        """Name of a member -> its schedule, where that goes by the loss."""
        return {k: i.lr_scheduler for k, i in self.members.items() if isinstance(i.lr_scheduler, PlateauScheduler)}

    # ------------------------------------------------------------------ what is deployed

    @property
    def deployed_network(self) -> nn.Module:
        """The network whose weights a checkpoint's ``network_weights`` are, and that validates."""
        deployed = self.network if self.deployed_average is None else self.average_networks[self.deployed_average]
        return cast(nn.Module, deployed)  # torch.compile is declared to give a function

    @property
    def deploys_another(self) -> bool:
        """Whether a checkpoint must hold the weights of ``self.network`` under a key of its own, to go on training."""
        return self.deployed_average is not None

    def deployed_weights(self) -> dict:
        """What a checkpoint holds as ``network_weights``: the weights that predict."""
        return unwrap(self.deployed_network).state_dict()

    @contextmanager
    def deployed_as_network(self) -> Iterator[nn.Module]:
        """``self.network`` is what is deployed, for code of nnU-Net that predicts with ``self.network``."""
        trained, deployed = self.network, self.deployed_network
        if deployed is trained:
            yield trained
            return
        decoder: Any = unwrap(deployed).decoder if can_switch_deep_supervision(deployed) else None
        flag = None if decoder is None else decoder.deep_supervision
        self.network = deployed
        try:
            yield deployed
        finally:
            self.network = trained
            if decoder is not None:
                decoder.deep_supervision = flag  # nnU-Net switches it on after validation

    # ------------------------------------------------------------------ validation

    def validation_step(self, batch: dict) -> dict:
        """Marginal loss and hard counts of annotated classes only; the counts of other classes stay zero."""
        return self.validate_network(self.deployed_network, self.to_device(batch, training=False))

    def validate_network(self, network: nn.Module, batch: Batch) -> dict:
        """:meth:`validation_step` of any network on a batch on the device."""
        with self.autocast():
            output = network(batch.data)
            loss = self.marginal_loss(output, batch)
        logits = output[0] if isinstance(output, (list, tuple)) else output
        counts = validation.annotated_counts(
            logits,
            batch.full_resolution_target,
            batch.annotated,
            self.label_manager.ignore_label,
            get_tp_fp_fn_tn,
            batch.groups,
            [self.annotations.values_of(i) for i in self.annotations.unions],
        )
        return {"loss": loss.detach().cpu().numpy(), **counts}

    def on_validation_epoch_end(self, val_outputs: list) -> None:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", category=RuntimeWarning)  # a class that no sample annotates has no Dice
            super().on_validation_epoch_end(val_outputs)
        progress.send_dice(self.logger, self.scored_structures, self.current_epoch)
        progress.replace_nan(self.logger)

    @property
    def scored_structures(self) -> tuple:
        """What validation scores: the classes, then the unions."""
        return (*self.annotations.classes, *self.annotations.unions)

    def on_epoch_end(self) -> None:
        last = self.current_epoch + 1 >= self.num_epochs
        with self.curves.drawn_now(self.logger, last) as drawn:
            super().on_epoch_end()
        if self.local_rank == 0 and drawn:
            assert self.output_folder is not None
            progress.plot_terms(self.logger, self.loss_terms, self.scored_structures, self.output_folder)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation, scored per class only where the class is annotated (see :mod:`.validation`)."""
        if not self.do_split()[1]:
            self.print_to_log_file("This fold has no case to validate on.")
            return
        if self.has_trained and not self.settings.final_validation:
            self.print_to_log_file("No final validation: final_validation is off. The same command with --val does it.")
            return
        with (
            mock.patch.object(nnunet_module, "compute_metrics_on_folder", self.metrics_on_folder),
            # of a cascade's next stage
            mock.patch.object(nnunet_module, "infer_dataset_class", lambda i: safe_dataset_class(infer_dataset_class(i))),
            self.deployed_as_network() as network,
            onednn_convolutions(unwrap(network)),
        ):
            super().perform_actual_validation(save_probabilities)

    def metrics_on_folder(self, folder_truth: str, folder_predicted: str, *args, **kwargs) -> dict:
        """Stands in for nnU-Net's function of this signature."""
        return validation.metrics_on_annotated(self.annotations, folder_truth, folder_predicted, *args, **kwargs)

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus a key of our own, plain values only, written atomically."""
        buffer = io.BytesIO()
        super().save_checkpoint(cast(str, buffer))  # torch takes either
        if buffer.tell() == 0:  # another rank writes it, or checkpointing is disabled
            return
        buffer.seek(0)
        checkpoint = load_checkpoint(buffer)
        checkpoint["network_weights"] = self.deployed_weights()
        checkpoint[CHECKPOINT_KEY] = self.extra_state()
        save_checkpoint(checkpoint, filename)

    def extra_state(self) -> dict:
        """Everything beyond nnU-Net's checkpoint that an exact resume needs."""
        peers = {
            name: {"network_weights": unwrap(member.network).state_dict(), "optimizer_state": member.optimizer.state_dict()}
            for name, member in self.members.items()
            if name != "network"
        }
        state = {"peers": peers, "rng_state": rng_state()}
        if self.averages:
            state["averages"] = {name: average.checkpoint_state() for name, average in self.averages.items()}
        if self.plateaus:
            state["schedules"] = {name: schedule.state_dict() for name, schedule in self.plateaus.items()}
        if self._registered:
            state["registered"] = {name: thing.state_dict() for name, thing in self._registered.items()}
        if self.deploys_another:
            state["trained_weights"] = unwrap(self.network).state_dict()
        return state

    # nnU-Net's own signature, whose annotation takes dicts that its commands never give
    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Restore everything. The file is read safely first; nnU-Net then reads its own part of it."""
        if not self.was_initialized:
            self.initialize()
        with exit_on_user_error():
            checkpoint = load_checkpoint(filename_or_checkpoint, map_location=self.device)
        super().load_checkpoint(filename_or_checkpoint)  # the same file, which has been found to run nothing
        # nnU-Net writes checkpoint_latest before it looks whether that epoch was the best
        self._best_ema = max(self.logger.get_value("ema_fg_dice", None), default=None)
        progress.register_terms(self.logger, self.loss_terms)
        self.load_extra_state(checkpoint.get(CHECKPOINT_KEY, {}))

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state`."""
        for name, content in state.get("peers", {}).items():
            unwrap(self.members[name].network).load_state_dict(content["network_weights"])
            self.members[name].optimizer.load_state_dict(content["optimizer_state"])
        if "trained_weights" in state:
            unwrap(self.network).load_state_dict(state["trained_weights"])
        if state:
            with exit_on_user_error():
                self._load_averages(state.get("averages", {}))
        for name, schedule in self.plateaus.items():
            schedule.load_state_dict(state.get("schedules", {}).get(name, {}))
        for name, content in state.get("registered", {}).items():
            self._registered[name].load_state_dict(content)
        if not self.is_ddp:  # the state of rank 0 must not make all ranks draw the same patches
            self._resume_rng = state.get("rng_state")

    def _load_averages(self, states: Mapping[str, Any]) -> None:
        for name, average in self.averages.items():
            if name not in states:
                raise UserError(
                    f"{self.output_folder}: the checkpoint has no average {name!r}, which {type(self).__name__} keeps. Train "
                    "from the start."
                )
            try:
                average.load_checkpoint_state(states[name])
            except ValueError as error:
                raise UserError(
                    f"{self.output_folder}: {error} Set {self.average_decay[0]} back, or train from the start."
                ) from None


def labels_command(plans: Mapping[str, Any], configuration: str, fold: Any, folder: str | None = None, soft: bool = False) -> str:
    """The command that makes the label directory ``folder``, and without one also the plans that name it."""
    number, base = paths.dataset_number(plans["dataset_name"]), plans["plans_name"]
    out = "LABELS" if folder is None else folder.replace("{fold}", str(fold))
    command = (
        f"nnunet_partial pseudo-label {number} --configuration {configuration} --fold {fold} --plans {base} "
        f"--from teachers --out {out}{' --soft' if soft else ''}"
    )
    if folder:
        return command
    return f"{command} && nnunet_partial variant {number} --base {base} --name NAME --set labels={out}"


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """The state of every random generator that a step draws from."""
    legacy: Any = np.random.get_state()
    name, keys, position, has_gauss, gauss = legacy
    state = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore :func:`rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([i.cpu() for i in state["cuda"]])
