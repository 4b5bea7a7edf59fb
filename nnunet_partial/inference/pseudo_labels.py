"""Pseudo labels: every training case gets the classes that it lacks from the models that know them.

Huang et al. 2020, section 3 (the pseudo-annotated dataset), for any mixture of annotated sets. All of it happens in
preprocessed space; what comes out is a label directory (:mod:`nnunet_partial.data.preprocessed.label_directory`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from nnunet_partial import __version__, paths
from nnunet_partial.bars import Bar
from nnunet_partial.data.components import largest_components
from nnunet_partial.data.parallel import in_processes
from nnunet_partial.data.predictions import Predictions
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.preprocessed.soft_labels import quantised
from nnunet_partial.data.preprocessed.splits import training_cases
from nnunet_partial.data.raw import RawDataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike, read_json, sha256
from nnunet_partial.inference.image_space import ScanPredictor, ToPreprocessed, collapsed
from nnunet_partial.inference.joint import JointLabels
from nnunet_partial.inference.knowledge import (
    Doubt,
    KnownModel,
    PlacedPrediction,
    agreement,
    check_geometry,
    find_known_model,
    find_predictions,
    named_folder,
    place_predictions,
    raw_case,
    raw_dataset_for,
)
from nnunet_partial.inference.preprocessed import (
    case_file,
    load_case,
    load_predictor,
    predict_logits,
    preprocessed_images,
    require_case,
    restricted_prediction,
)
from nnunet_partial.inference.rules import CLAIMS, RULES
from nnunet_partial.labels import Annotations, Union, check_super_classes, items_to_json, members, settled
from nnunet_partial.networks.models import ModelFiles
from nnunet_partial.networks.teachers import find_teachers
from nnunet_partial.outputs import is_same, stamp
from nnunet_partial.paths import FINAL_CHECKPOINT
from nnunet_partial.settings import MSKDSettings, read_block

TEACHERS = "teachers"


@dataclass(frozen=True)
class Model:
    """A model that labels; ``sha256`` of its checkpoint."""

    files: ModelFiles
    sha256: str
    outputs: tuple | None = None  # see KnownModel
    difference: str | None = None

    @property
    def inputs(self) -> Any:
        """What decides, beside the checkpoint, what its outputs say."""
        classes = [str(i) for i in self.files.classes]
        return classes if self.outputs is None else {"classes": classes, "outputs": list(self.outputs)}

    def to_json(self) -> dict:
        """Its entry in provenance.json."""
        return {
            "folder": str(self.files.folder),
            "checkpoint": str(self.files.checkpoint),
            "sha256": self.sha256,
            "classes": [str(i) for i in self.files.classes],
            **({} if self.outputs is None else {"outputs": list(self.outputs)}),
            **({} if self.difference is None else {"sees": f"the scans themselves: its {self.difference} is another one"}),
        }


@dataclass(frozen=True)
class Task:
    """Everything that labelling one case depends on but the case itself; sent to every process once."""

    out: Path
    images: Path
    plans: Mapping[str, Any]
    configuration: str
    dataset_json: Mapping[str, Any]
    annotations: Annotations  # what dataset_json says, read once a run
    models: Sequence[Model]
    largest_component: tuple
    mirroring: bool
    super_classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    soft: bool = False
    predictions: Sequence[Predictions] = ()
    raw: RawDataset | None = None  # where scans or files of other tools are read
    min_confidence: float | None = None
    rule: str = CLAIMS

    def inputs(self, case: str) -> dict:
        """What the labels of ``case`` are made from; a case is done if its record says the same."""
        annotated, wanted = self.annotations.of(case).annotated, self.wanted(case)
        inputs = {
            "models": {i.sha256: i.inputs for i in self.used(wanted)},
            "annotated": items_to_json(annotated),
            # of a case that annotates nothing the label file is never read
            "labels_sha256": sha256(self.images / f"{case}_seg.b2nd") if annotated else None,
            "largest_component": [i for i in self.largest_component if i not in annotated],
            "mirroring": self.mirroring,
        }
        further = {
            "soft": self.soft,
            "super_classes": dict(self.super_classes),
            "predictions": {i.name: i.inputs(case) for i in self.predictions},
            "min_confidence": self.min_confidence,
            "rule": None if self.rule == CLAIMS else self.rule,
        }
        return {**inputs, **{k: v for k, v in further.items() if v}}

    @property
    def ignored(self) -> int:
        """Value of voxels that teach nothing: of the dataset's ignore label, or else the first that is no class."""
        return len(self.annotations.classes) + 1

    def used(self, wanted: "Wanted") -> list:
        """The models that see a case: those that know what it lacks, for soft labels all."""
        return [i for i in self.models if self.soft or wanted.of(i.files.classes)]

    def wanted(self, case: str) -> "Wanted":
        """What the models may say about a case."""
        return Wanted.of_case(self.annotations.of(case).annotated, self.known)

    @property
    def known(self) -> list:
        """The structures of every tool, then of every model."""
        return [*(i.structures for i in self.predictions), *(i.files.classes for i in self.models)]


