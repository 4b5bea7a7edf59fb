"""What makes a case done; what is taken for a whole image file; what is left by processes that do not live any more."""

import gzip
import multiprocessing
import os
import shutil
import struct

import pytest

from nnunet_partial import files
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import atomic_path, replace_folder, restore_folder, temporary_folder, write_texts
from nnunet_partial.outputs import (
    ExpectedPredictions,
    Records,
    first_changed,
    is_as_read,
    is_same,
    read_stamp,
    require_whole,
    size_and_time,
    stamp,
)


@pytest.fixture
def made(tmp_path):
    """Case ``c`` made from ``source``: ``(records, source, output)``."""
    source, output = tmp_path / "source", tmp_path / "out" / "c.nii.gz"
    source.write_text("image")
    output.parent.mkdir()
    records = Records(output.parent)
    begun = records.begin("c", {"annotated": ["liver"]}, {"image": source})
    output.write_text("mask")
    records.end("c", begun, [output])
    return records, source, output


def is_done(made, inputs=None):
    records, source, output = made
    return records.is_done("c", inputs or {"annotated": ["liver"]}, {"image": source}, [output])


def test_a_case_is_done_as_long_as_nothing_changed(made):
    records, source, output = made
    assert is_done(made) and records.is_written("c", [output])
    os.utime(source, (1, 1))  # a copy has another time
    os.utime(output, (1, 1))
    assert is_done(made)
    assert not is_done(made, {"annotated": []})
    assert not records.is_done("d", {"annotated": ["liver"]}, {"image": source}, [output])


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("change", [lambda i: i.write_text("another"), lambda i: i.write_text(""), lambda i: i.unlink()])
def test_changed_sources_and_outputs_are_noticed(made, which, change):
    change(made[which])
    assert not is_done(made)


def test_same_size_and_other_content_is_noticed_by_the_hash(tmp_path):
    (tmp_path / "a").write_text("one")
    known = stamp(tmp_path / "a")
    (tmp_path / "a").write_text("two")
    os.utime(tmp_path / "a", ns=(known["mtime_ns"] + 1,) * 2)
    assert not is_same(tmp_path / "a", known)


def test_a_record_that_cannot_be_read_is_none(made):
    next((made[2].parent / "records").iterdir()).write_text('{"half')
    assert not is_done(made)


# ---- what steps have read


def test_a_small_file_is_its_content_and_a_json_file_what_it_says(tmp_path):
    file = tmp_path / "provenance.json"
    file.write_text('{"created": "today", "cases": {"a": {"written": 1, "model": "m"}}}')
    known = read_stamp(file)
    file.write_text('{"cases": {"a": {"model": "m", "written": 2}}, "created": "tomorrow"}')
    assert is_as_read(file, known)
    file.write_text('{"created": "today", "cases": {"a": {"written": 1, "model": "n"}}}')
    assert not is_as_read(file, known)
    file.write_text('{"half')
    assert not is_as_read(file, known) and is_as_read(file, read_stamp(file))
    pickled = tmp_path / "case.pkl"
    pickled.write_bytes(b"one")
    known, times = read_stamp(pickled), pickled.stat()
    pickled.write_bytes(b"two")
    os.utime(pickled, ns=(times.st_atime_ns, times.st_mtime_ns))  # neither size nor time tells
    assert not is_as_read(pickled, known)


def test_a_large_file_is_size_and_time_but_a_copied_checkpoint_is_its_content(tmp_path):
    for name in ("image.nii", "checkpoint_final.pth"):
        (tmp_path / name).write_bytes(bytes(1 << 21))
    image, checkpoint = (read_stamp(tmp_path / i) for i in ("image.nii", "checkpoint_final.pth"))
    assert is_as_read(tmp_path / "image.nii", image) and "sha256" not in image
    for name in ("image.nii", "checkpoint_final.pth"):
        os.utime(tmp_path / name, (1, 1))
    assert not is_as_read(tmp_path / "image.nii", image) and is_as_read(tmp_path / "checkpoint_final.pth", checkpoint)
    (tmp_path / "checkpoint_final.pth").write_bytes(b"x" + bytes((1 << 21) - 1))
    assert not is_as_read(tmp_path / "checkpoint_final.pth", checkpoint)


