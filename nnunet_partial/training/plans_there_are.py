"""``nnUNetv2_train`` with a misspelt ``-p``, or the id of no dataset: one line with what there is, not nnU-Net's traceback.

nnU-Net looks for the dataset and the plans before it calls a trainer, but looks for the trainer before that: its search
imports ``nnunet_partial/_ext``, from where the two functions that it then calls are wrapped. What they find they find as before.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nnunet_partial import paths
from nnunet_partial.errors import exit_on_user_error

RUN_TRAINING = "nnunetv2.run.run_training"


def name_what_there_is() -> None:
    """From now on a training of this process ends with one line where its dataset or its plans are not there."""
    module = sys.modules.get(RUN_TRAINING)  # other commands search for trainers too, and are given a model
    if module is not None:
        _before(module, "maybe_convert_to_dataset_name", paths.dataset_name)
        _before(module, "load_json", _require_plans)


def _before(module: ModuleType, name: str, check: Callable[[Any], object]) -> None:
    """Call ``check`` with the first argument of a function before the function."""
    stock = getattr(module, name)
    stock = getattr(stock, "__wrapped__", stock)

    @functools.wraps(stock)
    def checked(first: Any, *args: Any, **kwargs: Any) -> Any:
        with exit_on_user_error():
            check(first)
        return stock(first, *args, **kwargs)

    setattr(module, name, checked)


def _require_plans(file: str) -> None:
    if not Path(file).is_file():
        paths.plans_file(Path(file).parent.name, Path(file).stem)
