"""The example of docs/extending.md, a mean teacher, works as it stands there: it is found, set, trained, resumed, deployed."""

import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.files import load_checkpoint, read_json
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.orchestration.compare.methods import find_methods
from nnunet_partial.variants import write_variant

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "mean_teacher.py"
TRAINER = "nnUNetTrainerMeanTeacher"
CHANGES = {"num_epochs": 4, "save_every": 2, "optimizer": "sgd", "initial_lr": 0.01, "mean_teacher": {"decay": 0.7}}


@pytest.fixture
def found(monkeypatch):
    """nnU-Net searches the folder of the example, as the page says."""
    folders = [str(FILE.parent), *os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(i for i in folders if i))


@pytest.fixture
def plans(tiny, found):
    return write_variant(tiny.id, "mean", CHANGES, tiny.plans, overwrite=True, trainers=[TRAINER]).stem


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("mean_teacher_example", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_file():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert re.search(r"```python\n(.*?)```", page, re.DOTALL)[1] == FILE.read_text(encoding="utf-8")
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_stock_commands_train_it_with_its_own_settings(tiny, found, own_results, console):
    console(
        "nnunet_partial", "variant", tiny.id, "--base", tiny.plans, "--name", "own", "--overwrite",
        "--trainer", TRAINER, "--set", "mean_teacher.weight=2.5", "--set", "mean_teacher.ramp=0",
    )  # fmt: skip
    written = read_json(tiny.preprocessed / f"{tiny.plans}_own.json")["nnunet_partial"]
    assert written["mean_teacher"] == {"weight": 2.5, "ramp": 0} and written["trainers"] == {"mean_teacher": TRAINER}
    console("nnUNetv2_train", tiny.id, "3d_fullres", 0, "-tr", TRAINER, "-p", f"{tiny.plans}_own", "-device", "cpu")
    model = own_results / tiny.name / f"{TRAINER}__{tiny.plans}_own__3d_fullres"
    checkpoint = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    logged, own = checkpoint["logging"], checkpoint["nnunet_partial"]
    assert len(logged["train_losses"]) == 2
    assert all(np.isfinite(logged[f"loss/{i}"]).all() and min(logged[f"loss/{i}"]) > 0 for i in ("marginal", "consistency"))
    assert np.add(logged["loss/marginal"], logged["loss/consistency"]) == pytest.approx(logged["train_losses"], rel=1e-4)
    # what is deployed is the average; what goes on being trained is kept beside it
    assert all(torch.equal(v, own["averages"]["network"]["weights"][k]) for k, v in checkpoint["network_weights"].items())
    assert any(not torch.equal(v, own["trained_weights"][k]) for k, v in checkpoint["network_weights"].items())
    assert json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"]


def test_killed_and_continued_equals_uninterrupted(
    tiny, plans, trainer, own_results, monkeypatch, train_and_be_killed, final_state, assert_same
):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    whole, killed = own_results / "whole", own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(whole))
    trainer(TRAINER, plans).run_training()
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed(TRAINER, plans, at_step=2 * 2 + 2)  # in the middle of the third epoch
    continued = trainer(TRAINER, plans, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 2
    continued.run_training()
    assert_same(final_state(whole), final_state(killed))
    assert final_state(killed)["nnunet_partial"]["averages"]["network"]["num_updates"] == 8


def test_its_average_starts_from_pretrained_weights(tiny, plans, trainer, own_results):
    made = trainer(TRAINER, plans)
    made.initialize()
    pretrained = {k: v + 1 for k, v in unwrap(made.network).state_dict().items()}
    unwrap(made.network).load_state_dict(pretrained)  # as nnUNetv2_train -pretrained_weights does
    made.on_train_start()
    assert all(torch.equal(v, pretrained[k]) for k, v in made.averages["network"].state_dict().items())
    made.set_deep_supervision_enabled(True)
    made.train_step(next(made.dataloader_train))
    trained = unwrap(made.network).state_dict()
    for name, value in made.averages["network"].state_dict().items():
        torch.testing.assert_close(value, 0.7 * pretrained[name] + 0.3 * trained[name])


def test_its_average_is_what_validates(tiny, plans, trainer, own_results):
    made = trainer(TRAINER, plans)
    made.initialize()
    made.on_train_start()
    with torch.no_grad():
        for value in made.averages["network"].module.decoder.seg_layers[-1].parameters():
            value.zero_()  # then every voxel is background: no positive at all
        assert made.deployed_network is made.average_networks["network"]
        counts = made.validation_step(next(made.dataloader_val))
    assert counts["tp_hard"].sum() == counts["fp_hard"].sum() == 0 < counts["fn_hard"].sum()
    with made.deployed_as_network() as network:
        assert made.network is network is made.average_networks["network"]
    assert made.network is made.members["network"].network


def test_its_consistency_is_that_of_the_equation(example):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    student.requires_grad_()
    where = torch.tensor([[False, True, False], [False, True, True]])

    def probabilities(logits):
        values = np.exp(logits.detach().numpy().astype(np.float64))
        return values / values.sum(1, keepdims=True)

    squares = (probabilities(student) - probabilities(teacher)) ** 2
    expected = (squares * where.numpy()[:, :, None, None]).sum(1).mean()
    term = example.consistency(student, teacher, where)
    assert term.item() == pytest.approx(expected, rel=1e-5)
    term.backward()
    assert torch.isfinite(student.grad).all() and student.grad.abs().max() > 0
    assert example.consistency(student, student, where).item() == 0
    assert example.consistency(student, teacher, where & False).item() == 0


def test_a_comparison_can_name_it(found):
    method = find_methods([f"trainer={TRAINER}"])[TRAINER]
    assert (method.title, method.needs, method.settings_name) == ("Mean teacher", (), "mean_teacher")
