"""Projects over stub commands: downloads whose files are empty, and a project file."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from nnunet_partial import cli
from nnunet_partial.orchestration import costs, stamped

STUB = Path(__file__).parent.parent / "compare" / "comparison_stub.py"
COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnUNetv2_plan_and_preprocess", "nnunet_partial")
PROJECT = """
[project]
name = "Joint"
dataset = 501
out = "out"

[[source]]
name = "lits"
converter = "lits"
path = "downloads/lits"
dataset = 101
organs = ["liver"]

[[source]]
name = "kits"
converter = "btcv"
path = "downloads/btcv"
dataset = 102
organs = ["kidney"]

[plan]
configurations = ["2d"]

[training.settings]
num_epochs = 3

[[method]]
name = "partial"

[[method]]
name = "selftraining"

[test]
images = "test/imagesTs"
labels = "test/labelsTs"
"""
NOT_RESULTS = {"jobs", "logs", "submitit", "commands.json", "run.json", "run.lock", "stub.log", costs.FILE, "run.log"}


class Place:
    """A folder with downloads, nnU-Net's folders and ``project.toml``."""

    def __init__(self, folder, programs):
        self.folder, self.file, self.out, self.log = folder, folder / "project.toml", folder / "out", folder / "stub.log"
        for number in range(1, 6):
            self.touch(f"downloads/lits/volume-{number}.nii", f"downloads/lits/segmentation-{number}.nii")
            self.touch(f"downloads/btcv/img/img000{number}.nii.gz", f"downloads/btcv/label/label000{number}.nii.gz")
        for number in range(2):
            self.touch(f"test/imagesTs/t{number}_0000.nii.gz", f"test/labelsTs/t{number}.nii.gz")
        for root in ("raw", "preprocessed", "results"):
            (folder / f"nnUNet_{root}").mkdir()
        self.write(PROJECT)
        self.environment = {
            **{f"nnUNet_{i}": str(folder / f"nnUNet_{i}") for i in ("raw", "preprocessed", "results")},
            "NNUNET_PARTIAL_PROGRAMS": str(programs),
            "STUB_LOG": str(self.log),
            "OMP_NUM_THREADS": "1",
        }

    def touch(self, *names):
        for name in names:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(name)

    def write(self, text):
        self.file.write_text(text)

    def change(self, old, new):
        text = self.file.read_text()
        assert old in text
        self.write(text.replace(old, new, 1))

    def run(self, *more, check=True, verb="run", environment=()):
        """In this process; its commands are processes of their own. The stub's checkpoints are text, which no check would pass."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        argv = [verb, *([str(self.file), "--executor", "debug", "--device", "cpu"] if verb == "run" else []), *map(str, more)]
        with (
            mock.patch.dict(os.environ, {**self.environment, **dict(environment)}),
            mock.patch.object(stamped, "check_model"),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                cli.main(argv)
            except SystemExit as end:
                code = end.code
        assert not check or code == 0, f"{out.getvalue()[-2000:]}\n{err.getvalue()[-3000:]}"
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    def start(self, *more):
        """In a process of its own, which can be killed, at the head of its group."""
        with open(self.folder / "run.log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "nnunet_partial.cli", "run", str(self.file), "--device", "cpu", *more],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self.environment},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def started(self):
        """Every command that was started so far."""
        return self.log.read_text().splitlines() if self.log.is_file() else []

    def files(self):
        """Everything in the folder: name -> content."""
        return {str(i.relative_to(self.folder)): i.read_bytes() for i in sorted(self.folder.rglob("*")) if i.is_file()}

    def results(self):
        """Everything that a run leaves, without times, logs and where it lies."""
        return {
            name: content.decode("latin-1").replace(str(self.folder), "PLACE")
            for name, content in self.files().items()
            if not NOT_RESULTS & set(Path(name).parts) and not Path(name).name.startswith(".tmp-")
        }


@pytest.fixture(scope="session")
def project_programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project_programs")
    for name in COMMANDS:
        (folder / name).write_text(f"#!{sys.executable} -SE\n{STUB.read_text()}")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def new_place(tmp_path_factory, project_programs):
    return lambda: Place(tmp_path_factory.mktemp("project"), project_programs)


@pytest.fixture
def place(new_place):
    return new_place()


@pytest.fixture(scope="session")
def finished(new_place):
    """A run that nothing disturbed; not to be changed."""
    made = new_place()
    made.run()
    return made
