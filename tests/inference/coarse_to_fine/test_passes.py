"""Coarse to fine: every step by itself, and whole cases whose right mask follows from their geometry.

The networks are thresholds, so what a step should give can be worked out by hand. Arrays are (z, y, x).
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from nnunet_partial.errors import UserError
from nnunet_partial.inference.coarse_to_fine import passes as c2f
from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings
from nnunet_partial.settings import read_settings

SMALL = CoarseToFineSettings(
    coarse_size=[24, 24, 24], patch_size=[24, 16, 24], fine_size=[32, 32, 32], fallback_box_mm=[30, 20, 30]
)


def threshold(*levels):
    """A network that calls the voxels above the n-th level class n, whatever else there is."""

    def network(x):
        masks = [torch.ones_like(x[:, 0]), *(2.0 * n * (x[:, 0] > level) for n, level in enumerate(levels, 1))]
        return torch.stack(masks, 1) * 10

    return network


def image_of(array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).flatten().tolist())
    return image


def points_mm(image):
    """World coordinates (x, y, z) of all voxel centres, as an array (z, y, x, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(i) for i in image.GetSize()[::-1]], indexing="ij"), -1)[..., ::-1]
    direction = np.reshape(image.GetDirection(), (3, 3))
    return (index * image.GetSpacing()) @ direction.T + image.GetOrigin()


def same_grid(a, b):
    return (a.GetSize(), a.GetSpacing(), a.GetOrigin(), a.GetDirection()) == (
        b.GetSize(),
        b.GetSpacing(),
        b.GetOrigin(),
        b.GetDirection(),
    )


def rotation(degrees_x, degrees_y, degrees_z):
    result = np.eye(3)
    for axis, degrees in enumerate((degrees_x, degrees_y, degrees_z)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        result = turn @ result
    return result


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---- whole cases

ROTATED = rotation(12, -20, 31)
GRIDS = {
    "plain": {"shape": (40, 50, 60), "spacing": (1.0, 1.0, 1.0), "origin": (0, 0, 0), "direction": np.eye(3)},
    "rotated, anisotropic, off-origin": {
        "shape": (22, 70, 61),
        "spacing": (0.9, 0.8, 3.1),
        "origin": (-211.3, 57.7, 1033.1),
        "direction": ROTATED,
    },
    "rotated and mirrored": {
        "shape": (22, 70, 61),
        "spacing": (0.9, 0.8, 3.1),
        "origin": (80.5, -33.2, 12.0),
        "direction": ROTATED @ np.diag([-1, 1, -1]),
    },
    "slices run from left to right": {
        "shape": (24, 66, 58),
        "spacing": (0.8, 0.9, 2.4),
        "origin": (10, 20, 30),
        "direction": [[0, 0, 1], [1, 0, 0], [0, -1, 0]],
    },
    "smaller than the coarse size": {
        "shape": (9, 13, 11),
        "spacing": (5.0, 4.0, 6.0),
        "origin": (1, 2, 3),
        "direction": np.eye(3),
    },
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_mask_lies_on_the_organ_in_the_inputs_own_grid(grid):
    """An ellipsoid of 200 HU in air, painted in world coordinates; the threshold lies half way."""
    image = image_of(np.zeros(grid["shape"], np.float32), grid["spacing"], grid["origin"], grid["direction"])
    half_extent = np.array(image.GetSpacing()) * image.GetSize() / 2
    centre = np.array(image.TransformContinuousIndexToPhysicalPoint([(i - 1) / 2 + i / 12 for i in image.GetSize()]))
    axes = 0.45 * half_extent
    offset = (points_mm(image) - centre) @ np.reshape(image.GetDirection(), (3, 3))
    organ = ((offset / axes) ** 2).sum(-1) <= 1
    filled = image_of(np.where(organ, 200, 0).astype(np.float32), grid["spacing"], grid["origin"], grid["direction"])
    mask = c2f.predict([filled], threshold(100), threshold(100), SMALL)
    assert same_grid(mask, filled)
    found = sitk.GetArrayFromImage(mask)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1}
    assert dice(found > 0, organ) > 0.93


def test_mask_is_exact_where_resampling_is_the_identity():
    """Volume of the coarse size, organ of 20 voxels, box of 22 = 1.1 x 20 of the fine size: nothing is interpolated."""
    settings = CoarseToFineSettings(coarse_size=[40, 48, 44], patch_size=[20, 24, 22], fine_size=[22, 22, 22])
    organ = np.zeros((40, 48, 44), np.float32)
    organ[10:30, 5:25, 20:40] = 1
    organ[10, 5, 20] = 0  # a corner makes it asymmetric
    mask = c2f.predict([image_of(organ)], threshold(0.5), threshold(0.5), settings)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), organ)


