"""Self-training: nnU-Net's loss on pseudo-completed labels (the baseline of Huang et al. 2020, Table 1)."""

from nnunet_partial.training.base import PartialTrainer


class nnUNetTrainerSelfTraining(PartialTrainer):
    """The planned network on the label directory that the setting ``labels`` names.

    Where annotated and pseudo classes together are all classes, the loss is nnU-Net's own Dice + CE; a class that a
    case still lacks is merged with background. Validation has the true labels and scores annotated classes only.
    """

    short_name, title = "selftraining", "SelfTraining"
    needs_labels = True
