"""Masks of a dataset's own cases from preprocessed files, against nnU-Net's own prediction of the raw images."""

import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.cli import main
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json
from nnunet_partial.inference import predict

CLASSES = ("liver", "kidney", "pancreas")
pytestmark = pytest.mark.usefixtures("one_thread")


def predicted(tiny, model, out, configuration="3d_fullres", **changes):
    return predict.predict_cases(tiny.id, configuration, model, out, plans=tiny.plans, progress=False, **changes)


def read(file):
    image = sitk.ReadImage(str(file))
    return sitk.GetArrayFromImage(image), image


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_masks_are_those_of_stock_prediction(tiny, models, stock, tmp_path, configuration):
    """The same voxels in the same geometry, with the dataset's values of a model that knows the pancreas alone."""
    model, cases = models["nih", configuration], ["lits_000", "kits_005"]
    (tmp_path / "names.txt").write_text("\n".join(cases))
    assert (
        main(
            [
                "predict",
                str(tiny.id),
                "--configuration",
                configuration,
                "--model",
                str(model),
                "--plans",
                tiny.plans,
                "-o",
                str(tmp_path / "out"),
                "--cases",
                str(tmp_path / "names.txt"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    for case in cases:
        expected = stock(model, case)
        found, mask = read(tmp_path / "out" / f"{case}.nii.gz")
        assert set(np.unique(expected)) == {0, 1} and found.dtype == np.uint8
        assert np.array_equal(found, np.where(expected == 1, 1 + CLASSES.index("pancreas"), 0))
        image = sitk.ReadImage(str(tiny.folders.raw / tiny.name / "imagesTr" / f"{case}_0000.nii.gz"))
        for name in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, name)() == getattr(image, name)()
    assert read_json(tmp_path / "out" / "dataset.json")["labels"] == {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3}


def test_which_cases(tiny, models, tmp_path, monkeypatch, capsys):
    """Every case, or those of the fold as the trainers have them."""
    asked = []
    monkeypatch.setattr(predict, "predict_cases", lambda *_, cases, **__: asked.append(cases) or [])
    command = ["predict", str(tiny.id), "--configuration", "3d_fullres", "--model", "M", "-o", str(tmp_path), "--device", "cpu"]
    split = read_json(tiny.preprocessed / "splits_final.json")[1]
    for given in ([], ["--cases", "training", "--fold", "1"], ["--cases", "validation", "--fold", "1"]):
        assert main([*command, *given]) == 0
    assert asked == [None, split["train"], split["val"]]
    monkeypatch.undo()
    with pytest.raises(SystemExit) as end:
        main([*command, "--cases", str(tmp_path / "no.txt")])
    assert end.value.code == 2 and "no.txt cannot be read" in capsys.readouterr().err
    done = predicted(tiny, models["lits", "2d"], tmp_path / "out", "2d", mirroring=False)
    assert done == sorted(read_json(tiny.preprocessed / "dataset.json")["nnunet_partial"]["cases"])


def test_interrupted_it_goes_on_and_another_model_is_refused(tiny, models, tmp_path, monkeypatch):
    out, cases = tmp_path / "out", ["kits_005", "lits_000", "nih_010"]
    write, written = predict._write, []

    def interrupted(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(predict, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predicted(tiny, models["lits", "3d_fullres"], out, cases=cases, mirroring=False)
    assert sorted(i.name for i in out.glob("*.nii.gz")) == ["kits_005.nii.gz"]
    monkeypatch.setattr(predict, "_write", write)
    assert predicted(tiny, models["lits", "3d_fullres"], out, cases=cases, mirroring=False) == cases[1:]
    assert predicted(tiny, models["lits", "3d_fullres"], out, cases=cases, mirroring=False) == []
    before = (out / "lits_000.nii.gz").read_bytes()
    for model, changes in ((models["kits", "3d_fullres"], {"mirroring": False}), (models["lits", "3d_fullres"], {})):
        with pytest.raises(UserError, match="made from something else.*--overwrite"):
            predicted(tiny, model, out, cases=cases, **changes)
    assert (out / "lits_000.nii.gz").read_bytes() == before
    assert predicted(tiny, models["kits", "3d_fullres"], out, cases=cases, mirroring=False, overwrite=True) == cases
    assert set(np.unique(read(out / "lits_000.nii.gz")[0])) <= {0, 2}
    old = (out / "kits_005.nii.gz").stat().st_mtime_ns
    assert predicted(tiny, models["kits", "3d_fullres"], out, cases=cases[1:], mirroring=False, overwrite=True) == cases[1:]
    assert (out / "kits_005.nii.gz").stat().st_mtime_ns == old  # of the same model, and not asked for


def test_bad_input_is_one_line_and_writes_nothing(tiny, models, tmp_path, capsys):
    truth = tmp_path / "truth"
    truth.mkdir()
    shutil.copy(tiny.folders.raw / tiny.name / "labelsTr" / "lits_000.nii.gz", truth)
    (tmp_path / "names").write_text("lits_999")
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "dataset.json").write_text("precious")
    model = models["lits", "3d_fullres"]
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    (damaged / "fold_0" / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    for changes, words in (
        ({"--model": str(tmp_path / "none")}, ("fold_0/checkpoint_final.pth", "Train it")),
        ({"--model": str(damaged)}, ("damaged or not a checkpoint", "train the model again")),
        ({"--model": models["lits", "2d"]}, ("trained with spacing",)),
        ({"--configuration": "3d_lowres"}, ("no configuration '3d_lowres'",)),
        ({"--plans": "nnUNetPlans_no"}, ("nnUNetPlans_no",)),
        ({"--cases": "validation", "--fold": "9"}, ("--fold 9", "folds 0 to 4")),
        ({"--cases": str(tmp_path / "names")}, ("lits_999_seg.b2nd does not exist",)),
        ({"-o": str(raw)}, ("not made", "dataset.json")),
        ({"-o": str(truth)}, ("not made", "lits_000.nii.gz")),
    ):
        arguments = {
            "--configuration": "3d_fullres",
            "--model": model,
            "--plans": tiny.plans,
            "-o": str(tmp_path / "out"),
            "--device": "cpu",
            **changes,
        }
        with pytest.raises(SystemExit) as end:
            main(["predict", str(tiny.id), *(i for pair in arguments.items() for i in pair)])
        errors = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and len(errors) == 1 and all(i in errors[0] for i in words), (changes, errors)
        assert not (tmp_path / "out").exists() and os.listdir(truth) == ["lits_000.nii.gz"]
        assert (raw / "dataset.json").read_text() == "precious" and len(os.listdir(raw)) == 1


@pytest.mark.parametrize(
    "shape, spacing, scan_shape, scan_spacing",
    [
        ((8, 10, 12), (2.0, 2.0, 2.0), (15, 17, 23), (1.1, 1.2, 1.05)),
        ((6, 10, 12), (5.0, 1.0, 1.0), (9, 21, 13), (3.3, 0.5, 0.9)),  # slices apart: nnU-Net treats them by themselves
        ((8, 10, 12), (2.0, 2.0, 2.0), (8, 10, 12), (2.0, 2.0, 2.0)),
    ],
)
def test_one_class_at_a_time_gives_the_labels_of_all_at_once(shape, spacing, scan_shape, scan_spacing):
    """Ties included: float16 logits of few values."""
    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    logits = torch.randint(-3, 4, (117, *shape), generator=torch.Generator().manual_seed(0)).half()
    kept = logits.clone()

    def resample(some, *geometry):
        seen.append(len(some))
        return resample_data_or_seg_to_shape(some, *geometry, is_seg=False, order=1, order_z=0, force_separate_z=None)

    seen = []
    labels = predict.resampled_labels(resample, logits, scan_shape, spacing, scan_spacing)
    assert set(seen) == {1} and torch.equal(kept, logits)
    expected = np.asarray(resample(logits, scan_shape, spacing, scan_spacing)).argmax(0)
    assert len(np.unique(expected)) > 20 and np.array_equal(labels, expected)