def test_networks_see_left_and_posterior_on_the_same_sides_whatever_the_storage():
    """One body stored in eight orientations; the network tells right and front from their opposites by position."""
    body = np.zeros((16, 20, 24), np.float32)
    body[4:12, 5:15, 3:10], body[4:12, 5:15, 14:21] = 1, 1
    original = image_of(body, (1.5, 1.2, 2.0), (-20, 40, 7))

    def by_side(x):
        right = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        front = torch.arange(x.shape[-2])[:, None] < x.shape[-2] // 2
        inside = x[:, 0] > 0.5
        return (
            torch.stack(
                (~inside, inside & right & front, inside & ~right & front, inside & right & ~front, inside & ~right & ~front), 1
            ).float()
            * 50
        )

    settings = CoarseToFineSettings(coarse_size=[16, 20, 24], patch_size=[16, 20, 24], fine_size=[16, 20, 24], box_scale=1.0)
    expected = c2f.predict([original], by_side, by_side, settings)
    values = sitk.GetArrayFromImage(expected)
    assert set(np.unique(values)) == {0, 1, 2, 3, 4}
    assert (values[body == 0] == 0).all() and values[8, 6, 4] == 1 and values[8, 6, 19] == 2 and values[8, 14, 4] == 3
    for orientation in ("RPI", "RAS", "LPI", "ASL", "SAR", "PIR", "ILP"):
        stored = sitk.DICOMOrient(original, orientation)
        mask = c2f.predict([stored], by_side, by_side, settings)
        assert same_grid(mask, stored)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS")), values)


def test_box_at_the_border():
    organ = np.zeros((30, 40, 50), np.float32)
    organ[:12, 30:, :20] = 1
    mask = c2f.predict([image_of(organ, (1, 1, 2))], threshold(0.5), threshold(0.5), SMALL)
    found = sitk.GetArrayFromImage(mask) > 0
    assert dice(found, organ > 0) > 0.93
    assert found[0, 39, 0] and not found[20:].any()


def test_organ_of_one_slice():
    organ = np.zeros((20, 40, 40), np.float32)
    organ[7, 10:30, 12:28] = 1
    mask = c2f.predict([image_of(organ, (1, 1, 5))], threshold(0.4), threshold(0.5), SMALL)
    found = sitk.GetArrayFromImage(mask) > 0
    assert found[7].any() and not found[[i for i in range(20) if i != 7]].any()
    assert dice(found, organ > 0) > 0.93


def test_image_of_one_slice():
    organ = np.zeros((1, 40, 40), np.float32)
    organ[0, 10:30, 12:28] = 1
    mask = c2f.predict([image_of(organ, (1, 1, 5))], threshold(0.5), threshold(0.5), SMALL)
    assert mask.GetSize() == (40, 40, 1)
    assert dice(sitk.GetArrayFromImage(mask) > 0, organ > 0) > 0.93


def test_empty_coarse_mask_leads_to_the_central_box():
    """The coarse network finds nothing; the fine one sees 30 x 20 x 30 mm (z, y, x) about the centre, no more."""
    volume = np.ones((20, 40, 40), np.float32)
    mask = c2f.predict([image_of(volume, (1.0, 2.0, 3.0))], threshold(9), threshold(0.5), SMALL)
    expected = np.zeros((20, 40, 40))
    expected[5:15, 15:25, 5:35] = 1  # 10 slices of 3 mm, 10 rows of 2 mm, 30 columns of 1 mm
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), expected)


def test_nothing_found_gives_an_empty_mask_on_the_grid():
    image = image_of(np.zeros((7, 8, 9), np.float32), direction=np.diag([-1, -1, 1]))
    mask = c2f.predict([image], threshold(9), threshold(9), SMALL)
    assert same_grid(mask, image) and not sitk.GetArrayFromImage(mask).any()


def test_channels_and_normalisation_reach_the_networks():
    seen = {}

    def network_of(stage):
        def network(x):
            seen[stage] = x
            return threshold(0.5)(x[:, 1:])

        return network

    organ = np.zeros((24, 24, 24), np.float32)
    organ[8:16, 8:16, 8:16] = 1
    channels = [image_of(np.full_like(organ, 7)), image_of(organ)]
    mask = c2f.predict(channels, network_of("coarse"), network_of("fine"), SMALL, lambda v: v, lambda v: v - 0.25)
    assert seen["coarse"].shape == (1, 2, 24, 16, 24) and seen["fine"].shape == (1, 2, 32, 32, 32)
    assert (seen["coarse"][:, 0] == 7).all() and (seen["fine"][:, 0] == 6.75).all()
    assert dice(sitk.GetArrayFromImage(mask) > 0, organ > 0) > 0.85


