"""Mixture-of-experts kernels for the Hunyuan-Large architecture as PyTorch operators."""

from hunyuan_kernels._version import __version__
from hunyuan_kernels.ops import grouped_gemm, grouped_gemm_wgrad_, grouped_swiglu

__all__ = ["__version__", "grouped_gemm", "grouped_gemm_wgrad_", "grouped_swiglu"]
