"""What labels of coarser granularity are worth: the same methods with and without a source that knows two classes as one structure.

    python benchmarks/accuracy.py union --work WORK --steps 4000 --methods naive,partial
    python benchmarks/accuracy.py no-union --work WORK --steps 4000 --methods partial
    python benchmarks/accuracy.py union --work WORK --steps 6000 --methods partial
    python benchmarks/unions.py --steps 4000 --longer 6000 --out OUT

Reads the scores that benchmarks/accuracy.py left; both studies test on the same cases. Written are OUT.json and OUT.md: every method's
DSC with and without the source, and their paired differences over the seeds that both have. Cases are drawn all alike, so the source
takes a third of the steps from those that know both classes; with half as many steps more (--longer) they have as many as without it.
"""

import argparse
from pathlib import Path

import accuracy  # beside this file, as the other is
import scores
from circumstances import command

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.evaluation.results import json_values
from nnunet_partial.files import write_json, write_text

WITH, WITHOUT = "union", "no-union"
# of the rows with the union (left) against others: a method without it, or naive nnU-Net with it
COMPARED = ((WITH, "partial", WITHOUT, "partial"), (WITH, "mskd", WITHOUT, "mskd"), (WITH, "partial", WITH, "naive"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=accuracy.RESULTS, help="scores per case")
    parser.add_argument("--few", action="store_true", help="of union-few and no-union-few: ten training cases a source")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--longer", type=int, help="steps of further trainings with the source, compared with --steps without it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with exit_on_user_error():
        content = tabulate(arguments.results, f"2d-{arguments.steps}", "-few" if arguments.few else "", arguments.longer)
        page = write_page(content)
        write_json(json_values({"command": command(), **content}), arguments.out.with_suffix(".json"))
        write_text(f"{page}\n`{command()}`\n", arguments.out.with_suffix(".md"))
        print(page)


def tabulate(results, budget, few="", longer=None):
    """The points of both studies and the differences of ``COMPARED`` whose scores are there; raises UserError if there is none."""
    every = {i: scores.read_study(results, i + few) for i in (WITH, WITHOUT)}
    found = {k: [i for i in v if i["budget"] == budget] for k, v in every.items()}
    compared = list(COMPARED)
    if longer is not None:
        name = f"{WITH}, {longer} steps"
        found[name] = [{**i, "budget": budget} for i in every[WITH] if i["budget"] == f"2d-{longer}"]
        compared.append((name, "partial", WITHOUT, "partial"))
    differences = []
    for study, method, other_study, other in compared:
        own, reference = of(found[study], method), of(found[other_study], other)
        require_same_tests(own + reference)
        for row in scores.differences(own, reference, {budget: own[0]["steps"]}) if own and reference else []:
            differences.append(
                {**row, "title": f"{row['title']}, {study}", "reference": f"{reference[0]['title']}, {other_study}"}
            )
    if not differences:
        raise UserError(f"{results}: no method has scores of {budget} in both {WITH} and {WITHOUT}. Train them first.")
    points = [{"study": k, **i} for k, v in found.items() if v for i in scores.curve(v, {budget: v[0]["steps"]})]
    training = {k: v[0].get("training_cases_per_source") for k, v in found.items() if v}
    return {"budget": budget, "training_cases_per_source": training, "points": points, "differences": differences}


def of(found, method):
    return [i for i in found if i["method"] == method]


def require_same_tests(found):
    """Differences are paired by case."""
    if len({tuple(sorted(i["test"]["dice"])) for i in found}) > 1:
        raise UserError(
            f"{WITH} and {WITHOUT} were tested on other cases each. Keep the results of other splits in another --results."
        )


def write_page(content):
    lines = ["| labels | method | DSC | 95 % interval over cases | SD over seeds | seeds |", "|---|---|---|---|---|---|"]
    for i in content["points"]:
        low, high = i["interval"]
        spread = f"{i['seed_sd']:.2f}" if len(i["seeds"]) > 1 else ""
        lines.append(f"| {i['study']} | {i['title']} | {i['dsc']:.2f} | [{low:.2f}, {high:.2f}] | {spread} | {len(i['seeds'])} |")
    lines += ["", "| row | against | difference | 95 % interval over cases | by seed |", "|---|---|---|---|---|"]
    for i in content["differences"]:
        low, high = i["test_interval"]
        lines.append(
            f"| {i['title']} | {i['reference']} | {i['test']:+.2f} | [{low:+.2f}, {high:+.2f}] | {', '.join(f'{j:+.2f}' for j in i['by_seed'])} |"
        )
    head = f"# Hippocampus: a third of the cases annotated as one structure, {content['budget']} steps a network"
    lines += ["", f"Training cases: {content['training_cases_per_source']}."]
    return "\n".join([head, "", *lines, ""])


if __name__ == "__main__":
    main()
