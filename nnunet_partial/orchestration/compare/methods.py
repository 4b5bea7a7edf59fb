"""The methods that a comparison trains: what each is called, which trainer it is, and what it needs before."""

from collections.abc import Iterable
from dataclasses import dataclass

from nnunet_partial.errors import UserError

TEACHER = "nnUNetTrainerIndividual"
NEEDS = ("teachers", "labels")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    ``title``   what reports call it
    ``trainer`` is trained with the comparison's plans
    ``needs``   ``teachers``: one trained teacher per source; ``labels``: labels that the teachers have completed
    ``kind``    ``trainer``; ``fused``: the teachers' own predictions, fused; ``full``: on the dataset with all labels;
                ``atso``: the loop of scripts/atso_loop.py
    """

    title: str
    trainer: str
    needs: tuple = ()
    kind: str = "trainer"

    @property
    def taught(self) -> bool:
        """Whether it needs trained teachers."""
        return bool(self.needs) or self.kind == "fused"

    @property
    def labelled(self) -> bool:
        """Whether it trains on labels that the teachers have completed."""
        return "labels" in self.needs


_LABELS, _TEACHERS = ("teachers", "labels"), ("teachers",)
METHODS = {
    "naive": Method("naive nnU-Net", "nnUNetTrainerNaive"),
    "individual": Method("Individual", TEACHER, kind="fused"),
    "partial": Method("Partial", "nnUNetTrainerPartial"),
    "selftraining": Method("SelfTraining", "nnUNetTrainerSelfTraining", _LABELS),
    "cotraining": Method("CoTraining", "nnUNetTrainerCoTraining", _LABELS),
    "cotraining-ct": Method("CoTraining CT", "nnUNetTrainerCoTrainingCT", _LABELS),
    "cotraining-wa": Method("CoTraining WA", "nnUNetTrainerCoTrainingWA", _LABELS),
    "cotraining-ctwa": Method("CoTraining CT+WA", "nnUNetTrainerCoTrainingCTWA", _LABELS),
    "cotraining-ibn": Method("CoTraining IBN", "nnUNetTrainerCoTrainingIBN", _LABELS),
    "mskd": Method("MSKD", "nnUNetTrainerMSKD", _TEACHERS),
    "mskdlw": Method("MSKDLW", "nnUNetTrainerMSKDLW", _TEACHERS),
    "mskdplus": Method("MSKDPlus", "nnUNetTrainerMSKDPlus", _TEACHERS),
    "crossteaching": Method("CrossTeaching", "nnUNetTrainerCrossTeaching"),
    "atso": Method("ATSO", "nnUNetTrainerATSO", kind="atso"),
    "full": Method("fully supervised", "nnUNetTrainerPartial", kind="full"),
}


def find_methods(names: Iterable[str]) -> dict:
    """name -> :class:`Method`, in the order given.

    ``trainer=CLASS`` stands for any trainer that stock nnU-Net finds, ``trainer=CLASS:teachers`` and
    ``trainer=CLASS:labels`` for one that needs teachers or completed labels. Raises :class:`UserError` for an unknown or
    repeated name.
    """
    found = {}
    for name in names:
        key, method = _own_trainer(name) if name.startswith("trainer=") else (name, METHODS.get(name))
        if method is None:
            raise UserError(
                f"--methods {name}: there is no such method. Methods: {', '.join(METHODS)}, or trainer=CLASS for "
                "any trainer that nnU-Net finds."
            )
        if key in found:
            raise UserError(f"--methods names {key} twice.")
        found[key] = method
    return found


def _own_trainer(text: str) -> tuple:
    trainer, _, needs = text[len("trainer=") :].partition(":")
    if not trainer.isidentifier() or (needs and needs not in NEEDS):
        raise UserError(f"--methods {text}: write it as trainer=CLASS, trainer=CLASS:teachers or trainer=CLASS:labels.")
    return trainer, Method(trainer, trainer, {"": (), "teachers": _TEACHERS, "labels": _LABELS}[needs])
