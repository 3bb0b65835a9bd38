"""Derivatives of gradients: Hessian-vector products and gradient penalties, against PyTorch in fp64.

An operator whose gradient has no derivative of its own would give zeros with no more than a warning.
"""

import pytest
import torch
import torch.nn.functional as F

import hunyuan_kernels as hk
from hunyuan_kernels import reference

OFFSETS = torch.tensor([0, 3, 3, 8, 12], dtype=torch.int32)
ROWS, EXPERTS, TOKENS = 14, 4, 9


def make_routing(**options):
    logits = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(4))
    return hk.route(logits, options.pop("top_k", 1), **options)


ROUTING = make_routing(capacity=2, overflow="drop")
TWO = make_routing(top_k=2)
PADDED = torch.tensor([7], dtype=torch.int32)


def eager_loss(logits, demand, num_tokens=None):
    tokens = TOKENS if num_tokens is None else int(num_tokens)
    mean = logits[:tokens].double().softmax(1).mean(0)
    return EXPERTS * (demand / tokens * mean).sum()


def eager_weights(logits, expert_ids, renormalize):
    chosen = logits.double().softmax(1).gather(1, expert_ids.long().clamp(min=0))
    chosen = chosen / chosen.sum(1, keepdim=True) if renormalize else chosen
    return torch.where(expert_ids >= 0, chosen, 0.0)


RECYCLED = {"capacity": 3, "seed": 1}
WEIGHTS = torch.randn(EXPERTS, 10, 6, generator=torch.Generator().manual_seed(5)).to(torch.float8_e4m3fn)
SCALES = torch.rand(EXPERTS, 10, generator=torch.Generator().manual_seed(6)) + 0.1
# name: (op, the same in plain PyTorch, shapes of the inputs)
CASES = {
    "dispatch": (
        lambda x: hk.dispatch(x, ROUTING),
        lambda x: reference.dispatch.dispatch(x, ROUTING),
        [(TOKENS, 5)],
    ),
    "combine": (
        lambda y, w, s: hk.combine(y, TWO._replace(weights=w), s),
        lambda y, w, s: reference.dispatch.combine(y, TWO._replace(weights=w), s),
        [(2 * TOKENS, 5), (TOKENS, 2), (TOKENS, 5)],
    ),
    "combine with dropped rows": (
        lambda y, w: hk.combine(y, ROUTING._replace(weights=w)),
        lambda y, w: reference.dispatch.combine(y, ROUTING._replace(weights=w)),
        [(8, 5), (TOKENS, 1)],
    ),
    "grouped_gemm": (
        lambda a, b: hk.grouped_gemm(a, b, OFFSETS),
        lambda a, b: reference.grouped_gemm.grouped_gemm(a, b, OFFSETS),
        [(ROWS, 6), (EXPERTS, 7, 6)],
    ),
    "grouped_swiglu": (
        lambda a, b: hk.grouped_swiglu(a, b, OFFSETS),
        lambda a, b: reference.grouped_gemm.grouped_swiglu(a, b, OFFSETS),
        [(ROWS, 6), (EXPERTS, 10, 6)],
    ),
    "grouped_gemm_fp8": (
        lambda a: hk.grouped_gemm_fp8(a, WEIGHTS, OFFSETS, None, SCALES, out_dtype=torch.float32).square(),
        lambda a: reference.fp8_gemm.grouped_gemm_fp8(a, WEIGHTS, OFFSETS, None, SCALES).square(),
        [(ROWS, 6)],
    ),
    "grouped_swiglu_fp8": (
        lambda a: hk.grouped_swiglu_fp8(a, WEIGHTS, OFFSETS, None, SCALES, out_dtype=torch.float32),
        lambda a: reference.fp8_gemm.grouped_swiglu_fp8(a, WEIGHTS, OFFSETS, None, SCALES),
        [(ROWS, 6)],
    ),
    "swiglu": (
        hk.swiglu,
        reference.swiglu.swiglu,
        [(ROWS, 10)],
    ),
    "swiglu with rows of no expert": (
        lambda x: hk.swiglu(x, OFFSETS),
        lambda x: reference.swiglu.swiglu(x, OFFSETS),
        [(ROWS, 10)],
    ),
    "route": (
        lambda logits: hk.route(logits, 2).weights,
        lambda logits: eager_weights(logits, hk.route(logits.detach().float(), 2).expert_ids, True),
        [(TOKENS, EXPERTS)],
    ),
    "route, raw weights, padding": (
        lambda logits: hk.route(logits, 2, renormalize=False, num_tokens=PADDED).weights,
        lambda logits: eager_weights(logits, hk.route(logits.detach().float(), 2, num_tokens=PADDED).expert_ids, False),
        [(TOKENS, EXPERTS)],
    ),
    "route, recycled": (
        lambda logits: hk.route(logits, 1, **RECYCLED).weights,
        lambda logits: eager_weights(logits, hk.route(logits.detach().float(), 1, **RECYCLED).expert_ids, False),
        [(TOKENS, EXPERTS)],
    ),
    "load_balancing_loss": (
        lambda logits: hk.load_balancing_loss(logits, ROUTING),
        lambda logits: eager_loss(logits, ROUTING.demand),
        [(TOKENS, EXPERTS)],
    ),
    "load_balancing_loss, padding": (
        lambda logits: hk.load_balancing_loss(logits, ROUTING, num_tokens=PADDED),
        lambda logits: eager_loss(logits, ROUTING.demand, PADDED),
        [(TOKENS, EXPERTS)],
    ),
}


