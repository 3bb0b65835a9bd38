"""The cache: its size, and that a pass over it gives what a pass over everything gives."""

from functools import partial

import pytest
import torch

from hunyuan_kernels.model import Config, KeyValueCache, preset
from hunyuan_kernels.model.rope import rope_of
from python_tests.memory import measured_peaks
from python_tests.model.test_decoder import CONFIG, make, tokens

FP8 = torch.float8_e4m3fn


def model_with_gains(**changes):
    """Key gains that differ between the layers of a pair: a shared place must not mix them up."""
    model = make(**changes).eval()
    for layer in model.layers:
        torch.nn.init.uniform_(layer.attention.key_layernorm.weight, 0.5, 2.0)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rope_of_single_tokens(dtype):
    config = Config(rope_alpha=50.0)
    cache, positions = KeyValueCache(config, 1, 600), (0, 255, 256, 3, 599)
    with torch.inference_mode():
        found = [cache.rope_of_token(position, dtype) for position in positions]
    for got, want in zip(zip(*found, strict=True), rope_of(config, torch.tensor(positions), dtype), strict=True):
        assert torch.equal(torch.cat(got), want)
    assert cache.rope_of_token(0, torch.float32)[0].dtype == torch.float32
    assert not cache.rope_of_token(599, dtype)[0].is_inference(), "of no use where gradients are wanted"


def test_bytes_of_a_token_at_the_published_sizes():
    large = preset("hunyuan-large")
    assert large.key_value_bytes_per_token() == 2 * 8 * 80 * 64 == 81_920
    every_head_and_layer = Config(**{**vars(large), "num_key_value_heads": 80, "cla_share_factor": 1})
    assert every_head_and_layer.key_value_bytes_per_token() == 1_638_400
    assert KeyValueCache(large, 3, 7, device="meta").nbytes == 3 * 7 * 81_920
    assert KeyValueCache(large, 3, 7, dtype=FP8, device="meta").nbytes == 3 * 7 * 40_960


def fill_a_cache(share):
    """Prepares 64 MiB of keys and values for two layers that share, and twice that for two that do not."""
    ones = torch.ones(1, 8, 2**14, 128, dtype=torch.bfloat16)
    config = Config(num_layers=2, num_key_value_heads=8, head_dim=128, num_heads=8, cla_share_factor=share)

    def fill():
        cache = KeyValueCache(config, 1, 2**14)
        cache.begin([2**14])
        for layer in range(0, 2, share):
            cache.append(layer, ones, ones)
        return cache

    return fill


def test_measured_memory():
    shared, apart = measured_peaks(partial(fill_a_cache, 2), partial(fill_a_cache, 1))
    assert shared == pytest.approx(2**26, rel=0.05)
    assert apart == pytest.approx(2**27, rel=0.05)


@torch.no_grad()
@pytest.mark.parametrize("share", [1, 2, 3])
@pytest.mark.parametrize("chunks", [[40], [1] * 40, [5, 1, 34], [3, 17, 16, 4]], ids=str)
def test_chunks_give_what_one_pass_gives(share, chunks):
    """Chunks of more tokens than ``attention.FEW_TOKENS`` and of fewer."""
    model, x = model_with_gains(cla_share_factor=share), tokens(length=40)
    cache = model.make_cache(3, 40)
    got = torch.cat([model(part, cache=cache).logits for part in x.split(chunks, 1)], 1)
    torch.testing.assert_close(got, model(x).logits, rtol=1e-5, atol=2e-5)
    assert cache.lengths == [40] * 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, FP8])
@pytest.mark.parametrize(("first", "second"), [([7, 1, 12], [3, 4, 0]), ([40, 1, 25], [20, 30, 0])], ids=str)
def test_sequences_of_different_lengths(first, second, dtype):
    """Each as it is alone, whatever the padding. In FP8 each has scales of its own, which no padding raises."""
    model, x = model_with_gains(), tokens(length=60)
    cache = model.make_cache(3, 60, dtype)
    padded = model(x[:, : max(first)], cache=cache, num_tokens=first).logits
    follow = torch.full((3, max(second)), 39)
    for row in range(3):
        follow[row, : second[row]] = x[row, first[row] : first[row] + second[row]]
    then = model(follow, cache=cache, num_tokens=second).logits
    assert cache.lengths == [a + b for a, b in zip(first, second, strict=True)]
    for row in range(3):
        own, text = model.make_cache(1, 60, dtype), x[row : row + 1, : cache.lengths[row]]
        parts = text.split([n for n in (first[row], second[row]) if n], 1)
        alone = torch.cat([model(part, cache=own).logits[0] for part in parts])
        together = torch.cat((padded[row, : first[row]], then[row, : second[row]]))
        if dtype == FP8:
            for layer, store in own._stores.items():
                assert torch.equal(cache._stores[layer].scale[:, row], store.scale[:, 0])
        # Products of other shapes sum in another order, and a key or value near a tie may then round otherwise to e4m3.
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-2 if dtype == FP8 else 2e-5)


