"""``nnunet_partial check N``: what a dataset holds and what looks wrong."""

import argparse
from pathlib import Path

DESCRIPTION = """Look at every image and label of a raw dataset: contract, geometry, orientation, Hounsfield units, NaN,
slices that jump, empty labels, cases that show less than their source, organs on the wrong side, labels that do not lie on
their organs, unusual volumes, images that occur twice or in a test set. Writes check.txt,
check.json and check.png. Exit code 1 if something is wrong enough to spoil a training."""
EXAMPLE = "nnunet_partial check 501 --against 601"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="number or name of the dataset in nnUNet_raw")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="N", help="datasets that must not share images with it, such as test sets"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write, default check_DATASET in the current folder")
    parser.add_argument("--pdf", action="store_true", help="the page of pictures as PDF instead of PNG")
    parser.add_argument("--processes", type=int, metavar="P", help="default: all cores")


def run(arguments: argparse.Namespace) -> None:
    from nnunet_partial.data.check import inspection
    from nnunet_partial.data.check import page as inspection_page
    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.files import json_text, write_texts
    from nnunet_partial.paths import raw_dataset

    folder = raw_dataset(arguments.dataset)
    found = inspection.inspect(folder, [raw_dataset(i) for i in arguments.against], arguments.processes)
    out = Path(arguments.out or f"check_{folder.name}")
    text = "\n".join(inspection.in_words(found))
    page = out / ("check.pdf" if arguments.pdf else "check.png")
    write_texts({out / "check.txt": text + "\n", out / "check.json": json_text(found.to_json())})
    inspection_page.draw(found, read_raw_dataset(folder), page)
    print(f"{text}\nwritten: {out / 'check.txt'}, {out / 'check.json'}, {page}", flush=True)
    if any(i.level == "error" for i in found.findings):
        raise SystemExit(1)
