"""Several models' probabilities as one label map: where they agree, overlap, or do not fit each other."""

import json
import pickle

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.errors import UserError
from nnunet_partial.inference.fuse import fuse

LABELS = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
SHAPE_ZYX, SPACING_XYZ = (2, 3, 4), (1.0, 2.0, 5.0)
# nnU-Net reads with SimpleITKIO and keeps this of an image
PROPERTIES = {
    "sitk_stuff": {"spacing": SPACING_XYZ, "origin": (7.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)},
    "spacing": list(SPACING_XYZ[::-1]),
}


def predictions(folder, classes, cases):
    """A folder as nnUNetv2_predict --save_probabilities leaves it. ``cases``: name -> probabilities of the foreground classes."""
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **{n: i + 1 for i, n in enumerate(classes)}}}))
    (folder / "plans.json").write_text(
        json.dumps({"image_reader_writer": "SimpleITKIO", "plans_name": "p", "configurations": {}})
    )
    for case, foreground in cases.items():
        foreground = np.asarray(foreground, np.float32)
        np.savez_compressed(
            folder / f"{case}.npz", probabilities=np.concatenate([1 - foreground.sum(0, keepdims=True), foreground])
        )
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(PROPERTIES))
    return folder


def volume(**voxels):
    """Probability 0.1 everywhere but at ``x`` of the first row: ``x2=0.9``."""
    result = np.full(SHAPE_ZYX, 0.1, np.float32)
    for name, value in voxels.items():
        result[0, 0, int(name[1:])] = value
    return result


@pytest.fixture
def models(tmp_path):
    """Model a knows liver and spleen, model b the kidney; both claim voxel 1 and voxel 2."""
    a = predictions(tmp_path / "a", ("spleen", "liver"), {"one": [volume(x3=0.7), volume(x0=0.8, x1=0.6, x2=0.55)]})
    b = predictions(tmp_path / "b", ("kidney",), {"one": [volume(x1=0.9, x2=0.52)]})
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}))
    return tmp_path, a, b


def test_the_higher_probability_decides(models):
    root, a, b = models
    for order, name in (((a, b), "ab"), ((b, a), "ba")):
        assert fuse(order, root / "dataset.json", root / name, progress=False) == ["one"]
        image = sitk.ReadImage(str(root / name / "one.nii.gz"))
        expected = np.zeros(SHAPE_ZYX, np.uint8)
        expected[0, 0] = [1, 2, 1, 3]  # liver alone; kidney 0.9 over liver 0.6; liver 0.55 over kidney 0.52; spleen alone
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
        assert image.GetSpacing() == SPACING_XYZ and image.GetOrigin() == PROPERTIES["sitk_stuff"]["origin"]
    assert json.loads((root / "ab" / "dataset.json").read_text())["labels"] == LABELS


def test_what_a_model_does_not_tell_apart_is_divided_by_those_that_do(models):
    """Model c is sure of liver or kidney at voxels 0, 1 and 3; of these a finds the liver likelier at 0 and b the kidney at 1."""
    root, a, b = models
    c = predictions(root / "c", ("liver+kidney",), {"one": [volume(x0=0.99, x1=0.99, x3=0.99)]})
    for order in ((a, b, c), (c, b, a)):
        out = root / "".join(i.name for i in order)
        assert fuse(order, root / "dataset.json", out, progress=False) == ["one"]
        # voxel 2: liver 0.55 against kidney 0.52; voxel 3: the spleen's 0.7 gives way, and a and b have 0.1 each for liver and kidney
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "one.nii.gz")))
        assert found[0, 0, :3].tolist() == [1, 2, 1] and found[0, 0, 3] in (1, 2) and not found[1:].any()
    with pytest.raises(UserError, match="c does not tell 'kidney' apart, and no other model does"):
        fuse([a, c], root / "dataset.json", root / "out", progress=False)
    with pytest.raises(UserError, match="does not tell all classes apart, and --rule mean"):
        fuse([a, b, c], root / "dataset.json", root / "out", progress=False, rule="mean")
    assert not (root / "out").exists()


