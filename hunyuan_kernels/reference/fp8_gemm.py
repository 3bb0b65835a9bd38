"""Specification of the stem ``fp8_gemm``: dequantize everything to fp64, then multiply.

Scales of any recipe are spread over the elements first, so that nothing here depends on the recipe afterwards.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels.reference import grouped_gemm as grouped
from hunyuan_kernels.reference.prepack import unpack
from hunyuan_kernels.reference.quantize import quantize_fp8

BLOCK = 128


def spread(blocks: Tensor, rows: int, columns: int, block_rows: int) -> Tensor:
    """Blocks ``[..., rows / block_rows, columns / 128]`` (rounded up) as ``[..., rows, columns]``."""
    return blocks.repeat_interleave(block_rows, -2)[..., :rows, :].repeat_interleave(BLOCK, -1)[..., :columns]


def dequantize_activations(a: Tensor, scale: Tensor | None) -> Tensor:
    """fp64 values of ``a`` [S, K] under a scale per tensor, per row [S] or per 1 x 128 block [S, ceil(K / 128)]."""
    values = a.double()
    if scale is None:
        return values
    if scale.numel() == 1 and scale.dim() <= 1:
        return values * scale.double().reshape(())
    if scale.dim() == 1:
        return values * scale.double()[:, None]
    return values * spread(scale.double(), a.shape[0], a.shape[1], 1)


def dequantize_weights(b: Tensor, scale: Tensor, halves: bool = False) -> Tensor:
    """fp64 values of ``b``, [E, N, K] or packed: scale [E], [E, 2] (``halves``), [E, N] or blocks, also of halves."""
    if b.dim() > 3:
        b = unpack(b)
    experts, rows, columns = b.shape
    if halves and scale.dim() == 4:
        half = spread(scale.double(), rows // 2, columns, BLOCK)
        return b.double() * half.reshape(experts, rows, columns)
    if scale.dim() == 3:
        return b.double() * spread(scale.double(), rows, columns, BLOCK)
    if halves and scale.shape == (experts, 2):
        scale = scale.repeat_interleave(rows // 2, 1)
    return b.double() * scale.double().reshape(experts, -1, 1)


def fp8_gemm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """See :func:`hunyuan_kernels.fp8_gemm`; fp64."""
    weights = dequantize_weights(b[None], b_scale.reshape(1, *(() if b_scale.numel() == 1 else b_scale.shape)))
    return dequantize_activations(a, a_scale) @ weights[0].T


def fp8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """See :func:`hunyuan_kernels.fp8_linear`; fp64."""
    scale = weight_scale.reshape(1, *(() if weight_scale.numel() == 1 else weight_scale.shape))
    out = x.double() @ dequantize_weights(weight[None], scale)[0].T
    return out if bias is None else out + bias.double()


def grouped_gemm_fp8(
    a: Tensor,
    b: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """See :func:`hunyuan_kernels.grouped_gemm_fp8`; fp64."""
    return grouped.grouped_gemm(dequantize_activations(a, a_scale), dequantize_weights(b, b_scale), expert_offsets)


def grouped_swiglu_fp8(
    a: Tensor,
    gate_up: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`hunyuan_kernels.grouped_swiglu_fp8`; fp64, or with ``out_dtype`` e4m3 that, quantized."""
    preactivation = grouped.grouped_gemm(
        dequantize_activations(a, a_scale), dequantize_weights(gate_up, b_scale, halves=True), expert_offsets
    )
    gate, up = preactivation.chunk(2, dim=1)
    out = F.silu(gate) * up
    if out_dtype != torch.float8_e4m3fn:
        return out
    if out_scale is not None:
        return quantize_fp8(out.float(), "tensor", out_scale.reshape(()))
    return quantize_fp8(out.float(), "block_1x128")
