"""The folder of a download, read without leaving it."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_DOCUMENTS = (".txt", ".md", ".pdf", ".json", ".csv", ".xlsx", ".html", ".docx")
_NOT_DATA = re.compile(r"(^|/)(\.|__MACOSX(/|$))")


class SourceFolder:
    """Files below SRC, and below what else the user names. No path in a file of the download leads outside, and no link unless that is
    allowed."""

    def __init__(self, folder: PathLike, follow_links: bool = False):
        self.given = os.fspath(folder)
        if not os.path.isdir(self.given):
            what = "is a file; unpack it and name the folder" if os.path.exists(self.given) else "does not exist"
            raise UserError(f"source folder {self.given} {what}.")
        self.root = Path(os.path.realpath(self.given))
        self._roots = [self.root]
        self.follow_links = follow_links
        self._paths: list | None = None

    def beside(self, folder: PathLike) -> "SourceFolder":
        """Another folder that the user names; its files are none outside of this one either."""
        other = SourceFolder(folder, self.follow_links)
        self._roots.append(other.root)
        return other

    def paths(self) -> list:
        """Relative paths (with ``/``) of all files below the folder, in natural order, hidden ones left out."""
        if self._paths is None:
            self._paths = sorted(self._walk(), key=natural_key)
        return self._paths

    def match(self, pattern: str) -> Iterator[tuple]:
        """``(path, match)`` of every file whose relative path ``re.fullmatch``-es the pattern, whatever its case."""
        compiled = re.compile(pattern, re.IGNORECASE)
        for path in self.paths():
            match = compiled.fullmatch(path)
            if match:
                yield self.root / path, match

    def collect(self, pattern: str, name: str = "{0}") -> dict:
        """``{name: path}`` of the files that match; ``name`` is a format of the pattern's groups.

        Raises :class:`UserError` when two files have the same name.
        """
        found: dict = {}
        for path, match in self.match(pattern):
            key = name.format(*match.groups())
            if key in found:
                raise UserError(f"{key} is there twice: {found[key]} and {path}. Remove one.")
            found[key] = path
        return found

    def find(self, pattern: str) -> Path | None:
        """The one file that matches, or None. Raises :class:`UserError` when several do."""
        found = [path for path, _ in self.match(pattern)]
        if len(found) > 1:
            raise UserError(
                f"{self.given} holds both {self.relative(found[0])} and {self.relative(found[1])}. Name the folder "
                f"of one release."
            )
        return found[0] if found else None

    def require_unpacked(self) -> None:
        """Raise :class:`UserError` if the folder holds archives and nothing else but documents."""
        archives = [i for i in self.paths() if i.lower().endswith(_ARCHIVES)]
        others = [i for i in self.paths() if not i.lower().endswith((*_ARCHIVES, *_DOCUMENTS))]
        if archives and not others:
            raise UserError(
                f"{self.given} holds {len(archives)} archive{'s' if len(archives) > 1 else ''} and no images: unpack "
                f"{', '.join(archives[:3])}{' and the others' if len(archives) > 3 else ''} there first."
            )

    def json(self, path: PathLike):
        """Content of a JSON file of the download."""
        self.check(path)
        return read_json(path, "Download the dataset again.")

    def relative(self, path: PathLike) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def named(self, reference, where: PathLike, base: Path | None = None) -> Path:
        """The file that ``where``, a file of the download, names. It must lie inside, whatever is allowed for links."""
        if not isinstance(reference, str) or not reference:
            raise UserError(f"{where} names {reference!r} where the path of a file is expected. Download the dataset again.")
        path = Path(os.path.normpath(os.path.join(base or os.path.dirname(where), reference)))
        if not self._holds(path):
            raise UserError(
                f"{where} names the file {reference!r}, which lies outside {self.given}. It is not read; use the "
                f"original file of the dataset."
            )
        return path

    def check(self, path: PathLike) -> None:
        """Raise :class:`UserError` unless ``path`` is a readable file; neither it nor its header may lead outside."""
        path = os.fspath(path)
        try:
            real = os.path.realpath(path, strict=True)
        except OSError as error:
            raise UserError(f"{path} is {'a loop of links' if error.errno == errno.ELOOP else 'missing'}") from None
        if not self.follow_links and not self._holds(Path(real)):
            raise UserError(f"{path} is a link to {real}, outside {self.given}; allow it with --follow-links")
        if not os.path.isfile(real):
            raise UserError(f"{path} is not a file")
        if not os.access(real, os.R_OK):
            raise UserError(f"{path} cannot be read: permission denied")
        for reference in detached_data(path):
            data = self.named(reference, path)
            if data.suffix.lower() in _HEADERS:
                raise UserError(f"{path} names another header, {reference!r}, as its data")
            self.check(data)

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(i) for i in self._roots)

    def _walk(self) -> Iterator[str]:
        seen = set()

        def stop(error):
            raise UserError(f"{error.filename} cannot be read: {error.strerror}")

        for folder, folders, names in os.walk(self.root, followlinks=self.follow_links, onerror=stop):
            real = os.path.realpath(folder)
            if real in seen:
                folders[:] = []
                continue
            seen.add(real)
            relative = os.path.relpath(folder, self.root).replace(os.sep, "/")
            prefix = "" if relative == "." else relative + "/"
            folders[:] = [i for i in folders if not _NOT_DATA.search(i)]
            yield from (prefix + i for i in names if not _NOT_DATA.search(i))


def natural_key(text: str) -> list:
    """``volume-2`` before ``volume-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(text))]


_HEADERS = (".nhdr", ".nrrd", ".mhd", ".mha")


def detached_data(path: PathLike) -> list:
    """Files that the header of a NRRD or MetaImage file names as its data, as they are written there."""
    if os.path.splitext(os.fspath(path))[1].lower() not in _HEADERS:
        return []
    fields = _text_header(path)
    named = fields.get("datafile") or fields.get("elementdatafile")
    if not named or named.strip().upper() == "LOCAL":
        return []
    first, *following = named.split("\n")
    if first.split()[0].upper().startswith("LIST"):
        return [i.strip() for i in following if i.strip()]
    return _numbered(first) if "%" in first else [first.strip()]


def _numbered(pattern: str) -> list:
    """``slice%03d.raw 1 20 1`` -> the names."""
    try:
        name, low, high, step = pattern.split()[:4]
        numbers = range(int(low), int(high) + 1, int(step))
        return [name % i for i in numbers[:10000]]
    except (ValueError, TypeError):
        raise UserError(f"the data file pattern {pattern!r} of an image header cannot be read") from None


def _text_header(path: PathLike) -> dict:
    """Fields ``key: value`` or ``key = value`` before the first empty line; keys in lower case, without spaces."""
    with open(path, "rb") as handle:
        head = handle.read(1 << 16)
    fields, last = {}, None
    for line in head.split(b"\n"):
        text = line.decode("latin-1").rstrip("\r")
        if not text.strip():
            break
        match = re.match(r"([A-Za-z0-9 _]+?)\s*(?::=?|=)\s*(.*)", text)
        if match and not (last == "datafile" and fields[last].upper().startswith("LIST")):
            last = match[1].replace(" ", "").lower()
            fields[last] = match[2]
        elif last in ("datafile", "elementdatafile"):
            fields[last] += "\n" + text
        if last == "elementdatafile" and fields[last].strip().upper() == "LOCAL":
            break
    return fields
