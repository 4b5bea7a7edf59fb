"""Instance-batch normalisation (IBN-a) in the first stages of an nnU-Net encoder.

Pan, Luo, Shi, Tang, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018
(https://arxiv.org/abs/1807.09441): instance normalisation on one half of the channels keeps appearance out of the
shallow features, batch normalisation on the other half keeps content in.
"""

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm, get_matching_instancenorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_partial.errors import UserError
from nnunet_partial.networks.unwrap import unwrap

_DIMENSIONS = {
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
}


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels (rounded down), batch norm on the rest; both affine.

    Input and output ``(B, num_features, *S)`` with ``dim`` spatial axes. The halves are ordinary torch modules, so that
    ``SyncBatchNorm.convert_sync_batchnorm`` finds the batch norm.
    """

    def __init__(self, num_features: int, dim: int, eps: float = 1e-5):
        super().__init__()
        half = num_features // 2
        self.sizes = (half, num_features - half)
        self.instance = get_matching_instancenorm(dimension=dim)(half, eps=eps, affine=True)
        self.batch = get_matching_batchnorm(dimension=dim)(num_features - half, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.split(self.sizes, dim=1)
        return torch.cat((self.instance(first), self.batch(rest)), dim=1)


def use_instance_batch_norm(network: nn.Module, num_stages: int = 3) -> nn.Module:
    """Replace every norm in the encoder's first ``num_stages`` stages (and its stem) by :class:`InstanceBatchNorm`.

    IBN-Net does so in the first three of a ResNet's four stages and leaves the deepest alone, where appearance tells
    classes apart. The network is changed in place and returned; its new norms start with weight 1 and bias 0, so call
    this where the network is built, at training and at inference alike. Raises :class:`UserError` for a network without
    encoder stages, with fewer stages, or without norms there.
    """
    encoder = getattr(unwrap(network), "encoder", None)
    stages = getattr(encoder, "stages", None)
    if stages is None:
        raise UserError(
            f"{type(network).__name__} has no encoder stages for instance-batch normalisation. Use plans "
            f"of nnU-Net's U-Nets, for example nnUNetPlans."
        )
    if not 1 <= num_stages <= len(stages):
        raise UserError(f"instance-batch normalisation was asked for in {num_stages} stages, the encoder has 1 to {len(stages)}.")
    replaced: dict[nn.Module, InstanceBatchNorm] = {}
    for part in (getattr(encoder, "stem", None), *list(stages)[:num_stages]):
        if part is not None:
            _replace_norms(part, replaced)
    if not replaced:
        raise UserError(f"{type(network).__name__} has no instance or batch norm in its first {num_stages} encoder stages.")
    return network


def _replace_norms(module: nn.Module, replaced: dict[nn.Module, InstanceBatchNorm]) -> None:
    # nnU-Net's blocks hold a norm twice, by name and in the sequence that runs: both places must get the same new
    # module, hence the children by _modules (named_children leaves out what it has seen) and the memory of what was
    # replaced
    for name, child in module._modules.items():
        if isinstance(child, (_InstanceNorm, _BatchNorm)):
            if child not in replaced:
                replaced[child] = InstanceBatchNorm(child.num_features, _dimension(child), child.eps).to(_device(child))
            module._modules[name] = replaced[child]
        elif child is not None:
            _replace_norms(child, replaced)


def _dimension(norm: nn.Module) -> int:
    return next(dim for kind, dim in _DIMENSIONS.items() if isinstance(norm, kind))


def _device(norm: nn.Module) -> torch.device:
    return next((p.device for p in norm.parameters()), torch.device("cpu"))
