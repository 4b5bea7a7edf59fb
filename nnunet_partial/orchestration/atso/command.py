"""The command line of ``nnunet_partial atso run`` and of its alias ``scripts/atso_loop.py``."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.labels import UNIONS
from nnunet_partial.orchestration.atso.loop import Loop
from nnunet_partial.orchestration.atso.options import FILTERS, RULES, SCHEDULES, STARTS, STRATEGIES, VALIDATIONS, AtsoOptions
from nnunet_partial.orchestration.executor_options import add_executor_options, device_of, executor_of

DESCRIPTION = """ATSO (Huo et al. 2021): a dataset with missing labels becomes a better model, generation by generation.

M0 learns from the labelled cases. The cases that lack labels are split in parts; in every generation each part gets
pseudo labels from the model that was not trained on it, and all models start from M0 again. At the end one model learns
from everything. Manual labels are in the loss of every model. The loop can be killed at any moment: started again with the same
arguments it goes on, with more --generations it adds them. A stage that it had started may live on and is then waited for, not
started twice."""
EXAMPLE = """examples:
  nnunet_partial atso run --dataset 501 --configuration 3d_fullres --generations 5
  nnunet_partial atso run --dataset 501 --configuration 3d_fullres --plans nnUNetPlans_tiny --device cpu --dry-run
  nnunet_partial atso run --dataset 501 --configuration 3d_fullres --executor slurm --slurm partition=gpu \\
      --slurm gpus_per_node=1 --slurm cpus_per_task=12 --slurm time=1440
  nnunet_partial atso run --dataset 501 --configuration 3d_fullres --status"""
_FOLDERS = ("super_classes", "test_images", "test_labels", "reference_truth")


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    made = argparse.ArgumentParser(description=DESCRIPTION, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(made)
    return made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments to ``parser``."""
    _add_what(parser.add_argument_group("what is done (starting again needs the same)"))
    how = parser.add_argument_group("how it is done (may change from start to start)")
    add_executor_options(how)
    how.add_argument(
        "--trust",
        action="store_true",
        help="build the network of --initial-model whatever classes its plans.json names; only for models of people you trust",
    )
    _add_verbs(parser.add_argument_group("other than running"))


