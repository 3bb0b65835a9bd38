"""The whole mixture-of-experts layer: composed of the package's operators, or in inference on a CPU one of its own."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels import _ops
from hunyuan_kernels._autocast import to_autocast
from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import check_one_device, register_fake, register_gradient
from hunyuan_kernels.ops.dispatch import combine, dispatch, dispatch_fp8
from hunyuan_kernels.ops.fp8_gemm import grouped_gemm_fp8, grouped_swiglu_fp8
from hunyuan_kernels.ops.grouped_gemm import grouped_gemm, grouped_swiglu
from hunyuan_kernels.ops.nf4_gemm import Nf4Weights, grouped_gemm_nf4, grouped_swiglu_nf4
from hunyuan_kernels.ops.quantize import quantize_fp8
from hunyuan_kernels.ops.routing import Routing, fake_routing, route_options, routing_of

ACTIVATIONS = ("none", "static", "block_1x128")


class Experts(NamedTuple):
    """Weights of E SwiGLU experts: ``gate_up`` [E, 2I, H] (gate rows, then up rows) and ``down`` [E, H, I]."""

    gate_up: Tensor
    down: Tensor


class Fp8Experts(NamedTuple):
    """Weights of E SwiGLU experts in e4m3, with their scales.

    ``gate_up`` [E, 2I, H] and ``down`` [E, H, I] are float8_e4m3fn; ``gate_up_scale`` and ``down_scale`` as
    :func:`grouped_swiglu_fp8` and :func:`grouped_gemm_fp8` take them. ``activations`` says what the GEMMs read:

    * ``"none"``: bf16 or fp32 activations, only the weights are FP8.
    * ``"static"``: e4m3 activations under the fixed scales ``input_scale`` and ``intermediate_scale`` (fp32 scalars),
      the published form of Hunyuan's FP8 checkpoints.
    * ``"block_1x128"``: e4m3 activations with fresh scales of 1 x 128.
    """

    gate_up: Tensor
    down: Tensor
    gate_up_scale: Tensor
    down_scale: Tensor
    activations: str = "none"
    input_scale: Tensor | None = None
    intermediate_scale: Tensor | None = None


class Nf4Experts(NamedTuple):
    """Weights of E SwiGLU experts in NF4, from :func:`quantize_nf4`: ``gate_up`` [E, 2I, H] and ``down`` [E, H, I].

    For inference on a CPU, with bf16 or fp32 activations. H and I are multiples of 64.
    """

    gate_up: Nf4Weights
    down: Nf4Weights


class SharedExpert(NamedTuple):
    """Weights of the SwiGLU expert that every token passes: ``gate_up`` [2I, H] and ``down`` [H, I]."""

    gate_up: Tensor
    down: Tensor


AnyExperts = Experts | Fp8Experts | Nf4Experts | tuple[Tensor, Tensor]


def _one_group(rows: int, like: Tensor) -> Tensor:
    """Offsets of one expert that owns all rows, made on the device (no copy from the host)."""
    return torch.arange(2, dtype=torch.int32, device=like.device) * rows


def _dense_mlp(x: Tensor, expert: SharedExpert | Fp8Experts) -> Tensor:
    offsets = _one_group(x.shape[0], x)
    if isinstance(expert, Fp8Experts):
        return _fp8_experts(x, None, offsets, expert)
    hidden = grouped_swiglu(x, expert.gate_up.unsqueeze(0), offsets)
    return grouped_gemm(hidden, expert.down.unsqueeze(0), offsets)


def _fp8_experts(x: Tensor, routing: Routing | None, offsets: Tensor, experts: Fp8Experts) -> Tensor:
    """Rows of ``x`` as ``routing`` sends them to experts; None: they are sorted by expert as they are."""
    x = to_autocast(x)
    if experts.activations == "none":
        rows = x if routing is None else dispatch(x, routing)
        hidden = grouped_swiglu_fp8(rows, experts.gate_up, offsets, None, experts.gate_up_scale, out_dtype=x.dtype)
        return grouped_gemm_fp8(
            cast(Tensor, hidden), experts.down, offsets, None, experts.down_scale, out_dtype=x.dtype
        )
    if routing is not None:
        rows, scale = dispatch_fp8(x, routing, experts.input_scale)
    else:
        recipe = "tensor" if experts.activations == "static" else "block_1x128"
        rows, scale = quantize_fp8(x, recipe, experts.input_scale)
    hidden, hidden_scale = grouped_swiglu_fp8(
        rows,
        experts.gate_up,
        offsets,
        scale,
        experts.gate_up_scale,
        out_dtype=torch.float8_e4m3fn,
        out_scale=experts.intermediate_scale,
    )
    return grouped_gemm_fp8(hidden, experts.down, offsets, hidden_scale, experts.down_scale, out_dtype=x.dtype)


def _in_one_call(*groups: AnyExperts | SharedExpert | None) -> list[tuple[Tensor | None, ...]] | None:
    """gate_up, its scale, down and its scale of each group as the CPU's operators take them, None for no group.

    None as a whole for e4m3 activations, which are quantized between the steps.
    """
    found: list[tuple[Tensor | None, ...]] = []
    for group in groups:
        if group is None:
            found.append((None, None, None, None))
        elif isinstance(group, Fp8Experts):
            if group.activations != "none":
                return None
            found.append((group.gate_up, group.gate_up_scale, group.down, group.down_scale))
        elif isinstance(group, Nf4Experts):
            found.append((group.gate_up.blocks, group.gate_up.scale, group.down.blocks, group.down.scale))
        else:
            gate_up, down = group
            if isinstance(group, SharedExpert):
                gate_up, down = gate_up.unsqueeze(0), down.unsqueeze(0)
            found.append((gate_up, None, down, None))
    return found


def _is_inference_on_cpu(*tensors: Tensor | None) -> bool:
    """Whether the CPU's operators for a whole layer serve: they have no gradients, and cast nothing for autocast."""
    given = [tensor for tensor in tensors if tensor is not None]
    if _ops.simulating or torch.is_autocast_enabled("cpu") or any(tensor.device.type != "cpu" for tensor in given):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))


