"""Linear layers of the decoder: weights as they are, laid out by ``prepack``, or FP8."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hunyuan_kernels as hk


class Fp8Weight(NamedTuple):
    """``[N, K]`` float8_e4m3fn with a float32 scale for each row; what :class:`Linear` takes in place of its weight."""

    weight: Tensor
    scale: Tensor
    #: float32 scalar: inputs are e4m3 under this scale, too; None: they stay as they are.
    input_scale: Tensor | None = None


Fp8 = TypeVar("Fp8", Fp8Weight, hk.Fp8Experts)


def _follow(fp8: Fp8, before: Sequence[Tensor], after: Sequence[Tensor]) -> Fp8:
    """``fp8`` of a module whose parameters ``before`` became ``after``: on their device, in dtypes of its own.

    Values that were a parameter's are so again, and take no second copy.
    """

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        for old, new in zip(before, after, strict=True):
            if not old.is_meta and value.data_ptr() == old.data_ptr() and value.dtype == old.dtype == new.dtype:
                return new.view(value.shape)
        return value.to(after[0].device)

    return type(fp8)(*map(moved, fp8))


class Fp8Holder(nn.Module):
    """A module with FP8 weights in attributes of the names ``fp8_fields``, which move along with its parameters."""

    fp8_fields: tuple[str, ...] = ("fp8",)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fp8Holder":
        """What ``to`` and its like call."""
        held = {name: fp8 for name in self.fp8_fields if (fp8 := getattr(self, name)) is not None}
        before = [parameter.detach() for parameter in self.parameters() if held]  # else nothing is kept alive
        super()._apply(fn, recurse)
        after = [parameter.detach() for parameter in self.parameters() if held]
        for name, fp8 in held.items():
            setattr(self, name, _follow(fp8, before, after))
        return self


def _one_group(rows: int) -> Tensor:
    """Offsets of one group that owns all rows."""
    return torch.tensor([0, rows], dtype=torch.int32, device="cpu")


@lru_cache(maxsize=64)
def _kept_one_group(rows: int) -> Tensor:
    """Steps of a generation have the same number of rows again and again."""
    with torch.inference_mode(False):  # whoever needs it next may want a gradient
        return _one_group(rows)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for x ``[..., K]``, and weight ``[N, K]`` or what ``prepack`` made of it.

    In inference on a CPU it is a grouped GEMM of one group, which reads the weights of few rows about three times as
    fast as ``F.linear`` does in bf16.
    """
    if weight.dim() == 2 and (torch.is_grad_enabled() or x.device.type != "cpu"):
        return F.linear(x, weight)
    rows = x.flatten(0, -2)
    # Of a trace, which has tensors of a class of its own, nothing may be kept.
    traced = type(x) is not Tensor or torch.compiler.is_compiling()
    offsets = (_one_group if traced else _kept_one_group)(rows.shape[0])
    out = hk.grouped_gemm(rows, weight.unsqueeze(0), offsets)
    return out.view(*x.shape[:-1], out.shape[-1])


def pack(weight: Tensor, fp8_inputs: bool) -> Tensor:
    """The weight in the order of :func:`hunyuan_kernels.prepack`, or itself where its device reads it as it is.

    A CPU has an order for all weights, a GPU for FP8 ones under inputs that are not FP8, too, with rows (gate and up
    together) and columns in multiples of 32.
    """
    if weight.device.type == "cuda":
        fits = weight.shape[-2] % 32 == weight.shape[-1] % 32 == 0
        if weight.dtype != torch.float8_e4m3fn or fp8_inputs or not fits:
            return weight
    packed = hk.prepack(weight)
    return packed if packed.dim() > weight.dim() else weight


class Linear(Fp8Holder):
    """:func:`linear` with a weight ``[outputs, inputs]``, or with ``fp8`` once that is set: for inference."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.fp8: Fp8Weight | None = None

    def prepack(self) -> bool:
        """Lays the weight out by :func:`pack`; for inference, and for good. Returns whether anything changed."""
        packed = pack(self.weight, self.fp8 is not None and self.fp8.input_scale is not None)
        if packed is self.weight:
            return False
        self.weight = nn.Parameter(packed, requires_grad=False)
        if self.fp8 is not None:
            self.fp8 = self.fp8._replace(weight=self.weight.detach())
        return True

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 is None:
            return linear(x, self.weight)
        weight, scale, input_scale = self.fp8
        if input_scale is None:
            return hk.fp8_linear(x, weight, scale)
        rows, _ = hk.quantize_fp8(x.flatten(0, -2), "tensor", input_scale)
        return hk.fp8_gemm(rows, weight, input_scale, scale, out_dtype=x.dtype).unflatten(0, x.shape[:-1])
