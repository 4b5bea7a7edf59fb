"""DICOM series: geometry and values against known volumes and dcm2niix, multi-frame files, oblique axes, a real series."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from nnunet_partial.data.conversion import dicom
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError


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


def write_multiframe(image, path: Path, order, rescale=lambda index: (1, -1024)):
    """An Enhanced CT file with the frames of ``image`` in the given order. ``rescale(index)``: slope, intercept."""
    array = sitk.GetArrayFromImage(image)
    dataset = phantoms._dicom_slice(image, array[0], 0, -1024.0, 1.0)
    shared, frames = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    for index in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept = rescale(index)
        values.RescaleType = "HU"
        frame.PixelValueTransformationSequence = Sequence([values])
        content = Dataset()
        content.InStackPositionNumber, content.StackID, content.DimensionIndexValues = int(index) + 1, "1", [1, int(index) + 1]
        frame.FrameContentSequence = Sequence([content])
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
    dataset.NumberOfFrames = len(order)
    stored = [np.rint((array[i] - float(rescale(i)[1])) / rescale(i)[0]) for i in order]
    dataset.PixelData = np.stack(stored).astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    "direction",
    [np.eye(3), rotation("x", 25), rotation("y", -12), np.diag([-1, -1, 1])],
    ids=["axial", "tilted x", "tilted y", "prone"],
)
def test_series_gives_the_volume_back(direction, tmp_path):
    expected = volume(np.ravel(direction).tolist())
    phantoms.write_dicom_series(expected, tmp_path)
    image = dicom.read_volume(dicom.read_headers(tuple(sorted(tmp_path.iterdir())))).image
    check_same(image, expected)
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_multiframe_file_gives_the_volume_back_whatever_the_order_of_its_frames(order, tmp_path):
    expected = volume()
    write_multiframe(expected, tmp_path / "enhanced.dcm", order)
    check_same(dicom.read_volume(dicom.read_headers((tmp_path / "enhanced.dcm",))).image, expected)


def read(files):
    return dicom.read_volume(dicom.read_headers(tuple(files)))


def values(volume):
    return sitk.GetArrayFromImage(volume.image)


def restate(file: Path, rescale, hu: np.ndarray):
    """Store the values of a slice with another slope and intercept; None: as they are, and nothing is said about it."""
    dataset = pydicom.dcmread(file)
    slope, intercept = rescale or (1, -1024)
    dataset.PixelData = np.rint((hu - float(intercept)) / slope).astype("<u2").tobytes()
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    if rescale is None:
        del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.save_as(file)


@pytest.fixture
def slices(tmp_path):
    """``(files from the feet, their values in HU)``; neighbours are alike, as in a body."""
    hu = (np.random.default_rng(1).integers(-900, 900, (1, 6, 7)) + np.arange(5)[:, None, None]).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((0.7, 0.8, 2.5))
    return sorted(phantoms.write_dicom_series(image, tmp_path / "series").iterdir(), reverse=True), hu


@pytest.mark.parametrize(
    "rescale, error_hu",
    [(lambda k: (1, -1024 - 200 * k), 0), (lambda k: (1 + k, -1024), 2.5), (lambda k: (0.5 + 0.1 * k, -1024.5), 0.45)],
    ids=["intercepts", "whole slopes", "fractions"],
)
def test_rescale_of_every_slice_is_its_own(slices, rescale, error_hu):
    """Half a step of the stored values is lost when they are stored, nothing when they are read."""
    files, hu = slices
    for k, file in enumerate(files):
        restate(file, rescale(k), hu[k])
    volume = read(files)
    stored = [np.rint((hu[k] - rescale(k)[1]) / rescale(k)[0]) for k in range(len(hu))]
    expected = np.stack([v * rescale(k)[0] + rescale(k)[1] for k, v in enumerate(stored)])
    assert np.allclose(values(volume), expected, atol=1e-3) and np.abs(values(volume) - hu).max() <= error_hu + 1e-3
    assert volume.notes == () and (volume.image.GetPixelID() == sitk.sitkInt16) == (rescale(1)[0] in (1, 2))


@pytest.mark.parametrize("stored_as", ["raw", "HU"])
def test_slice_without_rescale_is_chosen_to_fit_its_neighbours_and_named(slices, stored_as):
    files, hu = slices
    hu += 1000  # so that the values in HU can be stored unsigned
    for k, file in enumerate(files):
        restate(file, (1, -1024), hu[k])
    dataset = pydicom.dcmread(files[2])
    dataset.PixelData = (hu[2] + (1024 if stored_as == "raw" else 0)).astype("<u2").tobytes()
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.save_as(files[2])
    volume = read(files)
    assert np.array_equal(values(volume), hu)
    assert len(volume.notes) == 1 and "1 of 5 slices have no rescale slope" in volume.notes[0]


def test_series_without_any_rescale_is_taken_as_stored(slices):
    files, hu = slices
    for k, file in enumerate(files):
        restate(file, None, hu[k])
    assert np.array_equal(values(read(files)), hu.astype(int) + 1024)
    assert read(files).notes == (dicom.UNSCALED_CT,)


def test_a_ct_series_without_any_rescale_is_converted_and_named(slices, run, tmp_path):
    """The header says that it is CT: nobody has to be asked what the values show, but everybody is told."""
    files, hu = slices
    for k, file in enumerate(files):
        restate(file, None, hu[k] - hu.min())
    source = tmp_path / "downloads"
    for file in files:
        place = source / "one" / "CT" / Path(file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    report = run("generic", source, "--image-glob", "*/CT")
    assert report.converted["one"].notes == (dicom.UNSCALED_CT,) and not report.skipped


@pytest.mark.parametrize("rescale", [lambda k: (1, -1024 - 1024 * (k > 2)), lambda k: (1 + (k > 2), -1024)])
def test_rescale_of_every_frame_is_its_own(tmp_path, rescale):
    expected = sitk.GetArrayFromImage(volume())
    write_multiframe(volume(), tmp_path / "enhanced.dcm", (2, 0, 4, 1, 3), rescale)
    assert np.abs(values(read([tmp_path / "enhanced.dcm"])) - expected).max() <= (0 if rescale(4)[0] == 1 else 1)


def test_one_series_in_two_multiframe_files(tmp_path):
    write_multiframe(volume(), tmp_path / "b.dcm", (1, 0))
    write_multiframe(volume(), tmp_path / "a.dcm", (4, 2, 3))
    check_same(read([tmp_path / "a.dcm", tmp_path / "b.dcm"]).image, volume())


def write_old_multiframe(image, path: Path, **values):
    """Frames one behind the other, the place of the first alone."""
    array = sitk.GetArrayFromImage(image)
    dataset = phantoms._dicom_slice(image, array[0], 0, -1024.0, 1.0)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SeriesInstanceUID = "1.2.3.5"
    dataset.NumberOfFrames = len(array)
    dataset.PixelData = (array.astype(np.int32) + 1024).astype("<u2").tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def test_old_multiframe_file_is_read_if_it_says_how_far_apart_its_frames_are(tmp_path):
    write_old_multiframe(volume(), tmp_path / "old.dcm", SpacingBetweenSlices="2.5")
    check_same(read([tmp_path / "old.dcm"]).image, volume())
    write_old_multiframe(volume(), tmp_path / "silent.dcm")
    with pytest.raises(UserError, match="silent.dcm holds 5 frames without positions of their own"):
        read([tmp_path / "silent.dcm"])


def test_modality_lookup_table_takes_the_place_of_slope_and_intercept(slices):
    files, hu = slices
    for file in files:
        dataset = pydicom.dcmread(file)
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "HU"
        table.LUTData = (np.arange(4096) * 2).astype("<u2").tobytes()
        dataset.ModalityLUTSequence = Sequence([table])
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.save_as(file)
    assert np.array_equal(values(read(files)), 2 * (hu.astype(int) + 1024))


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
def test_compressed_series(tmp_path, syntax):
    gdcm = pytest.importorskip("gdcm")
    hu = np.random.default_rng(0).integers(-1000, 2000, (3, 32, 40)).astype(np.int16)
    files = sorted(phantoms.write_dicom_series(sitk.GetImageFromArray(hu), tmp_path / "series").iterdir())
    for file in files:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(tmp_path / "compressed.dcm"))
        assert writer.Write()
        os.replace(tmp_path / "compressed.dcm", file)
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(values(read(files)), hu)


def test_companions_of_a_series_are_no_slices_and_damaged_files_are(slices):
    files, hu = slices
    folder = files[0].parent
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (folder / "LICENSE").write_text("Creative Commons\n")
    (folder / "VERSION").write_text("1\n")
    (folder / "DICOMDIR").write_bytes(b"")
    assert np.array_equal(values(read(folder.iterdir())), hu)
    (folder / "IM7").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(UserError, match="IM7 is not a DICOM image"):
        read(folder.iterdir())
    (folder / "IM7").write_bytes(b"")
    with pytest.raises(UserError, match="IM7 is not a DICOM image"):
        read(folder.iterdir())


@pytest.mark.parametrize("kind", ["slices", "intercepts", "multiframe", "tilted"])
def test_voxels_and_places_are_those_of_dcm2niix(tmp_path, slices, kind):
    """An independent reader: the same value at the same place of the patient, for every voxel."""
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcm2niix is not installed")
    files, hu = slices
    if kind == "intercepts":
        for k, file in enumerate(files):
            restate(file, (1, -1024 - 100 * k), hu[k])
    elif kind != "slices":
        shutil.rmtree(files[0].parent)
        image = volume(np.ravel(rotation("x", 25)).tolist()) if kind == "tilted" else volume()
        if kind == "tilted":
            phantoms.write_dicom_series(image, files[0].parent)
        else:
            files[0].parent.mkdir()
            write_multiframe(image, files[0].parent / "enhanced.dcm", (3, 0, 4, 2, 1))
    out = tmp_path / "out"
    out.mkdir()
    command = [program, "-b", "n", "-z", "n", "-f", "image", "-o", str(out), str(files[0].parent)]
    subprocess.run(command, check=True, capture_output=True)
    (written,) = out.glob("*.nii")
    other, ours = sitk.ReadImage(str(written)), read(files[0].parent.iterdir()).image
    for index in np.ndindex(ours.GetSize()):
        place = other.TransformPhysicalPointToContinuousIndex(ours.TransformIndexToPhysicalPoint([int(i) for i in index]))
        nearest = [int(round(i)) for i in place]
        assert np.abs(np.array(place) - nearest).max() < 1e-2
        assert other.GetPixel(nearest) == ours.GetPixel([int(i) for i in index])


def test_real_series():
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "dicom_series"
    files = tuple(sorted(folder.iterdir()))
    image = dicom.read_volume(dicom.read_headers(files)).image
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
