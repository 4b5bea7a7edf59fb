"""Two processes with half a batch each have the gradients of one process with the whole batch."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("ddp_worker.py")


def load_worker():
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# 3d_fullres of this dataset has sample Dice, 2d has batch Dice
@pytest.mark.parametrize("name, configuration, annotated", [
    ("nnUNetTrainerPartial", "2d", [[1, 1, 0, 1], [1, 0, 1, 1]]),
    ("nnUNetTrainerPartial", "3d_fullres", [[1, 1, 0, 0], [1, 1, 1, 1]]),
    ("nnUNetTrainerPartial", "3d_fullres", [[1, 0, 0, 0], [1, 0, 0, 1]]),
    ("nnUNetTrainerMSKDPlus", "3d_fullres", [[1, 1, 0, 0], [1, 0, 1, 0]]),
])
def test_two_processes_have_the_gradients_of_one(tiny, teachers, trainer, tmp_path, name, configuration, annotated):
    worker = load_worker()
    single = trainer(name, configuration=configuration)
    single.initialize()
    single.load_frozen()
    single.dataloader_train, _ = single.get_dataloaders()
    batch = single.to_device(next(single.dataloader_train))
    batch = worker.part(batch, [0, 1])
    batch.annotated = torch.tensor(annotated, dtype=torch.bool)
    batch.groups = worker_groups(batch.annotated)
    expected = worker.gradients(single, batch)

    file = tmp_path / "batch.pth"
    torch.save({"weights": single.network.state_dict(), "batch": batch}, file)
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(rank), str(tmp_path / "rendezvous"), str(file), name,
                                   tiny.plans, configuration], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
                 for rank in range(2)]
    errors = [i.communicate(timeout=900)[1] for i in processes]
    assert [i.returncode for i in processes] == [0, 0], errors
    found = torch.load(f"{file}.gradients", weights_only=False)
    assert set(expected) <= set(found)
    largest = max(i.abs().max() for i in expected.values())
    for key, gradient in expected.items():
        # the lowest output has weight 0 on one process and 1e-6 under DDP, which needs every parameter to be used
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=float(5e-6 * largest), msg=lambda m: f"{key}: {m}")


def worker_groups(annotated):
    from nnunet_partial.losses.partial import groups_from_annotated

    return groups_from_annotated(annotated)
