"""Step time and peak memory of each trainer against plain nnUNetTrainer, paired in one run.

    python benchmarks/step_time.py --out benchmarks/results/step_time.json            # CPU, small network
    python benchmarks/step_time.py --device cuda --planned-network --out ...           # GPU, the planned network
    python benchmarks/step_time.py --soft --sources 1 3 8 --out benchmarks/results/step_time_soft.json

All trainers are in memory at once and take their steps in turn (plain, A, B, ..., plain, A, B, ...), on the same batch, so
that a machine whose speed drifts slows all of them alike; quoted is the median of the ratios round by round. Bars: with F
a forward pass and a step 3 F, MS-KD with K teachers <= 1.05 x (3 + K) / 3, co-training (two networks, two averages)
<= 1.05 x 8 / 3, MS-KD from soft labels <= 1.2 whatever K, with what it costs to read and augment them (--soft: each step takes
a batch of its own, made in this process, so that nothing is hidden by other processes), DoDNet, whose heads alone run once a
class, <= 1.1. conditionCNN, whose decoder does, has no bar.

The dataset is a phantom with K single-organ sources, made in a temporary folder; teachers are networks of the planned
architecture with random weights whose bias is set so that they call a tenth of the voxels their organ: what they say does
not change what it costs, except that feature terms are computed in their organ's region only.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from circumstances import circumstances  # beside this file

BARS = {
    "nnUNetTrainerPartial": lambda k: 1.1,
    "nnUNetTrainerMSKD": lambda k: 1.05 * (3 + k) / 3,
    "nnUNetTrainerMSKDLW": lambda k: 1.05 * (3 + k) / 3,
    "nnUNetTrainerMSKDPlus": lambda k: 1.05 * (3 + k) / 3,
    "nnUNetTrainerCoTraining": lambda k: 1.05 * 8 / 3,
    "nnUNetTrainerDoDNet": lambda k: 1.1,
    "nnUNetTrainerMSKDLW, soft labels": lambda k: 1.2,
}
TAUGHT = ("nnUNetTrainerMSKD", "nnUNetTrainerMSKDLW", "nnUNetTrainerMSKDPlus")
LABELLED = ("nnUNetTrainerSelfTraining", "nnUNetTrainerCoTraining")  # trained on the teachers' pseudo labels
SOFT = ", soft labels"  # after a trainer's name: these take the teachers' place
COMPARATORS = ("nnUNetTrainerDoDNet", "nnUNetTrainerConditionCNN")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=["nnUNetTrainerPartial", *TAUGHT, *LABELLED, *COMPARATORS])
    parser.add_argument("--sources", type=int, nargs="+", default=[3], help="K, the number of teachers; several are done in turn")
    parser.add_argument("--soft", action="store_true", help="MSKDLW from teachers and from soft labels, data loading included")
    parser.add_argument("--patch", type=int, nargs="+", default=[48, 48, 48])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--planned-network", action="store_true", help="planned features, patch and batch size")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # a process of its own per trainer: peak memory only grows
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(peak_memory(arguments)))
        return
    if arguments.soft:
        arguments.trainers = ["nnUNetTrainerMSKDLW", f"nnUNetTrainerMSKDLW{SOFT}"]
    results = []
    for sources in arguments.sources:
        arguments.teachers = sources
        with tempfile.TemporaryDirectory() as folder:
            arguments.folder = Path(folder)
            prepare(arguments)
            results.append(measure(arguments))
    result = results[0] if len(results) == 1 else results
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


# ------------------------------------------------------------------ a dataset and its teachers


def set_folders(folder):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
        os.environ[name] = str(folder / name)
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ["nnUNet_def_n_proc"] = "1"


def prepare(arguments):
    """A partial dataset of K sources with two cases each, planned and preprocessed by stock nnU-Net, with teachers."""
    import SimpleITK as sitk

    set_folders(arguments.folder)
    folder = arguments.folder / "nnUNet_raw" / "Dataset990_Step"
    shape = [i + 16 for i in arguments.patch]
    rng = np.random.default_rng(0)
    entries, contract = {}, {}
    for k in range(arguments.teachers):
        for i in range(2):
            case = f"s{k}_{i}"
            image, label = rng.normal(0, 50, shape).astype(np.float32), np.zeros(shape, np.uint8)
            z, y = 8 + 24 * (k // 4), 8 + 8 * (k % 4)
            label[z : z + 16, y : y + 8, 8:24] = k + 1
            for array, part in ((image, f"imagesTr/{case}_0000.nii.gz"), (label, f"labelsTr/{case}.nii.gz")):
                (folder / part).parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part), True)
            entries[case] = {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
            contract[case] = {"source": f"s{k}", "annotated": [f"organ{k}"]}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, **{f"organ{k}": k + 1 for k in range(arguments.teachers)}},
                "numTraining": len(entries),
                "file_ending": ".nii.gz",
                "dataset": entries,
                "nnunet_partial": {"version": 1, "cases": contract},
            }
        )
    )
    subprocess.run(
        [
            str(Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"),
            "-d",
            "990",
            "-c",
            "3d_fullres",
            "-np",
            "1",
            "-npfp",
            "1",
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "nnUNet_n_proc_DA": "1"},
    )
    from nnunet_partial.variants import write_source_variants, write_variant

    changes = (
        {"seed": 0}
        if arguments.planned_network
        else {"features": arguments.features, "patch_size": arguments.patch, "batch_size": arguments.batch_size, "seed": 0}
    )
    plans = write_variant(990, "step", changes, configuration="3d_fullres").stem
    for source in write_source_variants(990, {}, plans):
        teacher = make_trainer("nnUNetTrainerIndividual", source.stem, fold="all", device="cpu")
        teacher.initialize()
        calibrate(teacher)
        Path(teacher.output_folder).mkdir(parents=True, exist_ok=True)
        teacher.save_checkpoint(str(Path(teacher.output_folder) / "checkpoint_final.pth"))
        for name, content in (("plans", teacher.plans_manager.plans), ("dataset", teacher.dataset_json)):
            (Path(teacher.output_folder_base) / f"{name}.json").write_text(json.dumps(content))
    pseudo_labels(arguments.folder / "labels", plans)


def pseudo_labels(folder, plans):
    """Pseudo-complete the labels with the teachers, for the trainers that need it, and the plans that say so."""
    from nnunet_partial.inference.pseudo_labels import pseudo_label
    from nnunet_partial.variants import write_variant

    pseudo_label(990, "3d_fullres", folder, fold="all", plans=plans, mirroring=False, devices=["cpu"], soft=True)
    write_variant(990, "labelled", {"labels": str(folder)}, base=plans)
    write_variant(990, "soft", {"labels": str(folder), "mskd": {"teachers": "soft"}}, base=plans)


def calibrate(teacher, share=0.1):
    """Shift the output's bias so that the teacher calls ``share`` of the voxels of a random patch its organ."""
    import torch

    from nnunet_partial.networks.unwrap import unwrap

    network = unwrap(teacher.network)
    teacher.set_deep_supervision_enabled(False)
    with torch.no_grad():
        logits = network(torch.randn(1, 1, *teacher.configuration_manager.patch_size))
        margin = logits[:, 1] - logits[:, 0]
        network.decoder.seg_layers[-1].bias[0] += torch.quantile(margin.flatten()[:1_000_000], 1 - share)


