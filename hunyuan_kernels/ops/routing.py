"""From router logits, or someone else's expert ids, to rows of an expert-major batch."""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake, register_gradient

OVERFLOWS = ("recycle", "drop")


class Routing(NamedTuple):
    """Which token goes to which expert, and to which row of the expert-major batch.

    T tokens, k choices of each, E experts, S rows: ``T * k``, or ``min(T * k, E * C)`` with a capacity C. All tensors
    are on the device of the logits; reading a count is the caller's decision to wait for it.
    """

    #: int32 [T, k]: the expert of each assignment; -1 for padding tokens and sentinels.
    expert_ids: Tensor
    #: float32 [T, k]: the factor of each assignment in :func:`combine`.
    weights: Tensor
    #: int32 [T, k]: the row of each assignment; -1 when it has none (dropped, padding, sentinel).
    rows: Tensor
    #: int32 [S]: the token of each row; -1 past the last row in use.
    token_ids: Tensor
    #: int32 [E + 1]: the rows of expert e are ``expert_offsets[e]`` to ``expert_offsets[e + 1]``.
    expert_offsets: Tensor
    #: int32 [E]: assignments of each expert before the capacity.
    demand: Tensor
    #: int32 scalar: assignments that were sent to another expert.
    num_recycled: Tensor
    #: int32 scalar: assignments without a row because of the capacity.
    num_dropped: Tensor


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
    r"""Softmax, top-k, capacity and random compensation: the router of Hunyuan-Large.

    1. Choices by the value of the logits, larger first, ties to the lower expert; NaN counts as minus infinity. The
       weight is ``p = softmax(float32(logits))`` of the chosen expert; for k > 1 divided by the sum over the chosen.
    2. Assignments are ordered choice-major: all first choices in token order, then all second ones. An assignment's
       rank within its expert decides: it is kept when rank < capacity, at row ``offset_e + rank``.
    3. ``overflow="recycle"`` (k = 1): the dropped assignments, in that order, number 0 to D - 1; the free slots, expert
       by expert, number 0 to F - 1. Assignment i goes to the expert of free slot :math:`\pi(i)`, where :math:`\pi` is a
       pseudo-random permutation keyed by ``seed``: free slots are sampled uniformly and without replacement. Its row
       follows that expert's kept ones, its weight is ``p`` of the new expert. With D > F the rest stays dropped.

    The same seed gives the same result on every device and instruction set (weights within rounding).

    Args:
        logits: ``[T, E]`` float32 or bfloat16. Values never raise: a row with NaN, +inf or nothing but -inf gets NaN
            weights, as in torch's softmax (a row that is all NaN gets experts 0 to k - 1), and changes no other row's
            weights.
        top_k: k, from 1 to E.
        capacity: C, the rows that an expert takes at most; None never drops.
        overflow: ``"recycle"`` or ``"drop"``: what happens to assignments past the capacity. Without one, nothing.
        seed: of the permutation: an int, or an int64 tensor of one element, read on the device so that a captured graph
            can change it. None draws one from torch's default generator when it is needed.
        renormalize: divide the weights by their sum over the chosen; None: for k > 1 only. With k = 1 that makes every
            weight 1, which recycling would mix with the probabilities of the recycled: the combination is refused.
        num_tokens: int32 tensor of one element, read on the device: tokens at and past it are padding, with expert -1,
            weight 0 and no row; they take no capacity and are not counted. Values outside ``[0, T]`` are clamped.

    Returns:
        :class:`Routing`. A dropped assignment keeps its expert and weight, with row -1.

    Raises:
        RuntimeError: a wrong dtype, device or shape; ``top_k`` outside 1 to E; a negative capacity; recycling with a
            capacity and k > 1 or ``renormalize=True``; T * k or E * C of 2^31 or more.
        ValueError: an unknown ``overflow``.
        TypeError: a ``seed`` that is neither an integer nor a tensor.

    Differentiable: from ``weights`` to ``logits``. Experts and rows are constants of that gradient.

    Source: ``top1gating`` and ``topkgating`` of Tencent-Hunyuan-Large's ``modeling_hunyuan.py``, with the capacity as
    an argument; arXiv 2411.02265, section 2.2.3.
    """
    return routing_of(
        ops.route(logits, *route_options(logits, top_k, capacity, overflow, seed, renormalize, num_tokens))
    )


