"""Self-training: nnU-Net's loss on pseudo-completed labels (the baseline of Huang et al. 2020, Table 1), hard or soft."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad

from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.soft_labels import log_probabilities
from nnunet_partial.losses.partial import MarginalDiceCELoss
from nnunet_partial.losses.soft_labels import completed_distribution, soft_marginal_cross_entropy
from nnunet_partial.trainers.ms_kd import at_resolution
from nnunet_partial.training.base import Batch, PartialTrainer


class nnUNetTrainerSelfTraining(PartialTrainer):
    """The planned network on the label directory that the setting ``labels`` names.

    Where annotated and pseudo classes together are all classes, the loss is nnU-Net's own Dice + CE; a class that a
    case still lacks is merged with background. Validation has the true labels and scores annotated classes only.
    """

    short_name, title = "selftraining", "SelfTraining"
    needs_labels = True


class nnUNetTrainerSelfTrainingSoft(nnUNetTrainerSelfTraining):
    """Self-training whose cross-entropy is to the models' probabilities instead of their most probable class.

    Dice + CE as in ``nnUNetTrainerSelfTraining``; the Dice term is of the completed labels, cross-entropy of
    :func:`~nnunet_partial.losses.soft_labels.completed_distribution`, which is hard where a case is annotated. The label
    directory holds soft labels (``pseudo-label --soft``).
    """

    short_name, title = "selftraining-soft", "SelfTraining soft"
    needs_soft_labels = True
    loss_terms = ("dice", "soft")

    def _read_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory | None:
        return self.read_soft_labels(plans, configuration, fold)

    def prepare_losses(self, cases: Sequence[str]) -> None:
        super().prepare_losses(cases)
        self.dice = MarginalDiceCELoss(
            batch_dice=self.configuration_manager.batch_dice,
            weight_ce=0,
            ignore_label=self.ignored_value,
            all_gather=AllGatherGrad.apply if self.is_ddp else None,
        )

    def compute_losses(self, batch: Batch) -> dict:
        output = self.network(batch.data)
        outputs = output if isinstance(output, (list, tuple)) else [output]
        distribution = self.completed_distribution(batch)
        return {
            "dice": self.at_every_scale(lambda logits, target: self.dice(logits, target, batch.groups), outputs, batch.targets),
            "soft": self.at_every_scale(
                lambda logits, target: soft_marginal_cross_entropy(
                    logits, at_resolution(distribution, logits.shape[2:]), batch.groups, self.valid(target)
                ),
                outputs,
                batch.targets,
            ),
        }

    @torch.no_grad()
    def completed_distribution(self, batch: Batch) -> torch.Tensor:
        """(B, K + 1, *S) at full resolution."""
        assert self.soft is not None and batch.soft is not None  # the labels were read as soft ones
        probabilities = [log_probabilities(i).exp() for i in self.soft.split(batch.soft)]
        labels = batch.full_resolution_target[:, 0]
        outputs = [self.annotations.outputs(i) for i in self.soft.models]
        return completed_distribution(probabilities, outputs, labels, batch.groups, batch.truth_groups)
