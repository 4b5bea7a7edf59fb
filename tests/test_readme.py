"""Every command that the README, the documentation or a verb's help shows is one that the program accepts."""

import importlib.util
import re
import shlex
from importlib import metadata
from pathlib import Path

import pytest

import nnunet_partial.trainers as trainers
from nnunet_partial import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# links to it may stand before its figures have been measured
MEASURED = "results.md"


def commands(text: str) -> list:
    """Commands in the text: indented or in backticks, continued lines joined, parts of `a && b` one by one."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
    lines = [i.strip() for i in text.splitlines() if i.startswith("    ")] + re.findall(r"`([^`]+)`", text.replace("\n", " "))
    return [part.split(" # ")[0].strip() for line in lines for part in line.split("&&")]


def shown(pattern: str) -> list:
    """``(page, command)`` of every command that the pattern matches from its beginning, each once a page."""
    found = [(page.name, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
    return [i for i in dict.fromkeys(found) if re.match(pattern, i[1])]


README = commands((ROOT / "README.md").read_text(encoding="utf-8"))
OWN = shown(r"nnunet_partial [a-z-]+ ")
NNUNET = shown(r"nnUNetv2_[a-z_]+ -")
SCRIPTS = shown(r"python (benchmarks|scripts|dataset_conversion)/\w+\.py")


@pytest.mark.parametrize("page,command", OWN)
def test_own_commands_are_accepted(page, command):
    accept(command)


def accept(command):
    """Parse it as the program would; --help ends with 0, a wrong argument with 2."""
    _, verb, *arguments = shlex.split(command.replace("convert NAME", "convert lits"))
    assert verb in cli.VERBS, command
    try:
        cli.verb_parser(verb).parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, command


@pytest.mark.parametrize("page,command", NNUNET + shown(r"nnUNetv2_[a-z_]+ \d"))
def test_nnunet_commands_have_their_options(page, command):
    """nnU-Net's parsers are made inside its commands; its source says which options there are."""
    program, *arguments = shlex.split(command)
    found = [i for i in metadata.entry_points(group="console_scripts") if i.name == program]
    assert found, f"{program} is no command of nnU-Net"
    package = Path(importlib.util.find_spec("nnunetv2").submodule_search_locations[0])
    source = (package.parent / found[0].value.split(":")[0].replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    for option in (i for i in arguments if i.startswith("-")):
        assert f"'{option}'" in source or f'"{option}"' in source, f"{program} has no option {option}"


@pytest.mark.parametrize("page,command", SCRIPTS)
def test_scripts_exist_with_their_options(page, command):
    _, script, *arguments = shlex.split(command.replace("[", " ").replace("]", " "))
    assert (ROOT / script).is_file(), script
    if script == "scripts/atso_loop.py":
        from nnunet_partial.orchestration.atso.command import parser

        parser().parse_args(arguments)
        return
    source = (ROOT / script).read_text(encoding="utf-8")
    if not script.startswith("dataset_conversion/"):  # their options are added by what they share
        assert [i for i in arguments if i.startswith("--") and f'"{i}"' not in source] == []


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_in_each_help_is_accepted(verb):
    help_text = cli.verb_parser(verb).format_help()
    example = help_text.split("example: ")[1].replace("\\\n", " ")
    examples = re.split(r"\n\s*(?=nn(?:unet_partial|UNetv2_\w+) )", example.strip())
    assert any(i.startswith(f"nnunet_partial {verb} ") or i == f"nnunet_partial {verb}" for i in examples)
    for text in (i for i in examples if i.startswith("nnunet_partial ")):
        accept(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda i: i.name)
def test_trainers_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!-- from tests/mistakes.py.*?<!-- end -->", "", text, flags=re.DOTALL)  # some are misspelt there
    named, own = set(re.findall(r"\bnnUNetTrainer[A-Z][A-Za-z0-9]*", text)), set(re.findall(r"^class (\w+)", text, re.MULTILINE))
    for file in (ROOT / "benchmarks" / "trainers").glob("*.py"):
        own |= set(re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert named - own <= set(trainers.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda i: i.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [i for i in links if not i.startswith("http") and not (page.parent / i).exists()]
    assert [i for i in missing if Path(i).name != MEASURED] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda i: i.name)
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`((?:nnunet_partial|docs|tests|benchmarks|scripts)/[\w./-]+)`", page.read_text(encoding="utf-8")))
    assert [i for i in sorted(named) if not (ROOT / i).exists()] == []


def test_the_readme_shows_the_whole_way():
    assert {shlex.split(i)[1] for page, i in OWN if page == "README.md"} >= {"convert", "merge", "variant", "evaluate", "export"}
    assert "nnUNetTrainerMSKD" in " ".join(README)


def test_the_tutorial_goes_from_own_data_to_a_report():
    verbs = [shlex.split(i)[1] for page, i in OWN if page == "tutorial.md"]
    order = [verbs.index(i) for i in ("convert", "check", "merge", "evaluate", "report")]
    assert order == sorted(order) and "compare" in verbs


def test_the_method_guide_knows_every_method():
    from nnunet_partial.orchestration.compare.methods import METHODS

    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", text, re.MULTILINE))
    assert table == {k: v.trainer for k, v in METHODS.items()}


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {i.split()[1] for i in README if i.startswith("make ")} <= targets


def test_what_is_checked_is_not_nothing():
    assert len(OWN) > 25 and len(NNUNET) > 2 and len(SCRIPTS) > 1
