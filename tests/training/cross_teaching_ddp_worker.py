"""Run by test_cross_teaching.py in each of two processes: one step on this rank's half of a batch; rank 0 saves the
gradients of all networks."""
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
    return {name: {k: p.grad.clone() for k, p in unwrap(member.network).named_parameters() if p.grad is not None}
            for name, member in trainer.members.items()}


def part(batch, samples):
    from nnunet_partial.training.base import Batch

    target = [i[samples] for i in batch.target] if isinstance(batch.target, list) else batch.target[samples]
    return Batch(batch.data[samples], target, batch.annotated[samples], batch.groups[samples],
                 [batch.cases[i] for i in samples], batch.truth[samples])


def main(rank, rendezvous, *files_and_plans):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
    for batch_file, plans in zip(files_and_plans[::2], files_and_plans[1::2]):
        one_step(int(rank), batch_file, plans)
    distributed.destroy_process_group()


def one_step(rank, batch_file, plans):
    from nnunetv2.run.run_training import get_trainer_from_args

    name = "nnUNetTrainerCrossTeaching"
    trainer = get_trainer_from_args("501", "3d_fullres", 0, name, plans, False, torch.device("cpu"))
    trainer.initialize()
    assert trainer._first_sample() == rank
    content = torch.load(batch_file, weights_only=False)
    for name, member in trainer.members.items():
        unwrap(member.network).load_state_dict(content["networks"][name])
    # a second step fails if a parameter of the first got no gradient on some rank
    gradients(trainer, part(content["batch"], [rank]))
    own = gradients(trainer, part(content["batch"], [rank]))
    if rank == 0:
        torch.save(own, f"{batch_file}.gradients")


if __name__ == "__main__":
    main(*sys.argv[1:])
