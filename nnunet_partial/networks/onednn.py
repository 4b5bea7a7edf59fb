"""3D convolutions on the CPU for single patches.

For a batch of one and few channels (below about 20,000 values in channels x the first two axes) torch picks its reference
kernel for 3D convolutions where it picks oneDNN for anything larger. Prediction by sliding window sends one patch at a
time, so a small network runs up to five times slower than it does per patch of a batch. Depthwise convolutions go through
oneDNN in parts, which bounds the memory of its copies.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

# channels of a depthwise convolution that are convolved together in prediction: oneDNN lays its input and output out anew,
# which for all channels at once takes twice their memory
DEPTHWISE_AT_ONCE = 16


def use_onednn_convolutions(network: nn.Module) -> nn.Module:
    """Let every plain 3D convolution of more than one voxel run through oneDNN, where torch has it; for prediction on the CPU.

    The network is changed and returned. Weights stay where they are, so loading a state dict afterwards works; results
    are the same to rounding.
    """
    if torch.backends.mkldnn.is_available():
        for module in network.modules():
            if type(module) is not nn.Conv3d or module.padding_mode != "zeros" or isinstance(module.padding, str):
                continue
            if max(module.kernel_size) > 1:  # without neighbours torch multiplies matrices, which needs less memory
                vars(module)["forward"] = partial(_convolve, module)
    return network


@contextmanager
def onednn_convolutions(network: nn.Module):
    """:func:`use_onednn_convolutions` for as long as the context lasts."""
    before = {module: module.forward for module in network.modules() if "forward" in vars(module)}
    use_onednn_convolutions(network)
    try:
        yield network
    finally:
        for module in network.modules():
            if module in before:
                module.forward = before[module]
            elif type(module) is nn.Conv3d:
                vars(module).pop("forward", None)


def _convolve(module: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() != 5:
        return type(module).forward(module, x)
    depthwise = module.groups == module.in_channels == module.out_channels
    if not depthwise or module.groups <= DEPTHWISE_AT_ONCE or torch.is_grad_enabled():
        return _onednn(module, x, slice(None), module.groups)
    first = _onednn(module, x, slice(DEPTHWISE_AT_ONCE), DEPTHWISE_AT_ONCE)
    result = first.new_empty(len(first), module.groups, *first.shape[2:])
    result[:, :DEPTHWISE_AT_ONCE] = first
    for i in range(DEPTHWISE_AT_ONCE, module.groups, DEPTHWISE_AT_ONCE):
        number = min(DEPTHWISE_AT_ONCE, module.groups - i)
        result[:, i : i + number] = _onednn(module, x, slice(i, i + number), number)
    return result


def _onednn(module: nn.Conv3d, x: torch.Tensor, channels: slice, groups: int) -> torch.Tensor:
    assert not isinstance(module.padding, str)  # such are left to torch
    bias = None if module.bias is None else module.bias[channels]
    return torch.mkldnn_convolution(
        x[:, channels], module.weight[channels], bias, module.padding, module.stride, module.dilation, groups
    )
