"""One job: a command in a process of its own, whose start, output and end are files. Standard library only.

::

    FOLDER/job.json      argv, environment, log and a token, written by the executor before it starts the job
    FOLDER/started.json  process id and machine, written when the command starts
    FOLDER/attempts.json starts of this very command since it last ended well: when, how long, with which exit code
    FOLDER/result.json   exit code, seconds and core seconds, written last, so it marks the job as ended
    FOLDER/lock          held as long as anything of the job lives, the command's own children included

``python -m nnunet_partial.orchestration.job FOLDER TOKEN`` runs it, on this machine or on a node of a cluster. A
process whose token is no longer the one of job.json was overtaken by a newer start and ends without doing anything.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_partial.files import locked, read_json, try_lock, write_json

JOB, STARTED, RESULT, LOCK, ATTEMPTS = "job.json", "started.json", "result.json", "lock", "attempts.json"
# What a command gets unless the user's environment says otherwise: output unbuffered, so that progress shows; glibc keeps what
# it freed, or a CPU training spends a quarter of its time on page faults of tensors that come and go; and OpenMP's threads
# sleep (GNU's after microseconds) without work, or two trainings on the same cores wait for each other and take twice as long
COMMAND_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "GOMP_SPINCOUNT": "2000",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_MOST_AUGMENTERS = 12  # nnU-Net's default per GPU
_MOST_WORKERS = 8  # nnU-Net's default of nnUNet_def_n_proc
NOT_STARTED = 127  # the shell's exit code for a command that is not found


def main(folder: str, token: str) -> int:
    """Run the job of ``folder`` and write its result; returns the command's exit code.

    A job that was told to end (a time limit, a preemption, an interrupt) leaves no result: it has neither ended well nor
    failed. It raises SystemExit.
    """
    return _run_locked(Path(folder), token)


def _run_locked(folder: Path, token: str) -> int:
    with locked(folder / LOCK) as handle:
        job = read_json(folder / JOB)
        if job["token"] != token:
            print(f"{folder.name}: overtaken by a newer start, nothing done.")
            return 0
        earlier, started, used_before = _earlier_attempts(folder, job), time.time(), _seconds_of_children()
        attempt = {"argv": job["argv"], "began": started}
        write_json([*earlier, attempt], folder / ATTEMPTS)
        with _Forwarding() as forwarding:  # before anybody can know whom to tell
            write_json({"token": token, "pid": os.getpid(), "host": platform.node()}, folder / STARTED)
            code = run_command(job["argv"], Path(job["log"]), job["environment"], forwarding, job.get("share", 1), handle)
        ended, used = time.time(), _seconds_of_children() - used_before
        now = {**attempt, "seconds": ended - started, "cpu_seconds": used, "exit_code": code}
        write_json([*earlier, now], folder / ATTEMPTS)
        if forwarding.told is not None and code != 0:
            raise SystemExit(128 + forwarding.told)
        write_json(
            {
                "token": token,
                "exit_code": code,
                "seconds": ended - started,
                "earlier_seconds": sum(i["seconds"] for i in earlier),
                "cpu_seconds": used,
                # of an attempt that was killed with this process nobody knows them: its seconds stand for them
                "earlier_cpu_seconds": sum(i.get("cpu_seconds", i["seconds"]) for i in earlier),
                "ended": ended,
                "host": platform.node(),
            },
            folder / RESULT,
        )
        return code


def _earlier_attempts(folder: Path, job: Mapping) -> list:
    """Starts of the job's command that did not end well, since it last did. One that was killed lasted until its log last grew."""
    found = []
    for attempt in read_json(folder / ATTEMPTS) if (folder / ATTEMPTS).is_file() else []:
        if attempt["argv"] != job["argv"] or attempt.get("exit_code") == 0:
            found = []
        else:
            found.append({**attempt, "seconds": attempt.get("seconds", _until_last_output(Path(job["log"]), attempt["began"]))})
    return found


def _until_last_output(log: Path, began: float) -> float:
    return max(0.0, log.stat().st_mtime - began) if log.is_file() else 0.0


def all_seconds(result: Mapping) -> float:
    """What a job took that ended, with its attempts that were interrupted or failed."""
    return result["seconds"] + result.get("earlier_seconds", 0.0)  # which an older result lacks


def all_cpu_seconds(result: Mapping) -> float | None:
    """The same in seconds of one core; None where the result does not say."""
    used = result.get("cpu_seconds")
    earlier = result.get("earlier_cpu_seconds", result.get("earlier_seconds", 0.0))  # likewise
    return None if used is None else used + earlier


def _seconds_of_children() -> float:
    """Seconds of one core used by the commands that have ended and by what those waited for; 0 where the system does not
    say (Windows). What a command costs, also on a busy machine."""
    used = os.times()
    return used.children_user + used.children_system


