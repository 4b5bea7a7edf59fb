"""What ``nnunet_partial check`` found as a page: its words, its page of pictures, and the shown cases to scroll through."""

import base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nnunet_partial.data.check.audit import Audit
from nnunet_partial.data.check.inspection import Inspection
from nnunet_partial.data.raw import RawDataset
from nnunet_partial.evaluation.report import scenes, viewer
from nnunet_partial.evaluation.report.charts import Picture
from nnunet_partial.files import write_text

TEMPLATE = "check.html.j2"


def write_dataset(found: Inspection, raw: RawDataset, lines: Sequence[str], picture: Path) -> Path:
    """The page of a raw dataset, beside ``picture``; returns its path."""
    return _write(f"Check of {found.name}", lines, picture, lambda: scenes.of_check(found, raw))


def write_labels(found: Audit, lines: Sequence[str], picture: Path) -> Path:
    """The page of a label directory, beside ``picture``; returns its path."""
    return _write(f"Pseudo labels of {found.labels.dataset}", lines, picture, lambda: scenes.of_audit(found))


def _write(title: str, lines: Sequence[str], picture: Path, shown: Callable[[], Iterable[viewer.Scene]]) -> Path:
    content = {"title": title, "words": "\n".join(lines), "picture": _picture(picture), "file": picture.name}
    page = picture.with_suffix(".html")
    write_text(viewer.render(TEMPLATE, content, shown), page)
    return page


def _picture(file: Path) -> Picture | None:
    """The page of pictures as it was drawn; None of a PDF, which the page leads to instead."""
    if file.suffix != ".png":
        return None
    text = "What is annotated, volumes, and the cases that are most worth a look with their labels; the words above say the same."
    return Picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode(), text, file.name)
