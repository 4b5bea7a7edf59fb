"""Weights & Biases through nnU-Net's own logger: our terms arrive, with their epochs, and a continued run goes on with them."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging import nnunet_logger

from nnunet_partial.training import progress
from nnunet_partial.variants import write_variant


class StubRun:
    """A run of W&B as its client behaves: steps never go back, a continued run knows how far it was."""

    def __init__(self, folder, step):
        self.folder, self.step, self.history, self.config, self.summary = folder, step, [], {}, {}

    def log(self, values, step):
        if step < self.step:
            raise AssertionError(f"W&B ignores {values}, which is of step {step} and not of {self.step} or later")
        self.step = step
        self.history += [(key, step, value) for key, value in values.items()]


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb; ``runs``: what was begun, in order."""
    runs = []

    def init(project, dir, id, mode, resume):
        before = next((i for i in runs if Path(i.folder).parent == Path(dir) and i.folder.name == "wandb" and id), None)
        run = StubRun(Path(dir) / "wandb", before.step if before else 0)
        latest = run.folder / "latest-run"
        latest.mkdir(parents=True, exist_ok=True)
        (latest / "run-abc.wandb").touch()
        run.given = SimpleNamespace(id=id, resume=resume, project=project, mode=mode)
        runs.append(run)
        return run

    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=init))
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    return runs


def series(run, key):
    return {step: value for name, step, value in run.history if name == key}


def test_terms_and_dice_arrive_and_a_continued_run_goes_on(tiny, trainer, own_results, wandb):
    """Ended after the second epoch of three, and continued; the terms are those that the checkpoint's log holds."""
    settings = {"num_epochs": 3, "save_every": 1, "partial": {"lambda_exclusion": 0.5}}
    plans = write_variant(tiny.id, "logged", settings, tiny.plans, overwrite=True).stem
    made = trainer("nnUNetTrainerPartial", plans)
    made.num_epochs = 2
    made.run_training()
    first = wandb[0]
    terms = [f"loss/{i}" for i in made.loss_terms]
    assert len(terms) == 2  # marginal and exclusion: one term alone would equal nnU-Net's own key
    for key in (*terms, "train_losses", "val_losses", "mean_fg_dice"):
        assert list(series(first, key)) == [0, 1], key
    for epoch in (0, 1):
        assert sum(series(first, i)[epoch] for i in terms) == pytest.approx(series(first, "train_losses")[epoch], rel=1e-5)
    assert first.config["nnunet_partial"]["structures"] == {"class_1": "liver", "class_2": "kidney", "class_3": "pancreas"}
    for number, name in enumerate(("liver", "kidney", "pancreas"), 1):
        numbered = series(first, f"dice_per_class_or_region/class_{number}")
        assert series(first, f"dice/{name}") == {k: v for k, v in numbered.items() if math.isfinite(v)}

    # as after a kill: the last checkpoint is one of the middle
    fold = Path(made.output_folder)
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    again = trainer("nnUNetTrainerPartial", plans, continue_training=True)
    maybe_load_checkpoint(again, True, False)
    again.run_training()
    second = wandb[1]
    assert (second.given.id, second.given.resume) == ("abc", "allow")
    for key in (*terms, "train_losses"):
        assert list(series(second, key)) == [2], key
    log = again.logger.get_checkpoint()
    for key in terms:
        assert len(log[key]) == 3
        assert {**series(first, key), **series(second, key)} == pytest.approx(dict(enumerate(log[key])))


def test_without_it_nothing_is_sent(tiny, trainer, own_results, wandb, monkeypatch):
    monkeypatch.setenv("nnUNet_wandb_enabled", "0")
    made = trainer("nnUNetTrainerPartial")
    made.run_training()
    assert wandb == [] and made.logger.loggers == []
    assert not any(i.startswith("dice/") for i in made.logger.get_checkpoint())


def test_a_structure_without_dice_is_a_gap():
    sent = []
    other = SimpleNamespace(log=lambda *given: sent.append(given))
    logger = SimpleNamespace(loggers=[other], get_value=lambda key, step: [0.5, float("nan")])
    progress.send_dice(logger, ("liver", "kidney_left+kidney_right"), 7)
    assert sent == [("dice/liver", 0.5, 7)]
    with pytest.raises(ValueError, match="zip"):
        progress.send_dice(logger, ("liver",), 7)


def test_curves_are_drawn_once_a_minute_and_at_the_end(monkeypatch):
    drawn, clock = [], [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    logger = SimpleNamespace(plot_progress_png=lambda folder: drawn.append(clock[0]))
    curves = progress.Curves()

    def epoch(seconds, last=False):
        clock[0] += seconds
        with curves.drawn_now(logger, last) as now:
            logger.plot_progress_png("")
        return now

    assert [epoch(30), epoch(29), epoch(1), epoch(59), epoch(1), epoch(1, last=True)] == [False, False, True, False, True, True]
    assert drawn == [160.0, 220.0, 221.0]
