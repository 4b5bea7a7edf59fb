"""Which cases show one patient: what a source or a file says, what well-known names say, and images that are the same."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence

from nnunet_partial.data.fingerprint import connected
from nnunet_partial.data.merge.sources import MergedCase, Source
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import PathLike

_NAMES = tuple(
    re.compile(i)
    for i in (
        r"(patient\d+)_frame\d+",  # ACDC: two frames of a heart beat
        r"(BraTS-[A-Za-z]+-\d+)-\d+",  # BraTS: follow-up scans
        r"(sub-[A-Za-z0-9]+)_.+",  # BIDS: sessions and runs
    )
)
_SCOPE = ":"  # between the dataset that knows a patient and the name there: others may have a patient001 too


def read_patients(file: PathLike) -> dict:
    """case -> patient of a CSV file with the columns ``case`` and ``patient``. Raises :class:`UserError`."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--patients {file} cannot be read ({error}).") from None
    found: dict = {}
    for number, row in enumerate(rows, 2):
        case, patient = (str(row.get(i) or "").strip() for i in ("case", "patient"))
        if not case or not patient:
            raise UserError(
                f"--patients {file}, row {number}: 'case' and 'patient' must both be given under a header case,patient."
            )
        if found.setdefault(case, patient) != patient:
            raise UserError(f"--patients {file}: case {case} has two patients, {found[case]} and {patient}. Keep one.")
    if not found:
        raise UserError(f"--patients {file} holds no row. Write a header case,patient and one row a case.")
    return found


def known_patients(loaded: Sequence[Source], given: Mapping[str, str]) -> dict:
    """Case of the merged dataset -> patient, where it is known: ``given``, else as the source or the case's name says."""
    cases = {case.name: (source, case) for source in loaded for case in source.cases}
    unknown = [i for i in given if i not in cases]
    if unknown:
        raise UserError(
            f"--patients: there is no case {unknown[0]!r} in the merged dataset. {did_you_mean(unknown[0], cases)}Cases are called SOURCE_CASE: "
            f"{', '.join(list(cases)[:3])}, ..."
        )
    found = {name: given.get(name) or _patient_in_source(source, case) for name, (source, case) in cases.items()}
    return {case: patient for case, patient in found.items() if patient is not None}


def _patient_in_source(source: Source, case: MergedCase) -> str | None:
    name = None if source.annotations is None else source.annotations.of(case.raw.name).patient
    name = name or patient_of_name(case.raw.name)
    return name if name is None or _SCOPE in name else f"{source.raw.folder.name}{_SCOPE}{name}"


def patient_of_name(case: str) -> str | None:
    """The patient that the name of a case tells, as those of ACDC, BraTS and BIDS do; or None."""
    match = next(filter(None, (i.fullmatch(case) for i in _NAMES)), None)
    return match and match[1]


def joined(patients: Mapping[str, str], keys: Mapping[str, Iterable]) -> tuple:
    """``(case -> patient, warnings)``: patients whose images are the same are one; cases of one image become a patient.

    ``keys``: every case -> what identifies its image.
    """
    result, warnings = {}, []
    groups = connected({case: [*own, *([("patient", patients[case])] if case in patients else [])] for case, own in keys.items()})
    for cases in groups:
        names = sorted({patients[i] for i in cases if i in patients})
        if len(names) > 1:
            warnings.append(f"the patients {', '.join(names[:5])} share images; they count as one, {names[0]}.")
        if names or len(cases) > 1:
            result.update(dict.fromkeys(cases, names[0] if names else cases[0]))
    return result, warnings
