"""Tells nnU-Net where the trainers of nnunet_partial are, whenever torch is imported; and guards its postprocessing.

torch calls :func:`register` through the ``torch.backends`` entry point and treats an exception as a failed
``import torch``. This module therefore imports nothing but the standard library, and never raises.

nnU-Net's ``determine_postprocessing`` tries the largest component of all classes together on predictions that show, of a
partially labelled dataset, only what each case annotates. For such a dataset, and for no other, its place is taken by
:func:`nnunet_partial.evaluation.postprocessing.determine_postprocessing`, which has the same arguments and writes the same
files.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType

POSTPROCESSING = "nnunetv2.postprocessing.remove_connected_components"
GUARDED = "determine_postprocessing"


def register() -> None:
    """Append the folder ``nnunet_partial/_ext`` to the variable ``nnUNet_extTrainer``, behind the user's own folders."""
    try:
        folder = trainer_folder()
        if folder is None:
            return
        known = [i for i in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if i.strip()]
        if folder not in known:
            os.environ["nnUNet_extTrainer"] = os.pathsep.join(known + [folder])
        guard_postprocessing()
    except BaseException:  # noqa: B902  whatever it is, it must not keep anybody from importing torch
        return


def trainer_folder():
    """The ``_ext`` folder of the installed package, or None. Looks the package up without importing it."""
    from importlib.util import find_spec

    spec = find_spec("nnunet_partial")
    if spec is None or not spec.submodule_search_locations:
        return None
    for location in spec.submodule_search_locations:
        folder = os.path.join(os.path.abspath(location), "_ext")
        if os.path.isdir(folder):
            return folder
    return None


def guard_postprocessing() -> None:
    """Let nnU-Net's module of postprocessing be guarded, now or as soon as it is imported."""
    module = sys.modules.get(POSTPROCESSING)
    if module is not None and hasattr(module, GUARDED):
        _guard(module)
    elif module is not None:  # it is being imported, and has imported torch: its functions are yet to come
        sys.modules[POSTPROCESSING] = _Guarding(module)
    elif not any(isinstance(i, _Finder) for i in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds nnU-Net's module where it is, and guards it once it has run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != POSTPROCESSING:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module, execute=execute):
                    execute(module)
                    _guard(module)

                spec.loader.exec_module = exec_module
                return spec
        return None


class _Guarding(ModuleType):
    """Stands for a module that is still being imported; the first look at it, which is after that, guards it."""

    def __init__(self, module):
        super().__init__(module.__name__, module.__doc__)
        self.__dict__["_module"] = module
        self.__spec__ = module.__spec__

    def __getattr__(self, name):
        module = self.__dict__["_module"]
        if hasattr(module, GUARDED):
            _guard(module)
        return getattr(module, name)

    def __setattr__(self, name, value):
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self.__dict__["_module"], name, value)


def _guard(module) -> None:
    import functools

    stock = getattr(module, GUARDED)
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def determine_postprocessing(folder_predictions, folder_ref, plans_file_or_dict, dataset_json_file_or_dict, *others, **named):
        given = (folder_predictions, folder_ref, plans_file_or_dict, dataset_json_file_or_dict, *others)
        if trainer_folder() is None:  # this package has been removed; nnU-Net is as it was
            return stock(*given, **named)
        from importlib import import_module

        ours = import_module("nnunet_partial.evaluation.postprocessing")
        partial = ours.is_for_us(dataset_json_file_or_dict, folder_predictions)
        return (ours.determine_postprocessing if partial else stock)(*given, **named)

    setattr(module, GUARDED, determine_postprocessing)
