"""Work over many cases on all cores, with a progress bar."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from nnunet_partial.errors import UserError


def default_processes() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(
    function: Callable, jobs: Sequence, processes: int | None = None, description: str = "", progress: bool = True
) -> list:
    """``[function(job) for job in jobs]``, in that order, in ``processes`` processes (None: all cores; 1: in this one).

    ``function`` is a function of a module and jobs and results can be pickled, because processes are spawned: a forked
    process can hang in SimpleITK's or torch's threads. A script that calls this needs ``if __name__ == "__main__"``.
    The first failure, in the order of the jobs, ends the work and is raised.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least one process is needed.")
    processes = min(processes or default_processes(), len(jobs))
    bar = {"total": len(jobs), "desc": description, "disable": None if progress else True, "unit": "case"}
    if processes < 2:
        return [function(job) for job in tqdm(jobs, **bar)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=start_worker) as pool:
        try:
            return list(tqdm(pool.map(function, jobs), **bar))
        except BrokenProcessPool:
            raise UserError(
                f"a process was killed during {description or 'the work'}, most likely because memory ran "
                f"out. Use fewer processes: --processes {max(1, processes // 2)}"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """Ctrl-C is the parent's to handle; and a worker whose parent was killed must not go on writing files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
