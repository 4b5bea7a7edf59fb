"""One engine for every plan of work: steps whose needs have ended are started, side by side where the executor has room.

A plan is a subclass of :class:`Engine`: it says which steps there are, when one is done, and what is to be seen to before one
begins. Everything else is here: one lock on the folder, one journal, one loop that waits, one place that starts executors.
"""

import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import END_OF_A_PROCESS, read_json, try_lock
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.executors import Executor, Job, make_executor
from nnunet_partial.orchestration.journal import DONE, FAILED, RUNNING, Journal
from nnunet_partial.outputs import ExpectedPredictions, first_changed

# how often is told how far the steps are that run, in seconds: of long work less often than of short
_TELL_S, _TELL_SHARE, _TELL_SELDOM_S = 60.0, 0.05, 1800.0


@dataclass(frozen=True)
class Cost:
    """What the time of a step depends on: ``units`` of work of one ``kind``, the same on one machine for equal kinds.
    ``epochs``: of a training."""

    kind: str
    units: float = 1.0
    epochs: int | None = None


@dataclass(frozen=True)
class Step:
    """One command.

    ``part``        what it belongs to, in the words of its plan: the number of a generation, or what it is for
    ``outputs``     files that are there when it is done
    ``needs``       names of the steps before it
    ``inputs``      files that it reads
    ``owned``       files and folders that are its alone, removed when it is to be done anew
    ``light``       over in seconds: run at once by whoever waits, never queued
    ``atomic``      the outputs appear only when everything else is written, so that they alone say that it is done
    ``taken``       raises UserError unless outputs that this plan did not make are what it would have made; None: it makes
                    its own
    ``predictions`` what else it must have left, which is looked at before it counts as done
    ``whole``       the outputs of a command that was killed as it ended count as done, if its job is of this very command
    ``environment`` variables that its command needs as they are here, whatever those of the machine
    ``cost``        what its time depends on, where that is known
    """

    name: str
    part: Any
    argv: tuple
    outputs: tuple
    needs: tuple = ()
    inputs: tuple = ()
    owned: tuple = ()
    light: bool = False
    atomic: bool = True
    taken: Callable[[], None] | None = None
    predictions: ExpectedPredictions | None = None
    whole: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None


def waves(steps: Sequence[Step]) -> list:
    """Lists of steps; those of a list do not need each other, and need nothing but the lists before."""
    level: dict = {}
    for step in steps:
        level[step.name] = 1 + max((level[i] for i in step.needs), default=-1)
    return [[i for i in steps if level[i.name] == n] for n in range(max(level.values()) + 1)]


