"""Cases, bounds and baselines of FP8 weights under bf16 and fp32 activations, dense."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec
from hunyuan_kernels.testing.specs.fp8_gemm import (
    DENSE_SCALES,
    FLOATS,
    OUTPUT_UNITS,
    absolute,
    as_transposed,
    dense_scale_shape,
    dense_work,
    dequantized,
    dtype_name,
    make_e4m3,
    make_scale,
    sample_dense,
)


def _linear_arguments(
    shape: tuple[int, ...], n: int, dtype: torch.dtype, kind: str, transposed: bool, bias: bool, seed: int
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    k = shape[-1]
    arguments = {
        "x": torch.randn(shape, generator=generator).to(dtype),
        "weight": as_transposed(make_e4m3(n, k, generator=generator), transposed),
        "weight_scale": make_scale(dense_scale_shape(kind, n, k, 128), max(k, 1) ** -0.5, generator),
    }
    return arguments | ({"bias": torch.randn(n, generator=generator).to(dtype)} if bias else {})


def _linear_case(
    shape: tuple[int, ...], n: int, dtype: torch.dtype, kind: str, transposed: bool = False, bias: bool = False
) -> Case:
    label = f"{'x'.join(map(str, shape))} x {n}, {dtype_name(dtype)} x {kind}" + (", [K,N]" if transposed else "")
    make = partial(_linear_arguments, shape, n, dtype, kind, transposed, bias)
    return Case(label + (", bias" if bias else ""), make)


def _linear_cases() -> list[Case]:
    shapes = [((0, 7), 5), ((1, 1), 1), ((2, 0), 3), ((2, 3, 300), 130), ((17, 129), 257), ((33, 64), 40), ((7,), 5)]
    variants = product(shapes, FLOATS, DENSE_SCALES, ((False, False), (True, True)))
    return [_linear_case(shape, n, dtype, kind, *rest) for (shape, n), dtype, kind, rest in variants]


def _compare_linear(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    x, weight, scale = arguments["x"], arguments["weight"], arguments["weight_scale"]
    magnitude = reference.fp8_linear(absolute(x), absolute(weight), scale)
    if "bias" in arguments:  # the product is rounded before the bias is added
        magnitude = magnitude + OUTPUT_UNITS[x.dtype] * reference.fp8_linear(x, weight, scale).abs()
    return [compare_bounded("out", got, want, magnitude)]


def _linear_bench_cases(preset: str | None) -> list[Case]:
    size = {"hunyuan-large": 6400, "hunyuan-a13b": 4096, None: 1024}[preset]
    return [_linear_case((m, size), size, torch.bfloat16, "row") for m in (32, 1, 256)]


def _dequantize_and_apply(dtype: torch.dtype) -> Callable[..., Tensor]:
    def baseline(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
        out = F.linear(x.to(dtype), dequantized(weight, weight_scale, 128, dtype)).to(x.dtype)
        return out if bias is None else out + bias

    return baseline


def _plan(arguments: Arguments, sms: int) -> object:
    from hunyuan_kernels._C import plans  # not part of what ops need

    columns, depth = arguments["weight"].shape
    in_blocks = depth > 128 and arguments["weight_scale"].dim() == 2
    rows = arguments["x"].numel() // max(1, depth)
    return plans.fp8_weight_only(rows=rows, columns=columns, depth=depth, in_blocks=in_blocks, sms=sms)


SPECS = [
    OpSpec(
        name="fp8_linear",
        stem="fp8_gemm",
        function=hk.fp8_linear,
        reference=reference.fp8_linear,
        compare=_compare_linear,
        cases=_linear_cases,
        bench_cases=_linear_bench_cases,
        work=lambda arguments: dense_work(arguments["x"], arguments["weight"], arguments["x"].element_size()),
        baselines={
            "F.linear in bf16": _dequantize_and_apply(torch.bfloat16),
            "F.linear in fp32": _dequantize_and_apply(torch.float32),
        },
        sample=partial(sample_dense, "weight", "weight_scale"),
        on_cuda=lambda arguments: arguments["x"].dtype == torch.bfloat16,
        plan=_plan,
    ),
]
