"""What each trainer's step does to whom, on a batch of the tiny dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.files import read_json
from nnunet_partial.trainers.ms_kd import at_resolution
from nnunet_partial.variants import write_variant


def ready(made):
    """A trainer with networks, teachers and a batch."""
    made.load_frozen()
    made.initialize()
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    made.set_deep_supervision_enabled(True)
    return made, made.to_device(next(made.dataloader_train))


def with_annotated(batch, annotated):
    from nnunet_partial.losses.partial import groups_from_annotated

    batch.annotated = torch.tensor(annotated, dtype=torch.bool)
    batch.groups = groups_from_annotated(batch.annotated)
    return batch


def test_batch_knows_what_its_cases_annotate(tiny, trainer, own_results):
    made, batch = ready(trainer("nnUNetTrainerPartial"))
    expected = {"lits": [1, 1, 0, 0], "kits": [1, 0, 1, 0], "nih": [1, 0, 0, 1], "plain": [1, 0, 0, 0]}
    for _ in range(5):
        assert batch.annotated.int().tolist() == [expected[i.split("_")[0]] for i in batch.cases]
        for sample, annotated in zip(batch.target[0], batch.annotated):
            assert set(sample.unique().int().tolist()) <= set(torch.nonzero(annotated).flatten().tolist())
        batch = made.to_device(next(made.dataloader_train))


def test_all_annotated_is_nnunets_own_loss(tiny, trainer, own_results):
    """At every resolution, in value and gradient (float32)."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    made, batch = ready(trainer("nnUNetTrainerPartial"))
    with_annotated(batch, [[1, 1, 1, 1]] * len(batch.cases))
    values, gradients = [], []
    for loss in (lambda out: made.marginal_loss(out, batch), lambda out: nnUNetTrainer._build_loss(made)(out, batch.target)):
        made.network.zero_grad()
        values.append(loss(made.network(batch.data)))
        values[-1].backward()
        gradients.append([p.grad.clone() for p in made.network.parameters() if p.grad is not None])
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_nothing_annotated_leaves_the_network_unchanged(tiny, trainer, own_results):
    made, batch = ready(trainer("nnUNetTrainerPartial"))
    with_annotated(batch, [[1, 0, 0, 0]] * len(batch.cases))
    loss = made.compute_losses(batch)["marginal"]
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in made.network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "name, terms",
    [
        ("nnUNetTrainerMSKD", {"organ", "background", "feature"}),
        ("nnUNetTrainerMSKDLW", {"organ", "background"}),
        ("nnUNetTrainerMSKDPlus", {"organ", "background", "feature", "marginal"}),
    ],
)
def test_mskd_teaches_the_student_alone(tiny, teachers, trainer, name, terms):
    made, batch = ready(trainer(name))
    before = [{k: v.clone() for k, v in t.state_dict().items()} for t in made.teachers]
    losses = made.compute_losses(batch)
    assert set(losses) == terms and all(i.ndim == 0 and i.isfinite() for i in losses.values())
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in made.network.parameters())
    for teacher, weights in zip(made.teachers, before):
        assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
        assert all(torch.equal(v, weights[k]) for k, v in teacher.state_dict().items())
    assert [t.classes for t in made.teachers] == [(2,), (1,), (3,)]  # kits, lits, nih


def test_mskd_does_not_look_at_labels(tiny, teachers, trainer):
    made, batch = ready(trainer("nnUNetTrainerMSKD"))
    first = made.compute_losses(batch)
    batch.target = [torch.randint_like(i, 4) for i in batch.target]
    for name, value in made.compute_losses(batch).items():
        assert torch.equal(value, first[name])


