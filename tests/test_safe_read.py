"""What nnU-Net pickles is read to the bit, by numpy of both generations and every protocol; anything else is refused."""

import collections
import math
import os
import pickle
import subprocess

import blosc2
import numpy as np
import pytest

from nnunet_partial.errors import UserError
from nnunet_partial.safe_read import load_npz, load_pickle, open_array

VALUES = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.random.default_rng(0).random((3, 4))),
    "big endian": np.arange(3, dtype=">i2"),
    "bools": np.array([True, False]),
    "texts": np.array(["ab", "c"]),
    "empty": np.zeros((0, 4), np.int64),
    "no axis": np.array(3.0),
    "scalars": [np.float64(2.5), np.int64(3), np.bool_(True), np.float16(0.5)],
    "plain": (1, 2.5, None, True, "x", b"y", {1, 2}, frozenset((3,)), slice(1, 2), 1 + 2j, 10**30, math.inf),
    (-1, 0, 1): [[0, 2], [1, 3]],
    "ordered": collections.OrderedDict(a=1),
}


def same(a, b):
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and np.array_equal(a, b) and b.flags.writeable
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[i], b[i]) for i in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(i, j) for i, j in zip(a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("generation", (1, 2))
def test_what_nnunet_pickles(protocol, generation, tmp_path):
    content = pickle.dumps(VALUES, protocol=protocol)
    if generation == 1:
        content = content.replace(b"numpy._core", b"numpy.core") if protocol < 4 else content
    (tmp_path / "a.pkl").write_bytes(content)
    assert same(VALUES, load_pickle(tmp_path / "a.pkl"))


class Runs:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", (0, 2, 5))
def test_whatever_else_is_refused(protocol, tmp_path):
    marker = tmp_path / "has_run"
    attacks = [
        Runs(os.system, f"touch {marker}"),
        Runs(subprocess.check_call, ["touch", str(marker)]),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(getattr, "text", "upper"),
        Runs(np.ctypeslib.load_library, "x", "y"),
        Runs(pickle.loads, pickle.dumps(1)),
        np.array([Runs(os.system, f"touch {marker}")], object),
        np.zeros(2, [("a", object)]),  # numpy would take the bytes of the file for addresses
        np.dtype([("a", np.int8)]),
        np.array(["2020-01-01"], "M8[D]"),
    ]
    for attack in attacks:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"deep": [attack]}, protocol=protocol))
        with pytest.raises(UserError, match=r"a\.pkl is not read, because that could run code.*Make it again"):
            load_pickle(tmp_path / "a.pkl", "Make it again.")
    assert not marker.exists()


def state_of(array, **changes):
    """The pickle of an array whose state says something else than numpy would write."""
    function, arguments, state = array.__reduce__()
    names = ("version", "shape", "dtype", "fortran", "content")
    return Runs(function, *arguments), tuple({**dict(zip(names, state)), **changes}.values())


class Crafted:
    def __init__(self, array, **changes):
        self.array, self.changes = array, changes

    def __reduce__(self):
        function, arguments, _ = self.array.__reduce__()
        return function, arguments, state_of(self.array, **self.changes)[1]


@pytest.mark.parametrize(
    "changes", ({"shape": (1000,)}, {"content": b"12"}, {"dtype": np.dtype("O")}, {"content": ["a"]}, {"shape": (-1,)})
)
def test_an_array_has_the_bytes_that_its_shape_needs(changes, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Crafted(np.arange(3), **changes), protocol=2))
    with pytest.raises(UserError, match="a.pkl"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("content", (b"", b"junk", b"\x80\x04", b"\x80\x04]\x94(K\x01", b"cos\nsystem\n(S'true'\ntR."))
def test_damaged_pickles_are_one_line(content, tmp_path):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match="a.pkl") as error:
        load_pickle(tmp_path / "a.pkl")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="b.pkl does not exist"):
        load_pickle(tmp_path / "b.pkl")


def test_npz(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, probabilities=VALUES["floats"], other=VALUES["bools"])
    assert same(VALUES["floats"], load_npz(file, ["probabilities"])["probabilities"]) and set(load_npz(file)) == {
        "probabilities",
        "other",
    }
    with pytest.raises(UserError, match="cannot be read"):
        load_npz(file, ["missing"])
    np.savez(file, probabilities=np.array([{}], object))
    with pytest.raises(UserError, match="could run code"):
        load_npz(file)
    for content in (b"", b"junk", pickle.dumps(1), file.read_bytes()[:40]):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(UserError, match="b.npz"):
            load_npz(tmp_path / "b.npz")


def test_voxels_that_read_like_the_name_of_something_else_are_numbers(tmp_path):
    """Only the header of a frame says what it holds; three bytes of many come up among voxels too."""
    voxels = np.frombuffer(b"b2o LazyArray proxy-source" * 40, np.uint8)
    blosc2.asarray(voxels, urlpath=str(tmp_path / "voxels.b2nd"), cparams={"clevel": 0})
    assert b"b2o" in (tmp_path / "voxels.b2nd").read_bytes()
    assert same(voxels, open_array(tmp_path / "voxels.b2nd")[:])


@pytest.mark.parametrize("layer", ("LazyArray", "proxy-source", "b2o"))
def test_a_frame_that_says_it_is_something_else_is_not_opened(tmp_path, monkeypatch, layer):
    """Whatever its size: these stand in the header, and it is refused before blosc2 sees it."""
    voxels = np.random.default_rng(0).random((64, 64, 64))
    blosc2.asarray(voxels, urlpath=str(tmp_path / "made.b2nd"), meta={layer: {"kind": "expression"}})
    monkeypatch.setattr(blosc2, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="holds an expression or an address"):
        open_array(tmp_path / "made.b2nd")


def test_arrays_of_blosc2(tmp_path):
    file = tmp_path / "a.b2nd"
    made = blosc2.asarray(VALUES["floats"], urlpath=str(file))
    assert same(VALUES["floats"], open_array(file)[:])
    (made + 1).save(urlpath=str(tmp_path / "expression.b2nd"))
    with pytest.raises(UserError, match="expression.b2nd holds an expression"):
        open_array(tmp_path / "expression.b2nd")
    blosc2.asarray(np.array(["a"]), urlpath=str(tmp_path / "text.b2nd"))
    blosc2.SChunk(chunksize=8, data=b"12345678", urlpath=str(tmp_path / "bytes.b2nd"), mode="w", contiguous=True)
    (tmp_path / "junk.b2nd").write_bytes(b"junk")
    for name in ("text", "bytes", "junk", "missing"):
        with pytest.raises(UserError, match=f"{name}.b2nd"):
            open_array(tmp_path / f"{name}.b2nd")
