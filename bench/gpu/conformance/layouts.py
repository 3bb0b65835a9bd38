"""Where the manual puts the elements of matrices: shared memory under the four swizzles, and registers.

Formulas of the PTX manual (matrix descriptors, canonical layouts, fragments), in numbers of bytes."""

import torch
from torch import Tensor

#: Layout type in bits 62-63 of a descriptor.
_TYPES = {0: 0, 128: 1, 64: 2, 32: 3}
STEP_BYTES = 32  # what one wgmma multiplies along K


def swizzled(offset: Tensor, span: int) -> Tensor:
    """XOR of the 16-byte chunk with the number of the 128-byte line: all, two or one of its three bits."""
    return offset ^ ((offset >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[span]) << 4)


def place(matrix: Tensor, swizzle: int, mn_major: bool) -> tuple[Tensor, list[int]]:
    """A [rows, depth] matrix as its bytes in shared memory, and the descriptors (base address 0) of its steps along K.

    The base must be aligned to 1024 bytes.
    """
    size, (rows, depth) = matrix.element_size(), matrix.shape
    span = swizzle or 16
    row = torch.arange(rows).view(-1, 1).expand(rows, depth)
    column = torch.arange(depth).expand(rows, depth)
    steps = range(depth * size // STEP_BYTES)
    if mn_major:
        # Lines of `span` bytes hold neighbours along M or N, one line for each k; beside one another along M or N.
        along, across = row * size, column
        lead, starts = depth * span, [STEP_BYTES // size * span * s for s in steps]
        # Without swizzle the two strides change their names.
        leading, stride = (8 * span, lead) if swizzle == 0 else (lead, 8 * span)
    else:
        # Lines of `span` bytes hold neighbours along K, one line for each row.
        along, across = column * size, row
        lead = rows * span
        starts = [STEP_BYTES * s // span * lead + STEP_BYTES * s % span for s in steps]
        leading, stride = (lead, 8 * span) if swizzle == 0 else (16, 8 * span)
    offset = swizzled(along // span * lead + across * span + along % span // 16 * 16, swizzle) + along % 16
    image = torch.zeros(rows * depth * size, dtype=torch.uint8)
    source = matrix.contiguous().view(torch.uint8).view(-1, size)
    for byte in range(size):
        image[offset.reshape(-1) + byte] = source[:, byte]
    fixed = leading >> 4 << 16 | stride >> 4 << 32 | _TYPES[swizzle] << 62
    return image, [fixed | start >> 4 for start in starts]


def accumulator_positions(columns: int, packed: bool) -> tuple[Tensor, Tensor]:
    """Row and column of each element that a warpgroup holds of a 64 x columns tile: [registers, 128], with a last
    dimension of 2 where two 16-bit elements share a register (the first in the low half)."""
    per = 2 if packed else 1
    element = torch.arange(columns // 2).view(-1, 1, per)  # of a thread, in order
    thread = torch.arange(128).view(1, -1, 1)
    row = thread // 32 * 16 + thread % 32 // 4 + element // 2 % 2 * 8
    column = element // 4 * 8 + thread % 4 * 2 + element % 2
    return tuple(t.squeeze(-1) for t in torch.broadcast_tensors(row, column))


def a_fragment(matrix: Tensor) -> Tensor:
    """The four registers of each thread for one step of A [64, 32 bytes]: int32 [4, 128]."""
    per = 4 // matrix.element_size()
    register, thread, element = (
        torch.arange(n).view(shape) for n, shape in ((4, (-1, 1, 1)), (128, (1, -1, 1)), (per, (1, 1, -1)))
    )
    row = thread // 32 * 16 + thread % 32 // 4 + register % 2 * 8
    column = register // 2 * 4 * per + thread % 4 * per + element
    row, column = torch.broadcast_tensors(row, column)
    raw = matrix.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[matrix.element_size()])
    return raw[row, column].contiguous().view(torch.int32).squeeze(-1)
