"""How time and memory grow with the number of cases, of classes and of voxels.

    python benchmarks/scale.py [--cases 100 400 1600 4000] [--classes 5 117] [--out benchmarks/results/scale.json]

Datasets of tiny cases (16 x 16 x 16 voxels): two sources that annotate a part of the classes and, every tenth case, one that
annotates all of them. Every command runs in this process with one process of its own: ``merge`` (whole, and of headers alone),
``check``, ``variant``, the start of a training up to its first batch, ``compare --dry-run``, ``pseudo-label`` with a network
that costs nothing (what is left is the bookkeeping), ``evaluate`` with all metrics and ``report``.

Growth: CPU time, because the machine may be shared. Each command has run on ten cases before, whose time, what does not
depend on the cases, is taken off; the exponent is that of the cases by least squares, over the numbers of cases for which
what is fixed is not most of it. The bar is 1.1. Where there are not two, or the cases add less than half a second of CPU,
nothing is fitted.
Memory: what 20 cases of 96 x 96 x 96 voxels need more than 4 do, in volumes (float32); the bar is 3, for 16 volumes more.
Classes: a scan predicted with 117 classes by nnU-Net's predictor and by ``predict`` from preprocessed files, and its
pseudo labels; CPU time and peak memory of each in a process of its own, the labels compared.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from circumstances import circumstances  # beside this file

from nnunet_partial.files import read_json, write_json

BAR, BAR_VOLUMES = 1.1, 3.0
QUICK_SECONDS = 0.5  # of CPU for the most cases: too little for a fit
WARM = 10  # cases of the run before the timed ones
SIDE = 16
VOLUMES, VOLUME_SIDE = (4, 20), 96
MANY_CLASSES, MANY_SHAPE, MANY_SCAN = 117, (40, 112, 112), (55, 150, 150)
WAYS = ("stock", "predict", "pseudo_label")
TRAINER, CONFIGURATION = "nnUNetTrainerPartial", "3d_fullres"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 400, 1600, 4000])
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 117])
    parser.add_argument("--volumes", type=int, nargs=2, default=VOLUMES, metavar=("FEW", "MANY"))
    parser.add_argument("--volume-side", type=int, default=VOLUME_SIDE)
    parser.add_argument("--only", nargs="+", choices=("growth", "volumes", "many_classes"), help="these parts; others stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    parser.add_argument("--many", choices=("prepare", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.many:
        set_folders(arguments.folder)
        print(json.dumps(many_classes_by(arguments.many, arguments.folder)))
        return
    parts = {"growth": growth, "volumes": volumes, "many_classes": many_classes}
    result = read_json(arguments.out) if arguments.only and arguments.out.is_file() else {}
    result |= {**circumstances(), "bar_exponent": BAR, "bar_volumes": BAR_VOLUMES}
    with tempfile.TemporaryDirectory() as folder:
        set_folders(Path(folder))
        for name in arguments.only or parts:
            # written after every step, so that a run that is stopped leaves what it measured
            for content in parts[name](arguments):
                write_json({**result, name: content}, arguments.out)
            result[name] = content
    print(json.dumps(result, indent=1))


def set_folders(folder: Path) -> None:
    """Before nnU-Net is imported, which reads them then."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
        os.environ[name] = str(folder / name)
    os.environ.pop("nnUNet_n_proc_DA", None)  # nnU-Net's planner takes it for a number of threads, and fails with 0


# ------------------------------------------------------------------ measuring


def cpu_seconds() -> float:
    """Of this process and the ones that it waited for."""
    return sum(os.times()[:4])


def measured(function: Callable[[], object]) -> dict:
    """CPU seconds, and MiB at the peak on top of what was held before."""
    held = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # peak resident memory counts from here; proc(5)
    start = cpu_seconds()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        function()
    return {"cpu_seconds": round(cpu_seconds() - start, 3), "peak_mib": round(resident_mib("VmHWM") - held, 1)}


def resident_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def exponent(cases: list, seconds: list, fixed: float) -> float | None:
    """Of the growth with the cases beyond the first ``WARM``, whose time is ``fixed``.

    Of numbers of cases for which what is fixed is not most of it: the rest would be its noise. None for fewer than two.
    """
    points = [(n - WARM, i - fixed) for n, i in zip(cases, seconds) if i > 2 * fixed]
    return round(float(np.polyfit(*np.log(np.array(points).T), 1)[0]), 3) if len(points) > 1 else None


