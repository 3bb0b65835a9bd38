"""Shared memory of the memory-bound kernels: every access takes as few wavefronts as its bytes need."""

import pytest

import hunyuan_kernels as hk
from hunyuan_kernels.testing.spec import all_specs
from python_tests.backends import needs_device_code

STEMS = ("dispatch", "quantize", "routing", "swiglu")
SPECS = [spec for spec in all_specs() if spec.stem in STEMS]


@needs_device_code
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_no_bank_conflicts(spec):
    for case in spec.bench_cases(None)[:2]:
        arguments = case.make(0)
        with hk.simulated_gpu(check_races=False, split_warps=False) as gpu:
            spec.function(**arguments)
        assert gpu.reports, case.label
        for report in gpu.reports:
            extra = {kind: counts["extra_wavefronts"] for kind, counts in report.counters["shared"].items()}
            assert not any(extra.values()), (case.label, report.kernel, extra)
