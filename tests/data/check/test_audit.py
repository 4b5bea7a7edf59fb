"""The audit of pseudo labels: what is remarkable, in what order, and the list of the worst."""

import json
import re

import numpy as np
import pytest

from nnunet_partial.cli import main
from nnunet_partial.data.check import audit
from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, read_names

NAME, CLASSES = "Dataset611_Audit", ("liver", "spleen")
MANUAL_ML = (100.0, 104, 96, 102, 98, 101, 99)  # of the spleen


def record(spleen_ml, annotated=("liver",), **changes):
    pseudo = [i for i in CLASSES if i not in annotated]
    return {
        "annotated": list(annotated),
        "pseudo": pseudo,
        "volume_mm3": {"liver": 1_500_000.0, "spleen": 1000.0 * spleen_ml},
        "mean_confidence": dict.fromkeys(pseudo, 0.95),
        "disagreement": dict.fromkeys(pseudo, 0.02),
        **changes,
    }


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """``labels(records)``: a finished label directory of case -> record, with one image and label map for all."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    folder = tmp_path / "preprocessed" / NAME
    (folder / "images").mkdir(parents=True)
    declared = {"background": 0, "liver": 1, "spleen": 2}
    seg = np.zeros((1, 4, 12, 12), np.int8)
    seg[0, 2, 2:6, 2:6], seg[0, 2, 7:10, 7:10] = 1, 2
    image = np.random.default_rng(0).normal(size=seg.shape).astype(np.float32)
    shape = seg.shape[1:]
    stuff = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3).ravel().tolist()}
    properties = {"spacing": [1, 1, 1], "sitk_stuff": stuff, "bbox_used_for_cropping": [[0, n] for n in shape]}
    properties["shape_after_cropping_and_before_resampling"] = shape

    def make(records):
        sources = {i: {"source": i.split("_")[0], "annotated": r["annotated"]} for i, r in records.items()}
        content = {"labels": declared, "file_ending": ".nii.gz", "nnunet_partial": {"version": 1, "cases": sources}}
        (folder / "dataset.json").write_text(json.dumps(content))
        for case, entry in records.items():
            label_directory.write_case(
                tmp_path / "labels", case, seg, {"spacing": [1, 1, 1]}, LabelManager(declared, None), (4, 12, 12), entry
            )
            shapes = dict.fromkeys(("chunks", "blocks", "chunks_seg", "blocks_seg"), seg.shape)
            nnUNetDatasetBlosc2.save_case(image, seg, properties, str(folder / "images" / case), **shapes)
        header = {"dataset": NAME, "data_identifier": "images", "classes": CLASSES}
        label_directory.finish(tmp_path / "labels", header, list(records))
        return tmp_path / "labels"

    return make


def usual(**more):
    manual = {f"btcv_{i}": record(ml, ("liver", "spleen")) for i, ml in enumerate(MANUAL_ML)}
    return {**manual, **{f"lits_{i}": record(100 + i) for i in range(3)}, **more}


def test_what_is_remarkable_and_how_much(labels):
    found = audit.audit(
        labels(
            usual(
                lits_small=record(20),
                lits_absent=record(0),
                lits_unsure=record(101, mean_confidence={"spleen": 0.7}),
                lits_contested=record(101, disagreement={"spleen": 0.5}),
                lits_masks=record(101, mean_confidence={"spleen": None}, agreement={"totalseg": {"liver": 0.3}}),
            )
        )
    )
    ranking = dict(found.ranking)
    logs = np.log(MANUAL_ML)
    deviation = max(1.4826 * np.median(np.abs(logs - np.median(logs))), 0.05)
    distance = np.log(100 / 20)
    expected = {
        "lits_contested": 0.5 / 0.2,
        "lits_small": min(distance / (3.5 * deviation), distance / np.log(2)),
        "lits_absent": 2.0,
        "lits_unsure": 0.3 / 0.2,
        "lits_masks": 0.7 / 0.5,
    }
    assert [case for case, row in found.ranking if row.suspicion >= 1] == list(expected)
    for case, value in expected.items():
        assert ranking[case].suspicion == pytest.approx(value)
    assert ranking["lits_small"].why == "20 ml, where 100 ml are usual outlined by hand"
    assert "not there" in ranking["lits_absent"].why and "0.70" in ranking["lits_unsure"].why
    assert ranking["lits_masks"].name == "liver" and "0.30" in ranking["lits_masks"].why
    assert ranking["btcv_0"].suspicion == 0  # manual labels are what is compared with
    assert not any(i.startswith("btcv") for i in found.worst(100)) and len(found.worst(100)) == 8
    assert "5 remarkable" in audit.in_words(found)[0]


def test_without_manual_labels_pseudo_labels_are_compared_among_themselves(labels):
    records = {f"lits_{i}": record(100 + i) for i in range(8)}
    found = dict(audit.audit(labels({**records, "lits_big": record(900)})).ranking)
    assert found["lits_big"].suspicion > 1 and "in the other cases" in found["lits_big"].why
    assert found["lits_3"].suspicion < 1


def test_the_command_writes_a_page_and_the_list(labels, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = labels(usual(lits_small=record(20), lits_unsure=record(101, mean_confidence={"spleen": 0.5})))
    main(["check", "--labels", str(folder), "--worst", "2", "--out", "worst.txt"])
    assert read_names("worst.txt") == ["lits_unsure", "lits_small"]
    out = tmp_path / "check_labels"
    assert (out / "labels.png").read_bytes()[:4] == b"\x89PNG"
    shown = json.loads(re.search(r'id="viewer-cases">(.*?)</script>', (out / "labels.html").read_text(), re.S)[1])
    assert [i["name"].split(":")[0] for i in shown[:2]] == read_names("worst.txt")
    assert shown[1]["name"].startswith("lits_small: spleen: 20 ml, where")
    layers = [[i["name"], [name for _, name, _ in i["colours"]]] for i in shown[0]["layers"]]
    assert layers == [["pseudo labels", ["spleen"]], ["manual labels", ["liver"]]]
    assert "lits_small: spleen: 20 ml" in (out / "labels.txt").read_text()
    assert read_json(out / "labels.json")["cases"]["lits_small"]["suspicion"] > 1
    assert "--set exclude=" in capsys.readouterr().out


def test_bad_input_is_one_line(labels, tmp_path, capsys):
    folder = labels(usual())

    def refused(*words, arguments):
        with pytest.raises(SystemExit) as end:
            main(["check", *arguments, "--out", str(tmp_path / "out")])
        errors = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 2 and len(errors) == 1 and all(i in errors[0] for i in words), errors
        assert not (tmp_path / "out").exists()

    refused("name a dataset", "--labels LABELS", arguments=[])
    refused("add --labels LABELS", arguments=["611", "--worst", "3"])
    refused("--against has no effect", arguments=["--labels", str(folder), "--against", "1"])
    refused("--worst 0", arguments=["--labels", str(folder), "--worst", "0"])
    refused("is of Dataset611_Audit, not of Dataset612_X", arguments=["Dataset612_X", "--labels", str(folder)])
    (folder / "provenance.json").unlink()
    refused("is not finished", "nnunet_partial pseudo-label", arguments=["--labels", str(folder)])


def test_a_page_of_damaged_records_is_one_line(labels):
    folder = labels(usual())
    content = read_json(folder / "provenance.json")
    content["cases"]["lits_0"]["agreement"] = 3
    (folder / "provenance.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="records cannot be understood"):
        audit.audit(folder)
