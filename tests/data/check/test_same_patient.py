"""Cases that show one patient though no voxel is where it was."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.check.inspection import inspect
from nnunet_partial.data.check.same_patient import spread_mm, suspected

ORGANS = ("liver", "spleen", "stomach", "pancreas")
SHAPE_ZYX, SPACING_ZYX = (24, 30, 60), (3.0, 2.0, 2.0)


def label_map(seed):
    """Four ellipsoids (z, y, x) of random sizes."""
    rng = np.random.default_rng(seed)
    label, places = np.zeros(SHAPE_ZYX, np.uint8), np.indices(SHAPE_ZYX)
    for number in range(len(ORGANS)):
        centre = np.array([12, 15, 14 + 9 * number]) + rng.uniform(-1, 1, 3)
        radii = rng.uniform((5, 5, 3), (9, 10, 4.4))
        label[sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii)) < 1] = number + 1
    return label


def sheared_and_mirrored(label):
    """Every slice is shifted by half a voxel more to the left than the one below, and right and left are exchanged."""
    return np.stack([np.roll(i, (z - 12) // 2, axis=1) for z, i in enumerate(label)])[:, :, ::-1]


@pytest.fixture
def raw_dataset(tmp_path):
    """``raw_dataset({case: (label, entry)})`` writes an MR dataset; -> its folder."""

    def write(cases, organs=ORGANS):
        for case, (label, _) in cases.items():
            noise = np.random.default_rng(len(list(tmp_path.rglob("*.nii.gz")))).normal(0, 5, label.shape).astype(np.float32)
            for folder, array, end in (("imagesTr", label * 50 + noise, "_0000"), ("labelsTr", label, "")):
                (tmp_path / folder).mkdir(exist_ok=True)
                image = sitk.GetImageFromArray(array)
                image.SetSpacing(SPACING_ZYX[::-1])
                sitk.WriteImage(image, str(tmp_path / folder / f"{case}{end}.nii.gz"))
        labels = {"background": 0, **{name: i + 1 for i, name in enumerate(ORGANS)}}
        entries = {case: {"source": "s", "annotated": list(organs), **entry} for case, (_, entry) in cases.items()}
        content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
        content["nnunet_partial"] = {"version": 1, "cases": entries}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return tmp_path

    return write


def findings(folder):
    return [i for i in inspect(folder, processes=1).findings if i.kind == "patient"]


def test_spread_is_that_of_the_covariance_and_no_shear_or_mirror_changes_it():
    label = label_map(0)
    for value in range(1, 5):
        positions = np.argwhere(label == value) * np.array(SPACING_ZYX)
        expected = np.linalg.det(np.cov(positions.T, bias=True)) ** (1 / 6)
        assert spread_mm(label == value, SPACING_ZYX) == pytest.approx(expected, rel=1e-10)
        assert spread_mm(sheared_and_mirrored(label) == value, SPACING_ZYX) == pytest.approx(expected, rel=0.01)


def test_what_is_small_or_flat_has_no_spread():
    mask = np.zeros(SHAPE_ZYX, bool)
    mask[3, :20, :20] = True
    assert spread_mm(mask, SPACING_ZYX) is None
    mask[:] = False
    mask[2:5, 2:5, 2:5] = True
    assert spread_mm(mask, SPACING_ZYX) is None


def test_a_mirrored_and_sheared_copy_is_suspected(raw_dataset):
    cases = {f"c{i}": (label_map(i), {}) for i in range(5)} | {"copy": (sheared_and_mirrored(label_map(3)), {})}
    (found,) = findings(raw_dataset(cases))
    assert (found.level, found.case) == ("warning", "copy")
    assert found.text.startswith("liver, spleen, stomach, pancreas have the volumes and spreads that they have in c3:")
    assert "--patients FILE" in found.remedy and "--exclude" not in found.remedy
    assert "nnunet_partial check" in found.remedy and "--accept patient:copy" in found.remedy


def test_an_exact_copy_is_a_duplicate_and_told_once(raw_dataset):
    folder = raw_dataset({"a": (label_map(0), {}), "b": (label_map(0), {})})
    (folder / "imagesTr" / "b_0000.nii.gz").write_bytes((folder / "imagesTr" / "a_0000.nii.gz").read_bytes())
    kinds = [(i.kind, i.case) for i in inspect(folder, processes=1).findings if i.kind in ("patient", "duplicate")]
    assert kinds == [("duplicate", "b")]


def test_patients_that_are_known_are_not_suspected(raw_dataset):
    same = {"patient": "anna"}
    assert findings(raw_dataset({"a": (label_map(0), same), "b": (sheared_and_mirrored(label_map(0)), same)})) == []


def test_organs_that_a_case_does_not_annotate_do_not_count(raw_dataset):
    cases = {"a": (label_map(0), {}), "b": (sheared_and_mirrored(label_map(0)), {})}
    assert findings(raw_dataset(cases, organs=ORGANS[:2])) == []
    assert len(findings(raw_dataset(cases, organs=ORGANS[:3]))) == 1


def test_of_many_organs_a_third_must_agree():
    """Of a hundred organs, three agree by chance."""
    rng = np.random.default_rng(0)
    one = {f"organ{i}": (float(v), float(s)) for i, (v, s) in enumerate(rng.uniform(1, 100, (30, 2)))}
    for agree, expected in ((3, 0), (9, 0), (10, 1)):
        other = {k: i if n < agree else (2 * i[0], i[1]) for n, (k, i) in enumerate(one.items())}
        assert len(list(suspected({"a": one, "b": other}, {}))) == expected, agree


def test_every_case_is_named_once_with_the_first_that_it_repeats():
    one = {i: (100.0 + 10 * n, 20.0 + n) for n, i in enumerate(ORGANS)}
    found = list(suspected({"a": one, "b": one, "c": one, "none": {}}, {"a": "p", "c": "q"}))
    assert found == [("b", "a", list(ORGANS)), ("c", "b", list(ORGANS))]
    assert list(suspected({}, {})) == []
