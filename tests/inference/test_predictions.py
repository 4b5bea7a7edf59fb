"""Masks of other tools and models of other plans reach preprocessed space where they belong.

Scans are oblique, mirrored and anisotropic; their preprocessing turns axes, crops and resamples. Each holds a bright cube on the
patient's left and a dark one on the right.
"""

import json
import shutil

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial.cli import main
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.files import read_json
from nnunet_partial.inference import image_space, knowledge, preprocessed

NAME, CASES = "Dataset610_Oblique", ("one", "two")
SPACING = (1.5, 1.0, 4.0)  # x, y, z of the file, mm
SIZE = (26, 30, 12)
CENTRES = {"left": (19, 12, 5), "right": (7, 18, 6)}  # voxels (x, y, z) before the patient's sides are put right
pytestmark = pytest.mark.usefixtures("one_thread")


def direction(mirrored=True):
    """A rotation by 20 degrees about z and 10 about x, of axes of which the first runs to the right."""
    a, b = np.radians(20), np.radians(10)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_z @ about_x @ np.diag([-1 if mirrored else 1, 1, 1 if mirrored else -1])


def positioned(array, case="one"):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-30.0, 12.5, 7.0))
    image.SetDirection(direction(case == "one").ravel().tolist())
    return image


def landmarks(case):
    """structure -> mask (z, y, x); ``left`` is the one with the larger world x (DICOM's frame)."""
    masks, places = {}, {}
    for name, centre in CENTRES.items():
        masks[name] = np.zeros(SIZE[::-1], np.uint8)
        masks[name][tuple(slice(i - 2, i + 3) for i in centre[::-1])] = 1
        places[name] = positioned(masks[name], case).TransformContinuousIndexToPhysicalPoint([float(i) for i in centre])
    if places["left"][0] < places["right"][0]:
        masks = {"left": masks["right"], "right": masks["left"]}
    return masks


def scan(case):
    rng = np.random.default_rng(len(case))
    array = rng.normal(100, 5, SIZE[::-1]).astype(np.float32)
    masks = landmarks(case)
    array[masks["left"] > 0], array[masks["right"] > 0] = 600, -400
    array[:, :4], array[:, -3:], array[:, :, :2] = 0, 0, 0  # what nnU-Net crops
    return array


def network(width, outputs):
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [width, width],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": None,
            "norm_op_kwargs": None,
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": None,
            "nonlin_kwargs": None,
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def make_plans(reader="SimpleITKIO", transpose=(2, 0, 1), spacing=(1.2, 3.0, 1.3), normalisation="ZScoreNormalization"):
    def resampling(**kwargs):
        return {"order": 1, "order_z": 0, "force_separate_z": None, **kwargs}

    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.5, 4.0, 1.0],
        "original_median_shape_after_transp": [26, 12, 30],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [int(i) for i in np.argsort(transpose)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 100.0, "std": 100.0}},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 16, 16],
                "spacing": list(spacing),
                "normalization_schemes": [normalisation],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling(is_seg=False, order=3),
                "resampling_fn_seg_kwargs": resampling(is_seg=True),
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": resampling(is_seg=False),
                "architecture": network(2, 3),
                "batch_dice": False,
            }
        },
    }


