"""One command that a person waits for: printed as it starts, its last step shown while it works, its output in a log file."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_partial.errors import UserError
from nnunet_partial.orchestration.executors import last_lines
from nnunet_partial.orchestration.job import COMMAND_ENVIRONMENT, find_program


def run(command: Sequence, log: Path, environment: Mapping[str, str] | None = None) -> float:
    """Run a command with its output in ``log``; returns seconds. ``environment`` is added to this process's.

    Raises :class:`UserError` with the log's last lines when it fails.
    """
    argv = [str(i) for i in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {shlex.join(argv)}", flush=True)
    own = {**COMMAND_ENVIRONMENT, **os.environ, **(environment or {})}
    program = find_program(argv[0], own.get("PATH", ""))
    if program is None:
        raise UserError(f"the command {argv[0]} is not installed in this environment. Install nnU-Net: pip install nnunetv2")
    started = time.monotonic()
    code = _follow([program, *argv[1:]], log, own, started)
    _clear()
    if code != 0:
        raise UserError(f"{shlex.join(argv)} ended with exit code {code}; its output is in {log}. Last lines: {last_lines(log)}")
    seconds = time.monotonic() - started
    print(f"  {seconds:.0f} s", flush=True)
    return seconds


def _follow(argv: Sequence[str], log: Path, environment: Mapping[str, str], started: float) -> int:
    """Copy what the command says into ``log``, line by line; its exit code."""
    with (
        open(log, "w", encoding="utf-8") as handle,
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        for line in process.stdout or ():
            handle.write(line)
            _show(line, started)
    return process.returncode


def _show(line: str, started: float) -> None:
    """One line that is overwritten: the epoch or case that is being worked on. On a terminal only."""
    found = re.search(r"(Epoch \d+|[Pp]redicting \S+)", line)
    if found and sys.stdout.isatty():
        print(f"\r\033[K  {found.group(1)}  ({time.monotonic() - started:.0f} s)", end="", flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")
