"""Label directories: what is written, when a case counts as done, what training reads."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory, LabelledDataset
from nnunet_partial.errors import UserError
from nnunet_partial.labels import Annotations, CaseAnnotation

LABELS = {"background": 0, "liver": 1, "kidney": 2}


def seg_of(liver=0, kidney=0):
    seg = np.zeros((1, 6, 7, 8), np.int16)
    seg[0, 0] = -1
    seg[0, 2].flat[:liver] = 1
    seg[0, 4].flat[:kidney] = 2
    return seg


def write(folder, case, liver=10, kidney=5, pseudo=("kidney",), labels=LABELS, seg=None):
    volumes = {"liver": 2.0 * liver, "kidney": 2.0 * kidney}
    label_directory.write_case(
        folder,
        case,
        seg_of(liver, kidney) if seg is None else seg,
        {"spacing": [1, 1, 2], "class_locations": "old"},
        LabelManager(labels, None),
        (4, 4, 4),
        {"annotated": ["liver"], "pseudo": list(pseudo), "volume_mm3": volumes},
    )


def finish(folder, cases):
    header = {"dataset": "Dataset501_X", "data_identifier": "nnUNetPlans_3d_fullres", "classes": ["liver", "kidney"]}
    return label_directory.finish(folder, header, cases)


def test_what_is_written_is_read_and_locations_are_fresh(tmp_path):
    write(tmp_path, "a")
    seg, properties = label_directory.load_labels(tmp_path, "a")
    assert np.array_equal(seg[:], seg_of(10, 5)) and seg.dtype == np.int16
    assert properties["spacing"] == [1, 1, 2]
    for value, voxels in ((1, 10), (2, 5)):
        locations = properties["class_locations"][value]
        assert len(np.unique(locations, axis=0)) == voxels
        assert all(seg_of(10, 5)[tuple(i)] == value for i in locations)
    assert set(properties["class_locations"]) == {1, 2}
    assert not list(tmp_path.rglob(".tmp*"))


def test_locations_with_an_ignore_label_are_nnunets(tmp_path):
    seg = seg_of(10, 5)
    seg[0, 5] = 3
    write(tmp_path, "a", labels={**LABELS, "ignore": 3}, seg=seg)
    locations = label_directory.load_labels(tmp_path, "a")[1]["class_locations"]
    assert set(locations) == {1, 2, (-1, 0, 1, 2)}
    assert not any(seg[tuple(i)] == 3 for i in locations[(-1, 0, 1, 2)])


def test_a_case_that_is_written_again_is_not_done_meanwhile(tmp_path, monkeypatch):
    write(tmp_path, "a")
    finish(tmp_path, ["a"])
    before = label_directory.load_labels(tmp_path, "a")[0][:]

    def fail(*args):
        raise RuntimeError

    monkeypatch.setattr(label_directory, "class_locations", fail)
    with pytest.raises(RuntimeError):
        write(tmp_path, "a", liver=3)
    assert label_directory.read_record(tmp_path, "a") is None
    assert not np.array_equal(label_directory.load_labels(tmp_path, "a")[0][:], before)
    with pytest.raises(UserError, match="not finished.*run this"):
        LabelDirectory.read(tmp_path, "run this")


def test_annotated_sets_are_the_union_and_the_truth_is_unchanged(tmp_path):
    write(tmp_path, "a")
    finish(tmp_path, ["a"])
    truth = Annotations(("liver", "kidney"), {"a": CaseAnnotation("lits", ("liver",)), "b": CaseAnnotation("x", ())})
    completed = LabelDirectory.read(tmp_path).annotations(truth)
    assert completed.of("a") == CaseAnnotation("lits", ("liver", "kidney")) and completed.of("b").annotated == ()
    assert truth.of("a").annotated == ("liver",)


def test_mean_volumes_are_over_the_cases_that_show_the_class(tmp_path):
    write(tmp_path, "a", liver=10, kidney=0)
    write(tmp_path, "b", liver=20, kidney=4)
    finish(tmp_path, ["a", "b"])
    labels = LabelDirectory.read(tmp_path)
    assert labels.mean_volumes_mm3(["a", "b"]) == [30, 8]
    with pytest.raises(UserError, match="no training case shows kidney"):
        labels.mean_volumes_mm3(["a"])


def test_a_case_without_labels_or_classes_is_named(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", pseudo=())
    finish(tmp_path, ["a", "b"])
    labels = LabelDirectory.read(tmp_path)
    labels.require_cases(["a", "b"])
    labels.require_all_classes(["a"])
    with pytest.raises(UserError, match="case c "):
        labels.require_cases(["a", "c"])
    with pytest.raises(UserError, match="case b .* not of kidney"):
        labels.require_all_classes(["a", "b"])
    (tmp_path / "b.pkl").unlink()
    with pytest.raises(UserError, match="case b "):
        labels.require_cases(["a", "b"])


def test_the_dataset_takes_images_there_and_labels_here(tmp_path):
    class Images:
        identifiers, source_folder = ["a"], "/images"

        def load_case(self, identifier):
            return "image", self.truth, "previous", {"class_locations": {}}

    images = Images()
    images.truth = seg_of(1, 0)
    write(tmp_path, "a")
    dataset = LabelledDataset(images, tmp_path)
    data, seg, previous, properties = dataset["a"]
    assert (data, previous, dataset.identifiers) == ("image", "previous", ["a"])
    assert np.array_equal(seg[:], seg_of(10, 5)) and len(properties["class_locations"][2]) == 5
    images.truth = images.truth[:, :3]
    with pytest.raises(UserError, match="preprocessed again"):
        dataset["a"]
