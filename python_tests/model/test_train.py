"""Training: groups, schedule, and that it learns."""

import dataclasses
import itertools

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels.model import Decoder
from hunyuan_kernels.model.train import (
    EXPERT_LEARNING_RATE_RATIO,
    expert_learning_rate_ratio,
    learning_rate_factor,
    parameter_groups,
    train,
)
from hunyuan_kernels.reference.moe import moe_from_routing
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
    assert learning_rate_factor(150, 100) == pytest.approx(0.10)
    assert learning_rate_factor(15, 10) == pytest.approx(0.15), "too few steps to anneal in"


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
        model = make(hidden_dropout=0.1, attention_dropout=0.1).train()
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


@pytest.mark.parametrize("balance_weight", [0.0, 0.5])
def test_steps_by_hand(balance_weight):
    """The loop against one written out: loss, seeds, groups, schedule, clipping."""
    batches = list(itertools.islice(cycle(), 3))
    model, want = make(), make().train()
    options = {"learning_rate": 1e-2, "balance_weight": balance_weight, "seed": 7}
    losses = [step.loss for step in train(model, batches, 3, **options)]
    experts = {id(weights) for moe in want.moe_layers() for weights in moe.experts}
    optimizer = torch.optim.AdamW([{"params": [p]} for p in want.parameters()], betas=(0.9, 0.95))
    for step, batch in enumerate(batches):
        out = want(batch[:, :-1], seed=7 * 3 + step)
        log_p = out.logits.log_softmax(-1).gather(-1, batch[:, 1:, None])
        assert -log_p.mean().item() == pytest.approx(losses[step], rel=1e-4)
        (balance_weight * out.balance_loss - log_p.mean()).backward()
        norm = torch.stack([p.grad.norm() for p in want.parameters()]).norm()
        for group in optimizer.param_groups:
            (parameter,) = group["params"]
            parameter.grad /= max(1.0, float(norm))
            ratio = EXPERT_LEARNING_RATE_RATIO if id(parameter) in experts else 1
            group["lr"] = 1e-2 * ratio * learning_rate_factor(step, 3)
            group["weight_decay"] = 0.0 if parameter.dim() == 1 else 0.1
        optimizer.step()
        optimizer.zero_grad()
    for (name, got), exact in zip(model.named_parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001; a number from 0 on"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; a number from 0 on"),
        ({"balance_weight": float("inf")}, "balance_weight is inf; a number from 0 on"),
        ({"batches": [torch.zeros(0, 9).long()]}, r"batch has shape \[0, 9\]; required: \[B, T \+ 1\]"),
        ({"batches": [torch.zeros(3, 1).long()]}, r"batch has shape \[3, 1\]; required: \[B, T \+ 1\]"),
        ({"batches": [torch.zeros(3).long()]}, r"batch has shape \[3\]; required: \[B, T \+ 1\]"),
        ({"batches": [torch.full((3, 9), -100)]}, "batch has tokens from -100 to -100; allowed: 0 to 39"),
        ({"batches": [torch.arange(34, 42)[None]]}, "batch has tokens from 34 to 41; allowed: 0 to 39"),
    ],
)
def test_bad_input(changes, message):
    model, untouched = make(), make()
    arguments = {"batches": cycle(), "steps": 2, "learning_rate": 1e-2} | changes
    with pytest.raises(ValueError, match=f"train: {message}"):
        next(train(model, **arguments))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parameter_groups(make(), -1e-3), "parameter_groups: learning_rate is -0.001; a number from 0 on"),
        (lambda: parameter_groups(make(), 1.0, expert_ratio=-1), "parameter_groups: expert_ratio is -1; a number"),
        (lambda: parameter_groups(make(), 1.0, weight_decay=float("nan")), "parameter_groups: weight_decay is nan"),
        (lambda: expert_learning_rate_ratio(0, 1, 16), "expert_learning_rate_ratio: batch is 0; a positive number"),
        (lambda: expert_learning_rate_ratio(1, -1, 16), "expert_learning_rate_ratio: noise_batch is -1; a positive"),
        (lambda: expert_learning_rate_ratio(1, 1, 0), "expert_learning_rate_ratio: num_experts is 0; a positive"),
        (lambda: learning_rate_factor(0, 0), "learning_rate_factor: step is 0 of 0; required"),
        (lambda: learning_rate_factor(-1, 10), "learning_rate_factor: step is -1 of 10; required"),
        (lambda: learning_rate_factor(0, 10, warmup=1.5), "learning_rate_factor: warmup is 1.5; a number from 0 to 1"),
        (lambda: learning_rate_factor(0, 10, warmup=0.6, anneal=0.6), "warmup is 0.6 and anneal 0.6; together at"),
        (lambda: learning_rate_factor(0, 10, decayed=float("nan")), "learning_rate_factor: decayed is nan; a number"),
    ],
)
def test_values_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_reproducible():
    first, second = ([step.loss for step in train(make(), cycle(), 5, learning_rate=1e-2, seed=2)] for _ in range(2))
    assert first == second
    assert first != [step.loss for step in train(make(), cycle(), 5, learning_rate=1e-2, seed=3)]


