"""Does a network find a class where nobody has annotated it? Its own training images, by whether their source annotates the class.

    python benchmarks/accuracy.py abdomen --work WORK --steps 4000 --seeds 0 --methods partial,dodnet
    python benchmarks/own_source.py abdomen --work WORK --steps 4000 --seeds 0 --methods partial,dodnet
    python benchmarks/own_source.py abdomen --table --steps 4000 --methods partial,dodnet --out OUT

A network that has learned what an organ looks like finds it in all of them. One that has learned by heart where it was annotated
finds it in those of the source that annotates it, and not in the others, which it has seen as often. The truth of the others is
known here, since the sources are made of a fully labelled set; no training has read it.

WORK holds the models of benchmarks/accuracy.py. Each method and seed leaves its Dice of every training case in RESULTS, as the
scores of STUDY-training-images; a finished one is not predicted again. --table reads these files, and those of the test cases.
"""

import argparse
import shlex
from pathlib import Path

import accuracy  # beside this file, as the others are
import numpy as np
import scores
import studies
from circumstances import circumstances, command

from nnunet_partial import paths
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.results import json_values
from nnunet_partial.files import write_json, write_text
from nnunet_partial.orchestration.foreground import run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[k for k, i in accuracy.DESIGNS.items() if not knows_unions(i)])
    parser.add_argument("--work", type=Path, help="folder of data, models and predictions of benchmarks/accuracy.py")
    parser.add_argument("--results", type=Path, default=accuracy.RESULTS, help="scores per case")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", required=True, help="as benchmarks/accuracy.py takes them; of one network each")
    parser.add_argument("--table", action="store_true", help="predict nothing: write OUT.json and OUT.md")
    parser.add_argument("--out", type=Path, help="of --table")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    with exit_on_user_error():
        needed, what = ("out", "the files to write") if arguments.table else ("work", "the folder of benchmarks/accuracy.py")
        if getattr(arguments, needed) is None:
            raise UserError(f"--{needed} is missing: {what}.")
        arguments.methods = arguments.methods.split(",")
        publish(arguments) if arguments.table else predict_and_record(arguments)


def knows_unions(design):
    """Whether a source annotates classes as one structure, which is neither the class nor nothing."""
    return any("+" in structure for structures in design["sources"].values() for structure in structures)


def study_name(arguments):
    return f"{arguments.study}-training-images"


def predict_and_record(arguments):
    """Every method and seed that has no scores yet."""
    o = accuracy.arguments_of(
        [arguments.study, "--work", str(arguments.work), "--steps", str(arguments.steps), "--device", arguments.device]
    )
    budget = accuracy.budget_name(o, arguments.steps)
    files = {
        (method, seed): scores.score_file(arguments.results, study_name(arguments), budget, method, seed)
        for seed in arguments.seeds
        for method in arguments.methods
    }
    missing = {k: v for k, v in files.items() if not v.is_file()}
    if missing:
        o.base = o.work.absolute() / o.study
        studies.use_folders(o.base, o.device)
        test_set = accuracy.prepare(o)
    for (method, seed), file in missing.items():
        content = score(accuracy.Budget(o, arguments.steps, seed, *test_set), method)
        scores.write_score({**content, "study": study_name(arguments)}, file)
        print(f"{content['title']}, seed {seed}: {scores.mean_dsc(content):.2f} DSC on training images; {file}", flush=True)


