"""What ``check`` measures of structures whose classes a label file does not tell apart."""

import json

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data.check.inspection import in_words, inspect, values_in_file
from nnunet_partial.data.check.page import draw
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.labels import Union


def test_a_union_stands_in_place_of_its_classes():
    values = {"spleen": 1, "kidney_left": 2, "kidney_right": 3}
    union = Union(["kidney_left", "kidney_right"])
    assert values_in_file((union,), values) == {"spleen": 1, "kidney_left+kidney_right": 2}
    assert values_in_file(("kidney_left",), values) == values


def test_both_kidneys_are_not_the_left_one(tmp_path):
    """Twice the volume, in the middle of the body: no outlier and on no wrong side."""
    label = np.zeros((12, 20, 30), np.uint8)
    label[3:9, 8:14, 3:9], label[3:9, 8:14, 21:27] = 1, 2
    cases = {}
    for i in range(8):
        case, joint = f"c{i}", i > 5
        for folder, array in (("imagesTr", label * 50.0 - 100), ("labelsTr", (label > 0) * 1 if joint else label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            noise = np.random.default_rng(i).normal(0, 5, label.shape) if folder == "imagesTr" else 0
            image = sitk.GetImageFromArray((array + noise).astype(np.float32 if folder == "imagesTr" else np.uint8))
            sitk.WriteImage(image, str(tmp_path / folder / f"{case}{'_0000' if folder == 'imagesTr' else ''}.nii.gz"))
        names = ["kidney_right", "kidney_left"]
        cases[case] = {"source": "joint" if joint else "apart", "annotated": [names] if joint else names}
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "kidney_right": 1, "kidney_left": 2}}
    content |= {"numTraining": 8, "file_ending": ".nii.gz", "nnunet_partial": {"version": 2, "cases": cases}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    inspection = inspect(tmp_path, processes=1)
    joint = next(i for i in inspection.facts if i.case == "c7")
    assert dict(joint.volumes_ml) == {"kidney_right+kidney_left": 2 * 216 / 1000}
    assert [i for i in inspection.findings if i.kind in ("volume", "anatomy", "contract", "empty label")] == []
    assert any("source joint: 2 cases; annotated: kidney_right+kidney_left 2" in i for i in in_words(inspection))
    draw(inspection, read_raw_dataset(tmp_path), tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
