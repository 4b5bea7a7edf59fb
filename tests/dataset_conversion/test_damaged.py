"""Damaged downloads: one clear line and exit code 2, or a named skip beside the good case; never a partial dataset."""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.demo import phantoms

SHEARED = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.fixture
def convert(raw, capsys):
    """Run the command as a user does -> (exit code, stdout, stderr)."""

    def run(name, source, *arguments):
        code = 0
        try:
            cli.main(["convert", name, str(source), "--dataset-id", "7", "--processes", "1", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def lits(src, tools):
    """Two good cases, 0 and 1; the damage is done to 1."""
    for number in (0, 1):
        tools.write(src / f"volume-{number}.nii.gz", tools.grey(number, (12, 20, 20)))
        tools.write(src / f"segmentation-{number}.nii.gz", tools.label_with(number, (1, 2), (12, 20, 20)))
    return src


def edit(path, change, dtype=None):
    """Rewrite a NIfTI file with ``change(array (x, y, z))``."""
    image = nibabel.load(path)
    array = change(np.array(image.dataobj))
    nibabel.save(nibabel.Nifti1Image(array if dtype is None else array.astype(dtype), image.affine), path)


def set_header(path, offset, content):
    """Overwrite bytes of the header of a .nii.gz."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[offset : offset + len(content)] = content
    path.write_bytes(gzip.compress(bytes(data)))


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def with_value(value):
    def change(array):
        array[3, 3, 3] = value
        return array

    return change


def outside_link(path):
    target = path.parent.parent / "secret.nii.gz"
    shutil.move(path, target)
    path.symlink_to(target)


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def sheared(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), SHEARED), path)


def four_dimensional(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine), path)


def colours(path):
    rgb = np.zeros((20, 20, 12), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), path)


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "keep").write_text("")


IMAGE, LABEL = "volume-1.nii.gz", "segmentation-1.nii.gz"
SKIPPED_CASES = {  # name: (file, damage, words of the reason)
    "missing label": (LABEL, Path.unlink, "volume-1.nii.gz has no label"),
    "missing image": (IMAGE, Path.unlink, "segmentation-1.nii.gz has no image"),
    "truncated image": (IMAGE, lambda p: truncate(p, 0.6), "truncated or damaged"),
    "image truncated by a few bytes": (IMAGE, lambda p: p.write_bytes(p.read_bytes()[:-5]), "truncated or damaged"),
    "truncated label": (LABEL, lambda p: truncate(p, 0.5), "truncated or damaged"),
    "damaged middle of an image": (
        IMAGE,
        lambda p: p.write_bytes(p.read_bytes()[:3000] + b"\xff" * 60 + p.read_bytes()[3060:]),
        "damaged",
    ),
    "empty image": (IMAGE, lambda p: p.write_bytes(b""), "cannot be read"),
    "empty label": (LABEL, lambda p: p.write_bytes(b""), "cannot be read"),
    "image is not gzip": (IMAGE, lambda p: p.write_bytes(b"<html>404 Not Found</html>" * 40), "cannot be read"),
    "label is not gzip": (LABEL, lambda p: p.write_bytes(b"<html>404 Not Found</html>" * 40), "cannot be read"),
    "NaN in the image": (IMAGE, lambda p: edit(p, lambda a: with_value(np.nan)(a.astype(np.float32))), "holds NaN or infinite"),
    "infinity in the image": (
        IMAGE,
        lambda p: edit(p, lambda a: with_value(np.inf)(a.astype(np.float32))),
        "holds NaN or infinite",
    ),
    "NaN in the label": (LABEL, lambda p: edit(p, lambda a: with_value(np.nan)(a.astype(np.float32))), "holds NaN or infinite"),
    "fractions in the label": (LABEL, lambda p: edit(p, lambda a: with_value(0.5)(a.astype(np.float32))), "not a whole number"),
    "negative label": (LABEL, lambda p: edit(p, lambda a: with_value(-1)(a.astype(np.int16))), "holds the negative value -1"),
    "label value out of range": (LABEL, lambda p: edit(p, with_value(3)), "holds the label value 3; known values are 0, 1, 2"),
    "label value far out of range": (
        LABEL,
        lambda p: edit(p, lambda a: with_value(70000)(a.astype(np.int32))),
        "label value 70000",
    ),
    "complex voxels": (IMAGE, lambda p: edit(p, lambda a: a.astype(np.complex64)), "voxels of type"),
    "colours in the label": (LABEL, colours, "segmentation-1.nii.gz"),
    "sheared image": (IMAGE, sheared, "not at right angles"),
    "image in 4D": (IMAGE, four_dimensional, "holds 2 volumes along a fourth axis where one is expected"),
    "label in 4D": (LABEL, four_dimensional, "has 4 dimensions"),
    "label of another size": (LABEL, lambda p: edit(p, lambda a: a[:, :, :-1]), "has (20, 20, 11) voxels, its image"),
    "voxel size 0": (IMAGE, lambda p: set_header(p, 80, struct.pack("<3f", 0, 0, 0)), "has a voxel size of 0"),
    "absurd size in the header": (IMAGE, lambda p: set_header(p, 42, struct.pack("<3h", 30000, 30000, 3)), "volume-1.nii.gz"),
    "unknown data type in the header": (IMAGE, lambda p: set_header(p, 70, struct.pack("<h", 77)), "volume-1.nii.gz"),
    "header is random": (IMAGE, lambda p: set_header(p, 0, os.urandom(348)), "volume-1.nii.gz"),
    "unreadable image": (IMAGE, lambda p: p.chmod(0), "permission denied"),
    "loop of links": (IMAGE, loop, "is a loop of links"),
    "broken link": (LABEL, lambda p: (p.unlink(), p.symlink_to("gone.nii.gz")), "is missing"),
    "link that leads outside": (IMAGE, outside_link, "allow it with --follow-links"),
    "folder instead of a label": (LABEL, replaced_by_folder, "volume-1.nii.gz has no label"),
}


@pytest.mark.parametrize("damage", SKIPPED_CASES)
def test_damaged_case_is_skipped_by_name_and_the_good_one_is_converted(damage, lits, convert, raw, monkeypatch):
    file, spoil, words = SKIPPED_CASES[damage]
    spoil(lits / file)
    if damage == "unreadable image":  # root reads everything
        monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(IMAGE))
    code, out, err = convert("lits", lits)
    not_there = "has no" in words  # a download that is not complete
    assert code == (0 if not_there else 3) and "ATTENTION: 1 of 2 cases are NOT in Dataset007" in err, err
    lines = [line for line in out.splitlines() if line.startswith("skipped: lits_001: ")]
    assert len(lines) == 1 and words in lines[0], out
    folder = raw / "Dataset007_LiTS"
    content = json.loads((folder / "dataset.json").read_text())
    assert list(content["dataset"]) == ["lits_000"] == list(content["nnunet_partial"]["cases"]) and content["numTraining"] == 1
    assert sorted(i.name for i in folder.rglob("*") if i.is_file()) == ["conversion.json", "dataset.json", "lits_000.nii.gz"]
    assert sorted(i.name for i in raw.iterdir()) == ["Dataset007_LiTS"]


@pytest.mark.parametrize("damage", ["truncated image", "label value out of range", "sheared image", "loop of links"])
def test_strict_refuses_what_would_be_skipped(damage, lits, convert, raw):
    file, spoil, words = SKIPPED_CASES[damage]
    spoil(lits / file)
    check_refused(*convert("lits", lits, "--strict"), raw, words)


def check_refused(code, out, err, raw, words):
    lines = [line for line in err.splitlines() if line.startswith("nnunet_partial: error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err
    assert words in lines[0], lines
    assert not list(raw.iterdir()), "no partial dataset is left"


def remove_all(src):
    for path in list(src.iterdir()):
        path.unlink()


def msd(src, content):
    remove_all(src)
    (src / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


def text(src, name, content):
    (src / name).write_text(content)


REFUSED = {  # name: (converter, damage, further arguments, words of the line)
    "no such folder": ("lits", shutil.rmtree, (), "does not exist"),
    "empty folder": ("lits", remove_all, (), "its files are not named as in the release"),
    "every case damaged": ("lits", lambda s: [truncate(p, 0.4) for p in s.iterdir()], (), "truncated or damaged"),
    "another dataset": ("btcv", lambda s: None, (), "its files are not named as in the release"),
    "the same case twice": ("lits", lambda s: shutil.copy(s / IMAGE, s / "volume-1.nii"), (), "lits_001 is there twice"),
    "unknown organ": ("lits", lambda s: None, ("--organs", "spleen"), "Structures: liver, tumor, liver_parenchyma"),
    "class without voxels": (
        "lits",
        lambda s: None,
        ("--organs", "liver,liver_parenchyma,tumor"),
        "nothing would be left of 'liver'",
    ),
    "class given twice": ("lits", lambda s: None, ("--organs", "liver,liver"), "given twice"),
    "unusable source name": ("lits", lambda s: None, ("--source-name", "a__b"), "not usable"),
    "unusable dataset name": ("lits", lambda s: None, ("--name", "../x"), "is not a name of a dataset"),
    "unusable dataset id": ("lits", lambda s: None, ("--dataset-id", "0"), "ids are 1 to 999"),
    "dataset.json missing": ("msd", remove_all, (), "holds no dataset.json"),
    "dataset.json is not JSON": ("msd", lambda s: msd(s, "{"), (), "is not valid JSON"),
    "dataset.json of something else": ("msd", lambda s: msd(s, {"a": 1}), (), "is not the dataset.json of the Decathlon"),
    "dataset.json is a list": ("msd", lambda s: msd(s, [1]), (), "is not the dataset.json of the Decathlon"),
    "path in dataset.json that is no text": (
        "msd",
        lambda s: msd(s, {"modality": {"0": "CT"}, "labels": {"1": "a"}, "training": [{"image": 3, "label": None}]}),
        (),
        "where the path of a file is expected",
    ),
    "kits.json of something else": (
        "kits",
        lambda s: text(s, "kits.json", '[{"a": 1}]'),
        (),
        "is not the kits.json of a release",
    ),
    "cropping.csv without columns": ("moba", lambda s: text(s, "cropping.csv", "a,b\n1,2\n"), (), "cropping.csv, line 2"),
    "ircadb folder without ircadb": ("lits", lambda s: None, ("--ircadb", "."), "holds no 3Dircadb1.N/PATIENT_DICOM"),
    "globs without labels": (
        "generic",
        lambda s: None,
        ("--image-glob", "v*", "--label-glob", "s*"),
        "--label-glob needs --labels",
    ),
    "label values that are not numbers": (
        "generic",
        lambda s: None,
        ("--image-glob", "v*", "--label-glob", "s*", "--labels", "a=b"),
        "is not NAME=VALUE",
    ),
    "glob that names two files alike": (
        "generic",
        lambda s: text(s, "volume+1.nii.gz", ""),
        ("--image-glob", "volume*1.nii.gz"),
        "the name '1'",
    ),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_damaged_download_is_refused_with_one_line(damage, lits, convert, raw):
    name, spoil, arguments, words = REFUSED[damage]
    if damage == "glob that names two files alike":
        shutil.copy(lits / IMAGE, lits / "volume_1.nii.gz")
        words = "Use a glob that tells them apart"
    spoil(lits)
    check_refused(*convert(name, lits, *arguments), raw, words)


# ---------------------------------------------------------------------------------------------------- DICOM


@pytest.fixture
def series(src, tools):
    """One good and one series to damage, patients 1 and 2. Returns the folder of the second."""
    for number in (1, 2):
        patient = phantoms.make_patient(number, tools.tiny["nih"])
        phantoms.write_dicom_series(patient.ct_image(), src / f"PANCREAS_{number:04d}" / "a" / "b", patient=str(number))
        tools.write(src / f"label{number:04d}.nii.gz", sitk.GetArrayFromImage(patient.label_image({phantoms.PANCREAS: 1})))
    return src / "PANCREAS_0002" / "a" / "b"


def change(path, **values):
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def drop(path, name):
    dataset = pydicom.dcmread(path)
    delattr(dataset, name)
    dataset.save_as(path)


def tilt(folder):
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.2 * float(z), z]
        dataset.save_as(file)


def second_series(folder):
    patient = phantoms.make_patient(5, phantoms.coarser(phantoms.STYLES["nih"], 2))
    phantoms.write_dicom_series(patient.ct_image(), folder, patient="other", series=2)


SLICE = "1-005.dcm"
DAMAGED_SERIES = {
    "missing slice": (lambda f: (f / SLICE).unlink(), "1 slice(s) missing behind"),
    "two missing slices": (lambda f: [(f / f"1-00{i}.dcm").unlink() for i in (5, 6)], "2 slice(s) missing behind"),
    "two series in a folder": (second_series, "holds 2 series"),
    "the same slice twice": (lambda f: shutil.copy(f / SLICE, f / "copy.dcm"), "lie at the same position"),
    "one slice only": (lambda f: [i.unlink() for i in sorted(f.iterdir())[1:]], "holds one slice"),
    "tilted gantry": (tilt, "tilted gantry"),
    "truncated slice": (lambda f: truncate(f / SLICE, 0.9), "1-005.dcm is truncated or damaged"),
    "slice truncated in its header": (lambda f: truncate(f / SLICE, 0.5), "1-005.dcm is truncated or damaged"),
    "last slice truncated in its header": (lambda f: truncate(f / "1-001.dcm", 0.5), "1-001.dcm is truncated or damaged"),
    "truncated header": (lambda f: truncate(f / SLICE, 0.02), SLICE),
    "slice that is not DICOM": (lambda f: (f / SLICE).write_bytes(b"x" * 5000), "is not a DICOM image"),
    "slice without position": (lambda f: drop(f / SLICE, "ImagePositionPatient"), "that can be placed in space"),
    "slice of another size": (lambda f: change(f / SLICE, Rows=4), "differs from"),
    "slice with other pixels": (lambda f: change(f / SLICE, PixelSpacing=["1.5", "1.5"]), "differs from"),
    "slice of another orientation": (lambda f: change(f / SLICE, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "differs from"),
    "uneven slices": (
        lambda f: change(
            f / SLICE,
            ImagePositionPatient=[
                *pydicom.dcmread(f / SLICE).ImagePositionPatient[:2],
                float(pydicom.dcmread(f / SLICE).ImagePositionPatient[2]) + 2,
            ],
        ),
        "apart",
    ),
    "axes that are not at right angles": (
        lambda f: [change(i, ImageOrientationPatient=[1, 0, 0, 0.5, 0.866, 0]) for i in f.iterdir()],
        "not a pair of unit vectors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_SERIES)
def test_damaged_series_is_skipped_by_name(damage, series, src, convert, raw):
    spoil, words = DAMAGED_SERIES[damage]
    spoil(series)
    code, out, err = convert("nih", src)
    not_there = "has no" in words  # a download that is not complete
    assert code == (0 if not_there else 3) and "ATTENTION: 1 of 2 cases are NOT in Dataset007" in err, err
    lines = [line for line in out.splitlines() if line.startswith("skipped: pancreas_0002: ")]
    assert len(lines) == 1 and words in lines[0], out
    assert list(json.loads((raw / "Dataset007_PancreasCT" / "dataset.json").read_text())["dataset"]) == ["pancreas_0001"]


def test_label_of_another_patient_is_recognised(series, src, tools, convert):
    """Its header does not match, and it does not lie on one organ in any orientation."""
    label = np.random.default_rng(0).integers(0, 2, sitk.GetArrayFromImage(sitk.ReadImage(str(src / "label0002.nii.gz"))).shape)
    tools.write(src / "label0002.nii.gz", label.astype(np.uint8), direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
    code, out, _ = convert("nih", src)
    assert code == 3 and "the label does not lie on its organs" in out
