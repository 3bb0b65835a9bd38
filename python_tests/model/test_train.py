"""Training: groups, schedule, and that it learns."""

import dataclasses
import itertools

import pytest
import torch

from hunyuan_kernels.model import Decoder
from hunyuan_kernels.model.train import (
    EXPERT_LEARNING_RATE_RATIO,
    expert_learning_rate_ratio,
    learning_rate_factor,
    parameter_groups,
    train,
)
from python_tests.model.test_decoder import CONFIG, make


def test_parameter_groups():
    model = make()
    experts, matrices, gains = parameter_groups(model, 1e-3)
    assert (experts["lr"], matrices["lr"], gains["lr"]) == (pytest.approx(3.1e-4), 1e-3, 1e-3)
    assert (experts["weight_decay"], gains["weight_decay"]) == (0.1, 0.0)
    routed = {id(weights) for moe in model.moe_layers() for weights in moe.experts}
    assert {id(p) for p in experts["params"]} == routed
    assert all(p.dim() == 1 for p in gains["params"])
    everything = [id(p) for group in (experts, matrices, gains) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_learning_rate():
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[5:]))
    assert 0.15 < factors[94] < 0.152
    assert factors[95:] == pytest.approx([0.14, 0.13, 0.12, 0.11, 0.10])
    assert learning_rate_factor(0, 1) == 1.0


def test_expert_learning_rate():
    assert expert_learning_rate_ratio(1.0, 1e9, 16) == pytest.approx(0.25)
    assert expert_learning_rate_ratio(61.5, 1.0, 16) == pytest.approx(1 / 0.31, rel=1e-2)
    assert expert_learning_rate_ratio(4.0, 1.0, 16) == pytest.approx(1.0)  # as far below the noise batch as above
    assert EXPERT_LEARNING_RATE_RATIO == 0.31


@pytest.mark.parametrize("seed", [None, 5])
def test_gradient_checkpointing_changes_no_gradient(seed):
    batch = torch.arange(48).view(3, 16) % 40
    grads, kept = [], []
    for checkpointing in (False, True):
        model = make(hidden_dropout=0.1).train()
        model.gradient_checkpointing = checkpointing
        sizes = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            out = model(batch, seed=seed)
        (out.logits.square().mean() + out.balance_loss).backward()
        grads.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert kept[1] < kept[0] / 4


def cycle(length=17):
    """Batches of one sequence from different starts: easy to learn."""
    for i in itertools.count():
        yield (torch.arange(length) + torch.arange(i, i + 4)[:, None]) % 40


def test_learns():
    model = make()
    steps = list(train(model, cycle(), 60, learning_rate=1e-2))
    assert len(steps) == 60
    assert steps[-1].loss < 0.3 * steps[0].loss


def test_steps_say_what_was_routed():
    recycled = list(train(make(), cycle(), 3, learning_rate=1e-3))
    dropped = list(train(make(overflow="drop"), cycle(), 3, learning_rate=1e-3))
    assert all(step.dropped == 0 for step in recycled)
    assert all(step.recycled == 0 for step in dropped)
    assert torch.equal(recycled[0].demand[0], dropped[0].demand[0])  # the overflow changes what later layers see
    for step in (recycled[0], dropped[0]):
        assert step.demand.shape == (CONFIG.num_layers, CONFIG.num_experts)
        above_capacity = float((step.demand - 1).clamp(min=0).sum() / step.demand.sum())  # 64 tokens, capacity 8
        assert above_capacity > 0
        assert step.recycled + step.dropped == pytest.approx(above_capacity)


def test_reproducible():
    first, second = ([step.loss for step in train(make(), cycle(), 5, learning_rate=1e-2, seed=2)] for _ in range(2))
    assert first == second
    assert first != [step.loss for step in train(make(), cycle(), 5, learning_rate=1e-2, seed=3)]


def test_fp8_experts_do_not_train():
    model = Decoder(dataclasses.replace(CONFIG))
    moe = model.moe_layers()[0]
    moe.fp8 = moe.quantized_experts()
    with pytest.raises(RuntimeError, match=r"FP8 experts have no gradient; call eval\(\) first"):
        next(train(model, cycle(), 1, learning_rate=1e-3))


@pytest.mark.parametrize("activations", ["none", "block_1x128"])
def test_fp8_experts_predict_about_the_same(activations):
    model = make().eval()
    batch = next(cycle())
    with torch.no_grad():
        exact = model(batch).logits
        for moe in model.moe_layers():
            moe.fp8 = moe.quantized_experts(activations)
        got = model(batch).logits
    error = float((got - exact).norm() / exact.norm())
    assert 0 < error < 2**-4  # the rounding of e4m3; the experts are one of several terms of the residual stream


def test_fp8_forms():
    with pytest.raises(ValueError, match="activations is 'static'; allowed: 'none', 'block_1x128'"):
        make().moe_layers()[0].quantized_experts("static")
