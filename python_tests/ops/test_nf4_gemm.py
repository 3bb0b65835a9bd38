"""NF4 weights beyond the cases of their specs: the format, the codes, bits that stay the same, and what is refused."""

from itertools import accumulate

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import MissingKernelError, ops
from hunyuan_kernels.reference import nf4_gemm as reference
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets

isas = pytest.mark.parametrize("isa", supported_instruction_sets())


def offsets_of(sizes):
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_values_are_the_published_ones_rounded():
    published = torch.tensor(reference.PUBLISHED)
    assert (reference.VALUES - published).abs().max() <= 2**-9
    assert torch.equal(reference.VALUES, reference.VALUES.sort().values)
    assert reference.VALUES[reference.ZERO] == 0


AMAX = 448.0  # of which scale and absmax are exact


@isas
def test_every_code_at_every_place(isa):
    """The identity as activations shows each weight; the codes differ along rows and along k."""
    codes = (torch.arange(32)[:, None] * 5 + torch.arange(128)[None, :]) % 16
    weights = AMAX * reference.VALUES[codes]
    with instruction_set(isa):
        quantized = hk.quantize_nf4(weights[None])
        for dtype in (torch.bfloat16, torch.float32):
            identity = torch.eye(128, dtype=dtype)
            for rows in (identity[:3], identity):
                got = hk.grouped_gemm_nf4(rows, quantized, offsets_of([len(rows)]), out_dtype=torch.float32)
                assert torch.equal(got, weights.T[: len(rows)])


@isas
def test_ties_go_down(isa):
    weights = torch.zeros(16, 64)
    weights[:, :15] = (reference.VALUES[:-1] + reference.VALUES[1:]) / 2
    weights[:, 16], weights[:, 17] = 1.0, -1.0
    with instruction_set(isa):
        got = reference.dequantize_nf4(hk.quantize_nf4(AMAX * weights)) / AMAX
    assert torch.equal(got[0, :15], reference.VALUES[:15].double())
    assert (got[0, 16], got[0, 17]) == (1.0, -1.0)
    assert not got[0, 18:].any()


def test_error_of_the_quantizer():
    """Of a normal distribution: half the widest gap of values times absmax at most, and the rounding of absmax."""
    weights = draw(64, 1024)
    got = reference.dequantize_nf4(hk.quantize_nf4(weights))
    amax = weights.reshape(64, -1, 64).abs().amax(-1, keepdim=True)
    error = (got - weights).abs().reshape(64, -1, 64)
    assert (error <= (0.5 * (1 - 0.6953125) + 2**-4) * amax).all()
    assert error.pow(2).mean().sqrt() < 0.11  # far below what 16 evenly spaced values give


@isas
def test_a_row_does_not_depend_on_the_number_of_rows(isa):
    a, weights = draw(40, 704).bfloat16(), hk.quantize_nf4(draw(1, 96, 704, seed=1))
    with instruction_set(isa):
        all_rows = hk.grouped_gemm_nf4(a, weights, offsets_of([40]))
        for count in range(1, 40):
            assert torch.equal(hk.grouped_gemm_nf4(a[:count], weights, offsets_of([count])), all_rows[:count]), count


@isas
def test_same_bits_with_one_thread_and_two(isa):
    sizes, threads = [1, 7, 40], torch.get_num_threads()
    a, weights = draw(sum(sizes), 640).bfloat16(), draw(3, 512, 640, seed=1).bfloat16()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with instruction_set(isa):
                quantized = hk.quantize_nf4(weights)
                results.append((*quantized, hk.grouped_swiglu_nf4(a, quantized, offsets_of(sizes))))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@isas
def test_rows_past_the_end_are_zeros_and_not_read(isa):
    a = draw(5, 128)
    a[3:] = float("nan")
    with instruction_set(isa):
        out = hk.grouped_gemm_nf4(a, hk.quantize_nf4(draw(2, 32, 128)), offsets_of([1, 2]))
    assert not out[3:].any()
    assert not out.isnan().any()


@isas
def test_nan_stays_in_its_row(isa):
    a = draw(20, 128)
    a[7, 3] = float("nan")
    with instruction_set(isa):
        out = hk.nf4_linear(a, hk.quantize_nf4(draw(32, 128)))
    assert out[7].isnan().all()
    assert not out[torch.arange(20) != 7].isnan().any()


