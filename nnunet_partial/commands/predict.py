"""``nnunet_partial predict``."""

import sys

from nnunet_partial.commands import device, trusting
from nnunet_partial.errors import UserError
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Segment new scans, or a dataset's own cases, with any trained model.

-i FOLDER  New scans, called as they are, in every format that is read (NIfTI, NRRD, MetaImage, a folder of DICOM files each;
           pictures for a model of pictures), folders within the folder included. A mask is called as its scan and lies on its
           voxels; that of a DICOM folder is FOLDER.nii.gz. For a model of several channels the files are called NAME_0000,
           NAME_0001, ... All folds that are trained predict together, as in nnU-Net, whose predictor this is; its own command
           nnUNetv2_predict wants CASE_0000 and the training data's file ending.
DATASET    The cases of a preprocessed dataset, from their preprocessed files: nothing is read, resampled or normalised again.
           The classes that a case does not annotate are predicted like the others, which shows what a model makes of scans
           that nobody has labelled. A model of some classes, such as a teacher, writes the dataset's values of them.

The command can be killed and started again; what another model has left in the folder is refused, or replaced with
--overwrite. A scan that cannot be used is named at the end, and the exit code is then 3."""
EXAMPLE = """nnunet_partial predict -i SCANS -o PREDICTIONS \\
             --model nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres
         nnunet_partial predict 501 --configuration 3d_fullres -o PREDICTIONS --cases validation \\
             --model nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres"""
SOME_FAILED = 3  # exit code, as of convert


def add_arguments(parser):
    parser.add_argument("dataset", nargs="?", help="dataset id or name, preprocessed; or -i")
    parser.add_argument("-i", dest="scans", metavar="FOLDER", help="new scans, a folder or one file, instead of a dataset")
    parser.add_argument("--configuration", help="of the dataset's cases, for example 3d_fullres; not with -i")
    parser.add_argument("--model", required=True, metavar="MODEL_FOLDER", help="an nnU-Net model folder, or that of one fold")
    parser.add_argument("-o", dest="out", required=True, metavar="DIR", help="where the masks are written")
    parser.add_argument("--fold", nargs="+", help="of the model and of --cases (default: 0; with -i every fold that is trained)")
    parser.add_argument(
        "--cases",
        metavar="all|training|validation|FILE",
        help="every case, those of the fold, or those that a text file names, one a line (default: all)",
    )
    parser.add_argument("--plans", help="that the cases were preprocessed with (default: nnUNetPlans)")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring: up to eight times faster")
    parser.add_argument("--overwrite", action="store_true", help="segment cases again that are there")
    device.add_argument(parser)
    trusting.add_argument(parser)


def run(arguments):
    if (arguments.dataset is None) == (arguments.scans is None):
        raise UserError("give the folder of new scans with -i, or a dataset whose own cases are segmented.")
    if arguments.scans is not None:
        _new_scans(arguments)
        return
    if arguments.configuration is None:
        raise UserError("the cases of a dataset need --configuration, for example --configuration 3d_fullres.")
    _own_cases(arguments)


def _new_scans(arguments):
    idle = next((i for i in ("configuration", "cases", "plans") if getattr(arguments, i) is not None), None)
    if idle:
        raise UserError(f"--{idle} is about a dataset's own cases and does not go with -i: the model knows its own.")
    print(f"looking for scans in {arguments.scans}", flush=True)
    from nnunet_partial.inference import new_scans

    checkpoints = new_scans.folds_of(arguments.model, arguments.fold, arguments.checkpoint)
    model, where = checkpoints[0].parent.parent, device.chosen(arguments)
    channels = len(new_scans.channel_names(model))
    scans = new_scans.scans_of(arguments.scans, arguments.out, channels, new_scans.reads_pictures(model))
    folds = ", ".join(i.parent.name[len("fold_") :] for i in checkpoints)
    print(f"{len(scans)} scans; {model.absolute().name}, fold {folds}, on {where}", flush=True)
    result = new_scans.predict_scans(
        scans,
        arguments.out,
        checkpoints,
        mirroring=not arguments.disable_tta,
        device=where,
        overwrite=arguments.overwrite,
        trusted=arguments.trust,
    )
    _tell(result, arguments.out)


def _tell(result, out):
    for line in result.doubts:
        print(f"look at {line}")
    for reason in result.failed.values():
        print(f"not segmented: {reason}", file=sys.stderr)
    before = f"; {len(result.before)} were there before" if result.before else ""
    print(f"wrote {len(result.done)} masks to {out}{before}", flush=True)
    if result.failed:
        print(f"{len(result.failed)} scans are NOT segmented, named above", file=sys.stderr)
        raise SystemExit(SOME_FAILED)


def _own_cases(arguments):
    from nnunet_partial.inference.predict import predict_cases

    done = predict_cases(
        arguments.dataset,
        arguments.configuration,
        arguments.model,
        arguments.out,
        fold=_fold(arguments),
        plans=arguments.plans or "nnUNetPlans",
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

    cases = arguments.cases or "all"
    chosen = {"training": training_cases, "validation": validation_cases}.get(cases)
    if chosen is None:
        return None if cases == "all" else read_names(cases)
    folder = paths.preprocessed_dataset(arguments.dataset)
    return chosen(folder, Annotations.read(folder), _fold(arguments))


def _fold(arguments):
    folds = arguments.fold or ["0"]
    if len(folds) > 1:
        raise UserError("the cases of a dataset are segmented by one --fold; several go with -i.")
    return folds[0]
