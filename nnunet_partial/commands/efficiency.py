"""``nnunet_partial efficiency``."""

from nnunet_partial.commands import device, repeated, trusting
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Measure what prediction costs, model beside model: wall time, peak memory, the areas under the
GPU-memory-time and CPU-time curves (the measures of the FLARE challenge), parameters and multiply-accumulates.

--coarse-to-fine names a trained coarse and fine model, --model a model that nnU-Net runs as a sliding window: a student of
nnUNetTrainerCrossTeaching, or plain nnU-Net. Each runs in a process of its own, from file to file, one case after the
other. Writes FILE.json with every case and FILE.md with one line a model."""
EXAMPLE = """nnunet_partial efficiency -i IMAGES --out efficiency.json --coarse-to-fine 701 702 \\
             --model student=nnUNet_results/Dataset501_X/nnUNetTrainerCrossTeaching__nnUNetPlans__3d_fullres \\
             --model nnunet=nnUNet_results/Dataset501_X/nnUNetTrainer__nnUNetPlans__3d_fullres"""


def add_arguments(parser):
    parser.add_argument("-i", dest="images", required=True, metavar="DIR", help="scans CASE_0000.nii.gz")
    parser.add_argument("--out", required=True, metavar="FILE.json")
    parser.add_argument("--coarse-to-fine", nargs=2, metavar=("COARSE", "FINE"), help="ids of their datasets, or model folders")
    repeated.add_argument(parser, "--model", "NAME=MODEL_FOLDER", "may be repeated")
    parser.add_argument(
        "--trainer",
        default="nnUNetTrainerCrossTeaching",
        help="of coarse-to-fine models named by id (default: nnUNetTrainerCrossTeaching)",
    )
    parser.add_argument("--fold", default="0", help="of every model (default: 0)")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument(
        "--disable-tta", action="store_true", help="no mirroring in nnU-Net's sliding window; coarse to fine never mirrors"
    )
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N cases")
    device.add_argument(parser)
    trusting.add_argument(parser)


def run(arguments):
    from nnunet_partial.errors import UserError
    from nnunet_partial.inference.efficiency.contenders import compare
    from nnunet_partial.inference.efficiency.measure import table, write_report

    if arguments.cases is not None and arguments.cases < 1:
        raise UserError(f"--cases {arguments.cases}: at least one case is needed.")
    content = compare(_contenders(arguments), arguments.images, device.chosen(arguments), arguments.cases)
    write_report(content, arguments.out)
    print(f"{table(content)}wrote {arguments.out}")


def _contenders(arguments):
    from nnunet_partial.errors import UserError
    from nnunet_partial.inference.efficiency.contenders import Contender

    common = {
        "fold": arguments.fold,
        "checkpoint": arguments.checkpoint,
        "trainer": arguments.trainer,
        "mirroring": not arguments.disable_tta,
        "trusted": arguments.trust,
    }
    result = []
    if arguments.coarse_to_fine:
        result.append(Contender("coarse to fine", tuple(arguments.coarse_to_fine), **common))
    for given in arguments.model:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder) or name in [i.name for i in result]:
            raise UserError(f"--model {given}: write it as NAME=MODEL_FOLDER, each name once.")
        result.append(Contender(name, (folder,), **common))
    if not result:
        raise UserError("nothing to measure: give --coarse-to-fine COARSE FINE, --model NAME=MODEL_FOLDER, or both.")
    return result
