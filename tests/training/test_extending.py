"""The example of docs/extending.md works as it stands there: it is found and trained by the stock command."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.files import load_checkpoint
from nnunet_partial.orchestration.compare.methods import find_methods

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
TRAINER = "nnUNetTrainerConfident"


@pytest.fixture(scope="module")
def my_methods(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my_methods")
    (folder / "confident.py").write_text(EXAMPLE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def example(my_methods):
    spec = importlib.util.spec_from_file_location("confident_example", my_methods / "confident.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stock_command_trains_it(tiny, my_methods, own_results):
    environment = {**os.environ, "nnUNet_extTrainer": str(my_methods), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    result = subprocess.run(
        [
            str(Path(sys.executable).parent / "nnUNetv2_train"),
            "501",
            "3d_fullres",
            "0",
            "-tr",
            TRAINER,
            "-p",
            tiny.plans,
            "-device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    model = own_results / tiny.name / f"{TRAINER}__{tiny.plans}__3d_fullres"
    logged = load_checkpoint(model / "fold_0" / "checkpoint_final.pth")["logging"]
    epochs = len(logged["train_losses"])
    assert epochs == 2 and all(np.isfinite(logged[f"loss/{i}"]).all() for i in ("marginal", "entropy"))
    total = np.add(logged["loss/marginal"], logged["loss/entropy"])
    assert total == pytest.approx(logged["train_losses"], rel=1e-4)
    # at most the weight times the entropy of a uniform prediction of four classes, and something
    assert all(0 < i <= 0.1 * np.log(4) + 1e-6 for i in logged["loss/entropy"])


def test_its_entropy_is_that_of_the_equation(example):
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    values = logits.detach().numpy().astype(np.float64)
    p = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    entropy = example.mean_entropy(logits)
    assert entropy.item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    entropy.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().max() > 0
    assert example.mean_entropy(torch.tensor([[[100.0]], [[-100.0]]]).transpose(0, 1)).item() == pytest.approx(0, abs=1e-6)


def test_a_comparison_can_name_it():
    assert find_methods([f"trainer={TRAINER}"])[TRAINER].trainer == TRAINER
