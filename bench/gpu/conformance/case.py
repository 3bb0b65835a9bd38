"""A case: kernels to launch, what they must leave, and how closely."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.conformance.target import Target

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """``run`` launches on a target and returns what was written, on the CPU; ``want`` is the oracle's.

    ``undefined`` says why the manual does not define the bits; results may then be ``bound`` times ``magnitude`` away
    from the oracle's (``magnitude`` is ``|want|`` where the oracle gives no output "magnitude").
    """

    family: str
    name: str
    run: Callable[[Target], Outputs]
    want: Callable[[], Outputs]
    undefined: str = ""
    bound: float = 0.0


def bits(tensor: Tensor) -> Tensor:
    """Its bytes; NaNs and zeros of either sign then compare by their bits."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def difference(case: Case, got: Outputs, want: Outputs) -> str:
    """Where ``got`` is not what it must be, "" where it is."""
    for name, wanted in want.items():
        if name == "magnitude":
            continue
        result = got[name]
        if result.shape != wanted.shape or (not case.undefined and result.dtype != wanted.dtype):
            return f"{name} is {result.dtype} {tuple(result.shape)}, not {wanted.dtype} {tuple(wanted.shape)}"
        if case.undefined:
            error = (result.double() - wanted.double()).abs()
            wrong = ~(error <= case.bound * want.get("magnitude", wanted).double().abs())
        else:
            size = result.element_size()
            wrong = (bits(result) != bits(wanted)).view(-1, size).any(1).view(result.shape)
        if wrong.any():
            at = [int(i) for i in wrong.nonzero()[0]]
            return (
                f"{name}{at} is {result[tuple(at)].item()}, not {wanted[tuple(at)].item()} "
                f"({int(wrong.sum())} of {wrong.numel()} wrong)"
            )
    return ""


def largest_difference(one: Outputs, other: Outputs) -> float:
    """Of two results whose bits are not defined."""
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)
