"""Prediction in preprocessed space: the images as nnU-Net trained on them, no resampling there and back.

The windows, the Gaussian weights, the mirroring and their sum are nnU-Net's own predictor's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import check_file_name, foreground_classes, structure
from nnunet_partial.networks.models import ModelFiles, find_checkpoint, load_network, preprocessing_pairs
from nnunet_partial.networks.onednn import use_onednn_convolutions
from nnunet_partial.paths import FINAL_CHECKPOINT
from nnunet_partial.trust import check_plans


def preprocessed_images(folder: Path, plans: Mapping[str, Any], configuration: str) -> Path:
    """Where the preprocessed cases of ``configuration`` lie; ``folder`` is the dataset's in nnUNet_preprocessed.

    Raises :class:`UserError` for a configuration that the plans lack, or that is not preprocessed.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    check_plans(plans, folder / f"{plans.get('plans_name', 'plans')}.json", networks=False)
    name = plans["plans_name"]
    paths.require_configuration(plans, configuration)
    images = folder / PlansManager(dict(plans)).get_configuration(configuration).data_identifier
    if not images.is_dir():
        raise UserError(
            f"{images} does not exist. Run nnUNetv2_preprocess -d {paths.dataset_number(folder.name)} -plans_name {name} -c {configuration}"
        )
    return images


def require_case(images: Path, case: str) -> None:
    """Raises :class:`UserError` for a case that is not among the preprocessed ones."""
    check_file_name(case, f"{images}: case")
    if not (images / f"{case}_seg.b2nd").is_file():
        raise UserError(f"{images / case}_seg.b2nd does not exist. Preprocess the dataset again.")


def case_file(images: Path, case: str) -> Path:
    """The preprocessed image of a case."""
    return images / f"{case}.b2nd"


def load_case(images: Path, case: str) -> tuple:
    """Preprocessed image (channels, *S) float32, labels (1, *S) int and properties."""
    from nnunet_partial.data.preprocessed.cases import SafeDatasetBlosc2

    images_of: Any = SafeDatasetBlosc2(str(images), [case])
    data, seg, _, properties = images_of.load_case(case)
    return np.asarray(data[:]), np.array(seg[:]), properties


def find_model(
    folder: PathLike,
    fold: Any,
    classes: Sequence[str],
    plans: Mapping[str, Any],
    configuration: str,
    checkpoint: str = FINAL_CHECKPOINT,
    trusted: bool = False,
) -> ModelFiles:
    """A trained model for images that ``plans`` and ``configuration`` preprocessed. Reads no checkpoint.

    ``folder``  an nnU-Net model folder, of which fold ``fold`` is taken or else fold ``all``; or a fold's own folder
    ``classes`` what it may segment; it need not know all of them
    ``trusted`` the user vouches for the architecture that its plans name
    raises      :class:`UserError` for a model that is missing, saw other images or knows other classes
    """
    file, theirs, names = model_content(folder, fold, checkpoint, trusted)
    model = file.parent.parent
    found = differing_preprocessing(theirs, plans, configuration, model)
    if found is not None:
        name, found, expected = found
        raise UserError(
            f"the model {model} was trained with {name} {str(found)[:60]}, {plans['plans_name']} "
            f"{configuration} has {str(expected)[:60]}: its images look different. Train it on these "
            f"plans."
        )
    known = tuple(structure(i, classes) for i in names)
    unknown = [i for i, j in zip(names, known) if j is None]
    if unknown:
        raise UserError(f"the model {model} segments {unknown[0]}, which is no class of this dataset: {', '.join(classes)}.")
    return ModelFiles(model.name, model, file, known, trusted)


def model_content(folder: PathLike, fold: Any, checkpoint: str, trusted: bool) -> tuple:
    """``(checkpoint file, plans, names of the foreground outputs)`` of a model, its plans checked. Reads no checkpoint."""
    file = find_checkpoint(Path(folder), fold, checkpoint)
    if file is None:
        raise UserError(
            f"{folder} holds no fold_{fold}/{checkpoint}. Train it with nnUNetv2_train (fold {fold}), or "
            f"name the folder of one fold."
        )
    model = file.parent.parent
    plans = read_json(model / "plans.json", "A model folder holds it.")
    check_plans(plans, model / "plans.json", trusted)
    dataset_file = model / "dataset.json"
    return file, plans, foreground_classes(read_json(dataset_file, "A model folder holds it."), str(dataset_file))[0]


