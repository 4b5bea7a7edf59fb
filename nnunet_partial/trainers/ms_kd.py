"""MS-KD: one frozen teacher per source teaches one student (Feng et al. 2021; METHODS section 2)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import interpolate

from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.soft_labels import log_probabilities
from nnunet_partial.errors import UserError
from nnunet_partial.labels import members, told_apart
from nnunet_partial.losses import ms_kd
from nnunet_partial.networks.features import FeatureTap
from nnunet_partial.networks.teachers import find_teachers, load_teacher
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import MSKDSettings
from nnunet_partial.training.base import Batch, PartialTrainer


class nnUNetTrainerMSKD(PartialTrainer):
    """Eq. 8: organ logit terms + lambda_1 * background logit term + lambda_2 * feature terms; no term on the labels.

    With deep supervision the logit terms are taken at every resolution with nnU-Net's weights, or with mskd.scales=full at full
    resolution alone, as printed; mskd.by_region changes what they are divided by at the start. The reference at lower
    resolutions is the teachers' full-resolution output at the nearest voxel, as nnU-Net reduces labels. Validation loss is the
    marginal loss on the labels, so that it can be compared between methods.

    With mskd.teachers=soft the soft labels of the label directory take the teachers' place: no teacher is in memory, and labels
    stay those of the dataset. Soft labels have no features, so mskd.lambda_feature must be 0 where there is a feature term.
    Classes that no teacher knows (MSKDPlus learns them from labels) are to all teachers part of background.
    """

    short_name, title = "mskd", "MSKD"
    needs_teachers = True
    settings_name, settings_class = "mskd", MSKDSettings
    own: MSKDSettings
    loss_terms = ("organ", "background", "feature")

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        self.teachers = None
        if self.own.learns_from_soft_labels:
            self._check_soft_settings(plans["plans_name"])
            return dataset_json
        self._find_teachers = lambda: find_teachers(
            self.annotations, self.own, plans, configuration, fold, device=self.given_device
        )
        if not self.training_is_finished(plans, configuration, fold):  # --val needs no teacher
            self._find_teachers()
        return dataset_json

    def _check_soft_settings(self, plans: str) -> None:
        """A setting that soft labels cannot heed is an error."""
        if self.uses_features:
            raise UserError(
                f"plans {plans}: mskd.teachers=soft gives {type(self).__name__} no features to learn from (mskd.lambda_feature="
                f"{self.own.lambda_feature:g}). Set mskd.lambda_feature=0, or train nnUNetTrainerMSKDLW."
            )
        if self.own.sources is not None:
            raise UserError(
                f"plans {plans}: mskd.sources has no effect with mskd.teachers=soft, which learns from every model that made the "
                "soft labels. Leave it out (--set mskd.sources=None)."
            )

    def _read_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory | None:
        if not self.own.learns_from_soft_labels:
            return super()._read_labels(plans, configuration, fold)
        self.read_soft_labels(plans, configuration, fold)
        return None  # labels stay the dataset's own

    def check_cases(self, cases: Sequence[str]) -> None:
        super().check_cases(cases)
        if self.soft is not None:
            self.soft.require_cases(cases, self._labels_remedy)

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
        if self.soft is not None:
            self.print_to_log_file(f"Soft labels in the teachers' place: {self.soft.directory.folder}")
            return
        level = self.own.feature_level if self.uses_features else None
        self.teachers = [load_teacher(i, self.annotations, self.device, level) for i in self._find_teachers()]
        for teacher in self.teachers:
            self.print_to_log_file(
                f"Teacher of source {teacher.files.source}: {teacher.files.checkpoint} ({', '.join(teacher.files.classes)})"
            )
        if self._do_i_compile():
            for teacher in self.teachers:
                teacher.network = cast(nn.Module, torch.compile(teacher.network))

    def compute_losses(self, batch: Batch) -> dict:
        taught = self.teach(batch)
        return self.distillation(self.network(batch.data), taught, batch)

    def taught_classes(self, cases: Sequence[str]) -> set:
        """What the teachers know."""
        return told_apart(name for classes in self.known_by_teachers for name in classes)

    @property
    def known_by_teachers(self) -> Sequence[Sequence[str]]:
        """The structures of each teacher's outputs."""
        return [i.classes for i in self._find_teachers()] if self.soft is None else self.soft.models

    @cached_property
    def teacher_outputs(self) -> list:
        """The student's class, or tuple of classes, of each teacher's foreground outputs."""
        return [self.annotations.outputs(i) for i in self.known_by_teachers]

    @cached_property
    def unknown_to_teachers(self) -> tuple:
        """Values of the classes that no teacher knows."""
        known = {c for classes in self.known_by_teachers for item in classes for c in members(item)}
        return tuple(value for value, name in enumerate(self.annotations.classes, 1) if name not in known)

    def teach(self, batch: Batch) -> list:
        """(logits, features or None) of each teacher. In a cascade they see the image alone, not the previous stage."""
        if self.soft is not None:
            assert batch.soft is not None  # the data loader of soft labels gives it
            return [(log_probabilities(i), None) for i in self.soft.split(batch.soft)]
        assert self.teachers is not None  # loaded before the first step
        return [teacher(batch.image) for teacher in self.teachers]

    def by_region(self) -> float:
        """How far the logit terms are divided by their own regions now: 1 at the start, 0 from the share ``mskd.by_region`` on."""
        length = self.own.by_region * self.num_epochs
        return max(0.0, 1 - self.elapsed_epochs / length) if length else 0.0

    def distillation(self, output: Any, taught: Sequence[tuple], batch: Batch) -> dict:
        """The terms of Eq. 8, weighted; ``taught`` as :meth:`teach` returns it."""
        teacher_logits, teacher_features = [i for i, _ in taught], [i for _, i in taught]
        outputs = output if isinstance(output, (list, tuple)) else [output]
        organ: Any = 0
        background: Any = 0
        weights = self.deep_supervision_weights() if self.own.scales == "all" else (1.0,)
        by_region = self.by_region()
        for weight, logits, target in zip(weights, outputs, batch.targets):
            if weight:
                references = [at_resolution(i, logits.shape[2:]) for i in teacher_logits]
                terms = ms_kd.logit_loss(
                    logits, references, self.teacher_outputs, self.valid(target), self.unknown_to_teachers, by_region
                )
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
