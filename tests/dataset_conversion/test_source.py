"""SRC is never left: links, loops, paths in headers of NRRD, MetaImage and h5 files."""

import os

import h5py
import numpy as np
import pytest

from nnunet_partial.data.conversion.source import SourceFolder, detached_data, natural_key
from nnunet_partial.errors import UserError


def test_paths_are_sorted_naturally_and_hidden_files_left_out(src):
    for name in (
        "b/volume-10.nii",
        "b/volume-9.nii",
        "._volume-1.nii",
        ".DS_Store",
        "__MACOSX/volume-1.nii",
        "a.txt",
        "c/.git/x",
    ):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text("")
    assert SourceFolder(src).paths() == ["a.txt", "b/volume-9.nii", "b/volume-10.nii"]


def test_natural_order_of_mixed_names():
    assert sorted(["case_10", "case_9", "case", "10", "9", "a1b"], key=natural_key) == [
        "9",
        "10",
        "a1b",
        "case",
        "case_9",
        "case_10",
    ]


@pytest.mark.parametrize("follow", [False, True])
def test_loops_of_folders_end(follow, src):
    (src / "a").mkdir()
    (src / "a" / "x.nii").write_text("")
    (src / "a" / "up").symlink_to(src)
    (src / "b").symlink_to(src / "a")
    paths = SourceFolder(src, follow).paths()
    assert paths.count("a/x.nii") + paths.count("b/x.nii") == 1 and len(paths) == 1


def test_src_itself_may_be_a_link(src, tmp_path):
    (src / "x.nii").write_text("")
    (tmp_path / "link").symlink_to(src)
    source = SourceFolder(tmp_path / "link")
    source.check(source.root / "x.nii")


def test_links_within_src_are_fine_and_links_out_of_it_only_on_request(src, tmp_path):
    (tmp_path / "outside.nii").write_text("")
    (src / "x.nii").write_text("")
    (src / "inside.nii").symlink_to(src / "x.nii")
    (src / "out.nii").symlink_to(tmp_path / "outside.nii")
    source = SourceFolder(src)
    source.check(source.root / "inside.nii")
    with pytest.raises(UserError, match="is a link to .*outside.nii, outside .*--follow-links"):
        source.check(source.root / "out.nii")
    SourceFolder(src, follow_links=True).check(source.root / "out.nii")


@pytest.mark.parametrize("reference", ["../x.nii", "/etc/passwd", "a/../../x.nii", "", None, 3])
def test_paths_in_files_do_not_lead_outside_even_if_links_may(reference, src):
    with pytest.raises(UserError):
        SourceFolder(src, follow_links=True).named(reference, SourceFolder(src).root / "dataset.json")


def nrrd(lines, data="x"):
    return f"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n{lines}\n\n{data}"


def mhd(data_file, key="ElementDataFile"):
    return f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n{key} = {data_file}\n"