def test_the_first_file_that_is_not_as_it_was_read_is_named(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    known = {str(a): read_stamp(a), str(b): read_stamp(b)}
    assert known[str(b)] is None and first_changed([a, b], known) is None
    assert first_changed([a, b], {str(a): size_and_time(a), str(b): None}) is None  # of version 0.1
    assert first_changed([a], known) == str(b) and first_changed([a, b], {str(a): known[str(a)]}) == str(b)
    b.write_text("b")
    assert first_changed([a, b], known) == str(b)


# ---- image files


def nifti(voxels=60, order="<", stated=60):
    header = bytearray(352)
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, 3, 3, 4, stated // 12, 1, 1, 1, 1)
    struct.pack_into(order + "h", header, 72, 16)
    struct.pack_into(order + "f", header, 108, 352.0)
    return bytes(header) + bytes(2 * voxels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_files_are_taken(tmp_path, order):
    (tmp_path / "a.nii").write_bytes(nifti(order=order))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti(order=order), mtime=0))
    (tmp_path / "c.png").write_bytes(b"x")
    for name in ("a.nii", "b.nii.gz", "c.png"):
        require_whole(tmp_path / name)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.nii.gz", None, "was not written"),
        ("a.nii.gz", b"", "truncated"),
        ("a.nii.gz", gzip.compress(nifti(), mtime=0)[:-9], "truncated or damaged"),
        ("a.nii.gz", gzip.compress(nifti(59), mtime=0), "holds 470 of 472 bytes"),
        ("a.nii.gz", b"<html>", "truncated or damaged"),
        ("a.nii", nifti(59), "holds 470 of 472 bytes"),
        ("a.nii", nifti()[:100], "truncated"),
        ("a.png", b"", "truncated"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{words}.*start the command again"):
        require_whole(tmp_path / name)


def test_every_expected_prediction_must_be_there(tmp_path):
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    for folder in ("images", "out"):
        (tmp_path / folder).mkdir()
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "notes.txt", ".tmp-c_0000.nii.gz"):
        (tmp_path / "images" / name).touch()
    left = ExpectedPredictions(tmp_path / "images", tmp_path / "out", tmp_path / "dataset.json")
    assert [i.name for i in left.files()] == ["a.nii.gz", "b.nii.gz"]
    (tmp_path / "out" / "a.nii.gz").write_bytes(gzip.compress(nifti(), mtime=0))
    with pytest.raises(UserError, match="b.nii.gz was not written"):
        left.check()
    assert left.stamps()["b.nii.gz"] is None
    assert [i.name for i in left.read()] == ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "notes.txt"]
    shutil.copy(tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "b.nii.gz")
    known = left.check()
    assert known == left.stamps() and all(known.values()) and left.are(known)
    assert left.are({name: (tmp_path / "out" / name).stat().st_size for name in known})  # as version 0.1 kept them
    (tmp_path / "out" / "b.nii.gz").write_bytes(gzip.compress(nifti()[:-1] + b"x", mtime=0))
    assert not left.are(known)


# ---- leftovers


def killed(target):
    with temporary_folder(target.with_name("folder")) as folder, atomic_path(target) as temporary:
        (folder / "half").write_text("half")
        with open(temporary, "w") as handle:
            handle.write("half")
        os._exit(9)


def test_the_next_writer_removes_what_dead_processes_left_and_nothing_else(tmp_path):
    target = tmp_path / "model.zip"
    process = multiprocessing.get_context("forkserver").Process(target=killed, args=(target,))
    process.start()
    process.join()
    assert process.exitcode == 9 and len(list(tmp_path.glob(".tmp-*"))) == 2
    other = tmp_path / f".tmp-00000000-{process.pid}-x-model.zip"  # of another machine
    for name in (other, tmp_path / ".tmp-mine"):
        name.touch()
    with atomic_path(tmp_path / "alive") as alive:
        files._looked_at.clear()
        with atomic_path(target):
            pass
        assert os.path.exists(alive)
    assert sorted(i.name for i in tmp_path.iterdir()) == sorted([other.name, ".tmp-mine", "alive", "model.zip"])


def test_texts_that_belong_together_appear_together_or_not_at_all(tmp_path):
    write_texts({tmp_path / "a.csv": "1", tmp_path / "a.json": "2"})
    with pytest.raises(TypeError):
        write_texts({tmp_path / "a.csv": "3", tmp_path / "a.json": None})
    assert [i.read_text() for i in sorted(tmp_path.iterdir())] == ["1", "2"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, exchanges, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *names: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [i.relative_to(tmp_path).as_posix() for i in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]
    os.replace(tmp_path / "old", tmp_path / ".replaced-old")  # as a kill between the two moves leaves it
    restore_folder(tmp_path / "old")
    assert [i.relative_to(tmp_path).as_posix() for i in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]


def test_a_full_disk_anywhere_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise OSError(28, "No space left on device", "/data/journal")
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err
        == "nnunet_partial: error: /data/journal cannot be written: No space left on device. Free some space.\n"
    )
    with pytest.raises(PermissionError), exit_on_user_error():
        raise PermissionError(13, "no")
