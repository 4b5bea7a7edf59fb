"""Write the pages of docs/ that are made from the program itself: ``python scripts/write_docs.py``.

``docs/settings.md`` is the settings' dataclasses in words. ``tests/test_docs.py`` fails when a page is not what this
makes.
"""

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


def pages() -> dict:
    """File -> what it must hold."""
    return {ROOT / "docs" / "settings.md": settings_page()}


if __name__ == "__main__":
    for file, text in pages().items():
        write_text(text, file)
        print(f"wrote {file}")
