"""Several methods on one dataset, by the stock commands: train, predict, evaluate, one table.

Everything is a command that a person can type; each is printed as it starts and its output is kept in a log file.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.orchestration.compare import methods
from nnunet_partial.orchestration.job import COMMAND_ENVIRONMENT
from nnunet_partial.outputs import Predictions

TEACHER = methods.TEACHER
# row of a table -> name that nnunet_partial compare knows the method by; the rows of co-training are those of its paper
_ROWS = {
    "naive nnU-Net": "naive",
    "Partial": "partial",
    "MSKD": "mskd",
    "MSKDLW": "mskdlw",
    "MSKDPlus": "mskdplus",
    "SelfTraining": "selftraining",
    "CT": "cotraining-ct",
    "WA": "cotraining-wa",
    "CT + WA": "cotraining-ctwa",
    "CT + WA + RM": "cotraining",
    "CT + WA + RM + IBN": "cotraining-ibn",
}
METHODS = {row: methods.METHODS[name] for row, name in _ROWS.items()}


@dataclass
class Study:
    """Where a study trains and what it tests on. ``plans``: a plans variant; those of the teachers are ``plans_SOURCE``."""

    dataset: int
    plans: str
    configuration: str
    test_images: Path
    test_labels: Path
    output: Path
    fold: str = "0"
    device: str = "cpu"
    predict_options: Sequence[str] = ()
    label_options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def train(self, trainer: str, plans: str, dataset: int | None = None) -> None:
        """Train one model unless it is finished; continue it if it was interrupted. With final validation."""
        dataset = dataset or self.dataset
        model = paths.model_folder(dataset, trainer, plans, self.configuration)
        fold = paths.fold_folder(model, self.fold)
        if (fold / "validation" / "summary.json").is_file():
            return
        options = ["--c"] if any(fold.glob("checkpoint_*.pth")) else []
        run(
            [
                "nnUNetv2_train",
                dataset,
                self.configuration,
                self.fold,
                "-tr",
                trainer,
                "-p",
                plans,
                "-device",
                self.device,
                *options,
            ],
            self.output / "logs" / f"train_{dataset}_{trainer}_{plans}.log",
            self.environment,
        )

    def predict(self, trainer: str, plans: str, dataset: int | None = None) -> Path:
        """Predict the test images with stock nnU-Net; returns the folder of the predictions."""
        dataset = dataset or self.dataset
        name = f"{dataset}_{trainer}_{plans}"
        folder = self.output / "predictions" / name
        complete = folder / ".complete"
        left = Predictions(Path(self.test_images), folder, paths.preprocessed_dataset(dataset) / "dataset.json")
        if complete.is_file() and read_json(complete, "Remove it to predict again.") == left.sizes():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        run(
            [
                "nnUNetv2_predict",
                "-i",
                self.test_images,
                "-o",
                folder,
                "-d",
                dataset,
                "-c",
                self.configuration,
                "-f",
                self.fold,
                "-tr",
                trainer,
                "-p",
                plans,
                "-device",
                self.device,
                "-npp",
                1,
                "-nps",
                1,
                *self.predict_options,
            ],
            self.output / "logs" / f"predict_{name}.log",
            self.environment,
        )
        write_json(left.check(), complete)
        return folder

    def evaluate(self, predictions: Path, metrics: Sequence[str] = ("dice",)) -> list:
        """Rows of :func:`~nnunet_partial.evaluation.evaluate.evaluate_folder`; the test set is fully labelled."""
        from nnunet_partial.evaluation.evaluate import evaluate_folder

        return evaluate_folder(predictions, self.test_labels, self.dataset, metrics=metrics, progress=False)

    def run_teachers(self, sources: Mapping[str, Sequence[str]]) -> dict:
        """Train, predict and evaluate the teacher of each source: source -> rows of its own classes."""
        results = {}
        for source, classes in sources.items():
            plans = f"{self.plans}_{source}"
            self.train(TEACHER, plans)
            rows = self.evaluate(self.predict(TEACHER, plans))
            results[source] = [i for i in rows if i["class"] in classes]
        return results

    def pseudo_label(self) -> str:
        """Complete the labels with the teachers, which must be trained; returns the plans variant that uses them."""
        folder = self.output / "pseudo_labels" / f"fold_{self.fold}"
        run(
            [
                "nnunet_partial",
                "pseudo-label",
                self.dataset,
                "--configuration",
                self.configuration,
                "--fold",
                self.fold,
                "--plans",
                self.plans,
                "--from",
                "teachers",
                "--out",
                folder,
                "--device",
                self.device,
                *self.label_options,
            ],
            self.output / "logs" / f"pseudo_label_{self.plans}.log",
            self.environment,
        )
        run(
            [
                "nnunet_partial",
                "variant",
                self.dataset,
                "--base",
                self.plans,
                "--name",
                "labelled",
                "--overwrite",
                "--set",
                f"labels={folder.absolute()}",
            ],
            self.output / "logs" / f"variant_{self.plans}.log",
            self.environment,
        )
        return f"{self.plans}_labelled"

    def run_method(self, trainer: str, dataset: int | None = None, plans: str | None = None) -> list:
        """Train, predict and evaluate one method, with the study's plans or those given."""
        plans = plans or self.plans
        self.train(trainer, plans, dataset)
        return self.evaluate(self.predict(trainer, plans, dataset))


