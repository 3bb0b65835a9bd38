"""The cases on which mutants of an op's kernels run, small and few: each kernel executes all of its synchronization,
and misses any of it.

A case of a product gives a block at least two tiles and more k-blocks than stages, and a kernel whose blocks work
together a cluster of several; the plan makes that of few SMs. Row movements, routing and quantization take cases of
their spec.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hunyuan_kernels.reference.prepack import prepack_for_gpu
from hunyuan_kernels.testing.product_options import product_options
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec
from hunyuan_kernels.testing.specs.fp8_gemm import E4M3, blocks
from hunyuan_kernels.testing.specs.grouped_gemm import make_arguments, offsets_of

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32

#: Of an op, the labels of its spec's cases.
_LABELS = {
    "quantize_fp8": r"(129x257|256x128|2x130x200|5x230[45]) .*",
    "dispatch": r"many tokens, padding, H (33|256), .*",
    "dispatch_fp8": r"many tokens, padding, H (33|256), .*",
    "combine": r"3 choices, some dropped, H (33|256), .*",
    "combine_backward": r"(3 choices, some dropped|many tokens, padding), H (33|256|1160), .*",
    "route": r"T=(600|4100) .*|.* k=[23] .*|T=(40|300) .* recycle one expert|T=64 .*|T=100 E=64 .*",
    "route_backward": r"T=33 E=(64|200|300) .*",
    "routing_from_ids": r".*",
    "load_balancing_loss": r"T=33 .*",
    "load_balancing_loss_backward": r"T=33 .*",
    "swiglu": r"S (7|9), .*",
    "swiglu_backward": r"S (7|9), .*",
}

# Rows of the groups, rows of no group, N (I of a pair of gate and up), K. 64 rows are written by TMA, fewer by threads.
_Shape = tuple[list[int], int, int, int]
_ROWS: dict[str, _Shape] = {
    "rows 128": ([129, 0, 70], 67, 120, 460),
    "rows 256": ([129, 0, 70], 67, 248, 600),
    "few rows 16": ([9, 5, 7], 3, 72, 1100),
    "few rows 64": ([33], 3, 264, 1100),
}
_SWIGLU: dict[str, _Shape] = {
    "rows": ([129, 0, 70], 67, 120, 600),
    "few rows 16": ([9, 5], 2, 72, 700),
    "few rows 64": ([33, 20], 3, 72, 700),
}
#: Three tiles side by side, of which two blocks take two and then one.
_MULTICAST_ROWS: dict[str, _Shape] = {"multicast": ([129, 0, 70], 67, 520, 600)}
_MULTICAST_SWIGLU: dict[str, _Shape] = {"multicast": ([129, 0, 70], 67, 264, 600)}


def _bf16(name: str, shapes: dict[str, _Shape], option: str, values: dict[str, Any]) -> list[Case]:
    """Weights in both orders; ``name`` is theirs, ``values`` are those of a further argument by their label."""

    def make(seed: int, shape: _Shape, across: bool, value: Any) -> Arguments:
        sizes, tail, n, k = shape
        lines = 2 * n if name == "gate_up" else n
        product = make_arguments(sizes, lines, k, BFLOAT16, seed, tail=tail, transposed=across, name=name)
        return {**product, option: value}

    return [
        Case(
            f"{label}{', across' if across else ''}{text}",
            partial(make, shape=shape, across=across, value=value),
            sms=1,
        )
        for label, shape in shapes.items()
        for across in (False, True)
        for text, value in values.items()
    ]


def _multicast(cases: list[Case]) -> list[Case]:
    return [replace(case, sms=2, within=partial(product_options, "multicast")) for case in cases]


def _grouped_gemm() -> list[Case]:
    bf16, both = {", to bf16": BFLOAT16}, {", to bf16": BFLOAT16, ", to fp32": FLOAT32}
    return _bf16("b", _ROWS, "out_dtype", both) + _multicast(_bf16("b", _MULTICAST_ROWS, "out_dtype", bf16))


def _grouped_swiglu() -> list[Case]:
    name, option, values = "gate_up", "return_preactivation", {"": False, ", with the pre-activation": True}
    with_kernels = [case for case in _bf16(name, _MULTICAST_SWIGLU, option, values) if "across" not in case.label]
    return _bf16(name, _SWIGLU, option, values) + _multicast(with_kernels)


def _grouped_gemm_wgrad() -> list[Case]:
    def make(seed: int) -> Arguments:
        product = make_arguments([330, 0, 70], 136, 264, BFLOAT16, seed, tail=20)
        generator = torch.Generator().manual_seed(seed + 1)
        grad_b, grad_out = torch.randn(3, 136, 264, generator=generator), torch.randn(420, 136, generator=generator)
        grad_out[400:] = float("nan")
        operands = {name: product[name] for name in ("a", "expert_offsets")}
        return {"grad_b": grad_b, "grad_out": grad_out.to(BFLOAT16), **operands}

    return [Case("weight gradient", make, sms=2)]


def _fp8(name: str, shapes: list[_Shape], experts: bool = True) -> list[Case]:
    """Scales of rows, and of blocks; ``name`` is that of the weights. SwiGLU quantizes its result, too."""
    outputs = (BFLOAT16, FLOAT32, E4M3) if name == "gate_up" else (BFLOAT16, FLOAT32)

    def make(seed: int, shape: _Shape, blocked: bool, out_dtype: torch.dtype) -> Arguments:
        sizes, tail, n, k = shape
        generator = torch.Generator().manual_seed(seed)
        rows, depth_blocks, leading = sum(sizes) + tail, blocks(k), (len(sizes),) if experts else ()
        halves = (2, blocks(n // 2)) if name == "gate_up" else (blocks(n),)
        return {
            "a": torch.randn(rows, k, generator=generator).to(E4M3),
            name: torch.randn(*leading, n, k, generator=generator).to(E4M3),
            "a_scale": torch.rand(rows, *((depth_blocks,) if blocked else ()), generator=generator),
            "b_scale": torch.rand(*leading, *((*halves, depth_blocks) if blocked else (n,)), generator=generator)
            * 0.05,
            "out_dtype": out_dtype,
            **({"expert_offsets": offsets_of(sizes)} if experts else {}),
        }

    return [
        Case(
            f"N {shape[2]}, K {shape[3]}, scales of {'blocks' if blocked else 'rows'}, {out_dtype}",
            partial(make, shape=shape, blocked=blocked, out_dtype=out_dtype),
            sms=1,
        )
        for shape in shapes
        for blocked in (False, True)
        for out_dtype in outputs
    ]


def _fp8_weights(name: str) -> list[Case]:
    """bf16 activations; ``name`` is that of the weights. Packed ones are as ``prepack`` leaves them on a GPU."""

    def make(seed: int, sizes: list[int], blocked: bool, packed: bool) -> Arguments:
        n, k, tail, experts = 288, 1184, 3, len(sizes)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(experts, n, k, generator=generator).to(E4M3)
        scale = torch.rand(experts, *((2, blocks(n // 2), blocks(k)) if blocked else (n,)), generator=generator) * 0.05
        weights = prepack_for_gpu(weights) if packed else weights
        x = torch.randn(sum(sizes) + tail, k, generator=generator).to(BFLOAT16)
        if name == "weight":
            whole = torch.rand(blocks(n), blocks(k), generator=generator) if blocked else scale[0]
            return {"x": x, "weight": weights[0], "weight_scale": whole}
        offsets = offsets_of(sizes)
        return {"a": x, name: weights, "expert_offsets": offsets, "a_scale": None, "b_scale": scale} | {
            "out_dtype": BFLOAT16
        }

    return [
        Case(
            f"weights alone, {tokens} rows, scales of {'blocks' if blocked else 'rows'}{', packed' if packed else ''}",
            partial(make, sizes=sizes[:1] if name == "weight" else sizes, blocked=blocked, packed=packed),
            sms=1,
        )
        for tokens, sizes in ((16, [9, 5]), (64, [33, 20]))
        for blocked in (False, True)
        for packed in (False, True)
    ]


_CASES: dict[str, Callable[[], list[Case]]] = {
    "grouped_gemm": _grouped_gemm,
    "grouped_swiglu": _grouped_swiglu,
    "grouped_gemm_wgrad_": _grouped_gemm_wgrad,
    "fp8_gemm": lambda: _fp8("b", [([192], 0, 120, 830), ([192], 0, 248, 600)], experts=False),
    "grouped_gemm_fp8": lambda: _fp8("b", [([129, 0, 70], 67, 120, 830), ([129, 0, 70], 67, 248, 600)]),
    "grouped_swiglu_fp8": lambda: _fp8("gate_up", [([129, 0, 70], 67, 240, 600)]) + _fp8_weights("gate_up"),
    "fp8_linear": lambda: _fp8_weights("weight"),
}


def mutation_cases(spec: OpSpec) -> list[Case]:
    """The cases on which mutants of an op's kernels run; all that its CUDA kernels take where none are chosen."""
    if spec.name in _CASES:
        return _CASES[spec.name]()
    return [case for case in spec.cuda_cases() if re.fullmatch(_LABELS.get(spec.name, ".*"), case.label)]
