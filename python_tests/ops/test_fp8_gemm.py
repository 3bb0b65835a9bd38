"""The FP8 GEMMs against their specification, element by element."""

import itertools

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets

E4M3 = torch.float8_e4m3fn
ISAS = supported_instruction_sets()
OFFSETS = torch.tensor([0, 0, 9, 10, 33, 50], dtype=torch.int32)
ROWS, EXPERTS = 60, 5


def e4m3(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(E4M3)


def magnitude_of(x):
    return x.float().abs().to(E4M3) if x.dtype == E4M3 else x.abs()


def scales(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator) + 0.1 for shape in shapes]


def blocks(n):
    return -(-n // 128)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 130, 300), (17, 257, 129), (33, 40, 64)])
def test_fp8_linear_and_its_gradient(m, n, k, dtype, isa):
    weight = e4m3(n, k)
    x = torch.randn(m, k).to(dtype).requires_grad_()
    grad = torch.randn(m, n).to(dtype)
    exact = x.detach().double().requires_grad_()
    with instruction_set(isa):
        for scale in scales((), (1,), (n,), (blocks(n), blocks(k))):
            got = hk.fp8_linear(x, weight, scale)
            want = reference.fp8_linear(exact, weight, scale)
            size = reference.fp8_linear(exact.abs(), magnitude_of(weight), scale).detach()
            assert (comparison := compare_bounded("fp8_linear", got, want, size)), comparison.message
            (got_grad,) = torch.autograd.grad(got, x, grad)
            (want_grad,) = torch.autograd.grad(want, exact, grad.double())
            bound = reference.fp8_linear(exact, magnitude_of(weight), scale)
            (size,) = torch.autograd.grad(bound, exact, grad.double().abs())
            assert (comparison := compare_bounded("gradient", got_grad, want_grad, size)), comparison.message


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 20])
def test_every_pattern_expands_exactly(rows, dtype, isa):
    patterns = torch.arange(256, dtype=torch.uint8).view(E4M3).reshape(256, 1)
    want = patterns.float().t().expand(rows, 256).to(dtype)
    with instruction_set(isa):
        for weight in (patterns, torch.cat([patterns, torch.zeros(256, 7).to(E4M3)], 1)):
            got = hk.fp8_linear(torch.ones(rows, weight.shape[1], dtype=dtype), weight, torch.tensor(1.0))
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.nan_to_num(), want.nan_to_num())


def grouped_activations(k):
    return [
        (e4m3(ROWS, k, seed=2), torch.tensor(0.4)),
        (e4m3(ROWS, k, seed=2), torch.tensor([0.4])),
        (e4m3(ROWS, k, seed=2), scales((ROWS,))[0]),
        (e4m3(ROWS, k, seed=2), scales((ROWS, blocks(k)))[0]),
        (torch.randn(ROWS, k).bfloat16(), None),
        (torch.randn(ROWS, k), None),
    ]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("intermediate", "k"), [(20, 70), (128, 256), (130, 300)])
def test_quantized_swiglu_is_the_quantized_result(intermediate, k, isa):
    gate_up = e4m3(EXPERTS, 2 * intermediate, k)
    half, kb = blocks(intermediate), blocks(k)
    shapes = [(EXPERTS,), (EXPERTS, 2), (EXPERTS, 2 * intermediate), (EXPERTS, 2, half, kb)]
    if intermediate % 128 == 0:
        shapes.append((EXPERTS, 2 * half, kb))
    with instruction_set(isa):
        for b_scale in (0.01 * s for s in scales(*shapes)):
            for a, a_scale in grouped_activations(k):
                got = hk.grouped_swiglu_fp8(a, gate_up, OFFSETS, a_scale, b_scale, out_dtype=torch.float32)
                q, scale = hk.grouped_swiglu_fp8(a, gate_up, OFFSETS, a_scale, b_scale, out_dtype=E4M3)
                for g, w in zip((q, scale), hk.quantize_fp8(got, "block_1x128"), strict=True):
                    assert (comparison := compare_exact("quantized", g, w)), comparison.message
                static = torch.tensor([0.02])
                q, scale = hk.grouped_swiglu_fp8(
                    a, gate_up, OFFSETS, a_scale, b_scale, out_dtype=E4M3, out_scale=static
                )
                assert scale == static[0]
                assert compare_exact("static", q, hk.quantize_fp8(got, "tensor", static[0])[0])


