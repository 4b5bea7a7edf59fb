"""Metrics against numbers derived in sight and against independent computations: scipy, SimpleITK, surface-distance."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from nnunet_partial.evaluation import metrics
from nnunet_partial.evaluation.metrics import (
    METRICS,
    MaskPair,
    all_metrics,
    average_surface_distance,
    dice,
    hausdorff95,
    hausdorff_mean,
    iou,
    surface_dice,
    volume_difference_ml,
    volume_difference_percent,
)

# the reference library reaches scipy under old names
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")

SPACING_MM = (5.0, 1.0, 2.0)  # (z, y, x)
DISTANCES = (hausdorff_mean, hausdorff95, average_surface_distance)


def mask(shape, *boxes):
    """A mask with boxes, each given as one slice an axis."""
    result = np.zeros(shape, bool)
    for box in boxes:
        result[box] = True
    return result


def voxel(shape, *index):
    return mask(shape, tuple(slice(i, i + 1) for i in index))


def random_masks(seed, shape, smoothness=1.5):
    """Two masks with holes and separate parts."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, *(smoothness,) * len(shape)))
    field[1] = 0.6 * field[0] + 0.4 * field[1]
    return field[0] > 0.02, field[1] > 0.03


def brute_force_hausdorff_mean(pred, truth, spacing_mm):
    points = [np.argwhere(i) * spacing_mm for i in (pred, truth)]
    return (directed_hausdorff(*points)[0] + directed_hausdorff(*points[::-1])[0]) / 2


def test_dice_counts_voxels():
    truth = mask((4, 4, 4), np.s_[0:2, 0:2, 0:2])  # 8 voxels
    pred = mask((4, 4, 4), np.s_[1:3, 0:2, 0:3])  # 12 voxels, of which 1 * 2 * 2 = 4 are in the truth
    assert dice(pred, truth, SPACING_MM) == pytest.approx(2 * 4 / (12 + 8))
    assert dice(pred, truth) == dice(pred, truth, SPACING_MM) == dice(truth, pred, SPACING_MM)


def test_hausdorff_of_a_shifted_box_is_the_length_of_the_shift():
    truth = mask((9, 9, 9), np.s_[2:5, 2:6, 1:4])
    pred = mask((9, 9, 9), np.s_[3:6, 2:6, 3:6])
    assert hausdorff_mean(pred, truth, SPACING_MM) == pytest.approx(math.hypot(1 * 5.0, 2 * 2.0))


def test_hausdorff_mean_averages_both_directions():
    truth = voxel((3, 3, 8), 1, 1, 1)
    pred = mask((3, 3, 8), np.s_[1:2, 1:2, 1:5])
    # farthest predicted voxel: 3 voxels of 2 mm along x; the true voxel itself is predicted
    assert hausdorff_mean(pred, truth, SPACING_MM) == pytest.approx((6.0 + 0.0) / 2)


def test_hausdorff_sees_a_filled_hole():
    outer, hole = np.s_[2:13, 2:13, 2:13], np.s_[4:11, 4:11, 4:11]
    pred, truth = mask((15,) * 3, outer), mask((15,) * 3, outer)
    truth[hole] = False
    # the centre of the hole, index 7, is 4 voxels from index 3 or 11; the distance along y is the shortest in mm
    assert hausdorff_mean(pred, truth, SPACING_MM) == pytest.approx((4 * 1.0 + 0.0) / 2)


def test_surface_metrics_of_two_voxels():
    truth, pred = voxel((3, 3, 9), 1, 1, 1), voxel((3, 3, 9), 1, 1, 4)
    # along x the corners of the truth lie at 0 and 2 mm, those of the prediction at 6 and 8 mm: of each surface, half of the
    # area is 4 mm from the other one and half is 6 mm
    assert average_surface_distance(pred, truth, SPACING_MM) == pytest.approx(5.0)
    assert hausdorff95(pred, truth, SPACING_MM) == pytest.approx(6.0)
    assert surface_dice(pred, truth, SPACING_MM, 3.999) == 0
    assert surface_dice(pred, truth, SPACING_MM, 4.001) == pytest.approx(0.5)
    assert surface_dice(pred, truth, SPACING_MM, 6.001) == pytest.approx(1.0)


