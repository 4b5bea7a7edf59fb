"""Several models' predictions of the same images as one label map: what the single-source models say together.

The baseline "individual" of Huang et al. 2020: each organ comes from the model that knows it; where two models claim a
voxel, the higher probability decides (:func:`~nnunet_partial.inference.pseudo_labels.merge_claims`). Models that all know the
same classes, such as the three views of Huo et al. 2021, are fused by another rule (:mod:`nnunet_partial.inference.rules`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import _moved
from nnunet_partial.bars import bar
from nnunet_partial.data.images import write_segmentation
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.evaluate import read_dataset_json
from nnunet_partial.files import PathLike, claim, read_json, sha256, write_json
from nnunet_partial.inference.pseudo_labels import merge_claims
from nnunet_partial.inference.rules import CLAIMS, RULES, Fusion
from nnunet_partial.labels import check_case_names, check_dataset_names, foreground_classes, members, structure
from nnunet_partial.outputs import Records, is_same
from nnunet_partial.safe_read import load_npz, load_pickle
from nnunet_partial.trust import check_plans

REQUEST = "fusion.json"  # in the folder of the label maps: what they are made from
_REMEDY = "Predict it with nnUNetv2_predict ... --save_probabilities."


@dataclass(frozen=True)
class ModelPredictions:
    """A folder that ``nnUNetv2_predict --save_probabilities`` wrote, and the values of its classes in the fused dataset.

    ``unions``: what the model does not tell apart, a value below 0 -> the values of its members.
    """

    folder: Path
    plans: Mapping[str, Any]
    values: np.ndarray
    unions: Mapping[int, tuple] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: PathLike, classes: Sequence[str]) -> "ModelPredictions":
        folder = Path(folder)
        own = foreground_classes(read_json(folder / "dataset.json", _REMEDY), str(folder / "dataset.json"))[0]
        values, unions = [0], {}
        for name in own:
            known = structure(name, classes)
            if known is None:
                raise UserError(
                    f"{folder / 'dataset.json'} has the class {name!r}, which the dataset does not. Classes: {', '.join(classes)}."
                )
            own_values = tuple(classes.index(i) + 1 for i in members(known))
            values.append(own_values[0] if len(own_values) == 1 else -1 - len(unions))
            if values[-1] < 0:
                unions[values[-1]] = own_values
        plans = read_json(folder / "plans.json", _REMEDY)
        check_plans(plans, folder / "plans.json", networks=False)  # only the writer of images is taken from them
        return cls(folder, plans, np.array(values, dtype=np.int16), unions)

    def probabilities(self, case: str) -> Path:
        """The file with the probabilities of a case."""
        return self.folder / f"{case}.npz"

    def to_json(self) -> dict:
        """Which model's predictions these are."""
        return {
            "folder": str(self.folder.absolute()),
            "plans": sha256(self.folder / "plans.json"),
            "values": self.values.tolist(),
            **({"unions": {str(k): list(v) for k, v in self.unions.items()}} if self.unions else {}),
        }

    @property
    def cases(self) -> set:
        return {i.name[: -len(".npz")] for i in self.folder.glob("*.npz")}

    def claim(self, case: str, divided: Mapping[tuple, np.ndarray]) -> tuple:
        """``(labels (*S) in the fused dataset's values, probability (*S))`` of one case. ``divided``: the members of a union ->
        which of them (*S) a voxel is, if it is one of the union."""
        probabilities = self.read_probabilities(case)
        labels = self.values[probabilities.argmax(0)]
        for value, own in self.unions.items():
            labels = np.where(labels == value, divided[own], labels)
        return labels, probabilities.max(0)

    def in_order(self, case: str) -> np.ndarray:
        """Probabilities (C, *S) of one case, by rising values in the fused dataset."""
        return self.read_probabilities(case)[np.argsort(self.values)]

    def read_probabilities(self, case: str) -> np.ndarray:
        """Probabilities (C, *S) of one case, as the model has its classes."""
        probabilities = load_npz(self.probabilities(case), ["probabilities"], _REMEDY)["probabilities"]
        if len(probabilities) != len(self.values):
            raise UserError(
                f"{self.folder / case}.npz has {len(probabilities)} classes, {self.folder / 'dataset.json'} "
                f"{len(self.values)} with background. {_REMEDY}"
            )
        return probabilities


