"""``nnUNetv2_train -pretrained_weights``: weights that do not fit the network are refused in one line."""

import inspect
from pathlib import Path

from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.files import load_checkpoint

LEFT_OUT = ".seg_layers."  # nnU-Net transfers everything but these


def requested_weights() -> str | None:
    """The file that nnU-Net is about to load into the network that is being built, or None.

    nnU-Net tells a trainer nothing about it, so it is read where nnU-Net's ``maybe_load_checkpoint`` keeps it.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "maybe_load_checkpoint":
            return frame.f_locals.get("pretrained_weights_file")
        frame = frame.f_back
    return None


def require_fit(network: nn.Module, file: str, trainer: str) -> None:
    """Raises :class:`UserError` unless the weights in ``file`` are what nnU-Net can load into ``network``, unwrapped."""
    if not Path(file).is_file():
        raise UserError(f"-pretrained_weights {file} does not exist. Give the checkpoint of a trained model.")
    try:
        given = load_checkpoint(file, map_location="cpu")["network_weights"]
    except (UserError, KeyError):
        return  # not one that is read safely: nnU-Net's own reader decides
    for key, value in network.state_dict().items():
        if LEFT_OUT in key or (key in given and given[key].shape == value.shape):
            continue
        problem = f"has no {key}" if key not in given else f"has {key} of shape {list(given[key].shape)}"
        raise UserError(
            f"-pretrained_weights {file} does not fit the network of {trainer}: it {problem}, the network has it of shape "
            f"{list(value.shape)}. Pretrain with -tr {trainer} and plans of the same network, or leave the option out."
        )
