"""Specification of :func:`hunyuan_kernels.swiglu`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` in fp64, gate and up being the halves of the columns; zeros past the last offset."""
    gate, up = x.double().chunk(2, dim=1)
    out = F.silu(gate) * up
    if expert_offsets is None:
        return out
    return torch.where(torch.arange(x.shape[0])[:, None] < expert_offsets[-1], out, 0.0)


def swiglu_backward(grad_out: Tensor, preactivation: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    """Gradient of :func:`swiglu` to its argument in fp64, with ``s = sigmoid(gate)``; zeros past the last offset."""
    grad, (gate, up) = grad_out.double(), preactivation.double().chunk(2, dim=1)
    s = gate.sigmoid()
    gradient = torch.cat([grad * up * s * (1 + gate * (1 - s)), grad * gate * s], dim=1)
    if expert_offsets is None:
        return gradient
    return torch.where(torch.arange(grad.shape[0])[:, None] < expert_offsets[-1], gradient, 0.0)
