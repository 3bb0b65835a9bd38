"""Specification of the stem ``nf4_gemm``: the quantizer, the weights that it means, and products in fp64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels.ops.nf4_gemm import Nf4Weights
from hunyuan_kernels.reference import grouped_gemm as grouped

DEPTH = 64
#: Dettmers et al., arXiv 2305.14314, appendix E; the format has them rounded to bf16.
PUBLISHED = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
VALUES = torch.tensor(PUBLISHED).bfloat16().float()
ZERO = 7


def _blocks(codes: Tensor, absmax: Tensor) -> Tensor:
    """Codes ``[..., N, K]`` and absmax ``[..., N, K / 64]`` as bytes ``[..., N / 16, K / 64, 528]``."""
    *experts, rows, columns = codes.shape
    count = experts[0] if experts else 1
    # [n, c, block, line, k / 2, parity] -> [n, block, line, c, parity, k / 2]: a nibble each, the lowest one first
    split = codes.reshape(count, rows // 16, 16, columns // DEPTH, 8, 4, 2).permute(0, 1, 3, 4, 2, 6, 5)
    data = split[..., 0::2] | split[..., 1::2] << 4
    last = absmax.view(torch.uint8).reshape(count, rows // 16, 16, columns // DEPTH).transpose(2, 3)
    shape = (*experts, rows // 16, columns // DEPTH)
    return torch.cat([data.reshape(*shape, 512), last.reshape(*shape, 16)], dim=-1)


def quantize_nf4(weights: Tensor) -> Nf4Weights:
    """See :func:`hunyuan_kernels.quantize_nf4`."""
    *experts, rows, columns = weights.shape
    blocks = weights.float().reshape(*experts, rows, columns // DEPTH, DEPTH)
    amax = blocks.abs().amax(-1)
    largest = amax.amax(-1) if columns else amax.new_zeros(*experts, rows)
    scale = largest / 448
    scale = torch.where(scale < 2.0**-126, torch.ones_like(scale), scale)
    absmax = (amax / scale[..., None]).to(torch.float8_e4m3fn)
    step = absmax.float() * scale[..., None]
    codes = torch.bucketize(blocks / step[..., None], (VALUES[:-1] + VALUES[1:]) / 2).to(torch.uint8)
    codes = codes.where(step[..., None] != 0, torch.full_like(codes, ZERO))
    return Nf4Weights(_blocks(codes.reshape(weights.shape), absmax), scale)


def dequantize_nf4(weights: Nf4Weights) -> Tensor:
    """The weights, fp64 ``[..., N, K]``."""
    *experts, panels, depth, _ = weights.blocks.shape
    count = experts[0] if experts else 1
    data = weights.blocks[..., :512].reshape(count, panels, depth, 8, 16, 2, 2)
    codes = torch.stack([data & 15, data >> 4], dim=-1).reshape(count, panels, depth, 8, 16, 2, 4)
    codes = codes.permute(0, 1, 4, 2, 3, 6, 5).reshape(count, panels * 16, depth, DEPTH)
    absmax = weights.blocks[..., 512:].contiguous().view(torch.float8_e4m3fn).double()
    absmax = absmax.reshape(count, panels, depth, 16).transpose(2, 3).reshape(count, panels * 16, depth, 1)
    values = VALUES.double()[codes.long()] * absmax * weights.scale.double().reshape(count, panels * 16, 1, 1)
    return values.reshape(*experts, panels * 16, depth * DEPTH)


def nf4_linear(x: Tensor, weights: Nf4Weights, bias: Tensor | None = None) -> Tensor:
    """See :func:`hunyuan_kernels.nf4_linear`; fp64."""
    out = x.double() @ dequantize_nf4(weights).T
    return out if bias is None else out + bias.double()


def grouped_gemm_nf4(
    a: Tensor, weights: Nf4Weights, expert_offsets: Tensor, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """See :func:`hunyuan_kernels.grouped_gemm_nf4`; fp64."""
    return grouped.grouped_gemm(a, dequantize_nf4(weights), expert_offsets)


def grouped_swiglu_nf4(a: Tensor, gate_up: Nf4Weights, expert_offsets: Tensor) -> Tensor:
    """See :func:`hunyuan_kernels.grouped_swiglu_nf4`; fp64."""
    gate, up = grouped_gemm_nf4(a, gate_up, expert_offsets).chunk(2, dim=1)
    return F.silu(gate) * up
