import gzip
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_partial.data import images
from nnunet_partial.data.images import Geometry
from nnunet_partial.errors import UserError

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def label():
    return np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)


def geometry(**changes):
    values = {
        "size_xyz": (7, 6, 5),
        "spacing_mm": (0.7, 0.8, 2.5),
        "origin_mm": (-100.0, 50.0, 3.0),
        "direction": OBLIQUE,
        **changes,
    }
    return Geometry(**values)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl"])
def test_label_maps_survive_writing_and_reading(tmp_path, label, ending):
    reference = geometry() if ending != ".gipl" else geometry(direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    images.write_label(label, reference, tmp_path / f"a{ending}")
    read, read_geometry = images.read_label(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(read, label)
    assert read.dtype == np.uint8
    assert read_geometry.difference(reference) is None
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"a{ending}"))), label)
    assert os.listdir(tmp_path) == [f"a{ending}"]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64, np.uint8])
def test_pixels_equal_simpleitks_whatever_their_type(tmp_path, label, write_image, dtype):
    write_image(label.astype(dtype), tmp_path / "a.nii.gz", direction=OBLIQUE)
    read, read_geometry = images.read_label(tmp_path / "a.nii.gz")
    reference = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(reference).astype(int))
    assert read_geometry == Geometry.of(reference)
    assert read.dtype == np.uint8


def test_big_endian_nifti_and_scale_factors(tmp_path):
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    scaled = nibabel.Nifti1Image(values * np.int16(100), np.eye(4))
    scaled.header.set_slope_inter(0.01, 0)  # 1 is stored as 100 and read as 100 * 0.01 in float
    nibabel.save(scaled, tmp_path / "scaled.nii.gz")
    nibabel.save(nibabel.Nifti1Image(values.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">")), tmp_path / "big.nii")
    for name in ("scaled.nii.gz", "big.nii"):
        np.testing.assert_array_equal(images.read_label(tmp_path / name)[0].T, values)


def test_files_read_in_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_CHUNK_BYTES", 1000)
    values = np.random.default_rng(1).integers(0, 300, (11, 12, 13)).astype(np.float64)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    read, _ = images.read_label(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read.T, values)
    assert read.dtype == np.uint16


def test_labels_beyond_255_are_written_as_uint16(tmp_path, label):
    images.write_label(label.astype(np.int64) + 254, geometry(), tmp_path / "a.nii.gz")
    assert images.label_values(tmp_path / "a.nii.gz") == (254, 255, 256, 257)
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetPixelID() == sitk.sitkUInt16


def test_label_map_of_another_shape_is_refused(tmp_path, label):
    with pytest.raises(ValueError, match="does not fit"):
        images.write_label(label.T, geometry(), tmp_path / "a.nii.gz")


def test_pictures_have_no_resolution(tmp_path, label):
    images.write_label(label[0], Geometry((7, 6), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)), tmp_path / "a.png")
    picture = sitk.ReadImage(str(tmp_path / "a.png"))
    picture.SetSpacing((0.3, 0.3))
    sitk.WriteImage(picture, str(tmp_path / "b.png"))
    np.testing.assert_array_equal(images.read_label(tmp_path / "a.png")[0], label[0])
    assert images.check_same_geometry(tmp_path / "a.png", tmp_path / "b.png").spacing_mm == (1.0, 1.0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size_xyz": (7, 6, 4)}, r"size \(7, 6, 5\) and \(7, 6, 4\) voxels"),
        ({"spacing_mm": (0.7, 0.8, 2.501)}, r"spacing \(0.7, 0.8, 2.5\) and \(0.7, 0.8, 2.501\) mm"),
        ({"origin_mm": (-100.0, 50.0, 3.04)}, r"origin .*3.0\) and .*3.04\) mm"),
        ({"direction": (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0)}, r"direction \(0.8, -0.6, .* and \(0.8, 0.6"),
    ],
)
def test_what_differs_is_said_in_words(changes, words):
    assert re.match(words, geometry().difference(geometry(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing_mm": (0.7, 0.8, 2.50002)},
        {"origin_mm": (-100.0, 50.03, 3.0)},
        {"direction": (0.80001, -0.59999, 0.0, 0.59999, 0.80001, 0.0, 0.0, 0.0, 1.0)},
    ],
)
def test_rounding_is_no_difference(changes):
    assert geometry().difference(geometry(**changes)) is None


def test_check_same_geometry_names_both_files_and_the_remedy(tmp_path, label, write_image):
    write_image(label, tmp_path / "image.nii.gz")
    write_image(label, tmp_path / "label.nii.gz", origin=(-10.0, 20.0, 25.0))
    with pytest.raises(UserError, match="image.nii.gz and .*label.nii.gz differ in origin .*5.0.*25.0.*Resample the label"):
        images.check_same_geometry(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")


def test_channels_along_a_fourth_axis_or_in_colours(tmp_path, label, write_image):
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 6, 5, 3), np.float32), np.diag([-1.5, -1.5, 2, 1])), tmp_path / "four.nii.gz")
    write_image(label, tmp_path / "label.nii.gz", origin=(0.0, 0.0, 0.0))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 7, 3), np.uint8), isVector=True), str(tmp_path / "colour.png"))
    assert images.number_of_channels(tmp_path / "four.nii.gz") == images.number_of_channels(tmp_path / "colour.png") == 3
    assert images.number_of_channels(tmp_path / "label.nii.gz") == 1
    assert images.check_same_geometry(tmp_path / "four.nii.gz", tmp_path / "label.nii.gz").size_xyz == (7, 6, 5)
    for name in ("four.nii.gz", "colour.png"):
        with pytest.raises(UserError, match=f"{name} holds several values per voxel"):
            images.read_label(tmp_path / name)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_nan_and_infinity_are_counted_in_the_file(tmp_path, ending):
    """SimpleITK makes 0 of them when it reads NIfTI."""
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 2, 3], values[3, 4, 5] = np.nan, -np.inf
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / ("image" + ending)))
    assert images.read_image_and_count(tmp_path / ("image" + ending))[1] == 2
    found = images.not_finite(tmp_path / ("image" + ending)).reshape(values.shape)
    np.testing.assert_array_equal(found, ~np.isfinite(values))


