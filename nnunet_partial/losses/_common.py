"""What every loss of this package does to its input first."""

import torch
from torch import Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype that sums, exponentials and logarithms are taken in: float32 for half precision, else that of ``x``.

    float16 ends at 65504, which a sum over a patch passes at once, and bfloat16 has eight bits to add with.
    """
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax over the channels (dimension 1), in the working dtype."""
    return torch.log_softmax(logits, 1, dtype=working_dtype(logits))


def softmax(logits: Tensor) -> Tensor:
    """softmax over the channels (dimension 1), in the working dtype."""
    return torch.softmax(logits, 1, dtype=working_dtype(logits))


def check_voxels(name: str, given: Tensor, logits: Tensor) -> None:
    """Raises ValueError unless ``given`` (B, *S) lies on the voxels of ``logits`` (B, C, *S)."""
    allowed = (logits.shape[0], *logits.shape[2:])
    if tuple(given.shape) != allowed:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}, expected (B, *S) = {allowed} for logits of shape {tuple(logits.shape)}"
        )
