"""The copy on the meta device: same structure, no memory, original untouched."""

import torch
from torch import nn

from nnunet_partial.networks.meta import meta_copy
from nnunet_partial.networks.usenet import ResidualUSENet


def test_copy_has_the_shapes_and_nothing_else():
    network = nn.Sequential(ResidualUSENet(1, 3, features=(4, 8), deep_supervision=True), nn.Identity())
    network[0].encoder.register_buffer("statistics", torch.ones(3))
    network[0].encoder.stem.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    copy = meta_copy(torch.compile(network))
    assert list(copy.state_dict()) == list(network.state_dict())
    assert all(i.device.type == "meta" for i in (*copy.parameters(), *copy.buffers()))
    described = [[(i.shape, i.requires_grad) for i in n.parameters()] for n in (copy, network)]
    assert described[0] == described[1]
    block = copy[0].encoder.stem
    assert block.conv is block.all_modules[0]  # a layer known by two names stays one layer
    outputs = copy(torch.empty(2, 1, 8, 8, 8, device="meta"))
    assert [tuple(i.shape) for i in outputs] == [(2, 3, 8, 8, 8)]
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_tied_weights_stay_tied():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    copy = meta_copy(network)
    assert copy[0].weight is copy[1].weight and copy[0].weight.is_meta
