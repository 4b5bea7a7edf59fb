"""What a prediction costs: time, memory, the areas of the FLARE challenge, parameters and arithmetic.

FLARE 2022 (https://flare22.grand-challenge.org) ranks by running time, by the area under the curve of GPU memory over
time and by the area under the curve of CPU utilisation over time, sampled every 0.1 s. Its curves are those of a
machine that runs nothing else. Here CPU time is that of this process and the processes it started, so other work on the
machine does not count; GPU memory is that of the whole device, as nvidia-smi shows it, the CUDA context included.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import psutil
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_partial import _moved
from nnunet_partial.files import PathLike, json_text, write_texts
from nnunet_partial.networks.meta import meta_copy

SAMPLING_INTERVAL_S = 0.1
_MB = 2**20


@dataclass(frozen=True)
class Sample:
    """A moment: CPU seconds used so far, resident memory, and used memory of the GPU (None without one)."""

    time_s: float
    cpu_s: float
    memory_mb: float
    gpu_memory_mb: float | None = None


@dataclass(frozen=True)
class Efficiency:
    """What one case, or all together, took. 100 % CPU is the whole machine, as in FLARE; MB are 2^20 bytes.

    Memory is the resident memory of all processes together; pages that they share count once for each.
    """

    case: str
    wall_time_s: float
    peak_memory_mb: float
    cpu_time_area_percent_s: float
    peak_gpu_memory_mb: float | None = None
    gpu_memory_time_area_mb_s: float | None = None


@dataclass(frozen=True)
class NetworkCost:
    """``multiply_accumulates`` of one forward pass of convolutions, transposed convolutions and matrix products.

    Norms, activations, biases and interpolation are left out; 1 multiply-accumulate = 2 FLOPs.
    """

    parameters: int
    multiply_accumulates: int

    @property
    def flops(self) -> int:
        return 2 * self.multiply_accumulates


class Measurement:
    """Context that samples what runs in it, on a thread of its own::

    with Measurement("case_001", device) as measurement:
        predict(...)
    measurement.result            # Efficiency
    measurement.samples           # the curves behind it
    """

    def __init__(
        self,
        case: str,
        device: torch.device = torch.device("cpu"),
        interval_s: float = SAMPLING_INTERVAL_S,
        read: Callable[[], Sample] | None = None,
    ):
        self.case, self.device, self.interval_s = case, device, interval_s
        self.samples: list[Sample] = []
        self.result: Efficiency | None = None
        self._read = read or (lambda: sample(device))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="efficiency", daemon=True)

    def __enter__(self) -> "Measurement":
        self._wait_for_device()
        self.samples.append(self._read())
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self._wait_for_device()
        self._stop.set()
        self._thread.join()
        self.samples.append(self._read())
        self.result = summarise(self.case, self.samples)

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.samples.append(self._read())

    def _wait_for_device(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def sample(device: torch.device = torch.device("cpu")) -> Sample:
    """The present :class:`Sample` of this process, its descendants, and ``device`` if that is a GPU."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    cpu_s, memory = 0.0, 0
    for process in processes:
        try:
            with process.oneshot():
                # the times of ended and awaited children are part of their parent's
                cpu_s += sum(process.cpu_times()[:4])
                memory += process.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            continue
    gpu_memory_mb = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        gpu_memory_mb = (total - free) / _MB
    return Sample(time.perf_counter(), cpu_s, memory / _MB, gpu_memory_mb)


def summarise(case: str, samples: Sequence[Sample], num_cpus: int | None = None) -> Efficiency:
    """Peaks and areas (trapezoidal) of the curves. CPU utilisation is CPU time per time: its area is the CPU time."""
    num_cpus = num_cpus or psutil.cpu_count() or 1
    times = np.array([i.time_s for i in samples])
    # a child's time is missing between its end and its parent's wait, so the sum may fall for a moment
    cpu_s = max(i.cpu_s for i in samples) - samples[0].cpu_s
    gpu = [i.gpu_memory_mb for i in samples if i.gpu_memory_mb is not None]
    on_gpu = len(gpu) == len(samples)
    return Efficiency(
        case,
        float(times[-1] - times[0]),
        max(i.memory_mb for i in samples),
        100 * cpu_s / num_cpus,
        max(gpu) if on_gpu else None,
        _area(times, np.array(gpu)) if on_gpu else None,
    )


def _area(times: np.ndarray, values: np.ndarray) -> float:
    return float((np.diff(times) * (values[1:] + values[:-1]) / 2).sum())


