"""A network's shapes without its memory or arithmetic."""

import copy

from torch import nn

from nnunet_partial.networks.unwrap import unwrap


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy of ``network`` on torch's meta device: it works out the shape of everything and computes nothing.

    No weight is copied on the way, so this is cheap for a network of any size; the original is untouched.
    """
    network = unwrap(network)
    replaced = {id(i): i.detach().to("meta") for i in network.buffers()}
    replaced.update({id(i): nn.Parameter(i.detach().to("meta"), i.requires_grad) for i in network.parameters()})
    return copy.deepcopy(network, replaced)