def _check_fp8_experts(experts: Fp8Experts, name: str = "experts") -> None:
    if experts.activations not in ACTIVATIONS:
        allowed = ", ".join(repr(a) for a in ACTIVATIONS)
        raise ValueError(f"moe: {name}.activations is {experts.activations!r}; allowed: {allowed}")
    scales = {"input_scale": experts.input_scale, "intermediate_scale": experts.intermediate_scale}
    for field, scale in scales.items():
        if (scale is not None) != (experts.activations == "static"):
            state = "missing" if scale is None else "given"
            raise ValueError(
                f"moe: {name}.{field} is {state} with activations={experts.activations!r}; static scales are required "
                "with 'static' and allowed with nothing else"
            )


def _check_pair(name: str, pair: object) -> None:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise TypeError(f"moe: {name} is {type(pair).__name__}; required: (gate_up, down), two tensors")


def moe(
    x: Tensor,
    gate: Tensor,
    experts: AnyExperts,
    shared: SharedExpert | Fp8Experts | tuple[Tensor, Tensor] | None = None,
    *,
    top_k: int = 1,
    capacity: int | None = None,
    overflow: str = "recycle",
    seed: int | Tensor | None = None,
    renormalize: bool | None = None,
    num_tokens: Tensor | None = None,
    residual: Tensor | None = None,
    return_routing: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Routing]:
    r"""Mixture-of-experts layer of Hunyuan-Large: shared expert plus routed experts.

    .. math:: y_t = \mathrm{shared}(x_t) + \sum_j w_{tj}\, \mathrm{expert}_{e_{tj}}(x_t) + \mathrm{residual}_t,
        \qquad \mathrm{expert}(x) = W_{down}\,(\mathrm{SiLU}(W_{gate} x) \cdot W_{up} x)

    as in ``HunYuanMoE`` of Tencent's released modeling code. The shared expert is not weighted. A token whose
    assignment was dropped gets the shared expert and the residual only. Composed of :func:`route`, :func:`dispatch`,
    :func:`grouped_swiglu`, :func:`grouped_gemm` and :func:`combine` (their FP8 forms for :class:`Fp8Experts`, NF4 for
    :class:`Nf4Experts`), so it
    is differentiable where they are, and compiles with ``torch.compile(fullgraph=True)``. Under autocast the experts
    compute in bfloat16, the router in the dtype of ``gate``.

    On a CPU, where no gradient is needed, everything behind the logits is one operator with the same result bit for
    bit: it gathers tokens within the first GEMM and keeps intermediate rows in 16 MiB. Not so under autocast, and for
    FP8 activations.

    Args:
        x: ``[..., H]`` bf16 or fp32, the layer's input.
        gate: ``[E, H]`` router weight. The logits are computed in its dtype: fp32 in Tencent's code.
        experts: ``(gate_up [E, 2I, H], down [E, H, I])`` in the dtype of ``x``, :class:`Fp8Experts` or
            :class:`Nf4Experts`.
        shared: ``(gate_up [2J, H], down [H, J])`` of the shared expert, in the dtype of ``x``, or :class:`Fp8Experts`
            of one expert (``[1, 2J, H]`` and ``[1, H, J]``).
        top_k, capacity, overflow, seed, renormalize, num_tokens: as :func:`route` takes them; ``capacity`` in tokens
            for each expert, None never drops.
        residual: ``[..., H]`` added in the same pass as the shared expert.
        return_routing: also return what :func:`load_balancing_loss` and statistics need.

    Returns:
        y ``[..., H]`` in the dtype of ``x`` (under autocast bfloat16, or float32 with a float32 ``residual``); with
        ``return_routing`` the tuple ``(y, logits, routing)``: the router's logits ``[T, E]`` (T the product of the
        leading dimensions) and the :class:`Routing`.

    Raises:
        RuntimeError, ValueError: shapes or dtypes that do not fit, named by the op that found them.
    """
    if gate.dim() != 2 or x.dim() < 1 or gate.shape[1] != x.shape[-1]:
        raise ValueError(
            f"moe: gate has shape {list(gate.shape)} and x {list(x.shape)}; required: gate [E, H] and x [..., H]"
        )
    check_one_device("moe", ("x", "gate", "residual"), (x, gate, residual))
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"moe: residual has shape {list(residual.shape)}; required: that of x, {list(x.shape)}")
    tokens = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)  # reshape(-1, H) is ambiguous for H = 0
    # Rounded logits would send tokens elsewhere. Tensors without data know no autocast.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        logits = F.linear(tokens.to(gate.dtype), gate)
    if isinstance(experts, Fp8Experts):
        _check_fp8_experts(experts)
    elif not isinstance(experts, Nf4Experts):
        _check_pair("experts", experts)
    if isinstance(shared, Fp8Experts):
        _check_fp8_experts(shared, "shared")
    elif shared is not None:
        _check_pair("shared", shared)
        shared = SharedExpert(*shared)
    flat_residual = None if residual is None else residual.reshape(tokens.shape)
    options = (top_k, capacity, overflow, seed, renormalize, num_tokens)
    weights = _in_one_call(experts, shared)
    if weights is not None and _is_inference_on_cpu(tokens, logits, flat_residual, *weights[0], *weights[1]):
        routed, dense = weights
        y, *routed_by = ops.moe(tokens, logits, *route_options(logits, *options), *routed, *dense, flat_residual)
        routing = routing_of(tuple(routed_by))
    else:
        routing = routing_of(ops.route(logits, *route_options(logits, *options)))
        y = expert_mlp(tokens, routing, experts)
        y = combine(y, routing, None if shared is None else _dense_mlp(tokens, shared), flat_residual)
    out = y.reshape(x.shape)
    return (out, logits, routing) if return_routing else out