def test_percentile_leaves_out_a_small_spike():
    truth = mask((24, 24, 40), np.s_[2:22, 2:22, 2:22])
    pred = truth.copy()
    pred[12, 12, 22:38] = True  # a spike of one voxel, far less than 5 % of the area
    spacing_mm = (1.0, 1.0, 1.0)
    assert hausdorff95(pred, truth, spacing_mm) == 0
    assert hausdorff_mean(pred, truth, spacing_mm) == pytest.approx(16 / 2)


def test_iou_and_counts():
    """By sets of voxels; IoU is D / (2 - D) of Dice D."""
    pred, truth = random_masks(3, (8, 12, 10))
    a, b = ({tuple(i) for i in np.argwhere(j)} for j in (pred, truth))
    values = all_metrics(pred, truth, SPACING_MM)
    assert iou(pred, truth) == values["iou"] == pytest.approx(len(a & b) / len(a | b), rel=1e-15)
    assert values["iou"] == pytest.approx(values["dice"] / (2 - values["dice"]), rel=1e-12)
    assert [values[f"voxels_{i}"] for i in ("pred", "truth", "both")] == [len(a), len(b), len(a & b)]
    nothing = np.zeros_like(truth)
    assert np.isnan(iou(nothing, nothing)) and iou(nothing, truth) == iou(pred, nothing) == 0


def test_volumes():
    truth, pred = mask((6, 6, 6), np.s_[0:2, 0:5, 0:5]), mask((6, 6, 6), np.s_[0:2, 0:5, 0:4])
    voxel_ml = 5.0 * 1.0 * 2.0 / 1000
    values = all_metrics(pred, truth, SPACING_MM)
    assert values["volume_truth_ml"] == pytest.approx(50 * voxel_ml)
    assert values["volume_pred_ml"] == pytest.approx(40 * voxel_ml)
    assert values["volume_difference_ml"] == pytest.approx(-10 * voxel_ml)
    assert values["volume_difference_percent"] == pytest.approx(-20.0)


def test_equal_masks():
    truth, _ = random_masks(0, (8, 12, 10))
    values = all_metrics(truth, truth, SPACING_MM)
    assert values.pop("volume_pred_ml") == values.pop("volume_truth_ml") > 0
    assert {values.pop(f"voxels_{i}") for i in ("pred", "truth", "both")} == {np.count_nonzero(truth)}
    assert values == {
        "dice": 1,
        "iou": 1,
        "surface_dice": 1,
        "hausdorff_mean_mm": 0,
        "hausdorff95_mm": 0,
        "average_surface_distance_mm": 0,
        "volume_difference_ml": 0,
        "volume_difference_percent": 0,
    }


def test_both_masks_empty():
    empty = np.zeros((4, 5, 6), bool)
    for metric in (dice, surface_dice, volume_difference_percent, *DISTANCES):
        assert math.isnan(metric(empty, empty, SPACING_MM)), metric
    assert volume_difference_ml(empty, empty, SPACING_MM) == 0


@pytest.mark.parametrize("pred_is_empty", [True, False])
def test_one_mask_empty(pred_is_empty):
    empty, full = np.zeros((4, 5, 6), bool), mask((4, 5, 6), np.s_[1:3, 1:3, 1:3])
    pred, truth = (empty, full) if pred_is_empty else (full, empty)
    assert dice(pred, truth, SPACING_MM) == surface_dice(pred, truth, SPACING_MM) == 0
    for metric in DISTANCES:
        assert metric(pred, truth, SPACING_MM) == math.inf, metric
    sign = -1 if pred_is_empty else 1
    assert volume_difference_ml(pred, truth, SPACING_MM) == pytest.approx(sign * 8 * 10 / 1000)
    assert volume_difference_percent(pred, truth, SPACING_MM) == (-100 if pred_is_empty else math.inf)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_image_of_one_voxel_along_an_axis_is_a_plane(axis):
    pred, truth = random_masks(3, (20, 24))
    spacing_3d = (5.0, 1.0, 2.0)
    spacing_2d = tuple(s for i, s in enumerate(spacing_3d) if i != axis)
    thick = all_metrics(np.expand_dims(pred, axis), np.expand_dims(truth, axis), spacing_3d)
    flat = all_metrics(pred, truth, spacing_2d)
    for name in thick:
        if name.endswith("_ml"):
            assert np.isfinite(thick[name]) and math.isnan(flat[name])
        else:
            assert thick[name] == pytest.approx(flat[name]), name


