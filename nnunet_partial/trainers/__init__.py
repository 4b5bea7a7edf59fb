"""nnU-Net trainers, one short file a method. Every name here is found by ``nnUNetv2_train -tr NAME``."""

from nnunet_partial.trainers.atso import nnUNetTrainerATSO
from nnunet_partial.trainers.co_training import (
    nnUNetTrainerCoTraining,
    nnUNetTrainerCoTrainingCT,
    nnUNetTrainerCoTrainingCTWA,
    nnUNetTrainerCoTrainingIBN,
    nnUNetTrainerCoTrainingWA,
)
from nnunet_partial.trainers.cross_teaching import (
    nnUNetTrainerCrossTeaching,
    nnUNetTrainerCrossTeachingCTS,
    nnUNetTrainerCrossTeachingFSL,
    nnUNetTrainerCrossTeachingFSLKD,
    nnUNetTrainerCrossTeachingNoKD,
    nnUNetTrainerCrossTeachingNoPSV,
    nnUNetTrainerCrossTeachingSD,
    nnUNetTrainerCrossTeachingSSLKD,
    nnUNetTrainerCrossTeachingSSLKDPSV,
    nnUNetTrainerCrossTeachingSSLPSV,
)
from nnunet_partial.trainers.individual import nnUNetTrainerIndividual
from nnunet_partial.trainers.ms_kd import nnUNetTrainerMSKD, nnUNetTrainerMSKDLW, nnUNetTrainerMSKDPlus
from nnunet_partial.trainers.naive import nnUNetTrainerNaive
from nnunet_partial.trainers.partial import nnUNetTrainerPartial
from nnunet_partial.trainers.self_training import nnUNetTrainerSelfTraining

__all__ = [
    "nnUNetTrainerATSO",
    "nnUNetTrainerCoTraining",
    "nnUNetTrainerCoTrainingCT",
    "nnUNetTrainerCoTrainingCTWA",
    "nnUNetTrainerCoTrainingIBN",
    "nnUNetTrainerCoTrainingWA",
    "nnUNetTrainerCrossTeaching",
    "nnUNetTrainerCrossTeachingCTS",
    "nnUNetTrainerCrossTeachingFSL",
    "nnUNetTrainerCrossTeachingFSLKD",
    "nnUNetTrainerCrossTeachingNoKD",
    "nnUNetTrainerCrossTeachingNoPSV",
    "nnUNetTrainerCrossTeachingSD",
    "nnUNetTrainerCrossTeachingSSLKD",
    "nnUNetTrainerCrossTeachingSSLKDPSV",
    "nnUNetTrainerCrossTeachingSSLPSV",
    "nnUNetTrainerSelfTraining",
    "nnUNetTrainerIndividual",
    "nnUNetTrainerMSKD",
    "nnUNetTrainerMSKDLW",
    "nnUNetTrainerMSKDPlus",
    "nnUNetTrainerNaive",
    "nnUNetTrainerPartial",
]
