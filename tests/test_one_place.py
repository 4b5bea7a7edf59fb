"""What can run code is done at one place each: unpickling, finding what plans name, building a network from plans, locks.

A second place would be one that no check stands before. And nothing is written twice: no eight lines stand at two
places, no class is called like another.
"""

import re
from collections import defaultdict
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
    # a trainer builds its own from the plans that nnUNetv2_train was given; methods.py looks for the name, in quotes
    "builds networks from plans": (
        r"get_network_from_plans|(?<!is nnUNetTrainer\.)(?<!\")build_network_architecture\b(?! is )",
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


def test_a_name_of_a_class_means_one_thing():
    named = defaultdict(list)
    for file, line in lines():
        if found := re.match(r"class ([A-Za-z]\w*)", line):
            named[found[1]].append(file)
    assert len(named) > 100 and not {name: files for name, files in named.items() if len(files) > 1}


# ------------------------------------------------------------------ the same lines twice

LINES = 8
WRITTEN = ("nnunet_partial", "dataset_conversion", "scripts", "examples", "benchmarks", "tests")


def code(text):
    """(number, line) of what is said: white space folded, without comments, imports, empty lines and lone brackets."""
    folded = ((number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), 1))
    return [(n, line) for n, line in folded if re.search(r"\w", line) and not re.match(r"#|from \S+ import |import ", line)]


def runs_at_two_places(texts):
    """Places "file:line" at which the same ``LINES`` lines begin; ``texts``: (file, text)."""
    places = defaultdict(list)
    for file, text in texts:
        said = code(text)
        for i in range(len(said) - LINES + 1):
            places[tuple(line for _, line in said[i : i + LINES])].append(f"{file}:{said[i][0]}")
    return [i for i in places.values() if len(i) > 1]


def test_no_eight_lines_stand_at_two_places():
    files = [file for folder in WRITTEN for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    assert not runs_at_two_places((i.relative_to(ROOT).as_posix(), i.read_text(encoding="utf-8")) for i in files)


def test_a_copied_run_is_found_however_it_is_indented():
    run = [f"value_{i} = {i}" for i in range(LINES)]
    copied = "def copy():\n" + "\n    # why\n".join(f"    {i}" for i in run)
    assert runs_at_two_places([("a.py", "\n".join(run)), ("b.py", copied)]) == [["a.py:1", "b.py:2"]]
    assert not runs_at_two_places([("a.py", "\n".join(run)), ("b.py", "\n".join(run[1:]))])
