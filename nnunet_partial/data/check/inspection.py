"""What a raw dataset holds, and what looks wrong: ``nnunet_partial check``.

:mod:`nnunet_partial.data.check.dataset` says whether a dataset keeps its contract. This module looks at the images
themselves: are they what their header and dataset.json say? Every image is read once, in worker processes. Positions
are mm in DICOM's frame (x left, y back, z head), arrays (z, y, x) along these axes whatever the file's order.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.check.dataset import dataset_problems
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.labels import CaseAnnotation

BODY_HU, BONE_HU = -300, 250
SPINE_HALF_WIDTH_MM = 40
_BODY_GRID = 128  # the middle of the body needs no more voxels along an edge
WRONG_SIDE_MM = 5  # an organ this far on the wrong side of the middle of the body
OUTLIER_FACTOR, OUTLIER_DEVIATIONS, OUTLIER_CASES = 2.0, 3.5, 6
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
    "left": ("spleen", "stomach", "left_kidney", "kidney_left", "left_adrenal_gland", "adrenal_gland_left"),
}


@dataclass(frozen=True)
class Facts:
    """What was measured on one case.

    ``volumes_ml`` and ``centres_mm`` per class that the label holds; centres and ``bone_y_mm``, the mean place of
    bone near the midline, count from the middle of the body. ``content``: hash of the voxels along the patient's
    axes; ``bag``: of the voxel values in any order, equal for mirrored copies.
    """

    case: str
    source: str
    annotated: tuple
    size_xyz: tuple
    spacing_mm: tuple
    orientation: str
    percentiles: tuple  # 0.5, 50 and 99.5 % of the first channel
    whole_numbers: bool
    content: str
    bag: str
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    centres_mm: Mapping[str, tuple] = field(default_factory=dict)
    bone_y_mm: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Finding:
    """``level``: "error" (training on it goes wrong), "warning" (look at it) or "note". ``case``: empty for all."""

    level: str
    kind: str
    case: str
    text: str


@dataclass(frozen=True)
class Inspection:
    """Everything about one dataset."""

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
    annotations = raw.annotations()
    classes = tuple(name for name, values in raw.labels.items() if len(values) == 1 and values[0] > 0 and name != "ignore")
    values = {name: raw.labels[name][0] for name in classes}
    everything = CaseAnnotation("", classes)
    jobs = [
        Job(case, values, annotations.of(case.name) if annotations else everything, raw.channel_names[0])
        for case in raw.cases.values()
    ]
    facts = tuple(map_cases(measure, jobs, processes, "looking"))
    others = {Path(i).name: _prints(_images(Path(i)), processes) for i in against}
    others["imagesTs"] = _prints(_test_images(raw), processes)
    findings = [Finding("error", "contract", "", i) for i in dataset_problems(raw, processes)]
    findings += list(judge(facts, raw)) + list(shared_images(facts, others)) + list(conversion_notes(folder))
    return Inspection(raw.folder.name, classes, raw.channel_names, facts, tuple(findings))


# ------------------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Job:
    case: RawCase
    values: Mapping[str, int]
    annotation: CaseAnnotation
    channel: str


def measure(job: Job) -> Facts:
    """Read one case. What cannot be read becomes ``problem``."""
    try:
        return _measure(job)
    except UserError as error:
        return Facts(
            job.case.name, job.annotation.source, job.annotation.annotated, (), (), "", (), False, "", "", problem=str(error)
        )


def _measure(job: Job) -> Facts:
    image = patient_axes(images.read_image(job.case.images[0]))
    geometry = images.read_geometry(job.case.images[0])
    array = sitk.GetArrayViewFromImage(image)
    content, bag = fingerprint(job.case.images)
    low, middle, high = np.percentile(array.reshape(-1)[::7].astype(np.float32), (0.5, 50, 99.5))
    middle_mm, bone_y_mm = _body(array, image, job.channel)
    volumes, centres = {}, {}
    if job.case.label is not None and image.GetDimension() == 3:
        volumes, centres = _organs(job, image, middle_mm)
    whole = bool(np.equal(np.mod(array.reshape(-1)[::101], 1), 0).all())
    return Facts(
        job.case.name,
        job.annotation.source,
        job.annotation.annotated,
        geometry.size_xyz,
        geometry.spacing_mm,
        orientation(geometry),
        (float(low), float(middle), float(high)),
        whole,
        content,
        bag,
        volumes,
        centres,
        bone_y_mm,
    )


def patient_axes(image: "sitk.Image") -> "sitk.Image":
    """The image with its axes along the patient's left, back and head; 2D and 4D images as they are."""
    return sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else image


