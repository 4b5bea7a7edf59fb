"""The one exception for input that a user can mend, and how it ends a command."""

import difflib
import errno
import sys
from collections.abc import Iterable
from contextlib import contextmanager

_ALIKE = 3  # names to suggest for a misspelt one
# what the system says of a full disk, a quota that is used up, and a limit on the size of files
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UserError(Exception):
    """Bad input: the message is one line that names the file, the value and the remedy. Commands exit with 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """``"Did you mean X or Y? "``, to be put before the list of what there is; empty if nothing there is like ``name``.

    Names are compared whatever their case, and by their last part too: ``lambda_feature`` is like ``mskd.lambda_feature``,
    ``feature`` like ``features``, ``tiny`` like ``nnUNetPlans_tiny``.
    """
    wanted = str(name).lower()
    keys: dict = {str(i).lower(): str(i) for i in known}
    keys = {**{key.rpartition(".")[2]: i for key, i in keys.items()}, **keys}
    close = difflib.get_close_matches(wanted, keys, _ALIKE, 0.72)
    parts = [i for i in keys if len(wanted) > 1 and (i.endswith("_" + wanted) or i.startswith(wanted))]
    found = [i for i in dict.fromkeys(keys[j] for j in (*close, *parts)) if i != str(name)][:_ALIKE]
    return f"Did you mean {' or '.join(found)}? " if found else ""


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
