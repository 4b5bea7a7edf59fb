"""Run in each of two processes by conftest.py: a step on this rank's half of a batch; rank 0 saves the gradients."""

import sys
from dataclasses import replace

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import distributed

from nnunet_partial.networks.unwrap import unwrap


def gradients(trainer, batch):
    """name of the network -> name of the parameter -> gradient of one step's loss on ``batch``."""
    trainer.current_epoch = 1
    trainer.set_deep_supervision_enabled(True)
    in_double_precision(trainer)
    batch = replace(batch, data=batch.data.double())
    for member in trainer.members.values():
        member.network.zero_grad()
    sum(trainer.compute_losses(batch).values()).backward()
    return {
        name: {k: p.grad.clone() for k, p in unwrap(member.network).named_parameters() if p.grad is not None}
        for name, member in trainer.members.items()
    }


def in_double_precision(trainer):
    """So that a difference between gradients is one of the method, not of the order in which float32 was added up."""
    teachers = getattr(trainer, "teachers", None) or ()
    frozen = [i for i in teachers if isinstance(i, torch.nn.Module)]  # of others it holds the names
    averages = [i.module for i in getattr(trainer, "averages", {}).values()]
    for network in [*(m.network for m in trainer.members.values()), *averages, *frozen]:
        network.double()


def weigh_the_lowest_resolution(trainer):
    """As nnU-Net does under DDP, which needs every parameter to be used: 1e-6 in place of 0."""
    if isinstance(trainer.loss, DeepSupervisionWrapper):
        weights = np.array(trainer.loss.weight_factors)
        weights[-1] = 1e-6 * weights[0]
        trainer.loss.weight_factors = tuple(weights / weights.sum())


def part(batch, samples):
    """Some samples of a batch."""
    from nnunet_partial.training.base import Batch

    target = [i[samples] for i in batch.target] if isinstance(batch.target, list) else batch.target[samples]
    return Batch(
        batch.data[samples],
        target,
        batch.annotated[samples],
        batch.groups[samples],
        [batch.cases[i] for i in samples],
        batch.truth[samples],
    )


def main(rank, rendezvous, batch_file, name, plans, configuration):
    from nnunetv2.run.run_training import get_trainer_from_args

    from nnunet_partial.training.base import PartialTrainer

    rank = int(rank)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    distribute = PartialTrainer._distribute  # buckets for gradients have the precision that the network has here
    PartialTrainer._distribute = lambda self, network: distribute(self, network.double())
    trainer = get_trainer_from_args("501", configuration, 0, name, plans, False, torch.device("cpu"))
    trainer.initialize()
    trainer.load_frozen()
    trainer.prepare_losses(trainer.do_split()[0])
    if hasattr(trainer, "_first_sample"):
        assert trainer._first_sample() == rank
    content = torch.load(batch_file, weights_only=False)
    for member, weights in content["networks"].items():
        unwrap(trainer.members[member].network).load_state_dict(weights)
    for member, weights in content["averages"].items():
        trainer.averages[member].module.load_state_dict(weights)
    own = part(content["batch"], [rank])
    gradients(trainer, own)  # a second step fails if a parameter of the first got no gradient on some rank
    found = gradients(trainer, own)
    if rank == 0:
        torch.save(found, f"{batch_file}.gradients")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
