import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.data import images
from nnunet_partial.data.check import inspection
from nnunet_partial.data.check.dataset import check_dataset
from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations

THREE = (
    "--source",
    "lits=101:liver",
    "--source",
    "kits=102:kidney",
    "--source",
    "nih=103:pancreas",
    "--map",
    "lits:tumor=liver",
    "--map",
    "kits:left,right=kidney",
)


def merge(*arguments, name="Merged"):
    """Run the command; arguments are split as a shell splits them."""
    given = [part for text in arguments for part in shlex.split(text)]
    return cli.main(["merge", "--dataset-id", "501", "--name", name, "--processes", "1", *given])


def refused(capfd, raw, *arguments, name="Merged"):
    """Run a merge that must fail: one line, exit code 2, nothing new under nnUNet_raw. Returns the line."""
    before = snapshot(raw)
    with pytest.raises(SystemExit) as stop:
        merge(*arguments, name=name)
    assert stop.value.code == 2
    assert snapshot(raw) == before
    out, err = capfd.readouterr()
    assert all(i.startswith("merging") for i in out.splitlines()) and err.count("\n") == 1  # what it began with, and why it ended
    assert err.startswith("nnunet_partial: error: ")
    return err


def snapshot(folder):
    return {str(i): i.stat().st_mtime_ns for i in sorted(folder.rglob("*"))}


def dataset_json(raw, name="Dataset501_Merged"):
    return json.loads((raw / name / "dataset.json").read_text())


def label(raw, case):
    return images.read_label(raw / "Dataset501_Merged" / "labelsTr" / f"{case}.nii.gz")[0]


@pytest.fixture
def three(write_source):
    """Liver with tumour, two kidneys, pancreas."""
    write_source(101, "LiTS", {"liver": 1, "tumor": 2})
    write_source(102, "KiTS", {"right": 1, "left": 2})
    write_source(103, "NIH", {"pancreas": 1})
    return write_source


def test_three_sources_become_one_partial_dataset(three, raw, capsys, label_of):
    three(110, "FLARE", {}, labelled=False)
    merge(*THREE, "--unlabelled 110")
    content = dataset_json(raw)
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3}
    assert content["channel_names"] == {"0": "CT"} and content["file_ending"] == ".nii.gz" and content["numTraining"] == 8
    assert content["nnunet_partial"]["cases"] == {
        **{f"lits_case{i}": {"source": "lits", "annotated": ["liver"]} for i in (0, 1)},
        **{f"kits_case{i}": {"source": "kits", "annotated": ["kidney"]} for i in (0, 1)},
        **{f"nih_case{i}": {"source": "nih", "annotated": ["pancreas"]} for i in (0, 1)},
        **{f"unlabelled110_case{i}": {"source": "unlabelled110", "annotated": []} for i in (0, 1)},
    }
    assert content["dataset"]["kits_case1"] == {
        "images": ["../Dataset102_KiTS/imagesTr/case1_0000.nii.gz"],
        "label": "labelsTr/kits_case1.nii.gz",
    }
    for i in (0, 1):
        np.testing.assert_array_equal(label(raw, f"lits_case{i}"), (label_of((1, 2), i) > 0) * 1)
        np.testing.assert_array_equal(label(raw, f"kits_case{i}"), (label_of((1, 2), i) > 0) * 2)
        np.testing.assert_array_equal(label(raw, f"nih_case{i}"), (label_of((1,), i) > 0) * 3)
        assert not label(raw, f"unlabelled110_case{i}").any()
    # labels alone are written, nothing of the images
    written = sorted(str(i.relative_to(raw / "Dataset501_Merged")) for i in (raw / "Dataset501_Merged").rglob("*") if i.is_file())
    assert written == ["dataset.json", *(f"labelsTr/{i}.nii.gz" for i in sorted(content["dataset"]))]
    assert content["nnunet_partial_provenance"]["sources"]["lits"] == {
        "dataset": "Dataset101_LiTS",
        "cases": 2,
        "labels": {"liver": "liver", "tumor": "liver"},
    }
    out = capsys.readouterr().out
    assert "next: nnUNetv2_plan_and_preprocess -d 501" in out and "kits: 2 cases, annotated: kidney" in out
    assert check_dataset(raw / "Dataset501_Merged", 1, False).sources == ("kits", "lits", "nih", "unlabelled110")


def test_label_files_take_the_geometry_of_the_image(write_source, raw, write_image, label_of):
    folder = write_source(101, "A", {"liver": 1}, cases=1)
    direction = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    write_image(label_of((1,)).astype(np.int16), folder / "imagesTr" / "case0_0000.nii.gz", direction=direction)
    rounded = (0.80001, -0.59999, 0.0, 0.59999, 0.80001, 0.0, 0.0, 0.0, 1.0)
    write_image(
        label_of((1,)).astype(np.float32),
        folder / "labelsTr" / "case0.nii.gz",
        direction=rounded,
        origin=(-10.01, 20, 5),
    )
    merge("--source a=101")
    written, image = (
        sitk.ReadImage(str(i)) for i in (raw / "Dataset501_Merged/labelsTr/a_case0.nii.gz", folder / "imagesTr/case0_0000.nii.gz")
    )
    assert written.GetOrigin() == image.GetOrigin() and written.GetSpacing() == image.GetSpacing()
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
    assert written.GetPixelID() == sitk.sitkUInt8


def test_without_classes_every_label_is_kept_and_classes_can_be_ordered(three, raw):
    merge(
        "--source kits=102 --source lits=101 --source nih=103 --map kits:left=kidney --map kits:right=kidney --classes"
        " pancreas,liver,tumor,kidney"
    )
    assert dataset_json(raw)["labels"] == {"background": 0, "pancreas": 1, "liver": 2, "tumor": 3, "kidney": 4}
    assert images.present_values(label(raw, "lits_case0")) == (0, 2, 3)
    assert dataset_json(raw)["nnunet_partial"]["cases"]["lits_case0"]["annotated"] == ["liver", "tumor"]


def test_labels_are_dropped_only_when_that_is_said(three, raw):
    merge("--source lits=101:liver --map lits:tumor=background --source kits=102:left --map kits:*=background")
    assert dataset_json(raw)["labels"] == {"background": 0, "liver": 1, "left": 2}
    assert images.present_values(label(raw, "lits_case0")) == (0, 1)
    assert images.present_values(label(raw, "kits_case0")) == (0, 2)


