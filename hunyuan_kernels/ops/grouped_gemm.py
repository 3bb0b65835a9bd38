"""Grouped GEMM over expert-major rows, its gradients, and grouped SwiGLU.

Rows are grouped by expert: group ``e`` is rows ``expert_offsets[e]`` to ``expert_offsets[e + 1]``, as ``dispatch`` lays
them out. All sums are accumulated in fp32, in an order that depends on K alone: a row's result does not depend on the
other rows' values, on its place or on the number of threads. It does depend (in its last bits) on whether the group has
one row, few rows (at most 16; 12 on Arm; 8 where the CPU has 16 vector registers) or more, which take different ways
through the weights when those are contiguous along K. On CPUs with bf16 dot products (the instruction sets
``avx512_bf16`` and ``neon_bf16``) subnormal bf16 inputs count as zero, as those instructions define.

On a GPU (Hopper) operands are bfloat16; float32 gradients are rounded to it. Groups of few rows take kernels of their
own, chosen from S, the number of experts and the GPU, so that a row's last bits can depend on S. Offsets are not
checked there: group ``e`` ends at the largest of ``expert_offsets[1 : e + 2]``, within 0 and S, and starts where the
one before ends. Operands whose rows do not start at multiples of 16 bytes (odd N or K, slices) are copied first,
weights too.
"""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hunyuan_kernels._ops import mark_written, ops, qualified
from hunyuan_kernels._registration import check_in_place, register_fake, register_gradient
from hunyuan_kernels.ops.prepack import weight_shape

_FLOATING = (torch.bfloat16, torch.float32)


