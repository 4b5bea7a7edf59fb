"""Accuracy of the methods on real anatomy, on identical splits and budgets: nnunet_partial compare on public sets.

    python benchmarks/accuracy.py hippocampus --work WORK --steps 4000 --seeds 0 1 2
    python benchmarks/accuracy.py hippocampus --table --steps 4000 --out docs/results/hippocampus
    python benchmarks/accuracy.py hippocampus --work WORK --steps 500 1000 2000 4000 8000 --methods naive,partial,full
    python benchmarks/accuracy.py hippocampus --curve --out docs/results/hippocampus_curve

hippocampus  MSD Task04 (T1 MRI): one half of the training cases annotated for the anterior part only, the other half for
             the posterior part only
ACDC         cine MRI: three sources, one each for right ventricle, myocardium and left ventricle; a patient's two volumes
             are of one source
abdomen      CT painted on real eight-organ anatomy: four sources (liver; both kidneys as one class; pancreas; spleen)

Two more ask what labels of coarser granularity are worth, on thirds of the hippocampus cases; benchmarks/unions.py compares them:

union        a third annotated for the anterior part, a third for the posterior part, a third for both as one structure
no-union     the same without the last third

union-few and no-union-few are the same with ten training cases a source.

Three more are of few labels, for ATSO and cross-teaching: some cases with the labels of all classes (--labelled), all others with none:

hippocampus-few, LeftAtrium-few, ACDC-few

The rows of cross-teaching's Table 3 are trainers of their own: --methods partial,crossteaching,trainer=nnUNetTrainerCrossTeachingFSL and so on
with FSLKD, SSLKD, SSLPSV, SSLKDPSV, CTS, NoKD, NoPSV and SD.

Two methods of benchmarks/trainers predict with the average of their network's weights, as co-training does (export
nnUNet_extTrainer=benchmarks/trainers): trainer=nnUNetTrainerPartialAveraged and trainer=nnUNetTrainerSelfTrainingAveraged.

The cases that are left are fully labelled and used for testing alone. Of each source that annotates something some cases are held out of
training: they are what budgets and settings are chosen by.

Each method and seed that is finished leaves its scores per case in RESULTS (benchmarks/results/accuracy), a small file to be
committed. What is there is not trained again, on this or another machine, with or without models; an interrupted training goes
on where it was. --table and --curve read these files alone. A table needs three seeds of every method, and twice the steps of full
supervision, to show that the budget has converged; of few labels, twice the steps of training on the labelled cases alone (partial).

All but hippocampus are trained and predicted at half their resolution in a slice (a design's ``spacing``, in mm), a quarter of the voxels;
predictions are resampled back by nnU-Net and judged at the resolution of the scans, which is the same for every method.

Every budget has ten epochs, so that the learning rate falls in the same ten steps. co_training.ema_decay averages over a quarter of
the training, at most the paper's 0.999 (4000 steps and more). With --average so does ema_decay: every network, teachers too, predicts
with the average of its weights.

A study takes hours. Give it code that nobody changes meanwhile: git worktree add --detach FOLDER COMMIT, PYTHONPATH=FOLDER; WORK
refuses to go on with another commit. Needs NNUNET_PARTIAL_DATA, but for --table and --curve.
"""

import argparse
import re
import shlex
from pathlib import Path

import scores  # beside this file, as studies and circumstances are
import studies
from circumstances import circumstances, command

from nnunet_partial import paths
from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.atso_report.generations import Run, all_changes, mean
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.results import json_values, read_metrics
from nnunet_partial.files import atomic_path, read_json, write_json, write_text
from nnunet_partial.labels import Annotations
from nnunet_partial.orchestration.compare.comparison import Comparison
from nnunet_partial.orchestration.compare.methods import METHODS, find_methods
from nnunet_partial.orchestration.compare.steps import CompareOptions
from nnunet_partial.orchestration.foreground import run

