"""Which classes are annotated where: the ``nnunet_partial`` key of dataset.json.

::

    "labels": {"background": 0, "liver": 1, "kidney": 2},
    "nnunet_partial": {"version": 1,
                       "cases": {"lits_0001": {"source": "lits", "annotated": ["liver"]},
                                 "acdc_0101": {"source": "acdc", "annotated": ["kidney"], "patient": "acdc_01"}}}

``patient`` is optional: cases of one patient belong into one fold. Version 2 also knows unions: where a label file does not
tell classes apart, ``annotated`` holds the list of their names, ``[["kidney_left", "kidney_right"], "spleen"]``, and the label
file has the value of the lowest of them. Version 1 is written as long as there are none. A dataset.json without this key is a
fully labelled nnU-Net dataset. Nothing here reads an image.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike, read_json

KEY = "nnunet_partial"
PROVENANCE_KEY = "nnunet_partial_provenance"  # of dataset.json: what wrote it, from which sources
UNIONS = "unions"  # said instead of a file of super-classes: those that the dataset's cases annotate
VERSION, VERSION_OF_UNIONS = 1, 2
FULLY_LABELLED_SOURCE = "all"
_SOURCE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*")


def check_source_name(name: str) -> str:
    """Sources become parts of case, plans and folder names: letters, digits, ``.``, ``-`` and single ``_`` only."""
    if not isinstance(name, str) or not _SOURCE_NAME.fullmatch(name) or name.endswith("_"):
        raise UserError(
            f"source name {name!r} is not usable: letters, digits, '.', '-' and single '_' between them "
            "are allowed, because nnU-Net separates the parts of its folder names with '__'."
        )
    return name


def check_file_name(name: Any, what: str) -> str:
    """``name``, if it can be a file's or folder's own name: printable, without ``/`` or ``\\``, no ``.`` or ``-`` in front.

    Names in files of others would otherwise lead outside the folder that is written, or be taken for options. Raises
    :class:`UserError`, which begins with ``what``.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name[0] in ".- " or "/" in name or "\\" in name:
        raise UserError(
            f"{what} {ascii(name)[:80]} is not usable as the name of a file: it must be printable, without / and \\, and not "
            "begin with a dot, a hyphen or a space. Rename it."
        )
    return name


def check_case_names(names: Iterable, file: str) -> None:
    """Raises :class:`UserError` for the first case whose name cannot be a file's."""
    for name in names:
        check_file_name(name, f"{file}: case")


def check_dataset_names(dataset_json: Any, file: str) -> None:
    """Raises :class:`UserError` for names in a dataset.json that cannot be shown, or would become paths: classes, channels,
    reader and the ending of files. The names of cases are checked where cases are read."""
    if not isinstance(dataset_json, Mapping):
        raise UserError(f"{file} is not a dataset.json, found {str(dataset_json)[:80]}. Convert the dataset again.")
    for key in ("labels", "channel_names"):
        names = dataset_json.get(key)
        shown = (names if key == "labels" else names.values()) if isinstance(names, Mapping) else ()
        wrong = next((i for i in shown if not isinstance(i, str) or not i or not i.isprintable()), None)
        if wrong is not None:
            raise UserError(f"{file}: {key} has the name {ascii(wrong)[:80]}, which cannot be shown. Rename it.")
    ending = dataset_json.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not re.fullmatch(r"(\.[A-Za-z0-9]+)+", ending):
        raise UserError(f"{file}: file_ending {ascii(ending)[:80]} must be a dot and letters, such as .nii.gz. Correct it.")
    reader = dataset_json.get("overwrite_image_reader_writer", "None")
    if not isinstance(reader, str) or not reader.isidentifier():
        raise UserError(f"{file}: overwrite_image_reader_writer {ascii(reader)[:80]} is no name of a class. Leave it out.")


def drawn(name: Any) -> str:
    """A name as text for matplotlib, which would take what stands between two ``$`` for mathematics."""
    return str(name).replace("$", r"\$")


class Union(str):
    """Classes that are not told apart, as one structure: in a label file, an output of a teacher, a row of an evaluation.

    ``members``: names of the classes, two at least, in the order of their values. As text it is their names joined by ``+``,
    or ``name`` where the structure has a name of its own.
    """

    members: tuple

    def __new__(cls, members: Iterable[str], name: str | None = None) -> "Union":
        members = tuple(members)
        made = super().__new__(cls, "+".join(members) if name is None else name)
        made.members = members
        return made

    def __reduce__(self) -> tuple:
        return Union, (self.members, str(self))


