"""Tools of the converter tests: writing download trees, running a converter, comparing the whole result."""

import argparse
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial import __version__
from nnunet_partial.commands import convert as convert_command
from nnunet_partial.data.conversion import SourceFolder, command, convert
from nnunet_partial.data.conversion.run import Report
from nnunet_partial.demo import phantoms

TINY = {name: phantoms.coarser(style, 2) for name, style in phantoms.STYLES.items()}
IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
SHAPE = (6, 8, 7)  # z, y, x


@pytest.fixture
def tiny_styles(monkeypatch):
    monkeypatch.setattr(phantoms, "STYLES", TINY)
    return TINY


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """An empty nnUNet_raw."""
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for other in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(other, raising=False)
    return folder


@pytest.fixture
def src(tmp_path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


@pytest.fixture
def run(raw):
    """``run("lits", SRC, "--organs", "liver")`` -> Report, in this process."""

    def run_converter(name: str, source, *arguments: str, dataset_id: int = 7) -> Report:
        converter = convert_command.load(name)
        parser = argparse.ArgumentParser()
        command.add_arguments(parser, converter)
        options = parser.parse_args([str(source), "--dataset-id", str(dataset_id), "--processes", "1", *map(str, arguments)])
        return convert(converter, SourceFolder(options.source, options.follow_links), options)

    return run_converter


def make_image(array: np.ndarray, spacing=(0.8, 0.9, 2.5), origin=(-11.0, 7.0, 101.5), direction=IDENTITY) -> "sitk.Image":
    image = sitk.GetImageFromArray(array)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(direction)
    return image


def write_image(path: Path, array: np.ndarray, **geometry) -> Path:
    """Write an array (z, y, x), or (channel, z, y, x), where no file is yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(make_image(array, **geometry), str(path), path.name.endswith(".gz"))
    return path


def grey(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def label_with(seed: int, values, shape=SHAPE) -> np.ndarray:
    """A label map that holds background and every one of ``values``."""
    rng = np.random.default_rng(seed)
    label = rng.choice([0, *values], size=shape).astype(np.uint8)
    label.reshape(-1)[: len(values) + 1] = [0, *values]
    return label


def remap(label: np.ndarray, values: dict) -> np.ndarray:
    """Independent of the converters: voxel by voxel through a dict; what is not in it becomes 0."""
    return np.vectorize(lambda v: values.get(int(v), 0))(label).astype(np.uint8)


def hashes(folder: Path) -> dict:
    return {
        str(i.relative_to(folder)): hashlib.sha256(i.read_bytes()).hexdigest() for i in sorted(folder.rglob("*")) if i.is_file()
    }


def check_result(
    report: Report,
    *,
    classes,
    cases,
    source,
    channels=("CT",),
    skipped=None,
    ending=".nii.gz",
    reader="SimpleITKIOWithReorient",
    ignore=False,
    files=(),
    patients=None,
) -> None:
    """The whole dataset is exactly as expected.

    ``cases``: name -> (images, label array or None for unlabelled, annotated classes); an image is the path of the
    file that must be referred to, or the array and geometry (a SimpleITK image) that must have been written.
    """
    folder = report.folder
    content = json.loads((folder / "dataset.json").read_text())
    labels = {"background": 0, **{name: i + 1 for i, name in enumerate(classes)}}
    assert content == {
        "name": folder.name,
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {**labels, "ignore": len(classes) + 1} if ignore else labels,
        "numTraining": len(cases),
        "file_ending": ending,
        **({"overwrite_image_reader_writer": reader} if reader else {}),
        "dataset": content["dataset"],
        "nnunet_partial": {
            "version": 1,
            "cases": {
                name: {
                    "source": source,
                    "annotated": list(annotated),
                    **({"patient": patients[name]} if patients else {}),
                }
                for name, (_, _, annotated) in cases.items()
            },
        },
        "nnunet_partial_provenance": {
            "written_by": f"nnunet_partial {__version__} convert",
            "converter": json.loads((folder / "conversion.json").read_text())["settings"]["converter"],
            "release": report.release,
        },
    }
    assert list(content["dataset"]) == list(cases)
    expected_files = {"dataset.json", "conversion.json", *files}
    for name, (images, label, _) in cases.items():
        entry = content["dataset"][name]
        assert entry["label"] == f"labelsTr/{name}{ending}"
        expected_files |= {entry["label"]} | {i for i in entry["images"] if not Path(i).is_absolute()}
        geometry = None
        for channel, (expected, given) in enumerate(zip(images, entry["images"], strict=True)):
            geometry = _check_image(folder, name, channel, expected, given)
        written = sitk.ReadImage(str(folder / entry["label"]))
        _same_place(written, geometry)
        array = sitk.GetArrayFromImage(written)
        assert array.dtype == np.uint8
        assert np.array_equal(array, np.zeros_like(array) if label is None else label), name
    assert {str(i.relative_to(folder)) for i in folder.rglob("*") if i.is_file()} == expected_files
    assert dict(report.skipped) == (skipped or {}) or skipped is any
    assert sorted(i.name for i in folder.parent.iterdir()) == [folder.name], "nothing else is left in nnUNet_raw"


def _check_image(folder, name, channel, expected, given):
    if isinstance(expected, Path):
        assert given == str(expected), "the image is referred to where it lies"
        return sitk.ReadImage(given)
    assert given.startswith(f"imagesTr/{name}_{channel:04d}.")
    written = sitk.ReadImage(str(folder / given))
    _same_place(written, expected)
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(expected))
    return written


def _same_place(first, second) -> None:
    assert first.GetSize() == second.GetSize()
    for read in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(first, read)(), getattr(second, read)(), atol=1e-4), read


@pytest.fixture
def tools(src):
    """The functions above; ``src`` must not change while a test runs."""
    yield SimpleNamespace(
        image=make_image,
        write=write_image,
        grey=grey,
        label_with=label_with,
        remap=remap,
        hashes=hashes,
        check=check_result,
        shape=SHAPE,
        tiny=TINY,
        identity=IDENTITY,
    )
