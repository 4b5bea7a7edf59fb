"""DICOM series: geometry against known volumes, multi-frame files, oblique axes, a real series."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from nnunet_partial.data.conversion import dicom
from nnunet_partial.demo import phantoms


def volume(direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-100.5, 20.25, -300.125))
    image.SetDirection(direction)
    return image


def rotation(axis, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {"x": ((1, 0, 0), (0, c, -s), (0, s, c)), "y": ((c, 0, s), (0, 1, 0), (-s, 0, c))}[axis]


def check_same(image, expected):
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    for read in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(image, read)(), getattr(expected, read)(), atol=1e-5), read


def write_multiframe(image, path: Path, order):
    """An Enhanced CT file with the frames of ``image`` in the given order."""
    array = sitk.GetArrayFromImage(image)
    dataset = phantoms._dicom_slice(image, array[0], 0, -1024.0, 1.0)
    shared, frames = Dataset(), []
    measures, orientation, rescale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = "-1024", "1", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    for index in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [f"{i:.8g}" for i in image.TransformIndexToPhysicalPoint((0, 0, int(index)))]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleIntercept",
        "RescaleSlope",
    ):
        delattr(dataset, name)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.NumberOfFrames = len(array)
    dataset.PixelData = (array[list(order)].astype(np.int32) + 1024).astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    "direction",
    [np.eye(3), rotation("x", 25), rotation("y", -12), np.diag([-1, -1, 1])],
    ids=["axial", "tilted x", "tilted y", "prone"],
)
def test_series_gives_the_volume_back(direction, tmp_path):
    expected = volume(np.ravel(direction).tolist())
    phantoms.write_dicom_series(expected, tmp_path)
    image = dicom.read_volume(dicom.read_headers(tuple(sorted(tmp_path.iterdir()))))
    check_same(image, expected)
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_multiframe_file_gives_the_volume_back_whatever_the_order_of_its_frames(order, tmp_path):
    expected = volume()
    write_multiframe(expected, tmp_path / "enhanced.dcm", order)
    check_same(dicom.read_volume(dicom.read_headers((tmp_path / "enhanced.dcm",))), expected)


def test_real_series():
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "dicom_series"
    files = tuple(sorted(folder.iterdir()))
    image = dicom.read_volume(dicom.read_headers(files))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    expected = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    assert np.allclose(image.GetOrigin(), expected.GetOrigin()) and np.allclose(
        image.GetSpacing(), expected.GetSpacing(), atol=1e-4
    )
    assert np.allclose(image.GetDirection(), expected.GetDirection(), atol=1e-4)
    for file in files[::7]:
        header = pydicom.dcmread(file)
        index = image.TransformPhysicalPointToIndex([float(i) for i in header.ImagePositionPatient])
        assert np.array_equal(sitk.GetArrayFromImage(image)[index[2]], header.pixel_array)
