"""The examples, run as a reader runs them."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_python_api_from_downloads_to_an_exported_model(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    argv = [sys.executable, str(EXAMPLES / "python_api.py"), str(tmp_path / "out")]
    result = subprocess.run(argv, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert "('liver', 'kidney') ('kits', 'lits') ()" in lines
    assert any(i.startswith("refused: source lits lists the class 'spleen'") for i in lines)
    scored = {tuple(i.split()[:2]) for i in lines if i.startswith(("lits_", "kits_"))}
    assert {organ for _, organ in scored} == {"liver", "kidney"}
    assert all((organ == "liver") == case.startswith("lits_") for case, organ in scored)
    assert (Path(lines[-1]) / "fold_0" / "checkpoint_final.pth").is_file() and (tmp_path / "out" / "model.zip").is_file()
