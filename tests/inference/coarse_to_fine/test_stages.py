"""coarse-to-fine prepare, train and predict: derived datasets, both stages by nnU-Net's commands, whole scans."""

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial.cli import main
from nnunet_partial.files import read_json
from nnunet_partial.inference.coarse_to_fine import derived
from nnunet_partial.inference.coarse_to_fine import passes as c2f
from nnunet_partial.labels import Annotations
from nnunet_partial.recipes import read_recipe
from nnunet_partial.settings import RunSettings

ORGANS = ("liver", "kidney")
SIZES = ["--set", "coarse_size=16,16,16", "--set", "patch_size=16,8,16", "--set", "fine_size=16,8,16"]
TINY = [
    i
    for name, value in {
        "num_epochs": 3,
        "num_iterations_per_epoch": 40,
        "num_val_iterations_per_epoch": 1,
        "features": "8,16",
        "batch_size": 2,
        "seed": 3,
        "deep_supervision": "false",
        "optimizer": "adamw",
        "initial_lr": 0.005,
    }.items()
    for i in ("--set", f"{name}={value}")
]
TURNED = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # slices run from left to right
# fully labelled, partly labelled and unlabelled cases; name -> annotated classes
CASES = {**{f"full_{i}": ORGANS for i in range(5)}, "part_0": ("liver",), "none_0": (), "none_1": ()}


def scan(seed, shape=(12, 18, 20)):
    """Image and complete labels, in the order of the LPS axes: two blocks at different places."""
    rng = np.random.default_rng(seed)
    image, label = rng.normal(0, 10, shape).astype(np.float32), np.zeros(shape, np.uint8)
    label[3:7, 4:9, 3:8], label[5:9, 10:14, 11:16] = 1, 2
    return image + 100 * label, label


def write(array, file, turned=False):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.5, 1.0, 2.0))
    image.SetOrigin((-20.5, 31.0, 4.0))
    if turned:
        image.SetDirection(TURNED)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file), True)


def write_source(raw, dataset_id=511, ending=".nii.gz"):
    import json

    folder = raw / f"Dataset{dataset_id}_Scans"
    for seed, (case, annotated) in enumerate(CASES.items()):
        image, label = scan(seed)
        label = np.where(np.isin(label, [ORGANS.index(i) + 1 for i in annotated]), label, 0).astype(np.uint8)
        write(image, folder / "imagesTr" / f"{case}_0000{ending}", turned=case == "full_0")
        write(label, folder / "labelsTr" / f"{case}{ending}", turned=case == "full_0")
    cases = {k: {"source": k.split("_")[0], "annotated": list(v)} for k, v in CASES.items()}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "kidney": 2},
                "numTraining": len(CASES),
                "file_ending": ending,
                "nnunet_partial": {"version": 1, "cases": cases},
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, forked_programs):
    """nnU-Net's folders for this module alone, with a source dataset of whole scans."""
    root = tmp_path_factory.mktemp("c2f")
    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {i: os.environ.get(i) for i in (*folders, "NNUNET_PARTIAL_PROGRAMS")}
    os.environ["NNUNET_PARTIAL_PROGRAMS"] = str(forked_programs)
    for name in folders:
        (root / name).mkdir()
        os.environ[name] = str(root / name)
    source = write_source(root / "nnUNet_raw")
    yield SimpleNamespace(
        root=root,
        raw=root / "nnUNet_raw",
        preprocessed=root / "nnUNet_preprocessed",
        results=root / "nnUNet_results",
        source=source,
    )
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def command(*argv):
    assert main([str(i) for i in argv]) == 0


@pytest.fixture(scope="module")
def coarse(place):
    """The coarse dataset and its trained model."""
    command("coarse-to-fine", "prepare", "coarse", 511, "--id", 521, "--processes", 1, *SIZES, *TINY)
    command("coarse-to-fine", "train", 521, "--device", "cpu")
    return next(place.results.glob("Dataset521_ScansCoarse/nnUNetTrainerCrossTeaching__nnUNetPlans_c2f__3d_fullres"))


