"""Gradients with respect to activations under FP8 weights, which are constants."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.testing.specs.grouped_gemm import offsets_of
from python_tests.backends import CPU, SIMULATED, needs_device_code

E4M3 = torch.float8_e4m3fn
#: Rows of the groups, and of no group.
SIZES, TAIL = [9, 0, 3, 40], 5
EXPERTS, ROWS, DEPTH = len(SIZES), sum(SIZES) + TAIL, 300


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scale(*shape):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.1) * DEPTH**-0.5


def scale_of(kind, columns):
    blocks, deep = -(-columns // 128), -(-DEPTH // 128)
    return scale(
        *{
            "tensor": (EXPERTS,),
            "channel": (EXPERTS, columns),
            "block": (EXPERTS, blocks, deep),
            "halves": (EXPERTS, 2),
            "half blocks": (EXPERTS, 2, -(-columns // 256), deep),
        }[kind]
    )


OPS = {
    "grouped_gemm_fp8": (hk.grouped_gemm_fp8, reference.grouped_gemm_fp8),
    "grouped_swiglu_fp8": (hk.grouped_swiglu_fp8, reference.grouped_swiglu_fp8),
}
#: Op, scales, rows of the weights.
CASES = [
    ("grouped_gemm_fp8", "tensor", 140),
    ("grouped_gemm_fp8", "channel", 140),
    ("grouped_gemm_fp8", "block", 140),
    ("grouped_swiglu_fp8", "tensor", 280),
    ("grouped_swiglu_fp8", "halves", 280),
    ("grouped_swiglu_fp8", "channel", 280),
    ("grouped_swiglu_fp8", "half blocks", 280),
    ("grouped_swiglu_fp8", "block", 256),
]


def gradient(name, kind, columns, backend, dtype):
    """Ours and that of autograd in fp64. NaN behind the last group, in rows and in what comes back."""
    op, plain = OPS[name]
    weights, weight_scale, offsets = randn(EXPERTS, columns, DEPTH, seed=2).to(E4M3), scale_of(kind, columns), SIZES
    a = randn(ROWS, DEPTH).to(dtype)
    a[sum(SIZES) :] = float("nan")
    call = (weights, offsets_of(offsets), None, weight_scale)
    own = a.clone().requires_grad_()
    with backend():
        out = op(own, *call, out_dtype=dtype)
        grad_out = randn(*out.shape, seed=3).to(dtype)
        grad_out[sum(SIZES) :] = float("nan")
        out.backward(grad_out)
    exact = a[: sum(SIZES)].double().requires_grad_()
    plain(exact, *call).backward(grad_out[: sum(SIZES)].double())
    assert not own.grad[sum(SIZES) :].any()
    return own.grad[: sum(SIZES)], exact.grad


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(("name", "kind", "columns"), CASES)
def test_gradient(name, kind, columns, backend):
    got, want = gradient(name, kind, columns, backend, torch.float32)
    assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("backend", [CPU[-1], SIMULATED[0], SIMULATED[-1]])
@pytest.mark.parametrize(("name", "kind", "columns"), CASES)
def test_gradient_in_bf16(name, kind, columns, backend):
    """On a GPU gradients are bf16 on their way; the pre-activation is everywhere."""
    got, want = gradient(name, kind, columns, backend, torch.bfloat16)
    assert float((got.double() - want).norm() / want.norm()) < 2**-7


def test_scales_of_channels_are_refused():
    b, offsets = randn(3, 20, 40).to(E4M3), offsets_of([3, 0, 4])
    with pytest.raises(RuntimeError, match="grouped_gemm_fp8_dgrad: b_scale is per channel"):
        ops.grouped_gemm_fp8_dgrad(randn(8, 20), b, offsets, torch.ones(3, 20), torch.float32)


@needs_device_code
def test_packed_weights_have_no_gradient():
    weights, offsets, one = randn(EXPERTS, 64, 64).to(E4M3), offsets_of(SIZES), torch.ones(EXPERTS)
    a = randn(ROWS, 64).bfloat16().requires_grad_()
    with hk.simulated_gpu():
        for op in (hk.grouped_gemm_fp8, hk.grouped_swiglu_fp8):
            out = op(a, hk.prepack(weights), offsets, None, one)
            with pytest.raises(RuntimeError, match=r"has shape .*, that of packed weights"):
                out.sum().backward()


def test_layer():
    """x of a whole layer with frozen FP8 experts, compiled or not."""
    hidden, intermediate = 96, 64
    gate_up, down = randn(EXPERTS, 2 * intermediate, hidden, seed=2), randn(EXPERTS, hidden, intermediate, seed=3)
    (q_up, up_scale), (q_down, down_scale) = (hk.quantize_fp8(w, "tensor") for w in (gate_up, down))
    experts = hk.Fp8Experts(q_up, q_down, up_scale, down_scale)
    plain = tuple(q.float() * s[:, None, None] for q, s in ((q_up, up_scale), (q_down, down_scale)))
    gate = randn(EXPERTS, hidden, seed=4)
    gradients = []
    for layer, weights in ((hk.moe, plain), (hk.moe, experts), (torch.compile(hk.moe, backend="aot_eager"), experts)):
        x = randn(20, hidden).requires_grad_()
        layer(x, gate, weights, top_k=2).square().mean().backward()
        gradients.append(x.grad)
    for got in gradients[1:]:
        assert float((got - gradients[0]).norm() / gradients[0].norm()) < 1e-5
