"""Methods that predict with the average of their network's weights, as co-training does: what the average brings to others.

export nnUNet_extTrainer=$PWD/benchmarks/trainers
python benchmarks/accuracy.py abdomen --work WORK --steps 4000 --methods trainer=nnUNetTrainerPartialAveraged
python benchmarks/accuracy.py abdomen --work WORK --steps 4000 --methods trainer=nnUNetTrainerSelfTrainingAveraged

Only prediction and validation see the average: the loss, and so the network that is trained, are the method's own.
"""

from nnunet_partial.networks.ema import EMA
from nnunet_partial.trainers.partial import nnUNetTrainerPartial
from nnunet_partial.trainers.self_training import nnUNetTrainerSelfTraining
from nnunet_partial.training.base import PartialTrainer


def decay(steps: int) -> float:
    """Averages over a quarter of the training, at most the 0.999 of Huang 2020: co_training.ema_decay of benchmarks/accuracy.py."""
    return max(0.0, min(0.999, 1 - 4 / steps))


def average_of(trainer: PartialTrainer) -> dict:
    """What ``build_averages`` returns, for the length of this training."""
    return {"network": EMA(trainer.network, decay(trainer.num_epochs * trainer.num_iterations_per_epoch))}


class nnUNetTrainerPartialAveraged(nnUNetTrainerPartial):
    title = "Partial, averaged"
    deployed_average = "network"
    build_averages = average_of


class nnUNetTrainerSelfTrainingAveraged(nnUNetTrainerSelfTraining):
    title = "SelfTraining, averaged"
    deployed_average = "network"
    build_averages = average_of
