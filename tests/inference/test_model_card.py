"""Model cards: that they tell what is recorded, say what is not, and hold no place and no patient."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nnunet_partial.data.conversion.command import converters
from nnunet_partial.errors import UserError
from nnunet_partial.evaluation.results import write_results
from nnunet_partial.evaluation.statistics import bootstrap_ci
from nnunet_partial.inference.model_card import Trained, facts, in_words, make_card

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ("/home/me", "Muster", "C:\\\\", "C:\\", "case_00012")
DATASET_JSON = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "kidney_left": 2, "kidney_right": 3, "spleen": 4},
    "numTraining": 5,
    "file_ending": ".nii.gz",
    "dataset": {
        i: {"images": [f"/home/me/{i}.nii.gz"], "label": f"labelsTr/{i}.nii.gz"}
        for i in ("lits_Muster", "lits_1", "kits_0", "ward_0", "ward_1")
    },
    "nnunet_partial": {
        "version": 2,
        "cases": {
            "lits_Muster": {"source": "lits", "annotated": ["liver"], "patient": "Muster"},
            "lits_1": {"source": "lits", "annotated": ["liver"]},
            "kits_0": {"source": "kits", "annotated": [["kidney_left", "kidney_right"]]},
            "ward_0": {"source": "ward", "annotated": ["liver", "kidney_left", "kidney_right"]},
            "ward_1": {"source": "ward", "annotated": []},
        },
    },
    "nnunet_partial_provenance": {
        "written_by": "nnunet_partial merge",
        "sources": {
            "lits": {"dataset": "Dataset101_LiTS", "cases": 2, "nnunet_partial_provenance": {"converter": "lits", "release": ""}},
            "kits": {
                "dataset": "Dataset102_KiTS",
                "nnunet_partial_provenance": {"converter": "kits", "release": "KiTS23 (recognised by the cyst in case_00012)"},
            },
            "ward": {"dataset": "Dataset103_Ward", "license": "ask the ward", "reference": "/home/me/ward.txt"},
        },
        "same_image": [["lits_Muster", "kits_0"]],
    },
}
SETTINGS = {
    "recipe": "feng2021",
    "num_epochs": 7,
    "labels": "/home/me/labels/Muster/fold_{fold}",
    "exclude": "/home/me/Muster.txt",
    "mine": {"prior": "C:\\Muster\\prior.npz", "list": ["/home/me/x"]},
    "trainers": {"mine": "nnUNetTrainerMSKD"},
    "mskd": {
        "lambda_feature": 3.0,
        "teachers": {
            "kits": "/home/me/Muster/x/nnUNetTrainerIndividual__nnUNetPlans_kits__3d_fullres",
            "ward": "/home/me/Muster",
        },
    },
}


@pytest.fixture
def trained(tmp_path):
    """What is left of a training with everything in it that must not get out."""
    plans = {
        "dataset_name": "Dataset501_Abdomen",
        "plans_name": "nnUNetPlans_mine",
        "configurations": {"3d_fullres": {"spacing": [2.5, 1.0, 1.0], "patch_size": [16, 32, 32]}},
        "nnunet_partial": SETTINGS,
    }
    checkpoint = {
        "current_epoch": 7,
        "logging": {"epoch_end_timestamps": [1.7e9, 1764201600.0]},
        "inference_allowed_mirroring_axes": (0, 1),
        "init_args": {"plans": plans, "dataset_json": DATASET_JSON},
    }
    for fold in ("0", "1"):
        (tmp_path / f"fold_{fold}").mkdir()
        debug = {"torch_version": "2.7.1", "hostname": "Muster", "output_folder": "/home/me"}
        (tmp_path / f"fold_{fold}" / "debug.json").write_text(json.dumps(debug))
    folds = {"0": checkpoint, "1": checkpoint}
    return Trained(tmp_path, plans, DATASET_JSON, folds, "nnUNetTrainerMSKD", "3d_fullres", "nnUNetTrainer")


def evaluation(folder, name="liver", values=(0.9, 0.7, 0.8)):
    rows = [{"case": f"Muster_{n}", "source": "test", "class": name, "dice": i} for n, i in enumerate(values)]
    write_results(rows, folder, {"pred": ["/home/me/Muster"], "truth": "/home/me", "command": "/home/me", "annotated": "all"})
    return folder


def test_what_taught_it(trained):
    card = make_card(trained)
    classes = {i["name"]: i for i in card["classes"]}
    assert classes["liver"]["cases"] == {"lits": 2, "ward": 1} and classes["liver"]["in_unions"] == {}
    assert classes["kidney_left"]["cases"] == {"ward": 1}
    assert classes["kidney_left"]["in_unions"] == {"kidney_left+kidney_right": {"kits": 1}}
    sources = {i["name"]: i for i in card["sources"]}
    assert sources["kits"]["annotated"] == {"kidney_left+kidney_right": 1} and sources["ward"]["unlabelled"] == 1
    assert (sources["kits"]["release"], sources["kits"]["converter"]) == ("KiTS23", "kits")
    assert sum(i["cases"] for i in card["sources"]) == len(DATASET_JSON["nnunet_partial"]["cases"])
    assert any("spleen is annotated nowhere" in i for i in card["limits"])
    assert not any("alone" in i and "liver" in i for i in card["limits"])  # two sources annotate it


def test_classes_of_one_source_are_named(tmp_path):
    cases = {"a": {"source": "lits", "annotated": ["liver"]}, "b": {"source": "nih", "annotated": ["pancreas"]}}
    labels = {"background": 0, "liver": 1, "pancreas": 2}
    dataset_json = {"channel_names": {"0": "MR"}, "labels": labels, "nnunet_partial": {"version": 1, "cases": cases}}
    plans = {"dataset_name": "Dataset007_X", "plans_name": "nnUNetPlans", "configurations": {}}
    limits = make_card(Trained(tmp_path, plans, dataset_json, {"0": {}}, "nnUNetTrainerPartial", "2d", None))["limits"]
    assert (
        "liver: annotated on images of source lits alone." in limits
        and "pancreas: annotated on images of source nih alone." in limits
    )


def test_how_it_was_trained(trained):
    card = make_card(trained)
    training = card["training"]
    assert training["recipe"] == "feng2021" and "MS-KD" in training["paper"]
    assert training["settings"]["mskd.lambda_feature"] == 3.0 and training["settings"]["num_epochs"] == 7
    assert training["teachers"] == {
        "kits": "nnUNetTrainerIndividual__nnUNetPlans_kits__3d_fullres",
        "ward": "a model that was trained elsewhere",
        "lits": "trained on this dataset's cases of that source",
    }
    assert training["pseudo_labels"] == {"models": None, "other_tools": None, "classes_of_the_models": None}
    assert training["folds"]["1"] == {"epochs": 7, "ended": "2025-11-27"}
    assert card["versions"]["torch_of_the_training"] == ["2.7.1"]
    assert card["model"]["method"] == "MSKD" and card["model"]["spacing_mm"] == [2.5, 1.0, 1.0]


def test_pseudo_labels_are_told_by_who_made_them(trained, tmp_path):
    SETTINGS_ = {**SETTINGS, "labels": str(tmp_path / "labels" / "fold_{fold}")}
    made = {
        "models": [{"folder": "/home/me/Muster/A__p__3d_fullres", "classes": ["liver"]}],
        "predictions": [{"name": "totalseg", "predictions": "/home/me/Muster"}],
    }
    (tmp_path / "labels" / "fold_0").mkdir(parents=True)
    (tmp_path / "labels" / "fold_0" / "provenance.json").write_text(json.dumps(made))
    plans = {**trained.plans, "nnunet_partial": SETTINGS_}
    card = make_card(Trained(trained.folder, plans, DATASET_JSON, trained.checkpoints, "nnUNetTrainerMSKD", "3d_fullres", None))
    assert card["training"]["pseudo_labels"] == {
        "models": ["A__p__3d_fullres"],
        "other_tools": ["totalseg"],
        "classes_of_the_models": ["liver"],
    }
    assert "made by A__p__3d_fullres, totalseg" in in_words(card)


def test_no_place_and_no_patient(trained, tmp_path):
    summary = {"metric_per_case": [{"prediction_file": "/home/me/Muster.nii.gz", "metrics": {"1": {"Dice": 0.5}}}]}
    (tmp_path / "fold_0" / "validation").mkdir()
    (tmp_path / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
    card = make_card(trained, [evaluation(tmp_path / "evaluation")])
    for text in (json.dumps(card), in_words(card)):
        assert not [i for i in (*PRIVATE, str(tmp_path)) if i in text]
    assert card["training"]["settings"]["mine.prior"] == facts.LEFT_OUT


@pytest.mark.parametrize(
    "text", ("/a", "see /a/b", "~/a", "C:\\a", "c:/a", "\\\\server\\a", "$HOME/a", "x=/a", "file:///a", "../a")
)
def test_places_are_seen(text):
    assert facts.without_places({"key": [text]}) == {"key": [facts.LEFT_OUT]}


@pytest.mark.parametrize("text", ("CC BY 4.0", "https://a.org/b/c", "kidney_left+kidney_right", "2.5 x 1 mm", "a/b of c"))
def test_what_is_no_place_stays(text):
    assert facts.without_places(text) == text


def test_figures_with_intervals(trained, tmp_path):
    """Expected by the statistics themselves, on the values that were written."""
    values = (0.9, 0.7, 0.8)
    (figures,) = make_card(trained, [evaluation(tmp_path / "evaluation", values=values) / "metrics.json"])["figures"]
    told = figures["classes"]["liver"]["dice"]
    assert told["mean"] == pytest.approx(np.mean(values)) and told["n"] == 3
    assert told["ci"] == pytest.approx(list(bootstrap_ci(values)))
    assert figures["compared"] == "all classes on every case" and figures["confidence"] == 0.95
    low, high = told["ci"]
    assert f"| liver | 3 | 0.800 [{low:.3f}, {high:.3f}] |" in in_words(make_card(trained, [tmp_path / "evaluation"]))


def test_held_out_cases_of_all_folds_count_together(trained, tmp_path):
    for fold, dice in (("0", (0.4, float("nan"))), ("1", (0.8,))):
        cases = [{"metrics": {"1": {"Dice": i}, "(2, 3)": {"Dice": 1.0}, "9": {"Dice": 0.0}}} for i in dice]
        (tmp_path / f"fold_{fold}" / "validation").mkdir()
        (tmp_path / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    (figures,) = make_card(trained)["figures"]
    assert figures["what"] == "the cases that folds 0, 1 held out"
    assert figures["classes"]["liver"]["dice"]["mean"] == pytest.approx(0.6)
    assert figures["classes"]["liver"]["dice"]["n_undefined"] == 1
    assert set(figures["classes"]) == {"liver", "kidney_left+kidney_right"}


def test_an_evaluation_of_another_model_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="evaluates 'heart', which is no class of the model"):
        make_card(trained, [evaluation(tmp_path / "evaluation", "heart")])
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="holds no summary"):
        make_card(trained, [tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        make_card(trained, [tmp_path / "nowhere.json"])


def test_a_broken_contract_is_refused(trained):
    """Read as none, it would claim that every case annotates every class."""
    broken = {**DATASET_JSON, "nnunet_partial": {"version": 1}}
    with pytest.raises(UserError, match="dataset.json: the key 'nnunet_partial'"):
        make_card(Trained(trained.folder, trained.plans, broken, trained.checkpoints, "nnUNetTrainerMSKD", "3d_fullres", None))


@pytest.mark.parametrize("labels", ({"background": 0, "liver": 1}, {"background": 0, "whole": [1, 2], "core": 2}))
def test_a_model_without_records_gets_a_short_honest_card(tmp_path, labels):
    """As nnU-Net itself leaves one, also of regions."""
    plans = {"dataset_name": "Dataset007_X", "plans_name": "nnUNetPlans", "configurations": {}}
    dataset_json = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": 3}
    card = make_card(Trained(tmp_path, plans, dataset_json, {"all": {}}, "nnUNetTrainerStranger", "2d", "nnUNetTrainerStranger"))
    assert card["figures"] == [] and any("No evaluation is recorded" in i for i in card["limits"])
    assert not card["training"]["settings_recorded"] and card["training"]["folds"] == {"all": {"epochs": None, "ended": None}}
    (source,) = card["sources"]
    assert source["licence"] is None and source["annotated"] is None and source["cases"] == 3
    text = in_words(card)
    assert text.count("not recorded") >= 4 and facts.LOOK_IT_UP in text and "Hounsfield" not in text
    assert text.startswith("# nnUNetTrainerStranger on Dataset007_X\n")


def test_the_card_is_the_same_whenever_it_is_made(trained):
    assert json.dumps(make_card(trained)) == json.dumps(make_card(trained))


def test_tables_hold_whatever_names(trained):
    """A bar in a name is no new column."""
    labels = {"background": 0, "a|b": 1}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1}
    card = make_card(Trained(trained.folder, trained.plans, dataset_json, {}, "nnUNetTrainerMSKD", "3d_fullres", None))
    line = next(i for i in in_words(card).splitlines() if "a\\|b" in i)
    assert line.replace("\\|", "").count("|") == 5


def test_licences_of_every_converter():
    """Each is known, or said to be unknown with a place to look it up."""
    known = json.loads(facts.LICENCES.read_text(encoding="utf-8"))
    assert sorted(known) == converters()
    for name, entry in known.items():
        assert set(entry) - {"note"} == {"title", "licence", "where"}, name
        assert entry["licence"] or entry.get("note") or entry["where"], name


def test_licences_in_the_card(trained):
    card = make_card(trained)
    sources = {i["name"]: i for i in card["sources"]}
    assert sources["kits"]["licence"] == "CC BY-NC-SA 4.0" and sources["lits"]["licence"] is None
    assert (sources["ward"]["licence"], sources["ward"]["licence_from"]) == ("ask the ward", "dataset.json")
    assert any("excludes commercial use" in i for i in card["limits"]) and any("look it up" in i for i in card["limits"])
    text = in_words(card)
    assert f"- lits: {facts.LOOK_IT_UP}, https://competitions.codalab.org" in text and "- ward: ask the ward" in text


def test_the_page_explains_every_key(trained, tmp_path):
    """docs/model_card.md lists the keys of the JSON, each once."""
    card = make_card(trained, [evaluation(tmp_path / "evaluation")])
    text = (ROOT / "docs" / "model_card.md").read_text(encoding="utf-8")
    keys = Counter(i.split("`")[1] for i in text.splitlines() if i.startswith("| `"))
    wanted = {"version", "intended_use", "limits"}
    for part in ("model", "training", "versions"):
        wanted |= {f"{part}.{i}" for i in card[part]}
    for part in ("classes", "sources", "figures"):
        wanted |= {f"{part}[].{i}" for i in card[part][0]}
    assert set(keys) == wanted and set(keys.values()) == {1}
