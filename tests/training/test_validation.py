"""The final validation of a model that knows some of the dataset's classes, in its own values."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_partial.training.validation import _relabel


@pytest.mark.parametrize("classes", [3, 255, 256, 300])
def test_truth_is_numbered_anew_beyond_8_bit(tmp_path, classes):
    """Every second value of the truth is a class of the model; the others are background."""
    truth = np.random.default_rng(0).integers(0, 2 * classes + 1, (6, 10, 12)).astype(np.uint16)
    truth.flat[0] = 2 * classes
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(tmp_path / "truth.nii.gz"))
    label_map = {0: 0, **{2 * new: new for new in range(1, classes + 1)}}
    _relabel(str(tmp_path / "truth.nii.gz"), str(tmp_path / "new.nii.gz"), SimpleITKIO(), label_map)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "new.nii.gz")))
    np.testing.assert_array_equal(written, np.where(truth % 2 == 0, truth // 2, 0))