def test_ignore_label_is_carried_through_and_can_be_made(write_source, raw, label_of):
    write_source(101, "A", {"liver": 1, "ignore": 2})
    write_source(102, "B", {"kidney": 1, "unsure": 2})
    merge("--source a=101:liver --source b=102:kidney --map b:unsure=ignore --unlabelled c=101")
    assert dataset_json(raw)["labels"] == {"background": 0, "liver": 1, "kidney": 2, "ignore": 3}
    np.testing.assert_array_equal(label(raw, "a_case0"), np.array([0, 1, 3])[label_of((1, 2))])
    np.testing.assert_array_equal(label(raw, "b_case1"), np.array([0, 2, 3])[label_of((1, 2), 1)])
    annotations = check_dataset(raw / "Dataset501_Merged", 1, False)
    assert annotations.ignore_label == 3 and annotations.values("a_case0") == (0, 1, 3)


def test_fully_labelled_source_beside_a_partial_one(write_source, raw):
    write_source(101, "Full", {"liver": 1, "kidney": 2})
    write_source(102, "Part", {"kidney": 1})
    merge("--source full=101:kidney,liver --source part=102:kidney")
    cases = dataset_json(raw)["nnunet_partial"]["cases"]
    assert cases["full_case0"]["annotated"] == ["kidney", "liver"] and cases["part_case0"]["annotated"] == ["kidney"]


def test_cases_are_left_out_by_either_name(three, raw):
    everything = ["--source", "lits=101", "--source", "kits=102"]
    merge(*everything, name="All")
    names = set(dataset_json(raw, "Dataset501_All")["nnunet_partial"]["cases"])
    shutil.rmtree(raw / "Dataset501_All")
    merge(*everything, "--exclude", "lits_case0,kits_case1")
    assert names - set(dataset_json(raw)["nnunet_partial"]["cases"]) == {"lits_case0", "kits_case1"} <= names


def test_regions_are_flattened_where_that_is_unambiguous(write_source, raw, capfd):
    folder = write_source(101, "KiTS", {"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "a": 1, "b": 3}, cases=1)
    content = json.loads((folder / "dataset.json").read_text())
    del content["labels"]["a"], content["labels"]["b"]
    (folder / "dataset.json").write_text(json.dumps(content))
    error = refused(capfd, raw, "--source k=101:kidney,tumor --map k:masses=background")
    assert "value 2 belongs to the labels 'kidney' and 'tumor'" in error and "Map both to one class" in error
    merge("--source k=101:kidney --map k:*=kidney")
    assert dataset_json(raw)["labels"] == {"background": 0, "kidney": 1}
    before = images.read_label(folder / "labelsTr" / "case0.nii.gz")[0]
    assert images.present_values(before) == (0, 1, 2, 3)
    np.testing.assert_array_equal(label(raw, "k_case0"), (before > 0) * 1)


def test_merged_dataset_can_be_merged_again(three, raw):
    merge(*THREE, "--unlabelled free=103")
    os.rename(raw / "Dataset501_Merged", raw / "Dataset400_First")
    three(104, "Spleen", {"Milz": 1})
    merge("--source abd=400:liver,organ --map abd:kidney=organ --map abd:*=background --source s=104:spleen --map s:Milz=spleen")
    content = dataset_json(raw)
    cases = content["nnunet_partial"]["cases"]
    assert content["labels"] == {"background": 0, "liver": 1, "organ": 2, "spleen": 3}
    assert cases["abd_lits_case0"] == {"source": "abd-lits", "annotated": ["liver"]}
    assert cases["abd_kits_case1"]["annotated"] == ["organ"] and cases["abd_nih_case0"]["annotated"] == []
    assert images.present_values(label(raw, "abd_kits_case1")) == (0, 2)
    assert images.present_values(label(raw, "abd_nih_case0")) == (0,)
    # the scan is in both sources: one patient, who keeps the name that the first merge gave
    assert cases["abd_free_case0"] == {"source": "abd-free", "annotated": [], "patient": "Dataset400_First:nih_case0"}
    assert cases["abd_nih_case0"]["patient"] == "Dataset400_First:nih_case0"
    assert cases["s_case0"] == {"source": "s", "annotated": ["spleen"]}
    # every path still leads to the first dataset's images
    assert content["dataset"]["abd_lits_case0"]["images"] == ["../Dataset101_LiTS/imagesTr/case0_0000.nii.gz"]
    check_dataset(raw / "Dataset501_Merged", 1, False)


def test_class_of_several_labels_counts_where_all_are_annotated(write_source, raw, edit_json, capsys):
    folder = write_source(101, "P", {"left": 1, "right": 2}, cases=3)
    contract = {f"case{i}": {"source": "p", "annotated": known} for i, known in enumerate((["left", "right"], ["left"], []))}
    edit_json(folder, nnunet_partial={"version": 1, "cases": contract})
    for i, keep in ((1, 1), (2, 0)):
        path = folder / "labelsTr" / f"case{i}.nii.gz"
        values, geometry = images.read_label(path)
        images.write_label(np.where(values <= keep, values, 0), geometry, path)
    merge("--source a=101:kidney --map a:left,right=kidney")
    cases = dataset_json(raw)["nnunet_partial"]["cases"]
    assert [cases[f"a_case{i}"]["annotated"] for i in range(3)] == [["kidney"], [], []]
    assert [images.present_values(label(raw, f"a_case{i}")) for i in range(3)] == [(0, 1), (0,), (0,)]
    assert "source a: 1 cases annotate only some of the labels that become 'kidney'" in capsys.readouterr().err


def test_images_are_referred_to_so_that_they_survive_a_move(write_source, raw, tmp_path, monkeypatch, edit_json):
    folder = write_source(101, "Ref", {"liver": 1}, cases=3)
    outside = tmp_path / "download"
    outside.mkdir()
    for i in (1, 2):
        shutil.move(folder / "imagesTr" / f"case{i}_0000.nii.gz", outside / f"volume-{i}.nii.gz")
    monkeypatch.setenv("DOWNLOADS", str(outside))
    edit_json(
        folder,
        dataset={
            "case0": {"images": ["imagesTr/case0_0000.nii.gz"], "label": "labelsTr/case0.nii.gz"},
            "case1": {"images": [str(outside / "volume-1.nii.gz")], "label": str(folder / "labelsTr" / "case1.nii.gz")},
            "case2": {
                "images": ["$DOWNLOADS/volume-2.nii.gz"],
                "label": "${nnUNet_raw}/Dataset101_Ref/labelsTr/case2.nii.gz",
            },
        },
    )
    merge("--source a=101")
    assert [dataset_json(raw)["dataset"][f"a_case{i}"]["images"][0] for i in range(3)] == [
        "../Dataset101_Ref/imagesTr/case0_0000.nii.gz",
        str(outside / "volume-1.nii.gz"),
        "$DOWNLOADS/volume-2.nii.gz",
    ]
    monkeypatch.setenv("nnUNet_raw", str(raw.rename(tmp_path / "elsewhere")))
    monkeypatch.setenv("DOWNLOADS", str(outside.rename(tmp_path / "downloads")))
    with pytest.raises(UserError, match="volume-1.nii.gz of case a_case1 does not exist"):
        check_dataset(tmp_path / "elsewhere" / "Dataset501_Merged", 1, False)
    (tmp_path / "download").symlink_to(tmp_path / "downloads")
    check_dataset(tmp_path / "elsewhere" / "Dataset501_Merged", 1, False)


def test_file_endings_may_differ(write_source, raw):
    write_source(101, "A", {"liver": 1})
    write_source(102, "B", {"kidney": 1}, ending=".nrrd")
    merge("--source a=101 --source b=102")
    content = dataset_json(raw)
    assert content["file_ending"] == ".nii.gz" and content["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert content["dataset"]["b_case0"]["images"] == ["../Dataset102_B/imagesTr/case0_0000.nrrd"]
    check_dataset(raw / "Dataset501_Merged", 1, False)


def test_reader_of_the_sources_is_kept(write_source, raw):
    write_source(101, "A", {"liver": 1}, overwrite_image_reader_writer="NibabelIOWithReorient")
    write_source(102, "B", {"kidney": 1})
    merge("--source a=101 --source b=102")
    assert dataset_json(raw)["overwrite_image_reader_writer"] == "NibabelIOWithReorient"


def test_several_channels(write_source, raw):
    write_source(101, "A", {"liver": 1}, channels=("T1", "T2"))
    write_source(102, "B", {"kidney": 1}, channels=("t1", "T2"))
    merge("--source a=101 --source b=102")
    assert dataset_json(raw)["dataset"]["a_case0"]["images"] == [f"../Dataset101_A/imagesTr/case0_000{i}.nii.gz" for i in (0, 1)]
    check_dataset(raw / "Dataset501_Merged", 1, False)


def test_pictures(write_source, raw, label_of):
    folder = raw / "Dataset101_Streets"
    for i in range(2):
        for sub, array in (
            ("imagesTr/s{}_0000.png", np.full((24, 24, 3), 9 * i, np.uint8)),
            ("labelsTr/s{}.png", label_of((1, 2), i)[4]),
        ):
            path = folder / sub.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "R", "1": "G", "2": "B"},
                "labels": {"background": 0, "road": 1, "car": 2},
                "numTraining": 2,
                "file_ending": ".png",
            }
        )
    )
    merge("--source city=101:car,road")
    written = images.read_label(raw / "Dataset501_Merged" / "labelsTr" / "city_s1.png")[0]
    np.testing.assert_array_equal(written, np.array([0, 2, 1])[label_of((1, 2), 1)[4]])