def test_images_that_cannot_be_used_are_refused():
    good = image_of(np.zeros((8, 8, 8), np.float32))
    with pytest.raises(UserError, match="needs 3D images, found 2"):
        c2f.predict([sitk.GetImageFromArray(np.zeros((8, 8), np.float32))], threshold(0), threshold(0), SMALL)
    with pytest.raises(UserError, match=r"differ: size \(9, 8, 8\) and \(8, 8, 8\)"):
        c2f.predict([good, image_of(np.zeros((8, 8, 9), np.float32))], threshold(0), threshold(0), SMALL)
    with pytest.raises(UserError, match="differ: spacing"):
        c2f.predict([good, image_of(np.zeros((8, 8, 8), np.float32), (2, 1, 1))], threshold(0), threshold(0), SMALL)


# ---- steps


def test_resampled_volume_covers_the_same_space():
    image = image_of(np.zeros((5, 7, 9), np.float32), (0.7, 1.1, 3.0), (-3, 50, 8), ROTATED)
    resampled = c2f.resample_to_size(image, (10, 4, 3))
    assert resampled.GetSize() == (3, 4, 10)
    corners = (((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5)), ((8.5, 6.5, 4.5), (2.5, 3.5, 9.5)))  # old and new (x, y, z)
    for old, new in corners:
        np.testing.assert_allclose(
            image.TransformContinuousIndexToPhysicalPoint(old), resampled.TransformContinuousIndexToPhysicalPoint(new), atol=1e-9
        )


def test_resampling_is_linear_between_voxel_centres_and_constant_beyond():
    line = image_of(np.array([0, 8, 4], np.int16).reshape(1, 1, 3))
    values = sitk.GetArrayFromImage(c2f.resample_to_size(line, (2, 1, 6)))
    # six samples of half a voxel: centres at -0.25, 0.25, 0.75, 1.25, 1.75, 2.25 of the old voxels
    np.testing.assert_allclose(values, np.broadcast_to([0, 2, 6, 7, 5, 4], (2, 1, 6)), atol=1e-6)


def test_labels_are_resampled_to_the_label_of_the_largest_share():
    labels = image_of(np.array([0, 0, 3, 3, 3, 1], np.uint8).reshape(1, 1, 6))
    same = c2f.resample_labels_to_size(labels, (1, 1, 6))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(same), sitk.GetArrayFromImage(labels))
    # three samples at 0.5, 2.5, 4.5: between two voxels of background, of 3, and on the line between 3 and 1
    halved = c2f.resample_labels_to_size(labels, (1, 1, 3))
    assert sitk.GetArrayFromImage(halved).flatten()[:2].tolist() == [0, 3]
    doubled = sitk.GetArrayFromImage(c2f.resample_labels_to_size(labels, (1, 1, 12)))
    np.testing.assert_array_equal(doubled.flatten(), [0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 1, 1])
    assert doubled.dtype == np.uint8


def test_foreground_box_is_enlarged_about_its_centre():
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[10:30, 12:22, 0:10] = 1
    # z 20 -> 22, y 10 -> 11 (11.5 to 22.5 touches 11 to 23), x 10 -> 11 cut off at the face (-0.5 to 10.5)
    assert c2f.foreground_box(mask, (40, 40, 40), 1.1) == np.s_[9:31, 11:23, 0:11]
    assert c2f.foreground_box(mask, (80, 400, 20), 1.1) == np.s_[18:62, 115:225, 0:6]
    assert c2f.foreground_box(mask, (40, 40, 40), 1.0) == np.s_[10:30, 12:22, 0:10]
    assert c2f.foreground_box(np.zeros_like(mask), (40, 40, 40)) is None


def test_box_of_a_single_voxel_holds_at_least_one_voxel():
    mask = np.zeros((96, 96, 96), np.uint8)
    mask[50, 0, 95] = 1
    for shape in ((1, 1, 1), (3, 5, 7), (96, 96, 96), (500, 500, 500)):
        box = c2f.foreground_box(mask, shape, 1.1)
        for fraction, size, part in zip((50.5 / 96, 0.5 / 96, 95.5 / 96), shape, box):
            assert 0 <= part.start <= fraction * size <= part.stop <= size and part.stop > part.start


