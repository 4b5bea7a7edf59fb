"""Run in each of two processes by conftest.py: a step on this rank's half of a batch; rank 0 saves the gradients."""

import sys

import torch
from torch import distributed

from nnunet_partial.networks.unwrap import unwrap


def gradients(trainer, batch):
    """name of the network -> name of the parameter -> gradient of one step's loss on ``batch``."""
    trainer.current_epoch = 1
    trainer.set_deep_supervision_enabled(True)
    for member in trainer.members.values():
        member.network.zero_grad()
    sum(trainer.compute_losses(batch).values()).backward()
    return {
        name: {k: p.grad.clone() for k, p in unwrap(member.network).named_parameters() if p.grad is not None}
        for name, member in trainer.members.items()
    }


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

    rank = int(rank)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
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
