"""Marginal (partial-label) supervision alone: METHODS section 0."""
from nnunet_partial.training.base import PartialTrainer


class nnUNetTrainerPartial(PartialTrainer):
    """The planned network on all cases at once; classes that a case does not annotate are merged with background."""
