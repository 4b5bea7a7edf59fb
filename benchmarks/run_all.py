"""All benchmarks that need no data of their own, and one table of what they measured against the bars of the project.

    python benchmarks/run_all.py                      # runs them; an hour or so on two cores
    python benchmarks/run_all.py --only step_time     # runs this one, and reads the results of the others
    python benchmarks/run_all.py --from-results       # runs none: the table of the results that are there

Writes benchmarks/results/table.md. A bar that was missed is named, and so is a benchmark without a result. The accuracy
studies (accuracy.py, one_change.py, unions.py) need real data and hours, and are no part of this.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_partial.files import write_json, write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Row:
    """One bar. ``met`` None: not measured."""

    benchmark: str
    what: str
    bar: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return "not measured" if self.met is None else "met" if self.met else "MISSED"


@dataclass(frozen=True)
class Benchmark:
    """``read`` makes rows of a result; ``promised`` are the bars (what, bar) that are named while there is none."""

    name: str
    read: Callable[[dict], Iterable[tuple]]
    promised: tuple
    arguments: tuple = ()
    script: str = ""  # if it is not called as the result

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"

    @property
    def command(self) -> list:
        return [sys.executable, str(HERE / f"{self.script or self.name}.py"), *self.arguments, "--out", str(self.result)]


# ------------------------------------------------------------------ reading: (what, bar, measured, met)


def read_step_time(content):
    for trainer, values in content["trainers"].items():
        if values.get("bar"):
            yield (
                f"step of {trainer} against plain nnU-Net",
                f"<= {values['bar']:.2f} x",
                f"{values['ratio_to_plain']:.2f} x",
                values["ratio_to_plain"] <= values["bar"],
            )


def read_soft_step_time(content):
    """One result for each number of teachers; beside soft labels, the trainers' own bars are those of the table above."""
    for result in content:
        for trainer, values in result["trainers"].items():
            if values.get("bar") and trainer.endswith("soft labels"):
                yield (
                    f"step of {trainer}, K = {result['teachers']}, data loading included, against plain nnU-Net",
                    f"<= {values['bar']:.2f} x",
                    f"{values['ratio_to_plain']:.2f} x",
                    values["ratio_to_plain"] <= values["bar"],
                )


def read_marginal_loss(content):
    bar, rows = content["bar"], content["rows"]
    for key, what in (("time_ratio", "time"), ("memory_ratio", "memory")):
        values = [i[key] for i in rows if i.get(key) is not None]
        within = sum(i <= bar for i in values)
        yield (
            f"marginal loss against nnU-Net's, {what}, {len(values)} sizes and partitions",
            f"<= {bar} x",
            f"{min(values):.2f} to {max(values):.2f} x, {within} of {len(values)} within",
            within == len(values),
        )


def read_conversion(content):
    in_place = {k: v["image_bytes_copied"] for k, v in content["layouts"].items() if v["images"] == "in place"}
    yield (
        f"image bytes copied where the format allows it ({', '.join(in_place)})",
        "0",
        str(sum(in_place.values())),
        not any(in_place.values()),
    )
    memory = [v["memory_volumes_per_worker"] for v in content["layouts"].values() if "memory_volumes_per_worker" in v]
    yield (
        "memory of a converting worker, in volumes",
        f"<= {content['bar_memory_volumes']:.0f}",
        f"{max(memory):.2f}",
        max(memory) <= content["bar_memory_volumes"],
    )
    dicom = content["dicom_against_simpleitk"]
    yield (
        "DICOM against reading and compressing with SimpleITK",
        f"<= {dicom['bar']} x",
        f"{dicom['ratio']:.2f} x",
        dicom["ratio"] <= dicom["bar"],
    )


def read_metrics(content):
    yield (
        "all metrics of a case against surface-distance",
        f"<= {content['bar']} x",
        f"{content['worst_ratio']:.2f} x",
        content["worst_ratio"] <= content["bar"],
    )


def read_inference(content):
    dice = content["mean_dice_of_labels"]
    yield (
        "pseudo-labelling against nnUNetv2_predict from raw images, throughput at equal labels",
        f">= {content['bar']:.0f} x, mean Dice >= 0.99",
        f"{content['throughput_ratio']:.2f} x, mean Dice {dice:.4f}",
        content["met"],
    )


def read_coarse_to_fine(content):
    bars, plain = content["ratios"]["bars"], content["ratios"].get("plain nnU-Net")
    size = "512 x 512 x 300 volume"
    speed, memory = (f"{plain[i]:.2f} x" if plain else "-" for i in ("time", "memory"))
    yield (f"coarse to fine against sliding-window nnU-Net, {size}, time", ">= 5 x faster", speed, bars["5 x faster"])
    yield (
        f"coarse to fine against sliding-window nnU-Net, {size}, {bars['memory is'].replace('_', ' ')}",
        "less",
        memory,
        bars["less memory"],
    )
    yield (f"coarse to fine, {bars['memory is'].replace('_', ' ')}", "< 2000 MB", f"{bars['peak MB']:.0f} MB", bars["under 2 GB"])


