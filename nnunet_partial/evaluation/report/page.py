"""One self-contained HTML file: everything is in it, nothing is loaded from anywhere, no script runs."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnunet_partial.bars import bar
from nnunet_partial.evaluation import ranking
from nnunet_partial.evaluation.report import cases, charts, scenes, tables, verdict, viewer
from nnunet_partial.evaluation.report.inputs import Inputs
from nnunet_partial.evaluation.results import json_values, rows_by_class, summarise
from nnunet_partial.files import PathLike, json_text, write_texts

TEMPLATE = "report.html.j2"
BOX_PLOTS = ("dice", "surface_dice", "hausdorff95_mm")


def write_report(inputs: Inputs, out: PathLike, command: str = "", progress: bool = False) -> Path:
    """Write the page to ``out`` and, beside it, ``.json`` and ``.md`` with the ranking; returns the path of the page."""
    out = Path(out)
    content = contents(inputs, command, progress, out.absolute().parent)
    write_texts(
        {
            out.with_suffix(".json"): json_text(summary(inputs, content)),
            out.with_suffix(".md"): markdown_summary(content),
            out: render(content, lambda: scenes.of_report(inputs, content["methods"], content["classes"])),
        }
    )
    return out


def contents(inputs: Inputs, command: str = "", progress: bool = False, beside: Path | None = None) -> dict:
    """Everything that the template shows. ``beside``: the folder of the page, from which links lead."""
    evaluated = {row["class"] for evaluations in inputs.rows.values() for rows in evaluations for row in rows}
    known = [i for i in tables.dataset_classes(inputs.dataset, inputs.dataset_file) if i in evaluated]
    classes = [*known, *sorted(evaluated - set(known))]  # then unions and regions
    averaged = {name: ranking.average_over_seeds(i) for name, i in inputs.rows.items()}
    ranked = ranking.rank(inputs.rows, inputs.metric)
    pairs = ranking.pairwise(inputs.rows, inputs.metric)
    ordered = {i.name: averaged[i.name] for i in ranked}
    metrics = tables.metrics_of(inputs)
    summaries = {name: summarise(rows, metrics=metrics) for name, rows in ordered.items()}
    shown = ranked[0].name
    return {
        "title": inputs.title or f"Segmentation report: {Path(inputs.dataset_file).parent.name}",
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "classes": classes,
        "methods": list(dict.fromkeys([shown, *ordered])),
        "ranked": ranked,
        "pairs": pairs,
        "notes": list(inputs.notes),
        "verdict": (verdict.verdict(ranked, pairs) if len(ranked) > 1 else verdict.how_good(ranked[0], summaries[shown], inputs)),
        "warnings": verdict.warnings(inputs, summaries, classes),
        "facts": facts(inputs, classes),
        "matrix": tables.annotated_matrix(inputs.dataset, inputs.dataset_file),
        "ranking": tables.ranking(ranked, pairs, inputs.metric, inputs.heading(inputs.metric)) if len(ranked) > 1 else None,
        "significance": tables.significance([i.name for i in ranked], pairs) if len(ranked) > 1 else None,
        "results": [
            *(tables.results(summaries, classes, m, inputs.heading(m)) for m in metrics),
            *tables.global_results(summaries, classes),
        ],
        "boxes": [i for m in _box_metrics(inputs) if (i := charts.box_plot(ordered, classes, m, inputs.heading(m)))],
        "shown_method": shown,
        "metric": inputs.heading(inputs.metric),
        "cases": cases.shown_cases(inputs, shown, shown_rows(inputs, shown), classes, progress),
        "side_by_side": _side_by_side(inputs, ordered, classes, progress),
        "curves": charts.training_curves(inputs.models),
        "training": tables.training(inputs.models) if inputs.models else None,
        "costs": tables.costs(inputs.commands, inputs.models),
        "efficiency": tables.efficiency(inputs.efficiency) if inputs.efficiency else None,
        "plans": tables.plans(inputs.models) if inputs.models else None,
        "full_plans": _full_plans(inputs),
        "commands": commands(inputs, command),
        "links": links({i.label: i.folder / f"fold_{i.fold}" for i in inputs.models}, inputs.commands, beside),
        "versions": tables.versions(),
    }


def links(folders: Mapping[str, PathLike], commands: Sequence[Mapping], beside: PathLike | None) -> list:
    """``(what, where, address)`` of trained models and of the commands' logs, those that are there, led to from ``beside``."""
    logs = {i["step"]: i["log"] for i in commands if i.get("log")}
    found = [(name, Path(i)) for name, i in [*folders.items(), *logs.items()] if os.path.exists(i)]
    return [(name, str(path), _address(path, beside)) for name, path in found if beside is not None]


