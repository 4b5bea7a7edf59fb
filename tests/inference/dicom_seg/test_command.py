"""``predict-dicom`` from end to end: a folder as a hospital has it, a real model of nnU-Net, series that cannot be used."""

import importlib.util
import io
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree

from nnunet_partial.cli import main
from nnunet_partial.files import read_json, write_json
from nnunet_partial.inference import new_scans
from nnunet_partial.inference.dicom_seg.series import modality_of, series_of

pytestmark = pytest.mark.usefixtures("one_thread")
FAULTS = importlib.util.spec_from_file_location("faults", Path(__file__).parents[2] / "faults.py")
faults = importlib.util.module_from_spec(FAULTS)
sys.modules["faults"] = faults  # dataclasses look their module up
FAULTS.loader.exec_module(faults)
KILLS = 3
hand = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("by_hand.py"))))
pytest.importorskip("highdicom")

OBLIQUE = hand.Plane(**hand.rotated(15, -10, 30), spacing_mm=(2.0, 1.7, 2.5), origin_mm=(-10, -30, -20), shape=(18, 24, 26))
AXIAL = hand.Plane(spacing_mm=(2.0, 2.0, 2.5), origin_mm=(-20, -20, -20), shape=(18, 20, 22))


def uid_of(series):
    return str(hand.header(series, 0, "CT").SeriesInstanceUID)


def noise(points):
    """Grey values by the place alone, so that a series shows the same however it is cut."""
    return np.rint(60 * np.sin(points[..., 0] / 3) + 50 * np.cos(points[..., 1] / 4) + 30 * np.sin(points[..., 2] / 5)).astype(
        int
    )


def command(folder, out, model, *more):
    argv = ["predict-dicom", "-i", str(folder), "-o", str(out), "--model", str(model), "--device", "cpu", "--disable-tta"]
    return main([*argv, *map(str, more)])


def ended(capsys, *arguments):
    """``(exit code, stdout, stderr)`` of a command."""
    try:
        code = command(*arguments)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return code, told.out, told.err


def places_of_mask(file):
    """Where the voxels of an image file with values above 0 lie, in mm."""
    image = sitk.ReadImage(str(file))
    indices = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
    return np.array([image.TransformIndexToPhysicalPoint([int(j) for j in i]) for i in indices])


def same_places(found, wanted):
    assert len(found) == len(wanted)
    assert max(cKDTree(wanted).query(found)[0].max(), cKDTree(found).query(wanted)[0].max()) < 0.01


