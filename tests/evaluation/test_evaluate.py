"""Folders of predictions against folders of truth: which classes, which values, which cases, and what is written."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation import evaluate as evaluation
from nnunet_partial.evaluation.evaluate import evaluate_folder, parse_tolerances
from nnunet_partial.evaluation.metrics import METRICS, all_metrics
from nnunet_partial.evaluation.results import format_summary, markdown_table, mean_dice, read_metrics, summarise
from nnunet_partial.evaluation.statistics import bootstrap_ci, compare

SPACING_XYZ = (2.0, 1.0, 5.0)
SPACING_ZYX = SPACING_XYZ[::-1]
LABELS = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
ANNOTATED = {
    "lits_0": ("lits", ["liver"]),
    "lits_1": ("lits", ["liver"]),
    "kits_0": ("kits", ["kidney"]),
    "full_0": ("full", ["liver", "kidney", "spleen"]),
    "none_0": ("none", []),
}


def contract(cases=ANNOTATED):
    return {"version": 1, "cases": {k: {"source": s, "annotated": a} for k, (s, a) in cases.items()}}


def write_dataset_json(folder, labels=LABELS, cases=ANNOTATED):
    content = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": 1, "file_ending": ".nii.gz", "name": "Abdomen"}
    if cases is not None:
        content["nnunet_partial"] = contract(cases)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def write(array, path, spacing_xyz=SPACING_XYZ, origin=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing_xyz[: array.ndim])
    image.SetOrigin(origin or (0.0,) * array.ndim)
    sitk.WriteImage(image, str(path))


def label_map(shift=0):
    """All three organs; ``shift`` moves them along x."""
    label = np.zeros((6, 16, 20), np.uint8)
    for value, box in enumerate((np.s_[1:5, 2:8, 2:8], np.s_[2:4, 9:14, 2:6], np.s_[1:4, 9:12, 10:14]), start=1):
        label[box] = value
    return np.roll(label, shift, axis=2)


def only(label, *values):
    return np.where(np.isin(label, values), label, 0)


@pytest.fixture
def abdomen(tmp_path):
    """A merged dataset: truth holds what is annotated, predictions hold every organ, two voxels off along x."""
    raw = tmp_path / "raw" / "Dataset501_Abdomen"
    write_dataset_json(raw)
    for case, (_, annotated) in ANNOTATED.items():
        write(only(label_map(), *(LABELS[i] for i in annotated)), raw / "labelsTr" / f"{case}.nii.gz")
        write(label_map(2), tmp_path / "pred" / f"{case}.nii.gz")
    return tmp_path


def evaluate(abdomen, **options):
    options = {
        "pred": abdomen / "pred",
        "truth": abdomen / "raw" / "Dataset501_Abdomen" / "labelsTr",
        "dataset": abdomen / "raw" / "Dataset501_Abdomen" / "dataset.json",
        "processes": 1,
        "progress": False,
        **options,
    }
    return evaluate_folder(options.pop("pred"), options.pop("truth"), options.pop("dataset"), **options)


def pairs(rows):
    return [(i["case"], i["class"]) for i in rows]


def test_only_annotated_classes_are_evaluated(abdomen):
    rows = evaluate(abdomen)
    assert pairs(rows) == [
        ("full_0", "liver"),
        ("full_0", "kidney"),
        ("full_0", "spleen"),
        ("kits_0", "kidney"),
        ("lits_0", "liver"),
        ("lits_1", "liver"),
    ]
    assert [i["source"] for i in rows] == ["full"] * 3 + ["kits", "lits", "lits"]


def test_values_are_those_of_the_whole_masks(abdomen):
    for row in evaluate(abdomen, tolerance_mm=3.0):
        value = LABELS[row["class"]]
        expected = all_metrics(label_map(2) == value, label_map() == value, SPACING_ZYX, 3.0)
        assert {k: row[k] for k in METRICS} == pytest.approx(expected)
        assert row["hausdorff_mean_mm"] == pytest.approx(2 * 2.0)  # two voxels of 2 mm


def test_a_structure_of_one_slice_is_measured_as_in_the_whole_image(abdomen):
    truth, pred = np.zeros((2, 6, 16, 20), np.uint8)
    truth[3, 4:12, 4:12], pred[3, 4:12, 6:14] = 1, 1
    write(truth, abdomen / "t" / "a.nii.gz")
    write(pred, abdomen / "p" / "a.nii.gz")
    (row,) = evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", annotated=["liver"])
    assert {k: row[k] for k in METRICS} == pytest.approx(all_metrics(pred, truth, SPACING_ZYX))


def test_missed_invented_and_absent_structures(abdomen):
    write(only(label_map(), 2), abdomen / "t" / "a.nii.gz")
    write(only(label_map(), 1), abdomen / "p" / "a.nii.gz")
    write_dataset_json(abdomen / "t", cases=None)
    rows = {i["class"]: i for i in evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", out=abdomen / "out")}
    for name in ("liver", "kidney"):
        assert rows[name]["dice"] == 0 and rows[name]["hausdorff95_mm"] == math.inf
    assert math.isnan(rows["spleen"]["dice"]) and math.isnan(rows["spleen"]["hausdorff95_mm"])
    assert repr(read_metrics(abdomen / "out")) == repr(read_metrics(abdomen / "out" / "metrics.csv")) == repr(list(rows.values()))


def test_fully_labelled_test_set_is_easy(abdomen):
    test_set = abdomen / "raw" / "Dataset501_Abdomen" / "labelsTs"
    write(label_map(), test_set / "test_0.nii.gz")
    write(label_map(2), abdomen / "p" / "test_0.nii.gz")
    with pytest.raises(UserError, match="does not say which classes are annotated on case test_0.*--annotated all"):
        evaluate(abdomen, pred=abdomen / "p", truth=test_set)
    rows = evaluate(abdomen, pred=abdomen / "p", truth=test_set, annotated="all")
    assert pairs(rows) == [("test_0", "liver"), ("test_0", "kidney"), ("test_0", "spleen")]
    assert {i["source"] for i in rows} == {"unlisted"}


def test_a_truth_folder_of_a_dataset_without_contract_is_fully_labelled(abdomen):
    write_dataset_json(abdomen / "other", {"background": 0, "spleen": 1, "liver": 2}, cases=None)
    truth = np.select([label_map() == 3, label_map() == 1], [1, 2], 0)
    write(truth, abdomen / "other" / "labelsTr" / "x.nii.gz")
    write(label_map(), abdomen / "p" / "x.nii.gz")
    rows = evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "other" / "labelsTr")
    assert [(i["class"], i["dice"], i["source"]) for i in rows] == [("liver", 1, "all"), ("spleen", 1, "all")]


def test_truth_with_other_values(abdomen):
    truth = np.select([label_map() == 1, label_map() == 2, label_map() == 3], [5, 2, 9], 0)
    truth[3, 9:14, 2:6] = np.where(truth[3, 9:14, 2:6] == 2, 3, 0)  # the second half of the kidney
    write(truth, abdomen / "t" / "x.nii.gz")
    write(label_map(), abdomen / "p" / "x.nii.gz")
    folders = {"pred": abdomen / "p", "truth": abdomen / "t"}
    for given in (["liver=5", "kidney=2+3"], ["liver=5,kidney=2+3"]):
        rows = evaluate(abdomen, **folders, truth_labels=given)
        assert [(i["class"], i["dice"]) for i in rows] == [("liver", 1), ("kidney", 1)]
    labels = {"background": 0, "liver": 5, "kidney": [2, 3], "gallbladder": 9}
    other = write_dataset_json(abdomen / "scheme", labels, cases=None)
    rows = evaluate(abdomen, **folders, truth_dataset=other)
    assert [(i["class"], i["dice"]) for i in rows] == [("liver", 1), ("kidney", 1)]
    with pytest.raises(UserError, match="not both"):
        evaluate(abdomen, **folders, truth_dataset=other, truth_labels=["liver=5"])


@pytest.mark.parametrize(
    "given,message",
    [
        (["liver"], "--truth-labels liver: write each class once"),
        (["liver=0"], "write each class once"),
        (["liver=1+"], "write each class once"),
        (["liver=1", "liver=2"], "liver=2: write each class once"),
        (["heart=1"], "'heart' is not a class.*liver, kidney, spleen"),
    ],
)
def test_bad_label_assignments(abdomen, given, message):
    with pytest.raises(UserError, match=message):
        evaluate(abdomen, truth_labels=given)


def test_predictions_of_a_teacher_have_values_of_their_own(abdomen):
    write_dataset_json(abdomen / "teacher", {"background": 0, "kidney": 1}, cases=None)
    (abdomen / "teacher" / "plans.json").write_text("{}")
    for case in ("kits_0", "full_0", "lits_0", "lits_1"):
        write((label_map() == 2).astype(np.uint8), abdomen / "teacher" / "fold_0" / "validation" / f"{case}.nii.gz")
    rows = evaluate(abdomen, pred=abdomen / "teacher" / "fold_0" / "validation", out=abdomen / "out")
    assert [(i["case"], i["class"], i["dice"]) for i in rows] == [("full_0", "kidney", 1), ("kits_0", "kidney", 1)]
    content = json.loads((abdomen / "out" / "metrics.json").read_text())
    assert content["not_evaluated"]["other_classes"] == ["lits_0", "lits_1"]
    assert content["pred_labels"] == str(abdomen / "teacher" / "dataset.json")


def test_predictions_stored_in_the_folder_of_another_dataset_keep_their_values(abdomen):
    write_dataset_json(abdomen / "raw" / "Dataset110_Other", {"background": 0, "kidney": 1}, cases=None)
    for case in ANNOTATED:
        write(label_map(), abdomen / "raw" / "Dataset110_Other" / "predictions" / "MSKD" / f"{case}.nii.gz")
    rows = evaluate(abdomen, pred=abdomen / "raw" / "Dataset110_Other" / "predictions" / "MSKD")
    assert len(rows) == 6 and {i["dice"] for i in rows} == {1}


def test_pred_labels_given(abdomen):
    write((label_map() == 2) * 7, abdomen / "p" / "kits_0.nii.gz")
    (row,) = evaluate(abdomen, pred=abdomen / "p", pred_labels=["kidney=7"], allow_missing=True)
    assert (row["class"], row["dice"]) == ("kidney", 1)


def test_nothing_in_common(abdomen):
    write((label_map() == 2) * 1, abdomen / "p" / "lits_0.nii.gz")
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(abdomen, pred=abdomen / "p", pred_labels=["kidney=1"], allow_missing=True)


def test_missing_prediction(abdomen):
    os.remove(abdomen / "pred" / "kits_0.nii.gz")
    os.remove(abdomen / "pred" / "none_0.nii.gz")  # unlabelled: nobody misses it
    with pytest.raises(UserError, match="1 of 5 cases without a prediction.*first is kits_0.*--allow-missing"):
        evaluate(abdomen, out=abdomen / "out")
    assert not (abdomen / "out").exists()
    rows = evaluate(abdomen, allow_missing=True, out=abdomen / "out")
    assert "kits_0" not in [i["case"] for i in rows]
    left_out = json.loads((abdomen / "out" / "metrics.json").read_text())["not_evaluated"]
    assert left_out == {"unlabelled": ["none_0"], "missing_prediction": ["kits_0"], "missing_truth": [], "other_classes": []}


def test_several_folders_of_predictions(abdomen):
    for i, case in enumerate(ANNOTATED):
        write(label_map(), abdomen / f"fold_{i % 2}" / f"{case}.nii.gz")
    rows = evaluate(abdomen, pred=[abdomen / "fold_0", abdomen / "fold_1"])
    assert len(rows) == 6 and {i["dice"] for i in rows} == {1}
    write(label_map(), abdomen / "fold_1" / "lits_0.nii.gz")
    with pytest.raises(UserError, match="case lits_0 has two predictions"):
        evaluate(abdomen, pred=[abdomen / "fold_0", abdomen / "fold_1"])


def test_chosen_classes(abdomen):
    assert pairs(evaluate(abdomen, annotated=["spleen"])) == [(case, "spleen") for case in sorted(ANNOTATED)]
    with pytest.raises(UserError, match="--annotated heart: there is no such class in the dataset.*liver, kidney, spleen"):
        evaluate(abdomen, annotated=["heart"])
    with pytest.raises(UserError, match="--annotated some: write auto, contract, all"):
        evaluate(abdomen, annotated="some")


def test_contract_is_strict(abdomen):
    write_dataset_json(abdomen / "other", cases=None)
    write(label_map(), abdomen / "other" / "labelsTr" / "x.nii.gz")
    write(label_map(), abdomen / "p" / "x.nii.gz")
    with pytest.raises(UserError, match="does not say which classes"):
        evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "other" / "labelsTr", annotated="contract")
    assert len(evaluate(abdomen, annotated="contract")) == 6


def test_truth_with_a_value_that_the_case_does_not_annotate(abdomen):
    truth = abdomen / "raw" / "Dataset501_Abdomen" / "labelsTr" / "kits_0.nii.gz"
    write(label_map(), truth)
    with pytest.raises(
        UserError,
        match=r"kits_0.nii.gz holds the value 1, which .*dataset.json does not allow for case kits_0 "
        r"\(allowed: 0, 2\)",
    ):
        evaluate(abdomen)


def test_prediction_with_an_unknown_value(abdomen):
    write(label_map() * 2, abdomen / "pred" / "lits_0.nii.gz")
    with pytest.raises(UserError, match="lits_0.nii.gz holds the value 4, which .*--pred-labels"):
        evaluate(abdomen)


def test_ignored_voxels_do_not_count(abdomen):
    labels = {**LABELS, "ignore": 4}
    write_dataset_json(abdomen / "t", labels, cases=None)
    truth, pred = only(label_map(), 1), only(label_map(), 1)
    truth[:, :, 6:], pred[:, :, 8:] = 4, 1  # everything wrong lies where the truth says ignore
    write(truth, abdomen / "t" / "x.nii.gz")
    write(pred, abdomen / "p" / "x.nii.gz")
    row = evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", annotated=["liver"])[0]
    assert row["dice"] == 1 and row["hausdorff_mean_mm"] == 0


@pytest.mark.parametrize(
    "change,message", [({"origin": (0.0, 0.0, 3.0)}, "differ in origin"), ({"spacing_xyz": (2.0, 1.0, 4.0)}, "differ in spacing")]
)
def test_other_geometry(abdomen, change, message):
    write(label_map(), abdomen / "pred" / "lits_0.nii.gz", **change)
    with pytest.raises(UserError, match=message):
        evaluate(abdomen)


@pytest.mark.parametrize("order", ["RAS", "SPR", "ILA"])
def test_truth_along_other_axes_is_compared_in_the_world(abdomen, order):
    """The same voxels in another order: every figure as before, distances in the right spacing included."""
    expected = evaluate(abdomen)
    file = abdomen / "raw" / "Dataset501_Abdomen" / "labelsTr" / "lits_0.nii.gz"
    image = sitk.ReadImage(str(file))
    assert len(set(image.GetSpacing())) > 1
    sitk.WriteImage(sitk.DICOMOrient(image, order), str(file))
    assert evaluate(abdomen) == expected


def test_other_size(abdomen):
    write(label_map()[:-1], abdomen / "pred" / "lits_0.nii.gz")
    with pytest.raises(UserError, match="differ in size"):
        evaluate(abdomen)


@pytest.mark.parametrize("processes", [1, 2])
def test_truncated_prediction(abdomen, processes):
    file = abdomen / "pred" / "lits_1.nii.gz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="lits_1.nii.gz is truncated") as error:
        evaluate(abdomen, processes=processes, out=abdomen / "out")
    assert "\n" not in str(error.value) and not (abdomen / "out").exists()


def test_images_in_2d(abdomen):
    write(label_map()[2], abdomen / "t" / "x.png")
    write(label_map(2)[2], abdomen / "p" / "x.png")
    row = evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", annotated=["liver"])[0]
    assert row["hausdorff_mean_mm"] == 2 and math.isnan(row["volume_difference_ml"])  # pixels


def test_other_file_formats_beside_each_other(abdomen):
    write(label_map(), abdomen / "t" / "x.nrrd")
    write(label_map(), abdomen / "p" / "x.mha")
    assert evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", annotated=["liver"])[0]["dice"] == 1
    write(label_map(), abdomen / "p" / "x.nii.gz")
    with pytest.raises(UserError, match="case x has two files in .*x.mha and x.nii.gz|x.nii.gz and x.mha"):
        evaluate(abdomen, pred=abdomen / "p", truth=abdomen / "t", annotated=["liver"])


@pytest.mark.parametrize("folder,message", [("nowhere", "is not a folder"), ("raw", "holds no label files")])
def test_folder_without_labels(abdomen, folder, message):
    with pytest.raises(UserError, match=message):
        evaluate(abdomen, pred=abdomen / folder)


def test_no_case_in_common(abdomen):
    write(label_map(), abdomen / "p" / "y.nii.gz")
    with pytest.raises(UserError, match="no case has both a truth in .*full_0, kits_0, .* and a prediction in .*y"):
        evaluate(abdomen, pred=abdomen / "p")


def test_metrics_can_be_chosen(abdomen):
    row = evaluate(abdomen, metrics=["hausdorff95_mm", "dice"])[0]
    assert list(row) == ["case", "source", "class", "dice", "hausdorff95_mm"]
    with pytest.raises(UserError, match="--metrics jaccard: there is no such metric. Metrics: dice, "):
        evaluate(abdomen, metrics=["jaccard"])


def test_tolerances():
    classes = ("liver", "left_kidney", "heart")
    assert parse_tolerances(1.5, classes) == {"liver": 1.5, "left_kidney": 1.5, "heart": 1.5}
    assert parse_tolerances(["4", "heart=1"], classes) == {"liver": 4, "left_kidney": 4, "heart": 1}
    assert parse_tolerances(["flare22"], classes) == {"liver": 5, "left_kidney": 3, "heart": 2}
    assert parse_tolerances("liver=6,flare22,1", classes) == {"liver": 6, "left_kidney": 3, "heart": 1}
    for bad, message in (
        ("nose=1", "'nose' is not a class"),
        ("liver=0", "write millimetres"),
        ("wide", "write millimetres"),
        ("nan", "write millimetres"),
    ):
        with pytest.raises(UserError, match=message):
            parse_tolerances([bad], classes)


def test_tolerance_of_each_class_is_used_and_recorded(abdomen):
    rows = {(i["case"], i["class"]): i for i in evaluate(abdomen, tolerance_mm=["0.5", "kidney=4"], out=abdomen / "out")}
    assert rows["full_0", "kidney"]["surface_dice"] == 1  # shifted by 4 mm
    assert rows["full_0", "spleen"]["surface_dice"] < 1
    content = json.loads((abdomen / "out" / "metrics.json").read_text())
    assert content["tolerance_mm"] == {"liver": 0.5, "kidney": 4.0, "spleen": 0.5}


def test_several_processes_give_the_same(abdomen):
    assert evaluate(abdomen, processes=2) == evaluate(abdomen, processes=1)


def test_dataset_by_number(abdomen, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(abdomen / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    assert evaluate(abdomen, dataset=501) == evaluate(abdomen, dataset="Dataset501_Abdomen") == evaluate(abdomen)
    with pytest.raises(UserError, match="dataset id 502"):
        evaluate(abdomen, dataset=502)


def test_summary():
    rows = [
        {"case": case, "source": "all", "class": name, "dice": dice, "hausdorff95_mm": distance}
        for case, name, dice, distance in (
            ("a", "liver", 0.9, 2.0),
            ("b", "liver", 0.7, 6.0),
            ("c", "liver", 0.0, math.inf),
            ("a", "kidney", 0.6, 4.0),
            ("b", "kidney", math.nan, math.nan),
        )
    ]
    summary = summarise(rows)
    liver, kidney = summary["classes"]["liver"], summary["classes"]["kidney"]
    assert summary["n_cases"] == 3
    assert liver["dice"]["mean"] == pytest.approx(1.6 / 3) and liver["dice"]["median"] == 0.7 and liver["dice"]["n"] == 3
    assert liver["dice"]["sd"] == pytest.approx(np.std([0.9, 0.7, 0.0], ddof=1))
    assert liver["dice"]["ci"] == list(bootstrap_ci([0.9, 0.7, 0.0]))
    assert liver["hausdorff95_mm"]["mean"] == 4.0 and liver["hausdorff95_mm"]["median"] == 6.0
    assert (liver["hausdorff95_mm"]["n"], liver["hausdorff95_mm"]["n_infinite"]) == (2, 1)
    assert (kidney["dice"]["n"], kidney["dice"]["n_undefined"]) == (1, 1) and math.isnan(kidney["dice"]["sd"])
    assert summary["mean_over_classes"]["dice"]["mean"] == pytest.approx((1.6 / 3 + 0.6) / 2)
    assert summary["mean_over_classes"]["hausdorff95_mm"]["mean"] == 4.0


def test_files(abdomen):
    rows = evaluate(abdomen, out=abdomen / "out")
    assert sorted(os.listdir(abdomen / "out")) == ["metrics.csv", "metrics.json"]

    def refuse(text):
        raise AssertionError(f"{text} is not JSON")

    content = json.loads((abdomen / "out" / "metrics.json").read_text(), parse_constant=refuse)
    assert content["dataset"] == "Abdomen" and content["annotated"] == "auto" and content["confidence"] == 0.95
    assert set(content["sources"]) == {"full", "kits", "lits"} and content["sources"]["lits"]["n_cases"] == 2
    assert set(content["sources"]["lits"]["classes"]) == {"liver"}
    assert content["not_evaluated"]["unlabelled"] == ["none_0"]
    assert read_metrics(abdomen / "out") == rows == read_metrics(abdomen / "out" / "metrics.csv")
    with open(abdomen / "out" / "metrics.csv", newline="") as handle:
        assert next(csv.reader(handle)) == ["case", "source", "class", *METRICS]
    assert compare(rows, read_metrics(abdomen / "out"))["liver"].difference == 0


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("[]", "holds no rows"),
        ('{"rows": [{"case": "a"}]}', "holds no rows"),
    ],
)
def test_reading_what_is_not_a_metrics_file(tmp_path, content, message):
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_metrics(file)


def test_command(abdomen, capsys):
    dataset = abdomen / "raw" / "Dataset501_Abdomen"
    arguments = [
        "evaluate",
        "--pred",
        str(abdomen / "pred"),
        "--truth",
        str(dataset / "labelsTr"),
        "--dataset",
        str(dataset / "dataset.json"),
        "--out",
        str(abdomen / "out"),
        "--processes",
        "1",
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for text in ("mean over classes", "HD95 mm", "not evaluated, unlabelled: 1 (none_0)", "wrote"):
        assert text in printed
    liver = next(i for i in printed.splitlines() if i.startswith("liver")).split()
    # of 6 voxels along x, 4 overlap: 2 * 4 / 12; three cases
    assert liver[1:3] == ["3", "0.6667"]


def test_command_reports_bad_input_in_one_line(abdomen, capsys):
    arguments = [
        "evaluate",
        "--pred",
        str(abdomen / "nowhere"),
        "--truth",
        str(abdomen / "pred"),
        "--dataset",
        str(abdomen / "raw" / "Dataset501_Abdomen"),
        "--out",
        str(abdomen / "out"),
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == f"nnunet_partial: error: {abdomen / 'nowhere'} is not a folder."
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--annotated", "all", "liver"])
    assert "write one of auto, contract and all" in capsys.readouterr().err


def test_real_labels_against_simpleitk(tmp_path):
    """The heart at its widest against the heart at its narrowest, of real patients annotated in part."""
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    patients = sorted((Path(os.environ["NNUNET_PARTIAL_DATA"]) / "ACDC" / "training").iterdir())[:3]
    classes, cases = {"rv": 1, "myocardium": 2, "lv": 3}, {}
    for patient, known in zip(patients, ("rv", "lv", "myocardium")):
        wide, narrow = (sitk.ReadImage(str(i)) for i in sorted(patient.glob("*_gt.nii.gz")))
        narrow.CopyInformation(wide)
        cases[patient.name] = (known, [known])
        for image, folder in ((wide, "pred"), ((narrow == classes[known]) * classes[known], "labelsTr")):
            (tmp_path / folder).mkdir(exist_ok=True)
            sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(tmp_path / folder / f"{patient.name}.nii.gz"))
    dataset = write_dataset_json(tmp_path, {"background": 0, **classes}, cases)
    rows = evaluate_folder(tmp_path / "pred", tmp_path / "labelsTr", dataset, processes=1, progress=False)
    assert pairs(rows) == [(case, known) for case, (known, _) in cases.items()]
    for row in rows:
        masks = [
            sitk.ReadImage(str(tmp_path / i / f"{row['case']}.nii.gz")) == classes[row["class"]] for i in ("pred", "labelsTr")
        ]
        overlap, itk = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
        overlap.Execute(*masks)
        itk.Execute(*masks)
        assert 0 < row["dice"] == pytest.approx(overlap.GetDiceCoefficient())
        assert itk.GetHausdorffDistance() / 2 - 1e-4 <= row["hausdorff_mean_mm"] <= itk.GetHausdorffDistance() + 1e-4
        volumes = [sitk.GetArrayViewFromImage(i).sum() * np.prod(i.GetSpacing()) / 1000 for i in masks]
        assert row["volume_difference_ml"] == pytest.approx(volumes[0] - volumes[1])


def test_a_process_is_told_of_its_case_alone(abdomen, monkeypatch):
    """The whole contract sent with every case would be work and memory in the square of the cases."""
    jobs = []
    monkeypatch.setattr(evaluation, "map_cases", lambda function, given, *_: jobs.extend(given) or map(function, given))
    rows = evaluate(abdomen)
    assert {i.case: list(i.truth_labels.annotations.cases) for i in jobs} == {i.case: [i.case] for i in jobs}
    assert {(row["case"], row["class"]) for row in rows} == {(k, name) for k, (_, names) in ANNOTATED.items() for name in names}


# ------------------------------------------------------------------ unions and regions


@pytest.fixture
def with_union(abdomen):
    """kits_0 outlines kidney and spleen as one, with the value of the lower."""
    folder = abdomen / "raw" / "Dataset501_Abdomen"
    content = json.loads((folder / "dataset.json").read_text())
    content["nnunet_partial"]["version"] = 2
    content["nnunet_partial"]["cases"]["kits_0"]["annotated"] = [["kidney", "spleen"]]
    (folder / "dataset.json").write_text(json.dumps(content))
    joint = np.where(np.isin(label_map(), (LABELS["kidney"], LABELS["spleen"])), min(LABELS["kidney"], LABELS["spleen"]), 0)
    write(joint, folder / "labelsTr" / "kits_0.nii.gz")
    return abdomen


def union_of(label, *names):
    return np.isin(label, [LABELS[i] for i in names])


def test_a_union_is_one_structure_in_a_row_of_its_own(with_union, tmp_path):
    rows = evaluate(with_union, out=tmp_path / "out", tolerance_mm=["liver=3", "spleen=4"])
    assert [i["class"] for i in rows if i["case"] == "kits_0"] == ["kidney+spleen"]
    (row,) = [i for i in rows if i["case"] == "kits_0"]
    expected = all_metrics(*(union_of(i, "kidney", "spleen") for i in (label_map(2), label_map())), SPACING_ZYX, 4.0)
    assert {k: row[k] for k in METRICS} == pytest.approx(expected)
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["tolerance_mm"]["kidney+spleen"] == 4 and content["summary"]["classes"]["kidney"]["dice"]["n"] == 1
    assert sorted(content["pred_values"]["kidney+spleen"]) == sorted([LABELS["kidney"], LABELS["spleen"]])
    assert type(row["class"]) is str and "kidney+spleen" in format_summary(content)


def test_predictions_of_a_teacher_that_has_the_union_as_one_class(with_union):
    labels = {"background": 0, "kidney+spleen": 1}
    (with_union / "teacher").mkdir()
    (with_union / "teacher" / "dataset.json").write_text(json.dumps({"labels": labels}))
    write(union_of(label_map(2), "kidney", "spleen"), with_union / "teacher" / "kits_0.nii.gz")
    rows = evaluate(with_union, pred=with_union / "teacher", allow_missing=True)
    own = [i for i in evaluate(with_union) if i["class"] == "kidney+spleen"]
    assert [i["class"] for i in rows] == ["kidney+spleen"] and rows[0]["dice"] == pytest.approx(own[0]["dice"])


def test_a_truth_with_a_member_that_a_union_does_not_allow_is_refused(with_union):
    write(label_map(), with_union / "raw" / "Dataset501_Abdomen" / "labelsTr" / "kits_0.nii.gz")
    with pytest.raises(UserError, match="does not allow for case kits_0"):
        evaluate(with_union)


def test_regions_of_predictions(with_union, tmp_path):
    file = tmp_path / "regions.json"
    file.write_text(
        json.dumps({"both": ["kidney", "spleen"], "liver": [LABELS["liver"], LABELS["kidney"]], "spleen": ["spleen"]})
    )
    rows = evaluate(with_union, regions=file, out=tmp_path / "out")
    # a region is scored where the truth tells it; called as a class, it is the region all the same
    assert pairs(rows) == [("full_0", "both"), ("full_0", "liver"), ("full_0", "spleen"), ("kits_0", "both")]
    for row, names in zip(rows, (("kidney", "spleen"), ("liver", "kidney"), ("spleen",), ("kidney", "spleen"))):
        masks = [union_of(i, *names) for i in (label_map(2), label_map())]
        assert row["dice"] == pytest.approx(all_metrics(*masks, SPACING_ZYX, 2.0)["dice"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["regions"]["both"] == ["kidney", "spleen"]


@pytest.mark.parametrize(
    "content, words",
    [
        ([], "must be"),
        ({}, "must be"),
        ({"whole": ["lung"]}, "'lung', which is no class or value"),
        ({"whole": [99]}, "99, which is no class or value"),
        ({"whole": []}, r"region 'whole' holds \[\]"),
        ({"whole": ["liver", "liver"]}, "Write each of its classes once"),
    ],
)
def test_regions_that_say_nothing_are_refused(abdomen, tmp_path, content, words):
    (tmp_path / "regions.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        evaluate(abdomen, regions=tmp_path / "regions.json")


def test_global_overlap_counts_the_voxels_of_all_cases(abdomen):
    """The whole volumes put together into one are measured as one case."""
    rows = evaluate(abdomen, out=abdomen / "out")
    overall = summarise(rows)["global"]
    for name in ("liver", "kidney", "spleen"):
        own = [i for i in rows if i["class"] == name]
        pred, truth = label_map(2) == LABELS[name], label_map() == LABELS[name]
        together = all_metrics(np.concatenate([pred] * len(own)), np.concatenate([truth] * len(own)), SPACING_ZYX)
        assert [overall[i]["classes"][name] for i in ("dice", "iou")] == pytest.approx([together["dice"], together["iou"]])
    assert json.loads((abdomen / "out" / "metrics.json").read_text())["summary"]["global"] == overall


def test_global_overlap_is_not_the_mean_over_cases():
    counts = [("a", "liver", 100, 100, 90), ("b", "liver", 0, 10, 0), ("c", "liver", 0, 0, 0), ("c", "cyst", 0, 0, 0)]
    rows = [
        {"case": case, "source": "s", "class": name, "dice": 0.5, "voxels_pred": p, "voxels_truth": t, "voxels_both": both}
        for case, name, p, t, both in counts
    ]
    summary = summarise(rows)
    assert summary["global"]["dice"]["classes"]["liver"] == pytest.approx(2 * 90 / 210)
    assert summary["global"]["iou"]["classes"]["liver"] == pytest.approx(90 / 120)
    assert math.isnan(summary["global"]["dice"]["classes"]["cyst"])
    assert summary["global"]["iou"]["mean"] == pytest.approx(90 / 120)  # what was never there is in no mean
    assert set(summary["classes"]["liver"]) == {"dice"}
    table = format_summary({"summary": summary, "rows": rows})
    assert "global Dice  global IoU" in table and "0.8571      0.7500" in table
    older = [{k: v for k, v in row.items() if not k.startswith("voxels")} for row in rows]
    assert summarise(older)["global"] == {}
    assert "global" not in format_summary(
        {"summary": {k: v for k, v in summarise(older).items() if k != "global"}, "rows": older}
    )


def test_mean_dice_is_over_the_cases_that_say_something_and_the_table_leaves_out_what_is_unknown():
    rows = [
        {"class": name, "dice": dice} for name, dice in (("liver", 0.5), ("liver", 1.0), ("liver", math.nan), ("kidney", 0.25))
    ]
    assert mean_dice(rows, ["liver", "kidney"]) == {"liver": 75.0, "kidney": 25.0, "mean": 50.0}
    assert math.isnan(mean_dice(rows, ["spleen"])["spleen"])
    table = markdown_table(
        {"one": {"liver": 75.0, "kidney": math.nan}, "two": {"kidney": 25.0, "mean": 50.0}}, ["liver", "kidney"]
    )
    assert table.splitlines()[2:] == ["| one | 75.00 |  |  |", "| two |  | 25.00 | 50.00 |"]
