"""Distillation from cross-teaching teachers into a light student (Choi 2022; METHODS section 3), and the rows of its
Table 3."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import distributed, nn

from nnunet_partial.data.preprocessed.pools import Pools
from nnunet_partial.errors import UserError
from nnunet_partial.losses import cross_teaching
from nnunet_partial.losses.partial import alone_in_group, groups_from_annotated, possible_classes
from nnunet_partial.losses.ramps import gaussian
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.networks.usenet import PAPER_STRIDE, ResidualUSENet
from nnunet_partial.settings import CrossTeachingSettings, RunSettings, read_block, without_optimizer_paper
from nnunet_partial.training.base import Batch, PartialTrainer


class nnUNetTrainerCrossTeaching(PartialTrainer):
    """The proposed method: two Residual-USE-Nets teach each other and a mobile student, all trained in one step.

        L = L_seg(T1) + L_seg(T2) + L_seg(S) + 0.1 r (L_ctl(T1, T2) + L_psv(S)) + (10 r or r^2) L_kd(S)

    ``self.network`` is the student, which is deployed; the members ``teacher1`` and ``teacher2`` are its peers. A case
    counts as labelled for the classes that it annotates (L_seg) and as unlabelled for the others (L_ctl, L_psv). L_kd has
    weight lambda_labelled in the mean over cases that annotate something, plus lambda_unlabelled in the mean over cases
    that lack something. Cross teaching, pseudo-supervision and distillation are taken at full resolution, the supervised
    loss at every resolution of the decoders. r rises with the epoch.
    """

    short_name, title = "crossteaching", "CrossTeaching"
    settings_name, settings_class = "cross_teaching", CrossTeachingSettings
    own: CrossTeachingSettings
    loss_terms = ("supervised", "cross_teaching", "pseudo_supervision", "distillation")
    #: peers: name -> (upsampling, mobile)
    peers: Mapping[str, tuple] = {"teacher1": ("transposed", False), "teacher2": ("trilinear", False)}
    #: the networks whose mean teaches the student; none for methods without teachers
    teachers: Sequence[str] = ("teacher1", "teacher2")
    #: the two networks that teach each other
    cross_teachers: Sequence[str] = ("teacher1", "teacher2")
    #: whether cases without labels are used
    semi_supervised = True

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        own, annotations = self.own, self.dataset_annotations
        where = f"plans {plans['plans_name']}: setting cross_teaching"
        if not annotations.annotated_sources:
            raise UserError(
                f"{annotations.file}: no case annotates anything, so there is nothing to learn from. Merge "
                f"a dataset with labels into it."
            )
        if not (own.gamma == 0 or own.gamma >= 1):
            raise UserError(f"{where}.gamma must be 0 or at least 1, found {own.gamma}.")
        _check_networks(plans, configuration, dataset_json, where, self.build_network_architecture)
        return dataset_json

    # ------------------------------------------------------------------ networks

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        """The student, of plans alone: stock nnU-Net calls this to predict."""
        return usenet(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
            "transposed",
            mobile=True,
        )

    def build_peers(self) -> dict:
        return {
            name: usenet(
                self.plans_manager,
                self.configuration_manager,
                cast(int, self.num_input_channels),  # known once networks are built
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
                upsampling,
                mobile,
            )
            for name, (upsampling, mobile) in self.peers.items()
        }

    def on_networks_built(self) -> None:
        sizes = {name: sum(p.numel() for p in member.network.parameters()) for name, member in self.members.items()}
        self.print_to_log_file(
            "Parameters: " + ", ".join(f"{'student' if k == 'network' else k} {v / 1e6:.2f} M" for k, v in sizes.items())
        )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Those of the network, which at the paper's size is not the planned one."""
        if not self.enable_deep_supervision:
            return None
        network: Any = unwrap(self.network)
        strides = torch.tensor(network.encoder.strides, dtype=torch.float64)
        return (1 / strides.cumprod(0))[:-1].tolist()

    # ------------------------------------------------------------------ data

    def check_cases(self, cases: Sequence[str]) -> None:
        pools = self.case_pools()
        if not pools["labelled"]:
            raise UserError(
                f"fold {self.fold} of splits_final.json has no training case that annotates anything. Train "
                f"another fold, or 'all'."
            )
        self.print_to_log_file(
            f"Training cases that annotate something: {len(pools['labelled'])}; that lack classes: {len(pools['unlabelled'])}."
        )
        if self.semi_supervised and not pools["unlabelled"]:
            self.print_to_log_file(
                "WARNING: every training case annotates every class, so cross teaching and "
                "pseudo-supervision have nothing to do: this is full supervision"
                + (" with distillation." if self.teachers else ".")
            )

    def case_pools(self) -> dict:
        """``labelled``: training cases that annotate something; ``unlabelled``: those that lack something. A case
        annotated in part is in both."""
        annotations = self.annotations if self.labels is None else self.labels.annotations(self.annotations)
        cases = self.do_split()[0]
        return {
            "labelled": [i for i in cases if annotations.of(i).annotated],
            "unlabelled": [i for i in cases if not all(annotations.mask(i))],
        }

    def get_tr_and_val_datasets(self) -> tuple:
        training, validating = super().get_tr_and_val_datasets()
        pools = self.case_pools()
        balanced = self.own.sampling == "balanced"
        if not self.semi_supervised:
            training.pools = Pools([pools["labelled"]], self.batch_size, weights=self.case_weights())
        elif balanced and pools["unlabelled"]:
            training.pools = Pools(
                [pools["labelled"], pools["unlabelled"]],
                self.configuration_manager.batch_size,
                self._first_sample(),
                self.case_weights(),
            )
        return training, validating

    def _first_sample(self) -> int:
        """Number of this device's first sample in the batch of all devices."""
        if not self.is_ddp:
            return 0
        sizes: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(sizes, self.batch_size)
        return sum(sizes[: distributed.get_rank()])

    def _apply_settings(self) -> None:
        super()._apply_settings()
        # nnU-Net centres the last third of a batch on foreground; here some samples have no labels to centre on
        self.probabilistic_oversampling = True

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.oversample_foreground_percent = self.settings.oversample_foreground_percent  # on every device alike

    # ------------------------------------------------------------------ losses

    def compute_losses(self, batch: Batch) -> dict:
        outputs = {name: member.network(batch.data) for name, member in self.members.items()}
        outputs = {name: i if isinstance(i, (list, tuple)) else [i] for name, i in outputs.items()}
        logits = {name: i[0] for name, i in outputs.items()}
        apart = alone_in_group(batch.groups) & (batch.groups != 0)  # (B, K + 1), on the host
        lacking = groups_from_annotated(~apart)
        labelled, unlabelled = (batch.groups[:, 1:] != 0).any(1), ~apart[:, 1:].all(1)
        possible = possible_classes(batch.full_resolution_target[:, 0], batch.truth_groups)
        valid = self.valid(batch.full_resolution_target)
        share_labelled, share_unlabelled = self.shares((labelled, unlabelled), valid)

        losses = {"supervised": sum(self.supervised(i, batch, labelled) for i in outputs.values())}
        semi = self.own.lambda_ssl * self.ramp()
        if "cross_teaching" in self.loss_terms:
            first, second = (logits[i] for i in self.cross_teachers)
            losses["cross_teaching"] = semi * cross_teaching.cross_teaching(first, second, lacking, valid, possible, **self._dice)

        def teacher(i: int) -> torch.Tensor:
            return logits[self.teachers[i]]

        if "pseudo_supervision" in self.loss_terms:
            losses["pseudo_supervision"] = semi * cross_teaching.pseudo_supervision(
                logits["network"], teacher(0), teacher(-1), lacking, valid, possible, **self._dice
            )
        if "distillation" in self.loss_terms:
            of_labelled, of_unlabelled = self.distillation_weights()
            weights = of_labelled * share_labelled * labelled + of_unlabelled * share_unlabelled * unlabelled
            losses["distillation"] = cross_teaching.distillation(
                logits["network"], teacher(0), teacher(-1), weights, valid, possible
            )
        return losses

    def supervised(self, outputs: Sequence[torch.Tensor], batch: Batch, labelled: torch.Tensor) -> torch.Tensor:
        """L_seg of one network on annotated classes, with nnU-Net's weight of each resolution; its focal term is the mean over
        the voxels of the samples (B,) that are ``labelled``."""
        own, shares = self.own, self.shares((labelled,))

        def dice_focal(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            valid = self.valid(target)
            (share,) = shares if valid is None else self.shares((labelled,), valid)
            return cross_teaching.dice_focal(output, target, batch.groups, own.alpha, own.gamma, share, valid, **self._dice)

        return self.at_every_scale(dice_focal, outputs, batch.targets)

    @property
    def _dice(self) -> dict:
        return {"batch_dice": self.own.batch_dice, "all_gather": AllGatherGrad.apply if self.is_ddp else None}

    def shares(self, kinds: Sequence[torch.Tensor], valid: torch.Tensor | None = None) -> list:
        """For each kind of sample (B,) bool what turns a mean over the ``valid`` voxels (B, *S) of the batch, None: all, into the
        mean over those of that kind alone: the voxels of the batch over theirs, 0 if there are none. Over several devices, which
        hold different numbers and whose gradients are averaged, theirs is the mean over devices."""
        # without an ignore label all samples have as many; on the host, where one device need not wait for itself
        voxels = torch.ones(len(kinds[0])) if valid is None else valid.flatten(1).sum(1).float().cpu()
        numbers = torch.stack([voxels[i.cpu()].sum() for i in kinds])
        if self.is_ddp:
            numbers = numbers.to(self.device)
            distributed.all_reduce(numbers)
            numbers /= distributed.get_world_size()
        return [float(voxels.sum()) / i if i else 0.0 for i in numbers.tolist()]

    def ramp(self) -> float:
        """r at the present epoch."""
        return gaussian(self.current_epoch, self.num_epochs)

    def distillation_weights(self) -> tuple:
        """Weight of L_kd on labelled and on unlabelled cases: 10 r, and r^2 (paper) or 10 r^2 (code)."""
        own, r = self.own, self.ramp()
        if not self.semi_supervised:
            return own.lambda_distillation * r, 0.0
        unlabelled = own.lambda_distillation * r**2
        return own.lambda_distillation * r, unlabelled * (own.lambda_ssl if own.weighting == "paper" else 1.0)


class nnUNetTrainerCrossTeachingFSL(nnUNetTrainerCrossTeaching):
    """FSL: the student alone, on labelled cases."""

    title = "CrossTeaching FSL"
    loss_terms = ("supervised",)
    peers, teachers, cross_teachers = {}, (), ()
    semi_supervised = False


class nnUNetTrainerCrossTeachingFSLKD(nnUNetTrainerCrossTeaching):
    """FSL + KD: a teacher and the student, on labelled cases."""

    title = "CrossTeaching FSL+KD"
    loss_terms = ("supervised", "distillation")
    peers, teachers, cross_teachers = {"teacher1": ("transposed", False)}, ("teacher1",), ()
    semi_supervised = False


class nnUNetTrainerCrossTeachingSSLKD(nnUNetTrainerCrossTeachingFSLKD):
    """SSL + KD: one teacher; unlabelled cases are distilled."""

    title = "CrossTeaching SSL+KD"
    semi_supervised = True


class nnUNetTrainerCrossTeachingSSLPSV(nnUNetTrainerCrossTeachingSSLKD):
    """SSL + PSV: one teacher; its argmax is the student's label on unlabelled cases."""

    title = "CrossTeaching SSL+PSV"
    loss_terms = ("supervised", "pseudo_supervision")


class nnUNetTrainerCrossTeachingSSLKDPSV(nnUNetTrainerCrossTeachingSSLKD):
    """SSL + KD + PSV: one teacher."""

    title = "CrossTeaching SSL+KD+PSV"
    loss_terms = ("supervised", "pseudo_supervision", "distillation")


class nnUNetTrainerCrossTeachingCTS(nnUNetTrainerCrossTeaching):
    """CTS: two students teach each other; the one with transposed convolutions is deployed."""

    title = "CrossTeaching CTS"
    loss_terms = ("supervised", "cross_teaching")
    peers, teachers, cross_teachers = {"student2": ("trilinear", True)}, (), ("network", "student2")


class nnUNetTrainerCrossTeachingNoKD(nnUNetTrainerCrossTeaching):
    """CTT without distillation."""

    title = "CrossTeaching without KD"
    loss_terms = ("supervised", "cross_teaching", "pseudo_supervision")


class nnUNetTrainerCrossTeachingNoPSV(nnUNetTrainerCrossTeaching):
    """CTT without pseudo-supervision."""

    title = "CrossTeaching without PSV"
    loss_terms = ("supervised", "cross_teaching", "distillation")


class nnUNetTrainerCrossTeachingSD(nnUNetTrainerCrossTeaching):
    """CTT with teachers of the same decoder, both transposed."""

    title = "CrossTeaching, same decoders"
    peers = {"teacher1": ("transposed", False), "teacher2": ("transposed", False)}


def usenet(
    plans_manager: PlansManager,
    configuration_manager,
    num_input_channels: int,
    num_output_channels: int,
    deep_supervision: bool,
    upsampling: str,
    mobile: bool,
) -> ResidualUSENet:
    """A network of the size that the plans ask for (``cross_teaching.size``, ``cross_teaching.blocks_per_stage``)."""
    own = read_block(plans_manager.plans, "cross_teaching", CrossTeachingSettings)
    changes: dict[str, Any] = {} if own.blocks_per_stage is None else {"blocks_per_stage": own.blocks_per_stage}
    if own.size == "paper":
        return ResidualUSENet(
            num_input_channels, num_output_channels, upsampling, mobile, deep_supervision=deep_supervision, **changes
        )
    return ResidualUSENet.from_plans(
        configuration_manager, num_input_channels, num_output_channels, upsampling, mobile, deep_supervision, **changes
    )


def _check_networks(plans: Mapping[str, Any], configuration: str, dataset_json: dict, where: str, build) -> None:
    """Raise :class:`UserError` for settings that no network can be built from, or whose patches do not fit it."""
    manager = PlansManager(dict(plans))
    planned = manager.get_configuration(configuration)
    settings = RunSettings.from_plans(without_optimizer_paper(plans))
    own = read_block(plans, "cross_teaching", CrossTeachingSettings)
    if own.size == "paper" and (len(planned.patch_size) != 3 or any(i % PAPER_STRIDE for i in planned.patch_size)):
        raise UserError(
            f"{where}.size=paper needs patches of three axes divisible by {PAPER_STRIDE}, found "
            f"{list(planned.patch_size)}. Set patch_size with nnunet_partial variant, for example --set "
            f"patch_size=96,64,96."
        )
    blocks = own.blocks_per_stage
    if blocks is not None and any(isinstance(i, bool) or not isinstance(i, int) or i < 1 for i in blocks):
        raise UserError(f"{where}.blocks_per_stage must be whole numbers from 1, found {blocks}.")
    try:
        with torch.device("meta"):
            network = build(manager, planned, determine_num_input_channels(manager, planned, dataset_json), 2)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if settings.deep_supervision and len(network.encoder.stages) < 3:
        raise UserError(
            f"plans {plans['plans_name']}: deep supervision needs three stages, found "
            f"{len(network.encoder.stages)}. Add --set deep_supervision=false."
        )
