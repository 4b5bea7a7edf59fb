import copy
import json
import pickle

import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.labels import (
    Annotations,
    CaseAnnotation,
    Union,
    check_source_name,
    foreground_classes,
    members,
    read_super_classes,
    settled,
    structure,
    super_structures,
    told_apart,
)

DATASET = {
    "labels": {"background": 0, "liver": 1, "kidney": 2, "pancreas": 3},
    "dataset": {"a_1": {}, "b_1": {}, "b_2": {}, "u_1": {}},
    "nnunet_partial": {
        "version": 1,
        "cases": {
            "a_1": {"source": "a", "annotated": ["kidney", "liver"]},
            "b_1": {"source": "b", "annotated": ["pancreas"]},
            "b_2": {"source": "b", "annotated": []},
            "u_1": {"source": "u", "annotated": []},
        },
    },
}


def changed(**paths):
    """A copy of DATASET; ``a__b=x`` sets ["a"]["b"]."""
    content = copy.deepcopy(DATASET)
    for path, value in paths.items():
        *parents, last = path.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    return content


def test_contract_is_read():
    annotations = Annotations.from_dataset_json(DATASET)
    assert annotations.classes == ("liver", "kidney", "pancreas")
    assert annotations.of("a_1") == CaseAnnotation("a", ("liver", "kidney"))
    assert annotations.mask("a_1") == (True, True, True, False)
    assert annotations.mask("u_1") == (True, False, False, False)
    assert annotations.values("b_1") == (0, 3)
    assert annotations.sources == ("a", "b", "u")
    assert annotations.annotated_sources == ("a", "b")
    assert annotations.classes_of_source("a") == ("liver", "kidney")
    assert annotations.labels() == DATASET["labels"]


def test_contract_survives_writing_and_reading():
    first = Annotations.from_dataset_json(DATASET)
    again = Annotations.from_dataset_json({**DATASET, "nnunet_partial": json.loads(json.dumps(first.to_json()))})
    assert again.cases == first.cases


def test_patient_is_optional_and_survives_writing_and_reading():
    entry = {"source": "a", "annotated": ["kidney"], "patient": "a_patient_7"}
    first = Annotations.from_dataset_json(changed(nnunet_partial__cases__a_1=entry))
    assert first.of("a_1") == CaseAnnotation("a", ("kidney",), "a_patient_7") and first.of("b_1").patient is None
    written = json.loads(json.dumps(first.to_json()))
    assert written["cases"]["a_1"] == entry and "patient" not in written["cases"]["b_1"]
    assert Annotations.from_dataset_json({**DATASET, "nnunet_partial": written}).cases == first.cases


def test_dataset_without_contract_is_fully_labelled():
    annotations = Annotations.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2}})
    assert not annotations.is_partial
    assert annotations.mask("anything") == (True, True, True)
    assert annotations.sources == annotations.annotated_sources == ("all",)
    assert annotations.classes_of_source("all") == ("a", "b")


def test_ignore_label_is_no_class_but_an_allowed_value():
    annotations = Annotations.from_dataset_json(changed(labels__ignore=4))
    assert annotations.classes == ("liver", "kidney", "pancreas") and annotations.ignore_label == 4
    assert annotations.values("b_1") == (0, 3, 4)
    assert annotations.labels()["ignore"] == 4


def test_restricting_to_a_source_numbers_its_classes_anew():
    only_b = Annotations.from_dataset_json(changed(labels__ignore=4)).restricted_to_source("b")
    assert only_b.labels() == {"background": 0, "pancreas": 1, "ignore": 2}
    assert sorted(only_b.cases) == ["b_1", "b_2"]
    with pytest.raises(UserError, match="'u'.*Sources with annotations: a, b"):
        Annotations.from_dataset_json(DATASET).restricted_to_source("u")


def test_unknown_case_is_named():
    with pytest.raises(UserError, match="case z_9 is missing"):
        Annotations.from_dataset_json(DATASET).of("z_9")


