"""The page of an ATSO run, from a run's files alone: verdict, generations, times, pictures, commands."""

import itertools
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli, palette
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.evaluation.atso_report import pictures, verdict
from nnunet_partial.evaluation.atso_report.generations import Run, stage_times, summarise
from nnunet_partial.evaluation.report import overlays

CLASSES = ("liver", "kidney")
SHAPE = (12, 20, 30)
SPACING_MM = (2.0, 1.0, 1.0)
CASES = [f"case_{i}" for i in range(8)]
PROPERTIES = {
    "spacing": list(SPACING_MM),
    "sitk_stuff": {"origin": (0.0, 0, 0), "direction": (1.0, 0, 0, 0, 1, 0, 0, 0, -1)},
    "shape_after_cropping_and_before_resampling": SHAPE,
    "bbox_used_for_cropping": [[0, i] for i in SHAPE],
}


def a_model(folder: Path, pseudo_dice: float) -> str:
    """A trained model, of which only the curves are read."""
    import torch

    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"nnunet_partial": {"num_epochs": 2}, "configurations": {}}))
    curves = {"train_losses": [1.0, 0.5], "mean_fg_dice": [0.1, 0.2], "ema_fg_dice": [0.1, pseudo_dice]}
    torch.save({"network_weights": {}, "logging": curves}, fold / "checkpoint_final.pth")
    return str(folder)


