"""The methods that a comparison trains: what each is called, which trainer it is, and what it needs before."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nnunet_partial.errors import UserError, did_you_mean
from nnunet_partial.methods import TrainerSource, find_trainer_source, package_trainers

TEACHER = "nnUNetTrainerIndividual"
NEEDS = ("teachers", "labels")
# methods of this package that are not simply trained, tested and compared
KINDS = {"individual": "fused", "atso": "atso"}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    ``title``   what reports call it
    ``trainer`` is trained with the comparison's plans
    ``needs``   ``teachers``: one trained teacher per source; ``labels``: labels that the teachers have completed
    ``kind``    ``trainer``; ``fused``: the teachers' own predictions, fused; ``full``: on the dataset with all labels;
                ``atso``: the loop of ``nnunet_partial atso run``, with the method's name as its strategy
    ``settings_name`` the block of the plans' settings that the trainer declares
    ``soft``    whether the completed labels must hold the teachers' probabilities
    ``own_network`` whether its network is none of stock nnU-Net's, which then cannot run its models
    """

    title: str
    trainer: str
    needs: tuple = ()
    kind: str = "trainer"
    settings_name: str | None = None
    soft: bool = False
    own_network: bool = False

    @property
    def taught(self) -> bool:
        """Whether it needs trained teachers."""
        return bool(self.needs) or self.kind == "fused"

    @property
    def labelled(self) -> bool:
        """Whether it trains on labels that the teachers have completed."""
        return "labels" in self.needs

    @classmethod
    def of(cls, source: TrainerSource, kind: str = "trainer", needs: tuple | None = None) -> "Method":
        """The method that a trainer describes itself as; ``needs``: what it says it needs, unless given."""
        if needs is None:
            needs = _LABELS if source.needs_labels else _TEACHERS if source.needs_teachers else ()
        about = {"settings_name": source.settings_name, "soft": source.needs_soft_labels, "own_network": source.own_network}
        return cls(source.title or source.name, source.name, needs, kind, **about)

    def from_soft_labels(self) -> "Method":
        """This method, soft labels in its teachers' place (mskd.teachers=soft)."""
        return replace(self, needs=_LABELS, soft=True) if self.settings_name == "mskd" else self


_LABELS, _TEACHERS = ("teachers", "labels"), ("teachers",)


def _of_this_package() -> dict:
    named = {i.short_name: i for i in package_trainers().values() if i.short_name}
    methods = {name: Method.of(source, KINDS.get(name, "trainer")) for name, source in sorted(named.items())}
    baselines = {"stso": "STSO", "self-learning": "self-learning"}  # of the ATSO paper: strategies of the same loop
    loops = {name: Method(title, named["atso"].name, kind="atso", settings_name="atso") for name, title in baselines.items()}
    return {**methods, **loops, "full": Method("fully supervised", named["partial"].name, kind="full")}


#: short name -> method; what a trainer of this package says of itself
METHODS = _of_this_package()


def find_methods(names: Iterable[str]) -> dict:
    """name -> :class:`Method`, in the order given.

    ``trainer=CLASS`` stands for any trainer that stock nnU-Net finds, which says by ``needs_teachers`` and ``needs_labels``
    what it needs; ``trainer=CLASS:teachers`` and ``trainer=CLASS:labels`` say it for a trainer that does not. Raises
    :class:`UserError` for an unknown or repeated name, and for a trainer that nnU-Net would not find.
    """
    found = {}
    for name in names:
        key, method = _own_trainer(name) if name.startswith("trainer=") else (name, METHODS.get(name))
        if method is None:
            raise UserError(
                f"--methods {name}: there is no such method. {did_you_mean(name, METHODS)}Methods: {', '.join(METHODS)}, or trainer=CLASS for "
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
    given = {"": None, "teachers": _TEACHERS, "labels": _LABELS}[needs]
    return trainer, Method.of(find_trainer_source(trainer), needs=given)
