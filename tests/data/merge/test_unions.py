"""Unions in merge: classes that one source does not tell apart and another does; nnU-Net's regions."""

import json
import os
import re

import numpy as np
import pytest

from nnunet_partial.data import images
from nnunet_partial.data.merge.regions import exclusive_labels, regions_as_unions
from nnunet_partial.labels import Annotations
from tests.data.merge.test_merge import dataset_json, label, merge, refused


def cases_of(raw):
    content = dataset_json(raw)
    Annotations.from_dataset_json(content)  # it is read as it was written
    return content["nnunet_partial"]["version"], content["nnunet_partial"]["cases"]


def test_a_source_that_does_not_tell_sides_apart(write_source, raw, capfd, label_of):
    write_source(101, "Sides", {"kidney_left": 1, "kidney_right": 2})
    write_source(102, "KiTS", {"spleen": 1, "kidney": 2})
    error = refused(capfd, raw, "--source lr=101 --source kits=102")
    union = re.search(r"Either say that it is their union: (.*?); or", error)[1]
    assert union == "--map kits:kidney=kidney_left+kidney_right"
    merge("--source lr=101 --source kits=102", union)
    version, cases = cases_of(raw)
    assert dataset_json(raw)["labels"] == {"background": 0, "kidney_left": 1, "kidney_right": 2, "spleen": 3}
    assert version == 2 and cases["lr_case0"]["annotated"] == ["kidney_left", "kidney_right"]
    assert cases["kits_case1"]["annotated"] == [["kidney_left", "kidney_right"], "spleen"]
    before = images.read_label(raw / "Dataset102_KiTS" / "labelsTr" / "case1.nii.gz")[0]
    np.testing.assert_array_equal(label(raw, "kits_case1"), np.array([0, 3, 1])[before])  # the union has its lowest value


def test_listed_classes_and_the_order_of_classes(write_source, raw, capfd):
    write_source(101, "LT", {"liver": 1, "tumor": 2})
    write_source(102, "BTCV", {"spleen": 1, "liver": 2, "aorta": 3})
    assert "say that it is their union: --map btcv:liver=liver+tumor;" in refused(
        capfd, raw, "--source lt=101 --source btcv=102:liver,spleen --map btcv:aorta=background"
    )
    merge(
        "--source lt=101 --source btcv=102:liver,spleen --map btcv:aorta=background --map btcv:liver=liver+tumor",
        "--classes tumor,spleen,liver",
    )
    assert cases_of(raw)[1]["btcv_case0"]["annotated"] == [["tumor", "liver"], "spleen"]
    assert images.present_values(label(raw, "btcv_case0")) == (0, 1, 2)


def test_a_dataset_with_unions_is_merged_again(write_source, raw):
    write_source(101, "Sides", {"kidney_left": 1, "kidney_right": 2})
    write_source(102, "KiTS", {"kidney": 1})
    merge("--source lr=101 --source kits=102 --map kits:kidney=kidney_left+kidney_right")
    os.rename(raw / "Dataset501_Merged", raw / "Dataset400_First")
    write_source(103, "Spleen", {"spleen": 1})
    merge("--source a=400 --source s=103")
    version, cases = cases_of(raw)
    assert version == 2 and cases["a_kits_case0"]["annotated"] == [["kidney_left", "kidney_right"]]
    assert cases["a_lr_case0"] == {"source": "a-lr", "annotated": ["kidney_left", "kidney_right"]}
    os.rename(raw / "Dataset501_Merged", raw / "Dataset401_Second")
    merge("--source a=401 --map a:kidney_left,kidney_right=kidney")
    version, cases = cases_of(raw)  # one class again: nothing is left to tell apart
    assert version == 1 and cases["a_a_kits_case0"]["annotated"] == cases["a_a_lr_case0"]["annotated"] == ["kidney"]
    os.rename(raw / "Dataset501_Merged", raw / "Dataset402_Third")
    merge("--source a=401 --map a:kidney_right=background --allow-parts")
    assert cases_of(raw)[1]["a_a_kits_case0"]["annotated"] == []  # a union that is dropped in part cannot be divided
    assert not label(raw, "a_a_kits_case0").any() and images.present_values(label(raw, "a_a_lr_case0")) == (0, 1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--source kits=102 --map kits:kidney=left+right", "no source tells 'right' apart from the rest of 'left+right'"),
        ("--source lr=101 --source kits=102 --map kits:kidney=kidney_left+", "write different names of classes"),
        ("--source lr=101 --source kits=102 --map kits:kidney=kidney_left+kidney_left", "write different names of classes"),
        ("--source lr=101 --source kits=102 --map kits:kidney=kidney_left+background", "write different names of classes"),
        ("--source lr=101 --map lr:kidney_right=kidney_left+kidney_right", "which share 'kidney_left'"),
    ],
)
def test_unions_that_say_nothing_are_refused(write_source, raw, capfd, arguments, words):
    write_source(101, "Sides", {"kidney_left": 1, "kidney_right": 2})
    write_source(102, "KiTS", {"kidney": 1})
    assert words in refused(capfd, raw, arguments)


