"""The tutorial, from folders as people have them to masks of new scans, with the commands that it prints and no other.

What is put in: the folders, which have spaces, brackets and umlauts; ``-device cpu``; and fewer steps than a person would take.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("2. Convert", "3. Merge", "5. Train one model")
FEWER = {"num_epochs=20": "num_epochs=1", "num_iterations_per_epoch=50": "num_iterations_per_epoch=2"}
FEWER |= {"num_val_iterations_per_epoch=5": "num_val_iterations_per_epoch=1", "features=8,16,32": "features=4,8,8"}
LEFT_OUT = ("nnunet_partial relabel", "nnunet_partial check 101 --accept")  # there is nothing wrong with these scans
PATIENTS = ("Müller, Jörg", "Ömer [2]", "ANNA", "van der Berg", "Zoë")
FORMATS = (".nii.gz", ".nrrd", ".mha", ".nii", ".nii.gz")


def printed(section: str) -> list:
    """The commands of a section of the tutorial, each as one line."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    part = text.partition(f"## {section}\n")[2].partition("\n## ")[0].replace("\\\n", " ")
    return [i.strip() for i in part.splitlines() if i.startswith("    ")]


def scan(seed):
    """CT of fat in air with a liver on the patient's right and kidneys, and both label maps."""
    rng, grid = np.random.default_rng(seed), np.indices((24, 24, 24))
    ct = np.where(((grid[1:] - 12) ** 2).sum(0) < 121, -90, -1000) + rng.normal(0, 8, (24, 24, 24))
    liver = ((grid - np.array([15, 11, 7])[:, None, None, None]) ** 2).sum(0) <= 25 + rng.integers(5)
    kidney = ((grid - np.array([8, 15, 16])[:, None, None, None]) ** 2).sum(0) <= 12 + rng.integers(4)
    ct[liver], ct[kidney] = 100, 180
    return ct.astype(np.int16), liver.astype(np.uint8), kidney.astype(np.uint8)


def write(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.5))
    sitk.WriteImage(image, str(file), True)


@pytest.fixture
def folders(tmp_path):
    """What the tutorial calls /data/..., under names that nobody should have to change."""
    place = tmp_path / "Klinik (Süd) [1]"
    names = {
        "livers": "Leber Jörg",
        "kidneys": "Nieren [alt]",
        "unlabelled": "ohne Befund",
        "new_masks": "neue Masken",
        "new": "neu",
    }
    names |= {"tiny_masks": "kleine Masken"}
    for number, (patient, ending) in enumerate(zip(PATIENTS, FORMATS)):
        for kind, seed in (("livers", number), ("kidneys", 10 + number)):
            ct, liver, kidney = scan(seed)
            write(ct, place / names[kind] / patient / f"ct{ending}")
            label = ("liver", liver) if kind == "livers" else ("kidneys", kidney)
            write(label[1], place / names[kind] / patient / f"{label[0]}{FORMATS[-1 - number]}")
    write(scan(20)[0], place / names["unlabelled"] / "scan 1.nrrd")
    write(scan(21)[0], place / names["unlabelled"] / "scan 2.nii")
    write(scan(30)[0], place / names["new"] / "Jörg [neu].nrrd")
    write(scan(31)[0], place / names["new"] / "ANNA" / "ct.nii")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
    return {f"/data/{k}": place / v for k, v in names.items()}


def with_folders(command, folders):
    for name in sorted(folders, key=len, reverse=True):
        command = re.sub(rf"{name}(?=\s|$)", lambda _, f=folders[name]: shlex.quote(str(f)), command)
    for many, few in FEWER.items():
        command = command.replace(many, few)
    return command + " -device cpu" if command.startswith("nnUNetv2_train") else command


def test_from_folders_to_masks_of_new_scans(folders, tmp_path, forked_programs):
    environment = {
        **os.environ,
        "PATH": f"{forked_programs}{os.pathsep}{os.environ['PATH']}",
        "nnUNet_n_proc_DA": "1",
    }
    environment |= {i: str(tmp_path / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    typed = [i for section in SECTIONS for i in printed(section) if not i.startswith(LEFT_OUT)]
    assert [i.split()[1] for i in typed if i.startswith("nnunet_partial")] == [
        *["convert"] * 3,
        "check",
        "merge",
        "variant",
        "predict",
    ]
    for command in (with_folders(i, folders) for i in typed):
        assert "/data/" not in command, command
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    for name in ("Jörg [neu].nrrd", "ANNA/ct.nii"):
        image, mask = (sitk.ReadImage(str(folders[i] / name)) for i in ("/data/new", "/data/tiny_masks"))
        assert mask.GetSize() == image.GetSize() and mask.GetSpacing() == image.GetSpacing()
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
