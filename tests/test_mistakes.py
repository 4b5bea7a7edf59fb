"""Every mistake of the table is one line that says what is wrong and what to do, and leaves everything as it was."""

import json
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli

MISTAKES = runpy.run_path(str(Path(__file__).with_name("mistakes.py")))["MISTAKES"]
GENERIC = ["--channels", "CT", "--image-glob", "*/ct", "--label-glob"]


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.5))
    sitk.WriteImage(image, str(path), True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder in which the commands are typed; nnU-Net's folders are within it."""
    place, rng = tmp_path_factory.mktemp("first hour"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (place / name).mkdir()
            patch.setenv(name, str(place / name))
        patch.chdir(place)
        for number, name in enumerate(("ANNA", "BERT", "CLEO")):
            array = rng.integers(-200, 100, (8, 9, 10)).astype(np.int16)
            label = np.zeros_like(array, np.uint8)
            label[2:5, 2:6, 2:7] = 1
            write(place / "livers" / name / "ct.nii.gz", array)
            write(place / "livers" / name / "mask.nrrd", label * 255)
            write(place / "mr" / name / "t1.nii.gz", array + 300)
            write(place / "kidneys" / name / "ct.nii.gz", array + number + 1)
            label[3, 3, 3] = 2
            write(place / "kidneys" / name / "kidney.nrrd", label)
            label[3, 3, 3] = 1
            write(place / "livers" / name / "liver.nrrd", label)
        convert("livers", 101, "Livers", "*/liver", "liver=1")
        (place / "livers" / "CLEO" / "liver.nrrd").unlink()
        convert("kidneys", 102, "Kidneys", "*/kidney", "kidney=1,tumor=2")
        (place / "packed").mkdir()
        (place / "packed" / "batch1.zip").write_bytes(b"PK")
        planned(place / "nnUNet_preprocessed" / "Dataset501_Abdomen")
        yield place


def convert(source, number, name, labels, values):
    command = ["convert", "generic", source, "--dataset-id", str(number), "--name", name, *GENERIC, labels, "--labels", values]
    assert cli.main([*command, "--processes", "1"]) == 0


def planned(folder):
    """Plans and dataset.json as nnU-Net leaves them, as far as a variant reads them."""
    folder.mkdir()
    network = {"arch_kwargs": {"n_stages": 3, "features_per_stage": [8, 16, 32], "strides": [[1] * 3, [2] * 3, [2] * 3]}}
    configuration = {"data_identifier": "x", "batch_size": 2, "patch_size": [16, 16, 16], "architecture": network}
    plans = {"dataset_name": folder.name, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}
    cases = {"a": {"source": "livers", "annotated": ["liver"]}}
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz", "numTraining": 1}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps({**dataset, "nnunet_partial": {"version": 1, "cases": cases}}))


def snapshot(folder):
    return {str(i): i.stat().st_mtime_ns for i in sorted(folder.rglob("*")) if i.is_file() and not i.name.startswith(".")}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda i: i.what.replace(" ", "-"))
def test_a_mistake_is_told_in_one_line(mistake, world, capsys):
    before = snapshot(world)
    program, *arguments = shlex.split(mistake.command)
    if arguments[0] == "convert":
        arguments += ["--processes", "1"]
    assert program == "nnunet_partial"
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    lines = [i for i in (told.err if mistake.code == 2 else told.out + told.err).splitlines() if i]
    assert code == mistake.code, lines
    assert mistake.says and mistake.says in " ".join(lines), lines
    assert "Traceback" not in told.err
    if mistake.code == 2:
        assert [i for i in lines if ": error: " in i] == lines[-1:]
        assert snapshot(world) == before


def test_there_are_twenty_and_none_twice():
    assert len({i.what for i in MISTAKES}) == len(MISTAKES) >= 20 and len({i.command for i in MISTAKES}) == len(MISTAKES)
