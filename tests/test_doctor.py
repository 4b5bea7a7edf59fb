"""The doctor: real runs in healthy and in broken environments, and the line that mends each problem."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_partial import cli, doctor
from nnunet_partial.doctor import TRAINER_FOLDER, DoctorFinding

HEALTHY = {"torch": "2.9", "search_path": str(TRAINER_FOLDER), "devices": [], "trainers": {"nnUNetTrainerPartial": ""}}


def run_doctor(tmp_path, **environment):
    """Exit code and findings by name, as a user in a shell with these variables gets them (None: not set)."""
    roots = {name: str(tmp_path) for name in doctor.ROOTS}
    merged = {**os.environ, **roots, "nnUNet_extTrainer": None, "TORCH_DEVICE_BACKEND_AUTOLOAD": None, **environment}
    result = subprocess.run(
        [sys.executable, "-m", "nnunet_partial.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={k: v for k, v in merged.items() if v is not None},
    )
    content = json.loads(result.stdout)
    assert content["ok"] == (result.returncode == 0), result.stdout
    return result.returncode, {i["name"]: i for i in content["findings"]}


def test_without_autoload_the_remedy_makes_a_healthy_environment(tmp_path):
    code, findings = run_doctor(tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0", nnUNet_raw=None)
    assert code == 1
    assert findings["nnUNet_raw"]["remedy"].startswith("export nnUNet_raw=")
    assert findings["nnUNet_extTrainer"]["value"] == "not set" and "nnUNetTrainerMSKD" in findings["trainers not found"]["value"]
    export, assignment = shlex.split(findings["nnUNet_extTrainer"]["remedy"])
    name, _, value = assignment.partition("=")
    assert export == "export"
    code, findings = run_doctor(tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0", **{name: value})
    assert code == 0 and findings["torch autoload"]["value"] == "off (TORCH_DEVICE_BACKEND_AUTOLOAD=0)", findings
    assert "nnUNetTrainerMSKD" in findings["trainers found"]["value"].split(", ")


def test_a_broken_module_of_the_user(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken.py").write_text("import no_such_module_anywhere\n")
    code, findings = run_doctor(tmp_path, nnUNet_extTrainer=str(tmp_path / "mine"))
    assert code == 1 and findings["torch autoload"]["value"] == "on"
    assert findings["nnUNet_extTrainer"]["value"] == os.pathsep.join([str(tmp_path / "mine"), str(TRAINER_FOLDER)])
    assert "No module named 'no_such_module_anywhere'" in findings["trainers not found"]["value"]
    assert "take its folder out" in findings["trainers not found"]["remedy"]


@pytest.fixture
def examined(monkeypatch, tmp_path):
    """Findings for a given answer of the probe, everything else being healthy."""
    for name in doctor.ROOTS:
        monkeypatch.setenv(name, str(tmp_path))

    def examine(**probed):
        monkeypatch.setattr(doctor, "probe", lambda: {k: v for k, v in {**HEALTHY, **probed}.items() if v != "absent"})
        return doctor.examine()

    return examine


def problems(findings):
    return {i.name: i for i in findings if i.remedy is not None}


def test_healthy_findings_have_no_remedy(examined):
    assert problems(examined()) == {}


def test_torch_cannot_be_imported(examined):
    found = problems(examined(crash="ImportError: libcudart.so.12"))
    assert list(found) == ["import torch"] and "libcudart" in found["import torch"].value


def test_this_package_cannot_be_imported(examined):
    found = problems(examined(error="ImportError: broken", trainers={}))
    assert list(found) == ["trainers"] and "pip install" in found["trainers"].remedy


def test_one_trainer_is_hidden_by_another(examined):
    found = problems(examined(trainers={"nnUNetTrainerPartial": "", "nnUNetTrainerMSKD": "another class, of mine"}))
    assert found["trainers not found"].value == "nnUNetTrainerMSKD: another class, of mine"


def test_the_remedy_keeps_the_users_folders():
    line = doctor.export_line("/home/me/trainers")
    assert line == f"export nnUNet_extTrainer=/home/me/trainers{os.pathsep}{TRAINER_FOLDER}"


def test_entry_point_that_is_not_registered(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "entry_points", lambda group: [])
    assert "pip install" in problems(doctor.torch_autoload({}))["entry point"].remedy


@pytest.mark.parametrize(
    "name,version,fine",
    [
        ("torch", "2.5.1+cu121", True),
        ("torch", "2.4.1", False),
        ("torch", "2.9.0", False),
        ("torch", "2.10.0", True),
        ("nnunetv2", "2.8.1", True),
        ("nnunetv2", "2.7.0", False),
        ("nnunetv2", "3.0", False),
    ],
)
def test_versions(monkeypatch, name, version, fine):
    monkeypatch.setattr(doctor.metadata, "version", lambda asked: version if asked == name else "2.8.0")
    assert (name in problems(doctor.versions())) == (not fine)


def test_bounds_are_those_of_the_metadata():
    assert doctor.requirement("torch").specifier == "!=2.9.*,>=2.5" and doctor.requirement("pytest") is None
    remedy = doctor._version_remedy("nnunetv2", "2.7.0")
    assert remedy in ("pip install 'nnunetv2>=2.8,<3'", "pip install 'nnunetv2<3,>=2.8'")


def test_there_is_one_version():
    import nnunet_partial

    root = Path(nnunet_partial.__file__).parents[1]
    assert re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)[1] == nnunet_partial.__version__
    assert re.findall(r"^version\s*=\s*[\"'\d].*", (root / "pyproject.toml").read_text(), re.MULTILINE) == []


def test_a_package_that_is_missing(monkeypatch):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    assert problems(doctor.versions())["nnunetv2"].remedy == "pip install nnunetv2"


def test_a_folder_that_does_not_exist(tmp_path):
    found = problems(doctor.roots({"nnUNet_raw": str(tmp_path), "nnUNet_results": str(tmp_path / "new")}))
    assert found["nnUNet_results"].remedy == f"mkdir -p {tmp_path / 'new'}"
    assert set(found) == {"nnUNet_preprocessed", "nnUNet_results"}


def test_a_probe_that_says_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE", "import sys; print('noise'); sys.exit('torch is broken')")
    assert doctor.probe() == {"crash": "torch is broken"}
    monkeypatch.setattr(doctor, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "TIMEOUT_S", 0.2)
    assert doctor.probe() == {"crash": "no answer within 0.2 s"}


def test_text_and_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda: [DoctorFinding("python", "3.11"), DoctorFinding("nnUNet_raw", "not set", "export it")]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "mend: export it" in printed and printed.endswith("1 problem found\n")
    monkeypatch.setattr(doctor, "examine", lambda: [DoctorFinding("python", "3.11")])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")


def test_the_folder_of_trainers_exists():
    assert [i.name for i in Path(TRAINER_FOLDER).glob("*.py")] == ["nnunet_partial_trainers.py"]
