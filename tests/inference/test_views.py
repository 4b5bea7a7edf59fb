"""Three views: plans along each axis, stock commands with them and fusion.

Each organ of the phantom is striped along one axis. A network that sees slices along that axis cannot see the stripes; the two
others can, and tell their direction. What is predicted is right only if every array was turned, and turned back, as its plans say.
"""

import io
import json
import os
import shutil
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial import cli
from nnunet_partial.data.planes import planes_of, write_view_plans
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.raw import read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, write_json
from nnunet_partial.inference.preprocessed import load_case
from nnunet_partial.paths import plans_file, raw_dataset

pytestmark = pytest.mark.usefixtures("one_thread")
ID, NAME, SHAPE_ZYX = 577, "Dataset577_Stripes", (18, 20, 24)
ORGANS = ("striped_z", "striped_y", "striped_x")  # value 1 + axis of the array
PLANES = ("axial", "coronal", "sagittal")
# a striped direction answers 2.75 to 4, an edge of the same direction 1.25 at most
TRAINER = '''
import torch
from nnunet_partial.trainers.partial import nnUNetTrainerPartial


class Stripes(torch.nn.Module):
    """Knows by the plans which axes the rows and columns of its slices are."""

    def __init__(self, plans, outputs):
        super().__init__()
        self.rows, self.columns = (1 + i for i in plans.transpose_forward[1:])
        self.outputs, self.background = outputs, torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        logits = x.new_zeros(len(x), self.outputs, *x.shape[2:])
        logits[:, 0] = self.background
        for axis, value in ((-2, self.rows), (-1, self.columns)):
            steps = x[:, 0].diff(dim=axis).abs()
            padding = (0, 0, 1, 0) if axis == -2 else (1, 0)
            behind = (0, 0, 0, 1) if axis == -2 else (0, 1)
            logits[:, value] = torch.nn.functional.pad(steps, padding) + torch.nn.functional.pad(steps, behind)
        return logits


class nnUNetTrainerStripes(nnUNetTrainerPartial):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision=True):
        return Stripes(plans_manager, outputs)
'''


def striped(seed):
    """Image and label map: three boxes, two voxels apart, each striped along one axis with a period of two voxels."""
    rng, grid = np.random.default_rng(seed), np.indices(SHAPE_ZYX)
    image, label = np.full(SHAPE_ZYX, 0.25, np.float32), np.zeros(SHAPE_ZYX, np.uint8)
    for axis in range(3):
        start = np.array([1 + 6 * axis, 2, 3]) + [0, *rng.integers(0, 8, 2)]
        size = np.array([4, 6, 8]) + [0, 0, axis]
        box = tuple(slice(i, i + j) for i, j in zip(start, size))
        image[box], label[box] = (1 - 2 * (grid[axis] % 2))[box], axis + 1
    return image, label


