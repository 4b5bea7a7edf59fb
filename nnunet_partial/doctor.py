"""What nnU-Net finds of this package on this machine, and how to mend what it does not find.

The search for trainers is nnU-Net's own, run in a process of its own: a broken import then shows up as a finding
instead of ending the doctor, and what is seen is what ``nnUNetv2_train`` in the same shell would see.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_partial import __version__, _moved
from nnunet_partial.data.parallel import default_processes

TRAINER_FOLDER = Path(__file__).parent / "_ext"
AUTOLOAD_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
SEARCH_PATH = "nnUNet_extTrainer"
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TIMEOUT_S = 300
_MARK = "nnunet_partial-doctor:"

# Run with the current folder taken off the search path, as console scripts have it; prints one line of JSON at its end.
_PROBE = (
    """
import sys
sys.path[:] = [i for i in sys.path if i]
import contextlib, io, json, os

result = {"trainers": {}}
import torch
result["torch"] = torch.__version__
result["search_path"] = os.environ.get("nnUNet_extTrainer")
result["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
try:
    import nnunet_partial.trainers as trainers
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    for name in trainers.__all__:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = recursive_find_trainer_class_by_name(name)
            same = found is getattr(trainers, name)
            result["trainers"][name] = "" if same else f"another class, of {found.__module__}"
        except BaseException as error:
            result["trainers"][name] = f"{type(error).__name__}: {error}"
except BaseException as error:
    result["error"] = f"{type(error).__name__}: {error}"
print("""
    + repr(_MARK)
    + """ + json.dumps(result))
"""
)


@dataclass(frozen=True)
class DoctorFinding:
    """One line of the report. ``remedy`` is None where all is well."""

    name: str
    value: str
    remedy: str | None = None


def examine() -> list:
    """All findings, in the order of the report."""
    probed = probe()
    return [
        *versions(),
        *torch_autoload(os.environ),
        *search_path(probed),
        *trainers(probed),
        *roots(os.environ),
        *hardware(probed),
    ]


def probe() -> dict:
    """What a fresh process of this Python sees: ``torch``, ``search_path``, ``devices``, ``trainers`` (name -> "" or
    what is wrong), ``error`` (this package or nnU-Net cannot be imported), ``crash`` (torch cannot)."""
    try:
        run = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"crash": f"no answer within {TIMEOUT_S} s"}
    answers = [i for i in run.stdout.splitlines() if i.startswith(_MARK)]
    if not answers:
        lines = run.stderr.strip().splitlines()
        return {"crash": lines[-1] if lines else f"exit code {run.returncode}"}
    return json.loads(answers[-1][len(_MARK) :])


def versions() -> list:
    """Versions of Python, of this package and of what it builds on, compared with what its metadata requires."""
    findings = [
        DoctorFinding("python", platform.python_version(), _python_remedy()),
        DoctorFinding("nnunet_partial", f"{__version__} in {Path(__file__).parent}"),
    ]
    for name in ("torch", "nnunetv2"):
        try:
            found = metadata.version(name)
            findings.append(DoctorFinding(name, found, _version_remedy(name, found)))
        except metadata.PackageNotFoundError:
            findings.append(DoctorFinding(name, "not installed", f"pip install {name}"))
    return findings


def _python_remedy() -> str | None:
    from packaging.specifiers import SpecifierSet

    try:
        required = SpecifierSet(metadata.metadata("nnunet_partial")["Requires-Python"] or "")
    except metadata.PackageNotFoundError:  # a checkout that is not installed; the entry point is missing too
        return None
    fits = required.contains(platform.python_version(), prereleases=True)
    return None if fits else f"nnunet_partial needs Python {required}."


def _version_remedy(name: str, found: str) -> str | None:
    required = requirement(name)
    if required is None or required.specifier.contains(found, prereleases=True):
        return None
    return f"pip install '{name}{required.specifier}'"


def requirement(name: str) -> Any:
    """What the metadata of this package requires of another one (a ``packaging`` Requirement), or None."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(i) for i in metadata.requires("nnunet_partial") or ()]
    except metadata.PackageNotFoundError:
        return None
    return next((i for i in required if i.name == name and i.marker is None), None)


def torch_autoload(environment: Mapping[str, str]) -> list:
    """Whether importing torch calls our entry point. Switched off is a choice, not a fault: the search path decides."""
    switch = environment.get(AUTOLOAD_SWITCH)
    state = "on" if switch in (None, "1") else f"off ({AUTOLOAD_SWITCH}={switch})"
    registered = any(i.name == "nnunet_partial" for i in metadata.entry_points(group="torch.backends"))
    return [
        DoctorFinding("torch autoload", state),
        DoctorFinding(
            "entry point",
            "registered" if registered else "not registered",
            None if registered else "install the package again: pip install nnunet_partial, or pip install -e . in its checkout",
        ),
    ]


def search_path(probed: Mapping[str, Any]) -> list:
    """The variable that nnU-Net searches for trainers, once torch is imported."""
    if "crash" in probed:
        return [
            DoctorFinding(
                "import torch",
                probed["crash"],
                f"mend torch first; {AUTOLOAD_SWITCH}=0 python -c 'import "
                f"torch' shows whether an extension of torch is at fault.",
            )
        ]
    value = probed["search_path"]
    folders = [os.path.abspath(i) for i in (value or "").split(os.pathsep) if i.strip()]
    if str(TRAINER_FOLDER) in folders:
        return [DoctorFinding(SEARCH_PATH, value)]
    return [DoctorFinding(SEARCH_PATH, value or "not set", export_line(value))]


def export_line(value: str | None) -> str:
    """The shell command that adds our folder to the search path."""
    return f"export {SEARCH_PATH}={os.pathsep.join([*([value] if value else []), str(TRAINER_FOLDER)])}"


def trainers(probed: Mapping[str, Any]) -> list:
    """Which trainers nnU-Net finds; the failures one by one."""
    if "crash" in probed:
        return []
    if "error" in probed:
        return [
            DoctorFinding(
                "trainers",
                probed["error"],
                "install the package and its requirements again: pip install "
                "--force-reinstall --no-deps nnunet_partial && pip check",
            )
        ]
    failures: dict = {}
    for name, reason in probed["trainers"].items():
        failures.setdefault(_first_sentence(reason, name), []).append(name)
    found = failures.pop("", [])
    in_path = search_path(probed)[0].remedy is None
    remedy = (
        f"a module in {SEARCH_PATH} cannot be imported or hides ours: mend it, or take its folder out."
        if in_path
        else export_line(probed["search_path"])
    )
    findings = [DoctorFinding("trainers found", ", ".join(found))] if found else []
    return [
        *findings,
        *(DoctorFinding("trainers not found", f"{', '.join(names)}: {reason}", remedy) for reason, names in failures.items()),
    ]


def _first_sentence(reason: str, trainer: str) -> str:
    """nnU-Net's message about a trainer that is not found goes on with advice and paths; its name stands before."""
    return reason.split("\n")[0].split(". If the trainer")[0].replace(f" {trainer} ", " ").strip()


def roots(environment: Mapping[str, str]) -> list:
    """nnU-Net's three folders."""
    findings = []
    for name in ROOTS:
        value = environment.get(name)
        remedy = None
        if not value:
            remedy = f"export {name}=/path/to/{name}"
        elif not os.path.isdir(value):
            remedy = f"mkdir -p {value}"
        findings.append(DoctorFinding(name, value or "not set", remedy))
    return findings


def hardware(probed: Mapping[str, Any]) -> list:
    """GPUs and cores; neither is ever a fault."""
    devices = probed.get("devices") or ["none: add -device cpu to nnU-Net's commands"]
    return [DoctorFinding("CUDA devices", ", ".join(devices)), DoctorFinding("CPU cores", str(default_processes()))]


def as_text(findings: Sequence[DoctorFinding]) -> str:
    """One line a finding, and one below it that mends it."""
    width = max(len(i.name) for i in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok ' if finding.remedy is None else 'BAD'} {finding.name.ljust(width)}  {finding.value}")
        if finding.remedy is not None:
            lines.append(f"    {' ' * width}  mend: {finding.remedy}")
    problems = sum(i.remedy is not None for i in findings)
    return "\n".join([*lines, f"{problems} problem{'s' * (problems != 1)} found" if problems else "all is well"])


def as_json(findings: Sequence[DoctorFinding]) -> dict:
    """The findings as plain values; ``ok`` says whether all is well."""
    return {"ok": all(i.remedy is None for i in findings), "findings": [asdict(i) for i in findings]}


__getattr__ = _moved.renamed(__name__, {"Finding": "DoctorFinding"})
