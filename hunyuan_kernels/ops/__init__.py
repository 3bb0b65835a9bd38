"""The operators, one module per stem."""

from hunyuan_kernels.ops.grouped_gemm import grouped_gemm, grouped_gemm_wgrad_, grouped_swiglu

__all__ = ["grouped_gemm", "grouped_gemm_wgrad_", "grouped_swiglu"]
