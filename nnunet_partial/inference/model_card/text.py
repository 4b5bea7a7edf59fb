"""A model card as Markdown. Everything it says stands in the facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_partial.inference.model_card.facts import LOOK_IT_UP

MARKDOWN = "MODEL_CARD.md"
NOT_RECORDED = "not recorded"
# metric -> heading and format of the tables of figures
_METRICS = {"dice": ("Dice", "{:.3f}"), "surface_dice": ("surface Dice", "{:.3f}"), "hausdorff95_mm": ("HD95 mm", "{:.1f}")}


def in_words(card: Mapping[str, Any]) -> str:
    """The card for people."""
    parts = {
        None: _head(card["model"]),
        "Intended use": _points(card["intended_use"]),
        "Limits": _points(card["limits"]),
        "What taught it": [*_classes(card["classes"]), "", *_sources(card["sources"])],
        "Licences of the sources": _licences(card["sources"]),
        "How it was trained": _training(card["training"]),
        "Figures": [line for i in card["figures"] for line in _figures(i)] or ["No evaluation is recorded."],
        "Versions": _points(f"{k}: {_listed(v)}" for k, v in card["versions"].items() if v),
    }
    return "\n".join("\n".join([*([] if name is None else [f"## {name}", ""]), *lines, ""]) for name, lines in parts.items())


def _head(model: Mapping[str, Any]) -> list:
    name = model["method"] or model["trainer"]
    spacing = " x ".join(f"{i:g}" for i in model["spacing_mm"] or ()) or NOT_RECORDED
    channels = ", ".join(f"{v} (channel {k})" for k, v in model["channels"].items()) or NOT_RECORDED
    exported = {"exported as": model["exported_as"]} if model["exported_as"] not in (None, model["trainer"]) else {}
    told = {
        "trainer": model["trainer"],
        **exported,
        "plans": model["plans"],
        "configuration": f"{model['configuration']}, {len(model['folds'])} fold(s): {', '.join(model['folds'])}",
        "input": channels,
        "voxels in mm that it was planned for": spacing,
        "patch": " x ".join(map(str, model["patch_size"] or ())) or NOT_RECORDED,
        "axes that predictions may be mirrored along": _listed(model["mirroring_axes"]),
    }
    return [f"# {name} on {model['dataset']}", "", *_points(f"{k}: {v}" for k, v in told.items())]


def _points(lines) -> list:
    return [f"- {i}" for i in lines]


def _listed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return NOT_RECORDED if value is None else str(value)


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> list:
    """Bars within a cell would begin another one."""
    cells = [[str(i).replace("|", "\\|").replace("\n", " ") for i in line] for line in (head, *lines)]
    rows = [f"| {' | '.join(line)} |" for line in cells]
    return [rows[0], f"|{'---|' * len(head)}", *rows[1:]]


def _counted(cases: Mapping[str, int]) -> str:
    return ", ".join(f"{k}: {v}" for k, v in cases.items()) or "nowhere"


def _classes(classes: Sequence[Mapping[str, Any]]) -> list:
    lines = []
    for one in classes:
        alone = "every case" if one["cases"] is None else _counted(one["cases"])
        lines.append([one["name"], one["value"], alone, "; ".join(f"{k} ({_counted(v)})" for k, v in one["in_unions"].items())])
    return _table(["class", "value", "annotated by itself, cases of each source", "only within a union"], lines)


def _sources(sources: Sequence[Mapping[str, Any]]) -> list:
    lines = [
        [
            i["name"],
            _listed(i["cases"]),
            "all classes" if i["annotated"] is None else _counted(i["annotated"]),
            _listed(i["unlabelled"]) if i["annotated"] is not None else 0,
            ", ".join(j for j in (i["release"] or i["converter"], i["dataset"]) if j) or NOT_RECORDED,
        ]
        for i in sources
    ]
    table = _table(["source", "cases", "annotated, on how many cases", "unlabelled cases", "what it is"], lines)
    return [*table, "", "Cases are those of the dataset; each fold but `all` held some of them out."]


def _licences(sources: Sequence[Mapping[str, Any]]) -> list:
    said = []
    for one in sources:
        where = f", {one['licence_where']}" if one["licence_where"] else ""
        note = f" ({one['licence_note']})" if one["licence_note"] else ""
        said.append(f"{one['name']}: {one['licence'] or LOOK_IT_UP}{where}{note}")
    return [*_points(said), "", "Licences are told as far as they were known when this card was made; what you agreed to counts."]


def _training(training: Mapping[str, Any]) -> list:
    said = []
    if not training["settings_recorded"]:
        said.append(f"settings: {NOT_RECORDED}; nnU-Net's own, unless its trainer says otherwise")
    if training["recipe"]:
        said.append(f"recipe: {training['recipe']}, {training['paper'] or 'of a paper'}")
    if training["only_source"]:
        said.append(f"trained on source {training['only_source']} alone")
    if training["teachers"]:
        said += [f"teacher {k}: {v}" for k, v in training["teachers"].items()]
    if training["pseudo_labels"]:
        said.append(f"annotations completed by pseudo labels, made by {_makers(training['pseudo_labels'])}")
    if training["leaves_out_pseudo_labels"]:
        said.append("the pseudo labels of some cases were left out")
    if training["starts_from_other_weights"]:
        said.append("began with the weights of another model")
    for fold, run in training["folds"].items():
        ended = f", ended {run['ended']}" if run["ended"] else ""
        said.append(f"fold {fold}: {_listed(run['epochs'])} epochs{ended}")
    settings = _table(["setting", "value"], [[f"`{k}`", f"`{v}`"] for k, v in training["settings"].items()])
    return [*_points(said), *(["", *settings] if training["settings"] else [])]


def _makers(labels: Mapping[str, Any]) -> str:
    made = [*(labels["models"] or ()), *(labels["other_tools"] or ())]
    return ", ".join(made) or "models that are not recorded here"


def _figures(figures: Mapping[str, Any]) -> list:
    metrics = [i for i in _METRICS if i in figures["mean_over_classes"]]
    lines = [
        [name, max((values[i]["n"] for i in metrics), default=0), *(_figure(values[i], i) for i in metrics)]
        for name, values in figures["classes"].items()
    ]
    mean = ["mean over classes", figures["n_cases"], *(_figure(figures["mean_over_classes"][i], i) for i in metrics)]
    compared = figures["compared"] or f"what was compared is {NOT_RECORDED}"
    return [
        f"Of {figures['what']}: {compared}. Mean and {figures['confidence']:.0%} bootstrap interval over cases; infinite distances, "
        "of structures that were missed or invented, are left out and counted.",
        "",
        *_table(["class", "cases", *(_METRICS[i][0] for i in metrics)], [*lines, mean]),
        "",
    ]


def _figure(value: Mapping[str, Any], metric: str) -> str:
    numbers = [value["mean"], *value["ci"]]
    mean, low, high = ("-" if not isinstance(i, (int, float)) else _METRICS[metric][1].format(i) for i in numbers)
    missed = f", {value['n_infinite']} missed or invented" if value.get("n_infinite") else ""
    return f"{mean} [{low}, {high}]{missed}"