def members(item: str) -> tuple:
    """The classes of a structure: those of a :class:`Union`, else the class itself."""
    return item.members if isinstance(item, Union) else (item,)


def structure(name: str, classes: Sequence[str]) -> str | None:
    """The class, or the union of classes (``kidney_left+kidney_right``), that ``name`` means; None if it is neither."""
    if name in classes:
        return name
    parts = name.split("+")
    if len(parts) < 2 or len(set(parts)) < len(parts) or not set(parts) <= set(classes):
        return None
    return Union(sorted(parts, key=list(classes).index))


def settled(items: Iterable[str], classes: Sequence[str]) -> tuple:
    """Structures that are known together, in the order of their lowest values: a union gives way to all of its members, not to
    some of them. What is no class comes last; whoever compares the classes reports it."""
    items = set(items)
    unions = [i for i in items if isinstance(i, Union) and not set(i.members) <= items]
    hidden = {c for i in unions for c in i.members}
    kept = [*unions, *(i for i in items if not isinstance(i, Union) and i not in hidden)]
    order = {name: n for n, name in enumerate(classes)}
    return tuple(sorted(kept, key=lambda item: order.get(members(item)[0], len(order))))


def told_apart(items: Iterable[str]) -> set:
    """Classes that can be learned from these structures: named by themselves, or what a union has beside such classes.

    Of a union with several others its first stands for all of them, as nothing tells them apart.
    """
    items = dict.fromkeys(items)
    unions = [i.members for i in items if isinstance(i, Union)]
    known = {i for i in items if not isinstance(i, Union)}
    while rest := {i[0] for i in ([c for c in m if c not in known] for m in unions) if len(i) == 1}:
        known |= rest
    return known | {next(c for c in m if c not in known) for m in unions if not set(m) <= known}


def _item_to_json(item: str) -> Any:
    return list(item.members) if isinstance(item, Union) else item


def items_to_json(items: Iterable[str]) -> list:
    """Structures as ``annotated`` lists them: a name, or the list of a union's names."""
    return [_item_to_json(i) for i in items]


def items_from_json(items: Iterable[Any]) -> tuple:
    """Inverse of :func:`items_to_json`, for what was checked when it was written."""
    return tuple(Union(i) if isinstance(i, list) else i for i in items)


@dataclass(frozen=True)
class CaseAnnotation:
    """``source``: the original dataset of a case; ``annotated``: the structures that its label file distinguishes, names of
    classes and :class:`Union` of classes.

    ``patient``: whom the case shows, where the source says so; cases of one patient belong into one fold.
    """

    source: str
    annotated: tuple
    patient: str | None = None

    def to_json(self) -> dict:
        """The entry of the case under ``nnunet_partial.cases``."""
        entry = {"source": self.source, "annotated": items_to_json(self.annotated)}
        return entry if self.patient is None else {**entry, "patient": self.patient}