class Engine:
    """The steps of a plan, done in ``folder``, which keeps ``jobs/``, ``logs/`` and the journal.

    ``executor`` runs the heavy steps, ``light`` the others: in line, unless given. Steps stand after those that they need.
    """

    def __init__(self, folder: Path, steps: Sequence[Step], executor: Executor | None = None, light: Executor | None = None):
        self.folder, self.steps, self.executor = Path(folder), list(steps), executor
        self.light = light or make_executor("debug", self.folder)
        self.journal: Journal
        self._by_name = {i.name: i for i in self.steps}
        self._begun, self._ended = set(), set()

    # ---- what a plan decides

    def is_done(self, step: Step) -> bool:
        """Whether nothing is left to do."""
        raise NotImplementedError

    def before(self, step: Step) -> None:
        """See to what must be right before a step begins. May raise :class:`UserError`."""

    def seems_done(self, step: Step) -> bool:
        """Whether an overview calls a step done."""
        return self.is_done(step)

    # ---- the folder

    @contextmanager
    def working(self, lock: Path, busy: Callable[[], str]) -> Iterator[None]:
        """Hold ``lock``, which ends with the process that holds it, however it ends; UserError ``busy()`` if another does."""
        handle = try_lock(lock, END_OF_A_PROCESS)
        if handle is None:
            raise UserError(busy())
        with handle:
            yield

    def job_folder(self, step: Step) -> Path:
        return self.folder / "jobs" / step.name

    def log(self, step: Step) -> Path:
        return self.folder / "logs" / f"{step.name}.log"

    def lives(self, step: Step) -> bool:
        """Whether a process works on the step, whoever started it."""
        folder = self.job_folder(step)
        handle = try_lock(folder / runner.LOCK) if folder.is_dir() else None
        if handle is not None:
            handle.close()
        return handle is None and folder.is_dir()

    def result(self, step: Step) -> dict | None:
        """How this very command ended well, else None."""
        folder = self.job_folder(step)
        result = runner.read_result(folder)
        if result is None or result["exit_code"] != 0 or read_json(folder / runner.JOB)["argv"] != list(step.argv):
            return None
        return result

    def files_read(self, step: Step) -> list:
        """Files whose change makes a step that is done one that is not."""
        return [*step.inputs, *(step.predictions.read() if step.predictions else ())]

    def changed_input(self, step: Step, known: Mapping[str, Any]) -> str | None:
        """The first file that is not as the step read it, by the stamps that were kept then."""
        files = self.files_read(step)
        images = set(step.predictions.read() if step.predictions else ())
        if not any(str(i) in known for i in images):  # version 0.1 kept no stamps of images
            files = [i for i in files if i not in images]
        return first_changed(files, known)

    def missing_output(self, step: Step) -> Path | None:
        return next((i for i in step.outputs if not i.is_file()), None)

    def overview(self) -> str:
        """Every command in order; those that may run side by side stand together."""
        groups = [
            [f"{shlex.join(i.argv)}{'   # done' if self.seems_done(i) else ''}" for i in wave] for wave in waves(self.steps)
        ]
        return "\n\n".join("\n".join(i) for i in groups)

    # ---- doing

    def do(self) -> None:
        """Do what is left. Needs the journal, and the lock."""
        self._begun, self._ended, started = set(), set(), time.time()
        try:
            executor = self.executor or make_executor("local", self.folder)
            with self._telling():
                executor.run(self._next(), self._after)
        except BaseException:
            for name in sorted(self._begun - self._ended):
                self._note_failure(self._by_name[name])
            raise
        finally:
            self.journal.note_loop(time.time() - started, busy_seconds(map(self.job_folder, self.steps), started))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Meanwhile say once in a while how far the steps are that run."""
        ended = threading.Event()
        thread = threading.Thread(target=self._tell, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _tell(self, ended: threading.Event) -> None:
        from nnunet_partial.orchestration.status import running_lines

        started = time.monotonic()
        while not ended.wait(min(_TELL_SELDOM_S, max(_TELL_S, _TELL_SHARE * (time.monotonic() - started)))):
            try:
                for line in running_lines(self):
                    print(f"  {line}", flush=True)
            except OSError:  # nobody reads any more, which whoever waits for the steps notices as well
                return

    def _next(self) -> list:
        """Jobs of the steps whose needs have ended, in the order of the plan. What is done already, and light
        steps, which are run here, end at once."""
        begun = []
        while ready := [i for i in self.steps if i.name not in self._begun and self._ended.issuperset(i.needs)]:
            for step in ready:
                self._begun.add(step.name)
                if self.is_done(step):
                    self._note_done(step)
                    continue
                self._begin(step)
                if step.light:
                    self.light.run([self._job(step)])
                    self._end(step)
                else:
                    begun.append(step)
        return [self._job(i, self._beside(i)) for i in sorted(begun, key=self.steps.index)]

    def _after(self, name: str) -> list:
        self._end(self._by_name[name])
        return self._next()

    def _begin(self, step: Step) -> None:
        self.before(step)
        self.journal.mark(step.name, RUNNING, argv=list(step.argv))
        print(f"{step.name}: {shlex.join(step.argv)}", flush=True)
        if not step.light:
            number = f"{len(self._begun)} of {len(self.steps)}"
            print(f"  {step.name}: step {number}, queued; log {self.log(step)}", flush=True)

    def _job(self, step: Step, beside: int | None = None) -> Job:
        return Job(step.name, step.argv, self.log(step), step.environment, beside)

    def _beside(self, step: Step) -> int:
        """How many jobs may run at the same time as this one, itself included: whatever has ended by now, so that a step has
        the same number of threads, and on a CPU the same result, in every run of the plan."""
        others = [i for i in self.steps if not i.light and i is not step]
        before = self._all_needs(step)
        return 1 + sum(i.name not in before and step.name not in self._all_needs(i) for i in others)

    def _all_needs(self, step: Step) -> set:
        found, waiting = set(), list(step.needs)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._by_name[name].needs
        return found

    # ---- what became of it

    def _note_done(self, step: Step) -> None:
        self._ended.add(step.name)
        if self.journal.state(step.name) != DONE:
            self.journal.mark(step.name, DONE, argv=list(step.argv))

    def _end(self, step: Step) -> None:
        missing = self.missing_output(step)
        if missing is not None:
            raise UserError(f"{step.name} ended well but did not write {missing}. Its output is in {self.log(step)}.")
        found = self.look_at(step)
        result = runner.read_result(self.job_folder(step))
        seconds = runner.all_seconds(result) if result else 0.0
        self.journal.mark(step.name, DONE, seconds, **found)
        print(f"{step.name}: done, {seconds:.0f} s", flush=True)
        self._ended.add(step.name)
        if result:
            self.note_result(step, result["seconds"])

    def note_result(self, step: Step, seconds: float) -> None:
        """Learn from a step that ended well how long such steps take."""

    def look_at(self, step: Step) -> dict:
        """What the journal is to know of the predictions of a step. Raises :class:`UserError` if they are not whole."""
        return {} if step.predictions is None else {"predictions": step.predictions.check()}

    def _note_failure(self, step: Step) -> None:
        """A step that had begun when work ended: others may have failed while it ended well."""
        ended = step.predictions is None and self.result(step) is not None and self.missing_output(step) is None
        self.journal.mark(step.name, DONE if ended else FAILED)


def busy_seconds(folders: Iterable[Path], since: float) -> float:
    """Seconds from ``since`` on during which at least one of these jobs ran."""
    spans, busy, reached = [], 0.0, since
    for folder in folders:
        result = runner.read_result(folder)
        if result is not None:
            spans.append((result["ended"] - result["seconds"], result["ended"]))
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
