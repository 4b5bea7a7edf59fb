"""Accuracy of the methods on real anatomy, on identical splits and budgets, in one table.

    python benchmarks/accuracy.py hippocampus --work WORK --out benchmarks/results/hippocampus
    python benchmarks/accuracy.py abdomen --work WORK --out benchmarks/results/abdomen --device cuda

hippocampus  MSD Task04 (T1 MRI): one half of the training cases annotated for the anterior part only, the other half for
             the posterior part only.
abdomen      CT painted on real eight-organ anatomy: four sources (liver; both kidneys as one class; pancreas; spleen).

The remaining cases are fully labelled and used for testing alone. Rows: naive nnU-Net (what a source does not annotate is
background), Individual (one network per source, each scored on its own organs), Partial, MSKD, MSKDPlus, the rows of the
co-training paper's Table 1 (self-training, then co-training and its ablations, all on the teachers' pseudo labels), and the
fully supervised upper bound (the same cases with all labels). Every network has the same plans, steps, optimiser and seed.

Needs NNUNET_PARTIAL_DATA. Interrupted, it goes on where it was when started again.
"""
import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from nnunet_partial.data.merge import merge_datasets
from nnunet_partial.data.sources import SourceSpec
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import read_json, write_json, write_text
from nnunet_partial.settings import parse_assignments
from nnunet_partial.study import METHODS, TEACHER, Study, markdown_table, mean_dice, run
from nnunet_partial.variants import write_source_variants, write_variant

