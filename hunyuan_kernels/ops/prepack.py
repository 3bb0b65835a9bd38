"""Weights laid out once in the order in which the GEMMs read them."""

from typing import Any

import torch
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake

_WORDS = {torch.float32: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 4}
COLUMNS = 16
_LANES, _LANE_BYTES, _GPU_DEPTH = 32, 16, 32  # on a GPU: of 16 rows and 32 of K, for each lane of a warp 16 bytes


def prepack(weights: Tensor) -> Tensor:
    """Copies weights into the order in which the kernels of their device read them: for inference, in place of them.

    ``grouped_gemm``, ``grouped_swiglu``, ``fp8_gemm``, ``fp8_linear``, their grouped FP8 forms and ``moe`` take the
    result wherever they take weights; scales stay as they are. Every memory stream is contiguous then and nothing is
    transposed during the call, which matters most with few rows per expert. The order is that of every instruction
    set. A row's result does not depend on the number of rows (without packing, groups of few rows differ in the last
    bits).

    On a GPU (sm_90a) there is an order for float8_e4m3fn weights under bf16 activations, for ``fp8_linear``, ``moe``
    and, with ``a_scale`` None, ``grouped_gemm_fp8`` and ``grouped_swiglu_fp8``; the result has the same bits there,
    packed or not. Weights under e4m3 activations are not to be packed there, and bfloat16 ones have the right order:
    they are copied as they are. An order is that of the device on which it was made: copied to the other one, the ops
    refuse it.

    Args:
        weights: ``[E, N, K]`` or ``[N, K]``, bfloat16, float32 or float8_e4m3fn, on the CPU, of any strides. N must be
            a multiple of 16, K of 2 for bfloat16 and of 4 for float8_e4m3fn; for SwiGLU the halves of N must be
            multiples of 16. On a GPU: bfloat16 of any size, or float8_e4m3fn, N (the halves) a multiple of 16, K of 32.

    Returns:
        ``[E, N / 16, K / w, 16, w]`` or ``[N / 16, K / w, 16, w]`` in the dtype of ``weights``, contiguous, with w the
        elements of 4 bytes: ``packed[e, p, l, c, i] = weights[e, 16 p + c, w l + i]``. float8_e4m3fn has that shape,
        too, but of every four columns the bytes lie as ``[i / 2][c][i % 2]``. On a GPU ``[E, N / 16, K / 32, 32, 16]``
        or ``[N / 16, K / 32, 32, 16]``: ``reference.prepack.prepack_for_gpu`` is its definition; bfloat16 in the shape
        of ``weights``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape. Ops that need weights as they were (all gradients) say so.

    Not differentiable: the result is a constant.
    """
    return ops.prepack(weights.detach())


def weight_shape(op: str, name: str, weights: Tensor, rank: int) -> tuple[Any, ...]:
    """The shape of weights of ``rank`` dimensions, from themselves or from what :func:`prepack` made of them."""
    if weights.dim() == rank + 2:
        *experts, panels, lines, columns, word = weights.shape
        if weights.dtype == torch.float8_e4m3fn and (columns, word) == (_LANES, _LANE_BYTES):
            return (*experts, panels * COLUMNS, lines * _GPU_DEPTH)
        required = [COLUMNS, _WORDS.get(weights.dtype)]
        torch._check(
            [columns, word] == required,
            lambda: f"{op}: {name} has shape {list(weights.shape)}; packed weights end with dimensions {required}",
        )
        return (*experts, panels * columns, lines * word)
    torch._check(
        weights.dim() == rank, lambda: f"{op}: {name} has shape {list(weights.shape)}; {rank} dimensions are required"
    )
    return tuple(weights.shape)


@register_fake("prepack")
def _(weights: Tensor) -> Tensor:
    torch._check(
        weights.dtype in _WORDS,
        lambda: f"prepack: weights has dtype {weights.dtype}; allowed: bfloat16, float32, float8_e4m3fn",
    )
    torch._check(
        weights.dim() in (2, 3),
        lambda: f"prepack: weights has shape {list(weights.shape)}; required: [N, K] or [E, N, K]",
    )
    *experts, rows, columns = weights.shape
    if weights.device.type == "cuda":
        if weights.dtype == torch.bfloat16:
            return weights.new_empty(weights.shape)
        torch._check(
            weights.dtype == torch.float8_e4m3fn and rows % COLUMNS == 0 and columns % _GPU_DEPTH == 0,
            lambda: (
                f"prepack: weights has shape {list(weights.shape)} and dtype {weights.dtype}; allowed on a GPU: "
                f"bfloat16, or float8_e4m3fn with N a multiple of {COLUMNS} and K of {_GPU_DEPTH}"
            ),
        )
        return weights.new_empty((*experts, rows // COLUMNS, columns // _GPU_DEPTH, _LANES, _LANE_BYTES))
    word = _WORDS[weights.dtype]
    torch._check(
        rows % COLUMNS == 0 and columns % word == 0,
        lambda: f"prepack: weights has shape {list(weights.shape)}; N must be a multiple of {COLUMNS} and K of {word}",
    )
    return weights.new_empty((*experts, rows // COLUMNS, columns // word, COLUMNS, word))
