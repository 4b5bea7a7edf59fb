"""Training in this process, without nnU-Net's final validation (which starts worker processes)."""

import importlib.util
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_partial.data.preprocessed import label_directory
from nnunet_partial.files import load_checkpoint, read_json
from nnunet_partial.networks.unwrap import unwrap
from tests import fork_server, pictures

pictures.leave_out()

CLASSES = ("liver", "kidney", "pancreas")
DDP_WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(autouse=True)
def always_one_thread(one_thread):
    """Every test here compares trainings."""


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    """A results folder for this test alone."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def make_trainer(tiny, name, plans=None, configuration="3d_fullres", fold=0, continue_training=False):
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(
        str(tiny.id), configuration, fold, name, plans or tiny.plans, continue_training, torch.device("cpu")
    )


@pytest.fixture
def trainer(tiny):
    """``trainer(name, plans, configuration, fold)`` -> a trainer as ``nnUNetv2_train`` makes it."""
    return lambda *args, **kwargs: make_trainer(tiny, *args, **kwargs)


@pytest.fixture(scope="session")
def teachers(tiny):
    """One trained teacher per source of ``tiny``, under their conventional names, for both configurations."""
    from nnunet_partial.variants import write_source_variants

    os.environ["nnUNet_results"] = str(tiny.folders.results)
    written = write_source_variants(tiny.id, {}, tiny.plans)
    for plans in written:
        for configuration in ("3d_fullres", "2d"):
            make_trainer(tiny, "nnUNetTrainerIndividual", plans.stem, configuration).run_training()
    return tiny.results


def _write_labels(tiny, folder, data_identifier="nnUNetPlans_3d_fullres", without=None, cases=None):
    """A label directory of every case, or of ``cases``; pseudo organs are boxes where nothing is annotated."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    dataset_json = read_json(tiny.preprocessed / "dataset.json")
    manager = LabelManager(dataset_json["labels"], None)
    images = nnUNetDatasetBlosc2(str(tiny.preprocessed / data_identifier))
    cases = cases or images.identifiers
    for case in cases:
        _, seg, _, properties = images.load_case(case)
        seg = np.array(seg[:])
        annotated = dataset_json["nnunet_partial"]["cases"][case]["annotated"]
        pseudo = [i for i in CLASSES if i not in (*annotated, without)]
        for name in pseudo:
            value = CLASSES.index(name) + 1
            box = (0, slice(2, 18), slice(7 * value - 5, 7 * value), slice(3, 3 + 5 * value))
            seg[box] = np.where(seg[box] == 0, value, seg[box])
        volume = {i: float((seg == CLASSES.index(i) + 1).sum() * 10) for i in (*annotated, *pseudo)}
        label_directory.write_case(
            folder, case, seg, properties, manager, (16, 24, 24), {"annotated": annotated, "pseudo": pseudo, "volume_mm3": volume}
        )
    label_directory.finish(folder, {"dataset": tiny.name, "data_identifier": data_identifier, "classes": CLASSES}, cases)
    return folder


@pytest.fixture(scope="session")
def write_labels():
    """``write_labels(tiny, folder, data_identifier, without, cases)``: a completed label directory."""
    return _write_labels


@pytest.fixture(scope="session")
def stock_predict():
    """``(dataset, trainer, plans, folder, command)``: one image of ``dataset``, and what nnU-Net's command predicts of it."""

    def predict(dataset, trainer, plans, folder, command):
        images, out = folder / "in", folder / "out"
        images.mkdir()
        image = next((dataset.folders.raw / dataset.name / "imagesTr").glob("lits_*"))
        shutil.copy(image, images / "patient_0000.nii.gz")
        model = ["-d", dataset.id, "-c", "3d_fullres", "-f", 0, "-tr", trainer, "-p", plans]
        command(
            "nnUNetv2_predict", "-i", images, "-o", out, *model, *["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"]
        )
        return image, out / "patient.nii.gz"

    return predict


@pytest.fixture
def refused(capsys):
    """``refused(make)`` -> the one line with which ``make()`` ended, exit code 2."""

    def check(make):
        with pytest.raises(SystemExit) as end:
            make()
        assert end.value.code == 2
        lines = [i for i in capsys.readouterr().err.splitlines() if i.startswith("nnunet_partial: error:")]
        assert len(lines) == 1
        return lines[0]

    return check


# ------------------------------------------------------------------ an ignore label

IGNORE = 4  # one above the classes of ``tiny``


@pytest.fixture
def with_ignore_label(tiny):
    """``with_ignore_label(name, plans)``: a trainer of ``tiny`` whose dataset has an ignore label."""
    import nnunet_partial.trainers as trainers

    def make(name, plans=None):
        plans = {**read_json(tiny.preprocessed / f"{plans or tiny.plans}.json"), "continue_training": False}
        dataset_json = read_json(tiny.preprocessed / "dataset.json")
        dataset_json["labels"]["ignore"] = IGNORE
        return getattr(trainers, name)(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))

    return make


