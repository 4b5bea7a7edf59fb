"""Splits: patients stay together, and every class of every source is taught in every fold."""

import json
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from nnunet_partial.data.preprocessed.splits import all_cases, stratified_splits, training_cases
from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations, CaseAnnotation


def annotations(*groups, classes=("liver", "tumor", "kidney")):
    """``(source, annotated, patients)`` a group: one case for each patient of it (None: unknown), named SOURCE_NUMBER."""
    cases = {
        f"{source}_{n:02d}": CaseAnnotation(source, annotated, patient)
        for source, annotated, patients in groups
        for n, patient in enumerate(patients)
    }
    return Annotations(classes, cases)


def check_folds(splits, given):
    """What holds for all splits: no patient on both sides, nothing validated that annotates nothing, nothing lost."""
    for fold in splits:
        train, val = set(fold["train"]), set(fold["val"])
        assert not train & val and all(given.of(i).annotated for i in val)
        patients = [{given.of(i).patient for i in part} - {None} for part in (train, val)]
        assert not patients[0] & patients[1]
        left_out = set(given.cases) - train - val
        assert all(not given.of(i).annotated and given.of(i).patient in patients[1] for i in left_out)


def test_without_patients_the_folds_are_those_of_scikit_learn():
    given = annotations(("a", ("liver",), [None] * 12), ("b", ("kidney",), [None] * 7), ("none", (), [None] * 3))
    splits = stratified_splits(given, list(given.cases))
    cases = sorted(i for i in given.cases if not i.startswith("none"))
    folds = StratifiedKFold(5, shuffle=True, random_state=12345).split(cases, [given.of(i).source for i in cases])
    assert [i["val"] for i in splits] == [np.array(cases)[val].tolist() for _, val in folds]
    assert all({"none_00", "none_01", "none_02"} <= set(i["train"]) for i in splits)
    check_folds(splits, given)


def test_cases_of_a_patient_stay_together_across_sources():
    given = annotations(
        ("a", ("liver",), [f"p{n // 2}" for n in range(20)]),
        ("b", ("kidney",), ["p0", "p3", "p4", *"vwxyz"]),
        ("none", (), ["p1", None]),
    )
    splits = stratified_splits(given, list(given.cases))
    check_folds(splits, given)
    validated = Counter(i for fold in splits for i in fold["val"])
    assert validated == Counter(i for i in given.cases if not i.startswith("none"))
    assert all(any(i.startswith("b") for i in fold["val"]) for fold in splits)
    assert all("none_01" in fold["train"] for fold in splits)
    # its patient is validated in one fold, where even its image alone would leak
    assert sum("none_00" not in fold["train"] for fold in splits) == 1


@pytest.mark.parametrize("small", [1, 2, 3, 4])
def test_every_class_of_every_source_is_taught_in_every_fold(small):
    given = annotations(("a", ("liver",), [None] * 9), ("b", ("kidney",), [None] * small), ("c", ("liver", "tumor"), [None] * 5))
    splits = stratified_splits(given, list(given.cases))
    check_folds(splits, given)
    for fold in splits:
        taught = {(given.of(i).source, name) for i in fold["train"] for name in given.of(i).annotated}
        assert taught == {("a", "liver"), ("b", "kidney"), ("c", "liver"), ("c", "tumor")}
        assert fold["val"]
    validated = sum(i.startswith("b") for fold in splits for i in fold["val"])
    assert validated == (small if small > 1 else 0)


def test_class_that_one_case_of_a_large_source_annotates_is_never_left_to_validation():
    given = annotations(("a", ("liver",), [None] * 11), ("b", ("kidney",), [None] * 6))
    given.cases["a_03"] = CaseAnnotation("a", ("liver", "tumor"))
    splits = stratified_splits(given, list(given.cases))
    assert all("a_03" in fold["train"] for fold in splits)


def test_small_source_whose_cases_all_fall_into_one_fold_is_spread():
    """Many seeds of case names: whatever fold the draw gives, two cases of one source never share it."""
    for size in range(5, 30):
        given = annotations(("a", ("liver",), [None] * size), ("b", ("kidney",), [None] * 2))
        for fold in stratified_splits(given, list(given.cases)):
            assert any(i.startswith("b") for i in fold["train"])


def test_five_sources_of_one_case_are_still_five_folds():
    given = annotations(*((i, ("liver",), [None]) for i in "abcde"))
    splits = stratified_splits(given, list(given.cases))
    assert sorted(len(i["val"]) for i in splits) == [1] * 5


def test_too_few_patients_are_told():
    given = annotations(("a", ("liver",), ["p", "q", "r", "s", "s", "s"]))
    with pytest.raises(UserError, match="at least 5 patients, found 4.*fold 'all'"):
        stratified_splits(given, list(given.cases))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png", ".nrrd"])
def test_cases_of_a_plain_dataset_of_any_file_ending(tmp_path, ending):
    folder = tmp_path / "Dataset007_Plain"
    (folder / "gt_segmentations").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ending}))
    plain = Annotations(("liver",))
    with pytest.raises(UserError, match=f"holds no label file CASE{ending}.*-d 007"):
        training_cases(folder, plain, "all")
    for name in ("b", "a", ".tmp-c"):
        (folder / "gt_segmentations" / (name + ending)).touch()
    assert all_cases(folder, plain) == ["a", "b"]
