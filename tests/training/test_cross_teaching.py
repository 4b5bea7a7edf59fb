"""Cross-teaching distillation: the loss from its parts, whose gradient goes where, and which cases a batch holds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.data.preprocessed.pools import Pools
from nnunet_partial.files import read_json
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.networks.usenet import ResidualUSENet
from nnunet_partial.trainers import cross_teaching as methods
from nnunet_partial.variants import write_variant

PROPOSED = "nnUNetTrainerCrossTeaching"
ABLATIONS = [f"{PROPOSED}{i}" for i in ("FSL", "FSLKD", "SSLKD", "SSLPSV", "SSLKDPSV", "CTS", "NoKD", "NoPSV", "SD")]
UNLABELLED, PARTLY, FULLY = (), (1,), (1, 2, 3)


def ready(made, epoch=1):
    made.initialize()
    made.load_frozen()
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    made.set_deep_supervision_enabled(True)
    made.current_epoch = epoch
    return made


def batch_of(made, *annotated):
    """A batch with labels of every class, whose samples annotate the given classes; what they do not is background."""
    from nnunet_partial.losses.partial import groups_from_annotated
    from nnunet_partial.training.base import Batch

    generator = torch.Generator().manual_seed(3)
    size = made.configuration_manager.patch_size
    mask = torch.zeros(len(annotated), 4, dtype=torch.bool)
    mask[:, 0] = True
    label = torch.randint(0, 4, (len(annotated), 1, *[i // 4 for i in size]), generator=generator).float()
    label = torch.nn.functional.interpolate(label, size=tuple(size), mode="nearest")
    for i, classes in enumerate(annotated):
        mask[i, list(classes)] = True
        label[i][~mask[i][label[i].long()]] = 0
    target = label
    if made.enable_deep_supervision:
        target = [
            torch.nn.functional.interpolate(label, scale_factor=tuple(i), mode="nearest-exact")
            for i in made._get_deep_supervision_scales()
        ]
    channels = torch.randn(len(annotated), made.num_input_channels, *size, generator=generator)
    return Batch(channels, target, mask, groups_from_annotated(mask), [str(i) for i in range(len(annotated))], mask)


def outputs_of(made, batch):
    """Network -> logits at every resolution, float64, without a graph."""
    with torch.no_grad():
        results = {name: member.network(batch.data) for name, member in made.members.items()}
    return {k: [i.double() for i in (v if isinstance(v, (list, tuple)) else [v])] for k, v in results.items()}


# ---- an independent reading: numpy, float64, sample by sample


def softmax(logits):
    z = logits.numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


IGNORED = 4


def read_dice(p, y, classes, told):
    """1 - mean Dice over classes, sums over the samples that have the class in ``classes`` (one tuple a sample), where ``told``."""
    p, y = p * told[:, None], np.where(told, y, 0)
    values = []
    for c in (1, 2, 3):
        samples = [b for b, own in enumerate(classes) if c in own]
        if samples:
            overlap = sum((p[b, c] * (y[b] == c)).sum() for b in samples)
            total = sum(p[b, c].sum() + (y[b] == c).sum() for b in samples)
            values.append((2 * overlap + 1e-5) / (total + 1e-5))
    return 1 - np.mean(values) if values else 0.0


def read_focal(p, y, classes):
    """alpha (1 - p)^gamma log p of the label's group, mean over the voxels of samples that annotate something, but ignored ones."""
    terms = [np.zeros(0)]
    for b, own in enumerate(classes):
        if own:
            rest = [c for c in range(4) if c not in own]
            told = (y[b] != IGNORED).ravel()
            groups = [g.ravel()[told] for g in (p[b, rest].sum(0), *(p[b, c] for c in own))]
            chosen = np.choose([0 if v == 0 else 1 + own.index(v) for v in y[b].ravel()[told]], groups)
            terms.append(-0.5 * (1 - chosen) ** 2 * np.log(chosen))
    return np.concatenate(terms).mean() if len(np.concatenate(terms)) else 0.0


