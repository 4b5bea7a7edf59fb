"""Commands that are killed at random moments or run out of disk, and what they leave.

A kill comes just before one of the command's own operations on files (open, move, make, remove), drawn at random from all of
them: so the moments between two moves are met however short they are and however busy the machine is. A full disk is a
small tmpfs where the test may mount one, else a limit on the size of files.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).parent / "faulty_command.py"
VOLATILE = {"created", "written", "mtime_ns", "changed", "seconds", "ended"}  # keys of JSON files that tell when, not what
TEMPORARY = re.compile(r"(^|/)\.(tmp|merging|converting|replaced|making)-")
LEVELS = (0.05, 0.35, 0.65, 0.9)  # of what the command writes
KILLS = 10
INPUTS_WRITTEN = 1_700_000_000


@dataclass
class Command:
    """A command and the one folder ``root`` that it works in.

    ``prepare(root)`` fills it with what the command reads, always the same. ``argv`` of ``nnunet_partial``, or ``code`` to
    run instead. ``is_result(name)``: which of the files below root count, all that are not temporary by default.
    """

    start: Callable
    root: Path
    prepare: Callable[[Path], None]
    argv: list = field(default_factory=list)
    code: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.root.with_name(f"{self.root.name}.log")

    def run(self, kill_at: int = 0, limit: int = 0) -> int:
        """The exit code; -9 when it was killed before its ``kill_at``-th operation. ``limit``: bytes of a file."""
        self.log.unlink(missing_ok=True)
        given = {i: str(self.root / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        process = self.start(
            SCRIPT,
            argv=["nnunet_partial", *map(str, self.argv)],
            code=self.code,
            log=str(self.log),
            environment={**os.environ, **given, **self.environment},
            root=str(self.root),
            kill_at=kill_at,
            limit=limit,
        )
        process.join(300)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def begin(self) -> None:
        """Its folder with nothing but what it reads."""
        self.root.mkdir(exist_ok=True)
        for old in self.root.iterdir():
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        self.prepare(self.root)
        for file in self.everything().values():  # a command may note when its inputs were written
            os.utime(file, (INPUTS_WRITTEN,) * 2)

    def output(self) -> str:
        return self.log.read_text()

    def operations(self) -> int:
        return int(re.search(r"^operations: (\d+)$", self.output(), re.M)[1])

    def files(self) -> dict:
        """name -> hash of every file below the root that has its final name, without times; raises if one is temporary."""
        return {k: _hash(v) for k, v in self.everything().items() if not TEMPORARY.search(k)}

    def leftovers(self) -> list:
        return [i for i in self.everything() if TEMPORARY.search(i)]

    def everything(self) -> dict:
        names = sorted(i for i in self.root.rglob("*") if i.is_file() and not i.is_symlink())
        return {i.relative_to(self.root).as_posix(): i for i in names if i.suffix != ".lock" and i.name != ".lock"}


def _hash(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    if file.suffix in (".html", ".md"):
        content = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", content)
    return hashlib.sha256(content).hexdigest()


def _lasting(content):
    if isinstance(content, dict):
        return {k: _lasting(v) for k, v in content.items() if k not in VOLATILE}
    return [_lasting(i) for i in content] if isinstance(content, list) else content


def undisturbed(command: Command) -> dict:
    """What the command leaves when nothing happens to it, each file by its hash."""
    command.begin()
    before = command.files()
    assert command.run() == 0, command.output()
    made = command.files()
    assert made != before and not command.leftovers()
    return made


def check_kills(command: Command, seed: int = 0, kills: int = KILLS, after_kill: Callable[[], None] = lambda: None) -> None:
    """Killed ``kills`` times at random moments, each time started again, it ends where it would have."""
    expected, order = undisturbed(command), random.Random(seed)
    operations, killed = command.operations(), 0
    command.begin()
    while killed < kills:
        code = command.run(kill_at=order.randint(1, operations))
        if code == 0:  # less was left to do than that; the next kills meet a new run
            assert command.files() == expected and not command.leftovers()
            command.begin()
            continue
        assert code == -9, command.output()
        killed += 1
        after_kill()
        final = command.files()
        assert {k: v for k, v in final.items() if k in expected and v != expected[k]} == {}, "half-written under a final name"
    assert command.run() == 0, command.output()
    assert command.files() == expected
    assert command.leftovers() == []


def check_changed_input(command: Command, change: Callable[[Path], None]) -> None:
    """After ``change(root)`` of one thing that it read it makes what it would have made of that, and of the rest nothing anew."""
    first = undisturbed(command)
    prepare = command.prepare
    command.prepare = lambda root: (prepare(root), change(root))
    expected = undisturbed(command)
    command.prepare = prepare
    command.begin()
    given = set(command.everything())
    assert command.run() == 0, command.output()
    times = {name: file.stat().st_mtime_ns for name, file in command.everything().items()}
    change(command.root)
    assert command.run() == 0, command.output()
    found = command.files()
    made = {i for i in expected if i not in given and not i.endswith(".json")}  # journals know when the input was written
    assert set(found) == set(expected) and {i for i in made if found[i] != expected[i]} == set()
    changed = {i for i in made if expected[i] != first[i]}
    assert changed and changed != made, "the change must be one that shows in some of what is made"
    again = {i for i in made if command.everything()[i].stat().st_mtime_ns != times[i]}
    assert changed <= again and again != made


def check_full_disk(command: Command, seed: int = 0) -> None:
    """On disks that hold only part of what it writes: exit code 2, one line, nothing cut off under a final name; and the
    whole once there is room."""
    expected = undisturbed(command)
    command.begin()
    inputs = command.everything()
    read = sum(_kib(i) for i in inputs.values())
    assert command.run() == 0
    written = sum(_kib(i) for i in command.everything().values()) - read
    largest = max(i.stat().st_size for name, i in command.everything().items() if name not in inputs)
    for level in LEVELS:
        with _Disk(command) as disk:
            command.begin()
            disk.leave(max(4, int(written * level / 4) * 4), max(2000, int(largest * level)))
            code = command.run(limit=disk.limit)
            lines = [i for i in command.output().splitlines() if i.startswith("nnunet_partial: error:")]
            assert code == 2 and len(lines) == 1 and "Traceback" not in command.output(), (level, code, command.output())
            final = command.files()
            assert {k: v for k, v in final.items() if k not in expected or v != expected[k]} == {}, level
            disk.make_room()
            assert command.run() == 0, command.output()
            assert command.files() == expected and command.leftovers() == []


def _kib(file: Path) -> int:
    return -(-file.stat().st_size // 4096) * 4


class _Disk:
    """The folder of a command as a small disk of its own, or a limit on the size of files where none can be mounted."""

    def __init__(self, command: Command):
        self.root, self.limit, self.mounted = command.root, 0, False

    def __enter__(self) -> "_Disk":
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.root)]
        can = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None
        self.mounted = can and subprocess.run(mount, capture_output=True).returncode == 0
        return self

    def leave(self, kib: int, file_bytes: int) -> None:
        if self.mounted:
            disk = shutil.disk_usage(self.root)
            self._resize(disk.used // 1024 + kib)
        else:
            self.limit = max(1, file_bytes)

    def make_room(self) -> None:
        self.limit = 0
        if self.mounted:
            self._resize(64 * 1024)

    def _resize(self, kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(self.root)], check=True, capture_output=True)

    def __exit__(self, *error) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.root)], check=True)
