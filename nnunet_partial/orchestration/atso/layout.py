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

    def generation_labels(self, generation: int) -> Path:
        return self.folder / "labels" / f"generation_{generation}"

    def labels(self, generation: int, subset: int) -> Path:
        return self.generation_labels(generation) / f"subset_{subset}"

    def excluded(self, generation: int) -> Path:
        return self.folder / "labels" / f"generation_{generation}_excluded.json"

    def other_labels(self, name: str) -> Path:
        return self.folder / "labels" / name

    def predictions(self, model: str) -> Path:
        return self.folder / "predictions" / model

    def variant(self, model: str) -> str:
        """What ``nnunet_partial variant --name`` is given."""
        o = self.options
        return f"{o.run}-{o.configuration}-f{o.fold}-{model}"

    def plans(self, model: str) -> str:
        return f"{self.options.plans}_{self.variant(model)}"

    def plans_file(self, model: str) -> Path:
        return paths.root("nnUNet_preprocessed").absolute() / self.dataset / f"{self.plans(model)}.json"

    def model(self, model: str) -> Path:
        if model == "m0" and self.options.initial_model:
            return Path(self.options.initial_model)
        return paths.model_folder(self.dataset, TRAINER, self.plans(model), self.options.configuration).absolute()

    def checkpoint(self, model: str) -> Path:
        return paths.final_checkpoint(self.model(model), self.options.fold)