def test_mskd_is_equation_8(tiny, teachers, trainer):
    """The step's terms against an independent float64 reading, deep supervision included."""
    made, batch = ready(trainer("nnUNetTrainerMSKD"))
    features = []
    for network in [made.network, *(t.network for t in made.teachers)]:
        network.decoder.stages[-2].register_forward_hook(lambda m, i, o: features.append(o.detach().double().numpy()))
    with torch.no_grad():
        losses = {k: v.item() for k, v in made.compute_losses(batch).items()}
        teacher_logits = [t(batch.data)[0].double().numpy() for t in made.teachers]
        outputs = [i.double().numpy() for i in made.network(batch.data)]
    teacher_features, student_features = features[:3], features[3]

    def softmax(x):
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def kl(p, q):
        return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1)) - np.log(q)), 0).sum(1)

    def nearest(x, shape):
        index = [np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, x.shape[2:])]
        return x[np.ix_(range(len(x)), range(x.shape[1]), *index)]

    organ = background = 0
    for weight, logits in zip(made.deep_supervision_weights(), outputs):
        transferred, regions = [], []
        for teacher, value in zip(teacher_logits, (2, 1, 3)):
            reduced = nearest(teacher, logits.shape[2:])
            placed = np.zeros(logits.shape)
            placed[:, [0, value]] = softmax(reduced)
            transferred.append(placed)
            regions.append(reduced[:, 1] > reduced[:, 0])
        student, voxels = softmax(logits), regions[0].size
        organ += weight * sum((kl(q, student) * m).sum() for q, m in zip(transferred, regions)) / voxels
        everywhere_background = ~np.any(regions, axis=0)
        background += weight * (kl(np.mean(transferred, axis=0), student) * everywhere_background).sum() / voxels
    feature = 0
    for teacher, logits in zip(teacher_features, teacher_logits):
        mask = nearest((logits[:, 1:] > logits[:, :1]).astype(float), teacher.shape[2:])[:, 0]
        feature += (kl(np.sort(softmax(teacher), 1), np.sort(softmax(student_features), 1)) * mask).sum() / mask.size
    assert losses["organ"] == pytest.approx(organ, rel=1e-4)
    assert losses["background"] == pytest.approx(background, rel=1e-4)
    assert losses["feature"] == pytest.approx(10 * feature, rel=1e-4, abs=1e-6)
    assert made.deep_supervision_weights()[0] == 1 and len(outputs) == 2


def test_lower_resolutions_use_the_voxels_that_nnunet_uses_for_labels():
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    labels = torch.randint(0, 3, (1, 12, 10, 8))
    _, reduced = DownsampleSegForDSTransform([[1, 1, 1], [0.5, 0.5, 0.25]])._apply_to_segmentation(labels)
    onehot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert torch.equal(at_resolution(onehot, (6, 5, 2)).argmax(1), reduced.long())


def test_features_are_taken_through_torch_compile(tiny, teachers, trainer):
    made, batch = ready(trainer("nnUNetTrainerMSKD"))
    plain = made.compute_losses(batch)
    made.network = torch.compile(made.network, backend="aot_eager")
    for teacher in made.teachers:
        teacher.network = torch.compile(teacher.network, backend="aot_eager")
    compiled = made.compute_losses(batch)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-6)


def test_individual_sees_its_own_classes_numbered_from_one(tiny, trainer, own_results):
    plans = write_variant(tiny.id, "nih", {"source": "nih"}, tiny.plans).stem
    made, _ = ready(trainer("nnUNetTrainerIndividual", plans))
    assert made.dataset_json["labels"] == {"background": 0, "pancreas": 1}
    assert set(made.dataset_json["nnunet_partial"]["cases"]) == {f"nih_{i:03d}" for i in range(10, 15)}
    assert made.label_manager.num_segmentation_heads == 2
    seen = set()
    for _ in range(10):
        batch = made.to_device(next(made.dataloader_train))
        assert all(i.startswith("nih_") for i in batch.cases) and batch.annotated.all()
        seen |= set(batch.target[0].unique().int().tolist())
    assert seen == {0, 1}


def test_online_validation_counts_annotated_classes_only(tiny, trainer, own_results):
    made, _ = ready(trainer("nnUNetTrainerPartial"))
    made.network.eval()
    batch = next(made.dataloader_val)
    annotated = made.annotated_lookup(batch["keys"])
    with torch.no_grad():
        counts = made.validation_step(batch)
    nowhere = ~annotated[:, 1:].any(0).numpy()
    assert nowhere.any()
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        assert counts[name].shape == (3,) and not counts[name][nowhere].any()


