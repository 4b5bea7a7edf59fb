"""Cases that show much less than their source."""

from nnunet_partial.data.presence import ShownClasses, far_from_source, sparse_sources

ORGANS = ("liver", "tumor", "spleen", "left_kidney", "right_kidney", "pancreas")


def source(*present, name="a", annotated=ORGANS):
    return [ShownClasses(f"{name}{n}", name, annotated, i) for n, i in enumerate(present)]


def test_case_with_one_organ_beside_cases_with_all():
    found = far_from_source(source(*[ORGANS] * 6, ("liver",)))
    assert [(i.case, i.missing, i.present) for i in found] == [("a6", ORGANS[1:], ("liver",))]
    assert found[0].in_words().startswith("shows liver alone, where nearly all cases of its source also show tumor, spleen")


def test_what_is_usual_counts_and_only_what_the_case_annotates():
    without_tumor = tuple(i for i in ORGANS if i != "tumor")
    # healthy livers, a removed spleen, a case that says what it leaves out, an empty label file (told elsewhere)
    cases = source(*[ORGANS] * 4, *[without_tumor] * 4, [i for i in ORGANS if i != "spleen"], ())
    honest = ShownClasses("honest", "a", ("liver",), ("liver",))
    assert far_from_source([*cases, honest]) == []


def test_sources_are_judged_apart_and_need_enough_cases():
    assert far_from_source([*source(*[ORGANS] * 6), *source(("liver",), name="b")]) == []
    assert far_from_source(source(*[ORGANS] * 3, ("liver",))) == []


def test_source_whose_cases_differ_by_design():
    mixed = source(*[ORGANS] * 5, *[("liver", "tumor")] * 5)
    assert far_from_source(mixed) == []  # nothing is usual here
    (found,) = sparse_sources(mixed)
    assert (found.source, found.count, found.cases, found.example.case) == ("a", 5, 10, "a5")
    assert "5 of 10 cases of source a show at most half of the classes that they annotate" in found.in_words()
    assert sparse_sources(source(*[ORGANS] * 20, ("liver",))) == []
    assert sparse_sources(source(*[("liver",)] * 5, *[("liver", "tumor")] * 5, annotated=("liver", "tumor"))) == []
