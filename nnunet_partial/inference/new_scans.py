"""Masks of new scans: images called as they are, in any format that is read, segmented by nnU-Net's predictor.

Stock ``nnUNetv2_predict`` wants every image as ``CASE_0000`` with the file ending of the training data. Here a mask is called
as its image is, has its format and lies on its voxels. Reading, preprocessing, sliding window and the way back to the scan
are nnU-Net's own, with the reader that the model was trained with: an image of a format that this one does not know is
handed to it as NIfTI.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_partial import paths
from nnunet_partial.bars import bar
from nnunet_partial.data import images as image_files
from nnunet_partial.data.conversion import SourceFolder, dicom
from nnunet_partial.data.conversion.run import LOW_HU
from nnunet_partial.data.images import ENDINGS, Geometry
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json, sha256, temporary_folder, write_json
from nnunet_partial.inference.predict import claim_masks, labels_of_logits
from nnunet_partial.inference.preprocessed import load_predictor
from nnunet_partial.networks.models import ModelFiles
from nnunet_partial.outputs import Records
from nnunet_partial.paths import FINAL_CHECKPOINT
from nnunet_partial.trust import check_model

_PICTURES = (".png", ".bmp", ".tif", ".tiff")
_ONE_FILE = {".mhd": ".mha", ".nhdr": ".nrrd"}  # a header with its voxels in a second file -> the same format in one
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_EXCHANGED = ".nii.gz"  # what every reader of nnU-Net for volumes takes
_SAMPLE = 7  # every so many voxels tell whether grey values look like Hounsfield units


@dataclass(frozen=True)
class Scan:
    """``mask``: path of its mask, relative to the folder of masks. ``files``: one image a channel, or the files of one DICOM
    series."""

    mask: str
    files: tuple
    is_dicom: bool = False


@dataclass(frozen=True)
class Predicted:
    """What became of the scans, by the names of their masks: those done now, those done before, ``failed`` with the reason.
    ``doubts``: what a user should look at, one line each."""

    done: list = field(default_factory=list)
    before: list = field(default_factory=list)
    failed: dict = field(default_factory=dict)
    doubts: list = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------- which scans there are


def scans_of(source: PathLike, out: PathLike, channels: int = 1, pictures: bool = False) -> list:
    """Every scan of a folder and the folders in it, or the one that ``source`` names, in natural order.

    ``out``       where masks go: what lies there is no scan
    ``channels``  of the model. With several, their files are called ``NAME_0000``, ``NAME_0001``, ..., or one file holds all
    ``pictures``  whether the model is one of pictures (PNG, TIFF, BMP) and not of volumes
    A name that ends in ``_0000`` loses that where every image is called so, as in nnU-Net. A folder of DICOM files is one
    scan, called as the folder. Raises :class:`UserError` where there is no scan, and where two would have one mask.
    """
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UserError(f"{source} does not exist. Give the folder of the scans with -i.")
    folder = source if source.is_dir() else source.parent
    root, wanted = SourceFolder(folder, follow_links=True), tuple(i for i in ENDINGS if (i in _PICTURES) == pictures)
    if out.resolve() == root.root:
        raise UserError(
            f"the masks would replace the images in {folder}: they have the same names. Choose another folder with -o."
        )
    relative = [i for i in root.paths() if source.is_dir() or i == source.name]
    if out.resolve().is_relative_to(root.root):
        relative = [i for i in relative if not (root.root / i).is_relative_to(out.resolve())]
    files = [i for i in relative if i.lower().endswith(wanted)]
    scans = _of_files(root.root, files, channels) + ([] if pictures else _of_dicom(root, relative))
    if not scans:
        raise UserError(
            f"{source} holds no scan that this model reads: {', '.join(wanted)}{'' if pictures else ', or a folder of DICOM files'}."
        )
    _refuse_repeats(scans)
    return scans


def _of_files(root: Path, files: Sequence[str], channels: int) -> list:
    named = [_CHANNEL.fullmatch(_stem(i)) for i in files]
    if not all(named) or channels == 1 and any(i and i[2] != "0000" for i in named):
        return [Scan(_mask_name(i), (root / i,)) for i in files]
    groups: dict = {}
    for file, match in zip(files, named):
        groups.setdefault(match[1] if match else file, []).append(file)
    return [Scan(name + _mask_ending(i[0]), tuple(root / j for j in i)) for name, i in groups.items()]


def _of_dicom(root: SourceFolder, files: Sequence[str]) -> list:
    folders: dict = {}
    for file in files:
        if not file.lower().endswith(ENDINGS):
            folders.setdefault(file.rpartition("/")[0], []).append(root.root / file)
    series = {k: v for k, v in folders.items() if any(_is_dicom(i) for i in v)}
    return [Scan((k or root.root.name) + _EXCHANGED, tuple(v), is_dicom=True) for k, v in series.items()]


def _is_dicom(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _stem(file: str) -> str:
    return file[: len(file) - len(_ending(file))]


def _ending(file: str) -> str:
    found = next(i for i in ENDINGS if file.lower().endswith(i))
    return file[len(file) - len(found) :]


def _mask_ending(file: str) -> str:
    ending = _ending(file).lower()  # nobody writes NII.GZ
    return _ONE_FILE.get(ending, ending)


def _mask_name(file: str) -> str:
    return _stem(file) + _mask_ending(file)


def _refuse_repeats(scans: Sequence[Scan]) -> None:
    owners: dict = {}
    for scan in scans:
        first = owners.setdefault(scan.mask, scan.files[0])
        if first != scan.files[0]:
            raise UserError(
                f"{first} and {scan.files[0]} would have one mask, {scan.mask}. Rename one, or segment them by themselves."
            )


# ---------------------------------------------------------------------------------------------------- which models there are


def folds_of(model: PathLike, folds: Sequence[Any] | None = None, checkpoint: str = FINAL_CHECKPOINT) -> list:
    """Checkpoints of a model: those of the folds asked for, or of every numbered fold that is trained, or else of fold ``all``.

    ``model``: a model folder, or that of one fold. Raises :class:`UserError`, which names the trained models that there are.
    """
    model = Path(model)
    if model.name.startswith("fold_"):
        wanted = [model / checkpoint]
    elif folds is not None:
        wanted = [paths.fold_folder(model, i) / checkpoint for i in folds]
    else:
        there = sorted(i for i in model.glob(f"fold_*/{checkpoint}") if i.parent.name != "fold_all")
        wanted = there or [paths.fold_folder(model, "all") / checkpoint]
    missing = next((i for i in wanted if not i.is_file()), None)
    if missing is not None:
        what = "is not there" if not model.is_dir() else f"holds no {missing.parent.name}/{checkpoint}: train it first"
        raise UserError(f"the model {model} {what}. {paths.trained_models_in_words()}")
    return wanted


# ------------------------------------------------------------------------------------------------------------- segmenting


def predict_scans(
    scans: Sequence[Scan],
    out: PathLike,
    checkpoints: Sequence[Path],
    *,
    mirroring: bool = True,
    device: str = "cpu",
    overwrite: bool = False,
    trusted: bool = False,
    progress: bool = True,
    save: Callable[[np.ndarray, Scan, Path], None] | None = None,
    ending: str | tuple = ENDINGS,
    more: Mapping[str, Any] | None = None,
) -> Predicted:
    """Write the mask of every scan below ``out``, in the model's label values.

    ``checkpoints``  of the folds of one model (:func:`folds_of`), whose mean decides
    ``overwrite``    also what is there; without it scans that are done are skipped, unless their image has changed
    ``trusted``      the user vouches for the architecture that the model's plans name
    ``save``         writes the labels (z, y, x) on the scan's voxels to a file, or leaves it out where there is nothing to say;
                     None: as an image of the scan's format. ``ending``: of these files; ``more``: what they depend on besides
    A scan that cannot be read is left out and named in what is returned. Raises :class:`UserError` for a model that cannot be
    used, and for a folder that holds anything but masks of this model, before anything is written.
    """
    out, model = Path(out), checkpoints[0].parent.parent
    predictor = _predictor(checkpoints, torch.device(device), mirroring, trusted)
    content = read_json(model / "dataset.json")
    request = {
        "model": model.absolute().name,
        "sha256": [sha256(i) for i in checkpoints],
        "plans": sha256(model / "plans.json"),
        "mirroring": mirroring,
        **(more or {}),
    }
    claim_masks(out, request, {i.mask: out / i.mask for i in scans}, overwrite, ending)
    write_json({k: content[k] for k in ("channel_names", "labels", "file_ending") if k in content}, out / "dataset.json")
    records, result = Records(out), Predicted()
    sources = {i.mask: _named(i.files) for i in scans}
    todo = []
    for scan in scans:
        finished = records.is_done(scan.mask, {}, sources[scan.mask], _outputs(records, scan, out))
        (result.before if finished else todo).append(scan.mask if finished else scan)
    for scan in bar(todo, "segmenting", "scan", progress, len(result.before)):
        begun = records.begin(scan.mask, {}, sources[scan.mask])
        try:
            _segment(predictor, scan, out / scan.mask, result.doubts, save)
        except UserError as error:
            result.failed[scan.mask] = str(error)
            continue
        records.end(scan.mask, begun, [i for i in [out / scan.mask] if save is None or i.exists()])
        result.done.append(scan.mask)
    return result


def _named(files: Sequence[Path]) -> dict:
    """Name -> file; the slices of a series that lies in several folders may have the same names."""
    names = [i.name for i in files]
    return dict(zip(names if len(set(names)) == len(names) else map(str, files), files))


def _outputs(records: Records, scan: Scan, out: Path) -> list:
    """The file of a scan, unless there was nothing to write."""
    nothing = (records.read(scan.mask) or {}).get("outputs") == {}
    return [] if nothing else [out / scan.mask]


def channel_names(model: PathLike) -> tuple[str, ...]:
    """What the model's images show, one name a channel."""
    file = Path(model) / "dataset.json"
    content = read_json(file, "A model folder holds it.")
    names = content.get("channel_names", content.get("modality"))
    if not isinstance(names, Mapping) or not names:
        raise UserError(f"{file} names no channels ('channel_names'). Copy the model again.")
    return tuple(str(names[i]) for i in sorted(names, key=int))