def write(array, file, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetDirection([float(i) for i in direction])
    sitk.WriteImage(image, str(file), True)


def plan_and_preprocess():
    """nnU-Net's own functions, without the processes that its commands start, and our command between them."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        extract_fingerprints([ID], num_processes=1)
        patch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net cannot plan with 0
        plan_experiments([ID])
    cli.main(["views", str(ID)])
    preprocess("nnUNetPlans", "3d_fullres")
    for plane in PLANES:
        preprocess(f"nnUNetPlans_{plane}", "2d")


def preprocess(name, configuration):
    """As nnUNetv2_preprocess, case by case."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, content = PlansManager(read_json(plans_file(ID, name))), read_json(raw_dataset(ID) / "dataset.json")
    planned = plans.get_configuration(configuration)
    folder = plans_file(ID).parent / planned.data_identifier
    folder.mkdir()
    for case in read_raw_dataset(raw_dataset(ID)).cases.values():
        made = planned.preprocessor_class(verbose=False)
        made.run_case_save(str(folder / case.name), list(case.images), case.label, plans, planned, content)


@pytest.fixture(scope="module")
def stripes(own_datasets, tmp_path_factory):
    """The dataset, three views of it, and for each a model that needs no training."""
    raw = own_datasets.raw / NAME
    truth = {}
    for i in range(2):
        image, truth[f"case_{i}"] = striped(i)
        write(image, raw / "imagesTr" / f"case_{i}_0000.nii.gz")
        write(truth[f"case_{i}"] * np.uint8(i), raw / "labelsTr" / f"case_{i}.nii.gz")
    contract = {"case_0": {"source": "bare", "annotated": []}, "case_1": {"source": "known", "annotated": list(ORGANS)}}
    content = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, **{n: i + 1 for i, n in enumerate(ORGANS)}},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "nnunet_partial": {"version": 1, "cases": contract},
    }
    write_json(content, raw / "dataset.json")
    plan_and_preprocess()
    trainers = tmp_path_factory.mktemp("trainers")
    (trainers / "nnUNetTrainerStripes.py").write_text(TRAINER)
    preprocessed = own_datasets.preprocessed / NAME
    models = {}
    for plane in PLANES:
        models[plane] = own_datasets.results / NAME / f"nnUNetTrainerStripes__nnUNetPlans_{plane}__2d"
        (models[plane] / "fold_all").mkdir(parents=True)
        shutil.copy(preprocessed / f"nnUNetPlans_{plane}.json", models[plane] / "plans.json")
        shutil.copy(preprocessed / "dataset.json", models[plane])
        checkpoint = {
            "network_weights": {"background": torch.tensor(2.0)},
            "trainer_name": "nnUNetTrainerStripes",
            "init_args": {"configuration": "2d", "fold": "all"},
            "inference_allowed_mirroring_axes": (0, 1),
        }
        torch.save(checkpoint, models[plane] / "fold_all" / "checkpoint_final.pth")
    return SimpleNamespace(raw=raw, preprocessed=preprocessed, models=models, truth=truth, trainers=trainers)


@pytest.fixture
def seen(stripes, monkeypatch):
    """The models' trainer is where nnU-Net looks."""
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(stripes.trainers), os.environ.get("nnUNet_extTrainer", "")]))
    return stripes


def test_plans_of_each_axis(stripes):
    for axis, plane in enumerate(PLANES):
        plans = read_json(stripes.preprocessed / f"nnUNetPlans_{plane}.json")
        assert list(plans["configurations"]) == ["2d"] and plans["plans_name"] == f"nnUNetPlans_{plane}"
        forward, backward = plans["transpose_forward"], plans["transpose_backward"]
        assert forward[0] == axis and [forward[i] for i in backward] == [0, 1, 2]
        assert plans["configurations"]["2d"]["data_identifier"] == f"nnUNetPlans_{plane}_2d"
        image, _, properties = load_case(stripes.preprocessed / f"nnUNetPlans_{plane}_2d", "case_1")
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(stripes.raw / "imagesTr" / "case_1_0000.nii.gz"))).transpose(forward)
        assert np.array_equal(image[0], expected)
        patch = plans["configurations"]["2d"]["patch_size"]  # of its own slices, rounded to the network's strides
        assert all(n <= i < n + 4 for i, n in zip(patch, expected.shape[1:]))
    assert read_json(stripes.preprocessed / "nnUNetPlans.json")["experiment_planner_used"] == plans["experiment_planner_used"]


def test_stock_prediction_with_each_plans_file_and_their_vote(seen, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    for plane, model in seen.models.items():
        with redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(model), ("all",))
            (tmp_path / plane).mkdir()
            predictor.predict_from_files_sequential(str(seen.raw / "imagesTr"), str(tmp_path / plane), save_probabilities=True)
    for case, truth in seen.truth.items():
        for axis, plane in enumerate(PLANES):
            found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / plane / f"{case}.nii.gz")))
            assert np.array_equal(found, np.where(truth == axis + 1, 0, truth)), plane  # all but what its slices do not show
    argv = ["fuse", "--pred", *(str(tmp_path / i) for i in PLANES), "--dataset", str(ID)]
    cli.main([*argv, "--rule", "vote", "--out", str(tmp_path / "fused")])
    for case, truth in seen.truth.items():
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "fused" / f"{case}.nii.gz"))), truth)


