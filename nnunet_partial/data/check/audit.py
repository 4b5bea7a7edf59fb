"""Are pseudo labels good enough to learn from? ``nnunet_partial check --labels LABELS``.

Nobody has outlined what is pseudo-labelled, so nothing here is an accuracy. What can be told is what is unlike the manual
labels or doubtful: volumes against those of the cases that annotate the class, how sure the models were, where they contradict
each other, and, where a tool also says what is annotated, how far it agrees. Each is measured in units of what is
remarkable; a case is as bad as its worst class. The worst are what to leave out, or to outline next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_partial import _moved, paths
from nnunet_partial.data.check.inspection import OUTLIER_CASES, OUTLIER_DEVIATIONS, OUTLIER_FACTOR
from nnunet_partial.data.preprocessed.label_directory import PROVENANCE, LabelDirectory
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.labels import Annotations

UNSURE = 0.2  # a mean confidence below 0.8 is remarkable
CONTESTED = 0.2  # so is a fifth of an organ that models disagree about
UNLIKE = 0.5  # and a Dice below 0.5 of a tool with the manual labels of the same case
ALWAYS = 0.95  # a class that as many of the annotated cases show is missed where it is absent
ABSENT = 2.0  # as remarkable as twice an outlier
_LEAST_DEVIATION = 0.05  # of the logarithm of volumes, for cases that are all alike


@dataclass(frozen=True)
class AuditedCase:
    """One class of one case. ``suspicion``: how remarkable it is, 1 and more is worth a look; ``why``: in words.

    ``annotated``: by hand; ``confidence`` the mean probability, None where masks without any made it; ``disagreement``: share
    of its voxels that models contradict each other about; ``agreement``: lowest Dice of a tool with the manual label.
    """

    case: str
    source: str
    name: str
    annotated: bool
    volume_ml: float
    confidence: float | None = None
    disagreement: float | None = None
    agreement: float | None = None
    suspicion: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Audit:
    """What stands in a label directory. ``images``: folder of the preprocessed images."""

    labels: LabelDirectory
    images: Path
    rows: tuple

    def worst(self, count: int) -> list:
        """The names of ``count`` cases with pseudo labels, the most suspicious first."""
        pseudo = {i.case for i in self.rows if not i.annotated}
        return [case for case, _ in self.ranking if case in pseudo][:count]

    @property
    def ranking(self) -> list:
        """(case, its most suspicious row), the worst first."""
        worst: dict = {}
        for row in self.rows:
            if row.case not in worst or row.suspicion > worst[row.case].suspicion:
                worst[row.case] = row
        return sorted(worst.items(), key=lambda i: (-i[1].suspicion, i[0]))

    def to_json(self) -> dict:
        return {
            "labels": str(self.labels.folder),
            "dataset": self.labels.dataset,
            "cases": {case: {"suspicion": row.suspicion, "why": row.why} for case, row in self.ranking},
            "rows": [asdict(i) for i in self.rows],
        }


def audit(folder: PathLike, dataset: int | str | None = None) -> Audit:
    """Measure a finished label directory. ``dataset``: which it must be of, if it is said. Reads no image.

    Raises :class:`UserError` for a directory that is not finished, or of another dataset.
    """
    labels = LabelDirectory.read(folder, "Make it with nnunet_partial pseudo-label.")
    if dataset is not None and paths.dataset_name(dataset) != labels.dataset:
        raise UserError(f"label directory {folder} is of {labels.dataset}, not of {paths.dataset_name(dataset)}.")
    preprocessed = paths.preprocessed_dataset(labels.dataset)
    annotations = Annotations.read(preprocessed)
    records: dict = {}
    for part in sorted({labels.folder_of(i) for i in labels.known}):
        records.update(read_json(part / PROVENANCE)["cases"])
    try:
        rows = [row for case, record in sorted(records.items()) for row in _rows(case, annotations, record)]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{labels.folder}: its records cannot be understood ({error!r}). Make the labels again.") from None
    return Audit(labels, preprocessed / labels.data_identifier, tuple(judge(rows)))


def _rows(case: str, annotations: Annotations, record: Mapping[str, Any]) -> list:
    by_hand = {"+".join(i) if isinstance(i, list) else i for i in record["annotated"]}
    agreements: dict = {}
    for shares in record.get("agreement", {}).values():
        for name, dice in shares.items():
            agreements[name] = min(dice, agreements.get(name, 1.0))
    return [
        AuditedCase(
            case,
            annotations.of(case).source,
            name,
            name in by_hand,
            volume / 1000,
            None if name in by_hand else record.get("mean_confidence", {}).get(name),
            None if name in by_hand else record.get("disagreement", {}).get(name),
            agreements.get(name),
        )
        for name, volume in record["volume_mm3"].items()
    ]


# ------------------------------------------------------------------ judging


@dataclass(frozen=True)
class Usual:
    """Volumes of a class as they should be: (median and robust deviation of) the logarithm, and whether every case shows it.

    ``whose``: in words, whose volumes these are.
    """

    middle: float
    deviation: float
    everywhere: bool
    whose: str


def judge(rows: Sequence[AuditedCase]) -> list:
    """The rows with what is remarkable about each. Manual labels are what pseudo labels are compared with, where a class has
    enough of them; elsewhere pseudo labels are compared among themselves."""
    usual = {name: _usual([i for i in rows if i.name == name]) for name in {i.name for i in rows}}
    return [_judged(row, usual[row.name]) for row in rows]


def _usual(rows: Sequence[AuditedCase]) -> Usual | None:
    manual = [i for i in rows if i.annotated]
    enough = sum(i.volume_ml > 0 for i in manual) >= OUTLIER_CASES
    chosen = manual if enough else [i for i in rows if not i.annotated]
    logs = np.log([i.volume_ml for i in chosen if i.volume_ml > 0])
    if len(logs) < OUTLIER_CASES:
        return None
    middle = float(np.median(logs))
    deviation = max(1.4826 * float(np.median(np.abs(logs - middle))), _LEAST_DEVIATION)
    return Usual(middle, deviation, len(logs) >= ALWAYS * len(chosen), "outlined by hand" if enough else "in the other cases")


def _judged(row: AuditedCase, usual: Usual | None) -> AuditedCase:
    reasons = [] if row.annotated or usual is None else [_of_volume(row, usual)]
    if row.confidence is not None:
        reasons.append(((1 - row.confidence) / UNSURE, f"mean confidence {row.confidence:.2f}"))
    if row.disagreement is not None:
        reasons.append((row.disagreement / CONTESTED, f"models disagree about {row.disagreement:.0%} of it"))
    if row.agreement is not None:
        reasons.append(((1 - row.agreement) / UNLIKE, f"a tool agrees with the manual label by a Dice of {row.agreement:.2f}"))
    suspicion, why = max(reasons, default=(0.0, ""))
    return replace(row, suspicion=float(suspicion), why=why)


def _of_volume(row: AuditedCase, usual: Usual) -> tuple:
    typical = f"{np.exp(usual.middle):.3g} ml are usual {usual.whose}"
    if row.volume_ml == 0:
        return (ABSENT if usual.everywhere else 0.0), f"not there, where {typical}"
    distance = abs(np.log(row.volume_ml) - usual.middle)
    # an outlier is both: far in deviations, and by a factor
    suspicion = min(distance / (OUTLIER_DEVIATIONS * usual.deviation), distance / np.log(OUTLIER_FACTOR))
    return float(suspicion), f"{row.volume_ml:.3g} ml, where {typical}"


# ------------------------------------------------------------------ words


def in_words(audit: Audit, worst: int = 20) -> list:
    """The report as lines of text, with the ``worst`` cases."""
    ranking = audit.ranking
    remarkable = sum(row.suspicion >= 1 for _, row in ranking)
    lines = [f"{audit.labels.folder}: pseudo labels of {len(ranking)} cases of {audit.labels.dataset}, {remarkable} remarkable"]
    header = ("class", "source", "by hand", "pseudo", "ml by hand", "ml pseudo", "confidence", "disagreement")
    table = [header, *_table(audit.rows)]
    widths = [max(len(str(row[i])) for row in table) for i in range(len(header))]
    lines += ["  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    lines += [f"  {case}: {row.name}: {row.why}" for case, row in ranking[:worst] if row.suspicion >= 1]
    return lines


def by_class(audit: Audit) -> list:
    """One line a class that was pseudo-labelled: on how many cases, its volume and confidence there, and its volume by hand."""
    lines = []
    for name in dict.fromkeys(i.name for i in audit.rows if not i.annotated):
        pseudo, manual = ([i for i in audit.rows if i.name == name and i.annotated == hand] for hand in (False, True))
        shown = [i.volume_ml for i in pseudo if i.volume_ml > 0]
        words = [f"{name}: found on {len(shown)} of {len(pseudo)} cases"]
        words += [f"median {_middle(shown)} ml"] if shown else []
        by_hand = [i.volume_ml for i in manual if i.volume_ml > 0]
        words += [f"outlined by hand {_middle(by_hand)} ml"] if by_hand else []
        confidence = [i.confidence for i in pseudo if i.confidence is not None]
        words += [f"confidence {_middle(confidence)}"] if confidence else []
        lines.append(", ".join(words))
    return lines


def _table(rows: Sequence[AuditedCase]) -> list:
    found = []
    for name, source in dict.fromkeys((i.name, i.source) for i in sorted(rows, key=lambda i: (i.name, i.source))):
        those = [i for i in rows if (i.name, i.source) == (name, source)]
        manual, pseudo = [i for i in those if i.annotated], [i for i in those if not i.annotated]
        volumes = (_middle([i.volume_ml for i in part if i.volume_ml > 0]) for part in (manual, pseudo))
        doubts = (_middle([getattr(i, field) for i in pseudo]) for field in ("confidence", "disagreement"))
        found.append((name, source, len(manual), len(pseudo), *volumes, *doubts))
    return found


def _middle(values: Sequence[float | None]) -> str:
    told = [i for i in values if i is not None]
    return f"{np.median(told):.3g}" if told else "-"


__getattr__ = _moved.renamed(__name__, {"Row": "AuditedCase"})
