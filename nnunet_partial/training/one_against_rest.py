"""What methods share that predict one class after another, each against everything else, with one network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.losses.binary import BinaryDiceBCELoss, annotated_pairs
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.training.base import Batch, PartialTrainer


class OneAgainstRestTrainer(PartialTrainer):
    """Dice and binary cross-entropy of the classes that each case annotates; a subclass builds the network.

    ``network(x, pairs)`` computes the logits of the annotated pairs alone in a step, ``network(x)`` those that are deployed,
    (0, s_1 .. s_K). Their argmax is the strongest class above a probability of 1/2; their softmax is not a probability.
    """

    learns_from_unlabelled = False
    loss_terms = ("binary",)
    loss_class = BinaryDiceBCELoss

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        unions = self.dataset_annotations.unions
        if unions:
            raise UserError(
                f"{self.dataset_annotations.file}: cases annotate {unions[0]} as one structure, but to {type(self).__name__} every "
                "class is a task of its own. Train nnUNetTrainerPartial, or merge the dataset without these sources."
            )
        manager = PlansManager(dict(plans))
        planned = manager.get_configuration(configuration)
        channels = determine_num_input_channels(manager, planned, dataset_json)
        with torch.device("meta"):  # that this architecture can do it, before anything is written
            self.build_network_architecture(manager, planned, channels, 2, self.settings.deep_supervision)
        return dataset_json

    def compute_losses(self, batch: Batch) -> dict:
        pairs = self.pairs(batch)
        return {"binary": self.binary_loss(self.network(batch.data, pairs.to(batch.data.device)), batch, pairs)}

    def marginal_loss(self, output: Any, batch: Batch) -> torch.Tensor:
        """The binary loss of deployed logits (B, K + 1, *S), for validation: nothing is merged here."""
        pairs = self.pairs(batch)
        samples, classes = pairs.to(batch.data.device).unbind(1)
        outputs = output if isinstance(output, (list, tuple)) else [output]
        return self.binary_loss([i[samples, classes + 1] for i in outputs], batch, pairs)

    def pairs(self, batch: Batch) -> torch.Tensor:
        """(P, 2) of a sample and a class from 0 that its labels distinguish, on the host."""
        return annotated_pairs(batch.groups > 0)

    def binary_loss(self, outputs: Any, batch: Batch, pairs: torch.Tensor) -> torch.Tensor:
        """Of logits (P, *S), at every resolution if they are a list of these."""
        loss: Callable = self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss
        known = len(self.annotations.classes)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return self.at_every_scale(lambda s, target: loss(s, target, pairs, known), outputs, batch.targets)

    def mask_classes(self, network: nn.Module, classes: Sequence[int]) -> None:
        conditional: Any = unwrap(network)
        conditional.mask(classes)
