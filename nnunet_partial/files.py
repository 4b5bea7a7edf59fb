"""Files that are either old or new, never half-written; and checkpoints that are read without running code."""

import errno
import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError

PathLike = str | os.PathLike
# inside atomic_path other files may be read, whose errors are not about the file that is written
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})


@contextmanager
def atomic_path(path: PathLike) -> Iterator[str]:
    """Yield a temporary name beside ``path`` that replaces it when the block ends well and is removed when it does not.

    The temporary name keeps the file's ending, because writers such as SimpleITK choose the format by it. It starts
    with a dot, so that nothing takes it for data meanwhile.
    """
    path = Path(path)
    with _unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", suffix="-" + path.name, dir=path.parent)
        os.close(descriptor)
    try:
        with _unwritable(path, _DISK_ERRORS):
            yield temporary
        with _unwritable(path):
            # mkstemp makes private files; a result has the permissions that any other file of this user gets
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


@contextmanager
def _unwritable(path: Path, codes: Collection[int] | None = None) -> Iterator[None]:
    """Failures of the file system (only those of ``codes``, if given) as one line about ``path``."""
    try:
        yield
    except OSError as error:
        if codes is not None and error.errno not in codes:
            raise
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Free some space there, or choose another folder."
        ) from error


def write_text(text: str, path: PathLike) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)


def write_json(content: Any, path: PathLike) -> None:
    """Write JSON atomically, indented as nnU-Net does, keys in the order given."""
    write_text(json.dumps(content, indent=4) + "\n", path)


def read_json(path: PathLike, remedy: str = "") -> Any:
    """Read JSON. A missing or broken file is a :class:`UserError` that names it and, if given, the remedy."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {remedy}") from None


def read_names(path: PathLike) -> list:
    """The lines of a text file that are not empty. Raises :class:`UserError` if it cannot be read or holds none."""
    try:
        names = [i.strip() for i in Path(path).read_text(encoding="utf-8").splitlines() if i.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    if not names:
        raise UserError(f"{path} names nothing. Write one name a line.")
    return names


def claim(file: PathLike, request: Mapping[str, Any], what: str) -> None:
    """Note in ``file`` what its folder is made from, before anything is made there.

    Raises :class:`UserError`, which calls the content ``what``, if the note says that it is made from something else.
    """
    file = Path(file)
    found: Mapping | None = read_json(file) if file.is_file() else None
    if found is not None and found != request:
        wrong = next((i for i in request if found.get(i) != request[i]), "request")
        raise UserError(
            f"{file.parent} holds {what}: {wrong} was {str(found.get(wrong))[:80]}, now {str(request[wrong])[:80]}. "
            f"Choose another folder or id, or replace it with --overwrite."
        )
    if found != request:
        write_json(request, file)


def sha256(file: PathLike) -> str:
    """Hash of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        for piece in iter(lambda: handle.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def load_checkpoint(path: PathLike, map_location: Any = "cpu", mmap: bool = False) -> dict:
    """Read an nnU-Net checkpoint without unpickling arbitrary objects (``weights_only=True``).

    Stock nnU-Net stores numpy scalars in its training log; these and nothing else are allowed beside torch's own
    types. ``mmap`` leaves tensors on the disk until they are used, which is
    fast when only the log is wanted. Raises :class:`UserError` for a missing, damaged or unsafe file.
    """
    import torch

    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist.")
    try:
        # torch warns about pickle protocols that it may not support; if so, it fails as well
        with torch.serialization.safe_globals(_numpy_scalar_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(f"checkpoint {path} {_why_unreadable(error)}") from error
    if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
        raise UserError(f"checkpoint {path} is not an nnU-Net checkpoint (no 'network_weights').")
    return checkpoint


def _why_unreadable(error: Exception) -> str:
    unsafe = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if unsafe:
        return (
            f"holds {unsafe[1]}, not only tensors and plain values: loading it could run code, so it is not "
            "loaded. If you trust its origin, load it with torch.load and write it anew with "
            "nnunet_partial.files.save_checkpoint; otherwise train the model again."
        )
    return f"is damaged or not a checkpoint ({type(error).__name__}). Copy it again, or train the model again."


def _numpy_scalar_globals() -> list:
    """What torch must let pass for numpy scalars, as numpy 1 (numpy.core) and numpy 2 (numpy._core) write them."""
    import numpy as np

    types = [type(np.dtype(i)) for i in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [np.dtype, *types, _scalar_reader("numpy.core.multiarray"), _scalar_reader("numpy._core.multiarray")]


def _scalar_reader(module: str) -> Callable:
    import numpy as np

    def scalar(dtype, data):
        if dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"a numpy scalar of type {dtype} is not allowed under weights_only")
        return np.frombuffer(data, dtype)[0]

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


def plain(content: Any) -> Any:
    """``content`` with numpy scalars and arrays as Python numbers and lists, which load with ``weights_only=True``."""
    import numpy as np

    if isinstance(content, dict):
        return {plain(k): plain(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(plain(i) for i in content)
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, np.ndarray):
        return content.tolist()
    return content


def save_checkpoint(checkpoint: dict, path: PathLike) -> None:
    """Write a checkpoint atomically; numpy values become Python values first (tensors stay)."""
    import torch

    with atomic_path(path) as temporary:
        torch.save(plain(checkpoint), temporary)
