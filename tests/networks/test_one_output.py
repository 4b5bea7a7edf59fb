"""DoDNet's heads and conditionCNN's planes against independent float64 computations, on nnU-Net's U-Nets."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn
from torch.nn import functional

from nnunet_partial.errors import UserError
from nnunet_partial.networks import condition_cnn, dodnet
from nnunet_partial.networks.condition_cnn import ConditionCNN, class_values
from nnunet_partial.networks.dodnet import DoDNet
from nnunet_partial.networks.planned import deployed_logits

K = 3
PAIRS = torch.tensor([[0, 0], [0, 2], [1, 1]])


def unet(out_channels, dimension=3, residual=False, deep_supervision=False):
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    blocks = {"n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 1, 2]}
    return kind(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 6, 8],
        conv_op=(nn.Conv2d, nn.Conv3d)[dimension - 2],
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=out_channels,
        n_conv_per_stage_decoder=[2, 1],
        conv_bias=True,
        norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[dimension - 2],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
        **blocks,
    )


def build(kind, **kwargs):
    torch.manual_seed(0)
    network = DoDNet(unet(8, **kwargs), K) if kind == "dodnet" else ConditionCNN(unet(1, **kwargs), K)
    return network.double().eval()


def image(dimension=3):
    return torch.randn(2, 1, *[8, 12, 8][:dimension], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("dimension, residual", [(2, False), (3, False), (3, True)])
def test_dodnets_heads_are_grouped_convolutions(dimension, residual):
    """One convolution for the whole batch with a group for each sample, as the paper's figure 3 has it."""
    network, x = build("dodnet", dimension=dimension, residual=residual), image(dimension)
    with torch.no_grad():
        skips = network.encoder(x)
        features = network.decoder(skips)
        expected = [torch.zeros_like(features[:, 0])]
        for k in range(K):
            code = torch.zeros(2, K, dtype=torch.float64)
            code[:, k] = 1
            pooled = torch.cat((skips[-1].mean(list(range(2, 2 + dimension))), code), 1)
            made = pooled @ network.controller.weight.T + network.controller.bias
            w1, w2, w3, b1, b2, b3 = made.split([64, 64, 8, 8, 8, 1], 1)
            conv, ones = (functional.conv2d, functional.conv3d)[dimension - 2], [1] * dimension
            h = features.reshape(1, 16, *features.shape[2:])
            h = torch.relu(conv(h, w1.reshape(16, 8, *ones), b1.flatten(), groups=2))
            h = torch.relu(conv(h, w2.reshape(16, 8, *ones), b2.flatten(), groups=2))
            expected.append(conv(h, w3.reshape(2, 8, *ones), b3.flatten(), groups=2)[0])
        found = network(x)
    assert made.shape == (2, 153) and network.controller.in_features == 8 + K
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    assert (found[:, 1] - found[:, 2]).abs().max() > 1e-3 and not found[:, 0].any()


@pytest.mark.parametrize("dimension, residual", [(2, False), (3, False), (3, True)])
def test_condition_cnns_planes(dimension, residual):
    """The decoder computed anew, layer by layer, with a plane of -20, 0 or 20 concatenated in front of each block."""
    network, x = build("condition", dimension=dimension, residual=residual), image(dimension)
    conv = (functional.conv2d, functional.conv3d)[dimension - 2]
    up = (functional.conv_transpose2d, functional.conv_transpose3d)[dimension - 2]
    spatial = list(range(2, 2 + dimension))

    def normalised(h, norm, over):
        mean, variance = h.mean(over, keepdim=True), h.var(over, keepdim=True, unbiased=False)
        shape = (1, -1, *[1] * dimension)
        return (h - mean) / (variance + 1e-5).sqrt() * norm.weight.reshape(shape) + norm.bias.reshape(shape)

    with torch.no_grad():
        for norm in (i for i in network.decoder.modules() if hasattr(i, "affine")):  # not those of initialisation
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-1, 1)
        skips, expected = network.encoder(x), [torch.zeros(2, *x.shape[2:], dtype=torch.float64)]
        for value in (-20.0, 0.0, 20.0):
            h = skips[-1]
            for s, stage in enumerate(network.decoder.stages):
                transposed = network.decoder.transpconvs[s]
                h = up(h, transposed.weight, transposed.bias, stride=transposed.stride)
                h = torch.cat((h, skips[-(s + 2)], torch.full_like(h[:, :1], value)), 1)
                for i, block in enumerate(stage.convs):
                    h = conv(h, block.conv.weight, block.conv.bias, padding=1)
                    assert isinstance(block.all_modules[1], nn.GroupNorm) == (i == 0)
                    h = functional.leaky_relu(normalised(h, block.all_modules[1], [1, *spatial] if i == 0 else spatial))
            last = network.decoder.seg_layers[-1]
            expected.append(conv(h, last.weight, last.bias)[:, 0])
        found = network(x)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-10, atol=1e-10)
    assert class_values(5).tolist() == [-20, -10, 0, 10, 20] and class_values(1).tolist() == [0]


