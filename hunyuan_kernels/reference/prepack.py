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


def unpack(packed: Tensor) -> Tensor:
    """The weights back, ``[..., N, K]``."""
    *experts, panels, lines, _, word = packed.shape
    shape = (*experts, panels * COLUMNS, lines * word)
    if packed.dtype != torch.float8_e4m3fn:
        return packed.transpose(-3, -2).reshape(shape)
    split = packed.view(torch.uint8).reshape(experts[0] if experts else 1, panels, lines, 4, 2, 4, 2)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(shape).view(torch.float8_e4m3fn)
