"""Everything of a project that can be wrong, looked for in seconds, before anything is written.

Downloads are surveyed by their converters, by names and headers; the merge is worked out on what they will be; settings are
read by the classes that read them in training. No voxel is read, and no network is built.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_partial import paths
from nnunet_partial.data.conversion.command import chosen
from nnunet_partial.data.conversion.run import Survey, require_possible, survey
from nnunet_partial.data.conversion.source import SourceFolder
from nnunet_partial.data.merge.merge import preview
from nnunet_partial.data.merge.patients import read_patients
from nnunet_partial.data.merge.sources import SourceSpec
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.evaluation.ranking import HIGHER_IS_BETTER
from nnunet_partial.files import read_json
from nnunet_partial.labels import KEY, Annotations, CaseAnnotation
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.orchestration.run.project import FOLDERS, Project, SourceBlock
from nnunet_partial.orchestration.run.steps import dataset_of
from nnunet_partial.outputs import cases_of
from nnunet_partial.settings import BLOCKS, NETWORK_CHANGES, merged
from nnunet_partial.variants import check_deep_supervision, check_settings, make_variant

# trainers, by the beginning of their names, with teachers, peers or averages beside the network that is planned
SEVERAL_NETWORKS = ("nnUNetTrainerMSKD", "nnUNetTrainerCoTraining", "nnUNetTrainerCrossTeaching")
GPU_GB = {"ExperimentPlanner": 8, "nnUNetPlannerResEncM": 8, "nnUNetPlannerResEncL": 24, "nnUNetPlannerResEncXL": 40}
_AXES = {"2d": 2, "3d_fullres": 3, "3d_lowres": 3}


@dataclass(frozen=True)
class Checked:
    """``taught``: sources of the merged dataset that annotate something. ``counts``: cases of each source, and of ``test``.
    ``lines``: what was found, for people."""

    taught: tuple
    counts: Mapping[str, int]
    lines: tuple = ()


@dataclass
class _Found:
    """What is known of the sources."""

    raws: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)
    copied_bytes: int = 0
    image_bytes: int = 0


def check_project(project: Project, device: str = "cpu") -> Checked:
    """Raise :class:`UserError`, one line, for the first thing that is wrong. ``device``: of the trainings."""
    for variable in FOLDERS.values():
        _writable(paths.root(variable))
    _writable(project.out)
    _check_id(project)
    found = _Found()
    for source in project.sources:
        with _of(project, f"[[source]] {source.name}"):
            _look_at(source, found, (project.out / "jobs" / f"convert-{source.name}" / "job.json").is_file())
    content = _merged(project, found) if project.sources else _dataset_that_is_there(project, found)
    annotations = Annotations.from_dataset_json(content, project.dataset)
    _check_teachers(project, annotations)
    _check_settings(project)
    tested = _check_test(project, content)
    _check_space(project, found)
    if device == "cuda":
        found.lines += _check_gpu(project)
    counts = {k: len(v.cases) for k, v in found.raws.items()}
    return Checked(annotations.annotated_sources, {**counts, "test": tested}, (*found.lines, *_merged_lines(annotations)))


def known_from_the_journal(project: Project) -> Checked:
    """What the checks found when the run was started: its status needs no look at the data."""
    file = project.out / "run.json"
    kept = read_json(file, "The run has not been started: nnunet_partial run without --status starts it.")["arguments"]
    return Checked(tuple(kept["found.taught"]), kept["found.counts"])


@contextmanager
def _of(project: Project, where: str) -> Iterator[None]:
    """Errors of what is asked say where in the file it stands."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise error if text.startswith(str(project.file)) else UserError(f"{project.file}: {where}: {text}") from None


# ---- datasets


def _check_id(project: Project) -> None:
    """The number of the merged dataset must be free, unless this very run has taken it."""
    number = project.project.dataset
    others = [i for i in paths.dataset_folders(number) if i.name != project.dataset]
    own = any((project.out / "jobs" / i / "job.json").is_file() for i in ("merge", "plan"))
    there = paths.dataset_folders(number, *FOLDERS.values())
    if others or (project.sources and there and not own):
        raise UserError(
            f"{project.file}: [project] dataset = {number} is taken by {(others or there)[0]}. Choose another number, or remove "
            "that folder."
        )


