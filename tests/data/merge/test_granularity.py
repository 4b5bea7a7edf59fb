"""Which names mean parts of each other, and what merging sources of different granularity says."""

import pytest

from nnunet_partial.data.merge.granularity import conflicts, is_lesion, is_part, opposites, words

PARTS = [
    ("left_kidney", "kidney"),
    ("Kidney (left)", "kidneys"),
    ("RK", "kidney"),
    ("rightKidney", "Kidney"),
    ("liver_tumour", "liver"),
    ("hepatic tumor", "liver"),
    ("kidney_cyst_left", "left_kidney"),
    ("lung_upper_lobe_left", "lung"),
    ("lung_upper_lobe_left", "left lung"),
    ("left upper lobe", "lung_left"),
    ("vertebrae_L1", "vertebrae"),
    ("T12", "spine"),
    ("C3", "vertebral column"),
    ("sacrum", "vertebrae"),
    ("rib_left_4", "ribs"),
    ("heart_atrium_left", "heart"),
    ("left ventricle", "heart"),
    ("pancreas_head", "pancreas"),
    ("adrenal_gland_left", "adrenal glands"),
    ("lag", "adrenal_gland"),
    ("hippocampus", "brain"),
    ("enhancing tumor", "tumor"),
    ("prostate", "prostate/uterus"),
    ("portal_vein", "portal_vein_and_splenic_vein"),
]
NO_PARTS = [
    ("kidney", "left_kidney"),
    ("left_kidney", "right_kidney"),
    ("left upper lobe", "right lung"),
    ("gall_bladder", "bladder"),
    ("left_adrenal_gland", "left_kidney"),
    ("splenic vein", "spleen"),
    ("portal_vein_and_splenic_vein", "spleen"),
    ("hepatic artery", "liver"),
    ("pulmonary_artery", "lung"),
    ("prostate/uterus", "prostate"),
    ("posterior", "anterior"),
    ("L1", "L12"),
    ("liver", "spleen"),
    ("kidney", "kidneys"),
    ("colon", "small_bowel"),
    ("duodenum", "stomach"),
    ("esophagus", "aorta"),
    ("car", "road"),
]


@pytest.mark.parametrize("part, whole", PARTS)
def test_parts(part, whole):
    assert is_part(part, whole) and not is_part(whole, part)


@pytest.mark.parametrize("first, second", NO_PARTS)
def test_no_parts(first, second):
    assert not is_part(first, second)


def test_words_do_not_depend_on_spelling():
    assert words("Kidney_Left") == words("left kidneys") == words("LeftKidney") == words("LK") == {"left", "kidney"}
    assert words("Tumours") == words("tumor") and is_lesion("tumour 2") and not is_lesion("liver tumour")


def test_sides_of_one_structure():
    assert opposites(["liver", "kidney_left", "spleen", "Right Kidney"]) == [("kidney_left", "Right Kidney")]
    assert opposites(["anterior", "posterior"]) == [("anterior", "posterior")]
    lobes = ["lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right"]
    assert opposites(lobes) == [(lobes[0], lobes[1]), (lobes[0], lobes[2])]
    assert opposites(["kidney", "kidney_left", "liver", "left atrium", "right ventricle"]) == []


def test_sources_that_cut_a_structure_differently():
    assert conflicts({"lr": ["left_kidney", "right_kidney"], "kid": ["kidney"]}) == [
        ("kidney", "kid", "left_kidney", "lr"),
        ("kidney", "kid", "right_kidney", "lr"),
    ]
    assert conflicts({"lt": ["liver", "tumor"], "liv": ["liver"]}) == [("liver", "liv", "tumor", "lt")]
    assert conflicts({"t": ["liver_tumor"], "liv": ["liver"]}) == [("liver", "liv", "liver_tumor", "t")]


@pytest.mark.parametrize(
    "classes",
    [
        {"lits": ["liver"], "kits": ["kidney"], "nih": ["pancreas"]},
        {"lits": ["liver", "tumor"], "kits": ["kidney", "tumor"], "nih": ["pancreas"]},
        {"a": ["liver", "liver_tumor"], "b": ["liver", "liver_tumor"], "c": ["liver_tumor"]},
        {"btcv": ["spleen", "right_kidney", "left_kidney", "gallbladder", "liver"], "half": ["left_kidney", "liver"]},
        {"a": ["anterior"], "b": ["posterior"]},
        {"a": ["right_ventricle"], "b": ["myocardium"], "c": ["left_ventricle"]},
        {"cancer": ["cancer"], "liver": ["liver"]},
        {"amos": ["bladder", "gall bladder", "prostate/uterus", "duodenum"], "flare": ["gall bladder", "duodenum"]},
        {"all": ["kidney", "left_kidney"]},
    ],
)
def test_sources_that_agree(classes):
    assert conflicts(classes) == []
