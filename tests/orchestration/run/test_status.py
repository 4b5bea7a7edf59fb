"""Times and states as people read them."""

import json

import pytest

from nnunet_partial.files import locked, write_json
from nnunet_partial.orchestration import costs, status
from nnunet_partial.orchestration.engine import Cost, Engine, Step
from nnunet_partial.orchestration.journal import RUNNING, Journal

LOG = """$ nnUNetv2_train 1
2026-01-01: Epoch 7
2026-01-01: Epoch time: 100.0 s
$ nnUNetv2_train 1 --c
2026-01-01: Epoch 8
2026-01-01: Epoch time: 20.0 s
2026-01-01: Epoch 9
2026-01-01: Epoch time: 40.0 s
2026-01-01: Epoch 10
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path


class Plan(Engine):
    def is_done(self, step):
        return False


def test_a_range_is_told_from_what_was_measured(results):
    cost = Cost("train", 10)
    assert costs.estimate(cost, costs.measured()) is None
    costs.note(cost, 100.0)  # 10 s a unit
    assert costs.estimate(Cost("train", 20), costs.measured()) == costs.Range(100.0, 400.0, 1)
    costs.note(cost, 130.0)
    costs.note(cost, 104.0)
    found = costs.estimate(Cost("train", 20), costs.measured())
    assert (found.low, found.high, found.measured) == (pytest.approx(200 / 1.3), pytest.approx(260 * 1.3), 3)
    assert costs.estimate(Cost("other", 1), costs.measured()) is None


def test_other_machines_and_broken_lines_say_nothing(results):
    costs.note(Cost("train", 10), 100.0)
    entry = json.loads(costs.file().read_text())
    with open(costs.file(), "a") as handle:
        handle.write(json.dumps({**entry, "host": "another", "seconds": 1}) + "\n" + '{"kind": "train", "uni')
    assert costs.measured() == {"train": [10.0]}


def test_of_several_steps_all_must_be_known():
    known = costs.Range(10, 20, 3)
    assert costs.total([known, costs.Range(1, 2, 1)]) == costs.Range(11, 22, 1)
    assert costs.total([known, None]) is None and costs.total([]) is None


def test_words():
    assert [costs.in_words(i) for i in (0.1, 45, 700, 5400, 3 * 86400)] == ["1 s", "45 s", "12 min", "1.5 h", "3.0 d"]


def test_a_running_training_shows_its_epoch_and_the_time_left(results):
    engine = Plan(results / "out", [Step("train", "training", ("x",), (), cost=Cost("train", 100, 20))])
    engine.log(engine.steps[0]).parent.mkdir(parents=True)
    engine.log(engine.steps[0]).write_text(LOG)
    file = results / "out" / "run.json"
    journal = Journal.open(file, {}, {}, str)
    journal.mark("train", RUNNING)
    (engine.job_folder(engine.steps[0])).mkdir(parents=True)
    (engine.job_folder(engine.steps[0]) / "started.json").write_text("{}")
    engine.lives = lambda step: True
    head, _, line = status.status(engine, file, results / "out" / "lock").splitlines()
    row = line.split()
    assert row[:2] == ["train", "running"] and row[2:5] == ["10", "of", "20"]
    assert row[-3:-1] == ["5", "min"]  # 10 epochs of 30 s, the median of its last run
    assert row[-1] == str(engine.log(engine.steps[0]))
    assert head.endswith("out: 0 of 1 steps done, 1 running, nobody is at work")
    engine.lives = lambda step: False
    interrupted = status.status(engine, file, results / "out" / "lock")
    assert "1 interrupted" in interrupted and "interrupted  10 of 20" in interrupted.splitlines()[2]
    with locked(results / "out" / "lock"):
        assert "1 queued, at work" in status.status(engine, file, results / "out" / "lock")


def test_an_epoch_of_a_training_of_unknown_length_is_told_too(results):
    engine = Plan(results / "out", [Step("train", "training", ("x",), ())])
    engine.log(engine.steps[0]).parent.mkdir(parents=True)
    engine.log(engine.steps[0]).write_text(LOG)
    Journal.open(results / "out" / "run.json", {}, {}, str).mark("train", RUNNING)
    engine.lives = lambda step: True
    row = status.status(engine, results / "out" / "run.json", results / "out" / "lock").splitlines()[2].split()
    assert row[:3] == ["train", "running", "10"] and "left" not in row


def test_lines_of_what_runs_come_from_files_alone(results):
    """A job is at work from its start to its result; its lock is left alone, for who starts it tries that lock."""
    engine = Plan(results / "out", [Step("train", "training", ("x",), (), cost=Cost("train", 100, 20))])
    (step,) = engine.steps
    engine.log(step).parent.mkdir(parents=True)
    engine.log(step).write_text(LOG)
    engine.journal = Journal.open(results / "out" / "run.json", {}, {}, str)
    engine.journal.mark("train", RUNNING)
    folder = engine.job_folder(step)
    write_json({"token": "a", "argv": ["x"]}, folder / "job.json")
    assert status.running_lines(engine) == []
    write_json({"token": "a"}, folder / "started.json")
    (line,) = status.running_lines(engine)
    assert line == f"train: epoch 10 of 20, 1 s, 5 min left, log {engine.log(step)}"
    write_json({"token": "b", "argv": ["x"]}, folder / "job.json")  # to be started again
    assert status.running_lines(engine) == []
    write_json({"token": "b"}, folder / "started.json")
    write_json({"token": "b", "exit_code": 0}, folder / "result.json")
    assert status.running_lines(engine) == []


def test_the_epoch_is_read_from_the_end_of_the_log(tmp_path):
    log = tmp_path / "train.log"
    assert status.epochs_of(log) == (None, [])
    log.write_text("Epoch 0 \n" + "words\n" * 9000 + "2026-01-01 10:00:00: \nEpoch 12 \nCurrent learning rate: 0.01\n")
    assert status.epochs_of(log) == (12, [])


def test_a_running_step_without_epochs_is_told_by_what_was_measured(results):
    costs.note(Cost("merge", 10), 1000.0)
    engine = Plan(results / "out", [Step("merge", "merge", ("x",), (), cost=Cost("merge", 10))])
    journal = Journal.open(results / "out" / "run.json", {}, {}, str)
    journal.mark("merge", RUNNING)
    engine.job_folder(engine.steps[0]).mkdir(parents=True)
    (engine.job_folder(engine.steps[0]) / "started.json").write_text("{}")
    engine.lives = lambda step: True
    said = status.status(engine, results / "out" / "run.json", results / "out" / "lock")
    assert "8 min to 33 min" in said
