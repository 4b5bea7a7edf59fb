"""``nnunet_partial atso``: the loop of ATSO, and its small stages, each a command of its own."""

from argparse import RawDescriptionHelpFormatter

from nnunet_partial.orchestration.atso import command

DESCRIPTION = """The loop of ATSO, which becomes a better model generation by generation, and its small stages for doing them by hand.

run      the loop; nnunet_partial atso run --help says more (python scripts/atso_loop.py is the same)
split    which cases are labelled, which are reference cases, and the parts of these
exclude  the pseudo-labelled cases that are to be left out
report   scores, changes and pictures of a run"""
EXAMPLE = """nnunet_partial atso run --dataset 501 --configuration 3d_fullres --generations 5
         nnunet_partial atso split 501 --fold 0 --subsets 2 --seed 0 --out subsets
         nnunet_partial atso exclude labels/generation_2 --by disagreement --previous labels/generation_1 --share 0.1 \\
             --out excluded.json
         nnunet_partial atso report $nnUNet_results/Dataset501_X/atso/atso_3d_fullres_fold0"""


def add_arguments(parser):
    verbs = parser.add_subparsers(dest="part", metavar="run|split|exclude|report", required=True)
    loop = verbs.add_parser(
        "run", description=command.DESCRIPTION, epilog=command.EXAMPLE, formatter_class=RawDescriptionHelpFormatter
    )
    command.add_arguments(loop)
    split = verbs.add_parser("split")
    split.add_argument("dataset", help="dataset id or name, preprocessed")
    split.add_argument("--fold", default="0", help="split the training cases of this fold (default: 0)")
    split.add_argument("--subsets", type=int, default=2, help="default: 2")
    split.add_argument("--seed", type=int, default=0, help="default: 0")
    split.add_argument("--out", required=True, metavar="DIR", help="gets subset_N.txt, reference.txt and labelled.txt")
    exclude = verbs.add_parser("exclude")
    exclude.add_argument("labels", help="label directory of a generation")
    exclude.add_argument("--by", required=True, choices=("disagreement", "confidence"))
    exclude.add_argument("--previous", metavar="DIR", help="that of the generation before (disagreement)")
    exclude.add_argument("--share", type=float, default=0.1, help="share of the cases left out (default: 0.1)")
    exclude.add_argument("--out", required=True, metavar="FILE", help="JSON for the setting atso.exclude")
    report = verbs.add_parser("report")
    report.add_argument("run", help="folder of a run")
    report.add_argument("--pictures", type=int, default=6, help="most changed cases to draw (default: 6)")


def run(arguments):
    {"run": command.run, "split": _split, "exclude": _exclude, "report": _report}[arguments.part](arguments)


def _split(arguments):
    from pathlib import Path

    from nnunet_partial import paths
    from nnunet_partial.data.preprocessed.splits import training_cases
    from nnunet_partial.files import write_text
    from nnunet_partial.labels import Annotations
    from nnunet_partial.orchestration.atso.split import split_reference

    folder = paths.preprocessed_dataset(arguments.dataset)
    annotations = Annotations.read(folder)
    cases = training_cases(folder, annotations, arguments.fold)
    labelled, parts = split_reference(annotations, cases, arguments.subsets, arguments.seed)
    out = Path(arguments.out)
    files = {f"subset_{i}.txt": part for i, part in enumerate(parts, 1)}
    files["reference.txt"] = sorted(i for part in parts for i in part)
    files["labelled.txt"] = labelled  # last: it says that all are there
    for name, names in files.items():
        write_text("\n".join(names) + "\n", out / name)
    print(f"{len(labelled)} labelled cases; reference cases in parts of {', '.join(str(len(i)) for i in parts)}: {out}")


def _exclude(arguments):
    from nnunet_partial.errors import UserError
    from nnunet_partial.evaluation.atso_report.generations import exclude_cases

    if arguments.by == "disagreement" and not arguments.previous:
        raise UserError("--by disagreement needs --previous DIR.")
    if not 0 < arguments.share < 1:
        raise UserError(f"--share {arguments.share} must lie between 0 and 1.")
    excluded = exclude_cases(arguments.labels, arguments.by, arguments.share, arguments.out, arguments.previous)
    print(f"{len(excluded)} cases are left out: {', '.join(excluded) or 'none'}")


def _report(arguments):
    from nnunet_partial.evaluation.atso_report.page import write_report

    print(f"wrote {write_report(arguments.run, arguments.pictures)}")
