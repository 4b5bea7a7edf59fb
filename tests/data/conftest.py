"""Small raw datasets for the tests of this folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

SHAPE_ZYX = (24, 24, 24)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Empty nnU-Net folders; returns nnUNet_raw."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "nnUNet_raw"


def save(array_zyx, path, spacing=(1.5, 1.5, 2.0), origin=(-10.0, 20.0, 5.0), direction=None):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing[: image.GetDimension()])
    image.SetOrigin(origin[: image.GetDimension()])
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), True)


@pytest.fixture
def write_image():
    return save


def boxes(values, seed=0, shape_zyx=SHAPE_ZYX):
    """A label map with one box of 5 x 6 x 7 voxels per value, side by side, shifted by the seed."""
    label = np.zeros(shape_zyx, np.uint8)
    for i, value in enumerate(v for v in values if v):
        z, x = 2 + 7 * (i // 3) + seed % 2, 1 + 7 * (i % 3)
        label[z : z + 5, 4 + seed % 3 : 10 + seed % 3, x : x + 7] = value
    return label


@pytest.fixture
def label_of():
    return boxes


@pytest.fixture
def write_source(raw):
    """``write_source(101, "LiTS", {"liver": 1}, cases=2, ...)`` writes a raw dataset and returns its folder."""

    def write(dataset_id, name, labels, cases=2, labelled=True, ending=".nii.gz", channels=("CT",), **content):
        folder = raw / f"Dataset{dataset_id:03d}_{name}"
        values = [v for v in labels.values() if isinstance(v, int)]
        for i in range(cases):
            rng = np.random.default_rng([dataset_id, i])
            label = boxes(values, i)
            for channel in range(len(channels)):
                image = rng.normal(100, 20, SHAPE_ZYX).astype(np.float32) + 50 * label
                save(image, folder / "imagesTr" / f"case{i}_{channel:04d}{ending}")
            if labelled:
                save(label, folder / "labelsTr" / f"case{i}{ending}")
        (folder / "dataset.json").write_text(
            json.dumps(
                {
                    "channel_names": {str(i): c for i, c in enumerate(channels)},
                    "labels": {"background": 0, **labels},
                    "numTraining": cases,
                    "file_ending": ending,
                    **content,
                }
            )
        )
        return folder

    return write


@pytest.fixture
def edit_json():
    """``edit_json(folder, key=value)`` changes dataset.json."""

    def edit(folder, **changes):
        content = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**content, **changes}))

    return edit
