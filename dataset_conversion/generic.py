"""Any folder: NIfTI, NRRD, MetaImage or DICOM images, with or without labels.

    generic.py SRC --dataset-id 200 --image-glob "*/CT" --label-glob "*/liver.nrrd" --labels liver=1,tumor=2

A glob is relative to SRC; ``*`` stands for anything within a name, ``**`` for any folders. What the wildcards stand
for makes the name of the case and must be the same for image and label, letter by letter. A glob that matches a folder
means the DICOM series in it. One ``--image-glob`` per channel. ``--labels NAME=VALUE+VALUE`` names the values of the label
files. Letters outside ASCII are written without their marks in the name of the case, and a few digits keep it apart.

Every case is taken to annotate all classes, unless ``--annotated-from`` says otherwise: ``present``, a case annotates the
classes of which its label file shows every value; ``FILE.csv``, a table with the columns ``case`` and ``annotated``, class
names joined by ``+``, one line for every labelled case.
"""

import csv
import hashlib
import re
import unicodedata
from dataclasses import replace

from nnunet_partial.data.conversion import (
    AS_STORED,
    Case,
    Converter,
    DicomSeries,
    Download,
    ImageFile,
    LabelFile,
    Skip,
    main,
    pair,
    patient_of,
)
from nnunet_partial.data.conversion.organs import choose_organs
from nnunet_partial.errors import UserError


def add_arguments(parser) -> None:
    parser.add_argument("--image-glob", action="append", required=True, metavar="GLOB", help="images; once per channel")
    parser.add_argument("--label-glob", metavar="GLOB", help="label files; none: the cases are unlabelled")
    parser.add_argument("--labels", default="", metavar="A=1,B=2+3", help="names of the label values")
    parser.add_argument(
        "--channels", default="CT", metavar="A,B", help="names of the channels; CT means Hounsfield units to nnU-Net"
    )
    parser.add_argument(
        "--annotated-from",
        metavar="present|FILE.csv",
        help="which classes each case annotates: those that its label file shows, or those of a table; default: all",
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
    if options.annotated_from and options.label_glob is None:
        raise UserError("--annotated-from needs labels: give --label-glob and --labels.")
    found = [images_of(source, Glob(i)) for i in options.image_glob]
    labels = labels_of(source, options.label_glob)
    names = case_names([*(text for part in found for text in part), *labels])
    complete = {text: tuple(part[text] for part in found) for text in names if all(text in part for part in found)}
    started = {text for part in found for text in part}
    missing = [Skip(names[i], "one of its channels is missing") for i in names if i in started and i not in complete]
    mirrors = AS_STORED if options.label_headers_wrong else ()
    labels = {text: LabelFile(path, mirrors) for text, path in labels.items() if text in complete or text not in started}
    paired = list(pair(complete, labels, unlabelled=lambda text: options.label_glob is None))
    structures = parse_labels(options.labels) or {"foreground": (1,)}
    annotated = annotation(options.annotated_from, names, structures, options.organs)
    cases = [_named(case, names[case.name], annotated) for case in paired]
    return Download(structures, cases + missing, channels=channels)


def _named(case, name: str, annotated):
    """The case under its name of the dataset, with its annotated set."""
    if isinstance(case, Skip):
        return Skip(name, case.reason)
    return annotated(replace(case, name=name, patient=patient_of(name)), case.name)


def annotation(given: str | None, names: dict, structures: dict, organs: str | None):
    """``--annotated-from`` as a function ``(case, text of its wildcards) -> case``."""
    if given is None:
        return lambda case, text: case
    if given == "present":
        return lambda case, text: replace(case, present=case.label is not None)
    table = read_table(given, choose_organs(organs, structures, tuple(structures)).classes)

    def from_table(case: Case, text: str):
        if case.label is None:
            return case
        rows = [i for i in dict.fromkeys((case.name, text)) if i in table]
        if not rows:
            raise UserError(f"{given} has no line for the case {case.name}. List every labelled case, also those of all classes.")
        return replace(case, annotated=table[rows[0]])

    return from_table


def read_table(file: str, classes: tuple) -> dict:
    """``{case: classes that it annotates}`` of a table with the columns ``case`` and ``annotated``."""
    table: dict = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if not {"case", "annotated"} <= set(reader.fieldnames or ()):
                raise UserError(f"{file}: the columns 'case' and 'annotated' are expected, found {reader.fieldnames}.")
            for number, row in enumerate(reader, start=2):
                case = unicodedata.normalize("NFC", (row["case"] or "").strip())
                annotated = tuple(i.strip() for i in (row["annotated"] or "").split("+") if i.strip())
                unknown = [i for i in annotated if i not in classes]
                if not case or case in table or unknown:
                    what = (
                        f"{unknown[0]!r} is no class ({', '.join(classes)})" if unknown else f"{case!r} is empty or there twice"
                    )
                    raise UserError(f"{file}, line {number}: {what}. Write one line a case, its classes joined by '+'.")
                table[case] = annotated
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--annotated-from {file} cannot be read ({error}). Give 'present' or a CSV file.") from None
    return table


class Glob:
    """A glob with the text of its wildcards as the name of a case."""

    def __init__(self, glob: str):
        parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob.strip("/"))
        patterns = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
        self.text, self.pattern = glob, re.compile("".join(patterns.get(i) or re.escape(i) for i in parts))

    def case(self, path: str) -> str | None:
        """What the wildcards stand for in a relative path, or None if it does not match. Unicode may write a letter with a
        mark in two ways; both are one text here."""
        match = self.pattern.fullmatch(path)
        if match is None:
            return None
        return unicodedata.normalize("NFC", "_".join(i.strip("/") for i in match.groups() if i)) or "case"


def case_names(texts) -> dict:
    """Text of the wildcards -> name of the case: ASCII letters, digits, ``.``, ``-``, ``_``; no two texts share a name."""
    names: dict = {}
    owners: dict = {}
    for text in dict.fromkeys(texts):
        names[text] = name = case_name(text)
        if name in owners:
            raise UserError(
                f"the names {owners[name]!r} and {text!r} would both become {name!r}: names of cases are made of ASCII letters, "
                "digits, '.', '-' and '_'. Use a glob that tells them apart, or rename one."
            )
        owners[name] = text
    return names


def case_name(text: str) -> str:
    """A name that nnU-Net and every file system take. Where letters or digits of the text are lost, a hash of it follows."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", plain).strip("_.-") or "case"
    if any(i.isalnum() and not i.isascii() for i in text):
        name += "-" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return name


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
