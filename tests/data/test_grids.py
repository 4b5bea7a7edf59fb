"""One grid along other axes: labels are reordered without loss, and any other grid is told."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.grids import read_label_on
from nnunet_partial.errors import UserError


def turned(label, order, flips):
    """The label map with other axes, and the geometry that leaves every voxel where it is (see ``GRID``)."""
    image = sitk.GetImageFromArray(label)
    image.SetSpacing(GRID.spacing_mm)
    image.SetOrigin(GRID.origin_mm)
    image.SetDirection(GRID.direction)
    image = sitk.Flip(sitk.PermuteAxes(image, order), flips)
    return sitk.GetArrayFromImage(image), images.Geometry.of(image)


GRID = images.Geometry((4, 5, 6), (1.0, 1.5, 2.0), (-3.0, 7.0, 11.0), (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)])
def test_label_along_other_axes_is_reordered_without_loss(tmp_path, order, flips):
    label = np.random.default_rng(0).integers(0, 9, GRID.shape_zyx).astype(np.uint8)
    stored, geometry = turned(label, order, flips)
    images.write_label(stored, geometry, tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_label_on(tmp_path / "label.nii.gz", GRID, "image.nii.gz"), label)


def test_label_on_another_grid_along_other_axes_is_told_along_those_of_the_image(tmp_path):
    label = np.ones(GRID.shape_zyx, np.uint8)
    stored, geometry = turned(label, (2, 0, 1), (True, False, False))
    moved = images.Geometry(geometry.size_xyz, geometry.spacing_mm, (0.0, 0.0, 0.0), geometry.direction)
    images.write_label(stored, moved, tmp_path / "label.nii.gz")
    with pytest.raises(UserError, match="image.nii.gz and .*label.nii.gz differ in origin"):
        read_label_on(tmp_path / "label.nii.gz", GRID, "image.nii.gz")
    images.write_label(stored[:-1], dataclasses.replace(moved, size_xyz=stored[:-1].shape[::-1]), tmp_path / "label.nii.gz")
    with pytest.raises(UserError, match="differ in size"):
        read_label_on(tmp_path / "label.nii.gz", GRID, "image.nii.gz")
