"""The sources of a merged dataset: which of their labels become which class, and what each case then annotates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnunet_partial import paths
from nnunet_partial.data.merge.regions import exclusive_labels, regions_as_unions
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.labels import Union, check_source_name, members

BACKGROUND, IGNORE = "background", "ignore"
ALL_OTHERS = "*"


@dataclass(frozen=True)
class SourceSpec:
    """What to take from one raw dataset.

    ``name``: becomes the source of its cases and the beginning of their names.
    ``dataset``: id or name of the raw dataset.
    ``classes``: classes of the merged label map that this source annotates; None: every label, under its own or
    mapped name.
    ``classes`` and the targets of ``mapping`` may be unions, ``kidney_left+kidney_right``: one label of the source stands for
    several classes that it does not tell apart.
    ``mapping``: label of the source -> class, ``background`` (not annotated here) or ``ignore`` (nnU-Net's ignore
    label); the label ``*`` stands for all that are neither mapped nor listed under ``classes``.
    ``labelled``: False for images alone; label files that may be there are not read.
    ``cases``: take these cases only, by their names in the source; None: all.
    """

    name: str
    dataset: int | str
    classes: Sequence[str] | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = True
    cases: Sequence[str] | None = None


@dataclass(frozen=True)
class MergedCase:
    """A case of the merged dataset. ``annotated``: classes and unions; ``targets``: every value its label file may hold ->
    one of these, background or ignore."""

    name: str
    source: str
    annotated: frozenset
    targets: Mapping[int, str]
    raw: RawCase


class Source:
    """A source whose every label is accounted for: it becomes a class, background or ignore."""

    def __init__(self, spec: SourceSpec, regions: Mapping[str, Union] | None = None, raw: RawDataset | None = None):
        """``regions``: names that stand for unions of classes, because other sources have them as regions. ``raw``: what the
        dataset will be, where it is not written yet."""
        check_source_name(spec.name)
        if not spec.labelled and (spec.mapping or spec.classes):
            raise UserError(
                f"source {spec.name} is given as --unlabelled, so it has no labels to map or list. Give it "
                f"as --source {spec.name}={spec.dataset}, or leave its --map out."
            )
        self.spec = spec = _with_unions_listed(spec)
        self._regions = dict(regions or {})
        if raw is None:
            raw = read_raw_dataset(paths.raw_dataset(spec.dataset), labelled=spec.labelled)
        self.raw = _with_exclusive_labels(raw, spec)
        self._unions = regions_as_unions(raw.labels) if spec.labelled and self.raw is not raw else {}
        if not self.raw.cases:
            raise UserError(f"source {spec.name}: {self.raw.folder} has no training case. Fill it, or leave that source out.")
        self.annotations = self.raw.annotations() if spec.labelled else None
        self.targets = self._structures(label_targets(spec, self.raw)) if spec.labelled else {}
        self._several = self.annotations is not None and len(self.annotations.sources) > 1
        self._became: dict = {}
        self.cases = [self._merged_case(case) for case in self._chosen_cases()]
        self._check_every_class_is_annotated()

    @property
    def classes(self) -> tuple:
        """Classes and unions that this source annotates: in the order listed, else in the order of its label values."""
        if self.spec.classes is not None:
            return tuple(self._structure(i) for i in self.spec.classes)
        ordered = sorted(self.targets, key=lambda label: self.raw.labels[label])
        return tuple(dict.fromkeys(self.targets[i] for i in ordered if self.targets[i] not in (BACKGROUND, IGNORE)))

    @property
    def has_ignore_label(self) -> bool:
        return IGNORE in self.targets.values()

    def split_classes(self) -> dict:
        """Class -> number of cases that annotate some but not all of its labels; they count as not annotating it."""
        counts: dict = {}
        annotations = self.annotations
        if annotations is None:
            return counts
        for case in self.cases:
            known = {i for item in annotations.of(case.raw.name).annotated for i in members(item)}
            for name in self.classes:
                if known & self._parts(name) and not _covers(case, name):
                    counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def regions(self) -> dict:
        """Name of each region that this source's classes are parts of -> its :class:`Union`."""
        found = {}
        for name, union in self._unions.items():
            targets = [self.targets[i] for i in union.members]
            parts = list(dict.fromkeys(c for i in targets for c in members(i)))
            if len(parts) > 1 and not {BACKGROUND, IGNORE} & set(parts):
                found[name] = Union(parts)
        return {name: union for name, union in found.items() if name not in self.classes}

    def _parts(self, name: str) -> set:
        """Labels that become something of this structure."""
        wanted = set(members(name))
        return {label for label, target in self.targets.items() if wanted & set(members(target))}

    def _structures(self, targets: Mapping[str, str]) -> dict:
        """``targets`` with unions where the user or a region of another source means them."""
        given = {*self.spec.mapping.values(), *(self.spec.classes or ())}
        made = {k: self._structure(v) if v in given or v in self._regions else v for k, v in targets.items()}
        distinct = [i for i in dict.fromkeys(made.values()) if i not in (BACKGROUND, IGNORE)]
        for number, first in enumerate(distinct):
            for second in distinct[:number]:
                shared = [i for i in members(first) if i in members(second)]
                if shared:
                    raise UserError(
                        f"source {self.spec.name}: its labels become {str(second)!r} and {str(first)!r}, which share "
                        f"{shared[0]!r}, so that it would be taught twice. Map one of them to what is left of it, to background "
                        "or to ignore."
                    )
        return made

    def _structure(self, name: str) -> str:
        """The class or union of ``name``: ``a+b``, or the name of a region."""
        if "+" not in name and name not in self._regions:
            return name
        parts = [c for i in name.split("+") for c in members(self._regions.get(i, i))]
        if len(set(parts)) < len(parts) or not all(parts) or {BACKGROUND, IGNORE} & set(parts):
            raise UserError(
                f"source {self.spec.name}: {name!r} is no union of classes: write different names of classes between the '+', "
                "such as kidney_left+kidney_right."
            )
        return Union(parts)

    def _chosen_cases(self) -> list:
        if self.spec.cases is None:
            return list(self.raw.cases.values())
        unknown = [i for i in self.spec.cases if i not in self.raw.cases]
        if unknown or not self.spec.cases:
            raise UserError(
                f"source {self.spec.name}: {self.raw.folder} has no case "
                f"{unknown[0] if unknown else 'chosen'!r}. Its cases: {some(self.raw.cases)}."
            )
        return [self.raw.cases[i] for i in dict.fromkeys(self.spec.cases)]

    def _merged_case(self, case: RawCase) -> MergedCase:
        name, source = f"{self.spec.name}_{case.name}", self.spec.name
        if not self.spec.labelled:
            return MergedCase(name, source, frozenset(), {}, case)
        own = tuple(self.targets)
        if self.annotations is not None:
            entry = self.annotations.of(case.name)
            own = (*entry.annotated, IGNORE)
            if self._several:  # a dataset that was merged before keeps its sources apart
                source = f"{source}-{entry.source}"
        if own not in self._became:  # cases by the thousand annotate the same
            self._became[own] = self._merged(own)
        annotated, targets = self._became[own]
        return MergedCase(name, source, annotated, targets, case)

    def _merged(self, own: Sequence[str]) -> tuple:
        """``(annotated, targets)`` of a merged case whose label file distinguishes the labels and unions ``own``."""
        items = [i for i in map(members, own) if set(i) <= set(self.targets)]
        targets = self._targets_of(items)
        known = {label for labels in items for label in labels}
        # a structure made of several labels is annotated where all of them are
        whole = {i for i in dict.fromkeys(targets.values()) if i not in (BACKGROUND, IGNORE) and self._parts(i) <= known}
        values = value_targets(targets, self.raw)
        return frozenset(whole), {value: i if i in whole or i == IGNORE else BACKGROUND for value, i in values.items()}

    def _targets_of(self, items: Sequence[tuple]) -> dict:
        """The label whose values stand for each item (labels that are not told apart) -> what becomes of it.

        Where an item becomes several classes, they are a union, with whatever else becomes one of them.
        """
        joined: list = []  # lists of classes, no class in two of them
        targets = {}
        for labels in items:
            found = list(dict.fromkeys(c for i in labels for c in members(self.targets[i])))
            if {BACKGROUND, IGNORE} & set(found):  # a union that is dropped in part cannot be divided
                targets[labels[0]] = found[0] if len(found) == 1 else BACKGROUND
                continue
            touching = [i for i in joined if set(i) & set(found)]
            joined = [i for i in joined if i not in touching]
            joined.append(list(dict.fromkeys([c for i in touching for c in i] + found)))
            targets[labels[0]] = found[0]
        structures = {c: i[0] if len(i) == 1 else Union(i) for i in joined for c in i}
        return {label: structures.get(i, i) for label, i in targets.items()}

    def _check_every_class_is_annotated(self) -> None:
        for name in self.classes if self.spec.labelled else ():
            if not any(_covers(case, name) for case in self.cases):
                raise UserError(
                    f"source {self.spec.name}: no case of {self.raw.folder} annotates all the labels that "
                    f"become {name!r} ({', '.join(sorted(self._parts(name)))}). Leave {name!r} out of "
                    f"--source {self.spec.name}."
                )