def _add_what(group) -> None:
    group.add_argument("--dataset", required=True, help="id or name, preprocessed, with cases that lack classes")
    group.add_argument("--configuration", required=True, help="for example 3d_fullres")
    group.add_argument("--fold", default="0", help="train on the training cases of this fold, or all (default: 0)")
    group.add_argument(
        "--plans", default="nnUNetPlans", help="plans of all models; make a variant for other settings (default: nnUNetPlans)"
    )
    group.add_argument(
        "--views",
        nargs="+",
        default=[],
        metavar="PLANS",
        help="plans of the other views that nnunet_partial views has written, --plans being one of them: every model is trained "
        "once for each view, and all of them label and predict together",
    )
    group.add_argument("--rule", choices=RULES, help="how the views become one label (default: vote, the majority, as the paper)")
    group.add_argument("--run", help="name of this run (default: the strategy)")
    group.add_argument(
        "--strategy",
        default="atso",
        choices=STRATEGIES,
        help="default: atso; the others are the paper's "
        "baselines: stso trains from M0 on the whole reference set, self-learning from its teacher",
    )
    group.add_argument("--generations", type=int, default=5, help="default: 5; a run that is there may get more")
    group.add_argument("--subsets", type=int, help="parts of the reference set (default: 2; 1 for the baselines)")
    group.add_argument("--seed", type=int, default=0, help="of the split of the reference set (default: 0)")
    group.add_argument(
        "--students-from",
        choices=STARTS,
        help="where the models of a generation start: m0 (as the paper), scratch (its earlier version), or previous, the model of "
        "the same part one generation before (default: m0; of self-learning previous)",
    )
    group.add_argument(
        "--fine-tune-fraction",
        type=float,
        metavar="F",
        help="length of M0's last stage as a share of its epochs; every model that starts from another is trained as long, at "
        "the mean learning rate of that stage (default: a third)",
    )
    group.add_argument("--fine-tune-epochs", type=int, metavar="N", help="its length outright, in epochs")
    group.add_argument("--fine-tune-lr", type=float, metavar="RATE", help="its constant learning rate outright")
    group.add_argument(
        "--fine-tune-schedule",
        choices=SCHEDULES,
        help="constant, as the paper; or plans: that of the plans from its first rate on, and as long unless said (default: constant)",
    )
    group.add_argument(
        "--final-from", choices=("m0", "scratch"), help="where the last model starts (default: m0; scratch if students do)"
    )
    group.add_argument(
        "--initial-model",
        nargs="+",
        metavar="MODEL_FOLDER",
        help="take this model as M0 instead of training it; with --views one for each view, that of --plans first",
    )
    group.add_argument(
        "--super-classes",
        metavar="FILE",
        help="JSON, super-class to list of classes, or the word unions for those that the dataset annotates as one: pseudo labels "
        "are trusted at that level; a fine-tuning at full class level follows",
    )
    group.add_argument(
        "--super-class-task",
        action="store_true",
        help="with --super-classes, as the paper: M0 and the generations are models of the super-classes alone; what the last one "
        "labels then supervises a network of all classes for one generation, from scratch",
    )
    group.add_argument(
        "--filter",
        default="none",
        choices=FILTERS,
        help="leave out cases whose pseudo labels changed most "
        "since the last generation (disagreement), or are least certain (default: none)",
    )
    group.add_argument("--filter-share", type=float, default=0.1, help="share of the cases left out (default: 0.1)")
    group.add_argument(
        "--largest-component",
        action="store_true",
        help="keep the largest component alone of classes that are one piece in nearly all manual labels",
    )
    group.add_argument("--disable-tta", action="store_true", help="no mirroring when predicting")
    group.add_argument("--test-images", metavar="DIR", help="images that every model is tested on, named as nnU-Net wants")
    group.add_argument("--test-labels", metavar="DIR", help="their labels, read by the report alone")
    group.add_argument(
        "--reference-truth", metavar="DIR", help="labels of the reference cases where they exist, read by the report alone"
    )
    group.add_argument(
        "--validation",
        default="final",
        choices=VALIDATIONS,
        help="which models predict the fold's validation cases (default: final)",
    )


def _add_verbs(group) -> None:
    group.add_argument("--dry-run", action="store_true", help="print every command, run none")
    group.add_argument("--status", action="store_true", help="show how far the run is")
    group.add_argument(
        "--from-generation", type=int, metavar="N", help="remove generation N and everything after it, and do it again"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Bad input ends with one line on stderr and exit code 2."""
    arguments = parser().parse_args(argv)
    with exit_on_user_error():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Run the loop, or show what it would do or has done."""
    options = read_options(arguments)
    device = device_of(arguments)
    if arguments.dry_run or arguments.status:
        loop = Loop(options, device=device)
        print(loop.status() if arguments.status else loop.overview())
        return
    loop = Loop(options, device=device)
    loop.check()
    loop.executor = executor_of(arguments, loop.layout.folder)
    try:
        loop.run(arguments.from_generation)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    for view in options.all_plans:
        print(f"model: {loop.layout.model(loop.plan.returned_model, view)}")
    print(f"report: {loop.layout.report / 'index.html'}")


def read_options(arguments: argparse.Namespace) -> AtsoOptions:
    """The options among the arguments, with absolute folders."""
    given = {i.name: getattr(arguments, i.name) for i in fields(AtsoOptions) if i.name != "initial_models"}
    models = [str(Path(i).absolute()) for i in given["initial_model"] or ()]
    given |= {"initial_model": next(iter(models), None), "initial_models": models[1:]}
    given["run"] = given["run"] or arguments.strategy
    given["subsets"] = given["subsets"] or (2 if arguments.strategy == "atso" else 1)
    of_dataset = given["super_classes"] == UNIONS  # the word, no file
    for name in _FOLDERS:
        given[name] = str(Path(given[name]).absolute()) if given[name] else None
    if of_dataset:
        given["super_classes"] = UNIONS
    elif given["super_classes"] and not Path(given["super_classes"]).is_file():
        raise UserError(f"--super-classes {given['super_classes']} does not exist. Name a JSON file, or the word {UNIONS}.")
    return AtsoOptions(**given)


if __name__ == "__main__":
    main()
