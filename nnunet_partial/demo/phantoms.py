"""Synthetic abdominal CT patients, deterministic, in the download layouts of LiTS, KiTS19 and NIH Pancreas-CT.

Every patient has every organ, and what makes real abdomens hard in small: neighbours with the same grey values (spleen,
stomach, bowel, vessels, muscle), anatomy that varies from patient to patient, partial volume and noise. A source labels
its own organ alone and has its own contrast phase, noise, voxel size and file quirks. Volumes have about 55 000 voxels
of 6 mm, so that small networks train in seconds on a CPU.

The patient's frame is DICOM's: x towards the left, y towards the back, z towards the head, mm. Arrays are (z, y, x).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_partial.data.images import write_image
from nnunet_partial.files import PathLike, write_json

if TYPE_CHECKING:
    from pydicom.uid import UID

LIVER, LIVER_TUMOUR, KIDNEY, KIDNEY_TUMOUR, PANCREAS = 1, 2, 3, 4, 5
TEST_LABELS = {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3}


@dataclass(frozen=True)
class Style:
    """How a source looks: ``hu`` mean grey value of each tissue, ``noise_hu`` standard deviation of the noise."""

    hu: Mapping[str, float]
    noise_hu: float = 15.0
    spacing_mm: tuple = (6.4, 6.4, 6.4)  # (x, y, z)
    size_xyz: tuple = (44, 38, 32)


_PORTAL_VENOUS = {
    "air": -1000,
    "fat": -95,
    "muscle": 50,
    "bone": 300,
    "bowel": 58,
    "stomach": 42,
    "spleen": 136,
    "gallbladder": 8,
    "vessel": 168,
    "liver": 112,
    "liver_tumour": 70,
    "kidney": 178,
    "kidney_tumour": 96,
    "pancreas": 116,
}
PORTAL_VENOUS = Style(_PORTAL_VENOUS, noise_hu=13)
ARTERIAL = Style(
    {**_PORTAL_VENOUS, "vessel": 196, "kidney": 186, "spleen": 144, "liver": 102, "liver_tumour": 66, "pancreas": 124},
    noise_hu=16,
    spacing_mm=(6.2, 6.2, 6.9),
)
THIN_AND_NOISY = Style(
    {**_PORTAL_VENOUS, "liver": 106, "pancreas": 110, "kidney": 170, "bowel": 64},
    noise_hu=20,
    spacing_mm=(6.6, 6.6, 6.0),
    size_xyz=(44, 36, 36),
)
STYLES = {"lits": PORTAL_VENOUS, "kits": ARTERIAL, "nih": THIN_AND_NOISY}


@dataclass(frozen=True)
class Patient:
    """``ct`` (z, y, x) int16 HU; ``organs`` (z, y, x) uint8 with the values above. Axes along the patient's."""

    ct: np.ndarray
    organs: np.ndarray
    spacing_mm: tuple
    origin_mm: tuple

    def ct_image(self) -> "sitk.Image":
        return self._image(self.ct)

    def label_image(self, values: Mapping[int, int]) -> "sitk.Image":
        """Label map in which the organ value ``old`` reads ``values[old]`` and everything else 0."""
        table = np.zeros(PANCREAS + 1, np.uint8)
        for old, new in values.items():
            table[old] = new
        return self._image(table[self.organs])

    def _image(self, array: np.ndarray) -> "sitk.Image":
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        return image


def make_patient(seed: int | Sequence[int], style: Style = PORTAL_VENOUS) -> Patient:
    """One patient. The same seed and style give the same patient."""
    rng = np.random.default_rng(seed)
    spacing = tuple(s * rng.uniform(0.97, 1.03) for s in style.spacing_mm)
    size = tuple(n + int(rng.integers(-2, 3)) for n in style.size_xyz)
    points = _warped_grid(rng, size, spacing)
    tissue = _paint_anatomy(rng, points)
    ct = _grey_values(rng, tissue, style)
    origin = tuple(-0.5 * (n - 1) * s + rng.uniform(-40, 40) for n, s in zip(size, spacing))
    return Patient(ct, _ORGAN_OF_TISSUE[tissue], spacing, origin)


_TISSUES = (
    "air",
    "fat",
    "muscle",
    "bone",
    "bowel",
    "stomach",
    "spleen",
    "gallbladder",
    "vessel",
    "liver",
    "liver_tumour",
    "kidney",
    "kidney_tumour",
    "pancreas",
)
_ORGANS = {"liver": LIVER, "liver_tumour": LIVER_TUMOUR, "kidney": KIDNEY, "kidney_tumour": KIDNEY_TUMOUR, "pancreas": PANCREAS}
_ORGAN_OF_TISSUE = np.array([_ORGANS.get(i, 0) for i in _TISSUES], np.uint8)


