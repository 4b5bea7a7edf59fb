"""Self-training and co-training on a label directory of the tiny dataset."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import distributed

from nnunet_partial.files import read_json
from nnunet_partial.labels import Annotations, CaseAnnotation, Union
from nnunet_partial.losses import co_training
from nnunet_partial.losses.ramps import gaussian
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import OPTIMIZER_PAPER
from nnunet_partial.training import whole_cases
from nnunet_partial.training.whole_cases import dice_of_cases, mean_dice
from nnunet_partial.variants import write_variant

CLASSES = ("liver", "kidney", "pancreas")
FAMILY = (
    "nnUNetTrainerCoTraining",
    "nnUNetTrainerCoTrainingCT",
    "nnUNetTrainerCoTrainingWA",
    "nnUNetTrainerCoTrainingCTWA",
    "nnUNetTrainerCoTrainingIBN",
)


@pytest.fixture(scope="module")
def labels(tiny, write_labels, tmp_path_factory):
    return write_labels(tiny, tmp_path_factory.mktemp("labels") / "fold_0")


@pytest.fixture(scope="module")
def plans(tiny, labels):
    return write_variant(
        tiny.id,
        "cotrain",
        {"labels": str(labels.parent / "fold_{fold}"), "optimizer": "sgd", "initial_lr": 0.01, "save_every": 1},
        tiny.plans,
        overwrite=True,
    ).stem


def ready(made):
    made.initialize()
    made.prepare_losses(made.do_split()[0])
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    made.set_deep_supervision_enabled(True)
    return made


def weights_of(network):
    return {k: v.clone() for k, v in unwrap(network).state_dict().items()}


# ---- data


def test_training_sees_pseudo_labels_and_validation_the_truth(tiny, plans, labels, trainer, own_results):
    made = ready(trainer("nnUNetTrainerSelfTraining", plans))
    seen = set()
    for _ in range(6):
        batch = made.to_device(next(made.dataloader_train))
        assert batch.annotated.all() and batch.truth[:, 1:].sum(1).max() == 1
        seen |= set(batch.target[0].unique().int().tolist())
        held_out = made.to_device(next(made.dataloader_val), training=False)
        assert torch.equal(held_out.annotated, held_out.truth)
        for target, truth in zip(held_out.target[0], held_out.truth):
            assert set(target.unique().int().tolist()) <= set(torch.nonzero(truth).flatten().tolist())
    assert seen == {0, 1, 2, 3}


def test_self_training_is_nnunets_loss_on_completed_labels(tiny, plans, trainer, own_results):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    made = ready(trainer("nnUNetTrainerSelfTraining", plans))
    batch = made.to_device(next(made.dataloader_train))
    output = made.network(batch.data)
    expected = nnUNetTrainer._build_loss(made)(output, batch.target)
    torch.testing.assert_close(made.compute_losses(batch)["marginal"], expected, rtol=1e-6, atol=1e-6)


# ---- the step


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def read_eq_1_and_2(made, outputs, targets, alpha):
    focal = dice = 0
    for weight, logits, target in zip(made.deep_supervision_weights(), outputs, targets):
        if not weight:
            continue
        p, y = softmax(logits.double().numpy()), target[:, 0].long().numpy()
        own = np.take_along_axis(p, y[:, None], 1)[:, 0]
        focal += weight * np.mean(-np.array(alpha)[y] * (1 - own) ** 2 * np.log(own))
        for sample in range(len(p)):
            for c in (1, 2, 3):
                mask = y[sample] == c
                overlap = (mask * p[sample, c]).sum()
                dice += weight / len(p) * (1 - 2 * (overlap + 1e-5) / (mask.sum() + p[sample, c].sum() + 1e-5))
    return focal, dice


@pytest.mark.parametrize("name", FAMILY[:4])
def test_the_step_is_equations_1_to_6(tiny, plans, labels, trainer, own_results, name):
    made = ready(trainer(name, plans))
    for _ in range(2):  # so that averages and networks differ
        made.train_step(next(made.dataloader_train))
    batch = made.to_device(next(made.dataloader_train))
    made.current_epoch, made.steps_of_epoch = 0, 1
    with torch.no_grad():
        found = {k: v.item() for k, v in made.compute_losses(batch).items()}
        outputs = {k: m.network(batch.data) for k, m in made.members.items()}
        taught = {k: a.module(batch.data) for k, a in made.averages.items()} or {k: v[0] for k, v in outputs.items()}

    volumes = made.labels.volumes_mm3
    cases = made.do_split()[0]
    inverse = [1 / np.mean([volumes[i][c] for i in cases if volumes[i][c]]) for c in CLASSES]
    alpha = [1, *(i / np.mean(inverse) for i in inverse)]
    readings = [read_eq_1_and_2(made, i, batch.target, alpha) for i in outputs.values()]
    assert found["focal"] == pytest.approx(sum(i for i, _ in readings), rel=1e-4)
    assert found["dice"] == pytest.approx(0.1 * sum(i for _, i in readings), rel=1e-4)

    other = {"network": "peer", "peer": "network"} if made.co_teaching else {"network": "network"}
    target = batch.target[0][:, 0].numpy()
    annotated = batch.truth.numpy()
    truth = np.stack([np.isin(y, [c for c in (1, 2, 3) if a[c]]) for y, a in zip(target, annotated)])
    region = ~truth if name == "nnUNetTrainerCoTraining" else np.ones_like(truth)
    soft = 0
    for k, v in outputs.items():
        teacher, student = (softmax(i.double().numpy()) for i in (taught[other[k]], v[0]))
        soft += -(teacher * np.log(student)).sum(1)[region].mean()
    ramp = math.exp(-5 * (1 - (1 / 2) / (0.25 * 2)) ** 2)  # one of two steps in epoch 0 of 2, over a quarter of them
    assert found["soft"] == pytest.approx(0.1 * ramp * soft, rel=1e-4)


def test_gradients_stay_in_their_network_and_out_of_the_averages(tiny, plans, trainer, own_results):
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    network, peer = (m.network for m in made.members.values())
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), peer.parameters()))
    batch = made.to_device(next(made.dataloader_train))
    reference = made.compute_losses(batch)
    sum(reference.values()).backward()
    gradients = {k: v.grad.clone() for k, v in network.named_parameters() if v.grad is not None}
    assert all(p.grad is None and not p.requires_grad for a in made.averages.values() for p in a.module.parameters())

    network.zero_grad()
    with torch.no_grad():  # network 2 changed: the gradient of network 1 is what it was, because only averages teach
        for p in peer.parameters():
            p.add_(0.1)
    sum(made.compute_losses(batch).values()).backward()
    for k, v in network.named_parameters():
        if v.grad is not None:
            torch.testing.assert_close(v.grad, gradients[k])


@pytest.mark.parametrize("name", FAMILY[:3])
def test_the_soft_labels_are_constants(tiny, plans, trainer, own_results, name):
    """The gradient of network 1 is that of its own terms with the teacher's output written down as numbers."""
    made = ready(trainer(name, plans))
    batch = made.to_device(next(made.dataloader_train))
    sum(made.compute_losses(batch).values()).backward()
    found = {k: v.grad.clone() for k, v in made.network.named_parameters() if v.grad is not None}

    made.network.zero_grad()
    with torch.no_grad():
        teacher = (made.candidates["peer"] if made.co_teaching else made.averages["network"].module)(batch.data)
    teacher = teacher[0] if isinstance(teacher, (list, tuple)) else teacher
    output = made.network(batch.data)
    hard = made.at_every_scale(made.focal_loss, output, batch.target) + 0.1 * made.at_every_scale(
        co_training.soft_dice_loss, output, batch.target
    )
    soft = made.soft_loss(output[0], teacher, made.region(batch.target[0][:, 0], batch))
    (hard + 0.1 * made.ramp_up() * soft).backward()
    for k, v in made.network.named_parameters():
        if v.grad is not None:
            torch.testing.assert_close(found[k], v.grad, rtol=1e-4, atol=1e-7)


