"""What nnU-Net can be given works with partial labels too: formats, channels, planners, fold all; from two raw datasets to a mask."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_partial.data.merge.merge import merge_datasets
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.variants import write_variant

ORGANS = ("liver", "kidney")  # what the two sources annotate
MATRIX = {  # ending: (files per image, components per file, shape, planner, plans, configuration, fold)
    ".png": (1, 3, (48, 64), "ExperimentPlanner", "nnUNetPlans", "2d", 0),
    ".nrrd": (2, 1, (20, 24, 24), "nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans", "3d_fullres", 1),
    ".mha": (4, 1, (20, 24, 24), "nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans", "3d_fullres", "all"),
}


def write(array, path, components=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=components > 1), str(path))


def write_source(folder, organ, ending, files, components, shape):
    """Three cases that show both organs and annotate one."""
    rng = np.random.default_rng(ORGANS.index(organ))
    for case in range(3):
        grid = np.indices(shape)
        truth = np.zeros(shape, np.uint8)
        for value, centre in enumerate((0.3, 0.7), 1):
            middle = np.array([int(centre * i) for i in shape]).reshape(-1, *[1] * len(shape))
            truth[((grid - middle) ** 2).sum(0) <= 16] = value
        for channel in range(files):
            shown = truth[..., None] if components > 1 else truth
            image = rng.integers(0, 40, (*shape, components) if components > 1 else shape) + 80 * shown
            place = folder / "imagesTr" / f"case{case}_{channel:04d}{ending}"
            write(image.astype(np.uint8 if ending == ".png" else np.int16), place, components)
        write((truth == ORGANS.index(organ) + 1).astype(np.uint8), folder / "labelsTr" / f"case{case}{ending}")
    content = {
        "channel_names": {str(i): f"channel{i}" for i in range(files * components)},
        "labels": {"background": 0, organ: 1},
        "numTraining": 3,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return SimpleNamespace(**{i.split("_")[1]: tmp_path / i for i in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})


@pytest.mark.parametrize("ending", MATRIX)
def test_from_two_sources_to_a_mask(folders, tmp_path, console, ending):
    files, components, shape, planner, plans, configuration, fold = MATRIX[ending]
    for number, organ in enumerate(ORGANS, 1):
        write_source(folders.raw / f"Dataset{number:03d}_{organ}", organ, ending, files, components, shape)
    merge_datasets(501, "Both", [SourceSpec(f"{organ}s", number) for number, organ in enumerate(ORGANS, 1)], processes=1)
    small = {"nnUNet_n_proc_DA": "1"}
    console("nnUNetv2_plan_and_preprocess", "-d", 501, "-c", configuration, "-pl", planner, "-np", 1, "-npfp", 1, env=small)
    steps = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    settings = {**steps, "features": [4, 8, 8], "batch_size": 2, "patch_size": [32, 32] if len(shape) == 2 else [16, 16, 16]}
    variant = write_variant(501, "tiny", settings, plans).stem
    trained = get_trainer_from_args("501", configuration, fold, "nnUNetTrainerPartial", variant, False, torch.device("cpu"))
    trained.run_training()
    cases = {f"{organ}s_case{i}" for organ in ORGANS for i in range(3)}
    training, validating = map(set, trained.do_split())
    assert training | validating == cases and (fold == "all") == (training == validating)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trained.output_folder_base, (fold,), "checkpoint_final.pth")
    new = sorted((folders.raw / "Dataset001_liver" / "imagesTr").glob(f"case0_*{ending}"))
    predictor.predict_from_files_sequential([[str(i) for i in new]], [str(tmp_path / "mask")])
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"mask{ending}")))
    assert mask.shape == shape and mask.max() <= 2
