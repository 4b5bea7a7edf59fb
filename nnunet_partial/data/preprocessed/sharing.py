"""What a comparison of methods needs of the data: one split for all, and the images of a fold's validation cases."""

import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.data.preprocessed.splits import training_cases
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.labels import Annotations


def share_splits(dataset: int | str, folds: Sequence[str], full_dataset: int | str | None = None) -> None:
    """Write the splits before several trainings do so at once, and give ``full_dataset`` the same.

    Raises :class:`UserError` for a fold that there is not, and for a fully labelled dataset that is split otherwise.
    """
    folder = paths.preprocessed_dataset(dataset)
    annotations = Annotations.read(folder)
    for fold in folds:
        training_cases(folder, annotations, fold)
    if full_dataset is None or list(folds) == ["all"]:
        return
    splits, other = read_json(folder / "splits_final.json"), paths.preprocessed_dataset(full_dataset) / "splits_final.json"
    if not other.is_file():
        write_json(splits, other)
    elif read_json(other) != splits:
        raise UserError(
            f"{other} differs from {folder / 'splits_final.json'}, so the methods would see different cases. Replace "
            "it by a copy of that file, and train the models of that dataset again."
        )


def link_validation_images(dataset: int | str, fold: str, target: Path) -> None:
    """A folder of links to the images of the fold's validation cases, named as ``nnUNetv2_predict`` wants them."""
    raw = read_raw_dataset(paths.raw_dataset(dataset), labelled=False)
    splits = read_json(paths.preprocessed_dataset(dataset) / "splits_final.json")
    target.mkdir(parents=True, exist_ok=True)
    for case in splits[int(fold)]["val"]:
        for channel, image in enumerate(raw.cases[case].images):
            link = target / f"{case}_{channel:04d}{raw.file_ending}"
            if not link.exists():
                link.unlink(missing_ok=True)  # a link that leads nowhere
                os.symlink(os.path.abspath(image), link)