COMPLETE, PARTIAL, FULL = 601, 611, 621  # dataset ids of the original, the partially and the fully labelled dataset
ROWS = ("naive nnU-Net", "Individual", *(i for i in METHODS if i != "naive nnU-Net"), "fully supervised")
STUDIES = {
    "hippocampus": {"sources": {"front": ("anterior",), "back": ("posterior",)}, "test_cases": 53, "channel": "MRI",
                    "variant": {"features": [8, 16, 32, 64], "batch_size": 4}},
    "abdomen": {"sources": {"lits": ("liver",), "kits": ("kidney",), "nih": ("pancreas",), "msd": ("spleen",)},
                "test_cases": 30, "channel": "CT", "variant": {"features": [8, 16, 32, 64, 96], "batch_size": 2}},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and predictions")
    parser.add_argument("--out", type=Path, required=True, help="results are written to OUT.json and OUT.md")
    parser.add_argument("--configuration", default="3d_fullres", choices=("2d", "3d_fullres"))
    parser.add_argument("--disable-tta", action="store_true", help="predict and pseudo-label without mirroring")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=30, help="steps per epoch")
    parser.add_argument("--cases", type=int, help="use this many training cases only")
    parser.add_argument("--test-cases", type=int, help="test on this many cases")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--initial-lr", type=float, default=3e-3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="further changes of the plans variant, "
                        "for example features=8,16,32 (see nnunet_partial variant --help)")
    parser.add_argument("--planned-network", action="store_true", help="the planned network, batch and patch size (needs a GPU)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        study(arguments)


def study(arguments):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = arguments.work.absolute() / arguments.study / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ.setdefault("nnUNet_n_proc_DA", "0" if arguments.device == "cpu" else "12")
    os.environ.setdefault("nnUNet_def_n_proc", "1" if arguments.device == "cpu" else "8")
    prepared = prepare(arguments)
    results = {seed: one_seed(arguments, prepared, seed) for seed in arguments.seeds}
    report(arguments, prepared, results)


# ------------------------------------------------------------------ data

def prepare(arguments):
    """Raw datasets, one plan, everything preprocessed, test set: once for all seeds and methods."""
    design = STUDIES[arguments.study]
    raw = Path(os.environ["nnUNet_raw"])
    cases = {"hippocampus": hippocampus_cases, "abdomen": abdomen_cases}[arguments.study](arguments)
    labels = sorted({i for organs in design["sources"].values() for i in organs},
                    key=[i for organs in design["sources"].values() for i in organs].index)
    names = sorted(cases)
    random.Random(0).shuffle(names)
    test, training = names[:design["test_cases"]], sorted(names[design["test_cases"]:])
    test = test[:arguments.test_cases]
    training = training[:arguments.cases]
    complete = write_complete(raw, design, cases, training, labels)
    shares = {source: training[i::len(design["sources"])] for i, source in enumerate(design["sources"])}
    if not list(raw.glob(f"Dataset{PARTIAL}_*")):
        merge_datasets(PARTIAL, "Partial", [SourceSpec(s, COMPLETE, own, {i: "background" for i in labels if i not in own},
                                                       cases=shares[s]) for s, own in design["sources"].items()], labels)
        merge_datasets(FULL, "Full", [SourceSpec(s, COMPLETE, cases=shares[s]) for s in design["sources"]], labels)
    plan(arguments)
    images, truth = write_test_set(raw.parent / "test", cases, test, read_json(complete / "dataset.json"))
    return {"labels": labels, "training": training, "test": test, "images": images, "truth": truth,
            "shares": {k: len(v) for k, v in shares.items()}}


def data_folder():
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        raise UserError("the environment variable NNUNET_PARTIAL_DATA is not set. Set it to the folder that holds "
                        "Task04_Hippocampus and abdomen_labels.")
    return Path(os.environ["NNUNET_PARTIAL_DATA"]).absolute()


def hippocampus_cases(arguments):
    """case -> (image, label) of MSD Task04."""
    task = data_folder() / "Task04_Hippocampus"
    return {i["image"].split("/")[-1][:-7]: (task / i["image"], task / i["label"]) for i in
            read_json(task / "dataset.json")["training"]}


def abdomen_cases(arguments):
    """case -> (painted CT, label with liver, kidney, pancreas, spleen). Painting is deterministic."""
    import numpy as np
    import SimpleITK as sitk

    painted = arguments.work.absolute() / "painted_ct"
    if not (painted / ".complete").is_file():
        tool = data_folder().parent / "tools" / "make_abdomen_ct.py"
        subprocess.run([sys.executable, str(tool), str(data_folder() / "abdomen_labels"), str(painted)], check=True)
        (painted / ".complete").touch()
    merged = painted / "merged"
    merged.mkdir(exist_ok=True)
    values = {5: 1, 2: 2, 3: 2, 8: 3, 1: 4}  # liver, both kidneys, pancreas, spleen; the other organs are background
    result = {}
    for file in sorted(painted.glob("*_label.nii.gz")):
        case = file.name[:-len("_label.nii.gz")]
        target = merged / f"{case}.nii.gz"
        if not target.is_file():
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayFromImage(image)
            label = sitk.GetImageFromArray(np.select([array == i for i in values], values.values(), 0).astype(np.uint8))
            label.CopyInformation(image)
            sitk.WriteImage(label, str(target), True)
        result[case] = (painted / f"{case}_ct.nii.gz", target)
    return result


def write_complete(raw, design, cases, training, labels):
    folder = raw / f"Dataset{COMPLETE}_Complete"
    if not (folder / "dataset.json").is_file():
        write_json({"channel_names": {"0": design["channel"]}, "labels": {"background": 0, **{n: i + 1 for i, n in enumerate(labels)}},
                    "numTraining": len(training), "file_ending": ".nii.gz",
                    "dataset": {i: {"images": [str(cases[i][0])], "label": str(cases[i][1])} for i in training}},
                   folder / "dataset.json")
    return folder


def plan(arguments):
    """Plan on the partially labelled dataset alone; the fully labelled one gets the same plan."""
    log = Path(os.environ["nnUNet_raw"]).parent / "logs"
    preprocessed = Path(os.environ["nnUNet_preprocessed"])
    partial, full = preprocessed / f"Dataset{PARTIAL}_Partial", preprocessed / f"Dataset{FULL}_Full"
    environment = {"nnUNet_n_proc_DA": "1"}  # nnU-Net cannot plan with 0
    if not (log / ".planned").is_file():
        run(["nnUNetv2_plan_and_preprocess", "-d", PARTIAL, "-c", arguments.configuration, "-np", 2, "-npfp", 2], log / "plan.log", environment)
        run(["nnUNetv2_extract_fingerprint", "-d", FULL, "-np", 2], log / "fingerprint.log", environment)
        run(["nnUNetv2_move_plans_between_datasets", "-s", PARTIAL, "-t", FULL, "-sp", "nnUNetPlans", "-tp", "nnUNetPlans"],
            log / "move.log", environment)
        shutil.copyfile(Path(os.environ["nnUNet_raw"]) / full.name / "dataset.json", full / "dataset.json")  # planning does this
        run(["nnUNetv2_preprocess", "-d", FULL, "-c", arguments.configuration, "-np", 2], log / "preprocess.log", environment)
        (log / ".planned").touch()
    if not (partial / "splits_final.json").is_file():
        from nnunet_partial.data.splits import stratified_splits
        from nnunet_partial.labels import Annotations

        annotations = Annotations.from_dataset_json(read_json(partial / "dataset.json"))
        write_json(stratified_splits(annotations, list(annotations.cases)), partial / "splits_final.json")
    shutil.copyfile(partial / "splits_final.json", full / "splits_final.json")


def write_test_set(folder, cases, test, dataset_json):
    """imagesTs (links) and labelsTs with a dataset.json that says what the labels mean."""
    images, truth = folder / "imagesTs", folder / "labelsTs"
    for part in (images, truth):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    for case in test:
        (images / f"{case}_0000.nii.gz").symlink_to(cases[case][0])
        (truth / f"{case}.nii.gz").symlink_to(cases[case][1])
    write_json({k: dataset_json[k] for k in ("channel_names", "labels", "file_ending")}, folder / "dataset.json")
    return images, truth


# ------------------------------------------------------------------ training

def one_seed(arguments, prepared, seed):
    """Row -> {class: DSC in percent}, with the seconds that training took."""
    design = STUDIES[arguments.study]
    changes = {"num_epochs": arguments.epochs, "num_iterations_per_epoch": arguments.iterations,
               "num_val_iterations_per_epoch": 2, "optimizer": arguments.optimizer, "initial_lr": arguments.initial_lr,
               "seed": seed, **network_changes(arguments)}
    given = "".join(f"-{i}" for i in arguments.set)
    name = f"e{arguments.epochs}x{arguments.iterations}-s{seed}" + re.sub(r"[^A-Za-z0-9]+", "-", given).rstrip("-")
    for dataset in (PARTIAL, FULL):
        plans = write_variant(dataset, name, changes, configuration=arguments.configuration, overwrite=True).stem
    write_source_variants(PARTIAL, {}, plans, overwrite=True)
    place = Study(PARTIAL, plans, arguments.configuration, prepared["images"], prepared["truth"],
                  arguments.work.absolute() / arguments.study / "study" / name, device=arguments.device,
                  predict_options=["--disable_tta"] * arguments.disable_tta,
                  label_options=["--disable-tta"] * arguments.disable_tta)
    results = {}
    for row in [i for i in ROWS if i in arguments.rows]:
        started = time.monotonic()
        results[row] = one_row(place, row, design, prepared["labels"])
        results[row]["seconds"] = round(time.monotonic() - started)
        print(f"seed {seed}: {row}: {results[row]}", flush=True)
    return results


def network_changes(arguments):
    return {**({} if arguments.planned_network else STUDIES[arguments.study]["variant"]), **parse_assignments(arguments.set)}


def one_row(place, row, design, labels):
    if row == "Individual":
        rows = [i for source in place.run_teachers(design["sources"]).values() for i in source]
    elif row == "fully supervised":
        rows = place.run_method("nnUNetTrainerPartial", FULL)
    else:
        if METHODS[row].taught:
            for source in design["sources"]:
                place.train(TEACHER, f"{place.plans}_{source}")
        rows = place.run_method(METHODS[row].trainer, plans=place.pseudo_label() if METHODS[row].labelled else None)
    return mean_dice(rows, labels)


# ------------------------------------------------------------------ report

def report(arguments, prepared, results):
    labels = prepared["labels"]
    rows = [i for i in ROWS if i in arguments.rows]
    mean = {row: {c: statistics.mean(r[row][c] for r in results.values()) for c in [*labels, "mean"]} for row in rows}
    spread = {row: statistics.stdev(r[row]["mean"] for r in results.values()) if len(results) > 1 else None for row in rows}
    content = {"study": arguments.study, "command": command(), "machine": machine(),
               "versions": versions(), "training_cases": len(prepared["training"]), "cases_per_source": prepared["shares"],
               "test_cases": len(prepared["test"]), "epochs": arguments.epochs, "iterations_per_epoch": arguments.iterations,
               "configuration": arguments.configuration, "optimizer": arguments.optimizer, "initial_lr": arguments.initial_lr,
               "network": network_changes(arguments) or "as planned",
               "dice_percent": mean, "standard_deviation_of_the_mean_over_seeds": spread,
               "per_seed": {str(k): v for k, v in results.items()}}
    write_json(content, arguments.out.with_suffix(".json"))
    table = markdown_table(mean, labels)
    write_text(f"# {arguments.study}: DSC in percent, mean over {len(prepared['test'])} test cases"
               f"{f' and {len(results)} seeds' if len(results) > 1 else ''}\n\n{table}\n\n"
               f"{arguments.configuration}, {arguments.epochs} x {arguments.iterations} steps, {content['network']}, {arguments.optimizer} "
               f"{arguments.initial_lr}; {len(prepared['training'])} training cases ({prepared['shares']}).\n\n"
               f"`{content['command']}`\n\n{content['machine']}; {content['versions']}\n", arguments.out.with_suffix(".md"))
    print(json.dumps(mean, indent=1))
    print(table)


def command():
    """The command as it was given, but for where this machine keeps things."""
    given = list(sys.argv[1:])
    for name in ("--work", "--out"):
        given[given.index(name) + 1] = name.strip("-").upper()
    return " ".join(["python benchmarks/accuracy.py", *given])


def machine():
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {name}"


def versions():
    from importlib.metadata import version

    return {"python": platform.python_version(), **{i: version(i) for i in ("torch", "nnunetv2", "nnunet_partial")}}


if __name__ == "__main__":
    main()
