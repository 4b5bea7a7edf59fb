"""ATSO against what it must beat, on real data with few labels: test DSC, and how near each model stays to M0.

    python benchmarks/atso.py hippocampus --work WORK --out benchmarks/results/atso_hippocampus --seeds 0 1 2
    python benchmarks/atso.py LeftAtrium --work WORK --out benchmarks/results/atso_left_atrium --device cuda

hippocampus  MSD Task04, 10 % of the training cases labelled
LeftAtrium   the usual 16 labelled and 64 unlabelled cases; the last of the unlabelled ones are the test set
ACDC         10 % of the patients labelled; patients, not volumes, are split

Rows: supervised-only (M0), supervised as long (M0 fine-tuned on the labelled cases for as many epochs as a generation),
self-learning, STSO, ATSO, and all labels (from scratch, as many epochs as M0 and a generation together). All share the
plans, and M0 but for the last row. The three loops run through scripts/atso_loop.py. Truth of unlabelled cases is read by
the reports alone.

Needs NNUNET_PARTIAL_DATA. Interrupted, it goes on where it was when started again with the same arguments.
"""

import argparse
import csv
import re
import statistics
import sys
from pathlib import Path

import studies  # beside this file, as circumstances is
from circumstances import circumstances

from nnunet_partial import api, paths
from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.errors import exit_on_user_error
from nnunet_partial.evaluation.results import mean_dice
from nnunet_partial.files import read_json, write_json, write_text
from nnunet_partial.orchestration.foreground import run
from nnunet_partial.settings import parse_assignments
from nnunet_partial.variants import write_variant

