"""Logits against the specification (Hunyuan-Large's form) and against transformers (Hunyuan-A13B's form)."""

import pytest
import torch

from hunyuan_kernels.model import checkpoint, generate
from hunyuan_kernels.reference import decoder as reference
from hunyuan_kernels.testing.specs import model as specs
from python_tests.model.test_decoder import make, tokens


def randomize_gains(model):
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("top_k", "share"), [(1, 2), (1, 1), (3, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_specification(top_k, share, tied):
    model = make(top_k=top_k, cla_share_factor=share, tie_embeddings=tied, overflow="drop", rope_alpha=50.0)
    x = tokens(batch=2)
    got = randomize_gains(model)(x).logits
    cache = model.make_cache(2, 16)
    cached = torch.cat([model(part, cache=cache).logits for part in x.split([6, *[1] * 10], 1)], 1)
    for row in range(2):
        want = reference.decoder(x[row], specs.published(model), model.config).float()
        torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cached[row], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("top_k", "share"), [(1, 2), (3, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_specification_in_bf16(top_k, share, packed):
    """In the median over the tokens no farther from the exact logits than plain PyTorch in bf16 is; cached, too."""
    model = make(top_k=top_k, cla_share_factor=share, overflow="drop", rope_alpha=50.0, intermediate_size=32)
    model, x = randomize_gains(model).bfloat16(), tokens(batch=6, length=24)
    weights = specs.published(model)
    exact, plain = (
        torch.stack([reference.decoder(text, weights, model.config, dtype) for text in x]).float()
        for dtype in (torch.float64, torch.bfloat16)
    )
    if packed:
        model.prepack()
    cache = model.make_cache(6, 24)
    cached = torch.cat([model(part, cache=cache).logits for part in x.split([6, 12, *[1] * 6], 1)], 1)
    want, *errors = ((got - exact).norm(dim=-1).median().item() for got in (plain, model(x).logits, cached))
    assert 0 < max(errors) <= want


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    config = transformers.HunYuanMoEV1Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        moe_topk=3,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e4},
        initializer_range=0.3,  # logits that differ, and experts that matter
    )
    torch.manual_seed(0)
    model = randomize_gains(transformers.HunYuanMoEV1ForCausalLM(config))
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_transformers_prefill_and_cached_decode(theirs):
    model, folder = theirs
    ours, x = checkpoint.load(folder), tokens(batch=2, length=24)
    assert (ours.config.top_k, ours.config.rope_alpha, ours.config.cla_share_factor) == (3, 50.0, 1)
    want = model(x).logits
    torch.testing.assert_close(ours(x).logits, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    cache, past = ours.make_cache(2, 24), None
    for part in x.split([20, 1, 1, 2], 1):
        out = model(part, past_key_values=past, use_cache=True)
        past = out.past_key_values
        got = ours(part, cache=cache).logits
        torch.testing.assert_close(got, out.logits, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_transformers_generates_the_same(theirs):
    model, folder = theirs
    prompt = tokens(batch=1, length=9)
    want = model.generate(prompt, max_new_tokens=15, do_sample=False, eos_token_id=None, pad_token_id=0)
    got = generate(checkpoint.load(folder), prompt.tolist(), 15, draft=4)
    assert got.tokens[0] == want[0, 9:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("form", ["experts", "packed"])
def test_transformers_reads_what_is_written(theirs, tmp_path, form):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    _, folder = theirs
    ours, x = checkpoint.load(folder), tokens(batch=2)
    checkpoint.save(ours, tmp_path, form)
    back = transformers.HunYuanMoEV1ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    want = ours(x).logits
    torch.testing.assert_close(back(x).logits, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@torch.no_grad()
def test_transformers_in_bf16(theirs):
    """In the median over the tokens about as far from the exact logits as transformers in bf16 is."""
    model, folder = theirs
    x = tokens(batch=4)
    exact = model(x).logits
    ours = checkpoint.load(folder, dtype=torch.bfloat16)(x).logits.float()
    other = type(model).from_pretrained(folder, dtype=torch.bfloat16)(x).logits.float()
    errors = [(got - exact).norm(dim=-1) / exact.norm(dim=-1) for got in (ours, other)]
    assert float(errors[0].median()) <= 2 * float(errors[1].median())
    assert float(errors[1].median()) > 0


def spec_of(name):
    return next(spec for spec in specs.SPECS if spec.name == name)


#: Of each spec the cases that transformers takes: several experts, prompts of one length, one prompt for drafts.
TAKEN = {"generate": 4, "generate_drafted": 2, "decoder_layer": 6, "decoder_layer_packed": 6}


@pytest.mark.parametrize("name", [spec.name for spec in specs.SPECS])
def test_transformers_is_timed_on_the_same_task(name):
    """What the benchmarks time beside ours passes the comparison that ours passes."""
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    spec, compared = spec_of(name), 0
    for case in spec.cases():
        arguments = case.make(0)
        want = spec.reference(**arguments)
        for peer in spec.peers["transformers"].values():
            try:
                got = their_result(peer, arguments)
            except NotImplementedError:
                continue
            for comparison in spec.compare(arguments, got, want):
                assert comparison, f"{case.label}: {comparison.message}"
            compared += 1
    assert compared == 4 * TAKEN[name]


def their_result(peer, arguments):
    """As our functions return it: of a layer with the experts that it chose."""
    if "layer" not in arguments:
        return peer(**arguments)
    gate, ids = specs.theirs_of(arguments["layer"].model, "eager").model.layers[0].mlp.gate, []
    hook = gate.register_forward_hook(lambda module, inputs, output: ids.append(output[2]))
    try:
        y = peer(**arguments)
        return y, ids.pop()
    finally:
        hook.remove()


def test_transformers_is_timed_on_the_same_weights():
    model = specs.make_model(specs.SMALL, torch.bfloat16, 0)
    theirs = specs.theirs_of(model, "eager")
    own = {name: weight.data_ptr() for name, weight in specs.published(model).items()}
    assert {name: weight.data_ptr() for name, weight in theirs.named_parameters()} == own
    assert theirs.config._experts_implementation == "eager"
    assert specs.theirs_of(model, "grouped_mm") is theirs
    assert theirs.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("name", ["generate", "generate_drafted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_token_is_noticed(name, dtype):
    spec = spec_of(name)
    arguments = next(case for case in spec.cases() if case.label.endswith(str(dtype).removeprefix("torch."))).make(0)
    want = spec.reference(**arguments)
    got = spec.function(**arguments)
    assert all(spec.compare(arguments, got, want))
    got.tokens[0][3] = (got.tokens[0][3] + 1) % 40
    assert not all(spec.compare(arguments, got, want))
    assert not all(spec.compare(arguments, torch.tensor(want)[:, :-1], want))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_row_is_noticed(dtype):
    spec = spec_of("decoder_layer")
    case = next(c for c in spec.cases() if c.label == f"k 3, {str(dtype).removeprefix('torch.')}")
    arguments = case.make(0)
    y, ids = spec.function(**arguments)
    want = spec.reference(**arguments)
    assert all(spec.compare(arguments, (y, ids), want))
    wrong = y.clone()
    wrong[0, 5] = y[0, 6]
    assert [bool(c) for c in spec.compare(arguments, (wrong, ids), want)] == [True, False]
    assert [bool(c) for c in spec.compare(arguments, (y, ids.roll(1, 0)), want)] == [False, False]