def _dataset_that_is_there(project: Project, found: _Found) -> dict:
    with _of(project, "[project]"):
        if not paths.dataset_folders(project.project.dataset, "nnUNet_raw"):
            raise UserError(
                f"there is no [[source]], and dataset {project.project.dataset} is not in nnUNet_raw. Add the sources of which it "
                "is to be made."
            )
        raw = read_raw_dataset(paths.raw_dataset(project.dataset), labelled=False)
    found.raws[project.project.dataset] = raw
    found.image_bytes += _bytes(i for case in raw.cases.values() for i in case.images)
    found.lines.append(f"{project.dataset}: {len(raw.cases)} cases, there already")
    return dict(raw.content)


def _look_at(source: SourceBlock, found: _Found, begun: bool) -> None:
    if source.converter is None:
        raw = read_raw_dataset(paths.raw_dataset(source.dataset), labelled=source.labelled)
        found.lines.append(f"source {source.name}: {len(raw.cases)} cases of {raw.folder.name}")
    else:
        raw, copied = _survey(source, found, begun)
        found.copied_bytes += copied
    found.raws[source.name] = raw
    found.image_bytes += _bytes(i for case in raw.cases.values() for i in case.images)


def _survey(source: SourceBlock, found: _Found, begun: bool) -> tuple:
    """``(what the raw dataset will be, bytes of images that have to be copied)``. ``begun``: this run converts it already."""
    organs = ",".join(map(str, source.organs)) if source.organs else None
    converter, options = chosen(
        source.converter or "",
        source.path or "",
        source.dataset,
        name=dataset_of(source).partition("_")[2],
        source_name=source.name,
        organs=organs,
        unlabelled=source.unlabelled_cases,
        skip_bad=source.skip_bad,
        **source.options,
    )
    folder = SourceFolder(options.source, options.follow_links)
    seen = survey(converter, folder, options)
    _check_release(source, seen)
    require_possible(seen, folder, options.strict, begun)
    lost = {k: v for k, v in seen.skipped.items() if k not in seen.left_out}
    if lost and not source.skip_bad:
        name, reason = next(iter(lost.items()))
        raise UserError(
            f"{len(lost)} of {len(seen.skipped) + len(seen.cases)} cases would be lost, the first: {name}: {reason}. "
            "Mend them, or accept it with skip_bad = true."
        )
    release = f", {seen.download.release}" if seen.download.release else ""
    found.lines.append(
        f"source {source.name}: {len(seen.cases)} cases of {source.path}{release}; classes "
        f"{', '.join(seen.organs.classes) or 'none'}" + (f"; {len(seen.skipped)} left out" if seen.skipped else "")
    )
    copied = options.copy_images or any(hasattr(i, "files") and len(i.files) > 1 for c in seen.cases for i in c.images)
    return raw_of(seen, source.name), _bytes(f for c in seen.cases for i in c.images for f in i.files) if copied else 0


def _check_release(source: SourceBlock, seen: Survey) -> None:
    if source.release and source.release.lower() not in seen.download.release.lower():
        raise UserError(
            f"release = {source.release!r}, but {source.path} holds {seen.download.release or 'one whose release is not known'}. "
            "Name the folder of that release, or correct the key."
        )


def raw_of(seen: Survey, source: str) -> RawDataset:
    """The raw dataset that a conversion will write, as the merge sees it."""
    annotations = {c.name: CaseAnnotation(source, c.classes(seen.organs), c.patient) for c in seen.cases}
    labels = seen.organs.labels()
    content = {
        "channel_names": {str(i): name for i, name in enumerate(seen.download.channels)},
        "labels": labels,
        "numTraining": len(seen.cases),
        "file_ending": seen.download.ending,
        "overwrite_image_reader_writer": seen.download.reader,
        KEY: Annotations(seen.organs.classes, annotations).to_json(),
    }
    cases = {
        c.name: RawCase(c.name, tuple(str(f) for i in c.images for f in i.files[:1]), str(c.label.files[0] if c.label else None))
        for c in seen.cases
    }
    values = {name: (value,) for name, value in labels.items()}
    return RawDataset(seen.folder, content, values, tuple(seen.download.channels), seen.download.ending, cases)


