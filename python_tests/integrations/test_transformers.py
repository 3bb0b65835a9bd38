"""transformers models on our experts, against its eager ones."""

import copy
import importlib
import os
import shutil
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")

import hunyuan_kernels as hk  # noqa: E402
from hunyuan_kernels.integrations.transformers import NAME, prepack, register  # noqa: E402
from python_tests.memory import measured_peaks  # noqa: E402

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
    if kind == "qwen3":  # whose experts have a width of their own, and weights that need not sum to 1
        sizes["moe_intermediate_size"] = sizes["intermediate_size"]
        config = transformers.Qwen3MoeConfig(num_experts=6, num_experts_per_tok=3, **sizes)
        return transformers.Qwen3MoeForCausalLM(config).eval()
    config = transformers.MixtralConfig(num_local_experts=6, num_experts_per_tok=2, **sizes)
    return transformers.MixtralForCausalLM(config).eval()


KINDS = ["hunyuan", "mixtral", "qwen3"]


def on(model, implementation):
    model.set_experts_implementation(implementation)
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_forward(kind, activation, monkeypatch):
    model = make(kind, hidden_act=activation)
    want = on(model, "eager")(TOKENS).logits
    calls = []
    monkeypatch.setattr(hk, "routing_from_ids", lambda *a, f=hk.routing_from_ids: calls.append(1) or f(*a))
    torch.testing.assert_close(on(model, NAME)(TOKENS).logits, want, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2, "each layer ran on our experts"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_when_a_model_is_loaded(kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation=NAME)
    assert loaded.config._experts_implementation == NAME
    torch.testing.assert_close(loaded(TOKENS).logits, on(model, "eager")(TOKENS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [False, True])
def test_weights_of_the_router_are_taken_as_they_are(normalize):
    model = make("qwen3", norm_topk_prob=normalize)
    want = on(model, "eager")(TOKENS).logits
    torch.testing.assert_close(on(model, NAME)(TOKENS).logits, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_as_close_to_fp32_as_the_eager_one(kind):
    model = make(kind)
    exact = on(model, "eager")(TOKENS).logits
    model.bfloat16()
    eager, ours = (on(model, name)(TOKENS).logits.float() - exact for name in ("eager", NAME))
    # In the median over the tokens: where a choice of experts is nearly a tie, either may choose otherwise.
    assert 0 < float(ours.norm(dim=-1).median()) < 1.5 * float(eager.norm(dim=-1).median())


def gradients(model, compiled=None):
    model.zero_grad()
    out = (model if compiled is None else compiled)(TOKENS, labels=TOKENS, use_cache=False)
    out.loss.backward()
    return {"logits": out.logits.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_gradients(got, want):
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward(kind, checkpointing):
    model = make(kind).train()
    want = gradients(on(model, "eager"))
    if checkpointing:
        model.activation_checkpointing_enable()
    assert_gradients(gradients(on(model, NAME)), want)


@pytest.mark.parametrize("trained", ["gate.wg", "experts.down_proj", "self_attn.q_proj"])
def test_backward_of_a_part(trained):
    """All other weights are frozen: no gradient is missing, and none is made."""
    grads = []
    for implementation in ("eager", NAME):
        model = on(make(), implementation).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        model(TOKENS, labels=TOKENS).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() != set()
    assert_gradients(grads[1], grads[0])


@pytest.mark.parametrize("kind", KINDS)
def test_generate(kind):
    model = make(kind)
    want, got = (
        on(model, implementation).generate(TOKENS, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for implementation in ("eager", NAME)
    )
    assert torch.equal(got, want)


def test_compiled_graph():
    model = on(make(num_hidden_layers=1), NAME).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_gradients(gradients(model, compiled), gradients(model))
    for length in (7, 5, 1):  # the second length makes a graph for all
        with torch.no_grad():
            got, want = (call(TOKENS[:, :length], use_cache=False).logits for call in (compiled, model))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="no C++ compiler ($CXX or g++), which inductor needs"
)
def test_compiled_code():
    """Router, shared and routed experts by inductor, forward and backward. (A whole model takes a minute.)"""
    block = on(make(), NAME).model.layers[0].mlp
    results = []
    for call in (block, torch.compile(block, fullgraph=True)):
        x = torch.randn(2, 13, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = call(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, *block.parameters()))))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
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


def test_packed_weights_are_not_saved(tmp_path):
    model = on(make(intermediate_size=48), NAME)
    model.save_pretrained(tmp_path / "plain")
    prepack(model)
    for save in (model.state_dict, lambda: model.save_pretrained(tmp_path / "packed")):
        with pytest.raises(RuntimeError, match=r"^hunyuan_kernels: the weights of model\.layers\.0\..* are packed by"):
            save()
    assert list((tmp_path / "packed").glob("*.safetensors")) == []
    with pytest.raises(RuntimeError, match="are packed by prepack and have no state_dict"):
        copy.deepcopy(model).state_dict()


def test_prepack_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="experts_implementation is 'eager'; set 'hunyuan_kernels' before prepack"):
        prepack(on(make(), "eager"))
    with pytest.raises(ValueError, match="Linear has no experts with gate_up_proj and down_proj"):
        prepack(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"intermediate_size": 40}, torch.float32, "has 40 intermediate columns; a multiple of 16 is required"),
        (
            {"intermediate_size": 48, "hidden_size": 40},
            torch.float32,
            "has 40 hidden columns; a multiple of 16 is required",
        ),
        ({"intermediate_size": 48}, torch.float16, "has weights of torch.float16; bfloat16 or float32 is required"),
    ],
)
def test_a_refused_prepack_changes_nothing(changes, dtype, message):
    model = on(make(**changes), NAME).to(dtype)
    before = {name: (p.data_ptr(), p.shape) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=f"HunYuanMoEV1Experts {message}"):
        prepack(model)
    assert {name: (p.data_ptr(), p.shape) for name, p in model.named_parameters()} == before


