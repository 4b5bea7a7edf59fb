"""``nnunet_partial predict-dicom``."""

import sys

from nnunet_partial.commands import device, trusting
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Segment DICOM series: a folder of them in, one DICOM SEG a series out, for a PACS or any viewer.

The folder may hold several series, other files, and folders within it; files are told apart by their headers, not by their
names. A series is segmented if it is of the modality that the model's channel names (or --modality), and refused where it makes no single
volume: slices missing, several at one position (4D), a tilted gantry. A segmentation is called SERIES_UID.dcm, carries over
patient, study and frame of reference, and refers to the instances that it lies on. Its segments are the classes that were
found, with SNOMED CT codes where the class is known, else with codes of a private scheme, which the command tells
(--codes FILE adds codes of your own). Series description and algorithm identification say which model, version and classes.

The command can be killed and started again; what another model has left in the folder is refused, or replaced with
--overwrite. A series that cannot be used is named at the end, and the exit code is then 3. Needs highdicom:
pip install "nnunet_partial[dicom]". docs/dicom.md has more."""
EXAMPLE = """nnunet_partial predict-dicom -i DICOM -o SEGMENTATIONS \\
             --model nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres"""
SOME_FAILED = 3  # exit code, as of predict


def add_arguments(parser):
    parser.add_argument("-i", dest="series", metavar="FOLDER", required=True, help="DICOM series, a folder or one file")
    parser.add_argument("-o", dest="out", required=True, metavar="DIR", help="where the segmentations are written")
    parser.add_argument("--model", required=True, metavar="MODEL_FOLDER", help="an nnU-Net model folder, or that of one fold")
    parser.add_argument("--fold", nargs="+", help="default: every fold that is trained; their mean decides")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument("--modality", help="of the series, CT or MR for example (default: what the model's channel is called)")
    parser.add_argument("--codes", metavar="FILE", help="a CSV table of codes of your own (name,kind,code,meaning)")
    parser.add_argument("--disable-tta", action="store_true", help="no mirroring: up to eight times faster")
    parser.add_argument("--overwrite", action="store_true", help="segment series again that are there")
    device.add_argument(parser)
    trusting.add_argument(parser)


def run(arguments):
    print(f"looking for DICOM series in {arguments.series}", flush=True)
    from nnunet_partial.inference import new_scans
    from nnunet_partial.inference.dicom_seg import predict
    from nnunet_partial.inference.dicom_seg.series import series_of

    checkpoints = new_scans.folds_of(arguments.model, arguments.fold, arguments.checkpoint)
    model, where = checkpoints[0].parent.parent, device.chosen(arguments)
    channel = predict.channel_of(model)
    unknown = predict.without_code(model, arguments.codes)
    contents = series_of(arguments.series, arguments.out, channel, arguments.modality)
    folds = ", ".join(i.parent.name[len("fold_") :] for i in checkpoints)
    print(f"{len(contents.scans)} series; {model.absolute().name}, fold {folds}, on {where}", flush=True)
    for line in contents.left_out:
        print(f"left out: {line}")
    if unknown:
        print(f"no SNOMED CT code is known for {', '.join(unknown)}: coded in the scheme {predict.PRIVATE}, or give --codes")
    result, told = predict.predict_series(
        contents.scans,
        arguments.out,
        checkpoints,
        codes=arguments.codes,
        mirroring=not arguments.disable_tta,
        device=where,
        overwrite=arguments.overwrite,
        trusted=arguments.trust,
    )
    _tell(contents, result, told, arguments.out)


def _tell(contents, result, told, out):
    for line in told:
        print(line)
    for line in (*contents.notes, *result.doubts):
        print(f"look at {line}")
    for reason in (*contents.damaged, *result.failed.values()):
        print(f"not segmented: {reason}", file=sys.stderr)
    before = f"; {len(result.before)} were segmented before" if result.before else ""
    print(f"segmented {len(result.done)} series, in {out}{before}", flush=True)
    if result.failed or contents.damaged:
        what = f"{len(result.failed)} series are NOT segmented" if result.failed else ""
        damaged = f"{len(contents.damaged)} files are damaged" if contents.damaged else ""
        print(f"{' and '.join(i for i in (what, damaged) if i)}, named above", file=sys.stderr)
        raise SystemExit(SOME_FAILED)
