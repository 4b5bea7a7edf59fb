"""LiTS, KiTS and NIH phantoms: what comes out lies on the patient, in world coordinates."""

import nibabel
import numpy as np
import pytest

from nnunet_partial.demo import phantoms

CASES = {
    "lits": (phantoms.make_lits, "lits_{:03d}", (0, 1, 2), (phantoms.LIVER, phantoms.LIVER_TUMOUR)),
    "kits": (phantoms.make_kits, "case_{:05d}", (0, 1), (phantoms.KIDNEY, phantoms.KIDNEY_TUMOUR)),
    "nih": (phantoms.make_nih, "pancreas_{:04d}", (1, 2), (phantoms.PANCREAS,)),
}


@pytest.mark.parametrize("source", CASES)
def test_every_voxel_is_where_the_patient_has_it(source, tmp_path, tiny_styles, run):
    make, name, numbers, organ = CASES[source]
    make(tmp_path / "src", num_cases=len(numbers), seed=5)
    report = run(source, tmp_path / "src")
    assert not report.skipped and len(report.converted) == len(numbers)
    for number in numbers:
        patient = phantoms.make_patient(phantoms._seed(5, source, number), tiny_styles[source])
        entry = report.converted[name.format(number)]
        ct, label = (sample(report.folder / file, patient) for file in (entry.images[0], entry.label))
        assert np.array_equal(ct, patient.ct)
        assert np.array_equal(label, np.isin(patient.organs, organ))


def sample(file, patient) -> np.ndarray:
    """Values of a NIfTI file at the voxel centres of the patient, looked up through the file's affine alone."""
    image = nibabel.load(file)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in patient.ct.shape[::-1]], indexing="ij"), -1)
    lps = grid * patient.spacing_mm + patient.origin_mm
    ras = lps * (-1, -1, 1)
    voxels = nibabel.affines.apply_affine(np.linalg.inv(image.affine), ras)
    assert np.abs(voxels - np.rint(voxels)).max() < 1e-2, "the voxel centres of the file are those of the patient"
    i, j, k = np.rint(voxels).astype(int).reshape(-1, 3).T
    return np.asarray(image.dataobj)[i, j, k].reshape(patient.ct.shape[::-1]).transpose(2, 1, 0)
