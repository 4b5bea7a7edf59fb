"""The arguments of commands that take a trained model: its folder, or the dataset, trainer and configuration. No verb."""

from pathlib import Path


def add_arguments(parser):
    """Add ``MODEL_FOLDER``, ``--dataset``, ``--trainer``, ``--plans`` and ``--configuration`` to a parser."""
    parser.add_argument("model", nargs="?", metavar="MODEL_FOLDER", help="holds plans.json, dataset.json and fold_N")
    parser.add_argument("--dataset", help="instead of MODEL_FOLDER: id or name of a dataset with a model in nnUNet_results")
    parser.add_argument("--trainer", help="with --dataset")
    parser.add_argument("--plans", default="nnUNetPlans", help="with --dataset (default: nnUNetPlans)")
    parser.add_argument("--configuration", help="with --dataset")


def folder(arguments) -> Path:
    """The model folder asked for. Raises :class:`UserError` if it is named twice, or in part."""
    from nnunet_partial import paths
    from nnunet_partial.errors import UserError

    if (arguments.model is None) == (arguments.dataset is None):
        raise UserError("give either MODEL_FOLDER or --dataset with --trainer and --configuration.")
    if arguments.model is not None:
        return Path(arguments.model)
    if arguments.trainer is None or arguments.configuration is None:
        raise UserError(
            "--dataset needs --trainer and --configuration, for example --trainer nnUNetTrainerMSKD --configuration 3d_fullres."
        )
    return paths.model_folder(arguments.dataset, arguments.trainer, arguments.plans, arguments.configuration)
