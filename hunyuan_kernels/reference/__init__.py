"""The specification of every operator in plain PyTorch, one module per stem."""

from hunyuan_kernels.reference import dispatch, grouped_gemm, quantize, routing

__all__ = ["dispatch", "grouped_gemm", "quantize", "routing"]
