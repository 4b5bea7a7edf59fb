"""Commands in processes of their own."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run_command():
    """``run`` of tests/conftest.py: a console script of this environment; what it printed is shown when it fails."""
    spec = importlib.util.spec_from_file_location("shared_conftest", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run