class Annotations:
    """The annotated sets of a dataset.

    ``classes``: names of the foreground classes in the order of their label values 1 .. K.
    ``cases``: case name -> :class:`CaseAnnotation`, or None for a dataset without the contract (every case has all
    classes).
    ``ignore_label``: value of nnU-Net's ignore label or None.
    """

    def __init__(
        self,
        classes: Sequence[str],
        cases: Mapping[str, CaseAnnotation] | None = None,
        ignore_label: int | None = None,
        file: str = "dataset.json",
    ):
        self.classes = tuple(classes)
        self._order = {name: value for value, name in enumerate(self.classes, 1)}
        self.cases = None if cases is None else dict(cases)
        self.ignore_label = ignore_label
        self.file = str(file)

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any], file: str = "dataset.json") -> "Annotations":
        """Read and check the contract. ``file`` is what errors name. Raises :class:`UserError`."""
        classes, ignore_label = foreground_classes(dataset_json, file)
        if KEY not in dataset_json:
            return cls(classes, None, ignore_label, file)
        contract = dataset_json[KEY]
        usable = isinstance(contract, dict) and contract.get("version") in (VERSION, VERSION_OF_UNIONS)
        if not usable or not isinstance(contract.get("cases"), dict):
            raise UserError(
                f"{file}: the key {KEY!r} must be {{'version': {VERSION} or {VERSION_OF_UNIONS}, 'cases': {{...}}}}, found "
                f"{str(contract)[:80]}. Write it with nnunet_partial merge."
            )
        check_case_names(contract["cases"], file)
        order = {name: i for i, name in enumerate(classes)}
        unions = contract["version"] == VERSION_OF_UNIONS
        cases = {name: _read_case(name, entry, order, file, unions) for name, entry in contract["cases"].items()}
        if "dataset" in dataset_json:
            _check_case_names(set(cases), set(dataset_json["dataset"]), file)
        return cls(classes, cases, ignore_label, file)

    @classmethod
    def read(cls, folder: PathLike) -> "Annotations":
        """The contract in ``folder``/dataset.json. Raises :class:`UserError`."""
        file = Path(folder) / "dataset.json"
        return cls.from_dataset_json(read_json(file), str(file))

    def to_json(self) -> dict:
        """The value of the ``nnunet_partial`` key."""
        version = VERSION_OF_UNIONS if self.unions else VERSION
        return {"version": version, "cases": {k: v.to_json() for k, v in (self.cases or {}).items()}}

    @property
    def unions(self) -> tuple:
        """The unions that cases annotate, each once, in the order of their lowest values."""
        found = {item for entry in (self.cases or {}).values() for item in entry.annotated if isinstance(item, Union)}
        return tuple(sorted(found, key=self.values_of))

    def values_of(self, item: str) -> tuple:
        """The label values of a structure: of a union those of its members, lowest first."""
        return tuple(self._order[i] for i in members(item))

    def outputs(self, items: Iterable[str]) -> tuple:
        """What structures are to a loss: the value of a class, the tuple of a union's values."""
        values = [self.values_of(i) for i in items]
        return tuple(i[0] if len(i) == 1 else i for i in values)

    @property
    def is_partial(self) -> bool:
        """Whether the dataset carries the contract (it may still annotate every class everywhere)."""
        return self.cases is not None

    @property
    def sources(self) -> tuple:
        """Names of the sources, sorted."""
        return tuple(sorted({i.source for i in self.cases.values()})) if self.cases is not None else (FULLY_LABELLED_SOURCE,)

    @property
    def annotated_sources(self) -> tuple:
        """Sources of which at least one case annotates something, sorted: the ones that can train a teacher."""
        return tuple(i for i in self.sources if self.classes_of_source(i))

    def of(self, case: str) -> CaseAnnotation:
        """The annotation of one case. Raises :class:`UserError` for a case that the contract does not know."""
        if self.cases is None:
            return CaseAnnotation(FULLY_LABELLED_SOURCE, self.classes)
        if case not in self.cases:
            raise UserError(
                f"{self.file}: case {case} is missing under '{KEY}.cases' ({len(self.cases)} cases are "
                "there). Add it with its source and annotated classes, or merge the dataset again."
            )
        return self.cases[case]

    def mask(self, case: str) -> tuple:
        """Which classes the label file of one case names by themselves: K + 1 bools, background first and always True.

        The members of a union are not among them.
        """
        annotated = {i for i in self.of(case).annotated if not isinstance(i, Union)}
        return (True, *(name in annotated for name in self.classes))

    def groups(self, case: str) -> tuple:
        """The partition of the classes that the label file of one case tells apart: K + 1 label values, background first.

        A class's group has the value that stands for it in the label file: its own, that of its union's lowest class, or 0
        where it is not annotated and background includes it.
        """
        lowest = {i: self._order[members(item)[0]] for item in self.of(case).annotated for i in members(item)}
        return (0, *(lowest.get(name, 0) for name in self.classes))

    def values(self, case: str) -> tuple:
        """Label values that the label file of this case may hold: background, its structures' values, the ignore label."""
        values = tuple(sorted(set(self.groups(case))))
        return values if self.ignore_label is None else (*values, self.ignore_label)

    def classes_of_source(self, source: str) -> tuple:
        """What a network that learns from ``source`` alone can tell apart, in the order of label values.

        Classes that at least one case of the source annotates; those that no case of it tells apart are one :class:`Union`.
        """
        if self.cases is None:
            return self.classes
        sets = {i.annotated for i in self.cases.values() if i.source == source}
        where: dict = {}  # class -> the structures that hold it: two classes of the same ones are never told apart
        for number, items in enumerate(sets):
            for item in items:
                for name in members(item):
                    where.setdefault(name, []).append((number, item))
        atoms: dict = {}
        for name in self.classes:
            if name in where:
                atoms.setdefault(tuple(where[name]), []).append(name)
        return tuple(i[0] if len(i) == 1 else Union(i) for i in atoms.values())

    def restricted_to_source(self, source: str) -> "Annotations":
        """The contract of the cases of one source with that source's structures alone (:meth:`classes_of_source`) as classes,
        numbered anew from 1."""
        if source not in self.annotated_sources:
            raise UserError(
                f"{self.file}: source {source!r} is not one that annotates anything. Sources with "
                f"annotations: {', '.join(self.annotated_sources)}."
            )
        atoms = self.classes_of_source(source)
        name_of = {name: str(atom) for atom in atoms for name in members(atom)}
        ignore_label = None if self.ignore_label is None else len(atoms) + 1
        cases = None
        if self.cases is not None:
            own = {k: v for k, v in self.cases.items() if v.source == source}
            cases = {k: replace(v, annotated=tuple(_renamed(i, name_of) for i in v.annotated)) for k, v in own.items()}
        return Annotations([str(i) for i in atoms], cases, ignore_label, self.file)

    def coarsened(self, structures: Sequence[str]) -> "Annotations":
        """The contract with ``structures``, which hold each class once, as classes, numbered anew from 1.

        A structure is annotated where all of its classes are, by themselves or in unions; where only some are, it is not known.
        Raises :class:`UserError` for a case with a union of classes of several structures.
        """
        name_of = {name: str(i) for i in structures for name in members(i)}
        ignore_label = None if self.ignore_label is None else len(structures) + 1
        cases = None
        if self.cases is not None:
            cases = {k: replace(v, annotated=self._coarse_items(k, structures, name_of)) for k, v in self.cases.items()}
        return Annotations([str(i) for i in structures], cases, ignore_label, self.file)

    def _coarse_items(self, case: str, structures: Sequence[str], name_of: Mapping[str, str]) -> tuple:
        annotated = self.of(case).annotated
        mixed = next((i for i in annotated if len({name_of[j] for j in members(i)}) > 1), None)
        if mixed is not None:
            raise UserError(
                f"{self.file}: case {case} annotates {mixed} as one, and its classes are of different super-classes. Put them in one."
            )
        known = {j for i in annotated for j in members(i)}
        return tuple(str(i) for i in structures if set(members(i)) <= known)

    def values_after(self, structures: Sequence[str]) -> dict:
        """Label value -> its value in the contract :meth:`coarsened` to ``structures``, the ignore label included."""
        found = {value: n for n, i in enumerate(structures, 1) for value in self.values_of(i)}
        return found if self.ignore_label is None else {**found, self.ignore_label: len(structures) + 1}

    def labels(self) -> dict:
        """The ``labels`` of a dataset.json with these classes."""
        labels = {"background": 0, **{name: i + 1 for i, name in enumerate(self.classes)}}
        return labels if self.ignore_label is None else {**labels, "ignore": self.ignore_label}


