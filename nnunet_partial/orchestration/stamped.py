"""Steps that are done when their command ended well and what they rest on is as it was then.

Nothing is kept in memory: work that was killed goes on where it was, and a step that outlived it is waited for.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_partial.errors import UserError
from nnunet_partial.files import read_json, try_lock, write_json
from nnunet_partial.orchestration import costs
from nnunet_partial.orchestration import job as runner
from nnunet_partial.orchestration.engine import Engine, Step
from nnunet_partial.orchestration.executors import Executor
from nnunet_partial.outputs import read_stamp, size_and_time
from nnunet_partial.trust import check_model

PLANS = ("plans", "planning")  # parts whose outputs are refused unless they stay what they were


class StampedEngine(Engine):
    """``trust``: the user vouches for the architectures of models that are there already."""

    def __init__(self, folder: Path, steps: Sequence[Step], executor: Executor | None = None, trust: bool = False):
        super().__init__(folder, steps, executor)
        self.trust = trust
        self._partly: set = set()  # steps that go on from what an earlier run left: their time says nothing

    # ---- done or not

    def is_done(self, step: Step) -> bool:
        """Whether nothing is left to do, and nothing that it rests on has changed since."""
        if step.part == "report" or self.missing_output(step) is not None:
            return False
        if self.result(step) is None:
            if step.taken is not None:
                step.taken()
                # nnU-Net will unpickle it, whoever made it
                check_model(step.outputs[0].parent.parent, step.outputs[0], self.trust)
            return step.taken is not None or self._ended_unseen(step)
        if self._changed(step) is None:
            return self._predictions_are_whole(step)
        if step.taken is not None:
            self._refuse_changed(step)
        return False

    def _ended_unseen(self, step: Step) -> bool:
        """Whether this very command was killed between its last output, which appears when all else is written, and its end."""
        file = self.job_folder(step) / runner.JOB
        if not step.whole or not file.is_file() or read_json(file)["argv"] != list(step.argv):
            return False
        return not self.lives(step) and self._kept_stamps(step) is not None and self._changed(step) is None

    def files_read(self, step: Step) -> list:
        """What the step reads, and what the steps before it wrote. Plans are left out: they are written anew each time, and
        refused unless they stay what they were."""
        return list(dict.fromkeys([*super().files_read(step), *self._before(step)]))

    def _before(self, step: Step) -> list:
        needed = [self._by_name[i] for i in step.needs]
        return [j for i in needed if i.part not in PLANS for j in i.outputs]

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
        if step.taken is not None:
            self._check_training(step)
        if _begun(step) or (self.job_folder(step) / runner.JOB).is_file():
            self._partly.add(step.name)
        self._make_room(step)

    def note_result(self, step: Step, seconds: float) -> None:
        if step.cost is not None and step.name not in self._partly:
            costs.note(step.cost, seconds)

    def _check_training(self, step: Step) -> None:
        """A training goes on from its checkpoint: neither with other settings, nor on other labels or teachers."""
        if step.taken is not None:
            step.taken()
        if _begun(step) and self._kept_stamps(step) is not None and self._changed(step) is not None:
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


def _begun(step: Step) -> bool:
    """Whether a training has left a checkpoint."""
    return step.taken is not None and any(step.outputs[0].parent.glob("checkpoint_*.pth"))