def reads_pictures(model: PathLike) -> bool:
    """Whether the model was trained on pictures (PNG, TIFF, BMP) and not on volumes."""
    file = Path(model) / "dataset.json"
    return str(read_json(file, "A model folder holds it.").get("file_ending", "")).lower() in _PICTURES


def _predictor(checkpoints: Sequence[Path], device: torch.device, mirroring: bool, trusted: bool) -> Any:
    """nnU-Net's predictor with the weights of every fold."""
    model = checkpoints[0].parent.parent
    predictor = load_predictor(ModelFiles(model.name, model, checkpoints[0], (), trusted), device, mirroring)
    predictor.list_of_parameters = [check_model(model, i, trusted)[2]["network_weights"] for i in checkpoints]
    return predictor


def _segment(predictor: Any, scan: Scan, mask: Path, doubts: list, save: Callable | None = None) -> None:
    names = tuple(str(i) for i in predictor.dataset_json.get("channel_names", predictor.dataset_json.get("modality")).values())
    volumes = [_read(i) for i in ([scan.files] if scan.is_dicom else scan.files)]
    _check_channels(scan, volumes, names)
    doubts += _grey_values(scan, volumes, names)
    if scan.is_dicom:
        doubts += [f"{scan.mask}: {i}" for i in dicom.read_volume(dicom.read_headers(scan.files)).notes]
    reader = predictor.plans_manager.image_reader_writer_class
    direct = (
        save is None and not scan.is_dicom and all(_ending(i.name).lower() in reader.supported_file_endings for i in scan.files)
    )
    with temporary_folder(mask) as folder:
        files = [str(i) for i in scan.files] if direct else _handed_over(volumes, folder)
        geometry = Geometry.of(volumes[0]).spatial()
        del volumes
        labels, properties = _labels(predictor, files)
        if save is None:
            _write(labels, properties, reader(), geometry, mask, direct)
        else:
            mask.unlink(missing_ok=True)  # an older one, should there be nothing to write now
            save(_on_the_voxels(labels, properties, reader(), geometry, mask), scan, mask)