@pytest.fixture(scope="module")
def fine(place, coarse):
    """The fine dataset and its trained model, a single network; trained in this process, without final validation."""
    from nnunetv2.run.run_training import get_trainer_from_args

    command("coarse-to-fine", "prepare", "fine", 511, "--id", 522, "--coarse", 521, "--processes", 1, "--device", "cpu", *TINY)
    get_trainer_from_args(
        "522", "3d_fullres", 0, "nnUNetTrainerCrossTeachingFSL", "nnUNetPlans_c2f", False, torch.device("cpu")
    ).run_training()
    return next(place.results.glob("Dataset522_ScansFine/nnUNetTrainerCrossTeachingFSL__nnUNetPlans_c2f__3d_fullres"))


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


# ---- prepare


def test_both_stages_are_trained_as_the_paper_says_unless_told_otherwise():
    recipe = read_recipe("choi2022").values(3, {"labelled and unlabelled cases 1:1": 80})
    assert derived.plans_changes({}, [96, 64, 96]) == {"patch_size": [96, 64, 96]}  # the recipe rules
    assert recipe["batch_size"] == 2 and recipe["mirroring"] == [] and recipe["deep_supervision"] is False
    assert recipe["cross_teaching"]["size"] == "paper" and recipe["num_iterations_per_epoch"] == 40
    given = derived.plans_changes({"optimizer": "adamw", "cross_teaching": {"alpha": 0.3}, "features": [8, 16, 32]}, [96, 64, 96])
    assert given["momentum"] is None and given["nesterov"] is None
    assert given["cross_teaching"] == {"alpha": 0.3, "size": "plans"}
    assert derived.plans_changes({}, [16, 8, 16])["cross_teaching"] == {"size": "plans"}
    chosen = {"cross_teaching": {"size": "paper"}, "features": [8, 16, 32], "momentum": 0.9}
    assert derived.plans_changes(chosen, [96, 64, 96]) == {**chosen, "patch_size": [96, 64, 96]}


def test_the_recipe_stands_in_the_plans_of_both_stages(place, coarse, fine):
    for number, name in ((521, "ScansCoarse"), (522, "ScansFine")):
        plans = read_json(place.preprocessed / f"Dataset{number}_{name}" / "nnUNetPlans_c2f.json")
        settings, planned = RunSettings.from_plans(plans), plans["configurations"]["3d_fullres"]
        assert settings.recipe == "choi2022" and settings.mirroring == [] and not settings.deep_supervision
        assert (planned["patch_size"], planned["batch_size"]) == ([16, 8, 16], 2)
        assert (settings.num_epochs, settings.optimizer, settings.initial_lr) == (3, "adamw", 0.005)  # as --set says
        assert (settings.weight_decay, settings.schedule, settings.momentum) == (3e-5, "poly", None)
        own = plans["nnunet_partial"]["cross_teaching"]
        assert own["size"] == "plans" and (own["lambda_distillation"], own["lambda_ssl"], own["weighting"]) == (10, 0.1, "paper")


def test_the_coarse_dataset_holds_whole_scans_at_one_size(place, coarse):
    folder = place.raw / "Dataset521_ScansCoarse"
    content = read_json(folder / "dataset.json")
    source = read_json(place.source / "dataset.json")
    assert content["nnunet_partial"] == source["nnunet_partial"] and content["labels"] == source["labels"]
    assert content["coarse_to_fine"]["channels"] == ["CT"] and content["coarse_to_fine"]["settings"]["coarse_size"] == [16] * 3
    for _seed, case in enumerate(CASES):
        image = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        assert image.GetSize() == (16, 16, 16) and image.GetSpacing() == (1, 1, 1)
        array = sitk.GetArrayFromImage(image)
        assert array.dtype == np.float32 and abs(array.mean()) < 1e-4 and array.std() == pytest.approx(1, abs=1e-4)
        assert set(np.unique(read(folder / "labelsTr" / f"{case}.nii.gz"))) == {0, *(ORGANS.index(i) + 1 for i in CASES[case])}
    # what is expected of one case, by the tested steps themselves
    channel = c2f.to_lps(sitk.ReadImage(str(place.source / "imagesTr" / "full_0_0000.nii.gz")))
    expected = c2f.clip_and_standardise(sitk.GetArrayFromImage(c2f.resample_to_size(channel, (16, 16, 16))))
    np.testing.assert_allclose(read(folder / "imagesTr" / "full_0_0000.nii.gz"), expected, atol=1e-5)