@pytest.mark.parametrize(
    "content, message",
    [
        (changed(nnunet_partial__version=3), "must be {'version': 1 or 2"),
        (changed(nnunet_partial=[]), "must be {'version': 1 or 2"),
        (changed(nnunet_partial__cases__a_1={"source": "a"}), "case a_1 must be"),
        (changed(nnunet_partial__cases__a_1={"source": "a", "annotated": [], "extra": 1}), "case a_1 must be"),
        (changed(nnunet_partial__cases__a_1__annotated="liver"), "case a_1 must be"),
        (changed(nnunet_partial__cases__a_1__patient=7), "'patient' of case a_1 must be a name, found 7"),
        (changed(nnunet_partial__cases__a_1__patient=None), "'patient' of case a_1 must be a name, found None"),
        (
            changed(nnunet_partial__cases__a_1__annotated=["spleen"]),
            "unknown class 'spleen'. Classes of this dataset: liver, kidney",
        ),
        (changed(nnunet_partial__cases__a_1__annotated=["background"]), "unknown class 'background'"),
        (changed(nnunet_partial__cases__a_1__source="a__b"), "source name 'a__b'"),
        (changed(nnunet_partial__cases__new={"source": "a", "annotated": []}), "case new .*missing under 'dataset'"),
        (changed(dataset__new={}), "case new .*missing under 'nnunet_partial.cases'"),
    ],
)
def test_contract_that_contradicts_itself_is_refused(content, message):
    with pytest.raises(UserError, match=f"some.json: .*{message}|{message}"):
        Annotations.from_dataset_json(content, "some.json")


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, "'labels' must map"),
        ({"a": 1}, "'background'"),
        ({"background": 0, "a": [1, 2], "b": 2}, "'a' is a region"),
        ({"background": 0, "a": 2}, "without gaps"),
        ({"background": 0, "a": 1, "b": 1}, "without gaps"),
        ({"background": 1, "a": 0}, "'background' 0"),
        ({"background": 0, "a": "one"}, "whole numbers"),
        ({"background": 0, "ignore": 1, "a": 2}, "ignore label must have the highest value, 2"),
        ({"background": 0, "a": 1, "ignore": 1}, "without gaps"),
        ({"background": 0, "a": 1.5}, "whole numbers"),
    ],
)
def test_unusable_labels_are_refused(labels, message):
    with pytest.raises(UserError, match=f"some.json: .*{message}"):
        foreground_classes({"labels": labels}, "some.json")


def test_label_values_may_be_text_and_in_any_order():
    assert foreground_classes({"labels": {"b": "2", "background": 0, "a": 1}}) == (("a", "b"), None)


@pytest.mark.parametrize("name", ["lits", "KiTS19", "nih-ct", "a_b", "a.b", "a_b_c"])
def test_usable_source_names(name):
    assert check_source_name(name) == name


@pytest.mark.parametrize("name", ["", "a__b", "_a", "a_", "a b", "a/b", "..", "-a", "é", 3, None])
def test_unusable_source_names(name):
    with pytest.raises(UserError, match="source name"):
        check_source_name(name)


class Counted(str):
    """A name that counts how often names are compared."""

    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def comparisons_to_read(cases, classes, annotated):
    names = [f"class_{i}" for i in range(classes)]
    entries = {str(i): {"source": "s", "annotated": [Counted(names[-1 - j]) for j in range(annotated)]} for i in range(cases)}
    content = {
        "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(names)}},
        "nnunet_partial": {"version": 1, "cases": entries},
    }
    Counted.comparisons = 0
    annotations = Annotations.from_dataset_json(content)
    assert annotations.of("0").annotated == tuple(names[-annotated:])
    assert annotations.mask("0") == (True, *[False] * (classes - annotated), *[True] * annotated)
    return Counted.comparisons


def test_reading_takes_steps_for_what_is_annotated_not_for_all_classes():
    few = comparisons_to_read(20, 10, 2)
    assert comparisons_to_read(20, 500, 2) <= 2 * few and comparisons_to_read(20, 500, 40) <= 40 * few


def test_an_annotated_class_that_is_no_name_is_refused():
    with pytest.raises(UserError, match=r"a_1 annotates the union \['liver'\], which needs two classes"):
        Annotations.from_dataset_json(changed(nnunet_partial__cases__a_1={"source": "a", "annotated": [["liver"]]}))


# ------------------------------------------------------------------ unions

SIDES = ("spleen", "kidney_left", "kidney_right", "liver", "tumor")


def with_unions(**annotated):
    """A contract of version 2; ``case=(source, items)``."""
    return {
        "labels": {"background": 0, **{name: i for i, name in enumerate(SIDES, 1)}, "ignore": 6},
        "nnunet_partial": {
            "version": 2,
            "cases": {case: {"source": source, "annotated": items} for case, (source, items) in annotated.items()},
        },
    }


