"""Worker processes and threads: order, failures, what a process is told first. Functions are the standard library's, which a
fresh process finds."""

import math
import operator
import os
import signal
import time

import pytest

from nnunet_partial.data import parallel
from nnunet_partial.errors import UserError
from nnunet_partial.labels import check_source_name

DEAD = UserError("a process died")


@pytest.mark.parametrize("processes", [1, 2])
def test_results_stand_in_the_order_of_the_jobs(processes):
    jobs = [9.0, 4.0, 1.0, 0.0, 16.0]
    assert parallel.map_cases(math.sqrt, jobs, processes, progress=False) == [3.0, 2.0, 1.0, 0.0, 4.0]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_failure_in_the_order_of_the_jobs_is_raised_with_the_name_of_its_case(processes):
    names = ["good", "not good", "bad/ly"]
    with pytest.raises(UserError, match=r"^case not good: .*not good"):
        parallel.map_cases(check_source_name, names, processes, progress=False, case_of=str)
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        parallel.map_cases(math.sqrt, [1.0, -1.0], processes, progress=False, case_of=str)


def test_a_process_that_dies_ends_the_work_with_a_remedy():
    with pytest.raises(UserError, match="killed during the count.*--processes 1"):
        parallel.map_cases(os._exit, [3, 3], 2, "the count", progress=False)
    with pytest.raises(UserError, match="a process died"):
        parallel.in_own_process(os._exit, 3, killed=DEAD)


def test_a_function_has_a_process_of_its_own():
    assert parallel.in_own_process(operator.add, 2, 3, killed=DEAD) == 5
    assert parallel.in_own_process(os.getpid, killed=DEAD) != os.getpid()


def test_a_process_is_told_its_number_and_leaves_interrupts_to_its_parent():
    started = parallel.in_processes(os.getenv, ["NUMBER_0"], 1, DEAD, start=_set, start_with=("x",))
    assert list(started) == ["x"]
    assert list(parallel.in_processes(signal.getsignal, [signal.SIGINT], 1, DEAD)) == [signal.SIG_IGN]


def _set(number, value):
    os.environ[f"NUMBER_{number}"] = value


def test_threads_keep_the_order():
    assert parallel.in_threads(lambda pause: time.sleep(pause) or pause, [0.02, 0.0, 0.01], 3) == [0.02, 0.0, 0.01]
    assert parallel.in_threads(str, [], 3) == []
