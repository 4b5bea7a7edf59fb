"""What the accuracy studies took: core hours of everything whose scores are kept, by study.

    python benchmarks/core_hours.py --out docs/results/core_hours

Training, pseudo labels, prediction and evaluation, on whatever machine; what several methods of a seed share counts once. Trainings whose
scores are not kept, and what a killed command had used before it was started again, are in no file.
"""

import argparse
from pathlib import Path

import accuracy  # beside this file, as scores and circumstances are
import scores
from circumstances import command

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import write_json, write_text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=accuracy.RESULTS, help="scores per case")
    parser.add_argument("--out", type=Path, required=True, help="the files to write, without .json and .md")
    arguments = parser.parse_args()
    with exit_on_user_error():
        hours = hours_by_study(arguments.results)
        if not hours:
            raise UserError(f"there are no scores in {arguments.results}. Train some with benchmarks/accuracy.py first.")
        write_json({"command": command(), "core_hours": hours, "in_all": sum(hours.values())}, arguments.out.with_suffix(".json"))
        write_text(page(hours), arguments.out.with_suffix(".md"))


def hours_by_study(results):
    """Study -> core hours, those that took longest first."""
    files = {}
    for file in sorted(Path(results).glob("*/*/*_seed*.json")):
        files.setdefault(file.parts[-3], []).append(scores.read_score(file))
    hours = {study: scores.core_seconds(own) / 3600 for study, own in files.items()}
    return dict(sorted(hours.items(), key=lambda item: -item[1]))


def page(hours):
    rows = [f"| {study} | {own:.2f} |" for study, own in hours.items()]
    return "\n".join(
        [
            "# Core hours of the accuracy studies",
            "",
            "Of everything whose scores are kept, tables and experiments alike; one core for an hour is a core hour.",
            "",
            "| study | core hours |",
            "| --- | --- |",
            *rows,
            f"| in all | {sum(hours.values()):.2f} |",
            "",
            f"`{command()}`",
            "",
        ]
    )


if __name__ == "__main__":
    main()
