"""Tiny downloads in the layouts of the releases. A scan is 24 blocks of 64 voxels, in another order on every scan; each release
outlines its own structures. A prediction that keeps a share of every block has known figures.
"""

import numpy as np
import SimpleITK as sitk

from dataset_conversion import btcv, cityscapes, flare22, moba
from nnunet_partial.demo import phantoms
from nnunet_partial.files import write_json

VOXELS, BLOCK = 64, (4, 4, 4)
STRUCTURES = ("", *btcv.ORGANS, "duodenum", "tumour")
OF_PATIENT = {
    "liver": phantoms.LIVER,
    "tumour": phantoms.LIVER_TUMOUR,
    "right_kidney": phantoms.KIDNEY,
    "left_kidney": phantoms.KIDNEY,
    "pancreas": phantoms.PANCREAS,
}


def anatomy(number):
    """(z, y, x): at every voxel the index of what it shows in ``STRUCTURES``."""
    order = np.random.default_rng(number).permutation(24)
    return np.kron(np.where(order < len(STRUCTURES), order, 0).reshape(2, 3, 4), np.ones(BLOCK, int))


def outlined(number, values):
    """The label map of a scan; ``values``: structure -> value."""
    table = np.array([values.get(i, 0) for i in STRUCTURES], np.uint8)
    return table[anatomy(number)]


def grey(number, seed=None):
    noise = np.random.default_rng(seed or number).integers(-9, 9, (8, 12, 16))
    return (50 * anatomy(number) - 200 + noise).astype(np.int16)


def patient(seed, style):
    """In the place of ``phantoms.make_patient``, whose layouts then hold blocks. ``seed`` ends with the case's number."""
    return phantoms.Patient(grey(seed[-1], seed), outlined(seed[-1], OF_PATIENT), (0.8, 0.9, 2.5), (-11.0, 7.0, 101.5))


def write(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=array.shape[-1] == 3)
    if array.ndim == 3 and array.shape[-1] != 3:
        image.SetSpacing((0.8, 0.9, 2.5))
    sitk.WriteImage(image, str(file), True)


def make_lits(folder):
    """Five cases, and a scan of the test set, which has no label."""
    phantoms.make_lits(folder, 5)
    write(grey(101), folder / "test-volume-0.nii")


def make_kits(folder):
    """Five cases, and the first that has no label."""
    phantoms.make_kits(folder, 5)
    write(grey(102), folder / "case_00210" / "imaging.nii.gz")


def make_msd(folder, values, first):
    """A task of five cases and a test image; ``values``: name of a label -> structure and value."""
    cases = [f"case_{first + i}" for i in range(6)]
    for number, case in enumerate(cases, first):
        write(grey(number), folder / ("imagesTs" if case == cases[-1] else "imagesTr") / f"{case}.nii.gz")
        if case != cases[-1]:
            write(outlined(number, dict(values.values())), folder / "labelsTr" / f"{case}.nii.gz")
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for name, (_, value) in values.items()}},
        "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in cases[:-1]],
        "test": [f"./imagesTs/{cases[-1]}.nii.gz"],
    }
    write_json(content, folder / "dataset.json")


def make_btcv(folder, labelled=4):
    """Scans of training, and one for testing."""
    for number in range(201, 201 + labelled):
        write(grey(number), folder / "RawData" / "Training" / "img" / f"img0{number}.nii.gz")
        label = outlined(number, {name: i for i, name in enumerate(btcv.ORGANS, 1)})
        write(label, folder / "RawData" / "Training" / "label" / f"label0{number}.nii.gz")
    write(grey(299), folder / "RawData" / "Testing" / "img" / "img0299.nii.gz")


def make_moba(folder, tcia, of_btcv=4):
    """Labels of the scans of ``make_btcv`` and of the first ``tcia`` ones of NIH, and of one that was withdrawn."""
    values = {**{name: value for name, (value,) in moba.STRUCTURES.items()}, "aorta": moba.INCOMPLETE[1]}
    for publisher, numbers in (("btcv", range(201, 201 + of_btcv)), ("tcia", (*range(1, tcia + 1), 25))):
        for number in numbers:
            write(outlined(number, values), folder / f"label_{publisher}_multiorgan" / f"label{number:04d}.nii.gz")


def make_flare22(folder, labelled=5, unlabelled=3):
    for number in range(301, 301 + labelled):
        part, case = folder / "FLARE22_LabeledCase50", f"FLARE22_Tr_0{number}"
        write(grey(number), part / "images" / f"{case}_0000.nii.gz")
        label = outlined(number, {name: i for i, name in enumerate(flare22.ORGANS, 1)})
        write(label, part / "labels" / f"{case}.nii.gz")
    for number in range(401, 401 + unlabelled):
        write(grey(number), folder / "FLARE22_UnlabeledCase1-1000" / f"Case_00{number}_0000.nii.gz")


def make_cityscapes(folder, train=12, extra=2):
    """Pictures of 32 blocks of 64 pixels: each class once, and void."""
    places = [("train", "aachen")] * train + [("train_extra", "augsburg")] * extra
    places += [("val", i) for i in ("frankfurt", "lindau", "munster")]
    for number, (part, city) in enumerate(places):
        rng = np.random.default_rng(number)
        ids = np.resize([*cityscapes.CLASSES.values()], 32) * (np.arange(32) < len(cityscapes.CLASSES))
        ids = np.kron(rng.permutation(ids).reshape(4, 8), np.ones((8, 8), int)).astype(np.uint8)
        name = f"{city}_000000_{number:06d}"
        write(
            rng.integers(0, 255, (*ids.shape, 3)).astype(np.uint8),
            folder / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png",
        )
        if part != "train_extra":
            write(ids, folder / "gtFine" / part / city / f"{name}_gtFine_labelIds.png")