@dataclass(frozen=True)
class Wanted:
    """``lacking``: the structures that a case lacks and models know. ``divided``: unions that the case outlines and whose
    members models know one by one; they divide the outline, which stays.

    A union that models know is taken only where they do not know all of its classes one by one.
    """

    lacking: tuple
    divided: tuple

    @classmethod
    def of_case(cls, annotated: Sequence[str], models: Iterable[Sequence[str]]) -> "Wanted":
        known = list(dict.fromkeys(i for classes in models for i in classes))
        single = {i for i in known if not isinstance(i, Union)}
        taken = {c for i in annotated for c in members(i)}
        lacking = []
        for union in (i for i in known if isinstance(i, Union)):
            if not taken & set(union.members) and not set(union.members) <= single:
                lacking.append(union)
                taken |= set(union.members)
        lacking += [i for i in known if i in single and i not in taken]
        return cls(tuple(lacking), tuple(i for i in annotated if isinstance(i, Union) and set(i.members) <= single))

    @property
    def pseudo(self) -> tuple:
        """The structures that pseudo labels add."""
        return (*self.lacking, *(c for i in self.divided for c in i.members))

    def of(self, structures: Iterable[str]) -> list:
        """Those of these structures."""
        return [i for i in structures if i in self.pseudo]


def pseudo_label(
    dataset: int | str,
    configuration: str,
    out: PathLike,
    *,
    fold: int | str = "all",
    plans: str = "nnUNetPlans",
    sources: Sequence[str] = (TEACHERS,),
    checkpoint: str = FINAL_CHECKPOINT,
    largest_component: Sequence[str] | None = None,
    mirroring: bool = True,
    devices: Sequence[str] = ("cpu",),
    overwrite: bool = False,
    cases: Sequence[str] | None = None,
    super_classes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    trusted: bool = False,
    soft: bool = False,
    predictions: Mapping[str, PathLike] = MappingProxyType({}),
    mappings: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    min_confidence: float | None = None,
    rule: str = CLAIMS,
    progress: bool = True,
) -> Path:
    """Label the training cases of ``fold`` (``all``: every case) and return the path of provenance.json.

    ``sources``            ``teachers`` (found as the MS-KD trainers find theirs), or folders of models, of any plans and classes,
                           as ``FOLDER`` or ``NAME=FOLDER``
    ``largest_component``  classes of which only the largest 26-connected component is kept; ``()`` for none (None)
    ``devices``            one process each; ``cuda:0``, ``cuda:1`` or, any number of times, ``cpu``
    ``overwrite``          do cases again that were made from other models or labels; otherwise they are an error
    ``cases``              label these cases instead of those of the fold
    ``super_classes``      name -> classes: the most probable super-class wins a voxel, then its most probable member
    ``trusted``            the user vouches for the architectures that the models' plans name
    ``soft``               write each model's probabilities too, on every case (:mod:`nnunet_partial.data.preprocessed.soft_labels`)
    ``predictions``        NAME -> folder of what another tool says (:mod:`nnunet_partial.data.predictions`)
    ``mappings``           NAME, of predictions or of a source -> its label -> class, union of classes or ``background``; a label
                           that is not in it stands for the class of its name
    ``min_confidence``     what is less probable becomes a voxel that no loss looks at; None: every voxel is labelled
    ``rule``               ``claims``: every class from the models that know it; or one of
                           :data:`~nnunet_partial.inference.rules.RULES`, for models that all know the same classes
    Cases that are done are skipped; one whose preprocessed image has changed since, or whose files are not what was written,
    is done again. Raises :class:`UserError` for anything missing or unfit, before predicting.
    """
    folder = paths.preprocessed_dataset(dataset)
    dataset_json = read_json(folder / "dataset.json")
    annotations = Annotations.from_dataset_json(dataset_json, str(folder / "dataset.json"))
    cases = sorted(training_cases(folder, annotations, fold) if cases is None else cases)
    if not cases:
        raise UserError(f"{folder}: there is no case to label in fold {fold}. Correct its splits_final.json, or name --cases.")
    task = _task(
        folder,
        dataset_json,
        annotations,
        configuration,
        Path(out),
        fold,
        plans,
        sources,
        checkpoint,
        largest_component,
        mirroring,
        check_super_classes(dict(super_classes), annotations.classes),
        trusted,
        soft,
        predictions,
        mappings,
        min_confidence,
        rule,
        cases,
        devices[0].partition(":")[0],
    )
    todo = _todo(task, cases, overwrite)
    check_geometry(task.predictions, todo, task.raw)
    finished = task.out / label_directory.PROVENANCE
    if finished.is_file() and not todo and sorted(read_json(finished)["cases"]) == cases:
        _label_all(task, [], devices, progress, total=len(cases))  # says so
        return finished  # so that a finished directory keeps its date
    with label_directory.writing(task.out):
        _label_all(task, todo, devices, progress, total=len(cases))
        return label_directory.finish(task.out, _header(task, plans, fold), cases)


