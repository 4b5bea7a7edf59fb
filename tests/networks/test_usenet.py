"""Residual-USE-Net: the paper's size and cost, its blocks, and its behaviour where nnU-Net expects a U-Net."""

from math import prod

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_partial.errors import UserError
from nnunet_partial.networks.usenet import (
    DepthwiseSeparableConv,
    LinearUpsampling,
    ResidualBlock,
    ResidualSqueezeExcitation,
    ResidualUSENet,
)

PATCH = (96, 64, 96)
CLASSES = 14  # FLARE22: 13 organs and background
NETWORKS = {"teacher 1": ("transposed", False), "teacher 2": ("trilinear", False), "student": ("transposed", True)}


def paper_size(name):
    with torch.device("meta"):
        return ResidualUSENet(1, CLASSES, *NETWORKS[name])


def tiny(dim=3, **kwargs):
    torch.manual_seed(0)
    return ResidualUSENet(1, 3, features=(4, 8, 8), conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dim], **kwargs)


def deployed_parameters(network):
    """Without the heads that only deep supervision uses."""
    return sum(p.numel() for n, p in network.named_parameters() if not n.startswith("decoder.seg_layers")) + sum(
        p.numel() for p in network.decoder.seg_layers[-1].parameters()
    )


def paper_counts(upsampling, mobile):
    """(parameters, multiply-accumulates) of METHODS in plain arithmetic, layer by layer."""
    features, levels = (32, 64, 128, 256, 512), range(5)
    voxels = [prod(PATCH) // 8**i for i in levels]
    layers = []  # (parameters, multiply-accumulates)

    def conv(c_in, c_out, level, separable=mobile):
        norm = 2 * c_out
        if separable:
            layers.append((27 * c_in + c_in, 27 * c_in * voxels[level]))
            layers.append((c_in * c_out + c_out + norm, c_in * c_out * voxels[level]))
        else:
            layers.append((27 * c_in * c_out + c_out + norm, 27 * c_in * c_out * voxels[level]))

    conv(1, 32, 0, separable=False)
    below = 32
    for level, width in enumerate(features):
        for block in range(level + 1):
            conv(below if block == 0 else width, width, level)
            conv(width, width, level)
        if below != width:
            layers.append((below * width + 2 * width, below * width * voxels[level]))
        below = width
    for level in (3, 2, 1, 0):
        width = features[level]
        # a transposed convolution multiplies once per input voxel and kernel element, a regular one per output voxel
        positions = voxels[level + 1] if upsampling == "transposed" else voxels[level]
        layers.append((8 * 2 * width * width, 8 * 2 * width * width * positions))
        squeeze = 2 * width * (width // 8)
        layers.append((squeeze + width // 8 + width, 2 * squeeze))  # applied to the upsampled and to the skip tensor
        conv(2 * width, width, level)
        conv(width, width, level)
    layers.append((32 * CLASSES, 32 * CLASSES * voxels[0]))
    return tuple(sum(i) for i in zip(*layers))


@pytest.fixture(scope="module")
def counted():
    """name -> (parameters, multiply-accumulates); torch counts two operations for one multiply-accumulate."""
    result = {}
    for name in NETWORKS:
        network = paper_size(name)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 1, *PATCH, device="meta"))
        result[name] = deployed_parameters(network), counter.get_total_flops() // 2
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_multiply_accumulates_follow_from_the_description(counted, name):
    assert counted[name] == paper_counts(*NETWORKS[name])


def test_parameters_are_those_of_the_paper(counted):
    millions = {name: parameters / 1e6 for name, (parameters, _) in counted.items()}
    assert round(millions["teacher 1"], 2) == round(millions["teacher 2"], 2) == 92.06
    assert round(millions["student"], 2) == 5.23
    assert round(sum(millions.values()), 2) == 189.34


def test_student_is_ten_times_lighter(counted):
    for teacher in ("teacher 1", "teacher 2"):
        assert counted[teacher][0] >= 10 * counted["student"][0]
        assert counted[teacher][1] >= 10 * counted["student"][1]


def test_multiply_accumulates_are_those_of_the_paper_as_its_tool_counted():
    """443.1 G in training, 21.7 G at test.

    The paper counted with ptflops of 2022, which visits the layers of a conv-norm-activation block twice (once by name,
    once in the sequence that runs), also counts norms and activations, and counts transposed convolutions at their
    output voxels. The published figures are half of what it reports, in training and at test alike.
    """
    ptflops = pytest.importorskip("ptflops", reason="the paper's counter, ptflops 0.6.9, is not installed")
    gmac = {}
    for name in NETWORKS:
        with torch.no_grad():
            gmac[name] = (
                ptflops.get_model_complexity_info(paper_size(name), (1, *PATCH), as_strings=False, print_per_layer_stat=False)[0]
                / 1e9
            )
    assert round(sum(gmac.values()) / 2, 1) == 443.1
    assert round(gmac["student"] / 2, 1) == 21.7


def test_true_multiply_accumulates_of_convolutions_and_linear_layers(counted):
    giga = {name: macs / 1e9 for name, (_, macs) in counted.items()}
    assert {name: round(i, 1) for name, i in giga.items()} == {"teacher 1": 203.6, "teacher 2": 219.5, "student": 14.5}
    assert round(sum(giga.values()), 1) == 437.5


@pytest.mark.parametrize("mobile", (False, True))
@pytest.mark.parametrize("upsampling", ("transposed", "trilinear"))
@pytest.mark.parametrize("dim", (2, 3))
def test_logits_have_the_shape_of_the_input_and_every_parameter_learns(dim, upsampling, mobile):
    network = tiny(dim, upsampling=upsampling, mobile=mobile, deep_supervision=True)
    outputs = network(torch.randn(2, 1, *(16, 8, 12)[:dim]))
    assert [tuple(i.shape) for i in outputs] == [(2, 3, *(16, 8, 12)[:dim]), (2, 3, *(8, 4, 6)[:dim])]
    sum(i.square().sum() for i in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def planned(dim=3, **changes):
    """The architecture of an anisotropic nnU-Net configuration."""
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 12],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[1, 3, 3][-dim:], [3, 3, 3][-dim:], [3, 3, 3][-dim:]],
        "strides": [[1, 1, 1][-dim:], [1, 2, 2][-dim:], [2, 2, 2][-dim:]],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }
    return ConfigurationManager(
        {
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": kwargs,
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            }
        }
    )