def read_total(made, batch, annotated):
    outputs = outputs_of(made, batch)
    targets = batch.target if isinstance(batch.target, list) else [batch.target]
    lacking = [tuple(c for c in (1, 2, 3) if c not in own) for own in annotated]
    epochs, epoch = made.num_epochs, made.current_epoch
    r = math.exp(-5 * (1 - epoch / epochs) ** 2)
    supervised = 0
    for logits in outputs.values():
        for weight, output, target in zip(made.deep_supervision_weights(), logits, targets):
            p, y = softmax(output), target[:, 0].long().numpy()
            told = y != IGNORED
            supervised += weight * (read_dice(p, y, annotated, told) + read_focal(p, y, annotated)) if weight else 0
    p, told = {k: softmax(v[0]) for k, v in outputs.items()}, targets[0][:, 0].numpy() != IGNORED
    found = {"supervised": supervised}
    if made.cross_teachers:
        a, b = (p[i] for i in made.cross_teachers)
        found["cross_teaching"] = 0.1 * r * (read_dice(a, b.argmax(1), lacking, told) + read_dice(b, a.argmax(1), lacking, told))
    if made.teachers:
        mean = sum(p[i] for i in made.teachers) / len(made.teachers)
        found["pseudo_supervision"] = 0.1 * r * read_dice(p["network"], mean.argmax(1), lacking, told)
        kl = (mean * (np.log(mean) - np.log(p["network"]))).sum(1)
        weights = {"labelled": 10 * r, "unlabelled": {"paper": 1, "code": 10}[made.own.weighting] * r * r}
        if not made.semi_supervised:
            weights["unlabelled"] = 0
        found["distillation"] = sum(
            weights[kind] * np.concatenate([k[t] for k, t, own in zip(kl, told, which) if own]).mean()
            for kind, which in (("labelled", annotated), ("unlabelled", lacking))
            if any(which)
        )
    return {k: v for k, v in found.items() if k in made.loss_terms}


