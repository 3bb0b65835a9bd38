"""GEMMs with FP8 (e4m3) operands, dequantization fused: dense and grouped by expert.

e4m3 values are expanded on their way to the multiplication; no dequantized operand is ever written. Products of two
e4m3 values are exact in fp32, sums are accumulated in fp32, and scales are applied in fp32: to the finished sums, or
with blocks along K to the sum of each 128 of K. ``docs/numerics.md`` has the table of scales.
What ``prepack`` made of weights may stand in their place: on the CPU, and on a GPU under bf16 activations.

On a GPU (sm_90a) :func:`fp8_gemm`, :func:`grouped_gemm_fp8` and :func:`grouped_swiglu_fp8` take e4m3 activations; the
last one quantizes its result, where asked to, before it leaves the registers. :func:`fp8_linear` and, with ``a_scale``
None, the grouped ops take bf16 activations there; fp32 ones are refused. Weights that are not contiguous along K are
copied.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from hunyuan_kernels._autocast import add_bias, to_autocast
from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake, register_gradient
from hunyuan_kernels.ops.prepack import weight_shape
from hunyuan_kernels.ops.quantize import activation_scale

_E4M3 = torch.float8_e4m3fn


def fp8_gemm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """``out = (a_scale a) @ (b_scale b).T`` with e4m3 operands.

    Args:
        a: ``[M, K]`` float8_e4m3fn. Rows may have any stride; other layouts are copied.
        b: ``[N, K]`` float8_e4m3fn, read in place: the stride along K or the one along N must be 1.
        a_scale: float32, any strides: ``[]`` or ``[1]`` per tensor, ``[M]`` per row, or ``[M, ceil(K / 128)]`` for
            blocks of 1 x 128.
        b_scale: float32, any strides: ``[]`` or ``[1]`` per tensor, ``[N]`` per channel, or
            ``[ceil(N / 128), ceil(K / 128)]`` for blocks of 128 x 128. Any combination with ``a_scale`` is fine, and so
            are partial blocks at the edges.
        out_dtype: bfloat16 or float32.

    Returns:
        ``[M, N]`` in ``out_dtype``.

    Raises:
        RuntimeError: a wrong dtype (float8_e4m3fnuz and float8_e5m2 included), device, rank or shape, a scale of a
            shape that is not listed, weights without a unit stride.

    Not differentiable. Source of the recipes: DeepSeek-V3, arXiv 2412.19437, section 3.3.
    """
    return ops.fp8_gemm(a, b, a_scale, b_scale, out_dtype)


def fp8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Weight-only FP8: ``x @ (weight_scale weight).T + bias`` with e4m3 weights and bf16 or fp32 activations.

    Args:
        x: ``[..., K]`` bfloat16 or float32.
        weight: ``[N, K]`` float8_e4m3fn, read in place as ``b`` of :func:`fp8_gemm`. All 256 patterns are expanded
            exactly, NaN included.
        weight_scale: float32: ``[]`` or ``[1]``, ``[N]``, or ``[ceil(N / 128), ceil(K / 128)]``.
        bias: ``[N]`` in the dtype of ``x``.

    Returns:
        ``[..., N]`` in the dtype of ``x``.

    Raises:
        RuntimeError: a wrong dtype, device, rank or shape, a scale of a shape that is not listed.

    Differentiable with respect to ``x`` and ``bias``; weights and scales are constants. On a GPU gradients are rounded
    to bfloat16 before they are multiplied by the weights. Under autocast ``x`` is cast to bfloat16.
    """
    torch._check(x.dim() >= 1, lambda: "fp8_linear: x has no dimensions; required: [..., K]")
    x = to_autocast(x)
    rows = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)  # reshape(-1, K) is ambiguous for K = 0
    out = ops.fp8_linear(rows, weight, weight_scale)
    out = out.reshape(*x.shape[:-1], out.shape[1])
    return add_bias("fp8_linear", out, bias)