# ------------------------------------------------------------------ data


class Dataset:
    """Sources on disk, and what the commands make of them. ``number`` keeps datasets of one run apart."""

    def __init__(self, number: int, cases: int, classes: int, side: int = SIDE):
        self.side, self.classes = side, [f"class_{i:03d}" for i in range(1, classes + 1)]
        self.first_id, self.id, self.name = 100 + 10 * number, 100 + 10 * number + 9, f"Dataset{109 + 10 * number}_Scale"
        half = max(1, min(12, classes // 2))
        self.sources = {"part": self.classes[:half], "other": self.classes[half : half + max(half, 1)], "whole": self.classes}
        complete = max(1, cases // 10)
        self.counts = {"part": (cases - complete + 1) // 2, "other": (cases - complete) // 2, "whole": complete}
        self.raw, self.preprocessed, self.results = (
            Path(os.environ[i]) / self.name for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        )
        self.template = self._template()
        for i, (source, count) in enumerate(self.counts.items()):
            self._write_source(self.first_id + i, source, count)

    def _template(self) -> np.ndarray:
        """Every class as a block of its own."""
        per_axis = int(np.ceil(len(self.classes) ** (1 / 3)))
        cell = np.minimum(np.arange(self.side) * per_axis // self.side, per_axis - 1)
        z, y, x = np.meshgrid(cell, cell, cell, indexing="ij")
        label = (z * per_axis + y) * per_axis + x + 1
        inside = np.arange(self.side) % (self.side / per_axis) >= 1  # a voxel of background between two blocks
        free = inside[:, None, None] & inside[None, :, None] & inside[None, None, :]
        return np.where(free & (label <= len(self.classes)), label, 0).astype(np.uint8)

    def _write_source(self, number: int, source: str, count: int) -> None:
        folder, names = Path(os.environ["nnUNet_raw"]) / f"Dataset{number}_{source}", self.sources[source]
        values = np.zeros(len(self.classes) + 1, np.uint8)
        values[[self.classes.index(i) + 1 for i in names]] = np.arange(1, len(names) + 1)
        for case in range(count):
            rng = np.random.default_rng([number, case])
            label = np.roll(self.template, rng.integers(-1, 2), int(rng.integers(3)))
            image = (rng.normal(0, 5, label.shape) + 2 * label).astype(np.int16)
            write_nifti(image, folder / "imagesTr" / f"{source}_{case:04d}_0000.nii.gz")
            write_nifti(values[label], folder / "labelsTr" / f"{source}_{case:04d}.nii.gz")
        content = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(names)}},
            "numTraining": count,
            "file_ending": ".nii.gz",
        }
        write_json(content, folder / "dataset.json")

    @property
    def json(self) -> Path:
        return self.raw / "dataset.json"

    def merge(self, *options: str) -> None:
        shutil.rmtree(self.raw, ignore_errors=True)
        sources = [f"{name}={self.first_id + i}" for i, name in enumerate(self.sources)]
        given = [j for i in sources for j in ("--source", i)]
        run_command(
            "merge", "--dataset-id", self.id, "--name", "Scale", *given, "--classes", ",".join(self.classes), *options,
            "--processes", 1,
        )  # fmt: skip

    def preprocess(self) -> None:
        """Plans of nnU-Net's planner; one case a source preprocessed, whose files stand for those of the others."""
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        content = read_json(self.json)
        self.preprocessed.mkdir()
        shutil.copy(self.json, self.preprocessed)
        write_json(fingerprint([1.0] * 3, [self.side] * 3), self.preprocessed / "dataset_fingerprint.json")
        manager = PlansManager(ExperimentPlanner(self.id).plan_experiment())
        configuration = manager.get_configuration(CONFIGURATION)
        folder = self.preprocessed / configuration.data_identifier
        folder.mkdir()
        done: dict = {}
        for case, entry in content["nnunet_partial"]["cases"].items():
            if entry["source"] not in done:
                files = content["dataset"][case]
                images = [str((self.raw / i).resolve()) for i in self._found(files["images"])]
                configuration.preprocessor_class(verbose=False).run_case_save(
                    str(folder / case), images, str(self.raw / files["label"]), manager, configuration, content
                )
                done[entry["source"]] = case
                continue
            for ending in (".b2nd", "_seg.b2nd", ".pkl"):
                os.link(folder / (done[entry["source"]] + ending), folder / (case + ending))

    def _found(self, images: list) -> list:
        from nnunet_partial.data.raw import resolve

        return [resolve(i, self.raw) for i in images]

    def add_model(self) -> Path:
        """A model folder whose network is not asked for anything."""
        model = self.results / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
        (model / "fold_all").mkdir(parents=True)
        (model / "fold_all" / "checkpoint_final.pth").write_bytes(b"weights")
        shutil.copy(self.preprocessed / "nnUNetPlans.json", model / "plans.json")
        shutil.copy(self.preprocessed / "dataset.json", model / "dataset.json")
        return model

    def add_predictions(self) -> Path:
        """Label maps of every class, a voxel off; eight different ones in turn."""
        folder = self.raw.parent.parent / "predictions" / self.name
        (folder / "kinds").mkdir(parents=True)
        for kind in range(8):
            write_nifti(np.roll(self.template, 1 + kind // 3, kind % 3), folder / "kinds" / f"{kind}.nii.gz")
        for i, case in enumerate(read_json(self.json)["dataset"]):
            os.link(folder / "kinds" / f"{i % 8}.nii.gz", folder / f"{case}.nii.gz")
        return folder


def fingerprint(spacing_zyx: list, shape_zyx: list) -> dict:
    """What nnU-Net would measure on cases of one spacing and shape."""
    intensities = {"max": 200.0, "mean": 50.0, "median": 50.0, "min": -20.0, "std": 40.0}
    return {
        "spacings": [list(spacing_zyx)] * 3,
        "shapes_after_crop": [list(shape_zyx)] * 3,
        "foreground_intensity_properties_per_channel": {"0": {**intensities, "percentile_00_5": -10.0, "percentile_99_5": 200.0}},
        "median_relative_size_after_cropping": 1.0,
    }


def write_nifti(array: np.ndarray, path: Path, spacing_xyz: tuple = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, str(path), True)


# ------------------------------------------------------------------ commands


def run_command(*parts: object) -> None:
    from nnunet_partial import cli

    if cli.main([str(i) for i in parts]):
        raise SystemExit(f"{parts[0]} failed")


def steps(dataset: Dataset, volumes_only: bool = False) -> dict:
    """name -> a function without arguments; each needs the ones before it."""
    out = dataset.raw.parent.parent / "out" / dataset.name
    predictions: list = []

    def check() -> None:
        try:
            run_command("check", dataset.id, "--out", out / "check", "--processes", 1)
        except SystemExit as end:  # findings: blocks are no organs
            if end.code != 1:
                raise

    def evaluate() -> None:
        run_command(
            "evaluate", "--pred", predictions[0], "--truth", dataset.raw / "labelsTr", "--dataset", dataset.json,
            "--out", out / "evaluation", "--processes", 1,
        )  # fmt: skip

    def report() -> None:
        given = ("--dataset", dataset.json, "--evaluation", f"A={out / 'evaluation'}", "--out", out / "report.html")
        run_command("report", *given)

    def variant() -> None:
        run_command("variant", dataset.id, "--name", "v", "--set", "num_epochs=2")

    def dry_run() -> None:
        methods = ("--methods", "naive,individual,partial,mskdplus", "--device", "cpu")
        run_command("compare", dataset.id, *methods, "--out", out / "compare", "--dry-run")

    def prepare() -> None:
        predictions.append(dataset.add_predictions())
        if not volumes_only:
            dataset.preprocess()
            dataset.add_model()

    every = {
        "merge --headers-only": lambda: dataset.merge("--headers-only"),
        "merge": dataset.merge,
        "check": check,
        "": prepare,  # not measured
        "variant": variant,
        "start of a training": lambda: start_training(dataset),
        "compare --dry-run": dry_run,
        "pseudo-label": lambda: label_without_network(dataset, out / "labels"),
        "evaluate": evaluate,
        "report": report,
    }
    chosen = ("merge", "check", "", "evaluate", "report")
    return {k: v for k, v in every.items() if not volumes_only or k in chosen}


def start_training(dataset: Dataset) -> None:
    """All that a trainer does before its first step."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(str(dataset.id), CONFIGURATION, 0, TRAINER, "nnUNetPlans", False, torch.device("cpu"))
    trainer.initialize()
    os.environ["nnUNet_n_proc_DA"] = "0"  # batches are made in this process
    try:
        trainer.get_dataloaders()
    finally:
        del os.environ["nnUNet_n_proc_DA"]


def label_without_network(dataset: Dataset, out: Path) -> None:
    """``pseudo-label`` with a stand-in for the network, which says class 1 in the lower half."""
    import torch

    from nnunet_partial.inference import pseudo_labels

    def predict(classes: int, image: np.ndarray) -> "torch.Tensor":
        logits = torch.zeros((classes + 1, *image.shape[1:]), dtype=torch.half)
        logits[1, : image.shape[1] // 2] = 1
        return logits

    own = pseudo_labels.load_predictor, pseudo_labels.predict_logits
    pseudo_labels.load_predictor, pseudo_labels.predict_logits = lambda files, *_: len(files.classes), predict
    try:
        model = dataset.results / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
        pseudo_labels.pseudo_label(dataset.id, CONFIGURATION, out, sources=[model], progress=False)
    finally:
        pseudo_labels.load_predictor, pseudo_labels.predict_logits = own


# ------------------------------------------------------------------ parts


def growth(arguments: argparse.Namespace):
    """Yields what is known after every number of cases."""
    for function in steps(Dataset(0, WARM, 3)).values():  # imports what is needed
        measured(function)
    content: dict = {}
    for classes in arguments.classes:
        tables: dict = {}
        for cases in (WARM, *arguments.cases):
            dataset = Dataset(len(os.listdir(os.environ["nnUNet_preprocessed"])), cases, classes)
            for name, function in steps(dataset).items():
                row = measured(function)
                print(f"{classes} classes, {cases} cases, {name or 'preparation'}: {row}", file=sys.stderr, flush=True)
                tables.setdefault(name, {})[cases] = row
            content = {**content, str(classes): {k: summary(v) for k, v in tables.items() if k}}
            yield content


def summary(rows: dict) -> dict:
    """A command's figures by number of cases, and the exponent of its growth."""
    cases = [i for i in rows if i != WARM]
    result = {key: {str(k): v[key] for k, v in rows.items()} for key in ("cpu_seconds", "peak_mib")}
    seconds, fixed = [rows[i]["cpu_seconds"] for i in cases], rows[WARM]["cpu_seconds"]
    fitted = exponent(cases, seconds, fixed) if cases and seconds[-1] - fixed >= QUICK_SECONDS else None
    return {**result, "exponent": fitted}


def volumes(arguments: argparse.Namespace):
    """Peak memory of the commands that read images, with few and with many of them."""
    side, peaks = arguments.volume_side, {}
    volume_mib = side**3 * 4 / 2**20
    for cases in (arguments.volumes[0], *arguments.volumes):  # the first to import what is needed
        dataset = Dataset(len(os.listdir(os.environ["nnUNet_raw"])), cases, 5, side)
        for name, function in steps(dataset, volumes_only=True).items():
            peaks.setdefault(name, {})[cases] = measured(function)["peak_mib"]
        print(f"{cases} volumes of {side}^3: { {k: v[cases] for k, v in peaks.items()} }", file=sys.stderr, flush=True)
    few, many = arguments.volumes
    more = {k: round((v[many] - v[few]) / volume_mib, 2) for k, v in peaks.items() if k}
    yield {"side": side, "cases": [few, many], "peak_mib": {k: v for k, v in peaks.items() if k}, "volumes_more": more}


# ------------------------------------------------------------------ many classes


def many_classes(_: argparse.Namespace):
    """One scan, finer than planned, by an untrained network of 117 classes; each way in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("prepare", *WAYS):
            command = [sys.executable, __file__, "--many", way, "--folder", folder]
            found[way] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            print(f"{MANY_CLASSES} classes, {way}: {found[way]}", file=sys.stderr, flush=True)
        stock, ours = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(Path(folder) / i / "scan.nii.gz"))) for i in ("stock", "predict")
        )
    yield {
        "classes": MANY_CLASSES,
        "planned_voxels": list(MANY_SHAPE),
        "scan_voxels": list(MANY_SCAN),
        "classes_found": len(np.unique(stock)),
        **{way: found[way] for way in WAYS},
        "share_of_equal_labels": float(np.mean(stock == ours)),
        **{
            f"{way}_{what}_ratio": round(found[way][key] / found["stock"][key], 3)
            for way in WAYS[1:]
            for what, key in (("memory", "peak_mib"), ("time", "cpu_seconds"))
        },
    }


def many_classes_by(way: str, folder: Path) -> dict:
    import torch
    from nnunetv2.inference import export_prediction, predict_from_raw_data  # noqa: F401 (imported before it is measured)
    from nnunetv2.preprocessing.resampling import default_resampling  # noqa: F401

    from nnunet_partial.inference import predict, pseudo_labels

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dataset = ManyClasses(folder)
    if way == "prepare":
        dataset.write()
        return {}
    own = {"plans": dataset.plans, "fold": "all", "cases": ["scan"], "mirroring": False, "progress": False}
    ways = {
        "stock": dataset.stock_predictor() if way == "stock" else None,
        "predict": lambda: predict.predict_cases(dataset.id, CONFIGURATION, dataset.model, folder / way, **own),
        "pseudo_label": lambda: pseudo_labels.pseudo_label(
            dataset.id, CONFIGURATION, folder / way, sources=[dataset.model], **own
        ),
    }
    return measured(ways[way])


class ManyClasses:
    """A dataset of one unlabelled scan, and the untrained model of its plans."""

    id, name, plans = 990, "Dataset990_Many", "nnUNetPlans_tiny"

    def __init__(self, folder: Path):
        self.folder = folder
        self.raw, self.preprocessed = (Path(os.environ[i]) / self.name for i in ("nnUNet_raw", "nnUNet_preprocessed"))
        self.model = Path(os.environ["nnUNet_results"]) / self.name / f"{TRAINER}__{self.plans}__{CONFIGURATION}"

    @property
    def image(self) -> Path:
        return self.raw / "imagesTr" / "scan_0000.nii.gz"

    def write(self) -> None:
        import torch
        from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
        from nnunetv2.run.run_training import get_trainer_from_args
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_partial.variants import write_variant

        spacing_zyx = [b / a for a, b in zip(MANY_SHAPE, MANY_SCAN)]  # of the plans; the scan's voxels are 1 mm
        for case in ("scan", "whole"):
            image = np.random.default_rng(0).normal(0, 50, MANY_SCAN).astype(np.float32)
            write_nifti(image, self.raw / "imagesTr" / f"{case}_0000.nii.gz")
            write_nifti(np.zeros(MANY_SCAN, np.uint8), self.raw / "labelsTr" / f"{case}.nii.gz")
        names = [f"class_{i:03d}" for i in range(1, MANY_CLASSES + 1)]
        contract = {"scan": {"source": "new", "annotated": []}, "whole": {"source": "whole", "annotated": names}}
        content = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(names)}},
            "numTraining": 2,
            "file_ending": ".nii.gz",
            "nnunet_partial": {"version": 1, "cases": contract},
        }
        write_json(content, self.raw / "dataset.json")
        write_json(content, self.preprocessed / "dataset.json")
        write_json(fingerprint(spacing_zyx, MANY_SHAPE), self.preprocessed / "dataset_fingerprint.json")
        with redirect_stdout(sys.stderr):
            ExperimentPlanner(self.id).plan_experiment()
            changes = {"features": (4, 8, 16), "patch_size": (32, 48, 48), "batch_size": 2}
            plans = read_json(write_variant(self.id, "tiny", changes, configuration=CONFIGURATION))
            manager = PlansManager(plans)
            configuration = manager.get_configuration(CONFIGURATION)
            target = self.preprocessed / configuration.data_identifier
            target.mkdir()
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(target / "scan"),
                [str(self.image)],
                str(self.raw / "labelsTr" / "scan.nii.gz"),
                manager,
                configuration,
                content,
            )
            trainer = get_trainer_from_args(str(self.id), CONFIGURATION, "all", TRAINER, self.plans, False, torch.device("cpu"))
            trainer.initialize()
            trainer.save_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
        write_json(plans, self.model / "plans.json")
        write_json(content, self.model / "dataset.json")

    def stock_predictor(self) -> Callable[[], object]:
        """nnU-Net's own way from the raw image to the label file."""
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        def predict() -> None:
            predictor = nnUNetPredictor(
                use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
            )
            predictor.initialize_from_trained_model_folder(str(self.model), ("all",))
            (self.folder / "stock").mkdir()
            predictor.predict_from_files_sequential([[str(self.image)]], [str(self.folder / "stock" / "scan")])

        return predict


if __name__ == "__main__":
    main()
