"""Scales of the FP8 GEMMs: every shape of the table in docs/numerics.md is taken, others are refused with that list."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.testing.spec import all_specs
from python_tests.backends import CPU, SIMULATED

E4M3 = torch.float8_e4m3fn
SPECS = {spec.name: spec for spec in all_specs()}
ROWS, EXPERTS, COLUMNS, HALF, DEPTH = 5, 2, 136, 130, 200
OFFSETS = torch.tensor([0, 2, 4], dtype=torch.int32)
BACKENDS = [CPU[-1], SIMULATED[2]]


def e4m3(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(E4M3)


def scale(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1


CALLS: dict[str, dict[str, Any]] = {
    "fp8_gemm": {"b": e4m3(COLUMNS, DEPTH)},
    "grouped_gemm_fp8": {"b": e4m3(EXPERTS, COLUMNS, DEPTH), "expert_offsets": OFFSETS},
    "grouped_swiglu_fp8": {"gate_up": e4m3(EXPERTS, 2 * HALF, DEPTH), "expert_offsets": OFFSETS},
}


def call(name: str, a_scale: Tensor, b_scale: Tensor, **changes: Any) -> dict[str, Any]:
    arguments = {"a": e4m3(ROWS, DEPTH), **CALLS[name], "a_scale": a_scale, "b_scale": b_scale}
    return arguments | {"out_dtype": torch.float32} | changes


ACTIVATIONS = [(), (1,), (ROWS,), (ROWS, 2)]
WEIGHTS: dict[str, list[tuple[int, ...]]] = {
    "fp8_gemm": [(), (1,), (COLUMNS,), (2, 2)],
    "grouped_gemm_fp8": [(EXPERTS,), (EXPERTS, COLUMNS), (EXPERTS, 2, 2)],
    "grouped_swiglu_fp8": [(EXPERTS,), (EXPERTS, 2), (EXPERTS, 2 * HALF), (EXPERTS, 2, 2, 2)],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_every_pair(backend, name):
    spec = SPECS[name]
    for a_shape in ACTIVATIONS:
        for b_shape in WEIGHTS[name]:
            arguments = call(name, scale(a_shape), scale(b_shape) * 0.1)
            with backend():
                got = spec.function(**arguments)
            for comparison in spec.compare(arguments, got, spec.reference(**arguments)):
                assert comparison, f"{a_shape} x {b_shape}: {comparison.message}"


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_both_halves_where_128_divides_them(backend):
    gate_up, block = e4m3(EXPERTS, 512, DEPTH), scale((EXPERTS, 4, 2))
    with backend():
        got = hk.grouped_swiglu_fp8(**call("grouped_swiglu_fp8", scale(()), block, gate_up=gate_up))
        halves = block.view(EXPERTS, 2, 2, 2)
        want = hk.grouped_swiglu_fp8(**call("grouped_swiglu_fp8", scale(()), halves, gate_up=gate_up))
    assert torch.equal(got, want)


#: Of a wrong rank, of one block too few or too many, blocks of gate and up together, contraction and rows exchanged.
WRONG_ACTIVATIONS = [(2,), (DEPTH,), (ROWS, 1), (ROWS, 3), (2, ROWS), (1, 2), (1, 1), (ROWS, DEPTH), (1, ROWS, 2)]
WRONG_WEIGHTS: dict[str, list[tuple[int, ...]]] = {
    "fp8_gemm": [(2,), (DEPTH,), (1, 2), (2, 1), (3, 2), (2, 3), (1, 1), (COLUMNS, 2), (1, 2, 2)],
    "grouped_gemm_fp8": [(), (1,), (3,), (EXPERTS, 2), (EXPERTS, 1, 2), (EXPERTS, 2, 1), (EXPERTS, 3, 2), (2, 2, 2, 2)],
    "grouped_swiglu_fp8": [
        (),
        (1,),
        (EXPERTS, 1),
        (EXPERTS, HALF),
        (EXPERTS, 3, 2),
        (EXPERTS, 4, 2),
        (EXPERTS, 2, 1, 2),
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_other_shapes_are_refused(backend, name):
    right = scale(WEIGHTS[name][0])
    allowed = r"allowed for a \[5, 200\]: \[\] or \[1\] \(per tensor\), \[5\] \(per row\), \[5, 2\] \(1 x 128 blocks\)$"
    for shape in WRONG_ACTIVATIONS:
        message = rf"^{name}: a_scale has shape \[{', '.join(map(str, shape))}\]; {allowed}"
        with backend(), pytest.raises(RuntimeError, match=message):
            SPECS[name].function(**call(name, scale(shape), right))
    for shape in WRONG_WEIGHTS[name]:
        message = (
            rf"^{name}: b_scale has shape \[{', '.join(map(str, shape))}\]; allowed: .*per tensor.*per channel.*blocks"
        )
        with backend(), pytest.raises(RuntimeError, match=message):
            SPECS[name].function(**call(name, scale(()), scale(shape)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2], ids=str)
def test_other_eight_bit_floats_are_refused(backend, name, dtype):
    weights = "gate_up" if name == "grouped_swiglu_fp8" else "b"
    right = call(name, scale(()), scale(WEIGHTS[name][0]))
    for argument in ("a", weights):
        wrong = right | {argument: right[argument].float().to(dtype)}
        message = rf"^{name}: {argument} has dtype {str(dtype).removeprefix('torch.')}; allowed: .*float8_e4m3fn"
        with backend(), pytest.raises(RuntimeError, match=message):
            SPECS[name].function(**wrong)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_scales_of_another_dtype_or_missing_ones_are_refused(backend, name):
    right = call(name, scale(()), scale(WEIGHTS[name][0]))
    for argument in ("a_scale", "b_scale"):
        wrong = right | {argument: right[argument].bfloat16()}
        with backend(), pytest.raises(RuntimeError, match=f"^{name}: {argument} has dtype bfloat16; allowed: float32"):
            SPECS[name].function(**wrong)
    if name != "fp8_gemm":
        with backend(), pytest.raises(RuntimeError, match=f"^{name}: a_scale is None, but a has dtype float8_e4m3fn"):
            SPECS[name].function(**right | {"a_scale": None})