@pytest.mark.parametrize(
    "annotated", [(FULLY, UNLABELLED), (PARTLY, (2, 3)), (FULLY, PARTLY), (FULLY, FULLY), (UNLABELLED, UNLABELLED)]
)
def test_the_step_is_the_papers_objective(tiny, trainer, own_results, annotated):
    made = ready(trainer(PROPOSED))
    batch = batch_of(made, *annotated)
    with torch.no_grad():
        found = {k: v.item() for k, v in made.compute_losses(batch).items()}
    assert tuple(found) == made.loss_terms
    assert found == pytest.approx(read_total(made, batch, annotated), rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("annotated", [(FULLY, UNLABELLED), (PARTLY, (2, 3)), (FULLY, FULLY)])
def test_ignored_voxels_weaken_no_term_of_those_that_are_left(tiny, trainer, own_results, annotated, monkeypatch):
    """A tenth of the first sample is told, all of the second: means are over the voxels of a kind of sample, at every scale."""
    made = ready(trainer(PROPOSED))
    batch = batch_of(made, *annotated)
    monkeypatch.setattr(type(made), "ignored_value", IGNORED)
    for target in batch.target:
        target[0, 0, target.shape[2] // 4 :] = IGNORED
        target[0, 0, :, target.shape[3] // 2 :] = IGNORED
    with torch.no_grad():
        found = {k: v.item() for k, v in made.compute_losses(batch).items()}
    assert found == pytest.approx(read_total(made, batch, annotated), rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_are_the_objective_without_some_terms(tiny, trainer, own_results, name):
    made = ready(trainer(name))
    annotated = (FULLY, PARTLY)
    batch = batch_of(made, *annotated)
    with torch.no_grad():
        found = {k: v.item() for k, v in made.compute_losses(batch).items()}
    assert set(found) == set(made.loss_terms)
    assert found == pytest.approx(read_total(made, batch, annotated), rel=2e-4, abs=1e-6)


def test_the_codes_weighting_and_no_deep_supervision(tiny, trainer, own_results):
    plans = write_variant(
        tiny.id, "ctcode", {"deep_supervision": False, "cross_teaching": {"weighting": "code"}}, tiny.plans, overwrite=True
    ).stem
    made = ready(trainer(PROPOSED, plans))
    annotated = (FULLY, UNLABELLED)
    batch = batch_of(made, *annotated)
    with torch.no_grad():
        found = {k: v.item() for k, v in made.compute_losses(batch).items()}
    assert found == pytest.approx(read_total(made, batch, annotated), rel=2e-4, abs=1e-6)
    result = made.train_step(next(made.dataloader_train))
    assert np.isfinite(result["loss"])


# ---- gradients


def gradients_of(made, total):
    for member in made.members.values():
        member.network.zero_grad()
    total.backward(retain_graph=True)
    return {
        name: any(p.grad is not None and p.grad.abs().max() > 0 for p in member.network.parameters())
        for name, member in made.members.items()
    }


def test_each_term_reaches_the_networks_that_it_is_for(tiny, trainer, own_results):
    made = ready(trainer(PROPOSED))
    losses = made.compute_losses(batch_of(made, FULLY, UNLABELLED))
    reached = {name: gradients_of(made, value) for name, value in losses.items()}
    everyone = {"network": True, "teacher1": True, "teacher2": True}
    assert reached == {
        "supervised": everyone,
        "cross_teaching": {**everyone, "network": False},
        "pseudo_supervision": {"network": True, "teacher1": False, "teacher2": False},
        "distillation": {"network": True, "teacher1": False, "teacher2": False},
    }


def test_each_teacher_takes_the_other_as_a_constant(tiny, trainer, own_results):
    """The gradient of cross teaching in teacher 1 is that of Dice against teacher 2's argmax written down as labels."""
    from nnunet_partial.losses.partial import MarginalDiceCELoss, groups_from_annotated

    made = ready(trainer(PROPOSED))
    batch = batch_of(made, FULLY, UNLABELLED)
    gradients_of(made, made.compute_losses(batch)["cross_teaching"])
    found = {k: p.grad.clone() for k, p in made.members["teacher1"].network.named_parameters() if p.grad is not None}
    made.members["teacher1"].network.zero_grad()
    labels = outputs_of(made, batch)["teacher2"][0].argmax(1)
    dice = MarginalDiceCELoss(True, weight_ce=0)
    groups = groups_from_annotated(torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool))
    (0.1 * made.ramp() * dice(made.members["teacher1"].network(batch.data)[0], labels, groups)).backward()
    for k, p in made.members["teacher1"].network.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[k], p.grad, rtol=1e-4, atol=1e-8)


def test_unlabelled_cases_give_nothing_to_supervision_and_partly_labelled_to_both(tiny, trainer, own_results):
    made = ready(trainer(PROPOSED))
    one = batch_of(made, FULLY, UNLABELLED)
    other = batch_of(made, FULLY, UNLABELLED)
    for target in other.target:
        target[1] = torch.randint(0, 4, target[1].shape).float()  # labels that nobody may believe
    with torch.no_grad():
        a, b = made.compute_losses(one), made.compute_losses(other)
    assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}
    with torch.no_grad():
        alone = made.compute_losses(batch_of(made, UNLABELLED, UNLABELLED))
        full = made.compute_losses(batch_of(made, FULLY, FULLY))
        partly = made.compute_losses(batch_of(made, PARTLY, PARTLY))
    assert alone["supervised"] == 0 and alone["cross_teaching"] > 0 and alone["pseudo_supervision"] > 0
    assert full["supervised"] > 0 and full["cross_teaching"] == 0 and full["pseudo_supervision"] == 0
    assert all(i > 0 for i in partly.values())


def test_losses_do_not_follow_the_labels_of_classes_that_are_not_annotated(tiny, trainer, own_results):
    made = ready(trainer(PROPOSED))
    one, other = batch_of(made, PARTLY, FULLY), batch_of(made, PARTLY, FULLY)
    for target in other.target:
        target[0][target[0] == 0] = 2  # the label file says nothing about class 2
    with torch.no_grad():
        a, b = made.compute_losses(one), made.compute_losses(other)
    assert {k: v.item() for k, v in a.items()} == pytest.approx({k: v.item() for k, v in b.items()})


# ---- batches


def test_batches_hold_labelled_and_unlabelled_cases_one_to_one(tiny, trainer, own_results):
    """Fifteen partly labelled cases and one without labels: nnU-Net's own sampling would show that one hardly ever."""
    plans = write_variant(tiny.id, "ct4", {"batch_size": 4}, tiny.plans, overwrite=True).stem
    made = ready(trainer(PROPOSED, plans))
    pools = made.case_pools()
    assert len(pools["unlabelled"]) == len(pools["labelled"]) + 1  # each partly labelled case lacks something
    loader = made.dataloader_train.data_loader
    drawn = [loader.get_indices() for _ in range(200)]
    labelled, unlabelled = set(pools["labelled"]), set(pools["unlabelled"])
    assert all(len(i) == 4 and set(i[::2]) <= labelled and set(i[1::2]) <= unlabelled for i in drawn)
    assert {str(k) for i in drawn for k in i} == labelled | unlabelled
    assert len(made.dataloader_val.data_loader.get_indices()) == 4  # validation is nnU-Net's
    batch = next(made.dataloader_train)
    assert made.to_device(batch).annotated[::2, 1:].any(1).all()


def test_full_supervision_never_sees_a_case_without_labels(tiny, trainer, own_results):
    made = ready(trainer(f"{PROPOSED}FSLKD"))
    drawn = {str(k) for _ in range(200) for k in made.dataloader_train.data_loader.get_indices()}
    assert drawn == set(made.case_pools()["labelled"]) and not any(i.startswith("plain") for i in drawn)


@pytest.mark.parametrize("sizes", [(2,), (1, 1), (3, 3, 2), (5,), (1,)])
def test_pools_have_equal_shares_on_any_number_of_devices(sizes):
    np.random.seed(0)
    total, first = sum(sizes), np.cumsum([0, *sizes])
    counts = np.zeros(2)
    for _ in range(400):
        names = np.concatenate([Pools([["l1", "l2"], ["u"]], total, start).draw(n) for start, n in zip(first, sizes)])
        assert len(names) == total
        share = np.array([(np.char.startswith(names, i)).sum() for i in "lu"])
        assert abs(share[0] - share[1]) == total % 2  # the odd sample belongs to either
        counts += share
    assert counts[0] / counts.sum() == pytest.approx(0.5, abs=0.06)


def test_a_fully_labelled_dataset_is_said_to_be_one(tiny, trainer, own_results, monkeypatch):
    from nnunet_partial.labels import Annotations

    made = trainer(PROPOSED)
    made.annotations = Annotations(made.dataset_annotations.classes)
    made.initialize()
    made.check_cases(made.do_split()[0])
    log = next(Path(made.output_folder).glob("training_log*")).read_text()
    assert "every training case annotates every class" in log
    training, _ = made.get_tr_and_val_datasets()
    assert getattr(training, "pools", None) is None  # nothing to balance


# ---- networks


def test_the_student_is_a_light_teacher_and_is_deployed(tiny, trainer, own_results):
    made = ready(trainer(PROPOSED))
    size = {k: sum(p.numel() for p in m.network.parameters()) for k, m in made.members.items()}
    assert set(size) == {"network", "teacher1", "teacher2"} and size["network"] < size["teacher1"]
    built = made.build_network_architecture(made.plans_manager, made.configuration_manager, 1, 4, False)
    built.load_state_dict(made.deployed_weights())
    kinds = {k: type(unwrap(m.network).decoder.upsamplings[0]).__name__ for k, m in made.members.items()}
    assert kinds == {"network": "ConvTranspose3d", "teacher1": "ConvTranspose3d", "teacher2": "LinearUpsampling"}


def test_the_papers_size_on_request(tiny, trainer, own_results, monkeypatch):
    plans = write_variant(
        tiny.id,
        "ctpaper",
        {"patch_size": [16, 32, 32], "batch_size": 1, "cross_teaching": {"size": "paper"}},
        "nnUNetPlans",
        "3d_fullres",
        overwrite=True,
    ).stem
    made = trainer(PROPOSED, plans)
    network = made.build_network_architecture(made.plans_manager, made.configuration_manager, 1, 14)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 5.2
    made.network = network
    assert made._get_deep_supervision_scales() == [[1 / 2**i] * 3 for i in range(4)]


@pytest.mark.parametrize("name, configuration", [(PROPOSED, "2d"), (f"{PROPOSED}CTS", "2d")])
def test_two_dimensions_train_and_validate(tiny, trainer, own_results, name, configuration):
    made = ready(trainer(name, None, configuration))
    before = {k: [p.clone() for p in m.network.parameters()] for k, m in made.members.items()}
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])
    for k, m in made.members.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[k], m.network.parameters()))
    with torch.no_grad():
        made.on_validation_epoch_start()
        made.on_validation_epoch_end([made.validation_step(next(made.dataloader_val))])


