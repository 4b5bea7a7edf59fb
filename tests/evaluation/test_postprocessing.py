"""Postprocessing of partially annotated cases: two sources of one compact organ each, and one false voxel."""

import importlib
import json
import pickle
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.cli import main
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation import postprocessing

LIVER, KIDNEY = np.s_[2:8, 2:8, 2:8], np.s_[2:6, 14:18, 14:18]
LABELS = {"background": 0, "liver": 1, "kidney": 2}


def write(folder, case, array):
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(folder / f"{case}.nii.gz"))


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def organs(**boxes):
    result = np.zeros((10, 20, 20), np.uint8)
    for name, box in boxes.items():
        result[box] = LABELS[name]
    return result


def describe(folder, cases, partial=True):
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": len(cases), "file_ending": ".nii.gz"}
    if partial:
        entries = {k: {"source": k.split("_")[0], "annotated": v} for k, v in cases.items()}
        content["nnunet_partial"] = {"version": 1, "cases": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    plans = {"dataset_name": "Dataset501_Two", "plans_name": "p", "image_reader_writer": "SimpleITKIO", "configurations": {}}
    (folder / "plans.json").write_text(json.dumps(plans))


@pytest.fixture
def two_sources(tmp_path):
    """What fold_N/validation holds: each prediction shows its own source's organ, one has a false voxel."""
    cases = {f"{s}_{i}": [o] for s, o in (("lits", "liver"), ("kits", "kidney")) for i in range(2)}
    predictions, truth = tmp_path / "validation", tmp_path / "labels"
    for case, (organ,) in cases.items():
        mask = organs(**{organ: LIVER if organ == "liver" else KIDNEY})
        write(truth, case, mask)
        if case == "lits_0":
            mask[9, 19, 0] = 1
        write(predictions, case, mask)
    describe(predictions, cases)
    return SimpleNamespace(predictions=predictions, truth=truth, cases=cases)


@pytest.fixture
def threads(monkeypatch):
    """nnU-Net's pools of processes as pools of threads, which start in no time."""
    monkeypatch.setattr("multiprocessing.get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))


def nnunet():
    return importlib.import_module("nnunetv2.postprocessing.remove_connected_components")


def stock(module):
    return getattr(module.determine_postprocessing, "__wrapped__", module.determine_postprocessing)


def complete_prediction(folder):
    """Both organs, and the same false voxel."""
    mask = organs(liver=LIVER, kidney=KIDNEY)
    mask[9, 19, 0] = 1
    write(folder, "patient", mask)
    return mask


def applied(module, steps, mask):
    return module.apply_postprocessing(mask, *steps)


def test_stock_nnunet_alone_deletes_an_organ_and_ours_does_not(two_sources, threads, tmp_path):
    module, mask = nnunet(), complete_prediction(tmp_path / "complete")
    joint = stock(module)(str(two_sources.predictions), str(two_sources.truth), None, None, 1)
    assert joint[1][0]["labels_or_regions"] == [1, 2]
    assert not (applied(module, joint, mask) == 2).any()  # this is the fault
    steps = postprocessing.determine_postprocessing(two_sources.predictions, two_sources.truth)
    assert steps == ([module.remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": 1}])
    assert np.array_equal(applied(module, steps, mask), organs(liver=LIVER, kidney=KIDNEY))


def test_the_files_are_nnunets(two_sources, threads):
    steps = postprocessing.determine_postprocessing(two_sources.predictions, two_sources.truth)
    with open(two_sources.predictions / "postprocessing.pkl", "rb") as handle:
        assert pickle.load(handle) == steps
    content = json.loads((two_sources.predictions / "postprocessing.json").read_text())
    # lits_0: 216 voxels and one false one; lits_1 is perfect
    before = (2 * 216 / (2 * 216 + 1) + 1) / 2
    assert content["input_folder"]["mean"]["1"]["Dice"] == pytest.approx(before)
    assert content["input_folder"]["foreground_mean"]["Dice"] == pytest.approx((before + 1) / 2)
    assert content["postprocessed"]["mean"]["1"]["Dice"] == content["postprocessed"]["foreground_mean"]["Dice"] == 1
    assert content["postprocessing_fns"] == ["remove_all_but_largest_component_from_segmentation"]
    assert content["postprocessing_kwargs"] == [{"labels_or_regions": 1}]
    assert content["judged_on_cases"] == {"liver": 2, "kidney": 2}
    done = two_sources.predictions / "postprocessed"
    assert not read(done / "lits_0.nii.gz")[9, 19, 0] and read(done / "kits_0.nii.gz").sum() == 2 * 64
    summary = nnunet().load_summary_json(str(done / "summary.json"))
    assert summary["foreground_mean"]["Dice"] == 1 and summary["mean"][1]["FP"] == 0


def test_a_class_counts_only_where_it_is_annotated(two_sources, threads):
    """Complete predictions: kidneys that the labels of lits do not show are no mistake of the kidney."""
    for case, (organ,) in two_sources.cases.items():
        if organ == "liver":
            mask = organs(liver=LIVER, kidney=KIDNEY)
            mask[9, 0, 0] = 2  # in two pieces; what is not annotated says nothing
            write(two_sources.predictions, case, mask)
    found = {i.name: i for i in postprocessing.decide(two_sources.predictions, two_sources.truth, progress=False)}
    assert found["kidney"].before["Dice"] == 1 and found["kidney"].cases == 2
    assert not found["kidney"].chosen and not found["liver"].chosen


def test_a_class_in_two_pieces_stays(tmp_path):
    truth = organs(kidney=KIDNEY)
    truth[2:5, 14:17, 2:5] = 2
    write(tmp_path / "truth", "kits_0", truth)
    write(tmp_path / "predictions", "kits_0", truth)
    describe(tmp_path / "predictions", {"kits_0": ["kidney"]})
    liver, kidney = postprocessing.decide(tmp_path / "predictions", tmp_path / "truth", progress=False)
    assert not kidney.chosen and kidney.after["Dice"] == pytest.approx(2 * 64 / (64 + 64 + 27))
    assert liver.cases == 0 and np.isnan(liver.before["Dice"]) and not liver.chosen


def test_ignored_voxels_count_nowhere(tmp_path):
    truth, prediction = organs(liver=LIVER), organs(liver=LIVER)
    prediction[9, 19, 0], truth[9, 19, 0] = 1, 3
    write(tmp_path / "truth", "lits_0", truth)
    write(tmp_path / "predictions", "lits_0", prediction)
    describe(tmp_path / "predictions", {"lits_0": ["liver"]})
    file = tmp_path / "predictions" / "dataset.json"
    content = json.loads(file.read_text())
    content["labels"]["ignore"] = 3
    file.write_text(json.dumps(content))
    liver = postprocessing.decide(tmp_path / "predictions", tmp_path / "truth", progress=False)[0]
    assert liver.before["Dice"] == liver.after["Dice"] == 1 and not liver.chosen


def test_a_fully_labelled_dataset_is_nnunets_to_decide(two_sources, tmp_path):
    assert postprocessing.is_for_us(None, two_sources.predictions)
    describe(two_sources.predictions, two_sources.cases, partial=False)
    assert not postprocessing.is_for_us(None, two_sources.predictions)
    describe(two_sources.predictions, dict.fromkeys(two_sources.cases, ["liver", "kidney"]))
    assert not postprocessing.is_for_us(None, two_sources.predictions)


def test_bad_input_is_named(two_sources, tmp_path, capsys):
    (two_sources.truth / "kits_1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"kits_1\.nii\.gz does not exist"):
        postprocessing.determine_postprocessing(two_sources.predictions, two_sources.truth)
    assert not (two_sources.predictions / "postprocessing.pkl").exists()
    (tmp_path / "empty").mkdir()
    describe(tmp_path / "empty", two_sources.cases)
    with pytest.raises(UserError, match="holds no prediction"):
        postprocessing.determine_postprocessing(tmp_path / "empty", two_sources.truth)
    describe(tmp_path, two_sources.cases)
    for argv, message in (
        (["--predictions", "x"], "go together"),
        (["--predictions", "x", "--truth", "y"], "is not a folder"),
        ([], "give either"),
        ([str(tmp_path)], "fold_0/validation holds no predictions"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["postprocessing", *argv])
        assert end.value.code == 2 and message in capsys.readouterr().err


# ---- the stock commands, as processes of their own


def test_the_stock_command_decides_as_we_do_and_the_stock_command_applies_it(two_sources, tmp_path, console):
    console("nnUNetv2_determine_postprocessing", "-i", two_sources.predictions, "-ref", two_sources.truth, "-np", 1)
    pkl = two_sources.predictions / "postprocessing.pkl"
    with open(pkl, "rb") as handle:
        assert pickle.load(handle)[1] == [{"labels_or_regions": 1}]
    complete_prediction(tmp_path / "complete")
    descriptions = [i for n in ("plans", "dataset") for i in (f"-{n}_json", two_sources.predictions / f"{n}.json")]
    argv = ["-i", tmp_path / "complete", "-o", tmp_path / "done", "-pp_pkl_file", pkl, "-np", 1, *descriptions]
    console("nnUNetv2_apply_postprocessing", *argv)
    assert np.array_equal(read(tmp_path / "done" / "patient.nii.gz"), organs(liver=LIVER, kidney=KIDNEY))


@pytest.mark.parametrize("first", ["import torch", "", "import nnunetv2.postprocessing.remove_connected_components"])
def test_the_guard_is_there_whatever_is_imported_first(first):
    """torch before nnU-Net's module, in the middle of it, and after it."""
    script = (
        f"{first}\nfrom nnunetv2.evaluation.find_best_configuration import determine_postprocessing as a\n"
        "from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing as b, load_postprocess_save\n"
        "import pickle\nassert a is b and hasattr(a, '__wrapped__'), (a, b)\n"
        "assert pickle.loads(pickle.dumps(load_postprocess_save)) is load_postprocess_save\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_find_best_configuration_and_our_command_gather_the_folds(tmp_path, two_sources, threads, monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    model = tmp_path / "nnUNet_results" / "Dataset501_Two" / "nnUNetTrainerPartial__nnUNetPlans__3d_fullres"
    truth = tmp_path / "nnUNet_preprocessed" / "Dataset501_Two" / "gt_segmentations"
    for number, case in enumerate(two_sources.cases):
        write(model / f"fold_{number % 2}" / "validation", case, read(two_sources.predictions / f"{case}.nii.gz"))
        write(truth, case, read(two_sources.truth / f"{case}.nii.gz"))
    describe(model, two_sources.cases)
    describe(truth.parent, two_sources.cases)
    accumulate = importlib.import_module("nnunetv2.evaluation.accumulate_cv_results")
    monkeypatch.setattr(accumulate, "nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    monkeypatch.setattr(accumulate, "nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    argv = ["--dataset", "501", "--trainer", "nnUNetTrainerPartial", "--configuration", "3d_fullres", "--folds", "0", "1"]
    assert main(["postprocessing", *argv, "--processes", "1"]) == 0
    out = capsys.readouterr().out
    written = model / "crossval_results_folds_0_1" / "postprocessing.pkl"
    assert f"-pp_pkl_file {written}" in out and "liver: largest component alone" in out and "kidney: left as it is" in out
    with open(written, "rb") as handle:
        assert pickle.load(handle)[1] == [{"labels_or_regions": 1}]
