"""Mean teacher (Tarvainen and Valpola 2017, https://arxiv.org/abs/1703.01780) on partial labels.

L = L_marginal(annotated classes) + lambda r(t) L_consistency(classes that a case does not annotate). The teacher is the average
of the student's weights; it sees the patch, the student sees it with noise. The teacher is deployed.
"""

from dataclasses import dataclass

import torch

from nnunet_partial.losses.ramps import gaussian
from nnunet_partial.networks.ema import EMA
from nnunet_partial.settings import setting
from nnunet_partial.training.base import Batch, PartialTrainer


@dataclass(frozen=True)
class MeanTeacherSettings:
    decay: float = setting(0.99, "of the weight average", low=0, high=0.9999)
    weight: float = setting(1.0, "weight of the consistency term after the ramp-up (lambda)", low=0)
    ramp: float = setting(0.25, "share of the training over which that weight rises (r)", low=0, high=1)
    noise: float = setting(0.1, "of the student's input, in standard deviations of the normalised image", low=0)


def consistency(student: torch.Tensor, teacher: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """``sum_c w_c (p_c - q_c)^2``, a mean over voxels; logits (B, C, *S) of p and q, ``where`` (B, C) bool."""
    squares = (torch.softmax(student.float(), 1) - torch.softmax(teacher.float(), 1)) ** 2
    return torch.einsum("bc...,bc->b...", squares, where.float()).mean()


class nnUNetTrainerMeanTeacher(PartialTrainer):
    """nnUNetTrainerPartial, taught about all other classes by the average of its own weights."""

    title = "Mean teacher"
    settings_name, settings_class = "mean_teacher", MeanTeacherSettings
    own: MeanTeacherSettings
    loss_terms = ("marginal", "consistency")  # both are logged and drawn
    deployed_average = "network"

    def build_averages(self) -> dict:
        return {"network": EMA(self.network, self.own.decay)}

    def compute_losses(self, batch: Batch) -> dict:
        taught = self.average_logits(batch.data)["network"]
        output = self.network(batch.data + self.own.noise * torch.randn_like(batch.data))
        student = output[0] if isinstance(output, (list, tuple)) else output  # deep supervision: full resolution first
        weight = self.own.weight * gaussian(self.elapsed_epochs, self.own.ramp * self.num_epochs)
        losses = {"marginal": self.marginal_loss(output, batch)}
        return {**losses, "consistency": weight * consistency(student, taught, ~batch.annotated)}
