"""MS-KD: one frozen teacher per source teaches one student (Feng et al. 2021; METHODS section 2)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import interpolate

from nnunet_partial.labels import told_apart
from nnunet_partial.losses import ms_kd
from nnunet_partial.networks.features import FeatureTap
from nnunet_partial.networks.teachers import find_teachers, load_teacher
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import MSKDSettings
from nnunet_partial.training.base import Batch, PartialTrainer


class nnUNetTrainerMSKD(PartialTrainer):
    """Eq. 8: organ logit terms + lambda_1 * background logit term + lambda_2 * feature terms; no term on the labels.

    With deep supervision the logit terms are taken at every resolution with nnU-Net's weights, or with mskd.scales=full at full
    resolution alone, as printed; the reference at lower resolutions is the teachers' full-resolution output at the nearest
    voxel, as nnU-Net reduces labels. Validation loss is the marginal loss on the labels, so that it can be compared between
    methods.
    """

    short_name, title = "mskd", "MSKD"
    needs_teachers = True
    settings_name, settings_class = "mskd", MSKDSettings
    own: MSKDSettings
    loss_terms = ("organ", "background", "feature")

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        self.teachers = None
        self._find_teachers = lambda: find_teachers(self.annotations, self.own, plans, configuration, fold)
        if not self.training_is_finished(plans, configuration, fold):  # --val needs no teacher
            self._find_teachers()
        return dataset_json

    @property
    def uses_features(self) -> bool:
        """Whether the feature term is part of this method's loss."""
        return "feature" in self.loss_terms and self.own.lambda_feature > 0

    @property
    def trains_every_scale(self) -> bool:
        return super().trains_every_scale and (self.own.scales == "all" or "marginal" in self.loss_terms)

    def on_networks_built(self) -> None:
        level = self.own.feature_level
        self.tap = FeatureTap(unwrap(self.network), level) if self.uses_features else None

    def load_frozen(self) -> None:
        level = self.own.feature_level if self.uses_features else None
        self.teachers = [load_teacher(i, self.annotations, self.device, level) for i in self._find_teachers()]
        for teacher in self.teachers:
            self.print_to_log_file(
                f"Teacher of source {teacher.files.source}: {teacher.files.checkpoint} ({', '.join(teacher.files.classes)})"
            )
        if self._do_i_compile():
            for teacher in self.teachers:
                teacher.network = torch.compile(teacher.network)

    def compute_losses(self, batch: Batch) -> dict:
        taught = self.teach(batch)
        return self.distillation(self.network(batch.data), taught, batch)

    def taught_classes(self, cases: Sequence[str]) -> set:
        """What the teachers know."""
        return told_apart(name for files in self._find_teachers() for name in files.classes)

    def teach(self, batch: Batch) -> list:
        """(logits, features or None) of each teacher. In a cascade they see the image alone, not the previous stage."""
        return [teacher(batch.image) for teacher in self.teachers]

    def distillation(self, output: Any, taught: Sequence[tuple], batch: Batch) -> dict:
        """The terms of Eq. 8, weighted; ``taught`` as :meth:`teach` returns it."""
        teacher_logits, teacher_features = [i for i, _ in taught], [i for _, i in taught]
        outputs = output if isinstance(output, (list, tuple)) else [output]
        classes = [i.classes for i in self.teachers]
        organ = background = 0
        weights = self.deep_supervision_weights() if self.own.scales == "all" else (1.0,)
        for weight, logits, target in zip(weights, outputs, batch.targets):
            if weight:
                references = [at_resolution(i, logits.shape[2:]) for i in teacher_logits]
                terms = ms_kd.logit_loss(logits, references, classes, self.valid(target))
                organ, background = organ + weight * terms[0], background + weight * terms[1]
        losses = {"organ": organ, "background": self.own.lambda_background * background}
        if "feature" in self.loss_terms:
            losses["feature"] = self.own.lambda_feature * self.feature_term(
                teacher_logits, teacher_features, organ, self.valid(batch.full_resolution_target)
            )
        return losses

    def feature_term(
        self,
        teacher_logits: Sequence[torch.Tensor],
        teacher_features: Sequence[Any],
        like: torch.Tensor,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Eq. 7, summed over teachers; zero where lambda_feature switches it off."""
        if self.tap is None:
            return torch.zeros_like(like)
        student = self.tap.take()
        organs, _ = ms_kd.teacher_regions(teacher_logits)
        masks = [ms_kd.reduce_mask(i, student.shape[2:]) for i in organs]
        valid = None if valid is None else ms_kd.reduce_mask(valid, student.shape[2:])
        return ms_kd.feature_loss(student, teacher_features, masks, valid)


class nnUNetTrainerMSKDLW(nnUNetTrainerMSKD):
    """Ablation "LW" of Table 1: logit terms only."""

    short_name, title = "mskdlw", "MSKDLW"
    loss_terms = ("organ", "background")


class nnUNetTrainerMSKDPlus(nnUNetTrainerMSKD):
    """MS-KD and the marginal loss on the labels."""

    short_name, title = "mskdplus", "MSKDPlus"
    loss_terms = ("organ", "background", "feature", "marginal")

    def taught_classes(self, cases: Sequence[str]) -> set:
        return super().taught_classes(cases) | PartialTrainer.taught_classes(self, cases)

    def compute_losses(self, batch: Batch) -> dict:
        taught, output = self.teach(batch), self.network(batch.data)
        losses = self.distillation(output, taught, batch)
        return {**losses, "marginal": self.own.lambda_marginal * self.marginal_loss(output, batch)}


def at_resolution(logits: torch.Tensor, spatial_shape: Sequence[int]) -> torch.Tensor:
    """logits (B, C, *S) at the nearest voxels of a lower resolution."""
    if logits.shape[2:] == tuple(spatial_shape):
        return logits
    return interpolate(logits, size=tuple(spatial_shape), mode="nearest-exact")