@pytest.fixture(scope="module")
def oblique(tmp_path_factory):
    """nnUNet_raw and nnUNet_preprocessed with a dataset of two scans: ``one`` annotates the left cube, ``two`` nothing."""
    root = tmp_path_factory.mktemp("oblique")
    raw, folder = root / "raw" / NAME, root / "preprocessed" / NAME
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    folder.mkdir(parents=True)
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "nnunet_partial": {
            "version": 1,
            "cases": {"one": {"source": "a", "annotated": ["left"]}, "two": {"source": "b", "annotated": []}},
        },
    }
    for case in CASES:
        sitk.WriteImage(positioned(scan(case), case), str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
        label = landmarks(case)["left"] * (case == "one")
        sitk.WriteImage(positioned(label, case), str(raw / "labelsTr" / f"{case}.nii.gz"))
    (raw / "dataset.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "nnUNetPlans.json").write_text(json.dumps(make_plans()))
    preprocess(raw, folder, content, make_plans())
    return root


def preprocess(raw, folder, content, plans):
    manager, configuration = managers(plans)
    out = folder / "nnUNetPlans_3d_fullres"
    out.mkdir()
    for case in CASES:
        files = [str(raw / "imagesTr" / f"{case}_0000.nii.gz")]
        label = str(raw / "labelsTr" / f"{case}.nii.gz")
        configuration.preprocessor_class(verbose=False).run_case_save(
            str(out / case), files, label, manager, configuration, content
        )


def managers(plans):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    return manager, manager.get_configuration("3d_fullres")


@pytest.fixture(autouse=True)
def folders(oblique, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(oblique / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(oblique / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(oblique))


@pytest.fixture
def masks(tmp_path):
    """TotalSegmentator's layout, with an organ that no class is."""
    for case in CASES:
        (tmp_path / "masks" / case).mkdir(parents=True)
        for organ, mask in {**landmarks(case), "heart": np.zeros(SIZE[::-1], np.uint8)}.items():
            sitk.WriteImage(positioned(mask, case), str(tmp_path / "masks" / case / f"{organ}.nii.gz"))
    return tmp_path / "masks"


def label(out, *arguments):
    return main(["pseudo-label", "610", "--configuration", "3d_fullres", "--device", "cpu", "--out", str(out), *arguments])


def world(case, properties, plans, mask):
    """Centre of a preprocessed mask in mm of the patient, from the numbers of the preprocessing, by hand in float64."""
    box = np.array(properties["bbox_used_for_cropping"], np.float64)
    cropped = np.array(properties["shape_after_cropping_and_before_resampling"], np.float64)
    centre = np.argwhere(mask).mean(0)
    turned = (centre + 0.5) * cropped / np.array(mask.shape) - 0.5 + box[:, 0]
    index_zyx = turned[list(plans["transpose_backward"])]
    image = positioned(np.zeros(SIZE[::-1], np.uint8), case)
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index_zyx[::-1].tolist()))


def require_landmarks(out, case, tolerance_mm, plans=None):
    seg, properties = label_directory.load_labels(out, case)
    plans = plans or make_plans()
    for value, name in ((1, "left"), (2, "right")):
        centre = np.argwhere(landmarks(case)[name]).mean(0)[::-1].tolist()
        expected = positioned(landmarks(case)[name], case).TransformContinuousIndexToPhysicalPoint(centre)
        assert np.abs(world(case, properties, plans, seg[0] == value) - expected).max() < tolerance_mm, (case, name)
    lefts, rights = (world(case, properties, plans, seg[0] == i)[0] for i in (1, 2))
    assert lefts > rights + 5  # the patient's left is where x is larger


# ---- the way from image space


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_a_label_map_arrives_as_nnunets_own_preprocessing_brings_it(oblique, reader, transpose):
    plans, configuration = managers(make_plans(reader, transpose))
    for case in CASES:
        image = str(oblique / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz")
        masks = landmarks(case)
        both = masks["left"] + 2 * masks["right"]
        file = oblique / f"{case}.nii.gz"
        sitk.WriteImage(positioned(both, case), str(file))
        data, expected, properties = configuration.preprocessor_class(verbose=False).run_case(
            [image], str(file), plans, configuration, {"labels": {"background": 0, "left": 1, "right": 2}}
        )
        place = image_space.ToPreprocessed(plans, configuration, image, properties, data.shape[1:])
        found = place.labels(both)
        assert found.shape == data.shape[1:] and (found == 1).sum() > 20 and (found == 2).sum() > 20
        assert np.array_equal(found, np.maximum(expected[0], 0))
        half = place.values(0.5 * masks["right"]) > 0.25
        assert np.abs(np.argwhere(half).mean(0) - np.argwhere(found == 2).mean(0)).max() < 0.6


def test_a_scan_that_was_replaced_is_told(oblique, tmp_path):
    plans, configuration = managers(make_plans())
    _, _, properties = preprocessed.load_case(oblique / "preprocessed" / NAME / "nnUNetPlans_3d_fullres", "one")
    other = tmp_path / "other.nii.gz"
    sitk.WriteImage(positioned(scan("one")[:-1]), str(other))
    with pytest.raises(knowledge.UserError, match="is not the image that was preprocessed.*Preprocess the dataset again"):
        image_space.ToPreprocessed(plans, configuration, str(other), properties, (1, 1, 1))


# ---- masks


def test_masks_in_totalsegmentators_layout_reach_their_place(oblique, masks, tmp_path):
    assert label(tmp_path / "out", "--predictions", f"totalseg={masks}") == 0
    content = read_json(tmp_path / "out" / "provenance.json")
    assert content["predictions"][0]["labels"] == {"left": "left", "right": "right"} and content["models"] == []
    assert content["cases"]["one"]["pseudo"] == ["right"] and content["cases"]["two"]["pseudo"] == ["left", "right"]
    assert content["cases"]["one"]["agreement"]["totalseg"]["left"] > 0.99
    assert content["cases"]["two"]["mean_confidence"] == {"left": None, "right": None}  # a mask tells none
    assert set(content["cases"]["one"]["inputs"]["predictions"]["totalseg"]["sha256"]) == {"left", "right"}
    for case in CASES:
        require_landmarks(tmp_path / "out", case, 1.5)
    truth = preprocessed.load_case(oblique / "preprocessed" / NAME / "nnUNetPlans_3d_fullres", "one")[1]
    assert np.array_equal(label_directory.load_labels(tmp_path / "out", "one")[0][:] == 1, truth == 1)
    created = content["created"]
    label(tmp_path / "out", "--predictions", f"totalseg={masks}")
    assert read_json(tmp_path / "out" / "provenance.json")["created"] == created  # nothing to do


def test_masks_stored_along_other_axes_and_in_the_datasets_layout(masks, tmp_path):
    for case in CASES:
        inner = tmp_path / "tool" / case / "segmentations"
        inner.mkdir(parents=True)
        for name, organ in (("left", "kidney_left"), ("right", "kidney_right")):
            image = sitk.DICOMOrient(sitk.ReadImage(str(masks / case / f"{name}.nii.gz")), "RAS")
            sitk.WriteImage(image, str(inner / f"{organ}.nii.gz"))
    maps = ["--map", "tool:kidney_left=left", "--map", "tool:kidney_right=right"]
    label(tmp_path / "out", "--predictions", f"tool={tmp_path / 'tool'}", *maps)
    for case in CASES:
        require_landmarks(tmp_path / "out", case, 1.5)


def test_label_maps_by_name_and_by_value(masks, tmp_path):
    tool = tmp_path / "maps"
    tool.mkdir()
    for case in CASES:
        both = 7 * landmarks(case)["left"].astype(np.int32) + 3 * landmarks(case)["right"]
        both[0, 0, 0] = 2**30  # a value that nothing names
        sitk.WriteImage(positioned(both, case), str(tool / f"{case}.nii.gz"))
    given = ["--predictions", f"tool={tool}", "--map", "tool:7=left", "--map"]
    label(tmp_path / "values", *given, "tool:3=right")
    (tool / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "left": 7, "liver": 3}}))
    label(tmp_path / "names", *given, "tool:liver=right")
    with pytest.raises(SystemExit):
        label(tmp_path / "background", "--predictions", f"tool={tool}", "--map", "tool:0=left")
    for out in ("values", "names"):
        for case in CASES:
            require_landmarks(tmp_path / out, case, 1.5)


