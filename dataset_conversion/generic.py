"""Any folder: NIfTI, NRRD, MetaImage or DICOM images, with or without labels.

    nnunet_partial convert generic SRC --dataset-id 200 --name Ward3 --channels CT --image-glob "*/CT" --label-glob "*/liver" --labels liver=1,tumor=2
    nnunet_partial convert generic SRC --dataset-id 200 --name Ward3 --channels T1,T2 --table cases.csv --labels tumor=1

Say with ``--channels`` what the images show: nnU-Net clips and scales ``CT`` as Hounsfield units, anything else by itself.
Without it one channel is taken for CT, and refused if its values do not look like it.

A glob is relative to SRC; ``*`` stands for anything within a name, ``**`` for any folders, ``{a,b}`` for one of these. What
``*``, ``**`` and ``?`` stand for makes the name of the case and must be the same for image and label, letter by letter; the
ending of an image file (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, pictures) never belongs to it, and a glob without one takes
all of them. A glob that matches a folder means the DICOM series in it. One ``--image-glob`` per channel. ``--labels
NAME=VALUE+VALUE`` names the values of the label files; without ``--label-glob`` the cases are unlabelled. Letters outside
ASCII are written without their marks in the name of the case, and a few digits keep it apart.

A table says the same outright: a line a case, paths relative to SRC, a file or a folder of DICOM files each. Columns:
``case``, ``image`` (several channels: ``image_0``, ``image_1``, ...), and as far as they are known ``label`` (empty:
unlabelled), ``patient`` and ``annotated`` (class names joined by ``+``; empty: all classes).

Every case is taken to annotate all classes, unless ``--annotated-from`` says otherwise: ``present``, a case annotates the
classes of which its label file shows every value; ``FILE.csv``, a table with the columns ``case`` and ``annotated``, class
names joined by ``+``, one line for every labelled case.
"""

import csv
import hashlib
import re
import unicodedata
from dataclasses import replace
from difflib import get_close_matches

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
from nnunet_partial.data.images import ENDINGS
from nnunet_partial.errors import UserError, did_you_mean


def add_arguments(parser) -> None:
    files = parser.add_mutually_exclusive_group(required=True)
    files.add_argument("--image-glob", action="append", metavar="GLOB", help="images; once per channel")
    files.add_argument("--table", metavar="FILE.csv", help="the files of each case, instead of globs")
    parser.add_argument("--label-glob", metavar="GLOB", help="label files; none: the cases are unlabelled")
    parser.add_argument("--labels", default="", metavar="A=1,B=2+3", help="names of the label values")
    parser.add_argument(
        "--channels",
        metavar="A,B",
        help="names of the channels; CT means Hounsfield units to nnU-Net; default: CT if it looks so",
    )
    parser.add_argument("--allow-absent", action="store_true", help="accept classes that no label file shows")
    parser.add_argument(
        "--annotated-from",
        metavar="present|FILE.csv",
        help="which classes each case annotates: those that its label file shows, or those of a table; default: all",
    )
    parser.add_argument(
        "--label-headers-wrong", action="store_true", help="voxels of label and image correspond, whatever headers say"
    )


def read(source, options) -> Download:
    structures = parse_labels(options.labels)
    cases, channels = (_from_table if options.table else _from_globs)(source, options, structures)
    if options.label_headers_wrong:
        cases = [replace(i, label=replace(i.label, mirrors=AS_STORED)) if getattr(i, "label", None) else i for i in cases]
    if not structures:  # there is nothing that --unlabelled could ask for
        options.unlabelled = True
    globs = ", ".join([*(options.image_glob or ()), *filter(None, [options.label_glob])])
    return Download(
        structures,
        cases,
        channels=channels,
        expected=f"nothing matches {globs}, relative to that folder" if globs else f"{options.table} names no case",
        label_option="--labels",
        hounsfield=options.channels is None,
        all_shown=not options.allow_absent,
    )


def _channels(options, number: int) -> tuple:
    """Names of the channels of ``number`` images a case."""
    channels = tuple((options.channels or "CT").split(","))
    if len(channels) != number:
        raise UserError(f"--channels names {len(channels)} channels ({', '.join(channels)}), but a case has {number} images.")
    return channels