def _read(file: Path | tuple) -> "sitk.Image":
    """The image, whole and of finite values; of a DICOM series its volume."""
    if isinstance(file, tuple):
        return dicom.read_volume(dicom.read_headers(file)).image
    image, count = image_files.read_image_and_count(file)
    if count:
        raise UserError(f"{file}: {count} voxels are NaN or infinite, which spoils the whole prediction. Mend the image.")
    return image


def _check_channels(scan: Scan, volumes: Sequence["sitk.Image"], names: Sequence[str]) -> None:
    found = sum(i.GetNumberOfComponentsPerPixel() * int(np.prod(i.GetSize()[3:])) for i in volumes)
    if found != len(names):
        wanted = ", ".join(f"_{i:04d} ({name})" for i, name in enumerate(names))
        how = f"Name its files NAME{wanted}" if len(names) > 1 else "Give it one channel"
        raise UserError(f"{scan.files[0]}: {found} channels are there, the model takes {len(names)}: {', '.join(names)}. {how}.")
    first = Geometry.of(volumes[0])
    for file, volume in zip(scan.files[1:], volumes[1:]):
        image_files.require_same_geometry(first, scan.files[0], Geometry.of(volume), file)


def _grey_values(scan: Scan, volumes: Sequence["sitk.Image"], names: Sequence[str]) -> list:
    """One line for a channel whose values are no Hounsfield units though the model clips and scales them as such."""
    if len(volumes) != len(names):
        return []
    lows = [float(sitk.GetArrayViewFromImage(i).reshape(-1)[::_SAMPLE].min()) for i in volumes]
    return [
        f"{scan.mask}: the lowest value is {low:g}, so the image does not look like Hounsfield units, which the model takes ({name})"
        for low, name in zip(lows, names)
        if name.upper() == "CT" and low > LOW_HU
    ]