def test_a_structure_of_one_slice_stays_in_3d():
    pred, truth = np.zeros((2, 3, 12, 12), bool)
    truth[1, 2:9, 2:9], pred[1, 2:9, 2:9] = True, True
    pred[1, 5, 5] = False  # its faces are surface already, so the hole adds none that is farther than a voxel
    reference = surface_distance.compute_surface_distances(truth, pred, SPACING_MM)
    assert surface_dice(pred, truth, SPACING_MM, 0.5) == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(reference, 0.5)
    )


def test_an_image_of_one_line():
    pred, truth = np.zeros((2, 1, 1, 9), bool)
    truth[0, 0, 1:4], pred[0, 0, 2:6] = True, True
    assert dice(pred, truth, SPACING_MM) == pytest.approx(2 * 2 / 7)
    # voxels 1..3 and 2..5 at 2 mm: voxel 5 is 4 mm from voxel 3, voxel 1 is 2 mm from voxel 2
    assert hausdorff_mean(pred, truth, SPACING_MM) == pytest.approx((4 + 2) / 2)
    assert np.isfinite(list(all_metrics(pred, truth, SPACING_MM).values())).all()


@pytest.mark.parametrize("shape,spacing_mm", [((9, 14, 11), SPACING_MM), ((6, 9, 17), (0.7, 3.0, 1.3)), ((30, 21), (0.5, 2.0))])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_brute_force_and_to_surface_distance(seed, shape, spacing_mm):
    pred, truth = random_masks(seed, shape)
    assert hausdorff_mean(pred, truth, spacing_mm) == pytest.approx(brute_force_hausdorff_mean(pred, truth, spacing_mm))
    reference = surface_distance.compute_surface_distances(truth, pred, spacing_mm)
    mine = MaskPair(pred, truth, spacing_mm).surface_distances
    for direction in ("distances_gt_to_pred", "distances_pred_to_gt"):
        np.testing.assert_allclose(mine[direction], reference[direction], rtol=1e-12)
    assert mine["surfel_areas_gt"].sum() == pytest.approx(reference["surfel_areas_gt"].sum())
    assert average_surface_distance(pred, truth, spacing_mm) == pytest.approx(
        np.mean(surface_distance.compute_average_surface_distance(reference))
    )
    assert surface_dice(pred, truth, spacing_mm, 1.0) == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(reference, 1.0)
    )
    assert hausdorff95(pred, truth, spacing_mm) == pytest.approx(surface_distance.compute_robust_hausdorff(reference, 95))


@pytest.mark.parametrize("seed", range(6))
def test_hausdorff_of_scattered_voxels(seed):
    rng = np.random.default_rng(seed)
    pred, truth = rng.random((2, 19, 13, 22)) < np.array([0.03, 0.002]).reshape(2, 1, 1, 1)
    assert hausdorff_mean(pred, truth, SPACING_MM) == pytest.approx(brute_force_hausdorff_mean(pred, truth, SPACING_MM))


def test_position_in_the_image_does_not_matter():
    pred, truth = random_masks(5, (8, 9, 10))
    moved = [np.pad(i, ((3, 0), (7, 2), (0, 11))) for i in (pred, truth)]
    assert all_metrics(*moved, SPACING_MM) == pytest.approx(all_metrics(pred, truth, SPACING_MM))


def test_any_type_of_mask_and_arguments_unchanged():
    pred, truth = random_masks(6, (8, 9, 10))
    labels, values = 7 * pred.astype(np.int64), truth.astype(np.float32)
    before = labels.copy(), values.copy()
    assert all_metrics(labels, values, SPACING_MM) == all_metrics(pred, truth, SPACING_MM)
    assert (labels == before[0]).all() and (values == before[1]).all()


def test_names_choose_metrics_and_functions_agree_with_the_table():
    pred, truth = random_masks(7, (8, 9, 10))
    assert list(all_metrics(pred, truth, SPACING_MM, names=["hausdorff95_mm", "dice"])) == ["hausdorff95_mm", "dice"]
    assert list(all_metrics(pred, truth, SPACING_MM)) == list(METRICS)
    values = all_metrics(pred, truth, SPACING_MM, tolerance_mm=1.5)
    assert values["surface_dice"] == surface_dice(pred, truth, SPACING_MM, 1.5) != surface_dice(pred, truth, SPACING_MM, 0.1)
    for name, function in (
        ("hausdorff_mean_mm", hausdorff_mean),
        ("hausdorff95_mm", hausdorff95),
        ("dice", dice),
        ("average_surface_distance_mm", average_surface_distance),
        ("volume_difference_ml", volume_difference_ml),
    ):
        assert values[name] == function(pred, truth, SPACING_MM)


