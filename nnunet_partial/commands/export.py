"""``nnunet_partial export``."""

from nnunet_partial.commands import model, trusting
from nnunet_partial.paths import FINAL_CHECKPOINT

DESCRIPTION = """Write a model that stock nnU-Net runs without this package: a folder
DatasetNNN_X/TRAINER__PLANS__CONFIGURATION below --out, for nnUNetv2_predict_from_modelfolder or nnUNet_results, and a
zip for nnUNetv2_install_pretrained_model_from_zip.

The checkpoints hold the weights that predict and nothing else. plans.json loses the settings of the run, dataset.json
the paths of the images; the names of the cases and what was annotated on them stay in dataset.json.

Beside every model lies its card, MODEL_CARD.md and model_card.json: which sources taught it what, how it was trained, figures,
versions, licences of the sources as far as known, limits (docs/model_card.md).

--onnx writes the network of one fold as one ONNX file, checked against torch: preprocessed patches of any number and size
in, logits out. It is the way out for networks that stock nnU-Net does not have, such as the light students."""
EXAMPLE = """nnunet_partial export nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres \\
             --out exported --zip model.zip
         nnunet_partial export --dataset 501 --trainer nnUNetTrainerCrossTeaching --configuration 3d_fullres --onnx student.onnx
         nnunet_partial export --dataset 501 --trainer nnUNetTrainerMSKD --configuration 3d_fullres --zip model.zip"""


def add_arguments(parser):
    model.add_arguments(parser)
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="default: all that are trained")
    parser.add_argument("--checkpoint", default=FINAL_CHECKPOINT, help=f"default: {FINAL_CHECKPOINT}")
    parser.add_argument("--out", metavar="DIR", help="where the folder is written")
    parser.add_argument("--zip", metavar="FILE", help="zip to write")
    parser.add_argument("--onnx", metavar="FILE", help="ONNX file to write, of one fold")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        default=[],
        metavar="DIR",
        help="results of nnunet_partial evaluate of this model, whose figures its card tells",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    trusting.add_argument(parser)


def run(arguments):
    from pathlib import Path

    from nnunet_partial import api
    from nnunet_partial.inference.export import find_checkpoints

    if arguments.onnx:
        _write_onnx(arguments)
        if not arguments.out and not arguments.zip:
            return
    trained = model.folder(arguments)
    name = api.export(
        trained,
        arguments.out,
        arguments.zip,
        folds=arguments.folds,
        checkpoint=arguments.checkpoint,
        overwrite=arguments.overwrite,
        trusted=arguments.trust,
        evaluations=arguments.evaluation,
    )
    folds = " ".join(find_checkpoints(Path(trained), arguments.folds, arguments.checkpoint))
    if arguments.out:
        folder = Path(arguments.out) / name
        print(f"wrote {folder}\npredict with: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {folder} -f {folds}")
    if arguments.zip:
        print(f"wrote {arguments.zip}\ninstall with: nnUNetv2_install_pretrained_model_from_zip {arguments.zip}")
        print(f"predict with: {_stock_command(Path(name), folds)}")


def _stock_command(name, folds):
    """What predicts with an installed model, whose trainer is nnU-Net's own whichever trained it."""
    trainer, plans, configuration = name.name.split("__")
    return f"nnUNetv2_predict -i IMAGES -o PREDICTIONS -d {name.parent} -tr {trainer} -p {plans} -c {configuration} -f {folds}"


def _write_onnx(arguments):
    from pathlib import Path

    from nnunet_partial.errors import UserError
    from nnunet_partial.inference.export import card_of, cards_beside, write_card
    from nnunet_partial.inference.onnx import export_model_onnx

    if Path(arguments.onnx).exists() and not arguments.overwrite:
        raise UserError(f"{arguments.onnx} exists. Choose another --onnx, or replace it with --overwrite.")
    folds = arguments.folds or ["0"]
    if len(folds) != 1:
        raise UserError(f"--onnx takes one fold, found {' '.join(folds)}.")
    folder = model.folder(arguments)
    card = card_of(folder, folds[0], arguments.checkpoint, arguments.trust, arguments.evaluation)
    difference = export_model_onnx(folder, arguments.onnx, folds[0], arguments.checkpoint, arguments.trust)
    write_card(card, cards_beside(arguments.onnx))
    print(f"wrote {arguments.onnx}, which differs from torch by {difference:.2g}")