def test_long_sums_of_one_sign():
    """fp32 accumulation: a tensor core's 14 bits would lose most of this sum."""
    a, b = torch.full((2, 16384), 1.0).to(E4M3), torch.full((3, 16384), 1.125).to(E4M3)
    got = hk.fp8_gemm(a, b, torch.tensor(1.0), torch.tensor(1.0), out_dtype=torch.float32)
    assert torch.equal(got, torch.full((2, 3), 16384 * 1.125))


def test_nan_stays_in_its_row_and_column():
    a, b = e4m3(20, 64), e4m3(40, 64, seed=1)
    one = torch.tensor(1.0)
    clean = hk.fp8_gemm(a, b, one, one)
    a.view(torch.uint8)[3, 5], b.view(torch.uint8)[7, 9] = 0x7F, 0xFF
    got = hk.fp8_gemm(a, b, one, one)
    touched = torch.zeros(20, 40, dtype=torch.bool)
    touched[3], touched[:, 7] = True, True
    assert torch.equal(got.isnan(), touched)
    assert torch.equal(got[~touched], clean[~touched])


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 8), (4, 0, 8), (4, 4, 0)])
def test_empty(m, n, k):
    for a_scale, b_scale in itertools.product(
        scales((), (m,), (m, blocks(k))), scales((), (n,), (blocks(n), blocks(k)))
    ):
        got = hk.fp8_gemm(e4m3(m, k), e4m3(n, k), a_scale, b_scale)
        assert got.shape == (m, n)
        assert not got.any()


