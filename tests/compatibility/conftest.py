"""Commands in processes of their own."""

import pytest

from tests import pictures

pictures.leave_out()


@pytest.fixture(scope="session")
def run_command(console):
    """``console`` of tests/conftest.py: a console script of this environment; what it printed is shown when it fails."""
    return console
