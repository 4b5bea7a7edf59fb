"""``nnunet_partial merge``."""

import argparse
import sys
from pathlib import Path

from nnunet_partial.commands import repeated
from nnunet_partial.errors import UserError, did_you_mean

DESCRIPTION = """Merge nnU-Net raw datasets that annotate different organs into one partially labelled raw dataset.

--source NAME=ID:class,class  takes dataset ID as the source NAME; the classes are those of the merged label map that
                              it annotates, by the dataset's own label names or by the names that --map gives them.
                              Without classes every label is kept. A source that lists every class is fully labelled.
--map NAME:label,label=class  renames labels of a source, many to one allowed: tumour into kidney, left and right
                              into kidney. A union a+b stands for classes that this source does not tell apart:
                              --map kits:kidney=kidney_left+kidney_right where another source has the sides.
                              The class 'background' drops a label: it is not annotated in this source.
                              The class 'ignore' takes its voxels out of training (nnU-Net's ignore label). The label
                              '*' stands for all that are neither listed nor mapped. Every label must be accounted for.
--unlabelled [NAME=]ID        takes the images of dataset ID without labels; NAME is unlabelledID by default.

nnU-Net's regions become exclusive classes (whole_without_core, core_without_enhancing, enhancing); a label of another source
that is called as one of the regions is then the union of its parts.

Sources that cut a structure differently (kidney beside left_kidney, liver beside liver and tumor) are refused with the
options that settle it. Cases of one patient stay in one fold; patients are known from a source's dataset.json, from
names as ACDC, BraTS and BIDS give them (patient001_frame01), from images that are the same, and from --patients.

Images are not copied: dataset.json refers to them where they lie, relative to nnUNet_raw where possible. Labels are
written anew, with the axes of their image. A dataset made by merge can be a source again; its sources are then called
NAME-SOURCE."""
EXAMPLE = """nnunet_partial merge --dataset-id 501 --name AbdomenPartial \\
           --source lits=101:liver --map lits:tumor=liver --source kits=102:kidney --map "kits:*=kidney" \\
           --source nih=103:pancreas --unlabelled 110"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset-id", type=int, required=True, metavar="ID", help="id of the merged dataset, not yet taken")
    parser.add_argument("--name", required=True, help="name of the merged dataset: DatasetID_NAME")
    repeated.add_argument(parser, "--source", "NAME=ID[:CLASS,...]", "a labelled dataset")
    repeated.add_argument(parser, "--map", "NAME:LABEL,...=CLASS", "rename labels of a source")
    repeated.add_argument(parser, "--unlabelled", "[NAME=]ID", "a dataset without labels")
    repeated.add_argument(parser, "--cases", "NAME=FILE", "take only the cases of a source that the text file lists, one a line")
    repeated.add_argument(
        parser,
        "--exclude",
        "CASE,...",
        "leave cases out, by their names in their dataset or as SOURCE_CASE; what nnunet_partial check advises",
    )
    parser.add_argument("--classes", metavar="CLASS,...", help="all classes in the order of their values (default: as mentioned)")
    parser.add_argument(
        "--taught",
        metavar="CLASS,...",
        help="classes that no source annotates, because a model knows them: train on what it says (pseudo-label --from MODEL)",
    )
    parser.add_argument(
        "--allow-absent", action="store_true", help="accept a source that annotates a class which none of its label files holds"
    )
    parser.add_argument(
        "--allow-parts",
        action="store_true",
        help="accept classes that are parts of each other by their names, because they do not overlap here",
    )
    parser.add_argument(
        "--patients", metavar="FILE", help="CSV with the columns case (SOURCE_CASE) and patient, for cases of one patient"
    )
    parser.add_argument(
        "--replace-not-finite",
        type=float,
        metavar="VALUE",
        help="copy images that hold NaN or infinite voxels, which are an error otherwise, with VALUE in their place",
    )
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="do not read the images' voxels: faster, but truncated and duplicate images and NaN go unnoticed",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="number of processes (default: all cores)")


def run(arguments: argparse.Namespace) -> None:
    from nnunet_partial import api
    from nnunet_partial.data.merge.patients import read_patients

    classes = None if arguments.classes is None else _names(arguments.classes, f"--classes {arguments.classes}")
    sources = _without(_source_specs(arguments), [j for i in arguments.exclude for j in i.split(",") if j])
    print(f"merging {len(sources)} dataset{'s' * (len(sources) > 1)}: headers first, then labels", flush=True)
    result = api.merge(
        arguments.dataset_id,
        arguments.name,
        sources,
        classes,
        arguments.headers_only,
        arguments.allow_absent,
        arguments.processes,
        allow_parts=arguments.allow_parts,
        patients=None if arguments.patients is None else read_patients(arguments.patients),
        replace_not_finite=arguments.replace_not_finite,
        taught=() if arguments.taught is None else _names(arguments.taught, f"--taught {arguments.taught}"),
    )
    for warning in result.warnings:
        print(f"nnunet_partial: warning: {warning}", file=sys.stderr)
    print(_summary(result))
    print(f"next: nnUNetv2_plan_and_preprocess -d {arguments.dataset_id} --verify_dataset_integrity")


def _source_specs(arguments: argparse.Namespace) -> list:
    from nnunet_partial.api import SourceSpec

    given = [_parse_source(i) for i in arguments.source] + [_parse_unlabelled(i) for i in arguments.unlabelled]
    names = [i["name"] for i in given]
    mappings: dict = {}
    for text in arguments.map:
        source, labels, target = parse_map(text)
        _check_known(source, names, f"--map {text}")
        for label in labels:
            if mappings.setdefault(source, {}).setdefault(label, target) != target:
                raise UserError(f"--map {text}: {source}:{label} is mapped to {mappings[source][label]!r} already. Map it once.")
    chosen = dict(_parse_cases(i, names) for i in arguments.cases)
    return [SourceSpec(**i, mapping=mappings.get(i["name"], {}), cases=chosen.get(i["name"])) for i in given]


def _without(sources: list, excluded: list) -> list:
    """The sources without the cases that ``--exclude`` names, as they are called in their dataset or after the merge."""
    from dataclasses import replace

    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.paths import raw_dataset

    if not excluded:
        return sources
    cases = {i.name: list(i.cases or read_raw_dataset(raw_dataset(i.dataset), labelled=i.labelled).cases) for i in sources}
    owners: dict = {}
    for source, names in cases.items():
        for name in names:
            owners.setdefault(f"{source}_{name}", []).append((source, name))
            owners.setdefault(name, []).append((source, name))
    for name in excluded:
        found = list(dict.fromkeys(owners.get(name, [])))
        if not found:
            raise UserError(f"--exclude {name}: no source has such a case. {did_you_mean(name, owners)}".strip())
        if len(found) > 1:
            raise UserError(
                f"--exclude {name}: {' and '.join(i for i, _ in found)} have a case of that name. Write SOURCE_{name}."
            )
        source, case = found[0]
        cases[source] = [i for i in cases[source] if i != case]
    return [replace(i, cases=tuple(cases[i.name])) for i in sources]


def _parse_source(text: str) -> dict:
    name, equals, rest = text.partition("=")
    dataset, colon, classes = rest.partition(":")
    if not equals or not name or not dataset:
        raise UserError(f"--source {text}: write it as NAME=ID:CLASS,CLASS, for example --source lits=101:liver")
    return {"name": name, "dataset": dataset, "classes": _names(classes, f"--source {text}") if colon else None}


def _parse_unlabelled(text: str) -> dict:
    name, equals, dataset = text.partition("=")
    if equals and not (name and dataset):
        raise UserError(f"--unlabelled {text}: write it as ID or NAME=ID, for example --unlabelled flare=110")
    return {"name": name if equals else f"unlabelled{text}", "dataset": dataset if equals else text, "labelled": False}


def parse_map(text: str) -> tuple:
    """``NAME:LABEL,LABEL=CLASS`` -> (NAME, labels, CLASS). Raises :class:`UserError` for anything else."""
    source, colon, rest = text.partition(":")
    labels, equals, target = rest.rpartition("=")
    if not (colon and equals and source and labels and target):
        raise UserError(f"--map {text}: write it as SOURCE:LABEL=CLASS, for example --map lits:tumor=liver")
    return source, _names(labels, f"--map {text}"), target


def _parse_cases(text: str, names: list) -> tuple:
    source, equals, file = text.partition("=")
    if not equals or not file:
        raise UserError(f"--cases {text}: write it as SOURCE=FILE, for example --cases lits=train_cases.txt")
    _check_known(source, names, f"--cases {text}")
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cases {text}: {file} cannot be read ({error}). It must be a text file, one case a line.") from None
    return source, tuple(i.strip() for i in lines if i.strip())


def _names(text: str, where: str) -> tuple:
    names = tuple(i.strip() for i in text.split(","))
    if not all(names):
        raise UserError(f"{where}: a name is missing between commas or after the colon.")
    return names


def _check_known(source: str, names: list, where: str) -> None:
    if source not in names:
        raise UserError(
            f"{where}: there is no source {source!r}. {did_you_mean(source, names)}Sources: {', '.join(names) or 'none'}."
        )


def _summary(result) -> str:
    annotations = result.annotations
    lines = [
        f"{len(annotations.cases)} cases -> {result.folder}",
        "labels: " + ", ".join(f"{value} {name}" for name, value in annotations.labels().items()),
    ]
    for source in annotations.sources:
        count = sum(i.source == source for i in annotations.cases.values())
        lines.append(f"  {source}: {count} cases, annotated: {', '.join(annotations.classes_of_source(source)) or 'nothing'}")
    patients = [i.patient for i in annotations.cases.values() if i.patient is not None]
    if patients:
        lines.append(f"patients: {len(set(patients))} known, of {len(patients)} cases")
    return "\n".join(lines)
