"""A command that a person waits for."""

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.orchestration.foreground import run


def test_a_command_is_printed_and_its_output_kept(tmp_path, capsys):
    seconds = run(["sh", "-c", "echo $OWN; echo seen >&2"], tmp_path / "logs" / "one.log", {"OWN": "given"})
    assert (tmp_path / "logs" / "one.log").read_text() == "given\nseen\n"
    said = capsys.readouterr().out
    assert said.startswith("$ sh -c") and f"{seconds:.0f} s" in said


def test_a_command_that_fails_is_an_error_with_its_last_lines(tmp_path):
    with pytest.raises(UserError, match=r"exit code 3; its output is in .*one.log. Last lines: first . second"):
        run(["sh", "-c", "echo first; echo second; exit 3"], tmp_path / "one.log")


def test_a_command_that_is_not_installed_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="pip install nnunetv2"):
        run(["no-such-command-anywhere"], tmp_path / "one.log")
    assert not (tmp_path / "one.log").exists()


def test_programs_of_a_wrapper_come_first(tmp_path, monkeypatch):
    (tmp_path / "nnUNetv2_train").write_text("#!/bin/sh\necho wrapped $@\n")
    (tmp_path / "nnUNetv2_train").chmod(0o755)
    monkeypatch.setenv("NNUNET_PARTIAL_PROGRAMS", str(tmp_path))
    run(["nnUNetv2_train", 5], tmp_path / "one.log")
    assert (tmp_path / "one.log").read_text() == "wrapped 5\n"