def read_network_cost(content):
    for what in ("parameters", "multiply_accumulates"):
        ratio = content["teacher"][what] / content["student"][what]
        yield (
            f"{what.replace('_', '-')} of the teacher over the student's, at the paper's size",
            f">= {content['bar']} x",
            f"{ratio:.1f} x",
            ratio >= content["bar"],
        )


def read_label_swap(content):
    yield from read_stated(content, "swap", "loop")


def read_scale(content):
    bar = content["bar_exponent"]
    for classes, steps in content.get("growth", {}).items():
        fitted = {k: v["exponent"] for k, v in steps.items() if v["exponent"] is not None}
        quick = [k for k, v in steps.items() if v["exponent"] is None]
        cases = min(max(map(int, v["cpu_seconds"])) for v in steps.values())  # that every command was run on
        values = ", ".join(f"{k} {v:.2f}" for k, v in fitted.items())
        yield (
            f"growth of CPU time to {cases} cases of {classes} classes, exponent",
            f"<= {bar}",
            f"{values or 'none'}{'; too quick to fit: ' if quick else ''}{', '.join(quick)}",
            max(fitted.values(), default=0) <= bar,
        )
    if "volumes" in content:
        more, (few, many) = content["volumes"]["volumes_more"], content["volumes"]["cases"]
        worst = max(more, key=more.get)
        yield (
            f"memory that {many} volumes need over {few}, in volumes",
            f"<= {content['bar_volumes']:.0f}",
            f"{more[worst]:.2f} ({worst})",
            more[worst] <= content["bar_volumes"],
        )
    if "many_classes" in content:
        many = content["many_classes"]
        for way, what in (("predict", "predict from preprocessed files"), ("pseudo_label", "pseudo-label")):
            time, memory = many[f"{way}_time_ratio"], many[f"{way}_memory_ratio"]
            yield (
                f"{what} with {many['classes']} classes against nnU-Net's prediction, CPU time and peak memory",
                "<= 1 x",
                f"{time:.2f} x, {memory:.2f} x",
                max(time, memory) <= 1,
            )
        yield (
            f"labels of {many['classes']} classes that are nnU-Net's",
            ">= 99.9 %",
            f"{100 * many['share_of_equal_labels']:.3f} %",
            many["share_of_equal_labels"] >= 0.999,
        )


def read_stated(content, *parts):
    """Parts of a result that say themselves what they are, what the bar is, and whether it was met."""
    for part in parts:
        yield tuple(content[part][i] for i in ("what", "bar", "measured", "met"))


BENCHMARKS = (
    Benchmark(
        "step_time",
        read_step_time,
        (
            ("step of MS-KD with K teachers against plain nnU-Net", "<= 1.05 x (3 + K)/3"),
            ("step of co-training", "<= 1.05 x 8/3"),
        ),
        ("--features", "32", "64", "128"),
    ),
    Benchmark(
        "step_time_comparators",
        read_step_time,
        (("step of DoDNet against plain nnU-Net", "<= 1.1 x"),),
        ("--trainers", "nnUNetTrainerPartial", "nnUNetTrainerDoDNet", "nnUNetTrainerConditionCNN"),
        script="step_time",
    ),
    Benchmark(
        "step_time_soft",
        read_soft_step_time,
        (("step of MSKDLW from soft labels against plain nnU-Net", "<= 1.2 x whatever K"),),
        ("--soft", "--sources", "1", "3", "8", "--features", "32", "64", "128"),
        script="step_time",
    ),
    Benchmark(
        "label_swap",
        read_label_swap,
        (
            ("a generation's label swap against preprocessing again", ">= 20 x faster, no image byte copied"),
            ("ATSO loop's own share of the wall time", "<= 2 %"),
        ),
    ),
    Benchmark("conversion", read_conversion, (("image bytes copied where the format allows it", "0"),)),
    Benchmark("marginal_loss", read_marginal_loss, (("marginal loss against nnU-Net's", "<= 1.1 x time and memory"),)),
    Benchmark(
        "marginal_loss_117",
        read_marginal_loss,
        (("marginal loss against nnU-Net's, 117 classes on 128 x 128 x 128 voxels", "<= 1.1 x time and memory"),),
        ("--threads", "1", "--rounds", "2", "--size", "1,118,128,128,128", "--partitions", "all", "mixed"),
        "marginal_loss",
    ),
    Benchmark(
        "scale",
        read_scale,
        (
            ("growth of CPU time with the cases, exponent", "<= 1.1"),
            ("memory that 20 volumes need over 4, in volumes", "<= 3"),
            ("prediction and pseudo labels of 117 classes against nnU-Net's", "<= 1 x time and memory, equal labels"),
        ),
    ),
    Benchmark("metrics", read_metrics, (("all metrics of a case against surface-distance", "<= 1.2 x"),)),
    Benchmark(
        "inference", read_inference, (("pseudo-labelling against nnUNetv2_predict from raw images", ">= 2 x, mean Dice >= 0.99"),)
    ),
    Benchmark(
        "coarse_to_fine",
        read_coarse_to_fine,
        (
            ("coarse to fine against sliding-window nnU-Net", ">= 5 x faster, less memory"),
            ("coarse to fine, peak memory", "< 2000 MB"),
        ),
    ),
    Benchmark("network_cost", read_network_cost, (("teacher over student, parameters and multiply-accumulates", ">= 10 x"),)),
)


