"""load_balancing_loss and its gradient beyond the cases of its spec."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels import reference
from hunyuan_kernels._ops import ops
from hunyuan_kernels.testing.specs.routing import compare_loss_backward
from python_tests.backends import CPU, SIMULATED, needs_device_code


def make(tokens, experts, dtype, *, apart=False):
    generator = torch.Generator().manual_seed(tokens + experts)
    wide = 3 * torch.randn(tokens, experts + apart, generator=generator)
    logits = wide.to(dtype)[:, apart:] if apart else wide.to(dtype)
    return logits, hk.route(logits, 1)


@pytest.mark.parametrize("backend", CPU + SIMULATED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("tokens", "experts", "padding", "apart"),
    [
        (0, 4, 0, False),
        (1, 1, 0, False),
        (70, 5, 0, True),
        (300, 16, 41, False),
        (300, 16, 300, False),
        (130, 64, 1, True),
        (40, 130, 0, False),
        (17, 300, 4, False),
        (9, 512, 0, False),
    ],
)
def test_value_and_gradient(tokens, experts, padding, apart, dtype, backend):
    logits, routing = make(tokens, experts, dtype, apart=apart)
    num_tokens = torch.tensor([tokens - padding], dtype=torch.int32) if padding else None
    leaf = logits.detach().requires_grad_()
    with backend():
        loss = hk.load_balancing_loss(leaf, routing, num_tokens=num_tokens)
        (3.0 * loss).backward()
    want = reference.routing.load_balancing_loss(logits, routing, num_tokens=num_tokens)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0.0)
    arguments = {"grad_loss": torch.tensor(3.0), "logits": logits, "routing": routing, "num_tokens": num_tokens}
    exact = reference.routing.load_balancing_loss_backward(**arguments)
    (comparison,) = compare_loss_backward(arguments, leaf.grad, exact)
    assert comparison, comparison.message
    assert not leaf.grad[tokens - padding :].any()


def test_the_reference_of_the_gradient_is_its_derivative():
    logits, routing = make(40, 7, torch.float32)
    num_tokens = torch.tensor([33], dtype=torch.int32)
    exact = logits.double().requires_grad_()
    (3.0 * reference.routing.load_balancing_loss(exact, routing, num_tokens=num_tokens)).backward()
    got = reference.routing.load_balancing_loss_backward(torch.tensor(3.0), logits, routing, num_tokens=num_tokens)
    torch.testing.assert_close(got, exact.grad, rtol=1e-6, atol=1e-9)


@needs_device_code
def test_launches_and_bits_of_every_schedule():
    """Two launches, one for the gradient; the same bits whatever the order of blocks."""
    logits, routing = make(3000, 16, torch.bfloat16)
    results = []
    for seed, sms in ((0, 8), (1, 1), (2, 132)):
        with hk.simulated_gpu(seed=seed, sms=sms) as gpu:
            loss = ops.load_balancing_loss(logits, routing.demand, None)
            grad = ops.load_balancing_loss_backward(torch.ones(()), logits, routing.demand, None)
        assert [r.kernel for r in gpu.reports] == [
            "routing_loss_bfloat16_4",
            "routing_loss_sum",
            "routing_loss_backward_bfloat16_4",
        ]
        results.append((loss, grad))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


@needs_device_code
def test_each_logit_is_read_once():
    logits, routing = make(4096, 16, torch.bfloat16)
    with hk.simulated_gpu(split_warps=False, check_races=False) as gpu:
        ops.load_balancing_loss(logits, routing.demand, None)
        ops.load_balancing_loss_backward(torch.ones(()), logits, routing.demand, None)
    demanded = logits.numel() * 2
    first, total, gradient = (report.counters for report in gpu.reports)
    per_thread = 4 * 4 * 256 * first["blocks"]  # each thread looks up the demand of its experts
    assert first["global_load_bytes"] == demanded + per_thread
    assert total["global_load_bytes"] == 8 * first["blocks"]
    assert gradient["global_store_bytes"] == demanded


@pytest.mark.parametrize("backend", [CPU[0], SIMULATED[0]])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite(value, backend):
    """A row without a softmax makes the loss NaN, and its own gradients alone."""
    logits, routing = make(50, 16, torch.float32)
    logits[7, 3] = value
    leaf = logits.requires_grad_()
    with backend():
        loss = hk.load_balancing_loss(leaf, routing)
        loss.backward()
    want = reference.routing.load_balancing_loss(logits.detach(), routing)
    assert bool(loss.isnan()) == bool(want.isnan()) == (value != float("-inf"))
    others = torch.arange(50) != 7
    assert leaf.grad[others].isfinite().all()
    assert bool(leaf.grad[7].isnan().any()) == (value != float("-inf"))


@needs_device_code
def test_hostile_values_on_a_gpu():
    """Counts that no routing has made: never out of bounds, and padding is kept within the tokens."""
    logits, _ = make(20, 8, torch.float32)
    demand = torch.tensor([-(2**31), 2**31 - 1, 0, 1, -1, 5, 6, 7], dtype=torch.int32)
    for count in (-(2**31), 0, 20, 2**31 - 1):
        with hk.simulated_gpu():
            loss = ops.load_balancing_loss(logits, demand, torch.tensor([count], dtype=torch.int32))
            grad = ops.load_balancing_loss_backward(
                torch.ones(()), logits, demand, torch.tensor([count], dtype=torch.int32)
            )
        assert loss.isfinite()
        assert bool(grad.any()) == (count > 0)
