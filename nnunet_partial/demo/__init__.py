"""The pipeline on phantoms that are made on the spot."""

from nnunet_partial._moved import forward

__getattr__ = forward(__name__, "pipeline")