@pytest.mark.parametrize("upsampling", ("transposed", "trilinear"))
@pytest.mark.parametrize("dim", (2, 3))
def test_network_from_plans_answers_like_nnunets_own(dim, upsampling):
    size = (6, 16, 24)[-dim:]
    configuration = planned(dim)
    ours = ResidualUSENet.from_plans(configuration, 2, 5, upsampling, deep_supervision=True)
    conv_op = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
    kwargs = configuration.network_arch_init_kwargs
    theirs = PlainConvUNet(
        2, 3, kwargs["features_per_stage"], conv_op, kwargs["kernel_sizes"], kwargs["strides"], 2, 5, 2, deep_supervision=True
    )
    x = torch.randn(1, 2, *size)
    for deep_supervision in (True, False):
        for network in (ours, theirs):
            network.decoder.deep_supervision = deep_supervision
        mine, reference = ours(x), theirs(x)
        if not deep_supervision:
            mine, reference = [mine], [reference]
        assert [i.shape for i in mine] == [i.shape for i in reference]
    assert len(ours.decoder.stages) == len(theirs.decoder.stages)
    assert ours.encoder.output_channels == (4, 8, 12)
    assert [len(stage) for stage in ours.encoder.stages] == [1, 2, 3]


def test_changes_are_laid_over_the_plans():
    network = ResidualUSENet.from_plans(planned(), 1, 2, mobile=True, features=(4, 4, 4), blocks_per_stage=(1, 1, 1))
    assert network.encoder.output_channels == (4, 4, 4)
    assert [len(stage) for stage in network.encoder.stages] == [1, 1, 1]


