"""Co-training of weight-averaged models (Huang et al. 2020; METHODS section 1), and the rows of its Table 1."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed, nn

from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import load_checkpoint
from nnunet_partial.losses import co_training
from nnunet_partial.losses.partial import possible_classes, within_outlines
from nnunet_partial.losses.ramps import gaussian
from nnunet_partial.networks.ema import EMA
from nnunet_partial.networks.ibn import use_instance_batch_norm
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import CoTrainingSettings
from nnunet_partial.training.base import Batch, PartialTrainer
from nnunet_partial.training.whole_cases import dice_of_cases, mean_dice

RUNNING_MEAN_EPOCHS = 10  # over which nnU-Net smooths its own pseudo Dice, with a momentum of 1 - 1/10
FEW_SAMPLES, PAPER_BATCH = 8, 24  # of a batch whose statistics normalise; the paper's batch, section 4.1
COUNTS = ("tp_hard", "fp_hard", "fn_hard")


class nnUNetTrainerCoTraining(PartialTrainer):
    """CT + WA + RM: Eq. 6 for two networks, each taught by the weight average of the other outside annotated organs.

    ``members``    the trained networks: ``network`` and, with ``co_teaching``, ``peer``, independently initialised
    ``averages``   with ``weight_averaged``, one of each network
    ``candidates`` what can be deployed: the averages, or without them the networks themselves. The weights of the deployed one
                   are a checkpoint's ``network_weights``, and it does the final validation. After every epoch it is the
                   one with the best running mean of the validation Dice over annotated classes, which is of patches (over a tenth of
                   the training at most, or the first epochs of a short one would decide); at the end the one with the best
                   Dice of the annotated classes on whole validation cases (section 4.1: "better validation performance").

    ``self.network`` is the first trained network; a checkpoint holds all of them under keys of its own.
    """

    short_name, title = "cotraining", "CoTraining"
    needs_labels = True
    needs_complete_labels = True
    settings_name, settings_class = "co_training", CoTrainingSettings
    own: CoTrainingSettings
    loss_terms = ("focal", "dice", "soft")
    co_teaching = True
    weight_averaged = True
    region_masked = True

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        own, classes = self.own, self.dataset_annotations.classes
        where = f"plans {plans['plans_name']}: setting co_training"
        if not (own.gamma == 0 or own.gamma >= 1):
            raise UserError(f"{where}.gamma must be 0 or at least 1, found {own.gamma}.")
        if own.ema_decay >= 1:
            raise UserError(f"{where}.ema_decay must be below 1, found {own.ema_decay}.")
        given = own.class_weights
        if given is not None and not (len(given) == len(classes) and all(isinstance(i, (int, float)) and i >= 0 for i in given)):
            raise UserError(
                f"{where}.class_weights must be {len(classes)} numbers, one for each of {', '.join(classes)}, found {given}."
            )
        return dataset_json

    # ------------------------------------------------------------------ networks

    def build_peers(self) -> dict:
        if not self.co_teaching:
            return {}
        return {
            "peer": self.build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                cast(int, self.num_input_channels),  # known once networks are built
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )
        }

    def build_averages(self) -> dict:
        decay = self.average_decay[1]
        return {} if decay is None else {name: EMA(member.network, decay) for name, member in self.members.items()}

    @property
    def average_decay(self) -> tuple:
        """Rows without averages take the setting of every method: theirs predict and teach nothing."""
        return ("co_training.ema_decay", self.own.ema_decay) if self.weight_averaged else super().average_decay

    def on_networks_built(self) -> None:
        self.deployed = "network"
        self.running_dice = dict.fromkeys(self.members)

    @property
    def candidates(self) -> dict:
        """Name -> network that may be deployed."""
        return self.average_networks or {name: member.network for name, member in self.members.items()}

    # ------------------------------------------------------------------ losses

    def check_labels(self, labels: LabelDirectory, cases: Sequence[str]) -> None:
        super().check_labels(labels, cases)
        labels.require_all_classes(cases, self._labels_remedy)

    def prepare_losses(self, cases: Sequence[str]) -> None:
        """Class weights of the focal loss, those of the settings or inverse to the mean volumes in the labels."""
        if self.own.class_weights is None:
            assert self.labels is not None  # the method needs them
            volumes = self.labels.mean_volumes_mm3(cases)
            weights = co_training.class_weights_from_volumes(volumes, self.own.background_weight)
        else:
            weights = torch.tensor([self.own.background_weight, *self.own.class_weights])
        self.class_weights = weights.float().to(self.device)
        names = ("background", *self.dataset_annotations.classes)
        self.print_to_log_file(
            "Class weights of the focal loss: " + ", ".join(f"{i} {j:.3g}" for i, j in zip(names, weights.tolist()))
        )

    def compute_losses(self, batch: Batch) -> dict:
        taught = self.average_logits(batch.data) if self.weight_averaged else {}
        outputs = {name: member.network(batch.data) for name, member in self.members.items()}
        outputs = {name: output if isinstance(output, (list, tuple)) else [output] for name, output in outputs.items()}
        focal = sum(self.at_every_scale(self.focal_loss, i, batch.targets) for i in outputs.values())
        dice = sum(self.at_every_scale(self.dice_loss, i, batch.targets) for i in outputs.values())
        losses = {"focal": self.own.lambda_focal * focal, "dice": self.own.lambda_dice * dice}
        if "soft" in self.loss_terms:
            if not taught:  # CT alone: the networks as they are
                taught = {name: output[0].detach() for name, output in outputs.items()}
            target = batch.full_resolution_target[:, 0]
            where = self.region(target, batch), possible_classes(target, batch.truth_groups)
            soft = sum(self.soft_loss(output[0], taught[self.teacher_of(name)], *where) for name, output in outputs.items())
            losses["soft"] = self.ramp_up() * self.own.lambda_soft * soft
        return losses

    def teacher_of(self, name: str) -> str:
        """Whose soft labels teach network ``name``: the other's, or without co-teaching its own."""
        return {"network": "peer", "peer": "network"}[name] if self.co_teaching else name

    def focal_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Eq. 1."""
        return co_training.focal_loss(logits, target, self.class_weights, self.own.gamma, self.valid(target))

    def dice_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Eq. 2."""
        return co_training.soft_dice_loss(logits, target, valid=self.valid(target))

    def region(self, target: torch.Tensor, batch: Batch) -> torch.Tensor:
        """T (B, *S) of Eqs. 4 and 5 for target (B, *S); 1 everywhere without the region mask, but for an ignore label."""
        valid = self.valid(target[:, None])
        if not self.region_masked:
            return torch.ones_like(target, dtype=torch.bool) if valid is None else valid
        own = self.own
        assert batch.truth is not None  # every batch of a training has it
        return co_training.region_mask(target.long(), batch.truth, own.region, iterations=own.region_dilation, valid=valid)

    def soft_loss(
        self,
        logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        region: torch.Tensor,
        possible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Eqs. 4, 5, a mean over the region of the whole batch, which under DDP lies on several devices.

        Where the annotation outlines classes together, soft labels divide the outline and do not change it (``possible``).
        """
        teacher_probs = within_outlines(torch.softmax(teacher_logits.float(), 1), possible)
        loss = co_training.soft_cross_entropy(logits, teacher_probs, region)
        if not self.is_ddp:
            return loss
        here = region.sum().float()
        everywhere = here.clone()
        distributed.all_reduce(everywhere)
        return loss * here * distributed.get_world_size() / everywhere.clamp_min(1)

    def ramp_up(self) -> float:
        """lambda_rampup of Eq. 6."""
        return gaussian(self.elapsed_epochs, self.own.ramp * self.num_epochs)

    # ------------------------------------------------------------------ which network is deployed

    def on_validation_epoch_start(self) -> None:
        for network in self.candidates.values():
            network.eval()

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's figures for each candidate: arrays get a first axis of candidates."""
        made = self.to_device(batch, training=False)
        results = [self.validate_network(network, made) for network in self.candidates.values()]
        return {key: np.stack([i[key] for i in results]) for key in results[0]}

    def on_validation_epoch_end(self, val_outputs: list) -> None:
        self._choose(self._dice_of_candidates(val_outputs))
        chosen = list(self.candidates).index(self.deployed)
        super().on_validation_epoch_end([{key: value[chosen] for key, value in i.items()} for i in val_outputs])

    def _dice_of_candidates(self, val_outputs: list) -> np.ndarray:
        """Mean Dice over annotated classes of each candidate; NaN where no annotated class was seen."""
        counts: Any = np.stack([sum(i[key].astype(np.float64) for i in val_outputs) for key in COUNTS])
        if self.is_ddp:
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, counts)
            counts = sum(gathered)
        tp, fp, fn = counts
        seen = 2 * tp + fp + fn > 0
        dice = np.where(seen, 2 * tp / np.where(seen, 2 * tp + fp + fn, 1), 0).sum(1)
        return dice / np.where(seen.any(1), seen.sum(1), np.nan)

    @property
    def running_momentum(self) -> float:
        """nnU-Net's 0.9 from 100 epochs on; below, what averages over a tenth of the training; of ten epochs the last decides."""
        return 1 - 1 / min(RUNNING_MEAN_EPOCHS, max(1, self.num_epochs / 10))

    def _choose(self, dice: np.ndarray) -> None:
        momentum = self.running_momentum
        for name, value in zip(self.candidates, dice):
            before = self.running_dice[name]
            if np.isfinite(value):
                smoothed = value if before is None else momentum * before + (1 - momentum) * value
                self.running_dice[name] = float(smoothed)
        self._deploy_best("Running pseudo Dice", {k: v for k, v in self.running_dice.items() if v is not None})

    def _deploy_best(self, what: str, dice: Mapping[str, float]) -> None:
        """Deploy the candidate with the highest of these values, of equal ones the first; without any value, what is deployed."""
        if dice:
            self.deployed = max(dice, key=dice.__getitem__)
        figures = ", ".join(f"{k} {v:.4f}" for k, v in dice.items())
        self.print_to_log_file(f"{what}: {figures or 'nothing annotated seen'}; deployed: {self.deployed}")

    def on_train_end(self) -> None:
        if len(self.candidates) > 1 and self.settings.final_validation:
            self._choose_by_whole_cases()
        super().on_train_end()

    def _choose_by_whole_cases(self) -> None:
        """Patches say little of which network is better: both are close, and few are looked at."""
        cases, share = self.do_split()[1], slice(None)
        if self.is_ddp:
            share = slice(distributed.get_rank(), None, distributed.get_world_size())
        found = {k: dice_of_cases(self, i, cases[share], self.annotations) for k, i in self.candidates.items()}
        if self.is_ddp:
            gathered: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, found)
            found = {k: {case: own for part in gathered for case, own in part[k].items()} for k in found}
        means = {k: mean_dice(i) for k, i in found.items()}
        self._deploy_best("Dice of whole validation cases", {k: v for k, v in means.items() if np.isfinite(v)})

    @property
    def deployed_network(self) -> nn.Module:
        return self.candidates[self.deployed]

    @property
    def deploys_another(self) -> bool:
        return self.co_teaching or bool(self.averages)  # after any epoch

    # ------------------------------------------------------------------ checkpoints

    def extra_state(self) -> dict:
        return {**super().extra_state(), "deployed": self.deployed, "running_dice": dict(self.running_dice)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        if "deployed" in state:
            self.deployed, self.running_dice = state["deployed"], dict(state["running_dice"])


class nnUNetTrainerSelfTrainingFocal(nnUNetTrainerCoTraining):
    """The row "self-training" of Table 1: one network, the hard losses of Eqs. 1 and 2 on completed labels, and no other.

    Against ``nnUNetTrainerSelfTraining``, which has nnU-Net's loss, the rows below differ from it in what they add alone.
    """

    short_name, title = "selftraining-focal", "SelfTraining focal"
    loss_terms = ("focal", "dice")
    co_teaching = weight_averaged = region_masked = False


class nnUNetTrainerCoTrainingCT(nnUNetTrainerCoTraining):
    """CT: two networks; each is taught by the other as it is, everywhere."""

    short_name, title = "cotraining-ct", "CoTraining CT"
    weight_averaged = False
    region_masked = False


class nnUNetTrainerCoTrainingWA(nnUNetTrainerCoTraining):
    """WA: one network, taught everywhere by its own weight average (a mean teacher)."""

    short_name, title = "cotraining-wa", "CoTraining WA"
    co_teaching = False
    region_masked = False


class nnUNetTrainerCoTrainingCTWA(nnUNetTrainerCoTraining):
    """CT + WA: two networks; each is taught by the other's weight average, everywhere."""

    short_name, title = "cotraining-ctwa", "CoTraining CT+WA"
    region_masked = False


class nnUNetTrainerCoTrainingIBN(nnUNetTrainerCoTraining):
    """CT + WA + RM + IBN: instance-batch normalisation in the first norm of each block of the encoder's first stages, three or
    all but the deepest."""

    short_name, title = "cotraining-ibn", "CoTraining IBN"

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        network: Any = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return use_instance_batch_norm(network, min(3, max(1, len(network.encoder.stages) - 1)))

    def on_train_start(self) -> None:
        super().on_train_start()
        batch_size = self.configuration_manager.batch_size  # of all devices together, whose statistics are synchronised
        if batch_size < FEW_SAMPLES:
            self.print_to_log_file(
                f"WARNING: batch normalisation over {batch_size} samples: its statistics, and with them this row of the "
                f"table, depend on which cases are drawn together. The paper had {PAPER_BATCH}. Where memory allows it: "
                f"nnunet_partial variant ... --set batch_size={PAPER_BATCH}, with a smaller patch_size, or in 2d."
            )

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        if not self.was_initialized:
            self.initialize()
        with exit_on_user_error():
            stored = load_checkpoint(filename_or_checkpoint, map_location="cpu")["network_weights"]
            if stored.keys() != unwrap(self.network).state_dict().keys():
                raise UserError(
                    f"{filename_or_checkpoint} is of version 0.1, which replaced every norm of the first stages. It predicts "
                    "(nnUNetv2_predict), but cannot be trained or validated further. Train from the start."
                )
        super().load_checkpoint(filename_or_checkpoint)