def _merged(project: Project, found: _Found) -> dict:
    with _of(project, "[[source]]"):
        specs = [_spec(i) for i in project.sources]
        patients = read_patients(project.merge.patients) if project.merge.patients else None
        folder = paths.root("nnUNet_raw") / project.dataset
        return preview(
            folder, specs, project.merge.classes, project.merge.allow_parts, patients, found.raws, project.merge.taught or ()
        )


def _spec(source: SourceBlock) -> SourceSpec:
    classes = None if source.classes is None else tuple(map(str, source.classes))
    cases = None if source.cases is None else _lines_of(source.cases)
    mapping = {str(k): str(v) for k, v in source.map.items()}
    return SourceSpec(source.name, source.dataset, classes, mapping, source.labelled, cases)


def _lines_of(file: str) -> tuple:
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cases: {file} cannot be read ({error}). It must be a text file, one case a line.") from None
    return tuple(i.strip() for i in lines if i.strip())


def _merged_lines(annotations: Annotations) -> list:
    lines = [f"classes: {', '.join(annotations.classes)}"]
    for name in annotations.sources:
        lines.append(f"  {name} annotates {', '.join(annotations.classes_of_source(name)) or 'nothing'}")
    return lines


# ---- trainings


def _check_teachers(project: Project, annotations: Annotations) -> None:
    """Teachers that were trained elsewhere, and what teachers are for."""
    methods = find_methods([i.name for i in project.methods])
    needing = [name for name, i in methods.items() if i.taught]
    if needing and not annotations.annotated_sources:
        raise UserError(f"{project.file}: [[method]] {needing[0]} needs teachers, but no source annotates anything.")
    given = project.settings.get("mskd", {}).get("teachers", {})
    given = given if isinstance(given, Mapping) else {}
    for source, folder in given.items():
        where = f"{project.file}: the teacher of source {source}"
        if source not in annotations.annotated_sources:
            known = annotations.annotated_sources
            raise UserError(f"{where}: there is no such source that annotates anything. {did_you_mean(source, known)}")
        missing = next((i for i in ("plans.json", "dataset.json") if not (Path(folder) / i).is_file()), None)
        if missing:
            raise UserError(f"{where}: {folder} is no model folder: it holds no {missing}. Correct the path.")
        for fold in project.folds:
            if not any(paths.final_checkpoint(folder, i).is_file() for i in (fold, "all")):
                raise UserError(
                    f"{where} is missing: {folder} holds neither fold_{fold} nor fold_all with {paths.FINAL_CHECKPOINT}. Train it, "
                    "or leave teacher out, so that it is trained here."
                )


def _check_settings(project: Project) -> None:
    for configuration in project.plan.configurations:
        for method in (None, *project.methods):
            where = f"[[method]] {method.name}" if method else "[training]"
            with _of(project, f"{where} settings"):
                settings = merged(project.settings, method.settings if method else {})
                _check_variant(project, settings, configuration)


def _check_variant(project: Project, settings: Mapping[str, Any], configuration: str) -> None:
    """As the variant will be checked: on the plans where they are there, else by the settings alone."""
    found = find_methods([i.name for i in project.methods])
    trainers = [i.trainer for i in found.values() if i.settings_name in settings and i.settings_name not in BLOCKS]
    file = paths.root("nnUNet_preprocessed") / project.dataset / f"{project.plans}.json"
    if file.is_file():
        plans = read_json(file)
        if configuration in plans["configurations"]:
            make_variant(plans, f"{project.plans}_check", settings, configuration, trainers)
            return
    own = {k: v for k, v in settings.items() if k not in NETWORK_CHANGES}
    check_settings({"plans_name": "settings", KEY: own}, trainers)
    check_deep_supervision({KEY: own}, settings)
    patch = settings.get("patch_size")
    if patch is not None and (not isinstance(patch, list) or len(patch) != _AXES[configuration]):
        raise UserError(
            f"patch_size {patch} does not fit configuration {configuration}, whose patches have {_AXES[configuration]} axes."
        )


