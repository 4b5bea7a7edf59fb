"""The whole pipeline on phantoms made on the spot: downloads -> convert -> merge -> preprocess -> a comparison -> table."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_partial import api, palette
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.results import markdown_table, mean_dice, read_metrics
from nnunet_partial.files import atomic_path, read_json, write_json, write_text
from nnunet_partial.orchestration.compare.methods import METHODS
from nnunet_partial.orchestration.compare.steps import CompareOptions, ComparisonSteps
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.orchestration.foreground import run

# source -> (converter's name, dataset id, its organ)
SOURCES = {"lits": (101, "liver"), "kits": (102, "kidney"), "nih": (103, "pancreas")}
DATASET, CONFIGURATION = 501, "3d_fullres"
NAME = "demo"  # of the comparison, and so of its plans variants
TEACHERS, STUDENTS = "individual", ("naive", "partial", "mskd")
SEED = 1
CASES, QUICK_CASES = (12, 8), (5, 2)  # of each source, and for testing
# many small steps: what a CPU can do in the time
SETTINGS = {
    "num_epochs": 4,
    "num_iterations_per_epoch": 90,
    "num_val_iterations_per_epoch": 2,
    "optimizer": "adamw",
    "initial_lr": 0.004,
    "features": "8,16,32",
    "batch_size": 2,
    "patch_size": "32,32,32",
    "final_validation": False,  # the test set says more, and each would start two processes for two scans
}
COLOURS = {"liver": palette.VERMILION, "kidney": palette.GREEN, "pancreas": palette.BLUE}
MARKER = "nnunet_partial_demo.json"


@dataclass(frozen=True)
class Demo:
    """Where the demo works. nnU-Net's folders lie inside; nothing of the user's own is touched."""

    folder: Path
    settings: Mapping[str, object]
    device: str

    @property
    def environment(self) -> dict:
        # training draws its patches in the process itself (0), which is exact and cheapest on two cores; and one worker
        # suffices for a handful of cases: starting another takes longer than its work
        return {
            **{i: str(self.folder / i) for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
        }

    @property
    def test_images(self) -> Path:
        return self.folder / "test" / "imagesTs"

    @property
    def test_labels(self) -> Path:
        return self.folder / "test" / "labelsTs"

    @property
    def assignments(self) -> tuple:
        """The settings as ``compare`` takes them."""
        return tuple(f"{k}={json.dumps(v) if isinstance(v, bool) else v}" for k, v in self.settings.items())

    def run(self, *command, log: str, **environment) -> None:
        run(command, self.folder / "logs" / f"{log}.log", {**self.environment, **environment})


def run_demo(folder, device: str = "cpu", quick: bool = False, executor: Executor | None = None) -> dict:
    """Run everything below ``folder`` and return row -> class -> DSC in percent. ``quick``: a few steps only, to see it work.

    ``executor`` runs the commands of the comparison; None: one after the other. Interrupted, it goes on where it was.
    """
    started = time.monotonic()
    demo = make_ready(folder, device, quick)
    options = comparison(demo)
    page = api.compare(options, executor)
    plan = ComparisonSteps(options)
    results = figures(demo, plan)
    table = markdown_table(results, _organs())
    write_json(results, demo.folder / "results.json")
    write_text(table + "\n", demo.folder / "results.md")
    picture = draw(demo, plan)
    print(
        f"\nDSC in percent on {len(list(demo.test_labels.glob('*.nii.gz')))} fully labelled test patients; each teacher knows "
        f"its own organ only:\n\n{table}\n\npicture: {picture}\ntable:   {demo.folder / 'results.md'}\nreport:  {page}\n"
        f"{(time.monotonic() - started) / 60:.1f} minutes"
    )
    return results


def comparison(demo: Demo) -> CompareOptions:
    """What the demo compares: the teachers, and three students of the same sources, steps and seed."""
    return CompareOptions(
        str(DATASET),
        CONFIGURATION,
        (TEACHERS, *STUDENTS),
        str(demo.folder),
        name=NAME,
        settings=demo.assignments,
        seeds=(SEED,),
        test_images=str(demo.test_images),
        test_labels=str(demo.test_labels),
        device=demo.device,
        disable_tta=True,
    )


def _organs() -> list:
    return [organ for _, organ in SOURCES.values()]


def make_ready(folder, device: str = "cpu", quick: bool = False) -> Demo:
    """Everything but training: phantoms converted, merged, planned and preprocessed, and nnU-Net's folders in the
    environment of this process."""
    settings = {**SETTINGS, "num_epochs": 1, "num_iterations_per_epoch": 2} if quick else SETTINGS
    demo = Demo(_own_folder(folder), settings, device)
    os.environ.update(demo.environment)
    make_downloads(demo, *(QUICK_CASES if quick else CASES))
    prepare(demo)
    return demo


def make_phantoms(folder, quick: bool = False) -> Path:
    """The downloads and the test set alone, and empty folders of nnU-Net beside them."""
    demo = Demo(_own_folder(folder), SETTINGS, "cpu")
    make_downloads(demo, *(QUICK_CASES if quick else CASES))
    return demo.folder


def _own_folder(folder) -> Path:
    """The demo's folder: a new one, or one that an earlier demo made, which then goes on where it was."""
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(f"{folder} exists and was not made by the demo. Choose another --out, or remove it.")
    if not (folder / MARKER).is_file():
        write_json({"made by": "nnunet_partial demo"}, folder / MARKER)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
    return folder


