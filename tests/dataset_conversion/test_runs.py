"""Runs: again, after a change, with other settings, killed, without space, at the same time; the commands."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import dataset_conversion
from nnunet_partial.commands.convert import CONVERTERS
from nnunet_partial.data.conversion import run as runs
from nnunet_partial.demo import phantoms
from nnunet_partial.errors import UserError

COMMAND = [sys.executable, "-c", "import sys; from nnunet_partial.cli import main; sys.exit(main())", "convert"]


@pytest.fixture
def lits(src, tools):
    """``lits(number, seed)`` writes one case; three are there."""

    def write(number, seed=None):
        for name, array in (
            ("volume", tools.grey(number)),
            ("segmentation", tools.label_with(number if seed is None else seed, (1, 2))),
        ):
            (src / f"{name}-{number}.nii.gz").unlink(missing_ok=True)
            tools.write(src / f"{name}-{number}.nii.gz", array)

    for number in (0, 1, 2):
        write(number)
    return write


def times(folder: Path) -> dict:
    return {i.name: i.stat().st_mtime_ns for i in (folder / "labelsTr").iterdir()}


def test_second_run_changes_nothing(src, lits, run):
    first = run("lits", src)
    before = times(first.folder)
    second = run("lits", src)
    assert second.unchanged == ("lits_000", "lits_001", "lits_002") and first.unchanged == ()
    assert times(second.folder) == before and second.converted == first.converted


def test_changed_new_and_removed_cases_are_noticed(src, lits, tools, run):
    folder = run("lits", src).folder
    before = times(folder)
    lits(1, seed=99)
    report = run("lits", src)
    assert report.unchanged == ("lits_000", "lits_002") and set(report.converted) == {"lits_000", "lits_001", "lits_002"}
    after = times(folder)
    assert after["lits_000.nii.gz"] == before["lits_000.nii.gz"] and after["lits_001.nii.gz"] != before["lits_001.nii.gz"]
    before = after
    lits(7)
    (src / "volume-2.nii.gz").unlink()
    (src / "segmentation-2.nii.gz").unlink()
    with pytest.raises(UserError, match="holds 1 cases that would go, the first: lits_002: it is not found any more"):
        run("lits", src)
    assert times(folder) == before
    report = run("lits", src, "--overwrite")
    assert set(report.converted) == {"lits_000", "lits_001", "lits_007"}
    label = {n: tools.remap(tools.label_with(seed, (1, 2)), {1: 1, 2: 1}) for n, seed in ((0, 0), (1, 99), (7, 7))}
    tools.check(
        report,
        source="lits",
        classes=["liver"],
        cases={f"lits_{n:03d}": ([src / f"volume-{n}.nii.gz"], label[n], ["liver"]) for n in (0, 1, 7)},
    )


def test_label_that_vanished_from_the_dataset_is_written_again(src, lits, run):
    folder = run("lits", src).folder
    (folder / "labelsTr" / "lits_001.nii.gz").unlink()
    report = run("lits", src)
    assert report.unchanged == ("lits_000", "lits_002") and (folder / "labelsTr" / "lits_001.nii.gz").is_file()


def test_case_that_breaks_later_leaves_the_dataset_consistent(src, lits, run):
    run("lits", src)
    (src / "segmentation-1.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match="holds 1 cases that would go, the first: lits_001: .*segmentation-1"):
        run("lits", src)
    report = run("lits", src, "--overwrite")
    assert list(report.skipped) == ["lits_001"]
    assert sorted(i.name for i in (report.folder / "labelsTr").iterdir()) == ["lits_000.nii.gz", "lits_002.nii.gz"]


def test_other_settings_are_refused_unless_the_dataset_may_be_replaced(src, lits, run):
    folder = run("lits", src).folder
    before = times(folder)
    with pytest.raises(UserError, match="exists with other settings: organs .*--overwrite"):
        run("lits", src, "--organs", "liver,tumor")
    assert times(folder) == before
    report = run("lits", src, "--organs", "liver,tumor", "--overwrite")
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert report.unchanged == ()


def test_a_dataset_is_replaced_only_when_the_new_one_is_complete(src, lits, run):
    folder = run("lits", src).folder
    before = {i.name: i.read_bytes() for i in folder.rglob("*") if i.is_file()}
    for path in src.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="no case could be converted"):
        run("lits", src, "--organs", "tumor", "--overwrite")
    assert {i.name: i.read_bytes() for i in folder.rglob("*") if i.is_file()} == before
    assert [i.name for i in folder.parent.iterdir()] == [folder.name]


def test_preprocessed_data_that_is_out_of_date_is_told(src, lits, tmp_path, run, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset007_LiTS").mkdir()
    assert any("preprocess it again" in i for i in run("lits", src).lines())
    assert not any("preprocess it again" in i for i in run("lits", src).lines())


def test_a_dataset_of_somebody_else_is_not_touched(src, lits, raw, run):
    (raw / "Dataset007_LiTS").mkdir()
    (raw / "Dataset007_LiTS" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by this command"):
        run("lits", src)
    assert [i.name for i in raw.rglob("*") if i.is_file()] == ["dataset.json"]


def test_id_of_another_dataset_is_refused(src, lits, raw, run):
    (raw / "Dataset007_Other").mkdir()
    with pytest.raises(UserError, match="dataset id 007 belongs to .*Dataset007_Other"):
        run("lits", src)


def test_two_runs_at_once_are_kept_apart(src, lits, raw, run):
    with runs._lock(raw / "Dataset007_LiTS"), pytest.raises(UserError, match="is being converted by another process"):
        run("lits", src)


def test_images_are_copied_on_request(src, lits, tools, run):
    report = run("lits", src, "--copy-images")
    images = {n: sitk.ReadImage(str(src / f"volume-{n}.nii.gz")) for n in (0, 1, 2)}
    tools.check(
        report,
        source="lits",
        classes=["liver"],
        cases={f"lits_{n:03d}": ([images[n]], tools.remap(tools.label_with(n, (1, 2)), {1: 1, 2: 1}), ["liver"]) for n in images},
    )


def test_names_with_spaces_and_umlauts(tmp_path, tools, run):
    src = tmp_path / "my däta (1)"
    for number in (28,):
        tools.write(src / f"volume-{number}.nii", tools.grey(number), spacing=(1, 1, 1))
        tools.write(src / f"segmentation-{number}.nii", tools.label_with(number, (1, 2)), spacing=(1, 1, 1))
    phantoms.write_dicom_series(
        tools.image(tools.grey(28), spacing=(0.5, 0.5, 2)), tmp_path / "irc däd" / "3Dircadb1.1" / "PATIENT_DICOM"
    )
    for file in list((tmp_path / "irc däd").rglob("*.dcm")):
        file.rename(file.with_name("image_" + file.stem.split("-")[1]))
    report = run("lits", src, "--ircadb", tmp_path / "irc däd")
    image = sitk.ReadImage(str(report.folder / report.converted["lits_028"].images[0]))
    assert np.array_equal(sitk.GetArrayFromImage(image), tools.grey(28)) and image.GetSpacing() == (0.5, 0.5, 2.0)


def test_name_that_nnunet_would_expand_is_not_referred_to(tmp_path, tools, run):
    src = tmp_path / "$HOME"
    tools.write(src / "volume-1.nii", tools.grey(1))
    tools.write(src / "segmentation-1.nii", tools.label_with(1, (1, 2)))
    with pytest.raises(UserError, match="nnU-Net would replace"):
        run("lits", src)


@pytest.mark.parametrize("value, words", [(None, "nnUNet_raw is not set"), ("/dev/null/raw", "cannot be written")])
def test_unusable_nnunet_raw(value, words, src, lits, run, monkeypatch):
    monkeypatch.delenv("nnUNet_raw") if value is None else monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(UserError, match=words):
        run("lits", src)


# ---------------------------------------------------------------------------------------------- real processes


def environment(raw: Path) -> dict:
    return {**os.environ, "nnUNet_raw": str(raw), "OMP_NUM_THREADS": "1"}


def whole(folder: Path) -> dict:
    """Content of every file of a finished dataset, the journal's account of it left out."""
    return {str(i.relative_to(folder)): i.read_bytes() for i in folder.rglob("*") if i.is_file() and i.name != "conversion.json"}


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_moment_and_started_again(processes, tmp_path, src, tiny_styles):
    phantoms.make_nih(src, num_cases=5)
    command = [*COMMAND, "nih", str(src), "--dataset-id", "7", "--processes", str(processes)]
    expected = tmp_path / "expected"
    started = time.monotonic()
    subprocess.run(command, env=environment(expected), check=True, capture_output=True)
    duration = time.monotonic() - started
    raw, rng = tmp_path / "raw", random.Random(processes)
    for _ in range(4):
        process = subprocess.Popen(command, env=environment(raw), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(duration * rng.uniform(0.3, 1))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGKILL)
        process.communicate()
        check_nothing_half_written(raw)
        wait_until_gone(workers)
    subprocess.run(command, env=environment(raw), check=True, capture_output=True)
    assert whole(raw / "Dataset007_PancreasCT") == whole(expected / "Dataset007_PancreasCT")
    assert sorted(i.name for i in raw.iterdir()) == ["Dataset007_PancreasCT"]


