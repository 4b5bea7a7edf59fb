"""Recipes: how a paper trains, as data, one file each; ``nnunet_partial variant --recipe NAME`` writes one into plans.

A file ``NAME.json`` holds ``paper``; ``trainers``, of its tables; ``axes`` of the patches that it trains on, None for any;
``settings``, by the names of ``--set``; and ``not_reproduced``, what cannot be had within nnU-Net. A setting says where it is
``from``: a section, equation or table of the paper, or that the paper does not state it. It has a ``value``, or a
``count`` that the dataset's size decides. Settings with ``axes`` are left out for a configuration with others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import read_json
from nnunet_partial.labels import Annotations

FOLDER = Path(__file__).parent
TRAINING_SHARE = 0.8  # of the cases, in one of nnU-Net's five folds


@dataclass(frozen=True)
class Recipe:
    """A recipe as its file describes it; ``settings``: name -> entry."""

    name: str
    paper: str
    trainers: tuple
    axes: int | None
    settings: Mapping[str, Mapping[str, Any]]
    not_reproduced: tuple

    @property
    def axes_of(self) -> dict:
        """name of a setting -> the number of axes that it is for, where it has one."""
        return {k: v["axes"] for k, v in self.settings.items() if "axes" in v}

    def left_out(self, axes: int | None) -> list:
        """Names of the settings that are of no use for patches of ``axes`` axes; None: for any."""
        return [] if axes is None else [k for k, v in self.axes_of.items() if v != axes]

    def values(self, axes: int | None, counts: Mapping[str, int], batch_size: int | None = None) -> dict:
        """Nested settings. ``counts``: samples of an epoch, see :func:`samples_of_an_epoch`; ``batch_size``: unless its own."""
        skipped, result = self.left_out(axes), {}
        size = batch_size or self.settings.get("batch_size", {}).get("value", 1)
        for name, entry in self.settings.items():
            if name not in skipped:
                *parents, last = name.split(".")
                target = result
                for parent in parents:
                    target = target.setdefault(parent, {})
                target[last] = math.ceil(counts[entry["count"]] / size) if "count" in entry else entry["value"]
        return result


def recipe_names() -> list:
    """Names of the recipes that there are."""
    return sorted(i.stem for i in FOLDER.glob("*.json"))


def read_recipe(name: str) -> Recipe:
    """Raises :class:`UserError`, which lists the recipes, for a name that is none."""
    if name not in recipe_names():
        raise UserError(
            f"--recipe {name}: there is no such recipe. {did_you_mean(name, recipe_names())}Recipes: {', '.join(recipe_names())}."
        )
    content = read_json(FOLDER / f"{name}.json")
    return Recipe(
        name,
        content["paper"],
        tuple(content["trainers"]),
        content["axes"],
        content["settings"],
        tuple(content["not_reproduced"]),
    )


def samples_of_an_epoch(folder: Path, plans: Mapping[str, Any]) -> dict:
    """What the papers' epochs run over, in the training cases of one fold of five of the preprocessed dataset ``folder``.

    ``slices``: of all images, along the axis that 2D networks do not see. ``labelled and unlabelled cases 1:1``: twice the
    cases that annotate something.
    """
    shapes = read_json(folder / "dataset_fingerprint.json")["shapes_after_crop"]
    annotations = Annotations.read(folder)
    axis = plans["transpose_forward"][0]
    labelled = len(shapes) if annotations.cases is None else sum(bool(annotations.of(i).annotated) for i in annotations.cases)
    counts = {"slices": sum(i[axis] for i in shapes), "labelled and unlabelled cases 1:1": 2 * labelled}
    return {k: max(1, math.ceil(TRAINING_SHARE * v)) for k, v in counts.items()}
