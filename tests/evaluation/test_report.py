"""The report page: what it says, that it stands alone, that everybody can read it, and that a browser shows it."""

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import cli, palette
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.report import cases, charts, overlays, tables, verdict
from nnunet_partial.evaluation.report.inputs import TrainedModel, read_inputs
from nnunet_partial.evaluation.report.page import contents, render

SPACING_XYZ = (2.0, 1.0, 4.0)
ORGANS = {"liver": 1, "kidney": 2}
CASES = 4


def write(array, path, direction=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_XYZ)
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), True)


def organs(shift=0):
    label = np.zeros((10, 24, 20), np.uint8)
    label[2:8, 4:12, 3:9] = 1
    label[3:6, 14:20, 10:15] = 2
    return np.roll(label, shift, axis=1)


def checkpoint(path, epochs, plans):
    import torch

    curve = np.linspace(1, 0.2, epochs).tolist()
    logging = {
        "train_losses": curve,
        "val_losses": curve,
        "mean_fg_dice": curve[::-1],
        "ema_fg_dice": curve[::-1],
        "dice_per_class_or_region": [[0.1, 0.2]] * epochs,
        "lrs": curve,
        "loss/marginal": curve,
        "epoch_start_timestamps": [10.0 * i for i in range(epochs)],
        "epoch_end_timestamps": [10.0 * i + 9 for i in range(epochs)],
    }
    (path / "fold_0").mkdir(parents=True)
    (path / "plans.json").write_text(json.dumps(plans))
    torch.save({"network_weights": {}, "logging": logging}, path / "fold_0" / "checkpoint_final.pth")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A dataset, a test set, three methods with known order (the first with two seeds), a trained model, efficiency."""
    root = tmp_path_factory.mktemp("report")
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **ORGANS},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "nnunet_partial": {
            "version": 1,
            "cases": {
                "a": {"source": "lits", "annotated": ["liver"]},
                "b": {"source": "lits", "annotated": []},
                "c": {"source": "kits", "annotated": ["kidney"]},
            },
        },
    }
    (root / "Dataset501_Organs").mkdir()
    (root / "Dataset501_Organs" / "dataset.json").write_text(json.dumps(dataset))
    rng = np.random.default_rng(0)
    shifts = {"Good": 1, "Poor": 4, "Worse & worse": 9}
    for case in range(CASES):
        write(
            rng.normal(0, 20, (10, 24, 20)).astype(np.float32) + 60 * organs() - 300, root / "imagesTs" / f"t{case}_0000.nii.gz"
        )
        write(organs(), root / "labelsTs" / f"t{case}.nii.gz")
        for name, shift in shifts.items():
            write(organs(shift + case), root / name / f"t{case}.nii.gz")
    for name in shifts:
        evaluate_folder(
            root / name,
            root / "labelsTs",
            root / "Dataset501_Organs",
            root / "ev" / name,
            annotated="all",
            processes=1,
            progress=False,
            command=f"nnunet_partial evaluate --pred {name}",
        )
    architecture = {"arch_kwargs": {"features_per_stage": [8, 16], "n_stages": 2}}
    plans = {
        "plans_name": "nnUNetPlans_tiny",
        "configurations": {
            "3d_fullres": {"spacing": [4.0, 1.0, 2.0], "patch_size": [16, 16, 16], "batch_size": 2, "architecture": architecture}
        },
        "nnunet_partial": {"num_epochs": 5, "num_iterations_per_epoch": 7},
    }
    checkpoint(root / "Dataset501_Organs" / "nnUNetTrainerPartial__nnUNetPlans_tiny__3d_fullres", 3, plans)
    efficiency = {
        "machine": {"processor": "x86"},
        "methods": {
            "Good": {"cases": [{}, {}], "total": {"wall_time_s": 12.5, "peak_memory_mb": 900.0}, "network": {"parameters": 4.2e6}}
        },
    }
    (root / "efficiency.json").write_text(json.dumps(efficiency))
    return root


def arguments(study, out, *more):
    return [
        "report",
        "--dataset",
        str(study / "Dataset501_Organs"),
        "--evaluation",
        f"Poor={study / 'ev' / 'Poor'}",
        "--evaluation",
        f"Good={study / 'ev' / 'Good'}",
        "--evaluation",
        f"Good={study / 'ev' / 'Good'}",
        "--evaluation",
        f"Worse & worse={study / 'ev' / 'Worse & worse'}",
        "--model",
        f"Good={study / 'Dataset501_Organs' / 'nnUNetTrainerPartial__nnUNetPlans_tiny__3d_fullres'}",
        "--efficiency",
        str(study / "efficiency.json"),
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def page(study):
    out = study / "report.html"
    assert cli.main(arguments(study, out, "--note", "Watch <out>.")) == 0
    return out


@pytest.fixture(scope="module")
def inputs(study):
    return read_inputs(study / "Dataset501_Organs", [("Good", study / "ev" / "Good"), ("Poor", study / "ev" / "Poor")])


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


# ------------------------------------------------------------------ what it says


def test_the_better_method_is_first(page):
    content = json.loads(page.with_suffix(".json").read_text())
    assert [i["name"] for i in content["ranking"]] == ["Good", "Poor", "Worse & worse"]
    assert content["ranking"][0]["seed_sd"] == 0 and content["ranking"][1]["seed_sd"] is None
    assert "| **" in page.with_suffix(".md").read_text() and "Good ranks first" in page.with_suffix(".md").read_text()


def test_figures_on_the_page_are_those_of_the_evaluation(study, page):
    rows = [i for i in json.loads((study / "ev" / "Poor" / "metrics.json").read_text())["rows"] if i["class"] == "kidney"]
    mean = np.mean([i["dice"] for i in rows])
    assert f"{mean:.4f} [" in page.read_text()


def test_the_matrix_counts_what_is_annotated(study):
    content = json.loads((study / "Dataset501_Organs" / "dataset.json").read_text())
    table = tables.annotated_matrix(content, "dataset.json")
    assert table.columns == ["cases", "liver", "kidney"]
    assert {name: [i.text for i in cells] for name, cells in table.rows} == {
        "kits": ["1", "none", "1"],
        "lits": ["2", "1", "none"],
    }
    del content["nnunet_partial"]
    assert [[i.text for i in cells] for _, cells in tables.annotated_matrix(content, "dataset.json").rows] == [["3", "3", "3"]]


def test_a_union_has_rows_of_its_own_and_counts_for_no_member(study, tmp_path):
    """Two cases outline liver and kidney as one structure, two the liver alone; both methods are a shift."""
    dataset = tmp_path / "Dataset502_Union"
    content = json.loads((study / "Dataset501_Organs" / "dataset.json").read_text())
    cases = {f"t{i}": {"source": "ab"[i % 2], "annotated": [["liver", "kidney"]] if i % 2 else ["liver"]} for i in range(CASES)}
    content.update(numTraining=CASES, nnunet_partial={"version": 2, "cases": cases})
    dataset.mkdir()
    (dataset / "dataset.json").write_text(json.dumps(content))
    for i in range(CASES):
        write((organs() > 0).astype(np.uint8) if i % 2 else (organs() == 1).astype(np.uint8), tmp_path / "truth" / f"t{i}.nii.gz")
    argv = ["report", "--dataset", str(dataset), "--out", str(tmp_path / "report.html")]
    for name in ("Good", "Poor"):
        where = (study / name, tmp_path / "truth", dataset, tmp_path / name)
        evaluate_folder(*where, processes=1, progress=False)
        argv += ["--evaluation", f"{name}={tmp_path / name}"]
    assert cli.main(argv) == 0
    table = tables.annotated_matrix(content, "dataset.json")
    assert table.columns == ["cases", "liver", "kidney", "liver+kidney"]
    assert [[i.text for i in cells] for _, cells in table.rows] == [["2", "2", "none", "none"], ["2", "none", "none", "2"]]
    text = (tmp_path / "report.html").read_text()
    for name in ("Good", "Poor"):
        shift = {"Good": 1, "Poor": 4}[name]
        dices = {"liver": [], "liver+kidney": []}
        for i in range(CASES):
            p, t = (x > 0 if i % 2 else x == 1 for x in (organs(shift + i), organs()))
            dices["liver+kidney" if i % 2 else "liver"].append(2 * (p & t).sum() / (p.sum() + t.sum()))
        for values in dices.values():
            assert f"{np.mean(values):.4f} [" in text
    ranked = json.loads((tmp_path / "report.json").read_text())
    assert [i["name"] for i in ranked["ranking"]] == ["Good", "Poor"]


def test_commands_costs_and_plans_are_shown(page):
    text = "".join(Elements(page.read_text()).text)
    for expected in (
        "nnunet_partial evaluate --pred Good",
        "nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerPartial -p nnUNetPlans_tiny",
        "nnunet_partial report --dataset",
        "3 of 5",
        "27 s",
        "16, 16, 16",
        "12.5",
        "nnunetv2 2.",
        "Watch <out>.",
        "4.2",
    ):
        assert expected in text, expected


def test_given_commands_replace_those_that_folders_tell(study, tmp_path):
    (tmp_path / "commands.txt").write_text("first command\n\nsecond command\n")
    assert cli.main(arguments(study, tmp_path / "r.html", "--commands", str(tmp_path / "commands.txt"))) == 0
    shown = [i["command"] for i in json.loads((tmp_path / "r.json").read_text())["commands"]]
    assert shown[:2] == ["first command", "second command"] and len(shown) == 3


def test_best_median_and_worst_are_chosen_by_the_metric():
    rows = [
        {"case": c, "class": "liver", "dice": d, "hausdorff95_mm": h}
        for c, d, h in (("a", 0.5, 3.0), ("b", 0.9, 1.0), ("c", 0.1, float("inf")), ("d", float("nan"), float("nan")))
    ]
    assert [(p, r["case"]) for p, r in cases.choose(rows, "liver", "dice")] == [("best", "b"), ("median", "a"), ("worst", "c")]
    assert [r["case"] for _, r in cases.choose(rows, "liver", "hausdorff95_mm")] == ["b", "a", "c"]
    assert [p for p, _ in cases.choose(rows[:2], "liver", "dice")] == ["best", "worst"]
    assert [p for p, _ in cases.choose(rows[3:] + rows[:1], "liver", "dice")] == ["only"]
    assert cases.choose(rows[3:], "liver", "dice") == []


# ------------------------------------------------------------------ pictures


def test_overlays_are_along_the_patients_axes(study, inputs, tmp_path):
    """The same patient stored with flipped and swapped axes is drawn alike."""
    evaluation = inputs.methods["Good"][0]
    straight = cases.read_view(inputs, evaluation, "t0", "liver")
    turned = tmp_path / "turned"
    for folder, name in (("imagesTs", "t0_0000"), ("labelsTs", "t0"), ("Good", "t0")):
        image = sitk.ReadImage(str(study / folder / f"{name}.nii.gz"))
        (turned / folder).mkdir(parents=True)
        sitk.WriteImage(sitk.DICOMOrient(image, "PSR"), str(turned / folder / f"{name}.nii.gz"))
    evaluate_folder(
        turned / "Good",
        turned / "labelsTs",
        study / "Dataset501_Organs",
        turned / "ev",
        annotated="all",
        processes=1,
        progress=False,
    )
    other = read_inputs(study / "Dataset501_Organs", [("Good", turned / "ev")])
    view = cases.read_view(other, other.methods["Good"][0], "t0", "liver")
    assert view.spacing_mm == pytest.approx(SPACING_XYZ[::-1]) and straight.spacing_mm == pytest.approx(SPACING_XYZ[::-1])
    for name in ("image", "truth", "pred"):
        np.testing.assert_array_equal(getattr(view, name), getattr(straight, name))
    np.testing.assert_array_equal(view.truth, organs() == 1)


def test_three_planes_have_the_shape_of_the_voxels(inputs):
    view = cases.read_view(inputs, inputs.methods["Good"][0], "t0", "liver")
    whole = tuple(slice(0, n) for n in view.truth.shape)
    planes = [cases._slice(view, axis, whole) for axis in range(3)]
    assert [i["truth"].shape for i in planes] == [(24, 20), (10, 20), (10, 24)]
    assert [i["aspect"] for i in planes] == [1 / 2, 4 / 2, 4 / 1]  # rows over columns, in mm
    # the head, the last slice, is drawn on top, of the plane in the middle of the organ
    np.testing.assert_array_equal(planes[1]["image"][0], view.image[-1, 8, :])


def test_what_is_no_longer_there_is_said_and_not_drawn(study, tmp_path):
    moved = tmp_path / "study"
    shutil.copytree(study, moved)
    metrics = moved / "ev" / "Good" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(str(study), str(moved)))
    shutil.rmtree(moved / "imagesTs")
    inputs = read_inputs(moved / "Dataset501_Organs", [("Good", moved / "ev" / "Good")])
    assert (
        "without the image"
        in cases.shown_cases(inputs, "Good", inputs.methods["Good"][0].rows, ["liver"])["liver"][0].picture.alt
    )
    shutil.rmtree(moved / "Good")
    shown = cases.shown_cases(inputs, "Good", inputs.methods["Good"][0].rows, ["liver"])["liver"]
    assert [i.picture for i in shown] == [None] * 3 and "no longer in" in shown[0].reason
    assert "no longer in" in render(contents(inputs))


def test_the_same_input_gives_the_same_picture(inputs):
    rows = {"Good": inputs.methods["Good"][0].rows}
    assert charts.box_plot(rows, ["liver"], "dice").address == charts.box_plot(rows, ["liver"], "dice").address


def test_a_method_that_missed_a_class_everywhere_has_no_box_there():
    def rows(*values):
        return [{"case": str(n), "class": name, "hausdorff95_mm": v} for n, pair in enumerate(values) for name, v in pair.items()]

    good, poor = rows({"liver": 1.0, "kidney": 2.0}, {"liver": 3.0, "kidney": 4.0}), rows({"liver": float("inf"), "kidney": 5.0})
    picture = charts.box_plot({"good": good, "poor": poor}, ["liver", "kidney", "spleen"], "hausdorff95_mm")
    assert "liver: good 2; kidney: good 3, poor 5" in picture.alt and "spleen" not in picture.alt
    assert charts.box_plot({"poor": poor}, ["liver"], "hausdorff95_mm") is None


# ------------------------------------------------------------------ for everybody


def test_nothing_is_loaded_from_elsewhere(page):
    elements = Elements(page.read_text())
    assert not elements.of("iframe", "object", "embed") and not [i for i in elements.of("script") if "src" in i]
    for attributes in elements.of("img", "link"):
        address = attributes.get("src") or attributes["href"]
        assert address.startswith("data:"), address[:60]
    assert "http" not in "".join(re.findall(r"url\([^)]*\)|@import[^;]*", page.read_text()))


def test_pictures_are_whole(page):
    pictures = [i["src"] for i in Elements(page.read_text()).of("img")]
    # two overlays rows of three places, a picture of all methods a class, three box plots, one training curve
    assert len(pictures) == 2 * 3 + 2 + 3 + 1
    for address in pictures:
        head, _, data = address.partition(";base64,")
        start = {"data:image/png": b"\x89PNG", "data:image/svg+xml": b"<?xml"}[head]
        assert base64.b64decode(data, validate=True).startswith(start)


def test_every_picture_is_told_in_words_and_every_table_has_headings(page):
    elements = Elements(page.read_text())
    assert all(len(i["alt"]) > 30 for i in elements.of("img"))
    assert all(i.get("scope") in ("col", "row") for i in elements.of("th"))
    assert len(elements.of("caption")) == len(elements.of("table")) > 4


def test_headings_do_not_skip_a_level_and_links_lead_somewhere(page):
    elements = Elements(page.read_text())
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    ids = [i["id"] for _, i in elements.found if "id" in i]
    assert len(ids) == len(set(ids))
    targets = {i["href"][1:] for i in elements.of("a") if i["href"].startswith("#")}
    assert targets <= set(ids) and {"main", "ranking", "annotated", "results", "cases", "training", "efficiency"} <= targets
    assert elements.of("html") == [{"lang": "en"}]


def test_everything_can_be_reached_with_the_keyboard(page):
    """No handlers of a mouse, and what scrolls can be focused; what folds is a details element, which browsers make reachable."""
    elements = Elements(page.read_text())
    assert not [k for _, attributes in elements.found for k in attributes if k.startswith("on")]
    assert all(
        i.get("tabindex") == "0" for i in elements.of("pre") + [i for i in elements.of("div") if i.get("class") == "scroll"]
    )
    assert len(elements.of("summary")) == len(elements.of("details")) > 0


def contrast(one, other):
    """WCAG 2.1's ratio of two colours such as #0072b2."""

    def luminance(colour):
        colour = "".join(i * 2 for i in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [i / 12.92 if i <= 0.04045 else ((i + 0.055) / 1.055) ** 2.4 for i in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_its_ground(page):
    assert contrast("#000", "#fff") == pytest.approx(21) and contrast("#777", "#fff") < 4.5
    rules = dict(re.findall(r"([\w.:, -]+?) \{([^}]*)\}", re.search("<style>(.*?)</style>", page.read_text(), re.S)[1]))
    for rule, text in rules.items():
        colour, ground = (re.search(rf"(?:^|[; ]){name}: (#\w+)", text) for name in ("color", "background"))
        if colour or ground:
            assert contrast(colour[1] if colour else "#1a1a1a", ground[1] if ground else "#ffffff") >= (
                4.5 if rule != ".line" else 0
            )


# ------------------------------------------------------------------ in a browser


def browser():
    found = next((i for i in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(i)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


def in_browser(html, folder):
    """Load a page and say what the browser's console says and, for each picture, how wide it came out (0: did not load)."""
    probe = (
        "<script>addEventListener('load', () => { const p = document.createElement('pre'); p.id = 'probe';"
        "p.textContent = JSON.stringify([...document.images].map(i => i.complete ? i.naturalWidth : 0));"
        "document.body.append(p); });</script>"
    )
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    (folder / "as_it_is.html").write_text(html, encoding="utf-8")
    (folder / "probed.html").write_text(policy.sub("", html).replace("</head>", probe + "</head>"), encoding="utf-8")
    console = load(folder / "as_it_is.html", folder).stderr
    dom = load(folder / "probed.html", folder).stdout
    widths = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert widths, f"the browser did not render the page: {dom[:300]}"
    return [i for i in console.splitlines() if ":CONSOLE" in i], json.loads(widths[1])


def load(file, folder, *more):
    return subprocess.run(
        [
            browser(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-unsafe-swiftshader",  # or Chromium says on the console that WebGL runs in software
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            *more,
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "HOME": str(folder)},
    )


def test_a_browser_shows_it_without_complaint(page, tmp_path):
    console, widths = in_browser(page.read_text(encoding="utf-8"), tmp_path)
    assert console == []
    assert len(widths) == len(Elements(page.read_text()).of("img")) and min(widths) > 100


def test_a_long_path_does_not_make_a_narrow_page_scroll(page, tmp_path):
    """Tables and plots scroll within their own frames; what stands in running text is broken where the line ends."""
    text = page.read_text(encoding="utf-8").replace("nnunet_partial evaluate --pred Good", "x" * 300)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    # a frame, since a window is never narrower than 500 pixels
    (tmp_path / "inner.html").write_text(text, encoding="utf-8")
    (tmp_path / "outer.html").write_text(
        '<html><body><iframe src="inner.html" width="420" height="800"></iframe><script>onload = () => {'
        'const e = document.querySelector("iframe").contentDocument.documentElement; const p = document.createElement("pre");'
        'p.id = "probe"; p.textContent = e.scrollWidth + " " + e.clientWidth; document.body.append(p); };</script></body></html>',
        encoding="utf-8",
    )
    dom = load(tmp_path / "outer.html", tmp_path, "--allow-file-access-from-files").stdout
    wide, shown = map(int, re.search(r'<pre id="probe">(.*?)</pre>', dom)[1].split())
    assert 300 < shown <= 420 and wide <= shown


def test_the_browser_check_sees_a_broken_picture_and_a_complaint(tmp_path):
    html = (
        '<!DOCTYPE html><html><head><title>t</title></head><body><img src="data:image/png;base64,AAAA" alt="broken">'
        '<script>console.error("complaint")</script></body></html>'
    )
    console, widths = in_browser(html, tmp_path)
    assert widths == [0] and any("complaint" in i for i in console)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "change,message",
    [
        (["--out", "report.txt"], "must end in .html"),
        (["--evaluation", "Good"], "NAME=FOLDER"),
        (["--evaluation", "Other=missing"], "metrics.json does not exist"),
        (["--model", "Good=."], "not a model folder"),
        (["--commands", "missing.json"], "does not exist"),
        (["--images", "missing"], "is not a folder"),
        (["--efficiency", "missing.json"], "does not exist"),
    ],
)
def test_bad_input_is_one_line(study, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments(study, Path("r.html"), *change))
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message in line
    assert list(tmp_path.iterdir()) == []


def test_a_picture_holds_every_plane_in_mm_with_the_contours_on_it():
    """A row of planes at one height, each in its own proportions, the outlines half-way between voxels in and out."""
    truth = np.zeros((8, 20, 30), bool)
    truth[2:6, 5:15, 10:20] = True
    image = np.random.default_rng(0).normal(size=truth.shape)
    view = cases.View(image, truth, np.roll(truth, 3, 2), (4.0, 1.0, 2.0), (-1.0, 1.0))
    figure = cases.draw_planes(view)
    (axis,) = figure.axes
    boxes = [i.get_extent() for i in axis.images]
    assert [i.get_text() for i in axis.texts] == ["axial", "coronal", "sagittal"]
    assert len({(round(bottom, 9), round(top, 9)) for _, _, bottom, top in boxes}) == 1
    assert all(a[1] < b[0] for a, b in zip(boxes, boxes[1:])) and boxes[-1][1] < figure.get_size_inches()[0]
    box = cases.crop(view)
    for number, picture, (left, right, bottom, top) in zip(range(3), axis.images, boxes):
        expected = cases._slice(view, number, box)
        plane = cases._plane("", expected, view.window).padded()
        np.testing.assert_array_equal(picture.get_array(), plane.coloured())
        rows, columns = plane.image.shape
        assert (top - bottom) / (right - left) == pytest.approx(rows * expected["aspect"] / columns)
        assert 0 <= bottom < top < axis.texts[number].get_position()[1]
        line = axis.collections[2 * number].get_paths()[0].vertices
        inside = np.argwhere(plane.outlines[0][0])
        for way, (start, step) in enumerate(((top, (bottom - top) / rows), (left, (right - left) / columns))):
            edges = (inside[:, way].min(), inside[:, way].max() + 1)
            found = sorted((line[:, 1 - way] - start) / step)
            assert (found[0], found[-1]) == pytest.approx(edges, abs=1e-6)


def test_over_segmented_voxels_are_filled_and_both_outlines_are_lines():
    """One voxel that is predicted alone takes the colour of predictions, one that is missed that of truth, others stay grey."""
    truth, pred = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    truth[2:4, 2:4], pred[2:4, 3:5] = True, True
    plane = cases._plane("", {"image": np.full((6, 6), 0.5), "truth": truth, "pred": pred, "aspect": 1.0}, (0.0, 1.0))
    shown = plane.coloured()
    for mask, colour in ((pred & ~truth, palette.PREDICTION), (truth & ~pred, palette.TRUTH)):
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        np.testing.assert_allclose(shown[mask], np.broadcast_to(0.5 * (1 - overlays.FILLED) + overlays.FILLED * rgb, (2, 3)))
    np.testing.assert_array_equal(shown[~(truth ^ pred)], 0.5)
    lines = overlays.draw_rows([plane], 1).axes[0].collections
    assert len(lines) == 2 and all(i.get_linestyle()[0][1] is None for i in lines)  # no dashes


def test_a_small_organ_is_enlarged_and_not_hidden_by_its_outline():
    """A ball of 4 mm in a scan of 200 mm fills a third of the picture's width, and a far voxel of the prediction changes nothing."""
    truth = np.zeros((100, 100, 100), bool)
    truth[49:51, 49:51, 49:51] = True
    pred = truth.copy()
    pred[3, 3, 3] = True
    for predicted in (truth, pred):
        view = cases.View(np.zeros(truth.shape), truth, predicted, (2.0, 2.0, 2.0), (0.0, 1.0))
        sizes = [i.stop - i.start for i in cases.crop(view)]
        assert max(sizes) <= (20 if predicted is pred else 8)
        assert max(sizes) * 2.0 <= 3 * (4 + cases.MARGIN_MM)
    (axis,) = cases.draw_planes(cases.View(np.zeros(truth.shape), truth, truth, (2.0,) * 3, (0.0, 1.0))).axes
    left, right, *_ = axis.images[0].get_extent()
    organ_points = 2 / 7 * (right - left) * 72
    assert all(0 < i.get_linewidths()[0] <= organ_points / 4 + 1e-9 for i in axis.collections)
    assert overlays.outline_points(np.pad(np.ones((1, 1), bool), 3), 0.01, 0.01) == pytest.approx(0.01 * 72 / 4, abs=0.1)
    assert cases._outside(cases.View(None, truth, pred, (2.0,) * 3, (0.0, 1.0))) == pytest.approx(1 / 9)


def test_thin_scans_are_padded_so_that_a_row_still_has_one_height():
    plane = overlays.Plane("", np.ones((2, 100)), (0.0, 1.0), 1.0, [(np.ones((2, 100), bool), "red")])
    padded = plane.padded()
    assert padded.ratio == pytest.approx(overlays.WIDEST, rel=0.05) and padded.image.sum() == 200
    assert padded.outlines[0][0].sum() == 200 and padded.image.shape == padded.outlines[0][0].shape
    high = overlays.Plane("", np.ones((100, 2)), (0.0, 1.0), 1.0).padded()
    assert high.ratio == pytest.approx(1 / overlays.WIDEST, rel=0.05)


def test_plots_are_as_wide_as_the_page_and_captions_stand_in_a_frame_with_their_picture(page):
    elements = Elements(page.read_text())
    assert [i.get("class") for i in elements.of("img")].count("plot") == 3 + 1  # three box plots, one training curve
    style = re.search("<style>(.*?)</style>", page.read_text(), re.S)[1]
    assert "img.plot { width: 100%" in style and re.search(r"figure \{[^}]*border: 1px", style)


# ------------------------------------------------------------------ what makes a verdict doubtful


def rows_of(**dices):
    """Rows of a method: class -> Dice of its cases; 0 is a structure that was missed."""
    counts = {True: (0, 10, 0), False: (10, 10, 5)}
    return [
        {
            "case": f"c{n}",
            "source": "",
            "class": name,
            "dice": value,
            **dict(zip(("voxels_pred", "voxels_truth", "voxels_both"), counts[value == 0])),
        }
        for name, values in dices.items()
        for n, value in enumerate(values)
    ]


def told(methods, models=()):
    """What the page says of methods: name -> rows."""
    from nnunet_partial.evaluation.report.inputs import Evaluation, Inputs

    labels = {"background": 0, "liver": 1, "kidney": 2}
    evaluations = {name: [Evaluation(rows, {})] for name, rows in methods.items()}
    return contents(Inputs({"labels": labels}, "D/dataset.json", evaluations, models))


def trained(name, curve, full=False):
    return TrainedModel(
        name, Path("D/T__P__3d_fullres"), "0", {"mean_fg_dice": curve, "train_losses": curve}, {"configurations": {}}, full
    )


def test_a_verdict_over_classes_that_nothing_learned_comes_with_a_warning_and_the_slopes():
    good, poor = rows_of(liver=[0.9] * 9, kidney=[0.02] * 9), rows_of(liver=[0.8] * 9, kidney=[0.0] * 9)
    rising = [0.1 * i for i in range(10)]
    level = [0.5] * 10
    content = told({"A": good, "B": poor}, [trained("A", rising), trained("B", level)])
    assert content["verdict"].startswith("A ranks first; its difference from every other method is significant")
    first, second = content["warnings"]
    assert "No method has learned kidney (mean Dice below 0.1)" in first and "liver" not in first
    assert "A +0.200, B +0.000" in first
    assert second == (
        "Still rising: pseudo Dice of A +0.200 in the last fifth of the training; twice the steps may change the order."
    )
    page = render(content)
    assert page.index("A ranks first") < page.index("No method has learned kidney") < page.index('id="annotated"')
    learned = told({"A": rows_of(liver=[0.9] * 4, kidney=[0.6] * 4), "B": rows_of(liver=[0.8] * 4, kidney=[0.05] * 4)})
    assert learned["warnings"] == []


def test_full_supervision_that_has_not_learned_is_a_warning():
    methods = {"A": rows_of(liver=[0.9] * 5, kidney=[0.5] * 5), "fully supervised": rows_of(liver=[0.9] * 5, kidney=[0.03] * 5)}
    (warning,) = told(methods, [trained("fully supervised", [0.5] * 10, full=True), trained("A", [0.5] * 10)])["warnings"]
    assert warning.startswith("Even fully supervised has not learned kidney (mean Dice below 0.1)")


def test_the_last_slope_is_of_fifths_and_leaves_out_what_is_not_known():
    assert verdict.last_gain([0.0] * 6 + [0.25] * 2 + [0.75] * 2) == 0.5
    assert verdict.last_gain([float("nan"), 0.5, float("nan"), 0.75]) == 0.25
    assert verdict.last_gain([0.5]) is None and verdict.last_gain([]) is None


def test_structures_that_were_missed_in_every_case_are_a_number():
    content = told({"A": rows_of(liver=[0.9] * 5, kidney=[0.5] * 5), "B": rows_of(liver=[0.8] * 5, kidney=[0.0] * 5)})
    column = content["ranking"].columns.index("missed or invented")
    assert [cells[column].text for _, cells in content["ranking"].rows] == ["0 of 10", "5 of 10"]
    summary = {"B": {"classes": {"kidney": {"hausdorff95_mm": {"mean": np.nan, "n_infinite": 5, "ci": [np.nan] * 2}}}}}
    summary["B"]["mean_over_classes"] = {}
    cells = tables.results(summary, ["kidney"], "hausdorff95_mm").rows[0][1]
    assert cells[0].text == "-, 5 missed or invented"


def test_a_page_of_one_model_says_in_a_sentence_how_good_it_is():
    content = told({"A": rows_of(liver=[0.9, 0.8], kidney=[0.5, 0.0])})
    assert content["verdict"].startswith("A has a mean Dice of 0.5500 [")
    assert content["verdict"].endswith(
        "on 2 cases: best liver (0.8500), weakest kidney (0.2500); 1 of 4 structures were missed or invented."
    )
    assert content["verdict"] in render(content)


def test_the_models_of_predictions_are_found_without_being_named(study, tmp_path, monkeypatch):
    """nnU-Net's validation lies in the model's folder; other predictions have its plans beside them."""
    model = tmp_path / "results" / "Dataset501_Organs" / "nnUNetTrainerPartial__nnUNetPlans_tiny__3d_fullres"
    shutil.copytree(study / "Dataset501_Organs" / model.name, model)
    shutil.copytree(study / "Good", model / "fold_0" / "validation")
    shutil.copytree(study / "Good", tmp_path / "predicted")
    plans = {"plans_name": "nnUNetPlans_tiny", "dataset_name": "Dataset501_Organs"}
    (tmp_path / "predicted" / "plans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    for pred in (model / "fold_0" / "validation", tmp_path / "predicted"):
        out = tmp_path / f"ev_{pred.name}"
        where = (pred, study / "labelsTs", study / "Dataset501_Organs", out)
        evaluate_folder(*where, annotated="all", processes=1, progress=False)
        inputs = read_inputs(study / "Dataset501_Organs", [("Partial", out)])
        assert [i.folder for i in inputs.models] == [model]
        assert len(contents(inputs)["curves"]) == 1
    shutil.copytree(model, model.with_name("nnUNetTrainerMSKD__nnUNetPlans_tiny__3d_fullres"))
    assert read_inputs(study / "Dataset501_Organs", [("Partial", tmp_path / "ev_predicted")]).models == []  # which one?


def test_headings_say_what_the_distances_are_and_the_tolerance(study, page):
    text = "".join(Elements(page.read_text()).text)
    for expected in ("HD mm (mean of both directions)", "HD95 mm (larger direction)", "surface Dice at 2 mm"):
        assert expected in text, expected
    inputs = read_inputs(study / "Dataset501_Organs", [("Good", study / "ev" / "Good")])
    inputs.methods["Good"][0].about["tolerance_mm"]["liver"] = 5
    assert inputs.heading("surface_dice") == "surface Dice at 2 to 5 mm" and inputs.heading("dice") == "Dice"


def test_the_cost_of_a_training_is_at_least_the_time_of_its_epochs():
    """Three epochs of 9 s; the job that the record knows of took 5 s, after an interruption. Another is not among the models."""
    curves = {f"epoch_{i}_timestamps": [10.0 * n + s for n in range(3)] for i, s in (("start", 0), ("end", 9))}
    model = TrainedModel("A", Path("D/T__P__3d_fullres"), "0", curves, {})
    train = {"part": "training", "methods": ["A"], "command": "nnUNetv2_train D 3d_fullres 0 -tr T -p P -device cpu --c"}
    other = {**train, "command": "nnUNetv2_train D 3d_fullres 1 -tr T -p P", "seconds": 4.0}
    for seconds, shown in ((5.0, "27 s"), (40.0, "40 s"), (None, "27 s")):
        table = tables.costs([{**train, "seconds": seconds}], [model])
        assert [i.text for i in table.rows[0][1]] == [shown, shown]
    assert [i.text for i in tables.costs([{**train, "seconds": 5.0}, other], [model]).rows[0][1]] == ["31 s", "31 s"]
    assert tables.training([model]).rows[0][1][4].text == "27 s"


def test_models_and_logs_are_linked_from_where_the_page_lies(study, page, tmp_path):
    model = study / "Dataset501_Organs" / "nnUNetTrainerPartial__nnUNetPlans_tiny__3d_fullres" / "fold_0"
    assert model in [(page.parent / i["href"]).resolve() for i in Elements(page.read_text()).of("a")]
    (tmp_path / "a log.txt").write_text("")
    commands = [{"command": "x", "step": "training", "log": str(tmp_path / "a log.txt")}, {"step": "gone", "log": "nowhere.log"}]
    from nnunet_partial.evaluation.report.page import links

    assert links({}, commands, tmp_path) == [("training", str(tmp_path / "a log.txt"), "a%20log.txt")]
