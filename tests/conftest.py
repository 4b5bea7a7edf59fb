"""Shared fixtures: a tiny partially labelled dataset, planned and preprocessed by stock nnU-Net."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from tests import fork_server

os.environ.setdefault("nnUNet_n_proc_DA", "0")
os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
fork_server.serve()

ORGANS = ("liver", "kidney", "pancreas")
CENTRES_ZYX = {"liver": (8, 8, 8), "kidney": (14, 14, 8), "pancreas": (10, 8, 16)}
RADII = {"liver": 5, "kidney": 4, "pancreas": 3}
SOURCES = {"lits": ("liver",), "kits": ("kidney",), "nih": ("pancreas",)}


def phantom(seed: int, shape_zyx=(20, 24, 24)):
    """Image (float32) and complete label map (uint8) of three balls of different grey values."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 20, shape_zyx).astype(np.float32)
    label = np.zeros(shape_zyx, np.uint8)
    grid = np.indices(shape_zyx)
    for value, organ in enumerate(ORGANS, 1):
        centre = np.array(CENTRES_ZYX[organ]) + rng.integers(-1, 2, 3)
        ball = ((grid - centre[:, None, None, None]) ** 2).sum(0) <= RADII[organ] ** 2
        label[ball] = value
        image[ball] += 60 * value
    return image, label


def write_nifti(array_zyx, path, spacing_xyz=(2.0, 2.0, 2.5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing_xyz)
    sitk.WriteImage(image, str(path), True)


def write_partial_dataset(raw: Path, dataset_id=501, cases_per_source=5, sources=SOURCES, unlabelled=0, ndim_shape=(20, 24, 24)):
    """A raw dataset with the contract: each source annotates its own organs on images that show all of them."""
    folder = raw / f"Dataset{dataset_id:03d}_Tiny"
    contract, entries = {}, {}
    plan = [(s, o) for s, o in sources.items() for _ in range(cases_per_source)] + [("plain", ())] * unlabelled
    for i, (source, organs) in enumerate(plan):
        case = f"{source}_{i:03d}"
        image, label = phantom(i, ndim_shape)
        known = np.where(np.isin(label, [ORGANS.index(o) + 1 for o in organs]), label, 0).astype(np.uint8)
        write_nifti(image, folder / "imagesTr" / f"{case}_0000.nii.gz")
        write_nifti(known, folder / "labelsTr" / f"{case}.nii.gz")
        contract[case] = {"source": source, "annotated": list(organs)}
        entries[case] = {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, **{o: i + 1 for i, o in enumerate(ORGANS)}},
                "numTraining": len(entries),
                "file_ending": ".nii.gz",
                "dataset": entries,
                "nnunet_partial": {"version": 1, "cases": contract},
            },
            indent=1,
        )
    )
    return folder


