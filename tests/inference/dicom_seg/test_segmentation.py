"""DICOM SEG of series that lie in every way: what is written at a place of the patient is read there, by readers that are not
highdicom (the standard's equations by hand, and dcmqi)."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree

from nnunet_partial.data.conversion import dicom
from nnunet_partial.errors import UserError
from nnunet_partial.inference.dicom_seg.codes import standard_codes
from nnunet_partial.inference.dicom_seg.segmentation import SegmentingModel, classes_of, write_dicom_seg

hand = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("by_hand.py"))))
pytest.importorskip("highdicom")

CLASSES = {"kidney_left": (1,), "kidney_right": (2,), "spleen": (3,), "liver": (4,)}
# centre in mm, LPS (left is +x), radius in mm. No spleen; the organs touch neither each other nor the border
BALLS = {"kidney_left": ((7.0, 2.0, -10.0), 5.5), "kidney_right": ((-8.0, 1.0, -4.0), 4.5), "liver": ((-6.0, -7.0, 9.0), 6.0)}
MODEL = SegmentingModel("Dataset501_Tiny", "nnUNetTrainerMSKD__nnUNetPlans__3d_fullres", "0123456789abcdef", {"folds": "0 1"})
# origins such that the balls lie inside
PLANES = {
    "axial": hand.Plane(),
    "against the normal": hand.Plane(origin_mm=(-20, -15, 20), forward=False),
    "unequal spacing": hand.Plane(spacing_mm=(0.9, 1.7, 2.2), origin_mm=(-18, -17, -20), shape=(20, 20, 40)),
    "mirrored": hand.Plane((-1, 0, 0), (0, 1, 0), (1.5, 1.4, 3.0), (20, -15, 15)),
    "prone": hand.Plane((-1, 0, 0), (0, -1, 0), (1.5, 1.5, 3.0), (20, 15, -30)),
    "sagittal": hand.Plane((0, 1, 0), (0, 0, -1), (1.3, 1.6, 2.4), (20, -18, 22), (18, 28, 28)),
    "coronal": hand.Plane((1, 0, 0), (0, 0, -1), (1.5, 1.4, 2.0), (-18, -18, 20), (20, 30, 26)),
    "oblique": hand.Plane(**hand.rotated(20, -15, 35), spacing_mm=(1.1, 1.6, 2.5), origin_mm=(-8, -33, -24), shape=(22, 28, 40)),
}


def value(points):
    """Values of CLASSES at these places."""
    labels = np.zeros(points.shape[:-1], np.uint8)
    for name, (centre, radius) in BALLS.items():
        labels[((points - centre) ** 2).sum(-1) <= radius**2] = CLASSES[name][0]
    return labels


def expected(plane):
    """Class -> the voxels' places, from the numbers that the series was made of."""
    places = np.stack([plane.points(k) for k in range(plane.shape[0])])
    labels = value(places)
    return {name: places[labels == v[0]] for name, v in CLASSES.items() if (labels == v[0]).any()}


def same_places(found, wanted, tolerance_mm=0.01):
    """Every place has its partner."""
    assert len(found) == len(wanted)
    assert max(cKDTree(wanted).query(found)[0].max(), cKDTree(found).query(wanted)[0].max()) < tolerance_mm


def labels_of(series):
    """The label map in the order of the series, from the header of each slice."""
    slices = [pydicom.dcmread(s.file, stop_before_pixels=True) for s in series.slices]
    places = [hand.points(i.ImagePositionPatient, i.ImageOrientationPatient, i.PixelSpacing, (i.Rows, i.Columns)) for i in slices]
    return value(np.stack(places))