COMPLETE, PARTIAL, FULL = 601, 611, 621  # dataset ids of the original, the partially and the fully labelled dataset
EPOCHS = 10  # of every budget
RESULTS = Path(__file__).parent / "results" / "accuracy"
DESIGNS = {
    "hippocampus": {
        "sources": {"front": ("anterior",), "back": ("posterior",)},
        "test": 53,
        "validation": 10,
        # front and back look alike in a mirrored slice: with nnU-Net's mirroring, full supervision needs four times the steps
        "variant": {"features": "8,16,32,64", "batch_size": 8, "mirroring": "[]"},
        "bars": (("student", "full", -0.5), ("student", "naive", 8.0), ("mskd", "naive", 8.0)),
    },
    "ACDC": {
        "sources": {"right": ("right ventricle",), "wall": ("myocardium",), "left": ("left ventricle",)},
        "test": 19,
        "validation": 3,
        "spacing": (10.0, 3.125, 3.125),
        "variant": {"features": "8,16,32,64", "batch_size": 4, "patch_size": "80,80", "mirroring": "[]"},
        "bars": (("student", "full", -1.0),),
    },
    "abdomen": {
        "sources": {"lits": ("liver",), "kits": ("kidney",), "nih": ("pancreas",), "msd": ("spleen",)},
        "test": 6,
        "validation": 1,
        "spacing": (6.0, 6.0, 6.0),  # 2D keeps the slices of 3 mm; a finer first axis would make nnU-Net slice along another
        "variant": {"features": "8,16,32,64", "batch_size": 8, "patch_size": "48,64", "mirroring": "[]"},
        "bars": (("student", "full", -1.0),),
    },
}
CONTRASTS = (  # Table 1 of Huang 2020 from row to row, and what distillation has over the labels alone
    ("co-training", "cotraining", "selftraining-focal"),
    ("the region mask", "cotraining", "cotraining-ctwa"),
    ("instance-batch normalisation", "cotraining-ibn", "cotraining"),
    ("weight averages", "cotraining-ctwa", "cotraining-ct"),
    ("self-training's losses", "selftraining-focal", "selftraining"),
    ("distillation", "mskd", "partial"),
    ("labels beside distillation", "mskdplus", "mskd"),
    ("the feature term", "mskd", "mskdlw"),
    ("MS-KD over its paper's comparator", "mskd", "dodnet"),
    ("co-training over its paper's comparator", "cotraining", "conditioncnn"),
    *(
        ("predicting with the weight average", f"trainer=nnUNetTrainer{name}Averaged", name.lower())
        for name in ("Partial", "SelfTraining")
    ),
    ("co-training over labels and an average", "cotraining", "trainer=nnUNetTrainerPartialAveraged"),
    *(
        (what, *(f"trainer=nnUNetTrainerCrossTeaching{row}" if row else "crossteaching" for row in rows))
        for what, *rows in (  # Table 3 of Choi 2022; "": the proposed method, CTT
            ("distillation on labelled cases", "FSLKD", "FSL"),
            ("distillation on unlabelled cases", "SSLKD", "FSLKD"),
            ("pseudo-supervision by one teacher", "SSLKDPSV", "SSLKD"),
            ("cross teaching of two students", "CTS", "FSL"),
            ("a second teacher and cross teaching", "", "SSLKDPSV"),
            ("distillation", "", "NoKD"),
            ("pseudo-supervision", "", "NoPSV"),
            ("different decoders", "", "SD"),
        )
    ),
)
CONVERGED_BY = "partial"  # of few labels: before unlabelled cases can help, the labelled ones must have taught what they can
_ATSO_BARS = (
    ("atso", "stso", 0.0),
    ("stso", "self-learning", 0.0),
    ("self-learning", scores.AS_LONG, 0.0),
    ("full", "partial", 5.0),
)
_FEW = {"labelled": 4, "bars": _ATSO_BARS, "converged_by": CONVERGED_BY}
WHOLE = "anterior+posterior"  # one structure, as merge --map writes it
_THIRDS = {**DESIGNS["hippocampus"], "data": "hippocampus", "bars": ()}
_THIRDS["sources"] = {**DESIGNS["hippocampus"]["sources"], "whole": (WHOLE,)}
DESIGNS |= {"union": _THIRDS, "no-union": {**_THIRDS, "left_out": ("whole",)}}
DESIGNS |= {f"{name}-few": {**DESIGNS[name], "cases": 60} for name in ("union", "no-union")}  # 10 to learn from, of each source
DESIGNS |= {
    "hippocampus-few": {
        **DESIGNS["hippocampus"],
        **_FEW,
        "data": "hippocampus",
        "sources": {"labelled": ("anterior", "posterior"), "unlabelled": ()},
    },
    "LeftAtrium-few": {
        **_FEW,
        "data": "LeftAtrium",
        "sources": {"labelled": ("atrium",), "unlabelled": ()},
        "test": 16,
        "validation": 8,
        "spacing": (2.5, 2.5, 2.5),
        "variant": {"features": "8,16,32,64", "batch_size": 8, "patch_size": "32,40", "mirroring": "[]"},
    },
    "ACDC-few": {
        **DESIGNS["ACDC"],
        **_FEW,
        "data": "ACDC",
        "sources": {"labelled": ("right ventricle", "myocardium", "left ventricle"), "unlabelled": ()},
    },
}


