"""A generation's label swap against preprocessing the cases again, and what the loop itself costs.

    python benchmarks/label_swap.py --out benchmarks/results/label_swap.json

New labels of a case reach training in one of two ways: a file of labels and one of properties beside the preprocessed
images (what ATSO does), or nnU-Net's preprocessing of image and new label file, which writes the image again. Both start
from the labels in memory or on disk as they get them, use one process, and run in turn, round by round, on phantom scans of
clinical size; quoted is the median of the ratios (bar: 20 x). That no image byte is copied is seen from what is written,
and from the images, which must not have changed.

The loop's own share of the wall time (bar: 2 %) is that of the real loop over stand-ins of its commands, which sleep for a minute
or two each, far less than real stages take (the share is the cost of starting a stage, about a second, over its length).
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from circumstances import circumstances  # beside this file

BAR, BAR_SHARE = 20.0, 0.02
CLASSES = ("liver", "kidney", "pancreas")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--pixels", type=int, default=320)
    parser.add_argument("--pause", type=float, default=35.0, help="seconds of one step of a stand-in stage, which has 1 to 4")
    parser.add_argument("--folder", help="where to work, default a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/label_swap.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = {
            **circumstances(),
            "loop": loop_share(Path(folder) / "loop", arguments.pause),
            "swap": measure(Path(folder), arguments),
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(folder, arguments):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    os.environ["nnUNet_def_n_proc"] = os.environ["nnUNet_n_proc_DA"] = "1"
    write_dataset(folder / "nnUNet_raw" / "Dataset631_Swap", arguments)
    subprocess.run(
        [
            str(Path(sys.executable).parent / "nnUNetv2_plan_and_preprocess"),
            "-d",
            "631",
            "-c",
            "3d_fullres",
            "-np",
            "1",
            "-npfp",
            "1",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    images = folder / "nnUNet_preprocessed" / "Dataset631_Swap" / "nnUNetPlans_3d_fullres"
    before, rounds = fingerprint(images), []
    for number in range(arguments.rounds):
        pair = [("swap", swap), ("preprocess", preprocess)][:: 1 if number % 2 else -1]  # no order is favoured
        rounds.append({name: timed(folder, images, how, name) for name, how in pair})
    return summary(arguments, rounds, fingerprint(images) == before, image_bytes(images))


def write_dataset(folder, arguments):
    """CT-like scans of 0.8 x 0.8 x 2.5 mm, alternating with 1.0 x 1.0 x 3.0 mm, so that some are resampled."""
    rng, content = np.random.default_rng(0), {}
    shape = (arguments.slices, arguments.pixels, arguments.pixels)
    grid = np.indices(shape, dtype=np.float32)
    for i in range(arguments.cases):
        image, label = rng.normal(0, 20, shape).astype(np.int16), np.zeros(shape, np.uint8)
        for value, share in enumerate((0.3, 0.55, 0.7), 1):
            centre = np.array(shape)[:, None, None, None] * share
            ball = (((grid - centre) / (np.array(shape)[:, None, None, None] * 0.13)) ** 2).sum(0) <= 1
            label[ball], image[ball] = value, image[ball] + 60 * value
        case, spacing = f"scan_{i}", ((0.8, 0.8, 2.5), (1.0, 1.0, 3.0))[i % 2]
        for array, file in ((image, f"imagesTr/{case}_0000.nii.gz"), (label, f"labelsTr/{case}.nii.gz")):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            picture = sitk.GetImageFromArray(array)
            picture.SetSpacing(spacing)
            sitk.WriteImage(picture, str(folder / file), True)
        content[case] = {"source": "scans", "annotated": []}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, **{n: i + 1 for i, n in enumerate(CLASSES)}},
                "numTraining": arguments.cases,
                "file_ending": ".nii.gz",
            }
        )
    )


def timed(folder, images, how, name):
    """Seconds and bytes of new labels for every case."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    cases = sorted(i.stem for i in images.glob("*.pkl"))
    prepared = how(folder, images, out)
    started = time.perf_counter()
    for case in cases:
        prepared(case)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "bytes": sum(i.stat().st_size for i in out.rglob("*") if i.is_file()),
        "image_bytes": sum(i.stat().st_size for i in out.glob("*.b2nd") if not i.name.endswith("_seg.b2nd")),
    }


