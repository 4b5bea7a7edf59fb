"""Weights that a training starts from (setting ``initial_weights``): of any nnU-Net checkpoint, whatever its classes.

nnU-Net's ``-pretrained_weights`` asks that everything fits and leaves the segmentation layers out. Here every layer that fits is
taken and the others are named; the encoder has to fit. Segmentation layers are taken class by class, by the names in the model's
dataset.json. Checkpoints of nnU-Net, of MultiTalent (which trains nnU-Net's networks) and of nnssl (OpenMind) are read alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_partial import _moved
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, load_checkpoint, read_json
from nnunet_partial.labels import foreground_classes, members, structure
from nnunet_partial.networks.unwrap import unwrap

ENCODER, HEADS = "encoder.", ".seg_layers."
_ALIAS = "decoder.encoder."  # the encoder again, which nnU-Net's decoders hold too
_FIRST = ("encoder.stem.", "encoder.stages.0.0.convs.0.")  # which sees the image
_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile
_NNSSL = "nnssl_adaptation_plan"


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint to start from. ``outputs``: which class or union each output after background means to the dataset at hand,
    None for neither; None as a whole where nothing says what they mean."""

    file: str
    weights: Mapping[str, Tensor]
    outputs: tuple | None


@dataclass(frozen=True)
class Transfer:
    """What became of the weights, by name of a layer: ``taken``; ``left_out``, of the checkpoint; ``new``, of the network."""

    taken: tuple
    left_out: tuple
    new: tuple

    def lines(self) -> list:
        """For the training log."""
        said = [f"{len(self.taken)} layers are taken."]
        for what, names in (("not taken from it", self.left_out), ("at random", self.new)):
            said += [f"{what}: {', '.join(names)}"] if names else []
        return said


def read_source(file: PathLike, classes: Sequence[str]) -> SourceModel:
    """The weights of a checkpoint under nnU-Net's names, without running anything in it. Raises :class:`UserError`."""
    checkpoint = load_checkpoint(file)
    weights = {_unwrapped(k): v for k, v in checkpoint["network_weights"].items() if isinstance(v, Tensor)}
    weights = {k: v for k, v in _as_nnunet(weights, checkpoint.get(_NNSSL)).items() if not k.startswith(_ALIAS)}
    return SourceModel(str(file), weights, _outputs(Path(file), checkpoint, classes))


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.removeprefix(next(i for i in _WRAPPERS if name.startswith(i)))
    return name


def _as_nnunet(weights: Mapping[str, Tensor], plan: Any) -> dict:
    """nnssl's checkpoints say where their encoder's stages and stem are; nnU-Net has them at encoder.stages and encoder.stem."""
    if not isinstance(plan, Mapping):
        return dict(weights)
    stages, stem = (str(plan.get(i, "")) for i in ("key_to_encoder", "key_to_stem"))
    prefixes = {stages: "encoder.stages"}
    if not stem.startswith(stages):  # PlainConvUNet's stem is its first stage
        prefixes[stem] = "encoder.stem"
    renamed = {}
    for name, value in weights.items():
        prefix = next((i for i in prefixes if i and name.startswith(f"{i}.")), None)
        renamed[name if prefix is None else prefixes[prefix] + name[len(prefix) :]] = value
    return renamed


def _outputs(file: Path, checkpoint: Mapping[str, Any], classes: Sequence[str]) -> tuple | None:
    """The model's dataset.json lies beside its folds; nnU-Net's checkpoints hold a copy."""
    beside = file.parent.parent / "dataset.json"
    content = read_json(beside) if beside.is_file() else checkpoint.get("init_args", {}).get("dataset_json")
    try:
        names, _ = foreground_classes(content, str(beside))
    except UserError:  # none, or of regions, whose outputs are no classes
        return None
    return tuple(structure(i, classes) for i in names)


@torch.no_grad()
def transfer(
    network: nn.Module, source: SourceModel, classes: Sequence[str], encoder_only: bool = False, spread: bool = True
) -> Transfer:
    """Load what fits into ``network``, whose outputs are background and ``classes``.

    ``spread``: an image channel is spread over all where the checkpoint has seen one alone. Raises :class:`UserError` unless the whole
    encoder fits; the network is then as it was.
    """
    network = unwrap(network)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(_ALIAS)}
    fitting = {
        k: _fitted(source.weights.get(k), v, spread and k.startswith(_FIRST)) for k, v in own.items() if HEADS not in f".{k}"
    }
    _require_encoder(own, fitting, source)
    wanted = {k: v for k, v in fitting.items() if v is not None and (k.startswith(ENCODER) or not encoder_only)}
    if not encoder_only and source.outputs is not None:
        heads = [i for i in own if HEADS in f".{i}"]
        wanted.update(_heads({i: own[i] for i in heads}, source, classes))
    network.load_state_dict({**network.state_dict(), **wanted, **_aliases(network, wanted)})
    unknown = [] if source.outputs is None else [f"output {n}" for n, i in enumerate(source.outputs, 1) if i is None]
    return Transfer(_layers(wanted), (*_layers(set(source.weights) - set(wanted)), *unknown), _layers(set(own) - set(wanted)))


