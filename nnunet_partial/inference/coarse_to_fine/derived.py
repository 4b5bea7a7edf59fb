"""Datasets of fixed-size volumes for the two stages of coarse to fine, as ordinary nnU-Net raw datasets.

Every case of a source dataset becomes one volume: the whole scan (coarse), or the box around its organs (fine). Volumes
are normalised here, have a spacing of 1 x 1 x 1 and one size, and the channel name ``noNorm``, so nnU-Net neither
resamples nor normalises them. The contract of annotated classes is kept. A derived dataset can be made in any number of
goes: dataset.json comes last, and volumes whose record fits them and their source are not made again.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_partial import paths
from nnunet_partial.data import components, images
from nnunet_partial.data.parallel import map_cases
from nnunet_partial.data.raw import RawCase, RawDataset, read_raw_dataset
from nnunet_partial.errors import UserError
from nnunet_partial.files import claim, read_json, sha256, write_json
from nnunet_partial.inference.coarse_to_fine import passes as c2f
from nnunet_partial.inference.coarse_to_fine.passes import CoarseToFineSettings
from nnunet_partial.inference.coarse_to_fine.stages import CONFIGURATION, KEY, REQUEST, VARIANT, Description, Stage
from nnunet_partial.labels import KEY as CONTRACT
from nnunet_partial.labels import Annotations, check_source_name
from nnunet_partial.networks.usenet import PAPER_STRIDE
from nnunet_partial.orchestration.foreground import run
from nnunet_partial.outputs import Records
from nnunet_partial.recipes import read_recipe
from nnunet_partial.settings import NETWORK_CHANGES, merged, read_run_settings, read_settings
from nnunet_partial.variants import write_variant

ENDING = ".nii.gz"
RECIPE = "choi2022"  # the paper that has the two stages


@dataclass(frozen=True)
class Derivation:
    """Everything that a derived dataset depends on. ``coarse``: the trained coarse stage, for the fine one."""

    source: RawDataset
    annotations: Annotations
    description: Description
    folder: Path
    coarse: Stage | None = None

    @property
    def settings(self) -> CoarseToFineSettings:
        return self.description.settings

    def request(self) -> dict:
        """Plain values that change whenever the volumes would."""
        return {**self.description.to_json(), "coarse": self.coarse and sha256(self.coarse.checkpoint)}


def prepare(
    stage: str,
    dataset: int | str,
    dataset_id: int,
    name: str | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    coarse: Stage | None = None,
    overwrite: bool = False,
    processes: int = 1,
    plan: bool = True,
    progress: bool = True,
) -> Path:
    """Write the derived raw dataset of one stage, plan and preprocess it by the stock command, and write its plans
    variant ``nnUNetPlans_c2f``; returns the plans file (without ``plan``: the raw folder).

    The variant is trained as the paper does, by its recipe, unless ``changes`` say otherwise (:func:`plans_changes`).

    ``changes``   fields of :class:`CoarseToFineSettings`, and anything that a plans variant may change
    ``coarse``    for the fine stage: the trained coarse stage, whose settings it takes over
    ``overwrite`` replace a dataset of this id and name that was made from something else
    Raises :class:`UserError` for a bad setting, a source that cannot be used, or an id that is taken, before it writes.
    """
    own, variant = split_changes(dict(changes))
    read_run_settings({k: v for k, v in variant.items() if k not in NETWORK_CHANGES}, "--set")
    derivation = derive(stage, dataset, dataset_id, name, own, coarse, overwrite, processes, progress)
    if overwrite and (derivation.folder / REQUEST).is_file():  # nothing that we have not made
        shutil.rmtree(derivation.folder)
    claim(derivation.folder / REQUEST, derivation.request(), "volumes made from something else")
    write_volumes(derivation, processes, progress)
    if not plan:
        return derivation.folder
    plan_and_preprocess(derivation, dataset_id, processes)
    patch = derivation.settings.patch_size if stage == "coarse" else derivation.settings.fine_size
    settings = plans_changes(variant, patch)
    return write_variant(dataset_id, VARIANT, settings, configuration=CONFIGURATION, overwrite=True, recipe=RECIPE)


def plans_changes(changes: Mapping[str, Any], patch_size: Sequence[int]) -> dict:
    """What is laid over the recipe: ``changes``, the size of the volumes, and nothing for what of the recipe they rule out.

    Another optimiser has no momentum; networks with ``features`` of their own, or of patches that the paper's five stages do not
    divide, have the size of the plans.
    """
    laid = {**changes, "patch_size": list(patch_size)}
    if changes.get("optimizer", "sgd") != "sgd":
        laid = {**{i: None for i in read_recipe(RECIPE).settings if i in ("momentum", "nesterov")}, **laid}
    if "features" in changes or any(i % PAPER_STRIDE for i in patch_size):
        laid = merged({"cross_teaching": {"size": "plans"}}, laid)
    return laid


def split_changes(changes: Mapping[str, Any]) -> tuple:
    """Settings of coarse to fine, and the rest, which is for the plans variant."""
    own = {i.name for i in fields(CoarseToFineSettings)}
    return {k: v for k, v in changes.items() if k in own}, {k: v for k, v in changes.items() if k not in own}


def derive(
    stage: str,
    dataset: int | str,
    dataset_id: int,
    name: str | None,
    changes: Mapping[str, Any],
    coarse: Stage | None,
    overwrite: bool = False,
    processes: int = 1,
    progress: bool = True,
) -> Derivation:
    """Check everything that is asked for, and decide from the manual labels what is not."""
    source = read_raw_dataset(paths.raw_dataset(dataset))
    annotations = Annotations.from_dataset_json(source.content, source.json_file)
    base = asdict(coarse.description.settings) if coarse else {}
    settings = read_settings(CoarseToFineSettings, {**base, **changes}, "--set")
    description = Description(stage, source.folder.name, source.channel_names, source.file_ending, settings)
    name = check_source_name(name or f"{source.folder.name.split('_', 1)[1]}{stage.capitalize()}")
    folder = paths.root("nnUNet_raw") / f"Dataset{dataset_id:03d}_{name}"
    taken = [i for i in paths.dataset_folders(dataset_id) if i.name != folder.name]
    if folder.is_dir() and not (folder / REQUEST).is_file():
        taken.append(folder)
    if taken:
        raise UserError(f"--id {dataset_id} is taken by {taken[0]}. Choose another.")
    if coarse:
        _check_coarse(coarse, source, settings)
    return _decide_components(Derivation(source, annotations, description, folder, coarse), overwrite, processes, progress)


def _decide_components(derivation: Derivation, again: bool, processes: int, progress: bool) -> Derivation:
    """``derivation`` with the classes that keep their largest component alone: as set, else as the coarse stage or an
    earlier start noted them (unless ``again``), else those that are one piece in the manual labels."""
    chosen, noted = derivation.settings.largest_components, derivation.folder / REQUEST
    if chosen is None and noted.is_file() and not again:
        chosen = read_json(noted).get("settings", {}).get("largest_components")
    if chosen is None:
        files = {case.name: case.label for case in derivation.source.cases.values()}
        chosen = components.one_piece_classes(derivation.annotations, files, processes, progress)
    chosen = components.checked_classes(chosen, derivation.annotations, "--set largest_components:")
    settings = replace(derivation.settings, largest_components=list(chosen))
    return replace(derivation, description=replace(derivation.description, settings=settings))


def _check_coarse(coarse: Stage, source: RawDataset, settings: CoarseToFineSettings) -> None:
    """The coarse stage must see these channels, know these classes, and keep its own sizes."""
    pairs = [("labels", coarse.labels, source.content["labels"]), ("channels", coarse.description.channels, source.channel_names)]
    pairs += [
        (i, getattr(coarse.description.settings, i), getattr(settings, i))
        for i in ("coarse_size", "patch_size", "window_overlap")
    ]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise UserError(
                f"the coarse model {coarse.checkpoint} has {name} {theirs}, {source.json_file} and --set have "
                f"{ours}. Train the coarse stage on this dataset with these settings."
            )


# ------------------------------------------------------------------ volumes


def write_volumes(derivation: Derivation, processes: int = 1, progress: bool = True) -> None:
    """Images, labels and at last dataset.json. With a trained coarse stage one process, which holds it, does it all."""
    file = derivation.folder / "dataset.json"
    cases = derivation.source.cases.values()
    todo = [i for i in cases if not _is_done(derivation, i)]
    if todo and file.is_file():
        file.unlink()  # not a dataset until its last volume is there
    map_cases(
        _write_job,
        [_job(derivation, i) for i in todo],
        1 if derivation.coarse else processes,
        f"{derivation.description.stage} volumes",
        progress,
        _name,
    )
    content = _dataset_json(derivation)
    if not file.is_file() or read_json(file) != content:
        write_json(content, file)


def _job(derivation: Derivation, case: RawCase) -> tuple:
    """What a process needs of one case, without all others."""
    known = derivation.annotations
    own = Annotations(
        known.classes, {case.name: known.of(case.name)} if known.is_partial else None, known.ignore_label, known.file
    )
    return replace(derivation, source=replace(derivation.source, cases={case.name: case}, content={}), annotations=own), case


def _write_job(job: tuple) -> None:
    write_case(*job)


def _name(job: tuple) -> str:
    return job[1].name


def _outputs(derivation: Derivation, case: RawCase) -> tuple:
    """Image files and the label file of a case; the label comes last."""
    images_tr, labels_tr = derivation.folder / "imagesTr", derivation.folder / "labelsTr"
    return [images_tr / f"{case.name}_{i:04d}{ENDING}" for i in range(len(case.images))], labels_tr / f"{case.name}{ENDING}"


def _inputs(derivation: Derivation, case: RawCase) -> dict:
    return {"annotated": list(derivation.annotations.of(case.name).annotated)}


def _sources(case: RawCase) -> dict:
    return {"label": case.label, **{f"image {i}": file for i, file in enumerate(case.images)}}


def _is_done(derivation: Derivation, case: RawCase) -> bool:
    channels, label = _outputs(derivation, case)
    return Records(derivation.folder).is_done(case.name, _inputs(derivation, case), _sources(case), [*channels, label])


def write_case(derivation: Derivation, case: RawCase) -> None:
    """The volume of one case and its label map; of a case that annotates nothing the label file is not read."""
    records = Records(derivation.folder)
    begun = records.begin(case.name, _inputs(derivation, case), _sources(case))
    channels = c2f.checked([images.read_image(i) for i in case.images])
    channels = [c2f.to_lps(i) for i in channels]
    labels = c2f.to_lps(_read_labels(derivation, case, channels_of=case.images[0]))
    size = derivation.settings.coarse_size
    if derivation.description.stage == "fine":
        box = fine_box(derivation, case, channels, labels)
        channels, labels = [c2f.crop(i, box) for i in channels], c2f.crop(labels, box)
        size = derivation.settings.fine_size
    volume = c2f.resampled_volume(channels, size, derivation.description.normalise)
    if not np.isfinite(volume).all():
        raise UserError(f"{case.images[0]} holds NaN or infinite values. Mend or remove the image.")
    if not volume.any():
        raise UserError(f"{case.images[0]} has the same value everywhere. Remove the case.")
    image_files, label_file = _outputs(derivation, case)
    for file, array in zip(image_files, volume):
        _write(array, file)
    _write(sitk.GetArrayFromImage(c2f.resample_labels_to_size(labels, size)), label_file)
    records.end(case.name, begun, [*image_files, label_file])


def _read_labels(derivation: Derivation, case: RawCase, channels_of: str) -> sitk.Image:
    geometry = images.read_geometry(channels_of)
    annotated = derivation.annotations.of(case.name).annotated
    if annotated:
        assert case.label is not None  # what annotates has labels
        array, own = images.read_label(case.label)
        images.require_same_geometry(geometry, channels_of, own, case.label)
        unknown = [i for i in images.present_values(array) if i not in derivation.annotations.values(case.name)]
        if unknown:
            raise UserError(
                f"{case.label} holds the value {unknown[0]}, which the case does not annotate "
                f"({', '.join(annotated)}). Correct the label file or {derivation.source.json_file}."
            )
    else:
        array = np.zeros(geometry.shape_zyx, np.uint8)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return image


def fine_box(derivation: Derivation, case: RawCase, channels: Sequence[sitk.Image], labels: sitk.Image) -> c2f.Box:
    """The box around the truth of annotated classes and around what the coarse stage finds of the others, and of all classes in
    a case with ignored voxels: those are nothing known."""
    known = set(derivation.annotations.values(case.name))
    truth = sitk.GetArrayViewFromImage(labels)
    ignored = truth == derivation.annotations.ignore_label
    masks = [np.where(ignored, 0, truth)]
    if ignored.any():
        known = {0}
    if not known >= set(range(len(derivation.annotations.classes) + 1)):
        stage = derivation.coarse
        assert stage is not None  # boxes are those of the fine stage, which has one
        coarse = c2f.predict_coarse(
            channels,
            stage,
            derivation.settings,
            derivation.description.normalise,
            stage.device,
            [derivation.annotations.classes.index(i) + 1 for i in derivation.settings.largest_components or ()],
        )
        masks.append(np.where(np.isin(coarse, list(known)), 0, coarse))
    return c2f.box_around(masks, channels[0], derivation.settings)


def _write(array: np.ndarray, file: Path) -> None:
    images.write_image(sitk.GetImageFromArray(array), file)


def _dataset_json(derivation: Derivation) -> dict:
    content = {
        "channel_names": {str(i): "noNorm" for i in range(len(derivation.source.channel_names))},
        "labels": derivation.source.content["labels"],
        "numTraining": len(derivation.source.cases),
        "file_ending": ENDING,
        KEY: derivation.description.to_json(),
    }
    if derivation.annotations.is_partial:
        content[CONTRACT] = derivation.annotations.to_json()
    return content


# ------------------------------------------------------------------ plans


def _hash_of_volumes(derivation: Derivation) -> str:
    """Hash of dataset.json and of what the records say of every volume and label map."""
    records, digest = Records(derivation.folder), hashlib.sha256(sha256(derivation.folder / "dataset.json").encode())
    for case in sorted(derivation.source.cases):
        record = records.read(case)
        assert record is not None  # every case has just been written
        outputs = record["outputs"]
        digest.update("".join(f"{name} {outputs[name]['sha256']}\n" for name in sorted(outputs)).encode())
    return digest.hexdigest()


def plan_and_preprocess(derivation: Derivation, dataset_id: int, processes: int) -> None:
    """By nnU-Net's own command, unless this has been done with these very volumes. Splits are the source's."""
    preprocessed = paths.root("nnUNet_preprocessed") / derivation.folder.name
    done = derivation.folder / "preprocessed"  # not in nnU-Net's folder, whose files it takes for cases
    volumes = _hash_of_volumes(derivation)
    if not (done.is_file() and read_json(done) == volumes and (preprocessed / "nnUNetPlans.json").is_file()):
        run(
            [
                "nnUNetv2_plan_and_preprocess",
                "-d",
                dataset_id,
                "-c",
                CONFIGURATION,
                "-np",
                processes,
                "-npfp",
                processes,
                "--clean",
            ],
            derivation.folder / "plan_and_preprocess.log",
            {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else {},
        )  # nnU-Net cannot plan with 0
        write_json(volumes, done)
    splits = paths.root("nnUNet_preprocessed") / derivation.source.folder.name / "splits_final.json"
    if splits.is_file() and not (preprocessed / "splits_final.json").is_file():
        write_json(read_json(splits), preprocessed / "splits_final.json")
