"""Files that are either old or new, never half-written; and checkpoints that are read without running code."""

import ctypes
import errno
import hashlib
import json
import os
import pickle
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from nnunet_partial.errors import FULL_DISK, UserError

PathLike = str | os.PathLike
# inside atomic_path other files may be read, whose errors are not about the file that is written
_DISK_ERRORS = FULL_DISK | {errno.EIO, errno.EROFS}
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-")  # the machine and the process that write it
END_OF_A_PROCESS = 3.0  # seconds for which a process that was killed may still hold its locks
_MOST_CHARACTERS = 120  # of a name that are kept in its temporary name: file systems allow 255 bytes


@contextmanager
def atomic_path(path: PathLike) -> Iterator[str]:
    """Yield a temporary name beside ``path`` that replaces it when the block ends well and is removed when it does not.

    The temporary name keeps the file's ending, because writers such as SimpleITK choose the format by it. It starts
    with a dot, so that nothing takes it for data meanwhile, and names the process, so that what a killed one leaves is
    removed by the next one that writes into the folder.
    """
    path = Path(path)
    with _unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        suffix = "-" + path.name[-_MOST_CHARACTERS:]
        descriptor, temporary = tempfile.mkstemp(prefix=_temporary_prefix(), suffix=suffix, dir=path.parent)
        os.close(descriptor)
    try:
        with _unwritable(path, _DISK_ERRORS):
            yield temporary
        with _unwritable(path):
            # mkstemp makes private files; a result has the permissions that any other file of this user gets
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


@contextmanager
def temporary_folder(target: PathLike) -> Iterator[Path]:
    """Yield a new folder beside ``target``, in which it can be made and from which it can be moved into place.

    It is removed when the block ends, however it ends; after a kill as :func:`atomic_path` says.
    """
    target = Path(target)
    with _unwritable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        suffix = "-" + target.name[-_MOST_CHARACTERS:]
        folder = tempfile.mkdtemp(prefix=_temporary_prefix(), suffix=suffix, dir=target.parent)
    try:
        with _unwritable(target, _DISK_ERRORS):
            os.chmod(folder, 0o777 & ~_umask())
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# ---- what killed processes leave


def _temporary_prefix() -> str:
    return f".tmp-{_machine()}-{os.getpid()}-"


@lru_cache
def _machine() -> str:
    """Eight digits for this machine; a container that counts its processes by itself is one of its own."""
    try:
        counted_in = os.readlink("/proc/self/ns/pid")
    except OSError:
        counted_in = ""
    return hashlib.sha256(f"{platform.node()} {counted_in}".encode()).hexdigest()[:8]


_looked_at: set = set()


def remove_leftovers(folder: PathLike) -> None:
    """Remove what processes of this machine that do not live any more left under a temporary name in ``folder``.

    A process looks at each folder once, so that writing many files stays linear in their number.
    """
    key = (os.getpid(), os.path.abspath(folder))
    if key in _looked_at or os.name == "nt":  # Windows cannot ask for a process without touching it
        return
    _looked_at.add(key)
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        owner = _TEMPORARY.match(name)
        if owner and owner[1] == _machine() and not _is_running(int(owner[2])):
            _remove(Path(folder) / name)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- folders that are replaced as a whole


def replace_folder(new: PathLike, target: PathLike) -> None:
    """Give the folder ``new`` the name ``target``; what stood there is removed. Both are on one disk.

    Linux exchanges the two names in one step. Where that cannot be done (some network file systems), the old folder is
    put aside for the moment between two moves; :func:`restore_folder` undoes that after a kill.
    """
    new, target = Path(new), Path(target)
    if not target.exists():
        os.replace(new, target)
    elif _exchange(new, target):
        shutil.rmtree(new)
    else:
        aside = _aside(target)
        os.replace(target, aside)
        try:
            os.replace(new, target)
        except BaseException:
            os.replace(aside, target)
            raise
        shutil.rmtree(aside)


def restore_folder(target: PathLike) -> None:
    """End what a process that was killed within :func:`replace_folder` has begun: the old folder comes back or goes."""
    target = Path(target)
    aside = _aside(target)
    if aside.is_dir():
        shutil.rmtree(aside) if target.exists() else os.replace(aside, target)