def labels_of(shift: int) -> np.ndarray:
    """(1, *S): two organs in the middle; and, that little anatomy can be seen there, a whole first slice that changes."""
    seg = np.zeros((1, *SHAPE), np.int8)
    seg[0, 4:8, 5 + shift : 11 + shift, 6:12] = 1
    seg[0, 5:7, 3:6, 20 + shift : 24 + shift] = 2
    seg[0, 0] = 1 + shift % 2
    return seg


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Two generations with two parts each, and a final model; no test cases."""
    results, dataset = tmp_path / "results" / "Dataset501_Tiny", tmp_path / "preprocessed" / "Dataset501_Tiny"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    folder = results / "atso" / "atso_3d_fullres_fold0"
    (folder / "logs").mkdir(parents=True)
    (dataset / "data").mkdir(parents=True)
    (dataset / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1, "kidney": 2}, "file_ending": ".nii.gz"})
    )
    configuration = {"data_identifier": "data", "spacing": SPACING_MM}
    content = {"configurations": {"3d_fullres": configuration}, "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    import blosc2

    image = np.zeros((1, *SHAPE), np.float32)
    image[0, 2:, 2:18, 2:28] = np.random.default_rng(0).uniform(50, 100, (10, 16, 26))
    for case in CASES:
        blosc2.asarray(image, urlpath=str(dataset / "data" / f"{case}.b2nd"))
        (dataset / "data" / f"{case}.pkl").write_bytes(pickle.dumps(PROPERTIES))
    for name, shift in (("generation_1", 0), ("generation_2", 1), ("final", 3)):
        _write_labels(folder / "labels" / name, shift)
    (folder / "subsets").mkdir()
    (folder / "subsets" / "reference.txt").write_text("\n".join(CASES))

    def generation(name, models, labels):
        entries = {
            i: {"folder": a_model(results / f"T__P_{i}__3d_fullres", 0.1 * len(i) + d), "predictions": None}
            for i, d in models.items()
        }
        return {"generation": name, "models": entries, "labels": labels and str(folder / "labels" / labels)}

    plan = {
        "version": 1,
        "options": {
            **{"strategy": "atso", "generations": 2, "subsets": 2, "configuration": "3d_fullres", "fold": "0"},
            **{"plans": "nnUNetPlans", "test_images": None, "test_labels": None, "reference_truth": None},
        },
        "dataset": "Dataset501_Tiny",
        "returned_model": "final",
        "reference": str(folder / "subsets" / "reference.txt"),
        "generations": [
            generation(0, {"m0": 0.0}, "generation_1"),
            generation(1, {"g1s1": 0.0, "g1s2": 0.1}, "generation_2"),
            generation(2, {"g2s1": 0.1, "g2s2": 0.2}, None),
            generation("final", {"final": 0.2}, "final"),
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    stages = {
        "m0-train": {"state": "done", "seconds": 61.5, "argv": ["nnUNetv2_train", "501", "a name"]},
        "g2-report": {"state": "done", "seconds": 2.0, "argv": ["nnunet_partial", "atso", "report"]},
        "final-train": {"state": "running", "seconds": 0.0, "argv": ["nnUNetv2_train", "501"]},
        "report": {"state": "running", "seconds": 0.0, "argv": ["nnunet_partial", "atso", "report"]},
    }
    (folder / "journal.json").write_text(json.dumps({"stages": stages}))
    (folder / "logs" / "m0-train.log").write_text("")
    return folder


def _write_labels(folder, shift):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager({"background": 0, "liver": 1, "kidney": 2}, None)
    record = {"annotated": [], "pseudo": list(CLASSES), "volume_mm3": dict.fromkeys(CLASSES, 1.0)}
    for case in CASES:
        label_directory.write_case(folder, case, labels_of(shift), PROPERTIES, manager, SHAPE, record)
    label_directory.finish(folder, {"dataset": "Dataset501_Tiny", "data_identifier": "data", "classes": CLASSES}, CASES)


def page_of(run):
    assert cli.main(["atso", "report", str(run), "--pictures", "2"]) == 0
    return (run / "report" / "index.html").read_text()


# ---- what the page says


def test_every_generation_has_a_line_the_last_one_too(run):
    read = Run(run)
    rows = {row["generation"]: row["pseudo_dice"] for row in summarise(read, [], [])}
    assert rows == {
        0: pytest.approx(0.2),
        1: pytest.approx((0.4 + 0.5) / 2),
        2: pytest.approx((0.5 + 0.6) / 2),
        "final": pytest.approx(0.7),
    }
    assert '<th scope="row">2</th>' in page_of(run)


def test_a_report_does_not_list_itself_and_no_time_is_made_up(run):
    listed = {i["stage"]: (i["state"], i["seconds"]) for i in stage_times(Run(run))}
    assert listed == {"m0-train": ("done", 61.5), "g2-report": ("done", 2.0), "final-train": ("running", None)}
    page = page_of(run)
    assert 'scope="row">report</th>' not in page and ">0.0<" not in page


def test_commands_versions_models_and_logs_stand_on_the_page(run):
    page = page_of(run)
    assert "nnUNetv2_train 501 &#39;a name&#39;</code> (62 s)" in page
    assert "Python 3." in page and "torch 2" in page
    links = {(run / "report" / i).resolve() for i in re.findall(r'<a href="([^#"][^"]*)"', page)}
    models = {run.parent.parent / f"T__P_{i}__3d_fullres" / "fold_0" for i in ("m0", "g1s1", "g1s2", "g2s1", "g2s2", "final")}
    assert links == {*models, run / "logs" / "m0-train.log"}


def test_a_picture_says_what_its_colours_and_sides_are_and_its_caption_is_in_its_frame(run):
    page = page_of(run)
    assert "seen from the feet: the patient's right is on the left" in page.replace("&#39;", "'")
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    assert len(figures) == 1 + 2 and all("<figcaption>" in i for i in figures)
    assert all("of 12 from the feet" in i for i in figures[1:])


# ---- the verdict


def test_without_test_cases_it_says_how_to_give_them(run):
    page = page_of(run)
    assert "cannot be known from this run: no test cases were given" in page
    commands = verdict.commands_for_test_cases(Run(run))
    assert len(commands) == 5 and all(i.replace("'", "&#39;") in page for i in commands)
    import argparse
    import shlex

    from nnunet_partial.commands import evaluate, report  # the options that are printed are those that there are

    for verb, lines in ((evaluate, commands[1:4:2]), (report, commands[4:])):
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        for line in lines:
            parser.parse_args(shlex.split(line)[2:])
    (Path(Run(run).model("final")["folder"]) / "fold_0" / "checkpoint_final.pth").unlink()
    assert "The run is not over" in page_of(run) and verdict.commands_for_test_cases(Run(run)) == []


@pytest.mark.parametrize(
    "gains,said",
    [
        ([0.1] * 8, "is better than M0 on 8 test cases: mean Dice 60.0 against 50.0 %, difference +10.0 [10.0, 10.0]"),
        ([-0.1] * 8, "is worse than M0 on 8 test cases: mean Dice 40.0 against 50.0 %"),
        ([0.1, -0.1] * 4, "is not told apart from M0 on 8 test cases: mean Dice 50.0 against 50.0 %"),
        # neither truth nor prediction has the class
        ([None] + [0.1] * 7, "is better than M0 on 7 test cases: mean Dice 60.0 against 50.0 %, difference +10.0 [10.0, 10.0]"),
        ([None] * 7 + [0.1], "is not told apart from M0 on 1 test case: mean Dice 60.0 against 50.0 %"),
        ([None] * 8, "cannot be compared with M0: no class has a Dice in both on any of the test cases"),
    ],
)
def test_with_test_cases_it_says_whether_the_model_is_better_than_m0(run, gains, said):
    cache = run / "report" / "cache"
    cache.mkdir(parents=True)
    for model, values in (("m0", [0.5] * 8), ("final", [i and 0.5 + i for i in gains])):
        rows = [{"case": c, "class": "liver", "dice": v} for c, v in zip(CASES, values)]
        (cache / f"scores_{model}.json").write_text(json.dumps({"test": rows}))
    text = verdict.verdict(Run(run), [])
    assert text.startswith("The model that the run returns (final) " + said), text
    assert text in page_of(run).replace("&#39;", "'")


def test_the_truth_of_the_reference_set_is_second_best(run):
    changes = [
        {"generation": g, "case": c, "class": "liver", "dice_to_truth": v} for g, v in ((0, 0.5), ("final", 0.75)) for c in CASES
    ]
    text = verdict.verdict(Run(run), changes)
    assert "cannot be known" in text
    assert "On the cases that they were trained on, the last pseudo labels are better than M0's on 8 reference cases" in text


# ---- pictures


def test_the_slice_with_the_most_change_has_anatomy_around_it():
    image, changed = np.zeros((20, 10, 10)), np.zeros((20, 10, 10), bool)
    image[4:19, 2:8, 2:8] = 100
    changed[3] = True  # in the air
    changed[19] = True  # at the very edge
    changed[10, :5] = True
    changed[12, :4] = True
    assert pictures.shown_slice(changed, image) == 10
    changed[4:19] = False
    assert pictures.shown_slice(changed, image) in (3, 19)  # nothing changed elsewhere


@pytest.mark.parametrize(
    "code",
    [
        "".join(i)
        for axes in itertools.permutations("RAS")
        for i in itertools.product(*((a, "LPI"["RAS".index(a)]) for a in axes))
    ][::5],
)
@pytest.mark.parametrize("reader", ("sitk", "nibabel"))
def test_pictures_lie_along_the_patients_axes_however_the_file_does(tmp_path, code, reader):
    """A voxel at the patient's left, back and head, in files of any order of axes, as nnU-Net's readers read it."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    array = np.zeros((5, 6, 7), np.float32)
    array[4, 4, 5] = 1  # (z, y, x) along head, back, left
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    file = str(tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.DICOMOrient(image, code), file)
    data, properties = (SimpleITKIO if reader == "sitk" else NibabelIO)().read_images((file,))
    forward, backward = (1, 2, 0), (2, 0, 1)
    preprocessed = data[0].transpose(forward)
    spacing = [properties["spacing"][i] for i in forward]
    found, spacing_zyx = pictures.on_patient_axes(preprocessed, properties, backward, spacing)
    np.testing.assert_array_equal(found, array)
    assert spacing_zyx == pytest.approx((3.0, 2.0, 1.0))
    np.testing.assert_array_equal(pictures.on_patient_axes(preprocessed, {}, backward, spacing)[0], data[0])


def test_a_legend_names_the_colours_of_a_picture():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    plane = overlays.Plane("", np.zeros((20, 20)), (0.0, 1.0), 1.0, [(mask, palette.GREEN)])
    figure = overlays.draw_rows([plane], 1, legend={"liver": palette.GREEN}, areas={"changed": palette.REMARKABLE})
    (axis,) = figure.axes
    assert [i.get_text() for i in axis.get_legend().get_texts()] == ["liver", "changed"]
    figure.canvas.draw()
    low = min(i.get_extent()[2] for i in axis.images)
    box = axis.get_legend().get_window_extent().transformed(axis.transData.inverted())
    assert box.y0 >= 0 and box.y1 <= low  # below the picture, not on it


def test_most_changed_cases_come_first():
    rows = [
        {"generation": g, "case": c, "dice_to_previous": v}
        for g, c, v in ((1, "a", 0.9), (1, "b", 0.2), (2, "a", 0.5), (2, "b", None))
    ]
    assert pictures.most_changed(rows, 2) == [("1", "b", 0.2), ("2", "a", 0.5)]
