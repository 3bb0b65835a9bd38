"""Cases, bounds and baselines of the stem ``fp8_gemm``."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.reference.quantize import quantize_fp8
from hunyuan_kernels.testing.compare import UNIT_ROUNDOFF, Comparison, compare_bounded
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.grouped_gemm import (
    MODELS,
    first_of_halves,
    make_weights,
    offsets_of,
    swiglu_magnitude,
)
from hunyuan_kernels.testing.specs.quantize import eager_quantize

E4M3 = torch.float8_e4m3fn
FLOATS = (torch.bfloat16, torch.float32)
#: A rounding to the dtype, in units of the accumulation: ``u_out |x|`` is ``OUTPUT_UNITS[dtype] |x|`` in ``magnitude``.
OUTPUT_UNITS = {dtype: unit / (8.0 * UNIT_ROUNDOFF[torch.float32]) for dtype, unit in UNIT_ROUNDOFF.items()}


def blocks(size: int) -> int:
    """Blocks of 128 that cover ``size``."""
    return -(-size // 128)


def absolute(x: Tensor) -> Tensor:
    """``|x|`` in the dtype of ``x``, e4m3 included."""
    return x.float().abs().to(x.dtype)


def make_e4m3(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal values, rounded to e4m3."""
    if len(shape) == 3:
        return (make_weights(shape, torch.float32, generator) * shape[2] ** 0.5).to(E4M3)
    return torch.randn(shape, generator=generator).to(E4M3)


def make_scale(shape: tuple[int, ...], size: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) + 0.1) * size