def make_downloads(demo: Demo, cases_per_source: int, test_cases: int) -> None:
    """Three sources as one would have downloaded them, and a test set with all organs labelled."""
    downloads = demo.folder / "downloads"
    makers = {"lits": phantoms.make_lits, "kits": phantoms.make_kits, "nih": phantoms.make_nih}
    for name, make in makers.items():
        _make(downloads / name, make, cases_per_source, f"in the layout of {name}")
    _make(demo.folder / "test", phantoms.make_test_set, test_cases, "with all organs labelled, for testing")


def _make(folder: Path, make, cases: int, what: str) -> None:
    """Patients made under a temporary name: there are all of them or none."""
    if not folder.exists():
        print(f"making {cases} phantom patients {what}", flush=True)
        temporary = folder.with_name(f".making-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        make(temporary, cases)
        temporary.rename(folder)


def prepare(demo: Demo) -> None:
    """Convert each download, merge them, let nnU-Net plan and preprocess."""
    preprocessed = demo.folder / "nnUNet_preprocessed"
    if not list((demo.folder / "nnUNet_raw").glob(f"Dataset{DATASET}_*")):
        for name, (number, organ) in SOURCES.items():
            demo.run(
                "nnunet_partial",
                "convert",
                name,
                demo.folder / "downloads" / name,
                "--dataset-id",
                number,
                "--organs",
                organ,
                log=f"convert_{name}",
            )
        demo.run(
            "nnunet_partial",
            "merge",
            "--dataset-id",
            DATASET,
            "--name",
            "AbdomenPartial",
            *(i for name, (number, organ) in SOURCES.items() for i in ("--source", f"{name}={number}:{organ}")),
            log="merge",
        )
    if not list(preprocessed.glob(f"Dataset{DATASET}_*/nnUNetPlans_{CONFIGURATION}/*.pkl")):
        demo.run(
            "nnUNetv2_plan_and_preprocess",
            "-d",
            DATASET,
            "-c",
            CONFIGURATION,
            "-np",
            2,
            "-npfp",
            2,
            "--verify_dataset_integrity",
            log="plan",
            nnUNet_n_proc_DA="1",
        )  # nnU-Net cannot plan with 0


def figures(demo: Demo, plan: ComparisonSteps) -> dict:
    """Row -> class -> DSC in percent: of each teacher on its own organ, of all teachers together, of every student."""
    results, own = {}, []
    for name, (_, organ) in SOURCES.items():
        predictions = plan.teacher_predictions(TEACHERS, SEED, name)
        rows = evaluate_folder(predictions, demo.test_labels, DATASET, metrics=("dice",), processes=1, progress=False)
        own += [i for i in rows if i["class"] == organ]
        results[f"teacher {name}"] = {organ: mean_dice(rows, [organ])[organ]}
    results["all teachers"] = mean_dice(own, _organs())
    for name in STUDENTS:
        results[METHODS[name].title] = mean_dice(read_metrics(plan.evaluation(name, SEED)), _organs())
    return results


def draw(demo: Demo, plan: ComparisonSteps) -> Path:
    """overlays.png: for three test patients the truth and what each student says, on the slice that shows most organs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import SimpleITK as sitk
    from matplotlib.lines import Line2D

    def read(file):
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))

    cases = [i.name[:-7] for i in sorted(demo.test_labels.glob("*.nii.gz"))][:3]
    columns = {
        "truth": demo.test_labels,
        **{METHODS[i].title: plan.predictions(i, SEED) for i in STUDENTS},
    }
    labels = read_json(demo.folder / "test" / "dataset.json")["labels"]
    figure, axes = plt.subplots(
        len(cases), len(columns), figsize=(3 * len(columns), 3 * len(cases)), squeeze=False, layout="constrained"
    )
    for row, case in zip(axes, cases):
        image, truth = read(demo.test_images / f"{case}_0000.nii.gz"), read(demo.test_labels / f"{case}.nii.gz")
        level = int(np.argmax([sum((s == v).any() * 1000 + (s == v).sum() for v in labels.values() if v) for s in truth]))
        for axis, folder in zip(row, columns.values()):
            axis.imshow(image[level], cmap="gray", vmin=-160, vmax=240)
            label = read(folder / f"{case}.nii.gz")[level]
            for organ, value in labels.items():
                if value and (label == value).any():
                    axis.contour(label == value, levels=[0.5], colors=[COLOURS[organ]], linewidths=2)
            axis.set_axis_off()
    for axis, name in zip(axes[0], columns):
        axis.set_title(name)
    figure.legend(handles=[Line2D([], [], color=c, label=o) for o, c in COLOURS.items()], ncols=3, loc="outside lower center")
    target = demo.folder / "overlays.png"
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=160)
    plt.close(figure)
    return target