def test_threads_give_the_same_bits():
    a, b = e4m3(300, 300), e4m3(200, 300, seed=1)
    a_scale, b_scale = scales((300, 3), (2, 3))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(hk.fp8_gemm(a, b, a_scale, b_scale))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_linear_shapes_bias_and_autocast():
    weight, scale = e4m3(6, 10), torch.tensor(0.5)
    x, bias = torch.randn(2, 3, 10), torch.randn(6)
    out = hk.fp8_linear(x, weight, scale, bias)
    torch.testing.assert_close(out, reference.fp8_linear(x, weight, scale, bias).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert hk.fp8_linear(x, weight, scale).dtype == torch.bfloat16


def opcheck(op, *arguments):
    """All of opcheck but test_schema, which compares inputs with torch.allclose: it has no float8 on the CPU."""
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    before = [x.clone() for x in arguments if isinstance(x, torch.Tensor)]
    torch.library.opcheck(op.default, arguments, test_utils=utils)
    after = [x for x in arguments if isinstance(x, torch.Tensor)]
    assert all(compare_exact("input", x, y) for x, y in zip(after, before, strict=True)), "an input was written to"


def test_opcheck():
    a, b = e4m3(ROWS, 140), e4m3(EXPERTS, 20, 140)
    a_scale, b_scale = scales((ROWS, 2), (EXPERTS,))
    out = torch.bfloat16
    opcheck(ops.fp8_gemm, a, b[0], a_scale, b_scale[0], out)
    opcheck(ops.fp8_linear, torch.randn(4, 140, requires_grad=True), b[0], b_scale[0])
    opcheck(ops.fp8_linear_dgrad, torch.randn(4, 20), b[0], b_scale[0])
    opcheck(ops.grouped_gemm_fp8_dgrad, torch.randn(ROWS, 20), b, OFFSETS, b_scale, torch.bfloat16)
    opcheck(ops.grouped_gemm_fp8, a, b, OFFSETS, a_scale, b_scale, out)
    opcheck(ops.grouped_swiglu_fp8, a, b, OFFSETS, a_scale, b_scale, out)
    opcheck(ops.grouped_swiglu_fp8_quantized, a, b, OFFSETS, a_scale, b_scale)
    opcheck(ops.grouped_swiglu_fp8_static, a, b, OFFSETS, a_scale, b_scale, torch.tensor([2.0]))


A, B, ONE = e4m3(4, 256), e4m3(8, 256), torch.tensor(1.0)
GROUPED = e4m3(2, 8, 256)
TWO = torch.ones(2)
GROUPS = torch.tensor([0, 2, 4], dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: hk.fp8_gemm(A.float(), B, ONE, ONE),
            RuntimeError,
            "fp8_gemm: a has dtype float32; allowed: float8_e4m3fn",
        ),
        (lambda: hk.fp8_gemm(A, B.to(torch.float8_e4m3fnuz), ONE, ONE), RuntimeError, "b has dtype float8_e4m3fnuz"),
        (lambda: hk.fp8_gemm(A, B.to(torch.float8_e5m2), ONE, ONE), RuntimeError, "b has dtype float8_e5m2; allowed"),
        (lambda: hk.fp8_gemm(A[0], B, ONE, ONE), RuntimeError, r"a has shape \[256\]; 2 dimensions"),
        (
            lambda: hk.fp8_gemm(A, B[:, :9], ONE, ONE),
            RuntimeError,
            r"a has shape \[4, 256\]; required: .* = \[any, 9\]",
        ),
        (lambda: hk.fp8_gemm(A, B, torch.ones(3), ONE), RuntimeError, r"a_scale has shape \[3\]; allowed .*\[4, 2\]"),
        (lambda: hk.fp8_gemm(A, B, ONE, torch.ones(9)), RuntimeError, r"b_scale has shape \[9\]; allowed: .*\[1, 2\]"),
        (lambda: hk.fp8_gemm(A, B, ONE.double(), ONE), RuntimeError, "a_scale has dtype float64; allowed: float32"),
        (lambda: hk.fp8_gemm(A, B, ONE, ONE, out_dtype=torch.float16), RuntimeError, "out_dtype is float16; allowed"),
        (lambda: hk.fp8_gemm(A, B[:, ::2].expand(8, 128), ONE, ONE), RuntimeError, "call .contiguous"),
        (lambda: hk.fp8_linear(A, B, ONE), RuntimeError, "fp8_linear: x has dtype float8_e4m3fn; allowed: bfloat16"),
        (lambda: hk.fp8_linear(ONE, B, ONE), RuntimeError, "fp8_linear: x has no dimensions"),
        (lambda: hk.fp8_linear(A.float(), B, torch.ones(7)), RuntimeError, r"weight_scale has shape \[7\]; allowed"),
        (
            lambda: hk.grouped_gemm_fp8(A, GROUPED, GROUPS, None, TWO),
            RuntimeError,
            "a_scale is None, but a has dtype float8",
        ),
        (
            lambda: hk.grouped_gemm_fp8(A.float(), GROUPED, GROUPS, ONE, TWO),
            RuntimeError,
            "a_scale is given, but a has dtype",
        ),
        (
            lambda: hk.grouped_gemm_fp8(A, GROUPED, GROUPS, ONE, torch.ones(2, 2)),
            RuntimeError,
            r"b_scale has shape \[2, 2\]",
        ),
        (
            lambda: hk.grouped_gemm_fp8(A, GROUPED, GROUPS.flip(0), ONE, TWO),
            RuntimeError,
            "expert_offsets starts with 4",
        ),
        (
            lambda: hk.grouped_gemm_fp8(A, GROUPED, GROUPS + 0 * GROUPS, ONE, torch.ones(3)),
            RuntimeError,
            "b_scale has shape",
        ),
        (lambda: hk.grouped_swiglu_fp8(A, GROUPED[:, :7], GROUPS, ONE, TWO), RuntimeError, "dimension 1 must be even"),
        (
            lambda: hk.grouped_swiglu_fp8(A, GROUPED, GROUPS, ONE, torch.ones(2, 3)),
            RuntimeError,
            r"b_scale has shape \[2, 3\]; allowed: \[2\] .*\[2, 2\] \(gate and up apart\)",
        ),
        (lambda: hk.grouped_swiglu_fp8(A, GROUPED, GROUPS, ONE, TWO, out_scale=ONE), ValueError, "out_scale is given"),
        (
            lambda: hk.grouped_swiglu_fp8(A, GROUPED, GROUPS, ONE, TWO, out_dtype=E4M3, out_scale=TWO),
            RuntimeError,
            r"out_scale has shape \[2\]; one element",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_backward_says_why_not():
    """Of e4m3 activations and of scales there is no gradient."""
    scale = torch.tensor(1.0, requires_grad=True)
    out = hk.grouped_gemm_fp8(A, GROUPED, GROUPS, scale, TWO, out_dtype=torch.float32)
    with pytest.raises(RuntimeError, match="grouped_gemm_fp8: an input requires a gradient"):
        out.sum().backward()
    with pytest.raises(RuntimeError, match="grouped_swiglu_fp8: an input requires a gradient"):
        hk.grouped_swiglu_fp8(A.bfloat16(), GROUPED, GROUPS, None, TWO * scale).sum().backward()
