"""route, routing_from_ids and load_balancing_loss against their specification and the published gating."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hunyuan_kernels as hk
from hunyuan_kernels import reference
from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.specs.routing import SKEWS, SPECS, compare_routing, make_logits
from python_tests.ops.top1gating_transcription import top1gating

ROUTE, FROM_IDS, LOSS = (spec for spec in SPECS if not spec.name.endswith("_backward"))
ALL_CASES = [(spec, case) for spec in SPECS for case in spec.cases()]


def check(spec, arguments):
    got, want = spec.function(**arguments), spec.reference(**arguments)
    for comparison in spec.compare(arguments, got, want):
        assert comparison, comparison.message
    return got


@given(
    tokens=st.sampled_from([0, 1, 2, 15, 16, 17, 63, 300]),
    experts=st.integers(1, 40),
    top_k=st.integers(1, 40),
    capacity=st.one_of(st.none(), st.integers(0, 60)),
    overflow=st.sampled_from(["recycle", "drop"]),
    skew=st.sampled_from(SKEWS),
    padding=st.sampled_from([None, -3, 0, 1, 10, 400]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=200)
def test_route_anything(tokens, experts, top_k, capacity, overflow, skew, padding, dtype, seed):
    top_k = min(top_k, experts)
    if top_k > 1 and capacity is not None:
        overflow = "drop"
    num_tokens = None if padding is None else torch.tensor([padding], dtype=torch.int32)
    arguments = {
        "logits": make_logits(tokens, experts, skew, dtype, seed % 1000),
        "top_k": top_k,
        "capacity": capacity,
        "overflow": overflow,
        "seed": seed,
        "num_tokens": num_tokens,
    }
    routing = check(ROUTE, arguments)
    check_invariants(routing, arguments["logits"], capacity, overflow)


def check_invariants(routing, logits, capacity, overflow):
    experts = logits.shape[1]
    sizes = routing.expert_offsets.diff()
    used = int(routing.expert_offsets[-1])
    if capacity is not None:
        assert (sizes <= capacity).all()
        if overflow == "recycle" and routing.num_dropped > 0:
            assert used == experts * capacity, "a token was dropped while a slot was free"
    owned = routing.rows[routing.rows >= 0]
    assert sorted(owned.tolist()) == list(range(used))
    for t, j in torch.nonzero(routing.rows >= 0).tolist():
        row = int(routing.rows[t, j])
        assert int(routing.token_ids[row]) == t
        e = int(routing.expert_ids[t, j])
        assert int(routing.expert_offsets[e]) <= row < int(routing.expert_offsets[e + 1])
    assert (routing.token_ids[used:] == -1).all()


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("capacity", [1, 12, 19, 25, 200])
def test_published_gating(skew, capacity):
    """Same kept tokens, same free slots, same loss and weights; only who gets which free slot is another draw."""
    logits = make_logits(200, 16, skew, torch.float32, 3)
    for seed in range(4):
        published = top1gating(logits, capacity, True, torch.Generator().manual_seed(seed))
        ours = hk.route(logits, 1, capacity=capacity, seed=seed)
        kept = published["kept"]
        assert torch.equal(ours.demand.long(), published["exp_counts"])
        assert torch.equal(ours.expert_ids[kept, 0].long(), published["expert"][kept])
        assert int((~kept).sum()) == int(ours.num_recycled + ours.num_dropped)
        # the slots that recycled tokens took, out of those that were free
        moved = (~kept) & (ours.rows[:, 0] >= 0)
        moved_published = (~kept) & (published["expert"] >= 0)
        assert int(moved.sum()) == int(moved_published.sum()) == int(ours.num_recycled)
        free = torch.bincount(published["pool"], minlength=16)
        taken = torch.bincount(ours.expert_ids[moved, 0], minlength=16)
        assert (taken <= free).all()
        if int((~kept).sum()) >= int(free.sum()):
            assert torch.equal(taken, free)
        p = logits.softmax(1)
        placed = ours.rows[:, 0] >= 0
        torch.testing.assert_close(ours.weights[placed, 0], p.gather(1, ours.expert_ids.long())[placed, 0])
        loss = hk.load_balancing_loss(logits, ours)
        torch.testing.assert_close(loss, published["l_aux"], rtol=1e-5, atol=0)


def test_dropping_is_the_published_gating_without_random_routing():
    logits = make_logits(200, 16, "zipf", torch.float32, 5)
    published = top1gating(logits, 12, False, torch.Generator())
    ours = hk.route(logits, 1, capacity=12, overflow="drop")
    placed = ours.rows[:, 0] >= 0
    assert torch.equal(placed, published["kept"])
    slots = ours.rows[:, 0] - ours.expert_offsets[ours.expert_ids[:, 0].long()]
    assert torch.equal(slots[placed].long(), published["slot"][placed])


def test_special_logits_stay_in_their_row():
    nan, inf = float("nan"), float("inf")
    clean = torch.tensor([[0.5, 1.0, -2.0, 0.0]])
    special = torch.tensor(
        [
            [nan] * 4,
            [nan, 1.0, 2.0, nan],
            [-inf, -inf, 0.0, -inf],
            [-inf] * 4,
            [inf, 0.0, inf, 1.0],
            [-0.0, 0.0, -1.0, nan],
        ]
    )
    logits = torch.cat([clean, special, clean])
    for top_k in (1, 3):
        routing = hk.route(logits, top_k)
        alone = hk.route(clean, top_k)
        for row in (0, -1):
            assert torch.equal(routing.expert_ids[row], alone.expert_ids[0])
            assert torch.equal(routing.weights[row], alone.weights[0])
        want = reference.routing.route(logits, top_k)
        for comparison in compare_routing(routing, want):
            assert comparison, comparison.message
    routing = hk.route(logits, 4)
    assert routing.expert_ids[1].tolist() == [0, 1, 2, 3]
    assert routing.weights[1].isnan().all()
    assert routing.expert_ids[2].tolist() == [2, 1, 0, 3]
    assert routing.expert_ids[5].tolist() == [0, 2, 3, 1]
    assert hk.route(logits, 1).weights[3, 0] == 1.0


def test_weights_over_a_wide_range():
    logits = torch.linspace(-120, 120, 64).repeat(3, 1) + torch.tensor([[0.0], [1e4], [-1e4]])
    for comparison in ROUTE.compare({"logits": logits}, hk.route(logits, 64), reference.routing.route(logits, 64)):
        assert comparison, comparison.message


@pytest.mark.parametrize("seed", [5, -5, 2**63, 2**64 - 1, torch.tensor([5]), torch.tensor(5)])
def test_kinds_of_seed(seed):
    logits = make_logits(300, 16, "zipf", torch.float32, 0)
    number = int(seed)
    assert_same(
        hk.route(logits, 1, capacity=19, seed=seed),
        hk.route(logits, 1, capacity=19, seed=torch.tensor([(number + 2**63) % 2**64 - 2**63])),
    )


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_default_seed_comes_from_torch():
    logits = make_logits(300, 16, "zipf", torch.float32, 0)
    torch.manual_seed(11)
    first, second = (hk.route(logits, 1, capacity=19) for _ in range(2))
    torch.manual_seed(11)
    assert_same(first, hk.route(logits, 1, capacity=19))
    assert not torch.equal(first.expert_ids, second.expert_ids)
    state = torch.get_rng_state()
    hk.route(logits, 1)
    hk.route(logits, 1, capacity=19, overflow="drop")
    assert torch.equal(state, torch.get_rng_state()), "nothing can be recycled, so nothing may be drawn"


@pytest.mark.parametrize("overflow", ["recycle", "drop"])
def test_threads_and_uninitialized_memory(overflow):
    logits = make_logits(9000, 16, "zipf", torch.float32, 0)
    want = hk.route(logits, 1, capacity=500, overflow=overflow, seed=1)
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same(want, hk.route(logits, 1, capacity=500, overflow=overflow, seed=1))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: hk.route(logits, 1, capacity=500, overflow=overflow, seed=1), range(8)):
            assert_same(want, got)


@pytest.mark.parametrize("isa", supported_instruction_sets())
def test_every_instruction_set_routes_alike(isa):
    logits = make_logits(5000, 16, "zipf", torch.bfloat16, 0)
    want = hk.route(logits, 1, capacity=313, seed=9)
    with instruction_set(isa):
        got = hk.route(logits, 1, capacity=313, seed=9)
    for name in hk.Routing._fields:
        if name != "weights":
            assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("stride", ["rows", "columns", "expanded"])
def test_strided_logits(stride):
    base = torch.randn(600, 40)
    logits = {"rows": base[::3, 5:21], "columns": base.t()[:16, :300].t(), "expanded": base[:1, :16].expand(50, 16)}[
        stride
    ]
    assert_same(hk.route(logits, 1, capacity=9, seed=0), hk.route(logits.contiguous(), 1, capacity=9, seed=0))


GRADIENT_CASES = [
    {"top_k": 1},
    {"top_k": 1, "renormalize": True},
    {"top_k": 1, "capacity": 4, "seed": 3},
    {"top_k": 1, "capacity": 2, "seed": 3},
    {"top_k": 1, "capacity": 4, "overflow": "drop"},
    {"top_k": 3},
    {"top_k": 3, "renormalize": False},
    {"top_k": 3, "num_tokens": torch.tensor([20], dtype=torch.int32)},
]


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize("options", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient(options, dtype, isa):
    logits = make_logits(30, 8, "zipf", dtype, 1).requires_grad_()
    grad = torch.randn(30, options["top_k"])
    with instruction_set(isa):
        routing = hk.route(logits, **options)
        (got,) = torch.autograd.grad(routing.weights, logits, grad)
    exact = logits.detach().double().requires_grad_()
    want_routing = reference.routing.route(exact, **options)
    (want,) = torch.autograd.grad(want_routing.weights, exact, grad.double())
    tolerance = {"rtol": 2.0**-7, "atol": 1e-5} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(got.double(), want, **tolerance)


def test_gradient_of_the_reference():
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    # float32 inside the reference would spoil finite differences: compare the formula on doubles
    ids = logits.argsort(1, descending=True)[:, :2]

    def weights(values):
        chosen = values.softmax(1).gather(1, ids)
        return chosen / chosen.sum(1, keepdim=True)

    assert torch.autograd.gradcheck(weights, logits)
    routing = reference.routing.route(logits.detach(), 2)
    torch.testing.assert_close(routing.weights, weights(logits).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tokens", [None, 0, 13, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_loss(tokens, dtype):
    num_tokens = None if tokens is None else torch.tensor([tokens], dtype=torch.int32)
    logits = make_logits(30, 8, "zipf", dtype, 1).requires_grad_()
    routing = hk.route(logits.detach(), 2, num_tokens=num_tokens)
    loss = hk.load_balancing_loss(logits, routing, num_tokens=num_tokens)
    (got,) = torch.autograd.grad(3.0 * loss, logits)
    exact = logits.detach().double().requires_grad_()
    want_loss = reference.routing.load_balancing_loss(exact, routing, num_tokens=num_tokens)
    (want,) = torch.autograd.grad(3.0 * want_loss, exact)
    torch.testing.assert_close(loss.double(), want_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.double(), want, rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-7)


def test_gradient_of_given_weights():
    ids = torch.tensor([[0, 1], [1, 7], [2, 0]])
    weights = torch.rand(3, 2, requires_grad=True)
    grad = torch.randn(3, 2)
    for num_tokens, want in (
        (None, grad),
        (torch.tensor([2], dtype=torch.int32), grad * torch.tensor([[1], [1], [0]])),
    ):
        routing = hk.routing_from_ids(ids, weights, 4, num_tokens=num_tokens)
        (got,) = torch.autograd.grad(routing.weights, weights, grad)
        assert torch.equal(got, want)


def test_hostile_ids_are_sentinels():
    ids = torch.tensor([[0, -1], [2**40, 3], [-(2**63), 2**63 - 1], [2**32, 1]])
    routing = hk.routing_from_ids(ids, torch.ones(4, 2), 4)
    assert routing.expert_ids.tolist() == [[0, -1], [-1, 3], [-1, -1], [-1, 1]]
    assert routing.rows.tolist() == [[0, -1], [-1, 2], [-1, -1], [-1, 1]]
    assert routing.demand.tolist() == [1, 1, 0, 1]
    assert routing.num_dropped == 0


@pytest.mark.parametrize("capacity", [None, 0, 4])
def test_opcheck(capacity):
    logits = torch.randn(33, 8, requires_grad=True)
    seed = torch.tensor([3])
    for tokens in (None, torch.tensor([20], dtype=torch.int32)):
        torch.library.opcheck(ops.route.default, (logits, 1, capacity, True, False, seed, tokens))
        torch.library.opcheck(ops.route.default, (logits, 3, capacity, False, True, seed, tokens))
        routing = hk.route(logits, 3, num_tokens=tokens)
        weights = routing.weights.detach().requires_grad_()
        ids = torch.randint(0, 9, (33, 3))
        torch.library.opcheck(ops.routing_from_ids.default, (ids, weights, 8, capacity, tokens))
        torch.library.opcheck(ops.load_balancing_loss.default, (logits, routing.demand, tokens))
        detached = (logits.detach(), routing.expert_ids, routing.weights.detach())
        torch.library.opcheck(ops.route_backward.default, (torch.randn(33, 3), *detached, True, tokens))
        grad = torch.tensor(1.0)
        torch.library.opcheck(ops.load_balancing_loss_backward.default, (grad, logits.detach(), routing.demand, tokens))


def test_compiles():
    logits = torch.randn(100, 16)

    def step(logits):
        routing = hk.route(logits, 1, capacity=7, seed=3)
        return routing.expert_ids, routing.rows, routing.weights, hk.load_balancing_loss(logits, routing)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (100, 37):
        for got, want in zip(compiled(logits[:tokens]), step(logits[:tokens]), strict=True):
            assert torch.equal(got, want)


F32 = torch.zeros(4, 8)
INT = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: hk.route(torch.zeros(4), 1), RuntimeError, r"route: logits has shape \[4\]; 2 dimensions"),
        (lambda: hk.route(torch.zeros(4, 0), 1), RuntimeError, r"logits has shape \[4, 0\]; at least one expert"),
        (lambda: hk.route(F32.half(), 1), RuntimeError, "logits has dtype float16; allowed: float32, bfloat16"),
        (lambda: hk.route(F32.double(), 1), RuntimeError, "logits has dtype float64; allowed"),
        (lambda: hk.route(F32.long(), 1), RuntimeError, "logits has dtype int64; allowed"),
        (lambda: hk.route(F32, 0), RuntimeError, "top_k is 0; allowed: 1 to the number of experts, 8"),
        (lambda: hk.route(F32, 9), RuntimeError, "top_k is 9; allowed: 1 to the number of experts, 8"),
        (lambda: hk.route(F32, -1), RuntimeError, "top_k is -1; allowed"),
        (lambda: hk.route(F32, 1, capacity=-1), RuntimeError, "capacity is -1; allowed: 0 or more"),
        (
            lambda: hk.route(F32, 1, capacity=2**62),
            RuntimeError,
            r"capacity is \d+ for 8 experts; allowed: E \* C < 2\^31",
        ),
        (lambda: hk.route(F32, 2, capacity=2), RuntimeError, "overflow is 'recycle' with top_k = 2 .*overflow='drop'"),
        (lambda: hk.route(F32, 1, overflow="keep"), ValueError, "overflow is 'keep'; allowed: 'recycle', 'drop'"),
        (lambda: hk.route(F32, 1, seed=torch.zeros(2).long()), RuntimeError, r"seed has shape \[2\]; one element"),
        (lambda: hk.route(F32, 1, seed=torch.zeros(1)), RuntimeError, "seed has dtype float32; allowed: int64"),
        (lambda: hk.route(F32, 1, num_tokens=torch.zeros(1).long()), RuntimeError, "num_tokens has dtype int64"),
        (lambda: hk.route(F32, 1, num_tokens=INT.repeat(2)), RuntimeError, r"num_tokens has shape \[2\]"),
        (
            lambda: hk.routing_from_ids(torch.zeros(4, 2), torch.zeros(4, 2), 3),
            RuntimeError,
            "expert_ids has dtype float32; allowed: int32, int64",
        ),
        (
            lambda: hk.routing_from_ids(torch.zeros(4).long(), torch.zeros(4), 3),
            RuntimeError,
            r"expert_ids has shape \[4\]",
        ),
        (
            lambda: hk.routing_from_ids(torch.zeros(4, 2).long(), torch.zeros(4, 3), 3),
            RuntimeError,
            r"weights has shape \[4, 3\]; required: \[T, k\] = \[4, 2\]",
        ),
        (
            lambda: hk.routing_from_ids(torch.zeros(4, 2).long(), torch.zeros(4, 2), 0),
            RuntimeError,
            "num_experts is 0; allowed: 1 to",
        ),
        (
            lambda: hk.routing_from_ids(torch.zeros(4, 2).long(), torch.zeros(4, 2), 3, capacity=-2),
            RuntimeError,
            "routing_from_ids: capacity is -2",
        ),
        (
            lambda: hk.routing_from_ids(torch.zeros(4, 2).long(), torch.zeros(4, 2), 3, overflow="recycle"),
            ValueError,
            "overflow is 'recycle'; allowed: 'drop' .*use route",
        ),
        (
            lambda: hk.load_balancing_loss(F32, hk.route(torch.zeros(4, 7), 1)),
            RuntimeError,
            r"load_balancing_loss: demand has shape \[7\]; required: \[E\] = \[8\]",
        ),
        (
            lambda: ops.route_backward(F32, F32, INT.expand(4, 8) + 8, F32, False, None),
            RuntimeError,
            "expert_ids holds 8",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_recycling_refuses_renormalized_weights():
    """Kept tokens would weigh 1 and recycled ones p, which no gradient of the weights describes."""
    logits = torch.randn(8, 4)
    with pytest.raises(RuntimeError, match=r"route: renormalize is True with overflow='recycle' and a capacity"):
        hk.route(logits, 1, capacity=2, renormalize=True, seed=0)
    for allowed in ({"overflow": "drop"}, {"capacity": None}):
        weights = hk.route(logits, 1, **{"capacity": 2, "renormalize": True} | allowed).weights
        torch.testing.assert_close(weights, torch.ones(8, 1))


@pytest.mark.parametrize("seed", [1.5, "7", 2.0])
@pytest.mark.parametrize("capacity", [2, None])
def test_seed_is_an_integer(seed, capacity):
    with pytest.raises(TypeError, match="route: seed is"):
        hk.route(torch.randn(8, 4), 1, capacity=capacity, seed=seed)


@pytest.mark.parametrize("isa", supported_instruction_sets())
@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_of_a_row_with_nan(isa, renormalize):
    """As torch's softmax: the row with the NaN has no gradient but NaN, the others keep theirs."""
    logits = torch.randn(5, 7)
    logits[2, 3] = float("nan")
    logits.requires_grad_()
    with instruction_set(isa):
        weights = hk.route(logits, 2, renormalize=renormalize).weights
        (grad,) = torch.autograd.grad(weights, logits, torch.randn(5, 2))
    assert grad[2].isnan().all()
    assert grad[[0, 1, 3, 4]].isfinite().all()