def test_unions_are_read_and_partition_the_classes():
    annotations = Annotations.from_dataset_json(
        with_unions(
            a=("kits", [["kidney_right", "kidney_left"], "spleen"]), b=("btcv", ["kidney_left", "kidney_right"]), c=("u", [])
        )
    )
    kidneys = Union(["kidney_left", "kidney_right"])
    assert annotations.of("a").annotated == ("spleen", kidneys) and kidneys == "kidney_left+kidney_right"
    assert members(annotations.of("a").annotated[1]) == ("kidney_left", "kidney_right") and members("spleen") == ("spleen",)
    assert annotations.mask("a") == (True, True, False, False, False, False)
    assert annotations.groups("a") == (0, 1, 2, 2, 0, 0) and annotations.groups("b") == (0, 0, 2, 3, 0, 0)
    assert annotations.groups("c") == (0,) * 6
    assert annotations.values("a") == (0, 1, 2, 6) and annotations.values("b") == (0, 2, 3, 6)
    assert (
        annotations.unions == (kidneys,) and annotations.values_of(kidneys) == (2, 3) and annotations.values_of("tumor") == (5,)
    )
    assert pickle.loads(pickle.dumps(kidneys)).members == kidneys.members


def test_version_2_is_written_where_unions_are_and_survives():
    content = with_unions(a=("kits", [["kidney_left", "kidney_right"], "spleen"]), b=("kits", ["spleen"]))
    written = json.loads(json.dumps(Annotations.from_dataset_json(content).to_json()))
    assert written["version"] == 2 and written["cases"]["a"]["annotated"] == ["spleen", ["kidney_left", "kidney_right"]]
    again = Annotations.from_dataset_json({**content, "nnunet_partial": written})
    assert again.cases == Annotations.from_dataset_json(content).cases and again.unions[0].members == (
        "kidney_left",
        "kidney_right",
    )
    plain = Annotations.from_dataset_json(with_unions(a=("kits", ["spleen"])))
    assert plain.to_json()["version"] == 1


@pytest.mark.parametrize(
    "items, message",
    [
        ([["kidney_left", "kidney_right"], "kidney_left"], "annotates 'kidney_left' twice"),
        ([["kidney_left", "kidney_right"], ["kidney_right", "liver"]], "annotates 'kidney_right' twice"),
        ([["kidney_left", "kidney_left"]], "annotates 'kidney_left' twice"),
        (["spleen", "spleen"], "annotates 'spleen' twice"),
        ([["kidney_left", "kidney"]], "unknown class 'kidney'"),
        ([["kidney_left", ["liver", "tumor"]]], r"unknown class \['liver', 'tumor'\]"),
        ([[]], r"union \[\], which needs two"),
        ([["liver"]], r"union \['liver'\], which needs two"),
        ([7], "unknown class 7"),
    ],
)
def test_wrong_unions_are_refused(items, message):
    with pytest.raises(UserError, match=f"some.json: case a .*{message}"):
        Annotations.from_dataset_json(with_unions(a=("kits", items)), "some.json")


def test_version_1_knows_no_unions_and_a_union_is_no_class():
    content = with_unions(a=("kits", [["liver", "tumor"]]))
    content["nnunet_partial"]["version"] = 1
    with pytest.raises(UserError, match="needs 'version': 2"):
        Annotations.from_dataset_json(content)
    content = with_unions(a=("kits", [["liver", "tumor"]]))
    content["labels"] = {"background": 0, "liver": 1, "tumor": 2, "liver+tumor": 3}
    with pytest.raises(UserError, match="'liver.tumor' is also the name of a class"):
        Annotations.from_dataset_json(content)


def test_a_source_has_the_coarsest_classes_that_its_cases_need():
    annotations = Annotations.from_dataset_json(
        with_unions(
            a=("kits", [["kidney_left", "kidney_right"], ["liver", "tumor"]]),
            b=("kits", ["spleen", "liver"]),
            c=("kits", []),
            d=("btcv", ["kidney_left"]),
        )
    )
    assert annotations.classes_of_source("kits") == ("spleen", "kidney_left+kidney_right", "liver", "tumor")
    own = annotations.restricted_to_source("kits")
    assert own.labels() == {"background": 0, "spleen": 1, "kidney_left+kidney_right": 2, "liver": 3, "tumor": 4, "ignore": 5}
    assert all(type(i) is str for i in own.labels())
    assert own.groups("a") == (0, 0, 2, 3, 3) and own.groups("b") == (0, 1, 0, 3, 0)
    written = {"labels": own.labels(), "nnunet_partial": json.loads(json.dumps(own.to_json()))}
    assert Annotations.from_dataset_json(written).cases == own.cases
    assert annotations.restricted_to_source("btcv").labels() == {"background": 0, "kidney_left": 1, "ignore": 2}


