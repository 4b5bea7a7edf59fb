"""The tables of the papers, each by one command: downloads in, the paper's rows out, beside the published figures.

    python benchmarks/tables.py list
    python benchmarks/tables.py huang2020-table1 --data /data --out tables/huang2020-table1
    python benchmarks/tables.py huang2020-table1 --data /data --out tables/huang2020-table1 --dry-run   # prints the commands

A table is a file in benchmarks/tables: the downloads it needs, its commands in order, its rows, the published figures, and what
differs from the paper. The commands are ordinary ones of nnU-Net and this package. Those that ended well are not run again, so the
same command goes on after an interruption. nnU-Net's folders are those of the environment. Downloads are looked for below --data
under the names that ``list`` shows; --download NAME=DIR says where one lies. Datasets get the numbers from --first-id on.

    python benchmarks/tables.py testset 901 --share 0.2 --out DIR    # what tables use to hold out cases; see its --help
    python benchmarks/tables.py show huang2020-table1 --out DIR      # the table of a run again
"""

import argparse
import math
import os
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial import paths
from nnunet_partial.data.images import read_image, write_image
from nnunet_partial.data.raw import RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import read_json, write_json, write_text
from nnunet_partial.orchestration.foreground import run as run_command

FOLDER = Path(__file__).parent / "tables"
SELF = f"python {shlex.quote(str(Path(__file__).absolute()))}"
DONE = "done.json"
# what cannot be had as a command, and why
LEFT_OUT = {
    "choi2022-table5 and 6": "figures of the challenge's own machine and private test set",
    "huo2021-table6": "Mapillary Vistas, which no converter reads; its super-classes are an option of ATSO (docs/atso.md)",
}


@dataclass(frozen=True)
class Table:
    """A table as its file describes it.

    ``downloads``  name -> folder below --data
    ``steps``      commands with ``{name}`` for a download, ``{1}`` .. ``{9}`` for ids of datasets, ``{out}``, ``{results}`` (of
                   nnU-Net), ``{tables}`` (this script), ``{device}`` and ``{set}`` (options that are given to all trainings). A mapping
                   ``{"each_row": command}`` is run for each row, with the row's values as further names
    ``rows``       row of the table -> where its figures are (``metrics``, a folder of ``nnunet_partial evaluate``), and its values
    ``published``  metric -> row -> class -> figure; without a row: what is measured
    """

    name: str
    paper: str
    what: str
    downloads: Mapping[str, str]
    steps: Sequence[Any]
    rows: Mapping[str, Mapping[str, Any]]
    published: Mapping[str, Mapping[str, Mapping[str, float]]]
    differs: Sequence[str]

    @classmethod
    def read(cls, name: str) -> "Table":
        if name not in names():
            raise UserError(f"there is no table {name!r}. Tables: {', '.join(names())}.")
        return cls(name, **read_json(FOLDER / f"{name}.json"))

    def commands(self, places: Mapping[str, Any]) -> list:
        """Every command once, in order. ``places``: what the names in braces stand for."""
        steps = [
            (text, values)
            for step in self.steps
            for text, values in ([(step, {})] if isinstance(step, str) else [(step["each_row"], i) for i in self.rows.values()])
        ]
        return list(dict.fromkeys(shlex.join(shlex.split(fill(text, {**places, **values}))) for text, values in steps))


def fill(text: str, places: Mapping[str, Any]) -> str:
    """``text`` with every ``{name}`` replaced, also those within what is put in; paths with blanks are quoted."""

    def value(match: re.Match) -> str:
        if match[1] not in places:
            raise UserError(f"{{{match[1]}}} stands in a command of this table, and nothing says what it is.")
        found = places[match[1]]
        return shlex.quote(str(found)) if isinstance(found, Path) else fill(str(found), places)

    return re.sub(r"\{(\w+)\}", value, text)


def names() -> list:
    """Names of the tables that there are."""
    return sorted(i.stem for i in FOLDER.glob("*.json"))


def places(table: Table, arguments: argparse.Namespace) -> dict:
    """What the names in braces stand for."""
    if not 100 <= arguments.first_id <= 990:
        raise UserError(f"--first-id {arguments.first_id}: give a number from 100 to 990.")
    return {
        **downloads(table, arguments),
        "out": Path(arguments.out).absolute(),
        "results": paths.root("nnUNet_results").absolute(),
        **{str(i): arguments.first_id + i - 1 for i in range(1, 10)},
        "tables": SELF,
        "device": f"--device {arguments.device}" if arguments.device else "",
        "set": " ".join(f"--set {shlex.quote(i)}" for i in arguments.set),
    }