def test_mixed_precision_and_compiled_networks(tiny, trainer, own_results):
    made = ready(trainer(PROPOSED))
    batch = batch_of(made, FULLY, UNLABELLED)
    with torch.no_grad():
        full = {k: v.item() for k, v in made.compute_losses(batch).items()}
    for member in made.members.values():
        member.network = torch.compile(member.network, backend="aot_eager")
    made.network = made.members["network"].network
    made.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    made.grad_scaler = torch.amp.GradScaler("cpu")
    with made.autocast(), torch.no_grad():
        half = {k: v.item() for k, v in made.compute_losses(batch).items()}
    # argmax labels may change where two classes are nearly equal
    assert half == pytest.approx(full, rel=0.1)
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])
    assert len(made._get_deep_supervision_scales()) == 2 and set(made.deployed_weights()) == set(
        made.build_network_architecture(made.plans_manager, made.configuration_manager, 1, 4).state_dict()
    )


# ---- commands, checkpoints, processes


def test_stock_train_and_predict(tiny, own_results, tmp_path, stock_predict, console):
    plans = write_variant(tiny.id, "ctstock", {"num_epochs": 1}, tiny.plans, overwrite=True).stem
    console("nnUNetv2_train", 501, "3d_fullres", 0, "-tr", PROPOSED, "-p", plans, "-device", "cpu")
    fold = own_results / tiny.name / f"{PROPOSED}__{plans}__3d_fullres" / "fold_0"
    assert len(read_json(fold / "validation" / "summary.json")["metric_per_case"]) == 3
    _, predicted = stock_predict(tiny, PROPOSED, plans, tmp_path, console)
    assert predicted.is_file()


