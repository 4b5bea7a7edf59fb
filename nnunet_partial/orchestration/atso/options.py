"""What a run of ATSO is: its arguments, checked."""

from dataclasses import asdict, dataclass

from nnunet_partial import _moved
from nnunet_partial.errors import UserError
from nnunet_partial.labels import check_source_name

STRATEGIES = ("atso", "stso", "self-learning")
FILTERS = ("none", "disagreement", "confidence")
VALIDATIONS = ("none", "final", "all")


@dataclass(frozen=True)
class AtsoOptions:
    """Everything that the result of a run depends on. Folders are absolute; ``None`` keeps the default.

    ``plans``             plans of all models, a variant as a rule
    ``run``               name of the run; models, labels and report are kept under it
    ``subsets``           parts of the reference set, each labelled by the model of the part before it
    ``fine_tune_epochs``, ``fine_tune_lr``  of every model after M0; None: as in ``plans``
    ``final_from``        the last model starts from M0, or from scratch
    ``initial_model``     model folder that stands for M0, which is then not trained
    ``super_classes``     JSON file, super-class -> classes
    ``filter``            leave out ``filter_share`` of the cases: those whose pseudo labels changed most since the last
                          generation, or are least certain
    ``test_images``, ``test_labels``, ``reference_truth``  read by prediction and report alone
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
    final_from: str = "m0"
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

    def __post_init__(self):
        check_source_name(self.run)
        for name, choices in (
            ("strategy", STRATEGIES),
            ("final_from", ("m0", "scratch")),
            ("filter", FILTERS),
            ("validation", VALIDATIONS),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is none of {', '.join(choices)}.")
        self._check_numbers()
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
        if self.fine_tune_epochs is not None and self.fine_tune_epochs < 1:
            raise UserError(f"--fine-tune-epochs {self.fine_tune_epochs}: at least one epoch is needed.")
        if not 0 < self.filter_share < 1:
            raise UserError(f"--filter-share {self.filter_share} must lie between 0 and 1.")

    def to_json(self) -> dict:
        """As the journal keeps it: what the result depends on."""
        return {k: v for k, v in asdict(self).items() if k != "trust"}

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

    def starts_from(self, generation: int, subset: int) -> str:
        """The model whose weights a student starts from: M0, in self-learning its teacher."""
        return self.labeller(generation, subset) if self.strategy == "self-learning" else "m0"

    @property
    def last_model(self) -> str:
        """Name of the model that Algorithm 1 returns, before a fine-tuning at full class level."""
        return "final" if self.subsets > 1 else f"g{self.generations}s1"


__getattr__ = _moved.renamed(__name__, {"Options": "AtsoOptions"})