def test_central_box_is_in_millimetres_and_ends_at_the_faces():
    assert c2f.central_box((100, 100, 100), (3.0, 1.0, 2.0), (240, 160, 240)) == np.s_[10:90, 0:100, 0:100]
    assert c2f.central_box((300, 512, 512), (1.0, 0.8, 0.8), (240, 160, 240)) == np.s_[30:270, 156:356, 106:406]


@pytest.mark.parametrize("shape", ((12, 12, 12), (13, 17, 12)))
def test_sliding_window_is_the_gaussian_mean_of_half_overlapping_windows(shape):
    """Against a plain loop; the network's answer depends on the place in the window, so windows disagree."""
    patch, generator = (12, 8, 6), torch.Generator().manual_seed(0)
    volume = torch.randn(2, *shape, generator=generator)
    place = torch.randn(3, *patch, generator=generator)
    calls = []

    def network(x):
        calls.append(x.shape)
        return place[None] * x[:, :1] + x[:, 1:]

    impulse = np.zeros(patch)
    impulse[tuple(i // 2 for i in patch)] = 1
    weight = gaussian_filter(impulse, [i / 8 for i in patch], mode="constant")
    weight = np.maximum(weight / weight.max(), np.finfo(np.float32).tiny)
    total, weights = np.zeros((3, *shape)), np.zeros(shape)
    number = [int(np.ceil((s - p) / (p / 2))) + 1 for s, p in zip(shape, patch)]
    starts = [np.rint(np.linspace(0, s - p, n)).astype(int) for s, p, n in zip(shape, patch, number)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                part = np.s_[z : z + patch[0], y : y + patch[1], x : x + patch[2]]
                logits = place.double().numpy() * volume.double().numpy()[0][part] + volume.double().numpy()[1][part]
                exponent = np.exp(logits - logits.max(0))
                total[(slice(None), *part)] += weight * exponent / exponent.sum(0)
                weights[part] += weight
    result = c2f.sliding_window(volume, network, patch, 0.5)
    assert calls == [(1, 2, *patch)] * int(np.prod(number))
    np.testing.assert_allclose(result.numpy(), total / weights, atol=1e-4)


def test_paper_windows_of_the_coarse_volume_are_two():
    calls = []

    def network(x):
        calls.append(tuple(x.shape))
        return torch.cat((x, x), 1)

    paper = CoarseToFineSettings()
    c2f.sliding_window(torch.zeros(1, *paper.coarse_size), network, paper.patch_size, paper.window_overlap)
    assert calls == [(1, 1, 96, 64, 96)] * 2


@pytest.mark.parametrize("size", ((5, 6, 7), (11, 6, 3), (20, 13, 15), (1, 1, 40)))
@pytest.mark.parametrize("sharpness", (1.0, 8.0))
def test_upsampled_argmax_equals_upsampling_everything_first(size, sharpness):
    """Also where a class lives in a corner only, or nowhere (class 4), so that most of its volume is left out."""
    logits = sharpness * torch.randn(6, 5, 6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits[3, 2:], logits[4] = -9 * sharpness, -9 * sharpness
    probabilities = logits.softmax(0)
    everything = torch.nn.functional.interpolate(probabilities[None], size=size, mode="trilinear", align_corners=False)
    result = c2f.upsampled_argmax(probabilities, size)
    assert torch.equal(result.long(), everything[0].argmax(0)) and 4 not in result.unique()


def test_upsampled_argmax_gives_ties_to_the_lowest_class():
    assert c2f.upsampled_argmax(torch.full((4, 2, 2, 2), 0.25), (3, 4, 5)).eq(0).all()


def test_largest_component_of_each_class_by_26_neighbours():
    mask = np.zeros((6, 6, 8), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1  # three voxels in touch by corners only: one component
    mask[5, 5, 0:2] = 1  # two voxels in touch by faces: the smaller component
    mask[0, 0, 4:8] = 2
    mask[1, 0, 4] = 5  # next to class 2, but another class
    expected = mask.copy()
    expected[5, 5, 0:2] = 0
    result = c2f.largest_components(mask)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == mask.dtype and mask[5, 5, 0] == 1  # the argument stays as it was


def test_largest_component_of_equal_ones_is_the_first_and_of_nothing_nothing():
    mask = np.zeros((1, 1, 9), np.uint8)
    mask[0, 0, [0, 1, 4, 5]] = 3
    assert c2f.largest_components(mask).flatten().tolist() == [3, 3, 0, 0, 0, 0, 0, 0, 0]
    assert not c2f.largest_components(np.zeros((3, 3, 3), np.uint8)).any()


def test_both_kidneys_stay_and_a_stray_liver_voxel_goes():
    image = np.zeros((24, 24, 24), np.float32)
    image[4:20, 2:9, 4:20] = 1
    image[22, 22, 22] = 1
    image[4:12, 12:18, 2:8] = image[4:12, 12:18, 14:22] = 2
    mask = c2f.predict([image_of(image)], threshold(0.5, 1.5), threshold(0.5, 1.5), SMALL, largest=[1])
    found = sitk.GetArrayFromImage(mask)
    assert (found[:, 12:18, 2:8] == 2).any() and (found[:, 12:18, 14:22] == 2).any() and (found[:, :, :9] == 1).any()
    assert not found[20:].any()
    everything = sitk.GetArrayFromImage(
        c2f.predict([image_of(image)], threshold(0.5, 1.5), threshold(0.5, 1.5), SMALL, largest=[1, 2])
    )
    assert not (everything[:, 12:18, 2:8] == 2).any()  # what used to happen to every class


def test_turning_to_lps_and_back_restores_every_voxel():
    rng = np.random.default_rng(0)
    for orientation in ("LPS", "RAI", "SRP", "AIR"):
        array = rng.integers(0, 9, (4, 5, 6)).astype(np.uint8)
        image = sitk.DICOMOrient(image_of(array, (0.3, 0.7, 1.9), (0.1, 7.7, -3.3)), orientation)
        turned = c2f.to_lps(image)
        assert np.allclose(turned.GetDirection(), np.eye(3).flatten())
        back = c2f.from_lps(turned, image)
        assert same_grid(back, image)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))


def test_ct_normalisation_of_the_paper():
    volume = np.array([-1000.0, -300.0, 300.0, 2000.0])
    np.testing.assert_allclose(c2f.clip_and_standardise(volume), [-1, -1, 1, 1])
    assert not c2f.clip_and_standardise(np.full(4, 50.0)).any()


def test_settings_are_those_of_the_paper_and_can_be_read_from_plans():
    paper = dataclasses.asdict(CoarseToFineSettings())
    assert paper == {
        "coarse_size": [96, 96, 96],
        "patch_size": [96, 64, 96],
        "window_overlap": 0.5,
        "box_scale": 1.1,
        "fine_size": [96, 64, 96],
        "fallback_box_mm": [240, 160, 240],
        "largest_components": None,
    }
    read = read_settings(CoarseToFineSettings, {"coarse_size": [64, 64, 64], "patch_size": [64, 32, 64]}, "plans")
    assert read.coarse_size == [64, 64, 64]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"coarse_size": [96, 96]}, "coarse_size must be three positive numbers"),
        ({"fine_size": [96, 0, 96]}, "fine_size must be three positive numbers"),
        ({"fine_size": [96, 64.5, 96]}, "fine_size must be three positive numbers"),
        ({"patch_size": [96, 128, 96]}, "must not exceed coarse_size"),
        ({"box_scale": 0.5}, "box_scale must be at least 1"),
        ({"size": [1, 1, 1]}, "unknown setting"),
    ],
)
def test_unusable_settings_are_named(content, message):
    with pytest.raises(UserError, match=message):
        read_settings(CoarseToFineSettings, content, "plans")