def _from_globs(source, options, structures: dict) -> tuple:
    """``(cases, channels)``."""
    channels = _channels(options, len(options.image_glob))
    if options.label_glob is not None and not structures:
        raise UserError("--label-glob needs --labels, which says what the values of these files mean: --labels liver=1,tumor=2.")
    if options.label_glob is None and structures:
        raise UserError("--labels needs --label-glob, which says which files hold the labels. Without labels leave out both.")
    if options.annotated_from and options.label_glob is None:
        raise UserError("--annotated-from needs labels: give --label-glob and --labels.")
    globs = [Glob(i) for i in options.image_glob]
    found = [images_of(source, i) for i in globs]
    labels = labels_of(source, options.label_glob)
    names = case_names([*(text for part in found for text in part), *labels])
    complete = {text: tuple(part[text] for part in found) for text in names if all(text in part for part in found)}
    started = {text for part in found for text in part}
    missing = [Skip(names[i], "one of its channels is missing") for i in names if i in started and i not in complete]
    labels = {text: LabelFile(path) for text, path in labels.items() if text in complete or text not in started}
    paired = list(pair(complete, labels, unlabelled=lambda text: options.label_glob is None))
    annotated = annotation(options.annotated_from, names, structures, options.organs)
    looked = (globs, complete, Glob(options.label_glob) if options.label_glob else None, labels)
    return [_named(_told(case, *looked), names[case.name], annotated) for case in paired] + missing, channels


def _told(case, globs: list, complete: dict, label_glob, labels: dict):
    """A case that lacks its image or its label, with what was looked for."""
    if not isinstance(case, Skip):
        return case
    lacks_image = case.name in labels
    wanted = globs[0] if lacks_image else label_glob
    others = set(complete) - set(labels) if lacks_image else set(labels) - set(complete)
    close = get_close_matches(case.name, sorted(others), 1)
    return Skip(case.name, f"{case.reason}: {wanted.looked_for(case.name)} is not there" + (f"; {close[0]}?" if close else ""))


def _from_table(source, options, structures: dict) -> tuple:
    """``(cases, channels)`` of ``--table``."""
    if options.label_glob or options.annotated_from:
        raise UserError(f"--table says which labels there are and what they annotate: put it into {options.table}.")
    classes = choose_organs(options.organs, structures, tuple(structures)).classes if structures else ()
    rows, columns = _rows(options.table, {"case"})
    images = ["image"] if "image" in columns else [f"image_{i}" for i in range(sum(c.startswith("image_") for c in columns))]
    if not images or not set(images) <= set(columns):
        raise UserError(f"{options.table}: the column 'image' is expected, or image_0, image_1, ...; found {', '.join(columns)}.")
    channels = _channels(options, len(images))
    names = case_names([row["case"] for _, row in rows])
    cases: dict = {}
    for number, row in rows:
        where = f"{options.table}, line {number}"
        if not row["case"] or row["case"] in cases:
            raise UserError(f"{where}: {row['case']!r} is empty or there twice. Write one line a case.")
        if row.get("label") and not structures:
            raise UserError(f"{where} names a label: --labels says what its values mean, for example --labels liver=1,tumor=2.")
        lacking = [i for i in images if not row[i]]
        if lacking:
            cases[row["case"]] = Skip(names[row["case"]], f"{where} names no file for {lacking[0]}")
            continue
        name = names[row["case"]]
        label = LabelFile(source.named(row["label"], where, source.root)) if row.get("label") else None
        annotated = _classes(row["annotated"], classes, where) if row.get("annotated") and label else None
        patient = row.get("patient") or patient_of(name)
        volumes = tuple(_image(source, row[i], where) for i in images)
        cases[row["case"]] = Case(name, volumes, label, annotated=annotated, patient=patient)
    return list(cases.values()), channels


def _image(source, text: str, where: str):
    """A file, or the DICOM files of a folder, that a table names."""
    path = source.named(text, where, source.root)
    inside = source.relative(path)
    series = [source.root / i for i in source.paths() if i.rpartition("/")[0] == inside]
    return DicomSeries(tuple(series)) if series else ImageFile(path)


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
    for number, row in _rows(file, {"case", "annotated"})[0]:
        where = f"{file}, line {number}"
        annotated = _classes(row["annotated"], classes, where)
        if not row["case"] or row["case"] in table:
            raise UserError(
                f"{where}: {row['case']!r} is empty or there twice. Write one line a case, its classes joined by '+'."
            )
        table[row["case"]] = annotated
    return table


def _classes(text: str, classes: tuple, where: str) -> tuple:
    """``liver+tumor`` -> names, all of which must be classes."""
    names = tuple(i.strip() for i in text.split("+") if i.strip())
    unknown = [i for i in names if i not in classes]
    if unknown:
        raise UserError(
            f"{where}: {unknown[0]!r} is no class ({', '.join(classes)}). {did_you_mean(unknown[0], classes)}Write names of classes joined by '+'."
        )
    return names


