"""GEMMs with NF4 weights: 4-bit codes in blocks of 64 along K, whose absmax is quantized in turn.

``weight[n, k] = value[code[n, k]] * absmax[n, k // 64] * scale[n]`` with ``absmax`` in e4m3 and ``scale`` in fp32:
4.125 bits for each weight and 32 for each row. The 16 values are those of Dettmers et al. (arXiv 2305.14314, appendix
E) rounded to bf16, and the weights are defined by the rounded ones: products are as exact as with bf16 weights.
"""

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from hunyuan_kernels._autocast import add_bias, to_autocast
from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake, register_gradient

ROWS, DEPTH, BLOCK = 16, 64, 528  # of a block: rows of the weights, k, bytes


class Nf4Weights(NamedTuple):
    """Weights ``[E, N, K]`` or ``[N, K]`` in NF4, from :func:`quantize_nf4`.

    ``blocks`` uint8 ``[E, N / 16, K / 64, 528]`` (without the E for one matrix): 512 bytes of codes and 16 of absmax,
    in the order in which the CPU kernels read them (``csrc/common/nf4.h``). ``scale`` float32 ``[E, N]`` or ``[N]``.
    """

    blocks: Tensor
    scale: Tensor


def quantize_nf4(weights: Tensor) -> Nf4Weights:
    """Quantizes weights to NF4.

    ``scale`` of a row is its largest absmax / 448, and 1 where that is below 2^-126; ``absmax`` is each block's largest
    magnitude / scale, rounded to e4m3; a code is that of the value nearest to ``weight / (absmax * scale)`` (between
    two, the lower one), all in IEEE fp32. Blocks whose absmax rounds to zero become zeros.

    Args:
        weights: ``[E, N, K]`` or ``[N, K]``, bfloat16 or float32, finite, on the CPU. N must be a multiple of 16, K of
            64; for SwiGLU the halves of N must be multiples of 16.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, NaN or infinity.

    Not differentiable: the result is a constant.
    """
    scale, blocks = ops.quantize_nf4(weights.detach())
    return Nf4Weights(blocks, scale)


def nf4_linear(x: Tensor, weights: Nf4Weights, bias: Tensor | None = None) -> Tensor:
    """``x @ weights.T + bias`` with NF4 weights.

    Args:
        x: ``[..., K]`` bfloat16 or float32.
        weights: of one matrix ``[N, K]``.
        bias: ``[N]`` in the dtype of ``x``.

    Returns:
        ``[..., N]`` in the dtype of ``x``. Sums are in fp32, in an order that depends on K alone.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape.

    Not differentiable. Under autocast ``x`` is cast to bfloat16.
    """
    torch._check(x.dim() >= 1, lambda: "nf4_linear: x has no dimensions; required: [..., K]")
    x = to_autocast(x)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
    out = ops.nf4_linear(rows, weights.blocks, weights.scale)
    out = out.reshape(*x.shape[:-1], out.shape[1])
    return add_bias("nf4_linear", out, bias)


def grouped_gemm_nf4(
    a: Tensor, weights: Nf4Weights, expert_offsets: Tensor, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """:func:`grouped_gemm` with NF4 weights: ``out[r] = a[r] @ weights[e].T`` for the rows of group e.

    Args:
        a: ``[S, K]`` bfloat16 or float32.
        weights: of E matrices ``[N, K]``.
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`.
        out_dtype: bfloat16 or float32; the dtype of ``a`` when not given.

    Returns:
        ``[S, N]``, with zeros at and past row ``expert_offsets[E]``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, or wrong offsets.

    Not differentiable. Under autocast ``a`` is cast to bfloat16.
    """
    return ops.grouped_gemm_nf4(to_autocast(a), weights.blocks, weights.scale, expert_offsets, out_dtype)


def grouped_swiglu_nf4(a: Tensor, gate_up: Nf4Weights, expert_offsets: Tensor) -> Tensor:
    """:func:`grouped_swiglu` with NF4 weights.

    Args:
        a: ``[S, K]`` bfloat16 or float32.
        gate_up: of E matrices ``[2I, K]``: I rows of gate, then I rows of up; I a multiple of 16.
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`.

    Returns:
        ``[S, I]`` in the dtype of ``a``, with zeros at and past row ``expert_offsets[E]``.

    Raises:
        RuntimeError: as :func:`grouped_gemm_nf4`; halves that are no multiples of 16.

    Not differentiable. Under autocast ``a`` is cast to bfloat16.
    """
    return ops.grouped_swiglu_nf4(to_autocast(a), gate_up.blocks, gate_up.scale, expert_offsets)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check(condition: Any, op: str, message: str) -> None:
    torch._check(condition, lambda: f"{op}: {message}")


def _check_operands(op: str, name: str, a: Tensor, blocks: Tensor, scale: Tensor, rank: int) -> Any:
    """Returns N."""
    allowed = blocks.dtype == torch.uint8 and blocks.dim() == rank and blocks.shape[-1] == BLOCK
    _check(allowed, op, f"blocks is {blocks.dtype} {list(blocks.shape)}; required: what quantize_nf4 returns")
    rows = blocks.shape[-3] * ROWS
    required = (*blocks.shape[:-3], rows)
    _check(scale.shape == required, op, f"scale has shape {list(scale.shape)}; required: {list(required)}")
    columns = blocks.shape[-2] * DEPTH
    allowed = a.dim() == 2 and a.shape[1] == columns
    _check(allowed, op, f"{name} has shape {list(a.shape)}; 2 dimensions and {columns} columns are required")
    return rows


@register_fake("quantize_nf4")
def _(weights: Tensor) -> tuple[Tensor, Tensor]:
    op = "quantize_nf4"
    _check(weights.dtype in (torch.bfloat16, torch.float32), op, f"weights has dtype {weights.dtype}")
    _check(weights.dim() in (2, 3), op, f"weights has shape {list(weights.shape)}; required: [N, K] or [E, N, K]")
    *experts, rows, columns = weights.shape
    allowed = rows % ROWS == 0 and columns % DEPTH == 0
    _check(allowed, op, f"weights has shape {list(weights.shape)}; N must be a multiple of {ROWS} and K of {DEPTH}")
    blocks = weights.new_empty((*experts, rows // ROWS, columns // DEPTH, BLOCK), dtype=torch.uint8)
    return weights.new_empty((*experts, rows), dtype=torch.float32), blocks


@register_fake("nf4_linear")
def _(x: Tensor, blocks: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], _check_operands("nf4_linear", "x", x, blocks, scale, 3)))


@register_fake("grouped_gemm_nf4")
def _(a: Tensor, blocks: Tensor, scale: Tensor, expert_offsets: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    rows = _check_operands("grouped_gemm_nf4", "a", a, blocks, scale, 4)
    return a.new_empty((a.shape[0], rows), dtype=a.dtype if out_dtype is None else out_dtype)


@register_fake("grouped_swiglu_nf4")
def _(a: Tensor, blocks: Tensor, scale: Tensor, expert_offsets: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], _check_operands("grouped_swiglu_nf4", "a", a, blocks, scale, 4) // 2))


def _no_gradient(op: str) -> Any:
    def backward(*_: Any) -> NoReturn:
        raise RuntimeError(
            f"{op}: an input requires a gradient, but NF4 GEMMs have none; train with the bf16 or fp32 ops, or pass "
            "detached tensors"
        )

    return backward


for _name in ("nf4_linear", "grouped_gemm_nf4", "grouped_swiglu_nf4"):
    register_gradient(_name, _no_gradient(_name))
