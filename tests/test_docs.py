"""Pages that are made from the program itself are what the program makes now."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from nnunet_partial import cli, settings_help
from nnunet_partial.errors import UserError
from nnunet_partial.methods import package_trainers
from nnunet_partial.settings import BLOCKS, NETWORK_CHANGES, RunSettings, setting

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "scripts" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_in_step(write_docs):
    for file, text in write_docs.pages().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run python scripts/write_docs.py"


def test_every_setting_is_on_the_page_with_its_meaning_and_default():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w.]+)` \| ((?:[^|\\]|\\.)+) \|", page, re.MULTILINE))
    expected = {i.name: i for i in dataclasses.fields(RunSettings)}
    expected |= {f"{block}.{i.name}": i for block, cls in BLOCKS.items() for i in dataclasses.fields(cls)}
    assert set(table) >= set(expected) | set(NETWORK_CHANGES)
    assert all(i.metadata["help"] and table[name].replace("\\|", "|") == i.metadata["help"] for name, i in expected.items())
    assert "| `num_epochs` | length of the training | epochs | `1000` | whole number, 1 or more | all |" in page


def test_methods_that_a_setting_names_have_its_block():
    known = {i.short_name: i.settings_name for i in package_trainers().values() if i.short_name}
    for block, cls in ((None, RunSettings), *BLOCKS.items()):
        for field in dataclasses.fields(cls):
            for name in field.metadata["methods"] or ():
                assert name in known and (block is None or known[name] == block), f"{block}.{field.name}: {name}"
        assert block is None or settings_help.methods_of(block)


def test_help_settings_lists_all_or_those_about_a_word(capsys):
    assert cli.main(["variant", "--help-settings"]) == 0
    everything = capsys.readouterr().out
    assert (
        "mskd.lambda_feature = 10.0  (number, 0 or more; mskd, mskdplus)" in everything and "features = as planned" in everything
    )
    assert cli.main(["variant", "--help-settings", "learning rate"]) == 0
    some = capsys.readouterr().out
    assert "initial_lr = 0.01" in some and "seed" not in some
    with pytest.raises(SystemExit) as end:
        cli.main(["variant", "--help-settings", "learnign"])
    assert end.value.code == 2 and "no setting has 'learnign'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["variant", "--name", "x"])
    assert "name the dataset" in capsys.readouterr().err


def test_a_trainer_of_ones_own_is_listed_too():
    @dataclasses.dataclass(frozen=True)
    class MineSettings:
        """Of mine."""

        weight: float = setting(2.0, "how much | of it", unit="kg", low=0, high=3)

    (section,) = [i for i in settings_help.sections({"mine": MineSettings}) if i.title == "mine.*"]
    assert section.rows == (settings_help.SettingRow("mine.weight", "how much | of it", "2.0", "kg", "number, 0 to 3", ""),)
    assert "how much \\| of it" in settings_help.as_markdown([section])
    with pytest.raises(UserError, match=r"Did you mean mine\.weight\? "):
        settings_help.as_text([section], "wieght")
