"""``nnunet_partial pseudo-label``."""

from nnunet_partial.commands import device, repeated, trusting
from nnunet_partial.inference.rules import CLAIMS, RULES
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Complete the labels of the training cases: each gets the classes that it lacks from the models that
know them, in preprocessed space.

Models may have any plans and classes: one whose preprocessing is another sees the scans themselves. --predictions takes
what any other tool has written, for example TotalSegmentator's masks, and can stand beside models in one command.
Where two models claim a voxel for an organ, the higher probability decides; a mask without probabilities comes first.
Annotated voxels are never overwritten. --rule fuses models that all know the same classes, for example the three views
of nnunet_partial views.
--out becomes a label directory for the setting labels of a plans variant. The command can be killed and started again:
what is done is skipped; a changed model is refused, or done again with --overwrite."""
EXAMPLE = """nnunet_partial pseudo-label 501 --configuration 3d_fullres --fold 0 --from teachers --out labels/fold_0
         nnunet_partial variant 501 --name pseudo --set labels=$PWD/labels/fold_{fold}
         nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerCoTraining -p nnUNetPlans_pseudo
         nnunet_partial pseudo-label 501 --configuration 3d_fullres --predictions totalseg=MASKS \\
             --map totalseg:lung_left,lung_right=lung --out labels/totalseg"""


def add_arguments(parser):
    parser.add_argument("dataset", help="dataset id or name, preprocessed")
    parser.add_argument("--configuration", required=True, help="for example 3d_fullres")
    parser.add_argument(
        "--fold", default="all", help="label the training cases of this fold, with models of this fold (default: all cases)"
    )
    parser.add_argument("--plans", default="nnUNetPlans", help="default: nnUNetPlans")
    parser.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        default=[],
        metavar="teachers|[NAME=]MODEL_FOLDER",
        help="teachers: the models of nnUNetTrainerIndividual, one per source; or any model of nnU-Net",
    )
    repeated.add_argument(
        parser,
        "--predictions",
        "NAME=DIR",
        "what another tool says, in the scans' own space: DIR/CASE.nii.gz with DIR/dataset.json, or DIR/CASE/ORGAN.nii.gz",
    )
    repeated.add_argument(
        parser,
        "--map",
        "NAME:LABEL,...=CLASS",
        "which class, or union of classes (left+right), labels of predictions or of a model mean; background: none. Without "
        "it a label stands for the class of its name",
    )
    parser.add_argument(
        "--rule",
        default=CLAIMS,
        choices=(CLAIMS, *RULES),
        help=f"default: {CLAIMS}, every class from the models that know it; " + "; ".join(f"{k}: {v}" for k, v in RULES.items()),
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="voxels of which no model is surer than this teach nothing (for example 0.8; default: all are labelled)",
    )
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"of the model folders (default: {FINAL_CHECKPOINT})")
    parser.add_argument("--out", required=True, metavar="DIR", help="label directory to write")
    parser.add_argument(
        "--largest-component",
        nargs="*",
        metavar="CLASS",
        help="keep only the largest component of these classes, without names of those that are one piece in nearly all "
        "manual labels",
    )
    parser.add_argument(
        "--cases", metavar="FILE", help="label the cases that this text file names, one a line, instead of those of the fold"
    )
    parser.add_argument(
        "--super-classes",
        metavar="FILE",
        help="JSON, super-class to list of classes, or the word unions for those of the dataset: the most probable wins a voxel",
    )
    parser.add_argument(
        "--soft",
        action="store_true",
        help="also write each model's probabilities, of every case: mskd.teachers=soft and nnUNetTrainerSelfTrainingSoft learn from "
        "them, and no teacher has to be in memory",
    )
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring: up to eight times faster")
    parser.add_argument(
        "--nifti", metavar="DIR", help="write the labels there too, as images on the scans' own voxels in the dataset's format"
    )
    parser.add_argument("--gpus", nargs="+", type=int, metavar="ID", help="one process on each of these GPUs")
    parser.add_argument("--processes", type=int, default=1, help="processes on the CPU, without --gpus")
    device.add_argument(parser)
    trusting.add_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="do cases again that were made from something else")


def run(arguments):
    from nnunet_partial import api
    from nnunet_partial.data.check.audit import audit, by_class

    written = api.pseudo_label(
        arguments.dataset,
        arguments.configuration,
        arguments.out,
        fold=arguments.fold,
        plans=arguments.plans,
        sources=arguments.sources,
        checkpoint=arguments.checkpoint,
        largest_component=_classes(arguments),
        mirroring=not arguments.disable_tta,
        devices=_devices(arguments),
        overwrite=arguments.overwrite,
        cases=_cases(arguments),
        super_classes=_super_classes(arguments),
        trusted=arguments.trust,
        soft=arguments.soft,
        predictions=_predictions(arguments),
        mappings=_mappings(arguments),
        min_confidence=arguments.min_confidence,
        rule=arguments.rule,
    )
    if arguments.nifti:
        from nnunet_partial.inference.label_images import write_label_images

        write_label_images(written.parent, arguments.nifti, arguments.configuration, arguments.plans, arguments.overwrite)
        print(f"images of the labels: {arguments.nifti}")
    print("\n".join(by_class(audit(written.parent))))
    print(
        f"wrote {written.parent}; {written.name} there says how each case was made\nlook at it with: nnunet_partial check "
        f"--labels {written.parent}\nuse it with: nnunet_partial variant {arguments.dataset} --base {arguments.plans} "
        f"--name NAME --set labels={written.parent.absolute()}"
    )


def _predictions(arguments):
    from nnunet_partial.errors import UserError

    found = {}
    for text in arguments.predictions:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--predictions {text}: write it as NAME=DIR, for example --predictions totalseg=masks.")
        if found.setdefault(name, folder) != folder:
            raise UserError(f"--predictions {text}: {name} is {found[name]} already. Give each a name of its own.")
    return found


def _mappings(arguments):
    from nnunet_partial.commands.merge import parse_map
    from nnunet_partial.errors import UserError

    found: dict = {}
    for text in arguments.map:
        name, labels, target = parse_map(text)
        for label in labels:
            if found.setdefault(name, {}).setdefault(label, target) != target:
                raise UserError(f"--map {text}: {name}:{label} is mapped to {found[name][label]!r} already. Map it once.")
    return found


def _classes(arguments):
    if arguments.largest_component != []:
        return arguments.largest_component
    from nnunet_partial import paths
    from nnunet_partial.data.components import one_piece_classes_of_dataset
    from nnunet_partial.data.preprocessed.splits import training_cases
    from nnunet_partial.files import read_json
    from nnunet_partial.labels import Annotations

    folder = paths.preprocessed_dataset(arguments.dataset)
    content = read_json(folder / "dataset.json")
    annotations = Annotations.from_dataset_json(content, str(folder / "dataset.json"))
    cases = training_cases(folder, annotations, arguments.fold)
    chosen = one_piece_classes_of_dataset(folder, annotations, cases, content["file_ending"])
    print(f"largest component alone: {', '.join(chosen) or 'of no class'}, by the manual labels of {len(cases)} cases")
    return chosen


def _cases(arguments):
    from nnunet_partial.files import read_names

    return None if arguments.cases is None else read_names(arguments.cases)


def _super_classes(arguments):
    from nnunet_partial import paths
    from nnunet_partial.labels import Annotations, read_super_classes

    if arguments.super_classes is None:
        return {}
    return read_super_classes(arguments.super_classes, Annotations.read(paths.preprocessed_dataset(arguments.dataset)))


def _devices(arguments):
    import torch

    from nnunet_partial.errors import UserError

    if arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: at least one process is needed.")
    if arguments.gpus:
        missing = [i for i in arguments.gpus if i not in range(torch.cuda.device_count())]
        if missing:
            raise UserError(f"--gpus {missing[0]}: this machine has {torch.cuda.device_count()} GPUs, counted from 0.")
        return [f"cuda:{i}" for i in arguments.gpus]
    name = device.chosen(arguments)
    return [name] * (arguments.processes if name == "cpu" else 1)
