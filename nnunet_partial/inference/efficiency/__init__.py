"""What prediction costs: time, memory, multiply-accumulates; contenders side by side."""

from nnunet_partial._moved import forward

__getattr__ = forward(__name__, "measure")
