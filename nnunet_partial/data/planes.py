"""Three views: plans of the same kind of 2D network along each axis of the images.

Huo et al. 2021, section 4.1: networks "along with the coronal, sagittal and axial views" whose predictions are fused. nnU-Net
looks at slices along one axis, the first of ``transpose_forward`` of its plans. A view is a plans file with another one,
planned by the same planner: patch, spacing and network follow from it. Preprocessing, training and prediction are the stock
commands with ``-p`` or ``-plans_name``.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from nnunet_partial import paths, trust
from nnunet_partial.data.images import read_geometry
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.settings import KEY

CONFIGURATION = "2d"
PLANES = {"S": "axial", "I": "axial", "P": "coronal", "A": "coronal", "L": "sagittal", "R": "sagittal"}
BY_ARRAY = ("axis0", "axis1", "axis2")
_REORIENTED = ("axial", "coronal", "sagittal")  # nnU-Net's readers "WithReorient" give (z, y, x) of RAS


def write_view_plans(
    dataset: int | str, base: str = "nnUNetPlans", array_axes: bool = False, overwrite: bool = False
) -> dict[str, Path]:
    """Write ``BASE_axial``, ``BASE_coronal`` and ``BASE_sagittal`` beside the plans ``BASE``; returns name of the view -> file.

    ``array_axes``  name the views ``axis0`` to ``axis2``, axes of the array as nnU-Net reads it, and do not ask the headers
                    whether that axis runs the same way in all images
    ``overwrite``   replace plans of these names that say something else
    Each has the one configuration ``2d``, spacing as in ``BASE``. Raises :class:`UserError` before anything is written.
    """
    base_file = paths.plans_file(dataset, base)
    planned = read_json(base_file)
    _check_base(planned, base_file)
    raw = read_raw_dataset(paths.raw_dataset(dataset), labelled=False)
    if read_json(base_file.with_name("dataset.json")) != raw.content:  # the planner copies it there
        raise UserError(f"{raw.json_file} has changed since {base_file.parent} was made. Plan and preprocess the dataset again.")
    names = BY_ARRAY if array_axes else planes_of(raw)
    targets = {name: base_file.with_name(f"{base}_{name}.json") for name in names}
    plans = {name: view_plans(planned, raw.folder.name, axis, targets[name].stem) for axis, name in enumerate(names)}
    for name, file in targets.items():
        if file.is_file() and not overwrite and read_json(file) != plans[name]:
            raise UserError(f"{file} exists with other content. Replace it with --overwrite, and preprocess it again.")
    for name, file in targets.items():
        write_json(plans[name], file)
    return targets


def _check_base(plans: Mapping[str, Any], file: Path) -> None:
    if KEY in plans:
        raise UserError(
            f"{file} is a plans variant. Write the views of the plans that it was made from "
            f"({plans[KEY].get('base_plans', 'nnUNetPlans')}), and then a variant of each view with its --base."
        )
    if not {CONFIGURATION, "3d_fullres"} <= set(plans["configurations"]):
        raise UserError(
            f"{file} has the configurations {', '.join(plans['configurations'])}. Three views need images with three axes, of "
            "which nnU-Net plans 2d and 3d_fullres; plan the dataset again with nnUNetv2_plan_experiment."
        )


def planes_of(raw: RawDataset) -> tuple:
    """What the slices along each axis of the array show, the same for all images of the dataset, by their headers.

    Raises :class:`UserError` for a dataset whose images are stored along different axes: nnU-Net would take them as they are.
    """
    if raw.reorients:
        return _REORIENTED
    found: dict[tuple, RawCase] = {}
    for case in raw.cases.values():
        found.setdefault(planes_of_image(case.images[0]), case)
    if len(found) != 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise UserError(
            f"the axes of {first.images[0]} are {', '.join(one)}, those of {second.images[0]} {', '.join(other)}. nnU-Net reads "
            "images along the axes of the file: store all alike and convert again, or take the array's axes as they are with "
            "--array-axes."
        )
    return next(iter(found))


def planes_of_image(path: str) -> tuple:
    """The plane that slices along each axis of the array (z, y, x) lie in. Reads the header alone."""
    orientation = read_geometry(path).orientation
    planes = tuple(PLANES[i] for i in reversed(orientation))
    if len(set(planes)) != 3:
        raise UserError(f"{path} does not say how its three axes run. Name views by axes of the array with --array-axes.")
    return planes


def view_plans(plans: Mapping[str, Any], dataset: str, axis: int, name: str) -> dict:
    """Plans ``name`` for slices along ``axis`` of the array, by the planner of ``plans`` and with their spacing."""
    spacing = [float(plans["configurations"]["3d_fullres"]["spacing"][i]) for i in plans["transpose_backward"]]
    planner = _planner(plans["experiment_planner_used"], axis)
    with _a_worker(), redirect_stdout(io.StringIO()):  # it prints every configuration at length
        made = planner(
            dataset,
            preprocessor_name=plans["configurations"][CONFIGURATION]["preprocessor_name"],
            plans_name=name,
            overwrite_target_spacing=spacing,
        ).plan_experiment()
    made["configurations"] = {CONFIGURATION: made["configurations"][CONFIGURATION]}
    return {**made, "experiment_planner_used": plans["experiment_planner_used"]}


@contextmanager
def _a_worker() -> Iterator[None]:
    """nnU-Net cannot plan where it is told to augment without processes."""
    name = "nnUNet_n_proc_DA"
    if os.environ.get(name) != "0":
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ[name] = "0"


def _planner(name: str, axis: int) -> type:
    """nnU-Net's planner ``name`` with slices along ``axis``; it writes no file."""
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    found: Any = trust.find_planner(name, "nnUNetPlans")

    class ViewPlanner(found):
        def determine_transpose(self) -> tuple:
            forward = [axis, *(i for i in range(3) if i != axis)]
            return forward, [forward.index(i) for i in range(3)]

        def save_plans(self, plans: dict) -> None:
            recursive_fix_for_json_export(plans)

    return ViewPlanner
