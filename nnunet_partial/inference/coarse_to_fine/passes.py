"""Coarse to fine: find the organs in the whole volume at low resolution, then segment their box in one pass.

Choi 2022 (https://arxiv.org/abs/2211.05942), sections 2.1, 2.3 and 3.2. Arrays have the axes (z, y, x) of a volume
whose directions are LPS: z runs to superior, y to posterior, x to the left. Images of any orientation are turned to the
nearest such axes first, and the mask is turned back, so the result lies on the voxels of the input whatever its
rotation, spacing and origin. A resampled volume covers exactly the space of what it was made from: outer faces
coincide, not voxel centres.

A *network* here is any callable: float32 ``(1, channels, z, y, x)`` -> logits ``(1, classes, z, y, x)``, background
first.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fastremap
import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from nnunet_partial.data.components import largest_components
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError
from nnunet_partial.settings import setting

ORIENTATION = "LPS"

Network = Callable[[torch.Tensor], torch.Tensor]
Normalise = Callable[[np.ndarray], np.ndarray]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class CoarseToFineSettings:
    """Sizes of both stages as [z, y, x]. The defaults are the paper's. Raises :class:`UserError` for unusable ones."""

    coarse_size: list = setting([96, 96, 96], "size that the whole volume is resampled to", unit="voxels")
    patch_size: list = setting([96, 64, 96], "window of the coarse stage", unit="voxels")
    window_overlap: float = setting(0.5, "share of a window that the next one covers again", low=0, high=0.9)
    fine_size: list = setting([96, 64, 96], "size that the box around the coarse mask is resampled to", unit="voxels")
    box_scale: float = setting(1.1, "enlargement of the box about its centre", low=1)
    fallback_box_mm: list = setting([240, 160, 240], "central box where the coarse mask is empty", unit="mm")
    largest_components: list | None = setting(
        None, "classes that keep their largest component alone; None: those that are one piece in the manual labels"
    )

    def __post_init__(self):
        for name in ("coarse_size", "patch_size", "fine_size", "fallback_box_mm"):
            size = getattr(self, name)
            whole = name == "fallback_box_mm" or all(isinstance(i, int) for i in size)
            if len(size) != 3 or not whole or not all(i > 0 for i in size):
                raise UserError(f"coarse to fine: {name} must be three positive numbers [z, y, x], found {size}.")
        if any(p > c for p, c in zip(self.patch_size, self.coarse_size)):
            raise UserError(f"coarse to fine: patch_size {self.patch_size} must not exceed coarse_size {self.coarse_size}.")


def predict(
    images: Sequence[sitk.Image],
    coarse_network: Network,
    fine_network: Network,
    settings: CoarseToFineSettings = CoarseToFineSettings(),
    normalise_coarse: Normalise | None = None,
    normalise_fine: Normalise | None = None,
    device: torch.device = torch.device("cpu"),
    largest: Sequence[int] = (),
) -> sitk.Image:
    """Segment one case, given as one 3D image per channel, all on one grid; the mask lies on that same grid.

    ``normalise_*`` act on the resampled volume ``(channels, z, y, x)`` of their stage before the network sees it.
    ``largest``: values of the classes of which both passes keep the largest component alone.
    """
    channels = [to_lps(image) for image in checked(images)]
    coarse = predict_coarse(channels, coarse_network, settings, normalise_coarse, device, largest)
    box = box_around(coarse, channels[0], settings)
    fine = predict_fine(channels, box, fine_network, settings, normalise_fine, device, largest)
    return paste(fine, box, channels[0], images[0])


def predict_coarse(
    channels: Sequence[sitk.Image],
    network: Network,
    settings: CoarseToFineSettings,
    normalise: Normalise | None = None,
    device: torch.device = torch.device("cpu"),
    largest: Sequence[int] = (),
) -> np.ndarray:
    """Coarse mask, of ``settings.coarse_size``, of the space that the LPS ``channels`` cover."""
    volume = _volume(channels, settings.coarse_size, normalise, device)
    probabilities = sliding_window(volume, network, settings.patch_size, settings.window_overlap)
    return largest_components(_labels(probabilities.argmax(0), len(probabilities)), largest)