def _smooth_noise(rng, shape, sigma_voxels) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma_voxels)
    return noise / (noise.std() + 1e-9)


def _warped_grid(rng, size, spacing) -> tuple:
    """Position (x, y, z) in the standard patient, mm, of every voxel: scaled, shifted and bent."""
    axes = [(np.arange(n) - 0.5 * (n - 1)) * s for n, s in zip(size, spacing)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    points = []
    for coordinate, shift in zip((x, y, z), (4, 4, 10)):
        bend = 5.0 * _smooth_noise(rng, x.shape, 5)
        points.append((coordinate + bend + rng.uniform(-shift, shift)) / rng.uniform(0.9, 1.1))
    return tuple(points)


class _Painter:
    """Paints structures over each other, each with its own variation of place, size and tilt."""

    def __init__(self, rng, points):
        self.rng, self.points = rng, points
        self.tissue = np.zeros(points[0].shape, np.int64)

    def paint(self, name: str, inside: np.ndarray, over: tuple | None = None) -> np.ndarray:
        if over is not None:
            inside = inside & np.isin(self.tissue, [_TISSUES.index(i) for i in over])
        self.tissue[inside] = _TISSUES.index(name)
        return inside

    def ellipsoid(self, centre, radii, jitter_mm=7.0, vary=0.14) -> np.ndarray:
        """Squared distance from the centre in radii: below 1 inside."""
        rng = self.rng
        centre = np.asarray(centre) + rng.uniform(-jitter_mm, jitter_mm, 3)
        radii = np.asarray(radii) * rng.uniform(1 - vary, 1 + vary, 3)
        tilt = rng.uniform(-0.25, 0.25)
        x, y, z = (p - c for p, c in zip(self.points, centre))
        x, z = x * math.cos(tilt) + z * math.sin(tilt), z * math.cos(tilt) - x * math.sin(tilt)
        return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2

    def tube(self, path, radius, jitter_mm=6.0) -> np.ndarray:
        """Inside a tube along the polyline ``path``; ``radius`` (start, end) in mm."""
        path = np.asarray(path, float) + self.rng.uniform(-jitter_mm, jitter_mm, 3)
        path[1:-1] += self.rng.uniform(-jitter_mm, jitter_mm, path[1:-1].shape)
        points = np.stack([np.interp(np.linspace(0, len(path) - 1, 40), range(len(path)), path[:, i]) for i in range(3)], 1)
        fine: Any = ndimage.gaussian_filter1d(points, 3, axis=0, mode="nearest")
        inside = np.zeros(self.tissue.shape, bool)
        for centre, r in zip(fine, np.linspace(radius[0], radius[1], len(fine)) * self.rng.uniform(0.88, 1.15)):
            inside |= sum((p - c) ** 2 for p, c in zip(self.points, centre)) < r * r
        return inside


def _paint_anatomy(rng, points) -> np.ndarray:
    p = _Painter(rng, points)
    x, y, _ = points
    body = (x / 128) ** 2 + (y / 98) ** 2
    p.paint("muscle", body < 1)
    p.paint("fat", body < 0.8)
    p.paint("muscle", (((abs(x) - 34) / 26) ** 2 + ((y - 66) / 18) ** 2) < 1)
    for _ in range(int(rng.integers(16, 24))):
        centre = rng.uniform((-90, -65, -110), (90, 20, 5))
        p.paint("bowel", p.ellipsoid(centre, rng.uniform(9, 22, 3)) < 1, over=("fat",))
    for _ in range(2):
        p.paint("air", p.ellipsoid(rng.uniform((-60, -60, -80), (60, -20, -10)), (12, 9, 12)) < 1, over=("bowel",))
    p.paint("bone", (x / 21) ** 2 + ((y - 60) / 19) ** 2 < 1)
    p.paint("spleen", p.ellipsoid((84, 32, 48), (24, 36, 40)) < 1)
    p.paint("stomach", p.ellipsoid((52, -34, 40), (40, 30, 38), vary=0.25) < 1)
    _paint_liver(p)
    p.paint("gallbladder", p.ellipsoid((-34, -36, -2), (13, 15, 22)) < 1)
    p.paint("vessel", p.tube([(9, 34, -120), (9, 36, 0), (9, 34, 120)], (10, 12), 3))
    p.paint("vessel", p.tube([(-18, 28, -120), (-18, 28, 0), (-20, 14, 120)], (11, 13), 3))
    p.paint("vessel", p.tube([(4, -4, -60), (0, 0, -5), (-28, 4, 26)], (7, 6), 3))
    _paint_kidneys(p)
    pancreas = p.tube([(-30, -8, -34), (-12, -16, -12), (14, -20, 0), (42, -4, 14), (70, 18, 28)], (21, 13), 6)
    p.paint("pancreas", pancreas, over=("fat", "bowel", "stomach", "muscle", "gallbladder"))
    return p.tissue


def _paint_liver(p: _Painter) -> None:
    right_lobe = p.ellipsoid((-58, -4, 40), (58, 66, 58), vary=0.18) < 1
    left_lobe = p.ellipsoid((2, -44, 58), (52, 28, 28), vary=0.25) < 1
    inside = (right_lobe | left_lobe) & (p.points[0] ** 2 / 122**2 + p.points[1] ** 2 / 92**2 < 0.94)
    inside = p.paint("liver", inside, over=("fat", "bowel", "stomach", "spleen", "muscle", "air"))
    _paint_tumours(p, inside, "liver_tumour", ("liver",), p.rng.integers(0, 3))


def _paint_kidneys(p: _Painter) -> None:
    for centre in ((-54, 42, -24), (56, 42, -6)):
        kidney = p.ellipsoid(centre, (26, 21, 47))
        p.paint("kidney", kidney < 1, over=("fat", "bowel", "muscle", "liver", "liver_tumour", "spleen", "stomach", "vessel"))
        p.paint("fat", p.ellipsoid((centre[0] * 0.72, centre[1] - 6, centre[2]), (9, 8, 16)) < 1, over=("kidney",))
    inside = p.tissue == _TISSUES.index("kidney")
    _paint_tumours(p, inside, "kidney_tumour", ("kidney", "fat", "bowel"), p.rng.integers(0, 2))


def _paint_tumours(p: _Painter, organ: np.ndarray, name: str, over: tuple, count: int) -> None:
    places = np.argwhere(organ)
    for _ in range(count):
        voxel = tuple(places[p.rng.integers(len(places))])
        centre = [axis[voxel] for axis in p.points]
        p.paint(name, p.ellipsoid(centre, p.rng.uniform(9, 17, 3), jitter_mm=0) < 1, over=over)


def _grey_values(rng, tissue, style: Style) -> np.ndarray:
    means = np.array([style.hu[i] for i in _TISSUES], float)
    soft = np.array([i not in ("air", "bone", "fat") for i in _TISSUES])
    means = means + np.where(soft, rng.normal(0, 5, len(means)), 0) + soft * rng.normal(0, 5)
    ct = means[tissue] + np.where(soft, 9.0, 4.0)[tissue] * _smooth_noise(rng, tissue.shape, 1.5)
    unsteady = np.isin(tissue, [_TISSUES.index(i) for i in ("bowel", "stomach")])
    ct += unsteady * 24 * _smooth_noise(rng, tissue.shape, 3)
    ct = ndimage.gaussian_filter(ct, 0.55)
    ct += style.noise_hu * _smooth_noise(rng, tissue.shape, 0.45)
    return np.clip(np.rint(ct), -1024, 1500).astype(np.int16)


# ------------------------------------------------------------------------------------------------ download layouts


def make_lits(folder: PathLike, num_cases: int = 10, seed: int = 0) -> Path:
    """LiTS: ``volume-N.nii``, ``segmentation-N.nii`` (liver 1, tumour 2), orientations mixed as in the release."""
    folder = _new_folder(folder)
    for number in range(num_cases):
        patient = make_patient(_seed(seed, "lits", number), STYLES["lits"])
        orientation = ("RAS", "LPS", "LAS")[number % 3]
        label = patient.label_image({LIVER: 1, LIVER_TUMOUR: 2})
        write_image(sitk.DICOMOrient(patient.ct_image(), orientation), folder / f"volume-{number}.nii")
        write_image(sitk.DICOMOrient(label, orientation), folder / f"segmentation-{number}.nii")
    return folder


def make_kits(folder: PathLike, num_cases: int = 10, seed: int = 0) -> Path:
    """KiTS19: ``case_NNNNN/imaging.nii.gz`` and ``segmentation.nii.gz`` (kidney 1, tumour 2), slices along the first
    axis.
    """
    folder = _new_folder(folder)
    for number in range(num_cases):
        patient = make_patient(_seed(seed, "kits", number), STYLES["kits"])
        case = _new_folder(folder / f"case_{number:05d}")
        label = patient.label_image({KIDNEY: 1, KIDNEY_TUMOUR: 2})
        write_image(_slices_first(patient.ct_image()), case / "imaging.nii.gz")
        write_image(_slices_first(label), case / "segmentation.nii.gz")
    return folder


def _slices_first(image: "sitk.Image") -> "sitk.Image":
    """First file axis towards the feet, second towards the back, third towards the left: the affine of KiTS."""
    return sitk.Flip(sitk.PermuteAxes(image, (2, 1, 0)), (True, False, False))


def make_nih(folder: PathLike, num_cases: int = 10, seed: int = 0) -> Path:
    """NIH Pancreas-CT: a DICOM series per patient, and labels whose headers mirror the patient front to back.

    The voxels of ``labelNNNN.nii.gz`` lie in the order of the series (columns, rows, slices towards the head); its
    header says otherwise. Slice files are numbered from the head down.
    """
    folder = Path(folder)
    labels = _new_folder(folder / "TCIA_pancreas_labels-02-05-2017")
    for number in range(1, num_cases + 1):
        patient = make_patient(_seed(seed, "nih", number), STYLES["nih"])
        name = f"PANCREAS_{number:04d}"
        series = folder / "Pancreas-CT" / name / f"11-24-2015-{name.replace('_', '')}-Pancreas-18957" / "Pancreas-99667"
        write_dicom_series(patient.ct_image(), series, patient=name)
        label = patient.label_image({PANCREAS: 1})
        label.SetOrigin((0.0, 0.0, 0.0))
        label.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
        write_image(label, labels / f"label{number:04d}.nii.gz")
    return folder


def make_test_set(folder: PathLike, num_cases: int = 6, seed: int = 0) -> Path:
    """Fully labelled cases in the styles of all three sources: ``imagesTs``, ``labelsTs``, ``dataset.json``
    (TEST_LABELS).
    """
    folder = Path(folder)
    images, labels = _new_folder(folder / "imagesTs"), _new_folder(folder / "labelsTs")
    for number in range(num_cases):
        style = list(STYLES.values())[number % len(STYLES)]
        patient = make_patient(_seed(seed, "test", number), style)
        label = patient.label_image({LIVER: 1, LIVER_TUMOUR: 1, KIDNEY: 2, KIDNEY_TUMOUR: 2, PANCREAS: 3})
        write_image(patient.ct_image(), images / f"test_{number:03d}_0000.nii.gz")
        write_image(label, labels / f"test_{number:03d}.nii.gz")
    write_json(
        {
            "name": "phantom test set",
            "channel_names": {"0": "CT"},
            "labels": TEST_LABELS,
            "numTraining": 0,
            "file_ending": ".nii.gz",
        },
        folder / "dataset.json",
    )
    return folder


def _seed(seed: int, source: str, number: int) -> list:
    return [seed, sum(map(ord, source)), number]


def _new_folder(folder: PathLike) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


def write_dicom_series(
    image: "sitk.Image",
    folder: PathLike,
    patient: str = "PHANTOM",
    series: int = 1,
    intercept: float = -1024.0,
    slope: float = 1.0,
) -> Path:
    """Write a CT volume (int16 HU) as one uncompressed DICOM file a slice, ``1-001.dcm`` the one nearest the head."""
    folder = _new_folder(folder)
    array = sitk.GetArrayFromImage(image)
    for index in range(len(array)):
        instance = len(array) - index
        dataset = _dicom_slice(image, array[index], index, intercept, slope)
        dataset.PatientID = dataset.PatientName = patient
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(patient, "study"), _uid(patient, "series", series)
        dataset.FrameOfReferenceUID = _uid(patient, "frame")
        dataset.SeriesNumber, dataset.InstanceNumber = series, instance
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _uid(patient, "slice", series, instance)
        dataset.save_as(folder / f"{series}-{instance:03d}.dcm", enforce_file_format=True)
    return folder


def _uid(*parts) -> "UID":
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[json.dumps(parts)])


