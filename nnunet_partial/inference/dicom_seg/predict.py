"""DICOM series segmented by a trained model: ``nnunet_partial predict-dicom``."""

import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial.data.conversion import dicom
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, sha256
from nnunet_partial.inference.dicom_seg.codes import PRIVATE, standard_codes
from nnunet_partial.inference.dicom_seg.segmentation import SegmentingModel, classes_of, require_packages, write_dicom_seg
from nnunet_partial.inference.dicom_seg.series import ENDING
from nnunet_partial.inference.new_scans import Predicted, Scan, channel_names, predict_scans, reads_pictures

_VERSION_DIGITS = 16  # of the hash of the weights


def channel_of(model: PathLike) -> str:
    """The one channel of a model. Raises :class:`UserError` for a model of several, or of pictures, and without highdicom."""
    require_packages()
    names = list(channel_names(model))
    if reads_pictures(model):
        raise UserError(f"{model} is a model of pictures, and a DICOM series is a volume. Use nnunet_partial predict -i.")
    if len(names) > 1:
        raise UserError(
            f"{model} takes {len(names)} channels ({', '.join(names)}), and a DICOM series has one. Bring the series onto one grid as "
            f"NAME_0000.nii.gz, NAME_0001.nii.gz, ... and use nnunet_partial predict -i."
        )
    return names[0]


def without_code(model: PathLike, own: PathLike | None = None) -> list:
    """The classes of a model that no table knows."""
    codes = standard_codes(own)
    return [i for i in _classes(model) if codes.of(i).scheme == PRIVATE]


def predict_series(
    scans: Sequence[Scan],
    out: PathLike,
    checkpoints: Sequence[Path],
    *,
    codes: PathLike | None = None,
    mirroring: bool = True,
    device: str = "cpu",
    overwrite: bool = False,
    trusted: bool = False,
    progress: bool = True,
) -> tuple:
    """Write a DICOM SEG for every series (:func:`~.series.series_of`); returns what became of them, and one line
    for each that was segmented now: the organs with their volumes, and those that were not found.

    ``codes``        a table of one's own, of the columns of ``snomed_ct.csv``
    ``checkpoints``  and the others: as :func:`~nnunet_partial.inference.new_scans.predict_scans`, which does the work
    A series in which nothing is found has no file, and is done all the same.
    """
    model = checkpoints[0].parent.parent
    channel_of(model)
    table, told = standard_codes(codes), []
    classes, made_by = _classes(model), _described(checkpoints, mirroring)

    def save(labels: np.ndarray, scan: Scan, file: Path) -> None:
        series = dicom.read_headers(scan.files)
        voxels = write_dicom_seg(labels, series, classes, table, made_by, file)
        told.append(_line(file.name, voxels, float(np.prod(series.geometry.spacing_mm)) / 1000))

    options: dict[str, Any] = {"mirroring": mirroring, "device": device, "overwrite": overwrite, "trusted": trusted}
    result: Predicted = predict_scans(
        scans, out, checkpoints, **options, progress=progress, save=save, ending=ENDING, more={"codes": table.sha256()}
    )
    return result, told


def _classes(model: PathLike) -> dict:
    file = Path(model) / "dataset.json"
    labels = read_json(file, "A model folder holds it.").get("labels")
    if not isinstance(labels, dict) or not classes_of(labels):
        raise UserError(f"{file} names no classes ('labels'). Copy the model again.")
    return classes_of(labels)


def _described(checkpoints: Sequence[Path], mirroring: bool) -> SegmentingModel:
    """Trained weights have no version, so their hash stands for one; of several folds that of all hashes."""
    folder = checkpoints[0].parent.parent
    hashes = [sha256(i) for i in checkpoints]
    details = {
        "folds": " ".join(i.parent.name[len("fold_") :] for i in checkpoints),
        "checkpoint": checkpoints[0].name,
        "sha256": " ".join(hashes),
        "mirroring": "yes" if mirroring else "no",
        "nnunetv2": metadata.version("nnunetv2"),
    }
    version = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    dataset = read_json(folder / "plans.json", "A model folder holds it.").get("dataset_name", "")
    return SegmentingModel(str(dataset), folder.absolute().name, version[:_VERSION_DIGITS], details)


def _line(name: str, voxels: dict, voxel_ml: float) -> str:
    found = [f"{i} {n * voxel_ml:.4g} ml" for i, n in voxels.items() if n]
    missing = [i for i, n in voxels.items() if not n]
    if not found:
        return f"{name}: nothing found of {', '.join(missing)}; no file is written"
    return f"{name}: {', '.join(found)}" + (f"; not found: {', '.join(missing)}" if missing else "")
