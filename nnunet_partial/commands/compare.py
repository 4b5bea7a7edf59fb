"""``nnunet_partial compare``."""

from nnunet_partial.commands import repeated, trusting
from nnunet_partial.errors import UserError
from nnunet_partial.orchestration.compare.methods import METHODS
from nnunet_partial.orchestration.executor_options import add_executor_options, device_of, executor_of

DEFAULT_METHODS = "naive,individual,partial,mskdplus,selftraining,cotraining"
DESCRIPTION = f"""Find out which method serves best on your data: train every named method on the same splits, steps and
seeds, predict, evaluate, and write one page with ranking and significance.

Give a fully labelled test set (--test-images and --test-labels, or --test DIR with imagesTs and labelsTs); it is used for
the figures alone, nothing is chosen by it. Without one, figures are of cross-validation on the annotated classes.

Every step is an ordinary command; --dry-run prints them. Started again with the same arguments, a comparison that was
interrupted goes on where it was; --methods and --seeds may be extended. Models of the same --name that are trained
already are taken as they are, if their plans are the same.

methods: {", ".join(METHODS)}, or trainer=CLASS for any trainer that nnU-Net finds; what it needs is read from its class
(needs_teachers, needs_labels), or said: trainer=CLASS:teachers, trainer=CLASS:labels"""
EXAMPLE = """nnunet_partial compare 501 --methods naive,individual,partial,mskdplus --test-images imagesTs --test-labels labelsTs \\
             --set num_epochs=200 --out comparison
         nnunet_partial compare 501 --methods partial,cotraining --folds 0 1 2 3 4 --seeds 0 1 2 --out comparison
         nnunet_partial compare --demo --out compare_demo"""