def test_surfaces_are_searched_once_for_all_metrics(monkeypatch):
    calls = []
    monkeypatch.setattr(
        metrics, "_surface", lambda *arguments, original=metrics._surface: calls.append(1) or original(*arguments)
    )
    all_metrics(*random_masks(8, (8, 9, 10)), SPACING_MM)
    assert len(calls) == 2  # one for each mask


@pytest.mark.parametrize(
    "pred,truth,spacing_mm",
    [
        (np.ones((2, 2, 2)), np.ones((2, 2, 3)), (1, 1, 1)),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1, 1)),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1, 0, 1)),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1, math.nan, 1)),
        (np.ones(4), np.ones(4), (1,)),
        (np.ones((1, 2, 2, 2)), np.ones((1, 2, 2, 2)), (1, 1, 1, 1)),
    ],
)
def test_masks_and_spacing_must_fit(pred, truth, spacing_mm):
    with pytest.raises(ValueError, match="found"):
        dice(pred, truth, spacing_mm)


def acdc_pairs():
    """End-diastolic and end-systolic label of real patients: real anatomy, 10 x 1.56 x 1.56 mm, different masks."""
    folder = os.environ.get("NNUNET_PARTIAL_DATA")
    if not folder:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    for patient in sorted((Path(folder) / "ACDC" / "training").iterdir())[:4]:
        yield [sitk.ReadImage(str(i)) for i in sorted(patient.glob("*_gt.nii.gz"))]


def itk_directed_hausdorff(image, other):
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True))
    return max(0.0, float(distance[sitk.GetArrayFromImage(image) > 0].max()))


def test_real_masks_against_simpleitk_and_surface_distance():
    for images in acdc_pairs():
        spacing_mm = images[0].GetSpacing()[::-1]
        for label in (1, 2, 3):
            masks = [i == label for i in images]
            pred, truth = (sitk.GetArrayFromImage(i) > 0 for i in masks)
            there, back = itk_directed_hausdorff(*masks), itk_directed_hausdorff(*masks[::-1])
            itk = sitk.HausdorffDistanceImageFilter()
            itk.Execute(*masks)
            assert max(there, back) == pytest.approx(itk.GetHausdorffDistance(), rel=1e-5)
            assert hausdorff_mean(pred, truth, spacing_mm) == pytest.approx((there + back) / 2, rel=1e-5)
            overlap = sitk.LabelOverlapMeasuresImageFilter()
            overlap.Execute(*masks)
            assert dice(pred, truth, spacing_mm) == pytest.approx(overlap.GetDiceCoefficient())
            reference = surface_distance.compute_surface_distances(truth, pred, spacing_mm)
            assert hausdorff95(pred, truth, spacing_mm) == pytest.approx(surface_distance.compute_robust_hausdorff(reference, 95))
            assert surface_dice(pred, truth, spacing_mm, 2.0) == pytest.approx(
                surface_distance.compute_surface_dice_at_tolerance(reference, 2.0)
            )
            assert average_surface_distance(pred, truth, spacing_mm) == pytest.approx(
                np.mean(surface_distance.compute_average_surface_distance(reference))
            )


def test_real_masks_one_inside_the_other_against_simpleitk():
    for images in acdc_pairs():
        truth = images[0] == 3
        pred = sitk.BinaryDilate(truth, (3, 1, 0))
        itk = sitk.HausdorffDistanceImageFilter()
        itk.Execute(pred, truth)
        # the truth lies within the prediction, so one direction is 0 and the filter's maximum is the other one
        arrays = [sitk.GetArrayFromImage(i) for i in (pred, truth)]
        assert hausdorff_mean(*arrays, truth.GetSpacing()[::-1]) == pytest.approx(itk.GetHausdorffDistance() / 2, rel=1e-5)


def itk_image(array, spacing_mm):
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(tuple(float(i) for i in spacing_mm[::-1]))
    return image


