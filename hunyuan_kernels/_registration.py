"""How operators are registered with torch, with what ``torch.library`` leaves out.

Derivatives that they do not have are refused: it would give zeros (forward mode) or an error that names no operator
(torch.func). Shapes are worked out of tensors on one device: it would run them for one tensor without data among
others, and the result would have none.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _in_transform
from torch.autograd import forward_ad

from hunyuan_kernels._ops import NAMESPACE, ops, qualified


def _public(name: str) -> str:
    """The function that people call for an operator with this name."""
    return re.sub(r"_(static|quantized|preactivation)$|(?<=^dispatch)_$", "", name)


def _refuse_tangents(op: str, tensors: tuple[object, ...]) -> None:
    """Within forward-mode differentiation: the operators of a library drop tangents."""
    if any(isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{op}: forward-mode derivatives are not implemented; use reverse mode (backward, torch.autograd.grad), or "
            "torch.autograd.functional.jvp, which applies it twice"
        )


def _needs_gradient(*tensors: object) -> bool:
    return torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


class _Gradients(torch.library.Library):
    """A library whose autograd kernels look at their tensors first."""

    def impl(self, op_name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        op = _public(op_name)

        def kernel(keyset: Any, *tensors: Any) -> Any:
            if forward_ad._current_level >= 0:
                _refuse_tangents(op, tensors)
            if _in_transform() and _needs_gradient(*tensors):
                raise NotImplementedError(
                    f"{op}: the derivatives of torch.func (grad, vjp, jacrev, hessian) are not implemented; use "
                    "torch.autograd.grad and torch.autograd.functional"
                )
            return fn(keyset, *tensors)

        super().impl(op_name, kernel, *args, **kwargs)


_gradients = _Gradients(NAMESPACE, "FRAGMENT")  # the registrations last as long as this object


def register_gradient(
    name: str, backward: Callable[..., Any], *, setup_context: Callable[..., None] | None = None
) -> None:
    """``torch.library.register_autograd`` for an operator of ours."""
    torch.library.register_autograd(qualified(name), backward, setup_context=setup_context, lib=_gradients)


def check_one_device(op: str, names: Iterable[str], values: Iterable[object]) -> None:
    """Refuses tensors on different devices; what is no tensor has none."""
    first: tuple[str, Tensor] | None = None
    for name, value in zip(names, values, strict=False):  # arguments with defaults may be missing at the end
        if not isinstance(value, Tensor):
            continue
        first = first or (name, value)
        if value.device != first[1].device:
            raise RuntimeError(
                f"{op}: {name} is on {value.device}, but {first[0]} is on {first[1].device}; they must be on the same "
                "device"
            )


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``torch.library.register_fake`` for an operator of ours."""
    qualified_name = qualified(name)
    names = [argument.name for argument in getattr(ops, name).default._schema.arguments]

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fake)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check_one_device(_public(name), names, args)
            return fake(*args, **kwargs)

        torch.library.register_fake(qualified_name, checked)
        return fake

    return register


def check_in_place(op: str, written: str, **tensors: Tensor) -> None:
    """Refuses derivatives of what an op writes into the tensor ``written``: autograd does not record it.

    As with torch's ops, a leaf that requires a gradient may be written within ``torch.no_grad()``.
    """
    if forward_ad._current_level >= 0:
        _refuse_tangents(op, tuple(tensors.values()))
    for name, tensor in tensors.items():
        if _needs_gradient(tensor):
            raise RuntimeError(
                f"{op}: {name} requires a gradient, but what is written into {written} has none; pass {name}.detach(), "
                "or call it within torch.no_grad()"
            )
