"""Specification of :func:`hunyuan_kernels.prepack`: a permutation of the elements."""

import torch
from torch import Tensor

COLUMNS = 16


def prepack(weights: Tensor) -> Tensor:
    """``packed[..., p, l, c, i] = weights[..., 16 p + c, w l + i]``; e4m3 with bytes ``[i / 2][c][i % 2]`` for 4 c."""
    *experts, rows, columns = weights.shape
    word = 4 // weights.element_size()
    shape = (*experts, rows // COLUMNS, columns // word, COLUMNS, word)
    if weights.dtype != torch.float8_e4m3fn:
        return weights.reshape(*experts, rows // COLUMNS, COLUMNS, columns // word, word).transpose(-3, -2).contiguous()
    # [panel, 4 columns, column, line, i / 2, i % 2] -> [panel, line, 4 columns, i / 2, column, i % 2]
    split = weights.view(torch.uint8).reshape(
        experts[0] if experts else 1, rows // COLUMNS, 4, 4, columns // word, 2, 2
    )
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape).view(torch.float8_e4m3fn)


def prepack_for_gpu(weights: Tensor) -> Tensor:
    """``packed[..., p, s, l, b]``: of rows ``16 p + l / 4`` and 8 further, at ``k = 32 s + 2 (l % 4)``.

    Byte b is bit by bit (product, half of its depth, row, element): row ``8 * (b // 2 % 2)`` further and k
    ``16 * (b // 8) + 8 * (b // 4 % 2) + b % 2`` further.
    """
    *experts, rows, columns = weights.shape
    split = weights.view(torch.uint8).reshape(-1, rows // COLUMNS, 2, 8, columns // 32, 2, 2, 4, 2)
    # [panel, row / 8, row % 8, s, product, half, l % 4, element]
    order = split.permute(0, 1, 4, 3, 7, 5, 6, 2, 8)
    return order.reshape(*experts, rows // COLUMNS, columns // 32, 32, 16).view(torch.float8_e4m3fn)


def unpack(packed: Tensor) -> Tensor:
    """The weights back, ``[..., N, K]``."""
    *experts, panels, lines, columns, word = packed.shape
    if (columns, word) == (32, 16):  # for a GPU
        split = packed.view(torch.uint8).reshape(-1, panels, lines, 8, 4, 2, 2, 2, 2)
        order = split.permute(0, 1, 7, 3, 2, 5, 6, 4, 8)
        return order.reshape(*experts, panels * COLUMNS, lines * 32).view(torch.float8_e4m3fn)
    shape = (*experts, panels * COLUMNS, lines * word)
    if packed.dtype != torch.float8_e4m3fn:
        return packed.transpose(-3, -2).reshape(shape)
    split = packed.view(torch.uint8).reshape(experts[0] if experts else 1, panels, lines, 4, 2, 4, 2)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(shape).view(torch.float8_e4m3fn)
