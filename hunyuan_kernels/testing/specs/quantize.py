"""Cases, bound and baselines of the stem ``quantize``."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hunyuan_kernels.ops.quantize import quantize_fp8
from hunyuan_kernels.reference import quantize as reference
from hunyuan_kernels.testing.compare import Comparison, compare_exact
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work


def _make(shape: tuple[int, ...], recipe: str, dtype: torch.dtype, spread: float, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if spread:  # magnitudes over many orders, so that subnormal results and saturation occur
        x = x * torch.randn(shape, generator=generator).mul(spread).exp()
    return {"x": x.to(dtype), "recipe": recipe}


def _case(shape: tuple[int, ...], recipe: str, dtype: torch.dtype = torch.bfloat16, spread: float = 0.0) -> Case:
    name = str(dtype).removeprefix("torch.")
    label = f"{'x'.join(map(str, shape))} {recipe} {name}" + (" wide" if spread else "")
    return Case(label, partial(_make, shape, recipe, dtype, spread))


def _cases() -> list[Case]:
    shapes = [(1, 1), (3, 7), (129, 257), (256, 128), (2, 130, 200)]
    cases = [
        _case(shape, recipe, dtype, spread)
        for shape in shapes
        for recipe in reference.BLOCKS
        for dtype, spread in ((torch.bfloat16, 0.0), (torch.float32, 12.0))
    ]
    # Rows that are longer than what one warp holds.
    cases += [
        _case((5, columns), "row", dtype) for columns in (2304, 2305) for dtype in (torch.bfloat16, torch.float32)
    ]
    return [*cases, _case((0, 64), "row"), _case((4, 0), "block_1x128")]


def _bench_cases(preset: str | None) -> list[Case]:
    hidden = {"hunyuan-large": 6400, "hunyuan-a13b": 4096, None: 2048}[preset]
    return [_case((4096, hidden), recipe) for recipe in reference.BLOCKS]


def _compare(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_exact(name, g, w) for name, g, w in zip(("q", "scale"), got, want, strict=True)]


def _blocks(length: int, block: int | None) -> int:
    return 1 if block is None else -(-length // block)


def _work(arguments: Arguments) -> Work:
    x: Tensor = arguments["x"]
    rows, columns = x.shape[-2:]
    matrices = x.shape[0] if x.dim() == 3 else 1
    block_rows, block_columns = reference.BLOCKS[arguments["recipe"]]
    scales = matrices * _blocks(rows, block_rows) * _blocks(columns, block_columns)
    return Work(flops=0.0, bytes=x.numel() * (x.element_size() + 1.0) + 4.0 * scales)


def eager_quantize(x: Tensor, recipe: str) -> tuple[Tensor, Tensor]:
    """What one writes in PyTorch today, for shapes that divide: amax, division, cast."""
    rows, columns = (size or whole for size, whole in zip(reference.BLOCKS[recipe], x.shape[-2:], strict=True))
    if x.dim() != 2 or x.shape[0] % rows or x.shape[1] % columns:
        return reference.quantize_fp8(x, recipe)
    blocks = x.view(x.shape[0] // rows, rows, x.shape[1] // columns, columns)
    scale = blocks.abs().amax((1, 3), keepdim=True).float().clamp_min(1e-12) / 448.0
    return (blocks / scale).to(torch.float8_e4m3fn).view(x.shape), scale


SPECS = [
    OpSpec(
        name="quantize_fp8",
        stem="quantize",
        function=quantize_fp8,
        reference=reference.quantize_fp8,
        compare=_compare,
        cases=_cases,
        bench_cases=_bench_cases,
        work=_work,
        baselines={"torch eager": eager_quantize},
    )
]
