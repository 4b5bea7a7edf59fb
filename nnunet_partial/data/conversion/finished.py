"""What has been converted so far: one line per case while the work goes on, one file at the end.

A line is appended when a case is complete. A line that a kill cut short is ignored, its case is converted again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_partial import _moved
from nnunet_partial.data.conversion.source import detached_data
from nnunet_partial.files import read_json, write_json

RECORD = "conversion.json"
_LINES = "conversion.jsonl"
FORMAT = 2  # raised when a new version of the converters writes other results for the same source


class FinishedCases:
    """Records of finished cases in the folder of a dataset: case -> {"fingerprint": ..., ...}."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = folder, dict(settings)
        self.cases: dict = {}
        previous = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
        if previous.get("settings") == self.settings:
            self.cases.update(previous.get("cases", {}))
        self.cases.update(self._read_lines())

    def finished(self, case: str, fingerprint: str) -> dict | None:
        """The record of a case whose source has not changed and whose files are there, else None."""
        record = self.cases.get(case)
        if not record or record["fingerprint"] != fingerprint:
            return None
        for name, size in record["written"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return record

    def add(self, case: str, record: Mapping[str, Any]) -> None:
        """Note a finished case; a killed process does not lose it."""
        self.cases[case] = dict(record)
        with open(self.folder / _LINES, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"settings": self.settings, "case": case, "record": record}) + "\n")
            handle.flush()

    def close(self, cases: Iterable[str], **facts: Any) -> None:
        """Write the record of the whole conversion, with the named cases alone."""
        content = {**facts, "settings": self.settings, "cases": {i: self.cases[i] for i in cases}}
        write_json(content, self.folder / RECORD)
        (self.folder / _LINES).unlink(missing_ok=True)

    def _read_lines(self) -> dict:
        if not (self.folder / _LINES).exists():
            return {}
        found = {}
        for line in (self.folder / _LINES).read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry["settings"] == self.settings:
                found[entry["case"]] = entry["record"]
        return found


def fingerprint(case, settings: Mapping[str, Any]) -> str:
    """Changes when a file of the case, what is read of it, or the way it is converted changes."""
    digest = hashlib.blake2b(repr((FORMAT, sorted(settings.items(), key=str), case)).encode(), digest_size=16)
    for path in case.files:
        for file in (path, *(os.path.join(os.path.dirname(path), i) for i in detached_data(path))):
            status = os.stat(file)
            digest.update(f"{status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()


__getattr__ = _moved.renamed(__name__, {"Journal": "FinishedCases"})
