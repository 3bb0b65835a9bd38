"""Every op against its reference: all cases of its spec, on every instruction set and on the simulated GPU."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.providers import PROVIDERS
from hunyuan_kernels.testing.simulated import SETTINGS, check_simulated
from hunyuan_kernels.testing.spec import PRESETS, all_specs, verify
from python_tests.backends import needs_device_code

ALL_SPECS = list(all_specs())
every_spec = pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)


@pytest.mark.parametrize("isa", supported_instruction_sets())
@every_spec
def test_matches_the_reference(spec, isa):
    with instruction_set(isa):
        wrong = [
            f"[{case.label}] {comparison.message}"
            for case in spec.cases()
            for comparison in verify(spec, case)
            if not comparison
        ]
    assert not wrong, "\n".join(wrong)


@needs_device_code
@pytest.mark.parametrize("setting", SETTINGS)
@every_spec
def test_matches_the_reference_on_the_simulated_gpu(spec, setting):
    try:
        outcome = check_simulated(spec, setting, seeds=2)
    except MissingKernelError as error:
        pytest.skip(str(error))
    assert outcome.cases > 0
    assert not outcome.failures, "\n".join(outcome.failures)


def test_every_op_has_a_spec():
    # expert_mlp is the middle of moe, whose cases run it; simulated_gpu is no op
    functions = {name for name in hk.__all__ if name[0].islower()} - {"expert_mlp", "simulated_gpu"}
    assert functions <= {spec.name for spec in ALL_SPECS}


@every_spec
def test_cases_can_be_told_apart(spec):
    for cases in (spec.cases(), *(spec.bench_cases(preset) for preset in (None, *PRESETS))):
        labels = [case.label for case in cases]
        assert labels
        assert len(set(labels)) == len(labels)


@every_spec
def test_the_smallest_benchmark_case(spec):
    """Op, sample and baselines run on it; the baselines compute the same, within 2^-5 (several roundings to bf16)."""
    case = spec.bench_cases(None)[0]
    for comparison in verify(spec, case, sampled=True):
        assert comparison, comparison.message
    arguments = case.make(0)
    work = spec.work(arguments)
    assert work.bytes > 0
    changed = {"capacity": None} if "capacity" in arguments else {}  # random draws differ
    want = spec.reference(**arguments | changed)
    for name, baseline in spec.compared_with(PROVIDERS).items():
        try:
            got = baseline(**case.make(0) | changed)
        except NotImplementedError:
            continue
        if isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor):
            error = float((got.double() - want.double()).norm() / want.double().norm())
            assert error <= 2**-5, f"{name}: relative error {error:.3g}"