def _rows(file: str, needed: set) -> tuple:
    """``([(line, {column: text})], columns)`` of a CSV file, comma or semicolon, that has the columns ``needed``."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as handle:
            head = handle.readline()
            handle.seek(0)
            reader = csv.DictReader(handle, delimiter=";" if head.count(";") > head.count(",") else ",")
            columns = [(i or "").strip() for i in reader.fieldnames or ()]
            if not needed <= set(columns):
                expected = " and ".join(repr(i) for i in ("case", "annotated") if i in needed)
                raise UserError(f"{file}: the columns {expected} are expected, found {', '.join(columns)}.")
            reader.fieldnames = columns
            rows = []
            for row in reader:
                text = {k: unicodedata.normalize("NFC", (v or "").strip()) for k, v in row.items() if k and isinstance(k, str)}
                rows.append((reader.line_num, text))
            return rows, columns
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        option = "--annotated-from" if "annotated" in needed else "--table"
        other = "'present' or " if option == "--annotated-from" else ""
        raise UserError(f"{option} {file} cannot be read ({error}). Give {other}a CSV file.") from None


class Glob:
    """A glob with the text of its wildcards as the name of a case."""

    def __init__(self, glob: str):
        parts = re.split(r"(\*\*/|\*\*|\*|\?|\{[^{}/]*,[^{}/]*\})", glob.strip("/"))
        patterns = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
        self.text, self.pattern = glob, re.compile("".join(patterns.get(i) or _literal(i) for i in parts))
        self.open = parts[-1] == "" and parts[-2:-1] != [] and parts[-2] in patterns  # ends with a wildcard

    def case(self, path: str) -> str | None:
        """What the wildcards stand for in a relative path, without the ending of an image file, or None if it does not match.
        Unicode may write a letter with a mark in two ways; both are one text here."""
        ending = next((i for i in ENDINGS if path.lower().endswith(i)), "")
        stem = path[: len(path) - len(ending)]
        match = self.pattern.fullmatch(path) or self.pattern.fullmatch(stem)
        if match is None:
            return None
        ends = [(match.start(i), min(match.end(i), len(stem))) for i in range(1, self.pattern.groups + 1)]
        groups = [path[start:end].strip("/") for start, end in ends if start < end]
        return unicodedata.normalize("NFC", "_".join(groups)) or "case"

    def case_of_file(self, path: str) -> str | None:
        """:meth:`case` of a file. A glob that leaves the ending open takes files of images alone."""
        return None if self.open and not path.lower().endswith(ENDINGS) else self.case(path)

    def looked_for(self, text: str) -> str:
        """The file of a case, as far as the glob says where it would be."""
        wildcards = re.findall(r"\*\*/?|\*|\?", self.text)
        return self.text.replace("*", text) if wildcards == ["*"] else f"{self.text} with {text!r} for the wildcards"


def _literal(text: str) -> str:
    """Text between wildcards as a regular expression; ``{a,b}`` is one of several."""
    if text.startswith("{") and "," in text:
        return f"(?:{'|'.join(re.escape(i) for i in text[1:-1].split(','))})"
    return re.escape(text)


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
        case, in_folder = glob.case_of_file(path), glob.case(path.rpartition("/")[0]) if "/" in path else None
        if case is not None:
            files.setdefault(case, []).append(source.root / path)
        elif in_folder is not None and not path.lower().endswith(ENDINGS):
            folders.setdefault(in_folder, []).append(source.root / path)
    _refuse_repeats(files, glob)
    return {**{k: DicomSeries(tuple(v)) for k, v in folders.items()}, **{k: ImageFile(v[0]) for k, v in files.items()}}


def labels_of(source, glob: str | None) -> dict:
    """Case -> label file."""
    if glob is None:
        return {}
    files: dict = {}
    for path in source.paths():
        case = Glob(glob).case_of_file(path)
        if case is not None:
            files.setdefault(case, []).append(source.root / path)
    _refuse_repeats(files, Glob(glob))
    return {k: v[0] for k, v in files.items()}


def _refuse_repeats(files: dict, glob: Glob) -> None:
    for case, paths in files.items():
        if len(paths) > 1:
            raise UserError(
                f"{glob.text!r} gives both {paths[0]} and {paths[1]} the name {case!r}. Remove one, or use a glob that tells them "
                "apart."
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


CONVERTER = Converter("generic", "Generic", __doc__, read, add_arguments, names_are_guessed=True)

if __name__ == "__main__":
    main(CONVERTER)
