"""Running commands: on this machine, one per GPU side by side; on a SLURM cluster; or in line, for debugging.

Jobs are command lines; through submitit go nothing but them (no function of ours is pickled). Whoever waits for a job
may be killed: the job goes on, and the same job started again is not started twice but waited for.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, try_lock, write_json
from nnunet_partial.orchestration import job as runner

KINDS = ("local", "slurm", "debug")
LAST_LINES = 15
# how often a waiting executor looks, in seconds; squeue is asked less often than the file system
POLL_S = 0.1
QUEUE_POLL_S = 10.0
# a job that left the queue may have written its result on a node whose files are seen here a little later
GRACE_S = 30.0
REQUEUES = 20
MOST_QUEUED = 200  # clusters limit the jobs of a user
_YEAR_MIN = 365 * 24 * 60  # submitit ends local jobs after 2 minutes unless told otherwise
_SLURM_MIN = 24 * 60


@dataclass(frozen=True)
class Job:
    """A command line. ``name`` is unique in its executor's folder; ``log`` gets its output, run after run. ``beside``: how
    many jobs may run at the same time, this one included, where who hands it over knows; the machine is shared by them."""

    name: str
    argv: tuple
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: int | None = None


class Executor(Protocol):
    """Runs jobs."""

    def run(self, jobs: Sequence[Job], more: Callable[[str], Sequence[Job]] | None = None) -> list:
        """Run ``jobs``, side by side where there is room; returns the seconds that each took.

        ``more``: called with the name of each job that ended well; returns the jobs that can run now because it has ended.
        All are given the time to end. Raises :class:`UserError` with the last lines of the log of the first that failed;
        once one has, ``more`` is not called again.
        """
        ...


def make_executor(
    kind: str,
    folder: Path,
    *,
    gpus: Sequence[int] | None = None,
    slurm: Mapping[str, Any] | None = None,
    retries: int = 0,
    processes: int = 1,
) -> Executor:
    """The executor ``kind``, which keeps what it needs in ``folder``.

    ``gpus``      local: ids of the GPUs to use, one job each at a time; None: those that there are; ``()``: none
    ``slurm``     slurm: submitit's options of a job, for example ``{"partition": "gpu", "gpus_per_node": 1}``
    ``retries``   how often a job that failed is run again
    ``processes`` local, without a GPU: jobs side by side
    """
    folder = Path(folder).absolute()
    if retries < 0 or processes < 1:
        raise UserError(f"--retries must be at least 0 and --jobs at least 1, found {retries} and {processes}.")
    if kind == "debug":
        return DebugExecutor(folder, retries)
    if kind == "local":
        return LocalExecutor(folder, find_gpus() if gpus is None else list(gpus), processes, retries)
    if kind == "slurm":
        return SlurmExecutor(folder, dict(slurm or {}), retries)
    raise UserError(f"executor {kind!r} is none of {', '.join(KINDS)}.")


def find_gpus() -> list:
    """Ids of the GPUs that this process may use; found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [i for i in visible.split(",") if i not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


def last_lines(log: Path, number: int = LAST_LINES) -> str:
    """The last lines of a log that say something, of its last run alone, in one line."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, os.path.getsize(log) - 20000))
            text = handle.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    last_run = re.split(r"(?m)^(?=\$ )", text)[-1]  # every run begins with its command
    lines = [i.strip() for i in re.split(r"[\r\n]", last_run) if i.strip()]
    return " | ".join(lines[-number:]) or "(empty log)"


def failure(job: Job, reason: str) -> UserError:
    """The error of a job that failed."""
    return UserError(
        f"{job.name} {reason}: {shlex.join(job.argv)} -- its output is in {job.log}. Last lines: {last_lines(job.log)}"
    )


@dataclass
class _Running:
    """A job that was started, by this process or by one that has been killed since."""

    job: Job
    folder: Path
    token: str
    handle: Any = None  # of submitit, or the job's id; None for one that is waited for by its lock
    slot: Any = None
    gone_since: float | None = None
    adopted: bool = False


class _FileExecutor(ABC):
    """What all share: start a job, wait for its files, start it again."""

    begins = "started"  # what is said of a job that gets its turn

    def __init__(self, folder: Path, retries: int):
        self.folder, self.retries = folder, retries

    # ---- what they differ in

    @abstractmethod
    def slots(self) -> list:
        """A place for each job that may run at the same time."""

    @abstractmethod
    def start(self, running: _Running) -> None:
        """Start the job."""

    @abstractmethod
    def lives(self, running: _Running) -> bool:
        """Whether a job without a result may still get one."""

    def environment(self, slot: Any) -> dict:
        """What a slot adds to the environment."""
        return {}

    def interrupted(self, running: _Running) -> bool:
        """Whether a job that ended without a result is to be started again."""
        return False

    def share(self, jobs: int) -> int:
        """Jobs among which this machine's cores are divided, where there are so many jobs."""
        return 1

    # ---- the loop

    def run(self, jobs: Sequence[Job], more: Callable[[str], Sequence[Job]] | None = None) -> list:
        waiting, running, seconds, errors = list(jobs), [], {}, []
        free, attempts = self.slots(), Counter()
        jobs_beside = len(free) if more else len(jobs)
        try:
            while waiting or running:
                while waiting and free:
                    job = waiting.pop(0)
                    begun = self._begin(job, free.pop(0), self.share(job.beside or jobs_beside))
                    running.append(begun)  # before it starts, so that an interrupt of that ends it too
                    if not begun.adopted:
                        print(f"  {job.name}: {self.begins}", flush=True)
                        self.start(begun)
                for one in [i for i in running if self._ended(i)]:
                    running.remove(one)
                    free.append(one.slot)
                    outcome = runner.read_result(one.folder, one.token)
                    if outcome and outcome["exit_code"] == 0:
                        seconds[one.job.name] = float(outcome["seconds"])
                        if more and not errors:
                            try:
                                waiting += more(one.job.name)
                            except UserError as error:
                                errors.append(error)
                        continue
                    attempts[one.job.name] += 1
                    limit = REQUEUES if outcome is None and self.interrupted(one) else self.retries
                    if attempts[one.job.name] <= limit:
                        waiting.append(one.job)
                    else:
                        errors.append(failure(one.job, _reason(outcome)))
                if running:
                    time.sleep(POLL_S)
        except BaseException:
            for one in running:
                self.cancel(one)
            raise
        if errors:
            raise errors[0]
        return [seconds[i.name] for i in jobs]

    def _begin(self, job: Job, slot: Any, share: int) -> _Running:
        """A job to start, or the one of this name and command that runs already."""
        folder = self.folder / "jobs" / job.name
        lock = try_lock(folder / runner.LOCK)
        if lock is None:
            return self._adopt(job, folder, slot)
        with lock:  # while it is held no earlier start of this job can begin; afterwards its token is an old one
            if self._queued(folder, job):
                return self._adopt(job, folder, slot)
            running = _Running(job, folder, uuid.uuid4().hex, slot=slot)
            (folder / runner.RESULT).unlink(missing_ok=True)
            self._write(running, share)
        return running

    def _write(self, running: _Running, share: int, **more) -> None:
        job = running.job
        write_json(
            {
                "name": job.name,
                "token": running.token,
                "argv": list(job.argv),
                "log": str(Path(job.log).absolute()),
                "environment": {**job.environment, **self.environment(running.slot)},
                "share": share,
                **more,
            },
            running.folder / runner.JOB,
        )

    def _adopt(self, job: Job, folder: Path, slot: Any) -> _Running:
        found = read_json(folder / runner.JOB)
        if found["argv"] != list(job.argv):
            raise UserError(
                f"{job.name} runs already, as another command: {shlex.join(found['argv'])}. Wait for it to end, or end it."
            )
        print(f"  {job.name} is running already; waiting for it.", flush=True)
        return _Running(job, folder, found["token"], found.get("job_id"), slot, adopted=True)

    def _queued(self, folder: Path, job: Job) -> bool:
        """Whether the job was handed over before and has not begun."""
        return False

    def _ended(self, running: _Running) -> bool:
        return runner.read_result(running.folder, running.token) is not None or not self.lives(running)

    def cancel(self, running: _Running) -> None:
        """Called for every job that runs when waiting is interrupted."""

    def command(self, running: _Running):
        """The job as what submitit runs: a command."""
        from submitit.helpers import CommandFunction

        return CommandFunction(
            [sys.executable, "-m", "nnunet_partial.orchestration.job", str(running.folder), running.token], verbose=False
        )


class DebugExecutor(_FileExecutor):
    """One job after the other, in line."""

    def slots(self) -> list:
        return [None]

    def start(self, running: _Running) -> None:
        runner.main(str(running.folder), running.token)

    def lives(self, running: _Running) -> bool:
        return _is_locked(running)

    def interrupted(self, running: _Running) -> bool:
        return True


def _is_locked(running: _Running) -> bool:
    lock = try_lock(running.folder / runner.LOCK)
    if lock is not None:
        lock.close()
    return lock is None


def _reason(outcome: Mapping | None) -> str:
    return "ended without a result (killed?)" if outcome is None else f"ended with exit code {outcome['exit_code']}"


class LocalExecutor(_FileExecutor):
    """Processes on this machine: one per GPU side by side, or ``processes`` on the CPU."""

    def __init__(self, folder: Path, gpus: Sequence, processes: int = 1, retries: int = 0):
        super().__init__(folder, retries)
        self.gpus, self.processes = list(gpus), processes

    def slots(self) -> list:
        return [str(i) for i in self.gpus] or [None] * self.processes

    def share(self, jobs: int) -> int:
        return max(1, min(len(self.slots()), jobs))

    def environment(self, slot: Any) -> dict:
        return {"CUDA_VISIBLE_DEVICES": "" if slot is None else slot}

    def start(self, running: _Running) -> None:
        import submitit

        executor = submitit.LocalExecutor(self.folder / "submitit")
        executor.update_parameters(timeout_min=_YEAR_MIN)
        running.handle = executor.submit(self.command(running))

    def lives(self, running: _Running) -> bool:
        if running.handle is not None:
            return running.handle.state == "RUNNING"
        return _is_locked(running)

    def interrupted(self, running: _Running) -> bool:
        return running.handle is None  # one that an earlier loop started, and that was killed like that one

    def cancel(self, running: _Running) -> None:
        runner.end(running.folder, running.token)


class SlurmExecutor(_FileExecutor):
    """Jobs of a SLURM cluster, up to ``MOST_QUEUED`` at once. The folder must be seen by every node.

    A job that was ended by its time limit, by preemption or by a failing node is handed in again; a stage goes on where
    it was. Job states come from squeue, which also works on clusters without accounting.
    """

    begins = "handed to SLURM"

    def __init__(self, folder: Path, options: Mapping[str, Any], retries: int = 0):
        super().__init__(folder, retries)
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError(
                "--executor slurm: sbatch and srun are not on the PATH. Start the loop on a login node, or use --executor local."
            )
        self.options = dict(options)
        self._states, self._asked = {}, 0.0

    def slots(self) -> list:
        return [None] * MOST_QUEUED

    def start(self, running: _Running) -> None:
        import submitit
        from submitit.core.utils import FailedSubmissionError

        executor = submitit.SlurmExecutor(self.folder / "submitit")
        parameters = {"time": _SLURM_MIN, **self.options, "job_name": running.job.name}
        try:
            executor.update_parameters(**parameters)
            running.handle = executor.submit(self.command(running)).job_id
        except (ValueError, TypeError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"--slurm {shlex.join(f'{k}={v}' for k, v in self.options.items())}: {error}") from None
        record = read_json(running.folder / runner.JOB)
        write_json({**record, "job_id": running.handle}, running.folder / runner.JOB)

    def lives(self, running: _Running) -> bool:
        if running.handle is not None and running.handle in self._queue():
            running.gone_since = None
            return True
        if running.gone_since is None:
            running.gone_since = time.monotonic()
        return time.monotonic() - running.gone_since < GRACE_S

    def interrupted(self, running: _Running) -> bool:
        return True

    def _queued(self, folder: Path, job: Job) -> bool:
        if not (folder / runner.JOB).is_file() or (folder / runner.RESULT).is_file():
            return False
        found = read_json(folder / runner.JOB)
        self._asked = 0.0
        return found["argv"] == list(job.argv) and found.get("job_id") in self._queue()

    def _queue(self) -> Mapping[str, str]:
        """Job id -> state of this user's jobs that wait or run."""
        if time.monotonic() - self._asked < QUEUE_POLL_S and self._asked:
            return self._states
        listed = subprocess.run(["squeue", "--me", "--noheader", "--format=%i %T"], capture_output=True, text=True)
        if listed.returncode == 0:  # a controller that does not answer has not ended any job
            self._states = dict(i.split(maxsplit=1) for i in listed.stdout.splitlines() if " " in i)
            self._asked = time.monotonic()
        return self._states
