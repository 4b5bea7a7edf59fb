"""Pseudo-labelling in preprocessed space against nnUNetv2_predict from raw images, paired in one run.

    python benchmarks/inference.py [--rounds 3] [--device cuda] [--tta] [--out benchmarks/results/inference.json]

Both label the same cases with the same briefly trained network, as commands, from their start to the last file written:
stock nnU-Net reads, crops, resamples and normalises the images, predicts, and resamples the logits back; pseudo-label
reads the preprocessed images, predicts, merges with what is annotated, samples class locations and writes labels that
training reads. The images are finer than the planned spacing, as CT mostly is. The commands take turns (stock, ours,
stock, ours, ...); quoted is the median of the ratios round by round. The bar is a throughput of 2 x on the CPU at equal
labels: Dice of stock's label maps, resampled to the planned spacing as nnU-Net resamples labels, with ours >= 0.99 in the mean over cases; every case's is given.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from circumstances import circumstances  # beside this file

from nnunet_partial.files import read_json, write_json

BAR, MIN_DICE = 2.0, 0.99
DATASET, NAME = 991, "Dataset991_Inference"
TRAINER = "nnUNetTrainerIndividual"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4, help="cases to label")
    parser.add_argument("--size", type=int, nargs=3, default=[64, 160, 160], metavar=("Z", "Y", "X"), help="in voxels")
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tta", action="store_true", help="mirror, as both do by default; eight times the passes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        set_folders(Path(folder))
        model = prepare(Path(folder), arguments)
        result = measure(Path(folder), model, arguments)
    print(json.dumps(result, indent=1))
    if arguments.out:
        write_json(result, arguments.out)


def set_folders(folder: Path) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)


def command(*parts) -> None:
    argv = [str(Path(sys.executable).parent / parts[0]), *map(str, parts[1:])]
    result = subprocess.run(argv, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {result.returncode}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}")


# ---- data


def patient(seed: int, size: tuple) -> tuple:
    """Image and labels (z, y, x): two smooth organs of different grey values in noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, i) for i in size), indexing="ij"), -1)
    image, label = rng.normal(0, 20, size).astype(np.float32), np.zeros(size, np.uint8)
    for value, centre in ((1, (0.4, 0.35, 0.35)), (2, (0.6, 0.65, 0.6))):
        organ = (((grid - centre - rng.normal(0, 0.03, 3)) / rng.uniform(0.22, 0.3, 3)) ** 2).sum(-1) < 1
        label[organ], image[organ] = value, image[organ] + 100 * value
    return image, label


def prepare(folder: Path, arguments) -> Path:
    """Cases that annotate organ a and lack organ b; two cases that annotate b; a model of b. Returns its folder."""
    raw, entries, contract = folder / "nnUNet_raw" / NAME, {}, {}
    (folder / "to_label").mkdir()
    for i in range(arguments.cases + 2):
        source, value = ("a", 1) if i < arguments.cases else ("b", 2)
        case = f"{source}_{i}"
        image, label = patient(i, tuple(arguments.size))
        for array, part in (
            (image, f"imagesTr/{case}_0000.nii.gz"),
            ((label == value).astype(np.uint8) * value, f"labelsTr/{case}.nii.gz"),
        ):
            (raw / part).parent.mkdir(parents=True, exist_ok=True)
            written = sitk.GetImageFromArray(array)
            written.SetSpacing((1.0, 1.0, 2.0) if source == "a" else (1.5, 1.5, 3.0))
            sitk.WriteImage(written, str(raw / part), True)
        if source == "a":
            shutil.copy(raw / f"imagesTr/{case}_0000.nii.gz", folder / "to_label")
        entries[case] = {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        contract[case] = {"source": source, "annotated": [source]}
    write_json(
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "a": 1, "b": 2},
            "numTraining": len(entries),
            "file_ending": ".nii.gz",
            "dataset": entries,
            "nnunet_partial": {"version": 1, "cases": contract},
        },
        raw / "dataset.json",
    )
    command(
        "nnUNetv2_plan_and_preprocess",
        "-d",
        DATASET,
        "-c",
        "3d_fullres",
        "-np",
        1,
        "-npfp",
        1,
        "-overwrite_target_spacing",
        3,
        1.5,
        1.5,
    )
    settings = {
        "source": "b",
        "num_epochs": 10,
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 1,
        "optimizer": "adamw",
        "initial_lr": 0.003,
        "batch_size": 2,
        "patch_size": "32,48,48",
        "seed": 0,
        "features": ",".join(map(str, arguments.features)),
    }
    command("nnunet_partial", "variant", DATASET, "--name", "b", *(i for k, v in settings.items() for i in ("--set", f"{k}={v}")))
    train(arguments.device)
    return folder / "nnUNet_results" / NAME / f"{TRAINER}__nnUNetPlans_b__3d_fullres"


