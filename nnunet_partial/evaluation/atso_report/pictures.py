"""The cases whose pseudo labels changed most, along the patient's axes: labels before and after on the same slice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial import palette, paths
from nnunet_partial.data.fingerprint import patient_axes
from nnunet_partial.data.preprocessed.label_directory import load_labels
from nnunet_partial.evaluation.atso_report.generations import Run, mean, read_seg
from nnunet_partial.evaluation.report import overlays
from nnunet_partial.files import atomic_path, read_json
from nnunet_partial.labels import drawn
from nnunet_partial.safe_read import open_array

CHANGED = "changed"
EDGE = 0.1  # share of the slices at either end that are shown only if nothing changed elsewhere


def most_changed(changes: Sequence[Mapping[str, Any]], number: int) -> list:
    """``(generation, case, Dice to the generation before)``, the most changed first."""
    found = {}
    for row in changes:
        if row["dice_to_previous"] is not None:
            found.setdefault((str(row["generation"]), row["case"]), []).append(row["dice_to_previous"])
    ranked = sorted((mean(values), *key) for key, values in found.items())
    return [(generation, case, score) for score, generation, case in ranked[:number]]


def draw_cases(run: Run, changes: Sequence[Mapping[str, Any]], number: int) -> list:
    """A picture of each most changed case: ``[(file, caption), ...]``."""
    by_name = {str(i["generation"]): i for i in run.generations}
    with_labels = [i for i in by_name if run.labels(by_name[i]) is not None]
    pictures = []
    for generation, case, score in most_changed(changes, number):
        before = with_labels[with_labels.index(generation) - 1]
        first, second = (run.labels(by_name[i]) for i in (before, generation))
        assert first is not None and second is not None  # of generations with labels
        segs = [read_seg(i, case) for i in (first, second)]
        properties = load_labels(second.folder_of(case), case)[1]
        file = run.report / "pictures" / f"{generation}_{case}.png"
        where = draw_case(run, _image(run, case), segs, properties, (before, generation), file)
        text = f"{case}, {where}: labels of generation {before} and of {generation}, Dice between them {100 * score:.1f} %"
        pictures.append((file, text))
    for old in set((run.report / "pictures").glob("*.png")) - {file for file, _ in pictures}:
        old.unlink()  # of an earlier report
    return pictures


def draw_case(
    run: Run, image: np.ndarray, segs: Sequence[np.ndarray], properties: Mapping[str, Any], names: Sequence[str], file: Path
) -> str:
    """Draw image and labels (*S) of before and after in the axial slice of :func:`shown_slice`; says which slice it is."""
    transpose, spacing = _grid(run, properties)
    shown, *labels = (on_patient_axes(i, properties, transpose, spacing) for i in (image, *segs))
    (grey, (_, row_mm, column_mm)), (before, after) = shown, (i[0] for i in labels)
    index = shown_slice(before != after, grey)
    low, high = np.percentile(grey, (1, 99))
    present = [i for i in range(1, len(run.classes) + 1) if (before[index] == i).any() or (after[index] == i).any()]
    colours = {i: palette.of(palette.ON_GREY, i - 1) for i in present}
    planes = [
        overlays.Plane(
            f"generation {drawn(name)}",
            grey[index],
            (float(low), float(max(high, low + 1e-6))),
            row_mm / column_mm,
            outlines=[(seg[index] == i, colour) for i, colour in colours.items()],
            fills=[((before != after)[index], palette.REMARKABLE)] if name == names[1] else [],
        )
        for name, seg in zip(names, (before, after))
    ]
    legend = {drawn(run.classes[i - 1]): colour for i, colour in colours.items()}
    figure = overlays.draw_rows(planes, 2, legend=legend, areas={CHANGED: palette.REMARKABLE})
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return f"slice {index + 1} of {len(grey)} from the feet"


def shown_slice(changed: np.ndarray, image: np.ndarray) -> int:
    """The axial slice with most ``changed`` voxels (z, y, x) among those with anatomy around them.

    Anatomy: at least half as much of ``image`` (z, y, x) is brighter than the air as in the middling slice; and the slice is
    none of the outermost ones, which a crop or a short scan cuts. Where nothing changed in such slices, all count.
    """
    amount, number = changed.sum((1, 2)), len(changed)
    low, high = np.percentile(image, (1, 99))
    bright = (image > low + 0.1 * (high - low)).mean((1, 2))
    places = np.arange(number)
    inner = (places >= EDGE * number) & (places < number - EDGE * number)
    fit = amount * (inner & (bright >= 0.5 * np.median(bright)))
    return int(np.argmax(fit if fit.any() else amount))


def on_patient_axes(
    array: np.ndarray, properties: Mapping[str, Any], transpose_backward: Sequence[int], spacing_mm: Sequence[float]
) -> tuple:
    """An array (*S) of preprocessed space along the patient's head, back and left, and its spacing (z, y, x) in mm.

    ``spacing_mm`` of the preprocessed axes. What the reader of the scan kept of its direction decides; without any (pictures)
    the axes stay as they are.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.asarray(array).transpose(transpose_backward)))
    image.SetSpacing([float(spacing_mm[i]) for i in transpose_backward][::-1])
    direction = direction_of(properties)
    if direction is not None:
        image.SetDirection(direction)
        image = patient_axes(image)
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def direction_of(properties: Mapping[str, Any]) -> list | None:
    """Direction cosines of three axes, as SimpleITK has them; None where nnU-Net's reader has kept none."""
    if len(properties.get("sitk_stuff", {}).get("direction", ())) == 9:
        return [float(i) for i in properties["sitk_stuff"]["direction"]]
    stuff = properties.get("nibabel_stuff", {})
    affine = stuff.get("reoriented_affine", stuff.get("original_affine"))
    if affine is None:
        return None
    columns = np.asarray(affine, float)[:3, :3]
    columns = columns / np.linalg.norm(columns, axis=0)
    return (
        (np.diag([-1.0, -1.0, 1.0]) @ columns).ravel().tolist()
    )  # nibabel counts to the right and front, SimpleITK left and back


def _grid(run: Run, properties: Mapping[str, Any]) -> tuple:
    """(axes that bring a preprocessed array back to those of its file, spacing of the preprocessed axes in mm)."""
    plans = read_json(paths.plans_file(run.plan["dataset"], run.options["plans"]))
    spacing = list(_configuration(run, plans, "spacing")["spacing"])
    original = [float(properties["spacing"][i]) for i in plans["transpose_forward"]]
    return plans["transpose_backward"], original[: 3 - len(spacing)] + spacing  # 2D: slices stay apart as they were


def _configuration(run: Run, plans: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The configuration of the run, or the one that it inherits ``key`` from."""
    found = plans["configurations"][run.options["configuration"]]
    while key not in found:
        found = plans["configurations"][found["inherits_from"]]
    return found


def _image(run: Run, case: str) -> np.ndarray:
    """The first channel (*S) of the preprocessed image of a case."""
    return np.asarray(open_array(image_folder(run) / f"{case}.b2nd")[0])


def image_folder(run: Run) -> Path:
    """Where the preprocessed images of a run lie."""
    plans = read_json(paths.plans_file(run.plan["dataset"], run.options["plans"]))
    identifier = _configuration(run, plans, "data_identifier")["data_identifier"]
    return paths.preprocessed_dataset(run.plan["dataset"]) / identifier
