"""Cases and baselines of the stem ``prepack``: the packing itself, and the grouped GEMMs on packed weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import grouped_gemm as grouped_reference
from hunyuan_kernels.reference import prepack as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded, compare_exact
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.grouped_gemm import EXPERT_PRODUCTS, MODELS, make_arguments

_E4M3 = torch.float8_e4m3fn
_DTYPES = (torch.bfloat16, torch.float32, _E4M3)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _make(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    if dtype == _E4M3:  # all patterns
        return {"weights": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).view(_E4M3)}
    return {"weights": torch.randn(shape, generator=generator).to(dtype)}


def _cases() -> list[Case]:
    shapes = [(16, 4), (2, 48, 100), (1, 16, 128), (3, 32, 516), (0, 16, 8), (2, 0, 8), (2, 16, 0)]
    return [Case(f"{list(shape)} {_name(d)}", partial(_make, shape, d)) for shape in shapes for d in _DTYPES]


def _compare(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    return [compare_exact("packed", got.view(torch.uint8), want.view(torch.uint8))]


def _bench_cases(preset: str | None) -> list[Case]:
    experts, rows, columns = MODELS[preset]
    shape = (experts, rows, columns)
    return [Case(f"{list(shape)} {_name(d)}", partial(_make, shape, d)) for d in (torch.bfloat16, _E4M3)]


class Weights(NamedTuple):
    """The same weights twice: for what is measured, and for what it is compared with."""

    plain: Tensor
    packed: Tensor


def _packed_gemm(a: Tensor, b: Weights, expert_offsets: Tensor) -> Tensor:
    """``grouped_gemm`` on weights of ``prepack``."""
    return hk.grouped_gemm(a, b.packed, expert_offsets)


def _packed_gemm_reference(a: Tensor, b: Weights, expert_offsets: Tensor) -> Tensor:
    return grouped_reference.grouped_gemm(a, reference.unpack(b.packed), expert_offsets)


def _make_gemm(sizes: list[int], rows: int, columns: int, dtype: torch.dtype, seed: int) -> Arguments:
    arguments = make_arguments(sizes, rows, columns, dtype, seed)
    return arguments | {"b": Weights(arguments["b"], hk.prepack(arguments["b"]))}


def _gemm_cases() -> list[Case]:
    shapes = [([1], 32, 64), ([2, 0, 5], 112, 516), ([9, 13, 16], 48, 1100), ([33, 1, 100], 80, 96), ([0, 0], 16, 8)]
    return [
        Case(f"rows {sizes}, N {rows}, K {columns}, {_name(d)}", partial(_make_gemm, sizes, rows, columns, d))
        for sizes, rows, columns in shapes
        for d in (torch.bfloat16, torch.float32)
    ]


def _gemm_bench_cases(preset: str | None) -> list[Case]:
    experts, rows, columns = MODELS[preset]
    groups = (1, 4, 8, 16, 32, 128, 512)[: 4 if preset is None else None]
    return [
        Case(
            f"{experts} experts x {group} rows, N {rows}, K {columns}, bfloat16",
            partial(_make_gemm, [group] * experts, rows, columns, torch.bfloat16),
        )
        for group in groups
    ]


def _compare_gemm(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    a, b, offsets = arguments["a"], arguments["b"], arguments["expert_offsets"]
    magnitude = grouped_reference.grouped_gemm(a.abs(), b.plain.abs(), offsets)
    return [compare_bounded("out", got, want, magnitude)]


def _gemm_work(arguments: Arguments) -> Work:
    a, b, sizes = arguments["a"], arguments["b"].plain, arguments["expert_offsets"].diff()
    _, rows, columns = b.shape
    used = int((sizes > 0).sum()) * rows * columns * b.element_size()
    return Work(2.0 * int(sizes.sum()) * rows * columns, float(used + a.element_size() * a.shape[0] * (columns + rows)))


def _sample(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    """The first 128 columns of the output alone."""
    plain, packed = arguments["b"]
    return {**arguments, "b": Weights(plain[:, :128], packed[:, : 128 // reference.COLUMNS])}, got[:, :128]


def _on_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b, expert_offsets: function(a, b.plain, expert_offsets)


SPECS = [
    OpSpec(
        name="prepack",
        stem="prepack",
        function=hk.prepack,
        reference=reference.prepack,
        compare=_compare,
        cases=_cases,
        bench_cases=_bench_cases,
        work=lambda arguments: Work(0.0, 2.0 * arguments["weights"].nbytes),
        baselines={"permute().contiguous()": reference.prepack},
        on_cuda=lambda arguments: False,  # another order there, made by PyTorch; test_fp8_gemm_weight_only_cuda.py
    ),
    OpSpec(
        name="grouped_gemm_packed",
        stem="prepack",
        function=_packed_gemm,
        reference=_packed_gemm_reference,
        compare=_compare_gemm,
        cases=_gemm_cases,
        bench_cases=_gemm_bench_cases,
        work=_gemm_work,
        baselines={
            "grouped_gemm, not packed": _on_plain(hk.grouped_gemm),
            **{name: _on_plain(function) for name, function in EXPERT_PRODUCTS.items()},
        },
        sample=_sample,
        on_cuda=lambda arguments: False,  # packed weights are for CPUs
    ),
]
