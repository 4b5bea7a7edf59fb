"""Weights that rise during training."""

import math


def gaussian(t: float, t_max: float) -> float:
    """The Gaussian ramp-up.

        r(t) = exp(-5 (1 - t / t_max)^2),  0 <= t <= t_max

    ``t``      progress, in any unit (epochs, iterations)
    ``t_max``  where the ramp ends, in the same unit
    returns    a float from exp(-5) = 0.0067 at t = 0 to 1 from t = t_max on; 1 for ``t_max`` = 0, that is, no ramp.
               Before t = 0 the value of t = 0

    Weight of cross teaching, pseudo-supervision and distillation in Choi, "Knowledge Distillation from Cross Teaching
    Teachers", 2022; after Laine and Aila, "Temporal Ensembling", 2017. Also lambda_rampup below Eq. 6 of Huang et al., 2020,
    which names a ramp-up and gives no formula: there t_max is a quarter of the training.
    """
    if t_max < 0:
        raise ValueError(f"t_max is {t_max}, expected 0 or more")
    if t >= t_max:
        return 1.0
    return math.exp(-5 * (1 - max(t, 0) / t_max) ** 2)
