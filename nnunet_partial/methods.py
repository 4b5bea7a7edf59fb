"""Which trainers there are and what each needs, read from their source: nothing is imported, so this takes no time.

A trainer says what it is by class attributes with plain values (see
:class:`~nnunet_partial.training.base.PartialTrainer`): ``short_name`` and ``title`` of the class itself, ``needs_teachers``,
``needs_labels``, ``needs_soft_labels``, ``settings_name`` of the class or the nearest base that has them. The folders are those
that stock nnU-Net searches: its own, those of ``nnUNet_extTrainer``, and this package's.
"""

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError, did_you_mean

BASE, HOST = "PartialTrainer", "nnUNetTrainer"
_OWN = ("short_name", "title")  # never inherited: an ablation is a method of its own
_INHERITED = {"needs_teachers": False, "needs_labels": False, "needs_soft_labels": False, "settings_name": None}
_NETWORK = "build_network_architecture"


@dataclass(frozen=True)
class TrainerSource:
    """A trainer class as its source describes it.

    ``own_network``  whether stock nnU-Net, which trains and exports what its plans say, has no trainer that builds this network
    ``bases``        names of the classes before it, nearest first
    """

    name: str
    file: Path
    short_name: str | None = None
    title: str | None = None
    needs_teachers: bool = False
    needs_labels: bool = False
    needs_soft_labels: bool = False
    settings_name: str | None = None
    own_network: bool = False
    bases: tuple = ()


@dataclass
class _Class:
    file: Path
    bases: list
    values: dict = field(default_factory=dict)
    builds_network: bool = False


def package_trainers() -> dict:
    """name -> :class:`TrainerSource` of every trainer of this package, in the order of their files."""
    return _described(_classes(_package_folder()), {})


def find_trainer_source(name: str) -> TrainerSource:
    """What the source of any trainer says that stock nnU-Net finds. Raises :class:`UserError` for one that it does not."""
    known = _all_trainers()
    if name not in known:
        raise UserError(
            f"nnU-Net finds no trainer called {name}. "
            + did_you_mean(name, known)
            + "If it is one of your own, add its folder: export nnUNet_extTrainer=/path/to/folder"
        )
    return known[name]


def trainers_with_block(block: str) -> list:
    """Names of the trainers whose settings stand in the block ``block`` of a plans file."""
    return [i.name for i in _all_trainers().values() if i.settings_name == block]


def _all_trainers() -> dict:
    ours, found = _classes(_package_folder()), {}
    for folder in _searched_folders():  # as nnU-Net does: the first folder with a class of that name wins
        found = {**_described(_classes(folder), ours), **found}
    return found


def _package_folder() -> Path:
    return Path(__file__).parent / "trainers"


def _stock_folders() -> Iterator[Path]:
    spec = find_spec("nnunetv2")
    if spec is not None and spec.submodule_search_locations:
        yield Path(spec.submodule_search_locations[0]) / "training" / "nnUNetTrainer"


def _searched_folders() -> Iterator[Path]:
    yield from _stock_folders()
    for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        if folder.strip() and Path(folder).is_dir():
            yield Path(folder)
    yield _package_folder()


def _described(classes: Mapping[str, _Class], more: Mapping[str, _Class]) -> dict:
    """Of ``classes``, which may build on ``more``, those that nnU-Net can train."""
    known, stock = {**more, **classes}, tuple(_stock_folders())
    described = {}
    for name, found in classes.items():
        lineage = _lineage(name, known)
        if not any(i == BASE or i.startswith(HOST) for i in lineage):
            continue
        values: dict[str, Any] = {k: found.values.get(k) for k in _OWN}
        for key, default in _INHERITED.items():
            values[key] = next((known[i].values[key] for i in lineage if i in known and key in known[i].values), default)
        builder = next((known[i].file for i in lineage if i in known and known[i].builds_network), None)
        values["own_network"] = builder is not None and not any(builder.is_relative_to(i) for i in stock)
        described[name] = TrainerSource(name, found.file, bases=tuple(lineage[1:]), **values)
    return described


def _lineage(name: str, known: Mapping[str, _Class]) -> list:
    """A class and its bases by name, nearest first."""
    found, waiting = [], [name]
    while waiting:
        current = waiting.pop(0)
        if current not in found:
            found.append(current)
            waiting += known[current].bases if current in known else []
    return found


def _classes(folder: Path) -> dict:
    """name -> class of every class statement at the top of the modules below ``folder``."""
    found: dict[str, _Class] = {}
    for file in sorted(folder.rglob("*.py")):
        found.update(_classes_of(file, file.stat().st_mtime_ns))
    return found


@lru_cache(maxsize=1024)
def _classes_of(file: Path, changed: int) -> dict:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return {}  # nnU-Net's own search fails there, and says where
    return {
        node.name: _Class(
            file,
            [_last_name(i) for i in node.bases],
            _values(node, file),
            any(isinstance(i, ast.FunctionDef) and i.name == _NETWORK for i in node.body),
        )
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _values(node: ast.ClassDef, file: Path) -> dict:
    """The attributes that describe a method, where the class sets them."""
    values = {}
    for statement in node.body:
        for target, value in _assignments(statement):
            name = _last_name(target)
            if name in _OWN or name in _INHERITED:
                values[name] = _literal(value, f"{file}:{statement.lineno}: {node.name}.{name}")
    return values


def _assignments(statement: ast.stmt) -> Iterator[tuple]:
    """(target, value) of each name that a statement sets: ``a = b = 1``, ``a, b = 1, 2``, ``a: int = 1``."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        yield statement.target, statement.value
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                yield from zip(target.elts, statement.value.elts)
            else:
                yield target, statement.value


def _literal(node: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise UserError(f"{where} is read from the source. Write it as a plain value, such as True or a text.") from None
