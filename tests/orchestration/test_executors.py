"""Jobs are commands: in line, on this machine, and handed to SLURM."""

import json
import os
import sys
import threading
import time

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.executors import GRACE_S, Job, SlurmExecutor, find_gpus, last_lines, make_executor


def shell(tmp_path, name, text, **environment):
    return Job(name, ("sh", "-c", text), tmp_path / f"{name}.log", environment)


@pytest.mark.parametrize("kind", ("debug", "local"))
def test_commands_run_with_their_environment_and_their_output_is_kept(tmp_path, kind):
    executor = make_executor(kind, tmp_path, gpus=())
    seconds = executor.run([shell(tmp_path, "a", "echo $ONE; exit 0", ONE="first"), shell(tmp_path, "b", "sleep 1")])
    assert (tmp_path / "a.log").read_text().splitlines()[-1] == "first"
    assert len(seconds) == 2 and 1 <= seconds[1] < 60 and seconds[0] < seconds[1]


def test_a_result_says_what_the_command_cost(tmp_path):
    """Core seconds, the command's children included: a command that waits costs none, whatever its wall time."""
    busy = "import time\nwhile time.process_time() < 2: pass"
    jobs = [
        Job("busy", ("sh", "-c", f"{sys.executable} -SE -c '{busy}'; true"), tmp_path / "busy.log"),
        shell(tmp_path, "waiting", "sleep 1"),
    ]
    make_executor("debug", tmp_path).run(jobs)
    results = {i.name: runner.read_result(tmp_path / "jobs" / i.name) for i in jobs}
    assert results["busy"]["cpu_seconds"] >= 1.9  # accounting is not exact
    assert results["waiting"]["cpu_seconds"] < 1.9 and results["waiting"]["seconds"] >= 1