class _Forwarding:
    """While it is entered, what tells this process to end tells its command too, also if the command does not exist yet.

    ``told`` is that signal, or None. In other threads than the main one, where signals do not come, it does nothing.
    """

    def __init__(self):
        self.told: int | None = None
        self._process: subprocess.Popen | None = None
        self._before: dict = {}

    def __enter__(self) -> "_Forwarding":
        if threading.current_thread() is threading.main_thread():
            self._before = {i: signal.signal(i, self._forward) for i in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number, frame) -> None:
        self.told = self.told or number
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, process: subprocess.Popen) -> int:
        """The exit code of ``process``."""
        self._process = process
        if self.told is not None:
            process.send_signal(self.told)
        return process.wait()


def run_command(
    argv: Sequence[str], log: Path, environment: Mapping[str, str], forwarding: _Forwarding, share: int = 1, lock=None
) -> int:
    """Run ``argv`` with its output in ``log`` and this process's allocation divided by ``share``; its exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    own = {**COMMAND_ENVIRONMENT, **os.environ, **environment}
    own.update({k: v for k, v in worker_counts(own, share).items() if k not in own})
    with open(log, "a", encoding="utf-8") as handle:
        print(f"$ {' '.join(argv)}", file=handle, flush=True)
        program = find_program(argv[0], own.get("PATH", ""))
        if program is None:
            print(f"the command {argv[0]} is not installed in this environment.", file=handle, flush=True)
            return NOT_STARTED
        keep = () if lock is None or os.name == "nt" else (lock.fileno(),)
        process = subprocess.Popen(
            [program, *argv[1:]], stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, env=own, pass_fds=keep
        )
        return forwarding.wait(process)


def find_program(name: str, path: str) -> str | None:
    """A program of the folder ``NNUNET_PARTIAL_PROGRAMS`` (for wrappers, such as of a container) if it is set, then of
    this environment, then of ``path``."""
    first = os.environ.get("NNUNET_PARTIAL_PROGRAMS")
    return shutil.which(name, path=os.pathsep.join([*([first] if first else []), str(Path(sys.executable).parent), path]))


def worker_counts(environment: Mapping[str, str], share: int = 1) -> dict:
    """nnU-Net's and OpenMP's numbers of workers for the cores that this process may use, shared by ``share`` jobs.

    nnU-Net itself counts the cores of the machine, not those of the allocation. With a GPU the cores augment; without
    one they compute, and augmentation gets a fourth of them.
    """
    cores = max(1, allocated_cores(environment) // max(1, share))
    augmenters = min(_MOST_AUGMENTERS, cores) if has_gpu(environment) else min(_MOST_AUGMENTERS, cores // 4)
    computing = 1 if has_gpu(environment) else max(1, cores - augmenters)
    return {
        "nnUNet_n_proc_DA": str(augmenters),
        "nnUNet_def_n_proc": str(min(_MOST_WORKERS, cores)),
        "OMP_NUM_THREADS": str(computing),
    }


def allocated_cores(environment: Mapping[str, str]) -> int:
    """Cores that SLURM gave to this task, else those that this process may run on."""
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether a GPU was given to this process, or where nothing is said whether the machine has one."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return shutil.which("nvidia-smi") is not None if visible is None else visible not in ("", "-1", "NoDevFiles")


def read_result(folder: Path, token: str | None = None) -> dict | None:
    """What became of the job started with ``token`` (None: with any); None while it has not ended."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if token in (None, result.get("token")) else None


def is_at_work(folder: Path) -> bool:
    """Whether the job has started and not ended, as its files say: nothing is locked, which would keep others from it. One that
    was killed is still at work by its files."""
    try:
        token = json.loads((folder / STARTED).read_text(encoding="utf-8"))["token"]
        return token == json.loads((folder / JOB).read_text(encoding="utf-8"))["token"] and read_result(folder, token) is None
    except (OSError, json.JSONDecodeError, KeyError):
        return False


def end(folder: Path, token: str, patience_s: float = 2.0) -> None:
    """Tell a job of this machine to end, or see to it that it never begins."""
    limit = time.monotonic() + patience_s
    while read_result(folder, token) is None and time.monotonic() < limit:
        if _tell(folder, token):
            return
        lock = try_lock(folder / LOCK)
        if lock is not None:
            with lock:  # it has not begun, and a token that is not its own keeps it from beginning
                write_json({**read_json(folder / JOB), "token": None}, folder / JOB)
            return
        time.sleep(0.05)  # it is about to write where it runs


def _tell(folder: Path, token: str) -> bool:
    """Send SIGTERM to the process of a job; whether there was one."""
    try:
        started = json.loads((folder / STARTED).read_text(encoding="utf-8"))
        if started["token"] != token or started["host"] != platform.node():
            return False
        os.kill(started["pid"], signal.SIGTERM)
        return True
    except (FileNotFoundError, json.JSONDecodeError, ProcessLookupError, PermissionError):
        return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
