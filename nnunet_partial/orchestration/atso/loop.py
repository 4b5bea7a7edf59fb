"""The loop: Algorithm 1 in its folder, which does what is not done, one group after the other, and can be killed at any
moment."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nnunet_partial import paths
from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, sha256, try_lock, write_json
from nnunet_partial.labels import UNIONS, Annotations, read_super_classes
from nnunet_partial.orchestration import costs
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.atso.layout import Layout
from nnunet_partial.orchestration.atso.options import AtsoOptions
from nnunet_partial.orchestration.atso.steps import AtsoSteps
from nnunet_partial.orchestration.engine import Engine, Step
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.orchestration.journal import DISCARDED, DONE, WAITING, Journal, now
from nnunet_partial.orchestration.status import status
from nnunet_partial.outputs import read_stamp
from nnunet_partial.trust import check_model


class Loop(Engine):
    """One run. ``executor`` runs its heavy steps, ``light`` the others: in line, unless given."""

    def __init__(
        self, options: AtsoOptions, executor: Executor | None = None, device: str = "cuda", light: Executor | None = None
    ):
        self.options = _settled(options)
        self.plan = AtsoSteps(self.options, device)
        self.layout = self.plan.layout
        super().__init__(self.layout.folder, self.plan.steps(), executor, light)
        self._continued: set = set()  # trainings that go on from an earlier loop's checkpoint: their time says nothing

    # ---- what a person asks for

    def run(self, from_generation: int | None = None) -> Path:
        """Do what is left, and return the folder of the model that the run returns."""
        inputs = self.check()
        with self.working(self.layout.lock, self._busy):
            write_json({"pid": os.getpid(), "host": platform.node(), "since": now()}, self._holder)
            for leftover in self.layout.folder.glob(".tmp-*"):  # of a loop that was killed while it wrote
                leftover.unlink(missing_ok=True)
            self._refuse_strangers()
            may_change = self._extend(inputs)
            self.journal = Journal.open(self.layout.journal, self.options.to_json(), inputs, self._refusal, may_change)
            write_json(self.plan.manifest(), self.layout.manifest)
            if from_generation is not None:
                self._discard(from_generation)
            self._remove_discarded()
            self.do()
        return self.layout.model(self.plan.returned_model)

    def status(self) -> str:
        """A table of all stages. Raises :class:`UserError` if the run has not been started."""
        return status(self, self.layout.journal, self.layout.lock)

    def check(self) -> dict:
        """Everything that can be wrong before the first stage; returns hashes of the files that the run depends on."""
        of_views = {i: paths.plans_file(self.options.dataset, i) for i in self.options.all_plans}
        for file in of_views.values():
            paths.require_configuration(read_json(file), self.options.configuration)
        plans_file = of_views.pop(self.options.plans)
        dataset_file = plans_file.with_name("dataset.json")
        annotations = Annotations.read(dataset_file.parent)
        if annotations.cases is None or all(len(i.annotated) == len(annotations.classes) for i in annotations.cases.values()):
            raise UserError(
                f"{dataset_file}: every case annotates every class, so there is nothing to pseudo-label. Add "
                f"unlabelled cases with nnunet_partial merge --unlabelled."
            )
        files = {"plans": plans_file, "dataset.json": dataset_file, **{f"plans {k}": v for k, v in of_views.items()}}
        if self.options.super_classes:
            read_super_classes(self.options.super_classes, annotations)
        if self.options.super_classes not in (None, UNIONS):
            files["super_classes"] = Path(self.options.super_classes)
        for view in self.options.all_plans if self.options.initial_model else ():
            folder, checkpoint = self.layout.model("m0", view), self.layout.checkpoint("m0", view)
            if not checkpoint.is_file():
                raise UserError(f"--initial-model: {checkpoint} does not exist. Train that model first.")
            check_model(folder, checkpoint, self.options.trust)  # nnU-Net predicts with it, and unpickles it
        for name in ("test_images", "test_labels", "reference_truth"):
            folder = getattr(self.options, name)
            if folder and not Path(folder).is_dir():
                raise UserError(f"--{name.replace('_', '-')} {folder} is not a folder.")
        return {name: sha256(file) for name, file in files.items()}

    # ---- one loop at a time

    @property
    def _holder(self) -> Path:
        return self.layout.folder / "loop.json"

    def _busy(self) -> str:
        who = read_json(self._holder) if self._holder.is_file() else {}
        return (
            f"another loop works on {self.layout.folder} (process {who.get('pid', '?')} on {who.get('host', '?')} since "
            f"{who.get('since', '?')}). Wait for it, end it, or choose another --run."
        )

    def _refusal(self, part: str, differences: str) -> str:
        what = "was started with other arguments" if part == "arguments" else "was started on other files"
        return f"the run of {self.layout.journal} {what}: {differences}. Start it with the same ones, or choose another --run."

    def _refuse_strangers(self) -> None:
        """Without a journal nothing of this run may exist: it would be of another one."""
        if self.layout.journal.is_file():
            return
        for step in self.steps:
            found = [i for i in step.owned if i.exists()]
            if found:
                raise UserError(
                    f"{found[0]} exists, but {self.layout.journal} does not: it is of another run of this name. "
                    f"Remove it, or choose another --run."
                )

    # ---- more generations

    def _extend(self, inputs: Mapping[str, str]) -> tuple:
        """Where a run is to have more generations than it was begun with: note that what followed its last one is to be
        done anew. Generations that are done stay. Returns the arguments that may now differ."""
        if not self.layout.journal.is_file():
            return ()
        journal, may_change = Journal.read(self.layout.journal), ("generations",)
        before = journal.content["arguments"].get("generations", self.options.generations)
        if before >= self.options.generations:
            return ()
        journal.require("arguments", self.options.to_json(), self._refusal, may_change)
        journal.require("inputs", inputs, self._refusal)
        ending = AtsoSteps(replace(self.options, generations=before), self.plan.device).ending()
        kept = {i.name for i in self.steps if i.part <= self.options.generations}  # models are tested beside what follows them
        for step in (i for group in ending for i in group):
            if step.name in journal.content["stages"] and step.name not in kept:
                journal.content["stages"][step.name] = {"seconds": 0.0, "state": DISCARDED, "changed": now()}
        journal.write()  # before the new number is: a loop that is killed in between does the ending of the old number anew
        return may_change

    # ---- doing anew

    def _discard(self, generation: int) -> None:
        """Note that everything from ``generation`` on is to be removed, before anything is: removing may be killed."""
        if not 0 <= generation <= self.options.generations + 1:
            raise UserError(
                f"--from-generation {generation}: this run has the generations 0 to "
                f"{self.options.generations}, and {self.options.generations + 1} for what follows them."
            )
        for step in self.steps:
            if step.part >= generation:
                self.journal.content["stages"][step.name] = {"seconds": 0.0, "state": DISCARDED, "changed": now()}
        self.journal.write()

    def _remove_discarded(self) -> None:
        discarded = [i for i in self.steps if self.journal.state(i.name) == DISCARDED]
        for step in discarded:
            self._refuse_if_alive(step)
        for step in discarded:
            for path in (*step.owned, self.job_folder(step)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for step in discarded:
            self.journal.forget(step.name)

    def _refuse_if_alive(self, step: Step) -> None:
        """A loop that was killed may have left a stage to itself: what it writes must not be removed under it."""
        folder = self.job_folder(step)
        handle = try_lock(folder / runner.LOCK) if folder.is_dir() else None
        if handle is None and folder.is_dir():
            started = read_json(folder / runner.STARTED) if (folder / runner.STARTED).is_file() else {}
            raise UserError(
                f"{step.name} still runs (process {started.get('pid', '?')} on {started.get('host', '?')}). Wait "
                f"for it to end, or end it, and start again."
            )
        if handle is not None:
            handle.close()

    # ---- doing

    def is_done(self, step: Step) -> bool:
        """Whether a step needs nothing more; what the journal does not know yet it is told."""
        if self.missing_output(step) is not None:
            return False
        if self._changed(step) is not None:
            self._require_untrained(step)
            return False
        state = self.journal.state(step.name)
        if state == DONE and step.predictions is None:
            return True
        entry = self.journal.content["stages"].get(step.name, {})
        known = entry.get("predictions", entry.get("bytes"))  # as version 0.1 called it
        if state == DONE and known is not None and step.predictions is not None:
            return step.predictions.are(known)
        result = self.result(step)
        if result is None and not step.atomic:
            return False
        try:
            found = self.look_at(step)
        except UserError:
            return False
        if state != DONE:  # a journal of version 0.1 has no stamps
            self.journal.mark(step.name, DONE, runner.all_seconds(result) if result else None, argv=list(step.argv), **found)
        return True

    def seems_done(self, step: Step) -> bool:
        """Without a journal the outputs alone tell."""
        return self.missing_output(step) is None

    def before(self, step: Step) -> None:
        missing = [i for i in step.inputs if not i.is_file()]
        if missing:
            raise UserError(
                f"{step.name} needs {missing[0]}, which is gone. Do it anew with --from-generation {max(0, step.part - 1)}."
            )
        if self._changed(step) is not None:
            self._require_untrained(step)
            self._make_room(step)
        if _begun(step):
            self._continued.add(step.name)
        self.journal.mark(step.name, WAITING, inputs={str(i): read_stamp(i) for i in self.files_read(step)})

    def note_result(self, step: Step, seconds: float) -> None:
        if step.cost is not None and step.name not in self._continued:
            costs.note(step.cost, seconds)

    def _changed(self, step: Step) -> str | None:
        """The first file that is not as the step found it; None also where the journal, one of version 0.1, does not say."""
        known = self.journal.content["stages"].get(step.name, {}).get("inputs")
        return None if known is None else self.changed_input(step, known)

    def _require_untrained(self, step: Step) -> None:
        """What is trained is never removed unasked, and a training does not go on with something else."""
        begun = _begun(step)
        if begun:
            raise UserError(
                f"{step.name}: {begun[0].parent} was trained before {self._changed(step)} changed. Do it anew with "
                f"--from-generation {step.part}, or choose another --run."
            )

    def _make_room(self, step: Step) -> None:
        """Remove what the step made of what has changed, and the report, which keeps the figures of it."""
        self._refuse_if_alive(step)
        for path in (*step.owned, self.layout.report):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _begun(step: Step) -> list:
    """The checkpoints that a training has left."""
    return [i for folder in step.owned if folder.is_dir() for i in folder.glob("fold_*/checkpoint_*.pth")]


def _settled(options: AtsoOptions) -> AtsoOptions:
    """``options`` with the schedule of fine-tuning that is not said: constant, or that of the run which goes on."""
    if options.fine_tune_schedule is not None:
        return options
    file = Layout(options).journal
    begun = Journal.read(file).content["arguments"].get("fine_tune_schedule") if file.is_file() else "constant"
    return replace(options, fine_tune_schedule=begun if options.fine_tune_lr is None or begun != "plans" else "constant")
