"""Cases, bounds and baselines of the stem ``nf4_gemm``."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import grouped_gemm as grouped_reference
from hunyuan_kernels.reference import nf4_gemm as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded, compare_exact
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.grouped_gemm import MODELS, make_arguments, swiglu_magnitude

_FLOATS = (torch.bfloat16, torch.float32)
Nf4Weights = hk.Nf4Weights


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- quantizer ------------------------------------------------------------------------------------------------------


def _make_weights(shape: tuple[int, ...], dtype: torch.dtype, wide: bool, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator)
    if wide:  # over many orders of magnitude, with blocks of zeros and of subnormal numbers
        weights = weights * torch.randn((*shape[:-1], 1), generator=generator).mul(12).exp()
        weights[..., :64] *= 0.0
        weights[..., 1:2, :] *= 2.0**-140
        weights[..., 64:96] *= 2.0**-14
    return {"weights": weights.to(dtype)}


def _quantizer_cases() -> list[Case]:
    shapes = [(16, 64), (48, 256), (2, 16, 192), (0, 16, 64), (2, 0, 64), (32, 0)]
    return [
        Case(f"{list(s)} {_name(d)}{' wide' * w}", partial(_make_weights, s, d, w))
        for s in shapes
        for d in _FLOATS
        for w in (False, True)
    ]


def _compare_quantized(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_exact(name, g, w) for name, g, w in zip(("blocks", "scale"), got, want, strict=True)]


def _quantizer_bench_cases(preset: str | None) -> list[Case]:
    _, rows, columns = MODELS[preset]
    return [Case(f"[{rows}, {columns}] bfloat16", partial(_make_weights, (rows, columns), torch.bfloat16, False))]


# ---- products -------------------------------------------------------------------------------------------------------

# group sizes, N (I for SwiGLU), K
_SHAPES: list[tuple[list[int], int, int]] = [
    ([1], 32, 64),
    ([2, 0, 5], 112, 576),
    ([9, 13, 16], 48, 1088),
    ([33, 1, 100], 80, 128),
    ([0, 0], 16, 64),
    ([2, 1], 16, 0),
    ([2, 1], 0, 64),
]


def _make(name: str, sizes: list[int], rows: int, columns: int, dtype: torch.dtype, tail: int, seed: int) -> Arguments:
    arguments = make_arguments(sizes, rows, columns, dtype, seed, tail=tail, name=name)
    return arguments | {name: hk.quantize_nf4(arguments[name])}


def _cases(name: str, row_factor: int) -> list[Case]:
    return [
        Case(f"rows {s}, N {n}, K {k}, {_name(d)}", partial(_make, name, s, n * row_factor, k, d, 2))
        for s, n, k in _SHAPES
        for d in _FLOATS
    ]


def _linear_arguments(rows: int, n: int, k: int, dtype: torch.dtype, seed: int) -> Arguments:
    arguments = make_arguments([rows], n, k, dtype, seed)
    return {"x": arguments["a"], "weights": hk.quantize_nf4(arguments["b"][0])}


def _linear_cases() -> list[Case]:
    return [
        Case(f"[{m}, {k}] x [{n}, {k}] {_name(d)}", partial(_linear_arguments, m, n, k, d))
        for m, n, k in ((1, 16, 64), (7, 48, 320), (20, 80, 1024), (0, 16, 64))
        for d in _FLOATS
    ]


def _compare_linear(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    x, weights = arguments["x"].double(), reference.dequantize_nf4(arguments["weights"])
    return [compare_bounded("out", got, want, x.abs() @ weights.abs().T)]


def _compare_grouped(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    weights = reference.dequantize_nf4(arguments["weights"])
    magnitude = grouped_reference.grouped_gemm(arguments["a"].abs(), weights.abs(), arguments["expert_offsets"])
    return [compare_bounded("out", got, want, magnitude)]


def _compare_swiglu(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    operands = arguments | {"gate_up": reference.dequantize_nf4(arguments["gate_up"])}
    return [compare_bounded("out", got, want, swiglu_magnitude(**operands, want=want))]


def _bench_cases(name: str, preset: str | None) -> list[Case]:
    experts, rows, columns = MODELS[preset]
    return [
        Case(
            f"{experts} experts x {group} rows, N {rows}, K {columns}, bfloat16",
            partial(_make, name, [group] * experts, rows, columns, torch.bfloat16, 0),
        )
        for group in (1, 8, 128)
    ]


def _linear_bench_cases(preset: str | None) -> list[Case]:
    _, n, k = MODELS[preset]
    return [
        Case(f"[{m}, {k}] x [{n}, {k}] bfloat16", partial(_linear_arguments, m, n, k, torch.bfloat16))
        for m in (1, 8, 128)
    ]


def _work(a: Tensor, weights: Nf4Weights, groups: Tensor | None, factor: float) -> Work:
    rows, columns = weights.scale.shape[-1], a.shape[1]
    share = 1.0 if groups is None else float((groups > 0).float().mean())
    moved = share * (weights.blocks.nbytes + weights.scale.nbytes) + a.element_size() * a.shape[0] * columns
    return Work(2.0 * a.shape[0] * rows * columns, moved + factor * a.element_size() * a.shape[0] * rows)


def _sample_grouped(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    blocks, scale = arguments["weights"]
    return {**arguments, "weights": Nf4Weights(blocks[:, :8], scale[:, :128])}, got[:, :128]


def _sample_linear(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    blocks, scale = arguments["weights"]
    return {**arguments, "weights": Nf4Weights(blocks[:8], scale[:128])}, got[:, :128]


def _sample_swiglu(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    def first(tensor: Tensor, count: int) -> Tensor:
        return torch.cat([half[:, :count] for half in tensor.chunk(2, dim=1)], dim=1)

    blocks, scale = arguments["gate_up"]
    return {**arguments, "gate_up": Nf4Weights(first(blocks, 8), first(scale, 128))}, got[:, :128]


#: Nothing in PyTorch multiplies by NF4 weights; what it would be compared with is bf16 weights: grouped_gemm's bench.
SPECS = [
    OpSpec(
        name="quantize_nf4",
        stem="nf4_gemm",
        function=hk.quantize_nf4,
        reference=reference.quantize_nf4,
        compare=_compare_quantized,
        cases=_quantizer_cases,
        bench_cases=_quantizer_bench_cases,
        work=lambda arguments: Work(0.0, arguments["weights"].nbytes + 0.515625 * arguments["weights"].numel()),
        baselines={"naive eager": reference.quantize_nf4},
    ),
    OpSpec(
        name="nf4_linear",
        stem="nf4_gemm",
        function=hk.nf4_linear,
        reference=reference.nf4_linear,
        compare=_compare_linear,
        cases=_linear_cases,
        bench_cases=_linear_bench_cases,
        work=lambda arguments: _work(arguments["x"], arguments["weights"], None, 1.0),
        baselines={},
        sample=_sample_linear,
    ),
    OpSpec(
        name="grouped_gemm_nf4",
        stem="nf4_gemm",
        function=hk.grouped_gemm_nf4,
        reference=reference.grouped_gemm_nf4,
        compare=_compare_grouped,
        cases=lambda: _cases("weights", 1),
        bench_cases=lambda preset: _bench_cases("weights", preset),
        work=lambda arguments: _work(arguments["a"], arguments["weights"], arguments["expert_offsets"].diff(), 1.0),
        baselines={},
        sample=_sample_grouped,
    ),
    OpSpec(
        name="grouped_swiglu_nf4",
        stem="nf4_gemm",
        function=hk.grouped_swiglu_nf4,
        reference=reference.grouped_swiglu_nf4,
        compare=_compare_swiglu,
        cases=lambda: _cases("gate_up", 2),
        bench_cases=lambda preset: _bench_cases("gate_up", preset),
        work=lambda arguments: _work(arguments["a"], arguments["gate_up"], arguments["expert_offsets"].diff(), 0.5),
        baselines={},
        sample=_sample_swiglu,
    ),
]
