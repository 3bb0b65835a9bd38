"""What the ops of the stem ``grouped_gemm`` compute, in plain PyTorch and fp64.

Results are float64: the exact values (up to fp64 rounding) that the ops round to their output dtype.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def _groups(expert_offsets: Tensor) -> list[tuple[int, int]]:
    return list(pairwise(expert_offsets.tolist()))


def grouped_gemm(a: Tensor, b: Tensor, expert_offsets: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """``out[r] = a[r] @ b[e].T`` for the rows of group e; zeros past the last. ``out_dtype`` rounds nothing here."""
    a = a.double()
    # expert by expert: all weights of a large model in fp64 do not fit
    products = [a[start:end] @ b[e].double().T for e, (start, end) in enumerate(_groups(expert_offsets))]
    rest = a.new_zeros(a.shape[0] - int(expert_offsets[-1]), b.shape[1])
    return torch.cat([*products, rest])


def grouped_gemm_wgrad_(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    """``grad_b[e] + grad_out_e.T @ a_e``: what is in ``grad_b`` afterwards (here it is returned)."""
    total = grad_b.double().clone()
    for e, (start, end) in enumerate(_groups(expert_offsets)):
        total[e] += grad_out[start:end].double().T @ a[start:end].double()
    return total


def grouped_swiglu(
    a: Tensor, gate_up: Tensor, expert_offsets: Tensor, *, return_preactivation: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """``silu(a[r] @ gate[e].T) * (a[r] @ up[e].T)``, gate and up being the halves of the rows of ``gate_up[e]``."""
    preactivation = grouped_gemm(a, gate_up, expert_offsets)
    gate, up = preactivation.chunk(2, dim=1)
    out = F.silu(gate) * up
    return (out, preactivation) if return_preactivation else out