def test_the_cost_of_a_job_is_that_of_all_its_attempts(tmp_path):
    """One that fails after a second, one that is killed a second after it began, and one that ends well."""
    text = (
        f"n=$(ls {tmp_path}/tries | wc -l); touch {tmp_path}/tries/$n; sleep 1; echo worked; "
        "test $n = 0 && exit 1; test $n = 1 && kill -9 $PPID; exit 0"
    )
    (tmp_path / "tries").mkdir()
    job, folder = shell(tmp_path, "a", text), tmp_path / "jobs" / "a"
    for _ in range(2):
        with pytest.raises(UserError):
            make_executor("local", tmp_path, gpus=()).run([job])
    make_executor("local", tmp_path, gpus=()).run([job])
    result = runner.read_result(folder)
    first, second = json.loads((folder / runner.ATTEMPTS).read_text())[:2]
    assert first["exit_code"] == 1 and first["seconds"] >= 1 and second["seconds"] >= 0.9
    assert result["earlier_seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert runner.all_seconds(result) >= result["seconds"] + 1.9
    # the first slept; what the one that was killed used nobody knows, and its seconds stand for it
    assert result["earlier_cpu_seconds"] == pytest.approx(first["cpu_seconds"] + second["seconds"])
    assert first["cpu_seconds"] < 0.9 and runner.all_cpu_seconds(result) >= 0.9
    assert runner.all_cpu_seconds({"cpu_seconds": 2.0}) == 2.0 and runner.all_cpu_seconds({}) is None
    # what ended well and is done anew, or is another command, costs nothing that was before
    make_executor("local", tmp_path, gpus=()).run([job])
    assert runner.read_result(folder)["earlier_seconds"] == runner.read_result(folder)["earlier_cpu_seconds"] == 0
    make_executor("local", tmp_path, gpus=()).run([shell(tmp_path, "a", "true")])
    assert runner.all_seconds(runner.read_result(folder)) == runner.read_result(folder)["seconds"]


def test_failures_let_the_others_end_and_show_the_last_lines(tmp_path):
    executor = make_executor("local", tmp_path, gpus=(), processes=2)
    jobs = [
        shell(tmp_path, "bad", "echo early; echo it is broken; exit 3"),
        shell(tmp_path, "good", f"sleep 0.5; touch {tmp_path}/done"),
    ]
    with pytest.raises(UserError, match=r"bad ended with exit code 3: sh -c .*bad.log. Last lines: .*it is broken"):
        executor.run(jobs)
    assert (tmp_path / "done").exists()
    with pytest.raises(UserError, match="not installed"):
        make_executor("debug", tmp_path).run([Job("none", ("no_such_program_anywhere",), tmp_path / "none.log")])


def test_a_failed_job_is_run_again_if_asked(tmp_path):
    job = shell(tmp_path, "flaky", f"test -e {tmp_path}/tried || {{ touch {tmp_path}/tried; exit 1; }}")
    assert len(make_executor("debug", tmp_path, retries=1).run([job])) == 1


def test_one_job_per_gpu_side_by_side(tmp_path):
    """Each waits for the other to have begun: in turn they would wait for ever."""
    executor = make_executor("local", tmp_path, gpus=[3, 5])
    meet = (
        "echo $CUDA_VISIBLE_DEVICES; touch {0}/{1}; for i in $(seq 600); do test -e {0}/{2} && exit 0; sleep 0.05; done; exit 1"
    )
    executor.run([shell(tmp_path, "a", meet.format(tmp_path, "a", "b")), shell(tmp_path, "b", meet.format(tmp_path, "b", "a"))])
    given = {(tmp_path / f"{i}.log").read_text().splitlines()[-1] for i in "ab"}
    assert given == {"3", "5"}


@pytest.mark.parametrize("kind", ("debug", "local"))
def test_what_a_job_makes_possible_runs_beside_what_still_runs(tmp_path, kind):
    """The slow job ends when the follower of the quick one has run: waiting for both before any follower would never end."""
    slow = f"for i in $(seq 600); do test -e {tmp_path}/follower && exit 0; sleep 0.05; done; exit 1"
    jobs = {
        "quick": shell(tmp_path, "quick", "true"),
        "slow": shell(tmp_path, "slow", slow if kind == "local" else "true"),
        "follower": shell(tmp_path, "follower", f"touch {tmp_path}/follower"),
    }
    ended = []

    def more(name):
        ended.append(name)
        return [jobs["follower"]] if name == "quick" else []

    seconds = make_executor(kind, tmp_path, gpus=(), processes=2).run([jobs["slow"], jobs["quick"]], more)
    assert len(seconds) == 2 and sorted(ended) == sorted(jobs)


def test_after_a_failure_nothing_more_is_asked_for(tmp_path):
    asked = []
    jobs = [shell(tmp_path, "bad", "exit 3"), shell(tmp_path, "good", f"touch {tmp_path}/done")]
    with pytest.raises(UserError, match="bad ended with exit code 3"):
        make_executor("debug", tmp_path).run(jobs, lambda name: asked.append(name) or [])
    assert asked == [] and (tmp_path / "done").exists()

    def refuse(name):
        raise UserError(f"{name} is not what was wanted.")

    (tmp_path / "done").unlink()
    with pytest.raises(UserError, match="first is not what was wanted"):
        make_executor("debug", tmp_path).run([shell(tmp_path, "first", "true"), jobs[1]], refuse)
    assert (tmp_path / "done").exists()


def test_wrong_choices_are_refused(tmp_path):
    with pytest.raises(UserError, match="local, slurm, debug"):
        make_executor("cloud", tmp_path)
    with pytest.raises(UserError, match="at least"):
        make_executor("local", tmp_path, retries=-1)


def test_gpus_are_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert find_gpus() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus() == []


@pytest.mark.parametrize(
    "environment, share, expected",
    (
        ({"SLURM_CPUS_PER_TASK": "16", "CUDA_VISIBLE_DEVICES": "0"}, 1, (12, 8, 1)),
        ({"SLURM_CPUS_PER_TASK": "4", "CUDA_VISIBLE_DEVICES": "0"}, 1, (4, 4, 1)),
        ({"SLURM_CPUS_PER_TASK": "16", "CUDA_VISIBLE_DEVICES": ""}, 1, (4, 8, 12)),
        ({"SLURM_CPUS_PER_TASK": "16", "CUDA_VISIBLE_DEVICES": ""}, 8, (0, 2, 2)),
        ({"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": ""}, 2, (0, 1, 1)),
    ),
)
def test_worker_counts_follow_the_allocation(environment, share, expected):
    counts = runner.worker_counts(environment, share)
    assert tuple(int(counts[i]) for i in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "OMP_NUM_THREADS")) == expected


def test_without_slurm_the_cores_are_those_of_this_process():
    assert runner.allocated_cores({}) == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def test_what_the_user_has_set_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    make_executor("debug", tmp_path).run([shell(tmp_path, "a", "echo $nnUNet_n_proc_DA")])
    assert (tmp_path / "a.log").read_text().splitlines()[-1] == "7"


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {i}" for i in range(100)) + "\n\nprogress 1\rprogress 2\n")
    assert last_lines(log, 2) == "progress 1 | progress 2"
    log.write_text("$ command\nbroken\n$ command\nworse\n")
    assert last_lines(log) == "$ command | worse"
    assert last_lines(tmp_path / "none") == "(no log)"


# ---- tokens