def test_names_of_structures():
    assert structure("liver", SIDES) == "liver" and not isinstance(structure("liver", SIDES), Union)
    assert structure("kidney_right+kidney_left", SIDES).members == ("kidney_left", "kidney_right")
    assert structure("a+b", ("a+b", "a", "b")) == "a+b" and members(structure("a+b", ("a+b", "a", "b"))) == ("a+b",)
    assert [structure(i, SIDES) for i in ("kidney", "liver+kidney", "liver+liver", "liver+")] == [None] * 4


def test_what_is_known_together():
    both = Union(["kidney_left", "kidney_right"])
    assert settled(["liver", both, "kidney_left"], SIDES) == (both, "liver")
    assert settled(["liver", both, "kidney_right", "kidney_left"], SIDES) == ("kidney_left", "kidney_right", "liver")


def test_what_can_be_learned():
    both, three = Union(["kidney_left", "kidney_right"]), Union(["kidney_right", "liver", "tumor"])
    assert told_apart([both, "kidney_left"]) == {"kidney_left", "kidney_right"}  # the rest of a union
    assert told_apart([three, "tumor", both, "kidney_left"]) == {"tumor", "kidney_left", "kidney_right", "liver"}
    assert told_apart([both]) == {"kidney_left"}  # nothing tells the sides apart
    assert told_apart(["spleen"]) == {"spleen"} and told_apart([]) == set()


# ---- super-classes as classes


def test_a_super_class_is_annotated_where_all_of_its_classes_are():
    classes = ("left", "right", "spleen", "tumour")
    structures = super_structures({"kidneys": ["right", "left"], "only": ["spleen"]}, classes)
    assert structures == ("left+right", "spleen", "tumour") and structures[0].members == ("left", "right")
    cases = {
        "both": ("left", "right", "spleen"),
        "union": (Union(("left", "right")), "tumour"),
        "one": ("left",),
        "none": (),
    }
    annotations = Annotations(classes, {k: CaseAnnotation("s", v) for k, v in cases.items()}, ignore_label=5)
    coarse = annotations.coarsened(structures)
    assert {k: v.annotated for k, v in coarse.cases.items()} == {
        "both": ("left+right", "spleen"),
        "union": ("left+right", "tumour"),
        "one": (),
        "none": (),
    }
    assert coarse.labels() == {"background": 0, "left+right": 1, "spleen": 2, "tumour": 3, "ignore": 4}
    assert annotations.values_after(structures) == {1: 1, 2: 1, 3: 2, 4: 3, 5: 4}
    assert structure(coarse.classes[0], classes).members == ("left", "right")  # as pseudo-label reads the model's class
    # the contract of the model's dataset.json is one that is read again
    content = {"labels": coarse.labels(), "nnunet_partial": coarse.to_json()}
    assert Annotations.from_dataset_json(content).cases == coarse.cases


def test_a_union_across_super_classes_is_refused():
    annotations = Annotations(("a", "b", "c"), {"x": CaseAnnotation("s", (Union(("a", "b")),))})
    with pytest.raises(UserError, match="case x annotates a\\+b as one, and its classes are of different super-classes"):
        annotations.coarsened(super_structures({"s": ["b", "c"]}, ("a", "b", "c")))


def test_super_classes_are_read_from_a_file_or_are_the_unions_of_the_dataset(tmp_path):
    def of(*annotated):
        cases = {f"a_{i}": {"source": "a", "annotated": list(items)} for i, items in enumerate(annotated)}
        labels = {"background": 0, "left": 1, "right": 2, "liver": 3}
        return Annotations.from_dataset_json({"labels": labels, "nnunet_partial": {"version": 2, "cases": cases}})

    file = tmp_path / "classes.json"
    file.write_text('{"organs": ["liver", "left"]}')
    assert read_super_classes(file, of(["liver"])) == {"organs": ["liver", "left"]}
    assert read_super_classes("unions", of([["left", "right"]], ["liver"], [["left", "right"], "liver"])) == {
        "left+right": ["left", "right"]
    }
    with pytest.raises(UserError, match="no case of the dataset annotates a union"):
        read_super_classes("unions", of(["liver"]))
    with pytest.raises(UserError, match="class 'left' is in two super-classes"):
        read_super_classes("unions", of([["left", "right"]], [["left", "liver"]]))
    file.write_text('{"organs": ["livr"]}')
    with pytest.raises(UserError, match="'livr', which is no class of this dataset"):
        read_super_classes(file, of(["liver"]))
