"""The operators, one module per stem."""

from hunyuan_kernels.ops.dispatch import combine, dispatch, dispatch_fp8
from hunyuan_kernels.ops.fp8_gemm import fp8_gemm, fp8_linear, grouped_gemm_fp8, grouped_swiglu_fp8
from hunyuan_kernels.ops.grouped_gemm import grouped_gemm, grouped_gemm_wgrad_, grouped_swiglu
from hunyuan_kernels.ops.moe import Experts, Fp8Experts, SharedExpert, expert_mlp, moe
from hunyuan_kernels.ops.quantize import quantize_fp8
from hunyuan_kernels.ops.routing import Routing, load_balancing_loss, route, routing_from_ids
from hunyuan_kernels.ops.swiglu import swiglu

__all__ = [
    "Experts",
    "Fp8Experts",
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
    "grouped_gemm_wgrad_",
    "grouped_swiglu",
    "grouped_swiglu_fp8",
    "load_balancing_loss",
    "moe",
    "quantize_fp8",
    "route",
    "routing_from_ids",
    "swiglu",
]