# ---- the test set


def _check_test(project: Project, content: Mapping[str, Any]) -> int:
    """Number of test cases; 0 without a test set."""
    test = project.test
    if test.metric not in HIGHER_IS_BETTER:
        raise UserError(
            f"{project.file}: [test] metric = {test.metric!r} is none. {did_you_mean(test.metric, HIGHER_IS_BETTER)}Metrics: "
            f"{', '.join(HIGHER_IS_BETTER)}."
        )
    if not test.images or not test.labels:
        return 0
    for key, folder in (("images", test.images), ("labels", test.labels)):
        if not os.path.isdir(folder):
            raise UserError(f"{project.file}: [test] {key}: the folder {folder} does not exist.")
    names = cases_of(sorted(os.listdir(test.images)), content["file_ending"])
    if not names:
        raise UserError(
            f"{project.file}: [test] images: {test.images} holds no CASE_0000{content['file_ending']}. Name the images as nnU-Net "
            "wants them."
        )
    missing = [i for i in names if not os.path.isfile(os.path.join(test.labels, i + content["file_ending"]))]
    if missing:
        raise UserError(
            f"{project.file}: [test] labels: {test.labels} has no {missing[0]}{content['file_ending']}, the label of a test image. "
            "Add it, or remove the image."
        )
    return len(names)


# ---- the machine


def _writable(folder: Path) -> None:
    there = _existing(folder)
    if not os.access(there, os.W_OK) or not there.is_dir():
        raise UserError(f"{folder} cannot be written: {there} does not allow it. Choose another folder.")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    folder = Path(os.path.abspath(folder))
    return folder if folder.exists() else _existing(folder.parent)


def _bytes(files: Iterable) -> int:
    return sum(os.path.getsize(i) for i in files if os.path.isfile(i))


def _check_space(project: Project, found: _Found) -> None:
    """What is needed at the least: copies of images that cannot stay where they are, and preprocessed images, which are
    seldom smaller than the compressed ones."""
    needed: dict = {}
    for variable, size in (
        ("nnUNet_raw", found.copied_bytes),
        ("nnUNet_preprocessed", found.image_bytes * len(project.plan.configurations)),
    ):
        there = _existing(paths.root(variable))
        needed.setdefault(os.stat(there).st_dev, [there, 0, []])
        needed[os.stat(there).st_dev][1] += size
        needed[os.stat(there).st_dev][2].append(variable)
    for there, size, variables in needed.values():
        free = shutil.disk_usage(there).free
        if size > free and not _preprocessed(project):
            raise UserError(
                f"{project.file}: {' and '.join(variables)} need at least {size / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB "
                "left. Free some space, or name other folders under [folders]."
            )


def _preprocessed(project: Project) -> bool:
    return (project.out / "jobs" / "plan" / "result.json").is_file()


def _check_gpu(project: Project) -> list:
    """The memory that nnU-Net's planner fills against the memory of the smallest GPU here; lines on methods that hold more than the
    one network that it plans for."""
    memory = gpu_memory_gb()
    wanted = project.plan.gpu_memory_gb or GPU_GB[project.plan.planner]
    if memory and wanted > min(memory):
        raise UserError(
            f"{project.file}: [plan] {project.plan.planner} plans networks for {wanted:g} GB of GPU memory, and the GPU here has "
            f"{min(memory):.1f} GB. Set gpu_memory_gb = {int(min(memory)) or 1}, or train elsewhere with --executor slurm."
        )
    found = find_methods(i.name for i in project.methods)
    several = [k for k, v in found.items() if v.trainer.startswith(SEVERAL_NETWORKS)]
    if not several:
        return []
    return [
        f"memory: {', '.join(several)} hold more networks than the one that is planned for {wanted:g} GB (teachers, peers, averages). If the "
        "GPU's memory runs out, plan for less: [plan] gpu_memory_gb"
    ]


def gpu_memory_gb() -> list:
    """Memory of each GPU of this machine, without torch; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    argv = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(argv, capture_output=True, text=True)
    return [float(i) / 1024 for i in listed.stdout.split() if i.isdigit()] if listed.returncode == 0 else []
