"""Who a case shows, where the names of a release say so: cases of one patient belong into one fold."""

import re

_SEVERAL_CASES = (
    r"(patient\d{3})_frame\d{2}",  # ACDC: end diastole and end systole
    r"(BraTS-[A-Za-z]+(?:-[A-Za-z]+)?-\d{4,5})-\d{3}",  # BraTS since 2023: visits, counted from 000
)


def patient_of(case: str) -> str | None:
    """The patient of a case named as in a release with several cases a patient, else None: every case is a patient.

    ``BraTS20_Training_001`` and its like are of one case a patient each.
    """
    matches = (re.fullmatch(pattern, case, re.IGNORECASE) for pattern in _SEVERAL_CASES)
    return next((match[1] for match in matches if match), None)