def _task(
    folder: Path,
    dataset_json: Mapping[str, Any],
    annotations: Annotations,
    configuration: str,
    out: Path,
    fold: Any,
    plans_name: str,
    sources: Sequence[str],
    checkpoint: str,
    largest_component: Sequence[str] | None,
    mirroring: bool,
    super_classes: Mapping[str, Sequence[str]],
    trusted: bool,
    soft: bool,
    predictions: Mapping[str, PathLike],
    mappings: Mapping[str, Mapping[str, str]],
    min_confidence: float | None,
    rule: str,
    cases: Sequence[str],
    device: str,
) -> Task:
    """Everything checked that is asked for."""
    plans = read_json(paths.plans_file(folder.name, plans_name))
    images = preprocessed_images(folder, plans, configuration)
    _check_names(sources, predictions, mappings, min_confidence)
    models = _find_models(sources, mappings, annotations, plans, configuration, fold, checkpoint, trusted, device)
    found = find_predictions(predictions, mappings, annotations.classes, cases)
    _check_rule(rule, models, predictions)
    unknown = [i for i in largest_component or () if i not in annotations.classes]
    if unknown:
        raise UserError(
            f"--largest-component {unknown[0]} is no class of this dataset. {did_you_mean(unknown[0], annotations.classes)}Classes: {', '.join(annotations.classes)}."
        )
    return Task(
        out,
        images,
        plans,
        configuration,
        dataset_json,
        annotations,
        [Model(i.files, sha256(i.files.checkpoint), i.outputs, i.difference) for i in models],
        tuple(largest_component or ()),
        mirroring,
        super_classes,
        soft,
        found,
        raw_dataset_for(folder.name, found, models),
        min_confidence,
        rule,
    )


def _check_rule(rule: str, models: Sequence[KnownModel], predictions: Mapping[str, PathLike]) -> None:
    """A rule is for several models that all know the same classes."""
    if rule not in (CLAIMS, *RULES):
        raise UserError(f"--rule {rule}: there is no such rule. Rules: {', '.join((CLAIMS, *RULES))}.")
    if rule == CLAIMS:
        return
    if predictions:
        raise UserError(f"--rule {rule} is for models, not for --predictions {next(iter(predictions))}. Leave one of them out.")
    if len(models) < 2:
        raise UserError(f"--rule {rule}: with one model there is nothing to fuse. Name several with --from, or leave it out.")
    first = models[0].files
    other = next((i.files for i in models if set(i.files.classes) != set(first.classes)), None)
    if other is not None:
        raise UserError(
            f"the model {other.folder} knows {', '.join(other.classes)}, the model {first.folder} {', '.join(first.classes)}, and "
            f"--rule {rule} is for models that all know the same. Leave it out: every class then comes from the models that know it."
        )