def grouped_gemm_fp8(
    a: Tensor,
    b: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """:func:`grouped_gemm` with e4m3 weights: ``out[r] = (a_scale a[r]) @ (b_scale b[e]).T`` for the rows of group e.

    Args:
        a: ``[S, K]`` float8_e4m3fn, or bfloat16 or float32 for FP8 weights alone.
        b: ``[E, N, K]`` float8_e4m3fn, read in place: the stride along K or the one along N must be 1.
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`.
        a_scale: float32: ``[]`` or ``[1]`` (a static scale), ``[S]`` per row, or ``[S, ceil(K / 128)]`` for blocks of
            1 x 128; None when ``a`` is not FP8.
        b_scale: float32: ``[E]``, ``[E, N]`` per channel, or ``[E, ceil(N / 128), ceil(K / 128)]``.
        out_dtype: bfloat16 or float32.

    Returns:
        ``[S, N]`` in ``out_dtype``, with zeros at and past row ``expert_offsets[E]``.

    Raises:
        RuntimeError: as :func:`fp8_gemm`, and (on the CPU) wrong offsets.

    Differentiable with respect to a bfloat16 or float32 ``a``, as :func:`fp8_linear` is. Under autocast a float32 ``a``
    is cast to bfloat16.
    """
    return ops.grouped_gemm_fp8(to_autocast(a), b, expert_offsets, a_scale, b_scale, out_dtype)


def grouped_swiglu_fp8(
    a: Tensor,
    gate_up: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out_scale: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`grouped_swiglu` with e4m3 weights, and on request an e4m3 result for the next GEMM.

    Args:
        a: ``[S, K]`` float8_e4m3fn, or bfloat16 or float32 for FP8 weights alone.
        gate_up: ``[E, 2I, K]`` float8_e4m3fn: I rows of gate, then I rows of up.
        expert_offsets: int32 ``[E + 1]``, as in :func:`grouped_gemm`.
        a_scale: as in :func:`grouped_gemm_fp8`.
        b_scale: float32: ``[E]``; ``[E, 2]``, gate and up scaled apart as in Hunyuan's published checkpoints;
            ``[E, 2I]`` per channel; ``[E, 2, ceil(I / 128), ceil(K / 128)]``, blocks of each half, so that I need not
            divide by 128; or, where it does, ``[E, 2I / 128, ceil(K / 128)]``.
        out_dtype: bfloat16, float32, or float8_e4m3fn: then the fp32 result is quantized as by :func:`quantize_fp8`.
        out_scale: for float8_e4m3fn: one float32 element, a static scale; None for fresh scales of 1 x 128 blocks.

    Returns:
        ``[S, I]`` in ``out_dtype``, with zeros at and past row ``expert_offsets[E]``. For float8_e4m3fn a pair of that
        and its scale: the given one as ``[]``, or fresh ones ``[S, ceil(I / 128)]``, M-major with strides
        ``(1, S rounded up to a multiple of 4)`` as :func:`grouped_gemm_fp8` reads them best; zeros have scale 1.

    Raises:
        RuntimeError: as :func:`grouped_gemm_fp8`; an odd number of rows of ``gate_up``; an ``out_scale`` of more than
            one element.
        ValueError: ``out_scale`` without ``out_dtype=torch.float8_e4m3fn``.

    Differentiable as :func:`grouped_gemm_fp8` is, to bfloat16 and float32; backward computes gate and up again. Under
    autocast a float32 ``a`` is cast to bfloat16.
    """
    a = to_autocast(a)
    if out_dtype == _E4M3:
        if out_scale is None:
            return ops.grouped_swiglu_fp8_quantized(a, gate_up, expert_offsets, a_scale, b_scale)
        q = ops.grouped_swiglu_fp8_static(a, gate_up, expert_offsets, a_scale, b_scale, out_scale)
        return q, out_scale.reshape(())
    if out_scale is not None:
        raise ValueError(
            f"grouped_swiglu_fp8: out_scale is given with out_dtype {out_dtype}; allowed with torch.float8_e4m3fn only"
        )
    return ops.grouped_swiglu_fp8(a, gate_up, expert_offsets, a_scale, b_scale, out_dtype)


# ---- shapes ---------------------------------------------------------------------------------------------------------


def _check_weights(op: str, name: str, weights: Tensor, rank: int) -> tuple[Any, ...]:
    """Returns their shape, also for packed ones."""
    torch._check(weights.dtype == _E4M3, lambda: f"{op}: {name} has dtype {weights.dtype}; allowed: float8_e4m3fn")
    return weight_shape(op, name, weights, rank)


def _check_activations(op: str, name: str, a: Tensor, columns: Any) -> None:
    torch._check(a.dim() == 2, lambda: f"{op}: {name} has shape {list(a.shape)}; 2 dimensions are required")
    torch._check(
        a.shape[1] == columns, lambda: f"{op}: {name} has shape {list(a.shape)}; {columns} columns are required"
    )


def _check_out_dtype(op: str, out_dtype: torch.dtype) -> None:
    torch._check(
        out_dtype in (torch.bfloat16, torch.float32),
        lambda: f"{op}: out_dtype is {out_dtype}; allowed: bfloat16, float32",
    )


@register_fake("fp8_gemm")
def _(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype) -> Tensor:
    shape = _check_weights("fp8_gemm", "b", b, 2)
    _check_activations("fp8_gemm", "a", a, shape[1])
    _check_out_dtype("fp8_gemm", out_dtype)
    return a.new_empty((a.shape[0], shape[0]), dtype=out_dtype)


@register_fake("fp8_linear")
def _(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    shape = _check_weights("fp8_linear", "weight", weight, 2)
    _check_activations("fp8_linear", "x", x, shape[1])
    return x.new_empty((x.shape[0], shape[0]))


@register_fake("fp8_linear_dgrad")
def _(grad_out: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return grad_out.new_empty((grad_out.shape[0], weight.shape[1]))


@register_fake("grouped_gemm_fp8")
def _(
    a: Tensor, b: Tensor, expert_offsets: Tensor, a_scale: Tensor | None, b_scale: Tensor, out_dtype: torch.dtype
) -> Tensor:
    shape = _check_weights("grouped_gemm_fp8", "b", b, 3)
    _check_activations("grouped_gemm_fp8", "a", a, shape[2])
    _check_out_dtype("grouped_gemm_fp8", out_dtype)
    return a.new_empty((a.shape[0], shape[1]), dtype=out_dtype)


@register_fake("grouped_gemm_fp8_dgrad")
def _(grad_out: Tensor, b: Tensor, expert_offsets: Tensor, b_scale: Tensor, out_dtype: torch.dtype) -> Tensor:
    return grad_out.new_empty((grad_out.shape[0], b.shape[2]), dtype=out_dtype)


@register_fake("grouped_swiglu_fp8")
def _(
    a: Tensor,
    gate_up: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    shape = _check_weights("grouped_swiglu_fp8", "gate_up", gate_up, 3)
    _check_activations("grouped_swiglu_fp8", "a", a, shape[2])
    _check_out_dtype("grouped_swiglu_fp8", out_dtype)
    return a.new_empty((a.shape[0], shape[1] // 2), dtype=out_dtype)


def _quantized_swiglu(a: Tensor, gate_up: Tensor) -> Tensor:
    shape = _check_weights("grouped_swiglu_fp8", "gate_up", gate_up, 3)
    _check_activations("grouped_swiglu_fp8", "a", a, shape[2])
    return a.new_empty((a.shape[0], shape[1] // 2), dtype=_E4M3)


@register_fake("grouped_swiglu_fp8_quantized")
def _(
    a: Tensor,
    gate_up: Tensor,
    expert_offsets: Tensor,
    a_scale: Tensor | None,
    b_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    q = _quantized_swiglu(a, gate_up)
    return q, activation_scale(a, a.shape[0], (q.shape[1] + 127) // 128)


@register_fake("grouped_swiglu_fp8_static")
def _(
    a: Tensor, gate_up: Tensor, expert_offsets: Tensor, a_scale: Tensor | None, b_scale: Tensor, out_scale: Tensor
) -> Tensor:
    return _quantized_swiglu(a, gate_up)


# ---- gradients ------------------------------------------------------------------------------------------------------


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
    weight, scale = ctx.saved_tensors
    if scale.dim() == 1 and scale.shape[0] != 1:  # per channel: a factor of the columns of grad, in fp32
        exact = ops.fp8_linear_dgrad(grad.float() * scale, weight, torch.ones_like(scale[:1]))
        return exact.to(grad.dtype), None, None
    return ops.fp8_linear_dgrad(grad, weight, scale), None, None


def _linear_dgrad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return ops.fp8_linear(grad, *ctx.saved_tensors), None, None


def _refuse(op: str) -> NoReturn:
    raise RuntimeError(
        f"{op}: an input requires a gradient, but FP8 GEMMs have none other than that of bf16 and fp32 activations; "
        "train with the bf16 or fp32 ops, or pass detached tensors"
    )


def _no_gradient(op: str) -> Any:
    def backward(*_: Any) -> NoReturn:
        _refuse(op)

    return backward


# Of the grouped ops with weights alone, with respect to the activations.


def _dgrad(grad: Tensor, b: Tensor, expert_offsets: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    if b_scale.dim() == 2:  # per channel: a factor of the columns of grad, in fp32
        row = torch.arange(grad.shape[0], dtype=torch.int32, device=grad.device)
        expert = torch.bucketize(row, expert_offsets[1:], right=True).clamp(max=b.shape[0] - 1)
        grad = grad.float() * b_scale[expert] if b.shape[0] else grad
        b_scale = b_scale.new_ones(b.shape[0])
    return ops.grouped_gemm_fp8_dgrad(grad, b, expert_offsets, b_scale, dtype)


def _halves(gate_up: Tensor, b_scale: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Gate and up by themselves, with scales as :func:`grouped_gemm_fp8` takes them."""
    columns = gate_up.shape[1] // 2
    if b_scale.dim() == 1:
        scales = [b_scale, b_scale]
    elif b_scale.dim() == 4 or b_scale.shape[1:] == (2,):
        scales = [b_scale[:, 0], b_scale[:, 1]]
    else:  # channels, or blocks that do not cross the middle
        scales = list(b_scale.chunk(2, 1))
    return list(zip((gate_up[:, :columns], gate_up[:, columns:]), scales, strict=True))


def _grouped_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, expert_offsets, a_scale, b_scale, _ = inputs
    ctx.dtype = a.dtype if a_scale is None else None
    ctx.save_for_backward(b, expert_offsets, b_scale)


def _grouped_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.dtype is None or not ctx.needs_input_grad[0]:
        _refuse("grouped_gemm_fp8")
    b, expert_offsets, b_scale = ctx.saved_tensors
    return _dgrad(grad, b, expert_offsets, b_scale, ctx.dtype), None, None, None, None, None


def _grouped_dgrad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*inputs[1:4])


def _grouped_dgrad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    b, expert_offsets, b_scale = ctx.saved_tensors
    return ops.grouped_gemm_fp8(grad, b, expert_offsets, None, b_scale, ctx.dtype), None, None, None, None


def _swiglu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, gate_up, expert_offsets, a_scale, b_scale, _ = inputs
    ctx.weights_alone = a_scale is None
    ctx.save_for_backward(a, gate_up, expert_offsets, b_scale)


def _swiglu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The pre-activation is computed again, in the dtype of the result."""
    if not ctx.weights_alone or not ctx.needs_input_grad[0]:
        _refuse("grouped_swiglu_fp8")
    a, gate_up, expert_offsets, b_scale = ctx.saved_tensors
    torch._check(
        gate_up.dim() == 3,
        lambda: (
            f"grouped_swiglu_fp8: gate_up has shape {list(gate_up.shape)}, that of packed weights; the gradient needs "
            "them as they were before hunyuan_kernels.prepack"
        ),
    )
    halves = _halves(gate_up, b_scale)
    preactivation = torch.cat(
        [ops.grouped_gemm_fp8(a, b, expert_offsets, None, scale, grad.dtype) for b, scale in halves], 1
    )
    gradients = ops.swiglu_backward(grad, preactivation, expert_offsets).chunk(2, 1)
    both = [
        _dgrad(half, b, expert_offsets, scale, torch.float32)
        for half, (b, scale) in zip(gradients, halves, strict=True)
    ]
    return (both[0] + both[1]).to(a.dtype), None, None, None, None, None


register_gradient("fp8_linear", _linear_backward, setup_context=_linear_setup)
register_gradient("fp8_linear_dgrad", _linear_dgrad_backward, setup_context=_linear_setup)
register_gradient("fp8_gemm", _no_gradient("fp8_gemm"))
register_gradient("grouped_gemm_fp8", _grouped_backward, setup_context=_grouped_setup)
register_gradient("grouped_gemm_fp8_dgrad", _grouped_dgrad_backward, setup_context=_grouped_dgrad_setup)
register_gradient("grouped_swiglu_fp8", _swiglu_backward, setup_context=_swiglu_setup)
for _name in ("grouped_swiglu_fp8_quantized", "grouped_swiglu_fp8_static"):
    register_gradient(_name, _no_gradient("grouped_swiglu_fp8"))
