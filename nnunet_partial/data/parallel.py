"""Work over many cases on all cores: the one place that starts worker processes and threads.

Processes are spawned: a forked one can hang in SimpleITK's or torch's threads. A script that calls this therefore needs
``if __name__ == "__main__"``. What they import is what the function's module imports.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from nnunet_partial.bars import bar
from nnunet_partial.errors import UserError


def default_processes() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(
    function: Callable,
    jobs: Sequence,
    processes: int | None = None,
    description: str = "",
    progress: bool = True,
    case_of: Callable[[Any], str] | None = None,
) -> list:
    """``[function(job) for job in jobs]``, in that order, in ``processes`` processes (None: all cores; 1: in this one).

    ``function`` is a function of a module, and jobs and results can be pickled. The first failure, in the order of the jobs,
    ends the work and is raised; with ``case_of``, which names the case of a job, it begins with that name.
    """
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least one process is needed.")
    processes = min(processes or default_processes(), len(jobs))
    named = function if case_of is None else partial(_named, function, case_of)
    if processes < 2:
        return [named(job) for job in bar(jobs, description, shown=progress)]
    killed = UserError(
        f"a process was killed during {description or 'the work'}, most likely because memory ran "
        f"out. Use fewer processes: --processes {max(1, processes // 2)}"
    )
    results = in_processes(named, jobs, processes, killed, ordered=True)
    return list(bar(results, description, shown=progress, total=len(jobs)))


def in_processes(
    function: Callable,
    jobs: Sequence,
    processes: int,
    killed: Exception,
    *,
    ordered: bool = False,
    start: Callable | None = None,
    start_with: Sequence = (),
) -> Iterator[Any]:
    """``function(job)`` of every job, as they come or in the order of the jobs, from ``processes`` fresh processes.

    ``start(number, *start_with)`` is called in each process before its first job; numbers are 0, 1, ... Whatever a job raises
    ends the work, and so does the death of a process, with ``killed``. The processes end when this one does, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(processes):
        numbers.put(number)
    pool = ProcessPoolExecutor(processes, context, _start, (numbers, processes, start, tuple(start_with)))
    try:
        futures = [pool.submit(function, job) for job in jobs]
        for future in futures if ordered else as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise killed from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_own_process(function: Callable, *arguments: Any, killed: Exception) -> Any:
    """``function(*arguments)`` in a fresh process; ``killed`` is raised if that dies."""
    (result,) = in_processes(partial(_call, function), [arguments], 1, killed)
    return result


def in_threads(function: Callable, jobs: Sequence, threads: int) -> list:
    """``[function(job) for job in jobs]`` in threads, which start in no time: for what reads and writes files."""
    with ThreadPoolExecutor(max(1, min(threads, len(jobs)))) as pool:
        return list(pool.map(function, jobs))


def _call(function: Callable, arguments: tuple) -> Any:
    return function(*arguments)


def _named(function: Callable, case_of: Callable[[Any], str], job: Any) -> Any:
    try:
        return function(job)
    except UserError as error:
        raise UserError(f"case {case_of(job)}: {error}") from None
    except Exception as error:
        if sys.version_info >= (3, 11):
            error.add_note(f"case {case_of(job)}")
        raise


def _start(numbers, processes: int, start: Callable | None, start_with: tuple) -> None:
    """What a process does first. Ctrl-C is the parent's to handle; and a process whose parent was killed must not go on
    writing files."""
    import SimpleITK as sitk

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # together the processes use every core once
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(max(1, default_processes() // processes))
    if start is not None:
        start(numbers.get(), *start_with)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
