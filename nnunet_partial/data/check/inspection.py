"""What a raw dataset holds, and what looks wrong: ``nnunet_partial check``.

:mod:`nnunet_partial.data.check.dataset` says whether a dataset keeps its contract. This module looks at the images
themselves: are they what their header and dataset.json say? Every image is read once, in worker processes. Positions
are mm in DICOM's frame (x left, y back, z head), arrays (z, y, x) along these axes whatever the file's order.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_partial import _moved
from nnunet_partial.data import images
from nnunet_partial.data.check import placement, same_patient
from nnunet_partial.data.check.dataset import dataset_problems
from nnunet_partial.data.fingerprint import NOT_FINITE, Fingerprint, fingerprint, patient_axes
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.data.presence import ShownClasses, far_from_source, sparse_sources
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.files import read_json, write_json
from nnunet_partial.labels import CaseAnnotation, Union

BODY_HU, BONE_HU = -300, 250
SPINE_HALF_WIDTH_MM = 40
_BODY_GRID = 128  # the middle of the body needs no more voxels along an edge
# An organ this far on the wrong side of the middle of the body. On 151 label maps of 25 patients, most of them deformed copies, with
# the side as the other organs of the same map say it, none of 733 livers, spleens, kidneys and gallbladders reaches 5 mm; mirrored,
# 728 do. The stomach, which lies near the middle, does so in 5 of 151, and is no witness. (72 of these maps are stored mirrored
# against their headers: there all organs are on the wrong side, and the finding is right.)
WRONG_SIDE_MM = 10
OUTLIER_FACTOR, OUTLIER_DEVIATIONS, OUTLIER_CASES = 2.0, 3.5, 6
JUMP_HU = 200  # between neighbouring slices, in three quarters of their voxels and the same way
SIDES = {
    "right": (
        "liver",
        "gallbladder",
        "gall_bladder",
        "right_kidney",
        "kidney_right",
        "right_adrenal_gland",
        "adrenal_gland_right",
    ),
    "left": ("spleen", "left_kidney", "kidney_left", "left_adrenal_gland", "adrenal_gland_left"),
}


@dataclass(frozen=True)
class Facts:
    """What was measured on one case.

    ``volumes_ml`` and ``centres_mm`` per class that the label holds; centres and ``bone_y_mm``, the mean place of
    bone near the midline, count from the middle of the body. ``print``: what identifies the voxels; empty if unreadable.
    ``spreads_mm``: of the classes that are large enough for it (:mod:`same_patient`). ``patient``: whom the case shows, where that is known.
    ``evenness``: how uniform the image is below each class, in place and mirrored (:mod:`placement`); CT alone.
    ``jumps``: (number of a slice from the feet, HU by which the next one lies higher), where nearly all voxels do.
    """

    case: str
    source: str
    annotated: tuple
    size_xyz: tuple = ()
    spacing_mm: tuple = ()
    orientation: str = ""
    percentiles: tuple = ()  # 0.5, 50 and 99.5 % of the first channel
    whole_numbers: bool = False
    print: Fingerprint = Fingerprint("", "", "", 0)
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    centres_mm: Mapping[str, tuple] = field(default_factory=dict)
    bone_y_mm: float | None = None
    evenness: Mapping[str, placement.Evenness] = field(default_factory=dict)
    jumps: tuple = ()
    problem: str | None = None
    spreads_mm: Mapping[str, float] = field(default_factory=dict)
    patient: str | None = None


@dataclass(frozen=True)
class Finding:
    """``level``: "error" (training on it goes wrong), "warning" (look at it) or "note". ``case``: empty for all."""

    level: str
    kind: str
    case: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Inspection:
    """Everything about one dataset. ``classes``: then the unions of classes that some case does not tell apart."""

    name: str
    classes: tuple
    channels: tuple
    facts: tuple
    findings: tuple

    def to_json(self) -> dict:
        return {
            "dataset": self.name,
            "classes": list(self.classes),
            "channels": list(self.channels),
            "findings": [asdict(i) for i in self.findings],
            "cases": {i.case: asdict(i) for i in self.facts},
        }


def inspect(folder: Path, against: Sequence[Path] = (), processes: int | None = None) -> Inspection:
    """Measure every case of the raw dataset in ``folder`` and judge.

    ``against``: further raw datasets, and ``imagesTs`` of this one is looked at in any case, which must not share
    images with it. Raises :class:`UserError` when dataset.json itself is not usable.
    """
    raw = read_raw_dataset(folder)
    if not raw.cases:
        raise UserError(f"{raw.folder} has no training case, so there is nothing to check. Convert or merge it again.")
    annotations = raw.annotations()
    classes = tuple(name for name, values in raw.labels.items() if len(values) == 1 and values[0] > 0 and name != "ignore")
    values = {name: raw.labels[name][0] for name in classes}
    everything = CaseAnnotation("", classes)
    entries = {case: annotations.of(case) if annotations else everything for case in raw.cases}
    jobs = [
        CaseToInspect(case, values_in_file(entries[name].annotated, values), entries[name], raw.is_ct)
        for name, case in raw.cases.items()
    ]
    facts = tuple(map_cases(measure, jobs, processes, "looking"))
    others = {Path(i).name: _prints(_images(Path(i)), raw.is_ct, processes) for i in against}
    others["imagesTs"] = _prints(_test_images(raw), raw.is_ct, processes)
    findings = [Finding("error", "contract", "", i) for i in dataset_problems(raw, processes)]
    findings += list(judge(facts, raw)) + list(shared_images(facts, others)) + list(conversion_notes(folder))
    findings = [with_remedy(i, raw.folder.name) for i in accepted(findings, folder)]
    structures = (*classes, *(annotations.unions if annotations else ()))
    return Inspection(raw.folder.name, structures, raw.channel_names, facts, tuple(findings))


def values_in_file(annotated: Sequence[str], values: Mapping[str, int]) -> dict:
    """Structure -> value in a label file that distinguishes ``annotated``; ``values`` of every class. A union stands in place
    of its classes, whose volume and place cannot be told."""
    unions = [i for i in annotated if isinstance(i, Union)]
    hidden = {c for i in unions for c in i.members}
    alone = {name: value for name, value in values.items() if name not in hidden}
    return {**alone, **{i: values[i.members[0]] for i in unions}}


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class CaseToInspect:
    case: RawCase
    values: Mapping[str, int]
    annotation: CaseAnnotation
    is_ct: bool


def measure(job: CaseToInspect) -> Facts:
    """Read one case. What cannot be read becomes ``problem``."""
    try:
        return _measure(job)
    except UserError as error:
        return Facts(job.case.name, job.annotation.source, job.annotation.annotated, problem=str(error))


def _measure(job: CaseToInspect) -> Facts:
    image = patient_axes(images.read_image(job.case.images[0]))
    geometry = images.read_geometry(job.case.images[0])
    array = sitk.GetArrayViewFromImage(image)
    flat = array.reshape(-1)
    grey = flat[::7][np.isfinite(flat[::7])].astype(np.float32)
    low, middle, high = np.percentile(grey, (0.5, 50, 99.5)) if grey.size else (0.0,) * 3
    middle_mm, bone_y_mm = _body(array, image, job.is_ct)
    label = _label(job, image)
    volumes, centres, spreads = ({}, {}, {}) if label is None else _organs(job, label, image, middle_mm)
    in_3d_ct = job.is_ct and image.GetDimension() == 3
    return Facts(
        job.case.name,
        job.annotation.source,
        job.annotation.annotated,
        geometry.size_xyz,
        geometry.spacing_mm,
        geometry.orientation,
        (float(low), float(middle), float(high)),
        bool((grey[::14] % 1 == 0).all()),
        fingerprint(job.case.images, job.is_ct),
        volumes,
        centres,
        bone_y_mm,
        placement.evenness(array, label, job.values) if in_3d_ct and label is not None else {},
        slice_jumps(array) if in_3d_ct else (),
        spreads_mm=spreads,
        patient=job.annotation.patient,
    )


def slice_jumps(array: np.ndarray) -> tuple:
    """``(slice, HU)`` where the next slice of ``array`` (z, y, x) lies higher by more than ``JUMP_HU`` in three quarters of the
    voxels, or lower. Slices that are empty (one value) are padding and not compared.
    """
    steps = tuple(max(1, n // _BODY_GRID) for n in array.shape[1:])
    slices = array[:, :: steps[0], :: steps[1]].reshape(len(array), -1).astype(np.float32)
    filled = slices.min(1) < slices.max(1)
    quarters = [np.percentile(b - a, (25, 50, 75)) for a, b in zip(slices, slices[1:])]
    return tuple(
        (number, float(middle))
        for number, (low, middle, high) in enumerate(quarters)
        if (low > JUMP_HU or high < -JUMP_HU) and filled[number] and filled[number + 1]
    )


def _body(array: np.ndarray, image: "sitk.Image", is_ct: bool) -> tuple:
    """``(middle of the body (x, y, z), mean y of bone near the midline from there or None)``; the image's middle if
    it is no CT.
    """
    if image.GetDimension() != 3:
        return (0.0, 0.0, 0.0), None
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    middle = origin + 0.5 * spacing * (np.array(array.shape[::-1]) - 1)
    step = np.array([max(1, n // _BODY_GRID) for n in array.shape])
    coarse = array[:: step[0], :: step[1], :: step[2]]
    body = np.argwhere(coarse > BODY_HU)
    if not is_ct or len(body) < 100:
        return tuple(middle), None
    middle[:2] = (origin + spacing * (body.mean(0) * step)[::-1])[:2]
    bone = origin + spacing * (np.argwhere(coarse > BONE_HU) * step)[:, ::-1]
    bone = bone[np.abs(bone[:, 0] - middle[0]) < SPINE_HALF_WIDTH_MM]
    return tuple(middle), float(bone[:, 1].mean() - middle[1]) if len(bone) > 20 else None


def _label(job: CaseToInspect, image: "sitk.Image") -> np.ndarray | None:
    """The label map (z, y, x) along the patient's axes; None in 2D, and where it does not fit its image, which the check of
    the contract tells."""
    if job.case.label is None or image.GetDimension() != 3:
        return None
    values, geometry = images.read_label(job.case.label)
    label = sitk.GetImageFromArray(values)
    if label.GetDimension() != 3:
        return None
    label.SetDirection(geometry.direction)
    label = sitk.GetArrayFromImage(patient_axes(label))
    return label if label.shape == image.GetSize()[::-1] else None


def _organs(job: CaseToInspect, label: np.ndarray, image: "sitk.Image", middle_mm: tuple) -> tuple:
    """``(volume, centre from the middle of the body, spread)`` of every class in the label."""
    from scipy import ndimage

    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    boxes = ndimage.find_objects(label)
    volumes, centres, spreads = {}, {}, {}
    for name, value in job.values.items():
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            mask = label[box] == value
            volumes[name] = float(np.count_nonzero(mask) * np.prod(spacing) / 1000)
            voxel = np.array(ndimage.center_of_mass(mask)) + [i.start for i in box]
            centres[name] = tuple(float(i) for i in origin + spacing * voxel[::-1] - middle_mm)
            spread = same_patient.spread_mm(mask, spacing[::-1])
            if spread is not None:
                spreads[name] = spread
    return volumes, centres, spreads


# -------------------------------------------------------------------------------------------------------------- judging

_SAME_SCAN = {
    "content": "the same image as",
    "bag": "the same voxels, in another order, as",
    "tissue": "the same scan, with other values clipped, as",
}


def judge(facts: Sequence[Facts], raw: RawDataset) -> Iterator[Finding]:
    """Findings about single cases and about what cases of one dataset should have in common."""
    readable = [i for i in facts if i.problem is None]
    yield from (Finding("error", "unreadable", i.case, i.problem) for i in facts if i.problem is not None)
    yield from _orientations(readable, raw)
    for case in readable:
        yield from _intensities(case, raw.is_ct)
        yield from _empty(case)
        yield from _anatomy(case)
    yield from _placements(readable)
    yield from _annotated_less(readable)
    yield from _spacings(readable)
    yield from _volumes(readable)
    yield from _duplicates(readable)
    yield from _same_patients(readable)


def _orientations(facts: Sequence[Facts], raw: RawDataset) -> Iterator[Finding]:
    counts = Counter(i.orientation for i in facts if i.orientation)
    if len(counts) > 1 and not raw.reorients:
        yield Finding(
            "error",
            "orientation",
            "",
            f"the files store their axes in {len(counts)} different orders "
            f"({_counted(counts)}) and the reader does not bring them together: add "
            '"overwrite_image_reader_writer": "SimpleITKIOWithReorient" to dataset.json',
        )
    elif len(counts) > 1:
        yield Finding("note", "orientation", "", f"orientations {_counted(counts)}, brought together by the reader")


def _counted(counts: Counter) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common())


def _intensities(case: Facts, is_ct: bool) -> Iterator[Finding]:
    low, _, high = case.percentiles
    if case.print.not_finite:
        yield Finding(
            "error",
            "intensity",
            case.case,
            f"{case.print.not_finite} voxels are NaN or infinite ({NOT_FINITE}): mend the image, or merge with "
            "--replace-not-finite VALUE",
        )
    if low == high:
        yield Finding("error", "intensity", case.case, f"the image is constant ({low:g})")
    elif is_ct and low > -200:
        likely = "a crop without air" if low < 0 else "8 bit pictures" if high <= 255 else "values that count from 0 for air"
        yield Finding(
            "warning",
            "intensity",
            case.case,
            f"values {low:g} to {high:g} are not Hounsfield units with air around the body: {likely}?",
        )
    if case.jumps:
        places = ", ".join(f"{hu:+.0f} HU after slice {number + 1}" for number, hu in case.jumps[:4])
        more = f" and {len(case.jumps) - 4} more" if len(case.jumps) > 4 else ""
        yield Finding(
            "error",
            "intensity",
            case.case,
            f"the values of nearly all voxels jump from one slice to the next, {places}{more} (counted from the feet): was the "
            "rescale slope or intercept of some slices lost? Convert it again from DICOM",
        )


def _empty(case: Facts) -> Iterator[Finding]:
    missing = [i for i in case.annotated if i not in case.volumes_ml]
    if case.annotated and len(case.size_xyz) == 3 and len(missing) == len(case.annotated):
        yield Finding("warning", "empty label", case.case, f"annotates {', '.join(case.annotated)} but holds none of it")


def _anatomy(case: Facts) -> Iterator[Finding]:
    for side, organs in SIDES.items():
        for name, (x, _, _) in case.centres_mm.items():
            key = re.sub(r"[\s-]+", "_", name.lower())
            if key in organs and (x if side == "right" else -x) > WRONG_SIDE_MM:
                yield Finding(
                    "warning",
                    "anatomy",
                    case.case,
                    f"{name} lies {abs(x):.0f} mm to the patient's {'left' if x > 0 else 'right'}: is image or label mirrored?",
                )
    if case.bone_y_mm is not None and case.bone_y_mm < 0:
        yield Finding(
            "warning",
            "anatomy",
            case.case,
            f"the spine lies {-case.bone_y_mm:.0f} mm in front of the middle of the body: mirrored front to back?",
        )
    heights = {re.sub(r"[\s-]+", "_", k.lower()): v[2] for k, v in case.centres_mm.items()}
    kidney = next((heights[i] for i in ("kidney", "kidneys", "right_kidney", "kidney_right") if i in heights), None)
    if "liver" in heights and kidney is not None and kidney > heights["liver"]:
        yield Finding("warning", "anatomy", case.case, "the kidney lies above the liver: upside down?")


def _placements(facts: Sequence[Facts]) -> Iterator[Finding]:
    for case in facts:
        direction = placement.mirrored(case.evenness)
        if direction is not None:
            yield Finding(
                "warning",
                "placement",
                case.case,
                f"mirrored from {direction} the label would lie on its organs, as it is it does not: is it mirrored?",
            )
    for source in dict.fromkeys(i.source for i in facts):
        for case, name, share, usual in placement.misplaced({i.case: i.evenness for i in facts if i.source == source}):
            yield Finding(
                "warning",
                "placement",
                case,
                f"{share:.0%} of {name} have nearly one grey value, where {usual:.0%} are usual: is the label shifted, mirrored "
                "or of another image?",
            )


def _annotated_less(facts: Sequence[Facts]) -> Iterator[Finding]:
    shown = [ShownClasses(i.case, i.source, i.annotated, tuple(i.volumes_ml)) for i in facts if len(i.size_xyz) == 3]
    for case in far_from_source(shown):
        yield Finding("warning", "annotated", case.case, case.in_words())
    for source in sparse_sources(shown):
        yield Finding("warning", "annotated", "", source.in_words())


def _spacings(facts: Sequence[Facts]) -> Iterator[Finding]:
    placeholders = [i for i in facts if i.spacing_mm in ((1.0, 1.0, 1.0), (1.0, 1.0))]
    if 0 < len(placeholders) < len(facts):
        for case in placeholders:
            yield Finding("warning", "spacing", case.case, "voxel size exactly 1 mm, unlike other cases: a placeholder?")


def _volumes(facts: Sequence[Facts]) -> Iterator[Finding]:
    for name in dict.fromkeys(n for i in facts for n in i.volumes_ml):
        volumes = {i.case: i.volumes_ml[name] for i in facts if name in i.volumes_ml}
        logs = np.log(list(volumes.values()))
        middle = np.median(logs)
        deviation = max(1.4826 * np.median(np.abs(logs - middle)), 0.05)
        for case, log in zip(volumes, logs if len(logs) >= OUTLIER_CASES else ()):
            if abs(log - middle) > max(OUTLIER_DEVIATIONS * deviation, np.log(OUTLIER_FACTOR)):
                yield Finding(
                    "warning", "volume", case, f"{name} has {volumes[case]:.3g} ml where {np.exp(middle):.3g} ml is usual"
                )


def _duplicates(facts: Sequence[Facts]) -> Iterator[Finding]:
    told = set()
    for kind, words in _SAME_SCAN.items():
        groups: dict = {}
        for case in facts:
            groups.setdefault(getattr(case.print, kind), []).append(case.case)
        groups.pop("", None)
        for first, *others in groups.values():
            for other in others:
                if (first, other) not in told:
                    told.add((first, other))
                    yield Finding("error", "duplicate", other, f"{words} {first}")


def _same_patients(facts: Sequence[Facts]) -> Iterator[Finding]:
    annotated = {i.case: {str(k) for k in i.annotated} for i in facts}
    sizes = {
        i.case: {str(k): (i.volumes_ml[k], spread) for k, spread in i.spreads_mm.items() if str(k) in annotated[i.case]}
        for i in facts
    }
    keys = {i.case: set(i.print.keys) for i in facts}
    for case, other, organs in same_patient.suspected(sizes, {i.case: i.patient for i in facts if i.patient is not None}):
        if keys[case] & keys[other]:
            continue  # _duplicates tells more
        named = ", ".join(organs[:4]) + (f" and {len(organs) - 4} more" if len(organs) > 4 else "")
        yield Finding(
            "warning",
            "patient",
            case,
            f"{named} have the volumes and spreads that they have in {other}: a copy of it, mirrored or deformed, or the same patient?",
        )


def shared_images(facts: Sequence[Facts], others: Mapping[str, Mapping[str, Fingerprint]]) -> Iterator[Finding]:
    """Images that other datasets (name -> case -> fingerprint) hold too: leakage if one trains and the other tests."""
    for name, cases in others.items():
        known = {key: case for case, found in cases.items() for key in found.keys}
        for case in facts:
            key = next((i for i in case.print.keys if i in known), None)
            if key is not None:
                yield Finding("error", "leakage", case.case, f"{_SAME_SCAN[key[0]]} {known[key]} of {name}")


def conversion_notes(folder: Path) -> Iterator[Finding]:
    """What the converter said about cases."""
    record = Path(folder) / "conversion.json"
    if record.is_file():
        for case, entry in json.loads(record.read_text(encoding="utf-8")).get("cases", {}).items():
            yield from (Finding("note", "conversion", case, note) for note in entry.get("notes", ()))


# ---------------------------------------------------------------------------------------------------- other datasets


def _images(folder: Path) -> dict:
    raw = read_raw_dataset(folder, labelled=False)
    found = {**{k: tuple(v.images) for k, v in raw.cases.items()}, **_test_images(raw)}
    if not found:
        raise UserError(f"--against {raw.folder.name}: {raw.folder} has no image to compare with. Name another dataset.")
    return found


def _test_images(raw: RawDataset) -> dict:
    """case -> files of ``imagesTs``."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(raw.file_ending))
    found: dict = {}
    for path in sorted((raw.folder / "imagesTs").glob("*")):
        match = pattern.fullmatch(path.name)
        if match:
            found.setdefault(match[1], []).append(str(path))
    return {k: tuple(v) for k, v in found.items()}


