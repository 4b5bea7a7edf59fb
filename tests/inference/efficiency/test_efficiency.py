"""Efficiency: areas and peaks of hand-made curves, real processes, and the cost of networks."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_partial.inference.efficiency import measure as efficiency
from nnunet_partial.inference.efficiency.measure import Efficiency, Measurement, NetworkCost, Sample
from nnunet_partial.networks.usenet import ResidualUSENet


def test_areas_and_peaks_of_a_hand_made_curve():
    """GPU memory 100, 300, 300, 100 MB at 0, 1, 2, 4 s: areas 200 + 300 + 400 MB s. 3 CPU seconds on 4 CPUs: 75 % s."""
    samples = [
        Sample(10.0, 7.0, 50.0, 100.0),
        Sample(11.0, 8.0, 80.0, 300.0),
        Sample(12.0, 10.0, 70.0, 300.0),
        Sample(14.0, 9.5, 60.0, 100.0),
    ]
    result = efficiency.summarise("a", samples, num_cpus=4)
    assert result == Efficiency(
        "a",
        wall_time_s=4.0,
        peak_memory_mb=80.0,
        cpu_time_area_percent_s=75.0,
        peak_gpu_memory_mb=300.0,
        gpu_memory_time_area_mb_s=900.0,
    )


def test_without_a_gpu_its_figures_are_missing():
    result = efficiency.summarise("a", [Sample(0.0, 0.0, 1.0), Sample(2.0, 2.0, 3.0)], num_cpus=2)
    assert result == Efficiency("a", 2.0, 3.0, 100.0, None, None)


def test_total_sums_times_and_areas_and_keeps_the_highest_peak():
    cases = [Efficiency("a", 1.0, 500.0, 20.0, 900.0, 800.0), Efficiency("b", 2.5, 400.0, 30.0, 1200.0, 700.0)]
    assert efficiency.total(cases) == Efficiency("total", 3.5, 500.0, 50.0, 1200.0, 1500.0)
    assert efficiency.total([cases[0], Efficiency("c", 1.0, 1.0, 1.0)]).peak_gpu_memory_mb is None


def test_samples_are_taken_at_both_ends_and_in_between():
    moments = iter(range(1000))
    enough = 4

    def read():
        i = next(moments)
        return Sample(float(i), i / 2, 10.0 * i)

    with Measurement("case", interval_s=0.001, read=read) as measurement:
        while len(measurement.samples) < enough:
            time.sleep(0.001)
        assert measurement.result is None
    assert [i.time_s for i in measurement.samples] == [float(i) for i in range(len(measurement.samples))]
    assert measurement.result.case == "case"
    assert measurement.result.wall_time_s == len(measurement.samples) - 1
    assert not measurement._thread.is_alive()


def test_a_failure_inside_ends_the_sampling_and_passes_on():
    measurement = Measurement("case", interval_s=0.001)
    with pytest.raises(ValueError, match="inside"), measurement:
        raise ValueError("inside")
    assert not measurement._thread.is_alive() and measurement.result is not None


def test_memory_and_cpu_time_of_this_process_are_seen():
    with Measurement("case", interval_s=0.01) as measurement:
        block = np.ones(40_000_000)  # 305 MB
        started = time.process_time()
        while time.process_time() - started < 0.3:
            block[:1000].sum()
        while len(measurement.samples) < 3:
            time.sleep(0.01)
    result, first = measurement.result, measurement.samples[0]
    assert result.peak_memory_mb - first.memory_mb > 100
    # psutil counts in steps of 10 ms
    assert result.cpu_time_area_percent_s >= 100 * 0.28 / (efficiency.psutil.cpu_count() or 1)
    assert result.peak_gpu_memory_mb is None


def test_children_count_while_they_run_and_after_they_ended():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    before = efficiency.sample()
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    running = efficiency.sample()
    child.communicate(b"\n")
    ended = efficiency.sample()
    assert child.returncode == 0
    assert running.cpu_s - before.cpu_s > 0.28 and ended.cpu_s - before.cpu_s > 0.28
    assert running.memory_mb > ended.memory_mb


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_memory_is_seen():
    device = torch.device("cuda")
    torch.zeros(1, device=device)
    with Measurement("case", device, interval_s=0.01) as measurement:
        block = torch.ones(2**28, device=device)  # 1 GB
        while len(measurement.samples) < 5:
            time.sleep(0.01)
    first = measurement.samples[0].gpu_memory_mb
    assert measurement.result.peak_gpu_memory_mb - first > 1000 and block.is_cuda
    assert measurement.result.gpu_memory_time_area_mb_s > 0


def test_cost_of_a_network_counted_by_hand():
    """One 3x3 convolution from 2 to 4 channels on 8 x 6, one strided from 4 to 4, a linear layer from 48 to 5."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2), nn.Flatten(), nn.Linear(48, 5)
    )
    assert efficiency.cost(network, 2, (8, 6)) == NetworkCost(
        parameters=(2 * 9 * 4 + 4) + 8 + (4 * 4 * 4 + 4) + (48 * 5 + 5),
        multiply_accumulates=2 * 9 * 4 * 48 + 4 * 4 * 4 * 12 + 48 * 5,
    )
    assert NetworkCost(1, 5).flops == 10


