"""Co-training of weight-averaged models (Huang et al. 2020; METHODS section 1), and the rows of its Table 1."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed, nn

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.losses import co_training
from nnunet_partial.losses.ramps import gaussian
from nnunet_partial.networks.ema import EMA
from nnunet_partial.networks.ibn import use_instance_batch_norm
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.training.base import Batch, PartialTrainer

RUNNING_MEAN = 0.9  # as nnU-Net smooths its own pseudo Dice
MOST_OF_THE_START = 0.05  # weight of the first weights in the last average from which on it is warned
COUNTS = ("tp_hard", "fp_hard", "fn_hard")


class nnUNetTrainerCoTraining(PartialTrainer):
    """CT + WA + RM: Eq. 6 for two networks, each taught by the weight average of the other outside annotated organs.

    ``members``    the trained networks: ``network`` and, with ``co_teaching``, ``peer``, independently initialised
    ``averages``   name -> EMA of that network, with ``weight_averaged``
    ``candidates`` what can be deployed: the averages, or without them the networks themselves. After every epoch the
                   one with the best running mean of the validation Dice over annotated classes is deployed: its weights
                   are a checkpoint's ``network_weights``, and it does the final validation.

    ``self.network`` is the first trained network; a checkpoint holds all of them under keys of its own.
    """

    loss_terms = ("focal", "dice", "soft")
    needs_labels = True
    co_teaching = True
    weight_averaged = True
    region_masked = True

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        own, classes = self.settings.co_training, self.dataset_annotations.classes
        if self.dataset_annotations.ignore_label is not None:
            raise UserError(
                f"{self.dataset_annotations.file}: co-training has no place for an ignore label; its focal "
                f"and Dice losses need a label everywhere. Train nnUNetTrainerSelfTraining."
            )
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
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            )
        }

    def on_networks_built(self) -> None:
        self.deployed = "network"
        self.running_dice = dict.fromkeys(self.members)
        self.steps_of_epoch = 0
        self.averages, self._average_networks = {}, {}
        if self.weight_averaged:
            self._start_averages()

    def _start_averages(self) -> None:
        """Averages of the networks as they are now. They give full resolution only: nothing else is asked of them."""
        for name, member in self.members.items():
            average = EMA(member.network, self.settings.co_training.ema_decay)
            average.module.decoder.deep_supervision = False
            self.averages[name] = average
            self._average_networks[name] = torch.compile(average.module) if self._do_i_compile() else average.module

    def on_train_start(self) -> None:
        super().on_train_start()
        if any(not i.num_updates for i in self.averages.values()):
            self._start_averages()  # pretrained weights come after the networks are built
        if self.averages:
            self._warn_of_slow_averages()

    def _warn_of_slow_averages(self) -> None:
        steps, decay = self.num_epochs * self.num_iterations_per_epoch, self.settings.co_training.ema_decay
        share = decay**steps  # of the first weights in the last average
        if share > MOST_OF_THE_START:
            self.print_to_log_file(
                f"WARNING: co_training.ema_decay {decay:g} averages over about {1 / (1 - decay):.0f} steps, and "
                f"this training has {steps}: {share:.0%} of what is deployed would be the weights it began with. "
                f"For so few steps set co_training.ema_decay={0.01 ** (1 / steps):.3f} or lower."
            )

    @property
    def candidates(self) -> dict:
        """Name -> network that may be deployed."""
        return self._average_networks or {name: member.network for name, member in self.members.items()}

    # ------------------------------------------------------------------ losses

    def check_labels(self, labels, cases: Sequence[str]) -> None:
        super().check_labels(labels, cases)
        labels.require_all_classes(cases, self._labels_remedy)
        own = self.settings.co_training
        if own.class_weights is None:
            weights = co_training.class_weights_from_volumes(labels.mean_volumes_mm3(cases), own.background_weight)
        else:
            weights = torch.tensor([own.background_weight, *own.class_weights])
        self.class_weights = weights.float().to(self.device)
        names = ("background", *self.dataset_annotations.classes)
        self.print_to_log_file(
            "Class weights of the focal loss: " + ", ".join(f"{i} {j:.3g}" for i, j in zip(names, weights.tolist()))
        )

    def compute_losses(self, batch: Batch) -> dict:
        taught = self.average_logits(batch.data)
        outputs = {name: member.network(batch.data) for name, member in self.members.items()}
        outputs = {name: output if isinstance(output, (list, tuple)) else [output] for name, output in outputs.items()}
        if not taught:  # CT alone: the networks as they are
            taught = {name: output[0].detach() for name, output in outputs.items()}
        targets = batch.target if isinstance(batch.target, list) else [batch.target]
        own, region = self.settings.co_training, self.region(batch.full_resolution_target[:, 0], batch)
        focal = sum(self.at_every_scale(self.focal_loss, i, targets) for i in outputs.values())
        dice = sum(self.at_every_scale(co_training.soft_dice_loss, i, targets) for i in outputs.values())
        soft = sum(self.soft_loss(output[0], taught[self.teacher_of(name)], region) for name, output in outputs.items())
        return {
            "focal": own.lambda_focal * focal,
            "dice": own.lambda_dice * dice,
            "soft": self.ramp_up() * own.lambda_soft * soft,
        }

    @torch.no_grad()
    def average_logits(self, data: torch.Tensor) -> dict:
        """Full-resolution logits of each weight average."""
        return {name: network(data) for name, network in self._average_networks.items()}

    def teacher_of(self, name: str) -> str:
        """Whose soft labels teach network ``name``: the other's, or without co-teaching its own."""
        return {"network": "peer", "peer": "network"}[name] if self.co_teaching else name

    def focal_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Eq. 1."""
        return co_training.focal_loss(logits, target, self.class_weights, self.settings.co_training.gamma)

    def at_every_scale(self, loss, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """``loss`` at each resolution of the decoder, with nnU-Net's deep supervision weights."""
        weights = self.deep_supervision_weights()
        return sum(weight * loss(i, j) for weight, i, j in zip(weights, outputs, targets) if weight)

    def region(self, target: torch.Tensor, batch: Batch) -> torch.Tensor:
        """T (B, *S) of Eqs. 4 and 5; 1 everywhere without the region mask."""
        if not self.region_masked:
            return torch.ones_like(target, dtype=torch.bool)
        own = self.settings.co_training
        return co_training.region_mask(target.long(), batch.truth, own.region, iterations=own.region_dilation)

    def soft_loss(self, logits: torch.Tensor, teacher_logits: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
        """Eqs. 4, 5, a mean over the region of the whole batch, which under DDP lies on several devices."""
        loss = co_training.soft_cross_entropy(logits, torch.softmax(teacher_logits.float(), 1), region)
        if not self.is_ddp:
            return loss
        here = region.sum().float()
        everywhere = here.clone()
        distributed.all_reduce(everywhere)
        return loss * here * distributed.get_world_size() / everywhere.clamp_min(1)

    def ramp_up(self) -> float:
        """lambda_rampup of Eq. 6."""
        progress = self.current_epoch + self.steps_of_epoch / self.num_iterations_per_epoch
        return gaussian(progress, self.settings.co_training.ramp * self.num_epochs)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_of_epoch = 0

    def after_step(self) -> None:
        for average in self.averages.values():
            average.update()
        self.steps_of_epoch += 1

    # ------------------------------------------------------------------ which network is deployed

    def on_validation_epoch_start(self) -> None:
        for network in self.candidates.values():
            network.eval()

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's figures for each candidate: arrays get a first axis of candidates."""
        batch = self.to_device(batch, training=False)
        results = [self.validate_network(network, batch) for network in self.candidates.values()]
        return {key: np.stack([i[key] for i in results]) for key in results[0]}

    def on_validation_epoch_end(self, val_outputs: list) -> None:
        self._choose(self._dice_of_candidates(val_outputs))
        chosen = list(self.candidates).index(self.deployed)
        super().on_validation_epoch_end([{key: value[chosen] for key, value in i.items()} for i in val_outputs])

    def _dice_of_candidates(self, val_outputs: list) -> np.ndarray:
        """Mean Dice over annotated classes of each candidate; NaN where no annotated class was seen."""
        counts = np.stack([sum(i[key].astype(np.float64) for i in val_outputs) for key in COUNTS])
        if self.is_ddp:
            gathered = [None] * distributed.get_world_size()
            distributed.all_gather_object(gathered, counts)
            counts = sum(gathered)
        tp, fp, fn = counts
        seen = 2 * tp + fp + fn > 0
        dice = np.where(seen, 2 * tp / np.where(seen, 2 * tp + fp + fn, 1), 0).sum(1)
        return dice / np.where(seen.any(1), seen.sum(1), np.nan)

    def _choose(self, dice: np.ndarray) -> None:
        for name, value in zip(self.candidates, dice):
            before = self.running_dice[name]
            if np.isfinite(value):
                smoothed = value if before is None else RUNNING_MEAN * before + (1 - RUNNING_MEAN) * value
                self.running_dice[name] = float(smoothed)
        known = {name: value for name, value in self.running_dice.items() if value is not None}
        if known:
            self.deployed = max(known, key=known.get)  # of equal ones the first
        figures = ", ".join(f"{k} {v:.4f}" for k, v in known.items())
        self.print_to_log_file(f"Running pseudo Dice: {figures or 'nothing annotated seen'}; deployed: {self.deployed}")

    def deployed_weights(self) -> dict:
        return unwrap(self.candidates[self.deployed]).state_dict()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self._deployed_as_network():
            super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _deployed_as_network(self) -> Iterator[nn.Module]:
        trained, deployed = self.network, self.candidates[self.deployed]
        flag = unwrap(deployed).decoder.deep_supervision
        self.network = deployed
        try:
            yield deployed
        finally:
            self.network = trained
            unwrap(deployed).decoder.deep_supervision = flag  # nnU-Net switches it on after validation

    # ------------------------------------------------------------------ checkpoints

    def extra_state(self) -> dict:
        return {
            **super().extra_state(),
            "trained_weights": unwrap(self.network).state_dict(),
            "deployed": self.deployed,
            "running_dice": dict(self.running_dice),
            "averages": {name: average.checkpoint_state() for name, average in self.averages.items()},
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        if "trained_weights" not in state:
            return
        unwrap(self.network).load_state_dict(state["trained_weights"])
        self.deployed, self.running_dice = state["deployed"], dict(state["running_dice"])
        with exit_on_user_error():
            for name, average in self.averages.items():
                try:
                    average.load_checkpoint_state(state["averages"][name])
                except ValueError as error:
                    raise UserError(
                        f"{self.output_folder}: {error} Set co_training.ema_decay back, or train from the start."
                    ) from None


class nnUNetTrainerCoTrainingCT(nnUNetTrainerCoTraining):
    """CT: two networks; each is taught by the other as it is, everywhere."""

    weight_averaged = False
    region_masked = False


class nnUNetTrainerCoTrainingWA(nnUNetTrainerCoTraining):
    """WA: one network, taught everywhere by its own weight average (a mean teacher)."""

    co_teaching = False
    region_masked = False


class nnUNetTrainerCoTrainingCTWA(nnUNetTrainerCoTraining):
    """CT + WA: two networks; each is taught by the other's weight average, everywhere."""

    region_masked = False


class nnUNetTrainerCoTrainingIBN(nnUNetTrainerCoTraining):
    """CT + WA + RM + IBN: instance-batch normalisation in the encoder's first stages, three or all but the deepest."""

    @staticmethod
    def build_network_architecture(
        plans_manager,
        configuration_manager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return use_instance_batch_norm(network, min(3, max(1, len(network.encoder.stages) - 1)))
