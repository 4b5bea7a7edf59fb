"""What the studies on real data share: the datasets, and planning once for several of them.

Needs NNUNET_PARTIAL_DATA: the folder that holds Task04_Hippocampus, ACDC, LeftAtrium and abdomen_labels.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.orchestration.foreground import run

CHANNEL = {"hippocampus": "MRI", "LeftAtrium": "MRI", "ACDC": "MRI", "abdomen": "CT"}
# of abdomen_labels: liver, both kidneys, pancreas, spleen; the other organs are background
ABDOMEN_VALUES = {5: 1, 2: 2, 3: 2, 8: 3, 1: 4}
# one label map a patient: label0041 to label0220 are mirrored, sheared and cropped copies of eighteen patients, three of whom (24, 26,
# 28) are not among those before. nnunet_partial check finds them by their organs
ABDOMEN_PATIENTS = 40


def data_folder():
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        raise UserError(
            "the environment variable NNUNET_PARTIAL_DATA is not set. Set it to the folder that holds "
            "Task04_Hippocampus, ACDC, LeftAtrium and abdomen_labels."
        )
    return Path(os.environ["NNUNET_PARTIAL_DATA"]).absolute()


def all_cases(name, work):
    """case -> (image, label), and the units that are split: unit -> its cases (a patient of ACDC has two)."""
    cases = {"hippocampus": _hippocampus, "LeftAtrium": _left_atrium, "ACDC": _acdc, "abdomen": _abdomen}[name](Path(work))
    units = {}
    for case in sorted(cases):
        units.setdefault(case.split("_")[0] if name == "ACDC" else case, []).append(case)
    return cases, units


def shuffled(units):
    """Names of the units in the order in which every study takes test and training cases."""
    names = sorted(units)
    random.Random(0).shuffle(names)
    return names


def _hippocampus(work):
    task = data_folder() / "Task04_Hippocampus"
    return {
        i["image"].split("/")[-1][:-7]: (task / i["image"], task / i["label"])
        for i in read_json(task / "dataset.json")["training"]
    }


def _left_atrium(work):
    folder = data_folder() / "LeftAtrium"
    return {i.name[:-7]: (i, folder / "labels" / i.name) for i in sorted((folder / "images").glob("*.nii.gz"))}


def _acdc(work):
    labels = sorted((data_folder() / "ACDC" / "training").glob("*/*_gt.nii.gz"))
    return {i.name[: -len("_gt.nii.gz")]: (i.with_name(i.name.replace("_gt", "")), i) for i in labels}


def _abdomen(work):
    """Painted CT, and labels with liver, kidney, pancreas, spleen, of the patients themselves. Painting is deterministic."""
    import numpy as np
    import SimpleITK as sitk

    painted = work.absolute() / "painted_ct"
    if not (painted / ".complete").is_file():
        labels = link(work.absolute() / "patients", {i.name: i for i in abdomen_label_maps()})
        tool = data_folder().parent / "tools" / "make_abdomen_ct.py"
        subprocess.run([sys.executable, str(tool), str(labels), str(painted)], check=True)
        (painted / ".complete").touch()
    merged = painted / "merged"
    merged.mkdir(exist_ok=True)
    cases = {}
    for file in sorted(painted.glob("*_label.nii.gz")):
        case = file.name[: -len("_label.nii.gz")]
        target = merged / f"{case}.nii.gz"
        if not target.is_file():
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)
            values = np.select([array == i for i in ABDOMEN_VALUES], list(ABDOMEN_VALUES.values()), 0)
            label = sitk.GetImageFromArray(values.astype(np.uint8))
            label.CopyInformation(image)
            sitk.WriteImage(label, str(target), True)
        cases[case] = (painted / f"{case}_ct.nii.gz", target)
    return cases


def abdomen_label_maps():
    """The public label maps of abdomen_labels that are used: one of each patient."""
    files = sorted((data_folder() / "abdomen_labels").glob("label*.nii.gz"))
    return [i for i in files if int(i.name[len("label") : -len(".nii.gz")]) <= ABDOMEN_PATIENTS]


# ------------------------------------------------------------------ nnU-Net's folders and datasets


def use_folders(base, device):
    """nnU-Net's folders below ``base``, and worker counts that suit the device."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (Path(base) / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(Path(base).absolute() / name)
    os.environ.setdefault("nnUNet_n_proc_DA", "0" if device == "cpu" else "12")
    os.environ.setdefault("nnUNet_def_n_proc", "1" if device == "cpu" else "8")


def remember(file, chosen):
    """Keep which cases a study uses; refuse a folder that was made with others."""
    if file.is_file() and read_json(file) != chosen:
        raise UserError(f"{file} names other cases. Choose another --work, or the numbers of cases that it was made with.")
    write_json(chosen, file)


def write_complete(number, channel, labels, cases, training):
    """The raw dataset of fully labelled training cases that every other one is made from; returns its folder."""
    folder = Path(os.environ["nnUNet_raw"]) / f"Dataset{number}_Complete"
    if not (folder / "dataset.json").is_file():
        write_json(
            {
                "channel_names": {"0": channel},
                "labels": {"background": 0, **{n: i + 1 for i, n in enumerate(labels)}},
                "numTraining": len(training),
                "file_ending": ".nii.gz",
                "dataset": {i: {"images": [str(cases[i][0])], "label": str(cases[i][1])} for i in training},
            },
            folder / "dataset.json",
        )
    return folder


def link(folder, files):
    """A folder of links, name -> target, and of nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in set(os.listdir(folder)) - set(files):
        (folder / other).unlink()
    for name, target in files.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return folder


def write_test_set(folder, cases, test, complete):
    """imagesTs and labelsTs (links) with a dataset.json that says what the labels mean; returns both folders."""
    images = link(folder / "imagesTs", {f"{i}_0000.nii.gz": cases[i][0] for i in test})
    truth = link(folder / "labelsTs", {f"{i}.nii.gz": cases[i][1] for i in test})
    content = read_json(complete / "dataset.json")
    write_json({k: content[k] for k in ("channel_names", "labels", "file_ending")}, folder / "dataset.json")
    return images, truth


def plan(logs, configuration, first, second=None, spacing=None):
    """Plan and preprocess dataset ``first``; ``second``, the same cases with other labels, gets the same plan. ``spacing``: of nnU-Net's
    full resolution (slices, rows, columns) in mm; None: the planned one."""
    done = logs / f".planned_{configuration}"
    if done.is_file():
        return
    one_worker = {"nnUNet_n_proc_DA": "1"}  # nnU-Net cannot plan with 0
    coarser = ["-overwrite_target_spacing", *spacing] if spacing else []
    planning = ["nnUNetv2_plan_and_preprocess", "-d", first, "-c", configuration, *coarser, "-np", 2, "-npfp", 2]
    run(planning, logs / "plan.log", one_worker)
    if second is not None:
        raw = next(Path(os.environ["nnUNet_raw"]).glob(f"Dataset{second}_*"))
        run(["nnUNetv2_extract_fingerprint", "-d", second, "-np", 2], logs / "fingerprint.log", one_worker)
        run(
            ["nnUNetv2_move_plans_between_datasets", "-s", first, "-t", second, "-sp", "nnUNetPlans", "-tp", "nnUNetPlans"],
            logs / "move.log",
            one_worker,
        )
        shutil.copyfile(raw / "dataset.json", Path(os.environ["nnUNet_preprocessed"]) / raw.name / "dataset.json")
        run(["nnUNetv2_preprocess", "-d", second, "-c", configuration, "-np", 2], logs / "preprocess.log", one_worker)
    done.touch()