@pytest.mark.parametrize(
    ("activations", "frozen", "message"),
    [
        ("block_1x128", True, r"fp8 has activations='block_1x128': what is rounded to e4m3 has no gradient; call eval"),
        ("none", False, r"experts_gate_up requires a gradient, but fp8 computes in its place and has none; freeze it"),
    ],
)
def test_fp8_experts_do_not_learn(activations, frozen, message):
    model = Decoder(dataclasses.replace(CONFIG))
    moe = model.moe_layers()[0]
    moe.fp8 = moe.quantized_experts(activations)
    for weights in moe.experts:
        weights.requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=f"^MoE: {message}"):
        next(train(model, cycle(), 1, learning_rate=1e-3))


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_pass_frozen_fp8_experts(shared):
    """Against the specification in fp64, with the weights that the FP8 ones stand for."""
    torch.manual_seed(5)
    moe = make(top_k=2, capacity_factor=None, overflow="drop").moe_layers()[0].train()
    moe.fp8 = moe.quantized_experts()
    (gate_up, down), of_shared = dequantized(moe.fp8), (moe.shared_gate_up, moe.shared_down)
    for weights in moe.experts:
        weights.requires_grad_(False)
    if shared:
        q, scale = zip(*(hk.quantize_fp8(weights.detach()[None], "row") for weights in of_shared), strict=True)
        moe.shared_fp8 = hk.Fp8Experts(*q, *scale)
        of_shared = tuple(weights[0] for weights in dequantized(moe.shared_fp8))
        moe.shared_gate_up.requires_grad_(False)
        moe.shared_down.requires_grad_(False)
    x, upstream = torch.randn(12, CONFIG.hidden_size, requires_grad=True), torch.randn(12, CONFIG.hidden_size)
    y, _, routing = moe(x, torch.zeros_like(x))
    probabilities = torch.nn.functional.linear(x.double(), moe.gate.double()).softmax(1)
    weights = probabilities.gather(1, routing.expert_ids.long())
    weights = weights / weights.sum(1, keepdim=True)
    want = moe_from_routing(x, routing.expert_ids, weights, routing.rows, (gate_up, down), of_shared)
    got, exact = (torch.autograd.grad(out, (x, moe.gate), upstream.to(out)) for out in (y, want))
    for gradient, expected in zip(got, exact, strict=True):
        assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def dequantized(experts):
    """gate_up and down; scales apart for gate and up, or for rows."""
    halves = experts.gate_up.double().unflatten(1, (experts.gate_up_scale.shape[1], -1))
    gate_up = (halves * experts.gate_up_scale[..., None, None]).flatten(1, 2)
    scale = experts.down_scale if experts.down_scale.dim() == 2 else experts.down_scale[:, None]
    return gate_up, experts.down.double() * scale[..., None]


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