def test_cost_leaves_out_the_heads_of_deep_supervision():
    def build(deep_supervision):
        return PlainConvUNet(1, 3, (4, 8, 8), nn.Conv3d, 3, (1, 2, 2), 1, 3, 1, deep_supervision=deep_supervision)

    network = build(True)
    assert efficiency.cost(network, 1, (8, 8, 8)) == efficiency.cost(build(False), 1, (8, 8, 8))
    assert network.decoder.deep_supervision
    heads = 8 * 3 + 3  # the one head below full resolution
    assert efficiency.cost(network, 1, (8, 8, 8)).parameters == sum(p.numel() for p in network.parameters()) - heads


def test_student_of_the_paper_costs_a_tenth_of_its_teacher():
    with torch.device("meta"):
        teacher, student = ResidualUSENet(1, 14), ResidualUSENet(1, 14, mobile=True)
    of_teacher, of_student = (efficiency.cost(i, 1, (96, 64, 96)) for i in (teacher, student))
    assert round(of_student.parameters / 1e6, 2) == 5.23 and round(of_student.multiply_accumulates / 1e9, 1) == 14.5
    assert of_teacher.parameters >= 10 * of_student.parameters
    assert of_teacher.multiply_accumulates >= 10 * of_student.multiply_accumulates


@pytest.mark.parametrize(
    "volume, patch, expected",
    (
        ((96, 96, 96), (96, 64, 96), 2),
        ((96, 64, 96), (96, 64, 96), 1),
        ((300, 512, 512), (128, 128, 128), 4 * 7 * 7),
        ((20, 20, 20), (32, 16, 32), 2),
    ),
)
def test_number_of_windows(volume, patch, expected):
    """Windows of p voxels, half overlapping, on v voxels: ceil((v - p) / (p / 2)) + 1 an axis, 1 where v <= p."""
    assert efficiency.num_windows(volume, patch) == expected


def test_report_and_table(tmp_path):
    methods = {
        "coarse to fine": [Efficiency("a", 2.0, 300.0, 40.0), Efficiency("b", 4.0, 200.0, 60.0)],
        "sliding window": [Efficiency("a", 30.0, 4000.0, 900.0, 5000.0, 90000.0)],
    }
    content = efficiency.report(
        methods,
        {"coarse to fine": NetworkCost(5_230_000, 14_500_000_000)},
        arithmetic={"coarse to fine": [40_000_000_000, 47_000_000_000]},
    )
    efficiency.write_report(content, tmp_path / "efficiency.json")
    read = json.loads((tmp_path / "efficiency.json").read_text())
    assert read == content
    assert read["methods"]["coarse to fine"]["total"]["wall_time_s"] == 6.0
    assert read["methods"]["coarse to fine"]["network"]["flops"] == 29_000_000_000
    assert read["machine"]["logical_cpus"] == efficiency.psutil.cpu_count() and read["machine"]["gpu"] is None
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (tmp_path / "efficiency.md").read_text().splitlines()
    ]
    assert lines[0][:4] == ["method", "cases", "time a case (s)", "time (s)"]
    assert lines[2] == ["coarse to fine", "2", "3", "6", "300", "-", "-", "100", "5.23", "14.5", "43.5"]
    assert lines[3] == ["sliding window", "1", "30", "30", "4000", "5000", "90000", "900", "-", "-", "-"]
