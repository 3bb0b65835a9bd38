"""Cases, bounds and baselines of the stem ``routing``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels.ops.routing import Routing, load_balancing_loss, route, routing_from_ids
from hunyuan_kernels.reference import routing as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded, compare_exact
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work

#: How tokens spread over experts: the name, and what is added to normal logits.
SKEWS = ("even", "zipf", "one expert", "ties")


def make_logits(tokens: int, experts: int, skew: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Router logits [tokens, experts] whose first choices spread as ``skew`` says."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    if skew == "zipf":  # expert e has a share of about 1 / (e + 1)
        logits = logits - torch.arange(1, experts + 1).log()
    elif skew == "one expert":
        logits[:, experts // 2] += 20.0
    elif skew == "ties":
        logits = logits.round().clamp(-1, 0)
    return logits.to(dtype)


def _route_arguments(
    tokens: int,
    experts: int,
    top_k: int,
    capacity: int | None,
    overflow: str,
    skew: str,
    dtype: torch.dtype,
    padding: int,
    seed: int,
) -> Arguments:
    arguments: Arguments = {
        "logits": make_logits(tokens, experts, skew, dtype, seed),
        "top_k": top_k,
        "capacity": capacity,
        "overflow": overflow,
        "seed": seed,
    }
    if padding:
        arguments["num_tokens"] = torch.tensor([tokens - padding], dtype=torch.int32)
    return arguments


def _route_case(
    tokens: int,
    experts: int,
    top_k: int = 1,
    capacity: int | None = None,
    overflow: str = "recycle",
    skew: str = "even",
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
) -> Case:
    label = f"T={tokens} E={experts} k={top_k} C={capacity} {overflow} {skew}" + (f" pad={padding}" if padding else "")
    if dtype != torch.float32:
        label += f" {str(dtype).removeprefix('torch.')}"
    make = partial(_route_arguments, tokens, experts, top_k, capacity, overflow, skew, dtype, padding)
    return Case(label, make)


def _route_cases() -> list[Case]:
    cases = [_route_case(300, 16, capacity=19, skew=skew) for skew in SKEWS]
    cases += [_route_case(300, 16, capacity=19, overflow="drop", skew=skew) for skew in SKEWS]
    cases += [_route_case(2500, 5, capacity=500, skew=skew) for skew in SKEWS]
    cases += [
        _route_case(0, 16, capacity=4),
        _route_case(1, 1, capacity=1),
        _route_case(7, 1, capacity=3, skew="ties"),
        _route_case(40, 16, capacity=0),
        _route_case(40, 16, capacity=1, skew="one expert"),
        _route_case(40, 16, capacity=40, skew="one expert"),
        _route_case(100, 16, capacity=5, skew="zipf", padding=30),
        _route_case(100, 64, top_k=8, padding=9),
        _route_case(130, 64, top_k=8, capacity=16, overflow="drop", skew="zipf"),
        _route_case(50, 7, top_k=7, skew="ties"),
        _route_case(200, 45, top_k=3, dtype=torch.bfloat16, skew="ties"),
        _route_case(64, 16, capacity=4, dtype=torch.bfloat16, skew="zipf"),
    ]
    # Every variant of the kernels: 4, 8 and 16 experts in a lane, one cluster of several blocks and two launches. Where
    # tokens are recycled they are more than a warp in each block, and come from experts of more than one warp.
    for dtype in (torch.float32, torch.bfloat16):
        cases += [_route_case(600, 40, capacity=15, skew="zipf", dtype=dtype)]
        cases += [_route_case(600, experts, capacity=600 // experts, dtype=dtype) for experts in (200, 300)]
        cases += [_route_case(70, experts, top_k=2, dtype=dtype) for experts in (200, 300)]
        cases += [_route_case(4100, experts, dtype=dtype) for experts in (200, 300)]
        cases += [_route_case(4100, 40, capacity=102, skew="zipf", dtype=dtype)]
    cases += [_route_case(4100, 16, top_k=2, capacity=400, overflow="drop", padding=90)]
    return cases


def gradient_of_route(
    grad_weights: Tensor, logits: Tensor, routing: Routing, *, renormalize: bool, num_tokens: Tensor | None = None
) -> Tensor:
    """Gradient of the weights of :func:`route` to the logits."""
    return ops.route_backward(grad_weights, logits, routing.expert_ids, routing.weights, renormalize, num_tokens)


def _route_backward_arguments(
    tokens: int, experts: int, top_k: int, renormalize: bool, dtype: torch.dtype, padding: int, seed: int
) -> Arguments:
    arguments = _route_arguments(tokens, experts, top_k, None, "drop", "even", dtype, padding, seed)
    routing = route(**arguments, renormalize=renormalize)
    generator = torch.Generator().manual_seed(seed)
    return {
        "grad_weights": torch.randn(tokens, top_k, generator=generator),
        "logits": arguments["logits"],
        "routing": routing,
        "renormalize": renormalize,
        "num_tokens": arguments.get("num_tokens"),
    }


def _route_backward_case(
    tokens: int, experts: int, top_k: int, renormalize: bool, dtype: torch.dtype = torch.float32, padding: int = 0
) -> Case:
    label = f"T={tokens} E={experts} k={top_k}" + (" renormalized" if renormalize else "")
    label += f" {str(dtype).removeprefix('torch.')}" + (f" pad={padding}" if padding else "")
    make = partial(_route_backward_arguments, tokens, experts, top_k, renormalize, dtype, padding)
    return Case(label, make)


def _route_backward_cases() -> list[Case]:
    return [
        _route_backward_case(tokens, experts, min(top_k, experts), renormalize, dtype, padding)
        for experts in (1, 7, 64, 200, 300)
        for dtype in (torch.float32, torch.bfloat16)
        for tokens, top_k, renormalize, padding in ((0, 1, False, 0), (33, 1, False, 5), (50, 8, True, 0))
    ]


def _route_backward_bench_cases(preset: str | None) -> list[Case]:
    return [_route_backward_case(t, e, k, k > 1) for t, e, k in dict.fromkeys(s[:3] for s in _bench_sizes(preset))]


def _compare_route_backward(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    # products of both terms, each within the rounding of a softmax in fp32 as in compare_routing
    logits = arguments["logits"].double()
    spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True) if logits.numel() else 0.0
    routing = arguments["routing"]
    products = (arguments["grad_weights"].double() * routing.weights.double()).abs()
    chosen = torch.zeros_like(logits).scatter_add(1, routing.expert_ids.long().clamp(min=0), products)
    magnitude = (chosen + products.sum(1, keepdim=True) * logits.softmax(1)) * (1.0 + spread)
    if arguments["renormalize"]:  # w of a chosen expert stands in the place of p
        magnitude = magnitude + (chosen != 0) * products.sum(1, keepdim=True)
    return [compare_bounded("grad_logits", got, want, magnitude)]


def _route_backward_work(arguments: Arguments) -> Work:
    logits: Tensor = arguments["logits"]
    read_and_written = 2.0 * logits.numel() * logits.element_size()
    return Work(flops=0.0, bytes=read_and_written + 12.0 * arguments["grad_weights"].numel())


def _eager_route_backward(
    grad_weights: Tensor, logits: Tensor, routing: Routing, *, renormalize: bool, num_tokens: Tensor | None = None
) -> Tensor:
    """The softmax again, then its gradient, of the experts that were chosen."""
    chosen, products = routing.expert_ids.long(), grad_weights * routing.weights
    share = torch.zeros_like(logits).scatter_(1, chosen, routing.weights) if renormalize else logits.softmax(1)
    return share.mul_(-products.sum(1, keepdim=True)).scatter_add_(1, chosen, products)


def _bench_sizes(preset: str | None) -> list[tuple[int, int, int, int | None, str]]:
    if preset == "hunyuan-a13b":
        return [(tokens, 64, 8, None, "even") for tokens in (1, 128, 8192)]
    return [
        (2048, 16, 1, 128, "zipf"),
        (128, 16, 1, 8, "even"),
        (8192, 16, 1, 512, "even"),
        (8192, 16, 1, 512, "zipf"),
        *([(65536, 16, 1, 4096, "zipf")] if preset is None else []),
    ]


def _route_bench_cases(preset: str | None) -> list[Case]:
    return [_route_case(t, e, k, c, skew=skew) for t, e, k, c, skew in _bench_sizes(preset)]


def compare_routing(got: Routing, want: Routing, logits: Tensor | None = None) -> list[Comparison]:
    """Everything but the weights exactly; those within the rounding of a softmax in fp32."""
    names = [name for name in Routing._fields if name != "weights"]
    comparisons = [compare_exact(name, getattr(got, name), getattr(want, name)) for name in names]
    # exp(l - max) has the error of rounding its argument: (1 + |l - max|) units
    spread = 0.0 if logits is None else logits.float().nan_to_num(0.0, 0.0, 0.0).double()
    if isinstance(spread, Tensor):
        spread = (spread.amax(1, keepdim=True) - spread.amin(1, keepdim=True)) if spread.numel() else 0.0
    # ... and below the smallest normal number the unit is that number's
    magnitude = want.weights.double() * (1.0 + spread) + torch.finfo(torch.float32).tiny
    return [*comparisons, compare_bounded("weights", got.weights, want.weights, magnitude)]


def _compare_route(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return compare_routing(got, want, arguments.get("logits"))


def _route_work(arguments: Arguments) -> Work:
    logits: Tensor = arguments["logits"]
    tokens, experts = logits.shape
    out = tokens * arguments["top_k"] * 16.0 + experts * 8.0  # ids, weights, rows, token ids
    return Work(flops=0.0, bytes=logits.numel() * logits.element_size() + out)


def index_based_route(
    logits: Tensor,
    top_k: int,
    *,
    capacity: int | None = None,
    overflow: str = "recycle",
    seed: int = 0,
    num_tokens: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """What a good PyTorch user writes today: indices, no masks. Ids, weights, assignments sorted by expert, offsets."""
    tokens, experts = logits.shape
    p = logits.float().softmax(1)
    weights, ids = p.topk(top_k, dim=1)
    if top_k > 1:
        weights = weights / weights.sum(1, keepdim=True)
    flat = ids.t().reshape(-1)  # choice-major
    counts = torch.bincount(flat, minlength=experts)
    if capacity is not None:
        order = torch.argsort(flat, stable=True)
        rank = torch.arange(flat.numel()) - (counts.cumsum(0) - counts)[flat[order]]
        keep = rank < capacity
        dropped = order[~keep].sort().values
        kept_counts = counts.clamp(max=capacity)
        if overflow == "recycle" and top_k == 1:
            free = torch.repeat_interleave(torch.arange(experts), capacity - kept_counts)
            moved = free[torch.randperm(free.numel())[: dropped.numel()]]
            dropped = dropped[: moved.numel()]
            flat = flat.index_put((dropped,), moved)
            weights = weights.index_put((dropped,), p[dropped, moved][:, None])
            counts = kept_counts + torch.bincount(moved, minlength=experts)
        else:
            flat = flat.index_fill(0, dropped, experts)
            counts = kept_counts
    order = torch.argsort(flat, stable=True)
    offsets = F.pad(counts.cumsum(0), (1, 0)).int()
    return flat.view(top_k, tokens).t(), weights, order, offsets


def naive_one_hot_route(
    logits: Tensor,
    top_k: int,
    *,
    capacity: int | None = None,
    overflow: str = "recycle",
    seed: int = 0,
    num_tokens: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The published gating: one-hot masks and cumulative sums over [T, E] for each choice."""
    p = logits.float().softmax(1)
    weights, ids = p.topk(top_k, dim=1)
    limit = logits.shape[0] * top_k if capacity is None else capacity
    before = torch.zeros(logits.shape[1], dtype=torch.int64)
    slots = []
    for j in range(top_k):
        mask = F.one_hot(ids[:, j], logits.shape[1])
        position = (mask.cumsum(0) - 1 + before) * mask
        before = before + mask.sum(0)
        mask = mask * (position < limit)
        slots.append((position * mask).sum(1))
    return ids, weights, torch.stack(slots, 1), before


