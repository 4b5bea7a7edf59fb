"""Text headers that refer to voxels in place: every layout of NIfTI that occurs, channels of 4D files, what must be
copied.
"""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.conversion import views
from nnunet_partial.data.images import Geometry, read_geometry

GEOMETRY = Geometry((5, 4, 3), (0.7, 0.8, 1.6), (1.5, -2.25, 1e-3), (0, 0, 1, 1, 0, 0, 0, 1, 0))


def write(path, array, dtype, byte_order="<", slope=None, extension=False):
    """NIfTI file of an array (x, y, z[, channel])."""
    image = nibabel.Nifti1Image(array.astype(dtype), np.eye(4), nibabel.Nifti1Header(endianness=byte_order))
    image.set_data_dtype(np.dtype(dtype).newbyteorder(byte_order))
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"scanner settings " * 20))
    if slope:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_view_has_the_voxels_of_the_file_and_the_given_geometry(dtype, byte_order, ending, tmp_path):
    array = np.random.default_rng(1).integers(0, 200, (5, 4, 3))
    path = write(tmp_path / f"a{ending}", array, dtype, byte_order, extension=dtype == "int16")
    view, how = views.write_view(path, 0, GEOMETRY, tmp_path / "case_0000")
    image = sitk.ReadImage(str(view))
    assert how == views.VIEW and view.suffix == ".nhdr" and view.stat().st_size < 1000
    assert np.array_equal(sitk.GetArrayFromImage(image).T, array)
    assert np.allclose(image.GetSpacing(), GEOMETRY.spacing_mm) and np.allclose(image.GetOrigin(), GEOMETRY.origin_mm)
    assert np.allclose(image.GetDirection(), GEOMETRY.direction)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_channels_of_a_4d_file(ending, tmp_path):
    array = np.random.default_rng(1).integers(0, 200, (5, 4, 3, 4))
    path = write(tmp_path / f"a{ending}", array, "int16")
    for channel in range(4):
        view, _ = views.write_view(path, channel, GEOMETRY, tmp_path / f"case_{channel:04d}")
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(view))).T, array[..., channel])


def test_scaled_values_are_copied_because_a_view_cannot_scale(tmp_path):
    array = np.random.default_rng(1).integers(0, 200, (5, 4, 3))
    path = write(tmp_path / "a.nii.gz", array, "int16", slope=(2.0, -1024.0))
    stored = nibabel.load(path)
    assert (stored.dataobj.slope, stored.dataobj.inter) == (2.0, -1024.0)
    copy, how = views.write_view(path, 0, GEOMETRY, tmp_path / "case_0000")
    assert how == views.COPY and copy.name == "case_0000.nii.gz"
    assert np.allclose(sitk.GetArrayFromImage(sitk.ReadImage(str(copy))).T, np.asarray(stored.dataobj))


def test_view_of_a_truncated_file_is_an_error_when_it_is_read(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.random.default_rng(1).integers(0, 30000, (5, 4, 3)), "int16")
    view, _ = views.write_view(path, 0, GEOMETRY, tmp_path / "case_0000")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(view))


def test_header_with_two_geometries_is_told(tmp_path):
    """qform and sform that disagree: programs place such an image differently."""
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.diag([-1, -1, 2, 1]))
    nibabel.save(image, tmp_path / "good.nii.gz")
    image.set_sform(np.diag([-1, 1, 2, 1]), code=1)
    image.set_qform(np.diag([-1, -1, 2, 1]), code=1)
    nibabel.save(image, tmp_path / "two.nii.gz")
    files = [tmp_path / "good.nii.gz", tmp_path / "two.nii.gz"]
    good, two = (views.header_conflict(path, read_geometry(path)) for path in files)
    assert good == () and len(two) == 1 and "geometries that disagree" in two[0]