def test_averages_are_the_closed_form(tiny, plans, trainer, own_results):
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    history = {k: [weights_of(m.network)] for k, m in made.members.items()}
    for _ in range(3):
        made.train_step(next(made.dataloader_train))
        for k, m in made.members.items():
            history[k].append(weights_of(m.network))
    for name, average in made.averages.items():
        first, *later = history[name]
        for key, value in average.state_dict().items():
            expected = 0.999**3 * first[key].double()
            for i, weights in enumerate(later, 1):
                expected = expected + 0.001 * 0.999 ** (3 - i) * weights[key].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    assert made.ramp_up() == gaussian(1.5, 0.5) and made.steps_of_epoch == 3


@pytest.mark.parametrize(
    "decay, steps, said",
    (
        (0.999, 360, "70% of what is deployed.* set co_training.ema_decay=0.987 or lower"),
        (0.999, 250000, None),
        (0.987, 360, None),
        (0, 2, None),
    ),
)
def test_an_average_that_would_keep_its_start_is_warned_of(tiny, plans, trainer, own_results, decay, steps, said):
    settings = {"num_epochs": 2, "num_iterations_per_epoch": steps // 2, "co_training": {"ema_decay": decay}}
    made = trainer("nnUNetTrainerCoTraining", write_variant(tiny.id, "slow", settings, plans, overwrite=True).stem)
    made.initialize()
    made._warn_of_slow_averages()
    log = open(made.log_file).read()
    assert re.search(said, log) if said else "WARNING" not in log


@pytest.mark.parametrize("name, networks, averages", zip(FAMILY, (2, 2, 1, 2, 2), (2, 0, 1, 2, 2)))
def test_forward_passes_are_not_repeated(tiny, plans, trainer, own_results, name, networks, averages):
    made = ready(trainer(name, plans))
    counts = []
    for module in [*(unwrap(m.network) for m in made.members.values()), *(a.module for a in made.averages.values())]:
        counts.append(0)
        module.register_forward_hook(lambda m, i, o, n=len(counts) - 1: counts.__setitem__(n, counts[n] + 1))
    made.train_step(next(made.dataloader_train))
    assert counts == [1] * (networks + averages)


def test_two_dimensions_train_and_validate(write_labels, tiny, trainer, own_results, tmp_path):
    labels = write_labels(tiny, tmp_path / "labels", "nnUNetPlans_2d")
    plans = write_variant(tiny.id, "flat", {"labels": str(labels)}, tiny.plans, overwrite=True).stem
    made = ready(trainer("nnUNetTrainerCoTrainingIBN", plans, "2d"))
    before = [weights_of(m.network) for m in made.members.values()]
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])
    for member, weights in zip(made.members.values(), before):
        assert any(not torch.equal(v, weights[k]) for k, v in weights_of(member.network).items())
    made.on_validation_epoch_start()
    with torch.no_grad():
        made.on_validation_epoch_end([made.validation_step(next(made.dataloader_val))])
    assert set(made.deployed_weights()) == set(unwrap(made.network).state_dict())


