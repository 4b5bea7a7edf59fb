"""Decoder features of a network, taken while it runs."""

import torch
from torch import nn

from nnunet_partial.errors import UserError


class FeatureTap:
    """Keeps what one decoder level computes in a forward pass, until it is taken.

    ``level`` 0 is full resolution, 1 the first level below it. The network is the plain module (not wrapped by
    torch.compile or DDP); a hook set before the first pass is part of what torch.compile traces.
    """

    def __init__(self, network: nn.Module, level: int):
        stages = getattr(getattr(network, "decoder", None), "stages", None)
        if stages is None:
            raise UserError(
                f"{type(network).__name__} has no decoder stages to take features from. Leave "
                "the feature term out: --set mskd.lambda_feature=0, or train nnUNetTrainerMSKDLW."
            )
        if not 0 <= level < len(stages):
            raise UserError(
                f"feature level {level} does not exist: the decoder has levels 0 (full resolution) to {len(stages) - 1}. "
                "Set mskd.feature_level to one of them."
            )
        self._features: torch.Tensor | None = None
        # decoder stages are stored in the order of computation: the last one is full resolution
        self.handle = stages[len(stages) - 1 - level].register_forward_hook(self._keep)

    def _keep(self, module, inputs, output) -> None:
        self._features = output

    def take(self) -> torch.Tensor:
        """Features (B, F, *S_level) of the last forward pass; they are handed over once, so that no graph is kept alive."""
        features, self._features = self._features, None
        assert features is not None  # there was a pass since
        return features
