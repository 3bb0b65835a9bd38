"""Specification of :func:`hunyuan_kernels.dispatch`, :func:`dispatch_fp8` and :func:`combine`."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hunyuan_kernels.reference.quantize import quantize_fp8

if TYPE_CHECKING:
    from hunyuan_kernels.ops.routing import Routing


def dispatch(x: Tensor, routing: "Routing") -> Tensor:
    """``out[r] = x[token_ids[r]]`` for the rows in use, zeros behind them."""
    used = int(routing.expert_offsets[-1])
    out = x.new_zeros((routing.token_ids.shape[0], x.shape[1]))
    out[:used] = x[routing.token_ids[:used].long()]
    return out


def dispatch_fp8(x: Tensor, routing: "Routing", scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`dispatch`, then quantization in blocks of 1 x 128 (a row of zeros has scale 1), or under one scale."""
    if scale is not None:
        q, scale = quantize_fp8(x, "tensor", scale.reshape(()))
        return dispatch(q, routing), scale
    return quantize_fp8(dispatch(x, routing), "block_1x128")


def combine(y: Tensor, routing: "Routing", shared: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """``out[t] = sum_j weights[t, j] y[rows[t, j]] + shared[t] + residual[t]`` in fp64; row -1 contributes nothing."""
    rows, weights = routing.rows.long(), routing.weights.double()
    out = torch.zeros(rows.shape[0], y.shape[1], dtype=torch.float64)
    for j in range(rows.shape[1]):
        token = torch.nonzero(rows[:, j] >= 0).flatten()
        term = weights[token, j, None] * y.double()[rows[token, j]]
        out = out.index_add(0, token, term)
    for dense in (shared, residual):
        if dense is not None:
            out = out + dense.double()
    return out


def combine_backward(grad_out: Tensor, y: Tensor, routing: "Routing") -> tuple[Tensor, Tensor]:
    """Gradients of :func:`combine` to ``y`` and to the weights, in fp64; zeros for what takes no part."""
    grad_y = torch.zeros(y.shape, dtype=torch.float64)
    grad_weights = torch.zeros(routing.rows.shape, dtype=torch.float64)
    for j in range(routing.rows.shape[1]):
        token = torch.nonzero(routing.rows[:, j] >= 0).flatten()
        row = routing.rows[token, j].long()
        grad_y[row] = routing.weights[token, j, None].double() * grad_out[token].double()
        grad_weights[token, j] = (grad_out[token].double() * y[row].double()).sum(1)
    return grad_y, grad_weights