def grouped_gemm(a: Tensor, b: Tensor, expert_offsets: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Multiplies every group of rows by the weights of its expert: ``out[r] = a[r] @ b[e].T`` for the rows of group e.

    Args:
        a: ``[S, K]``, bfloat16 or float32 (on a GPU bfloat16). Rows may have any stride; other layouts are copied.
        b: ``[E, N, K]`` in the dtype of ``a``, one weight matrix per expert as in ``torch.nn.Linear``. Read in place:
            the stride along K or the one along N must be 1 (a transposed view of ``[E, K, N]`` is fine), others are
            free. On the CPU also what :func:`prepack` made of them.
        expert_offsets: int32 ``[E + 1]``, starting with 0, not decreasing, ending with at most S. On the CPU it is
            checked; empty groups and groups of any size are fine.
        out_dtype: bfloat16 or float32; the dtype of ``a`` when not given.

    Returns:
        ``[S, N]``. Rows at and past ``expert_offsets[E]`` are zeros; those rows of ``a`` are not read.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, weights without a unit stride, or (on the CPU) wrong
            offsets.

    Differentiable with respect to ``a`` and ``b``. Under autocast both are cast to bfloat16.
    """
    return ops.grouped_gemm(a, b, expert_offsets, out_dtype)


def grouped_gemm_wgrad_(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> None:
    """Adds the weight gradient of :func:`grouped_gemm` in place: ``grad_b[e] += grad_out_e.T @ a_e``, in fp32.

    For gradients that are accumulated over several backward passes without rounding each to bfloat16. Experts without
    rows are not touched.

    Args:
        grad_b: float32 ``[E, N, K]``, changed in place, apart from the other tensors; the stride along K or the one
            along N must be 1.
        grad_out: ``[S, N]``, bfloat16 or float32.
        a: ``[S, K]``, bfloat16 or float32 (on a GPU bfloat16).
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`. Rows past the last one are not read.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, shared memory, or (on the CPU) wrong offsets; outside
            ``torch.no_grad()`` also a tensor that requires a gradient: there is none of what is added.
    """
    check_in_place("grouped_gemm_wgrad_", "grad_b", grad_b=grad_b, grad_out=grad_out, a=a)
    ops.grouped_gemm_wgrad_(grad_b, grad_out, a, expert_offsets)
    mark_written(grad_b)


@overload
def grouped_swiglu(
    a: Tensor, gate_up: Tensor, expert_offsets: Tensor, *, return_preactivation: Literal[False] = False
) -> Tensor: ...
@overload
def grouped_swiglu(
    a: Tensor, gate_up: Tensor, expert_offsets: Tensor, *, return_preactivation: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def grouped_swiglu(
    a: Tensor, gate_up: Tensor, expert_offsets: Tensor, *, return_preactivation: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Grouped GEMM with SwiGLU in its epilogue: ``silu(a[r] @ gate[e].T) * (a[r] @ up[e].T)`` for the rows of group e.

    ``gate`` is the first half of the rows of ``gate_up``, ``up`` the second one, as in the published checkpoints;
    ``silu(x) = x / (1 + exp(-x))``. The activation is computed from the fp32 sums and rounded once. Without gradients
    the ``[S, 2I]`` pre-activation never exists; with gradients it is kept, rounded to the dtype of ``a``, and backward
    computes from that. The result is the same bit for bit either way.

    Args:
        a: ``[S, K]``, bfloat16 or float32 (on a GPU bfloat16).
        gate_up: ``[E, 2I, K]`` in the dtype of ``a``, read in place as ``b`` of :func:`grouped_gemm`.
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`.
        return_preactivation: also return ``[S, 2I]``, the rounded ``a[r] @ gate_up[e].T``.

    Returns:
        ``[S, I]`` in the dtype of ``a``, with zeros at and past row ``expert_offsets[E]``; or a pair of it and the
        pre-activation.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, an odd number of rows of ``gate_up``, weights without a unit
            stride, or (on the CPU) wrong offsets.

    Differentiable with respect to ``a`` and ``gate_up``. Under autocast both are cast to bfloat16. Source of the order
    and the formula: ``modeling_hunyuan.py`` of Tencent-Hunyuan-Large (``HunYuanMLP``).
    """
    if return_preactivation:
        return ops.grouped_swiglu_preactivation(a, gate_up, expert_offsets)
    if torch.is_grad_enabled() and (a.requires_grad or gate_up.requires_grad):
        return ops.grouped_swiglu_preactivation(a, gate_up, expert_offsets)[0]
    return ops.grouped_swiglu(a, gate_up, expert_offsets)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check(condition: Any, op: str, message: str) -> None:
    torch._check(condition, lambda: f"{op}: {message}")


def _check_operands(
    op: str,
    rows: tuple[str, Tensor],
    weights: tuple[str, Tensor],
    offsets: Tensor,
    weight_dim: int,
    packed: bool = False,
) -> tuple[Any, ...]:
    """Returns the shape of the weights before they were packed (which is allowed with ``packed``)."""
    (row_name, row), (weight_name, weight) = rows, weights
    _check(row.dim() == 2, op, f"{row_name} has shape {list(row.shape)}; 2 dimensions are required")
    allowed = weight.dim() == 3 or (packed and weight.dim() == 5)
    _check(allowed, op, f"{weight_name} has shape {list(weight.shape)}; 3 dimensions are required")
    shape = weight_shape(op, weight_name, weight, 3)
    for name, tensor in (rows, weights):
        _check(tensor.dtype in _FLOATING, op, f"{name} has dtype {tensor.dtype}; allowed: bfloat16, float32")
    _check(offsets.dtype == torch.int32, op, f"expert_offsets has dtype {offsets.dtype}; allowed: int32")
    _check(offsets.dim() == 1, op, f"expert_offsets has shape {list(offsets.shape)}; 1 dimension is required")
    _check(
        offsets.shape[0] == shape[0] + 1,
        op,
        f"expert_offsets has shape {list(offsets.shape)}; required: [E + 1] = [{shape[0] + 1}]",
    )
    _check(
        row.shape[1] == shape[weight_dim],
        op,
        f"{row_name} has shape {list(row.shape)}, but {weight_name} has shape {list(weight.shape)}",
    )
    return shape


def _check_same_dtype(op: str, a: Tensor, name: str, b: Tensor) -> None:
    _check(a.dtype == b.dtype, op, f"{name} has dtype {b.dtype}, but a has {a.dtype}; both must be the same")


def _checked_out_dtype(op: str, out_dtype: torch.dtype | None, otherwise: torch.dtype) -> torch.dtype:
    dtype = otherwise if out_dtype is None else out_dtype
    _check(dtype in _FLOATING, op, f"out_dtype is {dtype}; allowed: bfloat16, float32")
    return dtype


def _fake_grouped_gemm(a: Tensor, b: Tensor, expert_offsets: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    shape = _check_operands("grouped_gemm", ("a", a), ("b", b), expert_offsets, 2, packed=True)
    _check_same_dtype("grouped_gemm", a, "b", b)
    return a.new_empty((a.shape[0], shape[1]), dtype=_checked_out_dtype("grouped_gemm", out_dtype, a.dtype))


def _fake_dgrad(grad_out: Tensor, b: Tensor, expert_offsets: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    _check_operands("grouped_gemm_dgrad", ("grad_out", grad_out), ("b", b), expert_offsets, 1)
    dtype = _checked_out_dtype("grouped_gemm_dgrad", out_dtype, grad_out.dtype)
    return grad_out.new_empty((grad_out.shape[0], b.shape[2]), dtype=dtype)


def _fake_wgrad(grad_out: Tensor, a: Tensor, expert_offsets: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    shape = (expert_offsets.shape[0] - 1, grad_out.shape[1], a.shape[1])
    grad_b = a.new_empty(shape, dtype=_checked_out_dtype("grouped_gemm_wgrad", out_dtype, a.dtype))
    _check_operands("grouped_gemm_wgrad", ("grad_out", grad_out), ("grad_b", grad_b), expert_offsets, 1)
    return grad_b


def _fake_wgrad_(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> None:
    _check_operands("grouped_gemm_wgrad_", ("grad_out", grad_out), ("grad_b", grad_b), expert_offsets, 1)
    _check_operands("grouped_gemm_wgrad_", ("a", a), ("grad_b", grad_b), expert_offsets, 2)
    _check(grad_b.dtype == torch.float32, "grouped_gemm_wgrad_", f"grad_b has dtype {grad_b.dtype}; allowed: float32")


def _fake_swiglu_preactivation(a: Tensor, gate_up: Tensor, expert_offsets: Tensor) -> tuple[Tensor, Tensor]:
    shape = _check_operands("grouped_swiglu", ("a", a), ("gate_up", gate_up), expert_offsets, 2, packed=True)
    _check_same_dtype("grouped_swiglu", a, "gate_up", gate_up)
    rows = shape[1]
    _check(rows % 2 == 0, "grouped_swiglu", f"gate_up has shape {list(gate_up.shape)}; dimension 1 must be even")
    return a.new_empty((a.shape[0], rows // 2)), a.new_empty((a.shape[0], rows))


def _fake_swiglu(a: Tensor, gate_up: Tensor, expert_offsets: Tensor) -> Tensor:
    return _fake_swiglu_preactivation(a, gate_up, expert_offsets)[0]


# ---- gradients ------------------------------------------------------------------------------------------------------


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _operand_gradients(ctx: Any, grad: Tensor, a: Tensor, b: Tensor, expert_offsets: Tensor) -> tuple[Any, Any]:
    grad_a = ops.grouped_gemm_dgrad(grad, b, expert_offsets, a.dtype) if ctx.needs_input_grad[0] else None
    grad_b = ops.grouped_gemm_wgrad(grad, a, expert_offsets, b.dtype) if ctx.needs_input_grad[1] else None
    return grad_a, grad_b


def _grouped_gemm_backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    return *_operand_gradients(ctx, grad_out, *ctx.saved_tensors), None, None


def _save_preactivation(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _swiglu_preactivation_backward(
    ctx: Any, grad_out: Tensor | None, grad_preactivation: Tensor | None
) -> tuple[Any, ...]:
    a, gate_up, expert_offsets, preactivation = ctx.saved_tensors
    grad = grad_preactivation
    if grad_out is not None:
        grad = ops.swiglu_backward(grad_out, preactivation, expert_offsets)
        if grad_preactivation is not None:
            grad = grad + grad_preactivation
    if grad is None:
        return None, None, None
    return *_operand_gradients(ctx, grad, a, gate_up, expert_offsets), None


def _swiglu_backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    a, gate_up, expert_offsets = ctx.saved_tensors
    preactivation = ops.grouped_gemm(a, gate_up, expert_offsets)
    grad = ops.swiglu_backward(grad_out, preactivation, expert_offsets)
    return *_operand_gradients(ctx, grad, a, gate_up, expert_offsets), None


# Second derivatives. Both gradients of a product are products, so theirs are made of the same ops.


def _dgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_out, b, expert_offsets = ctx.saved_tensors
    by_grad_out = ops.grouped_gemm(grad, b, expert_offsets, grad_out.dtype) if ctx.needs_input_grad[0] else None
    by_b = ops.grouped_gemm_wgrad(grad_out, grad, expert_offsets, b.dtype) if ctx.needs_input_grad[1] else None
    return by_grad_out, by_b, None, None


def _wgrad_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_out, a, expert_offsets = ctx.saved_tensors
    by_grad_out = by_a = None
    if ctx.needs_input_grad[0]:
        by_grad_out = ops.grouped_gemm(a, grad.to(a.dtype), expert_offsets, grad_out.dtype)
    if ctx.needs_input_grad[1]:
        by_a = ops.grouped_gemm_dgrad(grad_out, grad.to(grad_out.dtype), expert_offsets, a.dtype)
    return by_grad_out, by_a, None, None


def _register() -> None:
    fakes: dict[str, Callable[..., Any]] = {
        "grouped_gemm": _fake_grouped_gemm,
        "grouped_gemm_dgrad": _fake_dgrad,
        "grouped_gemm_wgrad": _fake_wgrad,
        "grouped_gemm_wgrad_": _fake_wgrad_,
        "grouped_swiglu": _fake_swiglu,
        "grouped_swiglu_preactivation": _fake_swiglu_preactivation,
    }
    for name, fake in fakes.items():
        register_fake(name)(fake)
    gradients: dict[str, tuple[Any, Any]] = {
        "grouped_gemm": (_grouped_gemm_backward, _save_operands),
        "grouped_swiglu": (_swiglu_backward, _save_operands),
        "grouped_swiglu_preactivation": (_swiglu_preactivation_backward, _save_preactivation),
        "grouped_gemm_dgrad": (_dgrad_backward, _save_operands),
        "grouped_gemm_wgrad": (_wgrad_backward, _save_operands),
    }
    for name, (backward, setup_context) in gradients.items():
        register_gradient(name, backward, setup_context=setup_context)
    for name in ("grouped_gemm", "grouped_swiglu", "grouped_swiglu_preactivation"):
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(qualified(name), device, torch.bfloat16)


_register()
