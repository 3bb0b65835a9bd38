"""Specification of :func:`hunyuan_kernels.moe`: every token by itself, in fp64, with no dispatch at all."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """``W_down (SiLU(W_gate x) * W_up x)`` for rows x [M, H], gate_up [2I, H] (gate, then up) and down [H, I]."""
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def moe_from_routing(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    rows: Tensor,
    experts: tuple[Tensor, Tensor],
    shared: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """``shared(x_t) + sum_j w_tj expert_{e_tj}(x_t) + residual_t`` over the assignments with a row.

    x [T, H]; expert_ids, weights, rows [T, k]; everything is computed in ``dtype`` and returned so.
    """
    x = x.to(dtype)
    y = torch.zeros_like(x)
    gate_up, down = experts
    for e in range(gate_up.shape[0]):
        token, choice = torch.nonzero((expert_ids == e) & (rows >= 0), as_tuple=True)
        if token.numel():  # converting weights that nobody needs would take most of the time
            out = swiglu_mlp(x[token], gate_up[e].to(dtype), down[e].to(dtype))
            y.index_add_(0, token, weights[token, choice, None].to(dtype) * out)
    if shared is not None:
        y = y + swiglu_mlp(x, shared[0].to(dtype), shared[1].to(dtype))
    if residual is not None:
        y = y + residual.to(dtype)
    return y