def orientation(geometry: images.Geometry) -> str:
    """``LPS``: the axes of the file run towards the patient's left, back and head, as ITK names it; empty in 2D."""
    if geometry.dimensions < 3:
        return ""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(geometry.spatial().direction)


def fingerprint(files: Sequence[str]) -> tuple:
    """``(hash of the voxels along the patient's axes, hash of the voxel values in any order)`` of an image and its
    channels.
    """
    digest, total = hashlib.blake2b(digest_size=16), 0
    for file in files:
        image = patient_axes(images.read_image(file))
        digest.update(str(image.GetSize()).encode())
        for part in sitk.GetArrayViewFromImage(image):
            values = np.ascontiguousarray(part, np.float32) + np.float32(0)
            digest.update(values.data)
            total += _bag(values.view(np.uint32))
    return digest.hexdigest(), f"{total % 2**64:016x}"


def _bag(bits: np.ndarray) -> int:
    """Sum of a hash of every value (splitmix64's finaliser): the same whatever the order of the values."""
    z = bits.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))).sum(dtype=np.uint64))


def _body(array: np.ndarray, image: "sitk.Image", channel: str) -> tuple:
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
    if channel != "CT" or len(body) < 100:
        return tuple(middle), None
    middle[:2] = (origin + spacing * (body.mean(0) * step)[::-1])[:2]
    bone = origin + spacing * (np.argwhere(coarse > BONE_HU) * step)[:, ::-1]
    bone = bone[np.abs(bone[:, 0] - middle[0]) < SPINE_HALF_WIDTH_MM]
    return tuple(middle), float(bone[:, 1].mean() - middle[1]) if len(bone) > 20 else None


def _organs(job: Job, image: "sitk.Image", middle_mm: tuple) -> tuple:
    """``(volume, centre from the middle of the body)`` of every class in the label."""
    from scipy import ndimage

    label, geometry = images.read_label(job.case.label)
    if geometry.size_xyz != images.read_geometry(job.case.images[0]).spatial().size_xyz:
        return {}, {}  # told by the check of the contract
    label_image = sitk.GetImageFromArray(label)
    label_image.SetSpacing(geometry.spacing_mm)
    label_image.SetOrigin(geometry.origin_mm)
    label_image.SetDirection(geometry.direction)
    label_image = patient_axes(label_image)
    label = sitk.GetArrayViewFromImage(label_image)
    spacing, origin = np.array(label_image.GetSpacing()), np.array(label_image.GetOrigin())
    boxes = ndimage.find_objects(label)
    volumes, centres = {}, {}
    for name, value in job.values.items():
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            mask = label[box] == value
            volumes[name] = float(np.count_nonzero(mask) * np.prod(spacing) / 1000)
            voxel = np.array(ndimage.center_of_mass(mask)) + [i.start for i in box]
            centres[name] = tuple(float(i) for i in origin + spacing * voxel[::-1] - middle_mm)
    return volumes, centres


# -------------------------------------------------------------------------------------------------------------- judging


def judge(facts: Sequence[Facts], raw: RawDataset) -> Iterator[Finding]:
    """Findings about single cases and about what cases of one dataset should have in common."""
    readable = [i for i in facts if i.problem is None]
    yield from (Finding("error", "unreadable", i.case, i.problem) for i in facts if i.problem is not None)
    yield from _orientations(readable, raw)
    for case in readable:
        yield from _intensities(case, raw.channel_names[0])
        yield from _empty(case)
        yield from _anatomy(case)
    yield from _spacings(readable)
    yield from _volumes(readable)
    yield from _duplicates(readable)