BRATS = {"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


@pytest.mark.parametrize(
    "labels, classes",
    [
        (BRATS, {"whole_without_core": (1,), "core_without_enhancing": (2,), "enhancing": (3,)}),
        (
            {"background": (0,), "kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)},
            {"kidney_without_masses": (1,), "tumor": (2,), "masses_without_tumor": (3,)},
        ),
        ({"background": (0,), "a": (1, 2), "b": (2, 3)}, {"a_without_b": (1,), "a_and_b": (2,), "b_without_a": (3,)}),
        ({"background": (0,), "both": (1, 2), "left": (1,), "right": (2,)}, {"left": (1,), "right": (2,)}),
        ({"background": (0,), "a": (1, 2), "b": (3,)}, {"a": (1, 2), "b": (3,)}),  # no overlap: as it is
    ],
)
def test_regions_as_exclusive_classes(labels, classes):
    assert exclusive_labels({**labels, "ignore": (9,)}) == {"background": (0,), "ignore": (9,), **classes}


def test_regions_are_unions():
    unions = regions_as_unions(BRATS)
    assert {k: v.members for k, v in unions.items()} == {
        "whole": ("whole_without_core", "core_without_enhancing", "enhancing"),
        "core": ("core_without_enhancing", "enhancing"),
    }


@pytest.fixture
def brats(write_source, raw):
    folder = write_source(101, "BraTS", {"a": 1, "b": 2, "c": 3})
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {k: v[0] if len(v) == 1 else list(v) for k, v in BRATS.items()}
    content["regions_class_order"] = [1, 2, 3]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunets_regions_become_classes_and_another_sources_region_their_union(brats, write_source, raw):
    write_source(102, "Core", {"core": 1})
    merge("--source brats=101 --source other=102")
    version, cases = cases_of(raw)
    names = ["whole_without_core", "core_without_enhancing", "enhancing"]
    assert dataset_json(raw)["labels"] == {"background": 0, **{n: i for i, n in enumerate(names, 1)}}
    assert version == 2 and cases["brats_case0"]["annotated"] == names and cases["other_case0"]["annotated"] == [names[1:]]
    np.testing.assert_array_equal(label(raw, "brats_case0"), images.read_label(brats / "labelsTr" / "case0.nii.gz")[0])
    assert images.present_values(label(raw, "other_case0")) == (0, 2)


def test_exclusive_classes_of_regions_can_be_renamed(brats, write_source, raw):
    write_source(102, "Whole", {"tumour": 1})
    os.symlink(brats, raw / "Dataset103_Scans")
    merge(
        "--unlabelled 103 --source brats=101 --map brats:whole_without_core=edema --map brats:core_without_enhancing=necrosis",
        "--source w=102 --map w:tumour=whole",
    )
    assert cases_of(raw)[1]["w_case0"]["annotated"] == [["edema", "necrosis", "enhancing"]]
