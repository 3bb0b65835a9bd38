"""The row movements of a mixture-of-experts layer: tokens to expert-major rows, and back."""

from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor

from hunyuan_kernels._autocast import to_widest
from hunyuan_kernels._ops import mark_written, ops
from hunyuan_kernels._registration import check_in_place, register_fake, register_gradient
from hunyuan_kernels.ops.quantize import activation_scale

if TYPE_CHECKING:
    from hunyuan_kernels.ops.routing import Routing


def dispatch(x: Tensor, routing: "Routing", *, out: Tensor | None = None) -> Tensor:
    """Gathers token rows in expert-major order: ``out[r] = x[routing.token_ids[r]]``.

    The rows of expert ``e`` are ``expert_offsets[e]`` to ``expert_offsets[e + 1]``, in the order of the assignments.

    Args:
        x: ``[T, H]`` float32, bfloat16 or float8_e4m3fn (rows already quantized with one static scale). Rows may have
            any stride; other layouts are copied.
        routing: of the same T tokens.
        out: ``[S, H]`` in the dtype of ``x``, contiguous, apart from the other tensors: written and returned. A buffer
            for many calls; the system clears new memory, which takes longer than to gather large results.

    Returns:
        ``[S, H]`` in the dtype of ``x``. Rows at and past ``expert_offsets[E]`` are zeros.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape; on the CPU also offsets that start elsewhere than at 0,
            decrease or pass S, and token numbers outside ``[0, T)``; ``out`` that shares memory, or together with
            gradients.

    Differentiable with respect to ``x``: the gradient of a token is the sum over its rows, in fp32, in the order of its
    choices.
    """
    if out is None:
        return ops.dispatch(x, routing.token_ids, routing.expert_offsets, routing.rows)
    check_in_place("dispatch", "out", out=out, x=x)
    ops.dispatch_(out, x, routing.token_ids, routing.expert_offsets)
    mark_written(out)
    return out


