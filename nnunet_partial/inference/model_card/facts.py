"""The facts of a model card, from what nnU-Net and this package record anyway: plans, contract, checkpoints, evaluations.

Nothing is asked and nothing guessed: what is not recorded is null, and the card says so. The names of cases, and places on
the machine that trained the model, stay out; so do dates other than those of the trainings, so that a model's card is the same
whenever it is made.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnunet_partial import __version__, paths
from nnunet_partial.data.preprocessed.label_directory import PROVENANCE
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.results import CONFIDENCE, json_values, summarise
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import FULLY_LABELLED_SOURCE, KEY, PROVENANCE_KEY, Annotations, Union, structure
from nnunet_partial.methods import find_trainer_source
from nnunet_partial.recipes import read_recipe

VERSION = 1
JSON = "model_card.json"
LICENCES = Path(__file__).with_name("licences.json")
LOOK_IT_UP = "not known here: look it up before you share or use the model"
LEFT_OUT = "(left out: a place on the machine that trained it)"
# settings that the card tells in words of its own, or that say where things lay
_TOLD_ELSEWHERE = ("base_plans", "recipe", "trainers", "source", "labels", "exclude", "initial_weights")
_A_PLACE = re.compile(r"(^|[\s\"'(=:,\[])(~|/|\.\.?/|[A-Za-z]:[\\/]|\\\\|file:|\$)", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Trained:
    """A trained model as its folder tells of it. ``checkpoints``: fold -> content of its checkpoint; ``exported_as``: the
    trainer that the exported model names, None where it is no nnU-Net model."""

    folder: Path
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    checkpoints: Mapping[str, Mapping]
    trainer: str
    configuration: str
    exported_as: str | None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the run did differently, as its plans say."""
        found = self.plans.get(KEY, {})
        return found if isinstance(found, Mapping) else {}

    @property
    def annotations(self) -> Annotations | None:
        """The contract; None where there is none. Raises :class:`UserError` for a broken one."""
        if KEY not in self.dataset_json:
            return None
        return Annotations.from_dataset_json(self.dataset_json, str(self.folder / "dataset.json"))


def make_card(trained: Trained, evaluations: Sequence[PathLike] = ()) -> dict:
    """The card of a model; ``evaluations``: of it, files ``metrics.json`` or folders with one.

    Raises :class:`UserError` for a broken contract, and for an evaluation that cannot be read, or of classes that the model
    does not have.
    """
    annotations = trained.annotations
    sources = _sources(trained.dataset_json, annotations)
    figures = [_evaluated(i, trained) for i in evaluations]
    held_out = _held_out(trained, annotations)
    card = {
        "version": VERSION,
        "model": _model(trained),
        "classes": _classes(trained.dataset_json, annotations),
        "sources": sources,
        "training": _training(trained, annotations),
        "figures": [*figures, *([held_out] if held_out else [])],
        "versions": _versions(trained),
    }
    card |= {"intended_use": _intended_use(card), "limits": _limits(card)}
    return json_values(without_places(card))