def _ids_arguments(
    tokens: int, experts: int, top_k: int, capacity: int | None, sentinels: bool, dtype: torch.dtype, seed: int
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    choices = torch.rand(tokens, max(experts, top_k), generator=generator).argsort(1)[:, :top_k]
    if sentinels:
        choices = choices + (torch.rand(tokens, top_k, generator=generator) < 0.3) * experts
    return {
        "expert_ids": choices.to(dtype),
        "weights": torch.rand(tokens, top_k, generator=generator),
        "num_experts": experts,
        "capacity": capacity,
    }


def _ids_case(
    tokens: int,
    experts: int,
    top_k: int,
    capacity: int | None = None,
    sentinels: bool = False,
    dtype: torch.dtype = torch.int64,
) -> Case:
    label = f"T={tokens} E={experts} k={top_k} C={capacity}" + (" sentinels" if sentinels else "")
    if dtype != torch.int64:
        label += f" {str(dtype).removeprefix('torch.')}"
    return Case(label, partial(_ids_arguments, tokens, experts, top_k, capacity, sentinels, dtype))


def _ids_cases() -> list[Case]:
    return [
        _ids_case(0, 4, 2),
        _ids_case(1, 1, 1),
        _ids_case(100, 64, 8),
        _ids_case(100, 64, 8, sentinels=True),
        _ids_case(1500, 16, 2, 100),
        _ids_case(1500, 16, 2, 100, sentinels=True),
        _ids_case(600, 40, 2, 20, sentinels=True, dtype=torch.int32),
        _ids_case(4100, 40, 2, 150, sentinels=True, dtype=torch.int32),
        _ids_case(4100, 40, 2, 150, sentinels=True),
    ]


def _ids_bench_cases(preset: str | None) -> list[Case]:
    return [_ids_case(*sizes) for sizes in dict.fromkeys(sizes[:3] for sizes in _bench_sizes(preset))]


def _ids_work(arguments: Arguments) -> Work:
    ids: Tensor = arguments["expert_ids"]
    return Work(flops=0.0, bytes=ids.numel() * (ids.element_size() + 20.0))


def _index_based_from_ids(
    expert_ids: Tensor, weights: Tensor, num_experts: int, *, capacity: int | None = None
) -> tuple[Tensor, Tensor]:
    flat = expert_ids.t().reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts)[:num_experts]
    return order % max(expert_ids.shape[0], 1), F.pad(counts.cumsum(0), (1, 0)).int()


