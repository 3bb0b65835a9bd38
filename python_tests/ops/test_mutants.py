"""Every synchronizing instruction of our kernels is missed when it is not there, or its absence is explained."""

import dataclasses
import re

import pytest
import torch

from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.harmless import HARMLESS, Harmless, judge
from hunyuan_kernels.testing.mutation import Mutant, mutations
from hunyuan_kernels.testing.op_mutants import SETTINGS, executed_kernels, mutate_op
from hunyuan_kernels.testing.spec import Case, all_specs
from hunyuan_kernels.testing.specs.grouped_gemm import make_arguments, offsets_of
from python_tests.backends import needs_device_code

SPECS = {spec.name: spec for spec in all_specs()}
# Cases by label that together execute all that the cases of an op execute, and catch all; with all cases and settings
# it takes a minute: hunyuan-kernels check --simulate --mutate.
CASES = {
    "quantize_fp8": r"(129x257|256x128|2x130x200|5x230[45]) .*",
    "dispatch": r"many tokens, padding, H (33|256), .*",
    "dispatch_fp8": r"many tokens, padding, H (33|256), .*",
    "combine": r"3 choices, some dropped, H (33|256), .*",
    "combine_backward": r"(3 choices, some dropped|many tokens, padding), H (33|256|1160), .*",
    "route": r"T=(600|4100) .*|.* k=[23] .*|T=(40|300) .* recycle one expert|T=64 .*|T=100 E=64 .*",
    "route_backward": r"T=33 E=(64|200|300) .*",
    "routing_from_ids": r".*",
    "load_balancing_loss": r"T=33 .*",
    "load_balancing_loss_backward": r"T=33 .*",
    "swiglu": r"S (7|9), .*",
    "swiglu_backward": r"S (7|9), .*",
}


def gemm_rows(seed):
    return make_arguments([129, 0, 70, 256], 264, 460, torch.bfloat16, seed, tail=20)


def gemm_few_rows(seed):
    return make_arguments([33], 2 * 640, 2100, torch.bfloat16, seed, name="gate_up")


def gemm_wgrad(seed):
    arguments = make_arguments([330, 0, 70], 136, 264, torch.bfloat16, seed, tail=20)
    generator = torch.Generator().manual_seed(seed + 1)
    grad_b, grad_out = torch.randn(3, 136, 264, generator=generator), torch.randn(420, 136, generator=generator)
    grad_out[400:] = float("nan")
    return {"grad_b": grad_b, "grad_out": grad_out.bfloat16(), **{k: arguments[k] for k in ("a", "expert_offsets")}}


def fp8_rows(seed):
    sizes, columns, depth = [129, 0, 70, 256], 264, 830
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes) + 20
    a, b = torch.randn(rows, depth, generator=generator), torch.randn(4, columns, depth, generator=generator)
    return {
        "a": a.to(torch.float8_e4m3fn),
        "b": b.to(torch.float8_e4m3fn),
        "expert_offsets": offsets_of(sizes),
        "a_scale": torch.rand(rows, 7, generator=generator),
        "b_scale": torch.rand(4, 3, 7, generator=generator),
        "out_dtype": torch.bfloat16,
    }


def fp8_swiglu(seed):
    arguments = fp8_rows(seed) | {"out_dtype": torch.float8_e4m3fn}
    gate_up = arguments.pop("b")
    return arguments | {
        "gate_up": gate_up,
        "b_scale": torch.rand(4, 2, 2, 7, generator=torch.Generator().manual_seed(seed)) * 0.05,
    }


# One kernel of each source and of each way through it; the others are the same templates. Op, arguments, SMs: several
# tiles for each block, more k-blocks than stages.
GEMMS = {
    "grouped_gemm_rows_128_bfloat16": ("grouped_gemm", gemm_rows, 2),
    "grouped_gemm_wgrad_float32": ("grouped_gemm_wgrad_", gemm_wgrad, 2),
    "fp8_gemm_rows_128_bfloat16_blocks": ("grouped_gemm_fp8", fp8_rows, 2),
    "fp8_gemm_swiglu_e4m3_blocks": ("grouped_swiglu_fp8", fp8_swiglu, 2),
    "grouped_gemm_few_rows_swiglu_64": ("grouped_swiglu", gemm_few_rows, 4),
}


@pytest.fixture(scope="module")
def executed():
    """Of each op the kernels and lines that all its cases execute."""
    return {name: executed_kernels(SPECS[name]) for name in CASES}


def synchronizations(stem, executed_lines):
    return {(m.line, m.instruction) for m in mutations(ops.device_ptx(stem), executed_lines)}


@needs_device_code
@pytest.mark.parametrize("name", CASES)
def test_mutants_are_caught_or_explained(name, executed):
    spec = SPECS[name]
    few = [case for case in spec.cases() if re.fullmatch(CASES[name], case.label)]
    mutants = mutate_op(dataclasses.replace(spec, cases=lambda: few), SETTINGS[:2])
    lines = set().union(*executed[name].values())
    assert {(m.line, m.instruction) for m in mutants} == synchronizations(spec.stem, lines), "not by these few cases"
    verdict = judge(mutants)
    assert [f"{m.kernel}, line {m.line}: {m.instruction}" for m in verdict.unexplained] == []
    assert verdict.stale == []


@needs_device_code
@pytest.mark.parametrize("kernel", GEMMS)
def test_mutants_of_gemms_are_caught_or_explained(kernel):
    name, make, sms = GEMMS[kernel]
    spec = dataclasses.replace(SPECS[name], cases=lambda: [Case("reuse", make)])
    mutants = mutate_op(spec, [{**setting, "num_sms": sms} for setting in SETTINGS[:2]])
    assert {mutant.kernel for mutant in mutants} == {kernel}
    verdict = judge(mutants)
    assert [f"{m.kernel}, line {m.line}: {m.instruction}" for m in verdict.unexplained] == []
    assert verdict.stale == []


@needs_device_code
@pytest.mark.parametrize("stem", sorted({SPECS[name].stem for name in CASES}))
def test_cases_execute_every_synchronization(stem, executed):
    """No kernel is left out, and no instruction that could be mutated."""
    lines = set().union(*(lines for kernels in executed.values() for lines in kernels.values()))
    assert synchronizations(stem, lines) == synchronizations(stem, None)


@needs_device_code
def test_every_stem_is_mutated():
    stems = ops.device_stems().split(",")
    gemms = {stem for stem in stems for kernel in GEMMS if f".entry {kernel}(" in ops.device_ptx(stem)}
    assert gemms | {SPECS[name].stem for name in CASES} == set(stems)


@needs_device_code
@pytest.mark.parametrize("entry", HARMLESS, ids=lambda entry: entry.instruction)
def test_explanations_speak_of_what_there_is(entry):
    texts = [ops.device_ptx(stem) for stem in ops.device_stems().split(",")]
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