def without_places(value: Any) -> Any:
    """``value`` with every text that names a place on a machine replaced; addresses of the web may stay."""
    if isinstance(value, Mapping):
        return {without_places(str(k)): without_places(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(i) for i in value]
    if isinstance(value, str) and _A_PLACE.search(_ADDRESS.sub("", value)):
        return LEFT_OUT
    return str(value) if isinstance(value, str) else value  # a Union is a text of another kind


# ------------------------------------------------------------------ model, classes, sources


def _model(trained: Trained) -> dict:
    configuration = trained.plans["configurations"].get(trained.configuration, {})
    return {
        "dataset": trained.plans["dataset_name"],
        "plans": trained.plans["plans_name"],
        "configuration": trained.configuration,
        "folds": list(trained.checkpoints),
        "trainer": trained.trainer,
        "method": _title(trained.trainer),
        "exported_as": trained.exported_as,
        "channels": dict(trained.dataset_json.get("channel_names", {})),
        "spacing_mm": _spacing(trained.plans, configuration),
        "patch_size": configuration.get("patch_size"),
        "mirroring_axes": _mirroring(trained.checkpoints),
    }


def _title(trainer: str) -> str | None:
    """What reports call a method; None for a trainer that is not found."""
    try:
        return find_trainer_source(trainer).title
    except UserError:
        return None


def _spacing(plans: Mapping, configuration: Mapping) -> list | None:
    """In the order of the image's axes; those of a configuration that inherits are its parent's."""
    while "spacing" not in configuration and configuration.get("inherits_from") in plans["configurations"]:
        configuration = plans["configurations"][configuration["inherits_from"]]
    return configuration.get("spacing")


def _mirroring(checkpoints: Mapping[str, Mapping]) -> list | None:
    found = [i.get("inference_allowed_mirroring_axes") for i in checkpoints.values()]
    return list(found[0]) if found and found[0] is not None else None


def _classes(dataset_json: Mapping[str, Any], annotations: Annotations | None) -> list:
    """Each class with its value, and how many cases of which source annotate it by itself or in a union."""
    values = {k: v for k, v in dataset_json.get("labels", {}).items() if k not in ("background", "ignore")}
    entries = list((annotations.cases or {}).values()) if annotations else []
    found = []
    for name, value in values.items():
        alone = Counter(i.source for i in entries if name in i.annotated)
        unions: dict = {}
        for entry in entries:
            for union in (i for i in entry.annotated if isinstance(i, Union) and name in i.members):
                unions.setdefault(str(union), Counter())[entry.source] += 1
        cases = dict(sorted(alone.items())) if annotations else None
        found.append({"name": name, "value": value, "cases": cases, "in_unions": {k: dict(v) for k, v in sorted(unions.items())}})
    return found


def _sources(dataset_json: Mapping[str, Any], annotations: Annotations | None) -> list:
    """Each source with the structures that its cases annotate, where it comes from, and its licence as far as known."""
    origins = _origins(dataset_json)
    if annotations is None or annotations.cases is None:
        own = dataset_json.get(PROVENANCE_KEY, {})
        whole = {"annotated": None, "unlabelled": None, **_origin(own), **_licence(own)}
        return [{"name": FULLY_LABELLED_SOURCE, "cases": dataset_json.get("numTraining"), **whole}]
    cases: dict = {}
    for entry in annotations.cases.values():
        cases.setdefault(entry.source, []).append(entry.annotated)
    found = []
    for name in sorted(cases):
        annotated = Counter(str(i) for items in cases[name] for i in items)
        origin = origins.get(name) or (dataset_json.get(PROVENANCE_KEY, {}) if len(cases) == 1 else {})
        found.append(
            {
                "name": name,
                "cases": len(cases[name]),
                "annotated": dict(annotated),
                "unlabelled": sum(not i for i in cases[name]),
                **_origin(origin),
                **_licence(origin),
            }
        )
    return found


def _origins(content: Mapping[str, Any]) -> dict:
    """source -> what ``merge`` kept of it, of merged datasets that were merged again too."""
    found: dict = {}
    for name, origin in content.get(PROVENANCE_KEY, {}).get("sources", {}).items():
        found |= {**_origins(origin), name: origin}
    return found


def _origin(origin: Mapping[str, Any]) -> dict:
    """What the converter noted; its reasons, in brackets, may name cases."""
    noted = {**origin, **origin.get(PROVENANCE_KEY, {})}
    release = str(noted.get("release") or "").partition(" (")[0]
    return {"dataset": noted.get("dataset"), "converter": noted.get("converter"), "release": release or None}


def _licence(origin: Mapping[str, Any]) -> dict:
    """What dataset.json of the source says itself goes before what is known of the dataset that a converter reads."""
    given = next((origin[i] for i in ("licence", "license") if isinstance(origin.get(i), str) and origin[i].strip()), None)
    converter = {**origin, **origin.get(PROVENANCE_KEY, {})}.get("converter")
    known = read_json(LICENCES).get(converter, {})
    reference = origin.get("reference") if isinstance(origin.get("reference"), str) else None
    return {
        "licence": given or known.get("licence"),
        "licence_from": "dataset.json" if given else (known.get("title") if known.get("licence") else None),
        "licence_where": known.get("where") or reference,
        "licence_note": known.get("note"),
    }


# ------------------------------------------------------------------ training


def _training(trained: Trained, annotations: Annotations | None) -> dict:
    settings, recipe = trained.settings, trained.settings.get("recipe")
    return {
        "settings_recorded": KEY in trained.plans,
        "recipe": recipe if isinstance(recipe, str) else None,
        "paper": _paper(recipe),
        "settings": _told(settings),
        "only_source": settings.get("source"),
        "teachers": _teachers(trained, annotations),
        "pseudo_labels": _pseudo_labels(settings, trained.checkpoints),
        "starts_from_other_weights": bool(settings.get("initial_weights") or _nested(settings, "atso").get("initial_weights")),
        "leaves_out_pseudo_labels": bool(settings.get("exclude")),
        "folds": {fold: _run(content) for fold, content in trained.checkpoints.items()},
    }


def _nested(settings: Mapping[str, Any], block: str) -> Mapping[str, Any]:
    found = settings.get(block, {})
    return found if isinstance(found, Mapping) else {}


def _paper(recipe: Any) -> str | None:
    try:
        return read_recipe(recipe).paper if isinstance(recipe, str) else None
    except UserError:
        return None


def _told(settings: Mapping[str, Any]) -> dict:
    """The settings as they are written, blocks flat: ``mskd.lambda_feature``; teachers are told by themselves."""
    flat: dict = {}
    for name, value in settings.items():
        if name in _TOLD_ELSEWHERE:
            continue
        inner = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
        flat |= {k: v for k, v in inner.items() if k not in ("mskd.teachers", "atso.initial_weights", "atso.exclude")}
    # a path, whoever declared the setting
    return {k: LEFT_OUT if isinstance(v, str) and re.search(r"[\\/]", v) else v for k, v in flat.items()}


def _teachers(trained: Trained, annotations: Annotations | None) -> dict | None:
    """source -> the model that taught it; ``{"soft": ...}`` where soft labels stand for them; None without teachers."""
    try:
        needed = find_trainer_source(trained.trainer).needs_teachers
    except UserError:
        return None
    if not needed:
        return None
    own = _nested(trained.settings, "mskd")
    given = own.get("teachers", {})
    if given == "soft":
        return {"soft": "the soft labels of a label directory"}
    names = own.get("sources") or (annotations.annotated_sources if annotations else ())
    named = given if isinstance(given, Mapping) else {}
    return {i: _model_name(named[i]) if i in named else "trained on this dataset's cases of that source" for i in names}


def _model_name(folder: Any) -> str:
    """TRAINER__PLANS__CONFIGURATION of a model's folder; other names are the user's own and stay out."""
    name = re.split(r"[\\/]", str(folder).rstrip("\\/"))[-1]
    return name if re.fullmatch(r"\w+__\w[\w.-]*__\w+", name) else "a model that was trained elsewhere"


def _pseudo_labels(settings: Mapping[str, Any], folds: Mapping[str, Mapping]) -> dict | None:
    """Who made the labels that the training completed the annotations with; None if nobody did."""
    where = settings.get("labels")
    if not isinstance(where, str):
        return None
    for fold in folds:
        file = Path(where.replace("{fold}", str(fold))) / PROVENANCE
        content = _read_if_there(file)
        if content:
            models, tools = content.get("models", []), content.get("predictions", [])
            classes = dict.fromkeys(str(j) for i in models for j in i.get("classes", ()))
            made = list(dict.fromkeys(_model_name(i.get("folder", "")) for i in models))
            return {"models": made, "other_tools": [str(i.get("name")) for i in tools], "classes_of_the_models": list(classes)}
    return {"models": None, "other_tools": None, "classes_of_the_models": None}


def _read_if_there(file: Path) -> Mapping | None:
    try:
        content = read_json(file) if file.is_file() else None
    except UserError:
        return None
    return content if isinstance(content, Mapping) else None


def _run(checkpoint: Mapping[str, Any]) -> dict:
    """Epochs, and the day on which the training ended, as nnU-Net's log has it."""
    log = checkpoint.get("logging")
    ends = log.get("epoch_end_timestamps") if isinstance(log, Mapping) else None
    ended = datetime.fromtimestamp(float(ends[-1]), timezone.utc).date().isoformat() if ends else None
    epochs = checkpoint.get("current_epoch")
    return {"epochs": int(epochs) if isinstance(epochs, (int, float)) else None, "ended": ended}


def _versions(trained: Trained) -> dict:
    """Of this export, and of torch when it was trained, if nnU-Net noted it."""
    noted = [_read_if_there(paths.fold_folder(trained.folder, i) / "debug.json") or {} for i in trained.checkpoints]
    torch = sorted({str(i["torch_version"]) for i in noted if "torch_version" in i})
    packages = {i: _version(i) for i in ("nnunetv2", "torch")}
    return {"nnunet_partial": __version__, **packages, "torch_of_the_training": torch or None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------ figures


def _evaluated(where: PathLike, trained: Trained) -> dict:
    """The summary of an evaluation, without its cases."""
    file = Path(where) / "metrics.json" if Path(where).is_dir() else Path(where)
    content = read_json(file, "Write it with nnunet_partial evaluate.")
    summary = content.get("summary") if isinstance(content, dict) else None
    if not isinstance(summary, dict) or not isinstance(summary.get("classes"), dict):
        raise UserError(f"{file} holds no summary of an evaluation. Write it with nnunet_partial evaluate.")
    known = [i for i in trained.dataset_json.get("labels", {}) if i not in ("background", "ignore")]
    regions = content.get("regions", {})
    strange = next((i for i in summary["classes"] if structure(i, known) is None and i not in regions), None)
    if strange is not None:
        raise UserError(
            f"{file} evaluates {strange!r}, which is no class of the model {trained.folder}: {', '.join(known)}. Name the "
            "evaluation of this model."
        )
    how = content.get("annotated")
    compared = f"the classes {', '.join(how)} of every case" if isinstance(how, list) else _COMPARED.get(str(how))
    return {"what": "an evaluation", "compared": compared, **_summary(summary, content.get("confidence", CONFIDENCE))}


_COMPARED = {
    "all": "all classes on every case",
    "auto": "the classes that each case annotates",
    "contract": "the classes that each case annotates",
}


def _held_out(trained: Trained, annotations: Annotations | None) -> dict | None:
    """Dice of the cases that the folds held out, of nnU-Net's own validation after the training; None if there is none."""
    names = _names_by_key(trained.dataset_json, annotations)
    rows = [i for fold in trained.checkpoints for i in _validated(trained.folder, fold, names)]
    if not rows:
        return None
    summary = summarise(rows, metrics=("dice",))
    return {
        "what": f"the cases that fold{'s' if len(trained.checkpoints) > 1 else ''} {', '.join(trained.checkpoints)} held out",
        "compared": "the classes that each case annotates",
        **_summary(summary, CONFIDENCE),
    }


def _names_by_key(dataset_json: Mapping[str, Any], annotations: Annotations | None) -> dict:
    """How nnU-Net's summary calls a structure -> its name."""
    labels = {k: v for k, v in dataset_json.get("labels", {}).items() if k not in ("background", "ignore")}
    names = {str(tuple(v)) if isinstance(v, list) else str(v): k for k, v in labels.items()}
    unions = annotations.unions if annotations else ()
    return {**names, **({str(annotations.values_of(i)): str(i) for i in unions} if annotations else {})}


def _validated(folder: Path, fold: str, names: Mapping[str, str]) -> list:
    content = _read_if_there(paths.fold_folder(folder, fold) / "validation" / "summary.json") or {}
    rows = []
    for number, case in enumerate(content.get("metric_per_case", [])):
        for key, values in case.get("metrics", {}).items():
            if key in names and isinstance(values.get("Dice"), (int, float)):
                rows.append({"case": f"{fold}-{number}", "source": "", "class": names[key], "dice": float(values["Dice"])})
    return rows


def _summary(summary: Mapping[str, Any], confidence: float) -> dict:
    keys = ("n_cases", "mean_over_classes", "classes")
    return {"confidence": confidence, **{i: summary.get(i) for i in keys}}


# ------------------------------------------------------------------ what it is for


def _intended_use(card: Mapping[str, Any]) -> list:
    names = ", ".join(i["name"] for i in card["classes"])
    channels = ", ".join(map(str, card["model"]["channels"].values())) or "images"
    return [
        f"Research: segmenting {names} in {channels} images like those of its sources.",
        "A starting point for fine-tuning and for pseudo labels, which a person looks at.",
    ]


def _limits(card: Mapping[str, Any]) -> list:
    """What follows from the facts, each a sentence."""
    said = ["No medical device. Nothing here says that it is fit for decisions about patients."]
    if "CT" in map(str.upper, map(str, card["model"]["channels"].values())):
        said.append("CT values must be Hounsfield units.")
    said += _limits_of_classes(card["classes"], bool(card["training"]["teachers"] or card["training"]["pseudo_labels"]))
    if not card["figures"]:
        said.append("No evaluation is recorded: how good it is, is not known from this card.")
    if any(re.search(r"\bNC\b|non-commercial", str(i["licence"])) for i in card["sources"]):
        said.append("A source's licence excludes commercial use; whether that reaches the model is for a lawyer to say.")
    if any(i["licence"] is None for i in card["sources"]):
        said.append("The licence of at least one source is not known here: look it up before you share or use the model.")
    return said


def _limits_of_classes(classes: Sequence[Mapping[str, Any]], completed: bool) -> list:
    said, known = [], [i for i in classes if i["cases"] is not None]
    for one in known:
        if not one["cases"] and one["in_unions"]:
            said.append(f"{one['name']} is annotated in unions alone ({', '.join(one['in_unions'])}).")
        elif not one["cases"]:
            by = "pseudo labels or teachers alone" if completed else "nothing"
            said.append(f"{one['name']} is annotated nowhere: it was learned from {by}.")
    single: dict = {}
    for one in known:
        if len(one["cases"]) == 1 and not one["in_unions"]:
            single.setdefault(next(iter(one["cases"])), []).append(one["name"])
    many = len({j for i in known for j in i["cases"]}) > 1
    where = "annotated on images of source {} alone."
    return said + [f"{', '.join(v)}: {where.format(k)}" for k, v in single.items() if many]
