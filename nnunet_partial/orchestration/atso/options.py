"""What a run of ATSO is: its arguments, checked."""

import math
from dataclasses import asdict, dataclass

from nnunet_partial import _moved
from nnunet_partial.errors import UserError
from nnunet_partial.labels import check_source_name

STRATEGIES = ("atso", "stso", "self-learning")
FILTERS = ("none", "disagreement", "confidence")
VALIDATIONS = ("none", "final", "all")
STARTS = ("m0", "scratch", "previous")
SCHEDULES = ("constant", "plans")
RULES = ("vote", "mean", "max")  # of pseudo-label and fuse
_TUPLES = ("views", "initial_models")
# the paper repeats the last of RSTN's three stages (section 4.1)
LAST_STAGE = 1 / 3


@dataclass(frozen=True)
class AtsoOptions:
    """Everything that the result of a run depends on. Folders are absolute; ``None`` keeps the default.

    ``plans``             plans of all models, a variant as a rule
    ``run``               name of the run; models, labels and report are kept under it
    ``subsets``           parts of the reference set, each labelled by the model of the part before it
    ``students_from``     models of a generation start from M0, from scratch (the paper's earlier version, arXiv 2006.13461), or
                          from the previous generation's model of the same part (Algorithm 1 without line 7); None: M0, but
                          in self-learning the previous model
    ``fine_tune_schedule``  of every model that starts from another: ``constant``, as the paper, at ``fine_tune_lr``; ``plans``,
                          from the first rate of the plans as M0. None: constant in a new run, and in a run that version 0.1
                          began what it had, the schedule of the plans
    ``fine_tune_fraction``  length of M0's last stage as a share of its epochs: as long is fine-tuning, at the mean learning
                          rate that M0 had in it. None: a third, and the whole with the schedule of the plans
    ``fine_tune_epochs``, ``fine_tune_lr``  given outright instead
    ``final_from``        the last model starts from M0, or from scratch; None: from scratch if students do
    ``initial_model``     model folder that stands for M0, which is then not trained
    ``super_classes``     JSON file, super-class -> classes; or ``unions``, those that the dataset's cases annotate as one
    ``super_class_task``  M0 and all generations are models of the super-classes alone; their labels, unions of classes, then
                          supervise a network of all classes for one generation (section 5.3 of the paper)
    ``filter``            leave out ``filter_share`` of the cases: those whose pseudo labels changed most since the last
                          generation, or are least certain
    ``test_images``, ``test_labels``, ``reference_truth``  read by prediction and report alone
    ``views``             plans of the other views of the images, with ``plans`` those of all: every model is trained once for each,
                          and labels and predictions are what all of them say together, by ``rule`` (None: the majority)
    ``initial_models``    of the views beside ``initial_model``, in their order
    ``trust``             the user vouches for the architecture of ``initial_model``; no result depends on it
    ``validation``        which models predict the fold's validation cases after training
    """

    dataset: str
    configuration: str
    fold: str = "0"
    plans: str = "nnUNetPlans"
    run: str = "atso"
    strategy: str = "atso"
    generations: int = 5
    subsets: int = 2
    seed: int = 0
    fine_tune_epochs: int | None = None
    fine_tune_lr: float | None = None
    final_from: str | None = None
    initial_model: str | None = None
    super_classes: str | None = None
    filter: str = "none"
    filter_share: float = 0.1
    largest_component: bool = False
    disable_tta: bool = False
    test_images: str | None = None
    test_labels: str | None = None
    reference_truth: str | None = None
    validation: str = "final"
    trust: bool = False
    students_from: str | None = None
    fine_tune_schedule: str | None = None
    fine_tune_fraction: float | None = None
    super_class_task: bool = False
    views: tuple = ()
    rule: str | None = None
    initial_models: tuple = ()

    def __post_init__(self):
        check_source_name(self.run)
        for name in _TUPLES:
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        if self.final_from is None:
            object.__setattr__(self, "final_from", "scratch" if self.students_from == "scratch" and self.subsets > 1 else "m0")
        for name, choices in (
            ("strategy", STRATEGIES),
            ("final_from", ("m0", "scratch")),
            ("students_from", (None, *STARTS)),
            ("fine_tune_schedule", (None, *SCHEDULES)),
            ("filter", FILTERS),
            ("validation", VALIDATIONS),
            ("rule", (None, *RULES)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is none of {', '.join(i for i in choices if i)}."
                )
        self._check_numbers()
        self._check_starts()
        self._check_fine_tuning()
        self._check_views()
        if self.test_labels and not self.test_images:
            raise UserError("--test-labels needs --test-images.")

    def _check_numbers(self) -> None:
        if self.generations < 1:
            raise UserError(f"--generations {self.generations}: at least one generation is needed.")
        if self.strategy == "atso" and self.subsets < 2:
            raise UserError(
                f"--subsets {self.subsets}: atso needs at least two, for no model may label what it was "
                f"trained on. One subset is --strategy stso."
            )
        if self.strategy != "atso" and self.subsets != 1:
            raise UserError(
                f"--subsets {self.subsets}: {self.strategy} trains on the whole reference set at once. Leave --subsets out."
            )
        if self.strategy != "atso" and self.final_from != "m0":
            raise UserError(
                f"--final-from {self.final_from}: the last model of {self.strategy} is that of the last generation. Leave it out."
            )
        if not 0 < self.filter_share < 1:
            raise UserError(f"--filter-share {self.filter_share} must lie between 0 and 1.")

    def _check_starts(self) -> None:
        if self.super_class_task and not self.super_classes:
            raise UserError("--super-class-task needs --super-classes FILE.")
        if self.super_class_task and self.initial_model:
            raise UserError("--initial-model has all classes, and with --super-class-task M0 has super-classes. Leave one out.")
        remedy = {
            ("self-learning", "m0"): "leave it out, or choose --strategy stso",
            ("self-learning", "scratch"): "leave it out, or choose --strategy stso",
            ("stso", "previous"): "choose --strategy self-learning, which is that",
        }.get((self.strategy, self.students_from or ""))
        if remedy:
            raise UserError(f"--students-from {self.students_from} is not what {self.strategy} does: {remedy}.")

    def _check_fine_tuning(self) -> None:
        if self.fine_tune_epochs is not None and self.fine_tune_epochs < 1:
            raise UserError(f"--fine-tune-epochs {self.fine_tune_epochs}: at least one epoch is needed.")
        if self.fine_tune_fraction is not None and not 0 < self.fine_tune_fraction <= 1:
            raise UserError(f"--fine-tune-fraction {self.fine_tune_fraction} must lie above 0 and be at most 1.")
        if self.fine_tune_lr is not None and not 0 < self.fine_tune_lr < math.inf:
            raise UserError(f"--fine-tune-lr {self.fine_tune_lr} must be a learning rate above 0.")
        if self.fine_tune_lr is not None and self.fine_tune_schedule == "plans":
            raise UserError(
                f"--fine-tune-lr {self.fine_tune_lr} is a constant learning rate and has no effect with --fine-tune-schedule "
                "plans, which begins at the rate of the plans. Leave one of them out."
            )
        given = next((i for i in ("epochs", "lr", "fraction", "schedule") if getattr(self, f"fine_tune_{i}") is not None), None)
        if given and not self.fine_tunes and given != "schedule":
            raise UserError(
                f"--fine-tune-{given} has no effect: every model is trained from scratch, as long as the plans say. Leave it out."
            )

    def _check_views(self) -> None:
        twice = next((i for i in self.all_plans if self.all_plans.count(i) > 1), None)
        if twice is not None:
            raise UserError(f"--views: the plans {twice} are named twice, in --plans or here. Name each view once.")
        if self.rule is not None and not self.views:
            raise UserError(f"--rule {self.rule} has no effect with one view. Name the plans of the others with --views.")
        given = (*(() if self.initial_model is None else (self.initial_model,)), *self.initial_models)
        if given and len(given) != len(self.all_plans):
            raise UserError(
                f"--initial-model names {len(given)}, and M0 is one model for each of {', '.join(self.all_plans)}. Name as many, in "
                "this order, or leave it out."
            )

    def to_json(self) -> dict:
        """As the journal keeps it: what the result depends on. What version 0.1 did not have is left out where it is not used."""
        content = {
            k: v for k, v in asdict(self).items() if k != "trust" and (v or k not in (*_TUPLES, "super_class_task", "rule"))
        }
        return {k: list(v) if k in _TUPLES else v for k, v in content.items()}

    @property
    def all_plans(self) -> tuple:
        """The plans of every view, ``plans`` first."""
        return (self.plans, *self.views)

    # ---- Algorithm 1 and its baselines

    @property
    def models_of_a_generation(self) -> range:
        """Numbers of the models of one generation; model i trains on subset i."""
        return range(1, self.subsets + 1)

    def labeller(self, generation: int, subset: int) -> str:
        """The model that labels ``subset`` for ``generation``: that of the subset before it, one generation ago."""
        if generation == 1:
            return "m0"
        return f"g{generation - 1}s{(subset - 2) % self.subsets + 1}"

    @property
    def students_start(self) -> str:
        """One of :data:`STARTS`."""
        return self.students_from or ("previous" if self.strategy == "self-learning" else "m0")

    @property
    def fine_tunes(self) -> bool:
        """Whether any model after M0 starts from another one's weights."""
        return self.students_start != "scratch" or self.subsets > 1 and self.final_from == "m0" or self.super_classes is not None

    def starts_from(self, generation: int, subset: int) -> str | None:
        """The model whose weights a student starts from, None from scratch.

        From ``previous`` it is that of the same subset, which has not been trained on what the student is to label: in
        self-learning, with its one subset, that is its teacher.
        """
        if self.students_start == "previous" and generation > 1:
            return f"g{generation - 1}s{subset}"
        return None if self.students_start == "scratch" else "m0"

    @property
    def stage(self) -> float:
        """Length of M0's last stage as a share of its epochs."""
        if self.fine_tune_fraction is not None:
            return self.fine_tune_fraction
        return LAST_STAGE if self.fine_tune_schedule == "constant" else 1.0

    @property
    def last_model(self) -> str:
        """Name of the model that Algorithm 1 returns, before a fine-tuning at full class level."""
        return "final" if self.subsets > 1 else f"g{self.generations}s1"


__getattr__ = _moved.renamed(__name__, {"Options": "AtsoOptions"})
