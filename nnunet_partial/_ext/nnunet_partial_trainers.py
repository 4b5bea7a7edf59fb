"""The one module that nnU-Net's search for external trainers reads.

nnU-Net removes modules of this folder from ``sys.modules`` after its search, so no class is defined here: a class
defined here would exist twice, once for each search.
"""

from nnunet_partial.trainers import *  # noqa: F403
from nnunet_partial.training.plans_there_are import name_what_there_is

name_what_there_is()