def _aside(target: Path) -> Path:
    return target.with_name(f".replaced-{target.name}")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names by the system call; whether it could."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library older than 2018
        return False
    working_directory, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(working_directory, os.fsencode(first), working_directory, os.fsencode(second), exchange) == 0


# ---- text and JSON


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


def write_texts(texts: Mapping[PathLike, str]) -> None:
    """Write texts that belong together: all are on the disk before the first gets its name, in the order given."""
    with ExitStack() as stack:
        for path, text in reversed(list(texts.items())):  # the stack ends with what began first
            with open(stack.enter_context(atomic_path(path)), "w", encoding="utf-8") as handle:
                handle.write(text)


def json_text(content: Any) -> str:
    """JSON, indented as nnU-Net does, keys in the order given."""
    return json.dumps(content, indent=4) + "\n"


def write_json(content: Any, path: PathLike) -> None:
    """Write JSON atomically."""
    write_text(json_text(content), path)


def read_json(path: PathLike, remedy: str = "") -> Any:
    """Read JSON. A missing or broken file is a :class:`UserError` that names it and, if given, the remedy."""
    return read_parsed(path, json.loads, "JSON", remedy, remedy)


def read_parsed(path: PathLike, parse: Callable[[str], Any], kind: str, missing: str = "", broken: str = "") -> Any:
    """What ``parse`` makes of a text file (UTF-8), of a format whose errors are ValueErrors, ``kind`` by name.

    Raises :class:`UserError` with the remedy for a file that is ``missing`` or ``broken``.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. {missing}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid {kind} ({error}). {broken}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {broken}") from None


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


def open_lock(path: PathLike):
    """A lock file, opened to be locked, made if need be; its content is left alone.

    A link in its place is not followed: whoever may write the folder could else have any file of the user opened. Raises
    :class:`UserError` for a link, and for anything else that is not a file.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) or os.path.islink(path):
            raise UserError(f"the lock {path} is not a file of its own, but a link or a folder. Remove it.") from None
        raise
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise UserError(f"the lock {path} is not a file. Remove it.")
    return handle


@contextmanager
def locked(path: PathLike) -> Iterator[IO[bytes]]:
    """Hold the lock ``path``, waiting for it; yields the open file."""
    with open_lock(path) as handle:
        _lock(handle, blocking=True)
        yield handle


def try_lock(path: PathLike, patience: float = 0.0) -> IO[bytes] | None:
    """The open and locked file ``path``, or None where another process holds it. Closing it gives it back, and so does
    the end of the process, however it ends. ``patience``: seconds to try for; see :data:`END_OF_A_PROCESS`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle, until = open_lock(path), time.monotonic() + patience
    while not _lock(handle, blocking=False):
        if time.monotonic() >= until:
            handle.close()
            return None
        time.sleep(0.05)
    return handle


def _lock(handle: IO[bytes], blocking: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: two processes at one thing are the user's own care
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks; a job's token still keeps most double starts apart
        return True
    return True


def load_checkpoint(path: PathLike | IO[bytes], map_location: Any = "cpu", mmap: bool = False) -> dict:
    """Read an nnU-Net checkpoint without unpickling arbitrary objects (``weights_only=True``).

    Stock nnU-Net stores numpy scalars in its training log; these and nothing else are allowed beside torch's own
    types. ``path`` may be a stream. ``mmap`` leaves tensors on the disk until they are used, which is
    fast when only the log is wanted. Raises :class:`UserError` for a missing, damaged or unsafe file.
    """
    import torch

    if isinstance(path, (str, os.PathLike)) and not os.path.isfile(path):
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
    """Write a checkpoint atomically; numpy values become Python values first (tensors stay).

    Equal checkpoints are equal files. Raises :class:`UserError` when it cannot be written.
    """
    import torch

    content = plain(checkpoint)
    try:
        # an open file: of a path torch would write the name, which is a random one here, into the archive
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            torch.save(content, handle)
    except RuntimeError as error:  # torch's writer does not say what the disk said
        raise UserError(
            f"{path} cannot be written ({str(error).splitlines()[0]}). Free some space there, or choose another folder."
        ) from error