def test_cases_can_be_chosen_and_one_dataset_serve_two_sources(write_source, raw, tmp_path):
    write_source(101, "A", {"liver": 1}, cases=4)
    (tmp_path / "first.txt").write_text("case0\ncase2\n")
    (tmp_path / "rest.txt").write_text("case3\n\n")
    merge(
        "--source a=101 --unlabelled r=101 --cases",
        f"a={tmp_path / 'first.txt'}",
        "--cases",
        f"r={tmp_path / 'rest.txt'}",
    )
    assert list(dataset_json(raw)["dataset"]) == ["a_case0", "a_case2", "r_case3"]


def test_same_scan_in_two_sources_is_allowed_and_told(write_source, raw, capsys):
    a = write_source(101, "A", {"liver": 1})
    b = write_source(102, "B", {"kidney": 1})
    image = sitk.ReadImage(str(a / "imagesTr" / "case1_0000.nii.gz"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), str(b / "imagesTr" / "case0_0000.nii.gz"), False)
    merge("--source a=101 --source b=102")
    assert "warning: 1 images belong to several cases: a_case1 = b_case0" in capsys.readouterr().err
    assert dataset_json(raw)["nnunet_partial_provenance"]["same_image"] == [["a_case1", "b_case0"]]


def test_headers_only_still_sees_the_same_file_twice(write_source, raw, capsys):
    folder = write_source(101, "A", {"liver": 1})
    path = folder / "imagesTr" / "case1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    merge("--source a=101 --unlabelled b=101 --headers-only")
    assert "2 images belong to several cases: a_case0 = b_case0; a_case1 = b_case1" in capsys.readouterr().err


def test_annotated_class_that_never_occurs(write_source, raw, capfd):
    folder = write_source(101, "A", {"liver": 1, "tumor": 2})
    for i in range(2):
        path = folder / "labelsTr" / f"case{i}.nii.gz"
        values, geometry = images.read_label(path)
        images.write_label(values.clip(0, 1), geometry, path)
    error = refused(capfd, raw, "--source a=101")
    assert "source a annotates 'tumor', but none of its 2 label files" in error and "--allow-absent" in error
    merge("--source a=101 --allow-absent")
    assert "warning: source a annotates 'tumor'" in capfd.readouterr().err
    assert dataset_json(raw)["nnunet_partial"]["cases"]["a_case0"]["annotated"] == ["liver", "tumor"]