def _renamed(item: str, name_of: Mapping[str, str]) -> str:
    """``item`` in the classes that its classes have become."""
    names = list(dict.fromkeys(name_of[i] for i in members(item)))
    return names[0] if len(names) == 1 else Union(names)


def foreground_classes(dataset_json: Mapping[str, Any], file: str = "dataset.json") -> tuple:
    """``(names of the classes 1 .. K, value of the ignore label or None)``. Region-based labels are refused."""
    check_dataset_names(dataset_json, file)
    labels = dataset_json.get("labels")
    if not isinstance(labels, dict) or "background" not in labels:
        raise UserError(f"{file}: 'labels' must map 'background' to 0 and every class to its value, found {str(labels)[:80]}.")
    regions = [k for k, v in labels.items() if isinstance(v, (list, tuple))]
    if regions:
        raise UserError(
            f"{file}: label {regions[0]!r} is a region (a list of values). Partial labels need one value "
            "per class; declare each class by itself, or merge the dataset, which makes exclusive classes of its regions."
        )
    if not all(str(i).isdigit() for i in labels.values()) or int(labels["background"]) != 0:
        raise UserError(f"{file}: label values must be whole numbers, 'background' 0, found {dict(labels)}.")
    names = {int(v): k for k, v in labels.items()}
    if sorted(names) != list(range(len(labels))):
        raise UserError(f"{file}: label values must be 0, 1, 2, ... without gaps or repeats, found {dict(labels)}.")
    if "ignore" in labels and names[len(labels) - 1] != "ignore":
        raise UserError(f"{file}: the ignore label must have the highest value, {len(labels) - 1}, found {dict(labels)}.")
    ignore_label = int(labels["ignore"]) if "ignore" in labels else None
    return tuple(names[i] for i in range(1, len(names)) if i != ignore_label), ignore_label