def written(folder, plane, classes=CLASSES, labels=None, **attributes):
    """``(SEG file, series, voxels)``; names and instance numbers of the files say nothing about their order."""
    order = np.random.default_rng(3).permutation(plane.shape[0])
    files = hand.write_series(folder / "in", plane, lambda p: 100 * value(p).astype(int), order, "IM{n}", **attributes)
    series = dicom.read_headers(tuple(sorted(files)))
    labels = labels_of(series) if labels is None else labels(labels_of(series))
    return folder / "seg.dcm", series, write_dicom_seg(labels, series, classes, standard_codes(), MODEL, folder / "seg.dcm")


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_every_voxel_is_where_it_was(plane, tmp_path):
    """By hand from the functional groups; left stays left. Each frame refers to the instance at its place."""
    file, series, voxels = written(tmp_path, plane)
    wanted, found = expected(plane), hand.read_seg(file)
    assert list(found) == ["kidney_left", "kidney_right", "liver"] and voxels == {
        name: len(wanted.get(name, ())) for name in CLASSES
    }
    for name, (centre, _) in BALLS.items():
        assert len(wanted[name]) > 10
        same_places(found[name], wanted[name])
        assert np.linalg.norm(found[name].mean(0) - centre) < 1.5
    assert found["kidney_left"][:, 0].min() > 0 > found["kidney_right"][:, 0].max()
    places = {
        tuple(map(float, i.ImagePositionPatient)): str(i.SOPInstanceUID)
        for i in map(pydicom.dcmread, (s.file for s in series.slices))
    }
    frames = hand.sources_of_frames(file)
    assert frames and all(places[position] == uid for position, uid in frames)


def by_dcmqi(file, out):
    """Segment label -> where its voxels lie, as dcmqi has it; what it says of the segments is in ``out``."""
    program = shutil.which("segimage2itkimage") or shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcmqi is not installed")
    out.mkdir()
    command = [program, "--inputDICOM", str(file), "--outputDirectory", str(out), "-t", "nrrd", "-p", "s"]
    subprocess.run(command, check=True, capture_output=True)
    found = {}
    for segment in described_by_dcmqi(out):
        image = sitk.ReadImage(str(out / f"s-{segment['labelID']}.nrrd"))
        indices = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
        places = [image.TransformIndexToPhysicalPoint([int(j) for j in i]) for i in indices]
        found[segment["SegmentLabel"]] = np.array(places)
    return found


def described_by_dcmqi(out):
    return [i[0] for i in json.loads((out / "s-meta.json").read_text())["segmentAttributes"]]