def differing_preprocessing(theirs: Mapping[str, Any], ours: Mapping[str, Any], configuration: str, model: Path) -> tuple | None:
    """(name, the model's value, ours) of the first thing that makes images look different to a model; None if nothing does."""
    return next((i for i in preprocessing_pairs(theirs, ours, configuration, model) if i[1] != i[2]), None)


def load_predictor(files: ModelFiles, device: torch.device, mirroring: bool = True):
    """nnU-Net's predictor for one checkpoint, at its own defaults (half overlap, Gaussian, mirroring)."""
    from nnunet_partial.networks.predictor import make_predictor  # heavy

    loaded = load_network(files)
    if loaded.configuration.previous_stage_name is not None:
        raise UserError(
            f"{files.folder} is the second stage of a cascade, which needs the first one's output. Use a "
            f"model of 2d, 3d_lowres or 3d_fullres."
        )
    predictor = make_predictor(device, mirroring)
    if device.type == "cpu":
        use_onednn_convolutions(loaded.network)
    predictor.manual_initialization(
        loaded.network, loaded.plans, loaded.configuration, None, loaded.dataset_json, loaded.trainer_name, loaded.mirroring_axes
    )
    return predictor


def predict_logits(predictor, image: np.ndarray) -> torch.Tensor:
    """Preprocessed image (channels, *S) -> logits (classes, *S), float16, on the CPU; S has three axes in 2D too."""
    data = torch.from_numpy(np.array(image, dtype=np.float32))
    return predictor.predict_sliding_window_return_logits(data).cpu()


def restricted_prediction(
    logits: torch.Tensor, outputs: Sequence[int], slab: int = 16, groups: Sequence[int] | None = None
) -> tuple:
    """What the network says where only background and the classes ``outputs`` are possible.

    The softmax is taken over background (output 0) and ``outputs`` alone: a class that is annotated on the case is
    known not to be where its annotation is not. ``slab`` voxels along the first axis are computed at a time.

    ``groups`` numbers from 1 the super-class of each of ``outputs``: the most probable super-class (the sum of its
    members) wins, and of its members the most probable; the probability is the super-class's.

    logits (C, *S) -> (index (*S) int64: 0 background, i + 1 for ``outputs[i]``; its probability (*S) float32).
    """
    rows = [0, *outputs]
    index = torch.empty(logits.shape[1:], dtype=torch.int64)
    probability = torch.empty(logits.shape[1:], dtype=torch.float32)
    for start in range(0, logits.shape[1], slab):
        part = slice(start, start + slab)
        probabilities = torch.softmax(logits[rows, part].float(), 0)
        if groups is None:
            torch.max(probabilities, 0, out=(probability[part], index[part]))
        else:
            probability[part], index[part] = _most_probable_group(probabilities, torch.tensor([0, *groups]))
    return index, probability


def restricted_probabilities(logits: torch.Tensor, outputs: Sequence[int], slab: int = 16) -> np.ndarray:
    """Probabilities (1 + n, *S) float32 of background and the classes ``outputs`` where nothing else is possible, as in
    :func:`restricted_prediction`; of logits (C, *S)."""
    rows = [0, *outputs]
    found = np.empty((len(rows), *logits.shape[1:]), np.float32)
    for start in range(0, logits.shape[1], slab):
        part = slice(start, start + slab)
        found[:, part] = torch.softmax(logits[rows, part].float(), 0).numpy()
    return found


def _most_probable_group(probabilities: torch.Tensor, groups: torch.Tensor) -> tuple:
    """(probability of the best group, its best member) of probabilities (rows, *S); ``groups`` (rows,) from 0."""
    sums = probabilities.new_zeros((int(groups.max()) + 1, *probabilities.shape[1:])).index_add_(0, groups, probabilities)
    best, group = sums.max(0)
    outside = groups.view(-1, *[1] * group.ndim) != group
    return best, probabilities.masked_fill(outside, -1).argmax(0)
