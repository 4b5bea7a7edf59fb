"""What can run code is done at one place each: unpickling, finding what plans name, building a network from plans, locks.

A second place would be one that no check stands before.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE, PLANS = {"orchestration/engine.py"}, {"orchestration/atso/loop.py", "orchestration/stamped.py"}
PLACES = {
    "unpickles": (
        r"pickle\.(load|loads|Unpickler)\b|\bUnpickler\(|file_and_folder_operations import .*load_pickle|allow_pickle=True",
        {"safe_read.py"},
    ),
    "reads arrays of numpy": (r"\bnp\.load\(", {"safe_read.py", "data/preprocessed/cases.py"}),
    "opens arrays of blosc2": (r"\bblosc2\.open\(", {"safe_read.py"}),
    "reads checkpoints": (r"\btorch\.load\(|weights_only=False", {"files.py"}),
    "finds what plans name": (r"\bpydoc\b|recursive_find_python_class", {"trust.py"}),
    # doctor looks for the names of our own trainers
    "finds trainers": (r"recursive_find_trainer_class_by_name", {"trust.py", "doctor.py"}),
    # a trainer builds its own from the plans that nnUNetv2_train was given
    "builds networks from plans": (
        r"get_network_from_plans|(?<!is nnUNetTrainer\.)build_network_architecture\b(?! is )",
        {
            "networks/models.py",
            "networks/planned.py",
            "trainers/co_training.py",
            "trainers/condition_cnn.py",
            "trainers/cross_teaching.py",
            "trainers/dodnet.py",
            "training/one_against_rest.py",
        },
    ),
    "opens locks": (r"os\.O_CREAT|\bopen_lock\(|\bflock\(", {"files.py"}),
    "starts pools": (r"ProcessPoolExecutor|ThreadPool|get_context|multiprocessing\.pool|\bPool\(", {"data/parallel.py"}),
    "is an engine of steps": (r"class \w+\(Engine\)|def is_done\(self, step", ENGINE | PLANS),
    "waits for jobs of a plan": (r"executor\.run\(|light\.run\(", {"orchestration/engine.py"}),
    # black and white, of text on a picture, are no palette
    "names colours": (r"\"#[0-9a-fA-F]{6}\"", {"palette.py"}),
    "makes pages": (r"jinja2\.|<!doctype|<html|<style", {"evaluation/report/html.py"}),
    "names the last checkpoint": (r"checkpoint_final\.pth", {"paths.py"}),
    "reads the number of a dataset": (r"\[7:10\]", set()),
    "reads the contract of a folder": (r"from_dataset_json\(read_json", {"labels.py"}),
}


def lines():
    for file in sorted((ROOT / "nnunet_partial").rglob("*.py")):
        for line in file.read_text(encoding="utf-8").splitlines():
            yield file.relative_to(ROOT / "nnunet_partial").as_posix(), line


@pytest.mark.parametrize("what", PLACES)
def test_one_place(what):
    pattern, places = PLACES[what]
    assert {file for file, line in lines() if re.search(pattern, line)} == places
