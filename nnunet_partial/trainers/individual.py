"""The planned network on one source, with that source's classes: a teacher, and the baseline "individual"."""

from collections.abc import Mapping
from typing import Any

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_partial import paths
from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.relabel import RelabelTransform, relabel_locations
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.labels import KEY
from nnunet_partial.training import validation
from nnunet_partial.training.base import PartialTrainer


class nnUNetTrainerIndividual(PartialTrainer):
    """Trains on the cases of the source that the plans variant names (``source``).

    The model's dataset.json lists that source's classes alone, numbered from 1, so that stock nnU-Net predicts with it
    as with any other model; classes that no case of it tells apart are one, called ``kidney_left+kidney_right``. On a source whose cases annotate different classes the loss is marginal.
    """

    short_name, title = "individual", "Individual"

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        if self.settings.source is None:
            number = paths.dataset_number(plans["dataset_name"])
            raise UserError(
                f"plans {plans['plans_name']}: nnUNetTrainerIndividual needs the setting source. Make its plans with: "
                f"nnunet_partial variant {number} --base {plans['plans_name']} --name SOURCE --set "
                f"source=SOURCE (sources: {', '.join(self.annotations.annotated_sources)})"
            )
        complete, self.annotations = self.annotations, self.annotations.restricted_to_source(self.settings.source)
        atoms = complete.classes_of_source(self.settings.source)  # what is not told apart is one output
        self.label_map = {value: i for i, atom in enumerate(atoms, 1) for value in complete.values_of(atom)}
        if complete.ignore_label is not None:
            assert self.annotations.ignore_label is not None  # a restriction to a source keeps it
            self.label_map[complete.ignore_label] = self.annotations.ignore_label
        own = {**dataset_json, "labels": self.annotations.labels()}
        if self.annotations.is_partial:
            own[KEY] = self.annotations.to_json()
        if "dataset" in own:
            own["dataset"] = {k: v for k, v in own["dataset"].items() if k in self.annotations.cases}
        return own

    def _read_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory | None:
        if self.settings.labels is not None:
            raise UserError(
                f"plans {plans['plans_name']}: nnUNetTrainerIndividual learns from the labels of its source alone; the setting labels has "
                "no place in it. Leave it out (--set labels=None)."
            )
        return super()._read_labels(plans, configuration, fold)

    def do_split(self) -> tuple:
        training, validating = super().do_split()
        if not self.annotations.is_partial:
            return training, validating
        training, validating = ([i for i in keys if i in self.annotations.cases] for keys in (training, validating))
        if not training:
            with exit_on_user_error():
                raise UserError(
                    f"fold {self.fold} of splits_final.json has no training case of source {self.settings.source}. "
                    f"Train another fold, or 'all'."
                )
        return training, validating

    def get_tr_and_val_datasets(self) -> tuple:
        training, validating = super().get_tr_and_val_datasets()
        if not validating.identifiers:
            self.print_to_log_file(
                f"WARNING: fold {self.fold} has no validation case of source {self.settings.source}; the "
                f"pseudo Dice is that of training cases."
            )
            validating.identifiers = list(training.identifiers)
        return tuple(relabel_locations(i, self.label_map, len(self.annotations.classes)) for i in (training, validating))

    def get_training_transforms(self, *args, **kwargs):
        return ComposeTransforms([RelabelTransform(self.label_map), super().get_training_transforms(*args, **kwargs)])

    def get_validation_transforms(self, *args, **kwargs):
        return ComposeTransforms([RelabelTransform(self.label_map), super().get_validation_transforms(*args, **kwargs)])

    def metrics_on_folder(self, folder_truth: str, folder_predicted: str, *args, **kwargs) -> dict:
        return validation.metrics_on_annotated(
            self.annotations, folder_truth, folder_predicted, *args, **kwargs, label_map=self.label_map
        )