def second_derivatives(function, shapes, dtype):
    """Gradients of ``sum_i <v_i, d out / d x_i>`` with respect to every x_i and the incoming gradient."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    inputs = [random(*shape) for shape in shapes]
    out = function(*inputs)
    grad_out = random(*out.shape).to(out.dtype).detach().requires_grad_()
    first = torch.autograd.grad(out, inputs, grad_out, create_graph=True)
    penalty = sum((g * random(*g.shape).detach()).sum() for g in first)
    return torch.autograd.grad(penalty, [*inputs, grad_out], allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("error")
def test_second_derivative(name):
    op, plain, shapes = CASES[name]
    got = second_derivatives(op, shapes, torch.float32)
    want = second_derivatives(plain, shapes, torch.float64)
    assert any(bool(w.any()) for w in want), "every second derivative is zero: this case shows nothing"
    for g, w in zip(got, want, strict=True):
        scale = float(w.abs().max())
        torch.testing.assert_close(g.double(), w.double(), rtol=0, atol=1e-5 * scale + 1e-12)


@pytest.mark.filterwarnings("error")
def test_of_the_whole_layer():
    """moe in one piece: x, gate and all weights at once."""

    def layer(x, gate, gate_up, down, shared_gate_up, shared_down):
        return hk.moe(x, gate, (gate_up, down), (shared_gate_up, shared_down), top_k=2)

    def plain(x, gate, gate_up, down, shared_gate_up, shared_down):
        p, ids = F.linear(x, gate).softmax(1).topk(2)
        p = p / p.sum(1, keepdim=True)
        out = reference.moe.swiglu_mlp(x, shared_gate_up, shared_down)
        for e in range(EXPERTS):
            weight = torch.where(ids == e, p, 0.0).sum(1, keepdim=True)
            out = out + weight * reference.moe.swiglu_mlp(x, gate_up[e], down[e])
        return out

    shapes = [(TOKENS, 6), (EXPERTS, 6), (EXPERTS, 10, 6), (EXPERTS, 6, 5), (8, 6), (6, 4)]
    got = second_derivatives(layer, shapes, torch.float32)
    want = second_derivatives(plain, shapes, torch.float64)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=0, atol=2e-5 * float(w.abs().max()))


@pytest.mark.filterwarnings("error")
def test_of_fp8_linear():
    """Linear in x: the second derivative reaches the incoming gradient alone."""
    torch.manual_seed(0)
    weight, scale = hk.quantize_fp8(torch.randn(24, 40), "tensor")
    x, grad_out = torch.randn(5, 40, requires_grad=True), torch.randn(5, 24, requires_grad=True)
    (grad_x,) = torch.autograd.grad(hk.fp8_linear(x, weight, scale), x, grad_out, create_graph=True)
    v = torch.randn(5, 40)
    (got,) = torch.autograd.grad((grad_x * v).sum(), grad_out)
    torch.testing.assert_close(got, F.linear(v, weight.float() * scale), rtol=1e-4, atol=1e-4)
