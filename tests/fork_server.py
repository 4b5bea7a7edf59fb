"""Processes that have torch and nnU-Net imported when they begin: forks of one server, a few milliseconds instead of seconds each.

Every process of the tests, and every command that they start, may ask the same server: a fork gets the environment, the
folder and the output of who asked, as a spawned process would, and what it spawns itself are forks of the same server too.
A fork of the test process itself may wait for ever for a lock that one of its threads held (of blosc2, of torch); the server
has no threads at work.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import connection, context, forkserver, reduction, resource_tracker
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [  # what forks would import each by itself
    "torch",
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunet_partial.trainers",
    "nnunet_partial.cli",
    "nnunet_partial.data.conversion.run",
    "nnunet_partial.data.merge.merge",
    "nnunet_partial.evaluation.evaluate",
    "nnunet_partial.evaluation.report.page",
    "nnunet_partial.inference.coarse_to_fine.derived",
    "nnunet_partial.inference.export",
    "nnunet_partial.inference.fuse",
    "nnunet_partial.inference.predict",
    "nnunet_partial.inference.pseudo_labels",
    "pytest",
    "tests.pictures",
    "tests.fork_server",
]
CLIENT = """#!{python} -SE
import sys

if __name__ == "__main__":
    sys.path[:] = {path!r}
    from tests.fork_server import be_client

    be_client({address!r}, {argv!r})
"""
_server = forkserver._forkserver


class Forked(context.ForkServerProcess):
    """A process of the server that begins with the environment, the folder and the output of the process that starts it."""

    environment = folder = None  # those of the starting process
    streams = (1, 2)
    tracked = True  # the starting process has a tracker of resources

    def __getstate__(self):
        _server.ensure_running()  # so that it has an address
        given = {"environment": dict(os.environ) if self.environment is None else self.environment}
        given["folder"] = self.folder or os.getcwd()
        given["streams"] = [reduction.DupFd(i) for i in self.streams]
        return {**self.__dict__, **given, "address": _server._forkserver_address}

    def _bootstrap(self, parent_sentinel=None):
        for number, stream in enumerate(self.streams, 1):
            given = stream.detach()
            os.dup2(given, number)
            os.close(given)
        _set_environment(self.environment)
        os.chdir(self.folder)
        join(self.address)
        if not self.tracked:
            os.close(resource_tracker._resource_tracker._fd)
            resource_tracker._resource_tracker._fd = None
        _as_if_just_imported()
        return super()._bootstrap(parent_sentinel)


class ForkedContext(context.ForkServerContext):
    """What ``multiprocessing`` calls a way to start processes."""

    Process = Forked


def join(address) -> None:
    """From now on what this process spawns is forked by the server at ``address``, which another process has started."""
    _server._forkserver_address = address
    _server.ensure_running = resource_tracker.ensure_running
    context._concrete_contexts["spawn"] = ForkedContext()


def serve() -> None:
    """As :func:`join`, with a server that this process starts when it first spawns another."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    start, lock = type(_server).ensure_running, threading.Lock()

    def ensure_running():
        with lock:
            if _server._forkserver_pid is not None:
                return start(_server)
            now = dict(os.environ)  # a test may have changed it for itself alone
            _set_environment(environment)
            try:
                start(_server)
            finally:
                _set_environment(now)

    _server.set_forkserver_preload(PRELOADED)
    _server.ensure_running = ensure_running
    context._concrete_contexts["spawn"] = ForkedContext()


def _set_environment(content) -> None:
    for name in os.environ.keys() - content.keys():
        del os.environ[name]
    os.environ.update(content)


def _as_if_just_imported() -> None:
    """What importing torch and numpy does to a process: nnU-Net finds our trainers, and numbers are drawn at random."""
    import nnunet_partial_autoload

    nnunet_partial_autoload.register()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


# ---- commands


def start(argv, environment=None, folder=None, streams=(1, 2), tracked=True) -> Forked:
    """A started process that runs ``argv``: a console script by its name, or ``python`` with a file or ``-c CODE``."""
    process = Forked(target=_run, args=([str(i) for i in argv],))
    process.environment, process.folder, process.streams, process.tracked = environment, folder and str(folder), streams, tracked
    process.start()
    return process


def run(argv, environment=None, folder=None) -> subprocess.CompletedProcess:
    """As ``subprocess.run(argv, capture_output=True)``."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(argv, environment, folder, (out.fileno(), err.fileno()))
        process.join()
        texts = [os.pread(i.fileno(), os.fstat(i.fileno()).st_size, 0).decode("utf-8", "replace") for i in (out, err)]
    return subprocess.CompletedProcess(argv, process.exitcode, *texts)


def is_command(name) -> bool:
    """Whether the server can run it: nnU-Net's commands and our own."""
    return str(name) == "nnunet_partial" or str(name).startswith("nnUNetv2_")


def _run(argv) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if Path(argv[0]).name != "python":
        from importlib.metadata import entry_points  # not for the programs, which begin in no time

        (entry,) = entry_points(group="console_scripts", name=Path(argv[0]).name)
        sys.argv = argv
        sys.exit(entry.load()())
    if argv[1] == "-c":
        sys.argv = ["-c", *argv[3:]]
        exec(compile(argv[2], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv[1:]
        sys.path.insert(0, str(Path(argv[1]).parent))
        runpy.run_path(argv[1], run_name="__main__")


def _die_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


# ---- programs: for what starts commands by their name


def write_program(file: Path, *argv) -> Path:
    """A program that has the server run ``argv`` and what it is given itself; ends as that ends, and that with it."""
    _server.ensure_running()
    argv = list(map(str, argv or [file.name]))
    path = [str(ROOT), *(i for i in sys.path if i)]
    file.write_text(CLIENT.format(python=sys.executable, path=path, address=_server._forkserver_address, argv=argv))
    file.chmod(0o755)
    return file


def be_client(address, argv) -> None:
    """The program's own part."""
    join(address)
    # the process that started the server keeps it alive; and this one needs no tracker of resources
    _server._forkserver_alive_fd, resource_tracker._resource_tracker._fd = os.pipe()
    _server.ensure_running = resource_tracker._resource_tracker.ensure_running = lambda: None
    process = start([*argv, *sys.argv[1:]], tracked=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, lambda given, frame: _send(process.pid, given))
    process.join()
    if process.exitcode < 0:
        with contextlib.suppress(OSError):  # that of SIGKILL cannot be set
            signal.signal(-process.exitcode, signal.SIG_DFL)
        os.kill(os.getpid(), -process.exitcode)
    os._exit(process.exitcode)


def _send(pid, number) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
