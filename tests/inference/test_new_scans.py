"""New scans under names and in formats as people have them, against nnU-Net's own prediction of the same voxels."""

import io
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_partial.cli import main
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json
from nnunet_partial.inference.new_scans import folds_of, predict_scans, scans_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("Jörg Müller [1].nii.gz", "two words.nrrd", "KIDS/ANNA/ct.mha", "KIDS/BERT/ct.nii", "pair.mhd")
MASKS = {"pair.mhd": "pair.mha", "a.v2.NII.GZ": "a.v2.nii.gz"}


def raw_image(tiny, case="lits_000"):
    return tiny.folders.raw / tiny.name / "imagesTr" / f"{case}_0000.nii.gz"


def put(image, *files):
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(file))


def command(folder, out, model, *more):
    return main(["predict", "-i", str(folder), "-o", str(out), "--model", str(model), "--device", "cpu", "--disable-tta", *more])


def files_below(folder):
    return sorted(i.relative_to(folder).as_posix() for i in folder.rglob("*") if i.is_file())


def unmirrored(stock_model, image, folds=(0,)):
    """nnU-Net's own predictor, on the image as it lies in nnU-Net's raw folder."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
        predictor.initialize_from_trained_model_folder(str(stock_model), folds)
        return predictor.predict_from_files_sequential([[str(image)]], None)[0]


def test_masks_are_called_as_the_scans_and_are_those_of_stock_prediction(tiny, models, tmp_path, capsys):
    """Six formats and names, and a folder of DICOM files; documents beside them are nobody's scan."""
    folder, out, model = tmp_path / "new scans", tmp_path / "masks", models["nih", "3d_fullres"]
    image = sitk.ReadImage(str(raw_image(tiny)))
    put(image, *(folder / i for i in NAMES))
    shutil.copy(raw_image(tiny), folder / "a.v2.NII.GZ")
    (folder / "KIDS" / "notes.txt").write_text("a doctor's notes")
    (folder / ".hidden.nii.gz").write_text("not an image")
    assert command(folder, out, model) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"looking for scans in {folder}\n6 scans; ") and "wrote 6 masks" in told
    expected = unmirrored(model, raw_image(tiny))
    assert 0 < expected.mean() < 1
    for name in (*NAMES, "a.v2.NII.GZ"):
        mask = sitk.ReadImage(str(out / MASKS.get(name, name)))
        assert np.array_equal(sitk.GetArrayFromImage(mask), expected), name
        for header in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, header)() == pytest.approx(getattr(image, header)())
    masks = [i for i in files_below(out) if not i.startswith("records/") and not i.endswith(".json")]
    assert masks == sorted(MASKS.get(i, i) for i in (*NAMES, "a.v2.NII.GZ"))
    assert read_json(out / "dataset.json")["labels"] == {"background": 0, "pancreas": 1}


def test_a_turned_scan_is_handed_over_as_it_is(tiny, models, tmp_path):
    """NRRD along other axes: the mask lies on its voxels, and is what stock makes of the same file as NIfTI."""
    folder, out, model = tmp_path / "in", tmp_path / "out", models["nih", "3d_fullres"]
    image = sitk.DICOMOrient(sitk.ReadImage(str(raw_image(tiny))), "SRA")
    put(image, folder / "turned.nii", tmp_path / "stock_0000.nii.gz")
    assert command(folder, out, model) == 0
    mask = sitk.ReadImage(str(out / "turned.nii"))
    assert mask.GetDirection() == pytest.approx(image.GetDirection()) and mask.GetOrigin() == pytest.approx(image.GetOrigin())
    assert np.array_equal(sitk.GetArrayFromImage(mask), unmirrored(model, tmp_path / "stock_0000.nii.gz"))


def test_all_trained_folds_predict_together(tiny, models, tmp_path):
    model, folder = tmp_path / "trained", tmp_path / "in"
    shutil.copytree(models["lits", "3d_fullres"], model)
    shutil.copytree(model / "fold_0", model / "fold_3")
    checkpoint = torch.load(model / "fold_3" / "checkpoint_final.pth", weights_only=False)
    last = next(i for i in reversed(checkpoint["network_weights"]) if i.endswith("bias"))
    checkpoint["network_weights"][last] += torch.tensor([0.3, -0.3])
    torch.save(checkpoint, model / "fold_3" / "checkpoint_final.pth")
    put(sitk.ReadImage(str(raw_image(tiny))), folder / "scan.nii.gz")
    alone = {}
    for name, folds in (("mean", ()), ("first", ("--fold", "0")), ("second", ("--fold", "3"))):
        assert command(folder, tmp_path / name, model, *folds) == 0
        alone[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / "scan.nii.gz")))
    assert np.array_equal(alone["mean"], unmirrored(model, raw_image(tiny), (0, 3)))
    assert not np.array_equal(alone["mean"], alone["first"]) and not np.array_equal(alone["mean"], alone["second"])


