"""Weights laid out once in the order in which the CPU's GEMMs read them."""

from typing import Any

import torch
from torch import Tensor

from hunyuan_kernels._ops import ops, qualified

_WORDS = {torch.float32: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 4}
COLUMNS = 16


def prepack(weights: Tensor) -> Tensor:
    """Copies weights into the order in which the CPU kernels read them: for inference, in place of the weights.

    ``grouped_gemm``, ``grouped_swiglu``, ``fp8_gemm``, ``fp8_linear``, their grouped FP8 forms and ``moe`` take the
    result wherever they take weights; scales stay as they are. Every memory stream is contiguous then and nothing is
    transposed during the call, which matters most with few rows per expert. The order is that of every instruction
    set. A row's result does not depend on the number of rows (without packing, groups of few rows differ in the last
    bits).

    Args:
        weights: ``[E, N, K]`` or ``[N, K]``, bfloat16, float32 or float8_e4m3fn, on the CPU, of any strides. N must be
            a multiple of 16, K of 2 for bfloat16 and of 4 for float8_e4m3fn; for SwiGLU the halves of N must be
            multiples of 16.

    Returns:
        ``[E, N / 16, K / w, 16, w]`` or ``[N / 16, K / w, 16, w]`` in the dtype of ``weights``, contiguous, with w the
        elements of 4 bytes: ``packed[e, p, l, c, i] = weights[e, 16 p + c, w l + i]``. float8_e4m3fn has that shape,
        too, but of every four columns the bytes lie as ``[i / 2][c][i % 2]``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape. Ops that need weights as they were (all gradients) say so.

    Not differentiable: the result is a constant.
    """
    return ops.prepack(weights.detach())


def weight_shape(op: str, name: str, weights: Tensor, rank: int) -> tuple[Any, ...]:
    """The shape of weights of ``rank`` dimensions, from themselves or from what :func:`prepack` made of them."""
    if weights.dim() == rank + 2:
        *experts, panels, lines, columns, word = weights.shape
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


@torch.library.register_fake(qualified("prepack"))
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
    word = _WORDS[weights.dtype]
    torch._check(
        rows % COLUMNS == 0 and columns % word == 0,
        lambda: f"prepack: weights has shape {list(weights.shape)}; N must be a multiple of {COLUMNS} and K of {word}",
    )
    return weights.new_empty((*experts, rows // COLUMNS, columns // word, COLUMNS, word))