def test_probabilities_are_resampled_and_told(masks, tmp_path):
    for case in CASES:
        for name, height in (("left", 0.9), ("right", 0.7)):
            sitk.WriteImage(
                positioned(height * landmarks(case)[name].astype(np.float32), case), str(masks / case / f"{name}.nii.gz")
            )
    label(tmp_path / "out", "--predictions", f"totalseg={masks}", "--min-confidence", "0.75")
    content = read_json(tmp_path / "out" / "provenance.json")
    assert content["ignored"] == 3
    for case in CASES:
        seg = label_directory.load_labels(tmp_path / "out", case)[0][:]
        assert (seg == 3).sum() > 20 and not (seg == 2).any()  # right is doubtful everywhere
    found = content["cases"]["two"]
    assert 0.8 < found["mean_confidence"]["left"] <= 0.9 and found["volume_mm3"]["right"] == 0
    sure = (label_directory.load_labels(tmp_path / "out", "two")[0][:] == 1).sum()
    assert sure > 20
    with_all = tmp_path / "all"
    label(with_all, "--predictions", f"totalseg={masks}", "--soft")
    require_landmarks(with_all, "two", 1.5)
    assert read_json(with_all / "provenance.json")["soft"] == [["left", "right"]]
    soft = blosc2.open(str(with_all / "two_soft.b2nd"))[:]
    seg = label_directory.load_labels(with_all, "two")[0][0]
    assert soft.shape == (2, *seg.shape) and 225 <= soft[0].max() <= 230 and soft[1][seg == 2].min() > 80


