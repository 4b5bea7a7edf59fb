"""BTCV, FLARE22, AMOS22, TotalSegmentator: many organs, unlabelled cases, modalities, one file per organ."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from dataset_conversion import amos22, btcv, flare22, totalsegmentator
from nnunet_partial.errors import UserError


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


def test_flare23_cases_annotate_what_their_labels_show(src, tools, run):
    shown = {1: tuple(range(1, 15)), 2: (1, 14), 3: (2, 13)}
    cases, classes = {}, [*flare22.ORGANS, "tumor"]
    for number, values in shown.items():
        name = f"FLARE23_{number:04d}"
        image = tools.write(src / "imagesTr2200" / f"{name}_0000.nii.gz", tools.grey(number))
        label = tools.label_with(number, values)
        tools.write(src / "labelsTr2200" / f"{name}.nii.gz", label)
        cases[name] = ([image], label, [classes[v - 1] for v in values])
    plain = tools.write(src / "unlabelTr1800" / "FLARE23_2201_0000.nii.gz", tools.grey(9))
    tools.write(src / "imagesTr2200" / "FLARE23_0099_0000.nii.gz", tools.grey(8))
    tools.write(src / "validation" / "FLARE23Ts_0001_0000.nii.gz", tools.grey(7))
    tools.write(src / "aladdin5-pseudo-labels-FLARE23" / "FLARE23_0001.nii.gz", tools.label_with(5, (1,)))
    report = run("flare23", src, "--unlabelled")
    skipped = {"FLARE23_0099": "FLARE23_0099_0000.nii.gz has no label"}
    expected = {**cases, "FLARE23_2201": ([plain], None, [])}
    tools.check(report, source="flare23", classes=classes, cases=expected, skipped=skipped)
    shutil.rmtree(report.folder)
    report = run("flare23", src, "--organs", "liver,kidney,tumor")
    chosen = {k: tools.remap(label, {1: 1, 2: 2, 13: 2, 14: 3}) for k, (_, label, _) in cases.items()}
    sets = {"FLARE23_0001": ["liver", "kidney", "tumor"], "FLARE23_0002": ["liver", "tumor"], "FLARE23_0003": ["kidney"]}
    tools.check(
        report,
        source="flare23",
        classes=["liver", "kidney", "tumor"],
        cases={k: (cases[k][0], chosen[k], v) for k, v in sets.items()},
        skipped=any,
    )
    with pytest.raises(UserError, match="holds FLARE23, whose cases are partially labelled. Convert it with flare23"):
        run("flare22", src, dataset_id=8)


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


@pytest.mark.parametrize(
    "structures, is_mr, words",
    [
        (["liver", "heart_atrium_left"], False, "v1 (recognised by heart_atrium_left)"),
        (["liver", "heart"], False, "v2 (recognised by heart)"),
        (["liver"], False, "v1 or v2"),
        (["face", "heart"], False, "v1 and v2 mixed (face and heart)"),
        (["liver"], True, "TotalSegmentator MR"),
    ],
)
def test_release_of_totalsegmentator(structures, is_mr, words):
    assert words in totalsegmentator.release(structures, is_mr)


def test_sheared_scan_is_resampled_on_request_and_skipped_otherwise(src, tools, run):
    """A linear ramp is what linear interpolation keeps exactly: value and label stay where they were in the patient."""
    shape = (24, 26, 22)
    affine = np.array([[2.0, 0.16, 0, -20], [0, 2, 0, -15], [0, 0, 3, 100], [0, 0, 0, 1]])
    x, y, z = nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)).transpose(3, 0, 1, 2)
    ramp = (3 * x + 2 * y - z).astype(np.float32)
    mask = ((x - 5) ** 2 + (y - 12) ** 2 + (z - 130) ** 2 < 15**2).astype(np.uint8)
    for name, array in (("ct", ramp), ("segmentations/liver", mask)):
        path = src / "s0001" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(array, affine)
        image.set_sform(affine, 1)
        image.set_qform(None, 0)
        nibabel.save(image, path)
    tools.write(src / "s0002" / "ct.nii.gz", tools.grey(2))
    tools.write(src / "s0002" / "segmentations" / "liver.nii.gz", tools.label_with(2, (1,)))
    report = run("totalsegmentator", src)
    assert set(report.converted) == {"s0002"}
    assert "right angles" in report.skipped["s0001"] and report.skipped["s0001"].endswith("--resample-sheared does it")

    report = run("totalsegmentator", src, "--resample-sheared", dataset_id=8)
    assert any("sheared: resampled" in note for note in report.converted["s0001"].notes)
    assert report.converted["s0002"].how == ("in place",)
    image = nibabel.load(report.folder / report.converted["s0001"].images[0])
    label = nibabel.load(report.folder / report.converted["s0001"].label)
    assert np.allclose(image.affine, label.affine, atol=1e-4) and image.shape == label.shape
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    x, y, z = nibabel.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1)).transpose(3, 0, 1, 2)
    index = nibabel.affines.apply_affine(np.linalg.inv(affine), np.stack([x, y, z], -1))
    inside = ((index >= 0) & (index <= np.array(shape) - 1)).all(-1)
    assert inside.sum() > 0.8 * np.prod(shape)
    assert np.abs(image.get_fdata() - (3 * x + 2 * y - z))[inside].max() < 0.02
    assert np.all(image.get_fdata()[~inside] <= ramp.max()) and np.all(label.get_fdata()[~inside] == 0)
    distance = np.sqrt((x - 5) ** 2 + (y - 12) ** 2 + (z - 130) ** 2)
    written = label.get_fdata()
    half_a_voxel = 0.5 * np.linalg.norm([2.2, 2, 3])
    assert written[distance < 15 - half_a_voxel].all() and not written[distance > 15 + half_a_voxel].any()