# ------------------------------------------------------------------ the table


def rows_of(benchmark: Benchmark, problem: str = "") -> list:
    """The rows of a benchmark's result; if there is none or it cannot be read, its promised bars as not measured."""
    try:
        content = json.loads(benchmark.result.read_text(encoding="utf-8"))
        rows = [Row(benchmark.name, *i) for i in benchmark.read(content)]
    except FileNotFoundError:
        rows = []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rows, problem = [], f"{benchmark.result.name} cannot be read ({type(error).__name__}: {error})"
    if rows and not problem:
        return rows
    return [Row(benchmark.name, what, bar, problem or "no result", None) for what, bar in benchmark.promised]


def table(rows: Iterable[Row]) -> str:
    lines = ["| benchmark | what | bar | measured | |", "|---|---|---|---|---|"]
    lines += [
        f"| {i.benchmark} | {i.what} | {i.bar} | {i.measured} | {'**' if i.met is False else ''}{i.verdict}"
        f"{'**' if i.met is False else ''} |"
        for i in rows
    ]
    return "\n".join(lines)


def page(rows: list) -> str:
    counts = {i: sum(row.verdict == i for row in rows) for i in ("met", "MISSED", "not measured")}
    machines = sorted({f"{i.name}: {m}" for i in BENCHMARKS if (m := _machine(i.result))})
    return (
        f"# Benchmarks against their bars\n\n{counts['met']} met, {counts['MISSED']} missed, {counts['not measured']} not measured. "
        f"Written by `python benchmarks/run_all.py`.\n\n{table(rows)}\n\nMeasured on:\n\n" + "".join(f"- {i}\n" for i in machines)
    )


def _machine(result: Path) -> str:
    try:
        machine = json.loads(result.read_text(encoding="utf-8")).get("machine", "")
    except (FileNotFoundError, ValueError, AttributeError):
        return ""
    return machine if isinstance(machine, str) else ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None)


def run(benchmark: Benchmark) -> str:
    """Run one; returns what went wrong, or nothing."""
    if benchmark.name == "network_cost":
        write_json(network_cost(), benchmark.result)
        return ""
    if not Path(benchmark.command[1]).is_file():
        return "there is no such benchmark"
    print(f"$ python benchmarks/{Path(benchmark.command[1]).name} {' '.join(benchmark.arguments)}", flush=True)
    code = subprocess.run(benchmark.command).returncode
    return f"ended with exit code {code}" if code else ""


def network_cost() -> dict:
    """Parameters and multiply-accumulates of teacher and student at the paper's size; counted, not run."""
    from circumstances import circumstances  # beside this file

    from nnunet_partial.inference.efficiency.measure import cost
    from nnunet_partial.networks.usenet import ResidualUSENet

    classes, patch = 14, (96, 64, 96)  # FLARE22: 13 organs
    count = {
        name: vars(cost(ResidualUSENet(1, classes, mobile=mobile), 1, patch))
        for name, mobile in (("teacher", False), ("student", True))
    }
    return {**circumstances(), "bar": 10, "patch": list(patch), "classes": classes, **count}


def main():
    names = [i.name for i in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="run these; the others' results are read")
    parser.add_argument("--from-results", action="store_true", help="run none")
    parser.add_argument("--out", type=Path, default=RESULTS / "table.md")
    arguments = parser.parse_args()
    problems = {} if arguments.from_results else {i.name: run(i) for i in BENCHMARKS if i.name in arguments.only}
    rows = [row for i in BENCHMARKS for row in rows_of(i, problems.get(i.name, ""))]
    write_text(page(rows), arguments.out)
    print(page(rows))
    sys.exit(1 if any(problems.values()) else 0)


if __name__ == "__main__":
    main()
