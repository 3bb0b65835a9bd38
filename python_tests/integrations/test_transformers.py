"""transformers models on our experts, against its eager ones."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

import hunyuan_kernels as hk  # noqa: E402
from hunyuan_kernels.integrations.transformers import NAME, prepack, register  # noqa: E402

TOKENS = torch.randint(0, 64, (2, 13), generator=torch.Generator().manual_seed(0))


def make(kind="hunyuan", **changes):
    register()
    sizes = {
        "vocab_size": 64,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "initializer_range": 0.2,
        "max_position_embeddings": 64,
    } | changes
    torch.manual_seed(0)
    if kind == "hunyuan":
        config = transformers.HunYuanMoEV1Config(num_experts=6, moe_topk=3, **sizes)
        return transformers.HunYuanMoEV1ForCausalLM(config).eval()
    config = transformers.MixtralConfig(num_local_experts=6, num_experts_per_tok=2, **sizes)
    return transformers.MixtralForCausalLM(config).eval()


def on(model, implementation):
    model.set_experts_implementation(implementation)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hunyuan", "mixtral"])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_forward(kind, activation, monkeypatch):
    model = make(kind, hidden_act=activation)
    want = on(model, "eager")(TOKENS).logits
    calls = []
    monkeypatch.setattr(hk, "routing_from_ids", lambda *a, f=hk.routing_from_ids: calls.append(1) or f(*a))
    torch.testing.assert_close(on(model, NAME)(TOKENS).logits, want, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2, "each layer ran on our experts"


def test_backward():
    model = make().train()
    grads = []
    for implementation in ("eager", NAME):
        model.zero_grad()
        on(model, implementation)(TOKENS, labels=TOKENS).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, want in grads[0].items():
        torch.testing.assert_close(grads[1][name], want, rtol=1e-3, atol=1e-5, msg=name)


def test_generate():
    model = make()
    want, got = (
        on(model, implementation).generate(TOKENS, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for implementation in ("eager", NAME)
    )
    assert torch.equal(got, want)


@torch.no_grad()
def test_compile():
    model = on(make(), NAME)
    want = model(TOKENS, use_cache=False).logits
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(TOKENS, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hunyuan", "mixtral"])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked(kind, activation, dtype):
    model = on(make(kind, hidden_act=activation, intermediate_size=48).to(dtype), NAME)
    want = model(TOKENS).logits
    assert prepack(model) == 2
    experts = next(m for m in model.modules() if hasattr(m, "gate_up_proj"))
    assert experts.gate_up_proj.dim() == 5
    torch.testing.assert_close(model(TOKENS).logits, want, rtol=1e-4 if dtype == torch.float32 else 2**-5, atol=2**-5)
    assert prepack(model) == 0, "packed already"
    with pytest.raises((RuntimeError, ValueError)):
        on(model, "eager")(TOKENS)


def test_prepack_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="experts_implementation is 'eager'; set 'hunyuan_kernels' before prepack"):
        prepack(on(make(), "eager"))
    with pytest.raises(ValueError, match="Linear has no experts with gate_up_proj and down_proj"):
        prepack(torch.nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match="HunYuanMoEV1Experts has 40 intermediate columns; a multiple of 16 is required"
    ):
        prepack(on(make(), NAME))


@torch.no_grad()
def test_sentinels_of_expert_parallelism():
    experts = on(make(), NAME).model.layers[0].mlp.experts
    x, weights = torch.randn(5, 48), torch.rand(5, 3)
    ids = torch.tensor([[0, 6, 2], [6, 6, 6], [1, 2, 3], [5, 7, 4], [6, 0, 1]])
    got = experts(x, ids, weights)
    want = torch.zeros_like(x)
    for t in range(5):
        for weight, expert in zip(weights[t], ids[t].tolist(), strict=True):
            if expert < 6:
                gate, up = (experts.gate_up_proj[expert] @ x[t]).chunk(2)
                want[t] += weight * (experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not got[1].any()


@torch.no_grad()
@pytest.mark.parametrize("blocks", [(128, 128), None])
@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_fp8_experts(blocks, scheme):
    from transformers.integrations.finegrained_fp8 import (
        ALL_FP8_EXPERTS_FUNCTIONS,
        FP8Experts,
    )
    from transformers.integrations.moe import use_experts_implementation

    register()
    config = transformers.HunYuanMoEV1Config(hidden_size=256, intermediate_size=128, num_experts=4)
    kind = use_experts_implementation(type("Experts", (FP8Experts,), {}), experts_interface=ALL_FP8_EXPERTS_FUNCTIONS)
    experts = kind(config, block_size=blocks, activation_scheme=scheme)
    config._experts_implementation = NAME
    generator = torch.Generator().manual_seed(0)
    exact = []
    for name in ("gate_up_proj", "down_proj"):
        weights = getattr(experts, name)
        weights.copy_(torch.randn(weights.shape, generator=generator))
        scale = getattr(experts, f"{name}_scale_inv")
        scale.copy_(torch.rand(scale.shape, generator=generator) * 0.1)
        rows, columns = (weights.shape[i] // scale.shape[i] for i in (1, 2))
        exact.append(weights.float() * scale.repeat_interleave(rows, 1).repeat_interleave(columns, 2))
    if scheme == "static":
        experts.gate_up_proj_activation_scale.fill_(0.01)
        experts.down_proj_activation_scale.fill_(0.01)
    x, weights = torch.randn(9, 256, generator=generator).bfloat16(), torch.rand(9, 2, generator=generator)
    ids = torch.randint(0, 4, (9, 2), generator=generator)
    got = experts(x, ids, weights).float()
    want = torch.zeros(9, 256)
    for t in range(9):
        for weight, expert in zip(weights[t], ids[t].tolist(), strict=True):
            gate, up = (exact[0][expert] @ x[t].float()).chunk(2)
            want[t] += weight * (exact[1][expert] @ (torch.nn.functional.silu(gate) * up))
    # Two roundings to e4m3, of the input and of the intermediate: 2^-4 each at most, much less in the mean.
    errors = (got - want).norm(dim=1) / want.norm(dim=1)
    assert 0 < float(errors.max()) < 2 * 2**-4


def test_other_forms_are_refused():
    model = on(make(), NAME)
    model.model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match=r"HunYuanMoEV1Experts.is_transposed is True; False is required"):
        model(TOKENS)
