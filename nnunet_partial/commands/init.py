"""``nnunet_partial init``."""

from nnunet_partial.errors import UserError

DESCRIPTION = """Write a first project file for nnunet_partial run: looks into folders of downloads, recognises which dataset and
release they are, what they annotate and how many cases they hold, and writes a source for each, with a comment at every key.
Without folders it asks for them. Raw datasets of nnU-Net are taken as they are."""
EXAMPLE = """nnunet_partial init /data/LiTS /data/KiTS19 /data/Pancreas-CT --name AbdomenPartial --dataset-id 501"""


def add_arguments(parser):
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="folders of downloads, unpacked, or DatasetNNN_X of nnUNet_raw"
    )
    parser.add_argument("--out", default="project.toml", metavar="FILE", help="default: project.toml")
    parser.add_argument("--name", default="Partial", help="of the merged dataset (default: Partial)")
    parser.add_argument("--dataset-id", type=int, default=501, metavar="N", help="its number (default: 501)")
    parser.add_argument(
        "--source-id", type=int, default=101, metavar="N", help="first number for the datasets of the sources (default: 101)"
    )
    parser.add_argument("--test", metavar="DIR", help="folder with imagesTs and labelsTs, all classes labelled")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def run(arguments):
    import os
    from pathlib import Path

    from nnunet_partial import api
    from nnunet_partial.files import write_text
    from nnunet_partial.orchestration.job import allocated_cores
    from nnunet_partial.project.recognise import recognise
    from nnunet_partial.project.template import project_text

    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} exists. Choose another --out, or replace it with --overwrite.")
    test = _test_folder(arguments.test)
    found = [recognise(i) for i in arguments.folders or _asked()]
    for one in found:
        print(one, flush=True)
    processes = min(8, allocated_cores(os.environ))
    text = project_text(found, arguments.name, arguments.dataset_id, arguments.source_id, test, processes)
    write_text(text, out)
    print(f"wrote {out}")
    try:
        api.project(out)
    except UserError as error:
        print(f"to be settled before it runs: {error}")
        return
    print(f"next: nnunet_partial run {out} --dry-run")


def _test_folder(given):
    from pathlib import Path

    if given is None:
        return None
    missing = next((i for i in ("imagesTs", "labelsTs") if not (Path(given) / i).is_dir()), None)
    if missing:
        raise UserError(f"--test {given}: there is no {missing} in it. A test set has imagesTs and labelsTs.")
    return Path(given).absolute()


def _asked():
    """Folders that a person names at the terminal, one a line."""
    import sys

    if not sys.stdin.isatty():
        raise UserError("name the folders of the downloads: nnunet_partial init FOLDER FOLDER ...")
    print("Folders of downloads, one a line, an empty line at the end:")
    folders = list(iter(lambda: input("folder: ").strip(), ""))
    if not folders:
        raise UserError("no folder was named.")
    return folders
