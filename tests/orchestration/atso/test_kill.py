"""A loop that is killed at any moment and started again ends where an uninterrupted one does."""

import os
import random
import signal
import time

from nnunet_partial.orchestration import job


def kill_in(place, stage, delay, whole_tree):
    """Start the loop, and kill it ``delay`` seconds after it noted that ``stage`` runs. Returns whether that was so."""
    process, seen = place.start(), []

    def begun():
        seen.append(place.states().get(stage))
        return seen[-1] in ("running", "done") or process.poll() is not None

    try:
        place.wait_for(begun)
        time.sleep(delay)
    finally:
        place.kill(process, whole_tree)
    return seen[-1] == "running"


def test_killed_in_every_stage_and_started_again_equals_the_uninterrupted_run(uninterrupted, place):
    place.environment["STUB_PAUSE_S"] = "0.1"  # an epoch: long enough to be seen
    stages = list(uninterrupted.journal()["stages"])
    order = random.Random(0)
    # every stage once, with all that was started, before it can be over; and more at any time, half of them the loop alone
    moments = [(i, order.uniform(0, 0.03), True) for i in stages]
    moments += [(i, order.uniform(0, 0.15), i.endswith("1-train")) for i in stages if i.endswith("-train")]
    hit = {}
    for stage, delay, whole_tree in sorted(moments, key=lambda i: stages.index(i[0])):
        hit[stage] = kill_in(place, stage, delay, whole_tree) or hit.get(stage, False)
    assert len(moments) >= 25
    missed = [i for i in stages if not hit[i]]  # the first look at a stage may come when it is over
    assert len(missed) <= 2, missed
    print(f"{len(moments)} kills, missed {missed}")
    last = place.loop()
    assert last.stdout.splitlines()[-1].startswith("report: ")
    assert set(place.states().values()) == {"done"}
    assert place.results() == uninterrupted.results()
    assert not list(place.run.glob(".tmp-*"))


def test_a_stage_that_outlived_its_loop_is_waited_for_and_not_started_twice(place):
    process = place.start(generations=1)
    place.wait_for(lambda: (place.run / "jobs" / "m0-train" / "started.json").is_file())
    place.kill(process, whole_tree=False)
    place.loop(generations=1)
    log = (place.run / "logs" / "m0-train.log").read_text()
    assert log.count("$ nnUNetv2_train") == 1 and log.count("Epoch 0") == 1


def test_what_a_stage_still_writes_is_not_removed_under_it(place):
    place.environment["STUB_PAUSE_S"] = "20"
    process = place.start(generations=1)
    place.wait_for(lambda: (place.run / "jobs" / "m0-train" / "started.json").is_file())
    place.kill(process, whole_tree=False)
    result = place.loop("--from-generation", 0, generations=1, check=False)
    assert result.returncode == 2 and "m0-train still runs (process" in result.stderr
    del place.environment["STUB_PAUSE_S"]
    os.killpg(process.pid, signal.SIGKILL)  # the stage, which would live a minute longer
    place.wait_for(lambda: not is_held(place.run / "jobs" / "m0-train" / "lock"))
    place.loop("--from-generation", 0, generations=1, executor="debug")
    assert set(place.states().values()) == {"done"}


def test_a_job_that_is_withdrawn_before_it_begins_never_does(tmp_path):
    content = {"token": "a", "argv": ["touch", str(tmp_path / "ran")], "log": str(tmp_path / "log"), "environment": {}}
    job.write_json(content, tmp_path / "job.json")
    job.end(tmp_path, "a")
    assert job.main(str(tmp_path), "a") == 0 and not (tmp_path / "ran").exists()


def test_an_interrupt_ends_the_stage_too_and_the_loop_goes_on_later(place):
    place.environment["STUB_PAUSE_S"] = "5"  # an epoch: it cannot be over before the signal
    process = place.start(generations=1)
    place.wait_for(lambda: (place.run / "jobs" / "m0-train" / "started.json").is_file())
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in (place.folder / "loop.log").read_text()
    place.wait_for(lambda: not is_held(place.run / "jobs" / "m0-train" / "lock"))  # nothing of it lives
    assert place.states()["m0-train"] == "failed"
    assert not list(place.results_folder.rglob("checkpoint_final.pth"))
    del place.environment["STUB_PAUSE_S"]
    place.loop(generations=1)
    assert set(place.states().values()) == {"done"}


def is_held(lock):
    handle = job.try_lock(lock)
    if handle is not None:
        handle.close()
    return handle is None
