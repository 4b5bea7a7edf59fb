"""benchmarks/trainers/averaged.py: the training is the method's own, and its average predicts."""

import os
from pathlib import Path

import pytest
import torch

from nnunet_partial.files import load_checkpoint
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.variants import write_variant

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "trainers"


@pytest.fixture
def found(monkeypatch):
    folders = [str(FOLDER), *os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(i for i in folders if i))


def test_training_is_the_methods_own_and_the_average_predicts(tiny, found, trainer, own_results):
    changes = {"num_epochs": 3, "num_iterations_per_epoch": 2, "seed": 1, "final_validation": False}
    plans = write_variant(tiny.id, "averaged", changes, tiny.plans, overwrite=True).stem
    checkpoints = {}
    for name in ("nnUNetTrainerPartial", "nnUNetTrainerPartialAveraged"):
        trainer(name, plans).run_training()
        model = own_results / tiny.name / f"{name}__{plans}__3d_fullres"
        checkpoints[name] = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    plain, averaged = checkpoints.values()
    trained, average = (averaged["nnunet_partial"][i] for i in ("trained_weights", "averages"))
    predicts = averaged["network_weights"]
    assert all(torch.equal(v, plain["network_weights"][k]) for k, v in trained.items())
    assert all(torch.equal(v, average["network"]["weights"][k]) for k, v in predicts.items())
    assert any(not torch.equal(v, trained[k]) for k, v in predicts.items())
    assert average["network"]["num_updates"] == 6


@pytest.mark.parametrize("name, needs", [("Partial", ()), ("SelfTraining", ("teachers", "labels"))])
def test_compare_knows_what_an_averaged_method_needs(found, name, needs):
    (method,) = find_methods([f"trainer=nnUNetTrainer{name}Averaged"]).values()
    assert (method.title, method.needs) == (f"{name}, averaged", needs)
