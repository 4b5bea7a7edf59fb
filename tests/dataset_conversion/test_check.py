"""``nnunet_partial check``: quiet on good data, and each thing that can be wrong is found and named."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli
from nnunet_partial.data.check import inspection
from nnunet_partial.demo import phantoms

LIVER = {phantoms.LIVER: 1, phantoms.LIVER_TUMOUR: 1}


@pytest.fixture
def dataset(src, tools, run):
    """``dataset(change={case: function(ct, label) -> (ct, label)})`` converts eight livers, some changed; -> its
    folder.
    """

    def make(change=None, number=8, dataset_id=7, first=0):
        for case in range(first, first + number):
            patient = phantoms.make_patient([11, case], tools.tiny["lits"])
            ct, label = patient.ct_image(), patient.label_image(LIVER)
            if change and case in change:
                ct, label = change[case](ct, label)
            sitk.WriteImage(ct, str(src / f"volume-{case}.nii.gz"), True)
            sitk.WriteImage(label, str(src / f"segmentation-{case}.nii.gz"), True)
        return run("lits", src, dataset_id=dataset_id).folder

    return make


def findings(folder, against=()):
    found = inspection.inspect(folder, against, processes=1).findings
    return [(i.level, i.kind, i.case) for i in found if i.level != "note"], " ".join(i.text for i in found)


def header_mirrored(axis):
    """The voxels stay, the header says that they run the other way along ``axis``, about the same centre."""

    def change(ct, label):
        for image in (ct, label):
            direction = list(image.GetDirection())
            size, spacing, origin = image.GetSize(), image.GetSpacing(), list(image.GetOrigin())
            origin[axis] += (size[axis] - 1) * spacing[axis]
            direction[4 * axis] = -1.0
            image.SetDirection(direction)
            image.SetOrigin(origin)
        return ct, label

    return change


def test_good_data_gives_no_finding(dataset):
    assert findings(dataset()) == ([], "")


@pytest.mark.parametrize("axis, words", [(0, "liver lies .* to the patient's left"), (1, "the spine lies .* in front")])
def test_mirrored_patient(axis, words, dataset):
    found, text = findings(dataset({3: header_mirrored(axis)}))
    assert ("warning", "anatomy", "lits_003") in found and {i[2] for i in found} == {"lits_003"} and re.search(words, text)


def test_upside_down_patient(src, tools, run):
    for case in (1, 2):
        patient = phantoms.make_patient(case, tools.tiny["kits"])
        ct = patient.ct_image()
        label = patient.label_image({**LIVER, phantoms.KIDNEY: 2, phantoms.KIDNEY_TUMOUR: 2})
        ct, label = header_mirrored(2)(ct, label) if case == 2 else (ct, label)
        sitk.WriteImage(ct, str(src / f"{case}_ct.nii.gz"))
        sitk.WriteImage(label, str(src / f"{case}_seg.nii.gz"))
    folder = run(
        "generic", src, "--image-glob", "*_ct.nii.gz", "--label-glob", "*_seg.nii.gz", "--labels", "liver=1,kidney=2"
    ).folder
    assert findings(folder)[0] == [("warning", "anatomy", "2")]


GREY = {
    "counts from 0": (lambda a: a + 1024, "count from 0 for air"),
    "8 bit": (lambda a: np.clip((a + 160) / 400 * 255, 0, 255).astype(np.uint8), "8 bit pictures"),
    "constant": (lambda a: a * 0 + 7, "the image is constant"),
}


@pytest.mark.parametrize("name", GREY)
def test_values_that_are_no_hounsfield_units(name, dataset):
    change, words = GREY[name]

    def grey(ct, label):
        other = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(ct)))
        other.CopyInformation(ct)
        return other, label

    found, text = findings(dataset({5: grey}))
    assert [(i[1], i[2]) for i in found if i[1] == "intensity"] == [("intensity", "lits_005")] and words in text


def test_empty_label_and_unusual_volume(dataset):
    def empty(ct, label):
        return ct, label * 0

    def shrunk(ct, label):
        return ct, sitk.BinaryErode(label, (2, 2, 2))

    found, text = findings(dataset({2: empty, 6: shrunk}))
    assert found == [("warning", "empty label", "lits_002"), ("warning", "volume", "lits_006")] and "ml is usual" in text


def test_duplicates_also_when_mirrored_or_stored_in_another_order(dataset, src):
    folder = dataset(number=3)
    for name in ("volume", "segmentation"):
        image = sitk.ReadImage(str(src / f"{name}-0.nii.gz"))
        sitk.WriteImage(sitk.DICOMOrient(image, "RAS"), str(src / f"{name}-10.nii"))
        mirrored = sitk.Flip(image, (True, False, False))
        mirrored.CopyInformation(image)
        sitk.WriteImage(mirrored, str(src / f"{name}-11.nii.gz"), True)
    shutil.rmtree(folder)
    found, text = findings(dataset(number=3))
    assert ("error", "duplicate", "lits_010") in found and ("error", "duplicate", "lits_011") in found
    assert "the same image as lits_000" in text and "the same voxels, in another order, as lits_000" in text


def test_duplicate_that_a_window_has_clipped(dataset, src):
    folder = dataset(number=3)
    shutil.copy(src / "segmentation-0.nii.gz", src / "segmentation-10.nii.gz")
    image = sitk.ReadImage(str(src / "volume-0.nii.gz"))
    sitk.WriteImage(sitk.Clamp(image, image.GetPixelID(), -300, 500), str(src / "volume-10.nii.gz"))
    shutil.rmtree(folder)
    found, text = findings(dataset(number=3))
    assert ("error", "duplicate", "lits_010") in found
    assert "the same scan, with other values clipped, as lits_000" in text


def changed(function):
    """``function(hu, label)`` (z, y, x) -> both changed; geometry and type of the image are kept unless it is float."""

    def change(ct, label):
        arrays = function(sitk.GetArrayFromImage(ct), sitk.GetArrayFromImage(label))
        images = [sitk.GetImageFromArray(np.ascontiguousarray(i)) for i in arrays]
        for image in images:
            image.CopyInformation(ct)
        return tuple(images)

    return change


def test_label_that_is_mirrored_and_its_image_is_not(dataset):
    found, text = findings(dataset({3: changed(lambda hu, label: (hu, np.flip(label, 2)))}))
    assert ("warning", "placement", "lits_003") in found and {i[2] for i in found} == {"lits_003"}
    assert "mirrored from left to right the label would lie on its organs" in text


def test_label_of_another_place(dataset):
    found, text = findings(dataset({3: changed(lambda hu, label: (hu, np.roll(label, (6, 7), (1, 2))))}))
    assert ("warning", "placement", "lits_003") in found and {i[2] for i in found} == {"lits_003"}
    assert re.search(r"\d+% of liver have nearly one grey value, where \d+% are usual", text)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_nan_and_infinite_voxels(ending, dataset, src):
    folder = dataset(number=3)
    image = sitk.Cast(sitk.ReadImage(str(src / "volume-1.nii.gz")), sitk.sitkFloat32)
    image[3, 3, 3], image[4, 4, 4] = float("nan"), float("inf")
    file = src / f"volume-1{ending}"
    sitk.WriteImage(image, str(file))
    content = json.loads((folder / "dataset.json").read_text())
    content["dataset"]["lits_001"]["images"] = [str(file)]
    (folder / "dataset.json").write_text(json.dumps(content))
    found, text = findings(folder)
    assert found == [("error", "intensity", "lits_001")] and "2 voxels are NaN or infinite" in text


def raised(first, last, by=1024):
    """The slices ``first`` to ``last`` of an image, from the feet, lie higher, as if their intercept had been lost."""

    def change(hu, label):
        hu = hu.astype(np.int32)
        hu[first:last] += by
        return hu.astype(np.int16), label

    return changed(change)


def test_slices_that_lost_their_rescale_intercept(dataset):
    found, text = findings(dataset({1: raised(10, None), 2: raised(7, 8, -1000)}, number=4))
    assert [i for i in found if i[1] == "intensity"] == [("error", "intensity", "lits_001"), ("error", "intensity", "lits_002")]
    jumps = [(int(hu), int(number)) for hu, number in re.findall(r"([+-]\d+) HU after slice (\d+)", text)]
    assert [n for _, n in jumps] == [10, 7, 8]
    assert [hu for hu, _ in jumps] == pytest.approx([1024, -1000, 1000], abs=20)  # and what the body changes by itself


def test_empty_slices_are_padding():
    hu = np.random.default_rng(0).integers(-100, 300, (8, 10, 10))
    assert inspection.slice_jumps(hu) == ()
    hu[:3] = -3024
    assert inspection.slice_jumps(hu) == ()


def test_case_that_annotates_less_than_its_source(src, run, tools):
    for case in range(7):
        patient = phantoms.make_patient([11, case], tools.tiny["kits"])
        values = {**LIVER, phantoms.KIDNEY: 2, phantoms.KIDNEY_TUMOUR: 2, phantoms.PANCREAS: 3}
        sitk.WriteImage(patient.ct_image(), str(src / f"{case}_ct.nii.gz"))
        sitk.WriteImage(patient.label_image(values if case != 4 else LIVER), str(src / f"{case}_seg.nii.gz"))
    folder = run(
        "generic", src, "--image-glob", "*_ct.nii.gz", "--label-glob", "*_seg.nii.gz", "--labels", "liver=1,kidney=2,pancreas=3"
    ).folder
    found, text = findings(folder)
    assert found == [("warning", "annotated", "4")] and "shows liver alone, where nearly all" in text


def test_label_along_other_axes_than_its_image(dataset):
    """Right with the reader that the converters name, an error with a reader that takes files as they are."""
    folder = dataset(number=3)
    file = folder / "labelsTr" / "lits_001.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "SAR"), str(file))
    assert findings(folder)[0] == []
    content = json.loads((folder / "dataset.json").read_text())
    del content["overwrite_image_reader_writer"]
    (folder / "dataset.json").write_text(json.dumps(content))
    found, text = findings(folder)
    assert found == [("error", "contract", "")] and "store the same grid along other axes (LPS and SAR)" in text


def test_nothing_to_check_is_an_error(dataset, tmp_path, capsys):
    folder = dataset(number=2)
    content = json.loads((folder / "dataset.json").read_text())
    content = {**content, "numTraining": 0, "dataset": {}, "nnunet_partial": {"version": 1, "cases": {}}}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "7", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "has no training case" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_leakage_into_a_test_set(dataset, src, run, tmp_path):
    folder = dataset(number=3)
    (folder / "imagesTs").mkdir()
    sitk.WriteImage(
        sitk.DICOMOrient(sitk.ReadImage(str(src / "volume-1.nii.gz")), "RAI"), str(folder / "imagesTs" / "t_0000.nii.gz")
    )
    (tmp_path / "test").mkdir()
    shutil.copy(src / "volume-0.nii.gz", tmp_path / "test" / "x.nii.gz")
    other = run("generic", tmp_path / "test", "--image-glob", "*.nii.gz", "--unlabelled", dataset_id=9).folder
    found, text = findings(folder, [other])
    assert found == [("error", "leakage", "lits_000"), ("error", "leakage", "lits_001")]
    assert "the same image as x of Dataset009_Generic" in text and "the same image as t of imagesTs" in text


def test_orders_of_axes_that_nobody_brings_together(dataset):
    folder = dataset({1: lambda ct, label: (sitk.DICOMOrient(ct, "RAS"), sitk.DICOMOrient(label, "RAS"))})
    assert findings(folder)[0] == []
    content = json.loads((folder / "dataset.json").read_text())
    del content["overwrite_image_reader_writer"]
    (folder / "dataset.json").write_text(json.dumps(content))
    found, text = findings(folder)
    assert found == [("error", "orientation", "")] and "LPS 7, RAS 1" in text


def test_placeholder_voxel_size(dataset):
    def placeholder(ct, label):
        for image in (ct, label):
            image.SetSpacing((1, 1, 1))
        return ct, label

    found, _ = findings(dataset({4: placeholder}))
    assert ("warning", "spacing", "lits_004") in found and {i[2] for i in found} == {"lits_004"}


def test_broken_contract_and_unreadable_image(dataset, src):
    folder = dataset(number=3)
    label = sitk.ReadImage(str(folder / "labelsTr" / "lits_001.nii.gz"))
    label[2, 2, 2] = 9
    sitk.WriteImage(label, str(folder / "labelsTr" / "lits_001.nii.gz"))
    data = (src / "volume-2.nii.gz").read_bytes()
    (src / "volume-2.nii.gz").write_bytes(data[: len(data) // 2])
    found, text = findings(folder)
    assert ("error", "unreadable", "lits_002") in found and ("error", "contract", "") in found
    assert "holds the value 9" in text and "truncated or damaged" in text


def test_command_writes_text_json_and_pictures(dataset, tmp_path, capsys):
    folder = dataset()
    cli.main(["check", "7", "--out", str(tmp_path / "out"), "--processes", "1"])
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "check.txt").read_text()
    assert text in printed
    assert "Dataset007_LiTS: 8 cases, channels CT" in text and "source lits: 8 cases; annotated: liver 8" in text
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert content["findings"] == [] and len(content["cases"]) == 8
    patient = phantoms.make_patient([11, 0], phantoms.coarser(phantoms.STYLES["lits"], 2))
    expected = np.isin(patient.organs, (1, 2)).sum() * np.prod(patient.spacing_mm) / 1000
    assert np.isclose(content["cases"]["lits_000"]["volumes_ml"]["liver"], expected, rtol=1e-4)
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "check.png")))
    assert picture.shape[0] > 500 and len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 100
    shown = json.loads(re.search(r'id="viewer-cases">(.*?)</script>', (tmp_path / "out" / "check.html").read_text(), re.S)[1])
    assert [i["name"] for i in shown] == list(content["cases"]) and shown[0]["windows"][0][0] == "abdomen"
    assert [[name for _, name, _ in i["colours"]] for i in shown[0]["layers"]] == [content["cases"]["lits_000"]["annotated"]]
    assert not [i for i in folder.iterdir() if i.name not in ("dataset.json", "conversion.json", "labelsTr")], (
        "the dataset is not written to"
    )


def test_command_exits_with_1_on_errors_and_2_on_bad_input(dataset, tmp_path, capsys):
    folder = dataset(number=2)
    label = folder / "labelsTr" / "lits_001.nii.gz"
    image = sitk.ReadImage(str(label))
    image[0, 0, 0] = 5
    sitk.WriteImage(image, str(label))
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "7", "--out", str(tmp_path / "out"), "--pdf", "--processes", "1"])
    assert stop.value.code == 1 and (tmp_path / "out" / "check.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "8"])
    assert stop.value.code == 2 and "dataset id 008" in capsys.readouterr().err


def test_real_ct_and_segmentation(src, run):
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "ct"
    shutil.copy(folder / "example_ct_sm.nii.gz", src / "1_ct.nii.gz")
    shutil.copy(folder / "example_seg_fast.nii.gz", src / "1_seg.nii.gz")
    values = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(src / "1_seg.nii.gz"))))[1:]
    names = ",".join({5: "liver", 1: "spleen", 6: "stomach"}.get(int(v), f"other{v}") + f"={v}" for v in values)
    result = run("generic", src, "--image-glob", "*_ct.nii.gz", "--label-glob", "*_seg.nii.gz", "--labels", names)
    found = inspection.inspect(result.folder, processes=1)
    assert not [i for i in found.findings if i.level != "note"], found.findings
    assert found.facts[0].bone_y_mm > 10, "the spine is behind the middle of the body"


def test_a_finding_says_what_to_do_and_doing_it_helps(dataset, capsys, monkeypatch, tmp_path):
    """A label that is mirrored against its image: the command that the finding prints mends it, and twice undoes it."""
    monkeypatch.chdir(tmp_path)
    folder = dataset({3: changed(lambda hu, label: (hu, np.flip(label, 2)))})
    file = folder / "labelsTr" / "lits_003.nii.gz"
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    capsys.readouterr()
    assert cli.main(["check", "7", "--processes", "1"]) == 0
    told = capsys.readouterr().out
    assert (
        told.startswith(f"looking at {folder}\n")
        and told.splitlines()[-1] == f"pictures: {folder.parent}/check_{folder.name}/check.png"
    )
    assert not list(tmp_path.glob("check_*"))  # beside the dataset, not wherever one stands
    flip = "relabel 007 --flip left-right --case lits_003"
    assert f"nnunet_partial {flip}. Or look at it; if it is right: nnunet_partial check 007 --accept placement:lits_003" in told
    assert "look at it; if it is right: nnunet_partial check 007 --accept anatomy:lits_003" in told
    assert cli.main(flip.split()) == 0
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), stored[:, :, ::-1])
    assert findings(folder) == ([], "")
    assert json.loads((folder / "relabelled.json").read_text()) == {"lits_003": ["left-right"]}
    assert cli.main(flip.split()) == 0
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), stored)


def test_a_finding_that_is_right_is_accepted_until_it_changes(dataset, capsys):
    folder = dataset({3: header_mirrored(0)}, number=4)
    assert [i[1] for i in findings(folder)[0]] == ["anatomy"]
    assert cli.main(["check", "7", "--processes", "1", "--accept", "anatomy:lits_003"]) == 0
    assert "note: anatomy: lits_003: accepted: liver lies" in capsys.readouterr().out
    assert findings(folder)[0] == []
    known = json.loads((folder / inspection.ACCEPTED).read_text())
    (folder / inspection.ACCEPTED).write_text(json.dumps([{**i, "text": "something else"} for i in known]))
    assert [i[1] for i in findings(folder)[0]] == ["anatomy"]
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "7", "--processes", "1", "--accept", "anatomy:lits_004"])
    assert end.value.code == 2 and "Did you mean anatomy:lits_003?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--flip", "sideways", "--case", "lits_000"], "write left-right, front-back, head-feet"),
        (["--flip", "left-rigth", "--case", "lits_000"], "Did you mean left-right?"),
        (["--flip", "left-right", "--case", "lits_00"], "lits_000?"),
        (["--flip", "left-right", "--case", "lits_001"], "outside Dataset007_LiTS"),
    ],
)
def test_relabel_refuses_before_it_writes(arguments, words, dataset, capsys, tmp_path):
    folder = dataset(number=2)
    content = json.loads((folder / "dataset.json").read_text())
    elsewhere = tmp_path / "elsewhere.nii.gz"
    shutil.copy(folder / "labelsTr" / "lits_001.nii.gz", elsewhere)
    content["dataset"]["lits_001"]["label"] = str(elsewhere)
    (folder / "dataset.json").write_text(json.dumps(content))
    before = (folder / "labelsTr" / "lits_000.nii.gz").read_bytes(), elsewhere.read_bytes()
    with pytest.raises(SystemExit) as end:
        cli.main(["relabel", "7", *arguments])
    assert end.value.code == 2 and words in capsys.readouterr().err
    assert before == ((folder / "labelsTr" / "lits_000.nii.gz").read_bytes(), elsewhere.read_bytes())


def test_a_direction_is_the_patients_whatever_the_order_of_the_axes(dataset, tmp_path):
    """A file stored as SAR: left and right run along its third axis, the array's first."""
    from nnunet_partial.data.flip import flip_labels

    folder = dataset({1: lambda ct, label: (sitk.DICOMOrient(ct, "SAR"), sitk.DICOMOrient(label, "SAR"))}, number=2)
    file = str(folder / "labelsTr" / "lits_001.nii.gz")
    before = sitk.ReadImage(file)
    flip_labels(folder, ["lits_001"], ["left-right"])
    after = sitk.ReadImage(file)
    assert after.GetDirection() == before.GetDirection()
    turned = [sitk.GetArrayFromImage(sitk.DICOMOrient(i, "LPS")) for i in (before, after)]
    assert np.array_equal(turned[1], turned[0][:, :, ::-1]) and not np.array_equal(*turned)


def test_titles_of_pictures_end_with_a_word():
    from nnunet_partial.data.check.page import _title

    lines = _title(
        inspection.Finding("warning", "placement", "a", "mirrored from head to feet the label would lie on its organs " * 3)
    )
    assert len(lines) == 2 and all(len(i) <= 52 for i in lines) and lines[1].endswith(" ...")
    assert all(
        word in "placement: mirrored from head to feet the label would lie on its organs ..." for i in lines for word in i.split()
    )
    assert _title(None) == []
