"""The setting ema_decay, and benchmarks/trainers/averaged.py: the training is the method's own, and its average predicts."""

import os
from pathlib import Path

import pytest
import torch

from nnunet_partial.errors import UserError
from nnunet_partial.files import load_checkpoint
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.settings import RunSettings
from nnunet_partial.variants import write_variant

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "trainers"


@pytest.fixture
def found(monkeypatch):
    folders = [str(FOLDER), *os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(i for i in folders if i))


@pytest.fixture(scope="module")
def labels(tiny, write_labels, tmp_path_factory):
    return write_labels(tiny, tmp_path_factory.mktemp("averaged") / "labels")


@pytest.fixture
def trained(tiny, trainer, own_results, labels):
    """``trained(name, **settings)`` -> the final checkpoint of six seeded steps of a trainer."""

    def train(name, **settings):
        changes = {"num_epochs": 3, "num_iterations_per_epoch": 2, "seed": 1, "final_validation": False, **settings}
        changes |= {} if name.startswith("nnUNetTrainerPartial") else {"labels": str(labels)}
        plans = write_variant(tiny.id, "averaged", changes, tiny.plans, overwrite=True).stem
        trainer(name, plans).run_training()
        return load_checkpoint(own_results / tiny.name / f"{name}__{plans}__3d_fullres" / "fold_0" / "checkpoint_final.pth")

    return train


@pytest.mark.parametrize(
    "plain, averaged, settings, averages",
    (
        ("Partial", "PartialAveraged", {}, 1),
        ("Partial", "Partial", {"ema_decay": 0.5}, 1),
        ("SelfTraining", "SelfTraining", {"ema_decay": 0.5}, 1),
        ("SelfTrainingFocal", "SelfTrainingFocal", {"ema_decay": 0.5}, 1),
        ("CoTrainingCT", "CoTrainingCT", {"ema_decay": 0.5}, 2),
    ),
)
def test_training_is_the_methods_own_and_the_average_predicts(found, trained, plain, averaged, settings, averages):
    before, after = trained(f"nnUNetTrainer{plain}"), trained(f"nnUNetTrainer{averaged}", **settings)
    own = after["nnunet_partial"]
    deployed = own.get("deployed", "network")
    assert same(own["trained_weights"], before["nnunet_partial"].get("trained_weights", before["network_weights"]))
    for name, peer in own["peers"].items():
        assert same(peer["network_weights"], before["nnunet_partial"]["peers"][name]["network_weights"])
    assert len(own["averages"]) == averages and own["averages"][deployed]["num_updates"] == 6
    assert same(after["network_weights"], own["averages"][deployed]["weights"])
    is_trained = own["trained_weights"] if deployed == "network" else own["peers"][deployed]["network_weights"]
    assert not same(after["network_weights"], is_trained)


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(v, others[k]) for k, v in weights.items())


def test_the_average_validates_and_is_the_mean_of_equation_3(tiny, trainer, own_results):
    changes = {"num_iterations_per_epoch": 2, "seed": 1, "ema_decay": 0.5}
    made = trainer("nnUNetTrainerPartial", write_variant(tiny.id, "mean", changes, tiny.plans, overwrite=True).stem)
    made.initialize()
    made.on_train_start()
    name = next(iter(dict(made.network.named_parameters())))
    expected = made.network.get_parameter(name).detach().double().clone()
    for _ in range(3):
        made.train_step(next(made.dataloader_train))
        expected = 0.5 * expected + 0.5 * made.network.get_parameter(name).detach().double()
    assert made.deployed_network is made.averages["network"].module
    torch.testing.assert_close(made.deployed_network.get_parameter(name).double(), expected, rtol=1e-5, atol=1e-7)


def test_a_method_with_averages_of_its_own_keeps_its_decay(tiny, labels, trainer, own_results):
    changes = {"labels": str(labels), "ema_decay": 0.5, "co_training": {"ema_decay": 0.9}}
    made = trainer("nnUNetTrainerCoTraining", write_variant(tiny.id, "own", changes, tiny.plans, overwrite=True).stem)
    made.initialize()
    assert {i.decay for i in made.averages.values()} == {0.9}


def test_an_average_that_never_changes_is_refused():
    with pytest.raises(UserError, match="ema_decay must be below 1, found 1.0"):
        RunSettings.from_plans({"nnunet_partial": {"ema_decay": 1}})


def test_an_average_that_would_keep_its_start_is_warned_of(tiny, trainer, own_results):
    changes = {"num_epochs": 1, "num_iterations_per_epoch": 2, "ema_decay": 0.99, "final_validation": False}
    made = trainer("nnUNetTrainerPartial", write_variant(tiny.id, "slow", changes, tiny.plans, overwrite=True).stem)
    made.run_training()
    assert "WARNING: ema_decay 0.99 averages over about 100 steps" in Path(made.log_file).read_text()


@pytest.mark.parametrize("name, needs", [("Partial", ()), ("SelfTraining", ("teachers", "labels"))])
def test_compare_knows_what_an_averaged_method_needs(found, name, needs):
    (method,) = find_methods([f"trainer=nnUNetTrainer{name}Averaged"]).values()
    assert (method.title, method.needs) == (f"{name}, averaged", needs)
