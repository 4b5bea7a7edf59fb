"""``nnunet_partial evaluate``."""

from nnunet_partial.errors import UserError

DESCRIPTION = """Compare predictions with the truth, on the classes that each case annotates. Writes metrics.csv (a line
a case and class) and metrics.json (means, spread and bootstrap intervals, by class and by source).

Which classes are annotated is read from the dataset.json in or above the truth folder: its contract for the cases that
the contract lists, all of its classes if it has no contract. Say it yourself with --annotated where that is not so:
  --annotated all            the truth is fully labelled (a test set)
  --annotated liver kidney   it has these classes, on every case
Classes that a case outlines as one (a union) are one structure with a row of its own, such as kidney_left+kidney_right.
Which value is which class is read from the dataset.json beside the predictions and beside the truth, else from
--dataset; --truth-dataset, --truth-labels and --pred-labels say otherwise (kidney=2+3: values 2 and 3 are the kidney).

Distances are infinite where a structure was missed or invented. Such cases are counted in the table and left out of the
means of distances; Dice and surface Dice are 0 there. Where neither side has the structure, nothing is measured."""
EXAMPLE = """nnunet_partial evaluate --pred predictions --truth $nnUNet_raw/Dataset501_AbdomenPartial/labelsTs \\
             --dataset 501 --annotated all --out evaluation
         nnunet_partial evaluate --pred MODEL/fold_*/validation \\
             --truth $nnUNet_raw/Dataset501_AbdomenPartial/labelsTr --dataset 501 --out evaluation"""


def add_arguments(parser):
    parser.add_argument("--pred", required=True, nargs="+", metavar="DIR", help="folder of predictions, or several")
    parser.add_argument("--truth", required=True, metavar="DIR", help="folder of label files of the same names")
    parser.add_argument("--dataset", required=True, help="id or name of the dataset that was trained on, or a dataset.json")
    parser.add_argument("--out", required=True, metavar="DIR", help="where metrics.json and metrics.csv are written")
    parser.add_argument(
        "--annotated",
        nargs="+",
        default=["auto"],
        metavar="CLASS",
        help="auto (default), contract, all, or the classes that the truth annotates on every case",
    )
    parser.add_argument("--truth-dataset", metavar="DATASET", help="dataset (or dataset.json) whose labels the truth uses")
    parser.add_argument("--truth-labels", nargs="+", default=[], metavar="CLASS=VALUE", help="values of the classes in the truth")
    parser.add_argument(
        "--pred-labels", nargs="+", default=[], metavar="CLASS=VALUE", help="values of the classes in the predictions"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=["all"], metavar="METRIC", help="default: all; an unknown name lists them"
    )
    parser.add_argument(
        "--tolerance-mm",
        nargs="+",
        default=["2"],
        metavar="MM",
        help="of the surface Dice: a number (default 2), a class's own as liver=5, or flare22",
    )
    parser.add_argument(
        "--regions", metavar="FILE", help='JSON, {"whole": ["edema", "core"]}: score regions made of classes instead of these'
    )
    parser.add_argument("--allow-missing", action="store_true", help="leave out cases that have a truth but no prediction")
    parser.add_argument("--processes", type=int, help="default: all cores")


def run(arguments):
    from pathlib import Path

    from nnunet_partial import api
    from nnunet_partial.evaluation.results import format_summary
    from nnunet_partial.files import read_json

    print(f"comparing {', '.join(arguments.pred)} with {arguments.truth}", flush=True)
    metrics = [j for i in arguments.metrics for j in i.split(",")]
    api.evaluate(
        arguments.pred,
        arguments.truth,
        arguments.dataset,
        arguments.out,
        annotated=_annotated(arguments.annotated),
        metrics=[] if metrics == ["all"] else metrics,
        tolerance_mm=arguments.tolerance_mm,
        truth_dataset=arguments.truth_dataset,
        truth_labels=arguments.truth_labels,
        pred_labels=arguments.pred_labels,
        allow_missing=arguments.allow_missing,
        processes=arguments.processes,
        command=arguments.command_line,
        regions=arguments.regions,
    )
    content = read_json(Path(arguments.out) / "metrics.json")
    print(format_summary(content))
    print(f"values of the predictions: {content['pred_labels']}\nvalues of the truth:       {content['truth_labels']}")
    print(f"wrote {Path(arguments.out) / 'metrics.json'} and metrics.csv")


def _annotated(given):
    names = [j for i in given for j in i.split(",")]
    if len(names) > 1 and set(names) & {"auto", "contract", "all"}:
        raise UserError(f"--annotated {' '.join(given)}: write one of auto, contract and all, or names of classes.")
    return names[0] if names[0] in ("auto", "contract", "all") else names