def _address(path: Path, beside: PathLike | None) -> str:
    """From the page on, so that a folder that is moved as a whole keeps its links; without a common drive, the file's own."""
    try:
        return quote(Path(os.path.relpath(path, beside)).as_posix())
    except ValueError:
        return path.absolute().as_uri()


def shown_rows(inputs: Inputs, method: str) -> Sequence[Mapping]:
    """The rows of the seed whose predictions are drawn: the first."""
    return inputs.methods[method][0].rows


def _box_metrics(inputs: Inputs) -> list:
    known = tables.metrics_of(inputs)
    return list(dict.fromkeys(i for i in (inputs.metric, *BOX_PLOTS) if i in known))


def _side_by_side(inputs: Inputs, ordered: Mapping[str, Sequence[Mapping]], classes: Sequence[str], progress: bool) -> list:
    """For every class, the median case of the first method as every method sees it."""
    if len(ordered) < 2:
        return []
    first, pictures = next(iter(ordered)), []
    own = rows_by_class(shown_rows(inputs, first))
    known = {m: {(i["case"], i["class"]): i[inputs.metric] for i in shown_rows(inputs, m)} for m in ordered}
    for name in bar(classes, "drawing all methods", "structure", progress):
        chosen = dict(cases.choose(own.get(name, ()), name, inputs.metric))
        row = chosen.get("median") or next(iter(chosen.values()), None)
        if row is not None:
            values = {m: table.get((row["case"], name), math.nan) for m, table in known.items()}
            picture = cases.side_by_side(inputs, name, row["case"], list(ordered), values)
            pictures += [picture] if picture else []
    return pictures


def facts(inputs: Inputs, classes: Sequence[str]) -> list:
    """What was evaluated, in a few lines."""
    number = len({row["case"] for rows in inputs.rows.values() for row in rows[0]})
    seeds = {len(i) for i in inputs.methods.values()}
    truths = sorted({str(i.about.get("truth")) for e in inputs.methods.values() for i in e})
    lines = [f"{len(inputs.methods)} method{'s' if len(inputs.methods) > 1 else ''}, {number} cases, {len(classes)} classes"]
    if max(seeds) > 1:
        lines.append(
            f"{'up to ' if len(seeds) > 1 else ''}{max(seeds)} seeds a method; every figure is of the cases' means over "
            "seeds; pictures are of the first"
        )
    return [
        *lines,
        f"truth: {', '.join(truths)}",
        "values of a class count only on cases that annotate it; distances are infinite where a structure was missed or "
        "invented, and such cases are counted, not averaged",
    ]


def _full_plans(inputs: Inputs) -> list:
    """``(name, JSON)`` of every plans file, once each."""
    found = {f"{i.plans.get('plans_name', '?')} ({i.folder.parent.name})": i.plans for i in inputs.models}
    return [(name, json.dumps(content, indent=1)) for name, content in found.items()]


def commands(inputs: Inputs, command: str = "") -> list:
    """The commands that were recorded; else those that the folders of models and evaluations tell; and this report's own."""
    own = [{"command": command}] if command else []
    if inputs.commands:
        return [*inputs.commands, *own]
    told = [i.command for i in inputs.models]
    told += [i.about["command"] for e in inputs.methods.values() for i in e if i.about.get("command")]
    return [*({"command": i} for i in dict.fromkeys(told)), *own]


def render(content: Mapping[str, Any], shown: Callable[[], Iterable[viewer.Scene]] = tuple) -> str:
    """The page as text, with a viewer of the cases that ``shown`` gives."""
    return viewer.render(TEMPLATE, content, shown)


def summary(inputs: Inputs, content: Mapping[str, Any]) -> dict:
    """The figures behind the page, for programs."""
    return json_values(
        {
            "version": 1,
            "metric": inputs.metric,
            "verdict": content["verdict"],
            "warnings": content["warnings"],
            "notes": content["notes"],
            "ranking": [vars(i) for i in content["ranked"]],
            "pairs": [vars(i) for i in content["pairs"]],
            "commands": [dict(i) for i in content["commands"]],
            "versions": dict(content["versions"]),
        }
    )


def markdown_summary(content: Mapping[str, Any]) -> str:
    """Title, verdict, ranking and the first table of results in Markdown."""
    parts = [f"# {content['title']}", content["verdict"], *content["warnings"], *content["notes"]]
    parts += [tables.markdown(content["ranking"])] if content["ranking"] else []
    parts += [f"{i.caption}\n\n{tables.markdown(i)}" for i in content["results"][:1]]
    return "\n\n".join(i for i in parts if i) + "\n"
