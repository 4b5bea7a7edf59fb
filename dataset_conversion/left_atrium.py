"""2018 Atrial Segmentation Challenge (Xiong et al. 2021): left atrium, late gadolinium enhanced MR.

Three downloads are in use: the challenge's ``CASE/lgemri.nrrd`` with ``CASE/laendo.nrrd`` (atrium 255);
``CASE/mri_norm2.h5`` of the semi-supervised learning literature (datasets image and label, 0.625 mm, cropped and
normalised); and NIfTI, ``images/CASE.nii.gz`` with ``labels/CASE.nii.gz``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data.conversion import Case, Converter, Download, ImageFile, LabelFile, Placed, main, pair, voxels
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

if TYPE_CHECKING:
    import h5py

STRUCTURES = {"left_atrium": (1, 255)}
H5_SPACING_MM = (0.625, 0.625, 0.625)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def read(source, options) -> Download:
    images = {
        k: (ImageFile(v),)
        for k, v in {
            **source.collect(r"(?:.*/)?([^/]+)/lgemri\.nrrd"),
            **source.collect(r"(?:.*/)?images/([^/]+)\.nii(?:\.gz)?"),
        }.items()
    }
    labels = {
        k: LabelFile(v)
        for k, v in {
            **source.collect(r"(?:.*/)?([^/]+)/laendo\.nrrd"),
            **source.collect(r"(?:.*/)?labels/([^/]+)\.nii(?:\.gz)?"),
        }.items()
    }
    cases = list(pair(images, labels))
    cases += [Case(k, (H5Image(v),), H5Label(v)) for k, v in source.collect(r"(?:.*/)?([^/]+)/mri_norm2\.h5").items()]
    return Download(STRUCTURES, cases, channels=("LGE MR",))


@dataclass(frozen=True)
class H5Image:
    """Dataset ``image`` of an h5 file, axes (x, y, z); it has to be copied."""

    path: Path

    @property
    def files(self) -> tuple:
        return (self.path,)

    def geometry(self) -> Geometry:
        return h5_geometry(self.path, "image")

    stored_geometry = geometry

    def array(self) -> np.ndarray:
        return read_h5(self.path, "image")

    def place(self, target: Path, geometry: Geometry, copy: bool) -> Placed:
        array = self.array()
        low, high = voxels.value_range(voxels.pieces_of_array(array), self.path)
        path = target.with_name(target.name + ".nii.gz")
        voxels.write(sitk.GetImageFromArray(array), path, geometry)
        return Placed(path, "copied", low, high)


@dataclass(frozen=True)
class H5Label:
    """Dataset ``label`` of an h5 file, axes (x, y, z)."""

    path: Path
    mirrors: tuple = ()

    @property
    def files(self) -> tuple:
        return (self.path,)

    def read(self, organs, available, geometry: Geometry) -> tuple:
        return organs.apply(read_h5(self.path, "label"), available), h5_geometry(self.path, "label")


def read_h5(path: Path, key: str) -> np.ndarray:
    """A dataset as array (z, y, x)."""
    with _dataset(path, key) as dataset:
        return np.ascontiguousarray(dataset[()].transpose(2, 1, 0))


def h5_geometry(path: Path, key: str) -> Geometry:
    with _dataset(path, key) as dataset:
        return Geometry(tuple(dataset.shape), H5_SPACING_MM, (0.0, 0.0, 0.0), IDENTITY)


@contextmanager
def _dataset(path: Path, key: str) -> Iterator["h5py.Dataset"]:
    """An h5 dataset in 3D whose values lie in this very file: links and external storage could lead anywhere."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            dataset = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
            if not isinstance(dataset, h5py.Dataset):
                raise UserError(f"{path} holds no dataset {key!r} of its own")
            if dataset.external or dataset.is_virtual:
                raise UserError(f"{path} keeps {key!r} in other files, which are not read")
            if dataset.ndim != 3:
                raise UserError(f"{path}: {key!r} has shape {dataset.shape} where a volume is expected")
            yield dataset
    except OSError as error:
        raise UserError(f"{path} is truncated or damaged ({str(error).splitlines()[0]})") from None


CONVERTER = Converter("left_atrium", "LeftAtrium", __doc__, read)

if __name__ == "__main__":
    main(CONVERTER)
