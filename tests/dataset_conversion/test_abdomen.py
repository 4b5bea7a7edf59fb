"""BTCV, FLARE22, AMOS22, TotalSegmentator: many organs, unlabelled cases, modalities, one file per organ."""

import json
import shutil

import numpy as np
import pytest

from dataset_conversion import amos22, btcv, flare22


def test_btcv(src, tools, run):
    values = range(1, 14)
    cases = {}
    for number in (1, 40):
        image = tools.write(src / "RawData" / "Training" / "img" / f"img{number:04d}.nii.gz", tools.grey(number))
        label = tools.label_with(number, values)
        tools.write(src / "RawData" / "Training" / "label" / f"label{number:04d}.nii.gz", label)
        cases[f"btcv_{number:04d}"] = ([image], label, btcv.ORGANS)
    tools.write(src / "RawData" / "Testing" / "img" / "img0061.nii.gz", tools.grey(61))
    tools.write(src / "RawData" / "Training" / "img" / "img0002.nii.gz", tools.grey(2))
    report = run("btcv", src)
    tools.check(
        report,
        source="btcv",
        classes=list(btcv.ORGANS),
        cases=cases,
        skipped={
            "btcv_0061": "it has no label of the classes; --unlabelled includes such cases",
            "btcv_0002": "img0002.nii.gz has no label",
        },
    )
    report.folder.rename(src.parent / "first")
    report = run("btcv", src, "--organs", "kidney,liver", dataset_id=8)
    tools.check(
        report,
        source="btcv",
        classes=["kidney", "liver"],
        skipped=dict(report.skipped),
        cases={k: (i, tools.remap(label, {2: 1, 3: 1, 6: 2}), ["kidney", "liver"]) for k, (i, label, _) in cases.items()},
    )


def test_flare22(src, tools, run):
    label = tools.label_with(0, range(1, 14))
    image = tools.write(src / "FLARE22_LabeledCase50" / "images" / "FLARE22_Tr_0001_0000.nii.gz", tools.grey(0))
    tools.write(src / "FLARE22_LabeledCase50" / "labels" / "FLARE22_Tr_0001.nii.gz", label)
    labelled = {"FLARE22_Tr_0001": ([image], label, flare22.ORGANS)}
    plain = {
        f"Case_{n:05d}": ([tools.write(src / folder / f"Case_{n:05d}_0000.nii.gz", tools.grey(n))], None, [])
        for n, folder in ((7, "FLARE22_UnlabeledCase1-1000"), (1999, "FLARE22_UnlabeledCase1001-2000"))
    }
    tools.write(src / "Validation" / "FLARETs_0001_0000.nii.gz", tools.grey(3))
    report = run("flare22", src, "--unlabelled")
    tools.check(report, source="flare22", classes=list(flare22.ORGANS), cases={**plain, **labelled})


@pytest.fixture
def amos(src, tools):
    """Write CT 1, 400 (validation), 300 (test) and MR 507; returns case -> (path, label)."""
    cases = {}
    for number, part in ((1, "Tr"), (400, "Va"), (507, "Tr")):
        image = tools.write(src / "amos22" / f"images{part}" / f"amos_{number:04d}.nii.gz", tools.grey(number))
        label = tools.label_with(number, range(1, 16 if number <= 500 else 14))
        tools.write(src / "amos22" / f"labels{part}" / f"amos_{number:04d}.nii.gz", label)
        cases[number] = (image, label)
    tools.write(src / "amos22" / "imagesTs" / "amos_0300.nii.gz", tools.grey(300))
    (src / "amos22" / "dataset.json").write_text(json.dumps({"name": "AMOS"}))
    return cases


def test_amos22_ct(src, tools, amos, run):
    report = run("amos22", src, "--with-validation", "--unlabelled")
    test = src / "amos22" / "imagesTs" / "amos_0300.nii.gz"
    tools.check(
        report,
        source="amos22",
        classes=list(amos22.ORGANS),
        cases={
            "amos_0001": ([amos[1][0]], amos[1][1], amos22.ORGANS),
            "amos_0300": ([test], None, []),
            "amos_0400": ([amos[400][0]], amos[400][1], amos22.ORGANS),
        },
    )


def test_amos22_mr_does_not_annotate_bladder_and_prostate(src, tools, amos, run):
    report = run("amos22", src, "--modality", "mr", "--organs", "liver,bladder,kidney")
    tools.check(
        report,
        source="amos22",
        classes=["liver", "bladder", "kidney"],
        channels=("MR",),
        cases={"amos_0507": ([amos[507][0]], tools.remap(amos[507][1], {6: 1, 2: 3, 3: 3}), ["liver", "kidney"])},
    )


def test_totalsegmentator(src, tools, run):
    masks = {
        name: (np.random.default_rng(i).random(tools.shape) < 0.2).astype(np.uint8)
        for i, name in enumerate(("kidney_left", "kidney_right", "liver", "spleen"))
    }
    for case, missing in (("s0000", ()), ("s0011", ("kidney_left",))):
        tools.write(src / "Totalsegmentator_dataset_v201" / case / "ct.nii.gz", tools.grey(int(case[1:])))
        for name, mask in masks.items():
            if name not in missing:
                tools.write(src / "Totalsegmentator_dataset_v201" / case / "segmentations" / f"{name}.nii.gz", mask)
    (src / "Totalsegmentator_dataset_v201" / "meta.csv").write_text("image_id;age\n")
    images = {case: src / "Totalsegmentator_dataset_v201" / case / "ct.nii.gz" for case in ("s0000", "s0011")}
    report = run("totalsegmentator", src, "--organs", "kidney_left", dataset_id=8)
    assert report.skipped == {"s0011": "it has no label of the classes; --unlabelled includes such cases"}
    shutil.rmtree(report.folder)
    report = run("totalsegmentator", src, "--organs", "liver,kidney=kidney_left+kidney_right")
    kidneys = masks["kidney_left"] | masks["kidney_right"]
    whole = np.where(masks["liver"], 1, np.where(kidneys, 2, 0))  # where masks overlap, the later name counts
    tools.check(
        report,
        source="totalsegmentator",
        classes=["liver", "kidney"],
        cases={
            "s0000": ([images["s0000"]], whole, ["liver", "kidney"]),
            "s0011": ([images["s0011"]], np.where(masks["liver"], 1, 0), ["liver"]),
        },
    )