@pytest.mark.parametrize("plans, configuration", (("nnUNetPlans_coronal", "2d"), ("nnUNetPlans", "3d_fullres")))
def test_pseudo_labels_by_the_vote_of_three_views(seen, tmp_path, plans, configuration):
    """In the preprocessed space of one of them, and in that of none."""
    argv = ["pseudo-label", str(ID), "--configuration", configuration, "--plans", plans, "--device", "cpu"]
    argv += ["--from", *(str(i) for i in seen.models.values()), "--rule", "vote", "--out", str(tmp_path / "labels")]
    cli.main(argv)
    forward = read_json(plans_file(ID, plans))["transpose_forward"]
    for case, truth in seen.truth.items():  # case_1 is labelled, and keeps its labels
        assert np.array_equal(label_directory.load_labels(tmp_path / "labels", case)[0][:][0], truth.transpose(forward))
    content = read_json(tmp_path / "labels" / "provenance.json")
    assert content["rule"] == "vote" and len(content["models"]) == 3
    assert content["cases"]["case_0"]["disagreement"] == dict.fromkeys(ORGANS, 1)  # one of three misses each organ
    with pytest.raises(SystemExit):
        cli.main([*argv[:-4], "--rule", "mean", *argv[-2:]])
    before = (tmp_path / "labels" / "provenance.json").stat().st_mtime_ns
    cli.main(argv)  # nothing is left to do
    assert (tmp_path / "labels" / "provenance.json").stat().st_mtime_ns == before


def test_views_are_refused_where_they_cannot_be(stripes, tmp_path, monkeypatch):
    plans = read_json(stripes.preprocessed / "nnUNetPlans.json")
    write_json({**plans, "nnunet_partial": {"base_plans": "nnUNetPlans"}}, stripes.preprocessed / "nnUNetPlans_mine.json")
    flat = {**plans, "configurations": {"2d": plans["configurations"]["2d"]}}
    write_json(flat, stripes.preprocessed / "nnUNetPlans_flat.json")
    with pytest.raises(UserError, match="is a plans variant.*--base"):
        write_view_plans(ID, "nnUNetPlans_mine")
    with pytest.raises(UserError, match="images with three axes"):
        write_view_plans(ID, "nnUNetPlans_flat")
    changed = stripes.preprocessed / "nnUNetPlans_axial.json"
    kept = changed.read_bytes()
    write_json({**json.loads(kept), "plans_name": "other"}, changed)
    with pytest.raises(UserError, match="--overwrite"):
        write_view_plans(ID)
    assert write_view_plans(ID, overwrite=True)["axial"] == changed and json.loads(kept) == read_json(changed)
    raw = read_json(stripes.raw / "dataset.json")
    try:
        write_json({**raw, "description": "converted again"}, stripes.raw / "dataset.json")
        with pytest.raises(UserError, match="has changed since"):
            write_view_plans(ID)
    finally:
        write_json(raw, stripes.raw / "dataset.json")
    assert list(write_view_plans(ID, array_axes=True)) == ["axis0", "axis1", "axis2"]


def test_planes_are_those_of_the_headers(tmp_path):
    turned = (0, 0, 1, 1, 0, 0, 0, 1, 0)  # the file's x runs along the head, as in KiTS
    array = np.zeros((2, 3, 4), np.float32)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".nii.gz"}
    for name, direction in (("a", (1, 0, 0, 0, 1, 0, 0, 0, 1)), ("b", turned)):
        write(array, tmp_path / name / "imagesTr" / f"{name}_0000.nii.gz", direction)
        write_json(content, tmp_path / name / "dataset.json")
    one, other = (read_raw_dataset(tmp_path / i, labelled=False) for i in "ab")
    assert planes_of(one) == PLANES
    image = sitk.ReadImage(str(tmp_path / "b" / "imagesTr" / "b_0000.nii.gz"))
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    along = {"L": "sagittal", "R": "sagittal", "P": "coronal", "A": "coronal", "S": "axial", "I": "axial"}
    assert planes_of(other) == tuple(along[i] for i in code[::-1]) != PLANES
    shutil.copy(tmp_path / "b" / "imagesTr" / "b_0000.nii.gz", tmp_path / "a" / "imagesTr")
    write_json({**content, "numTraining": 2}, tmp_path / "a" / "dataset.json")
    with pytest.raises(UserError, match="--array-axes"):
        planes_of(read_raw_dataset(tmp_path / "a", labelled=False))
    write_json(
        {**content, "numTraining": 2, "overwrite_image_reader_writer": "NibabelIOWithReorient"}, tmp_path / "a" / "dataset.json"
    )
    assert planes_of(read_raw_dataset(tmp_path / "a", labelled=False)) == PLANES  # nnU-Net turns them all alike
