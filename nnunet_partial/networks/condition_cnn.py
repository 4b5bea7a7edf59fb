"""conditionCNN: a network with one output that is told by a constant plane which class to segment.

Dmitriev, Kaufman, "Learning multi-class segmentations from single-class datasets", CVPR 2019. The plane of a class stands in
front of every decoder block as one channel more, with values from -20 to 20 over the classes. The encoder runs once, the
decoder once a class.

What is changed for nnU-Net's plans: instance normalisation subtracts the mean of a channel, and the answer of a convolution
to a constant plane is constant but for the border. Away from it little of the class would be left, the less the larger the
patch. The norm after each convolution that reads the plane is therefore one over all channels together (a group norm of one
group), which keeps what differs between channels and needs no statistics of a batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_partial.errors import UserError
from nnunet_partial.networks.heads import MASKED_LOGIT
from nnunet_partial.networks.planned import deployed_logits, pairs_by_class

LARGEST = 20.0  # value of the last class' plane; the first one's is -20
NEGATIVE_SLOPE = 1e-2  # of nnU-Net's leaky ReLU, for which its convolutions are initialised


class ConditionCNN(nn.Module):
    """``unet``: the planned U-Net with one output channel, whose decoder is changed in place; ``num_classes`` K.

    ``network(x)`` gives the deployed logits (B, 1 + K, *S), ``network(x, pairs)`` the logits (P, *S) of P pairs of a sample and
    a class from 0, ``pairs`` (P, 2) int64; with deep supervision a list of these, full resolution first.
    """

    values: torch.Tensor
    masked: torch.Tensor

    def __init__(self, unet: Any, num_classes: int):
        super().__init__()
        self.encoder, self.decoder, self.num_classes = unet.encoder, unet.decoder, num_classes
        for stage in self.decoder.stages:
            read_plane(stage)
        self.register_buffer("values", class_values(num_classes), persistent=False)
        self.register_buffer("masked", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, x: torch.Tensor, pairs: torch.Tensor | None = None) -> Any:
        skips = self.encoder(x)
        if pairs is not None:
            return self.decode(skips, pairs)
        # one class after another: the decoder's features of K classes at once may not fit into memory
        return deployed_logits([self.decode(skips, i) for i in pairs_by_class(len(x), self.num_classes, x.device)])

    def decode(self, skips: Sequence[torch.Tensor], pairs: torch.Tensor) -> Any:
        """Logits (P, *S) of each pair. The decoder puts a skip behind what it has upsampled, so a plane behind the skip
        is the last channel in front of every block."""
        samples, classes = pairs.unbind(1)
        *above, bottleneck = [i[samples] for i in skips]
        output = self.decoder([*(with_plane(i, self.values[classes]) for i in above), bottleneck])
        silent = self.masked[classes]
        if isinstance(output, (list, tuple)):
            return [_logits(i, silent) for i in output]
        return _logits(output, silent)

    @torch.no_grad()
    def mask(self, classes: Sequence[int]) -> None:
        """Never predict these classes, label values from 1, wherever a checkpoint of this network is loaded."""
        self.masked[[i - 1 for i in classes]] = True


def class_values(num_classes: int) -> torch.Tensor:
    """(K,) evenly from -20 to 20; 0 for a single class, which needs no telling."""
    return torch.linspace(-LARGEST, LARGEST, num_classes) if num_classes > 1 else torch.zeros(num_classes)


def with_plane(features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(P, F + 1, *S): ``features`` (P, F, *S) and a last channel that holds ``values`` (P,)."""
    plane = values.to(features.dtype).reshape(-1, *[1] * (features.ndim - 1))
    return torch.cat((features, plane.expand(-1, 1, *features.shape[2:])), 1)


def read_plane(stage: nn.Module) -> None:
    """Widen the first convolution of a decoder block by one input channel, and let the norm after it keep constants."""
    convolutions = [i for i in stage.modules() if isinstance(i, _ConvNd)]
    blocks = getattr(stage, "convs", None)
    if not blocks or not convolutions:
        raise UserError(
            f"the decoder's blocks are {type(stage).__name__}, to which no class can be told. Take plans of nnU-Net's U-Nets, "
            "such as nnUNetPlans or nnUNetResEncUNetMPlans."
        )
    replaced: dict[nn.Module, nn.Module] = {convolutions[0]: _widened(convolutions[0])}
    for norm in blocks[0].modules():
        if isinstance(norm, _InstanceNorm):
            replaced[norm] = nn.GroupNorm(1, norm.num_features, norm.eps, norm.affine)
    for module in list(blocks[0].modules()):  # nnU-Net's blocks hold each part twice
        for name, child in module._modules.items():
            module._modules[name] = replaced.get(child, child)


def _widened(convolution: Any) -> nn.Module:
    wider = type(convolution)(
        convolution.in_channels + 1,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.bias is not None,
    )
    InitWeights_He(NEGATIVE_SLOPE)(wider)
    return wider


def _logits(output: torch.Tensor, silent: torch.Tensor) -> torch.Tensor:
    return torch.where(silent.reshape(-1, *[1] * (output.ndim - 2)), MASKED_LOGIT, output[:, 0])