def damaged_files(folder, label):
    """name -> (what makes it, what every reader must say)"""
    whole = folder / "whole.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(label.repeat(9, 0)), str(whole), True)
    content = whole.read_bytes()
    plain = gzip.decompress(content)
    flipped = bytearray(content)
    flipped[-12] ^= 0xFF
    return {
        "half.nii.gz": content[: len(content) // 2],
        "no_end.nii.gz": content[:-6],
        "header.nii.gz": content[:60],
        "flipped.nii.gz": bytes(flipped),
        "short.nii": plain[:-5],
        "repacked.nii.gz": gzip.compress(plain[:-5]),
        "empty.nii.gz": b"",
        "text.nii.gz": b"<html>404 not found</html>",
        "text.nii": b"x" * 1000,
        "text.nrrd": b"no",
    }


@pytest.mark.parametrize(
    "name",
    [
        "half.nii.gz",
        "no_end.nii.gz",
        "header.nii.gz",
        "flipped.nii.gz",
        "short.nii",
        "repacked.nii.gz",
        "empty.nii.gz",
        "text.nii.gz",
        "text.nii",
        "text.nrrd",
    ],
)
@pytest.mark.parametrize("reader", [images.read_label, images.read_image])
def test_damaged_files_are_one_line(tmp_path, label, capfd, name, reader):
    (tmp_path / name).write_bytes(damaged_files(tmp_path, label)[name])
    with pytest.raises(UserError, match=f"{name} .*(truncated|damaged|cannot be read as an image).*again") as error:
        reader(tmp_path / name)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reader", [images.read_geometry, images.read_label, images.read_image])
def test_missing_files_folders_and_broken_links(tmp_path, reader):
    with pytest.raises(UserError, match="a.nii.gz does not exist"):
        reader(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(UserError, match="a.nii.gz is not a file"):
        reader(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="b.nii.gz does not exist .*broken link"):
        reader(tmp_path / "b.nii.gz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path, label, write_image):
    write_image(label, tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").chmod(0)
    with pytest.raises(UserError, match="permission denied"):
        images.read_label(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(
    "value, message", [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (1.5, "the value 1.5"), (-1, "negative value -1")]
)
def test_label_values_that_are_none(tmp_path, label, write_image, value, message):
    array = label.astype(np.float32)
    array[1, 2, 3] = value
    write_image(array, tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=f"a.nii.gz holds .*{message}"):
        images.read_label(tmp_path / "a.nii.gz")


def test_complex_voxels_are_no_labels(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.complex64), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="a.nii.gz"):
        images.read_label(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("reader", [images.read_geometry, images.read_label, images.read_image])
def test_axes_not_at_right_angles_are_explained(tmp_path, label, reader):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / "sheared.nii.gz")
    with pytest.raises(UserError, match="sheared.nii.gz has axes that are not at right angles.*Resample"):
        reader(tmp_path / "sheared.nii.gz")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from nnunet_partial.data import images
from nnunet_partial.errors import exit_on_user_error
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
label = np.random.default_rng(0).integers(0, 200, (40, 40, 40)).astype(np.uint8)
with exit_on_user_error():
    geometry = images.Geometry((40, 40, 40), (1., 1., 1.), (0., 0., 0.), (1., 0, 0, 0, 1, 0, 0, 0, 1))
    images.write_label(label, geometry, sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE") or not hasattr(signal, "SIGXFSZ"), reason="needs a file size limit")
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_disk_that_is_full_leaves_no_file(tmp_path, ending):
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "out" / f"a{ending}")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"a{ending} cannot be written completely" in done.stderr
    assert os.listdir(tmp_path / "out") == []


def test_the_resolution_of_a_picture_is_for_printing(tmp_path):
    """PNG, BMP and TIFF state dots an inch, or nothing; an image and its label are compared without it."""
    picture = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, (6, 7)).astype(np.uint8))
    for ending in (".png", ".bmp", ".tif", ".tiff"):
        for spacing in (1.0, 0.35):
            picture.SetSpacing((spacing, spacing))
            sitk.WriteImage(picture, str(tmp_path / f"a{spacing}{ending}"))
        geometry = images.check_same_geometry(tmp_path / f"a1.0{ending}", tmp_path / f"a0.35{ending}")
        assert geometry.spacing_mm == (1.0, 1.0)


# -------------------------------------------------------------------------- the one writer


WRITERS = re.compile(r"\bwrite_seg\b|WriteImage|ImageFileWriter|\.imwrite\(|nibabel\.save|nib\.save|to_filename\(")


def test_one_place_writes_images_and_label_maps():
    root = Path(images.__file__).parents[2]
    files = [j for i in ("nnunet_partial", "dataset_conversion", "scripts") for j in sorted((root / i).rglob("*.py"))]
    found = {i.relative_to(root).as_posix() for i in files if WRITERS.search(i.read_text(encoding="utf-8"))}
    assert found == {"nnunet_partial/data/images.py"}


def written_by_nnunet(reader_writer, label, tmp_path, ending, image_ending=".nii.gz"):
    """The properties that a reader gives of an image of this label map's shape."""
    source = tmp_path / f"image{image_ending}"
    if image_ending == ".tif":
        import tifffile

        tifffile.imwrite(source, label)
        (tmp_path / "image.json").write_text('{"spacing": [3.0, 2.0, 1.0]}')
    elif image_ending == ".png":
        sitk.WriteImage(sitk.GetImageFromArray(label[0]), str(source))
    else:
        images.write_label(label, geometry(), source)
    return reader_writer.read_images([str(source)])[1]


@pytest.mark.parametrize(
    "name, ending",
    [
        ("SimpleITKIO", ".nii.gz"),
        ("SimpleITKIO", ".nrrd"),
        ("SimpleITKIOWithReorient", ".nii.gz"),
        ("NibabelIO", ".nii.gz"),
        ("NibabelIOWithReorient", ".nii.gz"),
        ("Tiff3DIO", ".tif"),
        ("NaturalImage2DIO", ".png"),
    ],
)
def test_nnunets_writers_are_verified_and_cut_files_are_not_taken(tmp_path, label, name, ending, monkeypatch):
    """What nnU-Net would have written is what stands there; what is cut off or other than given gets no name."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader_writer = recursive_find_reader_writer_by_name(name)()
    label = label if ending != ".png" else label[:1]
    properties = written_by_nnunet(reader_writer, label, tmp_path, ending, ending)
    reader_writer.write_seg(label, str(tmp_path / f"own{ending}"), properties)
    images.write_segmentation(label, tmp_path / "out" / f"a{ending}", reader_writer, properties)
    assert (tmp_path / "out" / f"a{ending}").read_bytes() == (tmp_path / f"own{ending}").read_bytes() or ending == ".nii.gz"
    np.testing.assert_array_equal(reader_writer.read_seg(str(tmp_path / "out" / f"a{ending}"))[0][0], label)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([f"a{ending}", *(["a.json"] if ending == ".tif" else [])])
    write_seg = type(reader_writer).write_seg

    def cut(self, seg, file, properties):
        write_seg(self, seg, file, properties)
        os.truncate(file, int(os.path.getsize(file) * 0.7))

    def other(self, seg, file, properties):
        write_seg(self, np.where(seg == 1, 2, seg), file, properties)

    for wrong in (cut, other):
        monkeypatch.setattr(type(reader_writer), "write_seg", wrong)
        with pytest.raises(UserError, match=f"b{ending} cannot be written completely"):
            images.write_segmentation(label, tmp_path / "out" / f"b{ending}", reader_writer, properties)
    assert not [i for i in os.listdir(tmp_path / "out") if not i.startswith("a.")]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png"])
def test_an_image_that_was_not_written_whole_gets_no_name(tmp_path, ending, monkeypatch):
    """SimpleITK reports success with part of the file, or none of it, on the disk."""
    write = sitk.WriteImage
    picture = np.arange(63, dtype=np.uint8).reshape(7, 9)
    image = sitk.GetImageFromArray(picture if ending == ".png" else np.stack([picture] * 5))
    images.write_image(image, tmp_path / f"whole{ending}")
    for share in (0.0, 0.5, 0.95):
        monkeypatch.setattr(
            sitk, "WriteImage", lambda i, file, c: (write(i, file, c), os.truncate(file, int(os.path.getsize(file) * share)))
        )
        with pytest.raises(UserError, match=f"cut{ending} cannot be written completely"):
            images.write_image(image, tmp_path / f"cut{ending}")
    assert os.listdir(tmp_path) == [f"whole{ending}"]


def test_no_space_at_all_is_noticed_before_anything_is_written(tmp_path, label, monkeypatch):
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9, free=0))
    monkeypatch.setattr(sitk, "WriteImage", None)
    with pytest.raises(UserError, match="a.nii.gz cannot be written completely; 0.0 GB are free"):
        images.write_label(label, geometry(), tmp_path / "out" / "a.nii.gz")
    assert not (tmp_path / "out").exists()
