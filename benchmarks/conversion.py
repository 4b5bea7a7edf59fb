"""Time, bytes and memory of the converters on scans of clinical size.

    python benchmarks/conversion.py --out benchmarks/results/conversion.json

Downloads of each layout are made in a temporary folder from phantom patients, enlarged to 512 x 512 pixels with noise
at full resolution, so that they compress as badly as real scans. Quoted per layout: bytes of image voxels that the
new dataset holds (bar: none where the format allows it), seconds per case, and the peak memory of one worker above
that of a worker that converts a tiny case, in volumes of the image (bar: 3).

Where a copy is unavoidable (DICOM) the conversion is compared with the least that any converter must do: read the
series and the label with SimpleITK and write both compressed, in as many processes. Both run in turn, round by round;
quoted is the median of the ratios (bar: 1.3).
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from circumstances import circumstances  # beside this file

from nnunet_partial.demo import phantoms

BAR_TIME, BAR_MEMORY = 1.3, 3.0
LIVER = {phantoms.LIVER: 1, phantoms.LIVER_TUMOUR: 2}
KIDNEY = {phantoms.KIDNEY: 1, phantoms.KIDNEY_TUMOUR: 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--cases", type=int, default=4, help="per layout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="where to make the downloads, default a temporary folder")
    parser.add_argument("--out", default="benchmarks/results/conversion.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments)
    Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(folder: Path, arguments) -> dict:
    shape = (arguments.slices, arguments.pixels, arguments.pixels)
    volume_mib = np.prod(shape) * 2 / 2**20
    layouts, tiny = make_layouts(folder / "full", shape, arguments.cases), make_layouts(folder / "tiny", (12, 32, 32), 1)
    results = {
        **circumstances(),
        "processes": arguments.processes,
        "shape_zyx": shape,
        "cases": arguments.cases,
        "volume_mib": volume_mib,
        "bar_memory_volumes": BAR_MEMORY,
        "layouts": {},
    }
    for name, (converter, source, options) in layouts.items():
        copied, seconds, how = converted(converter, source, options, folder / "raw", arguments.processes)
        memory = peak_mib(converter, source, options, folder) - peak_mib(converter, tiny[name][1], options, folder)
        results["layouts"][name] = {
            "images": how,
            "image_bytes_copied": copied,
            "seconds_per_case": seconds / arguments.cases,
            "memory_volumes_per_worker": memory / volume_mib,
        }
    results["dicom_against_simpleitk"] = against_simpleitk(layouts["NIH DICOM"][1], folder, arguments)
    return results


def make_layouts(folder: Path, shape: tuple, cases: int) -> dict:
    """layout -> (converter, source folder, options)."""
    layouts = {
        "LiTS .nii.gz": "lits_gz",
        "LiTS .nii": "lits_nii",
        "KiTS": "kits",
        "MSD": "msd",
        "MSD, 4 channels": "msd4",
        "BTCV": "btcv",
        "AMOS22": "amos",
        "FLARE22": "flare",
        "TotalSegmentator, 10 masks": "total",
        "NIH DICOM": "nih",
    }
    sources = {name: folder / short for name, short in layouts.items()}
    for number in range(1, cases + 1):
        ct, label = enlarged(number, shape)
        _write_lits(ct, label, sources, number)
        kits = sources["KiTS"] / f"case_{number:05d}"
        _write(phantoms._slices_first(ct), kits / "imaging.nii.gz")
        _write(phantoms._slices_first(_changed(label, KIDNEY)), kits / "segmentation.nii.gz")
        _write_msd(ct, label, sources, number, cases)
        _write_flat(ct, label, sources, number)
        total = sources["TotalSegmentator, 10 masks"] / f"s{number:04d}"
        _write(ct, total / "ct.nii.gz")
        for organ in range(10):
            _write(sitk.Cast(label == organ % 5 + 1, sitk.sitkUInt8), total / "segmentations" / f"organ_{organ}.nii.gz")
        phantoms.write_dicom_series(ct, sources["NIH DICOM"] / f"PANCREAS_{number:04d}" / "a" / "b", patient=str(number))
        pancreas = sitk.Cast(label == phantoms.PANCREAS, sitk.sitkUInt8)
        pancreas.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
        _write(pancreas, sources["NIH DICOM"] / f"label{number:04d}.nii.gz")
    converters = {
        "LiTS .nii.gz": "lits",
        "LiTS .nii": "lits",
        "KiTS": "kits",
        "MSD": "msd",
        "MSD, 4 channels": "msd",
        "BTCV": "btcv",
        "AMOS22": "amos22",
        "FLARE22": "flare22",
        "TotalSegmentator, 10 masks": "totalsegmentator",
        "NIH DICOM": "nih",
    }
    return {
        name: (converters[name], source, ("--keep-duplicates",) if name == "NIH DICOM" else ())
        for name, source in sources.items()
    }


def enlarged(number: int, shape: tuple) -> tuple:
    """``(CT, label map)`` of a phantom patient at a clinical resolution."""
    patient = phantoms.make_patient(number)
    small = patient.ct_image()
    grid = sitk.Image([shape[2], shape[1], shape[0]], sitk.sitkInt16)
    grid.SetSpacing([s * n / m for s, n, m in zip(small.GetSpacing(), small.GetSize(), grid.GetSize())])
    grid.SetOrigin(small.GetOrigin())
    ct = sitk.GetArrayFromImage(sitk.Resample(small, grid, sitk.Transform(), sitk.sitkLinear, -1024))
    rng = np.random.default_rng(number)
    for part in ct:
        part += rng.normal(0, 12, part.shape).astype(np.int16)
    np.maximum(ct, -1024, out=ct)
    noisy = sitk.GetImageFromArray(ct)
    noisy.CopyInformation(grid)
    label = sitk.Resample(patient.label_image({i: i for i in range(1, 6)}), grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return noisy, label


def _write(image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), path.name.endswith(".gz"))


def _changed(label, values):
    array = sitk.GetArrayFromImage(label)
    other = sitk.GetImageFromArray(np.vectorize(lambda v: values.get(v, 0), otypes=[np.uint8])(np.arange(256))[array])
    other.CopyInformation(label)
    return other


def _write_lits(ct, label, sources, number) -> None:
    for name, ending in (("LiTS .nii.gz", ".nii.gz"), ("LiTS .nii", ".nii")):
        _write(ct, sources[name] / f"volume-{number}{ending}")
        _write(_changed(label, LIVER), sources[name] / f"segmentation-{number}{ending}")


def _write_msd(ct, label, sources, number, cases) -> None:
    for name, image, modality in (
        ("MSD", ct, {"0": "CT"}),
        ("MSD, 4 channels", sitk.JoinSeries([ct] * 4), {str(i): f"MR{i}" for i in range(4)}),
    ):
        folder = sources[name]
        _write(image, folder / "imagesTr" / f"case_{number}.nii.gz")
        _write(_changed(label, LIVER), folder / "labelsTr" / f"case_{number}.nii.gz")
        training = [{"image": f"./imagesTr/case_{i}.nii.gz", "label": f"./labelsTr/case_{i}.nii.gz"} for i in range(1, cases + 1)]
        (folder / "dataset.json").write_text(
            json.dumps(
                {
                    "modality": modality,
                    "labels": {"0": "background", "1": "organ", "2": "tumour"},
                    "training": training,
                    "test": [],
                }
            )
        )


def _write_flat(ct, label, sources, number) -> None:
    for name, image, truth in (
        ("BTCV", f"Training/img/img{number:04d}.nii.gz", f"Training/label/label{number:04d}.nii.gz"),
        ("AMOS22", f"imagesTr/amos_{number:04d}.nii.gz", f"labelsTr/amos_{number:04d}.nii.gz"),
        ("FLARE22", f"images/FLARE22_Tr_{number:04d}_0000.nii.gz", f"labels/FLARE22_Tr_{number:04d}.nii.gz"),
    ):
        _write(ct, sources[name] / image)
        _write(label, sources[name] / truth)


def converted(converter: str, source: Path, options, raw: Path, processes: int) -> tuple:
    """Convert once -> (bytes of voxels in the new dataset's images, seconds, how images were placed)."""
    os.environ["nnUNet_raw"] = str(raw)
    seconds = run_command(converter, source, options, processes)
    folder = next(raw.glob("Dataset007_*"))
    images = list((folder / "imagesTr").glob("*")) if (folder / "imagesTr").exists() else []
    copied = sum(i.stat().st_size for i in images if i.suffix != ".nhdr")
    records = json.loads((folder / "conversion.json").read_text())["cases"].values()
    how = sorted({h for i in records for h in i["how"]})
    subprocess.run(["rm", "-r", str(folder)], check=True)
    return copied, seconds, ", ".join(how)


def run_command(converter: str, source: Path, options, processes: int) -> float:
    from nnunet_partial import cli

    told = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            cli.main(["convert", converter, str(source), "--dataset-id", "7", "--processes", str(processes), *options])
        except SystemExit:
            raise RuntimeError(told.getvalue()) from None
    return time.perf_counter() - started


PEAK = """import sys
from nnunet_partial.cli import main
main(sys.argv[1:])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])"""


def peak_mib(converter: str, source: Path, options, folder: Path) -> float:
    """Peak resident memory of a conversion in one process."""
    with tempfile.TemporaryDirectory(dir=folder) as raw:
        result = subprocess.run(
            [sys.executable, "-c", PEAK, "convert", converter, str(source), "--dataset-id", "7", "--processes", "1", *options],
            env={**os.environ, "nnUNet_raw": raw},
            capture_output=True,
            text=True,
            check=True,
        )
    return int(result.stdout.splitlines()[-1]) / 1024


# ------------------------------------------------------------------------------------------ the least that must be done


def least(job: tuple) -> None:
    """Read one series and its label with SimpleITK, write both compressed."""
    series, label, target = job
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    sitk.WriteImage(sitk.Cast(reader.Execute(), sitk.sitkInt16), str(target / f"{label.stem}_image.nii.gz"), True)
    sitk.WriteImage(sitk.ReadImage(str(label)), str(target / f"{label.stem}_label.nii.gz"), True)


def against_simpleitk(source: Path, folder: Path, arguments) -> dict:
    jobs_of = [(source / f"PANCREAS_{n:04d}" / "a" / "b", source / f"label{n:04d}.nii.gz") for n in range(1, arguments.cases + 1)]
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours.append(converted("nih", source, ("--keep-duplicates",), folder / "raw", arguments.processes)[1])
        with tempfile.TemporaryDirectory(dir=folder) as target:
            started = time.perf_counter()
            with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
                list(pool.map(least, [(*job, Path(target)) for job in jobs_of]))
            theirs.append(time.perf_counter() - started)
    return {
        "bar": BAR_TIME,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs)),
        "seconds": ours,
        "seconds_simpleitk": theirs,
    }


if __name__ == "__main__":
    main()
