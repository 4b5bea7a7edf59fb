"""Cross-validation splits in which every source is spread over every fold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.labels import Annotations

# nnU-Net's own number of folds and seed, so that the splits are as reproducible as its own
NUM_FOLDS = 5
SEED = 12345


def stratified_splits(annotations: Annotations, cases: Sequence[str]) -> list:
    """nnU-Net's ``splits_final.json`` content: five folds, stratified by source.

    A plain split may leave a small source out of a fold's validation set, and with it its organs. Cases that annotate
    nothing can validate nothing: they are training cases of every fold.
    """
    cases = sorted(cases)
    annotated = [i for i in cases if annotations.of(i).annotated]
    unlabelled = [i for i in cases if not annotations.of(i).annotated]
    if len(annotated) < NUM_FOLDS:
        raise UserError(
            f"{annotations.file}: {NUM_FOLDS} folds need at least {NUM_FOLDS} annotated cases, found "
            f"{len(annotated)}. Train with fold 'all', or write splits_final.json yourself."
        )
    sources = [annotations.of(i).source for i in annotated]
    folds = _folds(annotated, sources)
    return [
        {
            "train": sorted([i for i, f in zip(annotated, folds) if f != fold] + unlabelled),
            "val": [i for i, f in zip(annotated, folds) if f == fold],
        }
        for fold in range(NUM_FOLDS)
    ]


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
    if annotations.is_partial:
        return list(annotations.cases)
    return sorted(i.name[: -len(".nii.gz")] for i in (folder / "gt_segmentations").glob("*.nii.gz"))


def _split(folder: Path, annotations: Annotations, fold: int | str) -> dict:
    file = folder / "splits_final.json"
    if not file.is_file():
        if not annotations.is_partial:
            raise UserError(f"{file} does not exist. Train any model on this dataset first, or label all cases: --fold all")
        write_json(stratified_splits(annotations, list(annotations.cases)), file)
    splits = read_json(file)
    if not str(fold).isdigit() or int(fold) >= len(splits):
        raise UserError(f"--fold {fold}: {file} has the folds 0 to {len(splits) - 1}; 'all' takes every case.")
    return splits[int(fold)]


def _folds(cases: Sequence[str], sources: Sequence[str]) -> list:
    """Fold of each case. Sources of fewer than five cases share one stratum: they cannot be in every fold anyway."""
    counts = {i: sources.count(i) for i in set(sources)}
    strata = [i if counts[i] >= NUM_FOLDS else "" for i in sources]
    if 0 < strata.count("") < NUM_FOLDS:  # too few even together: they join the largest source
        strata = [i or max(counts, key=lambda name: (counts[name], name)) for i in strata]
    if len(set(strata)) == 1:
        strata = [""] * len(strata)
    folds = np.zeros(len(cases), dtype=int)
    splitter = StratifiedKFold(n_splits=NUM_FOLDS, shuffle=True, random_state=SEED)
    for fold, (_, validation) in enumerate(splitter.split(cases, strata)):
        folds[validation] = fold
    return folds.tolist()