def test_instance_norm_would_lose_the_class_away_from_the_border(monkeypatch):
    """Why the norm behind a plane is another one: what two classes differ by there must not depend on the patch."""

    def difference(size):
        block = build("condition", dimension=2).decoder.stages[0].convs[0]
        features = torch.zeros(2, block.conv.in_channels - 1, size, size, dtype=torch.float64)  # the plane is all that differs
        with torch.no_grad():
            first, second = block(condition_cnn.with_plane(features, torch.tensor([-20.0, 20.0], dtype=torch.float64)))
        return (first - second)[:, size // 2, size // 2].abs().max().item()

    ours = [difference(i) for i in (32, 128, 512)]
    monkeypatch.setattr(condition_cnn, "_InstanceNorm", type("Never", (), {}))
    theirs = [difference(i) for i in (32, 128, 512)]
    assert min(ours) > 1 and max(ours) < 1.1 * min(ours)
    assert theirs[0] > 1.8 * theirs[1] > 1.8**2 * theirs[2]


@pytest.mark.parametrize("kind", ["dodnet", "condition"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_pairs_are_parts_of_what_is_deployed(kind, deep_supervision):
    network, x = build(kind, deep_supervision=deep_supervision), image()
    with torch.no_grad():
        everything, asked = network(x), network(x, PAIRS)
    if not deep_supervision:
        everything, asked = [everything], [asked]
    assert [i.shape[2:] for i in everything] == [(8, 12, 8), (4, 6, 4)][: len(everything)]
    assert len(everything) == 1 + deep_supervision
    for whole, part in zip(everything, asked):
        assert whole.shape[1] == K + 1
        torch.testing.assert_close(part, whole[PAIRS[:, 0], PAIRS[:, 1] + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dodnet", "condition"])
def test_encoder_and_decoder_run_as_often_as_they_must(kind):
    network, counts = build(kind), {"encoder": 0, "decoder": 0}
    for name in counts:
        getattr(network, name).register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    with torch.no_grad():
        network(image())
    assert counts == {"encoder": 1, "decoder": 1 if kind == "dodnet" else K}


@pytest.mark.parametrize("kind", ["dodnet", "condition"])
def test_a_step_reaches_every_weight(kind):
    network = build(kind).train()
    network(image(), PAIRS).square().mean().backward()
    unused = {f"decoder.seg_layers.0.{i}" for i in ("weight", "bias")}  # lower resolutions are not asked
    silent = {name for name, i in network.named_parameters() if i.grad is None}
    assert silent == unused


@pytest.mark.parametrize("kind", ["dodnet", "condition"])
def test_masked_classes_are_never_predicted_after_loading(kind):
    network, x = build(kind, deep_supervision=True), image()
    before = network(x)
    network.mask([2])
    other = build(kind)
    other.load_state_dict(network.state_dict())
    logits = other(x)
    assert (logits[:, 2] == -200).all()
    torch.testing.assert_close(logits[:, [0, 1, 3]], before[0][:, [0, 1, 3]])
    network(x, PAIRS)[0].sum().backward()
    assert all(i.grad is None or i.grad.isfinite().all() for i in network.parameters())


def test_argmax_is_the_strongest_class_above_one_half():
    scores = [torch.tensor([[-1.0, 2.0, 0.5, -3.0]]), torch.tensor([[-2.0, 3.0, 0.4, 0.1]])]
    assert deployed_logits(scores).argmax(1).tolist() == [[0, 2, 1, 2]]


def test_decoder_without_blocks_is_refused():
    with pytest.raises(UserError, match="Take plans of nnU-Net's U-Nets"):
        condition_cnn.read_plane(nn.Conv3d(2, 2, 3))
    assert dodnet.NUM_PARAMETERS == 153