def _check_names(
    sources: Sequence[str], predictions: Mapping[str, PathLike], mappings: Mapping[str, Any], min_confidence: float | None
) -> None:
    named = [named_folder(i)[0] for i in sources]
    names = [*(i for i in named if i is not None), *predictions]
    if not sources and not predictions:
        raise UserError("nothing is asked to label: give models (--from) or predictions of other tools (--predictions).")
    unknown = next((i for i in mappings if i not in names), None)
    if unknown is not None:
        raise UserError(f"--map {unknown}: there is no source {unknown!r}. Sources with names: {', '.join(names) or 'none'}.")
    twice = next((i for i in names if names.count(i) > 1), None)
    if twice is not None:
        raise UserError(f"two sources are called {twice!r}. Give each a name of its own.")
    if min_confidence is not None and not 0 < min_confidence <= 1:
        raise UserError(f"--min-confidence {min_confidence:g}: a probability above 0 and up to 1 is needed, for example 0.8.")


def _find_models(
    sources: Sequence[str],
    mappings: Mapping[str, Mapping[str, str]],
    annotations: Annotations,
    plans: Mapping[str, Any],
    configuration: str,
    fold: Any,
    checkpoint: str,
    trusted: bool,
    device: str,
) -> list:
    found = []
    for source in sources:
        if source == TEACHERS:
            settings = read_block(plans, "mskd", MSKDSettings)
            found += map(KnownModel, find_teachers(annotations, settings, plans, configuration, fold, trusted, device))
        else:
            found.append(find_known_model(source, mappings, fold, annotations.classes, plans, configuration, checkpoint, trusted))
    return found


def _todo(task: Task, cases: Sequence[str], overwrite: bool) -> list:
    """Cases that are not done. Raises :class:`UserError` for one that was made from something else."""
    todo = []
    for case in cases:
        require_case(task.images, case)
        record, inputs = label_directory.read_record(task.out, case), task.inputs(case)
        if record is None or record.get("inputs") != inputs:
            if record is not None and not overwrite:
                before = record.get("inputs", {})
                # --soft first: with it, other models see the case too
                changed = next(i for i in ("soft", *inputs, *before) if before.get(i) != inputs.get(i))
                raise UserError(
                    f"{task.out} holds labels of case {case} made from other {_CHANGED[changed]}. Choose "
                    f"another --out, or make them again with --overwrite."
                )
            todo.append(case)
        elif not is_same(case_file(task.images, case), record.get("image", {})) or not label_directory.is_written(task.out, case):
            todo.append(case)
    return todo


_CHANGED = {
    "models": "models",
    "annotated": "annotated classes",
    "labels_sha256": "annotations",
    "largest_component": "choices of --largest-component",
    "mirroring": "choices of mirroring",
    "super_classes": "super-classes",
    "soft": "choices of --soft",
    "predictions": "predictions of other tools",
    "min_confidence": "choices of --min-confidence",
    "rule": "choices of --rule",
}


