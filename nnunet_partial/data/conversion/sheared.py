"""Images whose axes are not at right angles to each other, resampled onto a grid whose axes are.

About one in ten scans of some collections has a sheared affine (a tilted gantry, a registration), which ITK, and so
nnU-Net's standard reader, refuses. Image and label get the same new grid if they share the old one: the right-handed or
left-handed set of orthogonal axes nearest to the sheared ones (polar decomposition), the voxel size of the old axes, and an
extent that holds every voxel of the old grid.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_partial.data import images
from nnunet_partial.data.conversion.voxels import is_nifti, nifti_image
from nnunet_partial.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

NOTE = "sheared: resampled onto a grid with right angles, grey values linearly, label values from the nearest voxel"


def is_sheared(path: Path) -> bool:
    """Whether ITK refuses the axes of this NIfTI file."""
    if not is_nifti(path):
        return False
    try:
        images.read_geometry(path)
    except images.ShearedError:
        return True
    except UserError:
        return False  # told when the file is read
    return False


def straightened(case, folder: Path):
    """The case with its sheared files replaced by resampled ones in ``folder``, and a note; as it is if there are none."""
    if not any(is_sheared(path) for path in case.files):
        return case
    new = [replace(i, path=_straight(i.path, folder, order=1)) if hasattr(i, "path") else i for i in case.images]
    label = case.label
    if hasattr(label, "masks"):
        label = replace(label, masks=tuple((value, _straight(path, folder, order=0)) for value, path in label.masks))
    elif label is not None:
        label = replace(label, path=_straight(label.path, folder, order=0))
    return replace(case, images=tuple(new), label=label, notes=(*case.notes, NOTE))


def _straight(path: Path, folder: Path, order: int) -> Path:
    import nibabel
    from nibabel.processing import resample_from_to

    if not is_sheared(path):
        return path
    for _ in images._voxels(str(path)):  # nibabel would fill what is missing of a truncated file
        pass
    image = nifti_image(path)
    if image.ndim != 3:
        raise UserError(f"{path} has sheared axes and {image.ndim} dimensions; only volumes are resampled")
    affine = np.asarray(image.affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path} has axes that span no volume. Mend the affine in its header")
    voxels = np.asanyarray(image.dataobj)
    plain = nibabel.Nifti1Image(voxels.astype(np.float32) if order else voxels, affine)
    result = resample_from_to(plain, right_angled_grid(image.shape, affine), order, "constant", float(voxels.min()))
    target = folder / f"{len(list(folder.iterdir()))}_{path.name}"
    resampled = np.asanyarray(result.dataobj)
    if voxels.dtype.kind in "iu":
        resampled = np.rint(resampled).astype(voxels.dtype)
    images.write_image(_as_image(resampled, np.asarray(result.affine)), target)
    return target


def _as_image(voxels: np.ndarray, affine: np.ndarray) -> "sitk.Image":
    """Voxels (x, y, z) and the affine of NIfTI, whose world has right and front where SimpleITK's has left and back."""
    import SimpleITK as sitk

    world = np.diag((-1.0, -1.0, 1.0)) @ affine[:3]
    spacing = np.linalg.norm(world[:, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(world[:, 3].tolist())
    image.SetDirection((world[:, :3] / spacing).ravel().tolist())
    return image


def right_angled_grid(shape: tuple, affine: np.ndarray) -> tuple:
    """``(shape, affine)`` of the grid with right angles that stands for a sheared one."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    axes = left @ right * spacing
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in shape]))).T
    reached = np.linalg.inv(axes) @ affine[:3, :3] @ corners
    low, high = np.floor(reached.min(axis=1) + 1e-3), np.ceil(reached.max(axis=1) - 1e-3)
    grid = np.eye(4)
    grid[:3, :3] = axes
    grid[:3, 3] = affine[:3, 3] + axes @ low
    return tuple(int(i) for i in high - low + 1), grid
