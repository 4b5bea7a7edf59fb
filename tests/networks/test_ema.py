"""The moving average of weights: closed form, no gradient, no aliasing, exact continuation, wrappers seen through."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_partial.networks.ema import EMA


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


def walk(model, ema, steps, seed=1):
    """``steps`` random steps of the weights, each followed by an update; the weights after each step as float64."""
    generator = torch.Generator().manual_seed(seed)
    history = [snapshot(model)]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        ema.update()
        history.append(snapshot(model))
    return history


def snapshot(model):
    return {k: v.detach().double().numpy().copy() for k, v in model.named_parameters()}


def test_average_equals_the_closed_form():
    """theta'_n = decay^n theta_0 + (1 - decay) sum_i decay^(n - i) theta_i."""
    model, decay, n = network(), 0.9, 7
    ema = EMA(model, decay)
    history = walk(model, ema, n)
    assert ema.num_updates == n
    for name, value in ema.module.named_parameters():
        expected = decay**n * history[0][name]
        expected += sum((1 - decay) * decay ** (n - i) * history[i][name] for i in range(1, n + 1))
        np.testing.assert_allclose(value.double().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weights_stand_still_until_the_first_update_and_follow_at_once_without_decay():
    model = network()
    ema, instant = EMA(model, 0.99), EMA(model, 0.0)
    before = {k: v.clone() for k, v in ema.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1)
    assert all(torch.equal(before[k], v) for k, v in ema.state_dict().items())
    instant.update()
    assert torch.equal(instant.state_dict()["0.weight"], model[0].weight)


def test_buffers_are_copied():
    model = network()
    ema = EMA(model, 0.999)
    model.train()(torch.randn(4, 1, 8, 8) * 3 + 5)
    ema.update()
    assert model[1].num_batches_tracked == 1
    for name, buffer in model.named_buffers():
        averaged = dict(ema.module.named_buffers())[name]
        assert torch.equal(averaged, buffer) and averaged.data_ptr() != buffer.data_ptr()


def test_frozen_in_evaluation_mode_and_without_gradient():
    model = network().train()
    ema = EMA(model, 0.9)
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    assert not ema(x).requires_grad
    running = ema.module[1].running_mean.clone()
    (model(x).square().mean() + ema(x).square().mean()).backward()
    ema.update()
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert not torch.equal(running, model[1].running_mean)
    assert all(p.grad is None for p in ema.module.parameters())
    assert model.training and all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_update_leaves_the_model_alone():
    model = network()
    ema = EMA(model, 0.5)
    walk(model, ema, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ema.update()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_nothing_is_shared_with_the_model_or_with_a_deep_copy():
    model = network()
    ema = EMA(model, 0.9)
    duplicate = copy.deepcopy(ema)
    modules = (model, ema.module, duplicate.module, duplicate.model)
    pointers = [{t.data_ptr() for t in m.state_dict().values()} for m in modules]
    assert all(not a & b for i, a in enumerate(pointers) for b in pointers[i + 1 :])
    kept = {k: v.clone() for k, v in duplicate.state_dict().items()}
    walk(model, ema, 3)
    assert all(torch.equal(kept[k], v) for k, v in duplicate.state_dict().items())
    assert (ema.num_updates, duplicate.num_updates) == (3, 0)


def test_weights_carry_the_models_own_names():
    model = network()
    ema = EMA(model, 0.9)
    walk(model, ema, 1)
    fresh = network()
    fresh.load_state_dict(ema.state_dict())
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(fresh.eval()(x), ema(x))


def test_continuation_from_a_checkpoint_is_exact():
    model = network()
    ema = EMA(model, 0.9)
    walk(model, ema, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "ema": ema.checkpoint_state()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    resumed_model = network()
    resumed_model.load_state_dict(checkpoint["model"])
    resumed = EMA(resumed_model, 0.9)
    resumed.load_checkpoint_state(checkpoint["ema"])
    walk(model, ema, 4, seed=2)
    walk(resumed_model, resumed, 4, seed=2)
    assert resumed.num_updates == ema.num_updates == 7
    assert all(torch.equal(ema.state_dict()[k], v) for k, v in resumed.state_dict().items())


def test_a_checkpoint_with_another_decay_is_refused():
    model = network()
    with pytest.raises(ValueError, match="decay 0.9, this run with 0.99"):
        EMA(model, 0.99).load_checkpoint_state(EMA(model, 0.9).checkpoint_state())


@pytest.mark.parametrize("decay", (-0.1, 1.0, float("nan")))
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(network(), decay)


def test_half_precision_models_are_averaged_in_full_precision():
    model = network().to(torch.bfloat16)
    ema = EMA(model, 0.999)
    before = ema.state_dict()["0.weight"].clone()
    assert before.dtype == torch.float32
    with torch.no_grad():
        model[0].weight.add_(0.01)
    ema.update()
    moved = ema.state_dict()["0.weight"] - before
    # a step of 1e-5 is lost in bfloat16, which holds three digits
    assert torch.equal(before, before.bfloat16().float())
    expected = 0.001 * (model[0].weight.detach().double() - before.double())
    assert torch.allclose(moved.double(), expected, atol=1e-7) and (moved > 0).any()


def test_wrappers_of_compile_and_ddp_are_seen_through(tmp_path):
    model = network()
    compiled = torch.compile(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        distributed = nn.parallel.DistributedDataParallel(compiled)
        for wrapped in (model, compiled, distributed):
            ema = EMA(wrapped, 0.9)
            assert list(ema.state_dict()) == list(model.state_dict())
            walk(model, ema, 1)
            assert type(ema.module) is nn.Sequential
    finally:
        torch.distributed.destroy_process_group()


def test_tied_weights_stay_tied_and_move_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    ema = EMA(model, 0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    assert ema.module[0].weight is ema.module[1].weight
    assert torch.allclose(ema.module[0].weight, start + 0.5)


def test_a_model_that_grew_is_named():
    model = network()
    ema = EMA(model, 0.9)
    model.append(nn.Conv2d(2, 2, 1))
    with pytest.raises(RuntimeError, match="3.bias"):
        ema.update()


def test_an_average_can_be_started_again():
    model = network()
    ema = EMA(model, 0.9)
    walk(model, ema, 3)
    with torch.no_grad():
        for value in model.parameters():
            value += 1
        model[1].running_mean += 2
    place = ema.module[0].weight.data_ptr()
    ema.restart()
    assert ema.num_updates == 0 and ema.module[0].weight.data_ptr() == place  # what compiled it goes on seeing it
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in ema.state_dict().items())
    before = snapshot(model)
    walk(model, ema, 1)
    for name, value in ema.module.named_parameters():
        expected = 0.9 * before[name] + 0.1 * snapshot(model)[name]
        np.testing.assert_allclose(value.detach().double().numpy(), expected, atol=1e-6)