@pytest.fixture
def hospital(tmp_path):
    """Two CT series in one folder, one of them in two folders, an MR, a report, pictures and documents."""
    folder = tmp_path / "DICOM"
    reverse = list(reversed(range(18)))
    for k, file in enumerate(hand.write_series(folder / "A", OBLIQUE, noise, reverse, "1.{n}", "1")):
        if k % 2:
            (folder / "B" / "deep").mkdir(parents=True, exist_ok=True)
            file.rename(folder / "B" / "deep" / file.name)
    hand.write_series(folder / "A", AXIAL, noise, None, "IM{k}.dcm", "2")
    hand.write_series(folder / "C", AXIAL, noise, None, "{k}.dcm", "3", "MR")
    report = hand.header("4", 0, "CT")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    report.Modality = "SR"
    report.save_as(folder / "A" / "report.dcm", enforce_file_format=True)
    scout = hand.write_series(
        folder / "A", hand.Plane(shape=(1, 20, 22)), noise, None, "scout", "5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    assert len(scout) == 1
    (folder / "A" / "letter.pdf").write_bytes(b"%PDF-1.4 \xff")
    (folder / "DICOMDIR").write_bytes(b"\x00")
    (folder / "LICENSE").write_text("free")
    return folder


def test_a_folder_as_a_hospital_has_it(hospital, models, tmp_path, capsys):
    """What a model of nnU-Net finds lies where ``predict -i``, whose masks are tested against stock nnU-Net, finds it."""
    out, model = tmp_path / "seg", models["nih", "3d_fullres"]
    code, told, _ = ended(capsys, hospital, out, model)
    assert code == 0 and "2 series; " in told and "segmented 2 series" in told
    assert f"left out: {uid_of('3')} (MR, series 3 'Abdomen 3'): the model takes CT" in told
    assert f"left out: {uid_of('5')} (CT, series 5 'Abdomen 5'): a localizer" in told
    files = sorted(i.name for i in out.iterdir() if i.suffix == ".dcm")
    assert files == sorted(f"{uid_of(i)}.dcm" for i in "12")
    for series, plane in (("1", OBLIQUE), ("2", AXIAL)):
        hand.write_series(tmp_path / "alone" / series, plane, noise, None, "{k}.dcm", series)
    argv = ["predict", "-i", str(tmp_path / "alone"), "-o", str(tmp_path / "masks"), "--model", str(model), "--device", "cpu"]
    assert main([*argv, "--disable-tta"]) == 0
    for series in "12":
        found = hand.read_seg(out / f"{uid_of(series)}.dcm")
        wanted = places_of_mask(tmp_path / "masks" / f"{series}.nii.gz")
        assert list(found) == ["pancreas"] and len(wanted) > 100
        same_places(found["pancreas"], wanted)
        line = next(i for i in told.splitlines() if i.startswith(f"{uid_of(series)}.dcm: pancreas"))
        voxel_ml = np.prod((OBLIQUE if series == "1" else AXIAL).spacing_mm) / 1000
        assert float(line.split()[-2]) == pytest.approx(len(wanted) * voxel_ml, rel=1e-3)


def balls(points):
    """Grey values of a left and a right kidney: 100 and 200."""
    left, right = (((points - centre) ** 2).sum(-1) <= 36 for centre in ((12.0, 0.0, 2.0), (-10.0, 3.0, 0.0)))
    return 100 * left + 200 * right


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_left_and_right_stay_what_they_are_through_the_whole_way(reader, models, tmp_path, capsys, monkeypatch):
    """Reading, nnU-Net's reader (also one that turns the axes), its writer and the segmentation, in the patient's own mm. The
    network alone is replaced: grey values say what is what."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    model = tmp_path / "model"
    shutil.copytree(models["nih", "3d_fullres"], model)
    for name, change in (
        ("plans", {"image_reader_writer": reader}),
        ("dataset", {"labels": {"background": 0, "kidney_left": 1, "kidney_right": 2, "spleen": 3}}),
    ):
        write_json({**read_json(model / f"{name}.json"), **change}, model / f"{name}.json")
    # the weights are of another number of classes now, and are not used
    monkeypatch.setattr(
        new_scans,
        "_predictor",
        lambda *_: SimpleNamespace(
            dataset_json=read_json(model / "dataset.json"),
            plans_manager=SimpleNamespace(image_reader_writer_class=recursive_find_reader_writer_by_name(reader)),
        ),
    )

    def labels(predictor, files):
        image, properties = predictor.plans_manager.image_reader_writer_class().read_images(files)
        return np.rint(image[0] / 100).astype(np.uint8), properties

    monkeypatch.setattr(new_scans, "_labels", labels)
    planes = {
        "1": hand.Plane(**hand.rotated(15, -10, 30), spacing_mm=(1.1, 1.7, 2.5), origin_mm=(-14, -34, -22), shape=(20, 26, 46)),
        "2": hand.Plane((-1, 0, 0), (0, 1, 0), (1.5, 1.4, 3.0), (24, -15, 15), (12, 24, 34)),
        "3": hand.Plane((0, 1, 0), (0, 0, -1), (1.3, 1.6, 2.4), (24, -15, 14), (20, 18, 26)),
    }
    for series, plane in planes.items():
        hand.write_series(tmp_path / "in", plane, balls, list(reversed(range(plane.shape[0]))), series + "-{n}", series)
    code, told, _ = ended(capsys, tmp_path / "in", tmp_path / "out", model)
    assert code == 0 and told.count("not found: spleen") == 3
    for series, plane in planes.items():
        found = hand.read_seg(tmp_path / "out" / f"{uid_of(series)}.dcm")
        places = np.concatenate([plane.points(k).reshape(-1, 3) for k in range(plane.shape[0])])
        assert list(found) == ["kidney_left", "kidney_right"]
        same_places(found["kidney_left"], places[balls(places) == 100])
        same_places(found["kidney_right"], places[balls(places) == 200])
        assert found["kidney_left"][:, 0].mean() > 10 and found["kidney_right"][:, 0].mean() < -8
        segments = pydicom.dcmread(tmp_path / "out" / f"{uid_of(series)}.dcm").SegmentSequence
        sides = [
            i.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for i in segments
        ]
        assert sides == ["Left", "Right"]


def test_what_is_done_is_not_done_again(hospital, models, tmp_path, capsys):
    out, model = tmp_path / "seg", models["nih", "2d"]
    command(hospital, out, model)
    files = {i: i.read_bytes() for i in out.glob("*.dcm")}
    assert len(files) == 2
    victim = out / f"{uid_of('2')}.dcm"
    victim.write_bytes(files[victim][:-100])  # half a file is none
    capsys.readouterr()
    code, told, _ = ended(capsys, hospital, out, model)
    assert code == 0 and "segmented 1 series" in told and "1 were segmented before" in told
    other = out / f"{uid_of('1')}.dcm"
    assert other.read_bytes() == files[other]
    # whole again; its length may differ, for its new UIDs are not all of one length
    whole = pydicom.dcmread(io.BytesIO(files[victim]))
    assert pydicom.dcmread(victim).PixelData == whole.PixelData
    file = next((hospital / "C").parent.rglob("IM3.dcm"))
    dataset = pydicom.dcmread(file)
    dataset.SeriesDescription = "mended"
    dataset.save_as(file)
    _, told, _ = ended(capsys, hospital, out, model)
    assert "segmented 1 series" in told  # the series has changed
    code, _, err = ended(capsys, hospital, out, models["lits", "2d"])
    assert code == 2 and "holds predictions made from something else" in err and "--overwrite" in err
    assert ended(capsys, hospital, out, models["lits", "2d"], "--overwrite")[0] == 0
    assert {str(pydicom.dcmread(i).SegmentSequence[0].SegmentLabel) for i in out.glob("*.dcm")} == {"liver"}


def test_killed_at_any_moment_it_goes_on(hospital, models, tmp_path, forked):
    """What is there under its name is whole, what was noted as done stays as it is, and the end is that of a quiet run."""
    model = tmp_path / "models" / Path(models["nih", "2d"]).name
    shutil.copytree(models["nih", "2d"], model)
    root = tmp_path / "work"
    argv = ["predict-dicom", "-i", root / "in", "-o", root / "out", "--model", model, "--device", "cpu", "--disable-tta"]
    command = faults.Command(forked, root, lambda place: shutil.copytree(hospital, place / "in"), argv)
    command.begin()
    assert command.run() == 0, command.output()
    expected = segments_below(root / "out")
    assert len(expected) == 2
    operations = command.operations()
    for kill_at in np.random.default_rng(0).integers(operations // 4, operations + 1, KILLS).tolist():
        command.begin()
        assert command.run(kill_at=kill_at) == -9, command.output()
        segments_below(root / "out")  # raises for half a file
        noted = [root / "out" / i.name[: -len(".json")] for i in (root / "out").glob("records/*.json")]
        before = {i: i.read_bytes() for i in noted}
        assert command.run() == 0, command.output()
        assert {i: i.read_bytes() for i in noted} == before and not command.leftovers()
        found = segments_below(root / "out")
        assert set(found) == set(expected)
        for name, places in found.items():
            assert all(np.array_equal(places[i], expected[name][i]) for i in expected[name])


def segments_below(folder):
    return {i.name: hand.read_seg(i) for i in folder.glob("[0-9]*.dcm")}  # not what a killed process left


def test_series_that_cannot_be_used_are_named_and_the_others_done(models, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    hand.write_series(folder / "good", AXIAL, noise, None, "{k}.dcm", "1")
    hand.write_series(folder / "gap", AXIAL, noise, None, "{k}.dcm", "2")[7].unlink()
    twice = hand.Plane(spacing_mm=AXIAL.spacing_mm, origin_mm=AXIAL.origin_mm, shape=(6, 20, 22))
    for phase in range(3):  # one series, three images at each position
        files = hand.write_series(folder / "phases", twice, noise, [10 * phase + k for k in range(6)], "{n}.dcm", "3")
        assert len(files) == 6
    cut = hand.write_series(folder / "cut", AXIAL, noise, None, "{k}.dcm", "4")[5]
    cut.write_bytes(cut.read_bytes()[:-200])
    tilted = hand.write_series(folder / "tilted", AXIAL, noise, None, "{k}.dcm", "5")
    for k, file in enumerate(tilted):
        dataset = pydicom.dcmread(file)
        dataset.ImagePositionPatient[1] += 0.5 * k
        dataset.save_as(file)
    hand.write_series(folder / "frameless", AXIAL, noise, None, "{k}.dcm", "6", FrameOfReferenceUID=None)
    (folder / "good" / "lost.dcm").write_bytes(b"")
    for file in list((folder / "good").glob("1*.dcm")):
        (folder / "copies").mkdir(exist_ok=True)
        shutil.copy(file, folder / "copies")
    code, told, err = ended(capsys, folder, out, models["nih", "2d"])
    assert code == 3 and "5 series are NOT segmented and 1 files are damaged, named above" in err
    for words in (
        "1 slice(s) missing behind 6.dcm",
        "the series has 3 images at each of its 6 positions (4D",
        "5.dcm is truncated or damaged",
        "a tilted gantry",
        "has no FrameOfReferenceUID",
        "lost.dcm is no DICOM file though it is called like one",
    ):
        assert words in err, words
    assert len([i for i in err.splitlines() if i.startswith("not segmented: ")]) == 6
    assert [i.name for i in out.glob("*.dcm")] == [f"{uid_of('1')}.dcm"] and "9 files are copies of others" in told
    assert "segmented 1 series" in told


def test_folders_and_models_that_cannot_be_used(models, tmp_path, capsys, monkeypatch):
    model, folder, out = models["nih", "2d"], tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def refused(*arguments):
        before = {i: i.read_bytes() for i in tmp_path.rglob("*") if i.is_file()}
        code, _, err = ended(capsys, *arguments)
        assert code == 2 and len([i for i in err.splitlines() if ": error: " in i]) == 1, err
        assert {i: i.read_bytes() for i in tmp_path.rglob("*") if i.is_file()} == before
        return err

    assert "does not exist" in refused(tmp_path / "none", out, model)
    (folder / "notes.txt").write_text("nothing")
    assert "none of its 1 files is a DICOM image" in refused(folder, out, model)
    hand.write_series(folder, AXIAL, noise, None, "{k}.dcm", "1", "MR")
    assert "it has 1 of MR; the first: " in refused(folder, out, model) and not out.exists()
    assert "is not there" in refused(folder, out, tmp_path / "no model")
    two = tmp_path / "two"
    shutil.copytree(model, two)
    write_json({**read_json(two / "dataset.json"), "channel_names": {"0": "T1", "1": "T2"}}, two / "dataset.json")
    assert "takes 2 channels (T1, T2), and a DICOM series has one" in refused(folder, out, two)
    write_json({**read_json(two / "dataset.json"), "channel_names": {"0": "R"}, "file_ending": ".png"}, two / "dataset.json")
    assert "is a model of pictures" in refused(folder, out, two)
    out.write_text("a file where the folder should be")
    assert "cannot be written" in refused(folder, out, model, "--modality", "MR")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.dcm").write_bytes(b"of somebody else")
    assert "holds files that this command has not made, such as a.dcm" in refused(
        folder, tmp_path / "truth", model, "--modality", "MR"
    )
    (tmp_path / "codes.csv").write_text("organ\n")
    assert "has no column name" in refused(folder, out, model, "--codes", tmp_path / "codes.csv")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert 'pip install "nnunet_partial[dicom]"' in refused(folder, out, model)


def test_another_modality_by_hand_and_codes_of_ones_own(models, tmp_path, capsys):
    model, folder = tmp_path / "model", tmp_path / "in"
    shutil.copytree(models["nih", "2d"], model)
    write_json({**read_json(model / "dataset.json"), "labels": {"background": 0, "Milz": 1}}, model / "dataset.json")
    hand.write_series(folder, AXIAL, noise, None, "{k}.dcm", "1", "MR")
    code, told, _ = ended(capsys, folder, tmp_path / "a", model, "--modality", "MR")
    assert code == 0 and "no SNOMED CT code is known for Milz: coded in the scheme 99NNUNET_PARTIAL" in told
    (tmp_path / "codes.csv").write_text("name,kind,code,meaning\nMilz,organ,78961009,Spleen\n")
    code, told, _ = ended(capsys, folder, tmp_path / "b", model, "--modality", "MR", "--codes", tmp_path / "codes.csv")
    assert code == 0 and "no SNOMED" not in told
    for name, scheme in (("a", "99NNUNET_PARTIAL"), ("b", "SCT")):
        (segment,) = pydicom.dcmread(next((tmp_path / name).glob("*.dcm"))).SegmentSequence
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == scheme


def test_grey_values_that_nothing_explains_are_to_be_looked_at(models, tmp_path, capsys):
    """A CT series that says nothing of Hounsfield units."""
    hand.write_series(tmp_path / "in", AXIAL, noise, None, "{k}.dcm", "1", RescaleSlope=None, RescaleIntercept=None)
    code, told, _ = ended(capsys, tmp_path / "in", tmp_path / "out", models["nih", "2d"])
    assert code == 0 and f"look at {uid_of('1')}.dcm: a CT series without rescale slope and intercept" in told


def test_nothing_found_is_said_and_not_looked_for_again(models, tmp_path, capsys, monkeypatch):
    real = new_scans._labels

    def none(*arguments):
        labels, properties = real(*arguments)
        return np.zeros_like(labels), properties

    monkeypatch.setattr(new_scans, "_labels", none)
    hand.write_series(tmp_path / "in", AXIAL, noise, None, "{k}.dcm", "1")
    code, told, _ = ended(capsys, tmp_path / "in", tmp_path / "out", models["nih", "2d"])
    assert code == 0 and f"{uid_of('1')}.dcm: nothing found of pancreas; no file is written" in told
    assert not list((tmp_path / "out").glob("*.dcm"))
    _, told, _ = ended(capsys, tmp_path / "in", tmp_path / "out", models["nih", "2d"])
    assert "segmented 0 series" in told and "1 were segmented before" in told


@pytest.mark.parametrize(
    "channel, modality",
    [
        ("CT", "CT"),
        ("ct_arterial", "CT"),
        ("cine MR", "MR"),
        ("T1w", "MR"),
        ("FLAIR", "MR"),
        ("PET", "PT"),
        ("contrast", None),
        ("PET/CT", None),
        ("0", None),
    ],
)
def test_modality_of_a_channel(channel, modality):
    assert modality_of(channel) == modality


def test_one_file_or_a_folder_within_that_of_the_results(tmp_path):
    """A result of an earlier run is no scan, wherever it lies."""
    files = hand.write_series(tmp_path / "in", AXIAL, noise, None, "{k}.dcm", "1")
    hand.write_series(tmp_path / "in" / "out", AXIAL, noise, None, "{k}.dcm", "2")
    assert [i.mask for i in series_of(tmp_path / "in", tmp_path / "in" / "out", "CT", progress=False).scans] == [
        f"{uid_of('1')}.dcm"
    ]
    (scan,) = series_of(files[3], tmp_path / "out", "CT", progress=False).scans
    assert scan.files == (files[3],)
