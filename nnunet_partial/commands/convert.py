"""``nnunet_partial convert NAME SRC --dataset-id N``."""

import argparse
import importlib

DESCRIPTION = """Turn a downloaded dataset into an nnU-Net raw dataset that says which classes are annotated. Images
stay where they are."""
EXAMPLE = "nnunet_partial convert lits /data/LiTS --dataset-id 101 --organs liver"

CONVERTERS = (
    "lits",
    "kits",
    "nih",
    "msd",
    "btcv",
    "moba",
    "flare22",
    "flare23",
    "amos22",
    "acdc",
    "left_atrium",
    "totalsegmentator",
    "cityscapes",
    "generic",
)  # modules of dataset_conversion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from nnunet_partial.data.conversion import command

    datasets = parser.add_subparsers(dest="converter", metavar="NAME", required=True)
    for name in CONVERTERS:
        converter = load(name)
        summary = converter.description.strip().splitlines()[0]
        command.add_arguments(
            datasets.add_parser(
                name, help=summary, description=converter.description, formatter_class=argparse.RawDescriptionHelpFormatter
            ),
            converter,
        )


def run(arguments: argparse.Namespace) -> None:
    from nnunet_partial import api
    from nnunet_partial.data.conversion import command

    print(f"looking for cases in {arguments.source}", flush=True)
    given = {k: v for k, v in vars(arguments).items() if k != "command_line"}
    command.show(api.convert(**given), arguments.skip_bad)


def load(name: str):
    """The converter of a dataset."""
    return importlib.import_module(f"dataset_conversion.{name}").CONVERTER