def dispatch_fp8(x: Tensor, routing: "Routing", scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`dispatch` that quantizes on the way, in blocks of 1 x 128: ``quantize_fp8(dispatch(x), "block_1x128")``.

    The same bits as those two steps, without writing the gathered rows in between. With ``scale``, one static scale for
    all: the bits of ``dispatch(quantize_fp8(x, "tensor", scale))``.

    Args:
        x: ``[T, H]`` bfloat16 or float32.
        routing: of the same T tokens.
        scale: one float32 element, a static scale; None for fresh scales of 1 x 128 blocks.

    Returns:
        ``(q, scale)``: q ``[S, H]`` float8_e4m3fn; scale float32 ``[S, ceil(H / 128)]``, M-major with strides
        ``(1, S rounded up to a multiple of 4)``, as the FP8 GEMMs read it; or the given one as ``[]``. Rows at and past
        ``expert_offsets[E]`` are zeros with scale 1.

    Raises:
        RuntimeError: as :func:`dispatch`; a ``scale`` of another dtype or of more than one element; and in backward,
            since rounding has no useful gradient.
    """
    if scale is None:
        return ops.dispatch_fp8(x, routing.token_ids, routing.expert_offsets)
    return ops.dispatch_fp8_static(x, routing.token_ids, routing.expert_offsets, scale), scale.reshape(())


def combine(y: Tensor, routing: "Routing", shared: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Weighted sum of each token's expert rows, plus shared expert and residual, in one pass.

    ``out[t] = sum_j weights[t, j] * y[rows[t, j]] + shared[t] + residual[t]``, accumulated in fp32 in exactly that
    order and rounded once: no atomics, the same bits on every run and for every number of threads. An assignment
    without a row (-1: dropped, padding, sentinel) contributes nothing, so a token that lost all of them gets shared +
    residual. A NaN in a row reaches only the token that owns it, also with weight 0.

    Args:
        y: ``[S, H]`` bfloat16 or float32, the experts' outputs. Rows may have any stride; other layouts are copied.
        routing: ``rows`` and ``weights`` ``[T, k]`` of it are used, and ``token_ids`` for its gradient on a GPU.
        shared: ``[T, H]`` in the dtype of ``y``, the shared expert's output.
        residual: ``[T, H]`` in the dtype of ``y``.

    Returns:
        ``[T, H]`` in the dtype of ``y``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape; on the CPU also row numbers outside ``[-1, S)`` and, in
            backward, a row that two assignments claim.

    Differentiable with respect to ``y`` (rows that no token owns get zeros), ``routing.weights``, ``shared`` and
    ``residual``. Under autocast ``y``, ``shared`` and ``residual`` may differ in dtype; the widest of them is taken.
    """
    y, shared, residual = cast("tuple[Tensor, Tensor | None, Tensor | None]", to_widest(y, shared, residual))
    return ops.combine(y, routing.rows, routing.weights, routing.token_ids, shared, residual)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check_2d(op: str, name: str, tensor: Tensor) -> None:
    torch._check(tensor.dim() == 2, lambda: f"{op}: {name} has shape {list(tensor.shape)}; 2 dimensions are required")


@register_fake("dispatch")
def _(x: Tensor, token_ids: Tensor, expert_offsets: Tensor, rows: Tensor) -> Tensor:
    _check_2d("dispatch", "x", x)
    return x.new_empty((token_ids.shape[0], x.shape[1]))


@register_fake("dispatch_")
def _(out: Tensor, x: Tensor, token_ids: Tensor, expert_offsets: Tensor) -> None:
    _check_2d("dispatch", "x", x)
    required = (token_ids.shape[0], x.shape[1])
    torch._check(
        out.shape == required and out.dtype == x.dtype and out.device == x.device,
        lambda: (
            f"dispatch: out is {out.dtype} {list(out.shape)} on {out.device}; required: {x.dtype} {list(required)} on "
            f"{x.device}, as x is"
        ),
    )


@register_fake("dispatch_fp8")
def _(x: Tensor, token_ids: Tensor, expert_offsets: Tensor) -> tuple[Tensor, Tensor]:
    _check_2d("dispatch_fp8", "x", x)
    rows = token_ids.shape[0]
    q = x.new_empty((rows, x.shape[1]), dtype=torch.float8_e4m3fn)
    return q, activation_scale(x, rows, (x.shape[1] + 127) // 128)


@register_fake("dispatch_fp8_static")
def _(x: Tensor, token_ids: Tensor, expert_offsets: Tensor, scale: Tensor) -> Tensor:
    _check_2d("dispatch_fp8", "x", x)
    return x.new_empty((token_ids.shape[0], x.shape[1]), dtype=torch.float8_e4m3fn)


@register_fake("combine")
def _(
    y: Tensor, rows: Tensor, weights: Tensor, token_ids: Tensor, shared: Tensor | None, residual: Tensor | None
) -> Tensor:
    _check_2d("combine", "y", y)
    _check_2d("combine", "rows", rows)
    required = (rows.shape[0], y.shape[1])
    for name, dense in (("shared", shared), ("residual", residual)):
        if dense is not None:
            torch._check(
                dense.shape == required and dense.dtype == y.dtype,
                lambda name=name, dense=dense: (
                    f"combine: {name} is {dense.dtype} {list(dense.shape)}; required: [T, H] = {list(required)} in the "
                    f"dtype of y, {y.dtype}"
                ),
            )
    return y.new_empty(required)


@register_fake("combine_backward")
def _(grad_out: Tensor, y: Tensor, rows: Tensor, weights: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), weights.new_empty(weights.shape)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _dispatch_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _x, token_ids, _offsets, rows = inputs
    ctx.save_for_backward(rows, token_ids)


def _dispatch_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
    rows, token_ids = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        return None, None, None, None
    ones = torch.ones_like(rows, dtype=torch.float32)
    return ops.combine(grad, rows, ones, token_ids, None, None), None, None, None


def _combine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, rows, weights, token_ids = ctx.saved_tensors
    needs_y, _, needs_weights, _, needs_shared, needs_residual = ctx.needs_input_grad
    grad_y = grad_weights = None
    if needs_y or needs_weights:
        grad_y, grad_weights = ops.combine_backward(grad, y, rows, weights, token_ids)
    return (
        grad_y if needs_y else None,
        None,
        grad_weights if needs_weights else None,
        None,
        grad if needs_shared else None,
        grad if needs_residual else None,
    )


def _combine_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _combine_second_backward(ctx: Any, to_grad_y: Tensor, to_grad_weights: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients are linear in each of grad_out, y and weights, so theirs are the same two ops again."""
    grad, y, rows, weights, token_ids = ctx.saved_tensors
    needs_grad, needs_y, _, needs_weights, _ = ctx.needs_input_grad
    by_grad = by_y = by_weights = None
    if needs_grad:
        through_y = ops.combine(to_grad_y, rows, weights, token_ids, None, None)
        by_grad = ops.combine(y, rows, to_grad_weights, token_ids, through_y, None)
    if needs_y:
        by_y = ops.combine_backward(grad, y, rows, to_grad_weights, token_ids)[0]
    if needs_weights:
        by_weights = ops.combine_backward(grad, to_grad_y, rows, weights, token_ids)[1]
    return by_grad, by_y, None, by_weights, None


def _no_gradient(*_: Any) -> NoReturn:
    raise RuntimeError(
        "dispatch_fp8: x requires a gradient, but rounding to e4m3 has none; use dispatch for training, or pass "
        "x.detach()"
    )


register_gradient("dispatch", _dispatch_backward, setup_context=_dispatch_setup)
register_gradient("combine", _combine_backward, setup_context=_combine_setup)
register_gradient("combine_backward", _combine_second_backward, setup_context=_combine_backward_setup)
register_gradient("dispatch_fp8", _no_gradient)
register_gradient("dispatch_fp8_static", _no_gradient)