def _prints(files: Mapping[str, tuple], is_ct: bool, processes: int | None) -> dict:
    read = partial(fingerprint, is_ct=is_ct)
    return dict(zip(files, map_cases(read, list(files.values()), processes, "comparing", progress=bool(files))))


# -------------------------------------------------------------------------------------------------------------- telling


# ------------------------------------------------------------------------------------------------------ what to do

ACCEPTED = "check_accepted.json"  # in the dataset's folder: findings that a person has looked at
_LEAVE_OUT = "leave it out: nnunet_partial merge ... --exclude {case}"
_LOOK = "look at it; if it is right: nnunet_partial check {number} --accept {kind}:{case}"
_REMEDIES = {
    "unreadable": "copy or convert it again, or " + _LEAVE_OUT,
    "contract": "correct the file that is named, and convert or merge again",
    "duplicate": _LEAVE_OUT,
    "leakage": "take it out of one of the two: nnunet_partial merge ... --exclude {case}",
    "patient": "leave it out, or keep both in one fold (nnunet_partial merge ... --patients FILE). Or " + _LOOK,
    "empty label": "correct its label, or say what it annotates (docs/data_contract.md), or " + _LEAVE_OUT,
    "placement": "correct the label, or " + _LEAVE_OUT + ". Or " + _LOOK,
}
_FLIP = "nnunet_partial relabel {number} --flip {direction} --case {case}"