def _dicom_slice(image: "sitk.Image", pixels: np.ndarray, index: int, intercept: float, slope: float):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.Modality, dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = "CT", "O", "20151124", "000000"
    spacing, direction = image.GetSpacing(), np.reshape(image.GetDirection(), (3, 3))
    dataset.ImagePositionPatient = [_decimal(i) for i in image.TransformIndexToPhysicalPoint((0, 0, index))]
    dataset.ImageOrientationPatient = [_decimal(i) for i in (*direction[:, 0], *direction[:, 1])]
    dataset.PixelSpacing, dataset.SliceThickness = [_decimal(spacing[1]), _decimal(spacing[0])], _decimal(spacing[2])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = _decimal(intercept), _decimal(slope)
    dataset.PixelData = np.clip(np.rint((pixels - intercept) / slope), 0, 65535).astype("<u2").tobytes()
    return dataset


def _decimal(value: float) -> str:
    """DICOM's decimal string: at most 16 characters."""
    return f"{value:.10g}"[:16]


def coarser(style: Style, factor: float) -> Style:
    """The same source with voxels ``factor`` times as large: smaller volumes for quick tests."""
    return replace(
        style,
        spacing_mm=tuple(s * factor for s in style.spacing_mm),
        size_xyz=tuple(int(round(n / factor)) for n in style.size_xyz),
    )