def test_finished_cases_stay_and_probabilities_can_go(models, capsys):
    root, a, b = models
    argv = ["fuse", "--pred", str(a), str(b), "--dataset", str(root / "dataset.json"), "--out", str(root / "out")]
    cli.main([*argv, "--remove-probabilities"])
    assert not list(a.glob("*.npz")) and not list(b.glob("*.pkl")) and "fused 1 cases of 2 models" in capsys.readouterr().out
    before = (root / "out" / "one.nii.gz").stat().st_mtime_ns
    cli.main([*argv, "--remove-probabilities"])  # as after an interruption: nothing left to do
    assert (root / "out" / "one.nii.gz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda root, a, b: (b / "one.npz").rename(b / "two.npz"), "no probabilities of case"),
        (lambda root, a, b: [i.unlink() for i in [*a.glob("*.npz"), *b.glob("*.npz")]], "--save_probabilities"),
        (lambda root, a, b: (b / "dataset.json").unlink(), "--save_probabilities"),
        (lambda root, a, b: (a / "one.pkl").unlink(), "one.pkl does not exist"),
        (lambda root, a, b: np.savez_compressed(b / "one.npz", probabilities=np.zeros((2, 1, 3, 4))), "shape"),
        (lambda root, a, b: np.savez_compressed(b / "one.npz", probabilities=np.zeros((4, *SHAPE_ZYX))), "4 classes"),
        (lambda root, a, b: (b / "dataset.json").write_text('{"labels": {"background": 0, "lung": 1}}'), "'lung'"),
    ],
)
def test_what_does_not_fit_is_refused(models, change, message):
    root, a, b = models
    change(root, a, b)
    with pytest.raises(UserError, match=message):
        fuse([a, b], root / "dataset.json", root / "out", progress=False)
    assert not list((root / "out").glob("*.nii.gz"))


def test_another_datasets_folder_is_left_alone(models):
    root, a, b = models
    (root / "raw").mkdir()
    (root / "raw" / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(UserError, match="dataset.json of something else"):
        fuse((a, b), root / "dataset.json", root / "raw", progress=False)
    assert (root / "raw" / "dataset.json").read_text() == '{"labels": {}}' and len(list((root / "raw").iterdir())) == 1


def test_models_of_the_same_classes_are_fused_by_a_rule(models, capsys):
    root, *_ = models
    names = ("liver", "kidney")
    folders = [
        predictions(root / "axial", names, {"one": [volume(x0=0.6, x1=0.6), volume()]}),
        predictions(root / "coronal", names[::-1], {"one": [volume(), volume(x0=0.6, x2=0.2)]}),  # its classes in another order
        predictions(root / "sagittal", names, {"one": [volume(), volume(x0=0.85, x1=0.85, x2=0.7)]}),
    ]
    # voxel 0: liver 0.6, 0.6, kidney 0.85; voxel 1: liver 0.6, background 0.8, kidney 0.85; voxel 2: background twice, kidney 0.7
    expected = {"vote": [1, 0, 0], "mean": [1, 0, 0], "max": [2, 2, 0]}
    argv = ["fuse", "--pred", *map(str, folders), "--dataset", str(root / "dataset.json")]
    for rule, values in expected.items():
        cli.main([*argv, "--rule", rule, "--out", str(root / rule)])
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(root / rule / "one.nii.gz")))
        assert found[0, 0, :3].tolist() == values and not found[1:].any()
    with pytest.raises(SystemExit):  # another rule is another request
        cli.main([*argv, "--rule", "mean", "--out", str(root / "vote")])
    cli.main([*argv, "--rule", "max", "--out", str(root / "vote"), "--overwrite"])
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(root / "vote" / "one.nii.gz")))[0, 0, 0] == 2


def test_a_rule_is_for_models_of_the_same_classes(models):
    root, a, b = models
    with pytest.raises(UserError, match="other classes"):
        fuse([a, b], root / "dataset.json", root / "out", progress=False, rule="vote")
    with pytest.raises(UserError, match="no such rule"):
        fuse([a, b], root / "dataset.json", root / "out", progress=False, rule="median")
    assert not (root / "out").exists()
