"""Weights that a training starts from: what is taken, what is named, what the first prediction is, what is refused."""

import itertools

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

from nnunet_partial.errors import UserError
from nnunet_partial.files import load_checkpoint, write_json
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.training.initial_weights import extended, read_source, transfer
from nnunet_partial.variants import write_variant

OLD, NEW = ("liver", "kidney_left+kidney_right", "lung"), ("kidney_left", "kidney_right", "liver", "spleen", "tumor")
LABELS = {"background": 0, **{name: i for i, name in enumerate(OLD, 1)}}


def network(outputs, channels=1, residual=False, features=(4, 8, 8), seed=0):
    torch.manual_seed(seed)
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    more = {"n_blocks_per_stage": 1} if residual else {"n_conv_per_stage": 1}
    made = kind(
        channels,
        len(features),
        features,
        torch.nn.Conv3d,
        3,
        [1] + [2] * (len(features) - 1),
        num_classes=outputs,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
        **more,
    )
    for value in made.parameters():  # biases, too
        torch.nn.init.normal_(value, std=0.3)
    return made


def saved(file, made, beside=LABELS, **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": made.state_dict(), **more}, file)
    if beside:
        write_json(
            {"labels": beside, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}, file.parent.parent / "dataset.json"
        )
    return file


def probabilities(made, data):
    with torch.no_grad():
        return [torch.softmax(i.double(), 1) for i in made(data)]


def test_the_first_prediction_is_the_old_models(tmp_path):
    """Every output of the old model is as probable as the classes together that it stands for, at every resolution."""
    old, new = network(4), network(6, seed=1)
    source = read_source(saved(tmp_path / "model" / "fold_0" / "checkpoint_final.pth", old), NEW)
    assert source.outputs[:2] == ("liver", "kidney_left+kidney_right") and source.outputs[2] is None
    done = transfer(new, source, NEW)
    assert done.new == () and done.left_out == ("output 3",)
    data = torch.randn(2, 1, 8, 8, 8)
    for before, after in zip(probabilities(old, data), probabilities(new, data)):
        before = before[:, :3] / before[:, :3].sum(1, keepdim=True)  # without the lung, which the new one does not have
        parts = [after[:, [0, 4, 5]].sum(1), after[:, 3], after[:, [1, 2]].sum(1)]
        torch.testing.assert_close(torch.stack(parts, 1), before, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after[:, 1], after[:, 2])  # in equal parts
        torch.testing.assert_close(after[:, 0], after[:, 4])


def test_extension_by_hand():
    bias = extended(torch.tensor([1.0, 2.0, 3.0]), ("b", None), ("a", "b", "c"))
    np.testing.assert_allclose(bias, [1 - np.log(3), 1 - np.log(3), 2, 1 - np.log(3)], rtol=1e-6)
    weight = torch.arange(6.0).view(3, 2, 1)
    assert torch.equal(extended(weight, ("b", None), ("a", "b", "c")), weight[[0, 0, 1, 0]])


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["nnunet", "ddp", "compiled", "nnssl", "no names"])
def test_layouts_of_checkpoints(tmp_path, residual, layout):
    old, new = network(4, residual=residual), network(6, residual=residual, seed=1)
    weights, more = old.state_dict(), {}
    prefix = {"ddp": "module.", "compiled": "_orig_mod."}.get(layout, "")
    weights = {prefix + k: v for k, v in weights.items()}
    if layout == "nnssl":  # a part alone, under names of its own, and a head that reconstructs images
        stem = "net.stem" if residual else "net.blocks.0"
        renamed = [("encoder.stem", stem), ("encoder.stages", "net.blocks")]
        weights = {k: v for k, v in weights.items() if not k.startswith("decoder.")}
        for before, after in renamed:
            weights = {after + k.removeprefix(before) if k.startswith(before + ".") else k: v for k, v in weights.items()}
        weights["decoder.seg_layers.0.weight"] = torch.zeros(1, 8, 1, 1, 1)
        more = {"nnssl_adaptation_plan": {"key_to_encoder": "net.blocks", "key_to_stem": stem}, "citations": []}
    file = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    saved(file, old, LABELS if layout in ("ddp", "compiled") else None)
    content = {"network_weights": weights, **more}
    if layout == "nnunet":
        content["init_args"] = {"dataset_json": {"labels": LABELS, "file_ending": ".nii.gz"}}
    torch.save(content, file)
    random = {k: v.clone() for k, v in new.state_dict().items()}
    done = transfer(new, read_source(file, NEW), NEW)
    for key, value in new.state_dict().items():
        if key.startswith(("encoder.", "decoder.encoder.")):
            assert torch.equal(value, old.state_dict()[key])
        elif layout == "nnssl":
            assert torch.equal(value, random[key])
        elif "seg_layers" not in key:
            assert torch.equal(value, old.state_dict()[key])
    heads = {"decoder.seg_layers.0", "decoder.seg_layers.1"}
    assert heads & set(done.new) == (heads if layout in ("nnssl", "no names") else set())
    assert set(done.left_out) == {"nnssl": {"decoder.seg_layers.0"}, "no names": heads}.get(layout, {"output 3"})


def test_an_encoder_that_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    for i, (made, words) in enumerate(
        (
            (network(4, features=(4, 8)), r"has no encoder.stages.2"),
            (network(4, features=(4, 8, 16)), r"encoder.stages.2.* of shape \[16, 8, 3, 3, 3\]"),
            (network(4, channels=2), r"of shape \[4, 2, 3, 3, 3\]"),
        )
    ):
        new = network(6, seed=1)
        before = {k: v.clone() for k, v in new.state_dict().items()}
        with pytest.raises(UserError, match=words):
            transfer(new, read_source(saved(tmp_path / str(i) / "fold_0" / "c.pth", made), NEW), NEW)
        assert all(torch.equal(v, before[k]) for k, v in new.state_dict().items())


