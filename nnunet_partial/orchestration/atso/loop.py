"""The loop: does the stages that are not done, one group after the other, and can be killed at any moment."""

import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, sha256, try_lock, write_json
from nnunet_partial.labels import Annotations, check_super_classes
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.atso.journal import DISCARDED, DONE, FAILED, RUNNING, WAITING, Journal, now
from nnunet_partial.orchestration.atso.options import Options
from nnunet_partial.orchestration.atso.stages import Planner, Stage
from nnunet_partial.orchestration.executors import Executor, Job, make_executor
from nnunet_partial.trust import check_model


class Loop:
    """One run. ``executor`` runs its heavy stages, ``light`` the others: in line, unless given."""

    def __init__(self, options: Options, executor: Executor | None = None, device: str = "cuda", light: Executor | None = None):
        self.planner = Planner(options, device)
        self.options, self.layout, self.executor = options, self.planner.layout, executor
        self.light = light or make_executor("debug", self.layout.folder)
        self.groups = self.planner.groups()
        self.stages = [stage for group in self.groups for stage in group]
        self.waited, self.started = 0.0, time.time()

    # ---- what a person asks for

    def run(self, from_generation: int | None = None) -> Path:
        """Do what is left, and return the folder of the model that the run returns."""
        inputs = self.check()
        with self.locked():
            for leftover in self.layout.folder.glob(".tmp-*"):  # of a loop that was killed while it wrote
                leftover.unlink(missing_ok=True)
            self._refuse_strangers()
            self.journal = Journal.open(self.layout.journal, self.options.to_json(), inputs)
            write_json(self.planner.manifest(), self.layout.manifest)
            self.started = time.time()
            if from_generation is not None:
                self._discard(from_generation)
            self._remove_discarded()
            try:
                for group in self.groups:
                    self._do([i for i in group if not self.is_done(i)])
            finally:
                self.journal.note_loop(time.time() - self.started, self.waited)
        return self.layout.model(self.planner.returned_model)

    def dry_run(self) -> str:
        """Every command in order; commands of one group, which may run side by side, stand together."""
        lines = []
        for group in self.groups:
            lines += [*(f"{shlex.join(i.argv)}{'   # done' if self._outputs_exist(i) else ''}" for i in group), ""]
        return "\n".join(lines).strip()

    def status(self) -> str:
        """A table of all stages."""
        if not self.layout.journal.is_file():
            raise UserError(f"{self.layout.journal} does not exist: this run has not been started.")
        self.journal = Journal.read(self.layout.journal)
        handle = try_lock(self.layout.lock)
        alive = handle is None
        if handle is not None:
            handle.close()
        rows = [("stage", "generation", "state", "seconds", "log")]
        for stage in self.stages:
            entry = self.journal.content["stages"].get(stage.name, {})
            state = entry.get("state", WAITING)
            if state == RUNNING and not alive:
                state = "interrupted"
            seconds = f"{entry['seconds']:.0f}" if entry.get("seconds") else ""
            log = self.layout.log(stage.name)
            rows.append((stage.name, str(stage.generation), state, seconds, str(log) if log.is_file() else ""))
        done = sum(row[2] == DONE for row in rows)
        head = (
            f"{self.layout.folder}: {done} of {len(self.stages)} stages done, "
            f"{'a loop is running' if alive else 'no loop is running'}"
        )
        return "\n".join([head, *_table(rows)])

    def check(self) -> dict:
        """Everything that can be wrong before the first stage; returns hashes of the files that the run depends on."""
        plans_file = paths.plans_file(self.options.dataset, self.options.plans)
        plans = read_json(plans_file)
        if self.options.configuration not in plans.get("configurations", {}):
            raise UserError(
                f"{plans_file} has no configuration {self.options.configuration!r}. It has: "
                f"{', '.join(plans.get('configurations', {}))}."
            )
        dataset_file = plans_file.with_name("dataset.json")
        annotations = Annotations.read(dataset_file.parent)
        if annotations.cases is None or all(len(i.annotated) == len(annotations.classes) for i in annotations.cases.values()):
            raise UserError(
                f"{dataset_file}: every case annotates every class, so there is nothing to pseudo-label. Add "
                f"unlabelled cases with nnunet_partial merge --unlabelled."
            )
        files = {"plans": plans_file, "dataset.json": dataset_file}
        if self.options.super_classes:
            check_super_classes(read_json(self.options.super_classes), annotations.classes)
            files["super_classes"] = Path(self.options.super_classes)
        if self.options.initial_model and not self.layout.checkpoint("m0").is_file():
            raise UserError(f"--initial-model: {self.layout.checkpoint('m0')} does not exist. Train that model first.")
        if self.options.initial_model:  # nnU-Net predicts with it, and unpickles it
            check_model(self.layout.model("m0"), self.layout.checkpoint("m0"), self.options.trust)
        for name in ("test_images", "test_labels", "reference_truth"):
            folder = getattr(self.options, name)
            if folder and not Path(folder).is_dir():
                raise UserError(f"--{name.replace('_', '-')} {folder} is not a folder.")
        return {name: sha256(file) for name, file in files.items()}

    # ---- one loop at a time

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the run. It ends with the process that holds it, however it ends."""
        holder = self.layout.folder / "loop.json"
        handle = try_lock(self.layout.lock)
        if handle is None:
            who = read_json(holder) if holder.is_file() else {}
            raise UserError(
                f"another loop works on {self.layout.folder} (process {who.get('pid', '?')} on "
                f"{who.get('host', '?')} since {who.get('since', '?')}). Wait for it, end it, or choose another "
                f"--run."
            )
        with handle:
            write_json({"pid": os.getpid(), "host": platform.node(), "since": now()}, holder)
            yield

    def _refuse_strangers(self) -> None:
        """Without a journal nothing of this run may exist: it would be of another one."""
        if self.layout.journal.is_file():
            return
        for stage in self.stages:
            found = [i for i in stage.owned if i.exists()]
            if found:
                raise UserError(
                    f"{found[0]} exists, but {self.layout.journal} does not: it is of another run of this name. "
                    f"Remove it, or choose another --run."
                )

    # ---- doing anew

    def _discard(self, generation: int) -> None:
        """Note that everything from ``generation`` on is to be removed, before anything is: removing may be killed."""
        if not 0 <= generation <= self.options.generations + 1:
            raise UserError(
                f"--from-generation {generation}: this run has the generations 0 to "
                f"{self.options.generations}, and {self.options.generations + 1} for what follows them."
            )
        for stage in self.stages:
            if stage.generation >= generation:
                self.journal.content["stages"][stage.name] = {"seconds": 0.0, "state": DISCARDED, "changed": now()}
        self.journal.write()

    def _remove_discarded(self) -> None:
        discarded = [i for i in self.stages if self.journal.state(i.name) == DISCARDED]
        for stage in discarded:
            self._refuse_if_alive(stage)
        for stage in discarded:
            for path in (*stage.owned, self._job_folder(stage)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for stage in discarded:
            self.journal.forget(stage.name)

    def _refuse_if_alive(self, stage: Stage) -> None:
        """A loop that was killed may have left a stage to itself: what it writes must not be removed under it."""
        folder = self._job_folder(stage)
        handle = try_lock(folder / runner.LOCK) if folder.is_dir() else None
        if handle is None and folder.is_dir():
            started = read_json(folder / runner.STARTED) if (folder / runner.STARTED).is_file() else {}
            raise UserError(
                f"{stage.name} still runs (process {started.get('pid', '?')} on {started.get('host', '?')}). Wait "
                f"for it to end, or end it, and start again."
            )
        if handle is not None:
            handle.close()

    # ---- doing

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage needs nothing more; what the journal does not know yet it is told."""
        if not self._outputs_exist(stage):
            return False
        state = self.journal.state(stage.name)
        if state == DONE and stage.predictions is None:
            return True
        known = self.journal.content["stages"].get(stage.name, {}).get("bytes")
        if state == DONE and known is not None and stage.predictions is not None:
            return stage.predictions.sizes() == known
        result = self._result(stage)
        if result is None and not stage.atomic:
            return False
        try:
            found = _looked_at(stage)
        except UserError:
            return False
        if state != DONE:  # a journal of version 0.1 has no sizes
            self.journal.mark(stage.name, DONE, result["seconds"] if result else None, argv=list(stage.argv), **found)
        return True

    def _outputs_exist(self, stage: Stage) -> bool:
        return all(i.is_file() for i in stage.outputs)

    def _job_folder(self, stage: Stage) -> Path:
        return self.layout.folder / "jobs" / stage.name

    def _result(self, stage: Stage) -> dict | None:
        """How this very command ended well while no loop was looking, else None."""
        folder = self._job_folder(stage)
        result = runner.read_result(folder)
        if result is None or result["exit_code"] != 0 or read_json(folder / runner.JOB)["argv"] != list(stage.argv):
            return None
        return result

    def _do(self, stages: Sequence[Stage]) -> None:
        for executor, light in ((self.light, True), (self.executor, False)):
            chosen = [i for i in stages if i.light == light]
            if chosen:
                assert executor is not None, "give an executor before the loop is run"
                self._run(executor, chosen)

    def _run(self, executor: Executor, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._check_inputs(stage)
            self.journal.mark(stage.name, RUNNING, argv=list(stage.argv))
            print(f"{stage.name}: {shlex.join(stage.argv)}", flush=True)
        try:
            seconds = executor.run([Job(i.name, i.argv, self.layout.log(i.name)) for i in stages])
        except BaseException:
            for stage in stages:
                ended = self._result(stage) is not None and self._outputs_exist(stage)
                self.journal.mark(stage.name, DONE if ended and stage.predictions is None else FAILED)
            raise
        for stage, took in zip(stages, seconds):
            if not self._outputs_exist(stage):
                missing = next(i for i in stage.outputs if not i.is_file())
                self.journal.mark(stage.name, FAILED)
                raise UserError(
                    f"{stage.name} ended well but did not write {missing}. Its output is in {self.layout.log(stage.name)}."
                )
            try:
                found = _looked_at(stage)
            except UserError:
                self.journal.mark(stage.name, FAILED)
                raise
            self.journal.mark(stage.name, DONE, took, **found)
        self.waited += _busy((self._job_folder(i) for i in stages), self.started)

    def _check_inputs(self, stage: Stage) -> None:
        missing = [i for i in stage.inputs if not i.is_file()]
        if missing:
            raise UserError(
                f"{stage.name} needs {missing[0]}, which is gone. Do it anew with --from-generation "
                f"{max(0, stage.generation - 1)}."
            )


def _looked_at(stage: Stage) -> dict:
    """What the journal is to know of the predictions of a stage. Raises :class:`UserError` if they are not whole."""
    return {} if stage.predictions is None else {"bytes": stage.predictions.check()}


def _busy(folders, since: float) -> float:
    """Seconds from ``since`` on during which at least one of these jobs ran."""
    spans, busy, reached = [], 0.0, since
    for folder in folders:
        result = runner.read_result(folder)
        if result is not None:
            spans.append((result["ended"] - result["seconds"], result["ended"]))
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def _table(rows: Sequence[Sequence[str]]) -> list:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
