"""Choice of classes: merging, names, priorities, partial availability."""

import numpy as np
import pytest

from nnunet_partial.data.conversion.organs import choose_organs
from nnunet_partial.errors import UserError

STRUCTURES = {"liver": (1, 2), "tumor": (2,), "right_kidney": (3,), "left_kidney": (4,)}
LABEL = np.array([[0, 1, 2], [3, 4, 0]], np.uint8)


@pytest.mark.parametrize(
    "requested, classes, expected",
    [
        (None, ("liver",), [[0, 1, 1], [0, 0, 0]]),
        ("liver,tumor", ("liver", "tumor"), [[0, 1, 2], [0, 0, 0]]),
        ("tumor,liver", ("tumor", "liver"), [[0, 2, 1], [0, 0, 0]]),
        ("kidney=right_kidney+left_kidney", ("kidney",), [[0, 0, 0], [1, 1, 0]]),
        ("left_kidney, Leber=liver", ("left_kidney", "Leber"), [[0, 2, 2], [0, 1, 0]]),
        ("all=liver+right_kidney+left_kidney,tumor", ("all", "tumor"), [[0, 1, 2], [1, 1, 0]]),
    ],
)
def test_classes_and_their_voxels(requested, classes, expected):
    organs = choose_organs(requested, STRUCTURES, ("liver",))
    assert organs.classes == classes and list(organs.labels().values()) == list(range(len(classes) + 1))
    mapped = organs.apply(LABEL)
    assert mapped.dtype == np.uint8 and np.array_equal(mapped, expected)


@pytest.mark.parametrize(
    "requested, words",
    [
        ("spleen", "not a structure"),
        ("", "not a structure"),
        ("liver,,tumor", "not a structure"),
        ("x=", "not a structure"),
        ("liver,liver", "given twice"),
        ("background=liver", "not usable"),
        ("ignore=liver", "not usable"),
        ("a/b=liver", "not usable"),
        ("a=tumor,b=tumor", "nothing would be left"),
        ("both=right_kidney+left_kidney,right_kidney,left_kidney", "nothing would be left"),
    ],
)
def test_requests_that_make_no_sense(requested, words):
    with pytest.raises(UserError, match=words):
        choose_organs(requested, STRUCTURES, ("liver",))


@pytest.mark.parametrize("name", ["liver, left", "liver=1", "liver+tumor", "a:b"])
def test_names_that_no_command_line_could_give_are_refused(name):
    with pytest.raises(UserError, match="separates names on the command line"):
        choose_organs(None, {name: (1,), "x": (2,)}, (name, "x"))
    assert choose_organs("x", {name: (1,), "x": (2,)}, (name, "x")).classes == ("x",)


def test_a_download_without_structures():
    with pytest.raises(UserError, match="names no structure"):
        choose_organs(None, {}, ())


def test_a_class_is_annotated_only_if_all_its_parts_are():
    organs = choose_organs("liver,kidney=right_kidney+left_kidney", STRUCTURES, ())
    assert organs.annotated() == ("liver", "kidney")
    assert organs.annotated({1, 2, 3}) == ("liver",)
    assert np.array_equal(organs.apply(LABEL, {1, 2, 3}), [[0, 1, 1], [0, 0, 0]])


def test_values_to_ignore_become_the_ignore_label():
    organs = choose_organs(None, STRUCTURES, ("liver", "tumor"), ignored={9, 255})
    assert organs.labels() == {"background": 0, "liver": 1, "tumor": 2, "ignore": 3}
    assert np.array_equal(organs.apply(np.array([0, 1, 2, 9, 255, 3], np.uint8)), [0, 1, 2, 3, 3, 0])


@pytest.mark.parametrize("value", [5, 254, 255, 256, 70000])
def test_unknown_values_are_named(value):
    organs = choose_organs(None, STRUCTURES, ("liver",))
    with pytest.raises(UserError, match=f"holds the label value {value}; known values are 0, 1, 2, 3, 4"):
        organs.apply(np.array([0, value, 1], np.int64))


def test_the_given_array_stays_as_it_is():
    label = LABEL.copy()
    choose_organs(None, STRUCTURES, ("liver",)).apply(label)
    assert np.array_equal(label, LABEL)