def _handed_over(volumes: Sequence["sitk.Image"], folder: Path) -> list:
    """The images as NIfTI, which every reader of nnU-Net for volumes takes."""
    files = [folder / f"scan_{i:04d}{_EXCHANGED}" for i in range(len(volumes))]
    for volume, file in zip(volumes, files):
        image_files.write_image(volume, file)
    return [str(i) for i in files]


def _labels(predictor: Any, files: list) -> tuple:
    """``(label map, what the reader knows of the scan)``; the label map is (z, y, x) as the reader has the axes."""
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        files, None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.array(data, dtype=np.float32))).cpu()
    return labels_of_logits(predictor, logits, properties), properties


def _write(labels: np.ndarray, properties: Mapping[str, Any], reader: Any, geometry: Geometry, mask: Path, direct: bool) -> None:
    """By nnU-Net's own writer, which knows how its reader has turned the axes; then in the format of the image."""
    if direct:
        image_files.write_segmentation(labels, mask, reader, properties)
        return
    image_files.write_label(_on_the_voxels(labels, properties, reader, geometry, mask), geometry, mask)


def _on_the_voxels(labels: np.ndarray, properties: Mapping[str, Any], reader: Any, geometry: Geometry, mask: Path) -> np.ndarray:
    """The label map (z, y, x) along the axes of the scan itself; nnU-Net's writer knows how its reader has turned them."""
    with temporary_folder(mask) as folder:
        written = folder / f"mask{_EXCHANGED}"
        image_files.write_segmentation(labels, written, reader, properties)
        turned, own = image_files.read_label(written)
        image_files.require_same_geometry(geometry, mask, own, written)
        return turned
