"""Run by the fork server of conftest.py: a command that is killed at a moment, or may not write large files (see faults.py)."""

import os
import signal
import sys

import torch

# given by the caller: argv, code, log, environment, root, kill_at, limit
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821
os.dup2(output, 1)
os.dup2(output, 2)
os.environ.clear()
os.environ.update(environment)  # noqa: F821
torch.set_num_threads(1)
if limit:  # noqa: F821
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: F821

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}
operations = 0


def count(event, arguments):
    global operations
    if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
        return
    if root not in str(arguments[0]) and event not in ("tempfile.mkstemp", "tempfile.mkdtemp"):  # noqa: F821
        return
    operations += 1
    if operations == kill_at:  # noqa: F821
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count)
sys.argv = list(argv)  # noqa: F821
code_of_exit = 0
if code:  # noqa: F821
    from nnunet_partial.errors import exit_on_user_error

    with exit_on_user_error():
        exec(code)  # noqa: F821
else:
    from nnunet_partial.cli import main

    code_of_exit = main()
print(f"operations: {operations}", flush=True)
sys.exit(code_of_exit)
