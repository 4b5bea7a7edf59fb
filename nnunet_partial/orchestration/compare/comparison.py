"""Several methods on the same cases, splits, steps and seeds: train, predict, evaluate, one report.

Steps that do not need each other run side by side where the executor has room. Nothing is kept in memory: a step is done
when its command ended well, its outputs are there and what it rests on has not changed since, so a comparison that was
killed goes on where it was, and a step that outlived it is waited for.
"""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, try_lock, write_json
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.compare.steps import CompareOptions, ComparisonSteps
from nnunet_partial.orchestration.engine import Engine, Step
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.orchestration.journal import Journal
from nnunet_partial.outputs import read_stamp, size_and_time
from nnunet_partial.trust import check_model

# what may differ when a comparison is started again
MAY_CHANGE = ("methods", "seeds", "metric", "efficiency", "trust")


class Comparison(Engine):
    """A comparison in its folder."""

    def __init__(self, options: CompareOptions, executor: Executor | None = None, plan: ComparisonSteps | None = None):
        self.options, self.plan, self.out = options, plan or ComparisonSteps(options), Path(options.out)
        super().__init__(self.out, self.plan.steps(), executor)

    def run(self) -> Path:
        """Do what is left and return the page."""
        with self.working(
            self.out / "compare.lock",
            lambda: f"another comparison works in {self.out}. Wait for it, end it, or choose another --out.",
        ):
            arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()}
            self.journal = Journal.open(self.out / "compare.json", arguments, {}, self._refusal, MAY_CHANGE)
            self.do()
        return self.out / "report.html"

    def _refusal(self, part: str, differences: str) -> str:
        return (
            f"{self.out} holds a comparison with other {part}: {differences}. Choose another --out (and another --name, if "
            "settings differ)."
        )

    # ---- done or not

    def is_done(self, step: Step) -> bool:
        """Whether nothing is left to do, and nothing that it rests on has changed since."""
        if step.part == "report" or self.missing_output(step) is not None:
            return False
        if self.result(step) is None:
            if step.taken is not None:
                step.taken()
                # nnU-Net will unpickle it, whoever made it
                check_model(step.outputs[0].parent.parent, step.outputs[0], self.options.trust)
            return step.taken is not None
        if self._changed(step) is None:
            return self._predictions_are_whole(step)
        if step.taken is not None:
            self._refuse_changed(step)
        return False

    def files_read(self, step: Step) -> list:
        """What the step reads, and what the steps before it wrote. Plans are left out: they are written anew each time, and
        refused unless they stay what they were."""
        return list(dict.fromkeys([*super().files_read(step), *self._before(step)]))

    def _before(self, step: Step) -> list:
        needed = [self._by_name[i] for i in step.needs]
        return [j for i in needed if i.part != "plans" for j in i.outputs]

    def _stamps(self, step: Step) -> dict:
        """Some commands write the same words last whatever they made, so that of what they wrote the time counts."""
        of_steps = {str(i): size_and_time(i) for i in self._before(step)}
        return {**of_steps, **{str(i): read_stamp(i) for i in super().files_read(step)}}

    def _changed(self, step: Step) -> str | None:
        """The first file that is not as the step found it."""
        return self.changed_input(step, self._kept_stamps(step) or {})

    def _predictions_are_whole(self, step: Step) -> bool:
        """Whether the predictions are those that were looked at when the step ended; else they are looked at now."""
        file = self.job_folder(step) / "predictions.json"
        if step.predictions is None:
            return True
        if file.is_file():
            return step.predictions.are(read_json(file))
        try:
            self.look_at(step)
        except UserError:
            return False
        return True

    def look_at(self, step: Step) -> dict:
        found = super().look_at(step)
        if found:
            write_json(found["predictions"], self.job_folder(step) / "predictions.json")
        return found

    def _kept_stamps(self, step: Step) -> Mapping[str, Any] | None:
        file = self.job_folder(step) / "inputs.json"
        return read_json(file) if file.is_file() else None

    # ---- doing

    def before(self, step: Step) -> None:
        if step.part == "report":
            write_json(self.commands(), self.out / "commands.json")
        if step.taken is not None:
            self._check_training(step)
        self._make_room(step)

    def _check_training(self, step: Step) -> None:
        """A training goes on from its checkpoint: neither with other settings, nor on other labels or teachers."""
        if step.taken is not None:
            step.taken()
        begun = any(step.outputs[0].parent.glob("checkpoint_*.pth"))
        if begun and self._kept_stamps(step) is not None and self._changed(step) is not None:
            self._refuse_changed(step)

    def _refuse_changed(self, step: Step) -> None:
        raise UserError(
            f"{step.outputs[0].parent} was trained before {self._changed(step)} changed. Remove that folder to train it again, or "
            "choose another --name for this comparison."
        )

    def _make_room(self, step: Step) -> None:
        """Remove what a killed run may have left in part, unless that run is still at it."""
        handle = try_lock(self.job_folder(step) / runner.LOCK)
        if handle is None:
            return
        with handle:
            for folder in step.owned:
                if folder.exists():
                    shutil.rmtree(folder)
            (self.job_folder(step) / "predictions.json").unlink(missing_ok=True)
            write_json(self._stamps(step), self.job_folder(step) / "inputs.json")

    # ---- for the report

    def commands(self) -> list:
        """Every command in order, with the seconds (and seconds of one core) that it took and the titles of the methods
        that needed it."""
        users, steps = self._users(), [i for i in self.steps if i.part != "report"]
        results = {i.name: self.result(i) or {} for i in steps}
        return [
            {
                "command": shlex.join(i.argv),
                "step": i.name,
                "part": i.part,
                "methods": users[i.name],
                "seconds": results[i.name].get("seconds"),
                "cpu_seconds": results[i.name].get("cpu_seconds"),
            }
            for i in steps
        ]

    def _users(self) -> dict:
        """step -> titles of the methods that rest on it."""
        users = {i.name: [] for i in self.steps}
        for name, method in self.plan.methods.items():
            waiting = [f"s{seed}-{name}-evaluate" for seed in self.options.seeds]
            while waiting:
                step = waiting.pop()
                if method.title not in users[step]:
                    users[step].append(method.title)
                    waiting += self._by_name[step].needs
        return users