def score(budget, method):
    """What a score file holds: of every training case the Dice of all classes, under "test" as elsewhere."""
    key, base, about = accuracy.key_of(method), budget.arguments.base, budget.about()
    plan = budget.comparison(method).plan
    models = plan.models(key, budget.seed)
    if len(models) != 1:
        raise UserError(f"--methods {method}: it has {len(models)} networks, and this is of one.")
    checkpoint = paths.final_checkpoint(models[0], "0")
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint} is not there. Train it first: benchmarks/accuracy.py --methods {method}.")
    out = budget.out / "training_images" / f"{key}_seed{budget.seed}"
    images = studies.link(base / "training_images", accuracy.images_of("train"))
    predict = ["nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out, "-m", models[0], "-f", "0", "-npp", "1", "-nps", "1"]
    device = ["-device", budget.arguments.device, "--disable_progress_bar", "--disable_tta"]
    run([*predict, *device], base / "logs" / f"training_images_{budget.name}_{key}_seed{budget.seed}.log")
    truth = paths.preprocessed_dataset(accuracy.FULL) / "gt_segmentations"
    # the labels of the validation cases lie there too
    rows = evaluate_folder(out, truth, str(accuracy.FULL), metrics=("dice",), allow_missing=True, processes=1, progress=False)
    return {
        **about,
        "method": method,
        "title": plan.methods[key].title,
        "command": shlex.join(
            [
                *("python", "benchmarks/own_source.py", budget.arguments.study, "--work", "WORK", "--steps", str(budget.steps)),
                *("--seeds", str(budget.seed), "--methods", method),
            ]
        ),
        "commands": {},
        "predicted_with": circumstances()["commit"],
        "test": scores.by_case(rows, about["classes"]),
        "validation": {},
    }


# ------------------------------------------------------------------ what is published


def publish(arguments):
    """OUT.json and OUT.md; raises UserError unless every method has every seed, of training and of test cases."""
    budget = f"2d-{arguments.steps}"
    seen, tested = (
        scores.complete(scores.read_study(arguments.results, name, (budget,)), budget, arguments.methods, arguments.seeds)
        for name in (study_name(arguments), arguments.study)
    )
    annotated = accuracy.DESIGNS[arguments.study]["sources"]
    rows = [
        {
            "method": method,
            "title": own[0]["title"],
            "own_source": by_class(own, lambda case, name: name in annotated[case.split("_")[0]]),
            "other_sources": by_class(own, lambda case, name: name not in annotated[case.split("_")[0]]),
            "test": by_class(tested[method], lambda case, name: True),
        }
        for method, own in seen.items()
    ]
    about = {
        "study": arguments.study,
        "budget": budget,
        "seeds": arguments.seeds,
        "classes": accuracy.classes_of(arguments.study),
    }
    page = write_page(about, rows)
    write_json(json_values({"command": command(), **about, "rows": rows}), arguments.out.with_suffix(".json"))
    write_text(page, arguments.out.with_suffix(".md"))
    print(page)


def by_class(own, wanted):
    """``classes``: mean Dice of each class over seeds and the cases that ``wanted(case, class)`` takes; ``seeds``: mean over
    classes, seed by seed. In points. ``own``: scores, one a seed."""
    table = np.array(
        [
            [
                np.mean([row[k] for case, row in score["test"]["dice"].items() if wanted(case, name)])
                for k, name in enumerate(score["classes"])
            ]
            for score in own
        ]
    )
    return {"classes": (100 * table.mean(0)).tolist(), "seeds": (100 * table.mean(1)).tolist()}


PLACES = {
    "own_source": "training images, own source",
    "other_sources": "training images, other sources",
    "test": "test images",
}


def write_page(about, rows):
    head = ["method", "DSC on", *about["classes"], "mean", "by seed"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        for key, place in PLACES.items():
            values = row[key]
            by_seed = ", ".join(f"{i:.1f}" for i in values["seeds"])
            mean = np.mean(values["classes"])
            lines.append([row["title"], place, *(f"{i:.1f}" for i in values["classes"]), f"{mean:.1f}", by_seed])
    return (
        "\n\n".join(
            [
                f"# {about['study']}: does a network find a class where nobody has annotated it?",
                f"DSC in percent, {about['budget']} steps a network, seeds {', '.join(map(str, about['seeds']))}. Own source: the training "
                "images whose source annotates the class; other sources: those in which it is not annotated, which the network has "
                "seen as often. No accuracy table: all but the last line of a method are of training images.",
                "\n".join(f"| {' | '.join(i)} |" for i in lines),
                f"`{command()}`",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
