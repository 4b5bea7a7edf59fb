"""Every setting of a run in words, from the dataclasses that check them: ``variant --help-settings`` and docs/settings.md.

Standard library only, and no trainer is imported: which methods read a block is read from their source (:mod:`.methods`).
"""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_partial import _moved
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.methods import package_trainers
from nnunet_partial.settings import BLOCKS, NETWORK_CHANGES, RunSettings

_ALL, _NONE = "all", "noted for the record"


@dataclass(frozen=True)
class SettingRow:
    """One setting, everything as text. ``name``: as ``--set`` takes it; ``methods``: who reads it."""

    name: str
    meaning: str
    default: str
    unit: str
    allowed: str
    methods: str


@dataclass(frozen=True)
class Section:
    """Settings that belong together, with what is to be said of all of them."""

    title: str
    about: str
    rows: tuple


def sections(more: Mapping[str, type] | None = None) -> list:
    """Everything that ``variant --set`` takes. ``more``: block -> dataclass of trainers that are not of this package."""
    network = tuple(
        SettingRow(k, v, "as planned", "voxels" if k == "patch_size" else "", "", _ALL) for k, v in NETWORK_CHANGES.items()
    )
    return [
        Section("Every run", (RunSettings.__doc__ or "").strip(), rows(RunSettings)),
        Section("Network, batch and patch", "Of nnU-Net's own configuration; preprocessing stays as it is.", network),
        *(block_section(block, cls) for block, cls in {**BLOCKS, **(more or {})}.items()),
    ]


def block_section(block: str, cls: type) -> Section:
    """The settings of one method. The first sentence of the dataclass says what they are of."""
    about = " ".join((cls.__doc__ or "").split())
    return Section(f"{block}.*", about, rows(cls, block))


def rows(cls: Any, block: str | None = None) -> tuple:
    """One :class:`SettingRow` for every field of a settings dataclass."""
    prefix = f"{block}." if block else ""
    readers = ", ".join(methods_of(block)) if block else _ALL
    return tuple(_row(i, prefix, readers) for i in dataclasses.fields(cls))


def methods_of(block: str) -> tuple:
    """Short names of the methods of this package whose settings stand in a block."""
    return tuple(sorted(i.short_name for i in package_trainers().values() if i.settings_name == block and i.short_name))


def _row(field: dataclasses.Field, prefix: str, readers: str) -> SettingRow:
    about = field.metadata
    own = about.get("methods")
    methods = readers if own is None else ", ".join(own) or _NONE
    return SettingRow(
        prefix + field.name, about.get("help", ""), _default(field), about.get("unit", ""), _allowed(about, field), methods
    )


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(field.default_factory())
    return "None" if field.default is None else field.default if isinstance(field.default, str) else json.dumps(field.default)


def _allowed(about: Mapping[str, Any], field: dataclasses.Field) -> str:
    """Type, and range or choices, in words."""
    if about.get("choices"):
        mapping = ["NAME.KEY=VALUE"] if "dict" in str(field.type) else []  # or one of the choices
        return ", ".join([*mapping, *about["choices"]])
    low, high = (about.get(i) for i in ("low", "high"))
    kind = {"bool": "true or false", "list": "list", "dict": "NAME.KEY=VALUE", "str": "text", "int": "whole number"}
    name = (field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))).split(" |")[0]
    limits = f"{low:g} to {high:g}" if low is not None and high is not None else f"{low:g} or more" if low is not None else ""
    return ", ".join(i for i in (kind.get(name, "number"), limits) if i)


def as_text(found: Sequence[Section], word: str | None = None, width: int = 100) -> str:
    """For a terminal. ``word``: only settings with it in their name or meaning. Raises :class:`UserError` if none has it."""
    lines = []
    for section in found:
        shown = [i for i in section.rows if word is None or word.lower() in f"{i.name} {i.meaning}".lower()]
        if shown:
            lines += [f"{section.title}: {section.about}" if word is None else section.title, ""]
            lines += [j for i in shown for j in (_headline(i), *_indented(i.meaning, width))] + [""]
    if not lines:
        names = [i.name for section in found for i in section.rows]
        raise UserError(
            f"no setting has {word!r} in its name or meaning. {did_you_mean(word, names)}Settings: {', '.join(names)}."
        )
    return "\n".join(lines).rstrip()


def _indented(text: str, width: int) -> list:
    return textwrap.wrap(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _headline(row: SettingRow) -> str:
    of = "" if row.methods == _ALL else f"; {row.methods}"
    unit = f" {row.unit}" if row.unit else ""
    return f"    {row.name} = {row.default}{unit}  ({row.allowed}{of})"


def as_markdown(found: Sequence[Section]) -> str:
    """Tables for a page, one a section."""
    parts = []
    for section in found:
        parts += [f"## {section.title}", "", section.about, "", "| name | meaning | unit | default | allowed | methods |"]
        parts += ["|---|---|---|---|---|---|"]
        parts += [
            "| " + " | ".join(_cell(i) for i in (f"`{r.name}`", r.meaning, r.unit, f"`{r.default}`", r.allowed, r.methods)) + " |"
            for r in section.rows
        ]
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


__getattr__ = _moved.renamed(__name__, {"Row": "SettingRow"})
