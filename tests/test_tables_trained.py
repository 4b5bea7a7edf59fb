"""A table of the papers with its trainings, which last a step each: the commands that tests/untrained.py stands in for fit together."""

import os
import re
from pathlib import Path

from tests import downloads, fork_server

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "tables.py"
SETTINGS = {
    "num_epochs": 1,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "features": "4,8",
    "coarse_size": "16,16,16",
    "patch_size": "16,8,16",
    "fine_size": "16,8,16",
}


def test_a_table_with_its_trainings(tmp_path, forked_programs):
    downloads.make_flare22(tmp_path / "FLARE22")
    fork_server.write_program(tmp_path / "python")
    roots = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in roots.values():
        os.mkdir(folder)
    environment = {**os.environ, **roots, "NNUNET_PARTIAL_PROGRAMS": f"{forked_programs}{os.pathsep}{tmp_path}"}
    argv = ["python", SCRIPT, "choi2022-table4", "--data", tmp_path, "--out", tmp_path / "out", "--device", "cpu"]
    argv += [i for name, value in SETTINGS.items() for i in ("--set", f"{name}={value}")]
    first = fork_server.run(argv, environment)
    assert first.returncode == 0, f"{first.stdout[-3000:]}\n{first.stderr[-3000:]}"
    rows = re.findall(r"^\| proposed \| (.*) \|$", (tmp_path / "out" / "table.md").read_text(), re.MULTILINE)
    assert [len(i.split(" | ")) for i in rows] == [14, 14]  # thirteen organs and their mean, by two metrics
    assert all(re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d\)", cell) for row in rows for cell in row.split(" | "))
    assert (tmp_path / "out" / "efficiency.md").is_file()
    again = fork_server.run(argv, environment)
    assert again.returncode == 0 and "$ " in first.stdout and "$ " not in again.stdout