REFUSED_ARGUMENTS = {  # the options, and what the error says
    "label not accounted for": (
        "--source lits=101:liver",
        "label 'tumor' of Dataset101_LiTS (labels: liver, tumor) is neither listed nor mapped",
        "--map lits:tumor=liver",
        "--map lits:tumor=background",
    ),
    "unknown class": ("--source lits=101:livr,tumor", "lists the class 'livr'", "Did you mean liver?", "--map lits:LABEL=livr"),
    "unknown label in mapping": (
        "--source lits=101:liver --map lits:tumour=liver",
        "has no label 'tumour'",
        "Did you mean tumor?",
        "Its labels: liver, tumor",
    ),
    "unknown class in mapping": (
        "--source lits=101:liver --map lits:tumor=livr",
        "'livr' is not among the classes of source lits",
        "Did you mean liver?",
    ),
    "mapping of an unknown source": ("--source lits=101 --map kits:tumor=liver", "there is no source 'kits'", "Sources: lits"),
    "label mapped twice": (
        "--source lits=101 --map lits:tumor=liver --map lits:tumor=background",
        "lits:tumor is mapped to 'liver' already",
    ),
    "same source twice": ("--source lits=101 --source lits=103", "source name 'lits' is given twice"),
    "class listed twice": ("--source lits=101:liver,liver", "each once"),
    "everything dropped": ("--source lits=101 --map lits:*=background", "annotates nothing", "--unlabelled lits=101"),
    "unusable source name": ("--source my__lits=101", "source name 'my__lits'"),
    "no such dataset": ("--source x=999", "dataset id 999", "convert or merge it first"),
    "no source": ("", "no source given"),
    "nothing labelled": ("--unlabelled 101", "no source annotates anything"),
    "malformed source": ("--source 101", "NAME=ID:CLASS"),
    "malformed map": ("--source lits=101 --map tumor=liver", "--map lits:tumor=liver"),
    "empty class": ("--source lits=101:liver,,tumor", "a name is missing"),
    "map of an unlabelled source": ("--source lits=101 --unlabelled u=103 --map u:pancreas=x", "has no labels to map"),
    "classes that are not those of the sources": (
        "--source lits=101 --classes liver,tumour",
        "--classes liver,tumour",
        "liver,tumor",
    ),
    "names that differ in case only": (
        "--source lits=101 --source nih=103 --map nih:pancreas=Liver",
        "'liver' and 'Liver'",
        "--map SOURCE:Liver=",
    ),
    "no processes": ("--source lits=101 --processes 0", "--processes 0"),
    "case list with an unknown case": ("--source lits=101 --cases lits=CASES", "has no case 'case9'", "case0, case1"),
    "excluded case that is not there": (
        "--source lits=101 --exclude lits_cas0",
        "--exclude lits_cas0: no source has such a case",
        "Did you mean lits_case0",
    ),
    "excluded case of two sources": (
        "--source lits=101 --source nih=103 --exclude case0",
        "lits and nih have a case of that name",
    ),
    "missing case list": ("--source lits=101 --cases lits=/nowhere.txt", "/nowhere.txt cannot be read"),
}


@pytest.mark.parametrize("what", REFUSED_ARGUMENTS)
def test_arguments_that_contradict_the_sources(three, raw, capfd, tmp_path, what):
    arguments, *expected = REFUSED_ARGUMENTS[what]
    (tmp_path / "cases.txt").write_text("case0\ncase9")
    error = refused(capfd, raw, *[i.replace("CASES", str(tmp_path / "cases.txt")) for i in arguments.split()])
    for text in expected:
        assert text in error


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_dataset_id_that_is_taken(three, raw, capfd, variable):
    taken = raw.parent / variable / "Dataset501_Other"
    taken.mkdir()
    assert f"dataset id 501 is taken by {taken}" in refused(capfd, raw, *THREE)


def test_unusable_target(three, raw, capfd):
    assert "--name 'a/b'" in refused(capfd, raw, *THREE, name="a/b")
    assert "--name 'a__b'" in refused(capfd, raw, *THREE, name="a__b")
    assert "--dataset-id 1000" in refused(capfd, raw, *THREE, "--dataset-id 1000")


def test_case_names_that_collide(write_source, raw, capfd, edit_json):
    a, b = write_source(101, "A", {"liver": 1}, cases=1), write_source(102, "B", {"kidney": 1}, cases=1)
    for folder, old, new in ((a, "case0", "b_c"), (b, "case0", "c")):
        os.rename(folder / f"imagesTr/{old}_0000.nii.gz", folder / f"imagesTr/{new}_0000.nii.gz")
        os.rename(folder / f"labelsTr/{old}.nii.gz", folder / f"labelsTr/{new}.nii.gz")
    error = refused(capfd, raw, "--source a=101 --source a_b=102")
    assert "two cases would be called a_b_c" in error and "Dataset101_A" in error and "Dataset102_B" in error


def test_source_names_that_collide(three, raw, capfd):
    merge(*THREE)
    os.rename(raw / "Dataset501_Merged", raw / "Dataset400_First")
    capfd.readouterr()
    error = refused(capfd, raw, "--source abd=400 --source abd-lits=103")
    assert "abd-lits" in error and "Rename source" in error


