"""The decoder's parts against their formulas, and what must hold of the whole."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from hunyuan_kernels.model import Config, Decoder
from hunyuan_kernels.model.attention import Attention, Positions
from hunyuan_kernels.model.norm import RMSNorm
from hunyuan_kernels.model.rope import apply_rope, rope_tables

CONFIG = Config(
    vocabulary_size=40,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=24,
    num_experts=8,
)


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return Decoder(dataclasses.replace(CONFIG, **changes))


def tokens(batch=3, length=16, seed=1):
    return torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_rope_rotates_pairs_by_the_published_angles():
    length, dim, alpha = 50, 8, 1000.0
    x = torch.randn(2, length, 3, dim, generator=torch.Generator().manual_seed(0))
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    base = 1e4 * alpha ** (8 / 6)
    angles = torch.arange(length).double()[:, None, None] * base ** (-torch.arange(4).double() / 4)
    want = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles))
    got = apply_rope(x, rope_tables(torch.arange(length), dim, alpha=alpha))
    torch.testing.assert_close(got.double(), torch.cat(want.unbind(-1), -1), rtol=0, atol=1e-6)


def test_rope_base_at_the_published_sizes():
    # Hunyuan-Large-Instruct: theta 1e4, alpha 1e3, head_dim 80 give a base of 1.194e7.
    _, sin = rope_tables(torch.arange(2), 80, alpha=1e3)
    assert float(sin[1, 39]) == pytest.approx(1.194e7 ** (-78 / 80), rel=1e-3)


def test_attention_follows_its_formula():
    torch.manual_seed(2)
    attention = Attention(CONFIG, owns_key_value=True)
    for layer in (attention.qkv_proj, attention.o_proj):
        torch.nn.init.normal_(layer.weight, std=32**-0.5)
    for norm in (attention.query_layernorm, attention.key_layernorm):
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x, rope = torch.randn(2, 11, 32), rope_tables(torch.arange(11), 8)
    got, (key, value) = attention(x, Positions(rope))

    def norm(t, weight):
        return t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    projections = (x @ attention.qkv_proj.weight.T).view(2, 11, 8, 8)
    q = norm(apply_rope(projections[:, :, :4], rope), attention.query_layernorm.weight)
    raw = projections[:, :, 4:6], projections[:, :, 6:]
    k = norm(apply_rope(raw[0], rope), attention.key_layernorm.weight)
    q, k, v = q.transpose(1, 2), *(t.transpose(1, 2).repeat_interleave(2, 1) for t in (k, raw[1]))
    scores = (q @ k.mT) * 8**-0.5
    scores = scores.masked_fill(torch.ones(11, 11, dtype=torch.bool).triu(1), float("-inf"))
    want = attention.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(key, norm(apply_rope(raw[0], rope), torch.ones(8)).transpose(1, 2))
    torch.testing.assert_close(value, raw[1].transpose(1, 2), rtol=0, atol=0)


def test_odd_layers_share_keys_and_values():
    model = make().eval()
    assert [len(layer.attention.qkv_proj.weight) for layer in model.layers] == [64, 32, 64, 32]
    seen = []
    for layer in model.layers:
        layer.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    model(tokens())
    for owner, sharer in ((0, 1), (2, 3)):
        assert all(torch.equal(a, b) for a, b in zip(seen[owner], seen[sharer], strict=True))
    assert not torch.equal(seen[0][0], seen[2][0])


def test_causal():
    model = make().eval()
    x = tokens()
    changed = x.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 40
    before, after = model(x).logits, model(changed).logits
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert ((before[:, 9:] - after[:, 9:]).abs().amax(-1) > 1e-4).all()


def test_gradients_reach_every_parameter():
    model = make().train()
    out = model(tokens(), seed=0)
    (F.cross_entropy(out.logits.flatten(0, 1), tokens(seed=2).flatten()) + 0.01 * out.balance_loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_recycle_and_drop_differ_only_while_training():
    recycle, drop = make(), make(overflow="drop")
    out, other = recycle.eval()(tokens()), drop.eval()(tokens())
    torch.testing.assert_close(out.logits, other.logits, rtol=0, atol=0)
    assert all(int(r.num_dropped) == 0 and int(r.num_recycled) == 0 for r in out.routings)
    out, other = recycle.train()(tokens(), seed=0), drop.train()(tokens(), seed=0)
    assert not torch.equal(out.logits, other.logits)
    overflow = int((out.routings[0].demand - 6).clamp(min=0).sum())  # 48 tokens, 8 experts, capacity factor 1
    assert overflow > 0
    assert (int(out.routings[0].num_recycled), int(out.routings[0].num_dropped)) == (overflow, 0)
    assert (int(other.routings[0].num_recycled), int(other.routings[0].num_dropped)) == (0, overflow)


def test_seeds():
    model = make().train()
    torch.testing.assert_close(model(tokens(), seed=3).logits, model(tokens(), seed=3).logits, rtol=0, atol=0)
    assert not torch.equal(model(tokens(), seed=3).logits, model(tokens(), seed=4).logits)


def test_more_choices_without_capacity():
    model = make(top_k=3, capacity_factor=None).train()
    out = model(tokens())
    assert all(int(r.demand.sum()) == 3 * 48 for r in out.routings)
    assert out.logits.shape == (3, 16, 40)


def test_layers_with_different_numbers_of_experts():
    model = make(num_experts=(8, 4, 2, 6), top_k=(2, 1, 2, 3), overflow="drop").train()
    out = model(tokens())
    assert [len(r.demand) for r in out.routings] == [8, 4, 2, 6]
    assert [int(r.demand.sum()) for r in out.routings] == [96, 48, 96, 144]


def test_untied_head():
    tied, untied = make(), make(tie_embeddings=False)
    untied.load_state_dict(tied.state_dict() | {"lm_head": 2 * tied.embed_tokens.detach()})
    torch.testing.assert_close(untied.eval()(tokens()).logits, 2 * tied.eval()(tokens()).logits)


@pytest.mark.parametrize("name", ["attention_dropout", "hidden_dropout"])
def test_dropout_is_for_training(name):
    plain, dropping = make(capacity_factor=None), make(capacity_factor=None, **{name: 0.5})
    assert torch.equal(plain.eval()(tokens()).logits, dropping.eval()(tokens()).logits)
    first, second = dropping.train()(tokens()).logits, dropping(tokens()).logits
    assert not torch.equal(first, second)
    torch.testing.assert_close(plain.train()(tokens()).logits, plain.eval()(tokens()).logits)
    seeded = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        seeded.append(dropping(tokens()).logits)
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


def test_hidden_dropout_drops_that_share_of_what_a_block_adds():
    moe = make(hidden_dropout=0.25, num_experts=1, capacity_factor=None).train().moe_layers()[0]
    x, residual = torch.randn(2, 500, 32), torch.randn(2, 500, 32)
    torch.manual_seed(0)
    added = moe(x, residual)[0] - residual
    kept = added.abs() > 1e-6
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.015)  # four deviations of 32000 draws
    exact = moe.eval()(x, residual)[0] - residual
    torch.testing.assert_close(added[kept], exact[kept] / 0.75, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tokens() + 40, "tokens has numbers from 41 to 79; allowed: 0 to 39"),
        (tokens() - 2, "tokens has numbers from -1 to 37; allowed: 0 to 39"),
        (tokens().float(), r"tokens is torch.float32 \[3, 16\]; required: int64 \[B, T\]"),
        (tokens()[0], r"tokens is torch.int64 \[16\]; required: int64 \[B, T\]"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_bad_tokens(given, message, training):
    with pytest.raises(ValueError, match=f"Decoder: {message}"):
        make().train(training)(given)


@pytest.mark.parametrize("shape", [(0, 16), (3, 0)])
@pytest.mark.parametrize("inference", [False, True])
def test_no_tokens(shape, inference):
    model = make().train(not inference)
    with torch.inference_mode(inference):
        out = model(torch.zeros(shape, dtype=torch.int64))
    assert out.logits.shape == (*shape, 40)
    assert out.balance_loss == 0


@torch.no_grad()
def test_a_trace_leaves_nothing_behind():
    """The numbers of rows are those of no other test: nothing is kept of them yet."""
    model, x, y = make().eval(), tokens(batch=1, length=29), tokens(batch=1, length=31)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.zeros(1, 29, dtype=torch.int64))
    dynamic = {0: torch.export.Dim.STATIC, 1: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (y,), dynamic_shapes=(dynamic,)).module()
    for text in (x, y):
        want = model(text).logits
        assert type(want) is torch.Tensor
        torch.testing.assert_close(exported(text).logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e15])
def test_norm(dtype, scale):
    """The same to a rounding with and without gradients; fp64 says what is right."""
    norm = RMSNorm(48, 1e-5).to(dtype)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = scale * torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype)
    want = F.rms_norm(x.double(), (48,), norm.weight.double(), 1e-5)
    with torch.no_grad():
        inference = norm(x)
    for got in (norm(x), inference):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    x[1, 2, 7], x[2, 0, 3] = float("nan"), float("inf")
    with torch.no_grad():
        got = norm(x)
    assert torch.equal(got.isnan().any(-1), torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]).bool())


def test_compiles_without_a_break_or_a_warning(recwarn):
    model, x = make().eval(), tokens()
    with torch.no_grad():
        compiled = torch.compile(lambda t: model(t, seed=0).logits, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), model(x, seed=0).logits)
    assert not [w for w in recwarn if "lru_cache" in str(w.message)]
