"""What a network's outputs are made by: the segmentation layers of its decoder."""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.networks.unwrap import unwrap

#: The logit of a class that is never predicted: its probability is e^-200, 0 in single precision. nnU-Net adds up logits of
#: overlapping patches, weighted by up to 10, in half precision, which ends at 65504: 27 patches of 2000 stay below that.
MASKED_LOGIT = -200.0


def can_switch_deep_supervision(network: nn.Module) -> bool:
    """Whether ``network.decoder.deep_supervision`` decides if lower resolutions are put out, as in nnU-Net's U-Nets."""
    return hasattr(getattr(unwrap(network), "decoder", None), "deep_supervision")


def segmentation_layers(network: nn.Module) -> list:
    """The convolutions that put out the logits, of every resolution. Raises :class:`UserError` for a network without."""
    layers = getattr(getattr(unwrap(network), "decoder", None), "seg_layers", None)
    if layers is None or any(getattr(i, "bias", None) is None for i in layers):
        raise UserError(
            f"{type(unwrap(network)).__name__} has no decoder.seg_layers with a bias, so no class can be masked in its output. "
            "Train fold 'all' or a fold that annotates every class, or take plans of nnU-Net's U-Nets."
        )
    return list(layers)


@torch.no_grad()
def mask_outputs(network: nn.Module, classes: Sequence[int]) -> None:
    """Set the logits of these output channels to :data:`MASKED_LOGIT` for any input, by weights alone.

    The network stays an ordinary one: it predicts so wherever its checkpoint is loaded. No gradient of a loss reaches
    what is masked as long as no target is one of these classes. Raises :class:`UserError`.
    """
    for layer in segmentation_layers(network):
        for channel in classes:
            layer.weight[channel].zero_()
            layer.bias[channel].fill_(MASKED_LOGIT)
