import errno
import os
import pickle
import stat
import threading
import time
import zipfile

import numpy as np
import pytest
import torch

from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import (
    atomic_path,
    load_checkpoint,
    plain,
    read_json,
    save_checkpoint,
    try_lock,
    write_json,
    write_text,
)


def stock_checkpoint():
    """The kinds of values that nnU-Net's own save_checkpoint writes."""
    return {
        "network_weights": {"conv.weight": torch.arange(6.0).reshape(2, 3)},
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": None,
        "logging": {
            "train_losses": [np.float32(0.5), np.float64(-0.25)],
            "dice_per_class_or_region": [[np.float64(0.7)]],
            "lrs": [0.01],
            "epochs": [np.int64(3)],
            "flags": [np.bool_(True)],
            "half": [np.float16(0.5)],
        },
        "_best_ema": np.float64(0.75),
        "current_epoch": 4,
        "trainer_name": "nnUNetTrainer",
        "init_args": {"plans": {"a": [1, None]}, "fold": 0, "device": torch.device("cpu")},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def rewrite_pickle(source, target, old, new):
    """Copy a torch file with one global renamed, as another version of numpy writes it."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as write:
        for name in read.namelist():
            content = read.read(name)
            if name.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            write.writestr(name, content)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_stock_checkpoint_of_either_numpy_is_read(tmp_path, module):
    torch.save(stock_checkpoint(), tmp_path / "own.pth")
    own = np.float64(0).__reduce__()[0].__module__
    rewrite_pickle(tmp_path / "own.pth", tmp_path / "other.pth", f"c{own}\nscalar".encode(), f"c{module}\nscalar".encode())
    read, written = load_checkpoint(tmp_path / "other.pth"), stock_checkpoint()
    assert read["logging"] == written["logging"]
    assert {k: [type(i) for i in v] for k, v in read["logging"].items()} == {
        k: [type(i) for i in v] for k, v in written["logging"].items()
    }
    assert read["_best_ema"] == written["_best_ema"] and read["init_args"] == written["init_args"]
    assert torch.equal(read["network_weights"]["conv.weight"], written["network_weights"]["conv.weight"])


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write",
    [lambda content, path: torch.save(content, path), lambda content, path: path.write_bytes(pickle.dumps(content, 2))],
)
def test_checkpoint_that_would_run_code_is_refused_in_one_line(tmp_path, write):
    write({"network_weights": {}, "extra": Malicious(tmp_path / "pwned")}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth holds .*loading it could run code") as error:
        load_checkpoint(tmp_path / "model.pth")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_numpy_scalar_of_objects_is_refused(tmp_path):
    scalar = np.float64(0).__reduce__()[0]

    class Smuggled:
        def __reduce__(self):
            return scalar, (np.dtype("O"), [1])

    torch.save({"network_weights": {}, "extra": Smuggled()}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth"):
        load_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a checkpoint at all"])
def test_damaged_checkpoint_is_one_line(tmp_path, damage):
    torch.save(stock_checkpoint(), tmp_path / "whole.pth")
    (tmp_path / "model.pth").write_bytes(damage((tmp_path / "whole.pth").read_bytes()))
    with pytest.raises(UserError, match="model.pth is damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "model.pth")


def test_missing_and_foreign_checkpoints(tmp_path):
    with pytest.raises(UserError, match="model.pth does not exist"):
        load_checkpoint(tmp_path / "model.pth")
    torch.save({"state_dict": {}}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="not an nnU-Net checkpoint"):
        load_checkpoint(tmp_path / "model.pth")


def test_saved_checkpoint_loads_without_any_allowed_global(tmp_path):
    save_checkpoint(stock_checkpoint(), tmp_path / "model.pth")
    read = torch.load(tmp_path / "model.pth", weights_only=True)
    assert read["logging"]["train_losses"] == [0.5, -0.25]
    assert isinstance(read["_best_ema"], float)


def test_plain_keeps_tensors_and_containers():
    tensor = torch.ones(2)
    result = plain({"a": (np.float32(1), [np.arange(2)]), "b": tensor, np.int64(3): None})
    assert result == {"a": (1.0, [[0, 1]]), "b": tensor, 3: None}
    assert result["b"] is tensor


def test_write_replaces_whole_files_or_none(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json({"a": 1}, path)
    with pytest.raises(ValueError), atomic_path(path) as temporary:
        with open(temporary, "w") as handle:
            handle.write("half")
        raise ValueError
    assert read_json(path) == {"a": 1}
    assert os.listdir(path.parent) == ["a.json"]


def test_atomic_path_keeps_ending_and_usual_permissions(tmp_path):
    with atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.endswith(".nii.gz") and os.path.basename(temporary).startswith(".")
    (tmp_path / "b").touch()
    assert stat.S_IMODE(os.stat(tmp_path / "a.nii.gz").st_mode) == stat.S_IMODE(os.stat(tmp_path / "b").st_mode)


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"a.txt cannot be written: .*[Nn]o space"), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path)


def test_errors_about_other_files_pass_through_a_write(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        open(tmp_path / "other")


def test_file_in_the_way_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_text("x", tmp_path / "file" / "a.txt")


@pytest.mark.parametrize(
    "content, message", [(b"{", "is not valid JSON"), (b"\xff\xfe", "is not valid JSON"), (None, "does not exist")]
)
def test_unreadable_json_names_file_and_remedy(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=f"a.json {message}.*Plan it first."):
        read_json(tmp_path / "a.json", "Plan it first.")


def test_user_error_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise UserError("first\n  second")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "nnunet_partial: error: first second\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(KeyError), exit_on_user_error():
        {}["a"]


def test_who_is_patient_gets_the_lock_of_a_process_that_ends(tmp_path):
    holder = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    started = time.monotonic()
    assert try_lock(tmp_path / "lock", patience=0.3) is None and time.monotonic() - started >= 0.3
    timer = threading.Timer(0.2, holder.close)
    timer.start()
    with try_lock(tmp_path / "lock", patience=30.0) as own:
        assert own is not None and time.monotonic() - started < 30
        assert try_lock(tmp_path / "lock") is None
    timer.join()
