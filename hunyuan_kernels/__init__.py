"""Mixture-of-experts kernels for the Hunyuan-Large architecture as PyTorch operators."""

from hunyuan_kernels._version import __version__
from hunyuan_kernels.ops import (
    Routing,
    combine,
    dispatch,
    dispatch_fp8,
    fp8_gemm,
    fp8_linear,
    grouped_gemm,
    grouped_gemm_fp8,
    grouped_gemm_wgrad_,
    grouped_swiglu,
    grouped_swiglu_fp8,
    load_balancing_loss,
    quantize_fp8,
    route,
    routing_from_ids,
)

__all__ = [
    "Routing",
    "__version__",
    "combine",
    "dispatch",
    "dispatch_fp8",
    "fp8_gemm",
    "fp8_linear",
    "grouped_gemm",
    "grouped_gemm_fp8",
    "grouped_gemm_wgrad_",
    "grouped_swiglu",
    "grouped_swiglu_fp8",
    "load_balancing_loss",
    "quantize_fp8",
    "route",
    "routing_from_ids",
]
