"""Tells nnU-Net where the trainers of nnunet_partial are, whenever torch is imported.

torch calls :func:`register` through the ``torch.backends`` entry point and treats an exception as a failed
``import torch``. This module therefore imports nothing but the standard library, and never raises.
"""

import os


def register() -> None:
    """Append the folder ``nnunet_partial/_ext`` to the variable ``nnUNet_extTrainer``, behind the user's own folders."""
    try:
        folder = trainer_folder()
        if folder is None:
            return
        known = [i for i in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if i.strip()]
        if folder not in known:
            os.environ["nnUNet_extTrainer"] = os.pathsep.join(known + [folder])
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
