"""The command line that all converters share."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_partial.data.conversion.run import Converter, Report, convert
from nnunet_partial.data.conversion.source import SourceFolder
from nnunet_partial.errors import UserError, did_you_mean, exit_on_user_error
from nnunet_partial.files import PathLike

SKIPPED = 3  # exit code of a conversion that kept fewer cases than it found


def add_arguments(parser: argparse.ArgumentParser, converter: Converter) -> None:
    """Arguments of every converter, then its own."""
    parser.add_argument("source", metavar="SRC", help="folder of the download, unpacked")
    parser.add_argument("--dataset-id", type=int, required=True, metavar="N", help="number of the nnU-Net dataset to write")
    parser.add_argument("--name", help=f"its name, default {converter.dataset_name}")
    parser.add_argument(
        "--organs", metavar="A,B=C+D", help="classes to write: structures of the download, or NAME=STRUCTURE+STRUCTURE"
    )
    parser.add_argument("--source-name", help=f"name of the source in the contract, default {converter.name}")
    parser.add_argument("--unlabelled", action="store_true", help="include cases without labels, annotated: []")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images into the dataset instead of referring to them"
    )
    parser.add_argument(
        "--resample-sheared",
        action="store_true",
        help="resample NIfTI files whose axes are not at right angles onto a grid whose axes are; default: skip the case",
    )
    parser.add_argument("--follow-links", action="store_true", help="read links that lead out of SRC")
    skipping = parser.add_mutually_exclusive_group()
    skipping.add_argument("--strict", action="store_true", help="write nothing if any case has to be skipped")
    skipping.add_argument(
        "--skip-bad", action="store_true", help=f"exit code 0 although cases had to be skipped; default: exit code {SKIPPED}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    parser.add_argument("--processes", type=int, metavar="P", help="default: all cores")
    converter.add_arguments(parser)


def default_options(converter: Converter, source: PathLike, dataset_id: int) -> argparse.Namespace:
    """What the command line gives to a converter when nothing but SRC and the number is said; None where it must be."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser, converter)
    defaults = {i.dest: i.default for i in parser._actions}
    return argparse.Namespace(**{**defaults, "source": source, "dataset_id": dataset_id})


def required_options(converter: Converter) -> list[tuple[str, ...]]:
    """The names of the converter's own options that have no default: of each tuple exactly one is needed."""
    parser = argparse.ArgumentParser(add_help=False)
    converter.add_arguments(parser)
    alone = [(i.dest,) for i in parser._actions if i.required]
    return [*alone, *(tuple(i.dest for i in g._group_actions) for g in parser._mutually_exclusive_groups if g.required)]


def converters() -> list[str]:
    """The names of the datasets that can be converted: modules of ``dataset_conversion``."""
    import dataset_conversion

    folder = Path(dataset_conversion.__path__[0])
    return sorted(i.stem for i in folder.glob("*.py") if not i.stem.startswith("_"))


def chosen(name: str, source: PathLike, dataset_id: int, /, **given: Any) -> tuple:
    """``(converter, its arguments)`` of a name and options. Raises :class:`UserError` for what is unknown or missing."""
    if name not in converters():
        raise UserError(
            f"there is no converter {name!r}. {did_you_mean(name, converters())}Converters: {', '.join(converters())}."
        )
    converter = importlib.import_module(f"dataset_conversion.{name}").CONVERTER
    arguments = default_options(converter, source, dataset_id)
    unknown = [i for i in given if not hasattr(arguments, i)]
    if unknown:
        raise UserError(
            f"converter {name} has no option {unknown[0]!r}. {did_you_mean(unknown[0], vars(arguments))}Options: "
            f"{', '.join(sorted(vars(arguments)))}."
        )
    wrong = [i for i in required_options(converter) if sum(given.get(j) is not None for j in i) != 1]
    if wrong:
        one = "exactly one of the options" if len(wrong[0]) > 1 else "the option"
        raise UserError(f"converter {name} needs {one} {', '.join(map(repr, wrong[0]))}.")
    vars(arguments).update(given)
    return converter, arguments


def run(converter: Converter, arguments: argparse.Namespace) -> Report:
    """Convert and print what was done. Cases that are missing end the command with exit code 3, unless --skip-bad."""
    print(f"looking for cases in {arguments.source}", flush=True)
    report = convert(converter, SourceFolder(arguments.source, arguments.follow_links), arguments)
    show(report, arguments.skip_bad)
    return report


def show(report: Report, skip_bad: bool) -> None:
    """Print what was done; :class:`SystemExit` with code 3 if cases are lost and nobody has said that they may be."""
    print("\n".join(report.lines()), flush=True)
    if report.warning and not skip_bad:
        print(f"nnunet_partial: {report.warning}", file=sys.stderr, flush=True)
        if report.lost:
            raise SystemExit(SKIPPED)


def main(converter: Converter, argv: Sequence[str] | None = None) -> None:
    """``python dataset_conversion/NAME.py SRC --dataset-id N``."""
    parser = argparse.ArgumentParser(description=converter.description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, converter)
    with exit_on_user_error():
        run(converter, parser.parse_args(sys.argv[1:] if argv is None else argv))
