"""Import paths of version 0.1 that go on working for one version, with a warning.

Modules that stand elsewhere now are found through :data:`MOVED`; where a package took the name of a module, its names are
found through :func:`forward`.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder

PACKAGE = "nnunet_partial"
MOVED = {  # below the package: where a module was -> where it is
    "data.annotated": "data.preprocessed.annotated",
    "data.comparison": "data.preprocessed.sharing",
    "data.conversion.journal": "data.conversion.finished",
    "data.inspection": "data.check.inspection",
    "data.inspection_page": "data.check.page",
    "data.label_directory": "data.preprocessed.label_directory",
    "data.pools": "data.preprocessed.pools",
    "data.relabel": "data.preprocessed.relabel",
    "data.sources": "data.merge.sources",
    "data.splits": "data.preprocessed.splits",
    "evaluation.generations": "evaluation.atso_report.generations",
    "evaluation.generations_page": "evaluation.atso_report.page",
    "inference.comparison": "inference.efficiency.contenders",
    "inference.derived": "inference.coarse_to_fine.derived",
    "inference.stages": "inference.coarse_to_fine.stages",
    "orchestration.command": "orchestration.atso.command",
    "orchestration.comparison": "orchestration.compare.comparison",
    "orchestration.comparison_steps": "orchestration.compare.steps",
    "orchestration.layout": "orchestration.atso.layout",
    "orchestration.loop": "orchestration.atso.loop",
    "orchestration.methods": "orchestration.compare.methods",
    "orchestration.options": "orchestration.atso.options",
    "orchestration.split": "orchestration.atso.split",
    "orchestration.stages": "orchestration.atso.steps",
    "phantoms": "demo.phantoms",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a moved module under its old name, and says what its name is now."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(PACKAGE + ".") and fullname[len(PACKAGE) + 1 :] in MOVED:
            return importlib.util.spec_from_loader(fullname, self)
        return None

    def create_module(self, spec):
        new = f"{PACKAGE}.{MOVED[spec.name[len(PACKAGE) + 1 :]]}"
        _warn(spec.name, new)
        module = importlib.import_module(new)
        self._spec = module.__spec__  # the import system is about to write the old name's over it
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec


def install() -> None:
    """Let Python find the old names."""
    if not any(isinstance(i, MovedModules) for i in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())


def forward(package: str, module: str):
    """A ``__getattr__`` for ``package`` that finds the names of its ``module``, which stood in its place."""

    def __getattr__(name):
        # "from package import module" asks here before it looks for the module
        if not name.startswith("__") and importlib.util.find_spec(f"{package}.{name}") is None:
            found = getattr(importlib.import_module(f"{package}.{module}"), name, None)
            if found is not None:
                _warn(f"{package}.{name}", f"{package}.{module}.{name}")
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


def renamed(module: str, names: Mapping[str, str]):
    """A ``__getattr__`` for ``module`` that finds under their old names what is called otherwise now; a new name may begin
    with the name of another module below the package."""

    def __getattr__(name):
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = names[name].rpartition(".")
        place = f"{PACKAGE}.{place}" if place else module
        _warn(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return __getattr__


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes with the next version.", FutureWarning, stacklevel=3)