def _covers(case: MergedCase, name: str) -> bool:
    """Whether the case annotates all of a structure, by itself or as a part of unions."""
    return set(members(name)) <= {c for i in case.annotated for c in members(i)}


def _with_unions_listed(spec: SourceSpec) -> SourceSpec:
    """``liver`` among the classes of a source becomes ``liver+tumor`` where its label is mapped to that."""
    if spec.classes is None:
        return spec
    unions = {label: target for label, target in spec.mapping.items() if "+" in target}
    if not unions:
        return spec
    return replace(spec, classes=tuple(dict.fromkeys(unions.get(i, i) for i in spec.classes)))


def _with_exclusive_labels(raw: RawDataset, spec: SourceSpec) -> RawDataset:
    """The dataset with exclusive classes for its regions, unless ``spec`` names regions that are none."""
    exclusive = exclusive_labels(raw.labels)
    if exclusive.keys() == raw.labels.keys():
        return raw
    named = {*spec.mapping, *(spec.classes or ())} & set(raw.labels)
    return raw if named - set(exclusive) else replace(raw, labels=exclusive)


def label_targets(spec: SourceSpec, raw: RawDataset) -> dict:
    """Label of the source -> class, background or ignore. Raises :class:`UserError` for a label left open."""
    labels = [i for i in raw.labels if i != BACKGROUND]
    _check_listed_classes(spec)
    _check_mapping(spec, labels, raw)
    targets = {label: _target(label, spec) for label in labels}
    _check_accounted_for(spec, targets, raw)
    return targets