def check_nothing_half_written(raw: Path) -> None:
    for path in raw.rglob("*.nii.gz"):
        if not path.name.startswith(".tmp-"):
            sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    for path in raw.glob("Dataset*/dataset.json"):
        content = json.loads(path.read_text())
        assert len(content["dataset"]) == content["numTraining"] == 5


def wait_until_gone(pids) -> None:
    for _ in range(1200):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("worker processes outlive the command")


def test_killed_worker_is_one_line_and_the_next_run_continues(tmp_path, src, tiny_styles):
    phantoms.make_nih(src, num_cases=8)
    command = [*COMMAND, "nih", str(src), "--dataset-id", "7", "--processes", "2"]
    raw = tmp_path / "raw"
    process = subprocess.Popen(command, env=environment(raw), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = raw / ".converting-Dataset007_PancreasCT" / "conversion.jsonl"
    while process.poll() is None and not journal.exists():
        time.sleep(0.01)
    if process.poll() is not None:
        pytest.skip("the conversion was over before it could be seen")
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
            break
    _, errors = process.communicate(timeout=600)
    if process.returncode == 0:
        pytest.skip("the conversion was faster than the kill")
    assert process.returncode == 2 and "it continues where it was" in errors and "Traceback" not in errors
    result = subprocess.run(command, env=environment(raw), check=True, capture_output=True, text=True)
    assert "finished before and have not changed" in result.stdout
    assert len(json.loads((raw / "Dataset007_PancreasCT" / "dataset.json").read_text())["dataset"]) == 8


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def test_no_space_left_is_one_line_and_leaves_nothing(tmp_path, src, tiny_styles):
    """A limit on the size of files makes writing fail as a full disk does; SimpleITK does not notice either."""
    phantoms.make_nih(src, num_cases=2)
    raw = tmp_path / "raw"
    result = subprocess.run(
        [*COMMAND, "nih", str(src), "--dataset-id", "7", "--processes", "1"],
        env=environment(raw),
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
    )
    lines = [i for i in result.stderr.splitlines() if i.startswith("nnunet_partial: error:")]
    assert result.returncode == 2 and len(lines) == 1 and "Is the disk full?" in lines[0]
    assert not list(raw.iterdir())


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount a small file system")
def test_full_disk(tmp_path, src, tiny_styles):
    phantoms.make_nih(src, num_cases=3)
    raw = tmp_path / "raw"
    raw.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(raw)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        result = subprocess.run(
            [*COMMAND, "nih", str(src), "--dataset-id", "7", "--processes", "1"],
            env=environment(raw),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2 and "cannot be written" in result.stderr and "Traceback" not in result.stderr
        assert not list(raw.iterdir())
    finally:
        subprocess.run(["umount", str(raw)], check=True)


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_converter_is_a_script_with_help(name, tmp_path):
    script = Path(dataset_conversion.__file__).parent / f"{name}.py"
    result = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "--dataset-id" in result.stdout and "--organs" in result.stdout


def test_script_does_what_the_command_does(tmp_path, src, lits):
    script = Path(dataset_conversion.__file__).parent / "lits.py"
    for raw, command in ((tmp_path / "a", [sys.executable, str(script)]), (tmp_path / "b", [*COMMAND, "lits"])):
        result = subprocess.run(
            [*command, str(src), "--dataset-id", "7"],
            env=environment(raw),
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        assert "3 cases, 3 labelled, 0 skipped; classes liver" in result.stdout
        assert "images: 3 in place" in result.stdout
    assert whole(tmp_path / "a" / "Dataset007_LiTS") == whole(tmp_path / "b" / "Dataset007_LiTS")


def test_a_conversion_of_an_older_version_is_redone_by_the_same_command(src, tools, run):
    """Its record knows neither the newer settings nor the newer facts about a case."""
    tools.write(src / "volume-1.nii", tools.grey(1))
    tools.write(src / "segmentation-1.nii", tools.label_with(1, (1, 2)))
    folder = run("lits", src).folder
    assert run("lits", src).unchanged == ("lits_001",)
    record = json.loads((folder / "conversion.json").read_text())
    del record["settings"]["resample_sheared"], record["cases"]["lits_001"]["patient"]
    (folder / "conversion.json").write_text(json.dumps(record))
    report = run("lits", src)
    assert report.unchanged == () and set(report.converted) == {"lits_001"}
    assert run("lits", src).unchanged == ("lits_001",)
