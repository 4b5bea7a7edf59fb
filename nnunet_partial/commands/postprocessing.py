"""``nnunet_partial postprocessing``."""

from nnunet_partial.commands import model

DESCRIPTION = """Decide class by class whether the largest component alone scores better, each class on the validation
cases that annotate it, and write nnU-Net's postprocessing.pkl and postprocessing.json.

Classes are never taken together: validation shows only what a case annotates, often one organ, and the largest component
of all classes would delete the other organs of a complete prediction. nnUNetv2_find_best_configuration and
nnUNetv2_determine_postprocessing decide in the same way where this package is installed; nnUNetv2_apply_postprocessing
applies the result anywhere."""
EXAMPLE = """nnunet_partial postprocessing --dataset 501 --trainer nnUNetTrainerPartial --configuration 3d_fullres
         nnUNetv2_apply_postprocessing -i PREDICTIONS -o OUT -pp_pkl_file \\
             MODEL_FOLDER/crossval_results_folds_0_1_2_3_4/postprocessing.pkl
         nnunet_partial postprocessing --predictions DIR --truth LABELS"""


def add_arguments(parser):
    model.add_arguments(parser)
    parser.add_argument("--folds", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="default: 0 1 2 3 4")
    parser.add_argument(
        "--predictions", metavar="DIR", help="instead of a model: predictions of cases of the dataset, with its two JSON files"
    )
    parser.add_argument("--truth", metavar="DIR", help="with --predictions: the label files")
    parser.add_argument("--processes", type=int, default=2, help="default: 2")


def run(arguments):
    from pathlib import Path

    from nnunet_partial import api
    from nnunet_partial.errors import UserError
    from nnunet_partial.evaluation import postprocessing

    if (arguments.predictions is None) != (arguments.truth is None):
        raise UserError("--predictions and --truth go together.")
    if arguments.predictions is not None:
        if arguments.model is not None or arguments.dataset is not None:
            raise UserError("give either a model or --predictions.")
        written = postprocessing.determine_for_folder(arguments.predictions, arguments.truth, arguments.processes)
    else:
        folder = model.folder(arguments)
        folds = [int(i) if i.isdigit() else i for i in arguments.folds]
        written = api.postprocessing(folder, folds, arguments.processes)
    descriptions = " ".join(f"-{i}_json {Path(written).with_name(f'{i}.json')}" for i in ("plans", "dataset"))
    print(
        f"wrote {written}\napply with: nnUNetv2_apply_postprocessing -i PREDICTIONS -o OUT -pp_pkl_file {written} {descriptions}"
    )
