"""Who may label: models of any plans and classes, and files of any tool; and what is believed of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import _moved, paths
from nnunet_partial.data import images
from nnunet_partial.data.predictions import OUTSIDE_BODY, Predictions, outside_body, require_disjoint, require_structure
from nnunet_partial.data.raw import RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.inference.image_space import ToPreprocessed
from nnunet_partial.inference.preprocessed import differing_preprocessing, model_content
from nnunet_partial.labels import Union, structure
from nnunet_partial.networks.models import ModelFiles

CERTAIN = np.inf  # in the place of a probability, where a mask is just there
STRANGER = 0.1  # Dice of all that a case annotates, below which masks are of somebody else
EXCHANGED = 0.5  # Dice with another structure than its own that tells an exchange


# ------------------------------------------------------------------ models


@dataclass(frozen=True)
class KnownModel:
    """A model, and how it is asked. ``outputs``: the structure of ``files.classes``, from 1, that each output counts as, 0 for
    background and for what is no class here; None where they are its own. ``difference``: what of its preprocessing is not
    ours, so that it sees the scans themselves."""

    files: ModelFiles
    outputs: tuple | None = None
    difference: str | None = None


def find_known_model(
    source: str,
    mappings: Mapping[str, Mapping[str, str]],
    fold: Any,
    classes: Sequence[str],
    plans: Mapping[str, Any],
    configuration: str,
    checkpoint: str,
    trusted: bool,
) -> KnownModel:
    """Any trained model of nnU-Net as labeller of a dataset of these ``classes``. Reads no checkpoint.

    ``source``    its folder, or ``NAME=FOLDER``; ``mappings``: NAME -> its output -> class, union of classes or background.
                  An output that is not mapped stands for the class of its name; without one it is background
    raises        :class:`UserError` for a model that is missing, or knows nothing of the dataset, and for a wrong mapping
    """
    name, folder = named_folder(source)
    file, theirs, names = model_content(folder, fold, checkpoint, trusted)
    model = file.parent.parent
    found = tuple(_target(i, mappings.get(name or "", {}), classes, name) for i in names)
    unknown = next((i for i in mappings.get(name or "", {}) if i not in names), None)
    if unknown is not None:
        raise UserError(f"--map {name}:{unknown}: the model {model} segments no {unknown!r}, but {', '.join(names)}.")
    known = tuple(dict.fromkeys(i for i in found if i is not None))
    if not known:
        raise UserError(
            f"the model {model} segments {', '.join(names)}, none of which is a class of this dataset: {', '.join(classes)}. Say "
            "what they stand for: --from NAME=FOLDER --map NAME:OUTPUT=CLASS."
        )
    require_disjoint(known, f"the model {model}")
    difference = differing_preprocessing(theirs, plans, configuration, model)
    outputs = None if known == found else (0, *(0 if i is None else known.index(i) + 1 for i in found))
    return KnownModel(
        ModelFiles(model.name, model, file, known, trusted), outputs, None if difference is None else str(difference[0])
    )


def _target(output: str, mapping: Mapping[str, str], classes: Sequence[str], name: str | None) -> str | None:
    if output not in mapping:
        return structure(output, classes)
    return require_structure(mapping[output], classes, f"--map {name}:{output}={mapping[output]}")


def named_folder(source: str) -> tuple:
    """``NAME=FOLDER`` -> (NAME, FOLDER); a folder without a name -> (None, folder)."""
    name, equals, folder = str(source).partition("=")
    return (name, folder) if equals and not Path(source).exists() else (None, source)


# ------------------------------------------------------------------ files of other tools


def find_predictions(
    given: Mapping[str, PathLike], mappings: Mapping[str, Mapping[str, str]], classes: Sequence[str], cases: Sequence[str]
) -> tuple:
    """The files of every tool, NAME -> folder. Raises :class:`UserError` for what is missing or unfit."""
    return tuple(Predictions.find(k, v, mappings.get(k, {}), classes, cases) for k, v in given.items())


def check_geometry(predictions: Sequence[Predictions], cases: Sequence[str], raw: RawDataset | None) -> None:
    """Raise :class:`UserError` unless all files lie on the grids of their images. Reads headers alone."""
    if not predictions or raw is None:
        return
    for case in cases:
        image = raw_case(raw, case).images[0]
        geometry = images.read_geometry(image).spatial()
        for those in predictions:
            those.check_geometry(case, geometry, image)


def raw_dataset_for(dataset: str, predictions: Sequence[Predictions], models: Sequence[KnownModel]) -> RawDataset | None:
    """The scans of a dataset, whose labels may be gone, if anybody needs them: files of tools, and models of other plans.

    Raises :class:`UserError` for such a model that takes another number of channels.
    """
    scanning = [i for i in models if i.difference is not None]
    if not predictions and not scanning:
        return None
    raw = read_raw_dataset(paths.raw_dataset(dataset), labelled=False)
    for model in scanning:
        content = read_json(model.files.folder / "dataset.json")
        channels = len(content.get("channel_names", content.get("modality", ())))
        if channels != len(raw.channel_names):
            raise UserError(
                f"the model {model.files.folder} takes {channels} channels, {raw.json_file} has {len(raw.channel_names)} "
                f"({', '.join(raw.channel_names)}). Name a model of the same channels."
            )
    return raw


def raw_case(raw: RawDataset, case: str):
    """Files of one case. Raises :class:`UserError` for one that the raw dataset lacks."""
    if case not in raw.cases:
        raise UserError(f"{raw.json_file} has no case {case}, which is preprocessed. Preprocess the dataset again.")
    return raw.cases[case]


@dataclass(frozen=True)
class PlacedPrediction:
    """What one tool says of one case, on preprocessed voxels: ``numbers`` (*S) of its structures, 0 for none, or
    ``probabilities`` (n, *S)."""

    predictions: Predictions
    numbers: np.ndarray | None
    probabilities: np.ndarray | None

    @property
    def best(self) -> np.ndarray:
        """Number (*S) of the structure that each voxel most probably is, 0 for background."""
        if self.numbers is not None:
            return self.numbers
        return np.concatenate([self._background[None], self._shares]).argmax(0)

    @property
    def _shares(self) -> np.ndarray:
        assert self.probabilities is not None  # one of the two is there
        return self.probabilities

    @property
    def _background(self) -> np.ndarray:
        return np.maximum(1 - self._shares.sum(0), 0)

    def claim(self, lacking: Sequence[str], outlines: Mapping[Union, np.ndarray], value: Callable[[str], int]) -> tuple:
        """(labels (*S) int16 in the dataset's values, probability (*S) float32, ``CERTAIN`` where a mask tells none).

        ``lacking``  the structures that may be anywhere; within ``outlines``, union -> (*S) bool, only members of the union may
        """
        structures = self.predictions.structures
        values = np.array([0, *(value(i) for i in structures)], np.int16)
        labels, probability = self._among([i in lacking for i in structures], values)
        for union, inside in outlines.items():
            members = [i in union.members for i in structures]
            if any(members):
                found = self._among(members, values)
                labels[inside], probability[inside] = found[0][inside], found[1][inside]
        return labels, probability

    def _among(self, allowed: Sequence[bool], values: np.ndarray) -> tuple:
        if self.numbers is not None:
            labels = np.where(np.array([False, *allowed]), values, 0).astype(np.int16)[self.numbers]
            return labels, np.full(labels.shape, CERTAIN, np.float32)
        rows = [i for i, possible in enumerate(allowed) if possible]
        chosen = np.concatenate([self._background[None], self._shares[rows]])
        best = chosen.argmax(0)
        share = chosen.max(0) / np.maximum(chosen.sum(0), np.finfo(np.float32).tiny)
        return values[[0, *(i + 1 for i in rows)]][best], share.astype(np.float32)

    def soft(self) -> np.ndarray:
        """Probabilities (n, *S) uint8, 255 = 1."""
        if self.probabilities is not None:
            return np.rint(255 * self.probabilities).astype(np.uint8)
        assert self.numbers is not None
        return np.stack([255 * (self.numbers == n + 1).astype(np.uint8) for n in range(len(self.predictions.structures))])


def place_predictions(
    predictions: Predictions, case: str, raw: RawDataset, place: ToPreprocessed, check_body: bool = True
) -> PlacedPrediction:
    """Read the files of a case and bring them onto its preprocessed voxels.

    ``check_body``: whether to ask a CT if they lie on its body. Raises :class:`UserError` for what cannot be used.
    """
    image = raw_case(raw, case).images[0]
    read = predictions.read(case, place.geometry, image, place.values)
    if read.labels is None:
        assert read.probabilities is not None
        return PlacedPrediction(predictions, None, np.clip(read.probabilities, 0, 1))
    if check_body and raw.is_ct and place.geometry.dimensions == 3:
        _require_body(predictions, case, image, read.labels)
    return PlacedPrediction(predictions, place.labels(read.labels), None)


def _require_body(predictions: Predictions, case: str, image: str, labels: np.ndarray) -> None:
    import SimpleITK as sitk

    share = outside_body(sitk.GetArrayFromImage(images.read_image(image)), labels > 0)
    if share > OUTSIDE_BODY:
        raise UserError(
            f"predictions of {predictions.name}: {share:.0%} of the masks of case {case} lie in the air around the body of {image}: "
            f"they are of another scan, or turned. Make them again, or leave the case out with --cases."
        )


def agreement(placed: PlacedPrediction, case: str, truth: np.ndarray, values: Mapping[str, int]) -> dict:
    """Structure -> Dice with the manual labels, of what a case annotates and a tool also says.

    ``truth`` (*S) holds the manual labels, ``values`` structure -> its value there, of what is annotated. A number tells
    which labels to doubt; masks that have nothing to do with the annotations are an error.
    Raises :class:`UserError` for masks of another patient, and for structures that are exchanged.
    """
    shared = {i: n for n, i in enumerate(placed.predictions.structures, 1) if i in values}
    if not shared:
        return {}
    best = placed.best
    truths = {i: truth == values[i] for i in shared}
    masks = {i: best == n for i, n in shared.items()}
    sizes = {i: (int(truths[i].sum()), int(masks[i].sum())) for i in shared}
    found = {i: _dice(truths[i], masks[i], sizes[i]) for i in shared if sizes[i][0] or sizes[i][1]}
    _require_own_sides(placed.predictions.name, case, found, truths, masks)
    both = [i for i in found if sizes[i][0] and sizes[i][1]]
    if both:
        overlap = sum(int((truths[i] & masks[i]).sum()) for i in both)
        whole = 2 * overlap / sum(sum(sizes[i]) for i in both)
        if whole < STRANGER:
            raise UserError(
                f"predictions of {placed.predictions.name}: the masks of case {case} do not lie on its manual labels (Dice "
                f"{whole:.2f} of {', '.join(both)}): they are of another scan or patient. Make them again, or leave the case out "
                "with --cases."
            )
    return found


def _dice(truth: np.ndarray, mask: np.ndarray, sizes: tuple) -> float:
    return 2 * int((truth & mask).sum()) / sum(sizes)


def _require_own_sides(name: str, case: str, found: Mapping[str, float], truths: Mapping, masks: Mapping) -> None:
    for item, own in found.items():
        for other in found if own < STRANGER else ():
            sizes = (int(truths[other].sum()), int(masks[item].sum()))
            if other != item and sum(sizes) and _dice(truths[other], masks[item], sizes) > EXCHANGED:
                raise UserError(
                    f"predictions of {name}: what case {case} calls {item} lies on the manual labels of {other}: the two are "
                    f"exchanged (left and right?). Correct --map, or leave the case out with --cases."
                )


# ------------------------------------------------------------------ doubt


@dataclass
class Doubt:
    """How sure of background the models are, and where they contradict each other, gathered while their claims are merged.

    ``known``: of each claim, in turn, the values that it could have given.
    """

    shape: tuple
    known: Sequence[Sequence[int]]
    background: np.ndarray = field(init=False)
    contested: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.background = np.full(self.shape, CERTAIN, np.float32)
        self.contested = np.zeros(self.shape, bool)

    def watch(self, claims: Iterable[tuple]) -> Iterator[tuple]:
        """The claims, (labels (*S), probability (*S)), as they are."""
        given, known = np.zeros(self.shape, np.int16), set()
        for (labels, probability), own in zip(claims, self.known):
            nothing = labels == 0
            np.minimum(self.background, probability, out=self.background, where=nothing)
            self.contested |= ~nothing & (given > 0) & (labels != given)
            self.contested |= nothing & np.isin(given, list(set(own) - {0})) & (given > 0)
            self.contested |= ~nothing & (given == 0) & np.isin(labels, list(known - {0}))
            given = np.where(nothing, given, labels)
            known |= set(own)
            yield labels, probability

    def doubtful(self, labels: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
        """(*S) bool: whatever a voxel was given, background too, was less probable than ``threshold``."""
        return np.where(labels > 0, probability, self.background) < threshold

    def disagreement(self, seg: np.ndarray, names: Mapping[str, int], mine: np.ndarray) -> dict:
        """Structure -> share of its pseudo-labelled voxels (``mine``) that models disagree about; empty for one model alone."""
        if len(self.known) < 2:
            return {}
        where = {name: mine & (seg == value) for name, value in names.items()}
        return {name: float(self.contested[i].mean()) if i.any() else None for name, i in where.items()}


__getattr__ = _moved.renamed(__name__, {"Placed": "PlacedPrediction"})