# ---- a model of other plans


@pytest.fixture(scope="module")
def model(oblique):
    """A real model of nnU-Net with other spacing, axes, reader and normalisation that also knows the heart: bright voxels are its
    ``sinister``, dark ones ``right``, and what is a little bright the heart."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    folder = oblique / "models" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    plans = make_plans("NibabelIOWithReorient", (0, 1, 2), (2.0, 1.1, 1.6), "CTNormalization")
    plans["foreground_intensity_properties_per_channel"]["0"] |= {"percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
    (folder / "plans.json").write_text(json.dumps(plans))
    labels = {"background": 0, "heart": 1, "right": 2, "sinister": 3}
    dataset = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    made = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 4, False, False
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.encoder.stages[0][0].convs[0].conv.weight[0, 0, 1, 1, 1] = 1
        joined = made.decoder.stages[0].convs[0].conv  # the upper layer's two channels come after those from below
        joined.weight[0, 2, 1, 1, 1] = 1
        head = made.decoder.seg_layers[-1]
        head.weight[:, 0, 0, 0, 0] = torch.tensor([0.0, 2.0, -6.0, 6.0])  # of (HU - 100) / 100
        head.bias[:] = torch.tensor([0.0, -3.0, -15.0, -15.0])
    checkpoint = {
        "network_weights": made.state_dict(),
        "init_args": {"configuration": "3d_fullres"},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_a_model_of_other_plans_labels_the_scans_themselves(model, tmp_path):
    arguments = ["--from", f"other={model}/fold_0", "--map", "other:sinister=left"]
    assert label(tmp_path / "out", *arguments) == 0
    content = read_json(tmp_path / "out" / "provenance.json")
    assert content["models"][0]["outputs"] == [0, 0, 1, 2] and "the scans themselves" in content["models"][0]["sees"]
    for case in CASES:
        require_landmarks(tmp_path / "out", case, 2.0)
    assert 0.9 < content["cases"]["two"]["mean_confidence"]["right"] <= 1
    label(tmp_path / "sure", *arguments, "--min-confidence", "0.95")
    whole, sure = (label_directory.load_labels(tmp_path / i, "two")[0][:] for i in ("out", "sure"))
    ignored = sure == 3
    assert np.array_equal(whole[~ignored], sure[~ignored]) and 0 < (ignored & (whole > 0)).sum() < (whole > 0).sum()
    assert (ignored & (whole == 0)).any()  # background may be doubtful, too
    assert read_json(tmp_path / "sure" / "provenance.json")["cases"]["two"]["mean_confidence"]["right"] > 0.95


def test_the_model_says_what_stock_nnunet_says(model, oblique, stock_of):
    """Where both resample little: its logits on the scan have the classes of nnU-Net's own prediction."""
    expected = stock_of(model, oblique / "raw" / NAME / "imagesTr" / "two_0000.nii.gz")
    assert set(np.unique(expected)) >= {0, 2, 3}
    predictor = preprocessed.load_predictor(
        knowledge.find_known_model(f"x={model}", {"x": {"sinister": "left"}}, 0, ("left", "right"), make_plans(), "3d_fullres",
                                   "checkpoint_final.pth", False).files,
        torch.device("cpu"),
    )  # fmt: skip
    scans = image_space.ScanPredictor(predictor, (0, 1, 2, 3))
    from nnunet_partial.data.raw import RawCase

    case = RawCase("two", (str(oblique / "raw" / NAME / "imagesTr" / "two_0000.nii.gz"),), None)

    class Stay:  # the scan's own voxels
        geometry = image_space.images.read_geometry(case.images[0])
        shape = geometry.shape_zyx

        def values(self, array):
            return array

    found = scans.logits(case, Stay()).float().argmax(0).numpy()
    order = image_space.reader_order(Stay.geometry, predictor.plans_manager.image_reader_writer_class())
    assert np.mean(order.apply(found) == expected) > 0.999