def test_prepack_leaves_layers_of_other_devices_alone():
    """A GPU reads the weights as they are; here of a device without memory, and of any size."""
    model = on(make(intermediate_size=40), NAME).to("meta")
    before = [(name, p.shape, p.requires_grad) for name, p in model.named_parameters()]
    assert prepack(model) == 0
    assert [(name, p.shape, p.requires_grad) for name, p in model.named_parameters()] == before


class Recorded(TorchDispatchMode):
    """Where the inputs of our ops lie, and the largest tensor that any op makes."""

    def __init__(self):
        super().__init__()
        self.read, self.largest = set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        if function.namespace == "hunyuan_kernels":
            self.read |= before
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in before:
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_read_where_they_lie(packed, dtype):
    model = on(make(intermediate_size=480, num_hidden_layers=1), NAME).to(dtype)
    if packed:
        prepack(model)
    experts = model.model.layers[0].mlp.experts
    weights = [w.untyped_storage() for w in (experts.gate_up_proj, experts.down_proj)]
    x, ids = torch.randn(5, 48, dtype=dtype), torch.randint(0, 6, (5, 3))
    with Recorded() as recorded, torch.set_grad_enabled(not packed):
        experts(x, ids, torch.rand(5, 3))
    assert {w.data_ptr() for w in weights} <= recorded.read
    assert recorded.largest < min(w.nbytes() for w in weights) / 4


MIB = 2**20


@torch.no_grad()
def calls(packed, tokens):
    """Prepares one layer's experts, of 6 MiB each."""
    model = make(hidden_size=512, intermediate_size=2048, num_hidden_layers=1, vocab_size=8).bfloat16()
    if packed:
        prepack(on(model, NAME))
    experts = on(model, NAME).model.layers[0].mlp.experts
    x, ids, weights = torch.randn(tokens, 512).bfloat16(), torch.randint(0, 6, (tokens, 3)), torch.rand(tokens, 3)
    call = torch.no_grad()(partial(experts, x, ids, weights))
    call()
    return call


