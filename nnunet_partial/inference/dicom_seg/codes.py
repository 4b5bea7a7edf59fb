"""What a class is in a code that other programs know: SNOMED CT, of the codes that the DICOM standard itself uses.

``snomed_ct.csv`` is the table: one line a structure, its other names behind it. All codes are in PS3.16 of the standard, which
may be used without a SNOMED licence. A class that the table does not know has a code of our own scheme.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike, sha256

TABLE = Path(__file__).with_name("snomed_ct.csv")
SNOMED, PRIVATE = "SCT", "99NNUNET_PARTIAL"  # 99: a scheme of one's own; at most 16 characters
PRIVATE_NAME = "Class names of an nnU-Net model, by nnunet_partial"
COLUMNS = ("name", "kind", "code", "meaning", "sides", "also")
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
CATEGORIES = {
    "organ": (SNOMED, "91723000", "Anatomical Structure"),
    "tissue": (SNOMED, "85756007", "Tissue"),
    "lesion": (SNOMED, "49755003", "Morphologically Abnormal Structure"),
}
_CODE_CHARACTERS, _MEANING_CHARACTERS = 16, 64  # of DICOM's short and long strings


@dataclass(frozen=True)
class Structure:
    """What a class is. ``kind``: of :data:`CATEGORIES`; ``region``: the organ that a lesion lies in, ``side`` of SIDES."""

    scheme: str
    code: str
    meaning: str
    kind: str
    side: str = ""
    region: "Structure | None" = None


@dataclass(frozen=True)
class _Row:
    structure: Structure
    has_sides: bool


class Codes:
    """The codes of classes by their names, whatever their case and between their words: ``Left Kidney``, ``kidney_left``."""

    def __init__(self, *tables: PathLike):
        """Later tables come before earlier ones. Raises :class:`UserError` for a table that cannot be used."""
        self.tables = tables
        self._rows: dict = {}
        for table in tables:
            self._rows.update(_read(Path(table)))

    def of(self, name: str) -> Structure:
        """The structure that a class of this name is; one of our own scheme where the table does not know it."""
        words = _words(name)
        return self._known(words) or self._lesion(words) or _private(name)

    def sha256(self) -> list:
        """Hashes of the tables."""
        return [sha256(i) for i in self.tables]

    def _known(self, words: Sequence[str]) -> Structure | None:
        row = self._rows.get("_".join(words))
        if row:
            return row.structure
        sides = [i for i in words if i in SIDES]
        row = self._rows.get("_".join(i for i in words if i not in SIDES))
        return replace(row.structure, side=sides[0]) if row and row.has_sides and len(sides) == 1 else None

    def _lesion(self, words: Sequence[str]) -> Structure | None:
        """``kidney_cyst_left``: the last word but for the side is a lesion, the others say where."""
        plain = [i for i in words if i not in SIDES]
        lesion = self._rows.get(plain[-1]) if len(plain) > 1 else None
        if lesion is None or lesion.structure.kind != "lesion":
            return None
        region = self._known([i for i in words if i != plain[-1]])
        return replace(lesion.structure, region=region) if region and region.kind == "organ" else None


def standard_codes(own: PathLike | None = None) -> Codes:
    """The table of this package, and a table of the user's own before it."""
    return _of_package() if own is None else Codes(TABLE, own)


@lru_cache
def _of_package() -> Codes:
    return Codes(TABLE)


def _words(name: str) -> list:
    return re.findall(r"[^\W_]+", name.lower())


def _private(name: str) -> Structure:
    """The name is the code; a long one is told apart by a hash of all of it."""
    clean = " ".join(name.replace("\\", " ").split())
    code = clean
    if len(code) > _CODE_CHARACTERS:
        code = f"{clean[:7]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Structure(PRIVATE, code, clean[:_MEANING_CHARACTERS], "organ")


def _read(table: Path) -> dict:
    try:
        with open(table, newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read as a table of codes ({error}).") from None
    missing = [i for i in COLUMNS[:4] if not lines or i not in lines[0]]
    if missing:
        raise UserError(f"{table} has no column {missing[0]}, or no line. Its first line is {','.join(COLUMNS)}.")
    rows: dict = {}
    for number, line in enumerate(lines, 2):
        row = _row(line, f"{table} line {number}")
        for name in _names(line):
            if rows.setdefault(name, row) is not row:
                raise UserError(f"{table} line {number}: {name} is there twice. Remove one.")
    return rows


def _names(line: dict) -> Iterable[str]:
    return ["_".join(_words(i)) for i in (line["name"], *(line.get("also") or "").split())]


def _row(line: dict, where: str) -> _Row:
    kind, code, meaning = ((line[i] or "").strip() for i in ("kind", "code", "meaning"))
    if kind not in CATEGORIES:
        raise UserError(f"{where}: kind is {', '.join(CATEGORIES)}, found {kind!r}. {did_you_mean(kind, CATEGORIES)}")
    if not re.fullmatch(r"\d{6,18}", code):
        raise UserError(f"{where}: {code!r} is no code of SNOMED CT, which has 6 to 18 digits.")
    if not _words(line["name"] or "") or not 0 < len(meaning) <= _MEANING_CHARACTERS or "\\" in meaning:
        raise UserError(
            f"{where}: name and meaning are needed, the meaning of at most {_MEANING_CHARACTERS} characters, no backslash."
        )
    return _Row(Structure(SNOMED, code, meaning, kind), (line.get("sides") or "").strip().lower() in ("paired", "yes"))
