"""Every test has one tier, by its file; no entry of the lists names a file that has gone."""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent
specification = importlib.util.spec_from_file_location("conftest_of_all", HERE / "conftest.py")
conftest = importlib.util.module_from_spec(specification)
specification.loader.exec_module(conftest)


def test_this_test_is_of_one_tier(request):
    assert [i.name for i in request.node.iter_markers() if i.name in ("unit", "integration", "slow", "study")] == ["unit"]


def test_the_lists_name_what_there_is():
    assert [i for i in (*conftest.SLOW, *conftest.UNIT) if not (HERE / i).exists()] == []
    assert not set(conftest.SLOW) & set(conftest.UNIT)


def test_files_and_folders():
    assert conftest.tier_of(HERE / "losses" / "test_partial.py") == "unit"
    assert conftest.tier_of(HERE / "losses" / "test_new.py") == "integration"
    assert conftest.tier_of(HERE / "orchestration" / "atso" / "test_kill.py") == "slow"
    assert conftest.tier_of(HERE / "study" / "test_demo.py") == "study"
