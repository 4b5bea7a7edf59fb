"""Preprocessed cases as nnU-Net reads them, from files that may come from anyone: nothing in them is run.

nnU-Net unpickles the properties of a case, and blosc2 files can hold expressions and addresses instead of numbers. nnU-Net's
datasets are kept as they are but for the two functions with which they read.
"""

import os
from types import FunctionType, SimpleNamespace

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunet_partial.files import PathLike
from nnunet_partial.safe_read import load_npz, load_pickle, open_array

_REMEDY = "Preprocess the dataset again, or make the label directory again."


def _load(file: PathLike, *args, **kwargs):
    return np.load(file, *args, **kwargs) if str(file).endswith(".npy") else load_npz(file, remedy=_REMEDY)


_READERS = {
    "load_pickle": lambda file: load_pickle(file, _REMEDY),
    "blosc2": SimpleNamespace(open=open_array),
    "np": SimpleNamespace(load=_load),
}


def _with_our_readers(load_case: FunctionType) -> FunctionType:
    """nnU-Net's own function, whose names for what reads files stand for ours."""
    return FunctionType(
        load_case.__code__,
        {**load_case.__globals__, **_READERS},
        load_case.__name__,
        load_case.__defaults__,
        load_case.__closure__,
    )


class SafeDatasetBlosc2(nnUNetDatasetBlosc2):
    """nnU-Net's dataset of ``.b2nd`` files, read without running anything in them."""

    load_case = _with_our_readers(nnUNetDatasetBlosc2.load_case)


class SafeDatasetNumpy(nnUNetDatasetNumpy):
    """nnU-Net's dataset of ``.npz`` files, read without running anything in them."""

    load_case = _with_our_readers(nnUNetDatasetNumpy.load_case)


_SAFE = {nnUNetDatasetBlosc2: SafeDatasetBlosc2, nnUNetDatasetNumpy: SafeDatasetNumpy}


def safe_dataset_class(dataset_class: type | None) -> type | None:
    """Ours in the place of one of nnU-Net's two classes of datasets; any other, and None, as it is."""
    return _SAFE.get(dataset_class, dataset_class)


def require_readable(folder: PathLike, cases) -> None:
    """Raises :class:`UserError` for the first case of a preprocessed folder whose properties are not plain values."""
    for case in cases:
        load_pickle(os.path.join(folder, f"{case}.pkl"), _REMEDY)
