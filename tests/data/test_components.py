"""Which classes are one piece in the manual labels, and what keeping the largest piece does."""

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import components
from nnunet_partial.labels import Annotations, CaseAnnotation

CLASSES = ("liver", "kidney", "spleen", "lesion")


def labels(*blocks, shape=(12, 12, 12)):
    result = np.zeros(shape, np.uint8)
    for value, box in blocks:
        result[box] = value
    return result


LIVER, LEFT, RIGHT = np.s_[1:9, 1:5, 1:5], np.s_[1:5, 7:10, 0:3], np.s_[1:5, 7:10, 8:11]


def test_shares_of_the_largest_pieces():
    mask = labels((1, LIVER), (2, LEFT), (2, RIGHT))
    mask[11, 11, 11] = 1
    assert components.pieces(mask) == {1: 128 / 129, 2: 0.5}
    assert components.pieces(np.zeros((2, 2, 2), np.uint8)) == {}


def test_only_the_named_classes_lose_their_smaller_pieces():
    mask = labels((1, LIVER), (2, LEFT), (2, RIGHT))
    mask[11, 11, 11] = 1
    mask[10, 0, 0] = 2
    kept = components.largest_components(mask, [1])
    assert kept[11, 11, 11] == 0 and np.array_equal(kept == 2, mask == 2) and (kept == 1).sum() == 128
    assert kept.dtype == mask.dtype and mask[11, 11, 11] == 1
    assert components.largest_components(mask, []) is mask and components.largest_components(mask, [4]) is mask
    assert (components.largest_components(mask) == 2).sum() == 36  # every class: one kidney is gone


def write(folder, case, mask):
    file = folder / f"{case}.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(file))
    return file


def test_the_manual_labels_decide(tmp_path):
    """The liver is one piece but for stray voxels, kidneys are two, the spleen is shown nowhere, lesions are many once in
    four cases; and what a case does not annotate by itself says nothing."""
    cases, files = {}, {}
    for i in range(4):
        mask = labels((1, LIVER), (2, LEFT), (2, RIGHT), (4, np.s_[9:11, 0:2, 0:2]))
        mask[11, 11, 11] = 1
        if i == 0:
            mask[11, 0, 6:8] = 4
        files[f"a{i}"], cases[f"a{i}"] = write(tmp_path, f"a{i}", mask), CaseAnnotation("a", CLASSES)
    # its liver file value belongs to a class that it does not annotate; an unlabelled case is never opened
    files["b"], cases["b"] = write(tmp_path, "b", labels((1, LEFT), (1, RIGHT))), CaseAnnotation("b", ("spleen",))
    files["c"], cases["c"] = tmp_path / "does_not_exist.nii.gz", CaseAnnotation("c", ())
    annotations = Annotations(CLASSES, cases)
    assert components.one_piece_classes(annotations, files, progress=False) == ("liver",)


def test_one_odd_case_in_twenty_does_not_decide(tmp_path):
    files = {f"n{i}": write(tmp_path, f"n{i}", labels((1, LIVER))) for i in range(19)}
    files["odd"] = write(tmp_path, "odd", labels((1, LEFT), (1, RIGHT)))
    assert components.one_piece_classes(Annotations(("liver",)), files, progress=False) == ("liver",)
    del files["n0"]
    assert components.one_piece_classes(Annotations(("liver",)), files, progress=False) == ()
