"""The phantoms are deterministic, anatomically plausible, and as quirky as the downloads they imitate."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nnunet_partial.demo import phantoms

SMALL = {name: phantoms.coarser(style, 2) for name, style in phantoms.STYLES.items()}


@pytest.fixture
def small_styles(monkeypatch):
    monkeypatch.setattr(phantoms, "STYLES", SMALL)


def tree_hash(folder: Path) -> dict:
    return {
        str(i.relative_to(folder)): hashlib.sha256(i.read_bytes()).hexdigest() for i in sorted(folder.rglob("*")) if i.is_file()
    }


@pytest.mark.parametrize("make", [phantoms.make_lits, phantoms.make_kits, phantoms.make_nih, phantoms.make_test_set])
def test_same_seed_same_files_other_seed_other_files(make, tmp_path, small_styles):
    first, second, other = (make(tmp_path / str(i), num_cases=2, seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert tree_hash(first) == tree_hash(second)
    assert tree_hash(first) != tree_hash(other)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("style", phantoms.STYLES.values(), ids=phantoms.STYLES)
def test_anatomy(seed, style):
    patient = phantoms.make_patient(seed, style)
    voxel_ml = np.prod(patient.spacing_mm) / 1000
    volume_ml = {i: (patient.organs == i).sum() * voxel_ml for i in range(1, 6)}
    assert 450 < volume_ml[phantoms.LIVER] < 2200
    assert 90 < volume_ml[phantoms.KIDNEY] < 420
    assert 25 < volume_ml[phantoms.PANCREAS] < 200
    middle_x = (patient.ct.shape[2] - 1) / 2
    assert np.argwhere(np.isin(patient.organs, (1, 2)))[:, 2].mean() < middle_x, "the liver lies on the right, at low x"
    kidney_x = np.argwhere(patient.organs == phantoms.KIDNEY)[:, 2]
    assert kidney_x.min() < middle_x - 4 and kidney_x.max() > middle_x + 4, "one kidney on each side"


def test_grey_values_of_organs_and_neighbours_overlap():
    patient = phantoms.make_patient(1)
    pancreas = patient.ct[patient.organs == phantoms.PANCREAS]
    low, high = np.percentile(pancreas, (10, 90))
    others = patient.ct[(patient.organs == 0) & (patient.ct > low) & (patient.ct < high)]
    assert len(others) > 2 * len(pancreas)


def test_lits_layout(tmp_path, small_styles):
    folder = phantoms.make_lits(tmp_path, num_cases=3)
    assert sorted(i.name for i in folder.iterdir()) == sorted(
        f"{k}-{n}.nii" for k in ("volume", "segmentation") for n in range(3)
    )
    orientations = {"".join(nibabel.aff2axcodes(nibabel.load(folder / f"volume-{n}.nii").affine)) for n in range(3)}
    assert len(orientations) == 3
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "segmentation-0.nii"))))) <= {0, 1, 2}


def test_kits_layout(tmp_path, small_styles):
    case = phantoms.make_kits(tmp_path, num_cases=1) / "case_00000"
    image, label = nibabel.load(case / "imaging.nii.gz"), nibabel.load(case / "segmentation.nii.gz")
    affine = image.affine[:3, :3]
    assert np.allclose(image.affine, label.affine)
    assert np.array_equal(affine != 0, np.fliplr(np.eye(3)) != 0) and (affine[affine != 0] < 0).all()
    patient = phantoms.make_patient(phantoms._seed(0, "kits", 0), SMALL["kits"])
    assert image.shape == (patient.ct.shape[0], *patient.ct.shape[1:])
    assert np.array_equal(np.asarray(image.dataobj), patient.ct[::-1])


def test_nih_layout(tmp_path, small_styles):
    phantoms.make_nih(tmp_path, num_cases=1)
    patient = phantoms.make_patient(phantoms._seed(0, "nih", 1), SMALL["nih"])
    files = sorted((tmp_path / "Pancreas-CT" / "PANCREAS_0001").rglob("*.dcm"))
    slices = [pydicom.dcmread(i) for i in files]
    heights = [float(i.ImagePositionPatient[2]) for i in slices]
    assert heights == sorted(heights, reverse=True), "file names count from the head down"
    top = slices[0].pixel_array * float(slices[0].RescaleSlope) + float(slices[0].RescaleIntercept)
    assert np.array_equal(top, patient.ct[-1])
    label = nibabel.load(tmp_path / "TCIA_pancreas_labels-02-05-2017" / "label0001.nii.gz")
    assert np.array_equal(np.asarray(label.dataobj).transpose(2, 1, 0) > 0, patient.organs == phantoms.PANCREAS)
    assert nibabel.aff2axcodes(label.affine) == ("L", "A", "S"), "the header mirrors rows, which run towards the back"


def test_test_set_is_fully_labelled(tmp_path, small_styles):
    folder = phantoms.make_test_set(tmp_path, num_cases=3)
    for number in range(3):
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTs" / f"test_{number:03d}.nii.gz")))
        assert set(np.unique(label)) == {0, 1, 2, 3}
        assert (folder / "imagesTs" / f"test_{number:03d}_0000.nii.gz").is_file()
