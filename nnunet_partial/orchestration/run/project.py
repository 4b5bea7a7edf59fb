"""The project file: what there is, what is wanted of it. TOML; every key is a field of a dataclass here, with what it means.

Paths are relative to the file. Nothing is looked for here, but for the file itself: what the data have to say is the
checks' own affair.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike, read_parsed
from nnunet_partial.labels import check_source_name
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.recipes import read_recipe
from nnunet_partial.settings import merged, parse_assignments, read_settings, setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")
# nnU-Net's planner -> how it calls the plans
PLANNERS = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}
FOLDERS = {"raw": "nnUNet_raw", "preprocessed": "nnUNet_preprocessed", "results": "nnUNet_results"}


@dataclass(frozen=True)
class Naming:
    """``[project]``"""

    name: str = setting("", "name of the merged dataset: DatasetNNN_NAME")
    dataset: int = setting(0, "its number", low=1, high=999)
    out: str | None = setting(None, "folder of this run: jobs, logs, figures, report; left out: NAME_run beside the file")
    check: str = setting(
        "stop",
        "what becomes of the findings of nnunet_partial check: an error stops the run, is reported alone, or nothing is looked at",
        choices=("stop", "report", "off"),
    )


@dataclass(frozen=True)
class Folders:
    """``[folders]``"""

    raw: str | None = setting(None, "nnU-Net's folder of raw datasets; left out: the variable nnUNet_raw")
    preprocessed: str | None = setting(None, "of preprocessed datasets; left out: the variable nnUNet_preprocessed")
    results: str | None = setting(None, "of models; left out: the variable nnUNet_results")


@dataclass(frozen=True)
class SourceBlock:
    """``[[source]]``"""

    name: str = setting("", "of the source in the merged dataset, and the beginning of its cases' names")
    dataset: int = setting(0, "number of the raw dataset: to be written by the converter, or there already", low=1, high=999)
    converter: str | None = setting(
        None, "who reads the download, see nnunet_partial convert --help; left out: the dataset is there"
    )
    path: str | None = setting(None, "folder of the download, unpacked")
    release: str | None = setting(None, "the release that it must be, as the converter tells it; left out: any")
    organs: list | None = setting(
        None, "structures to convert, each NAME or NAME=STRUCTURE+STRUCTURE; left out: the converter's choice"
    )
    options: dict = setting({}, "further options of the converter, with _ for -")
    skip_bad: bool = setting(False, "go on although the converter had to skip cases")
    unlabelled_cases: bool = setting(False, "also convert the cases without labels")
    labelled: bool = setting(True, "false: the images alone are used")
    classes: list | None = setting(
        None, "classes of the merged label map that it teaches, a union as a+b; left out: all that it annotates"
    )
    map: dict = setting({}, "label of the dataset -> class or union of the merged label map, background or ignore")
    cases: str | None = setting(None, "text file of the cases to take, one a line; left out: all")
    teacher: str | None = setting(None, "model folder of a teacher that was trained elsewhere; left out: it is trained here")


@dataclass(frozen=True)
class MergeBlock:
    """``[merge]``"""

    classes: list | None = setting(None, "all classes in the order of their values; left out: as the sources mention them")
    taught: list | None = setting(None, "classes that no source annotates by itself, because a model knows them; left out: none")
    allow_absent: bool = setting(False, "accept a source that annotates a class which none of its label files holds")
    allow_parts: bool = setting(False, "accept classes that are parts of each other by their names")
    patients: str | None = setting(None, "CSV with the columns case and patient")
    headers_only: bool = setting(False, "do not read the voxels of the images: faster, less is noticed")
    replace_not_finite: float | None = setting(None, "value in place of NaN and infinite voxels; left out: they are an error")


@dataclass(frozen=True)
class PlanBlock:
    """``[plan]``"""

    configurations: list = setting(
        ["3d_fullres"], f"of nnU-Net, each trained and reported by itself: {', '.join(CONFIGURATIONS)}"
    )
    planner: str = setting("ExperimentPlanner", "nnU-Net's experiment planner", choices=tuple(PLANNERS))
    gpu_memory_gb: float | None = setting(None, "memory that the planner may fill; left out: the planner's own", unit="GB", low=1)
    processes: int | None = setting(None, "processes of preprocessing; left out: nnU-Net's own number", low=1)


@dataclass(frozen=True)
class TrainingBlock:
    """``[training]``"""

    folds: list | None = setting(None, 'folds to train, or ["all"]; left out: 0 with a test set, 0 to 4 without')
    seeds: list = setting([0], "each method is trained once with each")
    recipe: str | None = setting(None, "how a paper trains, for every method; left out: as nnU-Net does")
    settings: dict = setting({}, "settings of every method, as nnunet_partial variant --set takes them, nested")
    atso_generations: int = setting(5, "generations of the method atso", low=1)


@dataclass(frozen=True)
class MethodBlock:
    """``[[method]]``"""

    name: str = setting("", "as nnunet_partial compare --methods calls it, or trainer=CLASS")
    recipe: str | None = setting(None, "how its paper trains; left out: as all")
    settings: dict = setting({}, "settings of this method alone, laid over those of all")


@dataclass(frozen=True)
class TestBlock:
    """``[test]``"""

    __test__ = False  # no test of pytest's

    images: str | None = setting(None, "folder of the test images, named as nnU-Net wants them; left out: cross-validation")
    labels: str | None = setting(None, "folder of their labels, all classes on every case")
    metric: str = setting("dice", "of the ranking")
    mirroring: bool = setting(True, "predict with mirrored copies too: better, up to eight times slower")
    efficiency: int = setting(0, "cases on which time and memory of prediction are measured", unit="cases", low=0)


@dataclass(frozen=True)
class ExportBlock:
    """``[export]``"""

    methods: list | None = setting(
        None, "methods whose models are exported for stock nnU-Net; left out: all whose network it has; [] for none"
    )


_TABLES = {
    "project": Naming,
    "folders": Folders,
    "merge": MergeBlock,
    "plan": PlanBlock,
    "training": TrainingBlock,
    "test": TestBlock,
    "export": ExportBlock,
}
_LISTS = {"source": SourceBlock, "method": MethodBlock}
TABLES = {**_TABLES, **_LISTS}


@dataclass(frozen=True)
class Project:
    """A project file as read. Paths are absolute."""

    file: Path
    project: Naming = field(default_factory=Naming)
    folders: Folders = field(default_factory=Folders)
    sources: tuple = ()
    merge: MergeBlock = field(default_factory=MergeBlock)
    plan: PlanBlock = field(default_factory=PlanBlock)
    training: TrainingBlock = field(default_factory=TrainingBlock)
    methods: tuple = ()
    test: TestBlock = field(default_factory=TestBlock)
    export: ExportBlock = field(default_factory=ExportBlock)

    @property
    def dataset(self) -> str:
        """``Dataset501_NAME``"""
        return f"Dataset{self.project.dataset:03d}_{self.project.name}"

    @property
    def out(self) -> Path:
        return Path(self.project.out or self.file.parent / f"{self.project.name}_run")

    @property
    def plans(self) -> str:
        """Identifier of the plans that nnU-Net will write."""
        memory = self.plan.gpu_memory_gb
        return PLANNERS[self.plan.planner] + (f"_{memory:g}GB" if memory else "")

    @property
    def folds(self) -> tuple:
        given = self.training.folds or ([0] if self.test.images else [0, 1, 2, 3, 4])
        return tuple(str(i) for i in given)

    @property
    def settings(self) -> dict:
        """Settings of every method; the teachers that sources name are among them."""
        given = {i.name: i.teacher for i in self.sources if i.teacher}
        if not given:
            return dict(self.training.settings)
        return merged(self.training.settings, {"mskd": {"teachers": given}})

    @property
    def exported(self) -> tuple:
        """Names of the methods whose models are exported."""
        if self.export.methods is not None:
            return tuple(self.export.methods)
        return tuple(i.name for i in self.methods if not _own_network(i.name))

    def environment(self) -> dict:
        """nnU-Net's variables that the file sets."""
        return {v: value for k, v in FOLDERS.items() if (value := getattr(self.folders, k))}

    def to_json(self) -> dict:
        """Everything that the result depends on, for the journal."""
        own = {k: getattr(self, k) for k in ("project", "merge", "plan", "training", "test", "export")}
        flat = {f"{k}.{i.name}": getattr(v, i.name) for k, v in own.items() for i in fields(v)}
        flat |= {f"source.{s.name}.{i.name}": getattr(s, i.name) for s in self.sources for i in fields(s)}
        return flat | {f"method.{m.name}": {"recipe": m.recipe, "settings": m.settings} for m in self.methods}