def run(command: Sequence, log: Path, environment: Mapping[str, str] = ()) -> float:
    """Run a command, print it and its last step while it works, keep its output in ``log``; returns seconds.

    Raises :class:`UserError` with the log's last lines when it fails.
    """
    argv = [str(i) for i in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {shlex.join(argv)}", flush=True)
    program = shutil.which(argv[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        raise UserError(f"the command {argv[0]} is not installed in this environment. Install nnU-Net: pip install nnunetv2")
    started, last = time.monotonic(), deque(maxlen=15)
    with (
        open(log, "w", encoding="utf-8") as handle,
        subprocess.Popen(
            [program, *argv[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**COMMAND_ENVIRONMENT, **os.environ, **dict(environment)},
        ) as process,
    ):
        for line in process.stdout:
            handle.write(line)
            last.append(line.rstrip())
            _show(line, started)
    seconds = time.monotonic() - started
    _clear()
    if process.returncode != 0:
        raise UserError(
            f"{shlex.join(argv)} ended with exit code {process.returncode}; its output is in {log}. Last lines: "
            f"{' | '.join(i for i in last if i)}"
        )
    print(f"  {seconds:.0f} s", flush=True)
    return seconds


def _show(line: str, started: float) -> None:
    """One line that is overwritten: the epoch or case that is being worked on. On a terminal only."""
    found = re.search(r"(Epoch \d+|[Pp]redicting \S+)", line)
    if found and sys.stdout.isatty():
        print(f"\r\033[K  {found.group(1)}  ({time.monotonic() - started:.0f} s)", end="", flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")


def mean_dice(rows: Sequence[Mapping], classes: Sequence[str]) -> dict:
    """Class -> mean DSC over the cases that show or were given it, in percent; ``mean`` over the classes."""
    import numpy as np

    means = {}
    for name in classes:
        values = [i["dice"] for i in rows if i["class"] == name]
        means[name] = float(np.nanmean(values)) * 100 if values else float("nan")
    means["mean"] = float(np.mean([means[i] for i in classes]))
    return means


def markdown_table(results: Mapping[str, Mapping[str, float]], classes: Sequence[str]) -> str:
    """Rows name -> class -> DSC in percent; a class that a model does not know stays empty."""
    columns = [*classes, "mean"]
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, values in results.items():
        shown = [f"{values[c]:.2f}" if values.get(c) is not None and values[c] == values[c] else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