DAMAGE = {
    "truncated image": (
        lambda f, w, lab: _cut(f / "imagesTr/case1_0000.nii.gz"),
        "case1_0000.nii.gz is truncated or damaged",
        "again",
    ),
    "truncated label": (
        lambda f, w, lab: _cut(f / "labelsTr/case1.nii.gz"),
        "labelsTr/case1.nii.gz is truncated or damaged",
        "again",
    ),
    "label that is text": (
        lambda f, w, lab: (f / "labelsTr/case0.nii.gz").write_text("404"),
        "case0.nii.gz cannot be read as an image",
    ),
    "value not declared": (
        lambda f, w, lab: w(lab((1, 2, 7)), f / "labelsTr/case0.nii.gz"),
        "case0.nii.gz holds the value 7",
        "0, 1, 2",
    ),
    "fractions": (
        lambda f, w, lab: w(lab((1,)) * np.float32(0.5), f / "labelsTr/case0.nii.gz"),
        "case0.nii.gz holds the value 0.5",
    ),
    "NaN": (lambda f, w, lab: w(np.full((24, 24, 24), np.nan), f / "labelsTr/case0.nii.gz"), "case0.nii.gz holds NaN"),
    "negative": (
        lambda f, w, lab: w(lab((1,)) * np.int16(-1), f / "labelsTr/case0.nii.gz"),
        "holds the negative value -1",
    ),
    "another origin": (
        lambda f, w, lab: w(lab((1,)), f / "labelsTr/case0.nii.gz", origin=(0, 0, 0)),
        "differ in origin",
        "Resample",
    ),
    "another spacing": (
        lambda f, w, lab: w(lab((1,)), f / "labelsTr/case0.nii.gz", spacing=(1, 1, 1)),
        "differ in spacing",
    ),
    "another size": (
        lambda f, w, lab: w(lab((1,))[:-1], f / "labelsTr/case0.nii.gz"),
        "differ in size (24, 24, 24) and (24, 24, 23)",
    ),
    "another direction": (
        lambda f, w, lab: w(lab((1,)), f / "labelsTr/case0.nii.gz", direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        "differ in origin",
    ),
    "sheared": (
        lambda f, w, lab: _shear(f / "imagesTr/case0_0000.nii.gz"),
        "case0_0000.nii.gz has axes that are not at right angles",
    ),
    "no label": (
        lambda f, w, lab: (f / "labelsTr/case1.nii.gz").unlink(),
        "labelsTr/case1.nii.gz of case case1 does not exist",
        "--unlabelled",
    ),
    "no labels at all": (lambda f, w, lab: shutil.rmtree(f / "labelsTr"), "labelsTr/case0.nii.gz", "--unlabelled"),
    "no images": (lambda f, w, lab: shutil.rmtree(f / "imagesTr"), "imagesTr does not exist"),
    "stray file": (
        lambda f, w, lab: w(lab((1,)), f / "imagesTr/case5.nii.gz"),
        "case5.nii.gz is not named CASE_0000.nii.gz",
    ),
    "missing case": (
        lambda f, w, lab: (f / "imagesTr/case1_0000.nii.gz").unlink(),
        "'numTraining' is 2 but 1 training cases",
    ),
    "wrong first channel": (
        lambda f, w, lab: os.rename(f / "imagesTr/case1_0000.nii.gz", f / "imagesTr/case1_0001.nii.gz"),
        "case case1: channel 0000 is missing",
    ),
    "no dataset.json": (lambda f, w, lab: (f / "dataset.json").unlink(), "dataset.json does not exist"),
    "broken dataset.json": (lambda f, w, lab: (f / "dataset.json").write_text("{"), "dataset.json is not valid JSON"),
    "list as dataset.json": (lambda f, w, lab: (f / "dataset.json").write_text("[]"), "'labels' is missing"),
}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _shear(path):
    affine = np.diag([1.5, 1.5, 2, 1])
    affine[0, 1] = 0.5
    nibabel.save(nibabel.Nifti1Image(np.zeros((24, 24, 24), np.float32), affine), path)


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_source(three, raw, capfd, write_image, label_of, what):
    damage, *expected = DAMAGE[what]
    damage(raw / "Dataset101_LiTS", write_image, label_of)
    error = refused(capfd, raw, *THREE)
    for text in expected:
        assert text in error


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            {"channel_names": {"0": "MR"}},
            "channel_names differ: .*Dataset101_LiTS/dataset.json has CT, .*Dataset103_NIH/dataset.json has MR",
        ),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "case0 has 1 image files .* names 2 channels"),
        ({"channel_names": {"1": "CT"}}, "'channel_names' must be"),
        ({"channel_names": {}}, "'channel_names' must be"),
        ({"labels": {"background": 0, "pancreas": "x"}}, "label 'pancreas' must have a whole number"),
        ({"labels": {"pancreas": 1}}, "must hold 'background' with the value 0"),
        ({"file_ending": ".tif"}, "numTraining"),
        ({"overwrite_image_reader_writer": "Tiff3DIO"}, "demand different readers"),
        ({"dataset": {"a": {"images": []}}, "numTraining": 1}, "case a under 'dataset' must be"),
        (
            {"dataset": {"a": {"images": ["nowhere.nii.gz"], "label": "labelsTr/case0.nii.gz"}}, "numTraining": 1},
            "nowhere.nii.gz of case a does not",
        ),
        (
            {"dataset": {"a": {"images": ["imagesTr/case0_0000.nii.gz"], "label": "x.nii.gz"}}, "numTraining": 1},
            "x.nii.gz of case a does not exist",
        ),
        (
            {"nnunet_partial": {"version": 1, "cases": {"case0": {"source": "s", "annotated": ["pancreas"]}}}},
            "case case1 is missing under",
        ),
        (
            {
                "nnunet_partial": {
                    "version": 1,
                    "cases": {f"case{i}": {"source": "s", "annotated": ["pancreas"]} for i in range(3)},
                }
            },
            "case case2 is listed under 'nnunet_partial.cases' but has no image",
        ),
        (
            {
                "nnunet_partial": {
                    "version": 1,
                    "cases": {f"case{i}": {"source": "s", "annotated": []} for i in range(2)},
                }
            },
            "no case of .*Dataset103_NIH annotates all the labels that become 'pancreas'",
        ),
    ],
)
def test_contradictory_dataset_json(three, raw, capfd, edit_json, change, expected):
    edit_json(raw / "Dataset101_LiTS", overwrite_image_reader_writer="SimpleITKIO")
    edit_json(raw / "Dataset103_NIH", **change)
    assert re.search(expected, refused(capfd, raw, *THREE))


def test_class_whose_labels_are_never_annotated_together(write_source, raw, capfd, edit_json):
    folder = write_source(101, "P", {"left": 1, "right": 2})
    edit_json(
        folder,
        nnunet_partial={
            "version": 1,
            "cases": {
                "case0": {"source": "p", "annotated": ["left"]},
                "case1": {"source": "p", "annotated": ["right"]},
            },
        },
    )
    error = refused(capfd, raw, "--source a=101 --map a:left,right=kidney")
    assert "annotates all the labels that become 'kidney' (left, right)" in error


def test_value_outside_the_annotated_set_of_a_case(write_source, raw, capfd, edit_json):
    folder = write_source(101, "P", {"left": 1, "right": 2})
    edit_json(
        folder,
        nnunet_partial={
            "version": 1,
            "cases": {
                "case0": {"source": "p", "annotated": ["left", "right"]},
                "case1": {"source": "p", "annotated": ["left"]},
            },
        },
    )
    assert "case1.nii.gz holds the value 2, but dataset.json lets this case have only 0, 1" in refused(
        capfd, raw, "--source a=101"
    )


