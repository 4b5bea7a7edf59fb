"""The engine on plans of its own: order, what may run beside what, and what its journal says."""

import shlex
import threading
import time

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.files import locked
from nnunet_partial.orchestration import engine
from nnunet_partial.orchestration.engine import Cost, Engine, Step, busy_seconds, waves
from nnunet_partial.orchestration.executors import Job, make_executor
from nnunet_partial.orchestration.job import LOCK, RESULT
from nnunet_partial.orchestration.journal import DONE, FAILED, Journal


class Plan(Engine):
    """``needs``: step -> the steps before it; each writes a file of its name."""

    def __init__(self, folder, needs, executor, light=(), fails=()):
        steps = [
            Step(
                name,
                "part",
                ("sh", "-c", "exit 3" if name in fails else f"echo {name} >> {folder}/order; touch {folder}/{name}"),
                (folder / name,),
                needs=tuple(before),
                light=name in light,
            )
            for name, before in needs.items()
        ]
        super().__init__(folder, steps, executor)
        self.journal = Journal.open(folder / "journal.json", {}, {}, str)

    def is_done(self, step):
        return self.missing_output(step) is None


class Recording:
    """An executor that keeps the jobs it was given."""

    def __init__(self, folder):
        self.one, self.jobs = make_executor("debug", folder), []

    def run(self, jobs, more):
        waiting = list(jobs)
        while waiting:
            self.jobs.append(waiting.pop(0))
            self.one.run([self.jobs[-1]])
            waiting += more(self.jobs[-1].name)


DIAMOND = {"first": (), "left": ("first",), "right": ("first",), "last": ("left", "right")}


def test_every_step_runs_once_after_what_it_needs_and_knows_what_may_run_beside_it(tmp_path):
    executor = Recording(tmp_path)
    Plan(tmp_path, DIAMOND, executor, light=["last"]).do()
    assert (tmp_path / "order").read_text().split() == ["first", "left", "right", "last"]
    assert {i.name: i.beside for i in executor.jobs} == {"first": 1, "left": 2, "right": 2}  # the light one is run at once
    Plan(tmp_path, DIAMOND, executor).do()
    assert len(executor.jobs) == 3  # all was done


def test_what_ended_well_is_done_after_another_has_failed(tmp_path):
    plan = Plan(tmp_path, DIAMOND, make_executor("local", tmp_path, gpus=(), processes=2), fails=["left"])
    with pytest.raises(UserError, match="left ended with exit code 3"):
        plan.do()
    states = {k: v["state"] for k, v in Journal.read(tmp_path / "journal.json").content["stages"].items()}
    assert states == {"first": DONE, "left": FAILED, "right": DONE}
    assert len(plan.journal.content["loops"]) == 1


def test_steps_begin_in_the_order_of_the_plan_and_share_the_machine_as_before_when_taken_up_again(tmp_path):
    needs = {"quick": (), "taught": ("quick",), "alone": (), "last": ("taught",)}
    executor = Recording(tmp_path)
    Plan(tmp_path, needs, executor, light=["quick"]).do()
    assert [i.name for i in executor.jobs] == ["taught", "alone", "last"]
    before = {i.name: i.beside for i in executor.jobs}
    assert before == {"taught": 2, "alone": 3, "last": 2}
    (tmp_path / "last").unlink()
    again = Recording(tmp_path)
    Plan(tmp_path, needs, again).do()
    assert {i.name: i.beside for i in again.jobs} == {"last": before["last"]}  # or it had other threads, and another result


def test_waves_are_as_early_as_needs_allow(tmp_path):
    steps = Plan(tmp_path, {**DIAMOND, "free": ()}, None).steps
    assert [[i.name for i in wave] for wave in waves(steps)] == [["first", "free"], ["left", "right"], ["last"]]


