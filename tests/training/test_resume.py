"""A training that is killed and continued equals one that was not."""
import signal
import subprocess
import sys
from pathlib import Path

import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_partial.files import load_checkpoint
from nnunet_partial.variants import write_variant


def assert_same(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b or a != a and b != b, f"{path}: {a} {b}"


def train_and_be_killed(plans: str, at_step: int, trainer: str = "nnUNetTrainerPartial"):
    """Train in a process of its own that dies by SIGKILL at the beginning of the given step."""
    program = f"""
import os, signal, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args("501", "3d_fullres", 0, {trainer!r}, {plans!r}, False, torch.device("cpu"))
train_step, steps = trainer.train_step, []
def counted(batch):
    steps.append(None)
    if len(steps) == {at_step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(batch)
trainer.train_step = counted
trainer.run_training()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]


def final_state(results: Path, plans: str, trainer: str = "nnUNetTrainerPartial") -> dict:
    checkpoint = load_checkpoint(next(results.rglob(f"{trainer}__{plans}__3d_fullres/fold_0/checkpoint_final.pth")))
    for name in ("epoch_start_timestamps", "epoch_end_timestamps"):
        checkpoint["logging"].pop(name)
    return checkpoint


def test_killed_and_continued_equals_uninterrupted(tiny, trainer, own_results, monkeypatch):
    plans = write_variant(tiny.id, "resume", {"num_epochs": 4, "save_every": 2, "optimizer": "sgd", "initial_lr": 0.01},
                          tiny.plans, overwrite=True).stem
    uninterrupted = own_results / "uninterrupted"
    monkeypatch.setenv("nnUNet_results", str(uninterrupted))
    trainer("nnUNetTrainerPartial", plans).run_training()

    killed = own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed(plans, at_step=2 * 2 + 2)  # in the middle of the third epoch
    fold = next(killed.rglob("fold_0"))
    assert (fold / "checkpoint_latest.pth").is_file() and not (fold / "checkpoint_final.pth").exists()
    assert not list(fold.glob(".tmp-*"))
    continued = trainer("nnUNetTrainerPartial", plans, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 2
    continued.run_training()

    assert_same(final_state(uninterrupted, plans), final_state(killed, plans))


def test_checkpoint_loads_with_weights_only_and_holds_the_deployed_network_alone(tiny, trainer, own_results):
    trained = trainer("nnUNetTrainerPartial")
    trained.run_training()
    checkpoint = torch.load(Path(trained.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainerPartial"
    assert_same(dict(checkpoint["network_weights"]), dict(trained.network.state_dict()))
    assert set(checkpoint["nnunet_partial"]) == {"peers", "rng_state"}
    assert checkpoint["logging"]["loss/marginal"] == checkpoint["logging"]["train_losses"]


def test_a_damaged_checkpoint_is_one_line(tiny, trainer, own_results, capsys):
    trained = trainer("nnUNetTrainerPartial")
    trained.initialize()
    file = Path(trained.output_folder) / "checkpoint_latest.pth"
    file.write_bytes(b"not a checkpoint")
    try:
        trained.load_checkpoint(str(file))
    except SystemExit as end:
        assert end.code == 2
    else:
        raise AssertionError("a damaged checkpoint was accepted")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(file) in error and "nnunet_partial: error:" in error
