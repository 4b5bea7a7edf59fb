"""How several models' probabilities of the same classes become one label map."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

CLAIMS = "claims"  # for models that know different classes: every class from those that know it
#: rule -> what it does with models that all know the same classes
RULES: Mapping[str, str] = MappingProxyType(
    {
        "vote": "majority of the models' label maps, among equally many the label of the higher mean probability",
        "mean": "highest mean probability",
        "max": "highest probability of any model",
    }
)


class Fusion:
    """Takes the probabilities of one model after another; holds one sum of them, and the votes.

    Huo et al. 2021, section 4.1, fuse three views by majority voting and do not say what decides between three different
    labels; here it is the mean probability.
    """

    def __init__(self, rule: str):
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is none of {', '.join(RULES)}")
        self.rule, self.models = rule, 0
        self.total: np.ndarray | None = None
        self.votes: np.ndarray | None = None

    def add(self, probabilities: np.ndarray) -> None:
        """``probabilities`` (C, *S) of one model, background first."""
        probabilities = np.asarray(probabilities, np.float32)
        if self.total is None:
            self.total = np.zeros_like(probabilities)
            self.votes = np.zeros(probabilities.shape, np.uint8) if self.rule == "vote" else None
        self.models += 1
        (np.maximum if self.rule == "max" else np.add)(self.total, probabilities, out=self.total)
        if self.votes is not None:
            best = probabilities.argmax(0)
            for i, votes in enumerate(self.votes):
                votes += best == i

    def result(self) -> tuple:
        """``(index (*S) of the chosen channel, its probability (*S) float32)``: the mean of all models, with ``max`` the highest."""
        if self.total is None:
            raise ValueError("no model has been added")
        score = self.total if self.rule == "max" else self.total / self.models
        allowed = score if self.votes is None else np.where(self.votes == self.votes.max(0), score, -1)
        index = allowed.argmax(0)
        return index, np.take_along_axis(score, index[None], 0)[0]
