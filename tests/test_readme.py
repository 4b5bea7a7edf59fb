"""Every command that the README or a verb's help shows is one that the program accepts."""
import re
import shlex
from pathlib import Path

import pytest

import nnunet_partial.trainers as trainers
from nnunet_partial import cli

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str) -> list:
    """Commands in the text: indented or in backticks, continued lines joined, parts of `a && b` one by one."""
    text = text.replace("\\\n", " ")
    lines = [i.strip() for i in text.splitlines() if i.startswith("    ")] + re.findall(r"`([^`]+)`", text.replace("\n", " "))
    return [part.split(" # ")[0].strip() for line in lines for part in line.split("&&")]


README = commands((ROOT / "README.md").read_text(encoding="utf-8"))
OWN = [i for i in README if re.match(r"nnunet_partial [a-z-]+ ", i)]


@pytest.mark.parametrize("command", OWN)
def test_own_commands_are_accepted(command):
    accept(command)


def accept(command):
    """Parse it as the program would; --help ends with 0, a wrong argument with 2."""
    _, verb, *arguments = shlex.split(command)
    try:
        cli.verb_parser(verb).parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, command


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_example_in_each_help_is_accepted(verb):
    help_text = cli.verb_parser(verb).format_help()
    example = help_text.split("example: ")[1].replace("\\\n", " ")
    examples = re.split(r"\n\s*(?=nn(?:unet_partial|UNetv2_\w+) )", example.strip())
    assert any(i.startswith(f"nnunet_partial {verb} ") or i == f"nnunet_partial {verb}" for i in examples)
    for text in (i for i in examples if i.startswith("nnunet_partial ")):
        accept(text)


def test_trainers_named_in_the_readme_exist():
    named = set(re.findall(r"nnUNetTrainer[A-Z]\w*", " ".join(README)))
    assert "nnUNetTrainerMSKD" in named
    assert named <= set(trainers.__all__)


def test_the_readme_shows_the_whole_way():
    assert {shlex.split(i)[1] for i in OWN} >= {"convert", "merge", "variant", "evaluate", "export"}


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {i.split()[1] for i in README if i.startswith("make ")} <= targets
