"""Quantization to FP8 (e4m3)."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels._registration import register_fake, register_gradient

RECIPES = ("tensor", "row", "block_1x128", "block_128x128")


def quantize_fp8(x: Tensor, recipe: str, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantizes to e4m3 with scales: ``q = round_e4m3(x / scale)``, so that ``x`` is about ``q * scale``.

    Dynamic, without ``scale``: ``scale = amax / 448`` in IEEE fp32, where amax is the largest ``|x|`` over the *finite*
    elements that share the scale, and 1 where that quotient is below 2^-126 (all zeros, or only subnormal numbers).
    Static, with ``scale``: the given scales are used as they are.

    The quotient is a true fp32 division and subnormal numbers are kept, also under ``torch.set_flush_denormal(True)``;
    rounding is to nearest even and saturates: what exceeds 448, infinity included, becomes +-448. NaN stays NaN. An
    infinity or a NaN has no part in amax, so it does not change the elements that share its scale.

    Args:
        x: ``[M, K]``, or ``[E, M, K]`` for one matrix per expert; bfloat16 or float32. Rows may have any stride;
            layouts whose rows are not contiguous are copied.
        recipe: which elements share a scale, and so the shape of the scales (each with a leading ``E`` for 3-D x):

            * ``"tensor"``: the whole matrix, ``[]``;
            * ``"row"``: each row, ``[M]``;
            * ``"block_1x128"``: 128 columns of a row, ``[M, ceil(K / 128)]``;
            * ``"block_128x128"``: 128 rows x 128 columns, ``[ceil(M / 128), ceil(K / 128)]``.

            Blocks at the edges may be partial.
        scale: float32 scales of that shape, any strides, for static quantization.

    Returns:
        ``(q, scale)``: q float8_e4m3fn in the shape of ``x``, contiguous; scale float32. The scales of ``block_1x128``
        lie M-major, with strides ``(1, M rounded up to a multiple of 4)``: what the FP8 GEMMs load best. Static: the
        given scale itself.

    Raises:
        RuntimeError: a wrong dtype, device or rank of ``x``, an unknown recipe, a scale of another dtype or shape; and
            in backward, since rounding has no useful gradient.

    Source of the recipes: per tensor as in Hunyuan's published FP8 checkpoints, 1 x 128 and 128 x 128 as in DeepSeek-V3
    (arXiv 2412.19437, section 3.3).
    """
    if scale is None:
        return ops.quantize_fp8(x, recipe)
    return ops.quantize_fp8_static(x, recipe, scale), scale


def _scale_shape(x: Tensor, recipe: str) -> list[Any]:
    rows, columns = x.shape[-2:]
    shape: list[Any] = [x.shape[0]] if x.dim() == 3 else []
    if recipe in ("row", "block_1x128"):
        shape.append(rows)
    if recipe == "block_128x128":
        shape.append((rows + 127) // 128)
    if recipe in ("block_1x128", "block_128x128"):
        shape.append((columns + 127) // 128)
    return shape


def _check_input(x: Tensor, recipe: str) -> None:
    torch._check(
        x.dtype in (torch.bfloat16, torch.float32),
        lambda: f"quantize_fp8: x has dtype {x.dtype}; allowed: float32, bfloat16",
    )
    torch._check(x.dim() in (2, 3), lambda: f"quantize_fp8: x has shape {list(x.shape)}; required: [M, K] or [E, M, K]")
    torch._check(recipe in RECIPES, lambda: f"quantize_fp8: recipe is {recipe!r}; allowed: {', '.join(RECIPES)}")


def activation_scale(like: Tensor, rows: Any, blocks: Any, batch: tuple[Any, ...] = ()) -> Tensor:
    """Shape and strides of 1 x 128 scales ``[*batch, rows, blocks]``, M-major, as the kernels write them."""
    base = like.new_empty((*batch, blocks, (rows + 3) // 4 * 4), dtype=torch.float32)
    return base.transpose(-1, -2).narrow(-2, 0, rows)


@register_fake("quantize_fp8")
def _(x: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    _check_input(x, recipe)
    q = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    shape = _scale_shape(x, recipe)
    if recipe == "block_1x128":
        return q, activation_scale(x, shape[-2], shape[-1], tuple(shape[:-2]))
    return q, x.new_empty(shape, dtype=torch.float32)


@register_fake("quantize_fp8_static")
def _(x: Tensor, recipe: str, scale: Tensor) -> Tensor:
    _check_input(x, recipe)
    required = _scale_shape(x, recipe)
    torch._check(scale.dtype == torch.float32, lambda: f"quantize_fp8: scale has dtype {scale.dtype}; allowed: float32")
    torch._check(
        list(scale.shape) == required,
        lambda: f"quantize_fp8: scale has shape {list(scale.shape)}; required for recipe {recipe!r}: {required}",
    )
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn)


def _no_gradient(*_: Any) -> NoReturn:
    raise RuntimeError(
        "quantize_fp8: x requires a gradient, but rounding to e4m3 has none; pass x.detach(), or keep the bf16 or "
        "fp32 path for training"
    )


register_gradient("quantize_fp8", _no_gradient)
register_gradient("quantize_fp8_static", _no_gradient)
