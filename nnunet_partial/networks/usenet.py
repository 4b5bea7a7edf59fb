"""Residual-USE-Net: a residual U-Net with squeeze-and-excitation on what the decoder concatenates.

Choi, "Knowledge Distillation from Cross Teaching Teachers for Efficient Semi-Supervised Abdominal Organ Segmentation in
CT", 2022 (https://arxiv.org/abs/2211.05942), figures 3 and 4. Teacher 1 is ``ResidualUSENet(..., "transposed")``,
teacher 2 ``ResidualUSENet(..., "trilinear")``, the student ``ResidualUSENet(..., "transposed", mobile=True)``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_convtransp,
    get_matching_instancenorm,
    get_matching_pool_op,
)
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import nn
from torch.nn.modules.conv import _ConvNd

from nnunet_partial.errors import UserError
from nnunet_partial.networks.meta import meta_copy
from nnunet_partial.trust import locate

UPSAMPLINGS = ("transposed", "trilinear")
PAPER_FEATURES = (32, 64, 128, 256, 512)
PAPER_STRIDE = 16  # of the paper's five stages together
_LAYER_KEYS = ("conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs")
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}

PerStage = Sequence[Sequence[int]]


class DepthwiseSeparableConv(nn.Sequential):
    """Depthwise, then 1x1x1 convolution, nothing between (MobileNets, https://arxiv.org/abs/1704.04861)."""

    def __init__(
        self,
        conv_op: type,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: int = 1,
        bias: bool = True,
    ):
        super().__init__(
            conv_op(in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=bias),
            conv_op(in_channels, out_channels, 1, bias=bias),
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut that is added before the last activation (figure 4a).

    The shortcut is a strided 1x1x1 convolution without bias and a norm where stride or channels change, else the
    identity. ``conv`` makes the two convolutions (regular or depthwise separable), ``conv_op`` the shortcut's.
    """

    def __init__(
        self,
        conv: Any,
        conv_op: type,
        in_channels: int,
        out_channels: int,
        kernel_size: list[int],
        stride: list[int],
        layers: dict,
    ):
        super().__init__()
        ones = [1] * len(kernel_size)
        linear = {**layers, "dropout_op": None, "nonlin": None}
        self.conv1 = ConvDropoutNormReLU(conv, in_channels, out_channels, kernel_size, stride, **layers)
        self.conv2 = ConvDropoutNormReLU(conv, out_channels, out_channels, kernel_size, ones, **linear)
        if in_channels == out_channels and list(stride) == ones:
            self.skip = nn.Identity()
        else:
            self.skip = nn.Sequential(
                conv_op(in_channels, out_channels, 1, stride, bias=False),
                layers["norm_op"](out_channels, **(layers["norm_op_kwargs"] or {})),
            )
        self.nonlin = layers["nonlin"](**(layers["nonlin_kwargs"] or {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        out += self.skip(x)
        return self.nonlin(out)


class ResidualSqueezeExcitation(nn.Module):
    """``x + x * s(x)``, ``s = relu(W2 leaky_relu(W1 mean(x)))``, W1 reducing the channels by ``reduction`` (figure 4c).

    The gate is a ReLU where the original squeeze-and-excitation has a sigmoid: so does the paper's reference code.
    """

    def __init__(self, conv_op: type, channels: int, reduction: int = 8):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(
            get_matching_pool_op(conv_op, adaptive=True)(1),
            nn.Flatten(),
            nn.Linear(channels, hidden),
            nn.LeakyReLU(0.01),
            nn.Linear(hidden, channels),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1 + self.gate(x)
        return x * scale.view(*scale.shape, *[1] * (x.dim() - 2))


class LinearUpsampling(nn.Module):
    """Trilinear (2D: bilinear) upsampling by ``stride``, then a convolution with a kernel of that size, without bias.

    Corners are aligned, as in mutual consistency training (Wu et al. 2021), which the paper follows here.
    """

    def __init__(self, conv_op: type, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.stride = tuple(stride)
        self.mode = _LINEAR_MODES[len(self.stride)]
        self.conv = conv_op(in_channels, out_channels, self.stride, bias=False)
        # what padding="same" does for even kernels, without the warning that torch gives with it
        self.padding = [j for i in reversed(self.stride) for j in ((i - 1) // 2, i // 2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = [i * j for i, j in zip(x.shape[2:], self.stride)]
        x = nn.functional.interpolate(x, size=size, mode=self.mode, align_corners=True)
        return self.conv(nn.functional.pad(x, self.padding))


class USENetEncoder(nn.Module):
    """Stem and residual stages; returns the output of every stage, full resolution first."""

    def __init__(
        self,
        in_channels: int,
        conv: Any,
        conv_op: type,
        features: Sequence[int],
        strides: PerStage,
        kernel_sizes: PerStage,
        blocks_per_stage: Sequence[int],
        layers: dict,
    ):
        super().__init__()
        self.conv_op, self.output_channels, self.strides = conv_op, tuple(features), [list(i) for i in strides]
        self.kernel_sizes = [list(i) for i in kernel_sizes]
        ones = [1] * len(self.strides[0])
        # the stem stays a regular convolution in the student too: it has few input channels to separate
        self.stem = ConvDropoutNormReLU(conv_op, in_channels, features[0], self.kernel_sizes[0], ones, **layers)
        stages, channels = [], features[0]
        for width, stride, kernel_size, blocks in zip(features, self.strides, self.kernel_sizes, blocks_per_stage):
            first = ResidualBlock(conv, conv_op, channels, width, kernel_size, stride, layers)
            others = [ResidualBlock(conv, conv_op, width, width, kernel_size, ones, layers) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *others))
            channels = width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class USENetDecoder(nn.Module):
    """Plain blocks of two convolutions, lowest resolution first, as nnU-Net orders its decoder.

    ``deep_supervision`` may be switched at any time. All segmentation layers exist either way, as in nnU-Net, so that
    weights trained with deep supervision load without it. One squeeze-and-excitation per level serves both the
    upsampled and the skip tensor.
    """

    def __init__(
        self,
        encoder: USENetEncoder,
        num_classes: int,
        conv: Any,
        upsampling: str,
        reduction: int,
        deep_supervision: bool,
        layers: dict,
    ):
        super().__init__()
        self.deep_supervision, self.num_classes = deep_supervision, num_classes
        conv_op = encoder.conv_op
        upsamplings, excitations, stages, seg_layers = [], [], [], []
        for level in reversed(range(len(encoder.stages) - 1)):
            width, below = encoder.output_channels[level], encoder.output_channels[level + 1]
            kernel_size, ones = encoder.kernel_sizes[level], [1] * len(encoder.kernel_sizes[level])
            upsamplings.append(_upsampling(upsampling, conv_op, below, width, encoder.strides[level + 1]))
            excitations.append(ResidualSqueezeExcitation(conv_op, width, reduction))
            stages.append(
                nn.Sequential(
                    ConvDropoutNormReLU(conv, 2 * width, width, kernel_size, ones, **layers),
                    ConvDropoutNormReLU(conv, width, width, kernel_size, ones, **layers),
                )
            )
            seg_layers.append(conv_op(width, num_classes, 1, bias=False))
        self.upsamplings, self.excitations = nn.ModuleList(upsamplings), nn.ModuleList(excitations)
        self.stages, self.seg_layers = nn.ModuleList(stages), nn.ModuleList(seg_layers)

    def forward(self, skips: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """``skips`` is emptied: in prediction each tensor is released as soon as it has been used."""
        x, outputs = skips.pop(), []
        for upsampling, excitation, stage, seg_layer in zip(self.upsamplings, self.excitations, self.stages, self.seg_layers):
            x = stage(torch.cat((excitation(upsampling(x)), excitation(skips.pop())), dim=1))
            if self.deep_supervision:
                outputs.append(seg_layer(x))
        return outputs[::-1] if self.deep_supervision else self.seg_layers[-1](x)


class ResidualUSENet(nn.Module):
    """Residual-USE-Net in 2D or 3D; the paper's size (3D) by default.

    ``upsampling``: ``transposed`` or ``trilinear`` (bilinear in 2D). ``mobile``: depthwise separable convolutions in
    the residual and plain blocks; stem, shortcuts, upsampling and segmentation layers stay regular. ``features``:
    channels per stage. ``strides``, ``kernel_sizes``: one sequence per stage, axes as in the tensors; the first stride
    is 1. ``blocks_per_stage``: residual blocks per encoder stage, by default 1, 2, 3, ... ``reduction``: that of
    squeeze and excitation. ``layers``: nnU-Net's architecture keywords conv_bias, norm_op, norm_op_kwargs, dropout_op,
    dropout_op_kwargs, nonlin, nonlin_kwargs; by default biased convolutions, affine instance norm, no dropout,
    LeakyReLU 0.01.

    Input ``(B, in_channels, *S)``; output logits ``(B, num_classes, *S)``, or with ``decoder.deep_supervision`` a list
    of them, full resolution first, one per decoder stage.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        upsampling: str = "transposed",
        mobile: bool = False,
        *,
        features: Sequence[int] = PAPER_FEATURES,
        strides: PerStage | None = None,
        kernel_sizes: PerStage | None = None,
        blocks_per_stage: Sequence[int] | None = None,
        reduction: int = 8,
        conv_op: type = nn.Conv3d,
        deep_supervision: bool = False,
        layers: dict | None = None,
    ):
        super().__init__()
        dim, n_stages = convert_conv_op_to_dim(conv_op), len(features)
        strides = strides or [[1] * dim] + [[2] * dim] * (n_stages - 1)
        kernel_sizes = kernel_sizes or [[3] * dim] * n_stages
        blocks_per_stage = blocks_per_stage or tuple(range(1, n_stages + 1))
        _check_stages(n_stages, dim, strides=strides, kernel_sizes=kernel_sizes, blocks_per_stage=blocks_per_stage)
        layers = {**_default_layers(dim), **(layers or {})}
        conv = partial(DepthwiseSeparableConv, conv_op) if mobile else conv_op
        self.in_channels, self.num_classes = in_channels, num_classes
        self.encoder = USENetEncoder(in_channels, conv, conv_op, features, strides, kernel_sizes, blocks_per_stage, layers)
        self.decoder = USENetDecoder(self.encoder, num_classes, conv, upsampling, reduction, deep_supervision, layers)
        self.apply(self.initialize)

    @classmethod
    def from_plans(
        cls,
        configuration: Any,
        in_channels: int,
        num_classes: int,
        upsampling: str = "transposed",
        mobile: bool = False,
        deep_supervision: bool = True,
        **changes: Any,
    ) -> "ResidualUSENet":
        """The network with stages, strides, kernel sizes, features, norm and activation of a planned configuration.

        ``configuration``: nnU-Net's ``ConfigurationManager``. ``changes``: any keyword of the class, laid over the
        planned ones. Raises :class:`UserError` for a planned architecture that is not a U-Net of convolutions.
        """
        planned = dict(configuration.network_arch_init_kwargs)
        missing = [i for i in ("conv_op", "features_per_stage", "strides", "kernel_sizes") if i not in planned]
        if missing:
            raise UserError(
                f"the planned architecture {configuration.network_arch_class_name} has no {missing[0]}, so "
                f"Residual-USE-Net cannot be built from it. Use plans of nnU-Net's U-Nets, for example "
                f"nnUNetPlans."
            )
        for name in configuration.network_arch_init_kwargs_req_import:
            planned[name] = locate(planned[name]) if planned.get(name) else None
        dim, n_stages = convert_conv_op_to_dim(planned["conv_op"]), len(planned["features_per_stage"])
        arguments = {
            "features": list(planned["features_per_stage"]),
            "strides": _per_stage_and_axis(planned["strides"], n_stages, dim),
            "kernel_sizes": _per_stage_and_axis(planned["kernel_sizes"], n_stages, dim),
            "conv_op": planned["conv_op"],
            "layers": {i: planned[i] for i in _LAYER_KEYS if i in planned},
        }
        return cls(in_channels, num_classes, upsampling, mobile, deep_supervision=deep_supervision, **{**arguments, **changes})

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Number of values that all convolutions put out for an input of ``input_size``; nnU-Net plans by it."""
        sizes: list[int] = []
        network = meta_copy(self)
        for module in network.modules():
            if isinstance(module, _ConvNd):
                module.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
        network(torch.empty(1, self.in_channels, *input_size, device="meta"))
        return sum(sizes)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Xavier normal weights (the paper's table 2), biases zero."""
        if isinstance(module, (_ConvNd, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _upsampling(name: str, conv_op: type, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
    if name == "transposed":
        make: Any = get_matching_convtransp(conv_op)  # declared as torch's base class of convolutions
        return make(in_channels, out_channels, tuple(stride), tuple(stride), bias=False)
    if name == "trilinear":
        return LinearUpsampling(conv_op, in_channels, out_channels, stride)
    raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, found {name!r}.")


def _default_layers(dim: int) -> dict:
    return {
        "conv_bias": True,
        "norm_op": get_matching_instancenorm(dimension=dim),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"negative_slope": 1e-2, "inplace": True},
    }


def _check_stages(n_stages: int, dim: int, **per_stage: Sequence) -> None:
    if n_stages < 2:
        raise ValueError(f"Residual-USE-Net needs at least two stages, found {n_stages}.")
    for name, values in per_stage.items():
        if len(values) != n_stages:
            raise ValueError(f"{name} has {len(values)} entries for {n_stages} stages.")
        if any(isinstance(i, (list, tuple)) and len(i) != dim for i in values):
            raise ValueError(f"{name} must have {dim} numbers per stage, found {values}.")


def _per_stage_and_axis(value: Any, n_stages: int, dim: int) -> list:
    """Plans may give one number for all stages, or one for all axes of a stage."""
    per_stage = value if isinstance(value, (list, tuple)) else [value] * n_stages
    return [list(i) if isinstance(i, (list, tuple)) else [i] * dim for i in per_stage]
