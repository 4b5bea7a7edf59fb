"""DICOM series written and DICOM SEG read by pydicom alone, from the equations of the standard (PS3.3 C.7.6.2.1.1).

World is in mm, LPS: x grows towards the patient's left.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORAGE = {"CT": pydicom.uid.CTImageStorage, "MR": pydicom.uid.MRImageStorage}


@dataclass(frozen=True)
class Plane:
    """Where a series lies. ``spacing_mm``: along a row, between rows, between slices; the slices follow each other along
    row x column, or against it (``forward`` False)."""

    row: tuple = (1.0, 0.0, 0.0)
    column: tuple = (0.0, 1.0, 0.0)
    spacing_mm: tuple = (1.5, 1.5, 3.0)
    origin_mm: tuple = (-20.0, -15.0, -30.0)
    shape: tuple = (16, 20, 26)  # slices, rows, columns
    forward: bool = True

    def position(self, k: int) -> np.ndarray:
        """Of the first voxel of slice k."""
        normal = np.cross(self.row, self.column) * (1 if self.forward else -1)
        return np.array(self.origin_mm) + k * self.spacing_mm[2] * normal

    def points(self, k: int) -> np.ndarray:
        """(rows, columns, 3): where the voxels of slice k lie."""
        return points(self.position(k), (*self.row, *self.column), self.spacing_mm[1::-1], self.shape[1:])


def points(position, orientation, spacing_mm, shape) -> np.ndarray:
    """``spacing_mm``: between rows, between columns, as DICOM's PixelSpacing."""
    row, column = np.reshape(np.array(orientation, float), (2, 3))
    i, j = np.indices(shape)
    return np.array(position, float) + j[..., None] * row * spacing_mm[1] + i[..., None] * column * spacing_mm[0]


def rotated(x=0.0, y=0.0, z=0.0) -> dict:
    """Row and column turned about the three axes, in degrees."""
    turn = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        step = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        turn = step @ turn
    return {"row": tuple(turn[:, 0]), "column": tuple(turn[:, 1])}


def write_series(folder: Path, plane: Plane, value, order=None, names="{k}.dcm", series="1", modality="CT", **attributes) -> list:
    """``value(points)``: grey values (rows, columns) of a slice, whole numbers of at least -1000. ``order``: the instance
    numbers, slice by slice. Returns the files, slice by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(plane.shape[0]):
        dataset = header(series, k if order is None else order[k], modality)
        dataset.ImagePositionPatient = [f"{i:.6f}"[:16] for i in plane.position(k)]
        dataset.ImageOrientationPatient = [f"{i:.10f}"[:14] for i in (*plane.row, *plane.column)]
        dataset.PixelSpacing = [f"{i:.6g}" for i in plane.spacing_mm[1::-1]]
        dataset.SliceThickness = "5"  # thicker than the distance of the slices: reconstructed with overlap
        stored = np.asarray(value(plane.points(k)), np.int32) + 1024
        dataset.Rows, dataset.Columns = stored.shape
        dataset.PixelData = stored.astype("<u2").tobytes()
        for name, content in attributes.items():
            if content is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, content)
        files.append(folder / names.format(k=k, n=dataset.InstanceNumber))
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def header(series: str, number: int, modality: str) -> Dataset:
    def uid(*parts):
        return generate_uid(entropy_srcs=["test", *map(str, parts)])

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = STORAGE[modality]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid("instance", series, number)
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid("series", series), uid("study")
    dataset.FrameOfReferenceUID = uid("frame", series)
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = modality, series, number + 1
    dataset.SeriesDescription = f"Abdomen {series}"
    dataset.PatientID, dataset.PatientName, dataset.PatientSex, dataset.PatientBirthDate = "4711", "Doe^Jane", "F", "19700101"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20240102", "101112", "S1", "A1"
    dataset.ReferringPhysicianName = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    return dataset


def read_seg(file: Path) -> dict:
    """Segment label -> where its voxels lie, (n, 3) in mm. By hand: bits in the order of the standard, positions frame by frame."""
    dataset = pydicom.dcmread(file)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    spacing = [float(i) for i in shared.PixelMeasuresSequence[0].PixelSpacing]
    shape = (int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")[: np.prod(shape)].reshape(shape)
    names = {int(i.SegmentNumber): str(i.SegmentLabel) for i in dataset.SegmentSequence}
    found: dict = {name: [] for name in names.values()}
    for frame, group in zip(bits, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        said = group if "SegmentIdentificationSequence" in group else shared  # that of an only segment is shared
        number = int(said.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        found[names[number]].append(points(position, orientation, spacing, frame.shape)[frame > 0])
    return {name: np.concatenate(parts) if parts else np.zeros((0, 3)) for name, parts in found.items()}


def sources_of_frames(file: Path) -> list:
    """``(position of the frame, SOPInstanceUID that it refers to)`` of every frame."""
    dataset = pydicom.dcmread(file)
    return [
        (
            tuple(float(i) for i in group.PlanePositionSequence[0].ImagePositionPatient),
            str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID),
        )
        for group in dataset.PerFrameFunctionalGroupsSequence
    ]