def route_options(
    logits: Tensor,
    top_k: int,
    capacity: int | None,
    overflow: str,
    seed: int | Tensor | None,
    renormalize: bool | None,
    num_tokens: Tensor | None,
) -> tuple[Any, ...]:
    """Arguments of :func:`route` as the operators take them, behind the logits."""
    if overflow not in OVERFLOWS:
        raise ValueError(f"route: overflow is {overflow!r}; allowed: {', '.join(map(repr, OVERFLOWS))}")
    recycle = overflow == "recycle"
    if not isinstance(seed, Tensor):
        seed = _seed_tensor(seed, logits, needed=recycle and capacity is not None)
    if renormalize is None:
        renormalize = top_k > 1
    return top_k, capacity, recycle, renormalize, seed, num_tokens


def routing_of(outputs: tuple[Tensor, ...]) -> Routing:
    """The tuple from what the operators return: the differentiable output comes first there."""
    weights, expert_ids, *others = outputs
    return Routing(expert_ids, weights, *others)


def _seed_tensor(seed: int | None, like: Tensor, needed: bool) -> Tensor:
    if seed is None and not needed:
        seed = 0
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=like.device)
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(
            f"route: seed is {seed!r} ({type(seed).__name__}); allowed: an int, an int64 tensor of one element, or None"
        ) from None
    # Any 64 bits are a seed, whether written with or without a sign.
    return torch.full((1,), (number + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=like.device)


def routing_from_ids(
    expert_ids: Tensor,
    weights: Tensor,
    num_experts: int,
    *,
    capacity: int | None = None,
    overflow: str = "drop",
    num_tokens: Tensor | None = None,
) -> Routing:
    """Rows for the choices of another router (transformers, vLLM, SGLang).

    Ranks, capacity and rows as in :func:`route`, steps 2 and following, without recycling, which needs the
    probabilities of all experts.

    Args:
        expert_ids: ``[T, k]`` int32 or int64. Ids outside ``[0, num_experts)`` are sentinels (expert parallelism): such
            an assignment has expert -1 and no row, and counts neither as demand nor as dropped.
        weights: ``[T, k]``, any floating dtype; used as given.
        num_experts: E, at least 1.
        capacity: C, the rows that an expert takes at most; None never drops.
        overflow: ``"drop"``, the only choice here.
        num_tokens: as in :func:`route`.

    Returns:
        :class:`Routing`, its weights in float32.

    Raises:
        RuntimeError: a wrong dtype, device or shape; a negative capacity; T * k or E * C of 2^31 or more.
        ValueError: another ``overflow``.

    Differentiable with respect to ``weights``.
    """
    if overflow != "drop":
        raise ValueError(
            f"routing_from_ids: overflow is {overflow!r}; allowed: 'drop' (recycling needs the probabilities of all "
            "experts: use route)"
        )
    return routing_of(ops.routing_from_ids(expert_ids, weights.float(), num_experts, capacity, num_tokens))


def load_balancing_loss(logits: Tensor, routing: Routing, *, num_tokens: Tensor | None = None) -> Tensor:
    r"""Auxiliary loss that is smallest when experts are chosen evenly.

    .. math:: E \sum_e f_e P_e, \qquad f_e = \mathrm{demand}_e / T, \quad P_e = \tfrac1T \sum_t \mathrm{softmax}(l_t)_e

    It is 1 for k = 1 (in general k) when all experts are equally likely and equally chosen. Demand counts before the
    capacity, as in Tencent's code.

    Args:
        logits: ``[T, E]`` float32 or bfloat16, those that were routed.
        routing: their result; ``demand`` of it is used.
        num_tokens: as given to :func:`route`: padding is left out, T is the number of the others.

    Returns:
        float32 scalar; 0 without tokens.

    Raises:
        RuntimeError: a wrong dtype, device or shape.

    Differentiable with respect to ``logits`` (through P; f is a constant).

    Source: ``l_aux`` of ``top1gating`` in Tencent-Hunyuan-Large's ``modeling_hunyuan.py`` (Switch Transformer, arXiv
    2101.03961, equation 4).
    """
    return ops.load_balancing_loss(logits, routing.demand, num_tokens)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check_logits(op: str, logits: Tensor) -> None:
    torch._check(logits.dim() == 2, lambda: f"{op}: logits has shape {list(logits.shape)}; required: [T, E]")
    torch._check(
        logits.dtype in (torch.float32, torch.bfloat16),
        lambda: f"{op}: logits has dtype {logits.dtype}; allowed: float32, bfloat16",
    )


def fake_routing(like: Tensor, tokens: Any, top_k: int, experts: Any, capacity: int | None) -> tuple[Tensor, ...]:
    def ints(*shape: Any) -> Tensor:
        return like.new_empty(shape, dtype=torch.int32)

    rows = tokens * top_k if capacity is None else torch.sym_min(tokens * top_k, experts * capacity)
    weights = like.new_empty((tokens, top_k), dtype=torch.float32)
    return (
        weights,
        ints(tokens, top_k),
        ints(tokens, top_k),
        ints(rows),
        ints(experts + 1),
        ints(experts),
        ints(),
        ints(),
    )


@register_fake("route")
def _(
    logits: Tensor,
    top_k: int,
    capacity: int | None,
    recycle: bool,
    renormalize: bool,
    seed: Tensor,
    num_tokens: Tensor | None,
) -> tuple[Tensor, ...]:
    _check_logits("route", logits)
    torch._check(top_k >= 1, lambda: f"route: top_k is {top_k}; allowed: 1 to the number of experts")
    torch._check(top_k <= logits.shape[1], lambda: f"route: top_k is {top_k}; allowed: 1 to the number of experts")
    torch._check(capacity is None or capacity >= 0, lambda: f"route: capacity is {capacity}; allowed: 0 or more")
    torch._check(
        not (recycle and capacity is not None and top_k > 1),
        lambda: f"route: overflow is 'recycle' with top_k = {top_k} and a capacity; pass overflow='drop'",
    )
    torch._check(
        not (recycle and capacity is not None and renormalize),
        lambda: "route: renormalize is True with overflow='recycle' and a capacity; pass overflow='drop'",
    )
    return fake_routing(logits, logits.shape[0], top_k, logits.shape[1], capacity)


@register_fake("routing_from_ids")
def _(
    expert_ids: Tensor, weights: Tensor, num_experts: int, capacity: int | None, num_tokens: Tensor | None
) -> tuple[Tensor, ...]:
    torch._check(
        expert_ids.dim() == 2,
        lambda: f"routing_from_ids: expert_ids has shape {list(expert_ids.shape)}; required: [T, k]",
    )
    torch._check(
        weights.shape == expert_ids.shape,
        lambda: (
            f"routing_from_ids: weights has shape {list(weights.shape)}; required: [T, k] = {list(expert_ids.shape)}"
        ),
    )
    torch._check(
        capacity is None or capacity >= 0, lambda: f"routing_from_ids: capacity is {capacity}; allowed: 0 or more"
    )
    return fake_routing(expert_ids, expert_ids.shape[0], expert_ids.shape[1], num_experts, capacity)


@register_fake("route_backward")
def _(
    grad_weights: Tensor,
    logits: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    renormalize: bool,
    num_tokens: Tensor | None,
) -> Tensor:
    return logits.new_empty(logits.shape)


@register_fake("load_balancing_loss")
def _(logits: Tensor, demand: Tensor, num_tokens: Tensor | None) -> Tensor:
    _check_logits("load_balancing_loss", logits)
    return logits.new_empty((), dtype=torch.float32)


@register_fake("load_balancing_loss_backward")
def _(grad_loss: Tensor, logits: Tensor, demand: Tensor, num_tokens: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _route_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _top_k, _capacity, _recycle, renormalize, _seed, num_tokens = inputs
    weights, expert_ids = output[:2]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(logits, expert_ids, weights, num_tokens)
    ctx.renormalize = renormalize


def _route_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    logits, expert_ids, weights, num_tokens = ctx.saved_tensors
    grad_logits = ops.route_backward(grads[0], logits, expert_ids, weights, ctx.renormalize, num_tokens)
    return grad_logits, None, None, None, None, None, None


def _from_ids_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    num_tokens = inputs[4]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(num_tokens)


def _from_ids_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    (num_tokens,) = ctx.saved_tensors
    grad_weights = grads[0]
    if num_tokens is not None:
        tokens = torch.arange(grad_weights.shape[0], device=grad_weights.device)
        grad_weights = torch.where((tokens < num_tokens)[:, None], grad_weights, 0.0)
    return None, grad_weights, None, None, None


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _loss_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    logits, demand, num_tokens = ctx.saved_tensors
    return ops.load_balancing_loss_backward(grad, logits, demand, num_tokens), None, None


# Second derivatives, by differentiating the gradients' formulas in PyTorch: a rare wish, not worth kernels.


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
    ctx.renormalize = next((x for x in inputs if isinstance(x, bool)), False)
    ctx.save_for_backward(*tensors)


def _counted(logits: Tensor, num_tokens: Tensor | None) -> Tensor:
    """[T, 1], true where a token is not padding."""
    tokens = torch.arange(logits.shape[0], device=logits.device)[:, None]
    return tokens < (logits.shape[0] if num_tokens is None else num_tokens)


def _route_second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_weights, logits, expert_ids, _weights, num_tokens = ctx.saved_tensors
    with torch.enable_grad():
        inputs = grad_weights.detach().requires_grad_(), logits.detach().requires_grad_()
        chosen = expert_ids.long().clamp(min=0)
        p = inputs[1].float().softmax(1)
        w = p.gather(1, chosen)
        if ctx.renormalize:
            w = w / w.sum(1, keepdim=True)
        dot = (inputs[0] * w).sum(1, keepdim=True)
        spread = torch.zeros_like(p).scatter(1, chosen, w) if ctx.renormalize else p
        formula = torch.zeros_like(p).scatter(1, chosen, inputs[0] * w) - dot * spread
        formula = torch.where(_counted(logits, num_tokens), formula, 0.0)
        by_grad_weights, by_logits = torch.autograd.grad(formula, inputs, grad.float())
    return by_grad_weights, by_logits, None, None, None, None


def _loss_second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_loss, logits, demand, num_tokens = ctx.saved_tensors
    counted = _counted(logits, num_tokens)
    tokens = counted.sum().clamp(min=1)
    with torch.enable_grad():
        inputs = grad_loss.detach().requires_grad_(), logits.detach().requires_grad_()
        p, fractions = inputs[1].float().softmax(1), demand.float() / tokens
        formula = p * (fractions - (p * fractions).sum(1, keepdim=True))
        formula = torch.where(counted, formula, 0.0) * inputs[0] * (logits.shape[1] / tokens)
        by_grad_loss, by_logits = torch.autograd.grad(formula, inputs, grad.float())
    return by_grad_loss, by_logits, None, None


register_gradient("route", _route_backward, setup_context=_route_setup)
register_gradient("routing_from_ids", _from_ids_backward, setup_context=_from_ids_setup)
register_gradient("load_balancing_loss", _loss_backward, setup_context=_loss_setup)
register_gradient("route_backward", _route_second_backward, setup_context=_save_all)
register_gradient("load_balancing_loss_backward", _loss_second_backward, setup_context=_save_all)
