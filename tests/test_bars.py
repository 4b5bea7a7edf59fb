"""Long work gives a sign of life before it begins, and as often as a reader of a log wants one."""

import sys

import pytest

from nnunet_partial import bars, doctor
from nnunet_partial.cli import main
from nnunet_partial.data import parallel


def test_the_first_line_comes_before_the_work(capsys):
    seen = []
    for _ in bars.bar([1, 2], "looking"):
        seen.append(capsys.readouterr().out)
    assert seen == ["looking: 0 of 2 cases\n", ""]
    list(bars.bar([1], "looking", "slice"))
    assert capsys.readouterr().out == "looking: 0 of 1 slice\n"
    list(bars.bar([1], "looking", shown=False))
    assert capsys.readouterr().out == ""


def test_lines_come_often_at_first_and_seldom_later(capsys):
    now = [0.0]
    with bars.Bar(1000, "labelling", done=10, clock=lambda: now[0]) as bar:
        for _ in range(300):
            now[0] += 1.0
            bar.update()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "labelling: 10 of 1000 cases (10 were done before)" and lines[1] == "labelling: 15 of 1000 cases, 5 s"
    seconds = [int(i.split()[-2]) for i in lines[1:]]
    assert seconds == [*range(5, 56, 5), *range(85, 301, 30)]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(bars.bar([1, 2], "looking")) == [1, 2]
    told = capsys.readouterr()
    assert told.out == "" and "looking: 100%" in told.err
    list(bars.bar([3], "looking", done=2))
    assert "looking (2 were done before): 100%" in capsys.readouterr().err


def test_cases_in_this_process_and_in_others_are_announced(capsys):
    seen = []
    parallel.map_cases(lambda i: seen.append(capsys.readouterr().out), [1, 2], 1, "checking")
    assert seen[0] == "checking: 0 of 2 cases\n"
    assert parallel.map_cases(abs, [-1, -2], 2, "measuring") == [1, 2]
    assert capsys.readouterr().out.startswith("measuring: 0 of 2 cases\n")


def test_the_doctor_speaks_before_it_looks(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(doctor, "examine", lambda: told.append(capsys.readouterr().out) or [doctor.DoctorFinding("python", "3")])
    assert main(["doctor"]) == 0
    assert told == ["importing torch and nnU-Net in a process of its own, as nnUNetv2_train does\n"]
    told.clear()
    capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    assert told == [""] and capsys.readouterr().out.startswith("{")  # nothing but JSON


@pytest.mark.parametrize(
    "command,place,words",
    [
        (["check", "501"], "nnunet_partial.data.check.inspection.inspect", "looking at"),
        (
            ["merge", "--dataset-id", "501", "--name", "X", "--source", "a=101:liver"],
            "nnunet_partial.data.merge.merge.merge_datasets",
            "merging 1 dataset",
        ),
        (
            ["evaluate", "--pred", "p", "--truth", "t", "--dataset", "501", "--out", "o"],
            "nnunet_partial.evaluation.evaluate.evaluate_folder",
            "comparing p with t",
        ),
        (
            ["report", "--dataset", "501", "--evaluation", "A=a", "--out", "o.html"],
            "nnunet_partial.evaluation.report.inputs.read_inputs",
            "reading 1 evaluation",
        ),
    ],
)
def test_a_command_speaks_before_it_works(command, place, words, monkeypatch, capsys, tmp_path):
    """What the command calls ends at once; by then it has said what it is about."""

    class Reached(Exception):
        pass

    def reached(*_, **__):
        raise Reached(capsys.readouterr().out)

    folder = tmp_path / "Dataset501_X"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(place, reached)
    with pytest.raises(Reached, match=words):
        main(command)
