"""The functions of Python behind the commands: the same objects, the same errors, nothing heavy on import."""

import argparse
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_partial import api, cli
from nnunet_partial.commands.convert import CONVERTERS
from nnunet_partial.errors import UserError

ROOT = Path(__file__).parents[1]


def test_everything_that_is_promised_is_there_and_documented():
    assert set(api._ELSEWHERE) <= set(api.__all__) and sorted(api.__all__, key=str) == api.__all__ and dir(api) == api.__all__
    for name in api.__all__:
        assert getattr(api, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        api.nonsense  # noqa: B018


def test_a_type_checker_sees_what_python_finds():
    """The imports under TYPE_CHECKING and the table that finds them at run time say the same."""
    import ast

    block = next(i for i in ast.parse(inspect.getsource(api)).body if isinstance(i, ast.If))
    checked = {(n.asname or n.name): (i.module, n.name) for i in block.body for n in i.names}
    assert {k: v for k, v in checked.items() if k in api.__all__} == {k: v for k, v in api._ELSEWHERE.items() if k in checked}
    assert set(api._ELSEWHERE) <= set(checked)


def test_converters_are_those_of_the_command():
    assert api.converters() == sorted(CONVERTERS)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda folder: api.convert("nonsense", folder, 101), "no converter 'nonsense'. Converters: acdc, "),
        (lambda folder: api.convert("lits", folder, 101, nonsense=1), "no option 'nonsense'. Options: "),
        (lambda folder: api.convert("lits", folder / "gone", 101), "does not exist"),
        (lambda folder: api.merge(501, "X", []), "source"),
        (lambda folder: api.variant(599, "x", {}), "found none"),
        (lambda folder: api.export(folder), "say where to export to"),
        (lambda folder: api.CompareOptions("501", "3d_fullres", (), "out"), "--methods"),
    ],
)
def test_errors_are_one_line(call, message, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    with pytest.raises(api.UserError) as error:
        call(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "verb, function", [("merge", "merge"), ("variant", "variant"), ("evaluate", "evaluate"), ("export", "export")]
)
def test_a_command_calls_the_function(verb, function, monkeypatch, tmp_path):
    class Called(Exception):
        pass

    def called(*_, **__):
        raise Called

    module, name = api._ELSEWHERE[function]
    monkeypatch.setattr(f"{module}.{name}", called)
    argv = {
        "merge": ["--dataset-id", "501", "--name", "X"],
        "variant": ["501", "--name", "x"],
        "evaluate": ["--pred", "a", "--truth", "b", "--dataset", "501", "--out", "c"],
        "export": [str(tmp_path), "--zip", "x.zip"],
    }[verb]
    with pytest.raises(Called):
        cli.run_verb(verb, argv)


def test_options_of_the_command_line_are_those_of_the_function():
    """What a converter's own parser gives by default is what the function passes on."""
    from nnunet_partial.data.conversion import command

    for name in CONVERTERS:
        converter = __import__(f"dataset_conversion.{name}", fromlist=["CONVERTER"]).CONVERTER
        parser = argparse.ArgumentParser()
        command.add_arguments(parser, converter)
        own = [j for i in command.required_options(converter) for j in (f"--{i[0].replace('_', '-')}", "x")]
        parsed = vars(parser.parse_args(["SRC", "--dataset-id", "101", *own]))
        required = [j for i in command.required_options(converter) for j in i]
        ours = vars(command.default_options(converter, "SRC", 101))
        assert {k: v for k, v in parsed.items() if k not in required} == {
            k: v for k, v in ours.items() if k not in (*required, "help")
        }


def test_nothing_heavy_on_import():
    script = "import sys, nnunet_partial.api; assert not {'torch', 'nnunetv2', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env={**os.environ}).returncode == 0


def test_of_options_that_exclude_each_other_one_is_needed(tmp_path):
    for options in ({}, {"image_glob": ["*.nii.gz"], "table": "cases.csv"}):
        with pytest.raises(UserError, match="exactly one of the options 'image_glob', 'table'"):
            api.convert("generic", tmp_path, 101, **options)
