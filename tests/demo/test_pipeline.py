"""The demo as a preset of ``compare``, over the commands of the comparison's stub: what it runs, killed and started again."""

import sys
from pathlib import Path

import pytest

from nnunet_partial import cli
from nnunet_partial.demo import pipeline
from nnunet_partial.files import read_json
from nnunet_partial.orchestration import executors, stamped

STUB = Path(__file__).parent.parent / "orchestration" / "compare" / "comparison_stub.py"
COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnUNetv2_plan_and_preprocess", "nnunet_partial")
ROWS = ["teacher lits", "teacher kits", "teacher nih", "all teachers", "naive nnU-Net", "Partial", "MSKD"]


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """``demo(*options)`` runs the demo in ``tmp_path / "demo"``; ``demo.started()``: what it has started since last asked."""
    programs, log = tmp_path / "programs", tmp_path / "stub.log"
    programs.mkdir()
    for name in COMMANDS:
        (programs / name).write_text(f"#!{sys.executable} -SE\n{STUB.read_text()}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("NNUNET_PARTIAL_PROGRAMS", str(programs))
    monkeypatch.setenv("STUB_LOG", str(log))
    monkeypatch.setenv("STUB_KNOWS", "1")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.setenv(name, "")  # the demo sets them in this process; put back afterwards
    monkeypatch.setattr(stamped, "check_model", lambda *given: None)  # the stub's checkpoints are text
    monkeypatch.setattr(pipeline, "QUICK_CASES", (1, 2))

    # in line, which starts a process less for each job
    monkeypatch.setattr(executors, "make_executor", lambda kind, folder, **more: executors.DebugExecutor(Path(folder), 0))

    def run(*options):
        return cli.main(["demo", "--quick", "--out", str(tmp_path / "demo"), *options])

    def started():
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    run.started = started
    return run


def test_the_demo_is_one_comparison_and_goes_on_where_it_was(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUB_FAILS", "nnUNetTrainerMSKD")
    with pytest.raises(SystemExit) as ended:
        demo()
    assert ended.value.code == 2 and "nnUNetTrainerMSKD" in capsys.readouterr().err
    first = demo.started()
    assert sum(i.startswith("nnUNetv2_train") for i in first) == 6  # three teachers, naive, Partial, and the one that failed
    folder = tmp_path / "demo"
    assert not (folder / "results.json").exists() and read_json(folder / "compare.json")["stages"]

    monkeypatch.delenv("STUB_FAILS")
    assert demo() == 0
    again = demo.started()
    assert [i for i in again if i.startswith("nnUNetv2_train")] == [i for i in first if "nnUNetTrainerMSKD" in i]
    assert not any(i.startswith(("convert", "merge", "nnUNetv2_plan")) for i in again)
    results = read_json(folder / "results.json")
    assert list(results) == ROWS
    # its own organ alone, and here the truth
    assert results["teacher kits"] == {"kidney": 100.0}
    assert results["all teachers"] == {"liver": 100.0, "kidney": 100.0, "pancreas": 100.0, "mean": 100.0}
    assert set(results["MSKD"]) == {"liver", "kidney", "pancreas", "mean"}
    assert all(f"| {i} |" in (folder / "results.md").read_text() for i in ROWS)
    assert (folder / "overlays.png").stat().st_size > 1000 and (folder / "report.html").is_file()

    assert demo() == 0
    assert [i.split()[0] for i in demo.started()] == ["report"]
    assert read_json(folder / "results.json") == results


@pytest.mark.parametrize("options, jobs", [((), 2), (("--jobs", "1"), 1)])
def test_on_the_cpu_two_steps_side_by_side_unless_told_otherwise(monkeypatch, tmp_path, options, jobs):
    given = []
    monkeypatch.setattr("nnunet_partial.orchestration.executor_options.allocated_cores", lambda environment: 8)
    monkeypatch.setattr(pipeline, "run_demo", lambda folder, device, quick, executor: given.append(executor))
    cli.main(["demo", "--out", str(tmp_path), *options])
    assert given[0].slots() == [None] * jobs


def test_a_folder_of_something_else_is_left_alone(demo, tmp_path, capsys):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        demo()
    assert "was not made by the demo" in capsys.readouterr().err and demo.started() == []
