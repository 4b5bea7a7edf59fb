"""Labels that do not lie on their organs: mirrored, shifted, of another scan."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.check import placement
from nnunet_partial.data.check.inspection import slice_jumps

VALUES = {"liver": 1, "tumor": 2, "spleen": 3}
SHAPE_ZYX = (24, 28, 30)


def scan(seed=0):
    """CT (z, y, x) in HU and label: three boxes of tissue off the centre in every direction, in fat with muscle in it."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE_ZYX, np.uint8)
    label[13:21, 4:14, 3:14], label[15:17, 6:8, 4:6], label[14:18, 15:21, 22:27] = 1, 2, 3
    hu = np.where(rng.random(SHAPE_ZYX) < 0.3, 55, -100) + rng.normal(0, 15, SHAPE_ZYX)
    for value, mean in ((1, 110), (2, 40), (3, 130)):
        hu[label == value] = mean + rng.normal(0, 15, np.count_nonzero(label == value))
    return hu.astype(np.int16), label


def test_share_is_that_of_voxels_within_60_hu_of_the_median():
    hu, label = scan()
    found = placement.evenness(hu, label, {**VALUES, "kidney": 4})
    assert list(found) == ["liver", "tumor", "spleen"]
    for name, value in VALUES.items():
        for number, axes in enumerate(placement.MIRRORS):
            own = hu[np.flip(label == value, axes)].astype(np.float64)
            middle = np.median(own)
            expected = np.mean(np.abs(own - middle) <= 60) if middle > -200 else 0
            assert found[name].shares[number] == pytest.approx(expected)


@pytest.mark.parametrize("mirror", placement.MIRRORS)
def test_mirrored_label_is_told_with_its_direction(mirror):
    hu, label = scan()
    words = " and ".join(("head to feet", "front to back", "left to right")[i] for i in mirror)
    assert placement.mirrored(placement.evenness(hu, np.flip(label, mirror).copy(), VALUES)) == (words or None)


def even(*shares, soft=True):
    return placement.Evenness(shares if len(shares) == 8 else (shares[0], *[shares[1]] * 7), soft)


def test_structure_that_mirrored_leaves_its_tissue_decides():
    """A tumour that, mirrored, lands in the liver is uniform there too; a liver that gains while the spleen loses is no proof."""
    assert placement.mirrored({"liver": even(0.5, 0.9), "tumor": even(1.0, 1.0)}) is not None
    assert placement.mirrored({"liver": even(0.5, 0.9), "spleen": even(0.9, 0.5)}) is None
    assert placement.mirrored({}) is None


def test_bone_and_air_are_not_expected_to_be_even():
    """Mirrored into muscle, a rib and a lung would be more uniform than in place."""
    hu, label = scan()
    rng = np.random.default_rng(0)
    hu[label == 1] = rng.uniform(50, 600, np.count_nonzero(label == 1))
    hu[label == 3] = rng.uniform(-950, -700, np.count_nonzero(label == 3))
    found = placement.evenness(hu, label, VALUES)
    assert not found["liver"].soft and not found["spleen"].soft and not found["tumor"].soft  # eight voxels of it
    assert placement.mirrored({"rib": even(0.5, 0.98, soft=False)}) is None


def test_label_of_another_place_beside_the_usual():
    cases = {f"c{i}": placement.evenness(*scan(i), VALUES) for i in range(7)}
    assert list(placement.misplaced(cases)) == []
    hu, label = scan(9)
    cases["bad"] = placement.evenness(hu, np.roll(label, (5, 6, -7), (0, 1, 2)), VALUES)
    assert [i[0] for i in placement.misplaced(cases)] == ["bad"]


def test_organ_that_is_rough_everywhere_is_not_suspected():
    rng = np.random.default_rng(0)
    cases = {f"c{i}": {"stomach": even(share, share)} for i, share in enumerate(rng.uniform(0.4, 0.85, 40))}
    assert list(placement.misplaced(cases)) == []


@pytest.fixture
def real():
    """A real abdominal CT and its segmentation by TotalSegmentator, along LPS."""
    if not os.environ.get("NNUNET_PARTIAL_DATA"):
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "ct"
    images = [sitk.ReadImage(str(folder / i)) for i in ("example_ct_sm.nii.gz", "example_seg_fast.nii.gz")]
    hu, label = (sitk.GetArrayFromImage(sitk.DICOMOrient(i, "LPS")) for i in images)
    return hu, label.astype(np.uint8)


def test_real_scan_has_no_jumps(real):
    hu = real[0].astype(np.int32)
    assert slice_jumps(hu) == ()
    hu[len(hu) // 2 :] += 1024
    assert [i[0] for i in slice_jumps(hu)] == [len(hu) // 2 - 1]


def test_real_organs_bones_and_lungs_are_not_suspected_alone_or_together_but_found_mirrored(real):
    hu, label = real
    values = {str(i): int(i) for i in np.unique(label) if i}
    found = placement.evenness(hu, label, values)
    assert placement.mirrored(found) is None
    assert [name for name, own in found.items() if placement.mirrored({name: own})] == []
    organs = {str(i): i for i in range(1, 8)}  # spleen, kidneys, gallbladder, liver, stomach, pancreas
    for axis, words in enumerate(("head to feet", "front to back", "left to right")):
        assert placement.mirrored(placement.evenness(hu, np.flip(label, axis).copy(), organs)) == words