def test_a_call_takes_no_memory_for_weights():
    peaks = measured_peaks(*(partial(calls, packed, tokens) for packed in (False, True) for tokens in (1, 64)))
    assert max(peaks) < 4 * MIB


def test_sentinels_of_expert_parallelism():
    """Ids that have no expert here: no output, and no gradient for their weights."""
    experts = on(make(), NAME).model.layers[0].mlp.experts
    x, weights = torch.randn(5, 48, requires_grad=True), torch.rand(5, 3, requires_grad=True)
    ids = torch.tensor([[0, 6, 2], [6, 6, 6], [1, 2, 3], [5, 7, 4], [6, 0, 1]])
    got = experts(x, ids, weights)
    want = torch.zeros_like(x)
    for t in range(5):
        for j, expert in enumerate(ids[t].tolist()):
            if expert < 6:
                gate, up = (experts.gate_up_proj[expert] @ x[t]).chunk(2)
                y = experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                want = want + weights[t, j] * y * (torch.arange(5) == t)[:, None]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not got[1].any()
    inputs = x, weights, experts.gate_up_proj, experts.down_proj
    grads, exact = (torch.autograd.grad(y.square().sum(), inputs) for y in (got, want))
    for a, b in zip(grads, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    assert not grads[1][ids >= 6].any()


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
        for scale in (experts.gate_up_proj_activation_scale, experts.down_proj_activation_scale):
            scale.copy_(torch.tensor([0.001, 0.01, 0.005, 0.002]))  # under those but the largest, inputs saturate
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


@pytest.mark.parametrize("blocks", [(128, 128), None])
@pytest.mark.parametrize(("scheme", "scales"), [("dynamic", "float"), ("static", "float"), ("dynamic", "ue8m0")])
def test_fp8_model(blocks, scheme, scales):
    """As transformers puts FP8 experts into a model, against the model with the weights that they stand for."""
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    model = make("qwen3", hidden_size=128, intermediate_size=128, initializer_range=0.1)
    quantized = make("qwen3", hidden_size=128, intermediate_size=128, initializer_range=0.1)
    dense = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    config = transformers.FineGrainedFP8Config(
        activation_scheme=scheme, weight_block_size=blocks, scale_fmt=scales, modules_to_not_convert=dense
    )
    replace_with_fp8_linear(quantized, dense, config)
    for layer, fp8_layer in zip(model.model.layers, quantized.model.layers, strict=True):
        experts = fp8_layer.mlp.experts.to_empty(device="cpu")
        for name in ("gate_up_proj", "down_proj"):
            exact = getattr(layer.mlp.experts, name).data
            weights, scale = getattr(experts, name).data, getattr(experts, f"{name}_scale_inv").data
            parts = exact.unflatten(2, (scale.shape[2], -1)).unflatten(1, (scale.shape[1], -1))
            needed = parts.abs().amax((2, 4)) / 448
            scale.copy_(torch.exp2(needed.log2().ceil()) if scales == "ue8m0" else needed)
            each = scale.float()[:, :, None, :, None]
            rounded = (parts / each).to(torch.float8_e4m3fn)
            weights.view(rounded.shape).copy_(rounded)
            exact.view(parts.shape).copy_(rounded.float() * each)
        if scheme == "static":
            experts.gate_up_proj_activation_scale.data.fill_(0.02)
            experts.down_proj_activation_scale.data.fill_(0.02)
    with torch.no_grad():
        want, got = on(model, "eager")(TOKENS).logits, on(quantized, NAME)(TOKENS).logits
    # Inputs and intermediates are rounded to e4m3, by 2^-4 at most each.
    assert 0 < float((got - want).norm() / want.norm()) < 2**-4
    with pytest.raises(RuntimeError, match="an input requires a gradient, but FP8 GEMMs have none"):
        quantized(TOKENS, labels=TOKENS).loss.backward()


@pytest.mark.parametrize(
    ("changes", "blocks", "message"),
    [
        ({"swiglu_limit": 7.0}, None, "FP8 experts with limit; plain SwiGLU is required"),
        ({"hidden_act": "gelu"}, None, r"FP8 experts with GELUActivation.*; plain SwiGLU is required"),
        ({}, (64, 64), r"FP8 experts have blocks of \(64, 64\) and 128 intermediate columns; \(128, 128\) and"),
        ({"moe_intermediate_size": 192}, (128, 128), r"blocks of \(128, 128\) and 192 intermediate columns; \(128"),
        ({"expert_dtype": "fp4"}, None, "FP8 experts have weights of torch.int8; float8_e4m3fn is required"),
    ],
)
def test_other_fp8_forms_are_refused(changes, blocks, message):
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS, FP8Experts
    from transformers.integrations.moe import use_experts_implementation

    register()
    sizes = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 4} | changes
    kind = use_experts_implementation(type("Experts", (FP8Experts,), {}), experts_interface=ALL_FP8_EXPERTS_FUNCTIONS)
    dtype = sizes.pop("expert_dtype", "fp8")
    experts = kind(transformers.Qwen3MoeConfig(**sizes), block_size=blocks, expert_dtype=dtype)
    experts.config._experts_implementation = NAME
    with pytest.raises(ValueError, match=message):
        experts(torch.zeros(2, 256), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))