@pytest.fixture
def stock_of():
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def predict(folder, image):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0,))
        return predictor.predict_from_files_sequential([[str(image)]], None)[0]

    return predict


def test_masks_and_models_in_one_command(model, masks, tmp_path):
    for case in CASES:
        (masks / case / "left.nii.gz").unlink()
    given = ["--from", f"other={model}/fold_0", "--map", "other:sinister=left", "--predictions", f"totalseg={masks}"]
    label(tmp_path / "out", *given)
    found = read_json(tmp_path / "out" / "provenance.json")["cases"]["two"]
    assert found["mean_confidence"]["left"] > 0.9  # of the model
    assert found["disagreement"]["left"] == 0 < found["disagreement"]["right"] < 0.6  # no mask speaks of the left one
    seg = label_directory.load_labels(tmp_path / "out", "two")[0][0]
    label(tmp_path / "masks_alone", "--predictions", f"totalseg={masks}")
    mask = label_directory.load_labels(tmp_path / "masks_alone", "two")[0][0] == 2
    assert mask.any() and (seg[mask] == 2).all()  # where both speak, the mask comes first
    require_landmarks(tmp_path / "out", "two", 2.0)


# ---- what is refused


def test_bad_input_is_one_line(masks, model, oblique, tmp_path, capsys):
    def refused(*words, arguments=None, given=f"totalseg={masks}"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            label(tmp_path / "out", "--predictions", given, *(arguments or ()))
        errors = [i for i in capsys.readouterr().err.strip().splitlines() if "error" in i]
        assert end.value.code == 2 and len(errors) == 1 and all(i in errors[0] for i in words), errors
        assert not (tmp_path / "out" / "provenance.json").exists()

    def put(array, name="right", case="two", image=None):
        file = masks / case / f"{name}.nii.gz"
        kept = file.read_bytes()
        sitk.WriteImage(positioned(array, case) if image is None else image, str(file))
        return lambda: file.write_bytes(kept)

    refused("write it as NAME=DIR", given="masks")
    refused("there is no such folder", given=f"x={tmp_path / 'nowhere'}")
    refused("has no label 'lungs'", "heart, left, right", arguments=["--map", "totalseg:lungs=left"])
    refused("'lungs' is no class", "left, right", arguments=["--map", "totalseg:left=lungs"])
    refused("no source 'total'", arguments=["--map", "total:left=left"])
    refused("--min-confidence 1.5", arguments=["--min-confidence", "1.5"])
    nothing = ["--map", "totalseg:left,right=background"]
    refused("none is a class of this dataset", "--map totalseg:LABEL=CLASS", arguments=nothing)

    missing = (masks / "two" / "right.nii.gz").read_bytes()
    (masks / "two" / "right.nii.gz").unlink()
    refused("right of case two", "has no file", str(masks / "two" / "right.nii.gz"), "--cases")
    (masks / "two" / "right.nii.gz").write_bytes(missing)

    undo = put(np.maximum(landmarks("two")["left"], landmarks("two")["right"]))
    refused("overlaps the masks of left", "--map totalseg:LABEL=background")
    undo()
    for value, shown in ((1.25, "1.25"), (-0.5, "-0.5"), (np.nan, "NaN"), (255, "255")):
        undo = put((landmarks("two")["right"] * value).astype(np.float32))
        refused(f"holds the value {shown}", "right.nii.gz")
        undo()
    undo = put(None, image=positioned(landmarks("two")["right"], "one"))  # another patient's header
    refused("two_0000.nii.gz", "right.nii.gz", "differ in origin")
    undo()
    shutil.rmtree(tmp_path / "out")
    undo = put(np.roll(landmarks("one")["left"], 8, 1), "left", "one")
    refused("the masks of case one do not lie on its manual labels")
    undo()


def test_masks_in_the_air_are_of_another_scan():
    from nnunet_partial.data.predictions import outside_body

    ct = np.full((6, 40, 40), -1000.0)
    ct[:, 10:30, 8:32] = 40
    ct[:, 14:26, 12:18] = -800  # a lung: air that does not reach the edge
    mask = np.zeros(ct.shape, bool)
    mask[2:4, 14:26, 12:18] = True
    assert outside_body(ct, mask) == 0
    assert outside_body(ct, np.roll(mask, 20, 2)) == 1
    assert outside_body(ct, np.zeros_like(mask)) == 0


def test_exchanged_sides_are_named():
    truth = np.zeros((1, 4, 10), int)
    truth[..., :4], truth[..., 6:] = 1, 2
    tool = knowledge.Predictions("tool", None, {1: "left", 2: "right"}, False)
    numbers = np.where(truth > 0, 3 - truth, 0)
    with pytest.raises(knowledge.UserError, match="calls left lies on the manual labels of right"):
        knowledge.agreement(knowledge.PlacedPrediction(tool, numbers, None), "x", truth, {"left": 1, "right": 2})
    assert knowledge.agreement(knowledge.PlacedPrediction(tool, truth, None), "x", truth, {"left": 1}) == {"left": 1.0}


def test_doubt_by_hand():
    claims = [
        (np.array([1, 1, 0, 0]), np.array([0.9, 0.6, 0.7, 0.95], np.float32)),
        (np.array([2, 0, 0, 0]), np.array([0.95, 0.9, 0.99, 0.85], np.float32)),
    ]
    doubt = knowledge.Doubt((4,), [[1], [2]])
    assert [i[0].tolist() for i in doubt.watch(claims)] == [[1, 1, 0, 0], [2, 0, 0, 0]]
    labels, probability = np.array([2, 1, 0, 0]), np.array([0.95, 0.6, 0, 0])
    assert doubt.doubtful(labels, probability, 0.8).tolist() == [False, True, True, False]
    assert doubt.contested.tolist() == [True, False, False, False]  # the second does not know class 1
    assert doubt.disagreement(labels, {"a": 1, "b": 2}, np.ones(4, bool)) == {"a": 0.0, "b": 1.0}


def test_what_is_no_class_here_counts_as_background():
    logits = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = torch.softmax(image_space.collapsed(logits, (0, 2, 0, 1)), 0).double()
    p = torch.softmax(logits.double(), 0)
    assert torch.allclose(found, torch.stack([p[0] + p[2], p[3], p[1]]), atol=1e-6)
    assert image_space.collapsed(logits, range(4)) is logits
