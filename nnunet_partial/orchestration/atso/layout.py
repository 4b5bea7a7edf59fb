"""Where a run keeps what. One class owns all paths."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.orchestration.atso.options import AtsoOptions

TRAINER = "nnUNetTrainerATSO"


@dataclass(frozen=True)
class Layout:
    """Files of one run.

    ::

        nnUNet_results/DATASET/atso/RUN_CONFIGURATION_foldF/   journal.json, plan.json, subsets/, labels/, predictions/,
                                                               logs/, jobs/, report/
        nnUNet_preprocessed/DATASET/PLANS_RUN-CONFIGURATION-fF-MODEL.json
        nnUNet_results/DATASET/nnUNetTrainerATSO__PLANS_...__CONFIGURATION/

    ``view`` is the name of a view's plans, None for those of ``--plans``.
    """

    options: AtsoOptions

    @property
    def dataset(self) -> str:
        return paths.dataset_name(self.options.dataset)

    @property
    def folder(self) -> Path:
        o = self.options
        return paths.root("nnUNet_results").absolute() / self.dataset / "atso" / f"{o.run}_{o.configuration}_fold{o.fold}"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.json"

    @property
    def lock(self) -> Path:
        return self.folder / "loop.lock"

    @property
    def manifest(self) -> Path:
        """What the report reads: models, labels and predictions of every generation."""
        return self.folder / "plan.json"

    @property
    def report(self) -> Path:
        return self.folder / "report"

    def log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.log"

    def subset(self, number: int) -> Path:
        return self.folder / "subsets" / f"subset_{number}.txt"

    @property
    def reference(self) -> Path:
        """All cases of the reference set, one a line."""
        return self.folder / "subsets" / "reference.txt"

    def named(self, name: str, view: str | None = None) -> str:
        """``name`` of something of which every view has its own."""
        return name if view in (None, self.options.plans) else f"{name}_{view}"

    def generation_labels(self, generation: int, view: str | None = None) -> Path:
        return self.folder / "labels" / self.named(f"generation_{generation}", view)

    def labels(self, generation: int, subset: int, view: str | None = None) -> Path:
        return self.generation_labels(generation, view) / f"subset_{subset}"

    def excluded(self, generation: int) -> Path:
        return self.folder / "labels" / f"generation_{generation}_excluded.json"

    def other_labels(self, name: str, view: str | None = None) -> Path:
        return self.folder / "labels" / self.named(name, view)

    def predictions(self, model: str) -> Path:
        """What a model says of the test images; with several views, what they say together."""
        return self.folder / "predictions" / model

    def predictions_of_view(self, model: str, view: str) -> Path:
        return self.folder / "predictions" / (f"{model}_{view}" if self.options.views else model)

    def variant(self, model: str) -> str:
        """What ``nnunet_partial variant --name`` is given."""
        o = self.options
        return f"{o.run}-{o.configuration}-f{o.fold}-{model}"

    def plans(self, model: str, view: str | None = None) -> str:
        return f"{view or self.options.plans}_{self.variant(model)}"

    def plans_file(self, model: str, view: str | None = None) -> Path:
        return paths.root("nnUNet_preprocessed").absolute() / self.dataset / f"{self.plans(model, view)}.json"

    def model(self, model: str, view: str | None = None) -> Path:
        if model == "m0" and self.options.initial_model:
            given = (self.options.initial_model, *self.options.initial_models)
            return Path(dict(zip(self.options.all_plans, given))[view or self.options.plans])
        return paths.model_folder(self.dataset, TRAINER, self.plans(model, view), self.options.configuration).absolute()

    def checkpoint(self, model: str, view: str | None = None) -> Path:
        return paths.final_checkpoint(self.model(model, view), self.options.fold)

    def checkpoints(self, model: str) -> list:
        """Those of every view."""
        return [self.checkpoint(model, i) for i in self.options.all_plans]