def downloads(table: Table, arguments: argparse.Namespace) -> dict:
    """name -> folder of every download."""
    given = dict(i.partition("=")[::2] for i in arguments.download)
    unknown = [i for i in given if i not in table.downloads]
    if unknown:
        raise UserError(f"--download {unknown[0]}: {table.name} needs {', '.join(table.downloads)}.")
    return {k: Path(given.get(k) or Path(arguments.data) / v).absolute() for k, v in table.downloads.items()}


# ------------------------------------------------------------------ running


def run_table(arguments: argparse.Namespace) -> None:
    table = Table.read(arguments.table)
    commands, out = table.commands(places(table, arguments)), Path(arguments.out)
    if arguments.dry_run:
        print("\n".join(commands))
        return
    missing = [f"{k} ({v})" for k, v in downloads(table, arguments).items() if not v.is_dir()]
    if missing:
        raise UserError(f"{table.name} needs the download {missing[0]}. Unpack it there, or name its folder with --download.")
    done = read_json(out / DONE) if (out / DONE).is_file() else []
    for number, command in enumerate(commands, 1):
        if command not in done:
            run_command(shlex.split(command), out / "logs" / f"{number:02d}.log")
            done.append(command)
            write_json(done, out / DONE)
    show(table, arguments)


def show(table: Table, arguments: argparse.Namespace) -> None:
    """Print the table and write it to ``--out/table.md``."""
    text = page(table, places(table, arguments))
    write_text(text, Path(arguments.out) / "table.md")
    print(text)


