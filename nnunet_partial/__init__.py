"""Partially labelled datasets in, one ordinary nnU-Net v2 model that segments every organ out."""

from nnunet_partial import _moved

__version__ = "0.2.0.dev0"
_moved.install()
