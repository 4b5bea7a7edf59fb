"""One scan is recognised however it is stored; two scans are not taken for one."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.fingerprint import connected, fingerprint

SHAPE_ZYX = (30, 14, 14)


@pytest.fixture
def prints(tmp_path):
    """``prints(image, image, ..., is_ct=True)`` -> the fingerprint of each, stored in a file of its own."""

    def of(*stored, is_ct=True):
        found = []
        for n, image in enumerate(stored):
            file = tmp_path / f"{n}{'.nii.gz' if n % 2 else '.mha'}"
            sitk.WriteImage(image, str(file), True)
            found.append(fingerprint([str(file)], is_ct))
        return found

    return of


def scan(seed=0):
    hu = np.random.default_rng(seed).integers(-1000, 1000, SHAPE_ZYX).astype(np.int16)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((1.0, 2.0, 3.0))
    return image


def test_type_file_and_order_of_axes_do_not_matter(prints):
    image = scan()
    a, b, c, d = prints(image, sitk.Cast(image, sitk.sitkFloat64), sitk.DICOMOrient(image, "RSA"), sitk.DICOMOrient(image, "IPR"))
    assert a == b == c == d


def test_mirrored_and_clipped_copies_share_a_key_and_others_none(prints):
    image = scan()
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1])
    clipped, narrow = sitk.Clamp(image, sitk.sitkInt16, -500, 300), sitk.Clamp(image, sitk.sitkInt16, -100, 100)
    a, b, c, d, other = prints(image, mirrored, clipped, narrow, scan(1))
    assert set(a.keys) & set(b.keys) == {("bag", a.bag)}
    assert set(a.keys) & set(c.keys) == {("tissue", a.tissue)}
    assert not set(a.keys) & set(d.keys), "a window narrower than soft tissue leaves too little to tell"
    assert not set(a.keys) & set(other.keys)


def test_clipping_is_looked_for_in_ct_with_soft_tissue_alone(prints):
    bright = [sitk.Add(sitk.Cast(scan(i), sitk.sitkInt16), 5000) for i in (0, 1)]
    a, b = prints(*bright)
    assert a.tissue == b.tissue == "" and not set(a.keys) & set(b.keys)
    assert prints(scan(), is_ct=False)[0].tissue == ""


def test_channels_belong_together(tmp_path):
    for n in range(3):
        sitk.WriteImage(scan(n), str(tmp_path / f"{n}.mha"))
    first, same, other = (fingerprint([str(tmp_path / f"{n}.mha") for n in i]) for i in ((0, 1), (0, 1), (0, 2)))
    assert first == same and first.content != other.content


def test_groups_that_share_keys_directly_or_through_others():
    keys = {"a": [1], "b": [2], "c": [3, 1], "d": [4], "e": [4, 3], "f": []}
    assert connected(keys) == [["a", "c", "d", "e"], ["b"], ["f"]]
    assert connected({}) == []
