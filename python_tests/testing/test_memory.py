"""Peak memory of calls whose allocations are known."""

import sys
from functools import partial

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels.testing.memory import MemoryProbe

MIB = 2**20
#: Linux counts pages in batches for each thread: a mark can be this far off, either way.
BATCH = MIB // 4
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from Linux")


def allocates(mib, times, freed):
    """A call that makes ``times`` tensors, one after the other or at once."""

    def at_once():
        return [torch.ones(mib * MIB, dtype=torch.uint8) for _ in range(times)]

    def one_after_the_other():
        for _ in range(times):
            torch.ones(mib * MIB, dtype=torch.uint8)

    return one_after_the_other if freed else at_once


def dispatches(tokens):
    routing = hk.route(torch.randn(tokens, 16), 1, capacity=tokens // 16, seed=0)
    return partial(hk.dispatch, torch.randn(tokens, 1024), routing)


@pytest.fixture(scope="module")
def probe():
    with MemoryProbe() as probe:
        probe.peak(partial(allocates, 1, 1, False))  # threads start and libraries load
        yield probe


@pytest.mark.parametrize(
    ("mib", "times", "freed", "expected"), [(20, 1, False, 20), (20, 3, False, 60), (20, 3, True, 20)]
)
def test_known_allocations(probe, mib, times, freed, expected):
    for _ in range(2):  # also when the same memory was used and freed before
        measured = probe.peak(partial(allocates, mib, times, freed))
        assert expected * MIB - BATCH <= measured <= (expected + 2) * MIB


def test_dispatch_needs_its_output_and_no_more(probe):
    for tokens in (2048, 4096):
        output = tokens * 1024 * 4
        assert output - BATCH <= probe.peak(partial(dispatches, tokens)) <= output + MIB


def test_memory_of_a_benchmark_case(probe):
    from hunyuan_kernels.testing.spec import all_specs

    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    case = spec.bench_cases(None)[0]
    output = case.make(0)["x"].numel()
    assert output - BATCH <= probe.peak_of_case(spec.name, None, case.label) <= output + 2 * MIB


def test_errors_reach_the_caller(probe):
    with pytest.raises(StopIteration):
        probe.peak_of_case("nothing", None, "nothing")
