"""What the converters of :mod:`dataset_conversion` share: safe reading, choice of organs, views, runs that continue."""

from nnunet_partial.data.conversion import dicom, voxels
from nnunet_partial.data.conversion.cases import AS_STORED, Case, DicomSeries, ImageFile, LabelFile, MaskFiles, Placed, Skip, pair
from nnunet_partial.data.conversion.command import main
from nnunet_partial.data.conversion.patients import patient_of
from nnunet_partial.data.conversion.run import Converter, Download, Report, convert
from nnunet_partial.data.conversion.source import SourceFolder

__all__ = [
    "AS_STORED",
    "Case",
    "Converter",
    "DicomSeries",
    "Download",
    "ImageFile",
    "LabelFile",
    "MaskFiles",
    "Placed",
    "Report",
    "Skip",
    "SourceFolder",
    "convert",
    "dicom",
    "main",
    "pair",
    "patient_of",
    "voxels",
]