def test_self_training_focal_is_co_training_without_soft_labels(tiny, plans, trainer, own_results, monkeypatch):
    """In the loss of a step and, beside its one-network ablation, in every weight after a whole training."""
    without = write_variant(tiny.id, "nosoft", {"co_training": {"lambda_soft": 0.0}}, plans, overwrite=True).stem
    alone = ready(trainer("nnUNetTrainerSelfTrainingFocal", without))
    both = ready(trainer("nnUNetTrainerCoTraining", without))
    assert list(alone.members) == ["network"] and not alone.averages and alone.loss_terms == ("focal", "dice")
    for member in both.members.values():
        member.network.load_state_dict(alone.network.state_dict())
    batch = alone.to_device(next(alone.dataloader_train))
    one, two = alone.compute_losses(batch), both.compute_losses(batch)
    assert two["soft"] == 0 and set(one) == {"focal", "dice"}
    for name, loss in one.items():
        torch.testing.assert_close(2 * loss, two[name])
    sum(one.values()).backward()
    sum(two.values()).backward()
    for member in both.members.values():
        for a, b in zip(alone.network.parameters(), member.network.parameters()):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)

    trained = {}
    for name in ("nnUNetTrainerSelfTrainingFocal", "nnUNetTrainerCoTrainingWA"):
        made = trainer(name, without)
        made.run_training()
        trained[name] = weights_of(made.network)
        if "Focal" in name:  # what was trained is deployed
            stored = torch.load(Path(made.output_folder) / "checkpoint_final.pth", weights_only=True)
            assert all(torch.equal(v, trained[name][k]) for k, v in stored["network_weights"].items())
            assert "trained_weights" not in stored["nnunet_partial"]
    first, second = trained.values()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-5, atol=1e-7)


