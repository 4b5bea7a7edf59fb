"""From a scan's own voxels to its preprocessed ones: what any tool, or a model of other plans, says in image space.

nnU-Net reads an image, turns its axes, crops it to what is not zero, and resamples it. What is known of the image goes the
same way: along the axes of nnU-Net's reader, through the crop that the properties of the case name, by the resampling
functions of the plans. The way back, for a model with plans of its own, is that of nnU-Net's export.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice, insert_crop_into_image

from nnunet_partial.data import images
from nnunet_partial.data.grids import Reordering
from nnunet_partial.data.images import Geometry, write_label
from nnunet_partial.data.raw import RawCase
from nnunet_partial.errors import UserError
from nnunet_partial.inference.preprocessed import predict_logits

NOWHERE = -40.0  # logit of every class outside the crop, where background's is 0


class ToPreprocessed:
    """Brings arrays along a scan's own axes, (z, y, x) as its file has them, onto the voxels of its preprocessed image.

    ``properties`` are those of the preprocessed case, ``shape`` the (*S) of its image, ``image`` a file of the scan.
    """

    def __init__(self, plans, configuration, image: str, properties: Mapping[str, Any], shape: Sequence[int]):
        self.plans, self.configuration, self.properties = plans, configuration, properties
        self.shape = tuple(int(i) for i in shape)
        self.geometry = images.read_geometry(image).spatial()
        self.order = reader_order(self.geometry, plans.image_reader_writer_class())
        self._require_fit(image)

    def labels(self, array: np.ndarray) -> np.ndarray:
        """Label map (z, y, x) -> (*S), by nnU-Net's resampling of segmentations."""
        return self._placed(array.astype(np.int16), self.configuration.resampling_fn_seg).astype(np.int16)

    def values(self, array: np.ndarray) -> np.ndarray:
        """Probabilities or logits (z, y, x) -> (*S) float32, by nnU-Net's resampling of probabilities."""
        return self._placed(array.astype(np.float32), self.configuration.resampling_fn_probabilities).astype(np.float32)

    def _placed(self, array: np.ndarray, resample) -> np.ndarray:
        turned = self._turned(array)[bounding_box_to_slice(self.properties["bbox_used_for_cropping"])]
        original, target = spacings_mm(self.plans, self.configuration, self.properties)
        return np.asarray(resample(np.ascontiguousarray(turned)[None], self.shape, original, target))[0]

    def _turned(self, array: np.ndarray) -> np.ndarray:
        read = self.order.apply(array)
        return (read[None] if read.ndim == 2 else read).transpose(self.plans.transpose_forward)

    def _require_fit(self, image: str) -> None:
        """The scan must still be the one that was preprocessed."""
        shape = [self.geometry.shape_zyx[i] for i in self.order.axes]
        spacing = [self.geometry.spacing_mm[::-1][i] for i in self.order.axes]
        stored = self.properties["spacing"][-len(spacing) :]  # nnU-Net puts an axis before those of a picture
        turned = [([1] * (3 - len(shape)) + shape)[i] for i in self.plans.transpose_forward]
        positioned = image.lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha"))
        if turned != [int(i) for i in self.properties["shape_before_cropping"]] or (
            positioned and not np.allclose(spacing, stored, rtol=images.SPACING_TOLERANCE, atol=0)
        ):
            raise UserError(
                f"{image} is not the image that was preprocessed: it has {shape} voxels (z, y, x) of {np.round(spacing, 4)} mm. "
                "Preprocess the dataset again."
            )


def spacings_mm(plans, configuration, properties: Mapping[str, Any]) -> tuple:
    """(spacing of the image, of the preprocessed image), along preprocessed axes; 2D configurations leave slices apart as they
    were."""
    original = [properties["spacing"][i] for i in plans.transpose_forward]
    target = list(configuration.spacing)
    return original, [original[0], *target] if len(target) < len(original) else target


