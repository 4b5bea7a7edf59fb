"""How far a plan of work is, and how long the rest will take: a table for people, read from files alone."""

import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nnunet_partial.errors import UserError
from nnunet_partial.files import try_lock
from nnunet_partial.orchestration import costs
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.engine import Engine, Step
from nnunet_partial.orchestration.journal import DONE, FAILED, RUNNING, Journal

QUEUED, INTERRUPTED = "queued", "interrupted"  # of the journal's "running": no process is at it yet, or no longer
_LAST_EPOCHS = 5  # the pace of a training is that of its last epochs
_TAIL_BYTES = 1 << 16
_EPOCH = re.compile(r"Epoch (\d+)\s*$", re.MULTILINE)
_EPOCH_TIME = re.compile(r"Epoch time: ([\d.]+) s")


def status(engine: Engine, journal: Path, lock: Path) -> str:
    """The table of all steps. Raises :class:`UserError` if the work has not been started."""
    if not journal.is_file():
        raise UserError(f"{journal} does not exist: this has not been started.")
    engine.journal = Journal.read(journal)
    handle = try_lock(lock)
    if handle is not None:
        handle.close()
    known, alive = costs.measured(), handle is None
    rows = [_row(engine, step, known, alive) for step in engine.steps]
    states = Counter(row[1] for row in rows)
    counts = "".join(f", {states[i]} {i}" for i in (RUNNING, QUEUED, INTERRUPTED, FAILED) if states[i])
    at_work = "at work" if alive else "nobody is at work"
    head = f"{engine.folder}: {states[DONE]} of {len(engine.steps)} steps done{counts}, {at_work}"
    return "\n".join([head, *table([("step", "state", "epoch", "took", "time left", "log"), *rows])])


def running_lines(engine: Engine) -> list:
    """A line of each step that runs now: its epoch, the time that it has taken, the time left, and where its log lies."""
    known, told = costs.measured(), []
    for step in engine.steps:
        if not step.light and engine.journal.state(step.name) == RUNNING and runner.is_at_work(engine.job_folder(step)):
            epoch, took, left = _progress(engine, step, known)
            words = [f"epoch {epoch}" if epoch else "", took, f"{left} left" if left else "", f"log {engine.log(step)}"]
            told.append(f"{step.name}: {', '.join(i for i in words if i)}")
    return told


def costs_of(engine: Engine) -> str:
    """What is left to do and how long each step will take, as far as this machine has measured such steps."""
    known = costs.measured()
    left = [i for i in engine.steps if not engine.seems_done(i)]
    ranges = {i.name: costs.estimate(i.cost, known) for i in left if not i.light}
    rows = [("step", "takes", "measured on this machine")]
    for name, found in ranges.items():
        rows.append((name, str(found) if found else "not known yet", f"{found.measured} times" if found else ""))
    whole = costs.total(ranges.values())
    said = f"one after the other {whole}" if whole else "how long they take together is not known yet"
    quick = len(left) - len(ranges)
    return "\n".join(
        [f"{len(left)} of {len(engine.steps)} steps are left, {quick} of them short; {said}:", *(table(rows) if ranges else [])]
    )


def _row(engine: Engine, step: Step, known: dict, alive: bool) -> tuple:
    entry = engine.journal.content["stages"].get(step.name, {})
    state = engine.journal.state(step.name)
    if state == RUNNING and not engine.lives(step):
        state = QUEUED if alive else INTERRUPTED
    seconds, log = entry.get("seconds"), engine.log(step)
    log = str(log) if log.is_file() else ""
    took = costs.in_words(seconds) if seconds and state == DONE else ""
    if state != RUNNING:
        expected = costs.estimate(step.cost, known) if state != DONE else None
        epoch = _epoch_in_words(step, epochs_of(engine.log(step))[0]) if state in (INTERRUPTED, FAILED) else ""
        return step.name, state, epoch, took, str(expected) if expected else "", log
    return step.name, state, *_progress(engine, step, known), log


def _epoch_in_words(step: Step, epoch: int | None) -> str:
    """``10 of 20``, ``10`` where it is not known how many there are, nothing before the first."""
    total = step.cost.epochs if step.cost else None
    return "" if epoch is None else f"{epoch} of {total}" if total else str(epoch)


def _progress(engine: Engine, step: Step, known: dict) -> tuple:
    """``(epoch, time that it has taken, time left)`` of a step that runs."""
    elapsed = max(0.0, time.time() - _started(engine, step))
    epoch, times = epochs_of(engine.log(step))
    total = step.cost.epochs if step.cost else None
    if epoch is not None:
        left = (total - epoch) * statistics.median(times) if times and total else None
        return _epoch_in_words(step, epoch), costs.in_words(elapsed), costs.in_words(left) if left else ""
    expected = costs.estimate(step.cost, known)
    if expected is None or expected.high < elapsed:
        return "", costs.in_words(elapsed), ""
    rest = costs.Range(max(0.0, expected.low - elapsed), expected.high - elapsed, expected.measured)
    return "", costs.in_words(elapsed), str(rest)


def _started(engine: Engine, step: Step) -> float:
    try:
        return (engine.job_folder(step) / runner.STARTED).stat().st_mtime
    except OSError:
        return time.time()


def epochs_of(log: Path) -> tuple:
    """``(epoch that runs, seconds of the last ones)`` from the output of a training; ``(None, [])`` before the first."""
    try:
        with open(log, "rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - _TAIL_BYTES))
            text = handle.read().decode(errors="replace")
    except OSError:
        return None, []
    text = re.split(r"(?m)^(?=\$ )", text)[-1]  # of its last run
    epochs = _EPOCH.findall(text)
    times = [float(i) for i in _EPOCH_TIME.findall(text)]
    return (int(epochs[-1]) if epochs else None), times[-_LAST_EPOCHS:]


def table(rows: Sequence[Sequence[str]]) -> list:
    """Lines of columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
