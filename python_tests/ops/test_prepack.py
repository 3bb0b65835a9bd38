"""Packed weights: the order itself is in the spec's cases; here what the GEMMs make of it, and what they refuse."""

from itertools import accumulate

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import prepack as reference
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets

E4M3 = torch.float8_e4m3fn
# One pass (up to 16 rows, or 4 and 6 with fewer registers), several, none.
SIZES = ([1], [2, 0, 5], [9, 13], [16, 17, 3], [33, 8, 100])
isas = pytest.mark.parametrize("isa", supported_instruction_sets())
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)


def offsets_of(sizes):
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)


def along_n(weights):
    """The same weights with the unit stride along N, which are never multiplied by dot products."""
    return weights.view(torch.uint8 if weights.dtype == E4M3 else weights.dtype).mT.contiguous().view(weights.dtype).mT


def random_e4m3(shape, seed=0):
    """All finite patterns."""
    bits = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return bits.where((bits & 127) != 127, torch.zeros_like(bits)).view(E4M3)


@isas
@sizes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_bits_as_unpacked(isa, sizes, dtype):
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(len(sizes), 7 * 32, 1100, generator=generator).to(dtype)
    a = torch.randn(sum(sizes) + 2, 1100, generator=generator).to(dtype)
    offsets = offsets_of(sizes)
    with instruction_set(isa):
        packed = hk.prepack(b)
        assert torch.equal(hk.grouped_gemm(a, packed, offsets), hk.grouped_gemm(a, along_n(b), offsets))
        got, preactivation = hk.grouped_swiglu(a, packed, offsets, return_preactivation=True)
        want, want_preactivation = hk.grouped_swiglu(a, along_n(b), offsets, return_preactivation=True)
        assert torch.equal(got, want)
        assert torch.equal(preactivation, want_preactivation)


@isas
@sizes
@pytest.mark.parametrize("columns", [128, 516, 1100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, E4M3])
def test_same_bits_as_unpacked_fp8(isa, sizes, columns, dtype):
    experts, rows, total = len(sizes), 7 * 32, sum(sizes) + 2
    b, offsets = random_e4m3((experts, rows, columns)), offsets_of(sizes)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(total, columns, generator=generator).to(dtype)
    a_scale = torch.rand(total, generator=generator) if dtype == E4M3 else None
    blocks = torch.rand(experts, 2, -(-columns // 128), generator=generator)
    scales = (torch.rand(experts, generator=generator), torch.rand(experts, rows, generator=generator), blocks)
    with instruction_set(isa):
        packed = hk.prepack(b)
        for scale in scales:
            got = hk.grouped_gemm_fp8(a, packed, offsets, a_scale, scale, out_dtype=torch.float32)
            want = hk.grouped_gemm_fp8(a, along_n(b), offsets, a_scale, scale, out_dtype=torch.float32)
            assert torch.equal(got, want)
        got = hk.grouped_swiglu_fp8(a, packed, offsets, a_scale, scales[1], out_dtype=torch.float32)
        want = hk.grouped_swiglu_fp8(a, along_n(b), offsets, a_scale, scales[1], out_dtype=torch.float32)
        assert torch.equal(got, want)


@isas
def test_all_patterns_of_e4m3(isa):
    """NaN included: a row of a with a single one, so that every sum is one weight."""
    weights = torch.arange(256, dtype=torch.uint8).view(E4M3).reshape(16, 16).repeat(1, 2).contiguous()
    x = torch.eye(32, dtype=torch.bfloat16)
    with instruction_set(isa):
        packed = hk.prepack(weights)
        for rows in (x[:5], x):  # NaN times zero is NaN: only those weights' columns
            got = hk.fp8_linear(rows, packed, torch.ones(()))
            want = hk.fp8_linear(rows, weights, torch.ones(()))
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))
    finite = weights.float().nan_to_num(0.0).to(E4M3)
    with instruction_set(isa):
        assert torch.equal(hk.fp8_linear(x, hk.prepack(finite), torch.ones(())).float(), finite.float().T)


@isas
def test_a_row_does_not_depend_on_the_number_of_rows(isa):
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(40, 700, generator=generator).bfloat16()
    b = torch.randn(1, 96, 700, generator=generator).bfloat16()
    with instruction_set(isa):
        packed = hk.prepack(b)
        all_rows = hk.grouped_gemm(a, packed, offsets_of([40]))
        for count in range(1, 40):
            assert torch.equal(hk.grouped_gemm(a[:count], packed, offsets_of([count])), all_rows[:count]), count


