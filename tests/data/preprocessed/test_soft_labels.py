"""Soft labels on disk and in batches: what rounding costs, and that they move with the image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.preprocessed.soft_labels import SoftDataLoader, SoftLabels, log_probabilities, quantised
from nnunet_partial.errors import UserError
from nnunet_partial.losses import ms_kd

SIZE = (6, 5, 4)
CLASSES = [(1,), (2, (3, 4))]


def softmax(x, axis=0):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def test_rounding_is_to_the_nearest_of_255_steps():
    logits = 3 * np.random.default_rng(0).normal(size=(4, *SIZE))
    soft = quantised(torch.from_numpy(logits), slab=4)
    assert soft.dtype == np.uint8 and soft.shape == (3, *SIZE)
    np.testing.assert_array_equal(soft, np.round(255 * softmax(logits.astype(np.float32))[1:]))
    probabilities = log_probabilities(torch.from_numpy(soft)[None]).exp()[0].numpy()
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    assert np.abs(probabilities - softmax(logits)).max() <= 3 / 510 + 1e-6  # background: of three classes
    assert (probabilities[1:][soft == 0] == 0).all()


def test_more_than_255_is_shared():
    probabilities = log_probabilities(torch.tensor([[[128], [128]]], dtype=torch.uint8).view(1, 2, 1)).exp()
    torch.testing.assert_close(probabilities.flatten(), torch.tensor([0.0, 0.5, 0.5]))


def read_logit_loss(student, teachers):
    """Eqs. 3 to 6 in float64, voxel by voxel, from probabilities of the teachers and logits of the student (C, V)."""
    organ = background = 0.0
    for v in range(student.shape[1]):
        q, references, says_organ = softmax(student[:, v]), [], []
        for t, outputs in zip(teachers, CLASSES):
            t, reference = t[:, v], np.zeros(len(q))
            reference[0] = t[0]
            sums = [q[0]]
            for p, output in zip(t[1:], outputs):
                of = list(output) if isinstance(output, tuple) else [output]
                reference[of] = p * q[of] / q[of].sum()
                sums.append(q[of].sum())
            references.append(reference)
            says_organ.append(t[1:].max() > t[0])
            if says_organ[-1]:
                organ += sum(a * np.log(a / b) for a, b in zip(t, sums) if a > 0)
        if not any(says_organ):
            mean = np.mean(references, 0)
            background += sum(a * np.log(a / b) for a, b in zip(mean, q) if a > 0)
    return organ / student.shape[1], background / student.shape[1]


def test_losses_from_soft_labels_are_those_of_the_teachers_up_to_rounding():
    rng = np.random.default_rng(1)
    student = rng.normal(size=(5, 120))
    logits = [2 * rng.normal(size=(len(i) + 1, *SIZE)) for i in CLASSES]
    exact = [softmax(i).reshape(len(i), -1) for i in logits]
    soft = [quantised(torch.from_numpy(i)) for i in logits]
    rounded = [np.concatenate([255.0 - i.sum(0, keepdims=True, dtype=float), i]).reshape(len(i) + 1, -1) / 255 for i in soft]
    rounded = [np.maximum(i, 0) / np.maximum(i, 0).sum(0) for i in rounded]
    references = [log_probabilities(torch.from_numpy(i)[None]) for i in soft]
    found = ms_kd.logit_loss(torch.from_numpy(student).view(1, 5, *SIZE), references, CLASSES)
    np.testing.assert_allclose([i.item() for i in found], read_logit_loss(student, rounded), rtol=1e-5)
    np.testing.assert_allclose([i.item() for i in found], read_logit_loss(student, exact), atol=2 / 255)


# ------------------------------------------------------------------ a directory


def directory(folder, soft, images, models=(("liver",),)):
    """A finished label directory of one case ``a``."""
    manager = SimpleNamespace(foreground_labels=[1], has_ignore_label=False, all_labels=[0, 1])
    seg, record = np.zeros((1, *images), np.int16), {"annotated": [], "pseudo": ["liver"], "volume_mm3": {"liver": 0.0}}
    with label_directory.writing(folder):
        label_directory.write_case(folder, "a", seg, {}, manager, images, record, soft)
        header = {"dataset": "Dataset001_A", "data_identifier": "d", "classes": ["liver"], "soft": models}
        label_directory.finish(folder, header, ["a"])
    return label_directory.LabelDirectory.read(folder)


def test_a_directory_holds_them_beside_the_labels(tmp_path):
    soft = np.random.default_rng(0).integers(0, 256, (1, *SIZE)).astype(np.uint8)
    labels = SoftLabels.of(directory(tmp_path / "l", soft, SIZE))
    assert labels.models == (("liver",),) and labels.channels == 1
    np.testing.assert_array_equal(labels.load("a")[:], soft)
    labels.require_cases(["a"])
    assert label_directory.is_written(tmp_path / "l", "a")
    (tmp_path / "l" / "a_soft.b2nd").unlink()
    assert not label_directory.is_written(tmp_path / "l", "a")  # so that it is made again
    with pytest.raises(UserError, match="a_soft.b2nd does not exist"):
        labels.require_cases(["a"])


@pytest.mark.parametrize(
    "soft, models, words",
    [
        (np.zeros((2, *SIZE), np.uint8), [["liver"]], "expected uint8 with 1 channels"),
        (np.zeros((1, *SIZE), np.int16), [["liver"]], "expected uint8"),
        (np.zeros((1, *SIZE), np.uint8), [["spleen"]], "no class of it"),
        (np.zeros((1, *SIZE), np.uint8), [3], "no class of it"),
        (None, (), "has no soft labels. REMEDY"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, soft, models, words):
    with pytest.raises(UserError, match=words):
        SoftLabels.of(directory(tmp_path / "l", soft, SIZE, models), "REMEDY").require_cases(["a"])


# ------------------------------------------------------------------ in batches


@pytest.mark.parametrize("patch", [(16, 16, 16), (20, 20)], ids=["3d", "2d"])
def test_soft_labels_are_cropped_turned_and_mirrored_with_the_image(tmp_path, patch):
    """Soft labels that are the image itself are the augmented image afterwards."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    whole = (22, 24, 26)
    grid = np.indices(whole).astype(float)
    image = np.round(127 + 60 * np.sin(grid[0] / 4) + 60 * np.cos(grid[1] / 5 + grid[2] / 7))[None]
    properties = {"class_locations": {1: np.array([[0, 11, 12, 13]])}}
    data = SimpleNamespace(
        identifiers=["a"],
        load_case=lambda case: (image.astype(np.float32), np.zeros((1, *whole), np.int16), None, properties),
        soft=SoftLabels.of(directory(tmp_path / "l", image.astype(np.uint8), whole)),
    )
    spatial = SpatialTransform(
        patch, 0, False, p_elastic_deform=0, p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.7, 1.4)
    )
    augment = ComposeTransforms([spatial, MirrorTransform(tuple(range(len(patch))))])
    manager = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    larger = tuple(i + 6 for i in patch)
    for transforms in (None, augment):
        loader = SoftDataLoader(data, 3, larger if transforms else patch, patch, manager, 0.33, transforms=transforms)
        batch = next(loader)
        assert batch["soft"].dtype == torch.uint8 and batch["soft"].shape == batch["data"].shape == (3, 1, *patch)
        assert (batch["soft"].float() - batch["data"]).abs().max() <= 0.5 + 1e-3
        assert batch["data"].std() > 10


def test_an_image_that_was_preprocessed_again_is_noticed(tmp_path):
    data = SimpleNamespace(
        identifiers=["a"],
        load_case=lambda case: (np.zeros((1, 9, 9, 9)), np.zeros((1, 9, 9, 9)), None, {"class_locations": {}}),
        soft=SoftLabels.of(directory(tmp_path / "l", np.zeros((1, *SIZE), np.uint8), SIZE)),
    )
    manager = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    with pytest.raises(UserError, match="preprocessed again since"):
        next(SoftDataLoader(data, 1, (4, 4, 4), (4, 4, 4), manager))