def test_what_cannot_be_read_is_named_and_the_others_are_done(tiny, models, tmp_path, capsys):
    folder, out, model = tmp_path / "in", tmp_path / "out", models["nih", "2d"]
    image = sitk.ReadImage(str(raw_image(tiny)))
    put(image, folder / "good.nii.gz", folder / "cut.nii.gz")
    put(sitk.Compose([image, image]), folder / "two.mha")
    put(sitk.Cast(image + 500, sitk.sitkInt16), folder / "magnetic.nrrd")
    whole = (folder / "cut.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    array = sitk.GetArrayFromImage(image)
    array[3, 3, 3] = np.nan
    put(sitk.GetImageFromArray(array), folder / "nan.nrrd")
    with pytest.raises(SystemExit) as end:
        command(folder, out, model)
    told = capsys.readouterr()
    assert end.value.code == 3 and "3 scans are NOT segmented" in told.err and "wrote 2 masks" in told.out
    for words in (
        "cut.nii.gz is truncated",
        "nan.nrrd: 1 voxels are NaN",
        "two.mha: 2 channels are there, the model takes 1: CT",
    ):
        assert words in told.err
    assert "look at magnetic.nrrd: the lowest value is" in told.out and "look at good" not in told.out
    assert sorted(i.name for i in out.iterdir() if i.suffix in (".gz", ".nrrd", ".mha")) == ["good.nii.gz", "magnetic.nrrd"]
    (folder / "cut.nii.gz").write_bytes(whole)
    for name in ("nan.nrrd", "two.mha"):
        (folder / name).unlink()
    assert command(folder, out, model) == 0  # what is done is not done again
    assert "wrote 1 masks" in (told := capsys.readouterr().out) and "2 were there before" in told


def test_another_model_is_refused_and_files_of_others_stay(tiny, models, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    put(sitk.ReadImage(str(raw_image(tiny))), folder / "a.nii.gz")
    put(sitk.ReadImage(str(raw_image(tiny, "kits_005"))), folder / "b.nii.gz")
    assert command(folder, out, models["lits", "2d"]) == 0
    first = (out / "a.nii.gz").read_bytes()

    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            command(*arguments)
        errors = [i for i in capsys.readouterr().err.splitlines() if "error" in i]
        assert end.value.code == 2 and len(errors) == 1
        return errors[0]

    assert "--overwrite" in refused(folder, out, models["kits", "2d"])
    (out / "mine.nii.gz").write_bytes(b"precious")
    assert "mine.nii.gz is not of this command" in refused(folder, out, models["kits", "2d"], "--overwrite")
    assert (out / "a.nii.gz").read_bytes() == first
    (out / "mine.nii.gz").unlink()
    (folder / "b.nii.gz").unlink()
    assert command(folder, out, models["kits", "2d"], "--overwrite") == 0
    assert not (out / "b.nii.gz").exists()  # of the other model
    before = (folder / "a.nii.gz").read_bytes()
    assert "would replace the images" in refused(folder, folder, models["lits", "2d"])
    assert "not made" in refused(folder, tmp_path, models["lits", "2d"])
    assert "does not exist" in refused(tmp_path / "none", out, models["lits", "2d"])
    (tmp_path / "empty").mkdir()
    assert ".nrrd" in refused(tmp_path / "empty", out, models["lits", "2d"])
    assert "does not go with -i" in refused(folder, out, models["lits", "2d"], "--configuration", "2d")
    assert (folder / "a.nii.gz").read_bytes() == before


def test_a_model_that_is_not_there_brings_those_that_are(models, results, tmp_path):
    with pytest.raises(UserError, match=r"models/none is not there\. Trained are: .*nnUNetTrainerIndividual__"):
        folds_of("models/none")
    with pytest.raises(UserError, match="holds no fold_4/checkpoint_final.pth: train it first"):
        folds_of(models["lits", "2d"], ["4"])
    fold = Path(models["lits", "2d"]) / "fold_0"
    assert folds_of(fold) == [fold / "checkpoint_final.pth"]


def test_which_files_are_scans(tmp_path):
    def names(channels=1, pictures=False, source=tmp_path / "in"):
        return {i.mask: [j.name for j in i.files] for i in scans_of(source, tmp_path / "in" / "masks", channels, pictures)}

    for name in ("p1_0000.nii.gz", "p2_0000.nrrd", "masks/p1.nii.gz", "thumb.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert names() == {"p1.nii.gz": ["p1_0000.nii.gz"], "p2.nrrd": ["p2_0000.nrrd"]}  # nnU-Net's own names
    assert names(pictures=True) == {"thumb.png": ["thumb.png"]}
    assert list(names(source=tmp_path / "in" / "p2_0000.nrrd")) == ["p2.nrrd"]
    (tmp_path / "in" / "p2_0001.nrrd").touch()  # numbers of scans where there is one channel, of channels where there are two
    assert list(names()) == ["p1_0000.nii.gz", "p2_0000.nrrd", "p2_0001.nrrd"]
    assert names(2)["p2.nrrd"] == ["p2_0000.nrrd", "p2_0001.nrrd"]
    (tmp_path / "in" / "x.mha").touch()
    (tmp_path / "in" / "x.mhd").touch()
    with pytest.raises(UserError, match=r"would have one mask, x\.mha"):
        names()


def test_a_folder_of_dicom_files_is_one_scan(tiny, models, tmp_path):
    """Slices written by SimpleITK; the mask lies on the volume that they make."""
    image = sitk.Cast(sitk.ReadImage(str(raw_image(tiny))), sitk.sitkInt16)
    folder = tmp_path / "in" / "Anna CT"
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(image.GetDepth()):
        part = image[:, :, z]
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.7",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.7.{z + 1}",
            "0020|0032": "\\".join(str(i) for i in image.TransformIndexToPhysicalPoint((0, 0, z))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(part)
    put(image, tmp_path / "stock_0000.nii.gz")
    model = models["nih", "3d_fullres"]
    scans = scans_of(tmp_path / "in", tmp_path / "out")
    result = predict_scans(scans, tmp_path / "out", folds_of(model), mirroring=False, progress=False)
    assert result.done == ["Anna CT.nii.gz"] and os.listdir(tmp_path / "in") == ["Anna CT"]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "Anna CT.nii.gz")))
    assert np.array_equal(mask, unmirrored(model, tmp_path / "stock_0000.nii.gz"))