def _loss_arguments(tokens: int, experts: int, top_k: int, skew: str, dtype: torch.dtype, seed: int) -> Arguments:
    logits = make_logits(tokens, experts, skew, dtype, seed)
    return {"logits": logits, "routing": route(logits, top_k)}


def _loss_case(tokens: int, experts: int, top_k: int, skew: str = "even", dtype: torch.dtype = torch.float32) -> Case:
    label = f"T={tokens} E={experts} k={top_k} {skew} {str(dtype).removeprefix('torch.')}"
    return Case(label, partial(_loss_arguments, tokens, experts, top_k, skew, dtype))


def _loss_cases() -> list[Case]:
    return [
        _loss_case(0, 4, 1),
        *(_loss_case(300, 16, 1, skew) for skew in SKEWS),
        _loss_case(77, 64, 8, "zipf", torch.bfloat16),
        *(_loss_case(33, e, 2, "zipf", dtype) for e in (7, 200, 300) for dtype in (torch.float32, torch.bfloat16)),
        _loss_case(5, 1, 1),
    ]


def _loss_bench_cases(preset: str | None) -> list[Case]:
    return [_loss_case(t, e, k, skew) for t, e, k, _, skew in _bench_sizes(preset)]


def gradient_of_loss(grad_loss: Tensor, logits: Tensor, routing: Routing) -> Tensor:
    """Gradient of :func:`load_balancing_loss` to the logits."""
    return ops.load_balancing_loss_backward(grad_loss, logits, routing.demand, None)