def test_ibn_says_that_few_samples_make_poor_statistics_and_refuses_to_go_on_with_its_older_form(
    tiny, plans, trainer, own_results, refused, tmp_path
):
    made = trainer("nnUNetTrainerCoTrainingIBN", write_variant(tiny.id, "short", {"num_epochs": 1}, plans, overwrite=True).stem)
    made.run_training()
    assert "WARNING: batch normalisation over 2 samples" in open(made.log_file).read()
    file = Path(made.output_folder) / "checkpoint_final.pth"
    made.load_checkpoint(str(file))
    stored = torch.load(file, weights_only=True)
    del stored["network_weights"]["encoder.stages.0.0.convs.0.norm.instance.weight"]
    torch.save(stored, tmp_path / "old.pth")
    assert "is of version 0.1" in refused(lambda: made.load_checkpoint(str(tmp_path / "old.pth")))


def test_dilated_region_and_ibn_and_the_papers_optimiser(tiny, labels, trainer, own_results):
    from nnunet_partial.networks.ibn import InstanceBatchNorm

    plans = write_variant(
        tiny.id,
        "paper",
        {
            "labels": str(labels),
            **OPTIMIZER_PAPER,
            "num_epochs": 4,
            "co_training": {"region": "dilated", "region_dilation": 1},
        },
        tiny.plans,
        overwrite=True,
    ).stem
    made = ready(trainer("nnUNetTrainerCoTrainingIBN", plans))
    for network in (*(m.network for m in made.members.values()), *(a.module for a in made.averages.values())):
        assert sum(isinstance(i, InstanceBatchNorm) for i in network.encoder.stages[:2].modules()) > 0
        assert not any(isinstance(i, InstanceBatchNorm) for i in network.encoder.stages[2].modules())
    rates = []
    for epoch in range(4):
        for member in made.members.values():
            member.lr_scheduler.step(epoch)
        rates.append({m.optimizer.param_groups[0]["lr"] for m in made.members.values()})
    cosine = [1, 2**-0.5, 0, -(2**-0.5)]
    assert [i.pop() for i in rates] == pytest.approx([0.05 * (1 + i) / 2 for i in cosine])
    group = made.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
    result = made.train_step(next(made.dataloader_train))
    assert np.isfinite(result["loss"])


def test_mixed_precision_and_compiled_networks(tiny, plans, trainer, own_results):
    """As on a GPU, with what the CPU has of it: bfloat16, one scaler, compiled networks and averages."""
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    batch = made.to_device(next(made.dataloader_train))
    with torch.no_grad():
        full = {k: v.item() for k, v in made.compute_losses(batch).items()}
    for name, member in made.members.items():
        member.network = torch.compile(member.network, backend="aot_eager")
        made.average_networks[name] = torch.compile(made.averages[name].module, backend="aot_eager")
    made.network = made.members["network"].network
    made.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    made.grad_scaler = torch.amp.GradScaler("cpu")
    with made.autocast(), torch.no_grad():
        half = {k: v.item() for k, v in made.compute_losses(batch).items()}
    assert half == pytest.approx(full, rel=0.02)
    before = [weights_of(a.module) for a in made.averages.values()]
    assert np.isfinite(made.train_step(next(made.dataloader_train))["loss"])
    for average, weights in zip(made.averages.values(), before):
        assert all(v.dtype == torch.float32 for v in average.state_dict().values())
        assert any(not torch.equal(v, weights[k]) for k, v in average.state_dict().items())
    assert set(made.deployed_weights()) == set(before[0])  # no prefix of a wrapper


