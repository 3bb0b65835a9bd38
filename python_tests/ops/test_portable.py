"""Device code for GPUs before Hopper: the PTX for compute_80, on a simulated GPU of compute capability 8.0."""

import re

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import simulated_gpu_of
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.simulated import SETTINGS, check_simulated
from hunyuan_kernels.testing.spec import all_specs
from python_tests.backends import needs_device_code

pytestmark = needs_device_code
STEMS = ("dispatch", "quantize", "routing", "swiglu")
SPECS = [spec for spec in all_specs() if spec.stem in STEMS]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_matches_the_reference(spec, setting):
    outcome = check_simulated(spec, setting, seeds=1, capability=80)
    assert outcome.cases > 0
    assert not outcome.failures, "\n".join(outcome.failures)


@pytest.mark.parametrize("tokens", [100, 512, 513, 5000])
def test_routing_without_clusters(tokens):
    """One launch for a block of tokens, two beyond; recycled tokens go where those of every other backend go."""
    logits = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(0)) - torch.arange(1, 17).log()
    options = {"capacity": tokens // 16, "seed": torch.tensor([5])}
    with hk.simulated_gpu(capability=80, check_races=tokens < 1000) as gpu:
        got = hk.route(logits, 1, **options)
    assert [(r.kernel, r.cluster) for r in gpu.reports] == (
        [("routing_cluster_float32_4", (1, 1, 1))]
        if tokens <= 512
        else [("routing_choose_float32_4", (1, 1, 1)), ("routing_assign", (1, 1, 1))]
    )
    want = hk.route(logits, 1, **options)
    assert int(got.num_recycled) > 0
    assert all(torch.equal(getattr(got, name), getattr(want, name)) for name in got._fields if name != "weights")


def test_every_bfloat16_value_is_quantized_alike():
    """The conversion to e4m3, an instruction from sm_89 on, is arithmetic before."""
    x = torch.arange(2**16).sub(2**15).to(torch.int16).view(torch.bfloat16).view(256, 256)
    scales = torch.tensor([1.0, 2.0**-9, 3.7e-3, 1e4]).repeat(64)
    want = ops.quantize_fp8_static(x, "row", scales)
    with hk.simulated_gpu(capability=80):
        got = ops.quantize_fp8_static(x, "row", scales)
    assert compare_exact("q", got, want)


def test_gradients_are_those_of_hopper():
    """The same arithmetic in the same order: the same bits."""
    generator = torch.Generator().manual_seed(0)
    logits, x = torch.randn(200, 8, generator=generator), torch.randn(200, 64, generator=generator)

    def gradients(capability):
        leaves = [t.clone().requires_grad_() for t in (logits, x)]
        with hk.simulated_gpu(capability=capability):
            routing = hk.route(leaves[0], 1)
            rows = hk.swiglu(hk.dispatch(leaves[1], routing), routing.expert_offsets)
            loss = hk.combine(rows, routing).square().sum() + hk.load_balancing_loss(leaves[0], routing)
            loss.backward()
        return [leaf.grad for leaf in leaves]

    assert all(torch.equal(a, b) for a, b in zip(gradients(80), gradients(90), strict=True))


def test_nothing_overlaps():
    """No instruction says so, and no launch asks for it: one after the other also within one queue."""
    assert not any("griddepcontrol" in ops.device_ptx(stem, True) for stem in STEMS)
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    with hk.simulated_gpu(capability=80) as gpu, gpu.overlapping():
        got = hk.quantize_fp8(x, "tensor")
    assert len(gpu.reports) == 2
    for g, w in zip(got, hk.quantize_fp8(x, "tensor"), strict=True):
        assert compare_exact("result", g, w)


def test_older_gpus_are_refused():
    with (
        simulated_gpu_of({"capability": 75}),
        pytest.raises(
            RuntimeError, match=r"'quantize' has device code for compute capability 8.0 and newer; cuda:0 has 7"
        ),
    ):
        hk.quantize_fp8(torch.randn(4, 8), "row")


@pytest.mark.parametrize("capability", [0, 89, 100, 8.0])
def test_bad_capability(capability):
    with (
        pytest.raises(ValueError, match=re.escape(f"simulated_gpu: capability is {capability}; allowed: 80, 90")),
        hk.simulated_gpu(capability=capability),
    ):
        pass
