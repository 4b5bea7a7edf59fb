"""How long steps take on this machine: measured by those that have ended, told as a range."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.orchestration.engine import Cost

FILE = "nnunet_partial_step_times.jsonl"  # in nnUNet_results: it is of a machine and outlives every plan
# how far the next of a kind may be from those that were measured: other work on the machine, other cases
_MARGIN_OF_FEW, _MARGIN_OF_MANY, _MANY = 2.0, 1.3, 3
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Range:
    """Seconds, from what is likely the least to what is likely the most; ``measured``: steps that it rests on."""

    low: float
    high: float
    measured: int

    def __str__(self) -> str:
        low, high = in_words(self.low), in_words(self.high)
        return low if low == high else f"{low} to {high}"


def file() -> Path:
    """Where measured times are kept, a line each."""
    return paths.root("nnUNet_results") / FILE


def note(cost: Cost, seconds: float) -> None:
    """Keep the time of a step. One short line is appended in one write, so that several writers do no harm."""
    line = {"kind": cost.kind, "units": cost.units, "seconds": round(seconds, 2), "host": platform.node()}
    file().parent.mkdir(parents=True, exist_ok=True)
    with open(file(), "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def measured() -> dict:
    """kind -> seconds per unit of each step that this machine has done."""
    found: dict = {}
    try:
        lines = file().read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            if entry["host"] == platform.node():
                found.setdefault(entry["kind"], []).append(float(entry["seconds"]) / float(entry["units"]))
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            continue  # a line that a full disk cut off
    return found


def estimate(cost: Cost | None, known: Mapping[str, list]) -> Range | None:
    """What a step will take, from ``known`` (see :func:`measured`); None where nothing of its kind was measured."""
    rates = known.get(cost.kind, []) if cost else []
    if cost is None or not rates:
        return None
    margin = _MARGIN_OF_MANY if len(rates) >= _MANY else _MARGIN_OF_FEW
    return Range(min(rates) * cost.units / margin, max(rates) * cost.units * margin, len(rates))


def total(ranges: Iterable[Range | None]) -> Range | None:
    """Of steps one after the other; None if one of them is not known."""
    ranges = list(ranges)
    known = [i for i in ranges if i is not None]
    if len(known) < len(ranges) or not known:
        return None
    return Range(sum(i.low for i in known), sum(i.high for i in known), min(i.measured for i in known))


def in_words(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    if seconds < _MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.1f} d"
