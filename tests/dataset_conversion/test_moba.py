"""MOBA: labels for images of BTCV and NIH, regions of cropping.csv, mirrored labels."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion import moba
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError

VALUES = {phantoms.LIVER: 6, phantoms.LIVER_TUMOUR: 6, phantoms.KIDNEY: 3, phantoms.KIDNEY_TUMOUR: 3, phantoms.PANCREAS: 11}
CLASSES = list(moba.STRUCTURES)
EXPECTED = {6: CLASSES.index("liver") + 1, 3: CLASSES.index("left_kidney") + 1, 11: CLASSES.index("pancreas") + 1}
IGNORE = len(CLASSES) + 1


@pytest.fixture
def release(src, tools):
    """BTCV case 1 and TCIA case 2 with a region each; the TCIA label is upside down. Returns (images, labels) in
    patient axes.
    """
    images, labels, rows = {}, {}, []
    for publisher, number in (("BTCV", 1), ("TCIA", 2)):
        patient = phantoms.make_patient(number)
        name = f"{publisher.lower()}_{number:04d}"
        images[name], label = patient.ct_image(), sitk.GetArrayFromImage(patient.label_image(VALUES))
        label[3:6, 20:24, 10:12] = 8 if publisher == "BTCV" else 0  # an aorta, which is not complete
        labels[name] = label
        where = np.argwhere(label > 0)
        (z0, y0, x0), (z1, y1, x1) = where.min(0), where.max(0) + 1
        rows.append(
            {
                "publisher": publisher,
                "original_id": number,
                "extent_left": x0,
                "extent_right": x1,
                "extent_post": y0,
                "extent_ant": y1,
                "extent_inf": z0,
                "extent_sup": z1,
            }
        )
        stored = label if publisher == "BTCV" else label[::-1]
        tools.write(src / f"label_{publisher.lower()}_multiorgan" / f"label{number:04d}.nii.gz", np.ascontiguousarray(stored))
    (src / "RawData" / "Training" / "img").mkdir(parents=True)
    sitk.WriteImage(images["btcv_0001"], str(src / "RawData" / "Training" / "img" / "img0001.nii.gz"), True)
    phantoms.write_dicom_series(images["tcia_0002"], src / "Pancreas-CT" / "PANCREAS_0002" / "a" / "b")
    with open(src / "cropping.csv", "w", newline="") as handle:
        table = csv.DictWriter(handle, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    tools.write(src / "label_tcia_multiorgan" / "label0025.nii.gz", label)
    return images, labels


def inside(label):
    where = np.argwhere(label > 0)
    mask = np.zeros(label.shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0)))] = True
    return mask


def test_release(src, tools, release, run):
    images, labels = release
    report = run("moba", src)
    expected = {k: np.where(inside(v), tools.remap(v, EXPECTED), IGNORE) for k, v in labels.items()}
    tools.check(
        report,
        source="moba",
        classes=CLASSES,
        ignore=True,
        skipped={"tcia_0025": "its image is not there (withdrawn)"},
        cases={
            "btcv_0001": ([src / "RawData" / "Training" / "img" / "img0001.nii.gz"], expected["btcv_0001"], CLASSES),
            "tcia_0002": ([images["tcia_0002"]], expected["tcia_0002"], CLASSES),
        },
    )
    assert any("mirrored along z" in i for i in report.converted["tcia_0002"].notes)
    assert not any("mirrored" in i for i in report.converted["btcv_0001"].notes)


def test_whole_volumes_without_the_table_and_images_elsewhere(src, tmp_path, tools, release, run):
    images, labels = release
    (src / "cropping.csv").unlink()
    (src / "RawData").rename(tmp_path / "btcv")
    (src / "Pancreas-CT").rename(tmp_path / "tcia")
    with pytest.raises(UserError, match="holds no cropping.csv"):
        run("moba", src)
    report = run("moba", src, "--whole", "--btcv", tmp_path / "btcv", "--tcia", tmp_path / "tcia")
    tools.check(
        report,
        source="moba",
        classes=CLASSES,
        skipped=dict(report.skipped),
        cases={
            "btcv_0001": (
                [tmp_path / "btcv" / "Training" / "img" / "img0001.nii.gz"],
                tools.remap(labels["btcv_0001"], EXPECTED),
                CLASSES,
            ),
            "tcia_0002": ([images["tcia_0002"]], tools.remap(labels["tcia_0002"], EXPECTED), CLASSES),
        },
    )


@pytest.mark.parametrize("flip", [(), (0,), (1,), (0, 1, 2)])
def test_region_counts_from_the_end_that_holds_the_label(flip):
    label = np.zeros((10, 12, 14), np.uint8)
    label[1:4, 2:5, 3:6] = 1
    mask = moba.region_mask(np.flip(label, flip), ((3, 6), (2, 5), (1, 4)), "label")
    assert np.array_equal(mask, np.flip(label, flip) > 0)
