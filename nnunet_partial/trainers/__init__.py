"""nnU-Net trainers, one short file a method. Every trainer in a file of this folder is found by ``nnUNetv2_train -tr NAME``."""

from importlib import import_module

from nnunet_partial.methods import package_trainers

__all__ = []
for _source in package_trainers().values():
    globals()[_source.name] = getattr(import_module(f"{__name__}.{_source.file.stem}"), _source.name)
    __all__ += [_source.name]
