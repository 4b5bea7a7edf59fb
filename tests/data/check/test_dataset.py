import json
import os
import shutil

import numpy as np
import pytest

from nnunet_partial.data import images
from nnunet_partial.data.check.dataset import check_dataset, dataset_problems
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.errors import UserError

CONTRACT = {
    "version": 1,
    "cases": {
        "case0": {"source": "a", "annotated": ["liver"]},
        "case1": {"source": "a", "annotated": ["liver"]},
        "case2": {"source": "u", "annotated": []},
    },
}


@pytest.fixture
def partial(write_source, label_of, write_image):
    """Two cases that annotate the liver, one that annotates nothing; labels liver and kidney."""
    folder = write_source(101, "A", {"liver": 1, "kidney": 2, "ignore": 3}, cases=3, nnunet_partial=CONTRACT)
    for i in range(3):
        write_image(label_of((1, 3), i) if i < 2 else np.zeros((24, 24, 24), np.uint8), folder / "labelsTr" / f"case{i}.nii.gz")
    return folder


def test_dataset_that_keeps_its_contract(partial):
    annotations = check_dataset(partial, 1, False)
    assert annotations.annotated_sources == ("a",) and annotations.ignore_label == 3


def test_ordinary_dataset_is_checked_too(write_source, write_image, label_of):
    folder = write_source(101, "A", {"whole": [1, 2], "core": 2})
    assert check_dataset(folder, 1, False) is None
    write_image(label_of((3,)), folder / "labelsTr" / "case1.nii.gz")
    with pytest.raises(UserError, match="case1.nii.gz holds the value 3, .* only 0, 1, 2"):
        check_dataset(folder, 1, False)


@pytest.mark.parametrize(
    "case, values, allowed", [("case0", (1, 2), "0, 1, 3"), ("case2", (1,), "0, 3"), ("case1", (4,), "0, 1, 3")]
)
def test_value_outside_the_annotated_set(partial, write_image, label_of, case, values, allowed):
    write_image(label_of(values), partial / "labelsTr" / f"{case}.nii.gz")
    with pytest.raises(
        UserError,
        match=(f"labelsTr/{case}.nii.gz holds the value {values[-1]}, but .*dataset.json lets case {case} have only {allowed}"),
    ):
        check_dataset(partial, 1, False)


def test_every_case_with_a_problem_is_found(partial, write_image, label_of):
    write_image(label_of((2,)), partial / "labelsTr" / "case0.nii.gz")
    write_image(label_of((1,)), partial / "labelsTr" / "case1.nii.gz", spacing=(1, 1, 1))
    path = partial / "labelsTr" / "case2.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    problems = dataset_problems(read_raw_dataset(partial), 1, False)
    assert len(problems) == 3
    assert "holds the value 2" in problems[0] and "differ in spacing" in problems[1] and "truncated" in problems[2]
    with pytest.raises(UserError, match=r"holds the value 2.*\(2 more cases have problems.\)"):
        check_dataset(partial, 1, False)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda cases: cases.pop("case1"), "case case1 is missing under 'nnunet_partial.cases'"),
        (
            lambda cases: cases.update(case9={"source": "a", "annotated": []}),
            "case case9 is listed .* but has no image",
        ),
        (lambda cases: cases["case0"].update(annotated=["spleen"]), "unknown class 'spleen'"),
    ],
)
def test_contract_and_cases_must_agree(partial, edit_json, change, message):
    contract = json.loads(json.dumps(CONTRACT))
    change(contract["cases"])
    edit_json(partial, nnunet_partial=contract)
    with pytest.raises(UserError, match=f"dataset.json: .*{message}|{message}"):
        check_dataset(partial, 1, False)


def test_dataset_key_and_contract_must_agree(partial, edit_json):
    entries = {f"case{i}": {"images": [f"imagesTr/case{i}_0000.nii.gz"], "label": f"labelsTr/case{i}.nii.gz"} for i in (0, 1)}
    edit_json(partial, dataset=entries, numTraining=2)
    with pytest.raises(UserError, match="case case2 is listed under 'nnunet_partial.cases' but missing under 'dataset'"):
        check_dataset(partial, 1, False)


def test_hidden_files_that_nnunet_would_take_for_cases(partial):
    shutil.copy(partial / "imagesTr" / "case0_0000.nii.gz", partial / "imagesTr" / "._case0_0000.nii.gz")
    with pytest.raises(UserError, match=r"imagesTr/\._case0_0000.nii.gz is not named .*remove it"):
        check_dataset(partial, 1, False)


def test_labels_of_a_partial_dataset_must_exist(partial):
    os.remove(partial / "labelsTr" / "case2.nii.gz")
    with pytest.raises(UserError, match="labelsTr/case2.nii.gz of case case2 does not exist"):
        check_dataset(partial, 1, False)


def test_several_processes_find_the_same(partial, write_image, label_of):
    write_image(label_of((2,)), partial / "labelsTr" / "case1.nii.gz")
    raw = read_raw_dataset(partial)
    assert dataset_problems(raw, 2, False) == dataset_problems(raw, 1, False) != []


def test_real_label_maps_are_consistent(tmp_path):
    data = os.environ.get("NNUNET_PARTIAL_DATA")
    if not data:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = os.path.join(data, "Task04_Hippocampus")
    for name in sorted(os.listdir(os.path.join(folder, "labelsTr")))[:20]:
        if name.startswith("hippocampus"):
            values, geometry = images.read_label(os.path.join(folder, "labelsTr", name))
            image = os.path.join(folder, "imagesTr", name)
            images.check_same_geometry(image, os.path.join(folder, "labelsTr", name))
            images.write_label(values, geometry, tmp_path / name)
            again, _ = images.read_label(tmp_path / name)
            np.testing.assert_array_equal(again, values)
            assert images.present_values(values) == (0, 1, 2)
