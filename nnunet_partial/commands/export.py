"""``nnunet_partial export``."""

DESCRIPTION = """Write a model that stock nnU-Net runs without this package: a folder
DatasetNNN_X/TRAINER__PLANS__CONFIGURATION below --out, for nnUNetv2_predict_from_modelfolder or nnUNet_results, and a
zip for nnUNetv2_install_pretrained_model_from_zip.

The checkpoints hold the weights that predict and nothing else. plans.json loses the settings of the run, dataset.json
the paths of the images; the names of the cases and what was annotated on them stay in dataset.json.

--onnx writes the network of one fold as one ONNX file, checked against torch: preprocessed patches in, logits out. It is
the way out for networks that stock nnU-Net does not have, such as the light students."""
EXAMPLE = """nnunet_partial export nnUNet_results/Dataset501_X/nnUNetTrainerMSKD__nnUNetPlans__3d_fullres \\
             --out exported --zip model.zip
         nnunet_partial export --dataset 501 --trainer nnUNetTrainerCrossTeaching --configuration 3d_fullres --onnx student.onnx
         nnunet_partial export --dataset 501 --trainer nnUNetTrainerMSKD --configuration 3d_fullres --zip model.zip"""


def add_arguments(parser):
    parser.add_argument("model", nargs="?", metavar="MODEL_FOLDER", help="holds plans.json, dataset.json and fold_N")
    parser.add_argument("--dataset", help="instead of MODEL_FOLDER: id or name of a dataset with a model in nnUNet_results")
    parser.add_argument("--trainer", help="with --dataset")
    parser.add_argument("--plans", default="nnUNetPlans", help="with --dataset (default: nnUNetPlans)")
    parser.add_argument("--configuration", help="with --dataset")
    parser.add_argument("--folds", nargs="+", metavar="FOLD", help="default: all that are trained")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    parser.add_argument("--out", metavar="DIR", help="where the folder is written")
    parser.add_argument("--zip", metavar="FILE", help="zip to write")
    parser.add_argument("--onnx", metavar="FILE", help="ONNX file to write, of one fold")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(arguments):
    from pathlib import Path

    from nnunet_partial.inference.export import export_model

    if arguments.onnx:
        _write_onnx(arguments)
        if not arguments.out and not arguments.zip:
            return
    name = export_model(
        _model_folder(arguments),
        arguments.out,
        arguments.zip,
        folds=arguments.folds,
        checkpoint=arguments.checkpoint,
        overwrite=arguments.overwrite,
    )
    if arguments.out:
        folder = Path(arguments.out) / name
        folds = " ".join(sorted(i.name[len("fold_") :] for i in folder.glob("fold_*")))
        print(f"wrote {folder}\npredict with: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {folder} -f {folds}")
    if arguments.zip:
        print(f"wrote {arguments.zip}\ninstall with: nnUNetv2_install_pretrained_model_from_zip {arguments.zip}")


def _model_folder(arguments):
    from nnunet_partial import paths
    from nnunet_partial.errors import UserError

    if (arguments.model is None) == (arguments.dataset is None):
        raise UserError("give either MODEL_FOLDER or --dataset with --trainer and --configuration.")
    if arguments.model is not None:
        return arguments.model
    if arguments.trainer is None or arguments.configuration is None:
        raise UserError(
            "--dataset needs --trainer and --configuration, for example --trainer nnUNetTrainerMSKD --configuration 3d_fullres."
        )
    return paths.model_folder(arguments.dataset, arguments.trainer, arguments.plans, arguments.configuration)


def _write_onnx(arguments):
    from pathlib import Path

    from nnunet_partial.errors import UserError
    from nnunet_partial.inference.onnx import export_model_onnx

    if Path(arguments.onnx).exists() and not arguments.overwrite:
        raise UserError(f"{arguments.onnx} exists. Choose another --onnx, or replace it with --overwrite.")
    folds = arguments.folds or ["0"]
    if len(folds) != 1:
        raise UserError(f"--onnx takes one fold, found {' '.join(folds)}.")
    difference = export_model_onnx(_model_folder(arguments), arguments.onnx, folds[0], arguments.checkpoint)
    print(f"wrote {arguments.onnx}, which differs from torch by {difference:.2g}")