def test_two_processes_have_the_gradients_of_one(tiny, plans, trainer, own_results, assert_two_processes_agree):
    """Also the mean over the region mask, which holds more voxels on one process than on the other."""
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    made.train_step(next(made.dataloader_train))
    batch = made.to_device(next(made.dataloader_train))
    batch.truth = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert len({int(i.sum()) for i in made.region(batch.full_resolution_target[:, 0], batch)}) == 2
    made.steps_of_epoch = 0
    assert_two_processes_agree(made, batch, plans)


# ---- which is deployed


def test_the_better_average_is_deployed(tiny, plans, trainer, own_results):
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    made.on_validation_epoch_start()
    with torch.no_grad():
        step = made.validation_step(next(made.dataloader_val))
    assert step["tp_hard"].shape == (2, 3) and step["loss"].shape == (2,)
    zero = np.zeros((2, 3))
    tp = np.array([[4.0, 0, 0], [6.0, 0, 0]])
    one = {"loss": np.zeros(2), "tp_hard": tp, "fp_hard": 8 - tp, "fn_hard": zero}  # only one class is annotated
    one["fp_hard"][:, 1:] = 0
    made.on_validation_epoch_end([one])
    assert made.deployed == "peer" and made.running_dice == pytest.approx({"network": 8 / 12, "peer": 12 / 14})
    assert made.logger.get_value("mean_fg_dice", step=-1) == pytest.approx(12 / 14)
    made.on_validation_epoch_end([{**one, "tp_hard": zero, "fp_hard": zero}])  # nothing annotated was seen
    assert made.running_dice["peer"] == pytest.approx(12 / 14)
    for key, value in made.deployed_weights().items():
        assert torch.equal(value, made.averages["peer"].state_dict()[key])
    with made.deployed_as_network() as network:
        assert made.network is network is made.averages["peer"].module
    assert made.network is made.members["network"].network


