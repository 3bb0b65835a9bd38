"""Speed of the PTX simulator, by the CPU time of one core: lane instructions per second of memory-bound kernels."""

import time

import pytest
import torch

import hunyuan_kernels as hk

TOKENS, HIDDEN, EXPERTS = 512, 1024, 16


def quantize():
    hk.quantize_fp8(torch.randn(TOKENS, HIDDEN).bfloat16(), "row")


def route():
    hk.route(torch.randn(4096, EXPERTS), 1, capacity=4096 // EXPERTS, seed=0)


def dispatch_and_combine():
    routing = hk.route(torch.randn(TOKENS, EXPERTS), 1, capacity=TOKENS // EXPERTS, seed=0)
    hk.combine(hk.dispatch(torch.randn(TOKENS, HIDDEN).bfloat16(), routing), routing)


@pytest.mark.benchmark(timer=time.process_time, group="simulator")
@pytest.mark.parametrize("work", [quantize, route, dispatch_and_combine], ids=lambda work: work.__name__)
@pytest.mark.parametrize("check_races", [False, True], ids=["", "races"])
def test_memory_bound_kernels(benchmark, work, check_races):
    with hk.simulated_gpu(seed=0, sms=8, check_races=check_races) as gpu:
        benchmark(work)
        lane_instructions = sum(report.lane_instructions for report in gpu.reports)
    runs = len(gpu.reports) // len({report.kernel for report in gpu.reports})
    benchmark.extra_info["million lane instructions"] = lane_instructions / runs / 1e6
    if benchmark.enabled:
        rate = lane_instructions / runs / benchmark.stats.stats.median
        benchmark.extra_info["million lane instructions / s"] = rate / 1e6
        print(f"{rate / 1e6:.0f} million lane instructions / s")
