"""Cityscapes: RGB pictures in place, 19 classes with void ignored, super-classes, pictures without labels."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import cityscapes

CLASSES = list(cityscapes.CLASSES)
DATASET = {  # what every choice of classes gives
    "source": "cityscapes",
    "channels": ("R", "G", "B"),
    "ending": ".png",
    "reader": "NaturalImage2DIO",
    "ignore": True,
    "files": ["super_classes.json"],
}


@pytest.fixture
def pictures(src, tools):
    """Write one picture of train, train_extra and val each; returns name -> (path, label ids or None)."""
    found = {}
    for part, city, number in (("train", "aachen", 0), ("train_extra", "augsburg", 1), ("val", "ulm", 2)):
        name = f"{city}_000000_{number:06d}"
        rgb = np.random.default_rng(number).integers(0, 255, (8, 16, 3)).astype(np.uint8)
        picture = src / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png"
        picture.parent.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(picture))
        ids = None
        if part != "train_extra":
            ids = np.resize(np.arange(34, dtype=np.uint8), (8, 16))
            tools.write(src / "gtFine" / part / city / f"{name}_gtFine_labelIds.png", ids)
            tools.write(src / "gtFine" / part / city / f"{name}_gtFine_instanceIds.png", ids)
        found[name] = (picture, ids)
    return found


def test_nineteen_classes(src, tools, pictures, run):
    report = run("cityscapes", src, "--unlabelled")
    aachen, augsburg = pictures["aachen_000000_000000"], pictures["augsburg_000000_000001"]
    ids = {value: CLASSES.index(name) + 1 for name, value in cityscapes.CLASSES.items()}
    expected = np.vectorize(lambda v: ids.get(int(v), 20))(aachen[1])
    tools.check(
        report,
        **DATASET,
        classes=CLASSES,
        cases={"aachen_000000_000000": ([aachen[0]], expected, CLASSES), "augsburg_000000_000001": ([augsburg[0]], None, [])},
    )
    assert json.loads((report.folder / "super_classes.json").read_text()) == {
        k: list(v) for k, v in cityscapes.SUPER_CLASSES.items()
    }


def test_super_classes(src, tools, pictures, run):
    report = run("cityscapes", src, "--super-classes")
    super_of = {
        cityscapes.CLASSES[name]: i + 1 for i, members in enumerate(cityscapes.SUPER_CLASSES.values()) for name in members
    }
    picture, ids = pictures["aachen_000000_000000"]
    expected = np.vectorize(lambda v: super_of.get(int(v), 6))(ids)
    classes = ["road", "vehicle", "person", "vegetation", "others"]
    tools.check(
        report,
        **DATASET,
        classes=classes,
        skipped=dict(report.skipped),
        cases={"aachen_000000_000000": ([picture], expected, classes)},
    )


def test_every_class_has_one_super_class():
    members = [name for group in cityscapes.SUPER_CLASSES.values() for name in group]
    assert sorted(members) == sorted(CLASSES) and len(CLASSES) == 19


def test_nnunet_reads_picture_and_label(src, pictures, run):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    report = run("cityscapes", src, "--with-val")
    assert len(report.converted) == 2
    case = report.converted["ulm_000000_000002"]
    image, _ = NaturalImage2DIO().read_images(case.images)
    label, _ = NaturalImage2DIO().read_seg(str(report.folder / case.label))
    assert image.shape == (3, 1, 8, 16) and label.shape == (1, 1, 8, 16) and set(np.unique(label)) == set(range(1, 21))
