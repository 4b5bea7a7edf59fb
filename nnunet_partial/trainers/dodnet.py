"""DoDNet (Zhang et al. 2021; METHODS section 6): one network whose head is written anew for each image and class."""

from torch import nn

from nnunet_partial.networks.dodnet import CHANNELS, DoDNet
from nnunet_partial.networks.planned import planned_unet
from nnunet_partial.training.one_against_rest import OneAgainstRestTrainer


class nnUNetTrainerDoDNet(OneAgainstRestTrainer):
    """The planned U-Net with dynamic heads. With deep supervision, which the paper does not use, the heads read every
    resolution (``--set deep_supervision=false`` leaves it out)."""

    short_name, title = "dodnet", "DoDNet"

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ) -> nn.Module:
        """Of plans alone: stock nnU-Net calls this to predict."""
        unet = planned_unet(plans_manager, configuration_manager, num_input_channels, CHANNELS[0], enable_deep_supervision)
        return DoDNet(unet, num_output_channels - 1)