def experts_of(family, name, config):
    register()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = getattr(module, config)()
    for size in ("intermediate_size", "moe_intermediate_size"):
        setattr(config, size, 24)
    for count in ("num_experts", "num_local_experts", "n_routed_experts"):
        setattr(config, count, 6)
    config.hidden_size = 32
    experts = getattr(module, name)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return experts


def run(experts, implementation):
    experts.config._experts_implementation = implementation
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 32, generator=generator).mul_(3).requires_grad_()
    weights = torch.rand(9, 2, generator=generator).requires_grad_()
    ids = torch.rand(9, 6, generator=generator).topk(2).indices
    y = experts(x, ids, weights)
    return y, *torch.autograd.grad(y.square().sum(), (x, weights, *experts.parameters()))


@pytest.mark.parametrize(
    ("family", "name", "config"),
    [
        ("deepseek_v4", "DeepseekV4Experts", "DeepseekV4Config"),  # clamps gate and up
        ("minimax_m3_vl", "MiniMaxM3VLExperts", "MiniMaxM3VLTextConfig"),  # has no act_fn
        ("gemma4", "Gemma4TextExperts", "Gemma4TextConfig"),  # tanh-approximated GELU
    ],
)
def test_models_with_gating_of_their_own(family, name, config):
    experts = experts_of(family, name, config)
    for got, want in zip(run(experts, NAME), run(experts, "eager"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.detach().abs().max()))


@pytest.mark.parametrize(
    ("family", "name", "config", "message"),
    [
        ("gpt_oss", "GptOssExperts", "GptOssConfig", "has_bias is True; False is required"),
        ("aria", "AriaExperts", "AriaTextConfig", "is_transposed is True; False is required"),
        ("nemotron_h", "NemotronHExperts", "NemotronHConfig", "has_gate is False; True is required"),
        ("muse_spark", "MuseSparkExperts", "MuseSparkTextConfig", "has_post_expert_norm is True; False is required"),
    ],
)
def test_models_of_other_forms_are_refused(family, name, config, message):
    experts = experts_of(family, name, config)
    with pytest.raises(ValueError, match=f"hunyuan_kernels: {name}.{message}: choose another experts_implementation"):
        run(experts, NAME)


def test_other_forms_are_refused():
    model = on(make(), NAME)
    model.model.layers[0].mlp.experts.is_transposed = True
    with pytest.raises(ValueError, match=r"HunYuanMoEV1Experts.is_transposed is True; False is required"):
        model(TOKENS)