def test_plans_without_a_convolutional_unet_are_refused():
    configuration = planned()
    configuration.configuration["architecture"] = {
        "network_class_name": "Primus",
        "arch_kwargs": {"embed_dim": 8},
        "_kw_requires_import": [],
    }
    with pytest.raises(UserError, match="Primus has no conv_op"):
        ResidualUSENet.from_plans(configuration, 1, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"upsampling": "nearest"}, "one of transposed, trilinear"),
        ({"strides": [[1] * 3, [2] * 3]}, "2 entries for 3 stages"),
        ({"kernel_sizes": [[3, 3]] * 3}, "3 numbers per stage"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_weights_trained_with_deep_supervision_load_without():
    trained, deployed = tiny(deep_supervision=True), tiny(deep_supervision=False)
    deployed.load_state_dict(trained.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.equal(trained(x)[0], deployed(x))


def test_squeeze_excitation_is_x_plus_x_times_gate():
    torch.manual_seed(1)
    block = ResidualSqueezeExcitation(nn.Conv3d, 16, reduction=8).double()
    x = torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
    first, second = block.gate[2], block.gate[4]
    assert first.weight.shape == (2, 16) and second.weight.shape == (16, 2)
    mean = x.numpy().mean(axis=(2, 3, 4))
    hidden = mean @ first.weight.detach().numpy().T + first.bias.detach().numpy()
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    scale = np.maximum(hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy(), 0)
    expected = x.numpy() + x.numpy() * scale[:, :, None, None, None]
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-12)


def test_one_squeeze_excitation_per_level_serves_upsampled_and_skip_tensor():
    network = tiny()
    calls = []
    for block in network.decoder.excitations:
        block.register_forward_hook(lambda module, args, output: calls.append(module))
    network(torch.randn(1, 1, 8, 8, 8))
    assert calls == [i for block in network.decoder.excitations for i in (block, block)]


def test_residual_sum_comes_before_the_last_activation():
    layers = tiny_layers()
    block = ResidualBlock(nn.Conv3d, nn.Conv3d, 4, 4, [3, 3, 3], [1, 1, 1], layers)
    nn.init.zeros_(block.conv2.norm.weight)  # the branch adds nothing, so the activation acts on the input alone
    x = torch.randn(1, 4, 5, 5, 5)
    assert isinstance(block.skip, nn.Identity)
    assert torch.equal(block(x), nn.functional.leaky_relu(x, 0.01))
    strided = ResidualBlock(nn.Conv3d, nn.Conv3d, 4, 8, [3, 3, 3], [2, 2, 2], layers)
    shortcut = strided.skip[0]
    assert shortcut.stride == (2, 2, 2) and shortcut.kernel_size == (1, 1, 1) and shortcut.bias is None


def tiny_layers():
    return {
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"negative_slope": 0.01},
    }


def test_mobile_replaces_the_convolutions_of_blocks_only():
    network = tiny(mobile=True)
    regular = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.groups == 1 and prod(m.kernel_size) > 1]
    assert regular == [network.encoder.stem.conv]
    assert all(isinstance(m, nn.ConvTranspose3d) and m.bias is None for m in network.decoder.upsamplings)
    separable = [m for m in network.modules() if isinstance(m, DepthwiseSeparableConv)]
    assert len(separable) == 2 * (1 + 2 + 3) + 2 * 2
    assert all([type(i) for i in m] == [nn.Conv3d, nn.Conv3d] and m[1].kernel_size == (1, 1, 1) for m in separable)


def test_linear_upsampling_keeps_axes_of_stride_one():
    upsampling = LinearUpsampling(nn.Conv3d, 2, 3, (1, 2, 2))
    assert upsampling(torch.randn(1, 2, 5, 4, 6)).shape == (1, 3, 5, 8, 12)
    assert upsampling.conv.kernel_size == (1, 2, 2) and upsampling.conv.bias is None


def test_feature_map_size_is_the_number_of_values_convolutions_put_out():
    network = ResidualUSENet(1, 2, features=(2, 4), deep_supervision=False)
    full, half = 8 * 8 * 8, 4 * 4 * 4
    # stem 2; stage 1 one block of two convolutions; stage 2 two blocks and a shortcut
    encoder = 2 * full + 2 * 2 * full + (4 * 4 + 4) * half
    decoder = 2 * full + 2 * 2 * full + 2 * full  # upsampling, two convolutions, two classes
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert network.compute_conv_feature_map_size((8, 8, 8)) == encoder + decoder
    assert not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(before[k], v) and v.device.type == "cpu" for k, v in network.state_dict().items())