def fuse(
    folders: Sequence[PathLike],
    dataset: Any,
    out: PathLike,
    remove_probabilities: bool = False,
    progress: bool = True,
    overwrite: bool = False,
    rule: str = CLAIMS,
) -> list:
    """Write the fused label map of every case to ``out`` and return the cases.

    Finished cases are skipped unless their probabilities have changed since or their label map is not what was written.

    ``folders`` from ``nnUNetv2_predict --save_probabilities``, one a model; ``dataset`` names the classes of the result.
    ``remove_probabilities`` deletes the .npz and .pkl files of a case once it is written; ``overwrite`` replaces what was
    fused from other folders. A model's output of classes that it does not tell apart (``kidney_left+kidney_right``) says that a voxel
    is one of them; which one, the models that know them alone. ``rule``: ``claims``, or one of :data:`~nnunet_partial.inference.rules.RULES` for models that all
    know the same classes. Raises :class:`UserError`, also for an ``out`` that holds anything else.
    """
    content, file = read_dataset_json(dataset)
    check_dataset_names(content, str(file))
    classes, out = foreground_classes(content, file)[0], Path(out)
    models = [ModelPredictions.read(i, classes) for i in folders]
    _check_rule(rule, models)
    _check_unions(models, classes)
    ending = content["file_ending"]
    own = {k: content[k] for k in ("channel_names", "labels", "file_ending") if k in content}
    if (out / "dataset.json").is_file() and read_json(out / "dataset.json") != own:  # a raw dataset, for example
        raise UserError(f"{out} holds the dataset.json of something else. Choose another folder.")
    records, request = Records(out), {"labels": own["labels"], "models": [i.to_json() for i in models]}
    if rule != CLAIMS:
        request["rule"] = rule
    masks = [i for i in out.glob(f"*{ending}") if not i.name.startswith(".")]
    kept = read_json(out / REQUEST) if (out / REQUEST).is_file() else None
    if masks and kept is None:
        raise UserError(f"{out} holds files that this command has not made, such as {masks[0].name}. Choose another folder.")
    there = [i.name[: -len(ending)] for i in masks] if kept == request else []
    done = {i for i in there if _is_done(records, models, i, out / (i + ending))}
    cases = sorted(_cases(models, done))
    check_case_names(cases, str(models[0].folder))
    if overwrite and kept != request:
        for file in (*masks, out / REQUEST):
            file.unlink(missing_ok=True)
    claim(out / REQUEST, request, "label maps fused from something else")
    write_json(own, out / "dataset.json")
    for case in bar(cases, "fusing", shown=progress):
        if case not in done:
            begun = records.begin(case, {}, {str(i): model.probabilities(case) for i, model in enumerate(models)})
            _fuse_case(models, case, out / (case + ending), rule)
            records.end(case, begun, [out / (case + ending)])
        if remove_probabilities:
            for file in (i.folder / (case + j) for i in models for j in (".npz", ".pkl")):
                file.unlink(missing_ok=True)
    return cases


def _check_rule(rule: str, models: Sequence[ModelPredictions]) -> None:
    if rule not in (CLAIMS, *RULES):
        raise UserError(f"--rule {rule}: there is no such rule. Rules: {', '.join((CLAIMS, *RULES))}.")
    outlining = [i for i in models if i.unions]
    if rule != CLAIMS and outlining:
        raise UserError(
            f"{outlining[0].folder} does not tell all classes apart, and --rule {rule} is for models that all know the same. Leave it out."
        )
    other = [i for i in models if sorted(i.values) != sorted(models[0].values)]
    if rule != CLAIMS and other:
        raise UserError(
            f"{other[0].folder} has other classes than {models[0].folder}, and --rule {rule} is for models that all know the same. "
            f"Leave it out: every class then comes from the models that know it."
        )


