"""conditionCNN (Dmitriev and Kaufman 2019; METHODS section 6): one output, and a plane that tells the class."""

from torch import nn

from nnunet_partial.networks.condition_cnn import ConditionCNN
from nnunet_partial.networks.planned import planned_unet
from nnunet_partial.training.one_against_rest import OneAgainstRestTrainer


class nnUNetTrainerConditionCNN(OneAgainstRestTrainer):
    """The planned U-Net whose decoder runs once a class. With deep supervision, which the paper does not use, every
    resolution is taught (``--set deep_supervision=false`` leaves it out)."""

    short_name, title = "conditioncnn", "ConditionCNN"

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        """Of plans alone: stock nnU-Net calls this to predict."""
        unet = planned_unet(plans_manager, configuration_manager, num_input_channels, 1, enable_deep_supervision)
        return ConditionCNN(unet, num_output_channels - 1)
