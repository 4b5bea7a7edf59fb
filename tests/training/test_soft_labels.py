"""Distillation and self-training from soft labels: the same as with the teachers in memory, and what is refused."""

import numpy as np
import pytest
import torch

from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.soft_labels import SoftLabels
from nnunet_partial.errors import UserError
from nnunet_partial.inference.pseudo_labels import pseudo_label
from nnunet_partial.variants import write_variant

CONFIGURATION = "3d_fullres"


@pytest.fixture(scope="module")
def soft(tiny, teachers, tmp_path_factory):
    """Soft labels of two cases of each source and the unlabelled one."""
    folder = tmp_path_factory.mktemp("soft") / "labels"
    pseudo_label(tiny.id, CONFIGURATION, folder, fold=0, plans=tiny.plans, soft=True, mirroring=False, progress=False)
    return folder


def plans_of(tiny, name, labels, **changes):
    settings = {"labels": str(labels), **changes}
    return write_variant(tiny.id, name, settings, base=tiny.plans, overwrite=True).stem


def batch_of_whole_images(tiny, folder):
    """A batch as loaders make it, but without augmentation: the corner of each image that a patch covers."""
    from nnunet_partial.inference.preprocessed import load_case

    labels = SoftLabels.of(LabelDirectory.read(folder))
    cases = [i for i in sorted(labels.directory.known) if i.startswith(("lits", "plain"))][:2]
    images = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    data, seg, soft = zip(*((*load_case(images, i)[:2], labels.load(i)[:]) for i in cases))
    return cases, *(np.stack(i) for i in (data, seg, soft))


@pytest.mark.parametrize("name", ["nnUNetTrainerMSKDLW", "nnUNetTrainerMSKDPlus"])
def test_soft_labels_take_the_teachers_place(tiny, teachers, trainer, soft, name):
    """The network, the images and nothing else decide: terms and gradients from soft labels are the teachers', up to rounding."""
    cases, data, seg, probabilities = batch_of_whole_images(tiny, soft)
    plans = {
        kind: plans_of(tiny, f"{kind}-teachers", soft if kind == "soft" else "None", mskd={"lambda_feature": 0, **more})
        if kind == "soft"
        else write_variant(tiny.id, "memory", {"mskd": {"lambda_feature": 0}}, base=tiny.plans, overwrite=True).stem
        for kind, more in (("soft", {"teachers": "soft"}), ("memory", {}))
    }
    losses, gradients = {}, {}
    for kind, plans_name in plans.items():
        made = trainer(name, plans_name)
        made.load_frozen()
        made.initialize()
        made.get_dataloaders()
        made.set_deep_supervision_enabled(True)
        outputs = made.network(torch.from_numpy(data))
        targets = [torch.nn.functional.interpolate(torch.from_numpy(seg).clamp(0).float(), i.shape[2:]) for i in outputs]
        sample = {"data": torch.from_numpy(data), "target": targets, "keys": cases, "soft": torch.from_numpy(probabilities)}
        terms = made.compute_losses(made.to_device(sample))
        assert (made.teachers is None) == (kind == "soft") and made.labels is None
        sum(terms.values()).backward()
        losses[kind] = {k: v.item() for k, v in terms.items()}
        gradients[kind] = torch.cat([p.grad.flatten() for p in made.network.parameters() if p.grad is not None])
    assert losses["soft"] == pytest.approx(losses["memory"], abs=2 / 255)
    assert all(losses["memory"][i] > 0 for i in ("organ", "background"))
    difference = (gradients["soft"] - gradients["memory"]).norm() / gradients["memory"].norm()
    assert difference < 0.02


