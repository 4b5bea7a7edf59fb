"""Instance-batch normalisation (IBN-a) in the first stages of an nnU-Net encoder.

Pan, Luo, Shi, Tang, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018
(https://arxiv.org/abs/1807.09441): instance normalisation on one half of the channels keeps appearance out of the
shallow features, batch normalisation on the other half keeps content in.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

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
    """Replace the first norm of each block in the encoder's first ``num_stages`` stages by :class:`InstanceBatchNorm`.

    So IBN-a is defined: in the first three of a ResNet's four groups, where appearance is told by; the deepest, the stem, the
    later norms of a block and its shortcut stay as they are. A stage of plain convolutions is one block, a residual stage has
    several. The network is changed in place and returned; its new norms start with weight 1 and bias 0, so call this where
    the network is built, at training and at inference alike. Weights of version 0.1, which replaced every norm there, still
    load: the network takes their form first. Raises :class:`UserError` for a network without encoder stages, with fewer stages,
    or without norms there.
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
    parts = [i for i in (getattr(encoder, "stem", None), *list(stages)[:num_stages]) if i is not None]
    first = [norm for stage in list(stages)[:num_stages] for block in _blocks(stage) for norm in _norms(block)[:1]]
    if not first:
        raise UserError(f"{type(network).__name__} has no instance or batch norm in its first {num_stages} encoder stages.")
    _replace(parts, first)
    network.register_load_state_dict_pre_hook(_take_the_form_of_version_0_1)
    return network


def _blocks(stage: nn.Module) -> list:
    """The residual blocks of a stage, or the stage itself where it has none."""
    residual = [i for i in stage.modules() if hasattr(i, "conv1") and hasattr(i, "conv2")]
    return residual or [stage]


def _norms(module: nn.Module) -> list:
    """Norms in the order in which they run, each once."""
    return [i for i in module.modules() if isinstance(i, (_InstanceNorm, _BatchNorm))]


def _replace(parts: Sequence[nn.Module], norms: Collection[Any]) -> None:
    # nnU-Net's blocks hold a norm twice, by name and in the sequence that runs: both places must get the same new module
    new = {i: InstanceBatchNorm(i.num_features, _dimension(i), i.eps).to(_device(i)) for i in norms}
    for module in [j for i in parts for j in i.modules()]:
        for name, child in module._modules.items():
            if child in new:
                module._modules[name] = new[child]


def _take_the_form_of_version_0_1(network: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: norms that are instance-batch norms there, although they are not the first of a block."""
    own = dict(network.named_modules(remove_duplicate=False))
    ends = ".instance.weight"
    names = [key[len(prefix) : -len(ends)] for key in state_dict if key.startswith(prefix) and key.endswith(ends)]
    plain = [own[i] for i in names if isinstance(own.get(i), (_InstanceNorm, _BatchNorm))]
    if plain:
        _replace([network], plain)


def _dimension(norm: nn.Module) -> int:
    return next(dim for kind, dim in _DIMENSIONS.items() if isinstance(norm, kind))


def _device(norm: nn.Module) -> torch.device:
    return next((p.device for p in norm.parameters()), torch.device("cpu"))