@torch.no_grad()
def test_truncated_tokens_are_forgotten():
    model, x = model_with_gains(), tokens()
    cache = model.make_cache(3, 16)
    model(x[:, :8], cache=cache)
    model(torch.zeros(3, 5, dtype=torch.int64), cache=cache)
    cache.truncate([8, 8, 8])
    got = model(x[:, 8:], cache=cache).logits
    torch.testing.assert_close(got, model(x).logits[:, 8:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_smaller_elements_give_about_the_same(dtype):
    # One expert: a choice between several may turn on a rounding, and then says nothing about the cache.
    model, x = model_with_gains(num_experts=1), tokens()
    exact, cache = model(x).logits, model.make_cache(3, 16, dtype)
    got = torch.cat([model(part, cache=cache).logits for part in x.split(4, 1)], 1)
    rounding = torch.finfo(dtype).eps / 2
    assert 0 < float((got - exact).norm() / exact.norm()) < 2 * rounding


def test_fp8_elements_are_within_their_rounding():
    """Also after a scale has grown: the later tokens are a thousand times larger."""
    cache = KeyValueCache(CONFIG, 2, 6, dtype=FP8)
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(2, 2, 6, 8, generator=generator)
    new[:, :, 3:] *= 1000
    for part in new.split(3, 2):
        cache.begin([3, 3])
        stored = cache.append(0, part, part)
        cache.finish()
    keys, values = stored.expanded(torch.float32)
    assert torch.equal(keys, values)
    largest = new.abs().amax((2, 3), keepdim=True)
    # Half an ulp of 3 mantissa bits twice (stored, then stored again under the larger scale), and of the subnormals.
    assert ((keys - new).abs() <= 2 * new.abs() * 2**-4 + 2 * 2 * largest / 448 * 2**-10).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: KeyValueCache(CONFIG, 1, 4, dtype=torch.float16), "dtype is torch.float16; allowed: torch.bfloat16"),
        (lambda c: KeyValueCache(CONFIG, 0, 4), "batch is 0; an integer of at least 1"),
        (lambda c: KeyValueCache(CONFIG, 1, 2.5), "capacity is 2.5; an integer of at least 1"),
        (lambda c: c.truncate([0]), "1 lengths come; the cache has 2 sequences"),
        (lambda c: c.begin([5, 1]), "sequence 0 has 0 tokens and 5 come; capacity is 4"),
        (lambda c: c.begin([1]), "1 sequences come; the cache is for 2"),
        (lambda c: c.truncate([0, 1]), "sequence 1 has 0 tokens; it cannot be cut to 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=f"KeyValueCache: {message}"):
        call(KeyValueCache(CONFIG, 2, 4))


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": tokens(length=20)}, "KeyValueCache: sequence 0 has 5 tokens and 20 come; capacity is 24"),
        ({"tokens": tokens() + 40}, "Decoder: tokens has numbers from 41 to 79; allowed: 0 to 39"),
        ({"tokens": tokens()[:2]}, "KeyValueCache: 2 sequences come; the cache is for 3"),
        ({"tokens": tokens()[:1], "num_tokens": [1, 1, 1]}, r"num_tokens is \[1, 1, 1\]; required: for each of 1 rows"),
        ({"num_tokens": [1, 17, 1]}, r"num_tokens is \[1, 17, 1\]; required: .* a number from 0 to 16"),
        ({"num_tokens": []}, r"num_tokens is \[\]; required: for each of 3 rows"),
        ({"cache": KeyValueCache(Config(), 3, 24)}, "the cache is for another config; make_cache gives one"),
    ],
)
def test_a_refused_pass_leaves_the_cache_as_it_was(changes, message):
    model, first = model_with_gains(), tokens(length=5, seed=2)
    cache = model.make_cache(3, 24)
    model(first, cache=cache)
    arguments = {"tokens": tokens(), "cache": cache} | changes
    with pytest.raises(ValueError, match=message):
        model(**arguments)
    assert cache.lengths == [5, 5, 5]
    got = model(tokens(length=4), cache=cache).logits
    torch.testing.assert_close(got, model(torch.cat((first, tokens(length=4)), 1)).logits[:, 5:], rtol=1e-4, atol=1e-4)


def test_a_cache_is_for_inference():
    model = model_with_gains()
    cache = model.make_cache(3, 16)
    with pytest.raises(RuntimeError, match=r"Decoder: a cache has no gradients; call eval\(\), and the model under"):
        model(tokens(), cache=cache)
    with pytest.raises(RuntimeError, match="Decoder: a cache has no gradients"), torch.no_grad():
        model.train()(tokens(), cache=cache)
    with pytest.raises(ValueError, match="Decoder: num_tokens goes with a cache"):
        model(tokens(), num_tokens=[1, 2, 3])
