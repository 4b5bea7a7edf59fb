"""Setups of nnU-Net and of data that break a training, or would spoil it in silence: each works, or is one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.data.preprocessed.splits import training_cases
from nnunet_partial.files import load_checkpoint, read_json
from nnunet_partial.labels import Annotations
from nnunet_partial.networks.heads import MASKED_LOGIT, mask_outputs
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.variants import write_variant

CLASSES = ("liver", "kidney", "pancreas")


def started(made):
    made.initialize()
    made.on_train_start()
    made.set_deep_supervision_enabled(True)
    return made


# ------------------------------------------------------------------ classes that nothing teaches


def without_source(made, source):
    """The training cases without those of one source, as a split may leave them."""
    training, validating = made.do_split()
    made.do_split = lambda: ([i for i in training if not i.startswith(source)], validating)
    return made


@pytest.mark.parametrize("name", ("nnUNetTrainerPartial", "nnUNetTrainerNaive", "nnUNetTrainerCrossTeaching"))
def test_a_class_that_no_training_case_annotates_is_refused_with_its_name(tiny, trainer, own_results, refused, name):
    made = without_source(trainer(name), "nih")
    made.initialize()
    error = refused(made.on_train_start)
    assert "fold 0 has no training case that annotates pancreas" in error and "untaught=mask" in error
    assert not list(own_results.rglob("checkpoint*"))


def test_what_teachers_know_is_taught(tiny, teachers, trainer):
    made = without_source(trainer("nnUNetTrainerMSKD"), "nih")
    assert made.taught_classes(made.do_split()[0]) == {"liver", "kidney", "pancreas"}


@pytest.mark.parametrize("optimizer", ("adamw", "sgd"))
def test_a_masked_class_is_predicted_by_no_checkpoint(tiny, trainer, own_results, optimizer):
    from nnunet_partial.networks.models import ModelFiles, load_network

    settings = {"untaught": "mask", "weight_decay": 0.5, "optimizer": optimizer}
    plans = write_variant(tiny.id, f"mask{optimizer}", settings, tiny.plans, overwrite=True).stem
    made = without_source(trainer("nnUNetTrainerPartial", plans), "nih")
    made.run_training()
    assert "WARNING: no training case of fold 0 annotates pancreas" in open(made.log_file).read()
    model = Path(made.output_folder_base)
    (model / "plans.json").write_text(json.dumps(read_json(tiny.preprocessed / f"{plans}.json")))
    (model / "dataset.json").write_text(json.dumps(made.dataset_json))
    # as stock prediction loads it
    network = load_network(ModelFiles("", model, model / "fold_0" / "checkpoint_final.pth", ())).network.eval()
    image = 100 * torch.randn(1, 1, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(image)
        half = network.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert (logits[:, 3] == MASKED_LOGIT).all() and not (logits.argmax(1) == 3).any()
    assert (half[:, 3] == MASKED_LOGIT).all()
    assert torch.softmax(logits, 1)[:, 3].max() == 0 and len(logits.argmax(1).unique()) >= 1


def test_masking_is_of_every_resolution_and_every_average(tiny, trainer, own_results):
    from nnunet_partial.networks.ema import EMA

    plans = write_variant(tiny.id, "maskedema", {"untaught": "mask"}, tiny.plans, overwrite=True).stem
    made = without_source(trainer("nnUNetTrainerPartial", plans), "nih")
    made.build_averages = lambda: {"network": EMA(made.network, 0.5)}
    started(made)
    for _ in range(3):
        made.train_step(next(made.dataloader_train))
    batch = made.to_device(next(made.dataloader_train))
    with torch.no_grad():
        outputs = [*made.network(batch.data), made.average_logits(batch.data)["network"]]
    assert len(outputs) == 3 and all((i[:, 3] == MASKED_LOGIT).all() for i in outputs)


def test_a_network_without_segmentation_layers_cannot_be_masked():
    from nnunet_partial.errors import UserError

    with pytest.raises(UserError, match="Flat has no decoder.seg_layers"):
        mask_outputs(Flat(), [1])


# ------------------------------------------------------------------ a loss that is not a number


def test_training_stops_at_a_loss_that_is_not_a_number(tiny, trainer, own_results, refused):
    made = started(trainer("nnUNetTrainerPartial"))
    made.num_iterations_per_epoch = 10
    batches = [next(made.dataloader_train) for _ in range(6)]
    weights = {k: v.clone() for k, v in unwrap(made.network).state_dict().items()}
    marginal = made.marginal_loss
    made.marginal_loss = lambda output, batch: marginal(output, batch) * float("nan")
    assert np.isnan(made.train_step(batches[0])["loss"])
    made.marginal_loss = marginal  # one passes: mixed precision has such steps, and its scaler leaves them out
    unwrap(made.network).load_state_dict(weights)
    assert np.isfinite(made.train_step(batches[1])["loss"])
    made.marginal_loss = lambda output, batch: marginal(output, batch) * float("nan")
    for batch in batches[2:4]:
        made.train_step(batch)
    error = refused(lambda: made.train_step(batches[4]))
    assert "since step 3 of epoch 0 (marginal nan)" in error and "nnunet_partial check" in error and "--c" in error
    assert f"the cases of that batch: {', '.join(sorted(set(map(str, batches[2]['keys']))))}." in error


def test_no_checkpoint_is_written_of_weights_that_are_not_numbers(tiny, trainer, own_results, refused, monkeypatch):
    made = trainer("nnUNetTrainerPartial")
    made.compute_losses = lambda batch: {"marginal": made.network(batch.data)[0].sum() * float("inf")}
    assert "the loss is not a number since step 1" in refused(made.run_training)
    assert not list(own_results.rglob("checkpoint*"))


# ------------------------------------------------------------------ cascades


CASCADED = ("nnUNetTrainerMSKD", "nnUNetTrainerPartial", "nnUNetTrainerCrossTeaching")


@pytest.fixture
def cascade(tiny, teachers):
    """Plans with a second stage, and an output of the first for every case."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    plans["plans_name"] = f"{tiny.plans}_cascade"
    plans["nnunet_partial"]["base_plans"] = tiny.plans
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (tiny.preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    images = nnUNetDatasetBlosc2(str(tiny.preprocessed / "nnUNetPlans_3d_fullres"))
    for name in CASCADED:
        lowres = teachers / f"{name}__{plans['plans_name']}__3d_lowres"
        folder = lowres / "predicted_next_stage" / "3d_cascade_fullres"
        folder.mkdir(parents=True, exist_ok=True)
        for case in images.identifiers:
            shape = images.load_case(case)[0].shape[1:]
            if not (folder / f"{case}.b2nd").exists():
                nnUNetDatasetBlosc2.save_seg(np.full(shape, 2, np.uint8), str(folder / case), shape, shape)
    return plans["plans_name"]


def test_teachers_of_full_resolution_teach_the_second_stage(tiny, cascade, trainer):
    made = trainer("nnUNetTrainerMSKD", cascade, "3d_cascade_fullres")
    assert made.is_cascaded and all("3d_fullres" in i.folder.name for i in made._find_teachers())
    started(made)
    batch = made.to_device(next(made.dataloader_train))
    assert batch.data.shape[1] == 4 and batch.image.shape[1] == 1  # the image, and the previous stage's three classes
    other = made.to_device({"data": batch.data.clone(), "target": batch.target, "keys": batch.cases})
    other.data[:, 1:] = 1 - other.data[:, 1:]
    for (logits, _), (again, _) in zip(made.teach(batch), made.teach(other)):
        assert torch.equal(logits, again)
    assert not torch.equal(made.network(batch.data)[0], made.network(other.data)[0])
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])


