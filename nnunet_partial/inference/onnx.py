"""A network as an ONNX file, checked against torch before it is written.

Needs the extra ``onnx``: ``pip install "nnunet_partial[onnx]"``.
"""

import copy
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, atomic_path, read_json
from nnunet_partial.networks.models import ModelFiles, find_checkpoint, load_network
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.paths import FINAL_CHECKPOINT

INPUT, OUTPUT = "image", "logits"
OPSET = 18


def export_onnx(
    network: nn.Module,
    path: PathLike,
    in_channels: int,
    patch_size: Sequence[int],
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Write ``network`` as one ONNX file: ``image`` (batch, in_channels, *S) float32 -> ``logits`` (batch, classes, *S).

    The batch and S are any that the network takes: ``patch_size``, which it was planned for, and others that its strides
    divide. Deep supervision is left out. ``metadata`` goes into the file's properties. The file is run by onnxruntime on
    random input and compared with torch, both on the CPU, on one patch and on two of another size; it appears at ``path``
    only if they agree. Returns the largest difference of the logits, relative to the largest logit if that is above 1.
    Raises :class:`UserError` if the packages are missing and RuntimeError if the difference exceeds ``tolerance``.
    """
    _require_packages()
    network = copy.deepcopy(unwrap(network)).cpu().float().eval()
    decoder: Any = getattr(network, "decoder", None)
    if hasattr(decoder, "deep_supervision"):
        decoder.deep_supervision = False
    shortest = min(range(len(patch_size)), key=lambda i: patch_size[i])
    other_size = [2 * length if i == shortest else length for i, length in enumerate(patch_size)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(n, in_channels, *size, generator=generator) for n, size in ((1, patch_size), (2, other_size))]
    with atomic_path(path) as temporary:
        _write(network, images[1], temporary, metadata or {})
        # NaN stays NaN, unlike with max
        difference = float(np.max([onnx_difference(temporary, network, i) for i in images]))
        # written so that NaN fails too
        if not difference <= tolerance:
            raise RuntimeError(
                f"{path}: onnxruntime and torch differ by {difference:.2g}, more than {tolerance:.2g}; not written."
            )
    return difference


def export_model_onnx(
    folder: PathLike, path: PathLike, fold: Any = 0, checkpoint: str = FINAL_CHECKPOINT, trusted: bool = False
) -> float:
    """:func:`export_onnx` of the network of an nnU-Net model folder, checked on the patch of its plans.

    What must be done to an image first is written into the file's properties: ``spacing_mm``, ``normalization_schemes``,
    ``foreground_intensity_properties``, ``transpose_forward`` (JSON); and ``labels``, what the classes are.
    ``trusted``: the user vouches for its architecture. Raises :class:`UserError` for a model that is missing.
    """
    file = find_checkpoint(Path(folder), fold, checkpoint)
    if file is None:
        raise UserError(f"{folder} holds no fold_{fold}/{checkpoint}. Train it with nnUNetv2_train, or name another fold.")
    model = file.parent.parent
    dataset_json = read_json(model / "dataset.json", "A model folder holds it.")
    loaded = load_network(ModelFiles(model.name, model, file, (), trusted))
    planned, plans = loaded.configuration, loaded.plans
    properties = {
        "labels": dataset_json["labels"],
        "spacing_mm": planned.spacing,
        "patch_size": planned.patch_size,
        "normalization_schemes": planned.normalization_schemes,
        "foreground_intensity_properties": plans.foreground_intensity_properties_per_channel,
        "transpose_forward": plans.transpose_forward,
    }
    channels = len(dataset_json["channel_names"])
    return export_onnx(
        loaded.network,
        path,
        channels,
        planned.patch_size,
        {"trainer": loaded.trainer_name, **{k: json.dumps(v) for k, v in properties.items()}},
    )


def onnx_difference(path: PathLike, network: nn.Module, image: torch.Tensor) -> float:
    """Largest difference between the logits of an ONNX file and of ``network`` (CPU, evaluation mode) on ``image``,
    relative to the largest logit if that is above 1."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: image.numpy()})[0]
    with torch.no_grad():
        expected = network(image).numpy()
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _write(network: nn.Module, image: torch.Tensor, path: str, metadata: Mapping[str, str]) -> None:
    import onnx

    dynamic = torch.export.Dim.DYNAMIC
    program: Any = torch.onnx.export(
        network,
        (image,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({i: dynamic for i in range(image.ndim) if i != 1},),
    )
    program.save(path, external_data=False)
    model = onnx.load(path)
    _name_axes(model.graph, ("batch", "", *("depth", "height", "width")[2 - image.ndim :]))
    for node in model.graph.node:
        del node.metadata_props[:]  # torch leaves stack traces there, with the paths of this machine
    onnx.helper.set_model_props(model, {str(k): str(v) for k, v in metadata.items()})
    onnx.save(model, path)


def _name_axes(graph: Any, names: Sequence[str]) -> None:
    """Names for people instead of torch's symbols for the sizes of the input, wherever a size is told."""
    known = {d.dim_param: name for d, name in zip(graph.input[0].type.tensor_type.shape.dim, names) if d.dim_param}
    for tensor in (*graph.input, *graph.output, *graph.value_info):
        for size in tensor.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda symbol: known.get(symbol[0], symbol[0]), size.dim_param)
    for size, name in zip(graph.output[0].type.tensor_type.shape.dim, names):
        if name:
            size.dim_param = name  # torch tells it as what the strides make of it, which is the same


def _require_packages() -> None:
    missing = [i for i in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(i) is None]
    if missing:
        raise UserError(f'ONNX export needs the package {missing[0]}: pip install "nnunet_partial[onnx]".')
