"""All metrics of one case against google-deepmind's surface-distance computing the same ones, paired in one run.

    python benchmarks/metrics.py [--repeats 5] [--out benchmarks/results/metrics.json]

The truth is a label map of eight abdominal organs, of ``NNUNET_PARTIAL_DATA`` where that is set and else eight
ellipsoids, refined to 1.5 mm. Three predictions are made from it: good (borders moved), poor (organs shifted by two
centimetres), and poor with scattered false positives. Both sides get one whole mask per organ and compute Dice, HD95,
average surface distance and surface Dice of each; this package also computes the Hausdorff distance of voxels and the
volumes. The bar is a ratio of 1.2. What a user waits for, reading files included, is timed as well.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import surface_distance
from circumstances import circumstances  # beside this file

from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.metrics import all_metrics
from nnunet_partial.files import write_json

BAR = 1.2
REFINE = 2  # 3 mm -> 1.5 mm
TOLERANCE_MM = 2.0
SPACING_MM = (1.5, 1.5, 1.5)


def truth_labels() -> tuple:
    """``(label map (z, y, x) at 1.5 mm, where it comes from)``."""
    folder = os.environ.get("NNUNET_PARTIAL_DATA")
    if folder:
        file = Path(folder) / "abdomen_labels" / "label0001.nii.gz"
        label, origin = sitk.GetArrayFromImage(sitk.ReadImage(str(file))), "real abdomen, abdomen_labels/label0001"
    else:
        label, origin = ellipsoids((90, 92, 114)), "ellipsoids"
    return np.kron(label, np.ones((REFINE,) * 3, np.uint8)).astype(np.uint8), origin


def ellipsoids(shape: tuple) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(i) for i in shape), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    for value, (centre, radii) in enumerate(
        zip(np.random.default_rng(0).uniform(0.25, 0.75, (8, 3)) * shape, np.random.default_rng(1).uniform(4, 25, (8, 3))),
        start=1,
    ):
        label[(((grid - centre) / radii) ** 2).sum(-1) < 1] = value
    return label


def predictions(truth: np.ndarray) -> dict:
    """name -> label map."""
    rng = np.random.default_rng(0)
    moved = [
        np.clip(np.arange(n) + np.rint(3 * np.sin(np.arange(n) / 9 + i)).astype(int), 0, n - 1) for i, n in enumerate(truth.shape)
    ]
    shifted = np.roll(truth, 13, axis=2)
    scattered = np.where(rng.random(truth.shape) < 1e-4, rng.integers(1, 9, truth.shape), shifted).astype(np.uint8)
    return {"good": truth[np.ix_(*moved)], "poor": shifted, "poor and scattered": scattered}


def ours(pred: np.ndarray, truth: np.ndarray, values: list) -> dict:
    return {i: all_metrics(pred == i, truth == i, SPACING_MM, TOLERANCE_MM) for i in values}


def library(pred: np.ndarray, truth: np.ndarray, values: list) -> dict:
    results = {}
    for i in values:
        distances = surface_distance.compute_surface_distances(truth == i, pred == i, SPACING_MM)
        results[i] = {
            "dice": surface_distance.compute_dice_coefficient(truth == i, pred == i),
            "hausdorff95_mm": surface_distance.compute_robust_hausdorff(distances, 95),
            "average_surface_distance_mm": np.mean(surface_distance.compute_average_surface_distance(distances)),
            "surface_dice": surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
        }
    return results


def timed(clock, function, *arguments) -> tuple:
    start = clock()
    result = function(*arguments)
    return clock() - start, result


def compare(pred: np.ndarray, truth: np.ndarray, repeats: int) -> dict:
    """Median CPU times of both and the median of their ratios, alternating; the values of both must agree.

    Both run in one thread, so CPU time is what a quiet machine's clock would show.
    """
    values = [int(i) for i in np.unique(truth) if i]
    times = []
    for _ in range(repeats):
        (mine, result), (theirs, reference) = (timed(time.process_time, i, pred, truth, values) for i in (ours, library))
        times.append((mine, theirs))
    for value in values:
        for metric, number in reference[value].items():
            np.testing.assert_allclose(result[value][metric], number, rtol=1e-9)
    return {
        "organs": len(values),
        "mean_dice": float(np.mean([i["dice"] for i in result.values()])),
        "cpu_seconds": float(np.median([i for i, _ in times])),
        "cpu_seconds_surface_distance": float(np.median([i for _, i in times])),
        "ratio": float(np.median([i / j for i, j in times])),
    }


def time_of_a_folder(pred: np.ndarray, truth: np.ndarray, cases: int = 6) -> dict:
    """Seconds a case of ``evaluate_folder``, files read and processes started: clock, and CPU of all processes."""
    values = [int(i) for i in np.unique(truth) if i]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, label in (("pred", pred), ("truth", truth)):
            os.mkdir(os.path.join(folder, name))
            for case in range(cases):
                sitk.WriteImage(sitk.GetImageFromArray(label), os.path.join(folder, name, f"case_{case}.nii.gz"), True)
        dataset = os.path.join(folder, "dataset.json")
        write_json({"labels": {"background": 0, **{f"organ {i}": i for i in values}}}, dataset)
        for metrics in ((), ("dice",)):
            for processes in sorted({1, len(os.sched_getaffinity(0))}):
                cpu = sum(os.times()[:4])
                elapsed, _ = timed(
                    time.perf_counter,
                    lambda: evaluate_folder(
                        os.path.join(folder, "pred"),
                        os.path.join(folder, "truth"),
                        dataset,
                        metrics=metrics,
                        processes=processes,
                        progress=False,
                    ),
                )
                seconds[f"{'all metrics' if not metrics else 'dice alone'}, {processes} processes"] = {
                    "clock": elapsed / cases,
                    "cpu": (sum(os.times()[:4]) - cpu) / cases,
                }
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "metrics.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="surface_distance")
    truth, origin = truth_labels()
    result = {
        "truth": origin,
        "shape_zyx": list(truth.shape),
        "spacing_mm": list(SPACING_MM),
        "bar": BAR,
        **circumstances(),
        "cases": {name: compare(pred, truth, arguments.repeats) for name, pred in predictions(truth).items()},
        "seconds_per_case_of_evaluate_folder": time_of_a_folder(predictions(truth)["good"], truth),
    }
    result["worst_ratio"] = max(i["ratio"] for i in result["cases"].values())
    write_json(result, arguments.out)
    for name, case in result["cases"].items():
        print(
            f"{name:20s} {case['cpu_seconds']:7.2f} s of CPU, surface-distance "
            f"{case['cpu_seconds_surface_distance']:7.2f} s, ratio {case['ratio']:.2f} "
            f"(Dice {case['mean_dice']:.3f})"
        )
    for name, seconds in result["seconds_per_case_of_evaluate_folder"].items():
        print(f"evaluate_folder, {name}: {seconds['clock']:.2f} s a case, {seconds['cpu']:.2f} s of CPU")
    print(f"worst ratio {result['worst_ratio']:.2f}, bar {BAR}: {'met' if result['worst_ratio'] <= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
