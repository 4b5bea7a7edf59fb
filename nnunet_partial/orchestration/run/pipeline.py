"""A project in its folder: from downloads to models, figures and exports, killed and taken up again at any moment."""

import json
from collections.abc import Callable
from pathlib import Path

from nnunet_partial.files import write_json
from nnunet_partial.orchestration.compare.comparison import commands_for_report
from nnunet_partial.orchestration.compare.steps import CompareOptions
from nnunet_partial.orchestration.engine import Step
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.orchestration.journal import Journal
from nnunet_partial.orchestration.run.steps import ProjectSteps
from nnunet_partial.orchestration.stamped import StampedEngine
from nnunet_partial.orchestration.status import status

BEFORE_TRAINING = ("conversion", "merge", "check", "planning")
# of the project file, what may differ when a run is started again: what is there already stays as it is, and plans and models
# that are there with other settings are refused by the steps that would use them
_MAY_CHANGE = ("method.", "export.", "test.", "training.", "project.check", "plan.processes", "found.counts")


class ProjectRun(StampedEngine):
    """``until``: a stage, or a step, after which to stop. ``share``: called with the options of each comparison before its
    first training, when the dataset is there."""

    def __init__(
        self,
        plan: ProjectSteps,
        executor: Executor | None = None,
        until: str | None = None,
        share: Callable[[CompareOptions], None] = lambda options: None,
    ):
        self.plan, self._share, self._shared = plan, share, False
        super().__init__(plan.project.out, plan.until(until) if until else plan.steps(), executor, plan.trust)

    @property
    def journal_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def lock(self) -> Path:
        return self.folder / "run.lock"

    def run(self) -> list:
        """Do what is left and return the reports that there are."""
        with self.working(self.lock, lambda: f"another run works in {self.folder}. Wait for it, end it, or choose another out."):
            arguments = json.loads(json.dumps(self.plan.project.to_json()))
            arguments |= {"found.taught": list(self.plan.taught), "found.counts": dict(self.plan.counts)}
            kept = self.content()
            may_change = [i for i in {**kept, **arguments} if i.startswith(_MAY_CHANGE)]
            self.journal = Journal.open(self.journal_file, arguments, {}, self._refusal, may_change)
            self.do()
        return self.reports()

    def content(self) -> dict:
        """What an earlier start was asked for; empty if there was none."""
        return Journal.read(self.journal_file).content["arguments"] if self.journal_file.is_file() else {}

    def reports(self) -> list:
        """The page of each configuration, as far as they are written."""
        return [i for c in self.plan.plans.values() if (i := c.out / "report.html").is_file()]

    def exported(self) -> list:
        """The exported models that there are."""
        return [i for step in self.steps if step.part == "export" for i in step.outputs if i.is_file()]

    def status(self) -> str:
        """A table of all steps. Raises :class:`UserError` if the run has not been started."""
        return status(self, self.journal_file, self.lock)

    def _refusal(self, part: str, differences: str) -> str:
        return (
            f"{self.folder} holds a run of another project: {differences}. Give the project another out, name and dataset, or "
            "undo the change."
        )

    def before(self, step: Step) -> None:
        if step.part not in BEFORE_TRAINING and not self._shared:
            self._shared = True
            for configuration in self.plan.plans:
                self._share(self.plan.options(configuration))
        if step.part == "report":
            self._write_commands(step)
        super().before(step)

    def _write_commands(self, step: Step) -> None:
        for configuration, plan in self.plan.plans.items():
            if step.name == self.plan.name_of(configuration, "report"):
                steps = [i for i in self.steps if i.part in BEFORE_TRAINING or self._is_of(i, configuration)]
                found = commands_for_report(self, steps, plan, lambda name: self.plan.name_of(configuration, name))
                write_json(found, plan.out / "commands.json")

    def _is_of(self, step: Step, configuration: str) -> bool:
        return len(self.plan.plans) == 1 or step.name.startswith(f"{configuration}-")

    def seems_done(self, step: Step) -> bool:
        """Without reading models: whether its command ended well, or its outputs are there without one."""
        return self.missing_output(step) is None and (self.result(step) is not None or step.taken is not None)