def make_trainer(name, plans=None, fold="all", device="cpu"):
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    variant = "_labelled" if name in LABELLED else "_soft" if name.endswith(SOFT) else ""
    plans = plans or f"nnUNetPlans_step{variant}"
    return get_trainer_from_args("990", "3d_fullres", fold, name.removesuffix(SOFT), plans, False, torch.device(device))


# ------------------------------------------------------------------ measuring


def ready(name, device):
    """A trainer that can take steps, and its batches."""
    trainer = make_trainer(name, device=device)
    if hasattr(trainer, "load_frozen"):
        trainer.load_frozen()
    trainer.initialize()
    if name in LABELLED:
        trainer.prepare_losses(trainer.do_split()[0])
    loader, _ = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(True)
    trainer.network.train()
    return trainer, loader


def step(trainer, batches, device):
    """Seconds of one step; ``batches``: an iterator, whose time counts."""
    import torch

    started = time.perf_counter()
    trainer.train_step(next(batches))
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(arguments):
    import torch

    torch.set_num_threads(os.cpu_count() if arguments.device == "cpu" else 1)
    names = ["nnUNetTrainer", *arguments.trainers]
    trainers, loaders = zip(*(ready(name, arguments.device) for name in names))
    trainers = dict(zip(names, trainers))
    same = itertools.repeat(next(loaders[0]))  # that is there already
    batches = dict(zip(names, loaders if arguments.soft else [same] * len(names)))
    seconds = {name: [] for name in names}
    for i in range(arguments.warm_up + arguments.rounds):
        for name in names:
            spent = step(trainers[name], batches[name], arguments.device)
            if i >= arguments.warm_up:
                seconds[name].append(spent)
        print(f"round {i + 1}: " + ", ".join(f"{n} {seconds[n][-1]:.3f} s" for n in names if seconds[n]), file=sys.stderr)
    return report(arguments, trainers["nnUNetTrainer"], seconds, {name: memory_in_own_process(arguments, name) for name in names})


def memory_in_own_process(arguments, name):
    """Bytes that two steps need beyond the imports, in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--memory-of", name, "--folder", str(arguments.folder), "--device", arguments.device],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])["bytes"]


def peak_memory(arguments):
    import torch

    import nnunet_partial.trainers  # noqa: F401  imports are not counted

    set_folders(arguments.folder)
    base = most_resident()
    trainer, loader = ready(arguments.memory_of, arguments.device)
    for _ in range(2):
        step(trainer, loader, arguments.device)
    if arguments.device == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated()}
    return {"bytes": most_resident() - base}


def most_resident():
    """Bytes that this process has held at most. (getrusage would begin with what the parent held when it forked.)"""
    line = next(i for i in Path("/proc/self/status").read_text().splitlines() if i.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def report(arguments, plain, seconds, memory):
    rows = {}
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, seconds["nnUNetTrainer"])]
        bar = BARS.get(name, lambda k: None)(arguments.teachers)
        rows[name] = {
            "median_seconds": round(statistics.median(spent), 4),
            "ratio_to_plain": round(statistics.median(ratios), 3),
            "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
            "bar": bar and round(bar, 3),
            "peak_memory_mib": round(memory[name] / 2**20),
            "memory_ratio_to_plain": round(memory[name] / memory["nnUNetTrainer"], 3),
        }
    configuration = plain.configuration_manager
    return {
        **circumstances(),
        "device": arguments.device,
        "patch_size": list(configuration.patch_size),
        "batch_size": configuration.batch_size,
        "features": configuration.network_arch_init_kwargs["features_per_stage"],
        "teachers": arguments.teachers,
        "rounds": arguments.rounds,
        "data_loading": arguments.soft,
        "trainers": rows,
    }


if __name__ == "__main__":
    main()