def expert_mlp(x: Tensor, routing: Routing, experts: AnyExperts) -> Tensor:
    """The routed experts alone: ``[T, H]`` tokens to ``[S, H]`` expert outputs, ready for :func:`combine`.

    For a router of someone else's: ``combine(expert_mlp(x, r, experts), r)`` with ``r = routing_from_ids(...)``.
    """
    if isinstance(experts, Fp8Experts):
        _check_fp8_experts(experts)
    weights = _in_one_call(experts)
    if weights is not None and _is_inference_on_cpu(x, *weights[0]):
        return ops.expert_mlp(x, routing.token_ids, routing.expert_offsets, *weights[0])
    if isinstance(experts, Fp8Experts):
        return _fp8_experts(x, routing, routing.expert_offsets, experts)
    if isinstance(experts, Nf4Experts):
        hidden = grouped_swiglu_nf4(dispatch(x, routing), experts.gate_up, routing.expert_offsets)
        return grouped_gemm_nf4(hidden, experts.down, routing.expert_offsets)
    gate_up, down = experts
    hidden = grouped_swiglu(dispatch(x, routing), gate_up, routing.expert_offsets)
    return grouped_gemm(hidden, down, routing.expert_offsets)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check_tokens(op: str, x: Tensor) -> None:
    torch._check(x.dim() == 2, lambda: f"{op}: x has shape {list(x.shape)}; required: [T, H]")


@register_fake("expert_mlp")
def _(x: Tensor, token_ids: Tensor, *_: Any) -> Tensor:
    _check_tokens("expert_mlp", x)
    return x.new_empty((token_ids.shape[0], x.shape[1]))


@register_fake("moe")
def _(x: Tensor, logits: Tensor, top_k: int, capacity: int | None, *_: Any) -> tuple[Tensor, ...]:
    _check_tokens("moe", x)
    return x.new_empty(x.shape), *fake_routing(logits, x.shape[0], top_k, logits.shape[1], capacity)


def _no_gradient(op: str) -> Callable[..., NoReturn]:
    def backward(*_: Any) -> NoReturn:
        raise RuntimeError(f"torch.ops.hunyuan_kernels.{op}: is for inference; hunyuan_kernels.{op} has gradients")

    return backward


for _name in ("expert_mlp", "moe"):
    register_gradient(_name, _no_gradient(_name))
