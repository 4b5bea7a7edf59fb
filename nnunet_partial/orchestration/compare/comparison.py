"""Several methods on the same cases, splits, steps and seeds: train, predict, evaluate, one report.

Steps that do not need each other run side by side where the executor has room. Nothing is kept in memory: a step is done
when its command ended well, its outputs are there and what it rests on has not changed since, so a comparison that was
killed goes on where it was, and a step that outlived it is waited for.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_partial.files import write_json
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.compare.steps import CompareOptions, ComparisonSteps
from nnunet_partial.orchestration.engine import Engine, Step
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.orchestration.journal import Journal
from nnunet_partial.orchestration.stamped import StampedEngine
from nnunet_partial.orchestration.status import status

# what may differ when a comparison is started again
MAY_CHANGE = ("methods", "seeds", "metric", "efficiency", "trust")


class Comparison(StampedEngine):
    """A comparison in its folder."""

    def __init__(self, options: CompareOptions, executor: Executor | None = None, plan: ComparisonSteps | None = None):
        self.options, self.plan, self.out = options, plan or ComparisonSteps(options), Path(options.out)
        super().__init__(self.out, self.plan.steps(), executor, trust=options.trust)

    @property
    def journal_file(self) -> Path:
        return self.out / "compare.json"

    @property
    def lock(self) -> Path:
        return self.out / "compare.lock"

    def status(self) -> str:
        """A table of all steps. Raises :class:`UserError` if the comparison has not been started."""
        return status(self, self.journal_file, self.lock)

    def run(self) -> Path:
        """Do what is left and return the page."""
        with self.working(
            self.lock, lambda: f"another comparison works in {self.out}. Wait for it, end it, or choose another --out."
        ):
            arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()}
            if not self.options.own:  # journals of version 0.2 do not know it
                del arguments["own"]
            self.journal = Journal.open(self.journal_file, arguments, {}, self._refusal, MAY_CHANGE)
            self.do()
        return self.out / "report.html"

    def _refusal(self, part: str, differences: str) -> str:
        return (
            f"{self.out} holds a comparison with other {part}: {differences}. Choose another --out (and another --name, if "
            "settings differ)."
        )

    # ---- doing

    def before(self, step: Step) -> None:
        if step.part == "report":
            write_json(self.commands(), self.out / "commands.json")
        super().before(step)

    # ---- for the report

    def commands(self) -> list:
        """What the report is to know of the commands, see :func:`commands_for_report`."""
        return commands_for_report(self, self.steps, self.plan)


def commands_for_report(engine: Engine, steps: Sequence[Step], plan: ComparisonSteps, name_of: Callable = str) -> list:
    """Every command in order, with the seconds and core seconds that it took (all attempts together), its log,
    and the titles of the methods that needed it. ``name_of``: the name that ``engine`` has for a step of ``plan``."""
    users, steps = _users(steps, plan, name_of), [i for i in steps if i.part not in ("report", "export")]
    results = {i.name: engine.result(i) or {} for i in steps}
    logs = {i.name: str(engine.log(i)) for i in steps}
    return [
        {
            "command": shlex.join(i.argv),
            "step": i.name,
            "part": i.part,
            "methods": users[i.name],
            "seconds": runner.all_seconds(results[i.name]) if results[i.name] else None,
            "cpu_seconds": runner.all_cpu_seconds(results[i.name]),
            "log": logs[i.name],
        }
        for i in steps
    ]


def _users(steps: Sequence[Step], plan: ComparisonSteps, name_of: Callable) -> dict:
    """step -> titles of the methods that rest on it."""
    by_name = {i.name: i for i in steps}
    users = {i: [] for i in by_name}
    for name, method in plan.methods.items():
        waiting = [name_of(f"s{seed}-{name}-evaluate") for seed in plan.options.seeds]
        while waiting:
            step = waiting.pop()
            if method.title not in users[step]:
                users[step].append(method.title)
                waiting += by_name[step].needs
    return users