# ---- real anatomy: the channels are the organs' own indicators, so the right mask is known


def by_channel(x):
    return torch.cat((0.5 * torch.ones_like(x[:, :1]), x), 1) * 20


@pytest.fixture(scope="module")
def real_data():
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    return Path(os.environ["NNUNET_PARTIAL_DATA"])


@pytest.mark.parametrize("path", ("samples/kits19/case_00048/segmentation.nii.gz", "abdomen_labels"))
def test_real_anatomy_comes_back_in_its_own_geometry(real_data, path):
    """KiTS19's slice-first arrays with their off-diagonal direction, and eight abdominal organs; the paper's sizes."""
    path = real_data / path
    labels = sitk.ReadImage(str(path if path.is_file() else sorted(path.glob("*.nii.gz"))[0]))
    if path.is_file():
        labels = sitk.Cast(labels > 0, sitk.sitkUInt8)
    values = sitk.GetArrayFromImage(labels)
    classes = range(1, int(values.max()) + 1)
    channels = [sitk.Cast(labels == value, sitk.sitkFloat32) for value in classes]
    mask = c2f.predict(channels, by_channel, by_channel, largest=classes)
    assert same_grid(mask, labels)
    found, expected = sitk.GetArrayFromImage(mask), c2f.largest_components(values)
    scores = [dice(found == value, expected == value) for value in classes if (expected == value).any()]
    assert len(scores) == len(classes) and min(scores) > 0.95