@pytest.mark.parametrize("epochs, momentum", ((1, 0), (10, 0), (20, 0.5), (100, 0.9), (1000, 0.9)))
def test_the_end_of_a_training_decides_which_is_deployed(tiny, plans, trainer, own_results, epochs, momentum):
    """Not its first epochs, in which averages still hold the weights that they began with."""
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    made.num_epochs = epochs
    assert made.running_momentum == pytest.approx(momentum)
    for epoch in range(epochs):
        made._choose(np.array([0.1, 0.7] if epoch < epochs // 2 else [0.8, 0.79]))
    assert made.deployed == "network"


def constant(network, output):
    """Let a network say ``output`` everywhere."""
    with torch.no_grad():
        for layer in unwrap(network).decoder.seg_layers:
            layer.weight.zero_()
            layer.bias.zero_()
            layer.bias[output] = 1


def test_whole_validation_cases_decide_at_the_end(tiny, plans, trainer, own_results, final_state):
    """Each average says one class everywhere: Dice is 2 n / (n + volume) where that class is annotated, and 0 of the others."""
    import blosc2

    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    cases, known, saying = made.do_split()[1], made.annotations, {"network": "kidney", "peer": "liver"}
    for name, said in saying.items():
        constant(made.averages[name].module, CLASSES.index(said) + 1)
    folder = Path(made.preprocessed_dataset_folder)
    targets = {i: blosc2.open(str(folder / f"{i}_seg.b2nd"))[:][0] for i in cases}
    scores = {}
    for name, said in saying.items():
        by_class = {i: [] for i in CLASSES}
        for case in cases:
            for organ in known.of(case).annotated:
                voxels = int((targets[case] == CLASSES.index(organ) + 1).sum())
                predicted = targets[case].size if organ == said else 0
                if voxels + predicted:
                    by_class[organ].append(2 * (voxels if organ == said else 0) / (voxels + predicted))
        scores[name] = np.mean([np.mean(i) for i in by_class.values() if i])
    better, worse = sorted(scores, key=scores.get, reverse=True)
    assert scores[better] > scores[worse] > 0
    made.deployed = worse  # as the patches of the last epoch may have it
    made.running_dice = {worse: 0.9, better: 0.1}
    flags = [unwrap(i.network).decoder.deep_supervision for i in made.members.values()]
    made.current_epoch = 1
    made.on_train_end()
    log = Path(made.log_file).read_text()
    said = f"network {scores['network']:.4f}, peer {scores['peer']:.4f}; deployed: {better}"
    assert f"Dice of whole validation cases: {said}" in log and made.deployed == better
    assert final_state(own_results)["nnunet_partial"]["deployed"] == better
    assert [unwrap(i.network).decoder.deep_supervision for i in made.members.values()] == flags


def test_every_process_looks_at_its_share_of_the_whole_cases(tiny, plans, trainer, own_results, monkeypatch):
    made = ready(trainer("nnUNetTrainerCoTraining", plans))
    alone = {k: dice_of_cases(made, i, made.do_split()[1], made.annotations) for k, i in made.candidates.items()}
    monkeypatch.setattr(made, "is_ddp", True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    seen = []

    def gather(into, own):
        into[:] = own, {k: {c: d for c, d in alone[k].items() if c not in own[k]} for k in own}
        seen.append([sorted(i) for i in own.values()])

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    made._choose_by_whole_cases()
    assert seen == [[made.do_split()[1][1::2]] * 2]
    figures = ", ".join(f"{k} {mean_dice(i):.4f}" for k, i in alone.items())
    assert figures in Path(made.log_file).read_text()


def test_dice_of_unions_and_without_ignored_voxels(monkeypatch):
    """By hand: of the union {1, 2} three voxels are right and one is missed; of class 3 one is right, and the ignored one is not
    counted; d is neither there nor predicted; of b's liver nothing is right."""
    annotations = Annotations(
        ("a", "b", "c", "d"),
        {
            "x": CaseAnnotation("s", (Union(("a", "b")), "c", "d")),
            "y": CaseAnnotation("s", ("a",)),
        },
    )
    targets = {"x": [1, 1, 1, 1, 3, 5, 0], "y": [1, 1, 0, 0, 0, 0, 0]}
    said = {"x": [2, 1, 1, 0, 3, 3, 0], "y": [0, 0, 0, 2, 2, 0, 0]}

    class Dataset:
        def __init__(self, folder, identifiers, folder_with_segs_from_previous_stage):
            self.identifiers = identifiers

        def load_case(self, case):
            return np.zeros((1, 1, 1, 7)), np.array(targets[case])[None, None, None], None, {}

    answers = iter(said.values())

    class Predictor:
        def predict_sliding_window_return_logits(self, data):
            assert data.dtype == torch.float32 and data.shape == (1, 1, 1, 7)
            return torch.nn.functional.one_hot(torch.tensor(next(answers)), 5).T[:, None, None].half()

    monkeypatch.setattr(whole_cases, "_predictor", lambda *_: Predictor())
    made = SimpleNamespace(
        dataset_class=Dataset,
        device=torch.device("cpu"),
        folder_with_segs_from_previous_stage=None,
        ignored_value=5,
        is_cascaded=False,
        preprocessed_dataset_folder="",
    )
    found = dice_of_cases(made, torch.nn.Conv2d(1, 1, 1), ["x", "y"], annotations)
    assert found["x"] == pytest.approx({Union(("a", "b")): 6 / 7, "c": 1.0, "d": math.nan}, nan_ok=True)
    assert found["y"] == {"a": 0.0}
    assert mean_dice(found) == pytest.approx((6 / 7 + 1.0 + 0.0) / 3) and math.isnan(mean_dice({}))


# ---- checkpoints


def test_killed_and_continued_equals_uninterrupted(
    tiny, plans, trainer, own_results, monkeypatch, train_and_be_killed, final_state, assert_same
):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    monkeypatch.setenv("nnUNet_results", str(own_results / "uninterrupted"))
    uninterrupted = trainer("nnUNetTrainerCoTraining", plans)
    uninterrupted.run_training()
    killed = own_results / "killed"
    monkeypatch.setenv("nnUNet_results", str(killed))
    train_and_be_killed("nnUNetTrainerCoTraining", plans, at_step=4)
    continued = trainer("nnUNetTrainerCoTraining", plans, continue_training=True)
    maybe_load_checkpoint(continued, True, False)
    assert continued.current_epoch == 1
    continued.run_training()
    state = final_state(killed)
    assert_same(final_state(own_results / "uninterrupted"), state, exact=False)

    weights = weights_of(uninterrupted.network)
    uninterrupted.perform_actual_validation()
    summary = read_json(Path(uninterrupted.output_folder) / "validation" / "summary.json")
    assert len(summary["metric_per_case"]) == 3
    assert_same(weights_of(uninterrupted.network), weights)  # the trained network is back in its place

    own = state["nnunet_partial"]
    assert_same(state["network_weights"], own["averages"][own["deployed"]]["weights"])
    assert {i["num_updates"] for i in own["averages"].values()} == {4}
    assert not torch.equal(next(iter(own["trained_weights"].values())), next(iter(state["network_weights"].values())))


def test_a_finished_training_goes_on_with_more_epochs(tiny, labels, trainer, own_results, tmp_path):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    def plans(**settings):
        own = {"num_epochs": 1, "labels": str(labels), "co_training": {"ema_decay": 0.5}, **settings}
        return write_variant(tiny.id, "more", own, tiny.plans, overwrite=True).stem

    def continued(name, **settings):
        made = trainer(name, plans(**settings), continue_training=True)
        maybe_load_checkpoint(made, True, False)
        made.run_training()
        return made

    for name in ("nnUNetTrainerCoTraining", "nnUNetTrainerSelfTraining"):
        trainer(name, plans()).run_training()
        made = continued(name, num_epochs=2)
        assert made.current_epoch == 2 and made.labels.folder == labels
        batch = made.to_device(next(made.dataloader_train))
        assert batch.annotated.all()  # not only what each source annotates
        # nothing is left to train: then nothing is needed
        assert continued(name, num_epochs=2, labels=str(tmp_path / "gone")).labels is None


def test_an_ignore_label_reaches_no_loss(plans, trainer, own_results, with_ignore_label, assert_ignored_voxels_reach_no_loss):
    made = with_ignore_label("nnUNetTrainerCoTraining", plans)
    made.initialize()
    made.prepare_losses(made.do_split()[0])
    plain = ready(trainer("nnUNetTrainerCoTraining", plans))
    batch = plain.to_device(next(plain.dataloader_train))
    made.current_epoch = 1
    assert_ignored_voxels_reach_no_loss(made, batch)
    made.region_masked = False
    assert_ignored_voxels_reach_no_loss(made, batch)


def test_pretrained_weights_of_another_network_are_one_line(tiny, plans, trainer, own_results, tmp_path, refused):
    from nnunetv2.run.run_training import maybe_load_checkpoint

    made, file = trainer("nnUNetTrainerPartial"), tmp_path / "pretrained.pth"
    made.initialize()
    made.save_checkpoint(str(file))
    maybe_load_checkpoint(trainer("nnUNetTrainerCoTraining", plans), False, False, str(file))
    ibn = trainer("nnUNetTrainerCoTrainingIBN", plans)
    error = refused(lambda: maybe_load_checkpoint(ibn, False, False, str(file)))
    assert f"{file} does not fit the network of nnUNetTrainerCoTrainingIBN: it has no encoder" in error


# ---- bad input


def variant(tiny, **settings):
    return write_variant(tiny.id, "refused", settings, tiny.plans, overwrite=True).stem


def test_missing_labels_are_named_with_the_command_that_makes_them(tiny, trainer, own_results, tmp_path, refused):
    error = refused(lambda: trainer("nnUNetTrainerCoTraining"))
    assert "needs the setting labels" in error and "nnunet_partial pseudo-label 501 --configuration 3d_fullres" in error
    absent = variant(tiny, labels=str(tmp_path / "none_{fold}"))
    error = refused(lambda: trainer("nnUNetTrainerPartial", absent))
    assert str(tmp_path / "none_0") in error and f"--out {tmp_path / 'none_0'}" in error
    (tmp_path / "begun").mkdir()
    error = refused(lambda: trainer("nnUNetTrainerPartial", variant(tiny, labels=str(tmp_path / "begun"))))
    assert "is not finished" in error
    assert not any(own_results.iterdir())


def spoiled(labels, tmp_path, change):
    folder = tmp_path / "spoiled"
    folder.mkdir()
    for file in labels.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    content = read_json(folder / "provenance.json")
    change(content)
    (folder / "provenance.json").unlink()
    (folder / "provenance.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.update(data_identifier="nnUNetPlans_2d"), ("nnUNetPlans_2d", "nnUNetPlans_3d_fullres")),
        (lambda c: c.update(classes=["liver", "spleen"]), ("liver, spleen", "liver, kidney, pancreas")),
        (lambda c: c.update(dataset="Dataset001_X"), ("Dataset001_X",)),
        (lambda c: c.update(version=2), ("version 2",)),
        (lambda c: c.pop("cases"), ("is not the provenance",)),
    ],
)
def test_labels_that_do_not_fit_are_refused(tiny, labels, trainer, own_results, tmp_path, refused, change, words):
    plans = variant(tiny, labels=str(spoiled(labels, tmp_path, change)))
    error = refused(lambda: trainer("nnUNetTrainerSelfTraining", plans))
    assert all(i in error for i in words) and "pseudo-label 501" in error


def test_a_case_or_a_class_that_is_missing_fails_before_training(
    write_labels, tiny, labels, trainer, own_results, tmp_path, refused
):
    case = trainer("nnUNetTrainerPartial").do_split()[0][0]
    plans = variant(tiny, labels=str(spoiled(labels, tmp_path, lambda c: c["cases"].pop(case))))
    made = trainer("nnUNetTrainerSelfTraining", plans)
    assert case in refused(made.on_train_start)
    partly = write_labels(tiny, tmp_path / "partly", without="pancreas")
    made = trainer("nnUNetTrainerCoTraining", variant(tiny, labels=str(partly)))
    assert "not of pancreas" in refused(made.on_train_start)
    assert not list(Path(own_results).rglob("checkpoint*"))


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"class_weights": [1, 2]}, "class_weights must be 3 numbers"),
        ({"gamma": 0.5}, "gamma must be 0 or at least 1"),
        ({"ema_decay": 1}, "ema_decay must be below 1"),
        ({"region": "eroded"}, "equation, dilated"),
    ],
)
def test_bad_settings_are_one_line(tiny, labels, trainer, own_results, refused, settings, word):
    plans = read_json(tiny.preprocessed / f"{tiny.plans}.json")
    name = f"{tiny.plans}_bad"
    own = {**plans["nnunet_partial"], "labels": str(labels), "co_training": settings}
    plans.update(plans_name=name, nnunet_partial=own)
    (tiny.preprocessed / f"{name}.json").write_text(json.dumps(plans))
    assert word in refused(lambda: trainer("nnUNetTrainerCoTraining", name))
