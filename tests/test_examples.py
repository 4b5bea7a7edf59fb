"""The examples, run as a reader runs them."""

import os
from pathlib import Path

from tests import fork_server

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_python_api_from_downloads_to_an_exported_model(tmp_path, forked_programs):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    # it looks for nnU-Net's commands beside its interpreter
    run = f"import runpy, sys; sys.executable = {str(forked_programs / 'python')!r}; sys.argv = sys.argv[1:]; "
    run += "runpy.run_path(sys.argv[0], run_name='__main__')"
    result = fork_server.run(
        ["python", "-c", run, EXAMPLES / "python_api.py", tmp_path / "out"], {**environment, "OMP_NUM_THREADS": "1"}, tmp_path
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert "('liver', 'kidney') ('kits', 'lits') ()" in lines
    assert any(i.startswith("refused: source lits lists the class 'spleen'") for i in lines)
    scored = {tuple(i.split()[:2]) for i in lines if i.startswith(("lits_", "kits_"))}
    assert {organ for _, organ in scored} == {"liver", "kidney"}
    assert all((organ == "liver") == case.startswith("lits_") for case, organ in scored)
    assert (Path(lines[-1]) / "fold_0" / "checkpoint_final.pth").is_file() and (tmp_path / "out" / "model.zip").is_file()
