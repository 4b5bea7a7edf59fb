"""Instance-batch normalisation: its arithmetic, and its place in nnU-Net's encoders."""

import copy

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.networks.ibn import InstanceBatchNorm, _replace, use_instance_batch_norm
from nnunet_partial.networks.usenet import ResidualUSENet

NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
CONVS = {2: nn.Conv2d, 3: nn.Conv3d}


def build(kind, dim):
    """A three-stage network as nnU-Net plans it."""
    if kind is ResidualUSENet:
        return ResidualUSENet(1, 2, features=(4, 6, 8), conv_op=CONVS[dim])
    return kind(
        1,
        3,
        (4, 6, 8),
        CONVS[dim],
        3,
        (1, 2, 2),
        2,
        2,
        1,
        conv_bias=True,
        norm_op=NORMS[dim],
        norm_op_kwargs={"eps": 1e-3, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


@pytest.mark.parametrize("channels, half", ((6, 3), (5, 2)))
@pytest.mark.parametrize("dim", (2, 3))
def test_first_half_is_normalised_per_case_and_the_rest_over_the_batch(dim, channels, half):
    torch.manual_seed(0)
    norm = InstanceBatchNorm(channels, dim, eps=1e-5).double().train()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    x = torch.randn(3, channels, *(4, 5, 6)[:dim], dtype=torch.float64) * 2 + 1
    array, space = x.numpy(), tuple(range(2, 2 + dim))

    def standardised(part, axes):
        return (part - part.mean(axes, keepdims=True)) / np.sqrt(part.var(axes, keepdims=True) + 1e-5)

    weight = torch.cat((norm.instance.weight, norm.batch.weight)).detach().numpy().reshape(1, -1, *[1] * dim)
    bias = torch.cat((norm.instance.bias, norm.batch.bias)).detach().numpy().reshape(1, -1, *[1] * dim)
    instance, batch = standardised(array[:, :half], space), standardised(array[:, half:], (0, *space))
    expected = np.concatenate((instance, batch), axis=1) * weight + bias
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kind, first",
    (
        # every stage: two convolutions, or residual blocks of two
        (PlainConvUNet, "stages.{i}.0.convs.0.norm"),
        (ResidualEncoderUNet, "stages.{i}.blocks.{j}.conv1.norm"),
        (ResidualUSENet, "stages.{i}.{j}.conv1.norm"),
    ),
)
@pytest.mark.parametrize("dim", (2, 3))
def test_the_first_norm_of_each_block_of_the_first_stages_changes_and_no_other(kind, first, dim):
    plain, network = build(kind, dim), build(kind, dim)
    assert use_instance_batch_norm(network, 2) is network
    found = {name for name, module in network.encoder.named_modules() if isinstance(module, InstanceBatchNorm)}
    every = {name for name, module in plain.encoder.named_modules() if isinstance(module, NORMS[dim])}
    expected = {name for name in every for i in (0, 1) for j in range(9) if name == first.format(i=i, j=j)}
    assert found == expected and len(found) >= 2
    kept = {
        name for name, module in network.encoder.named_modules() if isinstance(module, NORMS[dim]) and ".instance" not in name
    }
    assert kept == every - expected
    assert not any(isinstance(i, InstanceBatchNorm) for i in network.decoder.stages.modules())


@pytest.mark.parametrize("kind", (PlainConvUNet, ResidualEncoderUNet))
def test_weights_of_version_0_1_still_predict(kind):
    """It replaced every norm of the first stages and the stem."""
    torch.manual_seed(0)
    old = build(kind, 2)
    parts = [i for i in (getattr(old.encoder, "stem", None), *old.encoder.stages[:2]) if i is not None]
    _replace(parts, [i for part in parts for i in part.modules() if isinstance(i, nn.InstanceNorm2d)])
    x = torch.randn(3, 1, 16, 16)
    old.train()(x)
    network = copy.deepcopy(use_instance_batch_norm(build(kind, 2), 2))
    assert network.state_dict().keys() != old.state_dict().keys()
    network.load_state_dict(old.state_dict())
    assert torch.equal(network.eval()(x), old.eval()(x))


@pytest.mark.parametrize("kind", (PlainConvUNet, ResidualEncoderUNet, ResidualUSENet))
@pytest.mark.parametrize("dim", (2, 3))
def test_the_new_norms_run_and_learn(kind, dim):
    network = use_instance_batch_norm(build(kind, dim), 3).train()
    calls = []
    norms = {m for m in network.modules() if isinstance(m, InstanceBatchNorm)}
    for norm in norms:
        norm.register_forward_hook(lambda module, args, output: calls.append(module))
    network(torch.randn(2, 1, *[16] * dim)).square().mean().backward()
    assert set(calls) == norms
    assert all(p.grad is not None for norm in norms for p in norm.parameters())
    assert all(norm.batch.num_batches_tracked == 1 for norm in norms)


def test_name_and_sequence_of_a_block_hold_the_same_norm():
    network = use_instance_batch_norm(build(PlainConvUNet, 3), 1)
    block = network.encoder.stages[0][0].convs[0]
    assert isinstance(block.norm, InstanceBatchNorm) and block.all_modules[1] is block.norm
    assert block.norm.instance.eps == block.norm.batch.eps == 1e-3


def test_weights_load_into_a_network_built_the_same_way():
    torch.manual_seed(0)
    trained = use_instance_batch_norm(build(PlainConvUNet, 3)).train()
    x = torch.randn(2, 1, 16, 16, 16)
    trained(x)
    deployed = use_instance_batch_norm(build(PlainConvUNet, 3))
    deployed.load_state_dict(trained.state_dict())
    assert torch.equal(trained.eval()(x), deployed.eval()(x))


def test_conversion_to_synchronised_batch_norm_keeps_weights_and_statistics():
    torch.manual_seed(0)
    network = use_instance_batch_norm(build(PlainConvUNet, 3), 2).train()
    x = torch.randn(2, 1, 16, 16, 16)
    network(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    norms = [m for m in converted.modules() if isinstance(m, InstanceBatchNorm)]
    assert norms and all(isinstance(norm.batch, nn.SyncBatchNorm) for norm in norms)
    assert list(converted.state_dict()) == list(network.state_dict())
    assert torch.equal(network.eval()(x), converted.eval()(x))


@pytest.mark.parametrize(
    "network, num_stages, message",
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), 3, "no encoder stages"),
        (build(PlainConvUNet, 2), 4, "4 stages, the encoder has 1 to 3"),
        (build(PlainConvUNet, 2), 0, "0 stages"),
        (PlainConvUNet(1, 2, (2, 2), nn.Conv2d, 3, (1, 2), 1, 2, 1, nonlin=nn.ReLU), 1, "no instance or batch norm"),
    ],
)
def test_networks_that_cannot_take_it_are_refused(network, num_stages, message):
    with pytest.raises(UserError, match=message):
        use_instance_batch_norm(network, num_stages)
