"""The loop on a real SLURM: Debian's packages slurm-wlm and munge, one controller and one node, started for the test."""

import json
import os
import shutil
import socket
import subprocess
import time

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol")
START_S = 60.0
CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def path_of_programs():
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for i in sockets:
        i.bind(("127.0.0.1", 0))
    ports = [i.getsockname()[1] for i in sockets]
    for i in sockets:
        i.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster of one node with four CPUs."""
    missing = [i for i in PROGRAMS if shutil.which(i, path=path_of_programs()) is None]
    if missing:
        pytest.skip(f"SLURM is not installed here ({missing[0]} is missing): apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=socket.gethostname().split(".")[0], user=user, folder=folder, ports=free_ports(2))
    )
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path_of_programs()}
    daemons = []
    try:
        for argv in (
            [
                "munged",
                "--foreground",
                "--force",
                f"--key-file={folder}/munge.key",
                f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munge.pid",
                f"--log-file={folder}/munge.log",
                f"--seed-file={folder}/munge.seed",
            ],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            with open(folder / f"{argv[0]}.out", "w") as log:
                daemons.append(subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(0.5)
        if not comes_up(environment):
            said = " | ".join((folder / f"{i}.out").read_text()[-300:] for i in ("munged", "slurmctld", "slurmd"))
            pytest.skip(f"SLURM is installed but does not start here: {said}")
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def comes_up(environment):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        state = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True)
        if state.stdout.strip() == "idle":
            return True
        time.sleep(0.3)
    return False


def span(place, stage):
    """When a stage's command ran."""
    result = json.loads((place.run / "jobs" / stage / "result.json").read_text())
    return result["ended"] - result["seconds"], result["ended"]


def side_by_side(place, *stages):
    spans = [span(place, i) for i in stages]
    return max(start for start, _ in spans) < min(end for _, end in spans)


def test_two_generations_with_both_halves_in_parallel(slurm, place, uninterrupted):
    # slow enough that two jobs that are handed in together run together
    place.environment.update(
        slurm,
        NNUNET_PARTIAL_PROGRAMS=place.environment["NNUNET_PARTIAL_PROGRAMS"],
        STUB_PAUSE_S="1.5",
        **{i: place.environment[i] for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
    )
    place.loop("--slurm", "partition=main", "--slurm", "cpus_per_task=1", "--slurm", "time=10", executor="slurm")
    for t in (1, 2):
        assert side_by_side(place, f"g{t}s1-train", f"g{t}s2-train")
    assert side_by_side(place, "g2s1-label", "g2s2-label")
    assert place.results() == uninterrupted.results()
    logs = list((place.run / "submitit").glob("*_submission.sh"))
    assert len(logs) >= 10 and all("--partition=main" in i.read_text() for i in logs)
    jobs = [json.loads(i.read_text()) for i in (place.run / "jobs").glob("*-train/job.json")]
    assert len({i["job_id"] for i in jobs}) == len(jobs) == 6


def test_a_project_and_its_comparison_go_through_the_queue(slurm, new_project_place):
    """The same plan, its heavy steps as jobs of the cluster."""
    place = new_project_place()
    place.environment.update({k: slurm[k] for k in ("SLURM_CONF", "PATH")})
    place.change('[[method]]\nname = "selftraining"', "")
    options = ("--executor", "slurm", "--slurm", "partition=main", "--slurm", "time=10")
    process = place.start(*options)
    assert process.wait(300) == 0, (place.folder / "run.log").read_text()[-3000:]
    submitted = [json.loads(i.read_text())["name"] for i in place.out.glob("jobs/*/job.json") if "job_id" in i.read_text()]
    assert {"convert-lits", "merge", "plan", "s0-partial-train-fold0"} <= set(submitted)
    assert (place.out / "report.html").is_file() and (place.out / "export" / "s0-partial" / "model.zip").is_file()


def test_a_killed_loop_finds_its_job_in_the_queue_and_a_cancelled_job_is_handed_in_again(slurm, place):
    place.environment.update(
        slurm, **{k: v for k, v in place.environment.items() if k.startswith("nnUNet_")}, STUB_PAUSE_S="4"
    )  # on a busy machine the second loop takes seconds to start
    options = ("--slurm", "partition=main", "--slurm", "time=10")
    process = place.start(*options, executor="slurm", generations=1)
    started = place.run / "jobs" / "m0-train" / "started.json"
    place.wait_for(started.is_file)
    place.kill(process, whole_tree=True)
    job = json.loads((place.run / "jobs" / "m0-train" / "job.json").read_text())["job_id"]
    queued = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i"], env=place.environment, capture_output=True, text=True
    )
    assert job in queued.stdout.split()
    place.environment["STUB_PAUSE_S"] = "1.5"
    process = place.start(*options, executor="slurm", generations=1)
    place.wait_for(lambda: "m0-train is running already" in (place.folder / "loop.log").read_text())
    place.wait_for(
        lambda: place.states().get("g1s1-train") == "running" and (place.run / "jobs" / "g1s1-train" / "started.json").is_file(),
        180,
    )
    assert (place.run / "logs" / "m0-train.log").read_text().count("Epoch 0") == 1  # was not handed in twice
    lost = json.loads((place.run / "jobs" / "g1s1-train" / "job.json").read_text())["job_id"]
    subprocess.run(["scancel", "--signal=KILL", "--full", lost], env=place.environment, check=True)
    place.wait_for(lambda: process.poll() is not None, 240)
    assert process.returncode == 0, (place.folder / "loop.log").read_text()[-2000:]
    assert json.loads((place.run / "jobs" / "g1s1-train" / "job.json").read_text())["job_id"] != lost
    assert set(place.states().values()) == {"done"}
