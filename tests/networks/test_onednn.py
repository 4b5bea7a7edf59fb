"""The other kernel gives the same numbers."""

import pytest
import torch
from torch import nn

from nnunet_partial.networks.onednn import onednn_convolutions, use_onednn_convolutions
from nnunet_partial.networks.usenet import ResidualUSENet


@pytest.mark.parametrize(
    "stride, padding, groups, bias", [(1, 1, 1, True), (2, 1, 1, False), ((1, 2, 2), (0, 1, 1), 1, True), (1, 1, 8, False)]
)
def test_one_convolution_against_float64(stride, padding, groups, bias):
    torch.manual_seed(0)
    layer = nn.Conv3d(8, 16, 3, stride, padding, groups=groups, bias=bias)
    x = torch.randn(1, 8, 6, 7, 5)
    expected = layer.double()(x.double())
    found = use_onednn_convolutions(layer.float())(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_whole_network_and_later_weights():
    torch.manual_seed(0)
    network, other = (ResidualUSENet(1, 3, features=(4, 8, 16), mobile=True).eval() for _ in range(2))
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = other(x)
        use_onednn_convolutions(network).load_state_dict(other.state_dict())
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", (16, 17, 40))
@pytest.mark.parametrize("bias", (True, False))
def test_depthwise_in_parts(channels, bias):
    torch.manual_seed(0)
    layer = nn.Conv3d(channels, channels, 3, (1, 2, 1), 1, groups=channels, bias=bias)
    x = torch.randn(2, channels, 6, 7, 5)
    expected = layer.double()(x.double())
    layer = use_onednn_convolutions(layer.float())
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()  # with gradients all channels at once
    assert layer.weight.grad.abs().min() > 0


def test_what_it_does_not_cover_is_left_to_torch():
    layers = [
        nn.Conv3d(2, 2, 1),
        nn.Conv3d(2, 2, 3, padding="same"),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3),
    ]
    assert not any("forward" in vars(use_onednn_convolutions(i)) for i in layers)
    layer = use_onednn_convolutions(nn.Conv3d(2, 2, 3).double())
    assert layer(torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_for_as_long_as_a_context_lasts():
    network = nn.Sequential(nn.Conv3d(2, 2, 3), nn.ReLU(), use_onednn_convolutions(nn.Conv3d(2, 2, 3)))
    kept = network[2].forward
    with pytest.raises(KeyError), onednn_convolutions(network):
        assert all("forward" in vars(i) for i in (network[0], network[2]))
        raise KeyError
    assert "forward" not in vars(network[0]) and network[2].forward is kept
