"""Runs of the real loop, in processes of their own, over the commands of ``stub.py``; projects over ``compare/comparison_stub.py``."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from nnunet_partial import cli
from nnunet_partial.orchestration import costs, stamped

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnunet_partial")
DATASET = "Dataset777_Stub"
NOT_RESULTS = {"jobs", "logs", "submitit", "journal.json", "loop.json", "loop.log", "loop.lock", costs.FILE}


@pytest.fixture(scope="session")
def stub_programs(tmp_path_factory):
    """``stub_programs(stub, names)``: a new folder with the stub under the name of every command."""

    def write(stub, names):
        folder = tmp_path_factory.mktemp("programs")
        for name in names:
            # -S -E: nothing of site-packages, so that it starts in a few milliseconds
            (folder / name).write_text(f"#!{sys.executable} -SE\n{stub.read_text()}")
            (folder / name).chmod(0o755)
        return folder

    return write


@pytest.fixture(scope="session")
def programs(stub_programs):
    return stub_programs(Path(__file__).with_name("stub.py"), COMMANDS)


@pytest.fixture(scope="session")
def new_place(tmp_path_factory, programs):
    """``new_place()``: a dataset with unlabelled cases in folders of its own."""
    return lambda: Place(tmp_path_factory.mktemp("place"), programs)


@pytest.fixture
def place(new_place):
    """Of the folder's own ``new_place``: a run's, a comparison's, a project's."""
    return new_place()


@pytest.fixture(scope="session")
def uninterrupted(new_place):
    """A run that nothing disturbed; not to be changed."""
    made = new_place()
    made.loop(executor="debug")
    return made


class Place:
    """nnU-Net's folders with one dataset, and the run ``atso`` of 2 generations in them."""

    def __init__(self, folder: Path, programs: Path):
        self.folder, self.images = folder, folder / "images"
        self.preprocessed = folder / "nnUNet_preprocessed" / DATASET
        self.results_folder = folder / "nnUNet_results" / DATASET
        self.run = self.results_folder / "atso" / "atso_2d_fold0"
        for made in (self.preprocessed, self.results_folder, folder / "nnUNet_raw", self.images):
            made.mkdir(parents=True)
        cases = {f"case_{i}": {"source": "b", "annotated": []} for i in range(6)}
        cases["labelled_0"] = {"source": "a", "annotated": ["liver"]}
        self.write_json(
            "dataset.json",
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1},
                "numTraining": 7,
                "file_ending": ".nii.gz",
                "nnunet_partial": {"version": 1, "cases": cases},
            },
        )
        self.write_json("nnUNetPlans.json", {"plans_name": "nnUNetPlans", "configurations": {"2d": {}}})
        self.environment = {
            **os.environ,
            "NNUNET_PARTIAL_PROGRAMS": str(programs),
            "OMP_NUM_THREADS": "1",
            **{i: str(folder / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        }

    def write_json(self, name, content):
        (self.preprocessed / name).write_text(json.dumps(content))

    def argv(self, *more, executor="local", generations=2):
        return [
            sys.executable,
            str(ROOT / "scripts" / "atso_loop.py"),
            "--dataset",
            "777",
            "--configuration",
            "2d",
            "--device",
            "cpu",
            "--validation",
            "none",
            "--generations",
            str(generations),
            "--test-images",
            str(self.images),
            "--executor",
            executor,
            *map(str, more),
        ]

    def loop(self, *more, check=True, environment=None, **kwargs):
        """The whole loop, until it ends."""
        result = subprocess.run(
            self.argv(*more, **kwargs), capture_output=True, text=True, env={**self.environment, **(environment or {})}
        )
        assert not check or result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        return result

    def start(self, *more, **kwargs):
        """The loop in the background, at the head of a process group of its own. An interrupt reaches it even where the
        tests run with interrupts ignored, as behind nohup."""
        with open(self.folder / "loop.log", "a") as log:
            return subprocess.Popen(
                self.argv(*more, **kwargs),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @staticmethod
    def kill(process, whole_tree):
        """SIGKILL to the loop alone, whose stage lives on, or to it and everything that it started."""
        if whole_tree:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()

    def journal(self):
        """The journal's content; while it is being replaced it is the old or the new one."""
        file = self.run / "journal.json"
        return json.loads(file.read_text()) if file.is_file() else {"stages": {}}

    def states(self):
        return {k: v["state"] for k, v in self.journal()["stages"].items()}

    @staticmethod
    def wait_for(condition, seconds=180.0):
        """Until ``condition()`` is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.01)

    def results(self):
        """Everything that a run leaves: file -> content, without logs, times, and where the run lies."""
        files = {i.relative_to(self.folder): i for i in sorted(self.folder.rglob("*")) if i.is_file()}
        return {
            str(name): file.read_text().replace(str(self.folder), "PLACE")
            for name, file in files.items()
            if not NOT_RESULTS & set(name.parts)
        }


# ---- projects

PROJECT_STUB = Path(__file__).parent / "compare" / "comparison_stub.py"
PROJECT_COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnUNetv2_plan_and_preprocess", "nnunet_partial")
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
NOT_PROJECT_RESULTS = {"jobs", "logs", "submitit", "commands.json", "run.json", "run.lock", "stub.log", costs.FILE, "run.log"}


class ProjectPlace:
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
            if not NOT_PROJECT_RESULTS & set(Path(name).parts) and not Path(name).name.startswith(".tmp-")
        }


@pytest.fixture(scope="session")
def project_programs(stub_programs):
    return stub_programs(PROJECT_STUB, PROJECT_COMMANDS)


@pytest.fixture(scope="session")
def new_project_place(tmp_path_factory, project_programs):
    """``new_project_place()``: downloads and a project file in a folder of their own."""
    return lambda: ProjectPlace(tmp_path_factory.mktemp("project"), project_programs)


@pytest.fixture
def kill_three_times():
    """``(place, seed, most, *options)``: starts it and, 1 to ``most`` commands later, kills it alone or with all that it started."""

    def kill(place, seed, most, *options):
        rng = random.Random(seed)
        for _ in range(3):
            process = place.start(*options)
            goal, end = len(place.started()) + rng.randint(1, most), time.monotonic() + 60
            while len(place.started()) < goal and process.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.04))
            if rng.random() < 0.5:
                with suppress(ProcessLookupError):  # it is over: what came of it is seen later
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()

    return kill