def _check_unions(models: Sequence[ModelPredictions], classes: Sequence[str]) -> None:
    single = {i for model in models for i in model.values.tolist()}
    for model in models:
        lacking = [i for own in model.unions.values() for i in own if i not in single]
        if lacking:
            raise UserError(
                f"{model.folder} does not tell {classes[lacking[0] - 1]!r} apart, and no other model does. Add one that knows the class "
                "alone, or fuse for a dataset that has the structure as one class."
            )


def _cases(models: Sequence[ModelPredictions], done: set) -> set:
    """Every case, finished or not. A case that one model lacks is an error."""
    wanted = set.union(*(i.cases for i in models)) | done
    if not wanted:
        raise UserError(f"{models[0].folder} holds no probabilities (.npz). {_REMEDY}")
    for model in models:
        missing = sorted(wanted - model.cases - done)
        if missing:
            raise UserError(f"{model.folder} has no probabilities of case {missing[0]}. {_REMEDY}")
    return wanted


def _is_done(records: Records, models: Sequence[ModelPredictions], case: str, target: Path) -> bool:
    """As :meth:`Records.is_done`, but probabilities may have been removed since."""
    known = (records.read(case) or {}).get("sources", {})
    files = {str(i): model.probabilities(case) for i, model in enumerate(models)}
    if set(known) != set(files) or not all(is_same(file, known[i]) for i, file in files.items() if file.exists()):
        return False
    return records.is_written(case, [target])


def _fuse_case(models: Sequence[ModelPredictions], case: str, target: Path, rule: str) -> None:
    labels = _merged(models, case) if rule == CLAIMS else _fused(models, case, rule)
    reader, properties = _reader_and_properties(models[0], case)
    write_segmentation(labels, target, reader, properties)


def _merged(models: Sequence[ModelPredictions], case: str) -> np.ndarray:
    """Labels (*S), each from the models that know it; one model's probabilities are in memory at a time."""
    labels, probability, divided = None, None, _divided(models, case)
    for model in models:
        claim = model.claim(case, divided)
        if labels is not None:
            _check_shape(model, case, claim[0].shape, labels.shape)
        labels, probability = merge_claims([claim] if labels is None else [(labels, probability), claim], claim[0].shape)
    assert labels is not None  # there is a model at least
    return labels


def _divided(models: Sequence[ModelPredictions], case: str) -> dict:
    """Members of a union -> which of them a voxel (*S) is, if it is one: the most probable to the models that tell them apart."""
    wanted = {own for model in models for own in model.unions.values()}
    best: dict = {}
    for model in models if wanted else ():
        probabilities = model.read_probabilities(case)
        for value, own in zip(model.values.tolist(), probabilities):
            for union in (i for i in wanted if value in i):
                labels, highest = best.setdefault(union, (np.zeros(own.shape, np.int16), np.full(own.shape, -1, np.float32)))
                _check_shape(model, case, own.shape, labels.shape)
                better = own > highest
                labels[better], highest[better] = value, own[better]
    return {union: labels for union, (labels, _) in best.items()}


def _fused(models: Sequence[ModelPredictions], case: str, rule: str) -> np.ndarray:
    """Labels (*S) by a rule for models of the same classes."""
    fusion = Fusion(rule)
    for model in models:
        probabilities = model.in_order(case)
        if fusion.total is not None:
            _check_shape(model, case, probabilities.shape[1:], fusion.total.shape[1:])
        fusion.add(probabilities)
    return np.sort(models[0].values)[fusion.result()[0]]


def _check_shape(model: ModelPredictions, case: str, shape: tuple, expected: tuple) -> None:
    if shape != expected:
        raise UserError(
            f"{model.folder / case}.npz has the shape {shape}, that of the models before it {expected}. Predict the same images "
            "with all models."
        )


def _reader_and_properties(model: ModelPredictions, case: str) -> tuple:
    """nnU-Net's writer and what it needs to know of a case: it may store images along other axes than it reads them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = model.folder / f"{case}.pkl"
    if not file.is_file():
        raise UserError(f"{file} does not exist. {_REMEDY}")
    return PlansManager(dict(model.plans)).image_reader_writer_class(), load_pickle(file, _REMEDY)


__getattr__ = _moved.renamed(__name__, {"Predictions": "ModelPredictions"})
