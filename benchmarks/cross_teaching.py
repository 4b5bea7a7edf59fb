"""The ablations of cross-teaching distillation (Table 3 of Choi 2022) on a real set, few of whose cases are labelled.

    python benchmarks/cross_teaching.py --work WORK --out benchmarks/results/cross_teaching --seeds 0 1 2

MSD Task04 (hippocampus): a share of the training cases keeps its labels, the others are training cases without labels, and
53 fully labelled cases are for testing alone. Every row has the same plans, steps, optimiser and seeds; of every row the
student is tested, by nnUNetv2_predict. "planned U-Net" is nnUNetTrainerPartial, which learns from the labelled cases alone.
With the table: parameters and multiply-accumulates of student and teacher, at this size and at the paper's.

Needs NNUNET_PARTIAL_DATA. Interrupted, it goes on where it was when started again.
"""

import argparse
import os
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import studies  # beside this file, as circumstances is
from circumstances import circumstances

from nnunet_partial import api
from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.results import markdown_table, mean_dice
from nnunet_partial.files import write_json, write_text

COMPLETE, DATASET = 601, 631
PREFIX = "nnUNetTrainerCrossTeaching"
ROWS = {
    "planned U-Net": "nnUNetTrainerPartial",
    "FSL": f"{PREFIX}FSL",
    "FSL + KD": f"{PREFIX}FSLKD",
    "SSL + KD": f"{PREFIX}SSLKD",
    "SSL + PSV": f"{PREFIX}SSLPSV",
    "SSL + KD + PSV": f"{PREFIX}SSLKDPSV",
    "CTS": f"{PREFIX}CTS",
    "CTT, no KD": f"{PREFIX}NoKD",
    "CTT, no PSV": f"{PREFIX}NoPSV",
    "CTT, same decoders": f"{PREFIX}SD",
    "proposed": PREFIX,
}
TEST_CASES, NETWORK = 53, {"features": [8, 16, 32, 64], "batch_size": 8}
LABELS = ("anterior", "posterior")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and predictions")
    parser.add_argument("--out", type=Path, required=True, help="results are written to OUT.json and OUT.md")
    parser.add_argument("--labelled", type=float, default=0.15, help="share of the training cases that keep their labels")
    parser.add_argument("--configuration", default="3d_fullres", choices=("2d", "3d_fullres"))
    parser.add_argument("--disable-tta", action="store_true", help="predict without mirroring")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=40, help="steps per epoch")
    parser.add_argument("--cases", type=int, help="use this many training cases only")
    parser.add_argument("--test-cases", type=int, help="test on this many cases")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--initial-lr", type=float, default=3e-3)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further changes of the plans variant, for example cross_teaching.weighting=code",
    )
    parser.add_argument("--planned-network", action="store_true", help="the planned network, batch and patch size (needs a GPU)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        study(arguments)


def study(arguments):
    studies.use_folders(arguments.work, arguments.device)
    prepared = prepare(arguments)
    results = {}
    for seed in arguments.seeds:
        results[seed] = one_seed(arguments, prepared, seed)
        report(arguments, prepared, results)  # also what is there so far


def prepare(arguments):
    """Raw dataset, plan, preprocessed cases and test set: once for all seeds and rows."""
    cases, units = studies.all_cases("hippocampus", arguments.work)
    names = studies.shuffled(units)  # the test cases are those of studies.py
    test, training = names[:TEST_CASES], names[TEST_CASES:][: arguments.cases]
    number = round(arguments.labelled * len(training))
    if not 5 <= number < len(training):
        raise UserError(
            f"--labelled {arguments.labelled}: {number} of {len(training)} training cases; at least 5 must be "
            f"labelled, and one must not."
        )
    labelled, unlabelled = sorted(training[:number]), sorted(training[number:])
    split = {"labelled": labelled, "unlabelled": unlabelled}
    studies.remember(arguments.work / "cases.json", split)
    complete = studies.write_complete(COMPLETE, studies.CHANNEL["hippocampus"], LABELS, cases, sorted(training))
    if not list(complete.parent.glob(f"Dataset{DATASET}_*/dataset.json")):
        merge_datasets(
            DATASET,
            "FewLabels",
            [SourceSpec("labelled", COMPLETE, cases=labelled), SourceSpec("plain", COMPLETE, labelled=False, cases=unlabelled)],
            list(LABELS),
        )
    studies.plan(arguments.work / "logs", arguments.configuration, DATASET)
    images, truth = studies.write_test_set(arguments.work.absolute() / "test", cases, test[: arguments.test_cases], complete)
    return {**split, "test": test[: arguments.test_cases], "images": images, "truth": truth}


def one_seed(arguments, prepared, seed):
    """Row -> {class: DSC in percent}, with the seconds that it took."""
    network = {} if arguments.planned_network else NETWORK
    settings = {
        "num_epochs": arguments.epochs,
        "num_iterations_per_epoch": arguments.iterations,
        "num_val_iterations_per_epoch": 2,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        **network,
    }
    given = "".join(f"-{i}" for i in arguments.set)
    name = f"e{arguments.epochs}x{arguments.iterations}" + re.sub(r"[^A-Za-z0-9]+", "-", given).rstrip("-")
    options = api.CompareOptions(
        str(DATASET),
        arguments.configuration,
        tuple(f"trainer={ROWS[i]}" for i in rows_of(arguments)),
        str(arguments.work.absolute() / "comparison" / name),
        name=name,
        settings=(*studies.assignments(settings), *arguments.set),
        seeds=(seed,),
        test_images=str(prepared["images"]),
        test_labels=str(prepared["truth"]),
        device=arguments.device,
        disable_tta=arguments.disable_tta,
    )
    results = studies.compared(options).values()
    return {row: {**mean_dice(rows, LABELS), "seconds": seconds} for row, (rows, seconds) in zip(rows_of(arguments), results)}


def rows_of(arguments):
    """The rows of the table that were asked for, in its order."""
    return [i for i in ROWS if i in arguments.rows]


def networks(arguments):
    """What student and teacher cost, at the size that was trained and at the paper's on its 96 x 64 x 96 patch."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_partial.inference.efficiency.measure import cost
    from nnunet_partial.networks.usenet import ResidualUSENet

    plans = sorted(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{DATASET}_*/nnUNetPlans_e*.json"))[-1]
    planned = PlansManager(str(plans)).get_configuration(arguments.configuration)
    result = {}
    for name, patch, build in (
        ("trained", planned.patch_size, lambda mobile: ResidualUSENet.from_plans(planned, 1, 3, mobile=mobile)),
        ("paper", (96, 64, 96), lambda mobile: ResidualUSENet(1, 14, mobile=mobile)),
    ):
        with torch.device("meta"):
            costs = {"student": cost(build(True), 1, patch), "teacher": cost(build(False), 1, patch)}
        of_student, of_teacher = costs.values()
        result[name] = {
            **{k: asdict(v) for k, v in costs.items()},
            "teacher_over_student": {
                "parameters": of_teacher.parameters / of_student.parameters,
                "multiply_accumulates": of_teacher.multiply_accumulates / of_student.multiply_accumulates,
            },
        }
    return result


def report(arguments, prepared, results):
    rows = rows_of(arguments)
    mean = {row: {c: statistics.mean(r[row][c] for r in results.values()) for c in [*LABELS, "mean"]} for row in rows}
    spread = {row: statistics.stdev(r[row]["mean"] for r in results.values()) if len(results) > 1 else None for row in rows}
    content = {
        **circumstances(),
        "configuration": arguments.configuration,
        "labelled_cases": len(prepared["labelled"]),
        "unlabelled_cases": len(prepared["unlabelled"]),
        "test_cases": len(prepared["test"]),
        "epochs": arguments.epochs,
        "iterations_per_epoch": arguments.iterations,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        "dice_percent": mean,
        "standard_deviation_of_the_mean_over_seeds": spread,
        "networks": networks(arguments),
        "per_seed": {str(k): v for k, v in results.items()},
    }
    write_json(content, arguments.out.with_suffix(".json"))
    table = markdown_table(mean, LABELS)
    ratios = "; ".join(
        f"{k}: {v['teacher_over_student']['parameters']:.1f} x the parameters and "
        f"{v['teacher_over_student']['multiply_accumulates']:.1f} x the multiply-accumulates"
        for k, v in content["networks"].items()
    )
    write_text(
        f"# Cross-teaching distillation on hippocampus: DSC in percent, {len(prepared['test'])} test cases, mean over "
        f"{len(results)} seeds\n\n{table}\n\n{len(prepared['labelled'])} labelled and {len(prepared['unlabelled'])} "
        f"unlabelled cases; {arguments.configuration}, {arguments.epochs} x {arguments.iterations} steps, {arguments.optimizer} "
        f"{arguments.initial_lr}. Standard deviation of the mean over seeds: "
        f"{', '.join(f'{k} {v:.2f}' for k, v in spread.items() if v is not None) or 'one seed only'}.\n\n"
        f"Teacher over student, {ratios}.\n\n`{content['command']}`\n\n{content['machine']}; {content['versions']}\n",
        arguments.out.with_suffix(".md"),
    )
    print(table)


if __name__ == "__main__":
    sys.exit(main())