def _orientations(facts: Sequence[Facts], raw: RawDataset) -> Iterator[Finding]:
    counts = Counter(i.orientation for i in facts if i.orientation)
    reader = str(raw.content.get("overwrite_image_reader_writer"))
    if len(counts) > 1 and not reader.endswith("WithReorient"):
        yield Finding(
            "error",
            "orientation",
            "",
            f"the files store their axes in {len(counts)} different orders "
            f"({_counted(counts)}) and the reader does not bring them together: add "
            '"overwrite_image_reader_writer": "SimpleITKIOWithReorient" to dataset.json',
        )
    elif len(counts) > 1:
        yield Finding("note", "orientation", "", f"orientations {_counted(counts)}, brought together by {reader}")


def _counted(counts: Counter) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common())


def _intensities(case: Facts, channel: str) -> Iterator[Finding]:
    low, _, high = case.percentiles
    if low == high:
        yield Finding("error", "intensity", case.case, f"the image is constant ({low:g})")
    elif channel == "CT" and low > -200:
        likely = "a crop without air" if low < 0 else "8 bit pictures" if high <= 255 else "values that count from 0 for air"
        yield Finding(
            "warning",
            "intensity",
            case.case,
            f"values {low:g} to {high:g} are not Hounsfield units with air around the body: {likely}?",
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
    for key, words in (("content", "the same image as"), ("bag", "the same voxels as, in another order,")):
        groups: dict = {}
        for case in facts:
            groups.setdefault(getattr(case, key), []).append(case)
        for first, *others in groups.values():
            for other in others:
                if key == "content" or other.content != first.content:
                    yield Finding("error", "duplicate", other.case, f"{words} {first.case}")


def shared_images(facts: Sequence[Facts], others: Mapping[str, Mapping[str, tuple]]) -> Iterator[Finding]:
    """Images that other datasets (name -> case -> fingerprint) hold too: leakage if one trains and the other tests."""
    for name, cases in others.items():
        contents, bags = ({v[i]: k for k, v in cases.items()} for i in (0, 1))
        for case in facts:
            if case.problem is None and case.content in contents:
                yield Finding("error", "leakage", case.case, f"the same image as {contents[case.content]} of {name}")
            elif case.problem is None and case.bag in bags:
                yield Finding("error", "leakage", case.case, f"the same voxels, in another order, as {bags[case.bag]} of {name}")


def conversion_notes(folder: Path) -> Iterator[Finding]:
    """What the converter said about cases."""
    record = Path(folder) / "conversion.json"
    if record.is_file():
        for case, entry in json.loads(record.read_text(encoding="utf-8")).get("cases", {}).items():
            yield from (Finding("note", "conversion", case, note) for note in entry.get("notes", ()))


# ---------------------------------------------------------------------------------------------------- other datasets


def _images(folder: Path) -> dict:
    raw = read_raw_dataset(folder, labelled=False)
    return {**{k: tuple(v.images) for k, v in raw.cases.items()}, **_test_images(raw)}


def _test_images(raw: RawDataset) -> dict:
    """case -> files of ``imagesTs``."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(raw.file_ending))
    found: dict = {}
    for path in sorted((raw.folder / "imagesTs").glob("*")):
        match = pattern.fullmatch(path.name)
        if match:
            found.setdefault(match[1], []).append(str(path))
    return {k: tuple(v) for k, v in found.items()}


def _prints(files: Mapping[str, tuple], processes: int | None) -> dict:
    return dict(zip(files, map_cases(fingerprint, list(files.values()), processes, "comparing", progress=bool(files))))


# -------------------------------------------------------------------------------------------------------------- telling


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
                grouped.setdefault((finding.kind, finding.text), []).append(finding.case)
        for (kind, text), cases in grouped.items():
            names = ", ".join(cases[:8]) + (f" and {len(cases) - 8} more" if len(cases) > 8 else "")
            lines.append(f"  {level}: {kind}: {names + ': ' if cases[0] else ''}{text}")
    return lines


def _triple(values) -> str:
    return " x ".join(f"{i:.4g}" for i in values)
