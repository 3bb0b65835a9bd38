"""Specification of :func:`hunyuan_kernels.quantize_fp8`: e4m3 with one scale per tensor, row or block."""

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3_MAX = 448.0
#: Rows and columns of a block; None is the whole matrix.
BLOCKS: dict[str, tuple[int | None, int | None]] = {
    "tensor": (None, None),
    "row": (1, None),
    "block_1x128": (1, 128),
    "block_128x128": (128, 128),
}


def _grid(shape: torch.Size, recipe: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """How matrices [E, M, K] are cut: ``(number of blocks, size of a block)`` along M and along K.

    A block that spans a whole dimension exists also when that dimension is empty.
    """
    along_rows, along_columns = (
        (1, max(1, whole)) if size is None else (-(-whole // size), size)
        for size, whole in zip(BLOCKS[recipe], shape[1:], strict=True)
    )
    return along_rows, along_columns


def _blocked(x: Tensor, recipe: str) -> Tensor:
    """x [E, M, K], padded with zeros, as [E, row blocks, column blocks, elements of a block]."""
    (row_blocks, rows), (column_blocks, columns) = _grid(x.shape, recipe)
    padded = F.pad(x, (0, column_blocks * columns - x.shape[2], 0, row_blocks * rows - x.shape[1]))
    return padded.reshape(x.shape[0], row_blocks, rows, column_blocks, columns).permute(0, 1, 3, 2, 4).flatten(3)


def _expanded(scale: Tensor, shape: torch.Size, recipe: str) -> Tensor:
    """The scale of every element of [E, M, K] from one per block."""
    (row_blocks, rows), (column_blocks, columns) = _grid(shape, recipe)
    blocks = scale.reshape(shape[0], row_blocks, column_blocks)
    return blocks.repeat_interleave(rows, 1)[:, : shape[1]].repeat_interleave(columns, 2)[:, :, : shape[2]]


def round_to_e4m3(x: Tensor) -> Tensor:
    """fp32 to e4m3: round to nearest even, saturating at 448 (infinity too), NaN kept."""
    # Clamped first: casts of torch before 2.12 turn what is out of range into NaN.
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def scale_from_amax(amax: Tensor) -> Tensor:
    """``amax / 448`` in fp32, and 1 where that is not a normal number."""
    scale = amax / E4M3_MAX
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)


def quantize_fp8(x: Tensor, recipe: str, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See :func:`hunyuan_kernels.quantize_fp8`: same arguments, same results bit for bit."""
    matrices = x.float() if x.dim() == 3 else x.float().unsqueeze(0)
    if scale is None:
        blocks = _blocked(matrices, recipe)
        amax = torch.where(blocks.isfinite(), blocks.abs(), 0.0).amax(3)
        batch = [x.shape[0]] if x.dim() == 3 else []
        scale = scale_from_amax(amax).reshape(batch + _scale_shape(x, recipe))
    q = round_to_e4m3(matrices / _expanded(scale, matrices.shape, recipe)).reshape(x.shape)
    return q, scale


def _scale_shape(x: Tensor, recipe: str) -> list[int]:
    """Shape of the scales of one matrix: a dimension of one block that is the whole matrix is left out."""
    sizes = zip(BLOCKS[recipe], x.shape[-2:], strict=True)
    return [-(-whole // size) for size, whole in sizes if size]


def dequantize_fp8(q: Tensor, scale: Tensor, recipe: str) -> Tensor:
    """The fp64 values that ``q`` [M, K] or [E, M, K] stands for under ``scale``."""
    matrices = q.double() if q.dim() == 3 else q.double().unsqueeze(0)
    return (matrices * _expanded(scale.double(), matrices.shape, recipe)).reshape(q.shape)
