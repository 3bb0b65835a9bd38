"""The operators, one module per stem."""

from hunyuan_kernels.ops.dispatch import combine, dispatch, dispatch_fp8
from hunyuan_kernels.ops.fp8_gemm import fp8_gemm, fp8_linear, grouped_gemm_fp8, grouped_swiglu_fp8
from hunyuan_kernels.ops.grouped_gemm import grouped_gemm, grouped_gemm_wgrad_, grouped_swiglu
from hunyuan_kernels.ops.moe import Experts, Fp8Experts, Nf4Experts, SharedExpert, expert_mlp, moe
from hunyuan_kernels.ops.nf4_gemm import (
    Nf4Weights,
    grouped_gemm_nf4,
    grouped_swiglu_nf4,
    nf4_linear,
    quantize_nf4,
)
from hunyuan_kernels.ops.prepack import prepack
from hunyuan_kernels.ops.quantize import quantize_fp8
from hunyuan_kernels.ops.routing import Routing, load_balancing_loss, route, routing_from_ids
from hunyuan_kernels.ops.swiglu import swiglu

__all__ = [
    "Experts",
    "Fp8Experts",
    "Nf4Experts",
    "Nf4Weights",
    "Routing",
    "SharedExpert",
    "combine",
    "dispatch",
    "dispatch_fp8",
    "expert_mlp",
    "fp8_gemm",
    "fp8_linear",
    "grouped_gemm",
    "grouped_gemm_fp8",
    "grouped_gemm_nf4",
    "grouped_gemm_wgrad_",
    "grouped_swiglu",
    "grouped_swiglu_fp8",
    "grouped_swiglu_nf4",
    "load_balancing_loss",
    "moe",
    "nf4_linear",
    "prepack",
    "quantize_fp8",
    "quantize_nf4",
    "route",
    "routing_from_ids",
    "swiglu",
]