class Fixed(torch.nn.Module):
    """Puts out what it was given, as a network with deep supervision does."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, data):
        return self.outputs


@pytest.fixture(scope="session")
def assert_ignored_voxels_reach_no_loss():
    """``(trainer, batch)``: no loss of a step has a gradient where a label is ignored; elsewhere it has one."""

    def check(made, batch):
        generator, outputs, ignore = torch.Generator().manual_seed(5), {}, made.ignored_value  # one above the classes
        for target in batch.target:
            target[:, :, :, : target.shape[3] // 2] = ignore
        for name, member in made.members.items():
            shapes = [(len(i), ignore, *i.shape[2:]) for i in batch.target]
            outputs[name] = [torch.randn(i, generator=generator).requires_grad_() for i in shapes]
            member.network = Fixed(outputs[name])
        made.network = made.members["network"].network
        sum(made.compute_losses(batch).values()).backward()
        for logits in outputs.values():
            for output, target, weight in zip(logits, batch.target, made.deep_supervision_weights()):
                if weight:
                    ignored = (target == ignore).expand_as(output)
                    assert torch.isfinite(output.grad).all() and output.grad[~ignored].abs().max() > 0
                    assert not output.grad[ignored].any()

    return check


# ------------------------------------------------------------------ killed and continued


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(a, b)``: nested containers are equal; tensors and floats to the last bit unless ``exact`` is False.

    Two runs of one program may differ there in the last bit (biases before a norm, whose gradient is rounding alone); a
    state that was not restored differs by 1e-4 and more.
    """

    def check(a, b, exact=True, path=""):
        assert type(a) is type(b), path
        if isinstance(a, dict):
            assert a.keys() == b.keys(), path
            for key in a:
                check(a[key], b[key], exact, f"{path}/{key}")
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), path
            for i, (x, y) in enumerate(zip(a, b)):
                check(x, y, exact, f"{path}/{i}")
        elif isinstance(a, torch.Tensor):
            tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-7}
            torch.testing.assert_close(a, b, **tolerance, equal_nan=True, msg=lambda m: f"{path}: {m}")
        elif isinstance(a, float) and not exact:
            assert a == pytest.approx(b, rel=1e-5, nan_ok=True), path
        else:
            assert a == b or a != a and b != b, f"{path}: {a} {b}"

    return check


@pytest.fixture(scope="session")
def train_and_be_killed():
    """``train_and_be_killed(trainer, plans, at_step)``: a process that dies by SIGKILL where that step begins."""

    def run(trainer, plans, at_step):
        program = f"""
import os, signal, torch
torch.set_num_threads(1)
from nnunetv2.run.run_training import get_trainer_from_args
trainer = get_trainer_from_args("501", "3d_fullres", 0, {trainer!r}, {plans!r}, False, torch.device("cpu"))
train_step, steps = trainer.train_step, []
def counted(batch):
    steps.append(None)
    if len(steps) == {at_step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(batch)
trainer.train_step = counted
trainer.run_training()
"""
        result = fork_server.run(["python", "-c", program])
        assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]

    return run


@pytest.fixture(scope="session")
def final_state():
    """``final_state(results)``: the only final checkpoint below a folder, without the times of its epochs."""

    def read(results):
        (file,) = Path(results).rglob("checkpoint_final.pth")
        checkpoint = load_checkpoint(file)
        for name in ("epoch_start_timestamps", "epoch_end_timestamps"):
            checkpoint["logging"].pop(name)
        return checkpoint

    return read


# ------------------------------------------------------------------ two processes


@pytest.fixture(scope="session")
def ddp_worker():
    """The module that every process runs."""
    spec = importlib.util.spec_from_file_location("ddp_worker", DDP_WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def assert_two_processes_agree(ddp_worker, tmp_path):
    """``(trainer, batch, plans, configuration)``: with half of ``batch`` each, two processes have the gradients of one."""

    def check(made, batch, plans, configuration="3d_fullres"):
        file = tmp_path / f"{plans}_{configuration}.pth"
        # before the gradients, which may move the running means of a batch norm
        content = {
            "networks": {k: unwrap(m.network).state_dict() for k, m in made.members.items()},
            "batch": batch,
            "averages": {k: a.state_dict() for k, a in getattr(made, "averages", {}).items()},
        }
        torch.save(content, file)
        ddp_worker.weigh_the_lowest_resolution(made)
        expected = ddp_worker.gradients(made, batch)
        given = [f"{file}.rendezvous", file, type(made).__name__, plans, configuration]
        with ThreadPoolExecutor(2) as threads:
            ended = list(threads.map(lambda rank: fork_server.run(["python", DDP_WORKER, rank, *given]), range(2)))
        assert [i.returncode for i in ended] == [0, 0], [i.stderr for i in ended]
        found = torch.load(f"{file}.gradients", weights_only=False)
        assert expected.keys() == found.keys()
        for name, parameters in expected.items():
            assert parameters and parameters.keys() <= found[name].keys()
            largest = max(i.abs().max() for i in parameters.values())
            for key, gradient in parameters.items():
                torch.testing.assert_close(
                    found[name][key], gradient, rtol=1e-6, atol=float(1e-9 * largest), msg=lambda m: f"{name}/{key}: {m}"
                )

    return check
