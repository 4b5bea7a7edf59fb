"""Projects over stub commands."""

import pytest


@pytest.fixture(scope="session")
def new_place(new_project_place):
    return new_project_place


@pytest.fixture(scope="session")
def finished(new_place):
    """A run that nothing disturbed; not to be changed."""
    made = new_place()
    made.run()
    return made
