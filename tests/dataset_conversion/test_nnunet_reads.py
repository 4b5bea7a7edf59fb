"""Stock nnU-Net reads every converted dataset on one set of axes, label on image."""

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.demo import phantoms

RAS = (slice(None), slice(None, None, -1), slice(None, None, -1))  # of an array in patient axes (LPS)


@pytest.mark.parametrize("source, organ", [("lits", (1, 2)), ("kits", (3, 4)), ("nih", (5,))])
def test_axes_are_the_same_for_every_source(source, organ, src, tiny_styles, run):
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    getattr(phantoms, f"make_{source}")(src, num_cases=3)
    report = run(source, src)
    content = load_json(report.folder / "dataset.json")
    files = get_filenames_of_train_images_and_targets(str(report.folder), content)
    reader = determine_reader_writer_from_dataset_json(content, list(files.values())[0]["images"][0], verbose=False)()
    for number, entry in enumerate(files.values(), start=source == "nih"):
        patient = phantoms.make_patient(phantoms._seed(0, source, number), tiny_styles[source])
        image, properties = reader.read_images(entry["images"])
        label, label_properties = reader.read_seg(entry["label"])
        assert np.array_equal(image[0], patient.ct[RAS]) and np.array_equal(label[0], np.isin(patient.organs, organ)[RAS])
        assert np.allclose(properties["spacing"], patient.spacing_mm[::-1], rtol=1e-4)
        assert np.allclose(label_properties["spacing"], properties["spacing"])


def test_integrity_check_of_nnunet_passes(src, tiny_styles, run, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    phantoms.make_kits(src, num_cases=2)
    verify_dataset_integrity(str(run("kits", src, "--organs", "kidney,tumor").folder), num_processes=1)


def test_prediction_goes_back_to_the_axes_of_the_file(src, tiny_styles, tmp_path, run):
    """What nnU-Net writes for a KiTS image lies on that image again."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient

    phantoms.make_kits(src, num_cases=1)
    report = run("kits", src)
    case = report.converted["case_00000"]
    reader = SimpleITKIOWithReorient()
    label, _ = reader.read_seg(str(report.folder / case.label))
    _, properties = reader.read_images(case.images)
    reader.write_seg(label[0], str(tmp_path / "prediction.nii.gz"), properties)
    written, truth = (sitk.ReadImage(str(i)) for i in (tmp_path / "prediction.nii.gz", report.folder / case.label))
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(truth))
    assert np.allclose(written.GetDirection(), truth.GetDirection()) and np.allclose(
        written.GetOrigin(), truth.GetOrigin(), atol=1e-3
    )
