"""Sizes at which DeepGEMM's authors publish figures (README of 2025): FP8 products, and bf16 ones beside them."""

from collections.abc import Iterator
from functools import partial

import torch

from hunyuan_kernels.testing.spec import Case, OpSpec, all_specs
from hunyuan_kernels.testing.specs.fp8_gemm import gemm_case, grouped_arguments
from hunyuan_kernels.testing.specs.grouped_gemm import make_arguments

#: M, N, K.
DENSE = [(64, 24576, 1536), (128, 7168, 16384), (4096, 7168, 16384)]
#: Groups, rows of each, N, K.
GROUPED = [
    (groups, rows, n, k)
    for n, k in ((4096, 7168), (7168, 2048))
    for groups, rows in ((4, 8192), (1, 1024), (2, 512), (4, 256))
]


def published() -> Iterator[tuple[OpSpec, Case]]:
    """Ops and cases: scales per tensor, of rows and of blocks; groups of equal size in blocks, and in bf16."""
    specs = {spec.name: spec for spec in all_specs()}
    for shape in DENSE:
        for kind in ("tensor", "row", "block"):
            yield specs["fp8_gemm"], gemm_case(*shape, kind, kind)
    for groups, rows, n, k in GROUPED:
        label, sizes = f"{groups} experts x {rows} rows, N {n}, K {k}", [rows] * groups
        options = {"out_dtype": torch.bfloat16}
        fp8 = partial(grouped_arguments, sizes, n, k, 0, "block", "block", False, "b", options)
        yield specs["grouped_gemm_fp8"], Case(f"{label}, block x block", fp8)
        bf16 = partial(make_arguments, sizes, n, k, torch.bfloat16)
        yield specs["grouped_gemm"], Case(f"{label}, bfloat16", bf16)
