"""The pictures of progress that a trainer draws after every epoch, left out: they take six times as long as an epoch of the tests.

They are drawn where the environment says so: ``NNUNET_PARTIAL_TEST_PICTURES=1``.
"""

import os
from functools import wraps

from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunet_partial.training import progress

VARIABLE = "NNUNET_PARTIAL_TEST_PICTURES"


def _on_demand(draw):
    @wraps(draw)
    def draw_or_leave(*args, **kwargs):
        if os.environ.get(VARIABLE) == "1":
            draw(*args, **kwargs)

    return draw_or_leave


def leave_out() -> None:
    """In this process, and in its forks; a second time does nothing."""
    if not hasattr(progress.plot_terms, "__wrapped__"):
        LocalLogger.plot_progress_png = _on_demand(LocalLogger.plot_progress_png)
        progress.plot_terms = _on_demand(progress.plot_terms)


leave_out()  # where the fork server imports this
