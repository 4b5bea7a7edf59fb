"""The baseline that every method is compared with: partial labels taken at face value."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_partial.labels import Annotations, members
from nnunet_partial.training import validation
from nnunet_partial.training.base import PartialTrainer


class nnUNetTrainerNaive(PartialTrainer):
    """nnU-Net as it is, with the settings of a plans variant: on every labelled case, what is not annotated is background,
    and a union is its lowest class, as the label files say.

    With all classes annotated the loss is nnU-Net's own Dice + CE, so on a fully labelled dataset this is plain nnU-Net.
    Validation still scores the annotated classes only.
    """

    short_name, title = "naive", "naive nnU-Net"
    learns_from_unlabelled = False

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        self.annotations = Annotations(self.dataset_annotations.classes, None, self.dataset_annotations.ignore_label)
        return dataset_json

    def taught_classes(self, cases: Sequence[str]) -> set:
        """On every case all classes are taken for annotated; that a class is background everywhere teaches nothing."""
        return {members(item)[0] for case in cases for item in self.dataset_annotations.of(case).annotated}

    def metrics_on_folder(self, folder_truth: str, folder_predicted: str, *args, **kwargs) -> dict:
        return validation.metrics_on_annotated(self.dataset_annotations, folder_truth, folder_predicted, *args, **kwargs)