def read_project(file: PathLike) -> Project:
    """Read a project file. Raises :class:`UserError`, one line with file, table and key, for whatever it cannot mean."""
    file = Path(os.path.abspath(file))
    content = _read(file)
    _check_tables(content, file)
    tables = {k: read_settings(cls, content.get(k, {}), f"{file}: [{k}]", "") for k, cls in _TABLES.items()}
    lists = {k: _read_list(content.get(k, []), k, cls, file) for k, cls in _LISTS.items()}
    project = Project(file, sources=lists["source"], methods=lists["method"], **tables)
    _check(project)
    return _with_absolute_paths(project)


def _read(file: Path) -> Mapping[str, Any]:
    missing, broken = "Write one with nnunet_partial init.", "Texts stand in quotes, tables in brackets."
    return read_parsed(file, tomllib.loads, "TOML", missing, broken)


def _check_tables(content: Mapping[str, Any], file: Path) -> None:
    for name, value in content.items():
        if name not in TABLES:
            raise UserError(f"{file}: unknown table [{name}]. {did_you_mean(name, TABLES)}Tables: {', '.join(TABLES)}.")
        if not isinstance(value, list if name in _LISTS else dict):
            written = f"[[{name}]], once for each" if name in _LISTS else f"[{name}]"
            raise UserError(f"{file}: {name} must be written as {written}.")