def train(device: str) -> None:
    """Train the model of organ b in this process, without nnU-Net's final validation."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ["nnUNet_n_proc_DA"] = "0"
    get_trainer_from_args(str(DATASET), "3d_fullres", "all", TRAINER, "nnUNetPlans_b", False, torch.device(device)).run_training()
    del os.environ["nnUNet_n_proc_DA"]


# ---- measuring


def measure(folder: Path, model: Path, arguments) -> dict:
    rounds = []
    for i in range(arguments.rounds):
        stock, ours = folder / f"stock_{i}", folder / f"ours_{i}"
        seconds = {}
        for name, run in (
            ("stock", lambda: predict_stock(folder, model, stock, arguments)),
            ("pseudo_label", lambda: pseudo_label(model, ours, arguments)),
        ):
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
    throughput = statistics.median(i["stock"] / i["pseudo_label"] for i in rounds)
    dice = agreement(folder, stock, ours)
    return {
        **circumstances(),
        "device": arguments.device,
        "cases": arguments.cases,
        "size_zyx": arguments.size,
        "mirroring": arguments.tta,
        "features": arguments.features,
        "seconds": rounds,
        "throughput_ratio": throughput,
        "bar": BAR,
        "met": throughput >= BAR and statistics.mean(dice) >= MIN_DICE,
        "mean_dice_of_labels": statistics.mean(dice),
        "dice_of_labels": dice,
    }


def predict_stock(folder: Path, model: Path, out: Path, arguments) -> None:
    command(
        "nnUNetv2_predict_from_modelfolder",
        "-i",
        folder / "to_label",
        "-o",
        out,
        "-m",
        model,
        "-f",
        "all",
        "-device",
        arguments.device,
        *(() if arguments.tta else ("--disable_tta",)),
    )


def pseudo_label(model: Path, out: Path, arguments) -> None:
    command(
        "nnunet_partial",
        "pseudo-label",
        DATASET,
        "--configuration",
        "3d_fullres",
        "--from",
        model,
        "--out",
        out,
        "--device",
        arguments.device,
        *(() if arguments.tta else ("--disable-tta",)),
    )


def agreement(folder: Path, stock: Path, ours: Path) -> list:
    """Dice of organ b for each case, on the preprocessed voxels, where the annotated organ a is not."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    from nnunet_partial.data.preprocessed.label_directory import load_labels

    dice = []
    for case, record in read_json(ours / "provenance.json")["cases"].items():
        if "b" in record["pseudo"]:
            found = load_labels(ours, case)[0][:][0]
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(stock / f"{case}.nii.gz")))[None].astype(np.int8)
            spacing = ((2.0, 1.0, 1.0), (3.0, 1.5, 1.5))
            theirs = resample_data_or_seg_to_shape(image, found.shape, *spacing, is_seg=True, order=1, order_z=0)[0]
            theirs = (theirs == 1) & (found != 1)
            dice.append(float(2 * (theirs & (found == 2)).sum() / (theirs.sum() + (found == 2).sum())))
    return dice


if __name__ == "__main__":
    main()
