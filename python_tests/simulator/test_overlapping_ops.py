"""Programmatic dependent launch: the kernels of a layer overlap in one stream, and each waits before it touches memory.

On a GPU a launch may begin while the one before it runs. Here the launches of all ops of a layer wait in one queue and
run together.
"""

import functools

import pytest
import torch
from hunyuan_kernels._C import simulator

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.simulator import SimulatedGpu, simulated_gpu_of
from hunyuan_kernels.testing import mutation
from hunyuan_kernels.testing.simulated import SETTINGS
from python_tests.backends import needs_device_code

pytestmark = needs_device_code
TOKENS, EXPERTS, HIDDEN = 4200, 16, 64  # two launches of route
STEMS = ("routing", "dispatch", "swiglu", "quantize")


def inputs(tokens):
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, EXPERTS, generator=generator).bfloat16()
    return logits, torch.randn(tokens, HIDDEN, generator=generator).bfloat16()


def layer(tokens):
    """Forward and gradients, every op right behind one that makes what it reads; no value is looked at in between."""
    logits, x = inputs(tokens)
    shared = x[:, : HIDDEN // 2].contiguous()
    results = []

    def keep(*tensors):
        results.extend(tensors)
        return tensors[0] if len(tensors) == 1 else tensors

    def route():
        routing = hk.route(logits, 1, capacity=tokens // EXPERTS, seed=torch.tensor([3]))
        keep(*routing)
        return routing

    routing = route()
    loss = keep(ops.load_balancing_loss(logits, routing.demand, None))
    keep(ops.load_balancing_loss_backward(loss, logits, routing.demand, None))

    routing = route()
    rows = keep(hk.dispatch(x, routing))
    hidden = keep(hk.swiglu(rows, routing.expert_offsets))

    def combine():
        return keep(hk.combine(hidden, routing, shared))

    def combine_backward():
        gradients = ops.combine_backward(combine(), hidden, routing.rows, routing.weights, routing.token_ids)
        return keep(*gradients)

    for recipe in ("tensor", "row", "block_1x128", "block_128x128"):
        keep(*hk.quantize_fp8(combine(), recipe))
    keep(*hk.dispatch_fp8(combine(), routing))
    _, grad_weights = combine_backward()
    keep(ops.route_backward(grad_weights, logits, routing.expert_ids, routing.weights, False, None))
    grad_hidden, _ = combine_backward()
    keep(ops.swiglu_backward(grad_hidden, rows, routing.expert_offsets))
    return results


@functools.cache
def one_after_the_other(tokens):
    with hk.simulated_gpu() as gpu:
        return layer(tokens), [report.kernel for report in gpu.reports]


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def run_overlapping(gpu: SimulatedGpu, tokens):
    with gpu.overlapping():
        got = layer(tokens)
        assert gpu.reports == [], "launches wait in the queue"
    return got


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tokens", [100, TOKENS])
def test_a_layer_overlaps(tokens, seed, setting):
    want, kernels = one_after_the_other(tokens)
    with hk.simulated_gpu(seed=seed, **SETTINGS[setting]) as gpu:
        got = run_overlapping(gpu, tokens)
    assert [report.kernel for report in gpu.reports] == kernels
    assert all(torch.equal(bits(g), bits(w)) for g, w in zip(got, want, strict=True))


def kernels_of_the_layer():
    names = []
    if ops.device_stems():
        names = [name for tokens in (100, TOKENS) for name in one_after_the_other(tokens)[1]]
    return list(dict.fromkeys(names))


@functools.cache
def without_waiting(kernel):
    """The stem, and its module with the one ``griddepcontrol.wait`` of a kernel removed."""
    for stem in STEMS:
        for mutant in mutation.mutations(ops.device_ptx(stem)):
            if mutant.kernel == kernel and mutant.instruction == "griddepcontrol.wait;":
                return stem, simulator.Module(mutant.ptx)
    raise AssertionError(f"{kernel} has no griddepcontrol.wait")


@pytest.mark.parametrize("kernel", kernels_of_the_layer())
def test_a_missing_wait_is_caught(kernel):
    stem, module = without_waiting(kernel)
    tokens = 100 if kernel in one_after_the_other(100)[1] else TOKENS
    first = one_after_the_other(tokens)[1][0]
    with simulated_gpu_of({"check_races": False}) as gpu:
        gpu.load_instead(stem, module)
        with pytest.raises(simulator.SimError, match=r"before griddepcontrol\.wait") as error:
            run_overlapping(gpu, tokens)
    assert kernel in str(error.value)
    # the first launch of the queue is caught by what may run before it, the others by the launch before them
    assert ("the launch overlaps the one before, which" in str(error.value)) == (kernel != first)


def test_ops_run_at_once_after_the_block():
    logits, x = inputs(40)
    with hk.simulated_gpu() as gpu:
        with gpu.overlapping():
            routing = hk.route(logits, 1)
        assert len(gpu.reports) == 1
        rows = hk.dispatch(x, routing)
        assert len(gpu.reports) == 2
    assert torch.equal(rows, hk.dispatch(x, hk.route(logits, 1)))


def test_an_exception_in_the_block_is_the_one_that_is_seen():
    logits, _ = inputs(40)

    def leave(gpu):
        with gpu.overlapping():
            hk.route(logits, 1)
            raise KeyError

    with hk.simulated_gpu() as gpu:
        with pytest.raises(KeyError):
            leave(gpu)
        assert len(gpu.reports) == 1


def test_outside_of_a_simulation():
    with pytest.raises(RuntimeError, match=r"simulate_overlap: overlap is given outside simulated_gpu\(\)"):
        ops.simulate_overlap(True)
