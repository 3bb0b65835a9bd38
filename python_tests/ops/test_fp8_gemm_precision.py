"""FP8 products on the simulated GPU, number by number: accumulators of 14 bits, every pattern, scales of any value."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.simulator import simulated_gpu_of
from hunyuan_kernels.testing.specs.grouped_gemm import offsets_of
from python_tests.backends import needs_device_code

pytestmark = needs_device_code

E4M3 = torch.float8_e4m3fn
#: Largest error of a row in fp32 and in bf16, of the row's norm.
BOUNDS = ((torch.float32, 1e-3), (torch.bfloat16, 1e-3 + 2**-8))
#: Hunyuan-Large's intermediate size, and one whose last block of 128 is not whole.
LONG, ODD = 18304, 1000
both_depths = pytest.mark.parametrize("depth", [LONG, ODD])
one_sign_or_both = pytest.mark.parametrize("one_sign", [False, True], ids=["both signs", "one sign"])


def e4m3(*shape: int, seed: int = 0, one_sign: bool = False) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (values.abs() if one_sign else values).to(E4M3)


def scale(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def blocks(size: int) -> int:
    return -(-size // 128)


def accumulators_of(bits: int) -> Any:
    """A simulated GPU whose tensor cores keep so many bits of an e4m3 sum; those of Hopper keep about 14."""
    return simulated_gpu_of({"fp8_accumulator_bits": bits})


def error(got: Tensor, want: Tensor) -> float:
    """The largest of a row."""
    return float(((got.double() - want).norm(dim=1) / want.norm(dim=1)).max())


# ---- accumulators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["tensor", "block"])
def test_tensor_cores_of_14_bits_add_no_more_than_128(recipe):
    """A long sum of one sign. 14 bits hold 128 times 1.125, but past 2048 they lose a part of each further one; 8
    bits do so past 32, which shows that the products are cut at all."""
    depth = LONG
    a, b = torch.full((2, depth), 1.0).to(E4M3), torch.full((3, depth), 1.125).to(E4M3)
    one = torch.tensor(1.0)
    scales = (one, one) if recipe == "tensor" else (torch.ones(2, depth // 128), torch.ones(1, depth // 128))
    want = torch.full((2, 3), depth * 1.125)
    with accumulators_of(14):
        assert torch.equal(hk.fp8_gemm(a, b, *scales, out_dtype=torch.float32), want)
    with accumulators_of(8):
        assert (hk.fp8_gemm(a, b, *scales, out_dtype=torch.float32) < want).all()


@both_depths
@one_sign_or_both
@pytest.mark.parametrize(
    "kinds", list(product(("tensor", "row", "block"), ("tensor", "channel", "block"))), ids=" x ".join
)
def test_precision(kinds, one_sign, depth):
    """Of every recipe; N is no multiple of 128."""
    rows, columns, deep = 9, 140, blocks(depth)
    a, b = e4m3(rows, depth, one_sign=one_sign), e4m3(columns, depth, seed=2, one_sign=one_sign)
    a_scale = scale(*{"tensor": (), "row": (rows,), "block": (rows, deep)}[kinds[0]])
    b_scale = scale(*{"tensor": (), "channel": (columns,), "block": (blocks(columns), deep)}[kinds[1]], seed=3)
    want = reference.fp8_gemm(a, b, a_scale, b_scale)
    for dtype, bound in BOUNDS[: 1 if depth == LONG else 2]:
        with accumulators_of(14):
            got = hk.fp8_gemm(a, b, a_scale, b_scale, out_dtype=dtype)
        assert error(got, want) <= bound


@both_depths
@pytest.mark.parametrize("kinds", [("tensor", "tensor"), ("row", "channel"), ("block", "block")], ids=" x ".join)
def test_precision_of_groups(kinds, depth):
    sizes, columns, deep = [3, 0, 6], 40, blocks(depth)
    rows, experts = sum(sizes), len(sizes)
    a, b = e4m3(rows, depth, one_sign=True), e4m3(experts, columns, depth, seed=2, one_sign=True)
    a_scale = scale(*{"tensor": (), "row": (rows,), "block": (rows, deep)}[kinds[0]])
    shape = {"tensor": (experts,), "channel": (experts, columns), "block": (experts, blocks(columns), deep)}[kinds[1]]
    call = (a, b, offsets_of(sizes), a_scale, scale(*shape, seed=3))
    for dtype, bound in BOUNDS[: 1 if depth == LONG else 2]:
        with accumulators_of(14):
            got = hk.grouped_gemm_fp8(*call, out_dtype=dtype)
        assert error(got, reference.grouped_gemm_fp8(*call)) <= bound


@both_depths
@pytest.mark.parametrize("kinds", [("tensor", "halves"), ("row", "channel"), ("block", "half blocks")], ids=" x ".join)
def test_precision_of_swiglu(kinds, depth):
    """Of both signs: of sums of one sign, all cut downwards, it would multiply the errors of two."""
    sizes, half, deep = [9], 40, blocks(depth)
    rows, experts = sum(sizes), len(sizes)
    a, gate_up = e4m3(rows, depth), e4m3(experts, 2 * half, depth, seed=2)
    a_scale = scale(*{"tensor": (), "row": (rows,), "block": (rows, deep)}[kinds[0]])
    shapes = {"halves": (experts, 2), "channel": (experts, 2 * half), "half blocks": (experts, 2, blocks(half), deep)}
    call = (a, gate_up, offsets_of(sizes), a_scale, scale(*shapes[kinds[1]], seed=3) * depth**-0.5)
    want = reference.grouped_swiglu_fp8(*call)
    assert isinstance(want, Tensor)
    for dtype, bound in BOUNDS[: 1 if depth == LONG else 2]:
        with accumulators_of(14):
            got = hk.grouped_swiglu_fp8(*call, out_dtype=dtype)
        assert isinstance(got, Tensor)
        assert error(got, want) <= bound


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", [False, True])
def test_products_of_all_patterns(blocked):
    """Each of the 256 with each: exact, also in accumulators of 14 bits; NaN in its row and its column."""
    patterns = torch.zeros(256, 16, dtype=torch.uint8)
    patterns[:, 0] = torch.arange(256)
    values, operand = patterns.view(E4M3)[:, 0].float(), patterns.view(E4M3)
    scales = (torch.ones(256, 1), torch.ones(2, 1)) if blocked else (torch.tensor(1.0), torch.tensor(1.0))
    if blocked:  # a second block of K, so that scales vary along it
        operand = torch.nn.functional.pad(patterns, (0, 128)).view(E4M3)
        scales = (torch.ones(256, 2), torch.ones(2, 2))
    with accumulators_of(14):
        got = hk.fp8_gemm(operand, operand, *scales, out_dtype=torch.float32)
    want = values[:, None] * values[None]
    assert int(want.isnan().sum()) == 2 * 2 * 256 - 4
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(0.0), want.nan_to_num(0.0))


VALUES = [0.0, -0.0, -1.5, 2.0**-140, 1e30, float("inf"), float("-inf"), float("nan")]


def same(got: Tensor, want: Tensor, magnitude: Tensor) -> None:
    """Infinite or NaN where ``want`` is, the rest as close as sums of another order are."""
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite)
    smallest = 300 * 2.0**-149  # a rounding of each product, where they are subnormal
    assert ((got - want).abs()[finite] <= 2**-20 * magnitude[finite] + smallest).all()


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("kinds", [("row", "channel"), ("block", "block"), ("row", "block"), ("block", "channel")])
def test_scales_of_any_value(kinds, value):
    """Are multiplied like any other number, and reach their rows or columns alone; as on a CPU."""
    rows, columns, depth = 20, 140, 300
    a, b = e4m3(rows, depth), e4m3(columns, depth, seed=2)
    a_scale = scale(*{"row": (rows,), "block": (rows, 3)}[kinds[0]])
    b_scale = scale(*{"channel": (columns,), "block": (2, 3)}[kinds[1]], seed=3)
    hostile_a, hostile_b = a_scale.clone(), b_scale.clone()
    hostile_a[7], hostile_b[1] = value, value
    for scales in ((hostile_a, b_scale), (a_scale, hostile_b)):
        want = hk.fp8_gemm(a, b, *scales, out_dtype=torch.float32)
        with hk.simulated_gpu():
            got = hk.fp8_gemm(a, b, *scales, out_dtype=torch.float32)
        sizes = [operand.float().abs().to(E4M3) for operand in (a, b)]
        same(got, want, reference.fp8_gemm(*sizes, *(s.abs() for s in scales)))
        if value != value:
            assert torch.equal(got.isnan(), want.isnan())
        if scales[0] is hostile_a:
            assert got[torch.arange(rows) != 7].isfinite().all()
            assert got[7].isfinite().any() == torch.tensor(value).isfinite()


@pytest.mark.parametrize("weights_alone", [False, True])
def test_scales_of_groups_without_rows_are_not_seen(weights_alone):
    nan, depth = float("nan"), 300
    a, b = e4m3(20, depth), e4m3(3, 140, depth, seed=2)
    offsets, a_scale, b_scale = offsets_of([9, 0, 8]), scale(20, 3), scale(3, 2, 3, seed=3)
    call = (a.bfloat16(), b, offsets, None) if weights_alone else (a, b, offsets, a_scale)
    hostile = b_scale.clone()
    hostile[1], a_scale[17:] = nan, nan
    with hk.simulated_gpu():
        got, want = (hk.grouped_gemm_fp8(*call, scales) for scales in (hostile, b_scale))
    assert torch.equal(got, want)
    assert not got[17:].any()


def test_scales_of_any_strides():
    """Transposed, expanded, every other one; all as if they were contiguous."""
    rows, columns, depth = 40, 140, 300
    a, b = e4m3(rows, depth), e4m3(columns, depth, seed=2)
    pairs = [
        (scale(1).expand(rows), scale(1).expand(columns)),
        (scale(3, rows).T, scale(3, 2, seed=3).T),
        (scale(rows, 1).expand(rows, 3), scale(1, 1).expand(2, 3)),
        (scale(2 * rows, 6)[::2, ::2], scale(4, 6)[::2, ::2]),
        (scale(1), scale(1)),
    ]
    for scales in pairs:
        with hk.simulated_gpu():
            got = hk.fp8_gemm(a, b, *scales)
            want = hk.fp8_gemm(a, b, *(s.contiguous() for s in scales))
        assert torch.equal(got, want)
