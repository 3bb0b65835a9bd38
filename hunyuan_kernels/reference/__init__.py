"""The specification of every operator in plain PyTorch, one module per stem."""

from hunyuan_kernels.reference import (
    dispatch,
    fp8_gemm,
    grouped_gemm,
    moe,
    nf4_gemm,
    prepack,
    quantize,
    routing,
    swiglu,
)

__all__ = ["dispatch", "fp8_gemm", "grouped_gemm", "moe", "nf4_gemm", "prepack", "quantize", "routing", "swiglu"]
