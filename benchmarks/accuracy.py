"""Accuracy of the methods on real anatomy, on identical splits and budgets: nnunet_partial compare on public sets.

    python benchmarks/accuracy.py hippocampus --work WORK --out docs/results/hippocampus --seeds 0 1 2
    python benchmarks/accuracy.py ACDC --work WORK --out docs/results/acdc
    python benchmarks/accuracy.py abdomen --work WORK --out docs/results/abdomen --device cuda --planned-network

hippocampus  MSD Task04 (T1 MRI): one half of the training cases annotated for the anterior part only, the other half for
             the posterior part only
ACDC         cine MRI: three sources, one each for right ventricle, myocardium and left ventricle; a patient's two volumes
             are of one source
abdomen      CT painted on real eight-organ anatomy: four sources (liver; both kidneys as one class; pancreas; spleen)

The cases that are left are fully labelled and used for testing alone. Of each source a few cases are held out of training,
for nnU-Net's own validation. Writes OUT.json and OUT.md (the figures, with what they were measured with) and OUT_*.png (for each
class the median case as every method sees it); the comparison's own page stays in WORK.

Needs NNUNET_PARTIAL_DATA. Interrupted, it goes on where it was when started again.
"""

import argparse
import base64
import html
import re
from pathlib import Path

import studies  # beside this file, as circumstances is
from circumstances import circumstances

from nnunet_partial import paths
from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.demo.study import run
from nnunet_partial.errors import exit_on_user_error
from nnunet_partial.files import atomic_path, read_json, write_json, write_text
from nnunet_partial.orchestration.compare.methods import METHODS

