"""The one suggestion for misspelt names, and that every kind of name gets it."""

import errno
import os
import subprocess
import sys

import pytest

from nnunet_partial import api, cli, paths
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.evaluation.evaluate import check_metrics
from nnunet_partial.labels import Annotations
from nnunet_partial.methods import find_trainer_source
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.recipes import read_recipe
from nnunet_partial.settings import RunSettings


@pytest.mark.parametrize(
    "name,known,expected",
    [
        ("livr", ("liver", "kidney"), "liver"),
        ("Liver", ("liver", "kidney"), "liver"),
        ("lambda_feature", ("lambda_ssl", "mskd.lambda_feature"), "mskd.lambda_feature"),
        ("feature", ("features", "seed"), "features"),
        ("tiny", ("nnUNetPlans", "nnUNetPlans_tiny"), "nnUNetPlans_tiny"),
        ("num_epoch", ("num_epochs", "seed"), "num_epochs"),
        ("spleen", ("liver", "kidney"), ""),
        ("x", (), ""),
        ("ab", ("abc",), "abc"),
    ],
)
def test_what_may_have_been_meant(name, known, expected):
    found = did_you_mean(name, known)
    assert found == (f"Did you mean {expected}? " if expected else "")


def test_at_most_three_names_are_suggested():
    assert did_you_mean("class_", [f"class_{i}" for i in range(9)]).count(" or ") == 2


def plans(**settings):
    return {"plans_name": "nnUNetPlans_x", "nnunet_partial": settings}


@pytest.mark.parametrize(
    "misspell,meant",
    [
        (lambda: RunSettings.from_plans(plans(num_epoch=3)), "num_epochs"),
        (lambda: RunSettings.from_plans(plans(lambda_feature=3)), "mskd.lambda_feature"),
        (lambda: RunSettings.from_plans(plans(mskd={"lambda_features": 3})), "mskd.lambda_feature"),
        (lambda: RunSettings.from_plans(plans(batchsize=3)), "batch_size"),
        (lambda: find_trainer_source("nnUNetTrainerPartail"), "nnUNetTrainerPartial"),
        (lambda: find_methods(["mskd+", "partail"]), "mskd"),
        (lambda: find_methods(["partail"]), "partial"),
        (lambda: read_recipe("feng2012"), "feng2021"),
        (lambda: check_metrics(["dcie"]), "dice"),
        (lambda: api.convert("kist", "/nowhere", 3), "kits"),
        (
            lambda: Annotations.from_dataset_json(
                {
                    "labels": {"background": 0, "liver": 1},
                    "nnunet_partial": {"version": 1, "cases": {"a": {"source": "s", "annotated": ["livr"]}}},
                },
                "dataset.json",
            ),
            "liver",
        ),
    ],
)
def test_misspelt_names_bring_the_right_one(misspell, meant):
    with pytest.raises(UserError, match=f"Did you mean {meant}"):
        misspell()


def test_datasets_and_plans_that_are_not_there_bring_those_that_are(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with pytest.raises(UserError, match="There is no dataset in nnUNet_raw"):
        paths.dataset_name(5)
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset501_Abdomen"
    folder.mkdir(parents=True)
    for name in ("dataset.json", "nnUNetPlans_tiny.json", "nnUNetPlans.json"):
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match=r"found none; .*There are: Dataset501_Abdomen\."):
        paths.dataset_name(510)
    with pytest.raises(UserError, match="Did you mean Dataset501_Abdomen?"):
        paths.dataset_name("Abdomen")
    with pytest.raises(UserError, match="Did you mean Dataset501_Abdomen?"):
        paths.raw_dataset("Dataset501_Abdomn")
    with pytest.raises(
        UserError, match=r"Did you mean nnUNetPlans_tiny or nnUNetPlans\? Plans of this dataset: nnUNetPlans, nnUNetPlans_tiny\."
    ):
        paths.plans_file(501, "nnUNetPlans_tny")


@pytest.mark.parametrize(
    "command,meant",
    [
        (["convrt"], "convert"),
        (["convert", "kist", "/x", "--dataset-id", "3"], "kits"),
        (["variant", "501", "--pre-source"], "--per-source"),
        (["predict", "501", "-o", "x", "--model", "m", "--divice", "cpu"], "--device"),
    ],
)
def test_the_command_line_asks_too(command, meant, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 2 and f"Did you mean {meant}?" in capsys.readouterr().err


def test_control_c_ends_with_one_line(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_verb", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.strip() == "nnunet_partial: stopped; the same command goes on"


@pytest.mark.parametrize(
    "command",
    [["variant", "--help-settings"], ["--version"], ["compare", "--help"], ["variant", "501", "--pre-source"]],
    ids=" ".join,
)
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(command):
    """As in ``nnunet_partial ... | head``; the reader is gone before the first word, whether that is written at once or held back."""
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "nnunet_partial.cli", *command]
    # unbuffered, argparse itself overlooks that its words went nowhere
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    told = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    both = subprocess.run(program, stdout=writing, stderr=writing, check=False, env=environment)
    os.close(writing)
    wrong = "501" in command  # says so on stderr, which is read
    assert (told.returncode, both.returncode) == ((2, 141) if wrong else (141, 141)), told.stderr
    assert "Traceback" not in told.stderr and bool(told.stderr) == wrong


def test_a_broken_pipe_of_the_work_itself_is_not_silent(monkeypatch, capsys):
    def work(verb, argv):
        raise BrokenPipeError(errno.EPIPE, "a worker has ended")

    monkeypatch.setattr(cli, "run_verb", work)
    with pytest.raises(BrokenPipeError, match="a worker has ended"):
        cli.main(["doctor"])