def _read_list(entries: Sequence[Any], table: str, cls: type, file: Path) -> tuple:
    found = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("name") if isinstance(entry, dict) else None
        block = read_settings(cls, entry, f"{file}: [[{table}]] {name or number}", "")
        if not block.name:
            raise UserError(f'{file}: [[{table}]] number {number} has no name. Add name = "...".')
        if block.name in [i.name for i in found]:
            raise UserError(f"{file}: two [[{table}]] are called {block.name}. Rename or remove one.")
        found.append(block)
    return tuple(found)


def _check(project: Project) -> None:
    """What can be said without looking for anything else."""
    file = project.file
    for key, value, example in (
        ("name", project.project.name, '"AbdomenPartial"'),
        ("dataset", project.project.dataset, "501"),
    ):
        if not value:
            raise UserError(f"{file}: [project] has no {key}. Add {key} = {example}.")
    _within(f"{file}: [project] name", check_source_name, project.project.name)
    for source in project.sources:
        _check_source(source, file)
    _check_numbers(project)
    _check_plan(project)
    _check_training(project)


def _check_source(source: SourceBlock, file: Path) -> None:
    where = f"{file}: [[source]] {source.name}"
    _within(where, check_source_name, source.name)
    if not source.dataset:
        raise UserError(f"{where} has no dataset: the number under which it is, or is to be, a raw dataset. Add dataset = 101.")
    if (source.converter is None) != (source.path is None):
        missing = "converter" if source.converter is None else "path"
        raise UserError(f"{where} has no {missing}. A download needs converter and path; a dataset that is there neither.")
    idle = [i for i in ("release", "organs", "options", "skip_bad", "unlabelled_cases") if getattr(source, i)]
    if source.converter is None and idle:
        raise UserError(f"{where}: {idle[0]} has no effect without a converter. Leave it out.")
    if not source.labelled and (source.classes or source.map or source.teacher):
        raise UserError(f"{where}: classes, map and teacher have no effect with labelled = false. Leave them out.")


def _check_numbers(project: Project) -> None:
    """Ids of datasets that are to be written must differ."""
    owners = {project.project.dataset: "[project]"}
    for source in project.sources:
        owner = owners.setdefault(source.dataset, f"[[source]] {source.name}")
        if owner != f"[[source]] {source.name}":
            raise UserError(
                f"{project.file}: [[source]] {source.name} has dataset = {source.dataset}, which is that of {owner}. Choose another."
            )


