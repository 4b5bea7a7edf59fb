"""The viewer of pages: where its voxels lie, what fits into a page, and, in a browser, that it shows what it should."""

import base64
import gzip
import json
import pickle
import re
import runpy
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli, palette
from nnunet_partial.data.images import Geometry
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.report import scenes, viewer

TEMPLATE = "check.html.j2"
CONTENT = {"title": "Cases", "words": "words", "picture": None, "file": "none"}
SPACING_XYZ, ORIGIN = (2.0, 2.5, 3.0), (-40.0, 30.0, 500.0)
# (z, y, x) along left, back and head: an organ in the middle, a bright landmark at the patient's right, in front and above
ORGAN, LANDMARK = np.s_[10:21, 14:26, 18:32], np.s_[17:20, 6:9, 10:13]
MIDDLE_XYZ = (11, 7, 18)  # of the landmark


def hu():
    image = np.random.default_rng(0).normal(-60, 10, (30, 40, 50)).astype(np.float32)
    image[:, :2] = -1000
    image[ORGAN], image[LANDMARK] = 60, 400
    return image


def organ(shift=0):
    label = np.zeros((30, 40, 50), np.uint8)
    label[ORGAN] = 1
    return np.roll(label, shift, axis=2)


def scene(**changes):
    layers = [
        viewer.Layer("truth", organ(), {1: ("liver", palette.TRUTH)}),
        viewer.Layer("Good", organ(2), {1: ("liver", palette.PREDICTION)}),
        viewer.Layer("Poor", organ(5), {1: ("liver", palette.GREEN)}, shown=False),
    ]
    return replace(viewer.Scene("a case", hu(), layers, SPACING_XYZ[::-1], ORIGIN, "CT"), **changes)


