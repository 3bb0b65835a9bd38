"""The specification of every operator in plain PyTorch, one module per stem."""

from hunyuan_kernels.reference import dispatch, fp8_gemm, grouped_gemm, moe, quantize, routing, swiglu

__all__ = ["dispatch", "fp8_gemm", "grouped_gemm", "moe", "quantize", "routing", "swiglu"]
