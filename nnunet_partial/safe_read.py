"""Pickles, npz archives and blosc2 arrays that may come from anyone, read without running code.

A pickle is a program. One that is read here may name nothing but what nnU-Net's property files hold, and numpy's own constructors are
replaced by ours, which check that the bytes of an array fit its shape and type.
"""

import codecs
import io
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike

_HEADER_SIZE = slice(11, 15)  # of a blosc2 frame, big-endian; the names of what else is in it stand in the header
_NOT_NUMBERS = (b"LazyArray", b"proxy-source", b"b2o")  # what blosc2 would evaluate, or fetch from elsewhere
_REMEDY = "Preprocess the dataset again, or make the label directory again."
_CODE = re.compile(r"(\?|[biufc]\d{1,2}|[SU]\d{1,6})")  # numpy's type codes of bool, numbers and text


def load_pickle(path: PathLike, remedy: str = "") -> Any:
    """The content of a pickle of numbers, text, plain containers and numpy arrays.

    Raises :class:`UserError` with ``remedy`` for a file that cannot be read or names anything else; nothing of it has
    run then.
    """
    return _read(path, lambda: _finished(_Restricted(_content(path)).load()), remedy)


def load_npz(path: PathLike, names: Sequence[str] | None = None, remedy: str = "") -> dict:
    """The arrays ``names`` (None: all) of an npz archive. Raises :class:`UserError` with ``remedy`` for a file that cannot be
    read, lacks one of them, or holds objects, which numpy would unpickle."""
    import numpy as np

    def read() -> dict:
        with np.load(path, allow_pickle=False) as content:
            return {i: content[i] for i in names or content.files}

    return _read(path, read, remedy)


def open_array(urlpath: PathLike, mode: str = "r", **how) -> Any:
    """The array of numbers of a ``.b2nd`` file, left on disk until it is indexed; opened as nnU-Net opens its own.

    Raises :class:`UserError` for a file that cannot be read or holds anything but numbers.
    """
    import blosc2

    mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
    try:
        with open(urlpath, "rb") as handle:
            start = handle.read(_HEADER_SIZE.stop)
            header = handle.read(max(0, int.from_bytes(start[_HEADER_SIZE], "big") - len(start)))
        if any(i in header for i in _NOT_NUMBERS):
            raise UserError(f"{urlpath} holds an expression or an address, not numbers, and is not opened. {_REMEDY}")
        array = blosc2.open(urlpath=os.fspath(urlpath), mode="r", **{"dparams": {"nthreads": 1}, **mmap, **how})
        if not isinstance(array, blosc2.NDArray) or array.dtype.kind not in "biuf":
            raise UserError(f"{urlpath} holds no array of numbers, and is not read. {_REMEDY}")
    except (MemoryError, UserError):
        raise
    except FileNotFoundError:
        raise UserError(f"{urlpath} does not exist. {_REMEDY}") from None
    except Exception as error:  # blosc2 raises many kinds for damaged files
        raise UserError(f"{urlpath} cannot be read ({type(error).__name__}: {error}). {_REMEDY}") from error
    return array


def _content(path: PathLike):
    """The content of a file as a stream: reading it whole keeps no file open when the content is refused."""
    with open(path, "rb") as handle:
        return io.BytesIO(handle.read())


def _read(path: PathLike, read: Callable, remedy: str) -> Any:
    try:
        return read()
    except (MemoryError, UserError):
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except Exception as error:  # a damaged file raises many kinds
        refused = isinstance(error, pickle.UnpicklingError) and "not a plain value" in str(error) or "allow_pickle" in str(error)
        why = (
            f"is not read, because that could run code ({error})"
            if refused
            else f"cannot be read ({type(error).__name__}: {error})"
        )
        raise UserError(f"{path} {why}. {remedy or 'Remove it and make it again, or copy it from where it is whole.'}") from error


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a plain value")
        return _ALLOWED[module, name]


class _Dtype:
    """Stands for a numpy type while a pickle is read: a real one would take any state from the file, layout of memory included."""

    def __init__(self, code: str, *flags):
        self.code, self.order = code.decode("ascii") if isinstance(code, bytes) else code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def real(self):
        import numpy as np

        if not isinstance(self.code, str) or not _CODE.fullmatch(self.code) or self.order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it holds an array of type {self.code!r}, which is not a plain value")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stands for a numpy array while a pickle is read."""

    def __init__(self, *empty):
        self.value = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


class _ArrayType:
    """What ``numpy.ndarray`` is in a pickle: a name, with which nothing can be made but by numpy's ``_reconstruct``."""


def _array(content: Any, dtype: _Dtype, shape: Sequence[int], order: Literal["C", "F"] = "C"):
    import numpy as np

    real = dtype.real()
    if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(shape) * real.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {tuple(shape)} does not have the bytes that it needs")
    return np.frombuffer(content, real).reshape(tuple(shape), order=order).copy(order=order)


def _scalar(dtype: _Dtype, content: bytes):
    return _array(content, dtype, (1,))[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes with {encoding!r}, which is not a plain value")
    return codecs.encode(text, "latin1")


def _finished(value: Any) -> Any:
    """``value`` with real arrays for what stands for them."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Dtype):
        return value.real()
    if isinstance(value, dict):
        return type(value)((_finished(k), _finished(v)) for k, v in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_finished(i) for i in value)
    return value


_ALLOWED = {
    **{
        (j, i.__name__): i for i in (set, frozenset, slice, range, complex, bytes, bytearray) for j in ("builtins", "__builtin__")
    },
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,  # how protocols before 3 write bytes
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _ArrayType,
}
for _module in ("numpy.core", "numpy._core"):  # of numpy 1 and 2
    _ALLOWED[f"{_module}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_module}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_module}.numeric", "_frombuffer"] = _array
