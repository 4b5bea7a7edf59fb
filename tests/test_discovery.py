"""Stock nnU-Net finds the trainers after ``import torch``, from a wheel and from an editable install, and a broken
install never breaks ``import torch``."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import nnunet_partial_autoload as autoload

ROOT = Path(__file__).parent.parent
PARTS = (
    "pyproject.toml",
    "setup.py",
    "LICENSE",
    "README.md",
    "nnunet_partial_autoload.py",
    "nnunet_partial",
    "dataset_conversion",
)
TRAINER = "nnUNetTrainerMSKD"

LOOK = f"""
import json, os, sys
sys.path[:] = [i for i in sys.path if i]
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
first = find({TRAINER!r})
import nnunet_partial, nnunet_partial.trainers
second = find({TRAINER!r})
print(json.dumps(dict(
    same=first is second is nnunet_partial.trainers.{TRAINER}, search_path=os.environ["nnUNet_extTrainer"].split(os.pathsep),
    package=os.path.dirname(nnunet_partial.__file__))))
"""


def run_python(code, python=sys.executable, **environment):
    merged = {**os.environ, "nnUNet_extTrainer": None, "TORCH_DEVICE_BACKEND_AUTOLOAD": None, "PYTHONPATH": None, **environment}
    result = subprocess.run(
        [str(python), "-c", code],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(sys.executable),
        env={k: v for k, v in merged.items() if v is not None},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()[-1]


# ------------------------------------------------------------------------------ the entry point by itself


@pytest.fixture
def search_path(monkeypatch):
    """Set the variable, register, return the folders in it."""

    def register(value=None, times=1):
        monkeypatch.delenv("nnUNet_extTrainer", raising=False)
        if value is not None:
            monkeypatch.setenv("nnUNet_extTrainer", value)
        for _ in range(times):
            autoload.register()
        return os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)

    monkeypatch.setenv("nnUNet_extTrainer", "restored afterwards")
    return register


def test_register_appends_our_folder_once(search_path):
    ours = autoload.trainer_folder()
    assert os.listdir(ours) and search_path() == search_path("") == [ours]
    assert search_path(times=3) == [ours]


def test_register_keeps_the_users_folders_first(search_path):
    ours = autoload.trainer_folder()
    assert search_path(os.pathsep.join(["/home/me/a", "/home/me/b"]), times=2) == ["/home/me/a", "/home/me/b", ours]
    assert search_path(os.pathsep.join([ours, "/home/me/a"])) == [ours, "/home/me/a"]


@pytest.mark.parametrize("error", [ImportError("broken"), ValueError("nnunet_partial.__spec__ is None"), KeyboardInterrupt()])
def test_register_never_raises(search_path, monkeypatch, error):
    def raising():
        raise error

    monkeypatch.setattr(autoload, "trainer_folder", raising)
    assert search_path("/home/me/a") == ["/home/me/a"]


def test_register_without_the_package(search_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert search_path("/home/me/a") == ["/home/me/a"]


# ------------------------------------------------------------------------------ this environment


def test_every_public_trainer_can_be_asked_for_by_name():
    from nnunet_partial import trainers

    assert trainers.__all__ and all(i.startswith("nnUNetTrainer") and hasattr(trainers, i) for i in trainers.__all__)


def test_stock_nnunet_finds_the_trainer_next_to_the_users_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer):\n    pass\n"
    )
    find_mine = "\nassert find('nnUNetTrainerMine').__name__ == 'nnUNetTrainerMine'"
    found = json.loads(run_python(LOOK.replace("\nprint", find_mine + "\nprint"), nnUNet_extTrainer=str(tmp_path)))
    assert found["same"]
    assert found["search_path"] == [str(tmp_path), os.path.join(found["package"], "_ext")]


# ------------------------------------------------------------------------------ a wheel and an editable install


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).is_dir():  # byte code may come and go meanwhile
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def fresh(tmp_path):
    """A virtual environment with everything that this one has, except this package. Returns (python, pip install)."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    everything = tmp_path / "everything"
    everything.mkdir()
    here = Path(sysconfig.get_paths()["purelib"])
    for entry in here.iterdir():
        ours = "nnunet_partial" in entry.name or entry.name.startswith("dataset_conversion")
        if not ours and entry.suffix != ".pth":
            (everything / entry.name).symlink_to(entry)
    python = tmp_path / "venv" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (Path(site) / "everything.pth").write_text(f"{everything}\n")

    def install(*arguments):
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--no-build-isolation",
                "--no-index",
                "--disable-pip-version-check",
                *map(str, arguments),
            ],
            check=True,
            capture_output=True,
            text=True,
        )

    return python, install, Path(site)


needs_setuptools = pytest.mark.skipif(
    not any(i.metadata["Name"] == "setuptools" for i in importlib.metadata.distributions()),
    reason="building needs setuptools in this environment",
)


@needs_setuptools
def test_wheel(source, fresh):
    python, install, site = fresh
    install(source)
    found = json.loads(run_python(LOOK, python))
    assert found == {
        "same": True,
        "search_path": [str(site / "nnunet_partial" / "_ext")],
        "package": str(site / "nnunet_partial"),
    }
    assert (python.parent / "nnunet_partial").is_file()  # the command
    report = ("nnunet_partial/evaluation/report/report.html.j2", "nnunet_partial/evaluation/report/viewer.js")
    for file in (*report, "nnunet_partial/py.typed", "dataset_conversion/py.typed"):
        assert (site / file).is_file()
    # a package that cannot be imported does not keep anybody from importing torch
    (site / "nnunet_partial" / "__init__.py").write_text("raise ImportError('damaged')\n")
    assert run_python("import torch; print('alive')", python) == "alive"
    # neither does one that is gone while its metadata and entry point stay
    shutil.rmtree(site / "nnunet_partial")
    assert list(site.glob("nnunet_partial-*.dist-info/entry_points.txt"))
    assert run_python("import os, torch; print(os.environ.get('nnUNet_extTrainer'))", python) == "None"


@needs_setuptools
def test_editable_install(source, fresh, tmp_path):
    python, install, site = fresh
    checkout = tmp_path / "checkout"
    shutil.copytree(source, checkout)
    install("-e", checkout)
    found = json.loads(run_python(LOOK, python))
    assert found["same"] and found["package"] == str(checkout / "nnunet_partial")
    assert found["search_path"] == [str(checkout / "nnunet_partial" / "_ext")]
    # the checkout is deleted or moved
    shutil.rmtree(checkout)
    assert run_python("import os, torch; print(os.environ.get('nnUNet_extTrainer'))", python) == "None"
