"""Write the pages of docs/ that are made from the program itself: ``python scripts/write_docs.py``.

``docs/settings.md`` is the settings' dataclasses in words, the table in ``docs/troubleshooting.md`` the mistakes that
``tests/test_mistakes.py`` makes. ``tests/test_docs.py`` fails when a page is not what this makes.
"""

import html
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from nnunet_partial.files import write_text  # noqa: E402
from nnunet_partial.settings_help import Section, as_markdown, rows, sections  # noqa: E402

_SETTINGS = """# Settings

What a run does differently is written into a *plans variant* with `--set NAME=VALUE`, which may be repeated:

    nnunet_partial variant 501 --name short --set num_epochs=100 --set mskd.lambda_feature=5

and the run is told its plans: `nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerMSKD -p nnUNetPlans_short`. A value with commas is a list,
`None` takes a setting back to what nnU-Net does. A name or value that is not allowed is an error that says what is. The same list, and those
settings of it that have a word in their name or meaning:

    nnunet_partial variant --help-settings
    nnunet_partial variant --help-settings learning

`--set` of `nnunet_partial compare` takes the same. A trainer of your own has a block of its own, which is listed too if `--trainer` names it.

*methods* are the names that `--methods` of `nnunet_partial compare` takes ([what each is](methods.md)); `all` includes trainers of your own.
This page is made from the program by `python scripts/write_docs.py`.

"""


def settings_page() -> str:
    """docs/settings.md."""
    from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings

    coarse = Section(
        "Coarse to fine",
        "`--set` of the two stages of `nnunet_partial coarse-to-fine`, beside the settings of a run (Choi 2022).",
        tuple(replace(i, methods="coarse-to-fine") for i in rows(CoarseToFineSettings)),
    )
    return _SETTINGS + as_markdown([*sections(), coarse])


_BEGIN, _END = "<!-- from tests/mistakes.py, by scripts/write_docs.py -->", "<!-- end -->"


def troubleshooting_page() -> str:
    """docs/troubleshooting.md as it is, with the table of mistakes between its two marks."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    return "\n".join([before + _BEGIN, "", *_mistakes(), "", _END]) + rest.partition(_END)[2]


def _mistakes() -> list:
    """A table of what is typed and what the answer says, for every mistake that the tests make."""
    spec = importlib.util.spec_from_file_location("mistakes", ROOT / "tests" / "mistakes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mistakes"] = module
    spec.loader.exec_module(module)
    rows = [f"| {i.what} | <code>{_cell(i.command)}</code> | {_cell(i.says)} |" for i in module.MISTAKES]
    return ["| mistake | what was typed | the answer says |", "|---|---|---|", *rows]


def _cell(text: str) -> str:
    """Text as it is: nothing in it is markup."""
    return html.escape(text, quote=False).replace("*", "&#42;").replace("|", "&#124;").replace("_", "&#95;")


def pages() -> dict:
    """File -> what it must hold."""
    return {ROOT / "docs" / "settings.md": settings_page(), ROOT / "docs" / "troubleshooting.md": troubleshooting_page()}


if __name__ == "__main__":
    for file, text in pages().items():
        write_text(text, file)
        print(f"wrote {file}")
