"""Run by the fork server of conftest.py: a command's own entry point, with the environment ``environment``; says all to ``log``.

With ``kill`` it dies in the moment after it first opened or moved to a file of that name (a pattern).
"""

import fnmatch
import os
import signal
import sys

import torch

output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821 (log, argv, environment and kill are given)
os.dup2(output, 1)
os.dup2(output, 2)
os.environ.clear()
os.environ.update(environment)  # noqa: F821
reached = []


def die(event, given):
    """Hears of every file that is opened or moved, before it is; and of much else, so the next moment is soon."""
    if reached:
        reached.clear()  # to kill is an event too
        os.kill(os.getpid(), signal.SIGKILL)
    if event in ("open", "os.rename"):
        name = given[event == "os.rename"]
        if isinstance(name, (str, os.PathLike)) and fnmatch.fnmatch(os.fspath(name), kill):  # noqa: F821
            reached.append(name)


if kill:  # noqa: F821
    sys.addaudithook(die)
torch.set_num_threads(1)  # sums over several threads are not reproducible to the last bit
sys.argv = list(argv)  # noqa: F821
if argv[0] == "nnUNetv2_train":  # noqa: F821
    from nnunetv2.run.run_training import run_training_entry as entry
else:
    from nnunet_partial.cli import main as entry
sys.exit(entry())