def add_arguments(parser):
    from nnunet_partial.evaluation.ranking import HIGHER_IS_BETTER

    parser.add_argument("dataset", nargs="?", help="dataset id or name, planned and preprocessed")
    parser.add_argument(
        "--demo", action="store_true", help="make phantoms, and compare on them; all below --out, under 25 minutes on two cores"
    )
    parser.add_argument("--quick", action="store_true", help="with --demo: a few steps only, shows that it works, not how well")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[DEFAULT_METHODS],
        metavar="METHOD",
        help=f"with commas or spaces between (default: {DEFAULT_METHODS})",
    )
    parser.add_argument("--configuration", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument("--plans", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument("--name", default="compare", help="the plans variants are called PLANS_NAME-sSEED (default: compare)")
    repeated.add_argument(
        parser, "--set", "NAME=VALUE", "setting of every model, as nnunet_partial variant takes it; may be repeated"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="how a paper trains, for every model, as nnunet_partial variant takes it; --set overrides",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--folds", nargs="+", help="default: 0 with a test set, 0 1 2 3 4 without")
    parser.add_argument("--test", metavar="DIR", help="folder with imagesTs and labelsTs, all classes labelled")
    parser.add_argument("--test-images", metavar="DIR", help="images, named as nnU-Net wants them")
    parser.add_argument("--test-labels", metavar="DIR", help="their labels, all classes on every case")
    parser.add_argument(
        "--full-dataset",
        metavar="DATASET",
        help="the same training cases with all labels, preprocessed with the same plans: for the method full",
    )
    parser.add_argument("--metric", default="dice", choices=list(HIGHER_IS_BETTER), help="of the ranking (default: dice)")
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring in prediction")
    parser.add_argument(
        "--efficiency",
        type=int,
        default=0,
        metavar="N",
        help="measure time and memory of prediction on N cases, method beside method (default: 0, not at all)",
    )
    parser.add_argument("--atso-generations", type=int, default=5, help="of atso, stso and self-learning (default: 5)")
    parser.add_argument(
        "--atso-fine-tune-epochs",
        type=int,
        metavar="N",
        help="epochs of the models after M0 of atso, stso and self-learning (default: a third of the plans')",
    )
    parser.add_argument(
        "--atso-fine-tune-lr",
        type=float,
        metavar="RATE",
        help="their constant learning rate (default: the mean of M0's in its last third)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="predictions, figures, logs and report.html")
    add_executor_options(parser)
    trusting.add_argument(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--dry-run", action="store_true", help="print the commands and what they will take, run none")
    shown.add_argument("--status", action="store_true", help="print how far it is: states, epochs, time left")


def run(arguments):
    from pathlib import Path

    from nnunet_partial import api
    from nnunet_partial.files import read_json
    from nnunet_partial.orchestration.compare.comparison import Comparison
    from nnunet_partial.orchestration.status import costs_of

    if (arguments.dataset is None) != arguments.demo:
        raise UserError("give a dataset, or --demo.")
    if arguments.quick and not arguments.demo:
        raise UserError("--quick goes with --demo.")
    options = _demo_options(arguments) if arguments.demo else _options(arguments)
    if arguments.dry_run or arguments.status:
        comparison = Comparison(options)
        print(comparison.status() if arguments.status else f"{comparison.overview()}\n\n{costs_of(comparison)}")
        return
    page = api.compare(options, executor_of(arguments, Path(options.out)))
    print(f"\n{page.with_suffix('.md').read_text(encoding='utf-8')}\nreport: {page}\ntable:  {page.with_suffix('.md')}")
    commands = read_json(Path(options.out) / "commands.json")
    print(f"{sum(i['seconds'] or 0 for i in commands) / 60:.1f} minutes of work in {len(commands)} commands")


def _options(arguments):
    from nnunet_partial.orchestration.compare.steps import CompareOptions

    images, labels = _test_set(arguments)
    folds = arguments.folds or (["0"] if images else ["0", "1", "2", "3", "4"])
    return CompareOptions(
        arguments.dataset,
        arguments.configuration,
        _methods(arguments),
        _absolute(arguments.out),
        arguments.plans,
        arguments.name,
        tuple(arguments.set),
        tuple(arguments.seeds),
        tuple(folds),
        images,
        labels,
        arguments.full_dataset,
        arguments.metric,
        device_of(arguments),
        arguments.disable_tta,
        arguments.atso_generations,
        arguments.atso_fine_tune_epochs,
        arguments.efficiency,
        arguments.trust,
        arguments.recipe,
        arguments.atso_fine_tune_lr,
    )


def _methods(arguments):
    return tuple(j for i in arguments.methods for j in i.split(",") if j)


def _test_set(arguments):
    import os

    images, labels = arguments.test_images, arguments.test_labels
    if arguments.test and (images or labels):
        raise UserError("give --test, or --test-images and --test-labels.")
    if arguments.test:
        images, labels = (os.path.join(arguments.test, i) for i in ("imagesTs", "labelsTs"))
    for folder in (images, labels):
        if folder and not os.path.isdir(folder):
            raise UserError(f"the test set's folder {folder} does not exist.")
    return (images and _absolute(images), labels and _absolute(labels))


def _absolute(path):
    import os

    return os.path.abspath(path)


def _demo_options(arguments):
    """Phantoms as ``nnunet_partial demo`` makes them; nnU-Net's folders lie below --out."""
    from nnunet_partial.demo import pipeline as demo
    from nnunet_partial.orchestration.compare.steps import CompareOptions

    made = demo.make_ready(arguments.out, device_of(arguments), arguments.quick)
    # the paper's weight average, 0.999, is of more steps than the demo has
    settings = ("co_training.ema_decay=0.98", *made.assignments)
    return CompareOptions(
        str(demo.DATASET),
        demo.CONFIGURATION,
        _methods(arguments),
        str(made.folder / "comparison"),
        name=arguments.name,
        settings=(*settings, *arguments.set),
        seeds=tuple(arguments.seeds),
        test_images=str(made.test_images),
        test_labels=str(made.test_labels),
        metric=arguments.metric,
        device=made.device,
        disable_tta=True,
        atso_generations=min(arguments.atso_generations, 2),
        atso_fine_tune_epochs=arguments.atso_fine_tune_epochs or 1,
        efficiency=arguments.efficiency,
        trust=arguments.trust,
        recipe=arguments.recipe,
    )