@pytest.mark.parametrize("name", ["axial", "mirrored", "sagittal", "oblique"])
def test_dcmqi_reads_the_same_places_and_codes(name, tmp_path):
    file, _, _ = written(tmp_path, PLANES[name])
    found, wanted = by_dcmqi(file, tmp_path / "out"), expected(PLANES[name])
    assert list(found) == list(wanted) == ["kidney_left", "kidney_right", "liver"]
    for organ, places in wanted.items():
        same_places(found[organ], places)
    segments = described_by_dcmqi(tmp_path / "out")
    kidney, liver = segments[0], segments[2]
    assert kidney["SegmentedPropertyTypeCodeSequence"] == {
        "CodeValue": "64033007",
        "CodingSchemeDesignator": "SCT",
        "CodeMeaning": "Kidney",
    }
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeValue"] == "7771000"
    assert liver["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == "10200004" and liver["SegmentAlgorithmType"] == "AUTOMATIC"


def test_a_real_series(tmp_path):
    """A ball in the middle of a scan from a clinic, whose headers nobody made for a test."""
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "dicom_series"
    series = dicom.read_headers(tuple(sorted(folder.iterdir())))
    headers = [pydicom.dcmread(s.file, stop_before_pixels=True) for s in series.slices]
    places = np.stack(
        [hand.points(i.ImagePositionPatient, i.ImageOrientationPatient, i.PixelSpacing, (i.Rows, i.Columns)) for i in headers]
    )
    labels = (((places - places.reshape(-1, 3).mean(0)) ** 2).sum(-1) <= 15**2).astype(np.uint8)
    write_dicom_seg(labels, series, {"liver": (1,)}, standard_codes(), MODEL, tmp_path / "seg.dcm")
    assert labels.sum() > 100
    same_places(hand.read_seg(tmp_path / "seg.dcm")["liver"], places[labels > 0])
    same_places(by_dcmqi(tmp_path / "seg.dcm", tmp_path / "out")["liver"], places[labels > 0])


def test_an_only_segment(tmp_path):
    """Which segment a frame belongs to is then said once for all frames; dcmqi knows that too."""
    file, _, _ = written(tmp_path, PLANES["oblique"], {"liver": (4,)})
    same_places(hand.read_seg(file)["liver"], expected(PLANES["oblique"])["liver"])
    ((name, found),) = by_dcmqi(file, tmp_path / "out").items()
    assert name == "liver"
    same_places(found, expected(PLANES["oblique"])["liver"])


def test_patient_study_and_frame_of_reference_are_carried_over_and_the_model_is_recorded(tmp_path):
    """From a series in Latin 1; names of classes may be in any script."""
    classes = {"Leber": (4,), "neo\\plasia": (1,), "左腎臓": (2,), "spleen": (3,)}
    names = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg", "SeriesNumber": "7"}
    file, series, _ = written(tmp_path, PLANES["axial"], classes, **names)
    source, seg = pydicom.dcmread(series.slices[0].file), pydicom.dcmread(file)
    for name in (
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
    ):
        assert seg[name].value == source[name].value, name
    assert str(seg.PatientName) == "Müller^Jörg" == str(source.PatientName)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID and seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert (seg.Modality, seg.SegmentationType, seg.SeriesNumber) == ("SEG", "BINARY", 701)
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    uids = {str(pydicom.dcmread(s.file).SOPInstanceUID) for s in series.slices}
    assert {str(i.ReferencedSOPInstanceUID) for i in referenced.ReferencedInstanceSequence} == uids
    assert seg.SeriesDescription == "Dataset501_Tiny: Leber, neo/plasia, 左腎臓"
    assert [i.SegmentLabel for i in seg.SegmentSequence] == ["Leber", "neo/plasia", "左腎臓"]
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmVersion == MODEL.version and algorithm.AlgorithmName.startswith("Dataset501_Tiny nnUNetTrainerMSKD")
    assert algorithm.AlgorithmSource.startswith("nnunet_partial ")
    said = dict(i.split("=") for i in algorithm.AlgorithmParameters.split(","))
    assert said["model"] == MODEL.name and said["folds"] == "0 1" and said["not found"] == "spleen"
    schemes = {i.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for i in seg.SegmentSequence}
    assert schemes == {"99NNUNET_PARTIAL"} == {i.CodingSchemeDesignator for i in seg.CodingSchemeIdentificationSequence}


def test_classes_that_overlap(tmp_path):
    """nnU-Net's regions: whole and core, one inside the other."""
    classes = classes_of({"background": 0, "whole": [1, 2, 4], "core": [2], "ignore": 9})
    assert classes == {"whole": (1, 2, 4), "core": (2,)}
    file, _, _ = written(tmp_path, PLANES["oblique"], classes)
    wanted, found = expected(PLANES["oblique"]), hand.read_seg(file)
    same_places(found["core"], wanted["kidney_right"])
    same_places(found["whole"], np.concatenate(list(wanted.values())))
    assert pydicom.dcmread(file).SegmentsOverlap == "YES"


def test_nothing_found_is_no_file(tmp_path):
    file, _, voxels = written(tmp_path, PLANES["axial"], labels=np.zeros_like)
    assert voxels == dict.fromkeys(CLASSES, 0) and not file.exists()


def test_what_anonymisation_took_out_is_empty(tmp_path):
    gone = dict.fromkeys(("PatientName", "PatientBirthDate", "StudyID", "AccessionNumber", "StudyTime", "SliceThickness"))
    file, _, _ = written(tmp_path, PLANES["axial"], PatientSex="U", **gone)
    seg = pydicom.dcmread(file)
    assert (seg.PatientName, seg.StudyID, seg.PatientSex, seg.PatientID) == ("", "", "", "4711")
    same_places(hand.read_seg(file)["liver"], expected(PLANES["axial"])["liver"])


@pytest.mark.parametrize(
    "attributes, words",
    [
        ({"FrameOfReferenceUID": None}, "has no FrameOfReferenceUID"),
        ({"SOPInstanceUID": "1.2.3"}, "16 instances share 1 SOPInstanceUIDs"),
        ({"PatientBirthDate": "19991301x"}, "a segmentation cannot refer to this series"),
    ],
)
def test_series_that_nothing_can_refer_to(attributes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        written(tmp_path, PLANES["axial"], **attributes)
    assert not (tmp_path / "seg.dcm").exists()


def enhanced(file, plane, order):
    """One multi-frame file whose frames are in this order."""
    dataset = hand.header("9", 0, "CT")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    measures, orientation, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [f"{i:.6g}" for i in plane.spacing_mm[1::-1]], "5"
    orientation.ImageOrientationPatient = [f"{i:.10f}"[:14] for i in (*plane.row, *plane.column)]
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "-1024", "HU"
    shared, frames = pydicom.Dataset(), []
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    for number, k in enumerate(order, 1):
        frame, position, content = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [f"{i:.6f}"[:16] for i in plane.position(k)]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [1, number]
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = len(order), *plane.shape[1:]
    dataset.PixelData = np.stack([value(plane.points(k)) for k in order]).astype("<u2").tobytes()
    dataset.save_as(file, enforce_file_format=True)


def test_a_multi_frame_series(tmp_path):
    """Its frames in any order: each frame of the segmentation lies where the frame does that it names."""
    plane = PLANES["oblique"]
    order = np.random.default_rng(5).permutation(plane.shape[0])
    enhanced(tmp_path / "enhanced.dcm", plane, order)
    series = dicom.read_headers((tmp_path / "enhanced.dcm",))
    labels = sitk.GetArrayFromImage(dicom.read_volume(series).image).astype(int) + 1024
    write_dicom_seg(labels, series, CLASSES, standard_codes(), MODEL, tmp_path / "seg.dcm")
    found = hand.read_seg(tmp_path / "seg.dcm")
    for name, places in expected(plane).items():
        same_places(found[name], places)
    for group in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        number = int(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber)
        position = [float(i) for i in group.PlanePositionSequence[0].ImagePositionPatient]
        assert np.allclose(position, plane.position(order[number - 1]), atol=1e-3)


def test_an_old_multi_frame_file_is_refused(tmp_path):
    """It can be read where it says how far apart its frames are, but not be referred to frame by frame."""
    (first,) = hand.write_series(tmp_path, hand.Plane(shape=(1, 20, 26)), lambda p: 100 * value(p).astype(int), None, "{k}.dcm")
    dataset = pydicom.dcmread(first)
    dataset.NumberOfFrames, dataset.SpacingBetweenSlices, dataset.PixelData = 4, "3", 4 * dataset.PixelData
    dataset.save_as(first)
    series = dicom.read_headers((first,))
    with pytest.raises(UserError, match="is a multi-frame file of the old kind"):
        write_dicom_seg(np.ones(series.geometry.shape_zyx, int), series, CLASSES, standard_codes(), MODEL, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_series_in_two_multi_frame_files_is_refused(tmp_path):
    plane = hand.Plane()
    for name, order in (("a", range(8)), ("b", range(8, 16))):
        enhanced(tmp_path / f"{name}.dcm", plane, order)
        dataset = pydicom.dcmread(tmp_path / f"{name}.dcm")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{ord(name)}"
        dataset.save_as(tmp_path / f"{name}.dcm")
    series = dicom.read_headers(tuple(sorted(tmp_path.glob("*.dcm"))))
    with pytest.raises(UserError, match="comes in 2 multi-frame files"):
        write_dicom_seg(
            labels := np.ones(series.geometry.shape_zyx, int), series, CLASSES, standard_codes(), MODEL, tmp_path / "s"
        )
    assert labels.all() and not (tmp_path / "s").exists()
