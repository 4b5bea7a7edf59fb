"""Many raw datasets become one partially labelled one."""

from nnunet_partial._moved import forward

__getattr__ = forward(__name__, "merge")
