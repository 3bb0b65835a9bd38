"""How operators are registered with autograd: derivatives that they do not have are refused, where torch's own
registration of a library's operators gives zeros (forward mode) or an error that names no operator (torch.func)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _in_transform
from torch.autograd import forward_ad

from hunyuan_kernels._ops import NAMESPACE, qualified


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
        def kernel(keyset: Any, *tensors: Any) -> Any:
            if forward_ad._current_level >= 0:
                _refuse_tangents(op_name, tensors)
            if _in_transform() and _needs_gradient(*tensors):
                raise NotImplementedError(
                    f"{op_name}: the derivatives of torch.func (grad, vjp, jacrev, hessian) are not implemented; use "
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