def test_endings_that_cannot_be_merged(write_source, raw, capfd, label_of, edit_json):
    write_source(101, "A", {"liver": 1})
    write_source(102, "B", {"kidney": 1}, ending=".nrrd", overwrite_image_reader_writer="NibabelIO")
    assert "reader NibabelIO, which cannot read the .nrrd files" in refused(capfd, raw, "--source a=101 --source b=102")
    folder = raw / "Dataset103_C"
    for path in ("imagesTr/c_0000.png", "labelsTr/c.png", "imagesTr/c_0000.tif", "labelsTr/c.tif"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(label_of((1,))[4]), str(folder / path))
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "road": 1},
                "numTraining": 1,
                "file_ending": ".png",
            }
        )
    )
    assert "pictures and volumes cannot be merged" in refused(capfd, raw, "--source a=101 --source c=103")
    edit_json(folder, file_ending=".tif")
    assert "file ending '.tif' cannot be merged" in refused(capfd, raw, "--source c=103")


def test_channels_that_lie_elsewhere(write_source, raw, capfd, write_image, label_of):
    folder = write_source(101, "A", {"liver": 1}, channels=("T1", "T2"))
    write_image(label_of((1,)), folder / "imagesTr/case1_0001.nii.gz", origin=(0, 0, 0))
    assert "case1_0000.nii.gz and " in refused(capfd, raw, "--source a=101")
    (folder / "imagesTr/case1_0001.nii.gz").unlink()
    assert "case case1 has 1 image files" in refused(capfd, raw, "--source a=101")


def test_several_processes_give_the_same_files(three, raw):
    merge(*THREE)
    one = {i.name: i.read_bytes() for i in (raw / "Dataset501_Merged").rglob("*") if i.is_file()}
    shutil.rmtree(raw / "Dataset501_Merged")
    merge(*THREE, "--processes 2")
    assert {i.name: i.read_bytes() for i in (raw / "Dataset501_Merged").rglob("*") if i.is_file()} == one


def test_failure_in_another_process_is_one_line_too(three, raw, capfd):
    _cut(raw / "Dataset102_KiTS/labelsTr/case1.nii.gz")
    assert "Dataset102_KiTS/labelsTr/case1.nii.gz is truncated" in refused(capfd, raw, *THREE, "--processes 2")


SLOW = """
import sys, time
from nnunet_partial import cli
from nnunet_partial.data import images
write = images.write_label
def slow(*arguments):
    write(*arguments)
    print("written", flush=True)
    time.sleep(60)
images.write_label = slow
cli.main(sys.argv[1:])
"""


def test_killed_merge_leaves_nothing_that_nnunet_sees_and_the_next_one_cleans_up(three, raw):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "merge", "--dataset-id", "501", "--name", "Merged", "--processes", "1", *THREE],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "written\n" in iter(process.stdout.readline, "")  # which ends where the process does
    with pytest.raises(UserError, match="belongs to another merge into this dataset"):
        merge_datasets(501, "Merged", [SourceSpec("nih", 103)], processes=1, progress=False)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list(raw.glob("Dataset501*")) and len(list(raw.glob(".merging-*"))) == 1
    merge(*THREE)
    assert not list(raw.glob(".merging-*"))
    check_dataset(raw / "Dataset501_Merged", 1, False)


def test_workers_of_a_killed_merge_die_too(three, raw):
    script = raw.parent / "script.py"
    script.write_text("""
import os, sys, time
from nnunet_partial.data.parallel import map_cases
def work(folder):
    open(os.path.join(folder, f"{os.getpid()}.pid"), "w").close()
    time.sleep(120)
if __name__ == "__main__":
    map_cases(work, [sys.argv[1]] * 2, 2)
""")
    folder = raw.parent / "pids"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.DEVNULL)
    until(lambda: len(os.listdir(folder)) == 2)
    process.kill()
    process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{i[:-4]}") and "Z" not in state(i[:-4]) for i in os.listdir(folder)))


def state(process):
    try:
        with open(f"/proc/{process}/stat") as handle:
            return handle.read().rsplit(")", 1)[1].split()[0]
    except OSError:  # it has gone this moment
        return "Z"


def until(condition, seconds=60):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("did not happen in time")


def test_stock_nnunet_plans_and_preprocesses_what_was_merged(write_source, raw, console):
    write_source(101, "LiTS", {"liver": 1, "tumor": 2})
    write_source(102, "KiTS", {"kidney": 1, "unsure": 2})
    write_source(103, "NIH", {"pancreas": 1}, ending=".nrrd")
    write_source(110, "FLARE", {}, cases=1, labelled=False)
    merge(
        "--source lits=101:liver --map lits:tumor=liver --source kits=102:kidney --map kits:unsure=ignore --source"
        " nih=103:pancreas --unlabelled 110"
    )
    plan = ("nnUNetv2_plan_and_preprocess", "-d", 501, "--verify_dataset_integrity", "-np", 1, "-npfp", 1, "-c", "3d_fullres")
    console(*plan, env={"nnUNet_n_proc_DA": "1"})
    folder = raw.parent / "nnUNet_preprocessed" / "Dataset501_Merged"
    annotations = Annotations.from_dataset_json(json.loads((folder / "dataset.json").read_text()))
    assert annotations.labels() == {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3, "ignore": 4}
    for case in annotations.cases:
        merged = label(raw, case)
        seg = np.asarray(blosc2.open(str(folder / "nnUNetPlans_3d_fullres" / f"{case}_seg.b2nd"))[:])[0]
        np.testing.assert_array_equal(seg, merged)
        assert {*np.unique(seg)} <= {*annotations.values(case)}
        with open(folder / "nnUNetPlans_3d_fullres" / f"{case}.pkl", "rb") as handle:
            locations = pickle.load(handle)["class_locations"]
        for name, value in annotations.labels().items():
            if name not in ("background", "ignore"):
                found = np.array(locations[value])
                assert len(found) == (merged == value).sum()
                assert len(found) == 0 or (merged[tuple(found[:, 1:].T)] == value).all()
        np.testing.assert_array_equal(images.read_label(folder / "gt_segmentations" / f"{case}.nii.gz")[0], merged)


def test_a_source_whose_contract_knows_one_source_keeps_the_name_it_is_given(write_source, raw, edit_json):
    folder = write_source(101, "Converted", {"liver": 1})
    contract = {f"case{i}": {"source": "download", "annotated": ["liver"]} for i in (0, 1)}
    edit_json(folder, nnunet_partial={"version": 1, "cases": contract})
    merge("--source lits=101:liver")
    assert dataset_json(raw)["nnunet_partial"]["cases"]["lits_case0"] == {"source": "lits", "annotated": ["liver"]}