def with_remedy(finding: Finding, dataset: str) -> Finding:
    """The finding with what to do about it; one that says so itself, or a note, stays as it is."""
    if finding.level == "note" or finding.remedy:
        return finding
    text = _REMEDIES.get(finding.kind, _LOOK if finding.case else "")
    found = re.search(r"^mirrored from ([a-z ]+) the label would lie", finding.text)
    if found:
        flips = " ".join(i.replace(" to ", "-") for i in found[1].split(" and "))
        text = _FLIP.replace("{direction}", flips) + ". Or " + _LOOK
    case = finding.case if re.fullmatch(r"[\w.-]+", finding.case) else f"'{finding.case}'"
    kind = finding.kind.replace(" ", "-")
    return replace(finding, remedy=text.format(case=case, kind=kind, number=dataset[len("Dataset") :][:3]))


def accepted(findings: Sequence[Finding], folder: Path) -> list:
    """``findings``, those that a person has accepted as notes. One whose text has changed since counts again."""
    file = Path(folder) / ACCEPTED
    known = {(i["kind"], i["case"], i["text"]) for i in read_json(file)} if file.is_file() else set()
    return [replace(i, level="note", text=f"accepted: {i.text}") if (i.kind, i.case, i.text) in known else i for i in findings]


def accept(inspection: Inspection, folder: Path, chosen: Sequence[str]) -> list:
    """Note in the dataset's folder that the findings ``chosen``, each ``KIND:CASE``, are right as they are; returns them.

    Raises :class:`UserError`, which lists what there is, for one that is not found.
    """
    open_ = [i for i in inspection.findings if i.level != "note"]
    names = {f"{i.kind.replace(' ', '-')}:{i.case}": [] for i in open_}
    for i in open_:
        names[f"{i.kind.replace(' ', '-')}:{i.case}"].append(i)
    for name in chosen:
        if name not in names:
            raise UserError(
                f"--accept {name}: there is no such finding. {did_you_mean(name, names)}Findings: {', '.join(names) or 'none'}."
            )
    found = [j for i in dict.fromkeys(chosen) for j in names[i]]
    file = Path(folder) / ACCEPTED
    before = read_json(file) if file.is_file() else []
    write_json([*before, *({"kind": i.kind, "case": i.case, "text": i.text} for i in found)], file)
    return found


