"""ATSO: one model of one generation (Huo et al. 2021, Algorithm 1; METHODS section 4)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_partial.data.preprocessed.label_directory import LabelDirectory
from nnunet_partial.data.preprocessed.relabel import RelabelTransform, relabel_locations
from nnunet_partial.errors import UserError, exit_on_user_error
from nnunet_partial.files import load_checkpoint, read_json, write_json
from nnunet_partial.labels import KEY, Annotations, check_super_classes, super_structures
from nnunet_partial.networks.unwrap import unwrap
from nnunet_partial.settings import ATSOSettings
from nnunet_partial.training import validation
from nnunet_partial.training.base import Batch, PartialTrainer

TRAINING_CASES = "training_cases.json"


class nnUNetTrainerATSO(PartialTrainer):
    """The planned network on the labelled cases and, with the setting ``labels``, on those of that label directory.

    It trains on every case that annotates something, with the marginal loss; without ``labels`` that is M0. With them also on
    the pseudo-labelled cases. A case that annotates something and has no pseudo labels in that directory, or is one of
    ``atso.exclude``, keeps its manual labels, whichever model it is: Algorithm 1, lines 8 and 9, with S as all manual labels.
    It starts from ``atso.initial_weights`` if they are set. Pseudo labels may be trusted at the level of
    ``atso.super_classes`` only: their members are then one group in the loss. With ``atso.task=super_classes`` the
    super-classes are all that the network tells apart, unions of classes as outputs: the paper's reduced task, whose model
    labels for a network of all classes. What was trained on is written to ``training_cases.json``.
    """

    short_name, title = "atso", "ATSO"
    settings_name, settings_class = "atso", ATSOSettings
    own: ATSOSettings

    def preflight(self, plans: Mapping[str, Any], configuration: str, fold: Any, dataset_json: dict) -> dict:
        check_super_classes(self.own.super_classes, self.annotations.classes)
        if self.is_coarse:
            dataset_json = self._coarsened(dataset_json)
        weights = self.own.initial_weights
        if weights and self.settings.initial_weights:
            raise UserError(
                f"plans {plans['plans_name']}: initial_weights has no effect beside atso.initial_weights, which takes all weights. Leave "
                "one out (--set initial_weights=None)."
            )
        if weights and not Path(weights).is_file() and not self.training_is_finished(plans, configuration, fold):
            raise UserError(
                f"plans {plans['plans_name']}: atso.initial_weights {weights} does not exist. Train that model first."
            )
        return dataset_json

    def _read_labels(self, plans: Mapping[str, Any], configuration: str, fold: Any) -> LabelDirectory | None:
        if self.settings.labels is None:
            return None  # M0: what the setting exclude leaves out are the labels of later generations
        labels = super()._read_labels(plans, configuration, fold)
        if labels is None or not self.own.exclude:
            return labels
        if not Path(self.own.exclude).is_file():
            raise UserError(
                f"plans {plans['plans_name']}: atso.exclude {self.own.exclude} does not exist. Leave it out, or write it."
            )
        return labels.without(self.excluded)

    @cached_property
    def excluded(self) -> frozenset:
        """Cases whose pseudo labels are left out; their manual labels are not."""
        return frozenset(read_json(self.own.exclude)["excluded"]) if self.own.exclude else frozenset()

    # ------------------------------------------------------------------ super-classes as a task of their own

    @property
    def is_coarse(self) -> bool:
        """Whether the network tells super-classes apart alone."""
        return self.own.task == "super_classes"

    def _coarsened(self, dataset_json: dict) -> dict:
        """The dataset.json to train with; labels are numbered anew as they are read."""
        if not self.own.super_classes:
            raise UserError("atso.task=super_classes needs atso.super_classes, super-class -> list of classes.")
        complete = self.dataset_annotations
        self.structures = super_structures(self.own.super_classes, complete.classes)
        self.annotations, self.label_map = complete.coarsened(self.structures), complete.values_after(self.structures)
        if complete.ignore_label is None:  # pseudo labels mark what is doubtful by the value behind those of the classes
            self.label_map[len(complete.classes) + 1] = len(self.structures) + 1
        own = {**dataset_json, "labels": self.annotations.labels()}
        return {**own, KEY: self.annotations.to_json()} if self.annotations.is_partial else own

    @property
    def ignored_value(self) -> int | None:
        ignored = super().ignored_value
        doubtful = ignored is not None and self.label_manager.ignore_label is None
        return len(self.structures) + 1 if self.is_coarse and doubtful else ignored

    def completed_annotations(self) -> Annotations:
        if self.labels is None or not self.is_coarse:
            return super().completed_annotations()
        return self.labels.annotations(self.dataset_annotations).coarsened(self.structures)

    def get_tr_and_val_datasets(self) -> tuple:
        datasets = super().get_tr_and_val_datasets()
        if not self.is_coarse:
            return datasets
        return tuple(relabel_locations(i, self.label_map, len(self.structures)) for i in datasets)

    def get_training_transforms(self, *args, **kwargs):
        return self._renumbered(super().get_training_transforms(*args, **kwargs))

    def get_validation_transforms(self, *args, **kwargs):
        return self._renumbered(super().get_validation_transforms(*args, **kwargs))

    def _renumbered(self, transforms: Any) -> Any:
        return ComposeTransforms([RelabelTransform(self.label_map), transforms]) if self.is_coarse else transforms

    def metrics_on_folder(self, folder_truth: str, folder_predicted: str, *args, **kwargs) -> dict:
        if not self.is_coarse:
            return super().metrics_on_folder(folder_truth, folder_predicted, *args, **kwargs)
        return validation.metrics_on_annotated(
            self.annotations, folder_truth, folder_predicted, *args, **kwargs, label_map=self.label_map
        )

    # ------------------------------------------------------------------ where it starts

    def on_networks_built(self) -> None:
        if self.own.initial_weights and not any(self._folder.glob("checkpoint_*.pth")):
            with exit_on_user_error():
                self._load_initial_weights(Path(self.own.initial_weights))

    @property
    def _folder(self) -> Path:
        """Of the checkpoints."""
        assert self.output_folder is not None  # of a trainer that trains
        return Path(self.output_folder)

    def _load_initial_weights(self, file: Path) -> None:
        """All weights, those of the segmentation layers too, which nnU-Net's ``-pretrained_weights`` leaves out."""
        weights = load_checkpoint(file, map_location=self.device)["network_weights"]
        try:
            unwrap(self.network).load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"atso.initial_weights {file} do not fit the planned network: {error}. Train both with the "
                f"same plans, or leave the setting out."
            ) from None
        self.print_to_log_file(f"Starting from the weights of {file}")

    # ------------------------------------------------------------------ what it trains on

    def do_split(self) -> tuple:
        training, validating = super().do_split()
        if self.training_is_over:
            return training, validating
        training = [i for i in training if self._trains_on(i)]
        validating = [i for i in validating if self.dataset_annotations.of(i).annotated]  # fold all holds every case
        if not training:
            with exit_on_user_error():
                raise UserError(
                    f"fold {self.fold} has no training case that annotates anything"
                    f"{'' if self.labels is None else ' or is pseudo-labelled'}."
                )
        return training, validating

    @property
    def training_is_over(self) -> bool:
        """Whether only validation is left; the label directory has then not been read."""
        return self.labels is None and self.settings.labels is not None

    def _trains_on(self, case: str) -> bool:
        return bool(self.dataset_annotations.of(case).annotated) or self._is_pseudo_labelled(case)

    def _is_pseudo_labelled(self, case: str) -> bool:
        annotated = self.dataset_annotations.of(case).annotated
        return self.labels is not None and case in self.labels.known and len(annotated) < len(self.dataset_annotations.classes)

    def _pseudo_labelled(self, cases: Sequence[str]) -> list:
        return [i for i in cases if self._is_pseudo_labelled(i)]

    def check_labels(self, labels, cases: Sequence[str]) -> None:
        pseudo = self._pseudo_labelled(cases)
        super().check_labels(labels, pseudo)

    def cases_with_own_labels(self, cases: Sequence[str]) -> Sequence[str]:
        return [i for i in cases if not self._is_pseudo_labelled(i)]

    def on_train_start(self) -> None:
        for leftover in self._folder.glob(".tmp-*"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        super().on_train_start()
        if self.local_rank == 0 and not self.training_is_over:
            cases = self.do_split()[0]
            pseudo = set(self._pseudo_labelled(cases))
            write_json(
                {
                    "labels": self.settings.labels,
                    "initial_weights": self.own.initial_weights,
                    "labelled": [i for i in cases if i not in pseudo],
                    "pseudo_labelled": sorted(pseudo),
                    "excluded": sorted(self.excluded if self.labels else ()),
                },
                self._folder / TRAINING_CASES,
            )

    # ------------------------------------------------------------------ super-classes

    def to_device(self, batch: Mapping[str, Any], training: bool = True) -> Batch:
        made = super().to_device(batch, training)
        if training and self.own.super_classes and not self.is_coarse:
            made.groups = super_class_groups(made.groups, made.truth_groups, self._super_class_values())
        return made

    def _super_class_values(self) -> list:
        index = self.annotations.classes.index
        return [sorted(index(i) + 1 for i in members) for members in self.own.super_classes.values()]

    # ------------------------------------------------------------------ afterwards

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if self.own.final_validation:
            super().perform_actual_validation(save_probabilities)
        else:
            self.print_to_log_file("No final validation: atso.final_validation is off.")


def super_class_groups(groups: torch.Tensor, truth_groups: torch.Tensor, members: Sequence[Sequence[int]]) -> torch.Tensor:
    """The partition of each sample's classes where its pseudo labels are right up to super-classes only.

    ``groups`` (B, K + 1) int, the partition that the labels distinguish; ``truth_groups`` (B, K + 1) int, the partition that
    annotations alone tell apart, 0 for classes that are no more than pseudo labels; ``members`` the label values of each
    super-class. Returns groups (B, K + 1) int64: pseudo-labelled classes of one super-class, and what is in one group with them,
    share the lowest of their values. What is annotated stays by itself, and so does the outline of a union: within it, pseudo
    labels divide up to super-classes.
    """
    groups = groups.clone()
    for values in members:
        for own, outline in zip(groups, truth_groups.cpu()):
            for of in set(outline[list(values)].tolist()):
                alike = [i for i in values if own[i] != 0 and outline[i] == of]
                if alike:
                    own[torch.isin(own, own[alike])] = own[alike].min()
    return groups
