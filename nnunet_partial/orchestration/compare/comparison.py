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
from nnunet_partial.orchestration.compare.steps import Options, Planner, Step, waves
from nnunet_partial.orchestration.executors import Executor, Job, make_executor
from nnunet_partial.trust import check_model

# what may differ when a comparison is started again
MAY_CHANGE = ("methods", "seeds", "metric", "efficiency", "trust")


class Comparison:
    """A comparison in its folder."""

    def __init__(self, options: Options, executor: Executor | None = None, planner: Planner | None = None):
        self.options, self.executor = options, executor
        self.planner = planner or Planner(options)
        self.out = Path(options.out)
        self.steps = self.planner.steps()
        self._by_name = {i.name: i for i in self.steps}
        self._begun, self._ended = set(), set()

    def run(self) -> Path:
        """Do what is left and return the page."""
        self.out.mkdir(parents=True, exist_ok=True)
        handle = try_lock(self.out / "compare.lock")
        if handle is None:
            raise UserError(f"another comparison works in {self.out}. Wait for it, end it, or choose another --out.")
        with handle:
            self._check_arguments()
            executor = self.executor or make_executor("local", self.out)
            executor.run(self._next(), self._after)
        return self.out / "report.html"

    def overview(self) -> str:
        """Every command in order; those that may run side by side stand together."""
        groups = [[f"{shlex.join(i.argv)}{'   # done' if self.is_done(i) else ''}" for i in wave] for wave in waves(self.steps)]
        return "\n\n".join("\n".join(i) for i in groups)

    def _check_arguments(self) -> None:
        """Remember what is asked for; refuse a folder that was made for something else."""
        file, given = (
            self.out / "compare.json",
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()},
        )
        if file.is_file():
            kept = read_json(file)["arguments"]
            different = [
                f"{k}: {kept.get(k)!r} then, {v!r} now" for k, v in given.items() if k not in MAY_CHANGE and kept.get(k) != v
            ]
            if different:
                raise UserError(
                    f"{self.out} holds a comparison with other arguments: {'; '.join(different)}. Choose another --out "
                    "(and another --name, if settings differ)."
                )
        write_json({"version": 1, "arguments": given}, file)

    # ---- done or not

    def is_done(self, step: Step) -> bool:
        """Whether nothing is left to do, and nothing that it rests on has changed since."""
        if step.part == "report" or not all(i.is_file() for i in step.outputs):
            return False
        if self._result(step) is None:
            if step.taken is not None:
                step.taken()
                # nnU-Net will unpickle it, whoever made it
                check_model(step.outputs[0].parent.parent, step.outputs[0], self.options.trust)
            return step.taken is not None
        if self._stamps(step) == self._kept_stamps(step):
            return self._predictions_are_whole(step)
        if step.taken is not None:
            self._refuse_changed(step)
        return False

    def _job_folder(self, step: Step) -> Path:
        return self.out / "jobs" / step.name

    def _result(self, step: Step) -> dict | None:
        """How this very command ended well, else None."""
        folder = self._job_folder(step)
        result = runner.read_result(folder)
        if result is None or result["exit_code"] != 0 or read_json(folder / runner.JOB)["argv"] != list(step.argv):
            return None
        return result

    def _stamps(self, step: Step) -> dict:
        """Size and time of everything that the step reads, or that the steps before it wrote. Plans are left out: they are
        written anew each time, and refused unless they stay what they were."""
        needed = [self._by_name[i] for i in step.needs]
        files = [*step.inputs, *(j for i in needed if i.part != "plans" for j in i.outputs)]
        return {str(i): [i.stat().st_size, i.stat().st_mtime_ns] if i.is_file() else None for i in files}

    def _predictions_are_whole(self, step: Step) -> bool:
        """Whether the predictions are those that were looked at when the step ended; else they are looked at now."""
        file = self._job_folder(step) / "predictions.json"
        if step.predictions is None:
            return True
        if file.is_file():
            return read_json(file) == step.predictions.sizes()
        try:
            self._look_at(step)
        except UserError:
            return False
        return True

    def _look_at(self, step: Step) -> None:
        if step.predictions is not None:
            write_json(step.predictions.check(), self._job_folder(step) / "predictions.json")

    def _kept_stamps(self, step: Step) -> Mapping[str, Any]:
        file = self._job_folder(step) / "inputs.json"
        return read_json(file) if file.is_file() else {}

    # ---- doing

    def _next(self) -> list:
        """Jobs of the steps whose needs have ended. What is done already, and light steps, which are run here, end at once."""
        jobs = []
        while True:
            ready = [i for i in self.steps if i.name not in self._begun and self._ended.issuperset(i.needs)]
            if not ready:
                return jobs
            for step in ready:
                self._begun.add(step.name)
                if self.is_done(step):
                    self._ended.add(step.name)
                    continue
                job = self._prepare(step)
                if step.light:
                    make_executor("debug", self.out).run([job])
                    self._end(step)
                else:
                    jobs.append(job)

    def _after(self, name: str) -> list:
        self._end(self._by_name[name])
        return self._next()

    def _prepare(self, step: Step) -> Job:
        if step.part == "report":
            write_json(self.commands(), self.out / "commands.json")
        if step.taken is not None:
            self._check_training(step)
        self._make_room(step)
        print(f"{step.name}: {shlex.join(step.argv)}", flush=True)
        return Job(step.name, step.argv, self._log(step))

    def _end(self, step: Step) -> None:
        missing = next((i for i in step.outputs if not i.is_file()), None)
        if missing is not None:
            raise UserError(f"{step.name} ended well but did not write {missing}. Its output is in {self._log(step)}.")
        self._look_at(step)
        self._ended.add(step.name)

    def _log(self, step: Step) -> Path:
        return self.out / "logs" / f"{step.name}.log"

    def _check_training(self, step: Step) -> None:
        """A training goes on from its checkpoint: neither with other settings, nor on other labels or teachers."""
        if step.taken is not None:
            step.taken()
        begun = any(step.outputs[0].parent.glob("checkpoint_*.pth"))
        if begun and (self._job_folder(step) / "inputs.json").is_file() and self._stamps(step) != self._kept_stamps(step):
            self._refuse_changed(step)

    def _refuse_changed(self, step: Step) -> None:
        kept = self._kept_stamps(step)
        changed = next((file for file, stamp in self._stamps(step).items() if kept.get(file) != stamp), "what it needs")
        raise UserError(
            f"{step.outputs[0].parent} was trained before {changed} changed. Remove that folder to train it again, or "
            "choose another --name for this comparison."
        )

    def _make_room(self, step: Step) -> None:
        """Remove what a killed run may have left in part, unless that run is still at it."""
        handle = try_lock(self._job_folder(step) / runner.LOCK)
        if handle is None:
            return
        with handle:
            for folder in step.owned:
                if folder.exists():
                    shutil.rmtree(folder)
            (self._job_folder(step) / "predictions.json").unlink(missing_ok=True)
            write_json(self._stamps(step), self._job_folder(step) / "inputs.json")

    # ---- for the report

    def commands(self) -> list:
        """Every command in order, with the seconds (and seconds of one core) that it took and the titles of the methods
        that needed it."""
        users, steps = self._users(), [i for i in self.steps if i.part != "report"]
        results = {i.name: self._result(i) or {} for i in steps}
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
        for name, method in self.planner.methods.items():
            waiting = [f"s{seed}-{name}-evaluate" for seed in self.options.seeds]
            while waiting:
                step = waiting.pop()
                if method.title not in users[step]:
                    users[step].append(method.title)
                    waiting += self._by_name[step].needs
        return users
