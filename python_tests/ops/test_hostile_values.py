"""Routing, dispatch and combine on the simulated GPU with values and sizes that nobody should pass: on a device they
never raise and never reach out of bounds, and what is right of them comes out as on the CPU."""

import itertools

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import dispatch as reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from python_tests.backends import needs_device_code

pytestmark = needs_device_code

INT32 = -(2**31), 2**31 - 1
INT64 = -(2**63), 2**63 - 1
WHOLE_NUMBERS = ("expert_ids", "rows", "token_ids", "expert_offsets", "demand", "num_recycled", "num_dropped")
TOKENS, EXPERTS = (0, 1, 31, 32, 33, 4096, 4097), (1, 2, 63, 64, 65, 256)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def on_both(function, **arguments):
    """The result on the simulated GPU, and on the CPU."""
    with hk.simulated_gpu(schedule="hold_warps") as gpu:
        got = function(**arguments)
    assert gpu.reports, "nothing was launched"
    return got, function(**arguments)


def assert_same_routing(got, want):
    for name in WHOLE_NUMBERS:
        comparison = compare_exact(name, getattr(got, name), getattr(want, name))
        assert comparison, comparison.message
    torch.testing.assert_close(got.weights, want.weights, rtol=1e-5, atol=1e-30, equal_nan=True)


def odd_logits(tokens, experts, dtype, seed=0):
    """Some rows with NaN, infinities, zeros of both signs, subnormal and huge numbers among them."""
    logits = torch.randn(tokens, experts, generator=generator(seed))
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-42, 3e38, -3e38])
    place = torch.rand(tokens, experts, generator=generator(seed + 1)) < 0.2
    place[::2] = False
    drawn = strange[torch.randint(len(strange), (tokens, experts), generator=generator(seed + 2))]
    logits = torch.where(place, drawn, logits)
    if tokens > 8:
        logits[3], logits[5], logits[7] = float("nan"), -float("inf"), float("inf")
    return logits.to(dtype)