def volume(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def cases_of(page):
    return json.loads(re.search(r'id="viewer-cases">(.*?)</script>', page, re.S)[1])


# ------------------------------------------------------------------ what is written into a page


def test_voxels_keep_their_place_and_values():
    packed = viewer.pack(scene())
    image = volume(packed["image"])
    # 20 mm around the three layers together: z 10..20, y 14..25, x 18..36
    assert image.shape == (10 + 19 + 10, 8 + 12 + 8, 7 + 11 + 7) and image.get_data_dtype() == np.int16
    values = image.get_fdata()
    expected = hu()[3:28, 6:34, 8:47].transpose()
    assert np.abs(values - expected).max() <= viewer.CT_STEP_HU / 2
    place = nib.affines.apply_affine(image.affine, np.argwhere(values > 300).mean(0))
    in_dicom = np.array(ORIGIN) + np.array(MIDDLE_XYZ) * SPACING_XYZ
    np.testing.assert_allclose(place, in_dicom * (-1, -1, 1), atol=1e-4)  # NIfTI counts to the right and to the front
    for layer, shift in zip(packed["layers"], (0, 2, 5)):
        labels = volume(layer["labels"])
        np.testing.assert_array_equal(labels.get_fdata(), organ(shift)[3:28, 6:34, 8:47].transpose())
        np.testing.assert_array_equal(labels.affine, image.affine)
        assert labels.header.get_intent()[0] == "label"  # NiiVue outlines no other
    assert [i["shown"] for i in packed["layers"]] == [True, True, False]
    assert packed["start"] == pytest.approx(
        nib.affines.apply_affine(image.affine, (24.5 - 8, 19.5 - 6, 15 - 3)).tolist(), abs=0.01
    )


def test_windows_are_those_of_ct_or_percentiles():
    assert viewer.pack(scene())["windows"] == [["abdomen", -160, 240], ["lung", -1350, 150], ["bone", -500, 1300]]
    image = np.random.default_rng(0).gamma(2, 100, (30, 40, 50))
    packed = viewer.pack(scene(image=image, channel="T1"))
    inside = image[3:28, 6:34, 8:47]
    assert packed["windows"][0] == ["1 to 99 %", *(pytest.approx(i) for i in np.percentile(inside, (1, 99)))]
    stored = volume(packed["image"])
    low, high = np.percentile(inside, (0.1, 99.9))
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_allclose(stored.get_fdata(), np.clip(inside, low, high).transpose(), atol=(high - low) / 255 * 0.51)
    # without air it is no CT, whatever it is called; a flat image has a window too
    assert viewer.pack(scene(image=np.full((30, 40, 50), 7.0)))["windows"][0][0] == "1 to 99 %"


def test_large_cases_are_shown_in_blocks(monkeypatch):
    monkeypatch.setattr(viewer, "VOXELS", 39 * 28 * 25 // 3)
    packed = viewer.pack(scene())
    image, labels = volume(packed["image"]), volume(packed["layers"][0]["labels"])
    assert image.shape == labels.shape == (39 // 2, 28 // 2, 25) and "2 x 2 x 1 voxels" in packed["note"]
    np.testing.assert_allclose(image.header.get_zooms(), (4, 5, 3))
    expected = hu()[3:28, 6:34, 8:46].reshape(25, 14, 2, 19, 2).mean((2, 4)).transpose()
    assert np.abs(image.get_fdata() - expected).max() <= viewer.CT_STEP_HU / 2 + 1e-3
    # a block is in the organ if at least half of it is: the volume stays what it was
    assert labels.get_fdata().sum() * 4 == organ().sum()
    place = nib.affines.apply_affine(image.affine, np.argwhere(labels.get_fdata()).mean(0))
    whole = np.array(ORIGIN) + np.argwhere(organ()).mean(0)[::-1] * SPACING_XYZ
    np.testing.assert_allclose(place, whole * (-1, -1, 1), atol=1e-4)


@pytest.mark.parametrize(
    "shape,spacing,expected",
    [
        ((100, 100, 100), (1, 1, 1), (1, 1, 1)),
        ((50, 400, 400), (5, 0.7, 0.7), (1, 3, 2)),
        ((1, 4000, 4000), (1, 1, 1), (1, 4, 3)),
    ],
)
def test_the_finest_axes_are_joined_first(shape, spacing, expected):
    assert viewer.blocks(shape, spacing) == expected


def test_what_is_missing_is_said():
    packed = viewer.pack(scene(image=None))
    assert packed["note"] == "The image is not there." and packed["windows"] == []
    empty = [viewer.Layer("truth", np.zeros((30, 40, 50), np.uint8), {1: ("liver", palette.TRUTH)})]
    assert volume(viewer.pack(scene(layers=empty))["image"]).shape == (50, 40, 30)  # nothing to crop around


def test_a_page_stays_below_its_limit_and_names_what_it_leaves_out(monkeypatch):
    one = len(json.dumps(viewer.pack(scene())))
    bare = len(viewer.render(TEMPLATE, CONTENT, lambda: [scene()]).encode()) - one
    monkeypatch.setattr(viewer, "PAGE_BYTES", int(bare + 2.5 * one))
    ranks = {"third <&>": (2,), "first": (0,), "second": (1,)}
    page = viewer.render(TEMPLATE, CONTENT, lambda: [scene(name=k, rank=v) for k, v in ranks.items()])
    assert [i["name"] for i in cases_of(page)] == ["first", "second"] and len(page.encode()) <= viewer.PAGE_BYTES
    assert "Left out, as the page would be larger than 25 MB: third &lt;&amp;&gt;." in page
    monkeypatch.setattr(viewer, "PAGE_BYTES", bare)
    page = viewer.render(TEMPLATE, CONTENT, lambda: [scene()])
    assert "There is no room on this page" in page and "<script" not in page and len(page) < 20_000


def test_a_page_without_cases_says_so():
    page = viewer.render(TEMPLATE, CONTENT, tuple)
    assert "No case in 3D with labels." in page and "<script" not in page


def test_names_end_no_script():
    page = viewer.render(TEMPLATE, CONTENT, lambda: [scene(name="</script><script>alert(1)</script>")])
    assert cases_of(page)[0]["name"] == "</script><script>alert(1)</script>"
    assert "<script>alert" not in page


def test_without_the_package_the_page_says_how_to_get_it(monkeypatch):
    def read():
        raise AssertionError("cases that cannot be shown are read")

    monkeypatch.setattr(viewer, "PACKAGE", "no_such_package")
    viewer.niivue.cache_clear()
    try:
        page = viewer.render(TEMPLATE, CONTENT, read)
    finally:
        viewer.niivue.cache_clear()
    assert "pip install &#34;nnunet_partial[viewer]&#34;" in page
    assert "<script" not in page and "script-src" not in page


def test_a_program_that_is_not_known_is_said(monkeypatch):
    monkeypatch.setattr(viewer, "_CLASS", re.compile("nothing like it (.)"))
    viewer.niivue.cache_clear()
    try:
        program, reason = viewer.niivue()
    finally:
        viewer.niivue.cache_clear()
    assert program == "" and re.search(r"version of ipyniivue, \d+\.\d+\.\d+, is not known", reason)


def test_the_program_carries_its_licence_and_loads_nothing():
    program, reason = viewer.niivue()
    assert reason == "" and program.startswith("/* NiiVue") and "BSD 2-Clause License" in program[:300]
    page = viewer.render(TEMPLATE, CONTENT, lambda: [scene()])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src( 'sha256-[\w+/]+=*'){2}", policy
    )


# ------------------------------------------------------------------ preprocessed cases


@pytest.mark.parametrize("orientation,transpose", [("LPS", (0, 1, 2)), ("PIR", (1, 0, 2)), ("SAL", (2, 0, 1))])
def test_preprocessed_cases_lie_where_the_scan_does(tmp_path, orientation, transpose):
    """nnU-Net's own preprocessing (transposed, cropped, resampled) of a scan that is stored in another order of axes."""
    import blosc2
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    array = np.zeros((30, 40, 50), np.float32)
    array[5:25, 5:35, 5:45] = 10
    array[LANDMARK] = 400
    image = scenes.oriented(array, Geometry((50, 40, 30), SPACING_XYZ, ORIGIN, tuple(np.eye(3).ravel())))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / "a_0000.nii.gz"))
    resampling = "resample_data_or_seg_to_shape"
    order = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "own_3d",
        "architecture": {},
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{i}": resampling for i in ("data", "seg")},
        **{f"resampling_fn_{i}_kwargs": order for i in ("data", "seg")},
    }
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d": configuration},
    }
    (tmp_path / "ownPlans.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    data, _, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(tmp_path / "a_0000.nii.gz")], None, manager, manager.get_configuration("3d"), {"channel_names": {"0": "CT"}}
    )
    folder = tmp_path / "own_3d"
    folder.mkdir()
    blosc2.asarray(np.ascontiguousarray(data), urlpath=str(folder / "a.b2nd"))
    (folder / "a.pkl").write_bytes(pickle.dumps(properties))
    labels = np.where(data[0] > 200, 1, -1).astype(np.int8)
    found = scenes.Preprocessed(folder).scene("a", "a", [("labels", labels, {1: ("landmark", palette.TRUTH)}, True)], (0,))
    assert found is not None
    centre = np.argwhere(found.layers[0].labels == 1).mean(0)[::-1]
    place = np.array(found.origin_mm) + centre * np.array(found.spacing_mm)[::-1]
    np.testing.assert_allclose(place, np.array(ORIGIN) + np.array(MIDDLE_XYZ) * SPACING_XYZ, atol=0.8)
    np.testing.assert_allclose(found.spacing_mm, 1.5, rtol=0.05)
    assert found.image[found.layers[0].labels == 1].min() > 200


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of two methods on three cases, whose files are stored in another order of axes."""
    root = tmp_path_factory.mktemp("viewer")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 0, "file_ending": ".nii.gz"}
    (root / "Dataset501_Liver").mkdir()
    (root / "Dataset501_Liver" / "dataset.json").write_text(json.dumps(content))
    geometry = Geometry((50, 40, 30), SPACING_XYZ, ORIGIN, tuple(np.eye(3).ravel()))
    argv = ["report", "--dataset", str(root / "Dataset501_Liver"), "--out", str(root / "report.html")]

    def write(array, folder, name):
        (root / folder).mkdir(exist_ok=True)
        image = sitk.DICOMOrient(scenes.oriented(array, geometry), "PIR")
        sitk.WriteImage(image, str(root / folder / f"{name}.nii.gz"), True)

    for case in range(3):
        write(hu(), "imagesTs", f"t{case}_0000")
        write(organ(), "labelsTs", f"t{case}")
        write(organ(1 + case), "Good", f"t{case}")
        write(organ(4 + case), "Poor & <b>old", f"t{case}")
    for name in ("Poor & <b>old", "Good"):
        where = (root / name, root / "labelsTs", root / "Dataset501_Liver", root / "ev" / name)
        evaluate_folder(*where, annotated="all", processes=1, progress=False)
        argv += ["--evaluation", f"{name}={root / 'ev' / name}"]
    assert cli.main(argv) == 0
    return root / "report.html"


def test_the_report_holds_worst_median_and_best(page):
    held = cases_of(page.read_text(encoding="utf-8"))
    assert [i["name"].partition(", Dice")[0] for i in held] == ["liver, worst: t2", "liver, median: t1", "liver, best: t0"]
    for case in held:
        assert [i["name"] for i in case["layers"]] == ["truth", "Good", "Poor & <b>old"]
    first = [[np.argwhere(volume(i["labels"]).get_fdata())[:, 0].min() for i in case["layers"]] for case in held]
    assert [[good - truth, poor - truth] for truth, good, poor in first] == [[3, 6], [2, 5], [1, 4]]
    assert page.stat().st_size < viewer.PAGE_BYTES


driver = runpy.run_path(str(Path(__file__).parents[1] / "browser.py"))
CANVAS, STATUS = "#viewer-canvas", "document.getElementById('viewer-status').textContent"
OPENED = "document.getElementById('viewer-stage').dataset.case"


def count(picture, colour, within=16):
    """How many pixels are of a colour such as #56b4e9."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(-1) <= within).sum())


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with driver["Browser"](tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def opened(chromium, page):
    """A browser with the page, whose viewer shows its first case and has the focus. Its console stays silent."""
    chromium.open(page)
    chromium.js("document.getElementById('viewer').scrollIntoView()")
    chromium.wait(OPENED)
    chromium.js(f"document.querySelector('{CANVAS}').focus()")
    yield chromium
    assert chromium.complaints() == []


def test_layers_windows_and_cases_are_switched(opened):
    pictures = {"at first": opened.picture(CANVAS)}
    assert count(pictures["at first"], palette.TRUTH) > 100 and count(pictures["at first"], palette.PREDICTION) > 100
    assert count(pictures["at first"], palette.GREEN) == 0
    for key, colour, on in (("1", palette.TRUTH, False), ("3", scenes.LAYERS[2], True), ("1", palette.TRUTH, True)):
        opened.key(key)
        pictures[key, on] = opened.picture(CANVAS)
        assert (count(pictures[key, on], colour) > 100) == on, key
        assert opened.js(f"document.querySelectorAll('#viewer-layers input')[{int(key) - 1}].checked") == on
    opened.key("0")
    assert not any(count(opened.picture(CANVAS), i) for i in (palette.TRUTH, palette.PREDICTION))
    opened.click("#viewer-layers input[name='1']")
    assert count(opened.picture(CANVAS), palette.PREDICTION) > 100
    with_image = opened.picture(CANVAS)
    opened.key("i")
    assert opened.picture(CANVAS).mean() < with_image.mean() / 2
    opened.key("i")
    opened.key("w")
    assert opened.js("document.getElementById('viewer-window').selectedOptions[0].text") == "lung"
    assert opened.picture(CANVAS).mean() > with_image.mean() * 1.2  # what is grey in the abdomen's window is white
    first = opened.js(OPENED)
    opened.key("n")
    opened.wait(f"{OPENED} && {OPENED} !== {json.dumps(first)}")
    assert opened.js(OPENED).startswith("liver, median: t1")
    opened.key("p")
    opened.wait(f"{OPENED} === {json.dumps(first)}")


def test_slices_move_with_keys_and_wheel(opened):
    def place():
        slice_, sides, front, head = re.match(
            r"slice (\d+) of \d+; ([RL] [\d.]+), ([AP] [\d.]+), ([SI] [\d.]+) mm", opened.js(STATUS)
        ).groups()
        return int(slice_), *(float(i[2:]) * (1 if i[0] in "RAS" else -1) for i in (sides, front, head))

    start = place()
    expected = {"ArrowUp": (1, 0, 0, 3), "ArrowLeft": (0, 2, 0, 0), "PageUp": (0, 0, 2.5, 0)}
    for (key, step), back in zip(expected.items(), ("ArrowDown", "ArrowRight", "PageDown")):
        before = opened.picture(CANVAS)
        opened.key(key)
        assert place() == pytest.approx([a + b for a, b in zip(start, step)], abs=0.11)
        assert (opened.picture(CANVAS) != before).any()
        opened.key(back)
        assert place() == pytest.approx(start, abs=0.11)
    assert "truth: liver; Good: liver; Poor & <b>old: liver" in opened.js(STATUS)
    opened.key("v")  # the axial plane alone
    left, top, width, height = opened.box(CANVAS)
    at = {"x": left + width / 2, "y": top + height / 2}
    opened.call("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=120, **at)
    opened.wait(f"!{STATUS}.startsWith('slice {start[0]} of')")
    assert abs(place()[0] - start[0]) == 1


def test_planes_are_radiological_as_the_static_pictures_are(opened):
    """The cross goes to the landmark, which lies right, in front and above: every plane shows it where a radiologist looks."""
    for key, number in (("ArrowLeft", 14), ("PageUp", 13), ("ArrowUp", 3)):
        for _ in range(number):
            opened.key(key)
    assert "value 400" in opened.js(STATUS) and "truth: none" in opened.js(STATUS)
    opened.key("0")
    for view, sides in (("axial", (-1, -1)), ("coronal", (-1, -1)), ("sagittal", (-1, -1))):
        opened.js(
            f"(s => {{ s.value = '{view}'; s.dispatchEvent(new Event('change')); }})(document.getElementById('viewer-view'))"
        )
        picture = opened.picture(CANVAS)
        rows, columns = np.nonzero((picture > 245).all(-1))
        drawn = np.argwhere((picture > 5).any(-1))
        top, left = drawn.min(0)
        bottom, right = drawn.max(0)
        across, down = columns.mean() - (left + right) / 2, rows.mean() - (top + bottom) / 2
        assert (np.sign(across), np.sign(down)) == sides, view
        assert abs(across) > 20 and abs(down) > 5, view


def test_the_volume_shows_the_organ(opened):
    opened.key("i")
    opened.js("(s => { s.value = 'volume'; s.dispatchEvent(new Event('change')); })(document.getElementById('viewer-view'))")
    picture = opened.picture(CANVAS)
    blue = (picture[..., 2].astype(int) - picture[..., 0] > 40).sum()
    orange = (picture[..., 0].astype(int) - picture[..., 2] > 40).sum()
    assert blue > 1000 and orange > 1000


def test_without_webgl_the_page_is_as_it_was(page, tmp_path):
    with driver["Browser"](tmp_path, driver["NO_WEBGL"]) as browser:
        browser.open(page)
        browser.js("document.getElementById('viewer').scrollIntoView()")
        browser.js("new Promise((done) => setTimeout(done, 500))")
        assert browser.js("document.getElementById('viewer-stage').hidden")
        assert browser.js("document.getElementById('viewer-without').offsetHeight > 0")
        assert min(browser.js("[...document.images].map(i => i.naturalWidth)")) > 100
        assert browser.complaints() == []
