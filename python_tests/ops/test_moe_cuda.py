"""The layer with FP8 experts, simulated: its launches, and what they compute."""

from functools import partial
from typing import Any

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.moe import MoE
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.testing.compare import compare_bounded
from hunyuan_kernels.testing.spec import all_specs
from hunyuan_kernels.testing.specs.moe import make_layer
from python_tests.backends import SIMULATED, needs_device_code

pytestmark = needs_device_code

SPEC = next(spec for spec in all_specs() if spec.name == "moe")
TOKENS, EXPERTS = 90, 8
OPTIONS: dict[str, dict[str, Any]] = {
    "top 1": {},
    "recycled": {"capacity": 12, "seed": 3},
    "top 3, some dropped": {"top_k": 3, "capacity": 20, "overflow": "drop"},
}
#: Of the published form: one scale of each matrix, gate and up scaled apart, static activation scales. And blocks.
ACTIVATIONS = ("static", "block_1x128")
layer = partial(make_layer, TOKENS, EXPERTS)


def check(arguments: dict[str, Any], got: Any) -> None:
    for comparison in SPEC.compare(arguments, got, SPEC.reference(**arguments)):
        assert comparison, comparison.message


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_five_launches(backend, activations, options):
    """Nothing but: route, dispatch in FP8, SwiGLU to FP8, GEMM, combine. Last blocks of 128 are not whole."""
    arguments = layer(208, 144, torch.bfloat16, activations, (), options, 0)
    with backend(sms=4) as gpu:
        got = hk.moe(**arguments)
    blocks = "_blocks" if activations == "block_1x128" else ""
    route, *experts, combine = [report.kernel for report in gpu.reports]
    assert route.startswith("routing_cluster_")
    assert experts == ["dispatch_fp8_bfloat16", f"fp8_gemm_swiglu_e4m3{blocks}", f"fp8_gemm_rows_256_bfloat16{blocks}"]
    assert combine == "dispatch_combine_bfloat16"
    check(arguments, got)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_as_one_queue(activations):
    """Each launch begins as early as programmatic dependent launch allows."""
    arguments = layer(208, 144, torch.bfloat16, activations, (), {"top_k": 3}, 0)
    logits = torch.nn.functional.linear(arguments["x"].float(), arguments["gate"])
    with hk.simulated_gpu(sms=4) as gpu:
        with gpu.overlapping():
            routing = hk.route(logits, 3)
            got = hk.combine(hk.expert_mlp(arguments["x"], routing, arguments["experts"]), routing)
        assert len(gpu.reports) == 5
    check(arguments, got)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_beside_a_shared_expert(activations):
    arguments = layer(200, 130, torch.bfloat16, activations, ("shared", "residual"), {"top_k": 2}, 0)
    with hk.simulated_gpu():
        got = hk.moe(**arguments)
    check(arguments, got)


def test_experts_of_the_model():
    config = Config(hidden_size=160, intermediate_size=144, num_layers=1, num_experts=EXPERTS)
    module = MoE(config).bfloat16().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    module.fp8 = module.quantized_experts("block_1x128")
    x = torch.randn(TOKENS, 160, generator=generator).bfloat16()
    shared = hk.SharedExpert(module.shared_gate_up, module.shared_down)
    with hk.simulated_gpu() as gpu:
        y, _, _ = module(x, x)
    assert "fp8_gemm_swiglu_e4m3_blocks" in [report.kernel for report in gpu.reports]
    check({"x": x, "gate": module.gate, "experts": module.fp8, "shared": shared, "residual": x}, y)


@pytest.mark.parametrize("backend", SIMULATED)
def test_linear_of_the_published_form(backend):
    """A static scale of the input, one scale of the weights."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(70, 200, generator=generator), torch.randn(300, 200, generator=generator)
    b, b_scale = hk.quantize_fp8(weight, "tensor")
    input_scale = torch.tensor(4.0 / 448)
    with backend(sms=2) as gpu:
        a, a_scale = hk.quantize_fp8(x.bfloat16(), "tensor", input_scale)
        got = hk.fp8_gemm(a, b, a_scale, b_scale)
    assert len(gpu.reports) == 2
    want = reference.fp8_gemm(a, b, a_scale, b_scale)
    size = reference.fp8_gemm(a.float().abs().to(a.dtype), b.float().abs().to(b.dtype), a_scale, b_scale)
    assert compare_bounded("out", got, want, size)
