"""Any folder: NIfTI, NRRD, MetaImage or DICOM images, with or without labels.

    generic.py SRC --dataset-id 200 --image-glob "*/CT" --label-glob "*/liver.nrrd" --labels liver=1,tumor=2

A glob is relative to SRC; ``*`` stands for anything within a name, ``**`` for any folders. What the wildcards stand
for makes the name of the case and must be the same for image and label. A glob that matches a folder means the DICOM
series in it. One ``--image-glob`` per channel. ``--labels NAME=VALUE+VALUE`` names the values of the label files.
"""

import re

from nnunet_partial.data.conversion import AS_STORED, Converter, DicomSeries, Download, ImageFile, LabelFile, Skip, main, pair
from nnunet_partial.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("--image-glob", action="append", required=True, metavar="GLOB", help="images; once per channel")
    parser.add_argument("--label-glob", metavar="GLOB", help="label files; none: the cases are unlabelled")
    parser.add_argument("--labels", default="", metavar="A=1,B=2+3", help="names of the label values")
    parser.add_argument(
        "--channels", default="CT", metavar="A,B", help="names of the channels; CT means Hounsfield units to nnU-Net"
    )
    parser.add_argument(
        "--label-headers-wrong", action="store_true", help="voxels of label and image correspond, whatever headers say"
    )


def read(source, options) -> Download:
    channels = tuple(options.channels.split(","))
    if len(channels) != len(options.image_glob):
        raise UserError(f"--channels names {len(channels)} channels, but there are {len(options.image_glob)} --image-glob.")
    if (options.label_glob is None) != (options.labels == ""):
        raise UserError("--label-glob and --labels belong together: which files, and what their values mean.")
    found = [images_of(source, Glob(i)) for i in options.image_glob]
    names = list(dict.fromkeys(name for part in found for name in part))
    complete = {name: tuple(part[name] for part in found) for name in names if all(name in part for part in found)}
    missing = [Skip(name, "one of its channels is missing") for name in names if name not in complete]
    mirrors = AS_STORED if options.label_headers_wrong else ()
    labels = {name: LabelFile(path, mirrors) for name, path in labels_of(source, options.label_glob).items()}
    labels = {name: label for name, label in labels.items() if name in complete or name not in names}
    cases = list(pair(complete, labels, unlabelled=lambda name: options.label_glob is None))
    structures = parse_labels(options.labels) or {"foreground": (1,)}
    return Download(structures, cases + missing, channels=channels)


class Glob:
    """A glob with the text of its wildcards as the name of a case."""

    def __init__(self, glob: str):
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.strip("/"))
        patterns = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
        self.text, self.pattern = glob, re.compile("".join(patterns.get(i) or re.escape(i) for i in parts))

    def case(self, path: str) -> str | None:
        """Name of the case that a relative path belongs to, or None if it does not match."""
        match = self.pattern.fullmatch(path)
        if match is None:
            return None
        text = "_".join(i.strip("/") for i in match.groups() if i)
        return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.-") or "case"


def images_of(source, glob: Glob) -> dict:
    """Case -> image: a file that matches, or the DICOM files of a folder that matches."""
    files: dict = {}
    folders: dict = {}
    for path in source.paths():
        case, in_folder = glob.case(path), glob.case(path.rpartition("/")[0])
        if case is not None:
            files.setdefault(case, []).append(source.root / path)
        elif in_folder is not None:
            folders.setdefault(in_folder, []).append(source.root / path)
    _refuse_repeats(files, glob)
    return {**{k: DicomSeries(tuple(v)) for k, v in folders.items()}, **{k: ImageFile(v[0]) for k, v in files.items()}}


def labels_of(source, glob: str | None) -> dict:
    """Case -> label file."""
    if glob is None:
        return {}
    files: dict = {}
    for path in source.paths():
        case = Glob(glob).case(path)
        if case is not None:
            files.setdefault(case, []).append(source.root / path)
    _refuse_repeats(files, Glob(glob))
    return {k: v[0] for k, v in files.items()}


def _refuse_repeats(files: dict, glob: Glob) -> None:
    for case, paths in files.items():
        if len(paths) > 1:
            raise UserError(
                f"{glob.text!r} gives both {paths[0]} and {paths[1]} the name {case!r}. Use a glob that tells them apart."
            )


def parse_labels(text: str) -> dict:
    """``liver=1,kidney=2+3`` -> ``{"liver": (1,), "kidney": (2, 3)}``."""
    structures = {}
    for item in filter(None, text.split(",")):
        name, _, values = item.partition("=")
        try:
            structures[name.strip()] = tuple(int(i) for i in values.split("+"))
        except ValueError:
            structures[name.strip()] = ()
        if not all(0 < i < 65536 for i in structures[name.strip()]) or not structures[name.strip()]:
            raise UserError(f"--labels: {item!r} is not NAME=VALUE or NAME=VALUE+VALUE with whole numbers from 1.")
    return structures


CONVERTER = Converter("generic", "Generic", __doc__, read, add_arguments)

if __name__ == "__main__":
    main(CONVERTER)
