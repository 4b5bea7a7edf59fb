"""Pseudo labels as images: a scan that lies askew, is turned, cropped and resampled gets its labels back where they belong."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.files import write_json
from nnunet_partial.inference.label_images import write_label_images

CLASSES = ("liver", "kidney", "spleen")
SPACING_MM = (1.5, 1.0, 2.0)  # preprocessed, along the turned axes
PLANS = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "Dataset501_Tiny",
    "transpose_forward": [1, 2, 0],
    "transpose_backward": [2, 0, 1],
    "image_reader_writer": "SimpleITKIO",
    "foreground_intensity_properties_per_channel": {"0": {}},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "data",
            "preprocessor_name": "DefaultPreprocessor",
            "spacing": list(SPACING_MM),
            "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
            "normalization_schemes": ["NoNormalization"],
            "use_mask_for_norm": [False],
            **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
            "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
            "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        }
    },
}
# landmarks: a box a class (z, y, x), far from each other and from every mirror image of each other
BOXES = {1: np.s_[4:12, 6:14, 30:44], 2: np.s_[16:24, 22:34, 8:20], 3: np.s_[10:20, 34:44, 40:50]}


def scan():
    """Image and labels (z, y, x): a body in the air, which nnU-Net crops, with three landmarks."""
    image, label = np.zeros((30, 50, 60), np.float32), np.zeros((30, 50, 60), np.uint8)
    image[2:28, 4:46, 6:54] = 10
    for value, box in BOXES.items():
        label[box] = value
        image[box] = 10 + 10 * value
    return image, label


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """A label directory of one scan that lies askew in its file, preprocessed by nnU-Net: turned, cropped and resampled."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    dataset = {
        "channel_names": {"0": "noNorm"},
        "labels": {"background": 0, **{name: i for i, name in enumerate(CLASSES, 1)}},
        "file_ending": ".nii.gz",
    }
    folder = tmp_path / "preprocessed" / "Dataset501_Tiny"
    write_json(dataset, folder / "dataset.json")
    write_json(PLANS, folder / "nnUNetPlans.json")
    for name, array in zip(("image", "label"), scan()):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((1.25, 0.9, 2.5))
        image.SetOrigin((-20.0, 30.0, 7.0))
        image = sitk.DICOMOrient(image, "SRA")
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    plans = PlansManager(PLANS)
    files = ([str(tmp_path / "image.nii.gz")], str(tmp_path / "label.nii.gz"))
    _, seg, properties = DefaultPreprocessor(verbose=False).run_case(
        *files, plans, plans.get_configuration("3d_fullres"), dataset
    )
    assert tuple(seg.shape[1:]) != tuple(properties["shape_after_cropping_and_before_resampling"])  # it was resampled
    assert tuple(properties["shape_after_cropping_and_before_resampling"]) != tuple(properties["shape_before_cropping"])
    out, manager = tmp_path / "labels", LabelManager(dataset["labels"], None)
    record = {"annotated": ["liver"], "pseudo": ["kidney", "spleen"], "volume_mm3": dict.fromkeys(CLASSES, 1.0)}
    label_directory.write_case(out, "a", seg, properties, manager, seg.shape[1:], record)
    about = {"dataset": "Dataset501_Tiny", "plans": "nnUNetPlans", "configuration": "3d_fullres", "data_identifier": "data"}
    label_directory.finish(out, {**about, "classes": CLASSES}, ["a"])
    return out


def test_landmarks_come_back_to_where_they_are_in_the_scan(labels, tmp_path):
    write_label_images(labels, tmp_path / "nifti", "3d_fullres", progress=False)
    found, truth = (sitk.ReadImage(str(i)) for i in (tmp_path / "nifti" / "a.nii.gz", tmp_path / "label.nii.gz"))
    for get in (sitk.Image.GetSize, sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
        assert get(found) == pytest.approx(get(truth))
    statistics = [sitk.LabelShapeStatisticsImageFilter() for _ in range(2)]
    for one, image in zip(statistics, (found, truth)):
        one.Execute(sitk.Cast(image, sitk.sitkUInt8))
    assert statistics[0].GetLabels() == statistics[1].GetLabels() == (1, 2, 3)
    a, b = (sitk.GetArrayFromImage(i) for i in (found, truth))
    for value in (1, 2, 3):
        assert statistics[0].GetCentroid(value) == pytest.approx(statistics[1].GetCentroid(value), abs=0.7)  # mm
        assert 2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum()) > 0.85
    assert not a[0].any() and a.max() == 3  # nothing in what was cropped away
