"""Any folder: every format, several channels, DICOM, unlabelled cases, real CT, globs."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion.generic import Glob, case_name, case_names, parse_labels
from nnunet_partial.data.conversion import patient_of
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_stays_in_place(ending, src, tools, run):
    image = tools.write(src / "images" / f"anna{ending}", tools.grey(0))
    label = tools.label_with(0, (1, 4))
    tools.write(src / "labels" / f"anna{ending}", label)
    report = run(
        "generic", src, "--image-glob", f"images/*{ending}", "--label-glob", f"labels/*{ending}", "--labels", "liver=1,kidney=4"
    )
    tools.check(
        report,
        source="generic",
        classes=["liver", "kidney"],
        cases={"anna": ([image], tools.remap(label, {1: 1, 4: 2}), ["liver", "kidney"])},
    )


def test_dicom_folders_and_labels_beside_them(src, tools, run):
    cases = {}
    for number in (1, 2):
        patient = phantoms.make_patient(number, tools.tiny["nih"])
        phantoms.write_dicom_series(patient.ct_image(), src / f"patient {number}" / "CT")
        mask = patient.label_image({phantoms.LIVER: 1})
        sitk.WriteImage(mask, str(src / f"patient {number}" / "liver.nrrd"))
        cases[f"patient_{number}"] = ([patient.ct_image()], sitk.GetArrayFromImage(mask), ["liver"])
    report = run("generic", src, "--image-glob", "*/CT", "--label-glob", "*/liver.nrrd", "--labels", "liver=1")
    tools.check(report, source="generic", classes=["liver"], cases=cases)


def test_two_channels_and_a_case_that_lacks_one(src, tools, run):
    paths = [
        [tools.write(src / f"{case}_{channel}.mha", tools.grey(i + j)) for j, channel in enumerate(("t1", "t2"))]
        for i, case in enumerate("ab")
    ]
    tools.write(src / "c_t1.mha", tools.grey(7))
    label = tools.label_with(0, (1,))
    for case in "abc":
        tools.write(src / f"{case}_seg.mha", label)
    report = run(
        "generic",
        src,
        "--image-glob",
        "*_t1.mha",
        "--image-glob",
        "*_t2.mha",
        "--channels",
        "T1,T2",
        "--label-glob",
        "*_seg.mha",
        "--labels",
        "tumor=1",
    )
    tools.check(
        report,
        source="generic",
        classes=["tumor"],
        channels=("T1", "T2"),
        skipped={"c": "one of its channels is missing"},
        cases={"a": (paths[0], label, ["tumor"]), "b": (paths[1], label, ["tumor"])},
    )


def test_unlabelled_folder(src, tools, run):
    image = tools.write(src / "deep" / "er" / "x.nii.gz", tools.grey(0))
    report = run("generic", src, "--image-glob", "**/*.nii.gz", "--source-name", "ward3")
    tools.check(report, source="ward3", classes=[], cases={"deep_er_x": ([image], None, [])})
    assert "1 cases, 0 labelled, 0 skipped; no classes" in report.lines()[0]


def test_real_ct(src, run):
    if "NNUNET_PARTIAL_DATA" not in os.environ:
        pytest.skip("NNUNET_PARTIAL_DATA is not set")
    folder = Path(os.environ["NNUNET_PARTIAL_DATA"]) / "samples" / "ct"
    (src / "case1").mkdir()
    for name, new in (("example_ct_sm", "ct"), ("example_seg_fast", "seg")):
        (src / "case1" / f"{new}.nii.gz").write_bytes((folder / f"{name}.nii.gz").read_bytes())
    label = sitk.ReadImage(str(src / "case1" / "seg.nii.gz"))
    values = np.unique(sitk.GetArrayFromImage(label))[1:]
    names = ",".join(f"organ{v}={v}" for v in values)
    report = run("generic", src, "--image-glob", "*/ct.nii.gz", "--label-glob", "*/seg.nii.gz", "--labels", names)
    written = sitk.ReadImage(str(report.folder / report.converted["case1"].label))
    assert np.array_equal(sitk.GetArrayFromImage(written), np.searchsorted(values, sitk.GetArrayFromImage(label), side="right"))
    assert np.allclose(written.GetOrigin(), label.GetOrigin()) and report.converted["case1"].range == (-1100.0, 1207.0)


@pytest.mark.parametrize(
    "glob, path, case",
    [
        ("*/CT", "anna/CT", "anna"),
        ("images/*.nii.gz", "images/a b.nii.gz", "a b"),
        ("**/img?.mha", "x/y/img3.mha", "x/y_3"),
        ("**/scan.nii", "scan.nii", "case"),
        ("*.nii", "x.nii.gz", None),
        ("a/*.nii", "a/b/c.nii", None),
        ("img/*", "img/Anna [1].nii.gz", "Anna [1]"),
        ("*.nii*", "x.nii.gz", "x"),
        ("*.*", "x.1.mha", "x.1"),
        ("*/ct", "anna/ct.NII.GZ", "anna"),
        ("*{.nrrd,.nii.gz}", "b.nrrd", "b"),
        ("*{.nrrd,.nii.gz}", "b.mha", None),
        ("{ct,CT}_{*", "CT_{7.nii", "7"),
    ],
)
def test_what_wildcards_stand_for(glob, path, case):
    assert Glob(glob).case(path) == case


def test_names_of_cases_are_ascii_and_no_two_texts_share_one():
    assert [case_name(i) for i in ("a b", "x/y_3", "Anna-1.2")] == ["a_b", "x_y_3", "Anna-1.2"]
    texts = ["Müller", "Möller", "Muller", "李", "王", "Иванов", "é", "è", "e", "ß", "٣"]
    names = case_names(texts)
    assert len(set(names.values())) == len(texts) and all(i.isascii() for i in names.values())
    assert names["Müller"].startswith("Muller-") and names["Muller"] == "Muller"
    with pytest.raises(UserError, match="'a b' and 'a_b' would both become 'a_b'"):
        case_names(["a b", "a_b"])


def segmented(src, tools, images, labels, values=(1, 2)):
    """Image and label files of these names, ``img/*.mha`` and ``lab/*.mha``; returns label arrays by name."""
    arrays = {name: tools.label_with(i, values) for i, name in enumerate(labels)}
    for i, name in enumerate(images):
        tools.write(src / "img" / f"{name}.mha", tools.grey(i))
    for name, array in arrays.items():
        tools.write(src / "lab" / f"{name}.mha", array)
    return arrays


GLOBS = ("--image-glob", "img/*.mha", "--label-glob", "lab/*.mha", "--labels", "liver=1,tumor=2")


def test_names_are_compared_before_they_are_made_ascii(src, tools, run):
    nfc, nfd = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    arrays = segmented(src, tools, ["Müller", "p3", "李", "王", nfc], ["Möller", "p3", "王", "李", nfd])
    report = run("generic", src, *GLOBS)
    expected = {"p3": "p3", case_name("李"): "李", case_name("王"): "王", case_name(nfc): nfd}
    assert set(report.converted) == set(expected)
    for case, name in expected.items():
        written = sitk.ReadImage(str(report.folder / report.converted[case].label))
        assert np.array_equal(sitk.GetArrayFromImage(written), arrays[name]), name
        assert Path(report.converted[case].images[0]).stem == unicodedata.normalize("NFC", name)
    assert report.skipped == {
        case_name("Müller"): "Müller.mha has no label: lab/Müller.mha is not there; Möller?",
        case_name("Möller"): "Möller.mha has no image: img/Möller.mha is not there; Müller?",
    }


def test_a_case_annotates_what_its_file_shows_on_request(src, tools, run):
    segmented(src, tools, ["both", "liver", "tumor", "none"], [])
    arrays = {"both": (1, 2), "liver": (1,), "tumor": (2,), "none": ()}
    arrays = {name: tools.label_with(7, values) for name, values in arrays.items()}
    for name, array in arrays.items():
        tools.write(src / "lab" / f"{name}.mha", array)
    report = run("generic", src, *GLOBS, "--annotated-from", "present", "--unlabelled")
    sets = {"both": ["liver", "tumor"], "liver": ["liver"], "none": [], "tumor": ["tumor"]}
    cases = {k: ([src / "img" / f"{k}.mha"], arrays[k], v) for k, v in sets.items()}
    tools.check(report, source="generic", classes=["liver", "tumor"], cases=cases)
    report = run("generic", src, *GLOBS, "--annotated-from", "present", dataset_id=8)
    assert "none" not in report.converted and "shows none of the classes" in report.skipped["none"]


def test_part_of_a_class_does_not_count_and_is_named(src, tools, run):
    """The organ with its tumour cannot be told from a tumour outlined alone, so neither teaches background."""
    segmented(src, tools, ["a", "b"], ["a"])
    tools.write(src / "lab" / "b.mha", tools.label_with(0, (2,)))
    labels = (*GLOBS[:-1], "liver=1+2,tumor=2")
    report = run("generic", src, *labels, "--annotated-from", "present")
    assert report.converted["a"].annotated == ("liver", "tumor") and report.converted["b"].annotated == ("tumor",)
    assert any(
        "liver counts as not annotated: the label file shows its value 2 but not 1" in i for i in report.converted["b"].notes
    )


def test_a_table_says_what_a_case_annotates(src, tools, run, tmp_path):
    arrays = segmented(src, tools, ["a", "b", "Zoë"], ["a", "b", "Zoë"])
    table = tmp_path / "sets.csv"
    table.write_text("case,annotated,remark\na,liver+tumor,\nb,tumor,x\nZoë,,\nother,liver,\n", encoding="utf-8")
    report = run("generic", src, *GLOBS, "--annotated-from", table, "--unlabelled")
    sets = {"a": ["liver", "tumor"], "b": ["tumor"], case_name("Zoë"): []}
    files = {"a": "a", "b": "b", case_name("Zoë"): "Zoë"}
    expected = {"a": arrays["a"], "b": np.where(arrays["b"] == 2, 2, 0), case_name("Zoë"): None}
    for case, name in files.items():
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(report.folder / report.converted[case].label)))
        assert np.array_equal(written, np.zeros_like(written) if expected[case] is None else expected[case]), name
        assert list(report.converted[case].annotated) == sets[case]
    for text, words in (
        ("case,annotated\na,liver\nZoë,\n", "no line for the case b"),
        ("case,annotated\na,liver+spleen\n", "line 2: 'spleen' is no class"),
        ("case,annotated\na,liver\na,tumor\n", "line 3: 'a' is empty or there twice"),
        ("name,classes\na,liver\n", "the columns 'case' and 'annotated' are expected"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            run("generic", src, *GLOBS, "--annotated-from", table, dataset_id=9)
    with pytest.raises(UserError, match="cannot be read"):
        run("generic", src, *GLOBS, "--annotated-from", tmp_path / "missing.csv", dataset_id=9)


def test_a_case_that_shows_few_of_the_classes_is_named(src, tools, run):
    segmented(src, tools, ["a", "b"], ["a"], values=(1, 2, 3, 4))
    tools.write(src / "lab" / "b.mha", tools.label_with(0, (1,)))
    report = run("generic", src, *GLOBS[:-1], "liver=1,spleen=2,kidney=3,pancreas=4")
    assert report.converted["a"].notes == ()
    assert any(note.startswith("shows 1 of 4 classes (liver)") for note in report.converted["b"].notes)


def test_patients_of_several_cases(src, tools, run):
    names = {
        "patient012_frame07": "patient012",
        "BraTS-GLI-00001-001": "BraTS-GLI-00001",
        "BraTS-MET-00123-000": "BraTS-MET-00123",
        "BraTS20_Training_001": None,
        "BraTS2021_00003": None,
        "case_00000": None,
    }
    assert {name: patient_of(name) for name in names} == names
    segmented(src, tools, ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"], ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"])
    report = run("generic", src, *GLOBS)
    assert {i.patient for i in report.converted.values()} == {"BraTS-GLI-00001"}


def test_more_classes_than_a_byte_can_number(src, tools, run):
    label = np.arange(6 * 8 * 7, dtype=np.uint16).reshape(tools.shape) % 301
    tools.write(src / "img" / "a.mha", tools.grey(0))
    tools.write(src / "lab" / "a.mha", label)
    labels = ",".join(f"s{i}={i}" for i in range(1, 301))
    report = run("generic", src, *GLOBS[:-1], labels)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(report.folder / "labelsTr" / "a.nii.gz")))
    assert written.dtype == np.uint16 and np.array_equal(written, label)


@pytest.mark.parametrize("order", ["SAR", "LPS", "RAI", "ASL"])
def test_a_label_in_another_axis_order_is_reordered(src, tools, run, order):
    """The same places in space, stored another way: nothing is wrong with it."""
    tools.write(src / "img" / "a.mha", tools.grey(0))
    label = tools.label_with(0, (1, 2))
    (src / "lab").mkdir()
    sitk.WriteImage(sitk.DICOMOrient(tools.image(label), order), str(src / "lab" / "a.mha"))
    report = run("generic", src, *GLOBS)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(report.folder / "labelsTr" / "a.nii.gz")))
    assert np.array_equal(written, label)
    assert [("another order" in note) for note in report.converted["a"].notes] == ([] if order == "LPS" else [True])


def test_values_of_files_that_are_no_nifti_are_their_own(src, tools, run):
    """Range and NaN check read the voxels of the file, whatever memory is freed meanwhile."""
    image = tools.grey(0)
    image.reshape(-1)[:2] = -901, 905
    for ending in (".mha", ".nrrd", ".nii"):
        tools.write(src / f"a{ending[1:]}{ending}", image)
    for number, ending in enumerate((".mha", ".nrrd", ".nii")):
        report = run("generic", src, "--image-glob", f"*{ending}", "--unlabelled", dataset_id=10 + number)
        assert [i.range for i in report.converted.values()] == [(-901.0, 905.0)]


def test_a_label_elsewhere_is_still_refused(src, tools, run):
    tools.write(src / "img" / "a.mha", tools.grey(0))
    (src / "lab").mkdir()
    moved = tools.image(tools.label_with(0, (1, 2)), origin=(-10.0, 7.0, 101.5))
    sitk.WriteImage(sitk.DICOMOrient(moved, "SAR"), str(src / "lab" / "a.mha"))
    with pytest.raises(UserError, match="voxels"):
        run("generic", src, *GLOBS)


def test_labels_are_parsed():
    assert parse_labels("liver=1, kidney=2+3") == {"liver": (1,), "kidney": (2, 3)}
    for wrong in ("liver", "liver=0", "liver=x", "liver=1+"):
        with pytest.raises(UserError, match="is not NAME=VALUE"):
            parse_labels(wrong)


WARD = {"Anna Müller [1].nii.gz": 0, "Bérénice.nii": 1, "case 3.nrrd": 2, "dora.mha": 3}


def ward(src, tools, value=1):
    """A folder as a hospital has it: four formats of one kind, names with spaces, brackets and umlauts."""
    for name, seed in WARD.items():
        tools.write(src / "scans (2024)" / name, tools.grey(seed))
        tools.write(src / "Köpfe" / name.replace(".nii.gz", ".nrrd"), value * tools.label_with(seed, (1,)))
    (src / "scans (2024)" / "notes.txt").write_text("x")


OPEN = ("--image-glob", "scans (2024)/*", "--label-glob", "Köpfe/*")
CASES = {"Anna_Muller_1", "Berenice", "case_3", "dora"}


@pytest.mark.parametrize("globs", [OPEN, ("--image-glob", "scans*/*{.nii.gz,.nii,.nrrd,.mha}", "--label-glob", "Köpfe/*.n*")[:2]])
def test_formats_may_be_mixed_and_no_ending_is_part_of_a_name(globs, src, tools, run):
    ward(src, tools)
    report = run("generic", src, *globs, *(("--labels", "liver=1") if "--label-glob" in globs else ()))
    assert {i.split("-")[0].removeprefix("2024_") for i in report.converted} == CASES and not report.skipped
    assert {bool(i.annotated) for i in report.converted.values()} == {"--label-glob" in globs}


def test_two_formats_of_one_case_are_named(src, tools, run):
    ward(src, tools)
    tools.write(src / "scans (2024)" / "dora.nii.gz", tools.grey(3))
    with pytest.raises(UserError, match="gives both .*dora.* and .*dora.* the name 'dora'"):
        run("generic", src, *OPEN, "--labels", "liver=1")


def test_a_table_names_the_files(src, tools, run, tmp_path):
    ward(src, tools)
    table = tmp_path / "cases.csv"
    lines = [
        "case;image;label;patient;annotated",
        "p1;scans (2024)/Anna Müller [1].nii.gz;Köpfe/Anna Müller [1].nrrd;anna;",
        "p2;scans (2024)/dora.mha;;anna;",
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    arguments = ("--table", table, "--labels", "liver=1")
    report = run("generic", src, *arguments, "--unlabelled")
    label = tools.label_with(0, (1,))
    scans = [src / "scans (2024)" / i for i in ("Anna Müller [1].nii.gz", "dora.mha")]
    cases = {"p1": ([scans[0]], label, ["liver"]), "p2": ([scans[1]], None, [])}
    tools.check(report, source="generic", classes=["liver"], cases=cases, patients={"p1": "anna", "p2": "anna"})
    for text, words in (
        ("name,image\na,b\n", "the columns 'case' are expected, found name, image"),
        ("case,scan\na,b\n", "the column 'image' is expected, or image_0, image_1, ...; found case, scan"),
        ("case,image\na,x\na,y\n", "line 3: 'a' is empty or there twice"),
        ("case,image\na,../x.nii\n", "lies outside"),
        ("case,image\na,gone.nii\n", "gone.nii is missing"),
        ("case,image,label,annotated\na,scans (2024)/dora.mha,Köpfe/dora.mha,spleen\n", "line 2: 'spleen' is no class"),
    ):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            run("generic", src, *arguments, "--unlabelled", dataset_id=9)


def test_each_kind_of_reason_is_told_when_nothing_is_converted(src, tools, run):
    segmented(src, tools, ["a", "b", "c"], ["a", "b"], values=(1, 2))
    with pytest.raises(UserError, match=r"c: c.mha has no label: lab/c.mha is not there; a: .*value 2.*--labels NAME=VALUE; b: "):
        run("generic", src, *GLOBS[:-1], "liver=1")


def test_the_value_of_the_only_class_is_offered(src, tools, run):
    ward(src, tools, value=255)
    with pytest.raises(UserError, match="holds the label value 255; .*; if that is kidney, write --labels kidney=255"):
        run("generic", src, *OPEN, "--labels", "kidney=1")


def test_a_class_that_no_label_shows_is_refused(src, tools, run):
    segmented(src, tools, ["a", "b"], ["a", "b"])
    with pytest.raises(UserError, match="--labels names spleen, which no label file shows.*--allow-absent"):
        run("generic", src, *GLOBS[:-1], "liver=1,tumor=2,spleen=7")
    assert run("generic", src, *GLOBS[:-1], "liver=1,tumor=2,spleen=7", "--allow-absent").organs.classes[-1] == "spleen"


def test_grey_values_that_are_no_hounsfield_units_need_a_name(src, tools, run):
    tools.write(src / "a.mha", np.abs(tools.grey(0)))
    with pytest.raises(UserError, match="a: its values, .* are no Hounsfield units.*--channels MR"):
        run("generic", src, "--image-glob", "*")
    assert run("generic", src, "--image-glob", "*", "--channels", "MR").converted
    assert run("generic", src, "--image-glob", "*", "--channels", "CT", dataset_id=8).converted


def test_a_foreign_folder_is_told_what_is_expected(src, tools, run):
    ward(src, tools)
    with pytest.raises(UserError, match=r"release \(.*Anna.*\): expected are ``case_NNNNN/imaging.nii.gz``.*kits --help"):
        run("kits", src)
    with pytest.raises(UserError, match=r"\): nothing matches \*\.dcm, relative to that folder"):
        run("generic", src, "--image-glob", "*.dcm")
