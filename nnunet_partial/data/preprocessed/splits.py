"""Cross-validation splits in which every source is spread over every fold, and a patient stays in one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.labels import Annotations

# nnU-Net's own number of folds and seed, so that the splits are as reproducible as its own
NUM_FOLDS = 5
SEED = 12345


@dataclass(frozen=True)
class _Unit:
    """Cases that stay together: those of one patient, else a single case. ``teaches``: (source, class) of all of them."""

    cases: tuple
    sources: frozenset
    teaches: frozenset


def stratified_splits(annotations: Annotations, cases: Sequence[str]) -> list:
    """nnU-Net's ``splits_final.json`` content: five folds of patients, stratified by source.

    A plain split may leave a small source out of a fold's validation set, and with it its organs. Cases of one
    ``patient`` (see :mod:`nnunet_partial.labels`) are in one fold. Whatever class a source annotates is taught in
    every fold by at least one of its training cases: what a single patient teaches is in training always, wherever
    that leaves five patients to validate on. Cases that annotate nothing can validate nothing: they are training
    cases of every fold, but not of the one that validates on their patient.
    """
    cases = sorted(cases)
    units = _units(annotations, cases)
    labelled = [i for i in units if i.teaches]
    if len(labelled) < NUM_FOLDS:
        raise UserError(
            f"{annotations.file}: {NUM_FOLDS} folds need annotated cases of at least {NUM_FOLDS} patients, found "
            f"{len(labelled)}. Train with fold 'all', or write splits_final.json yourself."
        )
    fold_of = {case: fold for unit, fold in zip(labelled, _folds(labelled)) for case in unit.cases}
    return [
        {
            "train": [i for i in cases if fold_of.get(i) != fold],
            "val": [i for i in cases if fold_of.get(i) == fold and annotations.of(i).annotated],
        }
        for fold in range(NUM_FOLDS)
    ]


def _units(annotations: Annotations, cases: Sequence[str]) -> list:
    groups: dict = {}
    for case in cases:
        patient = annotations.of(case).patient
        groups.setdefault((case, None) if patient is None else ("", patient), []).append(case)
    return [_unit(annotations, i) for i in groups.values()]


def _unit(annotations: Annotations, cases: Sequence[str]) -> _Unit:
    entries = [i for i in map(annotations.of, cases) if i.annotated]
    teaches = frozenset((i.source, name) for i in entries for name in i.annotated)
    return _Unit(tuple(cases), frozenset(i.source for i in entries), teaches)


def _folds(units: Sequence[_Unit]) -> list:
    """Fold in which each unit validates; None: in none."""
    counts = Counter(i for unit in units for i in unit.teaches)
    single = [n for n, unit in enumerate(units) if any(counts[i] == 1 for i in unit.teaches)]
    always_training = set(single[: len(units) - NUM_FOLDS])
    validating = [n for n in range(len(units)) if n not in always_training]
    folds: list = [None] * len(units)
    for n, fold in zip(validating, _stratified_folds([units[n] for n in validating])):
        folds[n] = fold
    return _taught_everywhere(units, folds)


def _stratified_folds(units: Sequence[_Unit]) -> list:
    """A unit of several sources counts for the smallest. Sources of fewer than five units share one stratum: they cannot
    be in every fold anyway."""
    sizes = Counter(i for unit in units for i in unit.sources)
    sources = [min(unit.sources, key=lambda name: (sizes[name], name)) for unit in units]
    counts = Counter(sources)
    strata = [i if counts[i] >= NUM_FOLDS else "" for i in sources]
    if 0 < strata.count("") < NUM_FOLDS:  # too few even together: they join the largest source
        largest = max(counts, key=lambda name: (counts[name], name))
        strata = [i or largest for i in strata]
    if len(set(strata)) == 1:
        strata = [""] * len(strata)
    folds = np.zeros(len(units), dtype=int)
    splitter = StratifiedKFold(n_splits=NUM_FOLDS, shuffle=True, random_state=SEED)
    for fold, (_, validation) in enumerate(splitter.split(strata, strata)):
        folds[validation] = fold
    return folds.tolist()


def _taught_everywhere(units: Sequence[_Unit], folds: list) -> list:
    """A small source may have fallen into one fold with all that it has: one of its units goes to another."""
    teachers: dict = {}
    for n, unit in enumerate(units):
        for pair in unit.teaches:
            teachers.setdefault(pair, []).append(n)
    for pair in sorted(i for i, those in teachers.items() if len(those) > 1):
        if _in_one_fold(teachers[pair], folds):
            _move(teachers[pair][-1], units, folds, teachers)
    return folds


def _in_one_fold(numbers: Sequence[int], folds: Sequence[int | None]) -> bool:
    used = {folds[n] for n in numbers}
    return len(used) == 1 and None not in used


def _move(number: int, units: Sequence[_Unit], folds: list, teachers: Mapping[tuple, Sequence[int]]) -> None:
    """A unit to the smallest fold in which it is not with all others that teach one of its classes, else to none."""
    left = folds[number]
    for fold in sorted(set(range(NUM_FOLDS)) - {left}, key=lambda i: (folds.count(i), i)):
        folds[number] = fold
        if not any(_in_one_fold(teachers[i], folds) for i in units[number].teaches if len(teachers[i]) > 1):
            return
    folds[number] = None


def training_cases(folder: Path, annotations: Annotations, fold: int | str) -> list:
    """Training cases of a fold as the trainers have them; splits_final.json is written if it has to be."""
    if fold == "all":
        return all_cases(folder, annotations)
    return _split(folder, annotations, fold)["train"]


def validation_cases(folder: Path, annotations: Annotations, fold: int | str) -> list:
    """Validation cases of a fold as the trainers have them; those of fold ``all`` are all cases, as in nnU-Net."""
    return all_cases(folder, annotations) if fold == "all" else _split(folder, annotations, fold)["val"]


def all_cases(folder: Path, annotations: Annotations) -> list:
    """Every case of a preprocessed dataset."""
    if annotations.cases is not None:
        return list(annotations.cases)
    ending = read_json(folder / "dataset.json")["file_ending"]
    files = (folder / "gt_segmentations").glob(f"*{ending}")
    cases = sorted(i.name[: -len(ending)] for i in files if not i.name.startswith("."))
    if not cases:
        raise UserError(
            f"{folder / 'gt_segmentations'} holds no label file CASE{ending}, so the cases of this dataset are unknown. "
            f"Preprocess it again: nnUNetv2_plan_and_preprocess -d {paths.dataset_number(folder.name):03d}"
        )
    return cases


def _split(folder: Path, annotations: Annotations, fold: int | str) -> dict:
    file = folder / "splits_final.json"
    if not file.is_file():
        if annotations.cases is None:
            raise UserError(f"{file} does not exist. Train any model on this dataset first, or label all cases: --fold all")
        write_json(stratified_splits(annotations, list(annotations.cases)), file)
    splits = read_json(file)
    if not str(fold).isdigit() or int(fold) >= len(splits):
        raise UserError(f"--fold {fold}: {file} has the folds 0 to {len(splits) - 1}; 'all' takes every case.")
    return splits[int(fold)]
