"""SwiGLU as an operator of its own, for results of a GEMM whose epilogue does not hold it."""

from typing import Any

import torch
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake, register_gradient


def swiglu(x: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` with ``gate, up = x[:, :I], x[:, I:]`` and ``silu(v) = v / (1 + exp(-v))``.

    Computed in fp32 and rounded once. :func:`grouped_swiglu` does the same within its GEMM, without ``x`` ever being
    written.

    Args:
        x: ``[S, 2I]`` bfloat16 or float32, gate then up as in the published checkpoints. Rows may have any stride;
            other layouts are copied.
        expert_offsets: int32 ``[E + 1]`` of the routing that made the rows. Rows at and past its last element are
            zeros in the result and are not read. None: all rows count.

    Returns:
        ``[S, I]`` in the dtype of ``x``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, an odd number of columns; on the CPU also offsets that start
            elsewhere than at 0, decrease or pass S.

    Differentiable with respect to ``x``. Autocast leaves it in the dtype of ``x``, as it does ``torch``'s activations.
    Source of the order and the formula: ``modeling_hunyuan.py`` of Tencent-Hunyuan-Large (``HunYuanMLP``).
    """
    return ops.swiglu(x, expert_offsets)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check_preactivation(op: str, name: str, x: Tensor) -> None:
    torch._check(
        x.dim() == 2 and x.shape[1] % 2 == 0,
        lambda: f"{op}: {name} has shape {list(x.shape)}; required: [S, 2I]",
    )
    torch._check(
        x.dtype in (torch.bfloat16, torch.float32),
        lambda: f"{op}: {name} has dtype {x.dtype}; allowed: bfloat16, float32",
    )


@register_fake("swiglu")
def _(x: Tensor, expert_offsets: Tensor | None) -> Tensor:
    _check_preactivation("swiglu", "x", x)
    return x.new_empty((x.shape[0], x.shape[1] // 2))


@register_fake("swiglu_backward")
def _(grad_out: Tensor, preactivation: Tensor, expert_offsets: Tensor | None) -> Tensor:
    op, rows, columns = "swiglu_backward", *preactivation.shape
    _check_preactivation(op, "preactivation", preactivation)
    torch._check(
        grad_out.shape == (rows, columns // 2),
        lambda: f"{op}: grad_out has shape {list(grad_out.shape)}; required: [S, I] = [{rows}, {columns // 2}]",
    )
    return preactivation.new_empty(preactivation.shape)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
    x, expert_offsets = ctx.saved_tensors
    return ops.swiglu_backward(grad_out, x, expert_offsets), None


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    """With s = sigmoid(gate): silu' = s (1 + gate (1 - s)), silu'' = s (1 - s) (2 + gate (1 - 2 s))."""
    grad_out, preactivation, expert_offsets = ctx.saved_tensors
    out = grad_out.float()
    gate, up = preactivation.float().chunk(2, dim=1)
    to_gate, to_up = grad.float().chunk(2, dim=1)
    s = gate.sigmoid()
    first, second = s * (1 + gate * (1 - s)), s * (1 - s) * (2 + gate * (1 - 2 * s))
    by_out = to_gate * up * first + to_up * gate * s
    by_preactivation = torch.cat([out * (to_gate * up * second + to_up * first), out * to_gate * first], dim=1)
    if expert_offsets is not None:  # rows that no expert owns have no gradient, whatever they hold
        used = torch.arange(out.shape[0], device=out.device)[:, None] < expert_offsets[-1]
        by_out, by_preactivation = torch.where(used, by_out, 0.0), torch.where(used, by_preactivation, 0.0)
    return by_out.to(grad_out.dtype), by_preactivation.to(preactivation.dtype), None


register_gradient("swiglu", _backward, setup_context=_setup)
register_gradient("swiglu_backward", _second_backward, setup_context=_setup)
