"""Run by the fork server of conftest.py: a command's own entry point, with the environment ``environment``; says all to ``log``."""

import os
import sys

import torch

output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821 (log, argv and environment are given)
os.dup2(output, 1)
os.dup2(output, 2)
os.environ.clear()
os.environ.update(environment)  # noqa: F821
torch.set_num_threads(1)  # sums over several threads are not reproducible to the last bit
sys.argv = list(argv)  # noqa: F821
if argv[0] == "nnUNetv2_train":  # noqa: F821
    from nnunetv2.run.run_training import run_training_entry as entry
else:
    from nnunet_partial.cli import main as entry
sys.exit(entry())