def sizes():
    """Every T with every E; choices and capacity take turns."""
    options = itertools.cycle(
        [
            (1, 0, "recycle"),
            (1, 1, "recycle"),
            (2, 1, "drop"),
            (1, "fair", "recycle"),
            (3, "fair", "drop"),
            (1, None, "recycle"),
            (8, None, "drop"),
            (1, "huge", "recycle"),
            (2, "huge", "drop"),
            (1, "half", "recycle"),
            ("all", None, "drop"),
        ]
    )
    for (tokens, experts), (top_k, capacity, overflow) in zip(
        itertools.product(TOKENS, EXPERTS), options, strict=False
    ):
        choices = min(experts, 32) if top_k == "all" else min(top_k, experts)
        named = {"fair": -(-tokens // experts), "half": -(-tokens // (2 * experts)), "huge": (2**31 - 1) // experts}
        yield tokens, experts, choices, named.get(capacity, capacity), overflow


@pytest.mark.parametrize(("tokens", "experts", "top_k", "capacity", "overflow"), list(sizes()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_route_at_the_edges_of_its_sizes(tokens, experts, top_k, capacity, overflow, dtype):
    logits = odd_logits(tokens, experts, dtype)
    assert_same_routing(
        *on_both(hk.route, logits=logits, top_k=top_k, capacity=capacity, overflow=overflow, seed=INT64[0] + tokens)
    )


@pytest.mark.parametrize("experts", [1, 2, 63, 65, 128])
def test_as_many_choices_as_experts(experts):
    logits = odd_logits(37, experts, torch.float32)
    for capacity in (None, 5):
        assert_same_routing(
            *on_both(hk.route, logits=logits, top_k=experts, capacity=capacity, overflow="drop", seed=0)
        )


def test_more_counts_than_shared_memory_is_refused():
    message = r"route: top_k is 256 with 256 experts: counting takes \d+ bytes of shared memory, a block has \d+"
    with hk.simulated_gpu(), pytest.raises(RuntimeError, match=message):
        hk.route(torch.randn(3, 256), 256)
    with hk.simulated_gpu(), pytest.raises(RuntimeError, match="route: experts are 513; allowed on a GPU: at most 512"):
        hk.route(torch.randn(3, 513), 1)


@pytest.mark.parametrize("seed", [*INT64, -1, 0, 2**32, 2**63])
@pytest.mark.parametrize("tokens", [600, 4100])
def test_any_seed(seed, tokens):
    logits = torch.randn(tokens, 40, generator=generator(0)) - torch.arange(40) / 8
    got, want = on_both(hk.route, logits=logits, top_k=1, capacity=tokens // 40, seed=seed)
    assert_same_routing(got, want)
    assert got.num_recycled > 0


@pytest.mark.parametrize("count", [*INT32, -1, 0, 1, 511, 512, 513, 699, 700, 701])
def test_any_number_of_tokens(count):
    num_tokens = torch.tensor([count], dtype=torch.int32)
    logits = odd_logits(700, 16, torch.float32)
    routing = on_both(hk.route, logits=logits, top_k=1, capacity=30, seed=1, num_tokens=num_tokens)
    assert_same_routing(*routing)
    ids, weights = torch.randint(-2, 20, (700, 3), generator=generator(0)), torch.rand(700, 3, generator=generator(1))
    arguments = {"expert_ids": ids, "weights": weights, "num_experts": 16, "capacity": 30, "num_tokens": num_tokens}
    assert_same_routing(*on_both(hk.routing_from_ids, **arguments))
    arguments = {
        "grad_weights": torch.randn(700, 1, generator=generator(2)),
        "logits": torch.randn(700, 16, generator=generator(3)),
        "expert_ids": routing[0].expert_ids.clamp(min=0),
        "weights": routing[0].weights.nan_to_num(0.5),
        "renormalize": False,
        "num_tokens": num_tokens,
    }
    got, want = on_both(ops.route_backward, **arguments)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert (got[max(count, 0) :] == 0).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("tokens", [40, 4100])
def test_ids_of_no_expert(dtype, tokens):
    strange = [-1, 5, 6, *INT32]
    if dtype == torch.int64:  # the lower halves of some are experts
        strange += [*INT64, 2**32, 2**32 + 1, -(2**32) + 2, 2**63 - 2**32]
    drawn = torch.tensor(strange, dtype=dtype)[torch.randint(len(strange), (tokens, 4), generator=generator(0))]
    known = torch.randint(0, 5, (tokens, 4), generator=generator(1)).to(dtype)  # the same expert twice for a token, too
    ids = torch.where(torch.rand(tokens, 4, generator=generator(2)) < 0.5, drawn, known)
    weights = torch.rand(tokens, 4, generator=generator(3))
    weights[1], weights[2] = float("nan"), float("inf")
    for capacity in (None, 0, 7, 2**31 // 5 - 1):
        arguments = {"expert_ids": ids, "weights": weights, "num_experts": 5, "capacity": capacity}
        assert_same_routing(*on_both(hk.routing_from_ids, **arguments))


@pytest.mark.parametrize("renormalize", [False, True])
def test_gradient_with_ids_of_no_expert(renormalize):
    """They receive no gradient; other tokens do not notice."""
    logits = torch.randn(70, 33, generator=generator(0))
    routing = hk.route(logits, 2, renormalize=renormalize)
    ids = routing.expert_ids.clone()
    ids[::3, 1] = torch.tensor([*INT32, -1, 33, 64, 128]).to(torch.int32).repeat(4)
    grad = torch.randn(70, 2, generator=generator(1))
    with hk.simulated_gpu():
        clean = ops.route_backward(grad, logits, routing.expert_ids, routing.weights, renormalize, None)
        got = ops.route_backward(grad, logits, ids, routing.weights, renormalize, None)
    others = torch.arange(70) % 3 != 0
    assert torch.equal(got[others], clean[others])
    lost = routing.expert_ids[~others, 1].long()[:, None]
    changed = got[~others] != clean[~others]
    assert (changed.gather(1, lost)).all()
    assert changed.sum() == lost.numel()


# ---- rows -----------------------------------------------------------------------------------------------------------

HIDDEN = (1, 7, 8, 9, 129)
DTYPES = (torch.float32, torch.bfloat16)


def hostile(shape, count, seed):
    """Every kind of wrong number first; then numbers of which about half index 0 .. count - 1, one of them often."""
    strange = torch.tensor([*INT32, -1, -2, count, count + 1, 2 * count, 0, 0])
    drawn = strange[torch.randint(len(strange), shape, generator=generator(seed))]
    inside = torch.randint(0, max(count, 1), shape, generator=generator(seed + 1))
    numbers = torch.where(torch.rand(shape, generator=generator(seed + 2)) < 0.5, drawn, inside).to(torch.int32)
    numbers.view(-1)[: len(strange)] = strange
    return numbers


def within(numbers, count):
    return (numbers >= 0) & (numbers < count)


@pytest.mark.parametrize("used", [*INT32, -1, 0, 1, 44, 45, 46])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_dispatch_of_hostile_tokens(hidden, used):
    token_ids, offsets = hostile((45,), 20, 0), torch.tensor([7, -5, used], dtype=torch.int32)
    there = (torch.arange(45) < used) & within(token_ids, 20)
    for dtype in (*DTYPES, torch.float8_e4m3fn):
        x = torch.randn(20, hidden, generator=generator(3)).to(dtype)
        raw = x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])
        want = torch.where(there[:, None], raw[token_ids.clamp(0, 19).long()], 0).view(dtype)
        with hk.simulated_gpu():
            got = ops.dispatch(x, token_ids, offsets, torch.empty(20, 1, dtype=torch.int32))
        assert compare_exact("rows", got, want)
        if dtype in DTYPES:
            with hk.simulated_gpu():
                quantized = ops.dispatch_fp8(x, token_ids, offsets)
            for g, w in zip(quantized, hk.quantize_fp8(want, "block_1x128"), strict=True):
                assert compare_exact("quantized", g, w)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_combine_of_hostile_rows(hidden, dtype):
    """Rows out of range contribute nothing, also where weights are not numbers."""
    rows, weights = hostile((33, 3), 20, 5), torch.randn(33, 3, generator=generator(6))
    known = torch.where(within(rows, 20), rows, -1)
    weights[(known < 0) & (torch.arange(33) % 2 == 0)[:, None]] = float("nan")
    y, shared = (torch.randn(count, hidden, generator=generator(count)).to(dtype) for count in (20, 33))
    routing = hk.routing_from_ids(torch.zeros(33, 3, dtype=torch.int32), weights, 1)
    routing = routing._replace(rows=known, weights=weights)
    with hk.simulated_gpu():
        got = ops.combine(y, rows, weights, torch.zeros(20, dtype=torch.int32), shared, None)
    magnitudes = reference.combine(y.abs(), routing._replace(weights=weights.abs()), shared.abs())
    comparison = compare_bounded("out", got, reference.combine(y, routing, shared), magnitudes)
    assert comparison, comparison.message


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("hidden", [*HIDDEN, 1161])
def test_gradients_of_hostile_rows(hidden, dtype):
    """A row whose token does not know it, or is none, gets zeros; so does the weight of an assignment without a row."""
    tokens, count = 33, 70
    rows, token_ids = hostile((tokens, 3), count, 8), hostile((count,), tokens, 11)
    for r in range(0, count, 3):  # rows that belong together, in both directions
        token_ids[r], rows[r % tokens, r % 2] = r % tokens, r
    weights = torch.randn(tokens, 3, generator=generator(14))
    grad_out, y = (torch.randn(n, hidden, generator=generator(n)).to(dtype) for n in (tokens, count))
    grad_y, grad_weights = torch.zeros(count, hidden, dtype=torch.float64), torch.zeros(tokens, 3, dtype=torch.float64)
    sizes_y, sizes_weights = grad_y.clone(), grad_weights.clone()
    for r, t in enumerate(token_ids.tolist()):
        choices = [j for j in range(3) if 0 <= t < tokens and rows[t, j] == r]
        if not choices:
            continue
        grad_y[r] = weights[t, choices[0]].double() * grad_out[t].double()
        products = grad_out[t].double() * y[r].double()
        grad_weights[t, choices[0]], sizes_weights[t, choices[0]] = products.sum(), products.abs().sum()
        sizes_y[r] = grad_y[r].abs()
    assert (grad_y != 0).any(1).sum() >= 15
    with hk.simulated_gpu(schedule="hold_warps"):
        got = ops.combine_backward(grad_out, y, rows, weights, token_ids)
    for name, g, want, magnitude in zip(
        ("y", "weights"), got, (grad_y, grad_weights), (sizes_y, sizes_weights), strict=True
    ):
        comparison = compare_bounded(name, g, want, magnitude)
        assert comparison, comparison.message


@pytest.mark.parametrize(("tokens", "top_k"), [(0, 1), (1, 1), (31, 2), (33, 5), (4097, 1)])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_rows_there_and_back(tokens, top_k, hidden):
    """The same bits as on the CPU, rows of every length."""
    logits = torch.randn(tokens, 8, generator=generator(0))
    routing = hk.route(logits, top_k, capacity=-(-tokens // 8), overflow="drop")
    x = torch.randn(tokens, hidden, generator=generator(1)).bfloat16()
    with hk.simulated_gpu():
        rows = hk.dispatch(x, routing)
        out = hk.combine(rows, routing, residual=x)
    assert compare_exact("rows", rows, hk.dispatch(x, routing))
    magnitudes = reference.combine(rows.abs(), routing, residual=x.abs())
    comparison = compare_bounded("out", out, reference.combine(rows, routing, residual=x), magnitudes)
    assert comparison, comparison.message
