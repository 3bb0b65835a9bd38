"""pytest-benchmark over the cases of the specs: one test for each op, case and candidate.

    pytest bench/                                   every op, sizes for any machine
    pytest bench/bench_quantize.py --preset hunyuan-large

A group holds one case: the op and its baselines. Unlike `hunyuan-kernels bench` these runs are not interleaved; they
are for the history that pytest-benchmark keeps (`--benchmark-autosave`, `--benchmark-compare`).
"""

from functools import partial

import pytest

from hunyuan_kernels.testing import machine
from hunyuan_kernels.testing.memory import MemoryProbe
from hunyuan_kernels.testing.spec import PRESETS, all_specs


def pytest_addoption(parser):
    parser.addoption("--preset", choices=PRESETS, default=None, help="sizes of a model")
    parser.addoption("--smallest", action="store_true", help="only the first case of each op")


def pytest_generate_tests(metafunc):
    """`candidate`: every op of the stem that the module's name ends with, its cases, and PyTorch beside it."""
    if "candidate" not in metafunc.fixturenames:
        return
    stem, preset = metafunc.module.__name__.rpartition("bench_")[2], metafunc.config.getoption("preset")
    candidates = []
    for spec in (spec for spec in all_specs() if spec.stem == stem):
        for case in spec.bench_cases(preset)[: 1 if metafunc.config.getoption("smallest") else None]:
            for name, function in {spec.name: spec.function, **spec.baselines}.items():
                identifier = f"{spec.name}, {case.label}: {name}"
                candidates.append(pytest.param((spec, case, name, function), id=identifier))
    assert candidates, f"no spec has the stem {stem}"
    metafunc.parametrize("candidate", candidates)


@pytest.fixture(scope="session")
def memory_probe():
    with MemoryProbe() as probe:
        yield probe


@pytest.fixture
def run(benchmark, candidate, memory_probe, request):
    """Times one candidate; for the op itself also the peak memory of a call, in bytes, as `extra_info`."""
    spec, case, name, function = candidate

    def timed():
        arguments = case.make(0)
        call = partial(function, **arguments)
        try:
            call()
        except NotImplementedError as reason:
            pytest.skip(f"{name}: {reason}")
        benchmark.group = f"{spec.name}, {case.label}"
        work = spec.work(arguments)
        benchmark.extra_info |= {"flops": work.flops, "bytes": work.bytes}
        if name == spec.name and benchmark.enabled:
            preset = request.config.getoption("preset")
            benchmark.extra_info["peak_memory_bytes"] = memory_probe.peak_of_case(spec.name, preset, case.label)
        benchmark(call)

    return timed


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["hunyuan_kernels"] = machine.describe()
