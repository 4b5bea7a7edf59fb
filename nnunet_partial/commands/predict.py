"""``nnunet_partial predict``."""

from nnunet_partial.commands import device, trusting
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Segment a dataset's own cases with any trained model, from their preprocessed files: nothing is read,
resampled or normalised again, and the masks lie on the scans' own voxels.

The classes that a case does not annotate are predicted like the others, which shows what a model makes of scans that
nobody has labelled. A model of some classes, such as a teacher, writes the dataset's values of them. New scans go
through nnUNetv2_predict, or through nnunet_partial coarse-to-fine predict. The command can be killed and started again;
what another model has left in the folder is refused, or replaced with --overwrite."""
EXAMPLE = """nnunet_partial predict 501 --configuration 3d_fullres -o PREDICTIONS --cases validation \\
             --model nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres"""


def add_arguments(parser):
    parser.add_argument("dataset", help="dataset id or name, preprocessed")
    parser.add_argument("--configuration", required=True, help="for example 3d_fullres")
    parser.add_argument("--model", required=True, metavar="MODEL_FOLDER", help="an nnU-Net model folder, or that of one fold")
    parser.add_argument("-o", dest="out", required=True, metavar="DIR", help="where the masks are written")
    parser.add_argument("--fold", default="0", help="of the model and of --cases (default: 0)")
    parser.add_argument(
        "--cases",
        default="all",
        metavar="all|training|validation|FILE",
        help="every case, those of the fold, or those that a text file names, one a line (default: all)",
    )
    parser.add_argument("--plans", default="nnUNetPlans", help="that the cases were preprocessed with (default: nnUNetPlans)")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring: up to eight times faster")
    parser.add_argument("--overwrite", action="store_true", help="segment cases again that are there")
    device.add_argument(parser)
    trusting.add_argument(parser)


def run(arguments):
    from nnunet_partial.inference.predict import predict_cases

    done = predict_cases(
        arguments.dataset,
        arguments.configuration,
        arguments.model,
        arguments.out,
        fold=arguments.fold,
        plans=arguments.plans,
        checkpoint=arguments.checkpoint,
        cases=_cases(arguments),
        mirroring=not arguments.disable_tta,
        device=device.chosen(arguments),
        overwrite=arguments.overwrite,
        trusted=arguments.trust,
    )
    print(f"wrote {len(done)} masks to {arguments.out}")


def _cases(arguments):
    from nnunet_partial import paths
    from nnunet_partial.data.preprocessed.splits import training_cases, validation_cases
    from nnunet_partial.files import read_names
    from nnunet_partial.labels import Annotations

    chosen = {"training": training_cases, "validation": validation_cases}.get(arguments.cases)
    if chosen is None:
        return None if arguments.cases == "all" else read_names(arguments.cases)
    folder = paths.preprocessed_dataset(arguments.dataset)
    return chosen(folder, Annotations.read(folder), arguments.fold)