def reader_order(geometry: Geometry, reader_writer) -> Reordering:
    """How one of nnU-Net's readers turns the voxels (z, y, x) of a file of this geometry: some bring all images to one order.

    Asked of the reader itself, with a small image of the same direction.
    """
    identity = Reordering(tuple(range(geometry.dimensions)), ())
    if geometry.dimensions != 3 or ".nii.gz" not in reader_writer.supported_file_endings:
        return identity
    probe = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "probe.nii.gz")
        write_label(probe, Geometry(probe.shape[::-1], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), geometry.direction), file)
        read = np.asarray(reader_writer.read_seg(file)[0][0])
    axes = tuple(probe.shape.index(n) for n in read.shape)
    turned = probe.transpose(axes)
    corner = np.argwhere(read == turned[0, 0, 0])[0]
    return Reordering(axes, tuple(i for i in range(3) if corner[i]))


class ScanPredictor:
    """A model of other plans, spacing or normalisation: it sees the scan as its own preprocessing shows it.

    ``predictor`` is nnU-Net's; ``outputs`` what each of its outputs counts as (:func:`collapsed`).
    """

    def __init__(self, predictor, outputs: Sequence[int]):
        self.predictor, self.outputs = predictor, tuple(outputs)

    def logits(self, case: RawCase, place: ToPreprocessed) -> torch.Tensor:
        """Logits (1 + n, *S) float16 on the preprocessed voxels of the dataset at hand, background first."""
        data, properties = self._preprocessed(case)
        logits = collapsed(predict_logits(self.predictor, data), self.outputs)
        back = self._order_of(place.geometry)
        placed = torch.empty((len(logits), *place.shape), dtype=torch.float16)
        for number, row in enumerate(logits):  # one at a time: all of them at the scan's size may be tens of gigabytes
            on_scan = back.undo(self._on_image(row, properties, 0.0 if number == 0 else NOWHERE))
            placed[number] = torch.from_numpy(place.values(on_scan.reshape(place.geometry.shape_zyx)))
        return placed

    def _preprocessed(self, case: RawCase) -> tuple:
        own = self.predictor
        preprocessor = own.configuration_manager.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case(
            list(case.images), None, own.plans_manager, own.configuration_manager, own.dataset_json
        )
        return np.asarray(data), properties

    def _order_of(self, geometry: Geometry) -> Reordering:
        order = reader_order(geometry, self.predictor.plans_manager.image_reader_writer_class())
        return order if geometry.dimensions == 3 else Reordering((0, 1, 2), ())

    def _on_image(self, row: torch.Tensor, properties: Mapping[str, Any], fill: float) -> np.ndarray:
        """One output (*S') of the model -> the whole image, along the axes of the model's reader."""
        plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        original, own = spacings_mm(plans, configuration, properties)
        cropped = configuration.resampling_fn_probabilities(
            row[None].float(), properties["shape_after_cropping_and_before_resampling"], own, original
        )
        whole = np.full(properties["shape_before_cropping"], fill, np.float32)
        whole = insert_crop_into_image(whole, np.asarray(cropped)[0], properties["bbox_used_for_cropping"])
        return np.asarray(whole).transpose(plans.transpose_backward)


def collapsed(logits: torch.Tensor, outputs: Sequence[int]) -> torch.Tensor:
    """Logits (C, *S) of a model -> (1 + n, *S) of what is known here; ``outputs``: the number of the structure, 0 for background,
    that each output counts as.

    The probability of what several outputs make up is their sum. Where every output stands for itself nothing is done.
    """
    if list(outputs) == list(range(len(logits))):
        return logits
    rows: list = [[c for c, number in enumerate(outputs) if number == n] for n in range(max(outputs) + 1)]
    joined = torch.empty((len(rows), *logits.shape[1:]), dtype=logits.dtype)
    for start in range(logits.shape[1]):  # a slice at a time: the sum is taken in float32
        part = slice(start, start + 1)
        for number, those in enumerate(rows):
            joined[number, part] = torch.logsumexp(logits[those, part].float(), 0)
    return joined
