"""Loss terms in nnU-Net's own logger, and their curves.

nnU-Net's logger accepts known keys only and draws as many epochs as its shortest list has, so every key that is
registered here must get one value per epoch. What is logged there also goes to Weights & Biases where the user has switched
that on (``nnUNet_wandb_enabled=1``); nnU-Net numbers the classes there, so their Dice is sent by name too.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from nnunet_partial.files import atomic_path
from nnunet_partial.labels import drawn

DRAWN_EVERY_S = 60.0  # drawing takes seconds, which epochs of seconds would spend most of their time on


class Curves:
    """When the curves are drawn: nnU-Net does it after every epoch."""

    def __init__(self):
        self._drawn = time.monotonic()

    @contextmanager
    def drawn_now(self, logger, last: bool) -> Iterator[bool]:
        """Whether this epoch's end draws: once a minute, and at the ``last`` epoch. nnU-Net's own curves go with it."""
        if last or time.monotonic() - self._drawn >= DRAWN_EVERY_S:
            self._drawn = time.monotonic()
            yield True
            return
        with mock.patch.object(logger, "plot_progress_png"):
            yield False


def key(term: str) -> str:
    """Logger key of a loss term."""
    return f"loss/{term}"


def register_terms(logger, terms: Sequence[str]) -> None:
    """Make the keys known. Needed again after a checkpoint has replaced the logger's content.

    A checkpoint of another trainer (pretraining) may lack the terms of earlier epochs: they are filled with NaN.
    """
    logging = logger.local_logger.my_fantastic_logging
    for term in terms:
        logging.setdefault(key(term), [math.nan] * len(logging["train_losses"]))


def describe(logger, terms: Sequence[str], structures: Sequence[str]) -> None:
    """Tell external loggers what the numbers of classes and the names of terms are; nnU-Net's own keeps no configuration."""
    numbered = {f"class_{i}": str(name) for i, name in enumerate(structures, 1)}
    logger.update_config({"nnunet_partial": {"structures": numbered, "loss_terms": list(terms)}})


def send_dice(logger, structures: Sequence[str], epoch: int) -> None:
    """The pseudo Dice of each class and union as ``dice/<name>``, to external loggers alone; a structure that the epoch's
    validation patches do not annotate has none."""
    values = logger.get_value("dice_per_class_or_region", step=-1)
    for name, value in zip(structures, values, strict=True):
        if math.isfinite(value):
            for other in logger.loggers:
                other.log(f"dice/{name}", float(value), epoch)


def replace_nan(logger) -> None:
    """An epoch whose validation patches show no annotated class has no Dice. nnU-Net's running mean would stay NaN for
    ever, and with it ``checkpoint_best``; such an epoch repeats the values before it instead (0 at the start)."""
    logging = logger.local_logger.my_fantastic_logging
    for name in ("mean_fg_dice", "ema_fg_dice"):
        values = logging[name]
        if values and math.isnan(values[-1]):
            values[-1] = values[-2] if len(values) > 1 else 0.0


def plot_terms(logger, terms: Sequence[str], classes: Sequence[str], output_folder: str) -> None:
    """``progress_terms.png`` beside nnU-Net's ``progress.png``: every loss term, and the pseudo Dice of every class and union."""
    import matplotlib
    from matplotlib.figure import Figure

    logging = logger.local_logger.my_fantastic_logging
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nnU-Net's own plot leaves fonts so large that labels do not fit
        figure = Figure(figsize=(10, 10), layout="constrained")
        loss_axis, dice_axis = figure.subplots(2, 1)
        for term in terms:
            loss_axis.plot(logging[key(term)], label=term)
        for i, name in enumerate(classes):
            dice_axis.plot([epoch[i] for epoch in logging["dice_per_class_or_region"]], label=drawn(name))
        loss_axis.set(xlabel="epoch", ylabel="weighted loss term (training)")
        dice_axis.set(xlabel="epoch", ylabel="pseudo Dice where annotated (validation)", ylim=(0, 1))
        for axis in (loss_axis, dice_axis):
            axis.legend()
        with atomic_path(f"{output_folder}/progress_terms.png") as temporary:
            figure.savefig(temporary)
