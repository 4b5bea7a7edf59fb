"""The one exception for input that a user can mend, and how it ends a command."""

import errno
import sys
from contextlib import contextmanager

# what the system says of a full disk, a quota that is used up, and a limit on the size of files
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UserError(Exception):
    """Bad input: the message is one line that names the file, the value and the remedy. Commands exit with 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


@contextmanager
def exit_on_user_error():
    """Turn a :class:`UserError` into one line on stderr and exit code 2, also below commands that are not ours.

    So does a full disk, wherever it is noticed.
    """
    try:
        yield
    except UserError as error:
        print(f"nnunet_partial: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        where = error.filename or "a file"
        print(
            f"nnunet_partial: error: {where} cannot be written: {error.strerror}. Free some space.", file=sys.stderr, flush=True
        )
        raise SystemExit(2) from error