def main():
    arguments = arguments_of()
    with exit_on_user_error():
        check(arguments)
        if arguments.table:
            publish_table(arguments)
        elif arguments.curve:
            publish_curve(arguments)
        else:
            train_and_record(arguments)


def arguments_of(argv=None):
    """The command line, or ``argv`` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=DESIGNS)
    parser.add_argument("--work", type=Path, help="folder for data, models and predictions")
    parser.add_argument("--results", type=Path, default=RESULTS, help="scores per case (default: benchmarks/results/accuracy)")
    parser.add_argument("--steps", nargs="+", type=int, default=[4000], help="of every network; several are budgets of a curve")
    parser.add_argument(
        "--methods", default="", help="as nnunet_partial compare takes them (default: all; table: all that are there)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--configuration", default="2d", choices=("2d", "3d_fullres"), help="default: 2d")
    parser.add_argument("--record", action="store_true", help="train nothing: record what is finished in WORK")
    parser.add_argument("--table", action="store_true", help="write OUT.json and OUT.md from the scores that are there")
    parser.add_argument("--curve", action="store_true", help="write OUT.json, OUT.md and OUT.png: DSC against steps")
    parser.add_argument("--out", type=Path, help="of --table and --curve")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--initial-lr", type=float, default=3e-3)
    parser.add_argument("--cases", type=int, help="use this many training cases (ACDC: patients) only")
    parser.add_argument(
        "--labelled", type=int, help="of few labels: how many training cases (ACDC: patients) are labelled (default: 4)"
    )
    parser.add_argument("--test-cases", type=int, help="test on this many cases (ACDC: patients)")
    parser.add_argument("--tta", action="store_true", help="mirror when predicting")
    parser.add_argument("--average", action="store_true", help="predict with the average of the weights (ema_decay)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="further settings of every model")
    parser.add_argument("--planned-network", action="store_true", help="the planned network, batch and patch size (needs a GPU)")
    parser.add_argument("--atso-generations", type=int, default=3)
    parser.add_argument("--atso-fine-tune-epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side on the CPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(argv)


def check(arguments):
    """What can be said before anything is done."""
    for steps in arguments.steps:
        if steps < EPOCHS or steps % EPOCHS:
            raise UserError(f"--steps {steps}: every budget has {EPOCHS} epochs, so give a multiple of {EPOCHS}.")
    reads = arguments.table or arguments.curve
    needed, why = ("out", "the files to write") if reads else ("work", "a folder for data and models")
    if getattr(arguments, needed) is None:
        raise UserError(f"--{needed} is missing: {why}.")
    if arguments.table and len(arguments.steps) != 1:
        raise UserError("--table is of one budget: give one number of --steps.")
    if arguments.table and len(set(arguments.seeds)) < scores.SEEDS_OF_A_TABLE:
        raise UserError(f"an accuracy table needs {scores.SEEDS_OF_A_TABLE} seeds, --seeds names {len(set(arguments.seeds))}.")
    if arguments.labelled is not None and "labelled" not in DESIGNS[arguments.study]:
        raise UserError(
            f"--labelled is of the studies of few labels: {', '.join(k for k, i in DESIGNS.items() if 'labelled' in i)}."
        )
    if not reads:
        arguments.methods = arguments.methods or ",".join(METHODS)
    find_methods(methods_of(arguments))


def methods_of(arguments):
    return [i for i in arguments.methods.split(",") if i]


# ------------------------------------------------------------------ budgets


def settings(arguments, steps):
    """Name -> value, as text, of everything that differs from the plans."""
    decay = round(max(0.0, min(0.999, 1 - 4 / steps)), 6)
    own = {
        "num_epochs": EPOCHS,
        "num_iterations_per_epoch": steps // EPOCHS,
        "num_val_iterations_per_epoch": 2,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        **({} if arguments.planned_network else DESIGNS[arguments.study]["variant"]),
        "co_training.ema_decay": decay,
        **({"ema_decay": decay} if arguments.average else {}),
    }
    return {**{k: str(v) for k, v in own.items()}, **dict(i.split("=", 1) for i in arguments.set)}


def budget_name(arguments, steps):
    """``2d-4000``, and what else differs from the design: each budget has its own models and scores."""
    differs = [
        *arguments.set,
        *(["planned"] if arguments.planned_network else []),
        *(["tta"] if arguments.tta else []),
        *(["average"] if arguments.average else []),
        *([arguments.optimizer] if arguments.optimizer != "adamw" else []),
        *([f"lr={arguments.initial_lr:g}"] if arguments.initial_lr != 3e-3 else []),
        *(f"{name}={value}" for name, value in other_numbers(arguments).items()),
    ]
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join([arguments.configuration, str(steps), *differs])).strip("-")


def other_numbers(arguments):
    """Option -> number, of how many cases and how long a loop, where the design has another."""
    given = {
        "cases": (arguments.cases, None),
        "labelled": (arguments.labelled, DESIGNS[arguments.study].get("labelled")),
        "test-cases": (arguments.test_cases, None),
        "atso-generations": (arguments.atso_generations, 3),
        "atso-fine-tune-epochs": (arguments.atso_fine_tune_epochs, 5),
    }
    return {name: value for name, (value, design) in given.items() if value not in (None, design)}


# ------------------------------------------------------------------ data


def prepare(arguments):
    """Raw datasets, one plan, everything preprocessed, splits, test set: once for all seeds and methods."""
    data, labels = data_of(arguments.study), classes_of(arguments.study)
    cases, units = studies.all_cases(data, arguments.work)
    shares, test = divide(arguments, units)
    training = [i for share in shares.values() for i in share["train"] + share["val"]]
    studies.remember(arguments.base / "split.json", {"sources": shares, "test": test})
    complete = studies.write_complete(COMPLETE, studies.CHANNEL[data], labels, cases, training)
    if not list(complete.parent.glob(f"Dataset{PARTIAL}_*")):
        own = {source: share["train"] + share["val"] for source, share in shares.items()}
        merge_datasets(FULL, "Full", [SourceSpec(i, COMPLETE, cases=own[i]) for i in own], labels)
        annotated = DESIGNS[arguments.study]["sources"]
        merge_datasets(PARTIAL, "Partial", [source_of(i, annotated[i], labels, own[i]) for i in own], labels)
    studies.plan(arguments.base / "logs", arguments.configuration, PARTIAL, FULL, DESIGNS[arguments.study].get("spacing"))
    split = {
        part: sorted(f"{source}_{case}" for source, share in shares.items() for case in share[part]) for part in ("train", "val")
    }
    for dataset in (PARTIAL, FULL):
        write_json([split], paths.preprocessed_dataset(dataset) / "splits_final.json")
    return studies.write_test_set(arguments.base / "test", cases, test, complete)


def images_of(part):
    """File name -> image of the cases that are trained on (``train``) or held out (``val``), as they are prepared."""
    dataset = read_json(paths.raw_dataset(FULL) / "dataset.json")["dataset"]
    names = read_json(paths.preprocessed_dataset(FULL) / "splits_final.json")[0][part]
    return {f"{name}_0000.nii.gz": Path(dataset[name]["images"][0]) for name in names}


def data_of(study):
    """The public set whose cases a study divides."""
    return DESIGNS[study].get("data", study)


def classes_of(study):
    """Every class, in the order in which the sources name them."""
    return list(dict.fromkeys(i for organs in DESIGNS[study]["sources"].values() for organ in organs for i in organ.split("+")))


def source_of(name, annotated, labels, cases):
    """What of the fully labelled cases a source keeps: its classes; those of a union as one structure; without classes, nothing."""
    if not annotated:
        return SourceSpec(name, COMPLETE, labelled=False, cases=cases)
    became = {i: structure for structure in annotated for i in structure.split("+")}
    changed = {i: became.get(i, "background") for i in labels if became.get(i) != i}
    return SourceSpec(name, COMPLETE, annotated, changed, cases=cases)


def divide(arguments, units):
    """source -> its training and validation cases, and the test cases; units are dealt to the sources in turn, and what a source
    is dealt that the study leaves out is not used."""
    design, names = DESIGNS[arguments.study], studies.shuffled(units)
    test, training = names[: design["test"]][: arguments.test_cases], names[design["test"] :]
    most = arguments.cases or design.get("cases")
    shares = {}
    for name, own in dealt(design, training, most, arguments.labelled).items():
        held_out = design["validation"] if design["sources"][name] else 0
        shares[name] = {
            part: [case for unit in chosen for case in units[unit]]
            for part, chosen in (("val", own[:held_out]), ("train", own[held_out:]))
        }
    shares = {k: v for k, v in shares.items() if k not in design.get("left_out", ())}
    return shares, [case for unit in test for case in units[unit]]


def dealt(design, training, most, labelled):
    """source -> its units. ``training``: in random order; ``most``: how many of them are used, None: all."""
    if "labelled" in design:
        training = training[:most]
        number = design["validation"] + (labelled or design["labelled"])
        return dict(zip(design["sources"], (training[:number], training[number:])))
    training = sorted(training)[:most]
    return {name: training[number :: len(design["sources"])] for number, name in enumerate(design["sources"])}


# ------------------------------------------------------------------ training, seed by seed


def train_and_record(arguments):
    """Every method, seed and budget that has no scores yet."""
    todo = [(seed, steps) for seed in arguments.seeds for steps in arguments.steps if missing(arguments, steps, seed)]
    if not todo:
        print(f"nothing to train: every method and seed has its scores in {arguments.results / arguments.study}.")
        return
    arguments.base = arguments.work.absolute() / arguments.study
    studies.use_folders(arguments.base, arguments.device)
    test_set = prepare(arguments)
    if not arguments.record:  # which only reads; a score names the code that trained
        keep_code(arguments)
    for seed, steps in todo:
        one = Budget(arguments, steps, seed, *test_set)
        one.record()
        if not arguments.record and missing(arguments, steps, seed):
            try:
                one.train(one.missing)
            finally:
                one.record()


def missing(arguments, steps, seed):
    """Methods of one budget and seed that have no scores yet."""
    budget = budget_name(arguments, steps)
    return [i for i in methods_of(arguments) if not score_file(arguments, budget, i, seed).is_file()]


def score_file(arguments, budget, method, seed):
    name = re.sub(r"[^A-Za-z0-9]+", "-", method)
    return scores.score_file(arguments.results, arguments.study, budget, name, seed)


def keep_code(arguments):
    """Remember with which code WORK was begun; raise UserError for another, which would mix two in one table."""
    file, now = arguments.base / "code.json", {k: v for k, v in circumstances().items() if k in ("commit", "versions")}
    if file.is_file():
        kept = read_json(file)
        different = [f"{k} {kept.get(k)} then, {now[k]} now" for k in now if kept.get(k) != now[k]]
        if different:
            raise UserError(
                f"{file}: {'; '.join(different)}. Go on with the code of then (git worktree add --detach FOLDER COMMIT, "
                "PYTHONPATH=FOLDER), or choose another --work."
            )
    write_json(now, file)


class Budget:
    """The comparison of one budget and seed, in its folder of WORK."""

    def __init__(self, arguments, steps, seed, images, truth):
        self.arguments, self.steps, self.seed, self.images, self.truth = arguments, steps, seed, images, truth
        self.name = budget_name(arguments, steps)
        self.out = arguments.base / "comparison" / self.name

    @property
    def settings(self):
        return settings(self.arguments, self.steps)

    @property
    def missing(self):
        return missing(self.arguments, self.steps, self.seed)

    def train(self, methods):
        """Run nnunet_partial compare, which leaves alone what is finished in WORK."""
        o = self.arguments
        run(
            [
                *("nnunet_partial", "compare", PARTIAL, "--configuration", o.configuration, "--methods", ",".join(methods)),
                *("--name", self.name, *(j for k, v in self.settings.items() for j in ("--set", f"{k}={v}"))),
                *("--seeds", self.seed, "--test-images", self.images, "--test-labels", self.truth, "--full-dataset", FULL),
                *([] if o.tta else ["--disable-tta"]),
                *("--atso-generations", o.atso_generations, "--atso-fine-tune-epochs", o.atso_fine_tune_epochs),
                *("--processes", o.processes, "--device", o.device, "--out", self.out),
            ],
            o.base / "logs" / f"compare_{self.name}_seed{self.seed}.log",
        )

    # ---- what is kept

    def record(self):
        """Write the scores of every method that is finished in WORK and has none yet."""
        for method in self.missing:
            comparison = self.comparison(method)
            step = next(i for i in comparison.steps if i.name == f"s{self.seed}-{key_of(method)}-evaluate")
            if comparison.is_done(step):
                file = score_file(self.arguments, self.name, method, self.seed)
                scores.write_score(self._score(comparison, method), file)
                print(
                    f"{method}, seed {self.seed}, {self.steps} steps: {scores.mean_dsc(scores.read_score(file)):.2f} DSC; {file}"
                )

    def comparison(self, method):
        """The comparison of one method: its steps, models and what became of them."""
        return Comparison(self._options(method))

    def _options(self, method):
        return CompareOptions(
            paths.dataset_name(str(PARTIAL)),
            self.arguments.configuration,
            (method,),
            str(self.out),
            name=self.name,
            settings=tuple(f"{k}={v}" for k, v in self.settings.items()),
            seeds=(self.seed,),
            test_images=str(self.images),
            test_labels=str(self.truth),
            full_dataset=str(FULL),
            device=self.arguments.device,
            disable_tta=not self.arguments.tta,
            atso_generations=self.arguments.atso_generations,
            atso_fine_tune_epochs=self.arguments.atso_fine_tune_epochs,
        )

    def about(self):
        """What every score of this budget and seed says."""
        split = read_json(self.arguments.base / "split.json")
        return {
            "study": self.arguments.study,
            "budget": self.name,
            "steps": self.steps,
            "seed": self.seed,
            "settings": self.settings,
            "spacing_mm": DESIGNS[self.arguments.study].get("spacing"),
            "classes": classes_of(self.arguments.study),
            "cases": scores.digest(split),
            "training_cases_per_source": {k: len(v["train"]) for k, v in split["sources"].items()},
            **read_json(self.arguments.base / "code.json"),
            "machine": circumstances()["machine"],
        }

    def _score(self, comparison, method):
        about = self.about()
        return {
            **about,
            "method": method,
            "title": comparison.plan.methods[key_of(method)].title,
            "command": self._command(method),
            "commands": {
                i["step"]: {"part": i["part"], "seconds": _rounded(i["seconds"]), "core_seconds": _rounded(i["cpu_seconds"])}
                for i in comparison.commands()
                if i["part"] != "plans"
            },
            **self._of_loop(comparison, method),
            "test": scores.by_case(read_metrics(comparison.plan.evaluation(key_of(method), self.seed)), about["classes"]),
            "validation": scores.by_case(self._validation_rows(comparison.plan, method), about["classes"]),
        }

    def _of_loop(self, comparison, method):
        """Of ATSO, STSO and self-learning: Dice of each generation's pseudo labels to those of M0 and to the labels that were taken away."""
        step = f"s{self.seed}-{key_of(method)}-loop-fold0"
        argv = next((shlex.split(i["command"]) for i in comparison.commands() if i["step"] == step), None)
        if argv is None:
            return {}
        run_folder = f"{argv[argv.index('--run') + 1]}_{self.arguments.configuration}_fold0"
        loop = Run(paths.root("nnUNet_results") / paths.dataset_name(str(PARTIAL)) / "atso" / run_folder)
        loop.options["reference_truth"] = str(paths.preprocessed_dataset(FULL) / "gt_segmentations")
        loop.report = self.arguments.base / "labels_and_truth" / run_folder  # not the loop's own report, which has no truth
        rows = all_changes(loop)
        return {
            "pseudo_labels": {
                generation: {
                    name: round(mean(i[name] for i in rows if str(i["generation"]) == generation), 5)
                    for name in ("dice_to_m0", "dice_to_truth")
                }
                for generation in dict.fromkeys(str(i["generation"]) for i in rows)
            }
        }

    def _command(self, method):
        """The command that makes this one file."""
        o = self.arguments
        return shlex.join(
            [
                *("python", "benchmarks/accuracy.py", o.study, "--work", "WORK", "--steps", str(self.steps), "--methods", method),
                *("--seeds", str(self.seed), *(j for i in o.set for j in ("--set", i))),
                *(["--configuration", o.configuration] if o.configuration != "2d" else []),
                *(i for name, value in other_numbers(o).items() for i in (f"--{name}", str(value))),
                *(["--optimizer", o.optimizer] if o.optimizer != "adamw" else []),
                *(["--initial-lr", f"{o.initial_lr:g}"] if o.initial_lr != 3e-3 else []),
                *(["--planned-network"] if o.planned_network else []),
                *(["--tta"] if o.tta else []),
                *(["--average"] if o.average else []),
            ]
        )

    def _validation_rows(self, planner, method):
        """nnU-Net's own validation, with mirroring: of full supervision on all classes, of everything else on the classes that a
        case's source annotates, which are all that its files hold and all that a user of partial labels could choose by."""
        known = Annotations.read(paths.preprocessed_dataset(PARTIAL))
        truth, rows = paths.preprocessed_dataset(FULL) / "gt_segmentations", []
        for model in planner.models(key_of(method), self.seed):
            folder = paths.fold_folder(model, "0") / "validation"
            if any(folder.glob("*.nii.gz")):
                own = _classes_of(model, known.classes)
                more = {"annotated": own, "metrics": scores.METRICS, "allow_missing": True, "processes": 1, "progress": False}
                rows += evaluate_folder(folder, truth, str(FULL), **more)
        return rows if method == scores.FULL else on_annotated(rows, known)