def test_an_epoch_without_annotated_classes_does_not_poison_the_running_mean(tiny, trainer, own_results):
    made, _ = ready(trainer("nnUNetTrainerPartial"))
    some = {"loss": np.float32(1), "tp_hard": np.array([4.0, 0, 0]), "fp_hard": np.array([1.0, 0, 0]), "fn_hard": np.zeros(3)}
    none = {**some, "tp_hard": np.zeros(3), "fp_hard": np.zeros(3)}
    for epoch, output in enumerate([none, some, none, some]):
        made.current_epoch = epoch
        made.on_validation_epoch_end([output])
    dice = 8 / 9
    assert made.logger.get_value("mean_fg_dice", None) == pytest.approx([0, dice, dice, dice])
    assert np.isfinite(made.logger.get_value("ema_fg_dice", None)).all()


def change_plans(tiny, name, **settings):
    """A variant written by hand, as a user's editor would."""
    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    plans.update(
        plans_name=f"{tiny.plans}_{name}", nnunet_partial={**plans["nnunet_partial"], "base_plans": tiny.plans, **settings}
    )
    (tiny.preprocessed / f"{tiny.plans}_{name}.json").write_text(json.dumps(plans))
    return plans["plans_name"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"epochs": 3}, ("unknown setting epochs", "num_epochs")),
        ({"num_epochs": 0}, ("num_epochs", "at least 1", "found 0")),
        ({"optimizer": "lamb"}, ("optimizer", "sgd, adam, adamw")),
        ({"mskd": {"lambda_features": 1}}, ("mskd.lambda_features", "mskd.lambda_feature")),
    ],
)
def test_bad_settings_end_before_anything_is_written(tiny, trainer, own_results, refused, settings, words):
    plans = change_plans(tiny, "bad", **settings)
    error = refused(lambda: trainer("nnUNetTrainerPartial", plans))
    assert all(i in error for i in words) and plans in error
    assert not any(own_results.iterdir())


def test_a_teacher_has_no_place_for_completed_labels(tiny, trainer, own_results, refused):
    plans = change_plans(tiny, "completed", source="kits", labels=str(own_results))
    error = refused(lambda: trainer("nnUNetTrainerIndividual", plans))
    assert plans in error and "--set labels=None" in error


def test_a_missing_teacher_is_named_with_the_command_that_trains_it(tiny, trainer, own_results, refused):
    error = refused(lambda: trainer("nnUNetTrainerMSKD"))
    assert "the teachers of the sources 'kits', 'lits', 'nih' are missing" in error
    assert f"nnunet_partial variant 501 --base {tiny.plans} --per-source && " in error
    for source in ("kits", "lits", "nih"):  # each with the plans of the student, on its device
        assert f"nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerIndividual -p {tiny.plans}_{source} -device cpu" in error
    assert not any(own_results.iterdir())


def spoiled_teacher(tiny, teachers, tmp_path, file, change):
    import shutil

    model = tmp_path / "elsewhere"
    shutil.copytree(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_kits__3d_fullres", model)
    content = read_json(model / file)
    change(content)
    (model / file).write_text(json.dumps(content))
    return change_plans(tiny, "spoiled", mskd={"teachers": {"kits": str(model)}}), model


def other_spacing(plans):
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("plans.json", other_spacing, ("spacing [1.0, 1.0, 1.0]", "[2.5, 2.0, 2.0]")),
        (
            "plans.json",
            lambda p: p["foreground_intensity_properties_per_channel"]["0"].update(mean=0.0),
            ("foreground_intensity",),
        ),
        ("dataset.json", lambda d: d.update(labels={"background": 0, "spleen": 1}), ("segments spleen", "kidney")),
        ("dataset.json", lambda d: d.update(labels={"background": 0, "liver": 1}), ("segments liver", "kidney")),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tiny, teachers, trainer, tmp_path, refused, file, change, words):
    plans, model = spoiled_teacher(tiny, teachers, tmp_path, file, change)
    error = refused(lambda: trainer("nnUNetTrainerMSKD", plans))
    assert str(model) in error and "nnUNetv2_train" in error and all(i in error for i in words)