def in_words(inspection: Inspection) -> list:
    """The report as lines of text."""
    readable = [i for i in inspection.facts if i.problem is None]
    lines = [f"{inspection.name}: {len(inspection.facts)} cases, channels {', '.join(inspection.channels)}"]
    for source in dict.fromkeys(i.source for i in inspection.facts):
        cases = [i for i in inspection.facts if i.source == source]
        counts = Counter(n for i in cases for n in i.annotated)
        annotated = ", ".join(f"{n} {counts[n]}" for n in inspection.classes if counts[n]) or "nothing"
        lines.append(f"  source {source or '-'}: {len(cases)} cases; annotated: {annotated}")
    for name, attribute in (("size", "size_xyz"), ("voxel size in mm", "spacing_mm")):
        values = [getattr(i, attribute) for i in readable]
        if values and len({len(i) for i in values}) == 1:
            low, middle, high = (np.percentile(values, q, axis=0) for q in (0, 50, 100))
            lines.append(f"  {name}: {_triple(middle)} (from {_triple(low)} to {_triple(high)})")
    for name in inspection.classes:
        volumes = [i.volumes_ml[name] for i in readable if name in i.volumes_ml]
        if volumes:
            lines.append(
                f"  {name}: {np.median(volumes):.3g} ml in {len(volumes)} cases (from {min(volumes):.3g} to {max(volumes):.3g})"
            )
    for level in ("error", "warning", "note"):
        grouped: dict = {}
        for finding in inspection.findings:
            if finding.level == level:
                grouped.setdefault((finding.kind, finding.text), []).append(finding)
        for (kind, text), found in grouped.items():
            cases = [i.case for i in found]
            names = ", ".join(cases[:8]) + (f" and {len(cases) - 8} more" if len(cases) > 8 else "")
            lines.append(f"  {level}: {kind}: {names + ': ' if cases[0] else ''}{text}")
            if found[0].remedy:
                lines.append(f"      {found[0].remedy}")
    return lines


def _triple(values) -> str:
    return " x ".join(f"{i:.4g}" for i in values)


__getattr__ = _moved.renamed(__name__, {"Job": "CaseToInspect"})