@pytest.mark.parametrize("stage, size", [("Coarse", (16, 16, 16)), ("Fine", (16, 8, 16))])
def test_nnunet_neither_resamples_nor_normalises_nor_crops_again(place, fine, stage, size):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    name = next(place.preprocessed.glob(f"*Scans{stage}")).name
    plans = read_json(place.preprocessed / name / "nnUNetPlans_c2f.json")
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["patch_size"] == [16, 8, 16] and configuration["spacing"] == [1, 1, 1]
    assert configuration["normalization_schemes"] == ["NoNormalization"] and plans["transpose_forward"] == [0, 1, 2]
    dataset = nnUNetDatasetBlosc2(str(place.preprocessed / name / configuration["data_identifier"]))
    for case in CASES:
        data, seg, _, _ = dataset.load_case(case)
        assert data.shape[1:] == size
        np.testing.assert_array_equal(np.array(data[:])[0], read(place.raw / name / "imagesTr" / f"{case}_0000.nii.gz"))
        np.testing.assert_array_equal(np.array(seg[:])[0], read(place.raw / name / "labelsTr" / f"{case}.nii.gz"))


def test_fine_volumes_are_boxes_of_the_truth_or_of_the_coarse_model(place, coarse, fine, monkeypatch):
    """Fully labelled: the truth's box alone. Unlabelled: the coarse model's. Partly: around both."""
    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.inference.coarse_to_fine import derived
    from nnunet_partial.inference.coarse_to_fine.stages import load_stage

    stage = load_stage(521, "coarse")
    case_of = read_raw_dataset(place.source).cases
    derivation = derived.derive("fine", 511, 522, None, {}, stage)
    asked = []
    found = np.zeros((16, 16, 16), np.uint8)
    found[8:12, 8:12, 0:4], found[0, 0, 0] = 2, 1  # kidney; and a liver that is not to be believed where it is annotated
    monkeypatch.setattr(c2f, "predict_coarse", lambda *a: asked.append(1) or found)
    boxes = {}
    for case in ("full_1", "part_0", "none_0"):
        channels = [c2f.to_lps(sitk.ReadImage(case_of[case].images[0]))]
        labels = c2f.to_lps(sitk.ReadImage(case_of[case].label))
        boxes[case] = derived.fine_box(derivation, case_of[case], channels, labels)
    assert len(asked) == 2
    # blocks z 3..9, y 4..14, x 3..16: 6, 10 and 13 voxels enlarged by 0.3, 0.5 and 0.65 on both sides
    assert boxes["full_1"] == np.s_[2:10, 3:15, 2:17]
    # liver z 3..7, y 4..9, x 3..8 of 12 x 18 x 20 and the found z 6..9, y 9..13.5, x 0..5: z 3..9, y 4..13.5, x 0..8
    assert boxes["part_0"] == np.s_[2:10, 3:14, 0:9]
    # the whole mask, the stray voxel at the corner included: z 0..9, y 0..13.5, x 0..5
    assert boxes["none_0"] == np.s_[0:10, 0:15, 0:6]
    fine_folder = place.raw / "Dataset522_ScansFine"
    assert read(fine_folder / "imagesTr" / "full_1_0000.nii.gz").shape == (16, 8, 16)
    assert set(np.unique(read(fine_folder / "labelsTr" / "full_1.nii.gz"))) == {0, 1, 2}
    assert read_json(fine_folder / "dataset.json")["coarse_to_fine"]["settings"]["coarse_size"] == [16, 16, 16]