def page(table: Table, found: Mapping[str, Any]) -> str:
    """The table in Markdown: measured, with the published figure in brackets."""
    measured = {row: _measured(shlex.split(fill(v["metrics"], {**found, **v}))[0]) for row, v in table.rows.items()}
    parts = [f"# {table.name}: {table.what}\n\n{table.paper}\n"]
    for metric, published in table.published.items():
        printed = published or {row: values.get(metric, {}) for row, values in measured.items()}
        columns = list(dict.fromkeys(c for values in printed.values() for c in values))
        lines = [f"| {metric} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in table.rows:
            cells = [_cell(measured[row].get(metric, {}).get(c), published.get(row, {}).get(c), metric) for c in columns]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return (
        "\n".join(
            [*parts, "Measured, and in brackets published. What differs from the paper:\n", *(f"- {i}" for i in table.differs)]
        )
        + "\n"
    )


def _cell(value: float | None, published: float | None, metric: str) -> str:
    factor = 1 if metric.endswith("_mm") else 100
    own = "-" if value is None or not math.isfinite(value) else f"{value * factor:.2f}"
    return own if published is None else f"{own} ({published:.2f})"


def _measured(folder: str) -> dict:
    """metric -> class (and ``mean``) -> value; ``global ...`` of all cases as one. Empty where nothing has been evaluated."""
    file = Path(folder) / "metrics.json"
    if not file.is_file():
        return {}
    summary = read_json(file)["summary"]
    result: dict = {}
    for metric, mean in summary["mean_over_classes"].items():
        result[metric] = {"mean": mean["mean"], **{k: v[metric]["mean"] for k, v in summary["classes"].items()}}
    for metric, values in summary.get("global", {}).items():
        result[f"global {metric}"] = {"mean": values["mean"], **values["classes"]}
    return result


# ------------------------------------------------------------------ holding out cases


def write_test_set(arguments: argparse.Namespace) -> None:
    """``imagesTs`` and ``labelsTs`` of the cases that are held out, and ``train.txt`` with the names of all others."""
    raw, out, chance = read_raw_dataset(paths.raw_dataset(arguments.dataset)), Path(arguments.out), random.Random(arguments.seed)
    annotations = raw.annotations()
    labelled = [i for i in raw.cases if annotations is None or annotations.of(i).annotated]
    chance.shuffle(labelled)
    test = _held_out(labelled, arguments)
    train = [i for i in raw.cases if i not in set(test)]
    if not test or (not train and arguments.share is not None):
        raise UserError(
            f"{raw.folder}: {len(test)} of {len(raw.cases)} cases would be held out. Choose another --share or --like."
        )
    ending = arguments.ending or raw.file_ending
    for case in (raw.cases[i] for i in test):
        for channel, image in enumerate(case.images):
            _put(image, out / "imagesTs" / f"{case.name}_{channel:04d}{ending}")
        _put(str(case.label), out / "labelsTs" / f"{case.name}{ending}")
    content = {k: raw.content[k] for k in ("channel_names", "labels") if k in raw.content}
    write_json({**content, "file_ending": ending}, out / "dataset.json")
    _write_names(train, out / "train.txt")
    if arguments.label is not None:
        _divide(raw, [i for i in labelled if i in set(train)], train, arguments)
    print(f"held out {len(test)} of {len(raw.cases)} cases in {out}")


def _held_out(labelled: Sequence[str], arguments: argparse.Namespace) -> list:
    if arguments.like is not None:
        return sorted(i for i in labelled if re.search(arguments.like, i))
    return sorted(labelled[: round(arguments.share * len(labelled))])


def _divide(raw: RawDataset, candidates: Sequence[str], train: Sequence[str], arguments: argparse.Namespace) -> None:
    """``labelled.txt`` with ``--label`` of the training cases, ``unlabelled.txt`` with the others, and ``reference``: labels of
    these, called as in a merged dataset whose source without labels is ``--reference-source``."""
    out = Path(arguments.out)
    if not 0 < arguments.label < len(candidates):
        raise UserError(f"--label {arguments.label}: there are {len(candidates)} labelled training cases; leave some without.")
    chosen = sorted(candidates[: arguments.label])
    others = [i for i in train if i not in set(chosen)]
    _write_names(chosen, out / "labelled.txt")
    _write_names(others, out / "unlabelled.txt")
    for case in (raw.cases[i] for i in others if i in set(candidates)):
        _put(str(case.label), out / "reference" / f"{arguments.reference_source}_{case.name}{raw.file_ending}")


def _put(source: str, target: Path) -> None:
    """A link to a file, or a copy where a link would not do: another format, or a header that names its voxels' file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if (
        source.endswith("".join(target.suffixes[-2:]))
        and not source.endswith((".nrrd", ".nhdr", ".mhd"))
        or source.endswith(".png")
    ):
        target.symlink_to(os.path.abspath(source))
    else:
        write_image(read_image(source), target)


def _write_names(cases: Sequence[str], file: Path) -> None:
    write_text("".join(f"{i}\n" for i in cases), file)


# ------------------------------------------------------------------ the command line


def parser() -> argparse.ArgumentParser:
    """All arguments."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="table", metavar="TABLE|list|show|testset", required=True)
    verbs.add_parser("list", help="the tables, and the downloads that each needs")
    for name in names():
        _add_run(verbs.add_parser(name, help=read_json(FOLDER / f"{name}.json")["what"]))
    shown = verbs.add_parser("show", help="the table of a run")
    shown.add_argument("shown", choices=names())
    _add_run(shown)
    _add_test_set(verbs.add_parser("testset", help="hold out cases of a raw dataset"))
    return made


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default=".", metavar="DIR", help="folder of the downloads (default: this one)")
    parser.add_argument("--download", action="append", default=[], metavar="NAME=DIR", help="where one download lies")
    parser.add_argument("--out", required=True, metavar="DIR", help="test sets, predictions, figures and logs")
    parser.add_argument("--first-id", type=int, default=901, help="number of the first dataset (default: 901)")
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="default: cuda where there is one")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="setting of every training beside the paper's, to try it out",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")


def _add_test_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="id or name of the raw dataset")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--share", type=float, help="share of the labelled cases, drawn at random")
    which.add_argument("--like", metavar="REGEX", help="the labelled cases whose name this matches")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--label", type=int, metavar="N", help="also draw N training cases that keep their labels")
    parser.add_argument("--reference-source", default="rest", help="source that the others become (default: rest)")
    parser.add_argument("--ending", help="of the files written, for a model of another format (default: the dataset's)")
    parser.add_argument("--out", required=True, metavar="DIR")


def listing() -> str:
    """What ``list`` prints."""
    lines = []
    for table in map(Table.read, names()):
        lines.append(f"{table.name}: {table.what}")
        lines += [f"    --download {name}=DIR (default: {folder})" for name, folder in table.downloads.items()]
    return "\n".join([*lines, *(f"not here, {name}: {why}" for name, why in LEFT_OUT.items())])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    with exit_on_user_error():
        if arguments.table == "list":
            print(listing())
        elif arguments.table == "testset":
            write_test_set(arguments)
        elif arguments.table == "show":
            show(Table.read(arguments.shown), arguments)
        else:
            run_table(arguments)


if __name__ == "__main__":
    main()
