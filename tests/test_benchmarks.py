"""The table of benchmarks: bars met, missed and not measured, from results that are there, missing or broken."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests import fork_server

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("run_all", ROOT / "benchmarks" / "run_all.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_all", module)  # dataclasses look their module up
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def rows(run_all, name):
    return run_all.rows_of(next(i for i in run_all.BENCHMARKS if i.name == name))


def test_a_missed_bar_is_named(run_all, tmp_path):
    content = {"bar": 1.1, "rows": [{"time_ratio": 0.5, "memory_ratio": 1.0}, {"time_ratio": 1.2, "memory_ratio": 1.1}]}
    (tmp_path / "marginal_loss.json").write_text(json.dumps(content))
    time, memory = rows(run_all, "marginal_loss")
    assert (time.met, time.measured) == (False, "0.50 to 1.20 x, 1 of 2 within") and memory.met
    assert "**MISSED**" in run_all.table([time, memory]) and "| met |" in run_all.table([time, memory])


def test_what_has_no_result_is_not_measured(run_all, tmp_path):
    (tmp_path / "metrics.json").write_text("{not json")
    (tmp_path / "conversion.json").write_text("{}")
    every = [row for i in run_all.BENCHMARKS for row in run_all.rows_of(i)]
    assert {i.met for i in every} == {None} and {i.benchmark for i in every} == {i.name for i in run_all.BENCHMARKS}
    assert (
        "cannot be read" in rows(run_all, "metrics")[0].measured and "cannot be read" in rows(run_all, "conversion")[0].measured
    )
    assert f"0 met, 0 missed, {len(every)} not measured" in run_all.page(every)


def test_a_result_that_states_its_bars_is_shown_as_it_says(run_all, tmp_path):
    content = {
        "swap": {"what": "swap", "bar": ">= 20 x", "measured": "31 x", "met": True},
        "loop": {"what": "loop", "bar": "<= 2 %", "measured": "3.10%", "met": False},
    }
    (tmp_path / "label_swap.json").write_text(json.dumps(content))
    assert [(i.what, i.measured, i.met) for i in rows(run_all, "label_swap")] == [
        ("swap", "31 x", True),
        ("loop", "3.10%", False),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "step_time",
        "step_time_comparators",
        "step_time_soft",
        "conversion",
        "metrics",
        "marginal_loss",
        "marginal_loss_117",
        "inference",
        "coarse_to_fine",
        "label_swap",
        "network_cost",
        "scale",
    ],
)
def test_committed_results_can_be_read(run_all, tmp_path, name):
    committed = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not committed.is_file():
        pytest.skip(f"{committed.name} has not been measured")
    shutil.copy(committed, tmp_path)
    assert all(i.met is not None for i in rows(run_all, name))


def test_a_benchmark_that_fails_is_not_measured(run_all, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    (tmp_path / "metrics.py").write_text("raise SystemExit(3)")
    (tmp_path / "metrics.json").write_text('{"bar": 1.2, "worst_ratio": 0.5}')  # of an earlier run
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "metrics", "--out", str(tmp_path / "table.md")])
    with pytest.raises(SystemExit) as end:
        run_all.main()
    line = next(i for i in (tmp_path / "table.md").read_text().splitlines() if i.startswith("| metrics"))
    assert end.value.code == 1 and "ended with exit code 3" in line and "not measured" in line


def test_the_light_student_is_counted_and_not_run(run_all):
    content = run_all.network_cost()
    # Choi's figures: 92.06 M and 5.23 M parameters
    assert content["teacher"]["parameters"] == pytest.approx(92.06e6, rel=1e-3)
    assert content["student"]["parameters"] == pytest.approx(5.23e6, rel=1e-2)
    assert all(met for *_, met in run_all.read_network_cost(content))


def test_a_result_does_not_name_folders(run_all, monkeypatch):
    from circumstances import command, versions

    monkeypatch.setattr(
        sys,
        "argv",
        ["/somewhere/benchmarks/accuracy.py", "ACDC", "--work", "/mine", "--work", "/too", "--seeds", "0", "1", "--out", "/a b"],
    )
    assert command() == "python benchmarks/accuracy.py ACDC --work WORK --work WORK --seeds 0 1 --out OUT"
    assert {"python", "torch", "nnunetv2", "nnunet_partial"} <= set(versions())


def test_the_exponent_is_that_of_the_growth_beyond_what_is_fixed(run_all):
    import scale

    cases = [100, 400, 1600, 4000]
    for power in (1.0, 1.9):
        assert scale.exponent(cases, [0.7 + 0.2 * (n - scale.WARM) ** power for n in cases], 0.7) == pytest.approx(
            power, abs=1e-3
        )
    assert scale.exponent(cases, [7.0] * 4, 7) is None
    # where what is fixed is most of the time, its noise is no growth
    units = [8 + 0.03 * (n - scale.WARM) for n in cases]
    assert scale.exponent(cases, [units[0] + 5, *units[1:]], 8) == pytest.approx(1, abs=1e-3)


def test_growth_and_memory_are_measured_on_every_command(run_all, tmp_path):
    """A run of a few tiny cases: every command does its work, and the result can be read."""
    out = tmp_path / "scale.json"
    options = ("--cases", "12", "--classes", "3", "--volumes", "3", "4", "--volume-side", "16", "--only", "growth", "volumes")
    result = fork_server.run(["python", ROOT / "benchmarks" / "scale.py", *options, "--out", out])
    assert result.returncode == 0, result.stderr[-3000:]
    content = json.loads(out.read_text())
    steps = content["growth"]["3"]
    assert set(steps) == {
        "merge --headers-only",
        "merge",
        "check",
        "variant",
        "start of a training",
        "compare --dry-run",
        "pseudo-label",
        "evaluate",
        "report",
    }
    assert all(set(i["cpu_seconds"]) == {"10", "12"} and min(i["cpu_seconds"].values()) >= 0 for i in steps.values())
    assert set(content["volumes"]["volumes_more"]) == {"merge", "check", "evaluate", "report"}
    growth, memory = run_all.read_scale(content)
    assert growth[1] == "<= 1.1" and memory[1] == "<= 3"


def test_a_command_that_grows_too_fast_misses_its_bar(run_all, tmp_path):
    step = {"cpu_seconds": {"10": 0.1, "400": 9.0}, "peak_mib": {"10": 1.0, "400": 1.0}}
    content = {
        "bar_exponent": 1.1,
        "bar_volumes": 3.0,
        "growth": {
            "5": {"merge": {**step, "exponent": 1.0}, "check": {**step, "exponent": None}, "evaluate": {**step, "exponent": 1.9}}
        },
        "volumes": {"cases": [10, 40], "volumes_more": {"merge": 0.2, "check": 29.8}},
        "many_classes": {
            "classes": 117,
            **{f"{i}_{j}_ratio": 0.5 for i in ("predict", "pseudo_label") for j in ("time", "memory")},
            "share_of_equal_labels": 1.0,
        },
    }
    (tmp_path / "scale.json").write_text(json.dumps(content))
    growth, memory, *many = rows(run_all, "scale")
    assert growth.met is False and "evaluate 1.90; too quick to fit: check" in growth.measured
    assert memory.met is False and memory.measured == "29.80 (check)"
    assert [i.met for i in many] == [True] * 3
