"""DoDNet: one encoder and decoder, and a head whose weights the network writes for each image and class.

Zhang, Xie, Xia, Shen, "DoDNet: Learning to segment multi-organ and tumors from multiple partially labeled datasets", CVPR 2021
(https://arxiv.org/abs/2011.10217). The bottleneck, averaged over space, and the one-hot code of class k go through one linear
layer, the controller; what comes out are weights and biases of three 1x1x1 convolutions (8, 8 and 1 channels, ReLU between),
which turn the 8 pre-head channels of that image into the logit of class k.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import one_hot

from nnunet_partial.networks.heads import MASKED_LOGIT
from nnunet_partial.networks.planned import deployed_logits, pairs_by_class

CHANNELS = (8, 8, 8, 1)  # of the pre-head, and of the head's convolutions
SHAPES = tuple((after, before) for before, after in zip(CHANNELS, CHANNELS[1:]))
SIZES = (*(after * before for after, before in SHAPES), *(after for after, _ in SHAPES))  # weights, then biases
NUM_PARAMETERS = sum(SIZES)


class DoDNet(nn.Module):
    """``unet``: the planned U-Net with ``CHANNELS[0]`` output channels, which are the pre-head; ``num_classes`` K.

    ``network(x)`` gives the deployed logits (B, 1 + K, *S), ``network(x, pairs)`` the logits (P, *S) of P pairs of a sample and
    a class from 0, ``pairs`` (P, 2) int64. With deep supervision the same head reads the pre-head of every resolution, and a
    list is returned, full resolution first. Encoder and decoder run once in either case.
    """

    masked: torch.Tensor

    def __init__(self, unet: Any, num_classes: int):
        super().__init__()
        self.encoder, self.decoder, self.num_classes = unet.encoder, unet.decoder, num_classes
        self.controller = nn.Linear(self.encoder.output_channels[-1] + num_classes, NUM_PARAMETERS)
        self.register_buffer("masked", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, x: torch.Tensor, pairs: torch.Tensor | None = None) -> Any:
        skips = self.encoder(x)
        features = self.decoder(skips)
        pooled = skips[-1].flatten(2).mean(2)
        if pairs is not None:
            return self.heads(features, pooled, pairs)
        # one class after another: the channels of K heads at once may not fit into memory
        classes = pairs_by_class(len(x), self.num_classes, x.device)
        return deployed_logits([self.heads(features, pooled, i) for i in classes])

    def heads(self, features: Any, pooled: torch.Tensor, pairs: torch.Tensor) -> Any:
        """Logits (P, *S) of each pair from the pre-head (B, 8, *S), of each resolution if it is a list."""
        parameters, samples = self.write(pooled, pairs), pairs[:, 0]
        if isinstance(features, (list, tuple)):
            return [apply_head(i[samples], parameters) for i in features]
        return apply_head(features[samples], parameters)

    def write(self, pooled: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """The head of each pair, (P, NUM_PARAMETERS), from the averaged bottleneck (B, F)."""
        samples, classes = pairs.unbind(1)
        code = one_hot(classes, self.num_classes).to(pooled.dtype)
        parameters = self.controller(torch.cat((pooled[samples], code), 1))
        silent = torch.zeros_like(parameters[:1])
        silent[:, -1] = MASKED_LOGIT  # the bias of the last convolution
        return torch.where(self.masked[classes, None], silent, parameters)

    @torch.no_grad()
    def mask(self, classes: Sequence[int]) -> None:
        """Never predict these classes, label values from 1, wherever a checkpoint of this network is loaded."""
        self.masked[[i - 1 for i in classes]] = True


def apply_head(features: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Logits (P, *S) of ``features`` (P, 8, *S), each under its own head ``parameters`` (P, NUM_PARAMETERS).

    A 1x1x1 convolution with a group for each sample is a product of matrices for each sample.
    """
    x = features.flatten(2)
    parts = parameters.split(SIZES, 1)
    for i, (weight, bias) in enumerate(zip(parts[: len(SHAPES)], parts[len(SHAPES) :])):
        x = torch.baddbmm(bias[:, :, None], weight.unflatten(1, SHAPES[i]), x if i == 0 else x.relu())
    return x.reshape(len(features), *features.shape[2:])
