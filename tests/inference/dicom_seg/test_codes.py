"""Codes of classes: those of the table against pydicom's copy of the standard, names in every spelling, names that nobody knows."""

import csv

import pytest
from pydicom.sr.codedict import codes as standard

from nnunet_partial.errors import UserError
from nnunet_partial.inference.dicom_seg.codes import CATEGORIES, COLUMNS, SIDES, TABLE, Codes, standard_codes


def in_the_standard():
    """SNOMED CT code -> meaning, of all that the DICOM standard uses."""
    from pydicom.sr._concepts_dict import concepts

    return {code: meaning for entry in concepts["SCT"].values() for code, (meaning, _) in entry.items()}


def in_words(structure):
    """``Left Kidney (SCT 64033007)``."""
    side = f"{SIDES[structure.side][1]} " if structure.side else ""
    where = f" of {in_words(structure.region).partition(' (')[0]}" if structure.region else ""
    return f"{side}{structure.meaning}{where} ({structure.scheme} {structure.code})"


def rows():
    with open(TABLE, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_code_of_the_table_is_one_of_the_standard_and_means_that():
    known = in_the_standard()
    adjectives = {
        "aorta": "aortic",
        "pancreas": "pancreatic",
        "prostate": "prostatic",
        "spleen": "splenic",
        "trachea": "tracheal",
    }
    assert len(rows()) > 90 and list(rows()[0]) == list(COLUMNS)
    for row in rows():
        words = {adjectives.get(i, i) for i in row["meaning"].lower().split()} - {"of"}
        assert words & set(known[row["code"]].lower().split()), row
        assert row["kind"] in CATEGORIES
    assert len({row["code"] for row in rows()}) == len(rows())


def test_sides_and_categories_are_those_of_the_standard():
    assert {k: v[0] for k, v in SIDES.items()} == {"left": standard.SCT.Left.value, "right": standard.SCT.Right.value}
    of_the_standard = {
        standard.cid7150.AnatomicalStructure,
        standard.cid7150.MorphologicallyAbnormalStructure,
        standard.cid7150.Tissue,
    }
    assert {v for _, v, _ in CATEGORIES.values()} == {i.value for i in of_the_standard}


@pytest.mark.parametrize(
    "name, words",
    [
        ("liver", "Liver (SCT 10200004)"),
        ("Left Kidney", "Left Kidney (SCT 64033007)"),
        ("kidney_right", "Right Kidney (SCT 64033007)"),
        ("right-kidney", "Right Kidney (SCT 64033007)"),
        ("kidney", "Kidney (SCT 64033007)"),
        ("Oesophagus", "Esophagus (SCT 32849002)"),
        ("left_atrium", "Left atrium (SCT 82471001)"),
        ("lung_upper_lobe_left", "Left Upper lobe of lung (SCT 45653009)"),
        ("vertebrae_L3", "L3 vertebra (SCT 36470004)"),
        ("tumor", "Tumor (SCT 108369006)"),
        ("liver tumour", "Tumor of Liver (SCT 108369006)"),
        ("kidney_cyst_left", "Cyst of Left Kidney (SCT 367643001)"),
    ],
)
def test_names(name, words):
    assert in_words(standard_codes().of(name)) == words


@pytest.mark.parametrize(
    "name", ["liver_left", "prostate_or_uterus", "kidney_left_right", "organ 7", "Niere", "tumor_liver", "left"]
)
def test_names_that_nobody_knows_have_a_private_code(name):
    """Better none than a wrong one: the liver has no sides."""
    found = standard_codes().of(name)
    assert found.scheme == "99NNUNET_PARTIAL" and found.meaning == name and not found.side and not found.region
    assert len(found.code) <= 16 >= len(found.scheme)


def test_private_codes_are_told_apart():
    long = ["my very long class name " + i for i in "ab"]
    found = [standard_codes().of(i) for i in long]
    assert found[0].code != found[1].code and all(len(i.code) == 16 for i in found)
    assert standard_codes().of("a\\b" * 40).meaning.startswith("a ba b") and len(standard_codes().of("x" * 99).meaning) == 64


def test_a_table_of_ones_own_comes_first(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text(
        "name,kind,code,meaning,sides,also\nNiere,organ,64033007,Kidney,paired,Nieren\nliver,lesion,52988006,Lesion,,\n"
    )
    codes = standard_codes(table)
    assert in_words(codes.of("Niere left")) == "Left Kidney (SCT 64033007)" == in_words(codes.of("kidney_left"))
    assert in_words(codes.of("liver")) == "Lesion (SCT 52988006)" and in_words(standard_codes().of("liver")).startswith("Liver")
    assert len(codes.sha256()) == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no column name"),
        ("name,code\nx,64033007\n", "has no column kind"),
        ("name,kind,code,meaning\nx,organ,kidney,Kidney\n", "line 2: 'kidney' is no code of SNOMED CT"),
        ("name,kind,code,meaning\nx,organs,64033007,Kidney\n", "found 'organs'. Did you mean organ"),
        ("name,kind,code,meaning\nx,organ,64033007,\n", "line 2: name and meaning are needed"),
        ("name,kind,code,meaning\nx,organ,64033007,Kidney\nX,organ,10200004,Liver\n", "line 3: x is there twice"),
    ],
)
def test_tables_that_cannot_be_used(text, words, tmp_path):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        Codes(tmp_path / "mine.csv")
    with pytest.raises(UserError, match="cannot be read as a table of codes"):
        Codes(tmp_path / "none.csv")