def _fitted(given: Tensor | None, own: Tensor, spread: bool) -> Tensor | None:
    if given is None or given.shape == own.shape:
        return given
    if spread and given.ndim == own.ndim > 2 and given.shape[1] == 1 and given[:, 0].shape == own[:, 0].shape:
        return given.expand_as(own) / own.shape[1]  # a mean over the image channels
    return None


def _require_encoder(own: Mapping[str, Tensor], fitting: Mapping[str, Any], source: SourceModel) -> None:
    encoder = [i for i in own if i.startswith(ENCODER)]
    wrong = next((i for i in encoder if fitting[i] is None), None)
    if not encoder:
        raise UserError(
            f"initial_weights {source.file}: this network has no encoder that weights could be taken for. Leave it out."
        )
    if wrong is None:
        return
    given = source.weights.get(wrong)
    found = f"has no {wrong}" if given is None else f"has {wrong} of shape {list(given.shape)}"
    raise UserError(
        f"initial_weights {source.file} does not fit the encoder: it {found}, the network has it of shape {list(own[wrong].shape)}. "
        "Take plans with the network that it was trained with (nnU-Net: nnUNetv2_move_plans_between_datasets), or leave the setting out."
    )


def _heads(own: Mapping[str, Tensor], source: SourceModel, classes: Sequence[str]) -> dict:
    """Segmentation layers with the model's outputs, and the same features, in the place of those with an output a class."""
    number, found = len(source.outputs or ()) + 1, {}
    for name, tensor in own.items():
        given = source.weights.get(name)
        if given is None or given.shape[1:] != tensor.shape[1:]:
            continue
        if len(given) == number and len(tensor) == len(classes) + 1:
            found[name] = extended(given, source.outputs or (), classes)
    # a weight without its bias would be a layer of neither
    return {k: v for k, v in found.items() if _twin(k) not in own or _twin(k) in found}


def _twin(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{layer}.{'bias' if kind == 'weight' else 'weight'}"


def extended(given: Tensor, outputs: Sequence[str | None], classes: Sequence[str]) -> Tensor:
    """A segmentation layer's weight or bias for ``classes``, from one for background and ``outputs``.

    What an output does not tell apart starts as equal parts of it: the members of a union of it, and of background the classes
    that the model does not know. Each of m parts has its weights and its bias less log m, so that their probabilities add up to
    the output's (Cermelli et al. 2020, Modeling the Background for Incremental Learning, section 3.3, for background).

    ``given``  (1 + number of outputs, ...), a bias if it has one axis
    returns    (1 + number of classes, ...). Outputs that are None are dropped.
    """
    known = {c for i in outputs if i is not None for c in members(i)}
    parts = [(0, (0, *(n for n, c in enumerate(classes, 1) if c not in known)))]
    parts += [(row, tuple(classes.index(c) + 1 for c in members(i))) for row, i in enumerate(outputs, 1) if i is not None]
    made = given.new_empty((len(classes) + 1, *given.shape[1:]))
    for row, values in parts:
        made[list(values)] = given[row] - (math.log(len(values)) if given.ndim == 1 else 0)
    return made


def _aliases(network: nn.Module, wanted: Mapping[str, Tensor]) -> dict:
    """The encoder's tensors under the names that the decoder has for them."""
    prefix = _ALIAS.removesuffix(ENCODER)
    return {
        k: wanted[k.removeprefix(prefix)]
        for k in network.state_dict()
        if k.startswith(_ALIAS) and k.removeprefix(prefix) in wanted
    }


def _layers(names: Iterable[str]) -> tuple:
    """Names of the layers that tensors belong to; the same convolution has two names in nnU-Net's blocks, of which one is shown."""
    layers = {i.rpartition(".")[0] for i in names if ".all_modules." not in i}
    return tuple(sorted(layers))


__getattr__ = _moved.renamed(__name__, {"Source": "SourceModel"})
