"""Every synchronizing instruction of our kernels is missed when it is not there, or its absence is explained."""

import re

import pytest
import torch
from hunyuan_kernels._C import simulator

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import device_ptx, simulated_gpu
from hunyuan_kernels.testing.harmless import HARMLESS, Harmless, judge
from hunyuan_kernels.testing.mutation import Mutant, mutations
from hunyuan_kernels.testing.mutation_cases import mutation_cases
from hunyuan_kernels.testing.op_mutants import executed_lines, fresh_memory_is_nan, mutate_op, mutated_stems
from hunyuan_kernels.testing.spec import all_specs
from python_tests.backends import needs_device_code

SPECS = {spec.name: spec for spec in all_specs()}
# Of the products, one kernel of each source and of each way through it: the others are the same templates. With all of
# them it takes some minutes: hunyuan-kernels check --simulate --mutate.
OPS = {
    "quantize_fp8": r".*",
    "dispatch": r".*",
    "dispatch_fp8": r".*",
    "combine": r".*",
    "combine_backward": r".*",
    "route": r".*",
    "route_backward": r".*",
    "routing_from_ids": r".*",
    "load_balancing_loss": r".*",
    "load_balancing_loss_backward": r".*",
    "swiglu": r".*",
    "swiglu_backward": r".*",
    "grouped_gemm": r"(rows 128|few rows 16), across, to bf16|multicast, to bf16",
    "grouped_swiglu": r"(rows, with the pre-activation|few rows 64)",
    "grouped_gemm_wgrad_": r".*",
    "fp8_gemm": r"N 120, .* blocks, torch.bfloat16",
    "grouped_gemm_fp8": r"N 248, .* rows, torch.bfloat16",
    "grouped_swiglu_fp8": r".* blocks, torch.float8_e4m3fn|weights alone, 64 rows, scales of blocks, packed",
    "fp8_linear": r"weights alone, 16 rows, scales of rows",
}
# What only autograd runs: the gradient of the weights as a result, where the op adds to one. Kernel and instruction.
WITHOUT_CASES = r"grouped_gemm_wgrad_bfloat16 .*|grouped_gemm_wgrad_float32 cp\.async\.bulk\.tensor\.3d\.global.*"


@pytest.fixture(scope="module")
def executed():
    """The kernels of all ops, and the lines that their cases execute."""
    lines = {}
    for name in OPS:
        for kernel, executed in executed_lines(SPECS[name], mutation_cases(SPECS[name])).items():
            lines.setdefault(kernel, set()).update(executed)
    return lines


@needs_device_code
@pytest.mark.parametrize("name", OPS)
def test_mutants_are_caught_or_explained(name):
    cases = [case for case in mutation_cases(SPECS[name]) if re.fullmatch(OPS[name], case.label)]
    mutants = mutate_op(SPECS[name], cases)
    assert mutants
    verdict = judge(mutants)
    assert [f"{m.kernel}, line {m.line}: {m.instruction}" for m in verdict.unexplained] == []
    assert verdict.stale == []


@needs_device_code
@pytest.mark.parametrize("stem", [stem for stem in ops.device_stems().split(",") if stem])
def test_cases_execute_every_synchronization(stem, executed):
    """No kernel is left out, and no instruction that could be mutated."""
    assert any(stem in mutated_stems(SPECS[name]) for name in OPS)
    left_out = [
        f"{m.kernel}, line {m.line}: {m.instruction}"
        for m in mutations(device_ptx(stem))
        if m.line not in executed.get(m.kernel, ()) and not re.fullmatch(WITHOUT_CASES, f"{m.kernel} {m.instruction}")
    ]
    assert left_out == []


@needs_device_code
def test_what_a_mutant_does_not_write_is_seen():
    """Although the memory that it gets held the right values before."""
    ptx, x = re.sub(r"(@!?%p\d+\s+)?st\.global[^;]*;", "", device_ptx("swiglu")), torch.ones(8, 256)
    with simulated_gpu() as gpu, fresh_memory_is_nan():
        gpu.load_instead("swiglu", simulator.Module(ptx))
        for _ in range(3):
            assert hk.swiglu(x, torch.tensor([0, 8], dtype=torch.int32)).isnan().all()


@needs_device_code
@pytest.mark.parametrize("entry", HARMLESS, ids=lambda entry: entry.instruction)
def test_explanations_speak_of_what_there_is(entry):
    texts = [device_ptx(stem) for stem in ops.device_stems().split(",")]
    found = [m for ptx in texts for m in mutations(ptx)]
    assert any(
        entry.matches(Mutant(m.kernel, m.line, m.instruction, m.replacement, finding=None, wrong_result=None))
        for m in found
    )


def test_judgement():
    def mutant(kernel, line, instruction="bar.sync 0;", finding=None, wrong_result=None):
        return Mutant(kernel, line, instruction, "", finding, wrong_result)

    caught, wrong = mutant("a", 1, finding="race"), mutant("a", 2, wrong_result="differs")
    left, other = mutant("a", 3), mutant("b", 9)
    entry = Harmless("a", r"bar\.sync 0;", 1, "because")
    verdict = judge([caught, wrong, left, other], [entry])
    assert (verdict.reasons, verdict.unexplained, verdict.stale) == ({left: "because"}, [other], [])
    # More survive than are explained: which of them are harmless is not known.
    verdict = judge([left, mutant("a", 4)], [entry])
    assert verdict.reasons == {}
    assert verdict.unexplained == [left, mutant("a", 4)]
    assert len(verdict.stale) == 1
    # The explained one is caught, or never executed.
    assert "a: 1 of the mutants without" in judge([caught], [entry]).stale[0]
    assert judge([other], [entry]).stale == []
