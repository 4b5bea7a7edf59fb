"""ONNX export: the file gives what torch gives, or there is no file."""

import sys

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_partial.errors import UserError
from nnunet_partial.inference.onnx import export_onnx, onnx_difference
from nnunet_partial.networks.usenet import ResidualUSENet


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


def network(kind):
    torch.manual_seed(0)
    if kind == "student":
        return ResidualUSENet(2, 3, mobile=True, features=(4, 8), deep_supervision=True)
    if kind == "teacher":
        return ResidualUSENet(2, 3, "trilinear", features=(4, 8))
    return PlainConvUNet(
        2,
        2,
        (4, 8),
        nn.Conv2d,
        3,
        (1, 2),
        1,
        3,
        1,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


@pytest.mark.parametrize("kind, size", (("student", (8, 4, 8)), ("teacher", (8, 4, 8)), ("planned 2D", (8, 16))))
def test_the_file_gives_what_torch_gives(onnx, tmp_path, kind, size):
    model, path = network(kind).train(), tmp_path / "models" / "model.onnx"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    deep_supervision = model.decoder.deep_supervision
    assert export_onnx(model, path, 2, size, metadata={"labels": "background,liver,spleen"}) <= 1e-4
    assert model.training and model.decoder.deep_supervision == deep_supervision
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    shapes = [
        [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in (file.graph.input[0], file.graph.output[0])
    ]
    axes = ["depth", "height", "width"][-len(size) :]
    assert shapes == [["batch", 2, *axes], ["batch", 3, *axes]]
    assert {p.key: p.value for p in file.metadata_props} == {"labels": "background,liver,spleen"}
    assert b".py" not in path.read_bytes() and [i.name for i in path.parent.iterdir()] == ["model.onnx"]
    model.decoder.deep_supervision = False
    for batch, times in ((1, (1, 1, 1)), (3, (1, 1, 1)), (1, (2, 3, 1)), (2, (3, 1, 2))):  # batch and size are free
        shape = (batch, 2, *(n * i for n, i in zip(size, times)))
        image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert onnx_difference(path, model.eval(), image) <= 1e-4


def test_a_difference_is_measured_and_refused(onnx, tmp_path):
    model, path = network("planned 2D"), tmp_path / "model.onnx"
    with pytest.raises(RuntimeError, match="differ by"):
        export_onnx(model, path, 2, (8, 16), tolerance=-1.0)
    assert not list(tmp_path.iterdir())
    export_onnx(model, path, 2, (8, 16))
    model.decoder.deep_supervision = False
    with torch.no_grad():
        model.decoder.seg_layers[-1].bias.add_(0.5)
    image = torch.zeros(1, 2, 8, 16)
    scale = max(1.0, float(model.eval()(image).detach().abs().max()))
    assert onnx_difference(path, model, image) == pytest.approx(0.5 / scale, rel=1e-3)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs the package onnx(runtime|script)?: .*nnunet_partial\[onnx\]"):
        export_onnx(network("student"), tmp_path / "model.onnx", 2, (8, 8, 8))