@isas
def test_same_bits_with_one_thread_and_two(isa):
    sizes, threads = [1, 7, 40], torch.get_num_threads()
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(sum(sizes), 520, generator=generator).bfloat16()
    b = hk.prepack(torch.randn(3, 512, 520, generator=generator).bfloat16())
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with instruction_set(isa):
                results.append(hk.grouped_gemm(a, b, offsets_of(sizes)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_packed_on_one_instruction_set_read_on_another():
    weights = random_e4m3((2, 32, 516))
    packed = []
    for isa in supported_instruction_sets():
        with instruction_set(isa):
            packed.append(hk.prepack(weights).view(torch.uint8))
    assert all(torch.equal(packed[0], other) for other in packed)
    assert torch.equal(reference.unpack(packed[0].view(E4M3)).view(torch.uint8), weights.view(torch.uint8))


@pytest.mark.parametrize("make", [lambda w: w.mT.contiguous().mT, lambda w: w[:, ::2], lambda w: w[..., 1:-1]])
def test_strides(make):
    weights = make(torch.randn(3, 64, 34).bfloat16())
    assert torch.equal(hk.prepack(weights), reference.prepack(weights))


def test_moe_with_packed_weights():
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).bfloat16()

    experts, shared = (draw(4, 64, 48), draw(4, 48, 32)), (draw(96, 48), draw(48, 48))
    x, gate = draw(50, 48), draw(4, 48).float()
    want = hk.moe(x, gate, experts, shared, top_k=2)
    got = hk.moe(x, gate, tuple(map(hk.prepack, experts)), tuple(map(hk.prepack, shared)), top_k=2)
    torch.testing.assert_close(got, want)


def test_compiled():
    b, offsets = hk.prepack(torch.randn(2, 32, 64)), offsets_of([3, 4])
    a = torch.randn(7, 64)
    compiled = torch.compile(hk.grouped_gemm, backend="eager", fullgraph=True)
    assert torch.equal(compiled(a, b, offsets), hk.grouped_gemm(a, b, offsets))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_opcheck(dtype):
    b, a, offsets = torch.randn(2, 32, 64).to(dtype), torch.randn(7, 64).to(dtype), offsets_of([3, 4])
    torch.library.opcheck(ops.prepack.default, (b,))
    torch.library.opcheck(ops.grouped_gemm.default, (a, hk.prepack(b), offsets, None))
    torch.library.opcheck(ops.grouped_swiglu.default, (a, hk.prepack(b), offsets))
    q, scale = hk.quantize_fp8(torch.randn(32, 64), "row")
    checks = (
        "test_faketensor",
        "test_autograd_registration",
    )  # test_schema compares values, which float8 has no op for
    torch.library.opcheck(ops.prepack.default, (q,), test_utils=checks)
    torch.library.opcheck(ops.fp8_linear.default, (a, hk.prepack(q), scale), test_utils=checks)


def test_parameters_become_constants():
    assert not hk.prepack(torch.nn.Parameter(torch.randn(16, 4))).requires_grad


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(2, 17, 8), r"prepack: weights has shape \[2, 17, 8\].*multiple of 16 and K of 1"),
        (torch.zeros(16, 7).bfloat16(), r"prepack: weights has shape \[16, 7\].*and K of 2"),
        (torch.zeros(16, 6).to(E4M3), r"prepack: weights has shape \[16, 6\].*and K of 4"),
        (torch.zeros(16), r"prepack: weights has shape \[16\]; required: \[N, K\] or \[E, N, K\]"),
        (torch.zeros(16, 8).half(), r"prepack: weights has dtype float16; allowed: bfloat16, float32, float8_e4m3fn"),
    ],
    ids=["N", "K bf16", "K e4m3", "rank", "dtype"],
)
def test_bad_weights(weights, message):
    with pytest.raises(RuntimeError, match=message):
        hk.prepack(weights)


def test_misuse_of_packed_weights():
    b, a, offsets = hk.prepack(torch.randn(2, 48, 64)), torch.randn(7, 64), offsets_of([3, 4])
    with pytest.raises(RuntimeError, match=r"grouped_gemm: b has shape .*packed weights are as .*prepack returns them"):
        hk.grouped_gemm(a, b.mT, offsets)
    with pytest.raises(RuntimeError, match=r"grouped_gemm: b has shape .* and strides .*contiguous"):
        hk.grouped_gemm(a, b[:, :, ::2], offsets)
    with pytest.raises(RuntimeError, match=r"grouped_gemm: a has shape \[7, 62\]"):
        hk.grouped_gemm(a[:, :62], b, offsets)
    with pytest.raises(RuntimeError, match=r"grouped_gemm: b has dtype float32, but a has bfloat16"):
        hk.grouped_gemm(a.bfloat16(), b, offsets)
    with pytest.raises(RuntimeError, match=r"grouped_swiglu: gate_up has packed shape .*I = 24 .*multiple of 16"):
        hk.grouped_swiglu(a, b, offsets)
    with pytest.raises(RuntimeError, match=r"grouped_gemm_dgrad: b has shape .*needs them as they were before"):
        hk.grouped_gemm(a.requires_grad_(), b, offsets).sum().backward()
    with pytest.raises(RuntimeError, match=r"grouped_gemm_wgrad_: grad_b has shape .*needs them as they were before"):
        hk.grouped_gemm_wgrad_(b, torch.randn(7, 48), a.detach(), offsets)
