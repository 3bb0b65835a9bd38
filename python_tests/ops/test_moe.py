"""The whole layer against its specification, which computes every token by itself in fp64."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels.reference.moe import moe_from_routing

TOKENS, EXPERTS, HIDDEN, INTERMEDIATE = 90, 8, 96, 40


def make(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape):
        return torch.randn(shape, generator=generator).mul(shape[-1] ** -0.5).to(dtype)

    x = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    gate = torch.randn(EXPERTS, HIDDEN, generator=generator)
    experts = hk.Experts(weights(EXPERTS, 2 * INTERMEDIATE, HIDDEN), weights(EXPERTS, HIDDEN, INTERMEDIATE))
    shared = hk.SharedExpert(weights(2 * INTERMEDIATE, HIDDEN), weights(HIDDEN, INTERMEDIATE))
    return x, gate, experts, shared


OPTIONS = [
    {},
    {"capacity": 12, "seed": 3},
    {"capacity": 5, "seed": 3},
    {"capacity": 12, "overflow": "drop"},
    {"top_k": 3},
    {"top_k": 3, "capacity": 20, "overflow": "drop", "num_tokens": torch.tensor([70], dtype=torch.int32)},
]


def want(x, routing, experts, shared, residual=None):
    return moe_from_routing(x, routing.expert_ids, routing.weights, routing.rows, experts, shared, residual)


def test_leading_dimensions_and_defaults():
    x, gate, experts, shared = make()
    flat = hk.moe(x, gate, tuple(experts), tuple(shared))
    assert torch.equal(hk.moe(x.view(2, 45, HIDDEN), gate, experts, shared), flat.view(2, 45, HIDDEN))
    assert hk.moe(x[:0], gate, experts).shape == (0, HIDDEN)


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_gradients(options):
    x, gate, experts, shared = make()
    inputs = [t.requires_grad_() for t in (x, gate, *experts, *shared)]
    y, _, routing = hk.moe(x, gate, experts, shared, return_routing=True, **options)
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, inputs, grad)

    exact = [t.detach().double().requires_grad_() for t in inputs]
    p = (exact[0] @ exact[1].T).softmax(1)
    weights = p.gather(1, routing.expert_ids.long())
    if options.get("top_k", 1) > 1:
        weights = weights / weights.sum(1, keepdim=True)
    reference = moe_from_routing(
        exact[0], routing.expert_ids, weights, routing.rows, (exact[2], exact[3]), (exact[4], exact[5])
    )
    for g, w in zip(got, torch.autograd.grad(reference, exact, grad.double()), strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4 * float(w.abs().max()))


@pytest.mark.parametrize("activations", ["none", "static", "block_1x128"])
def test_fp8_experts(activations):
    x, gate, experts, shared = make(torch.bfloat16)
    recipe = "block_128x128" if activations == "block_1x128" else "tensor"
    (gate_up, gate_up_scale), (down, down_scale) = (hk.quantize_fp8(w, recipe) for w in experts)
    if activations == "block_1x128":  # one block of rows holds gate and up: scale the halves apart
        halves = experts.gate_up.reshape(EXPERTS * 2, INTERMEDIATE, HIDDEN)
        q, scale = hk.quantize_fp8(halves, recipe)
        gate_up, gate_up_scale = q.reshape(experts.gate_up.shape), scale.reshape(EXPERTS, 2, *scale.shape[1:])
    static = {}
    if activations == "static":
        static = {"input_scale": torch.tensor(4.0 / 448), "intermediate_scale": torch.tensor(4.0 / 448)}
    fp8 = hk.Fp8Experts(gate_up, down, gate_up_scale, down_scale, activations, **static)
    y, _, routing = hk.moe(x, gate, fp8, shared, return_routing=True)
    exact = want(x, routing, experts, shared)
    error = (y.double() - exact).norm() / exact.norm()
    # rounding to e4m3 errs by up to 2^-4, 2^-4 / sqrt(3) in the mean square; input, intermediate and two weights add up
    assert error < 2 * 2**-4 / 3**0.5, f"relative error {error:.3f}"
    one = fp8._replace(**{name: getattr(fp8, name)[3:4] for name in fp8._fields[:4]})  # expert 3 as the shared one
    if activations == "static":  # it sees more tokens, and larger values
        one = one._replace(intermediate_scale=torch.tensor(8.0 / 448))
    got, _, routing = hk.moe(x, gate, experts, one, return_routing=True)
    exact_shared = want(x, routing, experts, (experts.gate_up[3], experts.down[3]))
    assert (got.double() - exact_shared).norm() / exact_shared.norm() < 2 * 2**-4 / 3**0.5
    other = one._replace(activations="none" if activations == "static" else "static")
    with pytest.raises(ValueError, match=r"moe: shared.input_scale is (missing|given) with activations="):
        hk.moe(x, gate, fp8, other)
    wrong = fp8._replace(down_scale=down_scale * 4)
    assert (hk.moe(x, gate, wrong, shared).double() - exact).norm() / exact.norm() > 0.2


def test_autocast():
    """fp32 parameters, bf16 experts; the router stays in fp32, so tokens go where they went."""
    x, gate, experts, shared = make()
    options = {"capacity": 12, "seed": 3, "return_routing": True}
    with torch.autocast("cpu", torch.bfloat16):
        y, logits, routing = hk.moe(x, gate, experts, shared, residual=x, **options)
        assert hk.moe(x, gate, experts).dtype == torch.bfloat16
    _, exact_logits, exact_routing = hk.moe(x, gate, experts, shared, **options)
    assert y.dtype == torch.float32
    assert torch.equal(logits, exact_logits)
    assert torch.equal(routing.rows, exact_routing.rows)
    torch.testing.assert_close(y.double(), want(x, routing, experts, shared, x), rtol=2e-2, atol=2e-2)
    inputs = [t.requires_grad_() for t in (x, gate, *experts, *shared)]
    with torch.autocast("cpu", torch.bfloat16):
        y = hk.moe(x, gate, experts, shared, residual=x, capacity=12, seed=3)
    for tensor, grad in zip(inputs, torch.autograd.grad(y.square().mean(), inputs), strict=True):
        assert grad.dtype == tensor.dtype
        assert grad.isfinite().all()
        assert grad.any()


def test_autocast_of_fp8_experts():
    x, gate, experts, _ = make()
    quantized = [hk.quantize_fp8(w, "tensor") for w in experts]
    fp8 = hk.Fp8Experts(*(q for q, _ in quantized), *(scale for _, scale in quantized))
    with torch.autocast("cpu", torch.bfloat16):
        got = hk.moe(x, gate, fp8)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), hk.moe(x, gate, fp8), rtol=3e-2, atol=3e-2)


def make_nf4(dtype):
    generator = torch.Generator().manual_seed(0)
    x, gate = torch.randn(30, 128, generator=generator).to(dtype), torch.randn(4, 128, generator=generator)
    gate_up, down = torch.randn(4, 128, 128, generator=generator), torch.randn(4, 128, 64, generator=generator)
    return x, gate, hk.Nf4Experts(hk.quantize_nf4(gate_up / 128**0.5), hk.quantize_nf4(down / 64**0.5))


def test_nf4_experts():
    """The layer is its parts bit for bit; autocast casts the tokens; gradients are refused by the op that has none."""
    x, gate, experts = make_nf4(torch.bfloat16)
    y, _, routing = hk.moe(x, gate, experts, return_routing=True)
    hidden = hk.grouped_swiglu_nf4(hk.dispatch(x, routing), experts.gate_up, routing.expert_offsets)
    parts = hk.combine(hk.grouped_gemm_nf4(hidden, experts.down, routing.expert_offsets), routing)
    assert torch.equal(y, parts)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hk.moe(x.float(), gate, experts), y)
    with pytest.raises(RuntimeError, match=r"grouped_(gemm|swiglu)_nf4: an input requires a gradient"):
        hk.moe(x.float().requires_grad_(), gate, experts).sum().backward()
    swapped = hk.Nf4Experts(experts.down, experts.gate_up)
    with pytest.raises(RuntimeError, match=r"^moe: experts.gate_up stands for \[4, 128, 64\]; required"):
        hk.moe(x, gate, swapped)


def test_nf4_experts_compile_as_one_graph():
    x, gate, experts = make_nf4(torch.float32)
    layer = torch.compile(lambda x: hk.moe(x, gate, experts, capacity=12, seed=3), fullgraph=True, backend="aot_eager")
    assert torch.equal(layer(x), hk.moe(x, gate, experts, capacity=12, seed=3))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", [{"capacity": 12, "seed": 3}, {"top_k": 3}], ids=str)
def test_compiles_as_one_graph(options, backend):
    x, gate, experts, shared = make()
    inputs = [t.requires_grad_() for t in (x, gate, *experts, *shared)]

    def layer(x, gate, gate_up, down, shared_gate_up, shared_down):
        return hk.moe(x, gate, (gate_up, down), (shared_gate_up, shared_down), **options)

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    got, expected = compiled(*inputs), layer(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(got)
    for g, w in zip(torch.autograd.grad(got, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_bad_input():
    x, gate, experts, _ = make()
    with pytest.raises(ValueError, match=r"moe: gate has shape \[8, 95\] and x \[90, 96\]; required"):
        hk.moe(x, gate[:, 1:], experts)
    with pytest.raises(RuntimeError, match="top_k is 9; allowed"):
        hk.moe(x, gate, experts, top_k=9)
    q, scale = hk.quantize_fp8(experts.gate_up, "tensor")
    with pytest.raises(ValueError, match="activations is 'int8'; allowed: 'none', 'static', 'block_1x128'"):
        hk.moe(x, gate, hk.Fp8Experts(q, q, scale, scale, "int8"))
    with pytest.raises(ValueError, match="input_scale is missing with activations='static'"):
        hk.moe(x, gate, hk.Fp8Experts(q, q, scale, scale, "static"))