def total(cases: Sequence[Efficiency]) -> Efficiency:
    """All cases one after the other: times and areas are sums, peaks the highest."""
    peaks = [i.peak_gpu_memory_mb for i in cases if i.peak_gpu_memory_mb is not None]
    areas = [i.gpu_memory_time_area_mb_s for i in cases if i.gpu_memory_time_area_mb_s is not None]
    on_gpu = len(peaks) == len(cases)
    return Efficiency(
        "total",
        sum(i.wall_time_s for i in cases),
        max(i.peak_memory_mb for i in cases),
        sum(i.cpu_time_area_percent_s for i in cases),
        max(peaks) if on_gpu else None,
        sum(areas) if on_gpu else None,
    )


def cost(network: nn.Module, in_channels: int, patch_size: Sequence[int]) -> NetworkCost:
    """Parameters and multiply-accumulates of one pass over one patch, counted by torch without running anything.

    Heads that only deep supervision uses are left out of both: they do not exist at inference.
    """
    network = meta_copy(network)
    unused = 0
    decoder: Any = getattr(network, "decoder", None)
    if hasattr(decoder, "deep_supervision"):
        decoder.deep_supervision = False
        unused = sum(p.numel() for head in decoder.seg_layers[:-1] for p in head.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, in_channels, *patch_size, device="meta"))
    return NetworkCost(sum(p.numel() for p in network.parameters()) - unused, counter.get_total_flops() // 2)


def num_windows(volume_size: Sequence[int], patch_size: Sequence[int], overlap: float = 0.5) -> int:
    """Passes that a sliding window needs for a volume, which nnU-Net pads to the patch size where it is smaller."""
    padded = tuple(max(v, p) for v, p in zip(volume_size, patch_size))
    return prod(len(i) for i in compute_steps_for_sliding_window(padded, tuple(patch_size), 1 - overlap))


def report(
    methods: Mapping[str, Sequence[Efficiency]],
    costs: Mapping[str, NetworkCost] | None = None,
    device: torch.device = torch.device("cpu"),
    arithmetic: Mapping[str, Sequence[int]] | None = None,
) -> dict:
    """Cases, totals and costs of several methods, and the machine that they ran on, ready for JSON.

    ``arithmetic``: multiply-accumulates of each case, all passes of all networks together.
    """
    content = {}
    for name, cases in methods.items():
        content[name] = {"cases": [asdict(i) for i in cases], "total": asdict(total(cases))}
        if costs and name in costs:
            content[name]["network"] = {**asdict(costs[name]), "flops": costs[name].flops}
        if arithmetic and name in arithmetic:
            content[name]["multiply_accumulates_of_cases"] = list(arithmetic[name])
    machine = {
        "processor": platform.processor() or platform.machine(),
        "logical_cpus": psutil.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    return {"machine": machine, "sampling_interval_s": SAMPLING_INTERVAL_S, "methods": content}


def write_report(content: dict, path: PathLike) -> None:
    """Write a :func:`report` as JSON and, beside it, its :func:`table` as Markdown."""
    write_texts({os.path.splitext(os.fspath(path))[0] + ".md": table(content), path: json_text(content)})


_COLUMNS = (
    ("cases", lambda m: str(len(m["cases"]))),
    ("time a case (s)", lambda m: _number(m["total"]["wall_time_s"] / len(m["cases"]))),
    ("time (s)", lambda m: _number(m["total"]["wall_time_s"])),
    ("peak memory (MB)", lambda m: _number(m["total"]["peak_memory_mb"])),
    ("peak GPU memory (MB)", lambda m: _number(m["total"]["peak_gpu_memory_mb"])),
    ("GPU memory-time (MB s)", lambda m: _number(m["total"]["gpu_memory_time_area_mb_s"])),
    ("CPU-time (% s)", lambda m: _number(m["total"]["cpu_time_area_percent_s"])),
    ("parameters (M)", lambda m: _number(m.get("network", {}).get("parameters"), 1e6)),
    ("multiply-accumulates a pass (G)", lambda m: _number(m.get("network", {}).get("multiply_accumulates"), 1e9)),
    ("multiply-accumulates a case (G)", lambda m: _number(_mean(m.get("multiply_accumulates_of_cases")), 1e9)),
)


def table(content: dict) -> str:
    """The methods of a :func:`report` side by side, one line each, as Markdown."""
    rows = [["method", *(name for name, _ in _COLUMNS)], ["---"] * (len(_COLUMNS) + 1)]
    rows += [[name, *(text(method) for _, text in _COLUMNS)] for name, method in content["methods"].items()]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None


def _number(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"{value / unit:.0f}" if value >= 100 * unit else f"{value / unit:.3g}"


__getattr__ = _moved.renamed(__name__, {"Cost": "NetworkCost"})
