"""Imports run one way: labels, settings, paths, files, errors <- losses, networks, data <- training <- trainers.

Read from the source, so that an import within a function counts too. What is light stays light: whatever a command line
imports before it has parsed its arguments must not pull in torch or nnU-Net.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nnunet_partial"
BASE = {
    "_moved",
    "bars",
    "errors",
    "files",
    "labels",
    "methods",
    "outputs",
    "palette",
    "paths",
    "recipes",
    "safe_read",
    "settings",
    "settings_help",
    "trust",
}

# part of the package -> the parts that it may import, itself included
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    "losses": {"losses"},
    "networks": BASE | {"losses", "networks", "data"},
    "data": BASE | {"losses", "networks", "data"},
    "training": BASE | {"losses", "networks", "data", "training"},
    "trainers": BASE | {"losses", "networks", "data", "training", "trainers"},
    "orchestration": BASE | {"orchestration"},
    "evaluation": BASE | {"data", "evaluation"},
    "_ext": {"trainers", "training"},
    "study": {"_moved"},
    "variants": BASE | {"variants"},
    "inference": BASE | {"networks", "data", "evaluation", "inference", "orchestration", "variants"},
    "demo": BASE | {"api", "data", "demo", "evaluation", "orchestration"},
    "project": BASE | {"data", "evaluation", "orchestration", "project", "variants"},
    "doctor": BASE | {"data", "doctor"},
    "api": BASE | {"api", "data", "evaluation", "inference", "orchestration", "project", "variants"},
    "commands": BASE
    | {"api", "commands", "data", "demo", "doctor", "evaluation", "inference", "orchestration", "project", "variants"},
    "cli": BASE | {"cli", "commands"},
}
HEAVY = {
    "torch",
    "torchvision",
    "nnunetv2",
    "batchgenerators",
    "batchgeneratorsv2",
    "dynamic_network_architectures",
    "acvl_utils",
}
# what runs before a command has parsed its arguments, or in worker processes that only read images
LIGHT = (
    "api",
    "cli",
    "doctor",
    "commands",
    "evaluation",
    "orchestration",
    "data.images",
    "data.parallel",
    "data.raw",
    *sorted(BASE),
)


@dataclass(frozen=True)
class Import:
    """One import: the module or name as written out in full, where it stands, and whether it runs on import."""

    target: str
    line: int
    at_module_level: bool

    @property
    def top(self):
        return self.target.split(".")[0]


def imports_of(source, module, is_package=False):
    """Every import of a source text; ``from a import b`` gives ``a.b``, relative ones are resolved."""
    found = []

    def visit(node, at_module_level):
        if isinstance(node, ast.Import):
            found.extend(Import(i.name, node.lineno, at_module_level) for i in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found.extend(Import(f"{prefix}.{i.name}", node.lineno, at_module_level) for i in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        # what only a type checker reads runs never
        inside = inside or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            visit(child, at_module_level and not inside)

    visit(ast.parse(source), True)
    return found


def modules():
    """module name without the package -> (file, imports)."""
    result = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(file.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        result[name[len(PACKAGE) + 1 :]] = (file, imports_of(file.read_text(encoding="utf-8"), name, is_package))
    return result


MODULES = modules()


def part_of(module):
    return module.split(".")[0]


def own_part(target):
    """The part of the package that an import reaches, or None: another package, or a name of the package itself."""
    parts = target.split(".")
    reached = ".".join(parts[1:2])
    return reached if parts[0] == PACKAGE and any(part_of(i) == reached for i in MODULES) else None


def in_parts(*parts):
    return {name: value for name, value in MODULES.items() if any(name == i or name.startswith(i + ".") for i in parts)}


def test_the_reader_of_imports_sees_what_it_must():
    source = (
        "import torch.nn as nn, os\nfrom . import sibling\nfrom ..files import plain\n"
        "def f():\n    from nnunet_partial import trainers\n    class C:\n        import scipy\n"
        "class D:\n    import numpy\nif True:\n    import yaml\n"
    )
    found = {(i.target, i.at_module_level) for i in imports_of(source, f"{PACKAGE}.data.merge")}
    assert found == {
        ("torch.nn", True),
        ("os", True),
        ("nnunet_partial.data.sibling", True),
        ("nnunet_partial.files.plain", True),
        ("nnunet_partial.trainers", False),
        ("scipy", False),
        ("numpy", True),
        ("yaml", True),
    }
    assert imports_of("from .x import y", f"{PACKAGE}.data", is_package=True)[0].target == "nnunet_partial.data.x.y"


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_run_one_way(part):
    wrong = [
        f"{file}:{i.line} imports {i.target}"
        for file, imports in in_parts(part).values()
        for i in imports
        if own_part(i.target) not in (None, *MAY_IMPORT[part])
    ]
    assert wrong == []


def test_every_rule_is_about_something_that_exists_and_every_room_has_one():
    assert [i for i in MAY_IMPORT if not in_parts(i)] == []
    assert [i for i in LIGHT if not in_parts(i)] == []
    assert {part_of(i) for i in MODULES} - {""} == set(MAY_IMPORT)


def test_losses_import_torch_alone():
    wrong = [
        f"{file}:{i.line} imports {i.target}"
        for file, imports in in_parts("losses").values()
        for i in imports
        if i.top not in (PACKAGE, "torch") and i.top not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_the_base_imports_nothing_but_the_standard_library_at_module_level():
    wrong = [
        f"{file}:{i.line} imports {i.target}"
        for file, imports in in_parts(*BASE).values()
        for i in imports
        if i.at_module_level and i.top != PACKAGE and i.top not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_orchestration_never_imports_torch_or_nnunet():
    wrong = [
        f"{file}:{i.line} imports {i.target}"
        for file, imports in in_parts("orchestration").values()
        for i in imports
        if i.top in HEAVY
    ]
    assert wrong == []


def test_only_the_command_line_imports_commands():
    wrong = [
        f"{file}:{i.line} imports {i.target}"
        for name, (file, imports) in MODULES.items()
        for i in imports
        if own_part(i.target) in ("commands", "cli") and part_of(name) not in ("commands", "cli")
    ]
    assert wrong == []


def test_the_entry_point_imports_the_standard_library_alone():
    file = ROOT / "nnunet_partial_autoload.py"
    assert [
        i.target
        for i in imports_of(file.read_text(encoding="utf-8"), "nnunet_partial_autoload")
        if i.top not in sys.stdlib_module_names
    ] == []


def imported_on_import(name):
    """This module and all of ours that importing it imports, with the chain that leads there."""
    chains, waiting = {name: (name,)}, [name]
    while waiting:
        current = waiting.pop()
        for i in MODULES[current][1]:
            if not i.at_module_level or i.top != PACKAGE:
                continue
            path = i.target.split(".")[1:]
            # the packages on the way are imported too; the last name may be a module or something in one
            for reached in (".".join(path[:n]) for n in range(len(path) + 1)):
                if reached in MODULES and reached not in chains:
                    chains[reached] = (*chains[current], reached)
                    waiting.append(reached)
    return chains


@pytest.mark.parametrize("name", sorted(in_parts(*LIGHT)))
def test_light_modules_import_nothing_heavy(name):
    wrong = [
        f"{' -> '.join(chain)}:{i.line} imports {i.target}"
        for reached, chain in imported_on_import(name).items()
        for i in MODULES[reached][1]
        if i.at_module_level and i.top in HEAVY
    ]
    assert wrong == []