@pytest.mark.parametrize("name", CASCADED[1:])
def test_other_methods_train_a_second_stage(tiny, cascade, trainer, name):
    made = started(trainer(name, cascade, "3d_cascade_fullres"))
    assert made.is_cascaded and np.isfinite(made.train_step(next(made.dataloader_train))["loss"])


def test_a_second_stage_needs_the_first_ones_output_of_every_case(tiny, cascade, teachers, trainer, refused):
    """nnU-Net writes it of validation cases alone, so never of unlabelled scans; it would fail in some step of the training."""
    made = trainer("nnUNetTrainerCrossTeaching", cascade, "3d_cascade_fullres")
    folder = Path(made.folder_with_segs_from_previous_stage)
    away = folder / "plain_015.b2nd"
    away.rename(folder / "away")
    try:
        error = refused(lambda: started(made))
    finally:
        (folder / "away").rename(away)
    assert str(folder) in error and "such as plain_015" in error and "train 3d_lowres" in error and "unlabelled scan" in error


def test_a_second_stage_is_refused_as_a_teacher(tiny, cascade, teachers, trainer, tmp_path, refused):
    import shutil

    model = tmp_path / f"nnUNetTrainerIndividual__{cascade}_kits__3d_cascade_fullres"
    shutil.copytree(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_kits__3d_fullres", model)
    plans = read_json(tiny.preprocessed / f"{cascade}.json")
    (model / "plans.json").write_text(json.dumps(plans))
    plans["nnunet_partial"]["mskd"] = {"teachers": {"kits": str(model)}}
    plans["plans_name"] += "_given"
    (tiny.preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    error = refused(lambda: trainer("nnUNetTrainerMSKD", plans["plans_name"], "3d_cascade_fullres"))
    assert str(model) in error and "second stage of a cascade" in error and "nnUNetv2_train 501 3d_fullres 0" in error


# ------------------------------------------------------------------ an ignore label


@pytest.mark.parametrize("name", ("nnUNetTrainerPartial", "nnUNetTrainerCrossTeaching", "nnUNetTrainerMSKDLW"))
def test_ignored_voxels_reach_no_loss(tiny, teachers, trainer, with_ignore_label, assert_ignored_voxels_reach_no_loss, name):
    plain = started(trainer(name))
    batch = plain.to_device(next(plain.dataloader_train))
    made = with_ignore_label(name)
    made.initialize()
    made.load_frozen()
    made.current_epoch = 1
    assert_ignored_voxels_reach_no_loss(made, batch)


COARSE = {"atso": {"task": "super_classes", "super_classes": {"organs": ["kidney", "liver"]}}}


@pytest.mark.parametrize(
    "name, own, doubtful",
    (("nnUNetTrainerSelfTraining", {}, 4), ("nnUNetTrainerCoTraining", {}, 4), ("nnUNetTrainerATSO", COARSE, 3)),
)
def test_doubtful_pseudo_labels_reach_no_loss(
    tiny, trainer, own_results, write_labels, assert_ignored_voxels_reach_no_loss, tmp_path, name, own, doubtful
):
    """A dataset without an ignore label whose label directory has voxels that nobody vouches for."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    folder = write_labels(tiny, tmp_path / "labels")
    content = json.loads((folder / "provenance.json").read_text())
    manager = LabelManager(json.loads((tiny.preprocessed / "dataset.json").read_text())["labels"], None)
    for case, record in content["cases"].items():
        seg, properties = label_directory.load_labels(folder, case)
        seg = seg[:]
        seg[:, ::2] = np.where(seg[:, ::2] == 0, len(CLASSES) + 1, seg[:, ::2])
        label_directory.write_case(folder, case, seg, properties, manager, (16, 24, 24), record)
    label_directory.finish(folder, {**content, "ignored": len(CLASSES) + 1}, list(content["cases"]))
    write_variant(tiny.id, "doubtful", {"labels": str(folder), **own}, tiny.plans, overwrite=True)
    made = started(trainer(name, f"{tiny.plans}_doubtful"))
    batch = made.to_device(next(made.dataloader_train))
    assert made.ignored_value == doubtful and all((i == doubtful).any() for i in batch.targets)
    for loss in made.compute_losses(batch).values():
        assert torch.isfinite(loss)
    assert_ignored_voxels_reach_no_loss(made, batch)


@pytest.mark.parametrize("name", ("nnUNetTrainerSelfTraining", "nnUNetTrainerCoTraining", "nnUNetTrainerATSO"))
def test_pseudo_labels_that_are_left_out_teach_nothing(tiny, trainer, own_results, write_labels, refused, tmp_path, name):
    folder, file = write_labels(tiny, tmp_path / "labels"), tmp_path / "worst.txt"
    training = training_cases(tiny.preprocessed, Annotations.read(tiny.preprocessed), 0)
    unlabelled = next((i for i in training if i.startswith("plain")), None)
    partly = next(i for i in training if i.startswith("kits"))
    file.write_text("\n".join(i for i in (partly, unlabelled) if i))
    write_variant(tiny.id, "left_out", {"labels": str(folder), "exclude": str(file)}, tiny.plans, overwrite=True)
    made = started(trainer(name, f"{tiny.plans}_left_out"))
    cases = made.do_split()[0]
    assert unlabelled not in cases
    if name == "nnUNetTrainerCoTraining":  # needs every class
        assert partly not in cases
    else:
        assert partly in cases and made.training_lookup([partly]).tolist() == [[True, False, True, False]]
        seg = made.get_tr_and_val_datasets()[0].load_case(partly)[1]
        assert set(np.unique(seg[:])) <= {-1, 0, 2}
    file.write_text("nobody")
    assert "names nobody, which is no case" in refused(lambda: trainer(name, f"{tiny.plans}_left_out"))
    if name == "nnUNetTrainerATSO":  # M0 has no pseudo labels
        file.write_text(partly)
        write_variant(tiny.id, "left_out", {"exclude": str(file)}, tiny.plans, overwrite=True)
        assert partly in trainer(name, f"{tiny.plans}_left_out").do_split()[0]
    if name == "nnUNetTrainerSelfTraining":
        write_variant(tiny.id, "left_out", {"exclude": str(file)}, tiny.plans, overwrite=True)
        assert "exclude has no effect without labels" in refused(
            lambda: trainer("nnUNetTrainerPartial", f"{tiny.plans}_left_out")
        )


# ------------------------------------------------------------------ networks and weights that do not fit


class Flat(nn.Module):
    """A network that is no U-Net: no encoder, no decoder, one output."""

    def __init__(self, *_):
        super().__init__()
        self.convolution = nn.Conv3d(1, 4, 3, padding=1)

    def forward(self, data):
        return self.convolution(data)


def flat(made, monkeypatch):
    monkeypatch.setattr(made, "build_network_architecture", lambda *args, **kwargs: Flat(), raising=False)
    return made


def test_features_of_a_network_without_a_decoder_are_one_line(tiny, teachers, trainer, monkeypatch, refused):
    made = flat(trainer("nnUNetTrainerMSKD"), monkeypatch)
    error = refused(made.initialize)
    assert "Flat has no decoder stages" in error and "mskd.lambda_feature=0" in error


def test_averages_of_a_network_without_a_decoder(tiny, trainer, own_results, monkeypatch, refused):
    from nnunet_partial.networks.ema import EMA

    def make(plans):
        made = flat(trainer("nnUNetTrainerPartial", plans), monkeypatch)
        made.build_averages = lambda: {"network": EMA(made.network, 0.5)}
        return made

    error = refused(make(tiny.plans).initialize)
    assert "Flat has no decoder.deep_supervision" in error and "--set deep_supervision=false" in error
    plans = write_variant(tiny.id, "single", {"deep_supervision": False}, tiny.plans, overwrite=True).stem
    made = started(make(plans))
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"]) and made.averages["network"].num_updates == 1


@pytest.mark.parametrize("name", ("nnUNetTrainerCrossTeaching", "nnUNetTrainerPartial"))
def test_pretrained_weights_that_do_not_fit_are_one_line(tiny, trainer, own_results, refused, tmp_path, name):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    made = trainer("nnUNetTrainerPartial")
    made.initialize()
    file = tmp_path / "pretrained.pth"
    made.save_checkpoint(str(file))
    if name == "nnUNetTrainerPartial":  # these fit, but for a layer of another shape
        maybe_load_checkpoint(trainer(name), False, False, str(file))
        checkpoint = load_checkpoint(file)
        weights = checkpoint["network_weights"]
        changed = next(i for i in weights if "seg_layers" not in i)
        weights[changed] = weights[changed][:1]
        torch.save(checkpoint, file)
    error = refused(lambda: maybe_load_checkpoint(trainer(name), False, False, str(file)))
    assert f"-pretrained_weights {file} does not fit the network of {name}" in error and f"-tr {name}" in error
    absent = tmp_path / "absent.pth"
    assert f"{absent} does not exist" in refused(lambda: maybe_load_checkpoint(trainer(name), False, False, str(absent)))