def _read_case(name: str, entry: Any, order: Mapping[str, int], file: str, unions: bool) -> CaseAnnotation:
    """One entry of the contract, in time proportional to what it annotates; ``order``: class -> its place."""
    usable = isinstance(entry, dict) and set(entry) - {"patient"} == {"source", "annotated"}
    if not usable or not isinstance(entry["annotated"], list):
        raise UserError(f"{file}: case {name} must be {{'source': ..., 'annotated': [...]}}, found {str(entry)[:80]}.")
    patient = entry.get("patient")
    if "patient" in entry and (not isinstance(patient, str) or not patient):
        raise UserError(f"{file}: 'patient' of case {name} must be a name, found {patient!r}. Leave the key out if unknown.")
    check_source_name(entry["source"])
    items = [_read_item(item, order, f"{file}: case {name}", unions) for item in entry["annotated"]]
    named = [i for item in items for i in members(item)]
    if len(set(named)) < len(named):
        twice = next(i for i in named if named.count(i) > 1)
        raise UserError(f"{file}: case {name} annotates {twice!r} twice, by itself or in a union. Name every class once.")
    return CaseAnnotation(entry["source"], tuple(sorted(items, key=lambda item: order[members(item)[0]])), patient)


def _read_item(item: Any, order: Mapping[str, int], where: str, unions: bool) -> str:
    """A name, or a list of names, of ``annotated``; ``unions``: whether the contract's version knows them."""
    names = item if isinstance(item, list) else [item]
    unknown = [i for i in names if not isinstance(i, str) or i not in order]
    if unknown:
        raise UserError(
            f"{where} annotates the unknown class {unknown[0]!r}. {did_you_mean(unknown[0], order)}Classes of this dataset: {', '.join(order)}."
        )
    if not isinstance(item, list):
        return item
    if len(item) < 2:
        raise UserError(f"{where} annotates the union {item}, which needs two classes at least. Write the class by itself.")
    if not unions:
        raise UserError(f"{where} annotates the union {item}, which needs 'version': {VERSION_OF_UNIONS} of {KEY!r}. Write that.")
    made = Union(sorted(item, key=order.__getitem__))
    if made in order:
        raise UserError(f"{where} annotates the union {item}, and {made!r} is also the name of a class. Rename that class.")
    return made


def _check_case_names(in_contract: set, in_dataset: Iterable[str], file: str) -> None:
    for missing, where, present in (
        (set(in_dataset) - in_contract, f"{KEY}.cases", "dataset"),
        (in_contract - set(in_dataset), "dataset", f"{KEY}.cases"),
    ):
        if missing:
            raise UserError(
                f"{file}: case {sorted(missing)[0]} is listed under '{present}' but missing under "
                f"'{where}'. Merge the dataset again."
            )


def check_super_classes(super_classes: Mapping[str, Sequence[str]], classes: Sequence[str]) -> dict:
    """``super_classes`` (name -> names of classes) as given. Raises :class:`UserError` for unknown or repeated classes."""
    seen = set()
    for name, members in super_classes.items():
        if not isinstance(members, (list, tuple)) or not members:
            raise UserError(f"super-class {name!r} must name a list of classes, found {members!r}.")
        for member in members:
            if member not in classes:
                raise UserError(
                    f"super-class {name!r} holds {member!r}, which is no class of this dataset: {', '.join(classes)}."
                )
            if member in seen:
                raise UserError(f"class {member!r} is in two super-classes. Keep it in one.")
            seen.add(member)
    return dict(super_classes)


def read_super_classes(given: PathLike, annotations: Annotations) -> dict:
    """Super-class -> classes, as a JSON file says, or for the word ``unions`` those that the dataset's cases annotate as one.

    Raises :class:`UserError` for a dataset without unions, and for unions that share a class, which no partition has.
    """
    if str(given) != UNIONS:
        return check_super_classes(read_json(given), annotations.classes)
    if not annotations.unions:
        raise UserError(
            f"--super-classes {UNIONS}: no case of the dataset annotates a union of classes. Name a JSON file, super-class to list "
            "of classes."
        )
    return check_super_classes({str(i): list(members(i)) for i in annotations.unions}, annotations.classes)


def super_structures(super_classes: Mapping[str, Sequence[str]], classes: Sequence[str]) -> tuple:
    """What is told apart at the level of super-classes, in the order of lowest values: each with several classes as their
    :class:`Union`, and every class that is in none."""
    order = list(classes).index
    unions = [Union(sorted(i, key=order)) if len(i) > 1 else i[0] for i in super_classes.values()]
    held = {j for i in super_classes.values() for j in i}
    return settled([*unions, *(i for i in classes if i not in held)], classes)
