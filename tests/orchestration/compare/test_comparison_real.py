"""A small comparison by nnU-Net's own commands: two methods on tiny phantoms, to the page."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli

CASES, ORGANS = 2, ("liver", "kidney", "pancreas")


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory, forked_programs):
    root = tmp_path_factory.mktemp("compared")
    for folder in ("imagesTs", "labelsTs"):
        (root / folder).mkdir()
    raw = tiny.folders.raw / tiny.name / "imagesTr"
    for number, image in enumerate(sorted(raw.iterdir())[:CASES]):
        (root / "imagesTs" / f"t{number}_0000.nii.gz").write_bytes(image.read_bytes())
        # the truth of these phantoms, as good as can be seen: brighter is the next organ
        read = sitk.ReadImage(str(image))
        label = sitk.GetImageFromArray(
            np.digitize(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(read, 2.0)), (30, 80, 130)).astype(np.uint8)
        )
        label.CopyInformation(read)
        sitk.WriteImage(label, str(root / "labelsTs" / f"t{number}.nii.gz"))
    argv = [
        "compare",
        str(tiny.id),
        "--plans",
        tiny.plans,
        "--methods",
        "naive,partial",
        "--test",
        str(root),
        "--executor",
        "debug",
        "--device",
        "cpu",
        "--disable-tta",
        "--set",
        "num_epochs=1",
        "--out",
        str(root / "out"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNUNET_PARTIAL_PROGRAMS", str(forked_programs))
        assert cli.main(argv) == 0
    return root / "out"


def test_both_methods_are_ranked_on_all_organs(compared):
    content = json.loads((compared / "report.json").read_text())
    assert {i["name"] for i in content["ranking"]} == {"naive nnU-Net", "Partial"}
    for name in ("naive", "partial"):
        rows = json.loads((compared / "evaluation" / name / "s0" / "metrics.json").read_text())["rows"]
        assert {(i["case"], i["class"]) for i in rows} == {(f"t{n}", organ) for n in range(CASES) for organ in ORGANS}


def test_the_page_shows_training_cases_costs_and_commands(compared):
    page = (compared / "report.html").read_text()
    text = re.sub("<[^>]+>", " ", page)
    for expected in (
        "nnUNetTrainerNaive",
        "nnUNetTrainerPartial",
        "1 of 1",
        "nnUNetv2_train Dataset501_Tiny 3d_fullres 0 -tr nnUNetTrainerPartial -p nnUNetPlans_tiny_compare-s0 -device cpu --c",
        "used for nothing but these figures",
    ):
        assert expected in text, expected
    assert "no longer in" not in text
    # organs x places + organs side by side + box plots + curves
    assert page.count("<img ") >= len(ORGANS) + 3 + 2


def test_both_had_the_same_plans(compared, tiny):
    plans = [
        json.loads((tiny.results / f"nnUNetTrainer{i}__nnUNetPlans_tiny_compare-s0__3d_fullres" / "plans.json").read_text())
        for i in ("Naive", "Partial")
    ]
    assert plans[0]["nnunet_partial"] == plans[1]["nnunet_partial"] and plans[0]["nnunet_partial"]["num_epochs"] == 1