def test_a_teacher_of_another_configuration_is_refused(tiny, teachers, trainer, tmp_path, refused):
    """nnU-Net's folders are named after the configuration; the plans of both hold every configuration."""
    import shutil

    model = tmp_path / f"nnUNetTrainerIndividual__{tiny.plans}_kits__2d"
    shutil.copytree(teachers / f"nnUNetTrainerIndividual__{tiny.plans}_kits__3d_fullres", model)
    plans = change_plans(tiny, "flat", mskd={"teachers": {"kits": str(model)}})
    error = refused(lambda: trainer("nnUNetTrainerMSKD", plans))
    assert str(model) in error and "spacing [2.0, 2.0]" in error and "[2.5, 2.0, 2.0]" in error


def test_a_plain_nnunet_model_serves_as_teacher(tiny, teachers, trainer, tmp_path):
    """Stock trainer, stock checkpoint (numpy scalars in its log), folder somewhere else."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    model = tmp_path / "plain"
    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    dataset_json = {k: v for k, v in read_json(tiny.preprocessed / "dataset.json").items() if k != "nnunet_partial"}
    dataset_json["labels"] = {"background": 0, "pancreas": 1}
    stock = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    stock.initialize()
    stock.logger.local_logger.my_fantastic_logging["train_losses"].append(np.float64(0.5))
    (model / "fold_0").mkdir(parents=True)
    stock.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
        (model / name).write_text(json.dumps(content))
    with pytest.raises(Exception, match="weights_only|Weights only"):
        torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)

    made, batch = ready(trainer("nnUNetTrainerMSKD", change_plans(tiny, "plain", mskd={"teachers": {"nih": str(model)}})))
    teacher = made.teachers[2]
    assert teacher.files.folder == model and teacher.classes == (3,)
    stock.set_deep_supervision_enabled(False)
    stock.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher(batch.data)[0].clone(), stock.network(batch.data))


def test_naive_takes_partial_labels_at_face_value(tiny, trainer, own_results):
    made, batch = ready(trainer("nnUNetTrainerNaive"))
    assert batch.annotated.all()
    assert not any(i.startswith("plain") for i in made.do_split()[0])


def test_splits_spread_every_source_over_every_fold(tiny, trainer, own_results):
    trainer("nnUNetTrainerPartial").do_split()
    splits = read_json(tiny.preprocessed / "splits_final.json")
    assert len(splits) == 5
    for fold in splits:
        assert sorted(i.split("_")[0] for i in fold["val"]) == ["kits", "lits", "nih"]
        assert "plain_015" in fold["train"] and not set(fold["train"]) & set(fold["val"])
    assert sorted(i for fold in splits for i in fold["val"]) == sorted(
        i.stem for i in Path(tiny.preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl") if not i.stem.startswith("plain")
    )


@pytest.mark.parametrize("name", ["nnUNetTrainerPartial", "nnUNetTrainerNaive"])
def test_what_learns_from_annotations_alone_is_not_shown_other_cases(tiny, trainer, own_results, name, monkeypatch, refused):
    made = trainer(name)
    training, validating = made.do_split()
    annotated = {i for i, case in made.dataset_annotations.cases.items() if case.annotated}
    assert set(training) <= annotated and len(training) > 1 and len(validating) > 1
    plain = sorted(set(made.dataset_annotations.cases) - annotated)
    monkeypatch.setattr(type(made).__mro__[2], "do_split", lambda self: (plain, validating))
    assert "has no training case that annotates anything" in refused(made.do_split)


def test_the_final_validation_can_be_left_out_and_done_later(tiny, trainer, own_results, monkeypatch):
    """With final_validation=false a run that has trained predicts nothing; ``--val``, which trains nothing, does."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_partial.variants import write_variant

    validated = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save: validated.append(self.has_trained))
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    quick = write_variant(tiny.id, "unvalidated", {"final_validation": False}, tiny.plans, overwrite=True)
    for plans, trains in ((quick.stem, True), (quick.stem, False), (tiny.plans, True)):
        made = trainer("nnUNetTrainerPartial", plans)
        made.initialize()
        if trains:
            made.on_train_start()
        made.perform_actual_validation(False)
    assert validated == [False, True]