def _target(label: str, spec: SourceSpec) -> str | None:
    if label in spec.mapping:
        return spec.mapping[label]
    if label == IGNORE or label in (spec.classes or ()):
        return label
    return spec.mapping.get(ALL_OTHERS, label if spec.classes is None else None)


def value_targets(targets: Mapping[str, str], raw: RawDataset) -> dict:
    """Label value -> class, background or ignore. Values of labels that overlap (regions) must agree."""
    result = {0: BACKGROUND}
    owner: dict = {}
    for label, target in targets.items():
        for value in raw.labels[label]:
            if target == BACKGROUND:
                result.setdefault(value, BACKGROUND)
            elif result.get(value, BACKGROUND) in (BACKGROUND, target):
                result[value], owner[value] = target, label
            else:
                raise UserError(
                    f"{raw.json_file}: value {value} belongs to the labels {owner[value]!r} and {label!r}, "
                    f"which become {result[value]!r} and {target!r}. Map both to one class, or one of them "
                    "to background."
                )
    return result


def _check_listed_classes(spec: SourceSpec) -> None:
    listed = list(spec.classes or ())
    reserved = [i for i in listed if i in (BACKGROUND, IGNORE)]
    if reserved or len(set(listed)) < len(listed) or spec.classes is not None and not listed:
        raise UserError(
            f"source {spec.name}: the classes {', '.join(listed) or '(none)'} must be names of organs, "
            "each once; background and ignore need no mention."
        )


def _check_mapping(spec: SourceSpec, labels: Sequence[str], raw: RawDataset) -> None:
    for label, target in spec.mapping.items():
        if label not in labels and label != ALL_OTHERS:
            raise UserError(
                f"--map {spec.name}:{label}={target}: {raw.folder.name} has no label {label!r}. "
                f"{did_you_mean(label, labels)}Its labels: {', '.join(labels)}."
            )
        if spec.classes is not None and target not in (*spec.classes, BACKGROUND, IGNORE):
            raise UserError(
                f"--map {spec.name}:{label}={target}: {target!r} is not among the classes of source "
                f"{spec.name}. {did_you_mean(target, spec.classes)}They are {', '.join(spec.classes)}; add it "
                "there, or map to one of them, to background or to ignore."
            )


def _check_accounted_for(spec: SourceSpec, targets: Mapping[str, str | None], raw: RawDataset) -> None:
    labels = ", ".join(targets) or "none"
    for name in spec.classes or ():
        if name not in targets.values():
            raise UserError(
                f"source {spec.name} lists the class {name!r}, but no label of {raw.folder.name} is called "
                f"that or mapped to it. {did_you_mean(name, targets)}Its labels: {labels}. Add --map "
                f"{spec.name}:LABEL={name}"
            )
    left_out = [label for label, target in targets.items() if target is None]
    if left_out:
        assert spec.classes is not None  # without them every label is kept
        raise UserError(
            f"source {spec.name}: label {left_out[0]!r} of {raw.folder.name} (labels: {labels}) is neither "
            "listed nor mapped. If it is part of an organ, say so: --map "
            f"{spec.name}:{left_out[0]}={spec.classes[0]}; if it is not to be used: --map "
            f"{spec.name}:{left_out[0]}={BACKGROUND}"
        )
    if not set(targets.values()) - {BACKGROUND, IGNORE}:
        raise UserError(
            f"source {spec.name} annotates nothing: {raw.folder.name} has the labels {labels}. Give it as "
            f"--unlabelled {spec.name}={spec.dataset}"
        )


def some(names) -> str:
    """The first five of some names, and how many there are."""
    names = list(names)
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
