"""Marginal (partial-label) supervision alone: METHODS section 0."""

from nnunet_partial.training.base import PartialTrainer


class nnUNetTrainerPartial(PartialTrainer):
    """The planned network on all annotated cases at once; classes that a case lacks are merged with background.

    A case without any annotation has no gradient in this loss, so it takes no place in a batch.
    """

    short_name, title = "partial", "Partial"
    learns_from_unlabelled = False