COMPLETE, PARTIAL, FULL = 602, 612, 622  # dataset ids of all cases, of the half-labelled and the fully labelled training set
STRATEGIES = {"ATSO": "atso", "STSO": "stso", "self-learning": "self-learning"}
ROWS = ("supervised-only", "supervised as long", "self-learning", "STSO", "ATSO", "all labels")
COLUMNS = {
    "test": "DSC, test",
    "reference": "DSC, reference set",
    "to_m0": "DSC to M0, reference set",
    "test_to_m0": "DSC to M0, test",
}
STUDIES = {
    "hippocampus": {
        "labels": ("anterior", "posterior"),
        "configuration": "3d_fullres",
        "test": 53,
        "labelled": 0.1,
        "variant": {"features": [8, 16, 32, 64], "batch_size": 4},
    },
    "LeftAtrium": {
        "labels": ("atrium",),
        "configuration": "3d_fullres",
        "test": 16,
        "labelled": None,
        "variant": {"features": [8, 16, 32, 64], "batch_size": 2, "patch_size": [40, 64, 80]},
    },
    "ACDC": {
        "labels": ("right ventricle", "myocardium", "left ventricle"),
        "configuration": "2d",
        "test": 19,
        "labelled": 0.1,
        "variant": {"features": [8, 16, 32, 64], "batch_size": 8, "patch_size": [128, 128]},
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and predictions")
    parser.add_argument("--out", type=Path, required=True, help="results are written to OUT.json and OUT.md")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of M0")
    parser.add_argument("--fine-tune-epochs", type=int, default=10, help="of every later model")
    parser.add_argument("--iterations", type=int, default=30, help="steps per epoch")
    parser.add_argument("--initial-lr", type=float, default=3e-3)
    parser.add_argument("--fine-tune-lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--labelled", type=int, help="labelled training cases (ACDC: patients); default: as above")
    parser.add_argument("--unlabelled", type=int, help="use this many unlabelled training cases (ACDC: patients)")
    parser.add_argument("--test", type=int, help="test cases (ACDC: patients)")
    parser.add_argument("--configuration", help="default: 3d_fullres, ACDC: 2d")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="further changes of the plans variant")
    parser.add_argument("--planned-network", action="store_true", help="the planned network, batch and patch size (needs a GPU)")
    parser.add_argument("--tta", action="store_true", help="mirror when predicting")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--executor", default="local", choices=("local", "slurm", "debug"))
    parser.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    with exit_on_user_error():
        study(arguments)


def study(arguments):
    arguments.base = arguments.work.absolute() / arguments.study
    arguments.configuration = arguments.configuration or STUDIES[arguments.study]["configuration"]
    studies.use_folders(arguments.base, arguments.device)
    prepared = prepare(arguments)
    results = {seed: one_seed(arguments, prepared, seed) for seed in arguments.seeds}
    report(arguments, prepared, results)


# ------------------------------------------------------------------ data


def split_units(arguments, units):
    """(labelled, unlabelled, test) units."""
    design = STUDIES[arguments.study]
    test = arguments.test or design["test"]
    if arguments.study == "LeftAtrium":
        given = read_json(studies.data_folder() / "LeftAtrium" / "split_16_64.json")
        labelled, unlabelled = given["labelled"], given["unlabelled"]
        unlabelled, test = unlabelled[:-test], unlabelled[-test:]
    else:
        names = studies.shuffled(units)
        test, training = names[:test], names[test:]
        number = arguments.labelled or max(1, round(design["labelled"] * len(training)))
        labelled, unlabelled = training[:number], training[number:]
    return labelled[: arguments.labelled], unlabelled[: arguments.unlabelled], test


def prepare(arguments):
    """Raw datasets, one plan, everything preprocessed, test set and truth: once for all seeds and rows."""
    design = STUDIES[arguments.study]
    cases, units = studies.all_cases(arguments.study, arguments.work)
    labelled, unlabelled, test = ([c for unit in part for c in units[unit]] for part in split_units(arguments, units))
    chosen = {"labelled": labelled, "unlabelled": unlabelled, "test": test}
    studies.remember(arguments.base / "split.json", chosen)
    complete = studies.write_complete(COMPLETE, studies.CHANNEL[arguments.study], design["labels"], cases, labelled + unlabelled)
    if not list(complete.parent.glob(f"Dataset{PARTIAL}_*")):
        specs = [SourceSpec("labelled", COMPLETE, cases=labelled), SourceSpec("unlabelled", COMPLETE, cases=unlabelled)]
        merge_datasets(FULL, "Full", specs, design["labels"])
        hidden = SourceSpec("unlabelled", COMPLETE, labelled=False, cases=unlabelled)
        merge_datasets(PARTIAL, "Partial", [specs[0], hidden], design["labels"])
    studies.plan(arguments.base / "logs", arguments.configuration, PARTIAL, FULL)
    # every case trains; the pseudo Dice during training is that of some labelled cases and chooses nothing
    names = {part: sorted(f"{part}_{i}" for i in chosen[part]) for part in ("labelled", "unlabelled")}
    for dataset in (PARTIAL, FULL):
        write_json(
            [{"train": sorted(names["labelled"] + names["unlabelled"]), "val": names["labelled"][:4]}],
            paths.preprocessed_dataset(dataset) / "splits_final.json",
        )
    images, truth = studies.write_test_set(arguments.base / "test", cases, test, complete)
    reference = studies.link(arguments.base / "reference", {f"unlabelled_{i}.nii.gz": cases[i][1] for i in unlabelled})
    return {"images": images, "truth": truth, "reference": reference, "counts": {k: len(v) for k, v in chosen.items()}}


# ------------------------------------------------------------------ training


def one_seed(arguments, prepared, seed):
    """Row -> figures."""
    changes = {
        "num_epochs": arguments.epochs,
        "num_iterations_per_epoch": arguments.iterations,
        "num_val_iterations_per_epoch": 2,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        "seed": seed,
        **network_changes(arguments),
    }
    given = re.sub(r"[^A-Za-z0-9]+", "-", "".join(f"-{i}" for i in arguments.set)).rstrip("-")
    name = f"e{arguments.epochs}x{arguments.iterations}-s{seed}{given}"
    for dataset in (PARTIAL, FULL):
        plans = write_variant(dataset, name, changes, configuration=arguments.configuration, overwrite=True).stem
    figures, m0 = {}, None
    for row, strategy in STRATEGIES.items():  # ATSO first: it trains the M0 of all
        if row in arguments.rows or m0 is None:
            folder, m0 = loop(arguments, prepared, plans, strategy, m0, f"{name}-{strategy}")
            figures[row] = of_run(folder)
    atso = read_summary(folder_of(plans, arguments, "atso"))
    figures["supervised-only"] = figures_of(atso[0])
    if "supervised as long" in arguments.rows:
        settings = {
            "num_epochs": arguments.fine_tune_epochs,
            "initial_lr": arguments.fine_tune_lr,
            "atso.initial_weights": paths.final_checkpoint(m0, "0"),
        }
        figures["supervised as long"] = test_of(
            arguments, prepared, PARTIAL, "nnUNetTrainerATSO", plans, "longer", seed, settings
        )
    if "all labels" in arguments.rows:
        settings = {"num_epochs": arguments.epochs + arguments.fine_tune_epochs}
        figures["all labels"] = test_of(arguments, prepared, FULL, "nnUNetTrainerPartial", plans, "full", seed, settings)
    print(f"seed {seed}: {figures}", flush=True)
    return figures


def network_changes(arguments):
    return {**({} if arguments.planned_network else STUDIES[arguments.study]["variant"]), **parse_assignments(arguments.set)}


def folder_of(plans, arguments, strategy):
    name = f"{strategy}-{plans.split('_', 1)[1]}"
    return paths.root("nnUNet_results") / paths.dataset_name(PARTIAL) / "atso" / f"{name}_{arguments.configuration}_fold0"


def loop(arguments, prepared, plans, strategy, m0, log):
    """Run one strategy; returns the run's folder and the model folder of M0."""
    name = f"{strategy}-{plans.split('_', 1)[1]}"
    script = Path(__file__).absolute().parent.parent / "scripts" / "atso_loop.py"
    command = [
        sys.executable,
        script,
        "--dataset",
        PARTIAL,
        "--configuration",
        arguments.configuration,
        "--plans",
        plans,
        "--run",
        name,
        "--strategy",
        strategy,
        "--generations",
        arguments.generations,
        "--fine-tune-epochs",
        arguments.fine_tune_epochs,
        "--fine-tune-lr",
        arguments.fine_tune_lr,
        "--test-images",
        prepared["images"],
        "--test-labels",
        prepared["truth"],
        "--reference-truth",
        prepared["reference"],
        "--validation",
        "none",
        "--device",
        arguments.device,
        "--executor",
        arguments.executor,
    ]
    command += [] if arguments.tta else ["--disable-tta"]
    command += ["--initial-model", m0] if m0 else []
    for option in arguments.slurm:
        command += ["--slurm", option]
    run(command, arguments.base / "logs" / f"{log}.log")
    own = paths.model_folder(
        PARTIAL, "nnUNetTrainerATSO", f"{plans}_{name}-{arguments.configuration}-f0-m0", arguments.configuration
    )
    return folder_of(plans, arguments, strategy), m0 or own


def read_summary(folder):
    with open(folder / "report" / "summary.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def figures_of(row):
    """A line of the summary, in percent."""
    names = {"test": "test_dice", "reference": "reference_dice", "to_m0": "dice_to_m0", "test_to_m0": "test_dice_to_m0"}
    return {k: 100 * float(row[v]) if row[v] else None for k, v in names.items()}


def of_run(folder):
    """Figures of the model that a run returns, of every generation, and what the loop itself cost."""
    summary, loops = read_summary(folder), read_json(folder / "journal.json")["loops"]
    seconds, waited = (sum(i[name] for i in loops) for name in ("seconds", "in_stages"))
    return {
        **figures_of(summary[-1]),
        "generations": [{"generation": i["generation"], **figures_of(i)} for i in summary],
        "loop_seconds": seconds,
        "loop_share_percent": 100 * (seconds - waited) / seconds,
    }


def test_of(arguments, prepared, dataset, trainer, plans, name, seed, settings):
    """Train a model of another kind, with its own variant of ``plans``, predict and evaluate."""
    options = api.CompareOptions(
        str(dataset),
        arguments.configuration,
        (f"trainer={trainer}",),
        str(arguments.base / "comparison" / f"{plans}-{name}"),
        plans,
        name,
        studies.assignments(settings),
        seeds=(seed,),
        test_images=str(prepared["images"]),
        test_labels=str(prepared["truth"]),
        device=arguments.device,
        disable_tta=not arguments.tta,
    )
    rows, _ = studies.compared(options)[trainer]
    return {"test": mean_dice(rows, STUDIES[arguments.study]["labels"])["mean"]}


# ------------------------------------------------------------------ report


def report(arguments, prepared, results):
    rows = [i for i in ROWS if i in arguments.rows]
    table = {row: {c: spread([r[row].get(c) for r in results.values()]) for c in COLUMNS} for row in rows}
    content = {
        "study": arguments.study,
        **circumstances(),
        "cases": prepared["counts"],
        "generations": arguments.generations,
        "epochs": arguments.epochs,
        "fine_tune_epochs": arguments.fine_tune_epochs,
        "iterations_per_epoch": arguments.iterations,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        "fine_tune_lr": arguments.fine_tune_lr,
        "network": network_changes(arguments) or "as planned",
        "dice_percent": table,
        "order": order(table),
        "loop_share_percent": loop_shares(results),
        "bar_loop_share_percent": 2.0,
        "per_seed": {str(k): v for k, v in results.items()},
    }
    write_json(content, arguments.out.with_suffix(".json"))
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join([row, *(shown(table[row][c]) for c in COLUMNS)]) + " |" for row in rows]
    text = "\n".join(lines)
    write_text(
        f"# {arguments.study}: few labels, mean {'and standard deviation ' if len(results) > 1 else ''}over "
        f"{len(results)} seed(s)\n\n{text}\n\n{prepared['counts']}; M0 {arguments.epochs} x {arguments.iterations} steps, "
        f"{arguments.generations} generations of {arguments.fine_tune_epochs} x {arguments.iterations}; "
        f"{content['network']}. {content['order']} The loop's own share of the wall time, in percent (bar 2): "
        f"{', '.join(f'{k} {v:.1f}' for k, v in content['loop_share_percent'].items())}.\n\n`{content['command']}`\n\n{content['machine']}; "
        f"{content['versions']}\n",
        arguments.out.with_suffix(".md"),
    )
    print(text)


def loop_shares(results):
    """Strategy -> percent of the wall time in which no stage ran, over all seeds."""
    return {
        k: statistics.mean(r[k]["loop_share_percent"] for r in results.values())
        for k in STRATEGIES
        if all(k in r for r in results.values())
    }


def spread(values):
    """(mean, standard deviation over seeds or None), or None where nothing is known."""
    known = [i for i in values if i is not None]
    return [statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None] if known else None


def shown(value):
    return "" if value is None else f"{value[0]:.2f}" if value[1] is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def order(table):
    """Whether the paper's order holds, in words."""
    test = {k: v["test"][0] for k, v in table.items() if v["test"]}
    found = []
    if {"ATSO", "STSO", "supervised-only"} <= set(test):
        holds = test["ATSO"] >= test["STSO"] >= test["supervised-only"]
        found.append(f"ATSO >= STSO >= supervised-only on the test set: {'yes' if holds else 'no'}.")
    near = {k: table[k]["to_m0"][0] for k in STRATEGIES if k in table and table[k]["to_m0"]}
    if len(near) == len(STRATEGIES):
        lowest = all(near["ATSO"] < value for name, value in near.items() if name != "ATSO")
        found.append(f"DSC to M0 lowest for ATSO: {'yes' if lowest else 'no'}.")
    return " ".join(found)


if __name__ == "__main__":
    main()
