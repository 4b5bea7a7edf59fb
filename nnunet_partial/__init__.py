"""Partially labelled datasets in, one ordinary nnU-Net v2 model that segments every organ out."""

__version__ = "0.1.0"
