"""What a recipe or setting says is what the trainer does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.labels import Annotations
from nnunet_partial.methods import package_trainers
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.variants import write_variant

# lambdas, lengths and optimisers stay the recipe's; the size of patches, batches and networks becomes that of the tests
SMALL = {"features": [4, 8, 8], "batch_size": 2, "seed": 7}


def made_with(tiny, trainer, name, recipe, configuration, **changes):
    plans = write_variant(tiny.id, recipe, {**SMALL, **changes}, configuration=configuration, overwrite=True, recipe=recipe).stem
    return trainer(name, plans, configuration)


def built(made):
    made.initialize()
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    return made


def rates(made, epochs):
    found = []
    for epoch in epochs:
        made.lr_scheduler.step(epoch)
        found.append(made.optimizer.param_groups[0]["lr"])
    return found


def test_feng2021(tiny, teachers, trainer):
    plans = write_variant(
        tiny.id, "feng2021", {**SMALL, "patch_size": [24, 24]}, configuration="2d", overwrite=True, recipe="feng2021"
    ).stem
    sources = {i: str(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_{i}__2d") for i in ("lits", "kits", "nih")}
    plans = write_variant(tiny.id, "taught", {"mskd": {"teachers": sources}}, plans, overwrite=True).stem
    made = trainer("nnUNetTrainerMSKD", plans, "2d")
    made.initialize()
    made.load_frozen()
    made.dataloader_train, _ = made.get_dataloaders()
    group = made.optimizer.param_groups[0]
    assert type(made.optimizer) is torch.optim.Adam
    assert (group["lr"], group["weight_decay"]) == (3e-4, 3e-5)
    assert (made.num_epochs, made.num_iterations_per_epoch, made.oversample_foreground_percent) == (1000, 250, 0.33)
    for loss in (1.0, *[0.9995] * 31):  # the 31st epoch that is no better by 1e-3 is one more than are let pass
        assert group["lr"] == 3e-4
        made.lr_scheduler.observe(loss)
    assert group["lr"] == pytest.approx(0.8 * 3e-4)
    assert not made.enable_deep_supervision and made.deep_supervision_weights() == (1.0,)
    assert (made.own.lambda_background, made.own.lambda_feature, made.own.feature_level) == (1, 10, 1)
    assert made.settings.clip_gradient == 0 and made.inference_allowed_mirroring_axes == (0, 1)
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])


def test_huang2020(tiny, trainer, own_results, tmp_path, write_labels):
    labels = write_labels(tiny, tmp_path / "labels", "nnUNetPlans_2d")
    for name, terms in (
        ("nnUNetTrainerCoTraining", ("focal", "dice", "soft")),
        ("nnUNetTrainerSelfTrainingFocal", ("focal", "dice")),
    ):
        made = made_with(tiny, trainer, name, "huang2020", "2d", labels=str(labels), patch_size=[24, 24])
        made.initialize()
        made.prepare_losses(made.do_split()[0])
        made.dataloader_train, _ = made.get_dataloaders()
        for member in made.members.values():
            group = member.optimizer.param_groups[0]
            assert type(member.optimizer) is torch.optim.SGD
            assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 5e-4)
        assert rates(made, (0, 5)) == pytest.approx([0.05, 0.025]) and made.num_epochs == 10
        assert made.oversample_foreground_percent == 0 and not made.enable_deep_supervision
        own = made.own
        assert (own.lambda_focal, own.lambda_dice, own.lambda_soft, own.ema_decay) == (1.0, 0.1, 0.1, 0.999)
        assert made.loss_terms == terms
        assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])


def test_choi2022(tiny, trainer, own_results):
    plans = {"patch_size": [16, 24, 24], "cross_teaching": {"size": "plans"}}
    made = built(made_with(tiny, trainer, "nnUNetTrainerCrossTeaching", "choi2022", "3d_fullres", **plans))
    for member in made.members.values():
        group = member.optimizer.param_groups[0]
        assert (group["momentum"], group["nesterov"], group["weight_decay"], group["lr"]) == (0.99, True, 3e-5, 0.01)
    assert rates(made, (0, 500)) == pytest.approx([0.01, 0.01 * 0.5**0.9])
    assert made.inference_allowed_mirroring_axes is None and not made.enable_deep_supervision
    own = made.own
    assert (own.lambda_distillation, own.lambda_ssl, own.alpha, own.gamma, own.weighting) == (10, 0.1, 0.5, 2, "paper")
    made.current_epoch = made.num_epochs
    assert made.distillation_weights() == pytest.approx((10, 1))
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])


def test_huo2021(tiny, trainer, own_results):
    made = made_with(tiny, trainer, "nnUNetTrainerATSO", "huo2021", "2d", patch_size=[24, 24])
    made.initialize()
    group = made.optimizer.param_groups[0]
    assert type(made.optimizer) is torch.optim.SGD
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 3e-5)  # the last is nnU-Net's
    assert rates(made, (0, 500)) == pytest.approx([0.01, 0.01 * 0.5**0.9])
    assert made.settings.clip_gradient == 0 and made.loss_terms == ("marginal",)


@pytest.mark.parametrize("schedule, expected", (("poly", 0.5**0.9), ("cosine", 0.5), ("constant", 1), ("plateau", 1)))
def test_the_first_rate_is_heeded_by_every_schedule(tiny, trainer, own_results, schedule, expected):
    settings = {"optimizer": "adamw", "schedule": schedule, "initial_lr": 0.004}
    made = trainer("nnUNetTrainerPartial", write_variant(tiny.id, schedule, settings, tiny.plans, overwrite=True).stem)
    made.initialize()
    assert rates(made, (0, 1)) == pytest.approx([0.004, 0.004 * expected])


@pytest.mark.parametrize("norm", (0.01, 0.0))
def test_gradients_are_clipped_to_the_norm_of_the_setting_or_not_at_all(tiny, trainer, own_results, norm):
    settings = {"optimizer": "sgd", "momentum": 0.0, "initial_lr": 1.0, "weight_decay": 0.0, "clip_gradient": norm}
    made = trainer("nnUNetTrainerPartial", write_variant(tiny.id, "clip", settings, tiny.plans, overwrite=True).stem)
    built(made)
    made.set_deep_supervision_enabled(True)
    batch = next(made.dataloader_train)
    sum(made.compute_losses(made.to_device(batch)).values()).backward()
    whole = torch.cat([p.grad.flatten() for p in made.network.parameters() if p.grad is not None]).norm().item()
    before = torch.cat([p.detach().flatten().clone() for p in made.network.parameters()])
    made.train_step(batch)
    moved = torch.cat([p.detach().flatten() for p in made.network.parameters()]) - before
    assert whole > 0.01 and moved.norm().item() == pytest.approx(norm or whole, rel=1e-3)


def test_mirroring_is_of_training_and_of_the_model(tiny, trainer, own_results, refused):
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    def mirrored(axes, configuration="3d_fullres"):
        plans = write_variant(tiny.id, "mirror", {"mirroring": axes}, tiny.plans, overwrite=True).stem
        made = built(trainer("nnUNetTrainerPartial", plans, configuration))
        transforms = made.dataloader_train.data_loader.transforms.transforms
        return made, [i.allowed_axes for i in transforms if isinstance(i, MirrorTransform)]

    made, axes = mirrored([])
    assert axes == [] and made.inference_allowed_mirroring_axes is None
    made, axes = mirrored([1, 0])
    assert axes == [(0, 1)] and made.inference_allowed_mirroring_axes == (0, 1)
    made, axes = mirrored(None)
    assert axes == [(0, 1, 2)] and made.inference_allowed_mirroring_axes == (0, 1, 2)
    error = refused(lambda: mirrored([2], "2d"))
    assert "mirroring names axis 2, but patches of 2d have the axes 0, 1" in error


@pytest.mark.parametrize("axes, said", ((None, True), ([0, 1], False), ([], False)))
def test_classes_that_look_alike_when_mirrored_are_told(tiny, trainer, own_results, axes, said):
    plans = write_variant(tiny.id, "sides", {"mirroring": axes}, tiny.plans, overwrite=True).stem
    made = built(trainer("nnUNetTrainerPartial", plans))
    assert "look alike" not in Path(made.log_file).read_text()  # organs without sides
    made.annotations = Annotations(("kidney_left", "kidney_right"))
    made._tell_of_mirrored_sides()
    log = Path(made.log_file).read_text()
    assert ("kidney_left and kidney_right may look alike" in log and "--set mirroring=[]" in log) == said


def shares_of(cases, groups):
    """Case -> share of the draws where each group is drawn as often, and in it each case. ``groups``: case -> its groups."""
    members = {}
    for case in cases:
        for group in groups[case]:
            members.setdefault(group, []).append(case)
    return {i: sum(1 / len(members) / len(members[g]) for g in groups[i]) for i in cases}


@pytest.mark.parametrize(
    "name",
    (
        "nnUNetTrainerPartial",
        "nnUNetTrainerNaive",
        "nnUNetTrainerIndividual",
        "nnUNetTrainerSelfTraining",
        "nnUNetTrainerSelfTrainingFocal",
        "nnUNetTrainerCoTraining",
        "nnUNetTrainerMSKD",
        "nnUNetTrainerMSKDPlus",
        "nnUNetTrainerCrossTeaching",
        "nnUNetTrainerCrossTeachingFSL",
        "nnUNetTrainerDoDNet",
        "nnUNetTrainerConditionCNN",
        "nnUNetTrainerATSO",
    ),
)
def test_every_trainer_draws_cases_as_the_setting_says(tiny, trainer, teachers, own_results, tmp_path, write_labels, name):
    source, settings = package_trainers()[name], {}
    if source.needs_teachers:
        found = {i: str(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_{i}__3d_fullres") for i in ("lits", "kits", "nih")}
        settings["mskd"] = {"teachers": found}
    if source.needs_labels:
        settings["labels"] = str(write_labels(tiny, tmp_path / "labels"))
    if name == "nnUNetTrainerIndividual":
        settings["source"] = "lits"
    for sampling in ("source", "class", "case"):
        plans = write_variant(tiny.id, "sampling", {**settings, "sampling": sampling}, tiny.plans, overwrite=True).stem
        made = trainer(name, plans)
        made.initialize()
        training, _ = made.get_tr_and_val_datasets()
        pools = getattr(training, "pools", None)
        if sampling == "case":
            assert pools is None or pools.weights is None
            continue
        cases = made.do_split()[0]
        entries = {i: made.dataset_annotations.of(i) for i in cases}
        groups = {i: [v.source] if sampling == "source" else v.annotated or [None] for i, v in entries.items()}
        assert pools.weights == pytest.approx(shares_of(cases, groups))
        assert {i for pool in pools.pools for i in pool} <= set(cases)
        np.random.seed(0)
        drawn = [str(i) for _ in range(100) for i in pools.draw(2)]
        assert set(drawn) <= set(cases)


def test_the_exclusion_loss_is_a_term_of_its_own(tiny, trainer, own_results):
    from nnunet_partial.losses.exclusion import exclusion_loss

    plans = write_variant(tiny.id, "exclude", {"partial": {"lambda_exclusion": 0.5}}, tiny.plans, overwrite=True).stem
    made = built(trainer("nnUNetTrainerPartial", plans))
    made.set_deep_supervision_enabled(True)
    batch = made.to_device(next(made.dataloader_train))
    losses = made.compute_losses(batch)
    outputs = made.network(batch.data)
    expected = sum(
        weight * exclusion_loss(i, j, batch.groups)
        for weight, i, j in zip(made.deep_supervision_weights(), outputs, batch.target)
    )
    torch.testing.assert_close(losses["exclusion"], 0.5 * expected)
    assert made.loss_terms == ("marginal", "exclusion") and losses["exclusion"] > 0
    assert "loss/exclusion" in made.train_step(next(made.dataloader_train))
    assert trainer("nnUNetTrainerPartial").loss_terms == ("marginal",)


def test_logit_terms_are_of_regions_first_and_as_the_equations_later(tiny, teachers, trainer):
    from nnunet_partial.losses import ms_kd

    sources = {i: str(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_{i}__3d_fullres") for i in ("lits", "kits", "nih")}
    settings = {"mskd": {"by_region": 0.5, "scales": "full", "teachers": sources}, "num_epochs": 8}
    made = trainer("nnUNetTrainerMSKD", write_variant(tiny.id, "region", settings, tiny.plans, overwrite=True).stem)
    made.load_frozen()
    built(made).set_deep_supervision_enabled(True)
    batch = made.to_device(next(made.dataloader_train))
    made.steps_of_epoch = 0
    for epoch, expected in ((0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (7, 0.0)):
        made.current_epoch = epoch
        assert made.by_region() == expected
        with torch.no_grad():
            losses, output = made.compute_losses(batch), made.network(batch.data)[0]
            logits = [i for i, _ in made.teach(batch)]
            organ, background = ms_kd.logit_loss(output, logits, [i.classes for i in made.teachers], by_region=expected)
        torch.testing.assert_close(losses["organ"], organ)
        torch.testing.assert_close(losses["background"], background)
    made.current_epoch, made.steps_of_epoch = 1, made.num_iterations_per_epoch // 2
    assert made.by_region() == 1 - 1.5 / 4  # within an epoch too


def test_full_resolution_alone(tiny, teachers, trainer):
    from nnunet_partial.losses import ms_kd

    plans = write_variant(tiny.id, "full", {"mskd": {"scales": "full"}}, tiny.plans, overwrite=True).stem
    sources = {i: str(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_{i}__3d_fullres") for i in ("lits", "kits", "nih")}
    plans = write_variant(tiny.id, "full", {"mskd": {"teachers": sources}}, plans, overwrite=True).stem
    made = trainer("nnUNetTrainerMSKD", plans)
    made.load_frozen()
    built(made).set_deep_supervision_enabled(True)
    batch = made.to_device(next(made.dataloader_train))
    losses, output = made.compute_losses(batch), made.network(batch.data)
    assert isinstance(output, list) and not made.trains_every_scale
    with torch.no_grad():
        organ, background = ms_kd.logit_loss(output[0], [i for i, _ in made.teach(batch)], [i.classes for i in made.teachers])
    torch.testing.assert_close(losses["organ"], organ)
    torch.testing.assert_close(losses["background"], background)
    sum(losses.values()).backward()
    assert all(i.weight.grad is None for i in unwrap(made.network).decoder.seg_layers[:-1])


def test_finished_models_of_version_0_1_with_the_optimiser_of_a_paper_still_validate(tiny, trainer, own_results, refused):
    from nnunet_partial.files import read_json, write_json
    from nnunet_partial.settings import OPTIMIZER_PAPER

    file = write_variant(tiny.id, "old", dict(OPTIMIZER_PAPER), tiny.plans, overwrite=True)
    trainer("nnUNetTrainerPartial", file.stem).run_training()
    plans = read_json(file)
    plans["nnunet_partial"]["optimizer"] = "paper"
    for name in ("momentum", "nesterov", "schedule", "initial_lr", "weight_decay"):
        plans["nnunet_partial"].pop(name)
    write_json(plans, file)
    made = trainer("nnUNetTrainerPartial", file.stem)
    made.load_checkpoint(f"{made.output_folder}/checkpoint_final.pth")
    assert made.optimizer.param_groups[0]["momentum"] == 0.9
    assert "--recipe" in refused(lambda: trainer("nnUNetTrainerATSO", file.stem))