def test_sources_of_different_granularity_are_refused_with_options_that_settle_it(write_source, raw, capfd, label_of):
    write_source(101, "LR", {"left_kidney": 1, "right_kidney": 2})
    write_source(102, "Kid", {"kidney": 1})
    error = refused(capfd, raw, "--source lr=101 --source kid=102")
    assert "source kid has the class 'kidney' where source lr tells 'left_kidney' and 'right_kidney' apart" in error
    coarse = re.search(r"make it one class: (.*?); or", error)[1]
    fine = re.search(r"teach nothing of it: (.*?); or", error)[1]
    assert coarse == "--map lr:left_kidney,right_kidney=kidney" and fine == "--map kid:kidney=background"
    merge("--source lr=101 --source kid=102", coarse)
    assert dataset_json(raw)["labels"] == {"background": 0, "kidney": 1}
    np.testing.assert_array_equal(label(raw, "lr_case0"), label_of((1, 2)) > 0)


def test_granularity_of_listed_classes_and_of_a_source_that_teaches_nothing_of_it(write_source, raw, capfd):
    write_source(101, "LT", {"liver": 1, "tumor": 2})
    write_source(102, "Liv", {"liver": 1, "spleen": 2})
    error = refused(capfd, raw, "--source lt=101:liver,tumor --source liv=102")
    assert "--source lt=101:liver --map lt:tumor=liver;" in error and "--map liv:liver=background" in error
    merge("--source lt=101:liver,tumor --source liv=102 --map liv:liver=background")
    assert dataset_json(raw)["nnunet_partial"]["cases"]["liv_case0"]["annotated"] == ["spleen"]


def test_parts_that_do_not_overlap_can_be_kept(write_source, raw):
    write_source(101, "LT", {"liver": 1, "tumor": 2})
    write_source(102, "Liv", {"liver": 1})
    merge("--source lt=101 --source liv=102 --allow-parts")
    assert dataset_json(raw)["labels"] == {"background": 0, "liver": 1, "tumor": 2}


@pytest.mark.parametrize("first, second", [("kidney_left", "left kidney"), ("tumour", "Tumors"), ("lk", "LeftKidney")])
def test_one_organ_in_other_words(write_source, raw, capfd, first, second):
    write_source(101, "A", {first: 1})
    write_source(102, "B", {second: 1})
    assert "look like the same organ" in refused(capfd, raw, "--source a=101 --source b=102")


@pytest.mark.parametrize("name, what", [("a,b", "','"), ("a=b", "'='"), ("a+b", "'+'"), ("*", "'*'"), (" liver", "begins")])
def test_classes_that_no_command_could_name(write_source, raw, capfd, name, what):
    write_source(101, "A", {name: 1})
    error = refused(capfd, raw, "--source a=101")
    assert f"class {name!r}" in error and what in error and "Rename that label in the source's dataset.json" in error
    # mapped to another name it does no harm
    merge("--source a=101:liver --map a:*=liver")


def test_label_along_other_axes_than_its_image_is_reordered(write_source, raw, label_of):
    folder = write_source(101, "A", {"liver": 1, "spleen": 2})
    file = folder / "labelsTr" / "case1.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "SAR"), str(file), True)
    merge("--source a=101")
    np.testing.assert_array_equal(label(raw, "a_case1"), label_of((1, 2), 1))
    images.check_same_geometry(folder / "imagesTr/case1_0000.nii.gz", raw / "Dataset501_Merged/labelsTr/a_case1.nii.gz")


@pytest.mark.parametrize(
    "readers, expected",
    [
        ((None, None), "SimpleITKIOWithReorient"),
        (("NibabelIO", None), "NibabelIOWithReorient"),
        (("SimpleITKIO", "SimpleITKIOWithReorient"), "SimpleITKIOWithReorient"),
    ],
)
def test_files_with_other_axes_get_the_reader_that_brings_them_together(write_source, raw, readers, expected):
    for n, reader in enumerate(readers):
        content = {} if reader is None else {"overwrite_image_reader_writer": reader}
        folder = write_source(101 + n, f"S{n}", {f"organ{n}": 1}, **content)
        for file in folder.rglob("*.nii.gz") if n else ():
            sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(file), True)
    merge("--source a=101 --source b=102")
    assert dataset_json(raw)["overwrite_image_reader_writer"] == expected
    found = inspection.inspect(raw / "Dataset501_Merged", processes=1).findings
    assert [i.level for i in found if i.kind == "orientation"] == ["note"]


def with_nan(folder, ending=".nii.gz"):
    file = folder / "imagesTr" / f"case1_0000{ending}"
    image = sitk.ReadImage(str(file))
    values = sitk.GetArrayFromImage(image)
    values[3, 4, 5], values[6, 7, 8] = np.nan, np.inf
    other = sitk.GetImageFromArray(values)
    other.CopyInformation(image)
    sitk.WriteImage(other, str(file), True)
    return file, values


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_nan_in_an_image_is_refused_or_replaced_in_a_copy(write_source, raw, capfd, ending):
    folder = write_source(101, "A", {"liver": 1}, ending=ending)
    file, values = with_nan(folder, ending)
    before = file.read_bytes()
    error = refused(capfd, raw, "--source a=101")
    assert f"image {file} of case a_case1 holds 2 voxels that are NaN or infinite" in error
    assert "--replace-not-finite" in error
    merge("--source a=101 --replace-not-finite=-1024")
    assert "1 cases have images with NaN or infinite voxels, copied with these replaced: a_case1" in capfd.readouterr().err
    content = dataset_json(raw)["dataset"]
    assert content["a_case0"]["images"] == [f"../Dataset101_A/imagesTr/case0_0000{ending}"]
    assert content["a_case1"]["images"] == [f"imagesTr/a_case1_0000{ending}"]
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "Dataset501_Merged/imagesTr" / f"a_case1_0000{ending}")))
    np.testing.assert_array_equal(written, np.where(np.isfinite(values), values, -1024))
    assert file.read_bytes() == before
    check_dataset(raw / "Dataset501_Merged", 1, False)


