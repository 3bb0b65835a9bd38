"""Specification of :func:`hunyuan_kernels.route`, :func:`routing_from_ids` and :func:`load_balancing_loss`.

Plain Python over the assignments, in the order in which the design states them; probabilities in PyTorch.
"""

import torch
from torch import Tensor

from hunyuan_kernels.ops.routing import Routing

_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1


def philox4x32(counter: tuple[int, int, int, int], seed: int) -> list[int]:
    """Philox4x32-10 (Salmon et al., SC 2011): four 32-bit words from a counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK32, seed >> 32 & _MASK32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1, c2, c3]


def _mix(half: int, key: int, bits: int) -> int:
    z = (half + key) * 0x9E3779B1 & _MASK32
    z ^= z >> 15
    z = z * 0x85EBCA77 & _MASK32
    z ^= z >> 13
    z = z * 0xC2B2AE3D & _MASK32
    z ^= z >> 16
    return z >> (32 - bits)


def slot_permutation(size: int, seed: int, count: int | None = None) -> list[int]:
    """The first ``count`` values (all by default) of the permutation of ``0 .. size - 1`` that ``seed`` keys.

    An alternating Feistel network on ``max(2, ceil(log2 size))`` bits with cycle walking:
    ``csrc/common/permutation.h``.
    """
    bits = max(2, (size - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    rounds = 24 if size <= 16 else 8
    keys = [word for block in range(rounds // 4) for word in philox4x32((block, 0, 0, 0x726F7574), seed & _MASK64)]

    def once(x: int) -> int:
        left, right = x >> right_bits, x & ((1 << right_bits) - 1)
        for j in range(0, rounds, 2):
            left ^= _mix(right, keys[j], left_bits)
            right ^= _mix(left, keys[j + 1], right_bits)
        return left << right_bits | right

    values = []
    for i in range(size if count is None else count):
        x = once(i)
        while x >= size:
            x = once(x)
        values.append(x)
    return values


def _tokens_that_count(num_tokens: Tensor | None, tokens: int) -> int:
    return tokens if num_tokens is None else min(max(int(num_tokens), 0), tokens)


def _assign(
    expert_ids: Tensor,
    weights: Tensor,
    num_experts: int,
    capacity: int | None,
    valid: int,
    recycle: tuple[Tensor, int] | None,
) -> Routing:
    """Rows for ``expert_ids`` [T, k]; ``recycle`` holds the probabilities [T, E] and the seed."""
    tokens, top_k = expert_ids.shape
    expert_ids, weights = expert_ids.clone(), weights.clone()
    limit = tokens * top_k if capacity is None else capacity
    groups: list[list[tuple[int, int]]] = [[] for _ in range(num_experts)]  # assignments (token, choice) of each expert
    demand, dropped = [0] * num_experts, []
    for j in range(top_k):
        for t in range(valid):
            e = int(expert_ids[t, j])
            if e < 0:
                continue
            demand[e] += 1
            if len(groups[e]) < limit:
                groups[e].append((t, j))
            else:
                dropped.append((t, j))
    recycled = 0
    if recycle is not None and dropped:
        probabilities, seed = recycle
        owners = [e for e in range(num_experts) for _ in range(limit - len(groups[e]))]
        recycled = min(len(dropped), len(owners))
        for (t, j), slot in zip(dropped, slot_permutation(len(owners), seed, recycled), strict=False):
            e = owners[slot]
            groups[e].append((t, j))
            expert_ids[t, j], weights[t, j] = e, probabilities[t, e]
    rows = torch.full((tokens, top_k), -1, dtype=torch.int32)
    bound = tokens * top_k if capacity is None else min(tokens * top_k, num_experts * capacity)
    token_ids = torch.full((bound,), -1, dtype=torch.int32)
    row, offsets = 0, [0]
    for group in groups:
        for t, j in group:
            rows[t, j], token_ids[row] = row, t
            row += 1
        offsets.append(row)

    def ints(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return Routing(
        expert_ids, weights, rows, token_ids, ints(offsets), ints(demand), ints(recycled), ints(len(dropped) - recycled)
    )


def route(
    logits: Tensor,
    top_k: int,
    *,
    capacity: int | None = None,
    overflow: str = "recycle",
    seed: int | Tensor | None = None,
    renormalize: bool | None = None,
    num_tokens: Tensor | None = None,
) -> Routing:
    """See :func:`hunyuan_kernels.route`; the weights are float64 and differentiable."""
    tokens, num_experts = logits.shape
    valid = _tokens_that_count(num_tokens, tokens)
    values = logits.detach().float()
    order = torch.where(values.isnan(), float("-inf"), values).sort(dim=1, descending=True, stable=True).indices
    expert_ids = order[:, :top_k].to(torch.int32)
    probabilities = logits.float().double().softmax(dim=1)
    weights = probabilities.gather(1, expert_ids.long())
    if top_k > 1 if renormalize is None else renormalize:
        weights = weights / weights.sum(dim=1, keepdim=True)
    padding = torch.arange(tokens)[:, None] >= valid
    expert_ids = torch.where(padding, torch.tensor(-1, dtype=torch.int32), expert_ids)
    weights = torch.where(padding, 0.0, weights)
    recycle = None
    if overflow == "recycle" and capacity is not None and seed is not None:
        recycle = (probabilities, int(seed))
    return _assign(expert_ids, weights, num_experts, capacity, valid, recycle)


def route_backward(
    grad_weights: Tensor, logits: Tensor, routing: Routing, *, renormalize: bool, num_tokens: Tensor | None = None
) -> Tensor:
    """Gradient of the weights of :func:`route` to the logits, in fp64; experts and weights are those of ``routing``.

    ``grad_e = sum_j g_j w_j [id_j = e] - s_e sum_j g_j w_j``. Raw weights are ``p`` of the chosen, and ``s = p``.
    Renormalized ones are the softmax over the chosen alone, and ``s`` is the weight of a chosen expert, 0 of another.
    """
    counts = torch.arange(logits.shape[0])[:, None] < _tokens_that_count(num_tokens, logits.shape[0])
    chosen, weights = routing.expert_ids.long().clamp(min=0), routing.weights.double()
    products = grad_weights.double() * weights
    p = logits.double().softmax(1)
    share = torch.zeros_like(p).scatter(1, chosen, weights) if renormalize else p
    gradient = torch.zeros_like(p).scatter_add(1, chosen, products) - share * products.sum(1, keepdim=True)
    return torch.where(counts, gradient, 0.0)


def routing_from_ids(
    expert_ids: Tensor,
    weights: Tensor,
    num_experts: int,
    *,
    capacity: int | None = None,
    overflow: str = "drop",
    num_tokens: Tensor | None = None,
) -> Routing:
    """See :func:`hunyuan_kernels.routing_from_ids`."""
    valid = _tokens_that_count(num_tokens, expert_ids.shape[0])
    padding = torch.arange(expert_ids.shape[0])[:, None] >= valid
    known = (expert_ids >= 0) & (expert_ids < num_experts) & ~padding
    ids = torch.where(known, expert_ids, -1).to(torch.int32)
    return _assign(ids, torch.where(padding, 0.0, weights.float()), num_experts, capacity, valid, None)


def load_balancing_loss(logits: Tensor, routing: Routing, *, num_tokens: Tensor | None = None) -> Tensor:
    """``E sum_e (demand_e / T) mean_t(softmax(logits_t)_e)`` in fp64."""
    valid = _tokens_that_count(num_tokens, logits.shape[0])
    if valid == 0:
        return logits.double().sum() * 0.0
    mean = logits[:valid].float().double().softmax(dim=1).mean(dim=0)
    return logits.shape[1] * (routing.demand.double() / valid * mean).sum()


def load_balancing_loss_backward(
    grad_loss: Tensor, logits: Tensor, routing: Routing, *, num_tokens: Tensor | None = None
) -> Tensor:
    """Gradient of :func:`load_balancing_loss` to the logits in fp64: ``g E / T p (f - sum_e p_e f_e)``, with
    ``f = demand / T``; zeros for padding."""
    valid = _tokens_that_count(num_tokens, logits.shape[0])
    counts = torch.arange(logits.shape[0])[:, None] < valid
    p, fractions = logits.double().softmax(1), routing.demand.double() / max(valid, 1)
    gradient = p * (fractions - (p * fractions).sum(1, keepdim=True))
    return torch.where(counts, grad_loss.double() * logits.shape[1] / max(valid, 1) * gradient, 0.0)