def key_of(method):
    """What compare calls a method: of ``trainer=CLASS`` the class."""
    return next(iter(find_methods([method])))


def on_annotated(rows, known):
    """The rows of the classes that their case annotates."""
    return [i for i in rows if i["class"] in known.of(i["case"]).annotated]


def _rounded(seconds):
    return None if seconds is None else round(seconds, 1)


def _classes_of(model, classes):
    known = read_json(model / "dataset.json")["labels"]
    return [i for i in classes if i in known]


# ------------------------------------------------------------------ what is published


def publish_table(arguments):
    """OUT.json and OUT.md; nothing is written unless the table is complete and its budget has converged."""
    (steps,) = arguments.steps
    budget, twice = budget_name(arguments, steps), budget_name(arguments, 2 * steps)
    found = scores.read_study(arguments.results, arguments.study, (budget, twice))
    chosen = scores.complete(found, budget, methods_of(arguments), arguments.seeds)
    design = DESIGNS[arguments.study]
    if "labelled" in design:
        chosen |= scores.as_long(found, twice, arguments.seeds, CONVERGED_BY)
    content = scores.tabulate(chosen, scores.require_converged(found, budget, twice, design.get("converged_by", scores.FULL)))
    page = scores.table_page(content, design["bars"], command(), CONTRASTS)
    write_json({"command": command(), **content}, arguments.out.with_suffix(".json"))
    write_text(page, arguments.out.with_suffix(".md"))
    print(page)


