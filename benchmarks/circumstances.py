"""What every result says of how it came about: command, machine, versions, commit."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "nnunetv2", "nnunet_partial", "numpy", "SimpleITK", "surface-distance")
_FOLDERS = ("--work", "--out", "--folder", "--results")  # where this machine keeps things is nobody's business


def circumstances() -> dict:
    """``command``, ``machine``, ``versions`` and ``commit`` of this process, ready for JSON."""
    return {"command": command(), "machine": machine(), "versions": versions(), "commit": commit()}


def command() -> str:
    """The command as it was given, but for the names of folders."""
    given = list(sys.argv[1:])
    for i, name in enumerate(given[:-1]):
        if name in _FOLDERS:
            given[i + 1] = name.strip("-").upper()
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])


def machine() -> str:
    """Processor, the cores that may be used, and the GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {_processor()}, {len(os.sched_getaffinity(0))} cores, {gpu}"


def versions() -> dict:
    """Python's and those of the packages that are there."""
    import nnunet_partial

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    # of the code that runs: another commit's may stand first on PYTHONPATH, beside the one that is installed
    return {**found, "nnunet_partial": nnunet_partial.__version__}


def commit() -> str:
    """The commit of the package that is imported, with ``+changes`` if its files differ; "" outside a repository."""
    import nnunet_partial

    folder = Path(nnunet_partial.__file__).parent
    found = _git(folder, "rev-parse", "--short=12", "HEAD")
    return f"{found}+changes" if found and _git(folder, "status", "--porcelain", "--", ".") else found


def _git(folder: Path, *argv: str) -> str:
    try:
        result = subprocess.run(["git", "-C", str(folder), *argv], capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
