"""How several models' probabilities of the same classes become one label map."""

from collections.abc import Mapping, Sequence
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

    ``groups``  the super-class of each channel, numbers from 0: the rule then chooses a super-class, whose probability is the sum of
                its members', and of its members the one of the highest mean (with ``max`` highest) probability is taken
    """

    def __init__(self, rule: str, groups: Sequence[int] | None = None):
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is none of {', '.join(RULES)}")
        self.rule, self.models = rule, 0
        self.groups = None if groups is None else np.asarray(groups)
        self.total: np.ndarray | None = None
        self.votes: np.ndarray | None = None
        self._members = None if groups is None else Fusion("max" if rule == "max" else "mean")

    def add(self, probabilities: np.ndarray) -> None:
        """``probabilities`` (C, *S) of one model, background first."""
        probabilities = np.asarray(probabilities, np.float32)
        if self._members is not None and self.groups is not None:
            self._members.add(probabilities)
            probabilities = np.stack([probabilities[self.groups == i].sum(0) for i in range(self.groups.max() + 1)])
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
        probability = np.take_along_axis(score, index[None], 0)[0]
        return (index if self._members is None else self._best_member(index)), probability

    def _best_member(self, group: np.ndarray) -> np.ndarray:
        """The channel (*S) of the highest probability among those of the super-class that each voxel (*S) was given."""
        assert (
            self.groups is not None and self._members is not None and self._members.total is not None
        )  # asked of super-classes alone
        outside = np.expand_dims(self.groups, tuple(range(1, 1 + group.ndim))) != group
        return np.where(outside, -1, self._members.total).argmax(0)