HEADERS = {  # name: (file, content, files that it names)
    "attached nrrd": ("a.nrrd", nrrd("endian: little"), []),
    "detached nrrd": ("a.nhdr", nrrd("data file: ../b.raw"), ["../b.raw"]),
    "detached nrrd, other spelling": ("a.nhdr", nrrd("datafile: /etc/passwd"), ["/etc/passwd"]),
    "detached header in a .nrrd": ("a.nrrd", nrrd("data file: ../../b.raw"), ["../../b.raw"]),
    "key/value of the same name is no field": ("a.nrrd", nrrd("comment:=data file: /etc/passwd"), []),
    "list": ("a.nhdr", nrrd("data file: LIST\nb.raw\n/etc/passwd"), ["b.raw", "/etc/passwd"]),
    "numbered": ("a.nhdr", nrrd("data file: ../s%02d.raw 1 3 1"), ["../s01.raw", "../s02.raw", "../s03.raw"]),
    "mhd": ("a.mhd", mhd("../b.raw"), ["../b.raw"]),
    "mhd list": ("a.mhd", mhd("LIST\n/etc/passwd\nb.raw"), ["/etc/passwd", "b.raw"]),
    "mhd numbered": ("a.mhd", mhd("/tmp/s%d.raw 1 2 1"), ["/tmp/s1.raw", "/tmp/s2.raw"]),
    "mha": ("a.mha", mhd("LOCAL") + "\x00binary: data file: /etc/passwd\n", []),
    "mhd that says mha": ("a.mhd", mhd("local"), []),
    "nifti": ("a.nii", "data file: /etc/passwd", []),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_name_other_files(name, src):
    file, content, expected = HEADERS[name]
    (src / file).write_text(content)
    assert detached_data(src / file) == expected


@pytest.mark.parametrize("name", [k for k, v in HEADERS.items() if any(i.startswith(("..", "/")) for i in v[2])])
def test_such_files_are_not_read(name, src, run, raw):
    file, content, _ = HEADERS[name]
    (src / file).write_text(content)
    (src / "b.raw").write_bytes(b"\0" * 16)
    with pytest.raises(UserError, match="lies outside"):
        run("generic", src, "--image-glob", "*.n*" if file.endswith(("nhdr", "nrrd")) else "*.m*", "--unlabelled")
    assert not any(raw.iterdir())


def test_detached_data_inside_src_is_part_of_the_case(src, tools, run):
    """A change of the voxels is noticed, although the header stays the same."""
    tools.write(src / "a.mhd", tools.grey(0))
    run("generic", src, "--image-glob", "*.mhd", "--unlabelled", "--channels", "MR")
    raw_file = next(i for i in src.iterdir() if i.suffix in (".raw", ".zraw"))
    raw_file.write_bytes(bytes(raw_file.stat().st_size))
    os.utime(raw_file, ns=(1, 1))
    assert run("generic", src, "--image-glob", "*.mhd", "--unlabelled", "--channels", "MR").unchanged == ()


@pytest.mark.parametrize("kind", ["external link", "external storage", "virtual", "soft link", "group", "missing", "text"])
def test_h5_files_that_keep_their_data_elsewhere(kind, src, tmp_path, run, raw):
    array = np.zeros((4, 5, 6), np.float32)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["image"] = array
    path = src / "A" / "mri_norm2.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["label"] = array.astype(np.uint8)
        if kind == "external link":
            file["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "image")
        elif kind == "external storage":
            file.create_dataset("image", array.shape, "f4", external=[(str(tmp_path / "x.raw"), 0, array.nbytes)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(array.shape, "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", array.shape)
            file.create_virtual_dataset("image", layout)
        elif kind == "soft link":
            file["image"] = h5py.SoftLink("/label")
        elif kind == "group":
            file.create_group("image")
        elif kind == "text":
            file["image"] = "a picture"
    with pytest.raises(UserError, match="'image'"):
        run("left_atrium", src)
    assert not any(raw.iterdir())


def test_truncated_h5(src, run):
    (src / "A").mkdir()
    with h5py.File(src / "A" / "mri_norm2.h5", "w") as file:
        file["image"] = file["label"] = np.zeros((30, 30, 30))
    data = (src / "A" / "mri_norm2.h5").read_bytes()
    (src / "A" / "mri_norm2.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is truncated or damaged"):
        run("left_atrium", src)


@pytest.mark.parametrize("converter", ["amos22", "kits", "totalsegmentator", "msd", "flare23"])
def test_a_folder_of_archives_is_to_be_unpacked(src, run, converter):
    (src / "amos22.zip").write_bytes(b"PK")
    (src / "part2").mkdir()
    (src / "part2" / "case.nii.gz.zip").write_bytes(b"PK")
    (src / "readme.txt").write_text("unpack me")
    with pytest.raises(UserError, match="holds 2 archives and no images: unpack amos22.zip, part2/case.nii.gz.zip there first"):
        run(converter, src)
