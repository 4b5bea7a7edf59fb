"""DoDNet and conditionCNN through the real trainer: steps, resume, stock prediction, export."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_partial.errors import UserError
from nnunet_partial.files import load_checkpoint
from nnunet_partial.inference.export import export_model
from nnunet_partial.labels import Annotations, Union
from nnunet_partial.orchestration.compare.methods import METHODS
from nnunet_partial.variants import write_variant

NAMES = ("nnUNetTrainerDoDNet", "nnUNetTrainerConditionCNN")


def ready(made):
    made.initialize()
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    made.set_deep_supervision_enabled(True)
    return made, made.to_device(next(made.dataloader_train))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_step_learns_from_annotated_classes_alone(tiny, trainer, own_results, name, configuration):
    """Every weight has a gradient; an organ in the label that the case does not annotate changes nothing."""
    made, batch = ready(trainer(name, configuration=configuration))
    asked = []
    made.network.register_forward_pre_hook(lambda module, arguments: asked.append(arguments[1].tolist()))
    losses = made.compute_losses(batch)
    losses["binary"].backward()
    lowest = {f"decoder.seg_layers.0.{i}" for i in ("weight", "bias")}  # nnU-Net gives the lowest resolution no weight
    assert {k for k, p in made.network.named_parameters() if p.grad is None} <= lowest
    organs = {"lits": 0, "kits": 1, "nih": 2}
    assert asked == [[[i, organs[case.split("_")[0]]] for i, case in enumerate(batch.cases)]]  # one head for each case

    unknown = [int((~row).nonzero()[0]) for row in batch.annotated]
    for target in batch.targets:
        for sample, value in zip(target, unknown):
            sample[sample == 0] = value
    assert torch.equal(made.compute_losses(batch)["binary"], losses["binary"])


@pytest.mark.parametrize("name", NAMES)
def test_deep_supervision_is_the_weighted_sum_over_resolutions(tiny, trainer, own_results, name):
    made, batch = ready(trainer(name))
    pairs = made.pairs(batch)
    with torch.no_grad():
        outputs = made.network(batch.data, pairs)
        assert len(outputs) == len(batch.targets) == 2
        expected = sum(
            weight * made.loss.loss(i, target, pairs, 3)
            for weight, i, target in zip(made.deep_supervision_weights(), outputs, batch.targets)
        )
        assert made.compute_losses(batch)["binary"].item() == pytest.approx(expected.item(), rel=1e-6)
        assert made.marginal_loss(made.network(batch.data), batch).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_deep_supervision(tiny, trainer, own_results, name):
    plans = write_variant(tiny.id, "flat", {"deep_supervision": False}, tiny.plans, overwrite=True).stem
    made, batch = ready(trainer(name, plans))
    assert made.compute_losses(batch)["binary"].isfinite()
    assert made.network(batch.data).shape == (2, 4, *batch.data.shape[2:])


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_continued_equals_uninterrupted(
    tiny, trainer, own_results, monkeypatch, train_and_be_killed, final_state, assert_same, name
):
    plans = write_variant(tiny.id, "onewise", {"num_epochs": 3, "save_every": 1}, tiny.plans, overwrite=True).stem
    uninterrupted, killed = own_results / "uninterrupted", own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(uninterrupted))
    trainer(name, plans).run_training()
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed(name, plans, at_step=2 * 2 + 1)
    continued = trainer(name, plans, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 2
    continued.run_training()
    assert_same(final_state(uninterrupted), final_state(killed))
    checkpoint = load_checkpoint(next(killed.rglob("checkpoint_final.pth")))
    assert len(checkpoint["logging"]["loss/binary"]) == 3


@pytest.mark.parametrize("name", NAMES)
def test_stock_commands_train_validate_and_predict_the_strongest_class_above_one_half(tiny, own_results, tmp_path, console, name):
    method = ["-tr", name, "-p", tiny.plans, "-device", "cpu"]
    console("nnUNetv2_train", tiny.id, "3d_fullres", 0, *method)
    model = own_results / tiny.name / f"{name}__{tiny.plans}__3d_fullres"
    assert (model / "fold_0" / "validation" / "summary.json").is_file()

    (tmp_path / "images").mkdir()
    image = next((tiny.folders.raw / tiny.name / "imagesTr").glob("lits_*.nii.gz"))
    (tmp_path / "images" / image.name).symlink_to(image)
    folders = ["-i", tmp_path / "images", "-o", tmp_path / "out", "-d", tiny.id, "-c", "3d_fullres", "-f", 0]
    console("nnUNetv2_predict", *folders, *method, "--disable_tta", "--save_probabilities", "-npp", 1, "-nps", 1)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(next((tmp_path / "out").glob("*.nii.gz")))))
    probabilities = np.load(next((tmp_path / "out").glob("*.npz")))["probabilities"]
    scores = np.log(probabilities[1:].astype(np.float64)) - np.log(probabilities[:1].astype(np.float64))  # the logits s_k
    strongest = np.where(scores.max(0) > 0, scores.argmax(0) + 1, 0)
    assert (found == strongest).mean() > 0.999 and found.shape == (20, 24, 24)  # probabilities may be rounded to ties

    with pytest.raises(UserError, match="Predict with it where nnunet_partial is installed"):
        export_model(model, tmp_path / "exported")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_no_case_annotates_is_never_predicted(tiny, trainer, own_results, name):
    made, batch = ready(trainer(name))
    made.untaught = (2,)
    made._mask_untaught()
    made.train_step({"data": batch.data, "target": batch.target, "keys": list(batch.cases)})
    made.set_deep_supervision_enabled(False)
    assert (made.network(batch.data)[:, 2] == -200).all()


@pytest.mark.parametrize("name", NAMES)
def test_plans_of_another_architecture_are_one_line(tiny, trainer, own_results, refused, name, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(lambda *_: torch.nn.Conv3d(1, 2, 3)))
    assert "Take plans of nnU-Net's U-Nets" in refused(lambda: trainer(name))
    assert not list(own_results.rglob("fold_0"))


def test_unions_are_one_line(tiny, trainer, own_results, refused, monkeypatch):
    monkeypatch.setattr(Annotations, "unions", (Union(("liver", "kidney")),))
    assert "cases annotate liver+kidney as one structure" in refused(lambda: trainer(NAMES[0]))


def test_compare_knows_them():
    assert [METHODS[i].trainer for i in ("dodnet", "conditioncnn")] == list(NAMES)
    assert not any(METHODS[i].needs for i in ("dodnet", "conditioncnn"))
