"""The marginal loss against nnU-Net's own Dice and cross-entropy: time and peak memory of one forward and backward.

    python benchmarks/marginal_loss.py [--device cpu|cuda] [--rounds 15] [--threads 1] [--out benchmarks/results/marginal_loss.json]

Both losses get the same logits and the same labels. Time: the two alternate, so that what else the machine does hits both;
the ratio is the median over rounds of the ratio within a round. Memory: the most that is held at once on top of logits and
labels, gradient included, each loss in a process of its own: resident memory on a CPU, the allocator's count on a GPU.
The bar is 1.1 for both.

Each size is measured with every class annotated, with none, with samples that annotate different halves of the organs, and
with super-classes of two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from circumstances import circumstances  # beside this file
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_partial.files import write_json
from nnunet_partial.losses.partial import MarginalDiceCELoss, groups_from_annotated

BAR = 1.1
SIZES = ((2, 5, 96, 96, 96), (2, 14, 96, 96, 96), (2, 5, 64, 64, 64), (12, 3, 256, 256), (12, 14, 256, 256))
PARTITIONS = ("all", "mixed", "none", "super")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the logits")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds after two that are not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of a CPU run")
    parser.add_argument("--size", action="append", help="B,C,spatial; may be given again; all sizes when left out")
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS, default=PARTITIONS, help="which, all when left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "marginal_loss.json")
    parser.add_argument("--memory-of", choices=("ours", "nnunet"), help=argparse.SUPPRESS)
    parser.add_argument("--partition", choices=PARTITIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = [tuple(int(i) for i in s.split(",")) for s in arguments.size] if arguments.size else SIZES
    if arguments.memory_of:
        print(json.dumps(peak_bytes(arguments, sizes[0])))
        return
    rows = []
    for size in sizes:
        rows += [measure(arguments, size, partition) for partition in arguments.partitions]
        write_json(report(arguments, rows), arguments.out)  # after every size: a run that is stopped leaves what it measured


def report(arguments: argparse.Namespace, rows: list) -> dict:
    return {
        "what": "marginal loss against nnU-Net's loss, forward and backward",
        "bar": BAR,
        "rows": rows,
        **circumstances(),
        "device": arguments.device,
        "load_average": os.getloadavg()[0],
        "threads": arguments.threads,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
    }


def measure(arguments: argparse.Namespace, size: tuple, partition: str) -> dict:
    times = paired_times(arguments, size, partition)
    memory = {name: memory_in_own_process(arguments, size, partition, name) for name in ("nnunet", "ours")}
    row = {
        "size": list(size),
        "partition": partition,
        **{f"{name}_ms": round(1e3 * statistics.median(times[name]), 2) for name in times},
        "time_ratio": round(statistics.median(b / a for a, b in zip(times["nnunet"], times["ours"])), 3),
        **{f"{name}_peak_mib": round(memory[name] / 2**20, 1) for name in memory},
        # None: too small to show in pages of memory
        "memory_ratio": round(memory["ours"] / memory["nnunet"], 3) if memory["nnunet"] else None,
    }
    row["within_bar"] = max(row["time_ratio"], row["memory_ratio"] or 0) <= BAR
    print(json.dumps(row), flush=True)
    return row


def case(arguments: argparse.Namespace, size: tuple, partition: str) -> tuple:
    """Logits, and a function of each loss's name that runs it forward and backward."""
    generator = torch.Generator().manual_seed(0)
    num_samples, num_classes, *spatial = size
    logits = (3 * torch.randn(size, generator=generator)).to(arguments.device, getattr(torch, arguments.dtype)).requires_grad_()
    organs = torch.rand((num_samples, 1, *spatial), generator=generator) < 0.2  # most of an abdomen is background
    target = (organs * torch.randint(1, num_classes, organs.shape, generator=generator)).float().to(arguments.device)
    groups = partition_of(num_samples, num_classes, partition)
    theirs = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    ours = MarginalDiceCELoss(batch_dice=True)

    def run(name: str) -> None:
        # in mixed precision nnU-Net computes its loss under autocast
        with torch.autocast(arguments.device, enabled=arguments.dtype == "float16"):
            loss = ours(logits, target, groups) if name == "ours" else theirs(logits, target)
        loss.backward()

    return logits, run


def partition_of(num_samples: int, num_classes: int, partition: str) -> torch.Tensor:
    """Groups (B, C). "mixed": even samples annotate the lower half of the organs, odd ones the upper half."""
    if partition == "super":
        return ((torch.arange(num_classes) + 1) // 2).repeat(num_samples, 1)
    annotated = torch.full((num_samples, num_classes), partition == "all")
    if partition == "mixed":
        half = (num_classes + 1) // 2
        annotated[::2, 1:half] = True
        annotated[1::2, half:] = True
    return groups_from_annotated(annotated)


def paired_times(arguments: argparse.Namespace, size: tuple, partition: str) -> dict:
    """Seconds of each round of each loss, the first two rounds left out; every other round starts with the other loss."""
    logits, run = case(arguments, size, partition)
    times = {"nnunet": [], "ours": []}
    for i in range(arguments.rounds + 2):
        for name in sorted(times, reverse=bool(i % 2)):
            logits.grad = None
            synchronise(arguments.device)
            start = time.perf_counter()
            run(name)
            synchronise(arguments.device)
            times[name].append(time.perf_counter() - start)
    return {name: values[2:] for name, values in times.items()}


def memory_in_own_process(arguments: argparse.Namespace, size: tuple, partition: str, name: str) -> int:
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        name,
        "--size",
        ",".join(map(str, size)),
        "--partition",
        partition,
        "--device",
        arguments.device,
        "--dtype",
        arguments.dtype,
        "--threads",
        str(arguments.threads),
    ]
    # every tensor in pages of its own, given back when it is freed: otherwise the peak counts what malloc keeps
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout.split()[-1])


def peak_bytes(arguments: argparse.Namespace, size: tuple) -> int:
    # a small run first: libraries load and start their threads on first use
    case(arguments, (2, size[1], *[8] * (len(size) - 2)), arguments.partition)[1](arguments.memory_of)
    _, run = case(arguments, size, arguments.partition)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(arguments.memory_of)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # peak resident memory counts from here; proc(5)
    before = resident_kib("VmRSS")
    run(arguments.memory_of)
    return (resident_kib("VmHWM") - before) * 1024


def resident_kib(field: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
