"""Marginal (partial-label) supervision: METHODS section 0."""

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_partial.losses.exclusion import exclusion_loss
from nnunet_partial.settings import PartialSettings
from nnunet_partial.training.base import Batch, PartialTrainer


class nnUNetTrainerPartial(PartialTrainer):
    """The planned network on all annotated cases at once; classes that a case lacks are merged with background.

    A case without any annotation has no gradient in this loss, so it takes no place in a batch. With
    ``partial.lambda_exclusion`` the exclusion loss of Shi et al. 2021 is added at every resolution.
    """

    short_name, title = "partial", "Partial"
    settings_name, settings_class = "partial", PartialSettings
    own: PartialSettings
    learns_from_unlabelled = False

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        if self.own.lambda_exclusion:
            self.loss_terms = ("marginal", "exclusion")
        return dataset_json

    def compute_losses(self, batch: Batch) -> dict:
        output = self.network(batch.data)
        losses = {"marginal": self.marginal_loss(output, batch)}
        if "exclusion" in self.loss_terms:
            outputs = output if isinstance(output, (list, tuple)) else [output]

            def exclusion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                return exclusion_loss(logits, target, batch.groups, self.valid(target))

            losses["exclusion"] = self.own.lambda_exclusion * self.at_every_scale(exclusion, outputs, batch.targets)
        return losses