def test_killed_and_continued_equals_uninterrupted(
    tiny, trainer, own_results, monkeypatch, train_and_be_killed, final_state, assert_same
):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    monkeypatch.setenv("nnUNet_results", str(own_results / "uninterrupted"))
    trainer(PROPOSED).run_training()
    killed = own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed(PROPOSED, tiny.plans, at_step=4)
    continued = trainer(PROPOSED, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 1
    continued.run_training()
    state = final_state(killed)
    assert_same(final_state(own_results / "uninterrupted"), state, exact=False)
    assert set(state["nnunet_partial"]["peers"]) == {"teacher1", "teacher2"}
    assert set(state["network_weights"]) == set(
        ResidualUSENet.from_plans(continued.configuration_manager, 1, 4, mobile=True).state_dict()
    )


@pytest.mark.parametrize("deep_supervision, annotated", [(True, "one process has all labels"), (False, "partly labelled")])
def test_two_processes_have_the_gradients_of_one(
    tiny, trainer, own_results, assert_two_processes_agree, deep_supervision, annotated
):
    """Also where heads that deep supervision alone uses get no gradient."""
    plans = write_variant(
        tiny.id, f"ctddp{int(deep_supervision)}", {"deep_supervision": deep_supervision}, tiny.plans, overwrite=True
    ).stem
    made = ready(trainer(PROPOSED, plans))
    rows = {"one process has all labels": (FULLY, UNLABELLED), "partly labelled": (PARTLY, FULLY)}[annotated]
    assert_two_processes_agree(made, batch_of(made, *rows), plans)


# ---- bad input


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"gamma": 0.5}, "gamma must be 0 or at least 1"),
        ({"weighting": "both"}, "paper, code"),
        ({"blocks_per_stage": [1, 2]}, "blocks_per_stage has 2 entries for 3 stages"),
        ({"blocks_per_stage": [1, 0, 2]}, "blocks_per_stage must be whole numbers"),
        ({"size": "paper"}, "divisible by 16"),
    ],
)
def test_bad_settings_are_one_line(tiny, trainer, own_results, refused, settings, word):
    plans = write_plans(tiny, lambda p: p["nnunet_partial"].update(cross_teaching=settings))
    assert word in refused(lambda: trainer(PROPOSED, plans))
    assert not any(own_results.iterdir())


def write_plans(tiny, change):
    import json

    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    plans["plans_name"] = f"{tiny.plans}_ctbad"
    change(plans)
    (tiny.preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    return plans["plans_name"]


def test_a_fold_without_labels_is_refused(tiny, trainer, own_results, refused, monkeypatch):
    made = trainer(PROPOSED)
    unlabelled = [i for i, c in made.dataset_annotations.cases.items() if not c.annotated]
    monkeypatch.setattr(made, "do_split", lambda: (unlabelled, []))
    assert "no training case that annotates anything" in refused(made.on_train_start)


def test_a_dataset_without_any_label_is_refused(tiny, own_results, refused):
    dataset_json = read_json(tiny.preprocessed / "dataset.json")
    for case in dataset_json["nnunet_partial"]["cases"].values():
        case["annotated"] = []
    plans = {**read_json(tiny.preprocessed / f"{tiny.plans}.json"), "continue_training": False}
    make = lambda: methods.nnUNetTrainerCrossTeaching(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    assert "no case annotates anything" in refused(make)
