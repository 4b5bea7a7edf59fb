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

from nnunet_partial import cli
from nnunet_partial.evaluation.evaluate import evaluate_folder
from nnunet_partial.evaluation.report import cases, charts, tables
from nnunet_partial.evaluation.report.inputs import read_inputs
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
    # the head, the last slice, is drawn on top
    np.testing.assert_array_equal(planes[1]["image"][0], view.image[-1, 4, :])


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
    assert not elements.of("script", "iframe", "object", "embed")
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
    targets = {i["href"][1:] for i in elements.of("a")}
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
    rules = dict(re.findall(r"([\w.:, -]+?) \{([^}]*)\}", re.search("<style>(.*)</style>", page.read_text(), re.S)[1]))
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


def load(file, folder):
    return subprocess.run(
        [
            browser(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
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
    truth = np.zeros((8, 20, 30), bool)
    truth[2:6, 5:15, 10:20] = True
    image = np.random.default_rng(0).normal(size=truth.shape)
    view = cases.View(image, truth, np.roll(truth, 3, 2), (4.0, 1.0, 2.0), (-1.0, 1.0))
    figure = cases.draw_planes(view)
    (axis,) = figure.axes
    boxes = [i.get_extent() for i in axis.images]
    assert [i.get_text() for i in axis.texts] == ["axial", "coronal", "sagittal"]
    box = cases._crop(view)
    for plane, picture, (left, right, bottom, top) in zip(range(3), axis.images, boxes):
        expected = cases._slice(view, plane, box)
        np.testing.assert_array_equal(picture.get_array(), expected["image"])
        rows, columns = expected["image"].shape
        assert (top - bottom) / (right - left) == pytest.approx(rows * expected["aspect"] / columns)
        assert 3.1 * plane <= left < right <= 3.1 * (plane + 1) and 0 <= bottom < top < axis.texts[plane].get_position()[1] < 3.2
        # the contour of the truth runs half-way between the voxels that belong to it and those that do not
        line = axis.collections[2 * plane].get_paths()[0].vertices
        inside = np.argwhere(expected["truth"])
        for number, (start, step) in enumerate(((top, (bottom - top) / rows), (left, (right - left) / columns))):
            edges = (inside[:, number].min(), inside[:, number].max() + 1)
            found = sorted((line[:, 1 - number] - start) / step)
            assert (found[0], found[-1]) == pytest.approx(edges, abs=1e-6)