def _header(task: Task, plans_name: str, fold: Any) -> dict:
    return {
        "nnunet_partial": __version__,
        "created": _now(),
        "dataset": task.plans["dataset_name"],
        "plans": plans_name,
        "configuration": task.configuration,
        "fold": str(fold),
        "data_identifier": task.images.name,
        "classes": list(task.annotations.classes),
        "models": [i.to_json() for i in task.models],
        **({"soft": [items_to_json(i) for i in task.known]} if task.soft else {}),
        **({"predictions": [i.to_json() for i in task.predictions]} if task.predictions else {}),
        **({"ignored": task.ignored} if task.min_confidence is not None else {}),
        **({"rule": task.rule} if task.rule != CLAIMS else {}),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# ---- processes


def _label_all(task: Task, cases: Sequence[str], devices: Sequence[str], progress: bool, total: int) -> None:
    with Bar(total, "pseudo-labelling", done=total - len(cases), shown=progress) as shown:
        for _ in (
            _one_process(task, cases, devices) if min(len(devices), len(cases)) < 2 else _several_processes(task, cases, devices)
        ):
            shown.update()


def _one_process(task: Task, cases: Sequence[str], devices: Sequence[str]) -> Iterable[None]:
    if cases:
        label = Labeller(task, torch.device(devices[0]))
        for case in cases:
            yield label(case)


def _several_processes(task: Task, cases: Sequence[str], devices: Sequence[str]) -> Iterable[None]:
    """One process per device. The first failure ends the work; what is done stays done."""
    killed = UserError(
        f"a process was killed while it labelled, most likely because memory ran out. Start the "
        f"command again with fewer processes; what is done in {task.out} stays done."
    )
    return in_processes(_label_in_worker, cases, len(devices), killed, start=_start_labelling, start_with=(task, devices))


_worker: Callable | None = None


def _start_labelling(number: int, task: Task, devices: Sequence[str]) -> None:
    global _worker
    device = torch.device(devices[number])
    if device.type == "cpu":  # together the processes use every core once
        torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
    _worker = Labeller(task, device)


def _label_in_worker(case: str) -> None:
    assert _worker is not None  # the process began with one
    _worker(case)


# ---- one case


class Labeller:
    """Labels cases on one device; each model is loaded when the first case needs it."""

    def __init__(self, task: Task, device: torch.device):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self.task, self.device, self.predictors = task, device, {}
        self.annotations = task.annotations
        self.plans = plans = PlansManager(dict(task.plans))
        self.configuration, self.transpose = plans.get_configuration(task.configuration), plans.transpose_forward
        self.label_manager = plans.get_label_manager(dict(task.dataset_json))

    def __call__(self, case: str) -> None:
        """Write one case to the label directory."""
        inputs, of_image = self.task.inputs(case), stamp(case_file(self.task.images, case))  # as before anything is read
        image, truth, properties = load_case(self.task.images, case)
        annotated, wanted = self.annotations.of(case).annotated, self.task.wanted(case)
        pseudo = sorted(wanted.pseudo, key=self._value)
        seg = self._annotated_part(case, truth)
        outlines = {i: seg[0] == self._value(i) for i in wanted.divided}
        of_tools = self._placed(case, properties, seg[0])
        soft = [i.soft() for i, _ in of_tools] if self.task.soft else []
        tools = [i for i, _ in of_tools]
        labels, probability, doubt = self._predict(case, image, wanted, outlines, properties, tools, soft)
        free = seg[0] == 0  # neither annotated, nor ignored, nor outside (-1)
        added = free | ((labels > 0) & np.any(list(outlines.values()), 0)) if outlines else free
        ignored = added & doubt.doubtful(labels, probability, self.task.min_confidence or 0)
        for inside in outlines.values():
            seg[0][inside] = np.where(labels[inside] > 0, labels[inside], seg[0][inside])
            labels[inside] = 0  # an outline stays whole, whatever piece of it is the largest
        labels = largest_components(labels, [self._value(i) for i in self.task.largest_component])
        seg[0][free] = labels[free]
        seg[0][ignored] = self.task.ignored
        names = settled((*annotated, *pseudo), self.annotations.classes)
        record = {
            "annotated": items_to_json(annotated),
            "pseudo": items_to_json(pseudo),
            **self._statistics(seg[0], probability, names, pseudo, properties),
            "disagreement": doubt.disagreement(seg[0], {i: self._value(i) for i in pseudo}, added),
            "agreement": {i.predictions.name: shares for i, shares in of_tools},
            "written": _now(),
            "inputs": inputs,
            "image": of_image,
        }
        label_directory.write_case(
            self.task.out,
            case,
            seg,
            properties,
            self.label_manager,
            self.configuration.patch_size,
            record,
            np.concatenate(soft) if soft else None,
        )

    def _annotated_part(self, case: str, truth: np.ndarray) -> np.ndarray:
        """``truth`` (1, *S) without what the contract does not vouch for: of an unlabelled case nothing is left."""
        if not self.annotations.of(case).annotated:
            return np.zeros_like(truth)
        return np.where((truth < 0) | np.isin(truth, self.annotations.values(case)), truth, 0).astype(truth.dtype)

    def _value(self, name: str) -> int:
        return self.annotations.values_of(name)[0]

    def _predict(
        self,
        case: str,
        image: np.ndarray,
        wanted: Wanted,
        outlines: Mapping[Union, np.ndarray],
        properties: Mapping[str, Any],
        tools: Sequence[PlacedPrediction],
        soft: list,
    ) -> tuple:
        """Pseudo labels (*S) of the classes that are not annotated, the probability (*S) of each voxel's label, and the doubt."""
        tools, models = [i for i in tools if wanted.of(i.predictions.structures)], self.task.used(wanted)
        known = [*(i.predictions.structures for i in tools), *(i.files.classes for i in models)]
        doubt = Doubt(image.shape[1:], [[self._value(j) for j in wanted.of(i)] for i in known])
        if self.task.rule != CLAIMS and models:
            return *self._fused(case, image, wanted, outlines, properties, soft, doubt), doubt
        claims = chain(
            (i.claim(wanted.lacking, outlines, self._value) for i in tools),
            (self._claim(i, self._logits(i, case, image, properties), wanted, outlines, soft) for i in models),
        )
        return *merge_claims(doubt.watch(claims), image.shape[1:]), doubt

    def _fused(
        self,
        case: str,
        image: np.ndarray,
        wanted: Wanted,
        outlines: Mapping[Union, np.ndarray],
        properties: Mapping[str, Any],
        soft: list,
        doubt: Doubt,
    ) -> tuple:
        """As :func:`merge_claims`, by the rule for models of the same classes; what each says by itself goes to ``doubt``."""
        groups = super_class_numbers(wanted.lacking, self.task.super_classes)
        joint = JointLabels(self.task.rule, wanted.lacking, outlines, groups, self._value)

        def claims():
            for model in self.task.used(wanted):
                logits = self._logits(model, case, image, properties)
                joint.add(model.files.classes, logits)
                yield self._claim(model, logits, wanted, outlines, soft)

        for _ in doubt.watch(claims()):
            pass
        labels, probability = joint.result()
        nothing = labels == 0
        doubt.background[nothing] = probability[nothing]
        return labels, np.where(nothing, 0, probability).astype(np.float32)

    def _placed(self, case: str, properties: Mapping[str, Any], seg: np.ndarray) -> list:
        """What each tool says of the case, on its preprocessed voxels, and how that agrees with its manual labels."""
        values = {i: self._value(i) for i in self.annotations.of(case).annotated}
        found = []
        for predictions in self.task.predictions:
            placed = place_predictions(predictions, case, self._raw, self._place(case, properties, seg.shape))
            found.append((placed, agreement(placed, case, seg, values)))
        return found

    @property
    def _raw(self) -> RawDataset:
        assert self.task.raw is not None  # it is there where scans or files of tools are read
        return self.task.raw

    def _place(self, case: str, properties: Mapping[str, Any], shape: Sequence[int]) -> ToPreprocessed:
        image = raw_case(self._raw, case).images[0]
        return ToPreprocessed(self.plans, self.configuration, image, properties, shape)

    def _logits(self, model: Model, case: str, image: np.ndarray, properties: Mapping[str, Any]) -> torch.Tensor:
        """Logits (1 + n, *S) of what the model knows here, on the preprocessed voxels."""
        predictor = self._predictor(model)
        outputs = range(len(model.files.classes) + 1) if model.outputs is None else model.outputs
        if model.difference is None:
            return collapsed(predict_logits(predictor, image), outputs)
        scan = raw_case(self._raw, case)
        return ScanPredictor(predictor, outputs).logits(scan, self._place(case, properties, image.shape[1:]))

    def _claim(
        self, model: Model, logits: torch.Tensor, wanted: Wanted, outlines: Mapping[Union, np.ndarray], soft: list
    ) -> tuple:
        """One model's labels and probabilities, both (*S). Its logits, the largest array there is, are gone on return; its soft
        labels are added to ``soft``."""
        lacking = [i for i in model.files.classes if i in wanted.lacking]
        if self.task.soft:
            soft.append(quantised(logits))
        index, probability = restricted_prediction(
            logits,
            [model.files.classes.index(i) + 1 for i in lacking],
            groups=super_class_numbers(lacking, self.task.super_classes),
        )
        values = np.array([0, *(self._value(i) for i in lacking)], dtype=np.int16)
        labels, probability = values[index.numpy()], probability.numpy()
        for union, inside in outlines.items():
            known = [i for i in model.files.classes if i in union.members]
            if known and inside.any():
                labels[inside], probability[inside] = self._division(logits, model, known, inside, size=len(union.members))
        return labels, probability

    def _division(self, logits: torch.Tensor, model: Model, known: Sequence[str], inside: np.ndarray, size: int) -> tuple:
        """Which of the classes ``known`` each voxel of an outline (*S) bool is, and its probability, of n voxels.

        A model that knows all ``size`` members of the union chooses among them alone; another says how sure it is of its own.
        """
        outputs = [model.files.classes.index(i) + 1 for i in known]
        rows, mask = outputs if len(known) == size else [0, *outputs], torch.from_numpy(inside)
        probabilities = torch.softmax(torch.stack([logits[i][mask] for i in rows]).float(), 0)[-len(outputs) :]
        best, index = probabilities.max(0)
        return np.array([self._value(i) for i in known], dtype=np.int16)[index.numpy()], best.numpy()

    def _predictor(self, model: Model):
        key = model.files.checkpoint  # not its hash: the same weights see other images with other plans
        if key not in self.predictors:
            self.predictors[key] = load_predictor(model.files, self.device, self.task.mirroring)
        return self.predictors[key]

    def _statistics(
        self,
        seg: np.ndarray,
        probability: np.ndarray,
        classes: Sequence[str],
        pseudo: Sequence[str],
        properties: Mapping[str, Any],
    ) -> dict:
        voxel_mm3 = voxel_volume_mm3(properties["spacing"], self.transpose, self.configuration.spacing)
        # counted for all classes at once: a mask a class would be 117 bytes a voxel with TotalSegmentator's
        values, length = np.maximum(seg, 0).ravel(), len(self.annotations.classes) + 1
        voxels = np.bincount(values, minlength=length)
        told = np.isfinite(probability).ravel()  # masks of other tools have none
        confidence = np.bincount(values, weights=np.where(told, probability.ravel(), 0), minlength=length)
        counted = np.bincount(values, weights=told, minlength=length)
        numbers = {i: self._value(i) for i in classes}
        return {
            "volume_mm3": {name: float(voxels[i] * voxel_mm3) for name, i in numbers.items()},
            "mean_confidence": {
                name: float(confidence[i] / counted[i]) if counted[i := numbers[name]] else None for name in pseudo
            },
        }


def super_class_numbers(names: Sequence[str], super_classes: Mapping[str, Sequence[str]]) -> list | None:
    """The number from 1 of each name's super-class; a name in none is its own. None without super-classes."""
    if not super_classes:
        return None
    owner = {i: name for name, those in super_classes.items() for i in those}
    owners = [("super", owner[i]) if i in owner else ("class", i) for i in names]
    return [sorted(set(owners)).index(i) + 1 for i in owners]


def merge_claims(claims: Iterable[tuple], shape: Sequence[int]) -> tuple:
    """One label map from several models' ``(labels (*S), probability (*S))``.

    A voxel that one model gives to an organ gets that organ; where several do, the highest probability decides, and the
    first of equal ones. Returns (labels (*S) int16, probability (*S) float32, 0 where no organ is).
    """
    labels, best = np.zeros(shape, np.int16), np.zeros(shape, np.float32)
    for values, probability in claims:
        better = (values > 0) & (probability > best)
        labels[better], best[better] = values[better], probability[better]
    return labels, best


def voxel_volume_mm3(original_spacing_mm: Sequence[float], transpose: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Volume of a preprocessed voxel. ``original_spacing_mm`` has the axes of the file; a 2D configuration's
    ``spacing_mm`` has two entries and leaves the distance of slices as it was."""
    slices = [original_spacing_mm[transpose[0]]] if len(spacing_mm) == 2 else []
    return float(np.prod([*slices, *spacing_mm]))