def test_one_image_channel_is_spread_over_several(tmp_path):
    old, new = network(4), network(6, channels=4, seed=1)
    source = read_source(saved(tmp_path / "m" / "fold_0" / "c.pth", old), NEW)
    transfer(new, source, NEW)
    data = torch.randn(1, 1, 8, 8, 8)
    for one, four in itertools.islice(zip(old.encoder(data), new.encoder(data.expand(-1, 4, -1, -1, -1))), 3):
        torch.testing.assert_close(one, four, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="does not fit the encoder"):
        transfer(network(6, channels=4), source, NEW, spread=False)


# ------------------------------------------------------------------ trainings


def checkpoint_of_two_classes(tiny, trainer, folder):
    """A network as ``tiny`` is planned, but for liver and pancreas alone."""
    made = trainer("nnUNetTrainerPartial")
    made.initialize()
    weights = {k: v[[0, 1, 3]] if "seg_layers" in k else v for k, v in unwrap(made.network).state_dict().items()}
    file = folder / "old" / "fold_0" / "checkpoint_final.pth"
    file.parent.mkdir(parents=True)
    torch.save({"network_weights": weights}, file)
    write_json(
        {"labels": {"background": 0, "liver": 1, "pancreas": 2}, "file_ending": ".nii.gz"}, file.parent.parent / "dataset.json"
    )
    return file, weights


@pytest.mark.parametrize("name", ["nnUNetTrainerPartial", "nnUNetTrainerCoTraining", "nnUNetTrainerDoDNet", "nnUNetTrainerATSO"])
def test_every_trainer_starts_from_them(tiny, trainer, own_results, tmp_path, name, write_labels):
    file, weights = checkpoint_of_two_classes(tiny, trainer, tmp_path)
    settings = {"initial_weights": str(tmp_path / "old" / "fold_{fold}" / "checkpoint_final.pth"), "seed": 11}
    if name == "nnUNetTrainerCoTraining":
        settings["labels"] = str(write_labels(tiny, tmp_path / "labels"))
    made = trainer(name, write_variant(tiny.id, "started", settings, base=tiny.plans, overwrite=True).stem)
    made.initialize()
    found = unwrap(made.network).state_dict()
    encoder = [i for i in weights if i.startswith("encoder.")]
    assert encoder and all(torch.equal(found[i], weights[i]) for i in encoder)
    if name in ("nnUNetTrainerPartial", "nnUNetTrainerATSO"):
        for key, value in weights.items():
            wanted = found[key] if "seg_layers" not in key else found[key][[0, 1, 3]]
            shift = torch.zeros(3) if not key.endswith("bias") or "seg_layers" not in key else torch.tensor([np.log(2), 0, 0])
            torch.testing.assert_close(
                wanted, value - shift.view(-1, *[1] * (value.ndim - 1)).to(value) if "seg" in key else value
            )
    for peer in (m.network for k, m in made.members.items() if k != "network"):
        peer = unwrap(peer).state_dict()
        assert all(torch.equal(peer[i], weights[i]) for i in encoder)
        assert not torch.equal(peer["decoder.stages.0.convs.0.conv.weight"], weights["decoder.stages.0.convs.0.conv.weight"])
    with open(made.log_file) as log:
        assert f"Weights of {file} for network" in log.read()
    for average in made.averages.values():  # begin at the weights that were loaded
        assert all(torch.equal(average.module.state_dict()[i], weights[i]) for i in encoder)


def test_a_continued_training_does_not_start_again(tiny, trainer, own_results, tmp_path):
    file, _ = checkpoint_of_two_classes(tiny, trainer, tmp_path)
    settings = {"initial_weights": str(file), "num_epochs": 1}
    plans = write_variant(tiny.id, "started", settings, base=tiny.plans, overwrite=True).stem
    first = trainer("nnUNetTrainerPartial", plans, continue_training=True)  # --c of a first start, as compare gives it
    assert first.initial_weights == str(file)
    made = trainer("nnUNetTrainerPartial", plans)
    made.run_training()
    file.unlink()  # no more needed
    trained = load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")["network_weights"]
    again = trainer("nnUNetTrainerPartial", plans, continue_training=True)
    again.load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")
    assert all(torch.equal(v, trained[k]) for k, v in unwrap(again.network).state_dict().items())


def test_what_cannot_start_ends_before_anything_is_written(tiny, trainer, own_results, tmp_path, refused):
    def make(name="nnUNetTrainerPartial", **settings):
        return trainer(name, write_variant(tiny.id, "refused", settings, base=tiny.plans, overwrite=True).stem)

    assert "does not exist" in refused(lambda: make(initial_weights=str(tmp_path / "none.pth")))
    assert not any(own_results.iterdir())
    file = saved(tmp_path / "other" / "fold_0" / "c.pth", network(4))
    both = {"initial_weights": str(file), "atso": {"initial_weights": str(file)}}
    assert "no effect beside atso.initial_weights" in refused(lambda: make("nnUNetTrainerATSO", **both))
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    for name in (file, tmp_path / "broken.pth"):
        line = refused(lambda name=name: make(initial_weights=str(name)).initialize())
        assert str(name) in line