def test_replacing_needs_the_voxels(write_source, raw, capfd):
    write_source(101, "A", {"liver": 1})
    assert "leave --headers-only out" in refused(capfd, raw, "--source a=101 --headers-only --replace-not-finite 0")


def patients(raw):
    return {k: v["patient"] for k, v in dataset_json(raw)["nnunet_partial"]["cases"].items() if "patient" in v}


def test_patients_of_names_of_images_and_of_a_file(write_source, raw, tmp_path, write_image, capsys):
    acdc = write_source(101, "ACDC", {"heart": 1}, cases=3)
    for n, name in enumerate(("patient001_frame01", "patient001_frame12", "other")):
        os.rename(acdc / "imagesTr" / f"case{n}_0000.nii.gz", acdc / "imagesTr" / f"{name}_0000.nii.gz")
        os.rename(acdc / "labelsTr" / f"case{n}.nii.gz", acdc / "labelsTr" / f"{name}.nii.gz")
    other = write_source(102, "B", {"liver": 1}, cases=4)
    for n, name in enumerate(("patient001_frame01", "other")):  # the same scans, stored along other axes, in another type
        image = sitk.DICOMOrient(sitk.ReadImage(str(acdc / "imagesTr" / f"{name}_0000.nii.gz"), sitk.sitkFloat64), "RSA")
        sitk.WriteImage(image, str(other / "imagesTr" / f"case{n}_0000.nii.gz"))
        file = other / "labelsTr" / f"case{n}.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RSA"), str(file))
    (tmp_path / "p.csv").write_text("case,patient\nb_case2,p7\nb_case3,p7\n")
    merge("--source a=101 --source b=102 --patients", str(tmp_path / "p.csv"))
    assert patients(raw) == {
        "a_patient001_frame01": "Dataset101_ACDC:patient001",
        "a_patient001_frame12": "Dataset101_ACDC:patient001",
        "b_case0": "Dataset101_ACDC:patient001",
        "a_other": "a_other",
        "b_case1": "a_other",
        "b_case2": "p7",
        "b_case3": "p7",
    }
    assert "patients: 3 known, of 7 cases" in capsys.readouterr().out


def test_patients_of_a_contract_are_kept_and_those_of_other_datasets_are_others(write_source, raw, edit_json):
    for n in (101, 102):
        folder = write_source(n, f"S{n}", {"liver": 1})
        cases = {f"case{i}": {"source": "s", "annotated": ["liver"], "patient": "7"} for i in (0, 1)}
        edit_json(folder, nnunet_partial={"version": 1, "cases": cases})
    merge("--source a=101 --source b=102")
    assert patients(raw) == {f"{s}_case{i}": f"Dataset{d}_S{d}:7" for s, d in (("a", 101), ("b", 102)) for i in (0, 1)}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("case,patient\nnobody,p\n", "there is no case 'nobody' in the merged dataset. Cases are called SOURCE_CASE: a_case0"),
        ("case,patient\na_case0,\n", "row 2: 'case' and 'patient' must both be given"),
        ("a_case0,p\n", "holds no row"),
        ("case,patient\na_case0,p\na_case0,q\n", "case a_case0 has two patients, p and q"),
    ],
)
def test_unusable_file_of_patients(write_source, raw, capfd, tmp_path, text, expected):
    write_source(101, "A", {"liver": 1})
    (tmp_path / "p.csv").write_text(text)
    assert expected in refused(capfd, raw, "--source a=101 --patients", str(tmp_path / "p.csv"))


def test_case_that_shows_less_than_its_source_is_told(write_source, raw, capsys, write_image):
    folder = write_source(101, "A", {"liver": 1, "spleen": 2, "kidney": 3}, cases=6)
    file = folder / "labelsTr" / "case4.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image * sitk.Cast(image == 1, image.GetPixelID()), str(file))
    merge("--source a=101")
    err = capsys.readouterr().err
    assert "source a: 1 cases annotate less than they declare, it seems (a_case4): a_case4 shows liver alone" in err


def test_source_of_more_than_255_classes(write_source, raw, write_image, edit_json):
    folder = write_source(101, "Many", {"c1": 1}, cases=1)
    edit_json(folder, labels={"background": 0, **{f"c{i}": i for i in range(1, 301)}})
    values = np.arange(24**3).reshape(24, 24, 24) % 301
    write_image(values.astype(np.uint16), folder / "labelsTr" / "case0.nii.gz")
    merge("--source a=101")
    np.testing.assert_array_equal(label(raw, "a_case0"), values)
    assert images.read_label(raw / "Dataset501_Merged/labelsTr/a_case0.nii.gz")[0].dtype == np.uint16


def test_classes_that_only_a_model_knows(three, raw, capfd):
    assert merge(*THREE, "--taught spleen,stomach") == 0
    content = dataset_json(raw)
    assert content["labels"] == {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3, "spleen": 4, "stomach": 5}
    assert content["nnunet_partial_provenance"]["taught"] == ["spleen", "stomach"]
    assert {j for i in content["nnunet_partial"]["cases"].values() for j in i["annotated"]} == {"liver", "kidney", "pancreas"}
    assert check_dataset(raw / "Dataset501_Merged", 1, False).classes[-2:] == ("spleen", "stomach")


@pytest.mark.parametrize(
    "taught, words",
    [
        ("liver", "--taught liver: source lits annotates it. Leave it out"),
        ("spleen,spleen", "twice"),
        ("Spleen,spleen", "look like the same organ"),
        ("a+b", "no command could name it"),
    ],
)
def test_taught_classes_that_cannot_be(three, raw, capfd, taught, words):
    assert words in refused(capfd, raw, *THREE, f"--taught {taught}")


def test_a_model_may_tell_a_union_apart_that_no_source_does(three, raw, capfd):
    union = "kits:left,right=kidney_left+kidney_right"
    sides = ("--source lits=101:liver", "--map lits:tumor=liver", "--source kits=102", f"--map {union}")
    assert "if a model knows them, --taught kidney_right" in refused(capfd, raw, *sides)
    assert merge(*sides, "--taught kidney_left,kidney_right") == 0
    annotated = dataset_json(raw)["nnunet_partial"]["cases"]
    assert next(v["annotated"] for k, v in annotated.items() if k.startswith("kits")) == [["kidney_left", "kidney_right"]]
