"""``nnunet_partial report``."""

from nnunet_partial.commands import repeated
from nnunet_partial.errors import UserError

DESCRIPTION = """Write one self-contained HTML file about one or several evaluated methods: what is annotated where, ranking
and significance (with several methods), tables with bootstrap intervals, box plots, the best, median and worst case of every
class with truth and prediction in three planes, training curves, plans, commands and versions. It opens offline in any browser.
Beside it stand the ranking as .json and the main tables as .md.

Give the same name again for further seeds of a method: figures are then of each case's mean over seeds."""
EXAMPLE = """nnunet_partial report --dataset 501 --evaluation Partial=evaluation --out report.html
         nnunet_partial report --dataset 501 --evaluation Partial=evaluation/partial --evaluation MSKD=evaluation/mskd \\
             --model MSKD=$nnUNet_results/Dataset501_AbdomenPartial/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres \\
             --images imagesTs --out report.html"""


def add_arguments(parser):
    from nnunet_partial.evaluation.ranking import HIGHER_IS_BETTER

    parser.add_argument("--dataset", required=True, help="id or name of the dataset that was trained on, or a dataset.json")
    parser.add_argument(
        "--evaluation",
        action="append",
        required=True,
        metavar="NAME=DIR",
        help="folder that nnunet_partial evaluate wrote, and the name of its method; one or more",
    )
    repeated.add_argument(
        parser,
        "--model",
        "NAME=FOLDER",
        "model folder of nnU-Net, for training curves and plans; any number (default: those that the predictions tell)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="DIR",
        help="where the evaluated images lie, if neither in the dataset nor beside the truth's folder",
    )
    parser.add_argument("--efficiency", metavar="FILE", help="JSON that nnunet_partial efficiency wrote")
    parser.add_argument("--metric", default="dice", choices=list(HIGHER_IS_BETTER), help="what methods and cases are ranked by")
    parser.add_argument(
        "--commands",
        metavar="FILE",
        help="commands to show: one a line, or JSON as nnunet_partial compare writes it (default: those that the folders tell)",
    )
    repeated.add_argument(parser, "--note", "TEXT", "a sentence to show on top; any number")
    parser.add_argument("--title", default="", help="title of the page")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="page to write")


def run(arguments):
    from nnunet_partial.evaluation.report.inputs import read_inputs
    from nnunet_partial.evaluation.report.page import write_report

    if not arguments.out.endswith(".html"):
        raise UserError(f"--out {arguments.out}: the page's name must end in .html.")
    number = len(arguments.evaluation)
    print(f"reading {number} evaluation{'' if number == 1 else 's'}", flush=True)
    inputs = read_inputs(
        arguments.dataset,
        _named(arguments.evaluation, "--evaluation"),
        _named(arguments.model, "--model"),
        arguments.images,
        arguments.efficiency,
        arguments.commands,
        metric=arguments.metric,
        title=arguments.title,
        notes=arguments.note,
    )
    out = write_report(inputs, arguments.out, arguments.command_line, progress=True)
    print(f"wrote {out}, {out.with_suffix('.json')} and {out.with_suffix('.md')}")


def _named(given, option):
    pairs = [i.partition("=") for i in given]
    wrong = next((text for text, (name, equals, value) in zip(given, pairs) if not (name and equals and value)), None)
    if wrong is not None:
        raise UserError(f"{option} {wrong}: write it as NAME=FOLDER.")
    return [(name, value) for name, _, value in pairs]