def test_a_journal_of_other_arguments_is_refused_but_for_what_may_change(tmp_path):
    def refusal(part, differences):
        return f"{part}: {differences}"

    file = tmp_path / "journal.json"
    Journal.open(file, {"a": 1, "b": 1}, {"plans": "x"}, refusal)
    assert Journal.open(file, {"a": 1, "b": 2}, {"plans": "x"}, refusal, ["b"]).content["arguments"] == {"a": 1, "b": 2}
    with pytest.raises(UserError, match="^arguments: a: 1 then, 3 now$"):
        Journal.open(file, {"a": 3, "b": 2}, {"plans": "x"}, refusal, ["b"])
    with pytest.raises(UserError, match="^inputs: plans: 'x' then, 'y' now$"):
        Journal.open(file, {"a": 1, "b": 2}, {"plans": "y"}, refusal)


def test_seconds_in_which_two_jobs_ran_count_once(tmp_path):
    for name, ended, seconds in (("a", 20, 10), ("b", 25, 10), ("c", 40, 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULT).write_text(f'{{"token": "t", "ended": {ended}, "seconds": {seconds}}}')
    folders = [tmp_path / i for i in "abcd"]
    assert busy_seconds(folders, 0) == (25 - 10) + 5
    assert busy_seconds(folders, 18) == (25 - 18) + 5


@pytest.mark.parametrize("beside, share", [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_the_machine_is_shared_by_as_many_jobs_as_may_run_beside_each_other(tmp_path, beside, share):
    executor = make_executor("local", tmp_path, gpus=(), processes=3)
    shares = []
    executor.start = lambda running: None
    executor.lives = lambda running: False
    executor._write = lambda running, share: shares.append(share)
    with pytest.raises(UserError, match="without a result"):
        executor.run([Job("one", ("true",), tmp_path / "log", beside=beside)], lambda name: [])
    assert set(shares) == {share}  # it never ends well, and is started again


def test_what_is_queued_is_not_said_to_run(tmp_path, capsys):
    """Two steps, one slot: both begin, one waits; what runs holds the lock of its job."""
    plan = Plan(tmp_path, {"first": (), "second": ()}, None)
    seen = []

    class Looking(Recording):
        def run(self, jobs, more):
            seen.extend((i.name, plan.lives(plan._by_name[i.name])) for i in jobs)
            with locked(_job_folder(tmp_path, "first") / LOCK):
                seen.append(("first", plan.lives(plan._by_name["first"])))
            super().run(jobs, more)

    plan.executor = Looking(tmp_path)
    plan.do()
    assert seen == [("first", False), ("second", False), ("first", True)]
    told = capsys.readouterr().out.splitlines()
    place = {
        text: next(n for n, line in enumerate(told) if text in line) for text in ("first: step 1 of 2, queued", "first: started")
    }
    assert place["first: step 1 of 2, queued"] < told.index(f"  second: step 2 of 2, queued; log {tmp_path}/logs/second.log")
    assert place["first: started"] < told.index("  second: started")
    assert not plan.lives(plan._by_name["second"])


def _job_folder(folder, name):
    made = folder / "jobs" / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def test_what_runs_is_told_of_meanwhile(tmp_path, monkeypatch, capsys):
    """Its epoch and its log; before it has begun nothing is said of it, nor once it has ended."""
    monkeypatch.setattr(engine, "_TELL_S", 0.05)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    go_on = tmp_path / "go on"
    training = f"echo 2026-01-01: Epoch 7; until test -e {shlex.quote(str(go_on))}; do sleep 0.02; done; touch {tmp_path}/train"
    step = Step("train", "part", ("sh", "-c", training), (tmp_path / "train",), cost=Cost("train", 100, 20))
    plan = Plan(tmp_path, {}, make_executor("local", tmp_path, gpus=()))
    plan.steps, plan._by_name = [step], {"train": step}
    told = []

    def listening():
        while "epoch 7 of 20" not in "".join(told):
            told.append(capsys.readouterr().out)
            time.sleep(0.02)
        go_on.touch()

    listener = threading.Thread(target=listening, daemon=True)
    listener.start()
    plan.do()
    listener.join(60)
    lines = ("".join(told) + capsys.readouterr().out).splitlines()
    running = [i for i in lines if "epoch" in i]
    assert running and all(i.startswith("  train: epoch 7 of 20, ") and i.endswith(f", log {plan.log(step)}") for i in running)
    assert lines.index("  train: started") < lines.index(running[0]) and any(i.startswith("train: done, ") for i in lines)
