"""The planned U-Net as the trunk of a network that predicts one class after another."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_partial.errors import UserError


def planned_unet(
    plans_manager: Any, configuration_manager: Any, in_channels: int, out_channels: int, deep_supervision: bool
) -> nn.Module:
    """nnU-Net's own network of these plans, with ``out_channels`` in the place of the classes.

    Raises :class:`UserError` for an architecture without an encoder and a decoder of stages and segmentation layers.
    """
    network = nnUNetTrainer.build_network_architecture(
        plans_manager, configuration_manager, in_channels, out_channels, deep_supervision
    )
    decoder = getattr(network, "decoder", None)
    if not hasattr(network, "encoder") or not all(hasattr(decoder, i) for i in ("stages", "seg_layers", "deep_supervision")):
        raise UserError(
            f"plans {plans_manager.plans_name} name the architecture {type(network).__name__}, which has no encoder and decoder "
            "of stages. Take plans of nnU-Net's U-Nets, such as nnUNetPlans or nnUNetResEncUNetMPlans."
        )
    return network


def pairs_by_class(samples: int, classes: int, device: torch.device) -> list:
    """For each class, counted from 0, its pairs (sample, class) with every sample: (samples, 2) int64."""
    numbers = torch.arange(samples, device=device)
    return [torch.stack((numbers, torch.full_like(numbers, k)), 1) for k in range(classes)]


def deployed_logits(per_class: Any) -> Any:
    """Logits (B, 1 + K, *S) of K (B, *S): (0, s_1 .. s_K), at every resolution if each of the K is a list of resolutions.

    Their argmax is the class whose s is largest if that is above 0, a probability above 1/2, and else background.
    """
    if isinstance(per_class[0], (list, tuple)):
        return [deployed_logits(i) for i in zip(*per_class)]
    return torch.stack((torch.zeros_like(per_class[0]), *per_class), 1)
