"""Does a case show what its source shows? One whose label file lacks most of it may annotate less than is declared."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nnunet_partial import _moved

USUAL = 0.8  # share of a source's cases that show a class which is usual there
ENOUGH_CASES = 5  # of a source, for anything to be usual
SPARSE = 0.2  # share of a source's cases with less than half of their classes, from which they seem to differ by design
LACKING = 0.5  # a case that lacks more than this share of what is usual, and at least two classes, is far from its source


@dataclass(frozen=True)
class ShownClasses:
    """What a case annotates, and which of it its label file holds."""

    case: str
    source: str
    annotated: Collection[str]
    present: Collection[str]


@dataclass(frozen=True)
class Lacking:
    """A case far from its source: ``missing``, the usual classes that it annotates without a voxel of them; ``present``."""

    case: str
    source: str
    missing: tuple
    present: tuple

    def in_words(self) -> str:
        """``shows liver alone, where nearly all cases of its source also show ...``."""
        names = ", ".join(self.missing[:6]) + (f" and {len(self.missing) - 6} more" if len(self.missing) > 6 else "")
        return (
            f"shows {' and '.join(self.present[:3])}{' and others' if len(self.present) > 3 else ''} alone, where nearly all "
            f"cases of its source also show {names}: if the file does not annotate them, they are taught as background"
        )


def far_from_source(cases: Sequence[ShownClasses]) -> list:
    """The cases that show something, but at most half of what nearly all cases of their source show, as :class:`Lacking`.

    Empty label files are another matter (an unlabelled scan that is declared to be labelled) and not told here.
    """
    annotating = Counter((i.source, name) for i in cases for name in i.annotated)
    showing = Counter((i.source, name) for i in cases for name in i.present)
    usual = {i for i, n in annotating.items() if n >= ENOUGH_CASES and showing[i] >= USUAL * n}
    found = []
    for case in cases:
        expected = [i for i in case.annotated if (case.source, i) in usual]
        missing = tuple(i for i in expected if i not in case.present)
        if case.present and len(missing) >= 2 and len(missing) > LACKING * len(expected):
            found.append(Lacking(case.case, case.source, missing, tuple(i for i in case.annotated if i in case.present)))
    return found


@dataclass(frozen=True)
class SparseSource:
    """A source many of whose cases show at most half of the classes that they annotate; ``example``: one of ``count``."""

    source: str
    count: int
    cases: int
    example: Lacking

    def in_words(self) -> str:
        """One line."""
        return (
            f"{self.count} of {self.cases} cases of source {self.source or '-'} show at most half of the classes that they "
            f"annotate, such as {self.example.case} with {' and '.join(self.example.present[:3])}: unless the scans end there, "
            "the files are annotated case by case, and what they leave out is taught as background (convert generic has "
            "--annotated-from for that)"
        )


def sparse_sources(cases: Sequence[ShownClasses]) -> list:
    """Sources of which no set of classes is usual, because many cases show few of them, as :class:`SparseSource`."""
    found = []
    for source in dict.fromkeys(i.source for i in cases):
        own = [i for i in cases if i.source == source and len(i.annotated) > 2 and i.present]
        few = [i for i in own if len(i.present) <= LACKING * len(i.annotated)]
        if len(own) >= ENOUGH_CASES and len(few) >= SPARSE * len(own):
            missing = tuple(i for i in few[0].annotated if i not in few[0].present)
            present = tuple(i for i in few[0].annotated if i in few[0].present)
            found.append(SparseSource(source, len(few), len(own), Lacking(few[0].case, source, missing, present)))
    return found


__getattr__ = _moved.renamed(__name__, {"Shown": "ShownClasses"})
