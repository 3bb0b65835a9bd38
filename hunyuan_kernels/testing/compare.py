"""Comparison with a reference, element by element, so that one wrong row cannot hide in a norm.

The bound of docs/numerics.md: ``|got - want| <= u_out |want| + c u_acc sum |a||b|`` with ``want`` in fp64, ``u_out``
the rounding of the output dtype and ``u_acc`` that of the fp32 accumulation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Unit roundoff (half the spacing at 1) of each floating dtype that ops return.
UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
    torch.float8_e4m3fn: 2.0**-4,
}


@dataclass(frozen=True)
class Comparison:
    """Outcome of one comparison; true when it passed."""

    passed: bool
    message: str
    max_error: float  # largest |got - want|
    max_ratio: float  # largest |got - want| / bound: at most 1 when passed

    def __bool__(self) -> bool:
        return self.passed


def compare_bounded(
    name: str, got: Tensor, want: Tensor, magnitude: Tensor | float, *, factor: float = 8.0
) -> Comparison:
    """Compares ``got`` with the fp64 reference ``want`` under the bound of this module.

    ``magnitude`` is ``sum |a||b|`` of every element (broadcastable to ``want``): what rounding errors of the
    accumulation are proportional to. ``factor`` is the ``c`` of the bound. NaN must meet NaN, infinity the same
    infinity.
    """
    if got.shape != want.shape:
        return Comparison(
            False, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}", float("inf"), float("inf")
        )
    if got.numel() == 0:
        return Comparison(True, f"{name}: empty", 0.0, 0.0)
    result, expected = got.detach().double(), want.detach().double()
    finite = expected.isfinite()
    same = torch.where(finite, result.isfinite(), (result == expected) | (result.isnan() & expected.isnan()))
    error = torch.where(finite & same, (result - expected).abs(), 0.0)
    bound = UNIT_ROUNDOFF[got.dtype] * expected.abs() + factor * UNIT_ROUNDOFF[torch.float32] * magnitude
    bound = torch.where(finite, bound, 1.0)
    ratio = torch.where(error == 0, 0.0, error / bound)
    ratio = torch.where(same, ratio, float("inf")).nan_to_num(nan=float("inf"))
    worst = int(ratio.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), ratio.shape))
    max_ratio = float(ratio.flatten()[worst])
    message = (
        f"{name}: worst element {list(index)}: got {float(result[index]):.9g}, expected {float(expected[index]):.9g}, "
        f"error is {max_ratio:.3g} of the bound"
    )
    return Comparison(max_ratio <= 1.0, message, float(error.max()), max_ratio)


def compare_exact(name: str, got: Tensor, want: Tensor) -> Comparison:
    """Compares bit for bit (values of any dtype, NaN payloads included)."""
    if got.shape != want.shape or got.dtype != want.dtype:
        text = f"{name}: {got.dtype} {list(got.shape)}, expected {want.dtype} {list(want.shape)}"
        return Comparison(False, text, float("inf"), float("inf"))
    if got.numel() == 0:
        return Comparison(True, f"{name}: empty", 0.0, 0.0)
    bytes_got, bytes_want = (
        t.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8) for t in (got, want)
    )
    different = (bytes_got != bytes_want).view(got.numel(), -1).any(1)
    if not bool(different.any()):
        return Comparison(True, f"{name}: identical", 0.0, 0.0)
    first = int(different.int().argmax())
    text = (
        f"{name}: {int(different.sum())} of {got.numel()} elements differ, first flat index {first}: "
        f"got {got.flatten()[first].item()}, expected {want.flatten()[first].item()}"
    )
    return Comparison(False, text, float("inf"), float("inf"))