@pytest.mark.parametrize(
    "name, mskd",
    [("nnUNetTrainerMSKDLW", True), ("nnUNetTrainerMSKDPlus", True), ("nnUNetTrainerSelfTrainingSoft", False)],
)
def test_a_training_from_soft_labels_needs_no_teacher(tiny, trainer, soft, own_results, name, mskd):
    """With an empty results folder there is none."""
    more = {"mskd": {"teachers": "soft", "lambda_feature": 0}} if mskd else {}
    made = trainer(name, plans_of(tiny, "from-soft", soft, num_epochs=1, **more))
    made.on_train_start()
    batch = made.to_device(next(made.dataloader_train))
    assert batch.soft.shape == (2, 3, *made.configuration_manager.patch_size) and batch.soft.dtype == torch.uint8
    assert "soft" not in next(made.dataloader_val)
    before = [p.detach().clone() for p in made.network.parameters()]
    losses = made.compute_losses(batch)
    assert set(losses) == set(made.loss_terms) and all(i.isfinite() for i in losses.values())
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])
    assert any(not torch.equal(i, j) for i, j in zip(before, made.network.parameters()))


def test_a_class_that_no_teacher_knows_is_learned_from_labels_alone(tiny, trainer, soft, own_results):
    """MSKDPlus; a method without a term on labels refuses it."""
    plans = plans_of(tiny, "from-soft", soft, mskd={"teachers": "soft", "lambda_feature": 0})
    made = trainer("nnUNetTrainerMSKDPlus", plans)
    labels = made.soft
    made.soft = SoftLabels(labels.directory, labels.models[:2])  # no pancreas
    assert made.unknown_to_teachers == (3,) and made.taught_classes(made.do_split()[0]) == {"liver", "kidney", "pancreas"}
    made = trainer("nnUNetTrainerMSKDLW", plans)
    made.soft = SoftLabels(labels.directory, labels.models[:2])
    with pytest.raises(UserError, match="annotates pancreas, so nothing teaches"):
        made._find_untaught(made.do_split()[0])


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("nnUNetTrainerMSKD", {"mskd": {"teachers": "soft"}}, "Set mskd.lambda_feature=0, or train nnUNetTrainerMSKDLW"),
        ("nnUNetTrainerMSKDLW", {"mskd": {"teachers": "soft", "sources": ["lits"]}}, "mskd.sources has no effect"),
        ("nnUNetTrainerMSKDLW", {"mskd": {"teachers": "soft"}, "labels": None}, "--soft && nnunet_partial variant"),
        ("nnUNetTrainerSelfTrainingSoft", {"labels": None}, "needs the setting labels, a directory of soft labels"),
    ],
)
def test_settings_that_soft_labels_cannot_heed(tiny, trainer, soft, own_results, refused, name, changes, words):
    plans = plans_of(tiny, "refused", **{"labels": soft, **changes}) if changes.get("labels", soft) else None
    if plans is None:
        plans = write_variant(tiny.id, "refused", {k: v for k, v in changes.items() if v}, base=tiny.plans, overwrite=True).stem
    assert words in refused(lambda: trainer(name, plans))
    assert not any(own_results.iterdir())


def test_labels_without_probabilities_are_refused(tiny, trainer, own_results, write_labels, tmp_path, refused):
    hard = write_labels(tiny, tmp_path / "hard")
    plans = plans_of(tiny, "hard", hard, mskd={"teachers": "soft"})
    line = refused(lambda: trainer("nnUNetTrainerMSKDLW", plans))
    assert "has no soft labels" in line and "--soft" in line


def test_pseudo_labels_can_be_made_with_plans_that_learn_from_soft_labels(tiny, teachers, soft):
    """So that the command of the error above works: teachers are then found by convention."""
    from nnunet_partial.files import read_json
    from nnunet_partial.labels import Annotations
    from nnunet_partial.networks.teachers import find_teachers
    from nnunet_partial.settings import MSKDSettings

    plans = read_json(tiny.preprocessed / f"{plans_of(tiny, 'from-soft', soft, mskd={'teachers': 'soft'})}.json")
    found = find_teachers(Annotations.read(tiny.preprocessed), MSKDSettings(teachers="soft"), plans, CONFIGURATION, 0)
    assert [i.source for i in found] == ["kits", "lits", "nih"]
