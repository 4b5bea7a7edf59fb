"""The arguments that say how commands are run: by which executor, where, how many side by side."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_partial.errors import UserError
from nnunet_partial.orchestration.executors import KINDS, Executor, find_gpus, make_executor
from nnunet_partial.orchestration.job import allocated_cores


def add_executor_options(group) -> None:
    """Add them to a parser or to a group of one."""
    group.add_argument(
        "--executor",
        default="local",
        choices=KINDS,
        help="local: one process per GPU, --jobs on the CPU; slurm; debug: in line (default: local)",
    )
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of a SLURM job, as submitit "
        "names it: partition, time (minutes), gpus_per_node, cpus_per_task, mem, account, ...",
    )
    group.add_argument("--gpus", nargs="+", type=int, metavar="ID", help="local: use these GPUs (default: all)")
    add_jobs_option(group)
    group.add_argument("--retries", type=int, default=0, help="run a job that failed again, this often (default: 0)")
    group.add_argument(
        "--device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is a GPU, and with slurm; else cpu"
    )


def add_jobs_option(group) -> None:
    """Add ``--jobs``, which was called ``--processes`` in version 0.1."""
    group.add_argument(
        "--jobs",
        "--processes",
        type=int,
        metavar="N",
        help="local, without a GPU: jobs side by side, which share the cores (default: 2 on the CPU, 1 on a single core)",
    )


def jobs_of(arguments: argparse.Namespace, device: str) -> int:
    """Jobs side by side where there is no GPU for each: as asked for, else two on the CPU if it has two cores."""
    if arguments.jobs is not None:
        return arguments.jobs
    return min(2, allocated_cores(os.environ)) if device == "cpu" else 1


def device_of(arguments: argparse.Namespace) -> str:
    """The device that was asked for, or the best one."""
    if arguments.device:
        return arguments.device
    return "cuda" if arguments.executor == "slurm" or arguments.gpus or find_gpus() else "cpu"


def executor_of(arguments: argparse.Namespace, folder: Path) -> Executor:
    """The executor that was asked for, which keeps what it needs in ``folder``."""
    return make_executor(
        arguments.executor,
        folder,
        gpus=arguments.gpus if device_of(arguments) == "cuda" else (),
        slurm=read_slurm(arguments.slurm),
        retries=arguments.retries,
        processes=jobs_of(arguments, device_of(arguments)),
    )


def read_slurm(assignments: Sequence[str]) -> dict:
    """``["time=60", "partition=gpu"]`` -> ``{"time": 60, "partition": "gpu"}``."""
    options = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--slurm {text}: write it as key=value, for example --slurm partition=gpu.")
        options[name.replace("-", "_")] = int(value) if value.isdigit() else value
    return options
