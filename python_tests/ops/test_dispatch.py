"""dispatch, dispatch_fp8 and combine against their specification."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import dispatch as reference
from hunyuan_kernels.reference.quantize import quantize_fp8
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from python_tests.backends import CPU, SIMULATED, needs_device_code

ISAS = supported_instruction_sets()


def routing_of(tokens, top_k=2, experts=5, capacity=None, padding=0):
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))
    num_tokens = torch.tensor([tokens - padding], dtype=torch.int32)
    overflow = "recycle" if top_k == 1 else "drop"
    return hk.route(logits, top_k, capacity=capacity, overflow=overflow, seed=1, num_tokens=num_tokens)


CASES = [(0, 1, None, 0), (1, 1, None, 0), (50, 1, 7, 0), (50, 2, None, 5), (50, 3, 11, 0), (300, 1, 60, 20)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("tokens", "top_k", "capacity", "padding"), CASES)
def test_gradients(tokens, top_k, capacity, padding, isa):
    routing = routing_of(tokens, top_k, capacity=capacity, padding=padding)
    inputs = [
        torch.randn(routing.token_ids.shape[0], 37),
        routing.weights,
        torch.randn(tokens, 37),
        torch.randn(tokens, 37),
    ]
    y, weights, shared, residual = (t.requires_grad_() for t in inputs)
    routing = routing._replace(weights=weights)
    grad = torch.randn(tokens, 37)
    with instruction_set(isa):
        got = torch.autograd.grad(hk.combine(y, routing, shared, residual), (y, weights, shared, residual), grad)
        x = torch.randn(tokens, 37).requires_grad_()
        (got_x,) = torch.autograd.grad(hk.dispatch(x, routing), x, y.detach())
    out = reference.combine(y, routing, shared, residual)
    want = torch.autograd.grad(out, (y, weights, shared, residual), grad.double())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)
    (want_x,) = torch.autograd.grad(reference.dispatch(x, routing), x, y.detach())
    torch.testing.assert_close(got_x, want_x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("hidden", [4096, 4099], ids=["whole lines", "rows that end within lines"])
def test_results_written_past_the_caches(hidden, isa):
    """From 16 MiB on; rows within x that begin anywhere, and unused rows at the end."""
    routing = routing_of(1100, 2, padding=30)
    x = torch.randint(-(2**15), 2**15, (1100, hidden + 3), dtype=torch.int16).view(torch.bfloat16)[:, 3:]
    with instruction_set(isa):
        got = hk.dispatch(x, routing)
    assert got.nbytes >= 2**24
    used = int(routing.expert_offsets[-1])
    assert used == 2 * 1070
    want = x[routing.token_ids[:used].long()]
    assert torch.equal(got[:used].view(torch.int16), want.contiguous().view(torch.int16))
    assert not got[used:].view(torch.int16).any()


@pytest.mark.parametrize("backend", [*CPU, SIMULATED[0]])
def test_given_output(backend):
    routing = routing_of(50, 2, padding=5)
    x = torch.randn(50, 40)
    want, out = hk.dispatch(x, routing), torch.full((100, 40), float("nan"))
    with backend():
        assert hk.dispatch(x, routing, out=out) is out
    assert torch.equal(out, want)
    compiled = torch.compile(lambda out: hk.dispatch(x, routing, out=out) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(out.zero_()), want + 1)
    assert torch.equal(out, want)


def test_bad_output():
    routing, x = routing_of(50, 2), torch.randn(150, 40)
    for out, message in (
        (torch.empty(100, 41), r"out has shape \[100, 41\]; required: \[S, H\] = \[100, 40\]"),
        (torch.empty(100, 40).double(), "out has dtype float64; allowed: float32"),
        (torch.empty(40, 100).t(), r"out has strides \[1, 100\]; it must be contiguous"),
        (x[49:149], "out shares memory with x"),
        (torch.empty(1, 40).expand(100, 40), r"out has strides \[0, 1\]; it must be contiguous"),
    ):
        before = out.clone()
        with pytest.raises(RuntimeError, match=f"^dispatch: {message}"):
            hk.dispatch(x[:50], routing, out=out)
        assert torch.equal(out, before) or before.isnan().any()
    for name in ("token_ids", "expert_offsets"):
        values, workspace = getattr(routing, name), torch.empty(100, 40)
        inside = workspace.view(-1)[: values.numel()].view(torch.int32).copy_(values)
        with pytest.raises(RuntimeError, match=f"^dispatch: out shares memory with {name}"):
            hk.dispatch(x[:50], routing._replace(**{name: inside}), out=workspace)
        assert torch.equal(inside, values)
    for name, leaf, out in (
        ("x", x[:50].clone().requires_grad_(), torch.empty(100, 40)),
        ("out", x[:50], torch.empty(100, 40, requires_grad=True)),
    ):
        with pytest.raises(RuntimeError, match=f"^dispatch: {name} requires a gradient, but what is written into out"):
            hk.dispatch(leaf, routing, out=out)
        with torch.no_grad():
            hk.dispatch(leaf, routing, out=out)
    hk.dispatch(x[:50], routing, out=x[50:150])


def test_quantized_rows_and_strides():
    routing = routing_of(40, 1)
    base = torch.randn(80, 96)
    for x in (base[::2, 10:70], base.t()[:40].t()[:40], base[:1, :60].expand(40, 60)):
        assert torch.equal(hk.dispatch(x, routing), reference.dispatch(x, routing))
        want = hk.combine(x.contiguous(), routing, x.contiguous())
        assert torch.equal(hk.combine(x, routing, x), want)
    q = base[:40].to(torch.float8_e4m3fn)
    assert compare_exact("e4m3", hk.dispatch(q, routing), reference.dispatch(q, routing))


def assert_same_bits(got, want):
    for name, g, w in zip(("q", "scale"), got, want, strict=True):
        comparison = compare_exact(name, g, w)
        assert comparison, comparison.message


@pytest.mark.parametrize("backend", CPU + SIMULATED)
def test_every_bfloat16_value_quantized_on_the_way(backend):
    values = torch.arange(2**16).sub(2**15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    routing = hk.routing_from_ids(torch.arange(256)[:, None] % 7, torch.ones(256, 1), 7)
    for columns in (256, 201):
        x = values[:, :columns]
        with backend():
            got = hk.dispatch_fp8(x, routing)
        assert_same_bits(got, reference.dispatch_fp8(x, routing))


@needs_device_code
@pytest.mark.parametrize("used", [-3, 0, 5, 9, 2**31 - 1])
def test_rows_of_no_token_are_zeros_on_a_gpu(used):
    """Wrong values on a device never raise and never reach out of bounds."""
    token_ids = torch.tensor([-(2**31), -1, 40, 2**31 - 1, 39, 0, 12, 5, 7], dtype=torch.int32)
    x, offsets = torch.randn(40, 130), torch.tensor([0, used], dtype=torch.int32)
    with hk.simulated_gpu():
        got = ops.dispatch_fp8(x, token_ids, offsets)
    there = (torch.arange(9) < used) & (token_ids >= 0) & (token_ids < 40)
    gathered = torch.where(there[:, None], x[token_ids.clamp(0, 39)], 0.0)
    assert_same_bits(got, quantize_fp8(gathered, "block_1x128"))
    for scale in (0.01, 0.0):  # zeros also where zero divided by the scale is none
        with hk.simulated_gpu():
            q = ops.dispatch_fp8_static(x, token_ids, offsets, torch.tensor(scale))
        want = quantize_fp8(gathered, "tensor", torch.tensor(scale))[0].float().where(there[:, None], 0.0)
        assert compare_exact("q", q, want.to(torch.float8_e4m3fn))


def test_a_token_without_rows_gets_shared_and_residual():
    routing = routing_of(40, 1, capacity=0)
    shared, residual = torch.randn(40, 8), torch.randn(40, 8)
    assert torch.equal(hk.combine(torch.empty(0, 8), routing, shared, residual), shared + residual)


def test_nan_touches_its_token_alone():
    routing = routing_of(40, 2)
    y = torch.randn(80, 8)
    clean = hk.combine(y, routing)
    y[11] = float("nan")
    got = hk.combine(y, routing)
    owner = int(routing.token_ids[11])
    assert got[owner].isnan().all()
    others = torch.arange(40) != owner
    assert torch.equal(got[others], clean[others])


def test_threads_and_uninitialized_memory():
    routing = routing_of(3000, 2, capacity=1000)
    x = torch.randn(3000, 100)
    want = hk.combine(hk.dispatch(x, routing), routing, x)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(hk.combine(hk.dispatch(x, routing), routing, x), want)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def test_opcheck():
    routing = routing_of(40, 2, capacity=20)
    x = torch.randn(40, 130, requires_grad=True)
    torch.library.opcheck(ops.dispatch.default, (x, routing.token_ids, routing.expert_offsets, routing.rows))
    quantized = (x.detach(), routing.token_ids, routing.expert_offsets)
    torch.library.opcheck(ops.dispatch_.default, (torch.empty(routing.token_ids.shape[0], 130), *quantized))
    torch.library.opcheck(ops.dispatch_fp8.default, quantized)
    torch.library.opcheck(ops.dispatch_fp8_static.default, (*quantized, torch.tensor(0.1)))
    y = torch.randn(routing.token_ids.shape[0], 130, requires_grad=True)
    weights = routing.weights.detach().requires_grad_()
    torch.library.opcheck(ops.combine.default, (y, routing.rows, weights, routing.token_ids, x, None))
    torch.library.opcheck(
        ops.combine_backward.default,
        (torch.randn(40, 130), y.detach(), routing.rows, weights.detach(), routing.token_ids),
    )


ROUTING = routing_of(6, 1)
X = torch.randn(6, 8)


def changed(**fields):
    return ROUTING._replace(**{name: torch.tensor(values, dtype=torch.int32) for name, values in fields.items()})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hk.dispatch(X.double(), ROUTING),
            "dispatch: x has dtype float64; allowed: float32, bfloat16, float8_e4m3fn",
        ),
        (lambda: hk.dispatch(X.to(torch.float8_e4m3fnuz), ROUTING), "x has dtype float8_e4m3fnuz; allowed"),
        (lambda: hk.dispatch(X[0], ROUTING), r"x has shape \[8\]; 2 dimensions"),
        (lambda: hk.dispatch_fp8(X.half(), ROUTING), "dispatch_fp8: x has dtype float16; allowed: float32, bfloat16"),
        (
            lambda: hk.dispatch_fp8(X, ROUTING, torch.ones(2)),
            r"dispatch_fp8: scale has shape \[2\]; one element is required",
        ),
        (
            lambda: hk.dispatch_fp8(X, ROUTING, torch.ones(1).double()),
            "dispatch_fp8: scale has dtype float64; allowed: float32",
        ),
        (lambda: hk.dispatch(X, changed(token_ids=[0, 1, 2, 3, 4, 6])), "token_ids holds 6 at index 5; allowed: 0 to"),
        (lambda: hk.dispatch(X, changed(token_ids=[0, -1, 2, 3, 4, 5])), "token_ids holds -1 at index 1"),
        (lambda: hk.dispatch(X, changed(expert_offsets=[0, 4, 3])), "expert_offsets decreases from 4 at index 1 to 3"),
        (lambda: hk.dispatch(X, changed(expert_offsets=[1, 4])), "expert_offsets starts with 1"),
        (lambda: hk.dispatch(X, changed(expert_offsets=[0, 7])), "expert_offsets ends with 7 .* but S = 6"),
        (lambda: hk.dispatch(X, changed(expert_offsets=[-2, 3])), "expert_offsets starts with -2"),
        (
            lambda: hk.combine(X, changed(rows=[[0], [1], [2], [3], [4], [6]])),
            "combine: rows holds 6 at token 5, choice 0",
        ),
        (lambda: hk.combine(X, changed(rows=[[0], [-2], [2], [3], [4], [5]])), "rows holds -2 at token 1"),
        (lambda: hk.combine(X.half(), ROUTING), "y has dtype float16; allowed"),
        (lambda: hk.combine(X, ROUTING, X[:5]), r"shared has shape \[5, 8\]; required: \[T, H\] = \[6, 8\]"),
        (lambda: hk.combine(X, ROUTING, None, X.bfloat16()), "residual has dtype bfloat16; allowed: float32"),
        (lambda: hk.combine(X, ROUTING._replace(weights=ROUTING.weights.double())), "weights has dtype float64"),
        (
            lambda: ops.combine_backward(
                X, X, torch.zeros(6, 1, dtype=torch.int32), ROUTING.weights, ROUTING.token_ids
            ),
            "rows holds row 0 twice, at assignments 0 and 1",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