def run(*command, check=True, env=None, cwd=None):
    """Run a console script of this environment; on failure show what it printed. Those of nnU-Net and ours are forked."""
    argv, environment = list(map(str, command)), {**os.environ, **(env or {})}
    if fork_server.is_command(argv[0]):
        result = fork_server.run(argv, environment, cwd)
    else:
        reading = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}  # whatever the locale has become
        result = subprocess.run(argv, env=environment, cwd=cwd, **reading)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(argv)} ended with {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result


@pytest.fixture(scope="session")
def console():
    """``console(command, *arguments)``: a console script of this environment; what it printed, should it fail."""
    return run


@pytest.fixture(scope="session")
def forked():
    """``forked(script, **names)``: a started process that runs a script with these global names, torch already imported."""

    def start(script, **names):
        process = fork_server.Forked(target=runpy.run_path, args=(str(script), names, "__main__"))
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def forked_programs(tmp_path_factory):
    """A folder of nnU-Net's commands and ours, for ``PATH`` or ``NNUNET_PARTIAL_PROGRAMS``: each has the fork server run it."""
    folder = tmp_path_factory.mktemp("forked_programs")
    for file in Path(sys.executable).parent.iterdir():
        if fork_server.is_command(file.name):
            fork_server.write_program(folder / file.name)
    return folder


@pytest.fixture
def one_thread():
    """Sums over several threads are not reproducible to the last bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nnunet_folders(tmp_path_factory):
    """nnU-Net's three folders, set in the environment for the whole session."""
    root = tmp_path_factory.mktemp("nnunet")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        os.environ[name] = str(root / name)
    return SimpleNamespace(
        root=root, raw=root / "nnUNet_raw", preprocessed=root / "nnUNet_preprocessed", results=root / "nnUNet_results"
    )


@pytest.fixture(scope="module")
def own_datasets(nnunet_folders):
    """``nnunet_folders`` for a file that makes datasets of its own there; they go when its tests have run."""
    yield nnunet_folders
    for dataset in added_to(nnunet_folders.root):
        shutil.rmtree(dataset)


@pytest.fixture(scope="module", autouse=True)
def _every_file_finds_tiny_alone(tmp_path_factory):
    """What one file of tests leaves in the folders of the session, the next would find: a failure that depends on the order."""
    yield
    left = [str(i) for root in tmp_path_factory.getbasetemp().glob("nnunet*") for i in added_to(root)]
    assert not left, f"use the fixture own_datasets: {left}"


def added_to(root):
    """The datasets in nnU-Net's folders below ``root`` that are not the one of :func:`tiny`."""
    return [i for i in root.glob("nnUNet_*/Dataset*") if i.name != TINY]


TINY = "Dataset501_Tiny"


@pytest.fixture(scope="session")
def tiny(nnunet_folders):
    """Dataset 501, preprocessed for 2d and 3d_fullres, with plans ``nnUNetPlans_tiny`` that train in seconds."""
    from nnunet_partial.variants import write_variant

    write_partial_dataset(nnunet_folders.raw, unlabelled=1)
    run(
        "nnUNetv2_plan_and_preprocess",
        "-d",
        501,
        "-c",
        "2d",
        "3d_fullres",
        "-np",
        1,
        "-npfp",
        1,
        "--verify_dataset_integrity",
        env={"nnUNet_n_proc_DA": "1"},
    )  # nnU-Net cannot plan with 0
    write_variant(501, "tiny", tiny_settings())
    return SimpleNamespace(
        id=501,
        name=TINY,
        plans="nnUNetPlans_tiny",
        folders=nnunet_folders,
        preprocessed=nnunet_folders.preprocessed / TINY,
        results=nnunet_folders.results / TINY,
    )


def tiny_settings(**changes):
    return {
        "num_epochs": 2,
        "num_iterations_per_epoch": 2,
        "num_val_iterations_per_epoch": 1,
        "features": [4, 8, 8],
        "batch_size": 2,
        "optimizer": "adamw",
        "initial_lr": 3e-3,
        "seed": 7,
        "save_every": 1,
        **changes,
    }


# ---- tiers: every test has one, by its file

SLOW = (
    "compatibility",
    "dataset_conversion/test_damaged.py",
    "dataset_conversion/test_nnunet_reads.py",
    "dataset_conversion/test_runs.py",
    "inference/coarse_to_fine/test_stages.py",
    "inference/dicom_seg/test_command.py",
    "orchestration/atso",
    "orchestration/compare/test_comparison_real.py",
    "orchestration/test_slurm.py",
    "test_discovery.py",
    "test_examples.py",
    "test_first_hour.py",
    "test_printed_commands.py",
    "test_tables_trained.py",
    "training",
)
UNIT = (
    "data/test_components.py",
    "data/check",
    "dataset_conversion/test_organs.py",
    "dataset_conversion/test_source.py",
    "evaluation/test_ranking.py",
    "evaluation/test_statistics.py",
    "inference/dicom_seg/test_codes.py",
    "inference/test_rules.py",
    "losses/test_co_training.py",
    "losses/test_cross_teaching.py",
    "losses/test_exclusion.py",
    "losses/test_ms_kd.py",
    "losses/test_partial.py",
    "losses/test_ramps.py",
    "losses/test_unions.py",
    "networks/test_ema.py",
    "networks/test_meta.py",
    "test_api.py",
    "test_bars.py",
    "test_docs.py",
    "test_errors.py",
    "test_files.py",
    "test_import_rules.py",
    "test_labels.py",
    "test_moved.py",
    "test_readme.py",
    "test_recipes.py",
    "test_settings.py",
    "test_start_up.py",
    "test_tiers.py",
)


def tier_of(file: Path) -> str:
    """The tier of a test file: that of the longest entry that names it or a folder of it; ``integration`` without one."""
    path = file.relative_to(Path(__file__).parent).as_posix()
    named = [("study", "study"), *((i, "slow") for i in SLOW), *((i, "unit") for i in UNIT)]
    fitting = [(len(name), tier) for name, tier in named if path == name or path.startswith(name + "/")]
    return max(fitting)[1] if fitting else "integration"


TIERS = ("study", "slow", "integration", "unit")


def pytest_collection_modifyitems(items):
    """Mark every test with its tier, and begin with the slow ones: a long file that comes last leaves the other cores idle."""
    for item in items:
        item.add_marker(getattr(pytest.mark, tier_of(item.path)))
    items.sort(key=lambda item: TIERS.index(tier_of(item.path)))