def test_ignored_voxels_are_no_foreground_of_a_box(place, coarse, monkeypatch):
    """Where nothing is told, the coarse model says what there is, as for new scans."""
    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.inference.coarse_to_fine import derived
    from nnunet_partial.inference.coarse_to_fine.stages import load_stage

    derivation = derived.derive("fine", 511, 522, None, {}, load_stage(521, "coarse"))
    own = derivation.annotations
    derivation = replace(derivation, annotations=Annotations(own.classes, own.cases, 3))
    found = np.zeros((16, 16, 16), np.uint8)
    found[4:12, 4:12, 4:12] = 1
    monkeypatch.setattr(c2f, "predict_coarse", lambda *a: found)
    case = read_raw_dataset(place.source).cases["full_1"]
    channels, labels = ([c2f.to_lps(sitk.ReadImage(str(i)))] for i in (case.images[0], case.label))
    assert derived.fine_box(derivation, case, channels, labels[0]) == np.s_[2:10, 3:15, 2:17]  # nothing is ignored: the truth's
    labels[0][0, 0, 0] = labels[0][19, 17, 11] = 3  # two corners
    # the truth's z 3..9, y 4..14, x 3..16 and the found z 3..9, y 4.5..13.5, x 5..15
    assert derived.fine_box(derivation, case, channels, labels[0]) == np.s_[2:10, 3:15, 2:17]
    found[:] = 1
    assert derived.fine_box(derivation, case, channels, labels[0]) == np.s_[0:12, 0:18, 0:20]


def test_an_organ_in_two_pieces_keeps_both(place, monkeypatch, tmp_path):
    """Largest components only of what the manual labels show as one piece; noted once, settable, the same for boxes."""
    from nnunet_partial.inference.coarse_to_fine import derived

    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    source = write_source(tmp_path / "raw", 513)
    for seed, case in enumerate(CASES):
        if case.startswith("full"):
            label = scan(seed)[1]
            label[5:9, 1:3, 11:16] = 2  # the other kidney
            write(label, source / "labelsTr" / f"{case}.nii.gz", turned=case == "full_0")
    changes = {"coarse_size": [16, 16, 16], "patch_size": [16, 8, 16], "fine_size": [16, 8, 16]}
    folder = derived.prepare("coarse", 513, 533, changes=changes, plan=False, progress=False)
    content = read_json(folder / "dataset.json")["coarse_to_fine"]
    assert content["settings"]["largest_components"] == ["liver"]
    # started again it is read, not decided again
    monkeypatch.setattr(derived.components, "one_piece_classes", lambda *_: pytest.fail("decided twice"))
    assert derived.prepare("coarse", 513, 533, changes=changes, plan=False, progress=False) == folder
    chosen = {**changes, "largest_components": ["kidney"]}
    folder = derived.prepare("coarse", 513, 534, "Set", chosen, plan=False, progress=False)
    assert read_json(folder / "dataset.json")["coarse_to_fine"]["settings"]["largest_components"] == ["kidney"]
    with pytest.raises(derived.UserError, match="largest_components: spleen is no class"):
        derived.prepare("coarse", 513, 535, "No", {**changes, "largest_components": ["spleen"]}, plan=False, progress=False)


def test_boxes_keep_the_largest_component_of_the_same_classes(place, coarse, monkeypatch):
    from nnunet_partial.data.raw import read_raw_dataset
    from nnunet_partial.inference.coarse_to_fine import derived
    from nnunet_partial.inference.coarse_to_fine.stages import load_stage

    derivation = derived.derive("fine", 511, 522, None, {"largest_components": ["kidney"]}, load_stage(521, "coarse"))
    seen = []
    monkeypatch.setattr(c2f, "predict_coarse", lambda *a: seen.append(a[5]) or np.ones((4, 4, 4), np.uint8))
    case = read_raw_dataset(place.source).cases["none_0"]
    channels, labels = ([c2f.to_lps(sitk.ReadImage(str(i)))] for i in (case.images[0], case.label))
    derived.fine_box(derivation, case, channels, labels[0])
    assert seen == [[2]]
    assert derived.derive("fine", 511, 522, None, {}, load_stage(521, "coarse")).settings.largest_components == list(ORGANS)