def _check_plan(project: Project) -> None:
    given = project.plan.configurations
    wrong = [i for i in given if i not in CONFIGURATIONS]
    if wrong or not given or len(set(given)) < len(given):
        raise UserError(
            f"{project.file}: [plan] configurations = {json.dumps(given)} cannot be run. "
            f"{did_you_mean(wrong[0], CONFIGURATIONS) if wrong else ''}Give each once, and at least one, of "
            f"{', '.join(CONFIGURATIONS)}."
        )


def _check_training(project: Project) -> None:
    file, t = project.file, project.training
    if not project.methods:
        raise UserError(f'{file}: there is no [[method]]. Add one, for example [[method]] with name = "partial".')
    for method in project.methods:
        where = f"{file}: [[method]] {method.name}"
        _within(where, find_methods, [method.name])
        if method.name == "full":
            raise UserError(f"{where} needs a dataset with all labels, which a project has not. Use nnunet_partial compare.")
        if method.recipe:
            _within(where, read_recipe, method.recipe)
    if t.recipe:
        _within(f"{file}: [training]", read_recipe, t.recipe)
    for key, values, kinds in (("folds", t.folds or [0], (int,)), ("seeds", t.seeds, (int,))):
        wrong = [i for i in values if type(i) not in kinds or i < 0]
        if (wrong and values != ["all"]) or not values or len({*map(str, values)}) < len(values):
            raise UserError(f"{file}: [training] {key} = {json.dumps(values)}: give whole numbers from 0 on, each once.")
    if (project.test.images is None) != (project.test.labels is None):
        raise UserError(f"{file}: [test] images and labels belong together. Give both, or none for cross-validation.")
    if t.folds == ["all"] and project.test.images is None:
        raise UserError(f'{file}: [training] folds = ["all"] leaves no case to validate on. Name folds, or give a [test].')
    unknown = [i for i in project.export.methods or () if i not in [m.name for m in project.methods]]
    if unknown:
        names = [i.name for i in project.methods]
        raise UserError(
            f"{file}: [export] methods: {unknown[0]!r} is none of this project. {did_you_mean(unknown[0], names)}They are {', '.join(names)}."
        )
    refused = [i for i in project.export.methods or () if _own_network(i)]
    if refused:
        raise UserError(
            f"{file}: [export] methods: stock nnU-Net does not have the network of {refused[0]!r}. Leave it out, and predict with it where "
            "nnunet_partial is installed."
        )


def _own_network(name: str) -> bool:
    """Whether a method's network is none of stock nnU-Net's."""
    return any(i.own_network for i in find_methods([name]).values())


def _within(where: str, check, *arguments) -> None:
    """Call a check whose message does not know of the file."""
    try:
        check(*arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# ---- paths

_PATHS = {
    "project": ("out",),
    "folders": tuple(FOLDERS),
    "merge": ("patients",),
    "test": ("images", "labels"),
    "source": ("path", "cases", "teacher"),
}


def _with_absolute_paths(project: Project) -> Project:
    def absolute(block: Any, table: str) -> Any:
        found = {i: getattr(block, i) for i in _PATHS[table]}
        changed = {k: os.path.abspath(project.file.parent / os.path.expanduser(v)) for k, v in found.items() if v}
        return replace(block, **changed)

    tables = {k: absolute(getattr(project, k), k) for k in _PATHS if k != "source"}
    return replace(project, sources=tuple(absolute(i, "source") for i in project.sources), **tables)


def assignments(settings: Mapping[str, Any], prefix: str = "") -> tuple:
    """Nested settings as ``--set`` takes them: ``("mskd.lambda_feature=5", ...)``."""
    found: list = []
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value and not _is_value(prefix + name)
        if nested:
            found += assignments(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={_text(value)}")
    return tuple(found)


def _is_value(name: str) -> bool:
    """Settings that are mappings themselves are written as one value: their keys may hold dots."""
    return name in ("mskd.teachers", "atso.super_classes")


def _text(value: Any) -> str:
    """As ``parse_assignments`` reads it."""
    plain = isinstance(value, str) and parse_assignments([f"name={value}"])["name"] == value
    return value if plain else json.dumps(value)
