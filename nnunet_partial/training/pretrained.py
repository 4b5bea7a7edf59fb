"""``nnUNetv2_train -pretrained_weights``: files that would run code, and weights that do not fit, are refused in one line.

nnU-Net tells a trainer nothing of that file: it lets the trainer build its network and calls a function of its own, which
unpickles the file and asserts that it fits. That function of this process is wrapped.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.run import run_training
from torch import Tensor, nn

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import load_checkpoint
from nnunet_partial.networks.unwrap import unwrap

LEFT_OUT = ".seg_layers."  # nnU-Net transfers everything but these


def check_weights_for(trainer: str) -> None:
    """From now on nnU-Net loads a file of weights into the network of ``trainer`` only after a look at it."""
    load = getattr(run_training.load_pretrained_weights, "__wrapped__", run_training.load_pretrained_weights)

    @functools.wraps(load)
    def checked(network: nn.Module, fname: str, *args: Any, **kwargs: Any) -> None:
        with exit_on_user_error():
            if not Path(fname).is_file():
                raise UserError(f"-pretrained_weights {fname} does not exist. Give the checkpoint of a trained model.")
            require_fit(unwrap(network), load_checkpoint(fname)["network_weights"], fname, trainer)
        load(network, fname, *args, **kwargs)

    run_training.load_pretrained_weights = checked


def require_fit(network: nn.Module, weights: Mapping[str, Tensor], file: str, trainer: str) -> None:
    """Raises :class:`UserError` unless ``weights``, from ``file``, are what nnU-Net can load into ``network``, unwrapped."""
    for key, value in network.state_dict().items():
        if LEFT_OUT in key or (key in weights and weights[key].shape == value.shape):
            continue
        problem = f"has no {key}" if key not in weights else f"has {key} of shape {list(weights[key].shape)}"
        raise UserError(
            f"-pretrained_weights {file} does not fit the network of {trainer}: it {problem}, the network has it of shape "
            f"{list(value.shape)}. Pretrain with -tr {trainer} and plans of the same network, or leave the option out."
        )
