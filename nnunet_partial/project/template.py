"""A first project file, with a comment at every key: what it means stands in one place, the dataclasses that read it."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from nnunet_partial.orchestration.run.project import TABLES
from nnunet_partial.project.recognise import Recognised, source_names

_WIDTH = 100
_BLOCKS = {
    "project": "What the merged dataset is called, and where this run keeps its figures and logs.",
    "folders": "nnU-Net's folders, where the variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results are not set.",
    "source": "A download, or a raw dataset that is there already.",
    "merge": "How the sources become one dataset.",
    "plan": "What nnU-Net plans and preprocesses.",
    "training": "What all trainings share.",
    "method": "What is trained; several are compared. nnunet_partial compare --help lists them.",
    "test": "A fully labelled test set, used for the figures alone. Without one they are of cross-validation.",
    "export": "Models for stock nnU-Net, without this package.",
}


def project_text(
    found: Sequence[Recognised],
    name: str,
    dataset: int,
    first_source: int,
    test: Path | None = None,
    processes: int | None = None,
) -> str:
    """The project file of folders that were recognised. ``first_source``: number of the first raw dataset to be written."""
    parts = [f"# From downloads to a model: nnunet_partial run THIS_FILE. {_WHERE}\n"]
    parts.append(_table("project", {"name": name, "dataset": dataset}, ("out", "check")))
    parts.append(_table("folders", {}, ("raw", "preprocessed", "results")))
    number = first_source
    for one, source in zip(found, source_names(found)):
        parts.append(_source(one, source, number, commented=one is found[0]))
        number += one.converter is not None
    parts.append(_table("merge", {}, ("classes", "allow_absent", "patients")))
    plan = {"configurations": ["3d_fullres"], **({"processes": processes} if processes else {})}
    parts.append(_table("plan", plan, ("planner", "gpu_memory_gb")))
    parts.append(_table("training", {}, ("folds", "seeds", "recipe", "settings")))
    parts.append(_table("method", {"name": "partial"}, ("recipe", "settings")))
    if sum(bool(i.labelled) for i in found) > 1:
        parts.append(_table("method", {"name": "mskdplus"}, (), commented=False))
    tested = {"images": str(test / "imagesTs"), "labels": str(test / "labelsTs")} if test else {}
    parts.append(_table("test", tested, ("metric",) if test else ("images", "labels", "metric")))
    parts.append(_table("export", {}, ("methods",)))
    return "\n".join(parts)


_WHERE = "Paths are relative to this file; lines that begin with '# ' and a key are defaults."


def _source(one: Recognised, name: str, number: int, commented: bool) -> str:
    head = f"# {one}\n"
    given: dict[str, Any] = {"name": name, "dataset": one.dataset or number}
    if one.converter is not None:
        given |= {"converter": one.converter, "path": str(one.path)}
    if one.release:
        given["release"] = one.release.split(" (")[0]
    if one.converter == "generic":
        given["options"] = {"image_glob": ["*/image.nii.gz"], "label_glob": "*/label.nii.gz", "labels": "liver=1,tumor=2"}
    elif one.converter is not None and one.organs:
        given["organs"] = list(one.organs)
    if one.labelled and one.unlabelled:
        given["unlabelled_cases"] = True
    if one.reason:
        given["skip_bad"] = False
    if not one.labelled and one.converter != "generic":
        given |= {"labelled": False, "unlabelled_cases": True} if one.converter else {"labelled": False}
        given.pop("organs", None)
    more = [i for i in ("unlabelled_cases", "classes", "map", "teacher") if i not in given]
    return head + _table("source", given, more if one.labelled and commented else (), commented)


def _table(table: str, given: Mapping[str, Any], shown: Sequence[str], commented: bool = True) -> str:
    """A table with the keys ``given``, and those ``shown`` as they are by default."""
    known = {i.name: i for i in fields(TABLES[table])}
    lines = [f"# {i}" for i in textwrap.wrap(_BLOCKS[table], _WIDTH)] if commented else []
    lines.append(f"[[{table}]]" if table in ("source", "method") else f"[{table}]")
    for key in (*given, *shown):
        if commented:
            lines += [f"# {i}" for i in textwrap.wrap(f"{key}: {known[key].metadata['help']}", _WIDTH)]
        lines.append(f"{key} = {toml_value(given[key])}" if key in given else f"# {key} = {_example(known[key])}")
    return "\n".join(lines) + "\n"


def _example(key) -> str:
    default = key.default if key.default is not MISSING else key.default_factory()
    return toml_value(default) if default is not None else "..."


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