COMPLETE, PARTIAL, FULL = 601, 611, 621  # dataset ids of the original, the partially and the fully labelled dataset
DESIGNS = {
    "hippocampus": {
        "sources": {"front": ("anterior",), "back": ("posterior",)},
        "test": 53,
        "validation": 4,
        "variant": {"features": "8,16,32,64", "batch_size": 8, "co_training.ema_decay": 0.99},
    },
    "ACDC": {
        "sources": {"right": ("right ventricle",), "wall": ("myocardium",), "left": ("left ventricle",)},
        "test": 19,
        "validation": 1,
        "variant": {"features": "8,16,32,64,96", "batch_size": 8, "patch_size": "128,128", "co_training.ema_decay": 0.99},
    },
    "abdomen": {
        "sources": {"lits": ("liver",), "kits": ("kidney",), "nih": ("pancreas",), "msd": ("spleen",)},
        "test": 31,
        "validation": 2,
        "variant": {"features": "8,16,32,64,96", "batch_size": 8, "patch_size": "96,128", "co_training.ema_decay": 0.99},
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=DESIGNS)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and predictions")
    parser.add_argument("--out", type=Path, required=True, help="results are written to OUT.json, OUT.md, OUT_*.png")
    parser.add_argument("--configuration", default="2d", choices=("2d", "3d_fullres"), help="default: 2d")
    parser.add_argument("--methods", default=",".join(METHODS), help="as nnunet_partial compare takes them (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50, help="steps per epoch")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "sgd"))
    parser.add_argument("--initial-lr", type=float, default=3e-3)
    parser.add_argument("--cases", type=int, help="use this many training cases (ACDC: patients) only")
    parser.add_argument("--test-cases", type=int, help="test on this many cases (ACDC: patients)")
    parser.add_argument("--tta", action="store_true", help="mirror when predicting")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further settings of every model (see nnunet_partial variant --help)",
    )
    parser.add_argument("--planned-network", action="store_true", help="the planned network, batch and patch size (needs a GPU)")
    parser.add_argument("--atso-generations", type=int, default=3)
    parser.add_argument("--atso-fine-tune-epochs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side on the CPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        arguments.base = arguments.work.absolute() / arguments.study
        studies.use_folders(arguments.base, arguments.device)
        prepared = prepare(arguments)
        publish(arguments, prepared, compare(arguments, prepared))


# ------------------------------------------------------------------ data


def prepare(arguments):
    """Raw datasets, one plan, everything preprocessed, splits, test set: once for all seeds and methods."""
    sources = DESIGNS[arguments.study]["sources"]
    cases, units = studies.all_cases(arguments.study, arguments.work)
    shares, test = divide(arguments, units)
    labels = [i for organs in sources.values() for i in organs]
    training = [i for share in shares.values() for i in share["train"] + share["val"]]
    studies.remember(arguments.base / "split.json", {"sources": shares, "test": test})
    complete = studies.write_complete(COMPLETE, studies.CHANNEL[arguments.study], labels, cases, training)
    if not list(complete.parent.glob(f"Dataset{PARTIAL}_*")):
        own = {source: share["train"] + share["val"] for source, share in shares.items()}
        merge_datasets(FULL, "Full", [SourceSpec(i, COMPLETE, cases=own[i]) for i in sources], labels)
        merge_datasets(
            PARTIAL,
            "Partial",
            [
                SourceSpec(i, COMPLETE, annotated, {j: "background" for j in labels if j not in annotated}, cases=own[i])
                for i, annotated in sources.items()
            ],
            labels,
        )
    studies.plan(arguments.base / "logs", arguments.configuration, PARTIAL, FULL)
    split = {
        part: sorted(f"{source}_{case}" for source, share in shares.items() for case in share[part]) for part in ("train", "val")
    }
    for dataset in (PARTIAL, FULL):
        write_json([split], paths.preprocessed_dataset(dataset) / "splits_final.json")
    images, truth = studies.write_test_set(arguments.base / "test", cases, test, complete)
    return {"images": images, "truth": truth, "test": test, "shares": {k: len(v["train"]) for k, v in shares.items()}}


def divide(arguments, units):
    """source -> its training and validation cases, and the test cases; units are dealt to the sources in turn."""
    design, names = DESIGNS[arguments.study], studies.shuffled(units)
    test, training = names[: design["test"]][: arguments.test_cases], sorted(names[design["test"] :])[: arguments.cases]
    shares, held_out = {}, design["validation"]
    for number, source in enumerate(design["sources"]):
        own = training[number :: len(design["sources"])]
        shares[source] = {
            part: [case for unit in chosen for case in units[unit]]
            for part, chosen in (("val", own[:held_out]), ("train", own[held_out:]))
        }
    return shares, [case for unit in test for case in units[unit]]


# ------------------------------------------------------------------ training


def settings(arguments):
    """Name -> value, as text, of everything that differs from the plans."""
    own = {
        "num_epochs": arguments.epochs,
        "num_iterations_per_epoch": arguments.iterations,
        "num_val_iterations_per_epoch": 2,
        "optimizer": arguments.optimizer,
        "initial_lr": arguments.initial_lr,
        **({} if arguments.planned_network else DESIGNS[arguments.study]["variant"]),
    }
    return {**{k: str(v) for k, v in own.items()}, **dict(i.split("=", 1) for i in arguments.set)}


def compare(arguments, prepared):
    """Run the comparison; returns the path of its page. Its folder is the budget's, so that another one is another run."""
    given = re.sub(r"[^A-Za-z0-9]+", "-", "".join(f"-{i}" for i in arguments.set)).rstrip("-")
    name = f"{arguments.configuration}-e{arguments.epochs}x{arguments.iterations}{given}".replace("_", "-")
    out = arguments.base / "comparison" / name
    run(
        [
            "nnunet_partial",
            "compare",
            PARTIAL,
            "--configuration",
            arguments.configuration,
            "--methods",
            arguments.methods,
            "--name",
            name,
            *(j for k, v in settings(arguments).items() for j in ("--set", f"{k}={v}")),
            "--seeds",
            *arguments.seeds,
            "--test-images",
            prepared["images"],
            "--test-labels",
            prepared["truth"],
            "--full-dataset",
            FULL,
            *([] if arguments.tta else ["--disable-tta"]),
            "--atso-generations",
            arguments.atso_generations,
            "--atso-fine-tune-epochs",
            arguments.atso_fine_tune_epochs,
            "--processes",
            arguments.processes,
            "--device",
            arguments.device,
            "--out",
            out,
        ],
        arguments.base / "logs" / f"compare_{name}.log",
    )
    return out / "report.html"


# ------------------------------------------------------------------ what is published


def publish(arguments, prepared, page):
    """The figures and pictures of the page, without the names of this machine's folders."""
    out = arguments.out
    for ending in (".json", ".md"):
        text = page.with_suffix(ending).read_text(encoding="utf-8")
        for folder, name in ((str(arguments.work.absolute()), "WORK"), (str(studies.data_folder()), "DATA")):
            text = text.replace(folder, name)
        write_text(text, out.with_suffix(ending))
    about = {
        "study": arguments.study,
        **circumstances(),
        "configuration": arguments.configuration,
        "settings": settings(arguments),
        "training_cases_per_source": prepared["shares"],
        "test_cases": len(prepared["test"]),
        "seeds": arguments.seeds,
    }
    write_json({**about, **read_json(out.with_suffix(".json"))}, out.with_suffix(".json"))
    text = out.with_suffix(".md").read_text(encoding="utf-8").partition("\n")[2]
    write_text(
        f"# {arguments.study}: {len(prepared['test'])} test cases, {len(arguments.seeds)} seed(s)\n{text.rstrip()}\n\n"
        f"{arguments.configuration}, {arguments.epochs} x {arguments.iterations} steps, {settings(arguments)}; training cases "
        f"per source {prepared['shares']}.\n\n`{about['command']}`\n\n{about['machine']}; {about['versions']}\n",
        out.with_suffix(".md"),
    )
    write_pictures(page, out)
    print(f"{text}\npage: {page}")


def write_pictures(page, out):
    """The page's pictures of one case as every method sees it, as files of their own: OUT_CLASS.png."""
    figures = re.findall(
        r'<img src="data:image/png;base64,([^"]+)"[^>]*>\s*<figcaption>(.*?)</figcaption>',
        page.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    for content, caption in figures:
        name, _, what = html.unescape(caption).partition(": case ")
        if "each method" in what:
            with atomic_path(out.with_name(f"{out.name}_{name.replace(' ', '_')}.png")) as file:
                Path(file).write_bytes(base64.b64decode(content))


if __name__ == "__main__":
    main()