def test_prepare_goes_on_where_it_was(place, coarse):
    from nnunet_partial.inference.coarse_to_fine import derived

    folder = place.raw / "Dataset521_ScansCoarse"
    changes = {"coarse_size": [16, 16, 16], "patch_size": [16, 8, 16], "fine_size": [16, 8, 16]}
    derivation = derived.derive("coarse", 511, 521, None, changes, None)
    gone = folder / "labelsTr" / "none_1.nii.gz"
    gone.unlink()
    times = {i: i.stat().st_mtime_ns for i in folder.rglob("*.nii.gz")}
    before = (folder / "dataset.json").read_text()
    derived.write_volumes(derivation, progress=False)
    assert gone.is_file() and (folder / "dataset.json").read_text() == before
    assert {i: i.stat().st_mtime_ns for i in times} == {
        **times,
        folder / "imagesTr" / "none_1_0000.nii.gz": (folder / "imagesTr" / "none_1_0000.nii.gz").stat().st_mtime_ns,
    }


def test_a_case_that_fails_leaves_no_dataset(place, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    source = write_source(tmp_path / "raw", 512)
    write(np.zeros((4, 5, 6), np.float32), source / "imagesTr" / "none_0_0000.nii.gz")
    error = refused(capsys, "coarse-to-fine", "prepare", "coarse", "512", "--id", "531", "--processes", "1", *SIZES)
    assert "case none_0" in error and "same value everywhere" in error
    folder = tmp_path / "raw" / "Dataset531_ScansCoarse"
    assert not (folder / "dataset.json").exists() and not list(folder.rglob(".tmp-*"))
    write(scan(0)[0], source / "imagesTr" / "none_0_0000.nii.gz")
    write(scan(1)[1], source / "labelsTr" / "part_0.nii.gz")  # a kidney on a case that annotates the liver alone
    error = refused(capsys, "coarse-to-fine", "prepare", "coarse", "512", "--id", "532", "--processes", "1", *SIZES)
    assert "part_0.nii.gz" in error and "value 2" in error


def predict(images, out, coarse, fine):
    """The words of the command."""
    return ("coarse-to-fine", "predict", "-i", images, "-o", out, "--coarse", coarse, "--fine", fine, "--device", "cpu")


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        main([str(i) for i in argv])
    assert end.value.code == 2
    lines = [i for i in capsys.readouterr().err.splitlines() if i.startswith("nnunet_partial: error:")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(place, coarse, fine, capsys, tmp_path):
    prepare = ("coarse-to-fine", "prepare")
    assert "is taken by" in refused(capsys, *prepare, "coarse", 511, "--id", 522)
    assert "is taken by" in refused(capsys, *prepare, "coarse", 511, "--id", 511, "--name", "Scans")
    assert "was " in refused(
        capsys, *prepare, "coarse", 511, "--id", 521, "--set", "coarse_size=24,24,24", "--set", "patch_size=8,8,8"
    )
    assert "needs --coarse" in refused(capsys, *prepare, "fine", 511, "--id", 523)
    assert "must be three positive numbers" in refused(capsys, *prepare, "coarse", 511, "--id", 523, "--set", "coarse_size=16,16")
    assert "unknown setting nonsense" in refused(capsys, *prepare, "coarse", 511, "--id", 523, "--set", "nonsense=1")
    assert "coarse-to-fine train 521 --fold 3" in refused(
        capsys, *prepare, "fine", 511, "--id", 523, "--coarse", 521, "--fold", 3, "--device", "cpu"
    )
    assert "coarse stage" in refused(capsys, *predict(tmp_path, tmp_path / "out", fine, fine))
    assert "holds no image" in refused(capsys, *predict(tmp_path, tmp_path / "out", coarse, fine))
    assert not (tmp_path / "out").exists() and not list(place.raw.glob("Dataset523*"))


# ---- predict


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three scans: as trained, turned, and smaller than every size of the stages."""
    folder = tmp_path_factory.mktemp("scans")
    write(scan(50)[0], folder / "plain_0000.nii.gz")
    write(scan(51)[0], folder / "turned_0000.nii.gz", turned=True)
    write(scan(52, (9, 14, 16))[0][::3], folder / "small_0000.nii.gz")
    return folder


def test_predict_keeps_the_exact_geometry_and_goes_on(coarse, fine, scans, tmp_path, capsys):
    argv = predict(scans, tmp_path / "out", coarse, fine)
    command(*argv, "--efficiency", tmp_path / "costs.json")
    for case in ("plain", "turned", "small"):
        mask = sitk.ReadImage(str(tmp_path / "out" / f"{case}.nii.gz"))
        image = sitk.ReadImage(str(scans / f"{case}_0000.nii.gz"))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, get)() == getattr(image, get)()
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
    for case, seed in (("plain", 50), ("turned", 51)):  # two blocks told apart by their grey values
        found, truth = read(tmp_path / "out" / f"{case}.nii.gz"), scan(seed)[1]
        for value in (1, 2):
            overlap = 2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())
            assert overlap > 0.5
    costs = read_json(tmp_path / "costs.json")["methods"]["coarse to fine"]
    assert [i["case"] for i in costs["cases"]] == ["plain", "small", "turned"]
    kept = {i: i.stat().st_mtime_ns for i in (tmp_path / "out").glob("*.nii.gz")}
    (tmp_path / "out" / "small.nii.gz").unlink()
    command(*argv)
    assert "wrote 1 masks" in capsys.readouterr().out
    assert all(i.stat().st_mtime_ns == t for i, t in kept.items() if i.name != "small.nii.gz")
    model = shutil.copytree(coarse, tmp_path / "other")
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    torch.save({**checkpoint, "current_epoch": 7}, model / "fold_0" / "checkpoint_final.pth")
    assert "predictions of other models" in refused(capsys, *predict(scans, tmp_path / "out", model, fine))


def test_predicted_files_are_those_of_the_steps(coarse, fine, scans, tmp_path):
    from nnunet_partial.inference.coarse_to_fine.stages import load_stage, predict_case

    stages = load_stage(coarse, "coarse"), load_stage(fine, "fine")
    predict_case([scans / "turned_0000.nii.gz"], tmp_path / "mask.nii.gz", *stages)
    settings = c2f.CoarseToFineSettings(coarse_size=[16, 16, 16], patch_size=[16, 8, 16], fine_size=[16, 8, 16])
    expected = c2f.predict(
        [sitk.ReadImage(str(scans / "turned_0000.nii.gz"))],
        stages[0].network,
        stages[1].network,
        settings,
        c2f.clip_and_standardise,
        c2f.clip_and_standardise,
        largest=(1, 2),  # both organs are one piece in every label file
    )
    np.testing.assert_array_equal(read(tmp_path / "mask.nii.gz"), sitk.GetArrayFromImage(expected))


def test_efficiency_puts_models_side_by_side(coarse, fine, scans, tmp_path):
    command(
        "efficiency",
        "-i",
        scans,
        "--out",
        tmp_path / "e.json",
        "--coarse-to-fine",
        coarse,
        fine,
        "--model",
        f"student={coarse}",
        "--cases",
        1,
        "--device",
        "cpu",
        "--disable-tta",
    )
    content = read_json(tmp_path / "e.json")["methods"]
    assert list(content) == ["coarse to fine", "student"]
    both, student = content["coarse to fine"], content["student"]
    assert both["network"]["parameters"] == 2 * student["network"]["parameters"]  # both stages have the same student
    # the coarse volume takes ceil((16 - 8) / 4) + 1 = 3 windows, the fine one 1, of the same size
    per_pass = student["network"]["multiply_accumulates"]
    assert both["multiply_accumulates_of_cases"] == [4 * per_pass]
    assert student["multiply_accumulates_of_cases"][0] % per_pass == 0 and student["multiply_accumulates_of_cases"][0] > 0
    assert all(i["total"]["wall_time_s"] > 0 and i["total"]["peak_memory_mb"] > 0 for i in content.values())
    assert len((tmp_path / "e.md").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "argv, word",
    [
        ((), "nothing to measure"),
        (("--model", "x"), "NAME=MODEL_FOLDER"),
        (("--model", "x=/nowhere"), "holds no fold_0"),
        (("--model", "x=y", "--cases", "0"), "at least one case"),
    ],
)
def test_bad_input_of_efficiency_is_one_line(scans, tmp_path, capsys, argv, word):
    assert word in refused(capsys, "efficiency", "-i", scans, "--out", tmp_path / "e.json", "--device", "cpu", *argv)
    assert not list(tmp_path.iterdir())
