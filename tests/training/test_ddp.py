"""Two processes with half a batch each have the gradients of one process with the whole batch."""

import pytest
import torch

from nnunet_partial.losses.partial import groups_from_annotated


# 3d_fullres of this dataset has sample Dice, 2d has batch Dice
@pytest.mark.parametrize(
    "name, configuration, annotated",
    [
        ("nnUNetTrainerPartial", "2d", [[1, 1, 0, 1], [1, 0, 1, 1]]),
        ("nnUNetTrainerPartial", "3d_fullres", [[1, 1, 0, 0], [1, 1, 1, 1]]),
        ("nnUNetTrainerPartial", "3d_fullres", [[1, 0, 0, 0], [1, 0, 0, 1]]),
        ("nnUNetTrainerMSKDPlus", "3d_fullres", [[1, 1, 0, 0], [1, 0, 1, 0]]),
    ],
)
def test_two_processes_have_the_gradients_of_one(
    tiny, teachers, trainer, ddp_worker, assert_two_processes_agree, name, configuration, annotated
):
    single = trainer(name, configuration=configuration)
    single.initialize()
    single.load_frozen()
    single.dataloader_train, _ = single.get_dataloaders()
    batch = ddp_worker.part(single.to_device(next(single.dataloader_train)), [0, 1])
    batch.annotated = torch.tensor(annotated, dtype=torch.bool)
    batch.groups = groups_from_annotated(batch.annotated)
    assert_two_processes_agree(single, batch, tiny.plans, configuration)