def dense_scale_shape(kind: str, rows: int, columns: int, block_rows: int) -> tuple[int, ...]:
    blocked = (-(-rows // block_rows), blocks(columns))
    return {"tensor": (), "[1]": (1,), "row": (rows,), "block": blocked}[kind]


def _weight_scale_shape(kind: str, experts: int, rows: int, columns: int) -> tuple[int, ...]:
    """Of ``b`` [E, N, K]; "halves" and "half blocks" are those of SwiGLU alone."""
    half_blocks = (experts, 2, blocks(rows // 2), blocks(columns))
    shapes: dict[str, tuple[int, ...]] = {
        "tensor": (experts,),
        "row": (experts, rows),
        "block": (experts, blocks(rows), blocks(columns)),
        "halves": (experts, 2),
        "half blocks": half_blocks,
    }
    return shapes[kind]


def as_transposed(b: Tensor, transposed: bool) -> Tensor:
    return b.mT.contiguous().mT if transposed else b


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- dense ----------------------------------------------------------------------------------------------------------


def _gemm_arguments(
    m: int, n: int, k: int, a_kind: str, b_kind: str, transposed: bool, out_dtype: torch.dtype, seed: int
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": make_e4m3(m, k, generator=generator),
        "b": as_transposed(make_e4m3(n, k, generator=generator), transposed),
        "a_scale": make_scale(dense_scale_shape(a_kind, m, k, 1), 1.0, generator),
        "b_scale": make_scale(dense_scale_shape(b_kind, n, k, 128), max(k, 1) ** -0.5, generator),
        "out_dtype": out_dtype,
    }


def gemm_case(
    m: int,
    n: int,
    k: int,
    a_kind: str,
    b_kind: str,
    transposed: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Case:
    label = f"{m} x {n} x {k}, {a_kind} x {b_kind}, {dtype_name(out_dtype)}" + (", [K,N]" if transposed else "")
    return Case(label, partial(_gemm_arguments, m, n, k, a_kind, b_kind, transposed, out_dtype))


_DENSE_SHAPES = [(0, 5, 7), (1, 1, 1), (3, 0, 7), (3, 5, 0), (3, 5, 7), (8, 33, 130), (17, 130, 300), (40, 257, 129)]
_DENSE_SHAPES += [(5, 40, 64), (2, 16, 1000)]
DENSE_SCALES = ("tensor", "[1]", "row", "block")


def _gemm_cases() -> list[Case]:
    scales = product(DENSE_SCALES, DENSE_SCALES)
    variants = product(_DENSE_SHAPES, scales, (False, True), FLOATS)
    return [gemm_case(*shape, *kinds, transposed, dtype) for shape, kinds, transposed, dtype in variants]


def _compare_gemm(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    sizes = {**arguments, "a": absolute(arguments["a"]), "b": absolute(arguments["b"])}
    return [compare_bounded("out", got, want, reference.fp8_gemm(**sizes))]


# ---- grouped --------------------------------------------------------------------------------------------------------

# label, group sizes, N (I for SwiGLU), K, rows past the end
_GROUPED_SHAPES = [
    ("no rows", [0, 0], 5, 7, 0),
    ("only rows past the end", [0, 0], 5, 7, 3),
    ("one row", [1], 32, 64, 0),
    ("odd", [0, 9, 1, 23], 43, 71, 2),
    ("whole blocks", [3, 0, 30], 128, 256, 0),
    ("partial blocks", [17, 5], 130, 300, 4),
    ("all rows to one expert", [0, 60, 0], 40, 130, 0),
]
_ACTIVATIONS = ("static", "row", "block", "bfloat16", "float32")


def grouped_arguments(
    sizes: list[int],
    n: int,
    k: int,
    tail: int,
    activations: str,
    kind: str,
    transposed: bool,
    name: str,
    options: Arguments,
    seed: int,
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes) + tail
    a = torch.randn(rows, k, generator=generator)
    a[sum(sizes) :] = float("nan")
    a_scale = None
    if activations not in ("bfloat16", "float32"):
        shape: tuple[int, ...] = {"static": (), "row": (rows,), "block": (rows, blocks(k))}[activations]
        a_scale = make_scale(shape, 1.0, generator)
    return {
        "a": a.to(getattr(torch, activations) if a_scale is None else E4M3),
        name: as_transposed(make_e4m3(len(sizes), n, k, generator=generator), transposed),
        "expert_offsets": offsets_of(sizes),
        "a_scale": a_scale,
        "b_scale": make_scale(_weight_scale_shape(kind, len(sizes), n, k), max(k, 1) ** -0.5, generator),
        **options,
    }


def _grouped_gemm_cases() -> list[Case]:
    return [
        Case(
            f"{label}, {activations} x {kind}, {dtype_name(out_dtype)}" + (", [E,K,N]" if transposed else ""),
            partial(grouped_arguments, sizes, n, k, tail, activations, kind, transposed, "b", {"out_dtype": out_dtype}),
        )
        for label, sizes, n, k, tail in _GROUPED_SHAPES
        for activations in _ACTIVATIONS
        for kind in ("tensor", "row", "block")
        for transposed, out_dtype in ((False, torch.bfloat16), (True, torch.float32))
    ]


#: What ``grouped_swiglu_fp8`` can return.
_SWIGLU_OUTPUTS: list[tuple[str, Arguments]] = [
    ("to bfloat16", {"out_dtype": torch.bfloat16}),
    ("to float32", {"out_dtype": torch.float32}),
    ("to e4m3", {"out_dtype": E4M3}),
    ("to e4m3, static", {"out_dtype": E4M3, "out_scale": torch.tensor([0.02])}),
]


def _grouped_swiglu_cases() -> list[Case]:
    cases = []
    for label, sizes, n, k, tail in _GROUPED_SHAPES:
        kinds = ["tensor", "row", "halves", "half blocks"] + (["block"] if n % 128 == 0 else [])
        variants = [
            *product(_ACTIVATIONS, kinds, _SWIGLU_OUTPUTS[:1]),
            *product(("block", "bfloat16"), ("halves",), _SWIGLU_OUTPUTS[1:]),
        ]
        for activations, kind, (output, options) in variants:
            make = partial(grouped_arguments, sizes, 2 * n, k, tail, activations, kind, False, "gate_up", options)
            cases.append(Case(f"{label}, {activations} x {kind}, {output}", make))
    return cases


def _compare_grouped_gemm(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    sizes = {**arguments, "a": absolute(arguments["a"]), "b": absolute(arguments["b"])}
    return [compare_bounded("out", got, want, reference.grouped_gemm_fp8(**sizes))]


def _compare_grouped_swiglu(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    a = reference.dequantize_activations(arguments["a"], arguments["a_scale"])
    gate_up = reference.dequantize_weights(arguments["gate_up"], arguments["b_scale"], halves=True)
    if arguments["out_dtype"] != E4M3:
        return [compare_bounded("out", got, want, swiglu_magnitude(a, gate_up, arguments["expert_offsets"], want))]
    # An error of the sum's rounding can move a value to the next e4m3 number: what the pair stands for is compared.
    exact = reference.grouped_swiglu_fp8(**{**arguments, "out_dtype": torch.float32, "out_scale": None})
    assert isinstance(exact, Tensor)
    magnitude = swiglu_magnitude(a, gate_up, arguments["expert_offsets"], exact)
    q, scale = got
    spread = reference.dequantize_activations(torch.ones_like(exact), scale)
    exact = exact.clamp(-448.0 * spread, 448.0 * spread)  # a static scale saturates
    # half the spacing of e4m3: a unit roundoff of the value, or of the subnormal numbers
    magnitude_of_q = magnitude + OUTPUT_UNITS[E4M3] * torch.maximum(exact.abs(), 2.0**-6 * spread)
    comparison = compare_bounded("q x scale", q.double() * spread, exact, magnitude_of_q)
    if arguments.get("out_scale") is not None:
        return [comparison, compare_bounded("scale", scale, arguments["out_scale"].reshape(()), 0.0)]
    size = quantize_fp8(magnitude.float(), "block_1x128")[1].double()
    return [comparison, compare_bounded("scale", scale, want[1], size)]


# ---- benchmarks -----------------------------------------------------------------------------------------------------


def _gemm_bench_cases(preset: str | None) -> list[Case]:
    """N and K of an attention projection; M from decode to prefill."""
    if preset is None:
        return [
            gemm_case(64, 1024, 1024, "row", "row"),
            *(gemm_case(512, 4096, 4096, k, k) for k in DENSE_SCALES[::2]),
        ]
    size = {"hunyuan-large": 6400, "hunyuan-a13b": 4096}[preset]
    return [gemm_case(m, size, size, kind, kind) for m in (1, 32, 512) for kind in ("tensor", "row", "block")]


def _grouped_bench_cases(preset: str | None, name: str, kind: str) -> list[Case]:
    experts, n, k = MODELS[preset]
    cases = []
    blocked = "block" if name == "b" else "half blocks"
    variants = [("bfloat16", kind, torch.bfloat16), ("block", blocked, torch.bfloat16)]
    if name == "gate_up":
        variants.append(("block", blocked, E4M3))
    for group in (16, 1, 64):
        for activations, weights, out_dtype in variants:
            label = f"{experts} experts x {group} rows, N {n}, K {k}, {activations} x {weights}"
            label += ", to e4m3" if out_dtype == E4M3 else ""
            options = {"out_dtype": out_dtype}
            make = partial(grouped_arguments, [group] * experts, n, k, 0, activations, weights, False, name, options)
            cases.append(Case(label, make))
    return cases


def dense_work(a: Tensor, b: Tensor, out_size: int) -> Work:
    rows, (n, k) = a.numel() // max(1, a.shape[-1]), b.shape
    moved = a.numel() * a.element_size() + b.numel() + rows * n * out_size
    return Work(flops=2.0 * rows * n * k, bytes=float(moved))


def _grouped_work(name: str, out_share: float, arguments: Arguments) -> Work:
    a, b, sizes = arguments["a"], arguments[name], arguments["expert_offsets"].diff()
    used = int((sizes > 0).sum()) * b.shape[1] * b.shape[2]
    columns, out_dtype = b.shape[1] * out_share, arguments["out_dtype"]
    moved = used + a.numel() * a.element_size() + a.shape[0] * columns * out_dtype.itemsize
    if out_dtype == E4M3:  # fresh scales
        moved += 4.0 * a.shape[0] * blocks(int(columns))
    return Work(flops=2.0 * int(sizes.sum()) * b.shape[1] * b.shape[2], bytes=float(moved))


def _scaled_mm(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    if a_scale.dim() == 2:
        raise NotImplementedError("torch._scaled_mm has no block scales on the CPU")
    rowwise = a_scale.dim() == 1 and a_scale.numel() == a.shape[0]
    if rowwise:
        a_scale, b_scale = a_scale[:, None], b_scale[None]
    return torch._scaled_mm(a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=out_dtype)


def dequantized(values: Tensor, scale: Tensor | None, block_rows: int, dtype: torch.dtype) -> Tensor:
    """``values`` [M, K] under any scale of a matrix, in ``dtype``."""
    if scale is None:
        return values.to(dtype)
    if scale.dim() == 2:
        scale = reference.spread(scale, values.shape[0], values.shape[1], block_rows)
    elif scale.dim() == 1 and scale.numel() == values.shape[0]:
        scale = scale[:, None]
    return values.to(dtype) * scale.to(dtype)


def _dequantize_and_multiply(dtype: torch.dtype) -> Callable[..., Tensor]:
    def baseline(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        left, right = dequantized(a, a_scale, 1, dtype), dequantized(b, b_scale, 128, dtype)
        return F.linear(left, right).to(out_dtype)

    return baseline


def _dequantize_per_expert(dtype: torch.dtype) -> Callable[..., Tensor]:
    def baseline(
        a: Tensor, b: Tensor, expert_offsets: Tensor, a_scale: Tensor | None, b_scale: Tensor, *, out_dtype: torch.dtype
    ) -> Tensor:
        left = dequantized(a, a_scale, 1, dtype)
        out = torch.zeros(a.shape[0], b.shape[1], dtype=out_dtype)
        for e, (start, end) in enumerate(pairwise(expert_offsets.tolist())):
            if end > start:
                weights = _expert_weights(b[e], b_scale[e], dtype)
                out[start:end] = F.linear(left[start:end], weights)
        return out

    return baseline


def _expert_weights(weights: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """One expert's [N, K] under its scale: those of two halves are applied half by half."""
    if scale.dim() == 3 or (scale.dim() == 1 and scale.numel() == 2 != weights.shape[0]):
        halves = zip(weights.chunk(2), scale, strict=True)
        return torch.cat([dequantized(half, its_scale, 128, dtype) for half, its_scale in halves])
    return dequantized(weights, scale, 128, dtype)


def _with_swiglu(multiply: Callable[..., Tensor]) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    def baseline(
        a: Tensor,
        gate_up: Tensor,
        expert_offsets: Tensor,
        a_scale: Tensor | None,
        b_scale: Tensor,
        out_dtype: torch.dtype,
    ) -> Tensor | tuple[Tensor, Tensor]:
        quantizes = out_dtype == E4M3
        dtype = torch.bfloat16 if quantizes else out_dtype
        gate, up = multiply(a, gate_up, expert_offsets, a_scale, b_scale, out_dtype=dtype).chunk(2, dim=1)
        out = F.silu(gate) * up
        return eager_quantize(out, "block_1x128") if quantizes else out

    return baseline


def _first_of_scale(scale: Tensor, dim: int, rows: int) -> Tensor:
    """The scales of the first 128 rows of weights: one for each row, one for each 128, or one for all."""
    if scale.dim() <= dim or (scale.dim() == dim + 1 and scale.shape[dim] != rows):
        return scale
    return scale.narrow(dim, 0, min(128, rows) if scale.shape[dim] == rows else 1)


def sample_dense(weights: str, scale: str, arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    b, b_scale = arguments[weights], arguments[scale]
    return {**arguments, weights: b[:128], scale: _first_of_scale(b_scale, 0, b.shape[0])}, got[..., :128]


def _sample_grouped(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    b, b_scale = arguments["b"], arguments["b_scale"]
    return {**arguments, "b": b[:, :128], "b_scale": _first_of_scale(b_scale, 1, b.shape[1])}, got[:, :128]


def _sample_swiglu(arguments: Arguments, got: Any) -> tuple[Arguments, Any]:
    """Scales of halves: one for each, or blocks. Of an e4m3 result also the first block's scales."""
    scale = arguments["b_scale"]
    fewer = {
        "gate_up": first_of_halves(arguments["gate_up"]),
        "b_scale": scale[:, :, :1] if scale.dim() == 4 else scale,
    }
    return {**arguments, **fewer}, (got[0][:, :128], got[1][:, :1]) if isinstance(got, tuple) else got[:, :128]


def _on_cuda(arguments: Arguments) -> bool:
    """Activations in e4m3 or bf16."""
    return bool(arguments["a"].dtype != torch.float32)


def _plan(name: str) -> Callable[[Arguments, int], object]:
    def plan(arguments: Arguments, sms: int) -> object:
        from hunyuan_kernels._C import plans  # not part of what ops need

        a, weights = arguments["a"], arguments[name]
        *experts, columns, depth = weights.shape
        a_scale, b_scale = arguments["a_scale"], arguments["b_scale"]
        b_in_blocks = depth > 128 and b_scale.dim() > len(experts) + 1
        options = {"experts": experts[0] if experts else None, "rows": a.shape[0], "columns": columns, "depth": depth}
        out_dtype = arguments["out_dtype"]
        if a_scale is None and out_dtype == E4M3:  # quantized by another kernel
            out_dtype = torch.float32
        options |= {"swiglu": name == "gate_up", "out": plans.DType[dtype_name(out_dtype)], "sms": sms}
        if a_scale is None:
            return plans.fp8_weight_only(**options, in_blocks=b_in_blocks)
        return plans.fp8_gemm(**options, in_blocks=b_in_blocks or (depth > 128 and a_scale.dim() == 2))

    return plan


SPECS = [
    OpSpec(
        name="fp8_gemm",
        stem="fp8_gemm",
        function=hk.fp8_gemm,
        reference=reference.fp8_gemm,
        compare=_compare_gemm,
        cases=_gemm_cases,
        bench_cases=_gemm_bench_cases,
        work=lambda arguments: dense_work(arguments["a"], arguments["b"], arguments["out_dtype"].itemsize),
        baselines={
            "torch._scaled_mm": _scaled_mm,
            "F.linear in bf16": _dequantize_and_multiply(torch.bfloat16),
            "F.linear in fp32": _dequantize_and_multiply(torch.float32),
        },
        sample=partial(sample_dense, "b", "b_scale"),
        on_cuda=_on_cuda,
        plan=_plan("b"),
    ),
    OpSpec(
        name="grouped_gemm_fp8",
        stem="fp8_gemm",
        function=hk.grouped_gemm_fp8,
        reference=reference.grouped_gemm_fp8,
        compare=_compare_grouped_gemm,
        cases=_grouped_gemm_cases,
        bench_cases=lambda preset: _grouped_bench_cases(preset, "b", "tensor"),
        work=partial(_grouped_work, "b", 1.0),
        baselines={
            "bf16 loop": _dequantize_per_expert(torch.bfloat16),
            "fp32 loop": _dequantize_per_expert(torch.float32),
        },
        sample=_sample_grouped,
        on_cuda=_on_cuda,
        plan=_plan("b"),
    ),
    OpSpec(
        name="grouped_swiglu_fp8",
        stem="fp8_gemm",
        function=hk.grouped_swiglu_fp8,
        reference=reference.grouped_swiglu_fp8,
        compare=_compare_grouped_swiglu,
        cases=_grouped_swiglu_cases,
        bench_cases=lambda preset: _grouped_bench_cases(preset, "gate_up", "halves"),
        work=partial(_grouped_work, "gate_up", 0.5),
        baselines={
            "bf16 loop": _with_swiglu(_dequantize_per_expert(torch.bfloat16)),
            "fp32 loop": _with_swiglu(_dequantize_per_expert(torch.float32)),
        },
        sample=_sample_swiglu,
        on_cuda=_on_cuda,
        plan=_plan("gate_up"),
    ),
]
