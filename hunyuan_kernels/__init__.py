"""Mixture-of-experts kernels for the Hunyuan-Large architecture as PyTorch operators."""

from hunyuan_kernels._version import __version__
from hunyuan_kernels.ops import (
    combine,
    dispatch,
    dispatch_fp8,
    grouped_gemm,
    grouped_gemm_wgrad_,
    grouped_swiglu,
    quantize_fp8,
)

__all__ = [
    "__version__",
    "combine",
    "dispatch",
    "dispatch_fp8",
    "grouped_gemm",
    "grouped_gemm_wgrad_",
    "grouped_swiglu",
    "quantize_fp8",
]