def test_linear_shapes_bias_and_autocast():
    weights, bias = hk.quantize_nf4(draw(32, 64)), draw(32, seed=2)
    x = draw(2, 3, 64, seed=1)
    out = hk.nf4_linear(x, weights, bias)
    assert out.shape == (2, 3, 32)
    assert torch.equal(hk.nf4_linear(x[0, 0], weights), hk.nf4_linear(x, weights)[0, 0])
    assert torch.equal(out, hk.nf4_linear(x, weights) + bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert hk.nf4_linear(x, weights).dtype == torch.bfloat16


def test_strides():
    weights = draw(2, 64, 256).bfloat16()
    for given in (weights.mT.contiguous().mT, weights.repeat_interleave(2, 1)[:, ::2]):
        for got, want in zip(hk.quantize_nf4(given), hk.quantize_nf4(weights), strict=True):
            assert torch.equal(got, want)
    quantized, a = hk.quantize_nf4(weights), draw(6, 512)
    got = hk.grouped_gemm_nf4(a[:, ::2], quantized, offsets_of([2, 4]))
    assert torch.equal(got, hk.grouped_gemm_nf4(a[:, ::2].contiguous(), quantized, offsets_of([2, 4])))


def test_opcheck_and_compile():
    weights, a, offsets = draw(2, 32, 128), draw(7, 128, seed=1), offsets_of([3, 4])
    quantized = hk.quantize_nf4(weights)
    torch.library.opcheck(ops.quantize_nf4.default, (weights,))
    torch.library.opcheck(ops.nf4_linear.default, (a, quantized.blocks[0], quantized.scale[0]))
    torch.library.opcheck(ops.grouped_gemm_nf4.default, (a, *quantized, offsets, torch.bfloat16))
    torch.library.opcheck(ops.grouped_swiglu_nf4.default, (a, *quantized, offsets))
    compiled = torch.compile(hk.grouped_swiglu_nf4, backend="eager", fullgraph=True)
    assert torch.equal(compiled(a, quantized, offsets), hk.grouped_swiglu_nf4(a, quantized, offsets))


def test_no_gradient_and_no_cuda():
    quantized, offsets = hk.quantize_nf4(torch.nn.Parameter(draw(2, 32, 64))), offsets_of([3, 4])
    assert not quantized.scale.requires_grad
    with pytest.raises(RuntimeError, match="grouped_gemm_nf4: an input requires a gradient, but NF4 GEMMs have none"):
        hk.grouped_gemm_nf4(draw(7, 64).requires_grad_(), quantized, offsets).sum().backward()
    with hk.simulated_gpu(), pytest.raises(MissingKernelError, match="grouped_gemm_nf4"):
        hk.grouped_gemm_nf4(draw(7, 64), quantized, offsets)


W = hk.Nf4Weights


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, a, o: hk.quantize_nf4(draw(17, 64)), r"quantize_nf4: weights has shape \[17, 64\]; N must be"),
        (lambda q, a, o: hk.quantize_nf4(draw(16, 63)), r"quantize_nf4: weights has shape \[16, 63\].*and K of 64"),
        (lambda q, a, o: hk.quantize_nf4(draw(64)), r"quantize_nf4: weights has shape \[64\]; required"),
        (lambda q, a, o: hk.quantize_nf4(draw(16, 64).half()), r"quantize_nf4: weights has dtype float16; allowed"),
        (lambda q, a, o: hk.quantize_nf4(draw(16, 64) / 0), r"quantize_nf4: weights has elements that are NaN or inf"),
        (lambda q, a, o: hk.grouped_gemm_nf4(a[:, :63], q, o), r"grouped_gemm_nf4: a has shape \[7, 63\]"),
        (lambda q, a, o: hk.grouped_gemm_nf4(a, q, o[:2]), r"grouped_gemm_nf4: expert_offsets has shape \[2\]"),
        (lambda q, a, o: hk.grouped_gemm_nf4(a, q, o * 2), r"grouped_gemm_nf4: expert_offsets"),
        (lambda q, a, o: hk.grouped_gemm_nf4(a.half(), q, o), r"grouped_gemm_nf4: a has dtype float16; allowed"),
        (
            lambda q, a, o: hk.grouped_gemm_nf4(a, W(q.blocks[0], q.scale), o),
            r"grouped_gemm_nf4: blocks has shape \[2, 1, 528\]; required, contiguous, from .*quantize_nf4",
        ),
        (
            lambda q, a, o: hk.grouped_gemm_nf4(a, W(q.blocks.float(), q.scale), o),
            r"grouped_gemm_nf4: blocks has dtype float32; allowed: uint8",
        ),
        (
            lambda q, a, o: hk.grouped_gemm_nf4(a, W(q.blocks, q.scale[:, :16]), o),
            r"grouped_gemm_nf4: scale has shape \[2, 16\]",
        ),
        (
            lambda q, a, o: hk.grouped_swiglu_nf4(a, hk.quantize_nf4(draw(2, 48, 64)), o),
            r"grouped_swiglu_nf4: blocks has packed shape .*I = 24 .*multiple of 16",
        ),
        (lambda q, a, o: hk.nf4_linear(a, q), r"nf4_linear: blocks has shape \[2, 2, 1, 528\]; required"),
        (lambda q, a, o: hk.grouped_gemm_nf4(a, q, o, out_dtype=torch.half), r"grouped_gemm_nf4: out_dtype is float16"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(hk.quantize_nf4(draw(2, 32, 64)), draw(7, 64), offsets_of([3, 4]))
