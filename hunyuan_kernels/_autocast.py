"""Autocast for operators that ``torch.library.register_autocast`` does not fit: it would cast e4m3 and weights, too."""

import torch
from torch import Tensor

from hunyuan_kernels._registration import check_one_device


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on; torch knows of none for tensors without data and raises when it is asked."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def to_autocast(x: Tensor) -> Tensor:
    """``x``, a GEMM's activations, in bfloat16 when it is float32 and autocast is on."""
    if x.dtype == torch.float32 and is_autocast_on(x.device.type):
        return x.to(torch.bfloat16)
    return x


def to_widest(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in the widest of their dtypes when autocast is on, as torch does for element-wise operators."""
    given = [t for t in tensors if t is not None]
    if not given or not is_autocast_on(given[0].device.type):
        return tensors
    widest = given[0].dtype
    for tensor in given[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return tuple(None if t is None else t.to(widest) for t in tensors)


def add_bias(op: str, out: Tensor, bias: Tensor | None) -> Tensor:
    """``out + bias``; plain addition would broadcast biases of other shapes and widen the result for other dtypes."""
    if bias is None:
        return out
    check_one_device(op, ("x", "bias"), (out, bias))
    bias = to_autocast(bias)
    if bias.shape != out.shape[-1:] or bias.dtype != out.dtype:
        raise RuntimeError(
            f"{op}: bias is {bias.dtype} {list(bias.shape)}; required: {out.dtype} [N] = {list(out.shape[-1:])}"
        )
    return out + bias