def predict_fine(
    channels: Sequence[sitk.Image],
    box: Box,
    network: Network,
    settings: CoarseToFineSettings,
    normalise: Normalise | None = None,
    device: torch.device = torch.device("cpu"),
    largest: Sequence[int] = (),
) -> np.ndarray:
    """Mask of the voxels in ``box`` of the LPS ``channels``, from one pass of the network."""
    volume = _volume([crop(image, box) for image in channels], settings.fine_size, normalise, device)
    with torch.inference_mode():
        probabilities = network(volume[None])[0].float().softmax(0)
        mask = upsampled_argmax(probabilities, _size_of(box))
    return largest_components(_labels(mask, len(probabilities)), largest)


# ---- geometry


def to_lps(image: sitk.Image) -> sitk.Image:
    """The same voxels, axes flipped and exchanged until they run as close to left, posterior, superior as they can."""
    return image if _orientation(image) == ORIENTATION else sitk.DICOMOrient(image, ORIENTATION)


def from_lps(mask: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """Undo :func:`to_lps`: a mask on the LPS grid of ``reference`` comes back on the grid of ``reference`` itself."""
    orientation = _orientation(reference)
    turned = sitk.Image(mask) if orientation == ORIENTATION else sitk.DICOMOrient(mask, orientation)
    turned.CopyInformation(reference)  # axes are permuted exactly, but origins come back with rounding errors
    return turned


def _orientation(image: sitk.Image) -> str:
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def resample_to_size(image: sitk.Image, size_zyx: Sequence[int], interpolator: int = sitk.sitkLinear) -> sitk.Image:
    """The space of ``image`` in ``size_zyx`` voxels, float32. Linear interpolation; outside the voxel centres the edge
    values go on."""
    size_xyz = [int(i) for i in reversed(size_zyx)]
    scale = [old / new for old, new in zip(image.GetSize(), size_xyz)]
    origin = image.TransformContinuousIndexToPhysicalPoint([(i - 1) / 2 for i in scale])
    spacing = [i * j for i, j in zip(image.GetSpacing(), scale)]
    return sitk.Resample(
        image, size_xyz, sitk.Transform(), interpolator, origin, spacing, image.GetDirection(), 0.0, sitk.sitkFloat32
    )


def resample_labels_to_size(labels: sitk.Image, size_zyx: Sequence[int]) -> sitk.Image:
    """Label map of ``size_zyx`` voxels: each takes the label whose indicator, resampled linearly, is highest there."""
    resampled, best, winner = labels, np.empty(0), np.empty(0)
    for value in fastremap.unique(sitk.GetArrayViewFromImage(labels)):
        resampled = resample_to_size(labels == int(value), size_zyx)
        share = sitk.GetArrayViewFromImage(resampled)
        if not best.size:
            best, winner = share.copy(), np.full(share.shape, value)
        else:
            winner[share > best] = value
            np.maximum(best, share, out=best)
    result = sitk.GetImageFromArray(winner)
    result.CopyInformation(resampled)
    return result


def crop(image: sitk.Image, box: Box) -> sitk.Image:
    """The voxels of ``box``, at their place in space."""
    return image[tuple(reversed(box))]


def paste(mask: np.ndarray, box: Box, lps_image: sitk.Image, reference: sitk.Image) -> sitk.Image:
    """``mask`` of ``box``, else empty, on the grid of ``reference``, which turned to LPS is ``lps_image``."""
    whole = np.zeros(lps_image.GetSize()[::-1], mask.dtype)
    whole[box] = mask
    result = sitk.GetImageFromArray(whole)
    result.CopyInformation(lps_image)
    return from_lps(result, reference)


# ---- boxes


def box_around(masks: np.ndarray | Sequence[np.ndarray], image: sitk.Image, settings: CoarseToFineSettings) -> Box:
    """Box, in voxels of the LPS ``image``, around the foreground of masks of any sizes that cover the same space.

    Without foreground the central box of ``settings.fallback_box_mm``.
    """
    shape, spacing_mm = image.GetSize()[::-1], image.GetSpacing()[::-1]
    box = foreground_box(masks, shape, settings.box_scale)
    return box if box is not None else central_box(shape, spacing_mm, settings.fallback_box_mm)


def foreground_box(masks: np.ndarray | Sequence[np.ndarray], shape: Sequence[int], scale: float = 1.1) -> Box | None:
    """Box in a volume of ``shape`` around the foreground of one or several masks, enlarged ``scale`` times about its
    centre.

    Each mask covers the same space with its own number of voxels. The box ends at the volume's faces and holds every
    voxel that it touches, so at least one per axis. None if all masks are empty.
    """
    found = [_extent(i) for i in ([masks] if isinstance(masks, np.ndarray) else masks) if i.any()]
    if not found:
        return None
    bounds = []
    for sides in zip(*found):
        low, high = min(i for i, _ in sides), max(i for _, i in sides)
        centre, half = (low + high) / 2, scale * (high - low) / 2
        bounds.append((centre - half, centre + half))
    return _voxels(bounds, shape)


def _extent(mask: np.ndarray) -> list:
    """Per axis where the foreground begins and ends, as fractions of the volume."""
    bounds = []
    for axis, size in enumerate(mask.shape):
        occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        bounds.append((occupied[0] / size, (occupied[-1] + 1) / size))
    return bounds


def central_box(shape: Sequence[int], spacing_mm: Sequence[float], size_mm: Sequence[float]) -> Box:
    """Box of ``size_mm`` about the centre of a volume, as far as the volume reaches. All (z, y, x)."""
    halves = [size / (voxels * spacing) / 2 for size, voxels, spacing in zip(size_mm, shape, spacing_mm)]
    return _voxels([(0.5 - i, 0.5 + i) for i in halves], shape)


def _voxels(bounds: Sequence[tuple[float, float]], shape: Sequence[int]) -> Box:
    """Slices of the voxels touched by ``bounds``, which are fractions of the volume's extent."""
    slack = 1e-6  # of a voxel: a bound that is a face but for rounding touches nothing beyond it
    z, y, x = (
        slice(max(0, int(np.floor(low * size + slack))), min(size, int(np.ceil(high * size - slack))))
        for (low, high), size in zip(bounds, shape)
    )
    return z, y, x


def _size_of(box: Box) -> tuple[int, ...]:
    return tuple(i.stop - i.start for i in box)


# ---- prediction


def standardise(volume: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1: any other modality than CT."""
    return clip_and_standardise(volume, -np.inf, np.inf)


def clip_and_standardise(volume: np.ndarray, low: float = -300.0, high: float = 300.0) -> np.ndarray:
    """The paper's CT normalisation: clip to [low, high] Hounsfield units, then mean 0 and standard deviation 1."""
    clipped = np.clip(volume, low, high)
    return (clipped - clipped.mean()) / max(float(clipped.std()), 1e-8)


def sliding_window(volume: torch.Tensor, network: Network, patch_size: Sequence[int], overlap: float = 0.5) -> torch.Tensor:
    """Probabilities ``(classes, z, y, x)`` of ``volume`` ``(channels, z, y, x)``.

    A voxel gets the mean of all windows that see it, weighted by nnU-Net's Gaussian; nnU-Net places the windows.
    """
    patch_size = tuple(patch_size)
    weight = compute_gaussian(patch_size, dtype=torch.float32, device=volume.device)
    starts = compute_steps_for_sliding_window(tuple(volume.shape[1:]), patch_size, 1 - overlap)
    total, weights = None, torch.zeros(volume.shape[1:], device=volume.device)
    with torch.inference_mode():
        for corner in itertools.product(*starts):
            window = tuple(slice(i, i + j) for i, j in zip(corner, patch_size))
            probabilities = network(volume[(None, slice(None), *window)])[0].float().softmax(0)
            if total is None:
                total = probabilities.new_zeros((len(probabilities), *volume.shape[1:]))
            total[(slice(None), *window)] += probabilities * weight
            weights[window] += weight
    assert total is not None  # there is a window at least
    return total / weights


def upsampled_argmax(probabilities: torch.Tensor, size_zyx: Sequence[int]) -> torch.Tensor:
    """Most probable class ``(z, y, x)`` after trilinear resampling of ``probabilities`` (classes, *S) to ``size_zyx``.

    The probabilities of a voxel sum to 1. The lowest class wins ties. Class after class, each only where it can win, so
    that little more than two volumes of the new size are held at once.
    """
    axes = [_linear_weights(old, new).to(probabilities) for old, new in zip(probabilities.shape[1:], size_zyx)]
    best = _resampled(probabilities[0], axes)
    dtype = torch.uint8 if len(probabilities) <= 256 else torch.int16
    winner = torch.zeros(tuple(size_zyx), dtype=dtype, device=probabilities.device)
    # the winner holds at least 1 / classes; a resampled value is a mean of its neighbours, so one of them holds as much
    enough = 0.999 / len(probabilities)
    for value in range(1, len(probabilities)):
        box = _reach(probabilities[value] >= enough, axes)
        if box is not None:
            resampled = _resampled(probabilities[value], [weights[part] for weights, part in zip(axes, box)])
            winner[box].masked_fill_(resampled > best[box], value)
            torch.maximum(best[box], resampled, out=best[box])
    return winner


def _linear_weights(old: int, new: int) -> torch.Tensor:
    """Matrix ``(new, old)`` that resamples an axis linearly: outer faces coincide, edge values go on beyond."""
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    lower = position.long()
    upper, share = (lower + 1).clamp(max=old - 1), position - lower
    weights = torch.zeros(new, old, dtype=torch.float64)
    weights.scatter_add_(1, lower[:, None], 1 - share[:, None])
    return weights.scatter_add_(1, upper[:, None], share[:, None])


def _resampled(volume: torch.Tensor, axes: Sequence[torch.Tensor]) -> torch.Tensor:
    # by matrices, because rows can be left out of them: torch's own interpolation always makes the whole volume
    along_z = (axes[0] @ volume.flatten(1)).unflatten(1, volume.shape[1:])
    return (axes[1] @ along_z) @ axes[2].T


def _reach(mask: torch.Tensor, axes: Sequence[torch.Tensor]) -> Box | None:
    """Box of the resampled voxels to which any voxel of ``mask`` contributes; None if there is none."""
    box = []
    for axis, weights in enumerate(axes):
        occupied = mask.any(dim=tuple(i for i in range(3) if i != axis))
        touched = (weights[:, occupied] > 0).any(dim=1).nonzero().flatten().tolist()
        if not touched:
            return None
        box.append(slice(touched[0], touched[-1] + 1))
    return tuple(box)


def checked(images: Sequence[sitk.Image]) -> Sequence[sitk.Image]:
    """The channels of a case, if they are 3D and lie on one grid. Raises :class:`UserError`."""
    for image in images:
        if image.GetDimension() != 3:
            raise UserError(f"coarse to fine needs 3D images, found {image.GetDimension()} dimensions.")
        difference = Geometry.of(image).difference(Geometry.of(images[0]))
        if difference:
            raise UserError(f"coarse to fine: the channels of a case must lie on one grid, but differ: {difference}.")
    return images


def resampled_volume(channels: Sequence[sitk.Image], size_zyx: Sequence[int], normalise: Normalise | None = None) -> np.ndarray:
    """What a network of a stage sees: float32 (channels, z, y, x) of ``size_zyx``, normalised after resampling."""
    volume = np.stack([sitk.GetArrayFromImage(resample_to_size(image, size_zyx)) for image in channels])
    volume = normalise(volume) if normalise else volume
    return np.ascontiguousarray(volume, np.float32)


def _volume(
    channels: Sequence[sitk.Image], size_zyx: Sequence[int], normalise: Normalise | None, device: torch.device
) -> torch.Tensor:
    return torch.from_numpy(resampled_volume(channels, size_zyx, normalise)).to(device)


def _labels(mask: torch.Tensor, num_classes: int) -> np.ndarray:
    return mask.cpu().numpy().astype(np.uint8 if num_classes <= 256 else np.uint16)