def _with_grad_loss(cases: list[Case]) -> list[Case]:
    def make_from(case: Case) -> Callable[[int], Arguments]:
        return lambda seed: {"grad_loss": torch.tensor(1.5 + seed), **case.make(seed)}

    return [Case(case.label, make_from(case)) for case in cases]


def compare_loss_backward(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    """Both terms of ``p (f - sum p f)``: the rounding of p, an exponential of a difference, and of sums of E terms,
    (8 + sqrt(E)) units."""
    logits, demand = arguments["logits"].double(), arguments["routing"].demand.double()
    num_tokens = arguments.get("num_tokens")
    tokens = max(1, logits.shape[0] if num_tokens is None else int(num_tokens))
    p = logits.softmax(1)
    spread = 1.0 + (logits.amax(1, keepdim=True) - logits) if logits.numel() else 1.0
    terms = p * spread * (demand + (p * demand).sum(1, keepdim=True)) / tokens
    factor = arguments["grad_loss"].double().abs() * logits.shape[1] / tokens
    return [compare_bounded("grad_logits", got, want, factor * terms * (1 + logits.shape[1] ** 0.5 / 8))]


def _eager_loss_backward(grad_loss: Tensor, logits: Tensor, routing: Routing) -> Tensor:
    p, tokens = logits.float().softmax(1), max(logits.shape[0], 1)
    weighted = p * (routing.demand * (grad_loss * logits.shape[1] / tokens**2))
    return (weighted - p * weighted.sum(1, keepdim=True)).to(logits.dtype)


def _compare_loss(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    # a mean of T softmaxes: each within some units, and the sum over experts has E terms
    return [compare_bounded("loss", got, want, want.abs() * (4.0 + arguments["logits"].shape[1] ** 0.5))]


def _loss_work(arguments: Arguments) -> Work:
    logits: Tensor = arguments["logits"]
    return Work(flops=0.0, bytes=float(logits.numel() * logits.element_size()))


def _eager_loss(logits: Tensor, routing: Routing) -> Tensor:
    mean = logits.float().softmax(1).mean(0)
    return logits.shape[1] * (mean * (routing.demand / max(logits.shape[0], 1))).sum()


SPECS = [
    OpSpec(
        name="route",
        stem="routing",
        function=route,
        reference=reference.route,
        compare=_compare_route,
        cases=_route_cases,
        bench_cases=_route_bench_cases,
        work=_route_work,
        baselines={"index-based": index_based_route, "naive one-hot": naive_one_hot_route},
    ),
    OpSpec(
        name="route_backward",
        stem="routing",
        function=gradient_of_route,
        reference=reference.route_backward,
        compare=_compare_route_backward,
        cases=_route_backward_cases,
        bench_cases=_route_backward_bench_cases,
        work=_route_backward_work,
        baselines={"torch eager": _eager_route_backward},
    ),
    OpSpec(
        name="routing_from_ids",
        stem="routing",
        function=routing_from_ids,
        reference=reference.routing_from_ids,
        compare=lambda arguments, got, want: compare_routing(got, want),
        cases=_ids_cases,
        bench_cases=_ids_bench_cases,
        work=_ids_work,
        baselines={"index-based": _index_based_from_ids},
    ),
    OpSpec(
        name="load_balancing_loss",
        stem="routing",
        function=load_balancing_loss,
        reference=reference.load_balancing_loss,
        compare=_compare_loss,
        cases=_loss_cases,
        bench_cases=_loss_bench_cases,
        work=_loss_work,
        baselines={"torch eager": _eager_loss},
    ),
    OpSpec(
        name="load_balancing_loss_backward",
        stem="routing",
        function=gradient_of_loss,
        reference=reference.load_balancing_loss_backward,
        compare=compare_loss_backward,
        cases=lambda: _with_grad_loss(_loss_cases()),
        bench_cases=lambda preset: _with_grad_loss(_loss_bench_cases(preset)),
        work=lambda arguments: Work(flops=0.0, bytes=2 * _loss_work(arguments).bytes),
        baselines={"torch eager": _eager_loss_backward},
    ),
]
