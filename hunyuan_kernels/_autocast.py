"""Autocast for operators that ``torch.library.register_autocast`` does not fit: it would cast e4m3 and weights, too."""

import torch
from torch import Tensor


def to_autocast(x: Tensor) -> Tensor:
    """``x``, a GEMM's activations, in bfloat16 when it is float32 and autocast is on."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.bfloat16)
    return x


def to_widest(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the widest of their dtypes when autocast is on, as torch does for element-wise operators."""
    given = [t for t in tensors if t is not None]
    if not given or not torch.is_autocast_enabled(given[0].device.type):
        return tensors
    widest = given[0].dtype
    for tensor in given[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(None if t is None else t.to(widest) for t in tensors)