def publish_curve(arguments):
    """OUT.json, OUT.md, OUT.png."""
    names = {i.name for i in (arguments.results / arguments.study).glob("*")}
    every = sorted({i for name in names for i in map(int, re.findall(r"\d+", name)) if budget_name(arguments, i) in names})
    budgets = {budget_name(arguments, i): i for i in every}
    found = scores.read_study(arguments.results, arguments.study, tuple(budgets))
    points = scores.curve(found, budgets, methods_of(arguments))
    if not points:
        raise UserError(
            f"there are no scores of {', '.join(budgets) or arguments.study} in {arguments.results}. Train some first."
        )
    methods = list(dict.fromkeys(i["method"] for i in points))
    movements = [
        scores.movement(found, budget_name(arguments, i), budget_name(arguments, 2 * i), method)
        for method in methods
        for i in every
    ]
    movements = [i for i in movements if i is not None]
    page = scores.curve_page(arguments.study, points, movements, command())
    write_json(json_values({"command": command(), "points": points, "movements": movements}), arguments.out.with_suffix(".json"))
    write_text(page, arguments.out.with_suffix(".md"))
    with atomic_path(arguments.out.with_suffix(".png")) as file:
        scores.draw_curve(arguments.study, points).savefig(file, format="png", dpi=110)
    print(page)


if __name__ == "__main__":
    main()