def test_a_start_that_was_overtaken_does_nothing(tmp_path):
    (tmp_path / "job.json").write_text(
        json.dumps({"token": "new", "argv": ["touch", str(tmp_path / "ran")], "log": str(tmp_path / "log"), "environment": {}})
    )
    assert runner.main(str(tmp_path), "old") == 0 and not (tmp_path / "ran").exists()
    assert runner.main(str(tmp_path), "new") == 0 and (tmp_path / "ran").exists()
    assert runner.read_result(tmp_path, "old") is None and runner.read_result(tmp_path, "new")["exit_code"] == 0


def test_another_command_of_the_same_name_that_runs_is_named(tmp_path):
    executor, go = make_executor("debug", tmp_path), tmp_path / "go"
    thread = threading.Thread(target=executor.run, args=([shell(tmp_path, "a", f"until test -e {go}; do sleep 0.05; done")],))
    thread.start()
    started = tmp_path / "jobs" / "a" / "started.json"
    while not started.is_file() and thread.is_alive():
        time.sleep(0.01)
    with pytest.raises(UserError, match="runs already, as another command: sh -c 'until test"):
        make_executor("debug", tmp_path).run([shell(tmp_path, "a", "echo other")])
    go.touch()
    thread.join()


# ---- SLURM, faked: sbatch starts its copy of the script (as SLURM does: submitit moves its own away), squeue lists what runs

FAKE = {
    "sbatch": """#!/bin/sh
id=$(($(cat {0}/last 2>/dev/null || echo 0) + 1)); echo $id > {0}/last; cp "$1" {0}/script_$id
if [ -e {0}/lose ]; then rm {0}/lose; echo "Submitted batch job $id"; exit 0; fi
touch {0}/queue_$id
(SLURM_JOB_ID=$id SLURM_CPUS_PER_TASK=3 sh {0}/script_$id > {0}/out_$id 2>&1; rm {0}/queue_$id) > /dev/null 2>&1 &
echo "Submitted batch job $id"
""",
    "srun": """#!/bin/sh
while [ "${{1#--}}" != "$1" ]; do case "$1" in *=*|--unbuffered) shift;; *) shift; shift;; esac; done
exec "$@"
""",
    "squeue": """#!/bin/sh
ls {0} | sed -n 's/^queue_\\(.*\\)/\\1 RUNNING/p'
""",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in FAKE.items():
        (folder / name).write_text(text.format(folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("nnunet_partial.orchestration.executors.QUEUE_POLL_S", 0.2)
    return folder


def test_slurm_gets_a_script_with_the_options_and_the_command_runs_in_its_allocation(tmp_path, cluster, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # what the user sets wins
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    executor = make_executor("slurm", tmp_path / "run", slurm={"partition": "gpu", "time": 60, "cpus_per_task": 3})
    executor.run([shell(tmp_path, "a", "echo cores $OMP_NUM_THREADS")])
    script = (cluster / "script_1").read_text()
    for line in ("--partition=gpu", "--time=60", "--cpus-per-task=3", "--job-name=a"):
        assert f"#SBATCH {line}" in script
    assert "cores 3" in (tmp_path / "a.log").read_text()  # what SLURM gave, not what the machine has


def test_a_job_that_the_cluster_lost_is_handed_in_again(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("nnunet_partial.orchestration.executors.GRACE_S", 0.5)
    assert GRACE_S > 5
    (cluster / "lose").touch()
    make_executor("slurm", tmp_path / "run").run([shell(tmp_path, "a", "echo here")])
    assert (cluster / "last").read_text().strip() == "2" and "here" in (tmp_path / "a.log").read_text()


def test_a_command_that_fails_on_the_cluster_is_not_handed_in_again(tmp_path, cluster):
    with pytest.raises(UserError, match="exit code 4"):
        make_executor("slurm", tmp_path / "run").run([shell(tmp_path, "a", "exit 4")])
    assert (cluster / "last").read_text().strip() == "1"


def test_slurm_needs_its_programs_and_known_options(tmp_path, cluster, monkeypatch):
    with pytest.raises(UserError, match="--slurm partitoin=gpu: .*partition"):
        make_executor("slurm", tmp_path / "run", slurm={"partitoin": "gpu"}).run([shell(tmp_path, "a", "true")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="login node"):
        SlurmExecutor(tmp_path, {})


def test_nothing_of_ours_is_pickled(tmp_path, cluster):
    """A submitted job loads without this package: it is submitit's own command."""
    make_executor("slurm", tmp_path / "run").run([shell(tmp_path, "a", "true")])
    pickled = next((tmp_path / "run" / "submitit").glob("*_submitted.pkl")).read_bytes()
    assert b"CommandFunction" in pickled
    assert b"nnunet_partial.orchestration.executors" not in pickled and sys.executable.encode() in pickled
