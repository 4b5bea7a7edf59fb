"""Run by test_ddp.py in each of two processes: one step on this rank's half of a batch; rank 0 saves the gradients."""
import sys

import torch
from torch import distributed


def gradients(trainer, batch):
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.zero_grad()
    sum(trainer.compute_losses(batch).values()).backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in trainer.network.named_parameters()
            if p.grad is not None}


def part(batch, samples):
    from nnunet_partial.training.base import Batch

    return Batch(batch.data[samples], [i[samples] for i in batch.target], batch.annotated[samples], batch.groups[samples],
                 [batch.cases[i] for i in samples])


def main(rank, rendezvous, batch_file, name, plans, configuration):
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
    trainer = get_trainer_from_args("501", configuration, 0, name, plans, False, torch.device("cpu"))
    trainer.initialize()
    trainer.load_frozen()
    content = torch.load(batch_file, weights_only=False)
    trainer.network.module.load_state_dict(content["weights"])
    own = gradients(trainer, part(content["batch"], [int(rank)]))
    if int(rank) == 0:
        torch.save(own, f"{batch_file}.gradients")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
