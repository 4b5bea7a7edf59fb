"""``nnunet_partial check N``: what a dataset holds and what looks wrong; and what to think of pseudo labels."""

import argparse
from dataclasses import replace
from pathlib import Path

from nnunet_partial.commands import repeated

DESCRIPTION = """Look at every image and label of a raw dataset: contract, geometry, orientation, Hounsfield units, NaN,
slices that jump, empty labels, cases that show less than their source, organs on the wrong side, labels that do not lie on
their organs, unusual volumes, images that occur twice or in a test set. A finding comes with what to do about it. Writes
check.txt, check.json, check.png and check.html, in which one can scroll through the shown cases. Exit code 1 if something is
wrong enough to spoil a training.

A finding that is right as it is, such as a liver that really lies on the left, is a note from then on with --accept
KIND:CASE, as long as nothing of it changes.

With --labels, look at a label directory instead: volumes of pseudo labels against those outlined by hand, how sure the models
were, where they contradict each other, and pictures of the worst cases. Writes labels.txt, labels.json, labels.png and
labels.html, in which one can scroll through cases, and with --worst N the names of the N worst cases, for the setting exclude
of a training and for pseudo-label --cases."""
EXAMPLE = """nnunet_partial check 501 --against 601
         nnunet_partial check 501 --accept anatomy:lits_0007
         nnunet_partial check --labels labels/fold_0 --worst 20 --out worst.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="?", help="number or name of the dataset in nnUNet_raw; not needed with --labels")
    parser.add_argument("--labels", metavar="LABELS", help="look at this label directory (nnunet_partial pseudo-label)")
    parser.add_argument("--worst", type=int, metavar="N", help="with --labels: list the N worst cases, one a line, in worst.txt")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="N", help="datasets that must not share images with it, such as test sets"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where to write (default: check_DATASET beside the dataset; check_LABELS in the current folder); with --worst a name "
        "that ends with .txt is that of the list",
    )
    repeated.add_argument(parser, "--accept", "KIND:CASE", "this finding is right as it is; may be repeated")
    parser.add_argument("--report-only", action="store_true", help="exit code 0 whatever is found")
    parser.add_argument("--pdf", action="store_true", help="the page of pictures as PDF instead of PNG")
    parser.add_argument("--processes", type=int, metavar="P", help="default: all cores")


def run(arguments: argparse.Namespace) -> None:
    from nnunet_partial.errors import UserError

    if arguments.labels is not None:
        if arguments.against:
            raise UserError("--against has no effect with --labels. Leave it out.")
        return _check_labels(arguments)
    if arguments.dataset is None or arguments.worst is not None:
        missing = "--worst lists cases of a label directory: add --labels LABELS." if arguments.dataset else "name a dataset"
        raise UserError(missing if arguments.dataset else f"{missing}, or a label directory with --labels LABELS.")
    return _check_dataset(arguments)


def _check_labels(arguments: argparse.Namespace) -> None:
    from nnunet_partial.data.check import audit, audit_page
    from nnunet_partial.errors import UserError
    from nnunet_partial.evaluation.report import check_page
    from nnunet_partial.files import json_text, write_texts

    if arguments.worst is not None and arguments.worst < 1:
        raise UserError(f"--worst {arguments.worst}: at least one case is needed.")
    found = audit.audit(arguments.labels, arguments.dataset)
    folder, worst = _places(arguments, Path(arguments.labels).absolute().name)
    text = "\n".join(audit.in_words(found, arguments.worst or 20)) + "\n"
    texts = {folder / "labels.txt": text, folder / "labels.json": json_text(found.to_json())}
    names = found.worst(arguments.worst or 0)
    write_texts(texts | ({worst: "".join(f"{i}\n" for i in names)} if names else {}))
    page = folder / ("labels.pdf" if arguments.pdf else "labels.png")
    audit_page.draw(found, page)
    to_scroll = check_page.write_labels(found, text.splitlines(), page)
    print(f"{text}written: {', '.join(map(str, (*texts, page, to_scroll, *([worst] if names else []))))}", flush=True)
    if names:
        print(f"train without their pseudo labels: nnunet_partial variant ... --set exclude={worst.absolute()}")


def _places(arguments: argparse.Namespace, name: str) -> tuple:
    """(folder of the page, file of the list)."""
    out = Path(arguments.out or f"check_{name}")
    if arguments.worst is not None and out.suffix == ".txt":
        return out.parent / f"check_{name}", out
    return out, out / "worst.txt"


def _check_dataset(arguments: argparse.Namespace) -> None:
    from nnunet_partial.data.check import inspection
    from nnunet_partial.data.check import page as inspection_page
    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.evaluation.report import check_page
    from nnunet_partial.files import json_text, write_texts
    from nnunet_partial.paths import raw_dataset

    folder = raw_dataset(arguments.dataset)
    print(f"looking at {folder}", flush=True)
    found = inspection.inspect(folder, [raw_dataset(i) for i in arguments.against], arguments.processes)
    if arguments.accept:
        inspection.accept(found, folder, arguments.accept)
        found = replace(found, findings=tuple(inspection.accepted(found.findings, folder)))
    out = Path(arguments.out or folder.with_name(f"check_{folder.name}"))
    text = "\n".join(inspection.in_words(found))
    page = out / ("check.pdf" if arguments.pdf else "check.png")
    write_texts({out / "check.txt": text + "\n", out / "check.json": json_text(found.to_json())})
    raw = read_raw_dataset(folder)
    inspection_page.draw(found, raw, page)
    to_scroll = check_page.write_dataset(found, raw, text.splitlines(), page)
    print(f"{text}\nwritten: {out / 'check.txt'}, {out / 'check.json'}, {to_scroll}\npictures: {page}", flush=True)
    if any(i.level == "error" for i in found.findings) and not arguments.report_only:
        raise SystemExit(1)
