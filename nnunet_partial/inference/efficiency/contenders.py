"""What prediction costs with several models, side by side: coarse to fine, and nnU-Net's sliding window with any model.

Each contender runs in a process of its own, which loads its models first and then segments case after case, from file to
file; so no memory that one of them keeps is counted for another.
"""

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_partial.bars import bar
from nnunet_partial.data.parallel import in_own_process
from nnunet_partial.errors import UserError
from nnunet_partial.files import PathLike, read_json
from nnunet_partial.inference.coarse_to_fine.stages import TRAINER, Stage, cases_of, load_stage, predict_case
from nnunet_partial.inference.efficiency import measure as efficiency
from nnunet_partial.inference.efficiency.measure import Efficiency, Measurement, NetworkCost
from nnunet_partial.inference.preprocessed import load_predictor
from nnunet_partial.labels import foreground_classes
from nnunet_partial.networks.models import ModelFiles, find_checkpoint
from nnunet_partial.paths import FINAL_CHECKPOINT


@dataclass(frozen=True)
class Contender:
    """``models``: one model folder for nnU-Net's sliding window; two (coarse, fine; folders or dataset ids) for coarse to
    fine. ``trusted``: the user vouches for the architectures that their plans name."""

    name: str
    models: tuple
    fold: Any = 0
    checkpoint: str = FINAL_CHECKPOINT
    trainer: str = TRAINER
    mirroring: bool = True
    trusted: bool = False


@dataclass(frozen=True)
class Measured:
    """Of one contender: the cases, one pass of each network together, multiply-accumulates of each case."""

    cases: list[Efficiency]
    cost: NetworkCost
    arithmetic: list[int]


def compare(contenders: Sequence[Contender], images: PathLike, device: str = "cpu", limit: int | None = None) -> dict:
    """The :func:`~nnunet_partial.inference.efficiency.measure.report` of all contenders on the cases of a folder.

    ``limit``: only so many cases. The masks are thrown away. Raises :class:`UserError` for a model or image that cannot
    be used.
    """
    killed = UserError("a process was killed while it segmented, most likely because memory ran out.")
    measured = {i.name: in_own_process(measure, i, os.fspath(images), device, limit, killed=killed) for i in contenders}
    return efficiency.report(
        {k: v.cases for k, v in measured.items()},
        {k: v.cost for k, v in measured.items()},
        torch.device(device),
        {k: v.arithmetic for k, v in measured.items()},
    )


def measure(contender: Contender, images: str, device: str, limit: int | None = None) -> Measured:
    """Segment the cases of ``images`` with one contender, in this process."""
    run_on = torch.device(device)
    segment, networks, ending = (
        _coarse_to_fine(contender, run_on) if len(contender.models) == 2 else _sliding_window(contender, run_on)
    )
    cases = list(cases_of(images, ending).items())[:limit]
    costs = [efficiency.cost(network, channels, patch) for network, channels, patch in networks]
    results, arithmetic = [], []
    with tempfile.TemporaryDirectory() as out:
        for case, files in bar(cases, contender.name):
            with _passes([i[0] for i in networks]) as passes, Measurement(case, run_on) as measurement:
                segment(files, os.path.join(out, case))
            results.append(measurement.result)
            arithmetic.append(sum(n * cost.multiply_accumulates for n, cost in zip(passes, costs)))
    return Measured(results, _together(costs), arithmetic)


def coarse_to_fine_cost(coarse: Stage, fine: Stage) -> NetworkCost:
    """Both networks together: parameters, and one pass of each."""
    return _together([efficiency.cost(i, n, patch) for i, n, patch in _networks(coarse, fine)])


def _networks(coarse: Stage, fine: Stage) -> list:
    """(network, channels, patch size) of both stages."""
    settings, channels = fine.description.settings, len(fine.description.channels)
    return [(coarse.network, channels, settings.patch_size), (fine.network, channels, settings.fine_size)]


def _together(costs: Sequence[NetworkCost]) -> NetworkCost:
    return NetworkCost(sum(i.parameters for i in costs), sum(i.multiply_accumulates for i in costs))


def _coarse_to_fine(contender: Contender, device: torch.device) -> tuple:
    stages = [
        load_stage(model, stage, contender.fold, contender.checkpoint, device, contender.trainer, contender.trusted)
        for model, stage in zip(contender.models, ("coarse", "fine"))
    ]
    ending = stages[1].description.file_ending
    return lambda files, out: predict_case(files, out + ending, *stages), _networks(*stages), ending


def _sliding_window(contender: Contender, device: torch.device) -> tuple:
    folder = Path(contender.models[0])
    checkpoint = find_checkpoint(folder, contender.fold, contender.checkpoint)
    if checkpoint is None:
        raise UserError(
            f"{folder} holds no fold_{contender.fold}/{contender.checkpoint}. Train it with nnUNetv2_train, or "
            f"name another --fold."
        )
    folder = checkpoint.parent.parent
    dataset_json = read_json(folder / "dataset.json", "A model folder holds it.")
    classes, _ = foreground_classes(dataset_json, str(folder / "dataset.json"))
    files = ModelFiles(contender.name, folder, checkpoint, classes, contender.trusted)
    predictor: Any = load_predictor(files, device, contender.mirroring)
    predictor.list_of_parameters = [predictor.network.state_dict()]  # of each fold; nnU-Net loads them before each case
    networks = [(predictor.network, len(dataset_json["channel_names"]), predictor.configuration_manager.patch_size)]

    def segment(files: Sequence[str], out: str) -> None:
        with redirect_stdout(io.StringIO()):
            predictor.predict_from_files_sequential([list(files)], [out], False, True)

    return segment, networks, dataset_json["file_ending"]


@contextmanager
def _passes(networks: Sequence[torch.nn.Module]) -> Iterator[list]:
    """Counts, per network, the samples that go through it."""
    counts = [0] * len(networks)

    def count(index: int) -> Callable:
        def hook(module, arguments, output):
            counts[index] += len(arguments[0])

        return hook

    handles = [network.register_forward_hook(count(i)) for i, network in enumerate(networks)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
