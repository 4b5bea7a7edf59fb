"""What a plan of work was asked for and how far it is: one file, readable, replaced as a whole. ATSO's ``journal.json`` and
the ``compare.json`` of a comparison are both this."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json

VERSION = 1
WAITING, RUNNING, DONE, FAILED, DISCARDED = "waiting", "running", "done", "failed", "discarded"


class Journal:
    """The state file of a plan of work. Every change is on disk before the call returns."""

    def __init__(self, file: Path, content: Mapping[str, Any]):
        # that of a comparison held nothing but its arguments in version 0.1
        empty = {"version": VERSION, "created": None, "arguments": {}, "inputs": {}, "stages": {}, "loops": []}
        self.file, self.content = file, {**empty, **content}

    @classmethod
    def open(
        cls,
        file: Path,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        refusal: Callable[[str, str], str],
        may_change: Collection[str] = (),
    ) -> "Journal":
        """The journal ``file``, made if there is none. Raises :class:`UserError` if it is of another run.

        ``refusal(part, differences)`` says so; ``part`` is ``arguments`` or ``inputs``. What ``may_change`` of the arguments
        is replaced.
        """
        if file.is_file():
            journal = cls.read(file)
            journal.require("arguments", arguments, refusal, may_change)
            journal.require("inputs", inputs, refusal)
            journal.content["arguments"] = dict(arguments)
        else:
            journal = cls(file, {"created": now(), "arguments": dict(arguments), "inputs": dict(inputs)})
        journal.write()
        return journal

    @classmethod
    def read(cls, file: Path) -> "Journal":
        """An existing journal."""
        content = read_json(file, "Start it to make it.")
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise UserError(f"{file} is not a journal of version {VERSION}. Choose another folder or --run.")
        return cls(file, content)

    def require(
        self, part: str, given: Mapping[str, Any], refusal: Callable[[str, str], str], may_change: Collection[str] = ()
    ) -> None:
        """Raises :class:`UserError` that names every difference between what was asked for then and now."""
        kept = self.content[part]
        differences = [
            f"{k}: {kept.get(k)!r} then, {given.get(k)!r} now"
            for k in {**kept, **given}
            if k not in may_change and kept.get(k) != given.get(k)
        ]
        if differences:
            raise UserError(refusal(part, "; ".join(differences)))

    def write(self) -> None:
        write_json(self.content, self.file)

    # ---- stages

    def state(self, stage: str) -> str:
        return self.content["stages"].get(stage, {}).get("state", WAITING)

    def mark(self, stage: str, state: str, seconds: float | None = None, **more) -> None:
        """Note the state of a stage; ``seconds`` of a run are added to those of runs before it."""
        entry = self.content["stages"].setdefault(stage, {"seconds": 0.0})
        entry.update(state=state, changed=now(), **more)
        if seconds is not None:
            entry["seconds"] = round(entry["seconds"] + seconds, 2)
        self.write()

    def forget(self, stage: str) -> None:
        self.content["stages"].pop(stage, None)
        self.write()

    def note_loop(self, seconds: float, in_stages: float) -> None:
        """Note how long a loop ran and how much of that it waited for stages."""
        self.content["loops"].append({"ended": now(), "seconds": round(seconds, 2), "in_stages": round(in_stages, 2)})
        self.write()


def now() -> str:
    """The time, in words."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
