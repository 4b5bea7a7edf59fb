"""A training that is killed and continued equals one that was not."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_partial.variants import write_variant

# the second has what goes by earlier epochs: a rate that falls whenever the loss does not fall by 1, cases drawn by weights
PLATEAU = {
    "optimizer": "adam",
    "schedule": "plateau",
    "plateau_threshold": 1.0,
    "plateau_patience": 0,
    "sampling": "class",
    "mirroring": [2],
}


@pytest.mark.parametrize("changes", ({"optimizer": "sgd"}, PLATEAU), ids=("poly", "plateau"))
def test_killed_and_continued_equals_uninterrupted(
    tiny, trainer, own_results, monkeypatch, train_and_be_killed, final_state, assert_same, changes
):
    settings = {"num_epochs": 4, "save_every": 2, "initial_lr": 0.01, **changes}
    plans = write_variant(tiny.id, "resume", settings, tiny.plans, overwrite=True).stem
    uninterrupted = own_results / "uninterrupted"
    monkeypatch.setenv("nnUNet_results", str(uninterrupted))
    trainer("nnUNetTrainerPartial", plans).run_training()

    killed = own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed("nnUNetTrainerPartial", plans, at_step=2 * 2 + 2)  # in the middle of the third epoch
    fold = next(killed.rglob("fold_0"))
    assert (fold / "checkpoint_latest.pth").is_file() and not (fold / "checkpoint_final.pth").exists()
    assert not list(fold.glob(".tmp-*"))
    continued = trainer("nnUNetTrainerPartial", plans, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 2
    continued.run_training()

    expected = final_state(uninterrupted)
    assert_same(expected, final_state(killed))
    if changes is PLATEAU:
        # the first epoch is the best so far; three without a fall follow
        assert expected["logging"]["lrs"] == pytest.approx([0.01, 0.01, 0.008, 0.0064])
        state = expected["nnunet_partial"]["schedules"]["network"]
        assert state["best"] == expected["logging"]["train_losses"][0] and state["last_epoch"] == 4
        assert expected["inference_allowed_mirroring_axes"] == (2,)


def test_checkpoint_loads_with_weights_only_and_holds_the_deployed_network_alone(tiny, trainer, own_results, assert_same):
    trained = trainer("nnUNetTrainerPartial")
    trained.run_training()
    checkpoint = torch.load(Path(trained.output_folder) / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainerPartial"
    assert_same(dict(checkpoint["network_weights"]), dict(trained.network.state_dict()))
    assert set(checkpoint["nnunet_partial"]) == {"peers", "rng_state"}
    assert checkpoint["logging"]["loss/marginal"] == checkpoint["logging"]["train_losses"]


def test_what_is_registered_is_in_every_checkpoint(tiny, trainer, own_results, tmp_path):
    def make():
        made = trainer("nnUNetTrainerPartial")
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        made.on_networks_built = lambda: made.register("plateau", schedule)
        made.initialize()
        return made, schedule

    made, schedule = make()
    for loss in (3.0, 2.0, 2.0):
        schedule.step(loss)
    made.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    again, other = make()
    assert other.state_dict() != schedule.state_dict()
    again.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert other.state_dict() == schedule.state_dict() and other.num_bad_epochs == 1


def test_a_damaged_checkpoint_is_one_line(tiny, trainer, own_results, refused):
    trained = trainer("nnUNetTrainerPartial")
    trained.initialize()
    file = Path(trained.output_folder) / "checkpoint_latest.pth"
    file.write_bytes(b"not a checkpoint")
    assert str(file) in refused(lambda: trained.load_checkpoint(str(file)))