HAND_MADE = {
    "boxes side by side": (mask((9, 14, 11), np.s_[1:4, 2:6, 1:4]), mask((9, 14, 11), np.s_[5:8, 8:13, 6:10])),
    "one inside the other": (mask((9, 14, 11), np.s_[2:4, 4:7, 3:6]), mask((9, 14, 11), np.s_[1:7, 2:11, 1:9])),
    "two parts against one": (
        mask((9, 14, 11), np.s_[1:3, 2:5, 1:4], np.s_[6:8, 9:12, 7:10]),
        mask((9, 14, 11), np.s_[1:3, 2:5, 1:4]),
    ),
    "one voxel against a box": (voxel((9, 14, 11), 8, 13, 10), mask((9, 14, 11), np.s_[1:4, 2:6, 1:4])),
    "one voxel against one": (voxel((9, 14, 11), 0, 0, 0), voxel((9, 14, 11), 5, 1, 10)),
    "the same voxel": (voxel((9, 14, 11), 4, 4, 4), voxel((9, 14, 11), 4, 4, 4)),
    "one slice against three": (mask((9, 14, 11), np.s_[4:5, 3:9, 2:8]), mask((9, 14, 11), np.s_[3:6, 3:9, 2:8])),
}


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (0.7, 3.0, 1.3), (8.0, 0.5, 0.5)], ids=str)
@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_anisotropic_masks_against_simpleitk_and_surface_distance(name, spacing_mm):
    pred, truth = HAND_MADE[name]
    images = [itk_image(i, spacing_mm) for i in (pred, truth)]
    there, back = itk_directed_hausdorff(*images), itk_directed_hausdorff(*images[::-1])
    itk = sitk.HausdorffDistanceImageFilter()
    itk.Execute(*images)
    assert max(there, back) == pytest.approx(itk.GetHausdorffDistance(), rel=1e-5, abs=1e-6)
    assert hausdorff_mean(pred, truth, spacing_mm) == pytest.approx((there + back) / 2, rel=1e-5, abs=1e-6)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    assert dice(pred, truth, spacing_mm) == pytest.approx(overlap.GetDiceCoefficient())
    reference = surface_distance.compute_surface_distances(truth, pred, spacing_mm)
    assert hausdorff95(pred, truth, spacing_mm) == pytest.approx(surface_distance.compute_robust_hausdorff(reference, 95))
    assert average_surface_distance(pred, truth, spacing_mm) == pytest.approx(
        np.mean(surface_distance.compute_average_surface_distance(reference))
    )
    for tolerance_mm in (0.4, 2.0, 9.0):
        assert surface_dice(pred, truth, spacing_mm, tolerance_mm) == pytest.approx(
            surface_distance.compute_surface_dice_at_tolerance(reference, tolerance_mm)
        )


@pytest.mark.parametrize("name", HAND_MADE)
def test_an_empty_mask_is_decided_here_for_the_references_refuse_it(name):
    """SimpleITK raises; what is said instead stands in the table of metrics.py."""
    full, empty = HAND_MADE[name][0], np.zeros((9, 14, 11), bool)
    for pred, truth in ((full, empty), (empty, full)):
        with pytest.raises(RuntimeError):
            sitk.HausdorffDistanceImageFilter().Execute(itk_image(pred, SPACING_MM), itk_image(truth, SPACING_MM))
        assert [i(pred, truth, SPACING_MM) for i in DISTANCES] == [math.inf] * 3
        assert dice(pred, truth, SPACING_MM) == surface_dice(pred, truth, SPACING_MM, 2.0) == 0


def test_the_table_of_areas_is_made_once_a_spacing(monkeypatch):
    from surface_distance import lookup_tables

    make, made, times = lookup_tables.create_table_neighbour_code_to_surface_area, [], []
    monkeypatch.setattr(lookup_tables, "create_table_neighbour_code_to_surface_area", lambda i: made.append(tuple(i)) or make(i))
    metrics._tables.cache_clear()
    mask = np.zeros((6, 7, 8), bool)
    mask[2:5, 1:4, 3:6] = True
    for spacing in ((1.0, 2.0, 3.0), (1.0, 2.0, 3.5), (1.0, 2.0, 3.0)):
        made.clear()
        found = metrics.MaskPair(np.roll(mask, 1, 1), mask, np.array(spacing)).surface_distances
        times.append(len(made))
        expected = surface_distance.compute_surface_distances(mask, np.roll(mask, 1, 1), spacing)
        for name, values in found.items():
            assert np.sort(values) == pytest.approx(np.sort(expected[name]))
    assert times == [1, 1, 0]