def swap(folder, images, out):
    """ATSO's way, from labels in preprocessed space, as prediction there leaves them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_partial.data.preprocessed.label_directory import load_labels, write_case

    manager = plans_of(images)
    plans = PlansManager(manager)
    labels = plans.get_label_manager(json.loads((images.parent / "dataset.json").read_text()))
    patch = plans.get_configuration("3d_fullres").patch_size
    arrays = {
        case: (np.asarray(load_labels(images, case)[0][:]), load_labels(images, case)[1])
        for case in sorted(i.stem for i in images.glob("*.pkl"))
    }

    def one(case):
        seg, properties = arrays[case]
        write_case(out, case, seg, properties, labels, patch, {"annotated": [], "pseudo": list(CLASSES), "volume_mm3": {}})

    return one


def preprocess(folder, images, out):
    """nnU-Net's way, from image and label files."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plans_of(images))
    configuration, worker = plans.get_configuration("3d_fullres"), DefaultPreprocessor(verbose=False)
    dataset = json.loads((images.parent / "dataset.json").read_text())
    raw = folder / "nnUNet_raw" / "Dataset631_Swap"

    def one(case):
        with contextlib.redirect_stdout(io.StringIO()):
            worker.run_case_save(
                str(out / case),
                [str(raw / "imagesTr" / f"{case}_0000.nii.gz")],
                str(raw / "labelsTr" / f"{case}.nii.gz"),
                plans,
                configuration,
                dataset,
            )

    return one


def plans_of(images):
    return json.loads((images.parent / "nnUNetPlans.json").read_text())


def image_bytes(images):
    return sum(i.stat().st_size for i in images.glob("*.b2nd") if not i.name.endswith("_seg.b2nd"))


def fingerprint(images):
    """Content and place on disk of every file of the preprocessed images."""
    return {
        i.name: (i.stat().st_ino, i.stat().st_mtime_ns, hashlib.sha256(i.read_bytes()).hexdigest())
        for i in sorted(images.iterdir())
    }


def summary(arguments, rounds, unchanged, size):
    ratio = statistics.median(i["preprocess"]["seconds"] / i["swap"]["seconds"] for i in rounds)
    copied = max(i["swap"]["image_bytes"] for i in rounds)
    return {
        "what": "a generation's label swap against preprocessing again",
        "bar": f">= {BAR:.0f} x faster, no image byte copied",
        "measured": f"{ratio:.1f} x, {copied} image bytes copied",
        "met": ratio >= BAR and copied == 0 and unchanged,
        "shape_zyx": [arguments.slices, arguments.pixels, arguments.pixels],
        "cases": arguments.cases,
        "speed_up": ratio,
        "image_bytes": size,
        "image_bytes_copied": copied,
        "images_unchanged": unchanged,
        "rounds": rounds,
        "swap_seconds_per_case": statistics.median(i["swap"]["seconds"] for i in rounds) / arguments.cases,
        "preprocess_seconds_per_case": statistics.median(i["preprocess"]["seconds"] for i in rounds) / arguments.cases,
    }


# ------------------------------------------------------------------ the loop's own share


def loop_share(folder, pause):
    """The real loop with the local executor over stand-ins of the commands, which sleep: what it adds to their time."""
    root, dataset = Path(__file__).absolute().parent.parent, "Dataset777_Stub"
    programs, preprocessed = folder / "programs", folder / "nnUNet_preprocessed" / dataset
    for made in (programs, preprocessed, folder / "nnUNet_results" / dataset, folder / "nnUNet_raw"):
        made.mkdir(parents=True)
    stand_in = (root / "tests" / "orchestration" / "stub.py").read_text()
    for name in ("nnUNetv2_train", "nnUNetv2_predict_from_modelfolder", "nnunet_partial"):
        (programs / name).write_text(f"#!{sys.executable} -SE\n{stand_in}")
        (programs / name).chmod(0o755)
    cases = {f"case_{i}": {"source": "b", "annotated": ["liver"][: i == 0]} for i in range(7)}
    (preprocessed / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1}, "nnunet_partial": {"version": 1, "cases": cases}})
    )
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"2d": {}}}))
    environment = {
        **os.environ,
        "NNUNET_PARTIAL_PROGRAMS": str(programs),
        "STUB_PAUSE_S": str(pause),
        **{i: str(folder / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
    }
    started = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            str(root / "scripts" / "atso_loop.py"),
            "--dataset",
            "777",
            "--configuration",
            "2d",
            "--device",
            "cpu",
            "--generations",
            "1",
            "--validation",
            "none",
        ],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - started
    journal = json.loads(next(folder.rglob("journal.json")).read_text())
    waited, stages = journal["loops"][0]["in_stages"], len(journal["stages"])
    share = (wall - waited) / wall
    return {
        "what": f"ATSO loop's own share of the wall time, {stages} stages of {waited / stages:.0f} s in the mean",
        "bar": f"<= {BAR_SHARE:.0%}",
        "measured": f"{share:.2%}",
        "met": share <= BAR_SHARE,
        "stages": stages,
        "wall_seconds": wall,
        "seconds_in_stages": waited,
        "seconds_per_stage": (wall - waited) / stages,
    }


if __name__ == "__main__":
    main()
