"""Generation against a loop without cache, and parallel decoding against one token at a time."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hunyuan_kernels.model import Config, Decoder, Output, generate
from hunyuan_kernels.model.generate import prompt_lookup, sample
from hunyuan_kernels.model.train import train
from python_tests.model.test_decoder import CONFIG, make

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7], [1, 8, 2, 8, 1]]


@torch.no_grad()
def greedy_without_cache(model, prompt, new_tokens):
    text = list(prompt)
    for _ in range(new_tokens):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("draft", [0, 4])
@pytest.mark.parametrize("chunk", [3, 512])
def test_greedy(draft, chunk):
    model = make().eval()
    got = generate(model, PROMPTS, 20, draft=draft, chunk=chunk)
    assert got.tokens == [greedy_without_cache(model, prompt, 20) for prompt in PROMPTS]
    if not draft:
        assert (got.steps, got.tokens_per_step) == (19, 1.0)


@pytest.mark.parametrize("cache_dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_a_text_that_was_learned(cache_dtype):
    """The model counts, with a cache of small elements too; drafts from the repeated count are accepted."""
    model = make()
    batches = ((torch.arange(33) + torch.arange(i, i + 4)[:, None]) % 10 for i in itertools.count())
    for _ in train(model, batches, 80, learning_rate=1e-2):
        pass
    prompts = [[i % 10 for i in range(12)], [i % 10 for i in range(5, 26)]]
    got = generate(model.eval(), prompts, 25, draft=7, cache_dtype=cache_dtype)
    assert got.tokens == [[(p[-1] + 1 + i) % 10 for i in range(25)] for p in prompts]
    assert got.steps == 3
    assert got.tokens_per_step == pytest.approx(24 / 3)


def steps_for(text, length, draft):
    """Passes that parallel decoding takes for the greedy ``text``, whose first ``length`` tokens are the prompt."""
    at, steps = length + 1, 0
    while at < len(text):
        guess = prompt_lookup(text[:at], draft)
        steps += 1
        for token in [*guess, None]:
            at += 1
            if at == len(text) or token != text[at - 1]:
                break
    return steps


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("seed", range(6))
def test_parallel_decoding_of_random_models(seed, cache_dtype):
    """Batches of differing lengths, equal prompts among them, up to a token that stops."""
    draw = random.Random(seed)
    model = make(
        seed,
        num_layers=draw.choice([1, 3, 4]),
        cla_share_factor=draw.choice([1, 2]),
        num_experts=draw.choice([1, 8]),
        num_key_value_heads=draw.choice([1, 4]),
    ).eval()
    prompts = [[draw.randrange(8) for _ in range(draw.randint(1, 20))] for _ in range(4)]
    prompts.append(prompts[0])
    options = {"cache_dtype": cache_dtype, "stop": [draw.randrange(40)]}
    alone = [generate(model, [prompt], 24, **options).tokens[0] for prompt in prompts]
    for draft in (1, 5):
        got = generate(model, prompts, 24, draft=draft, chunk=7, **options)
        assert got.tokens == alone
        want = [steps_for(p + made, len(p), draft) for p, made in zip(prompts, alone, strict=True)]
        assert got.sequence_steps == want
        assert got.steps == max(want)
        assert got.tokens_per_step == pytest.approx(sum(len(made) - 1 for made in alone) / max(1, sum(want)))


class Automaton(Decoder):
    """Logits that are a function of the text before and of nothing else, exactly: integers, the same in every pass."""

    def __init__(self, vocabulary, seed):
        super().__init__(Config(vocabulary_size=vocabulary, hidden_size=8, num_layers=1, num_experts=1))
        self.seed = seed
        self.eval()

    def _scores(self, text):
        # Looks two tokens back: texts become periodic soon, so that some drafts are right.
        return torch.tensor([hash((self.seed, *text[-2:], token)) % 1000 for token in range(3)]).float()

    def hidden(self, tokens, *, seed=None, cache=None, num_tokens=None):
        if not hasattr(cache, "texts"):
            cache.texts = [[] for _ in cache.lengths]
        out = torch.zeros(*tokens.shape, 3)
        cache.begin(num_tokens)
        for row, count in enumerate(num_tokens):
            text = cache.texts[row][: cache.lengths[row]]
            for i in range(count):
                text = [*text, int(tokens[row, i])]
                out[row, i] = self._scores(text)
            cache.texts[row] = text
        cache.finish()
        return out, [], []

    def logits(self, hidden):
        return hidden

    def forward(self, tokens, **arguments):
        return Output(self.hidden(tokens, **arguments)[0], torch.zeros(()), [])


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10**6),
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4),
    new_tokens=st.integers(1, 30),
    draft=st.integers(1, 9),
    chunk=st.integers(1, 9),
    stop=st.lists(st.integers(0, 2), max_size=1),
)
def test_parallel_decoding_gives_the_greedy_output(seed, prompts, new_tokens, draft, chunk, stop):
    """Exactly, for any model whose logits depend on the text alone."""
    model = Automaton(3, seed)
    got = generate(model, prompts, new_tokens, draft=draft, chunk=chunk, stop=stop)
    want = []
    for prompt in prompts:
        text = list(prompt)
        while len(text) < len(prompt) + new_tokens:
            text.append(int(model._scores(text).argmax()))
            if text[-1] in stop:
                break
        want.append(text[len(prompt) :])
    assert got.tokens == want
    assert got.steps == max(got.sequence_steps)
    steps = [steps_for(prompt + made, len(prompt), draft) for prompt, made in zip(prompts, want, strict=True)]
    assert got.sequence_steps == steps


def test_prompt_lookup():
    assert prompt_lookup([1, 2, 3, 4, 5, 1, 2, 3], 3) == [4, 5, 1]
    assert prompt_lookup([1, 2, 9, 1, 2, 8, 1, 2], 1) == [8], "the last occurrence"
    assert prompt_lookup([7, 1, 2, 5, 9, 2, 6, 1, 2], 1) == [5], "the longest match"
    assert prompt_lookup([1, 2, 3], 5) == []
    assert prompt_lookup([1], 5) == []
    assert prompt_lookup([4, 4, 4], 9) == [4]


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(40_000, 4)

    def shares(**options):
        arguments = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | options
        drawn = sample(logits, **arguments, generator=torch.Generator().manual_seed(0))
        return (torch.bincount(drawn, minlength=4) / len(logits)).tolist()

    close = {"abs": 4 * 0.5 / 200}  # four deviations
    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], **close)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], **close)
    assert shares(top_p=0.79) == pytest.approx([0.625, 0.375, 0, 0], **close)
    assert shares(top_p=0.81) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], **close)
    squares = [p * p for p in (0.5, 0.3, 0.15, 0.05)]
    assert shares(temperature=0.5) == pytest.approx([p / sum(squares) for p in squares], **close)


@pytest.mark.parametrize("options", [{"temperature": 1e-45}, {"temperature": 1e-39}, {"top_p": 1e-50}, {"top_k": 1}])
def test_the_narrowest_sampling_is_greedy(options):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 1e4
    logits[:, 3] = -torch.inf
    arguments = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | options
    assert torch.equal(sample(logits, **arguments, generator=None), logits.argmax(-1))


@pytest.mark.parametrize("make_prompts", [torch.tensor, lambda rows: torch.tensor(rows).numpy()])
def test_prompts_may_be_tensors_and_arrays(make_prompts):
    model, rows = make().eval(), [[1, 2, 3], [4, 5, 6]]
    assert generate(model, make_prompts(rows), 5).tokens == generate(model, rows, 5).tokens


def test_sampling_is_reproducible():
    model = make().eval()
    first, same, other = (
        generate(model, PROMPTS, 8, temperature=1.0, generator=torch.Generator().manual_seed(seed)).tokens
        for seed in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts is empty; at least one"),
        ({"prompts": [[1], []]}, "prompt 1 is empty; at least one token"),
        ({"prompts": [[1, 40]]}, "prompt 0 has tokens outside 0 to 39"),
        ({"prompts": [[-1]]}, "prompt 0 has tokens outside 0 to 39"),
        ({"prompts": [[1.0]]}, "prompts is no sequence of texts, each a sequence of integers"),
        ({"prompts": ["abc"]}, "prompts is no sequence of texts, each a sequence of integers"),
        ({"prompts": [1, 2]}, "prompts is no sequence of texts, each a sequence of integers"),
        ({"new_tokens": 0}, "new_tokens is 0; an integer of at least 1"),
        ({"new_tokens": 1.5}, "new_tokens is 1.5; an integer of at least 1"),
        ({"draft": -1}, "draft is -1; an integer of at least 0"),
        ({"chunk": 0}, "chunk is 0; an integer of at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0; 0"),
        ({"temperature": float("nan")}, "temperature is nan; 0"),
        ({"temperature": float("inf")}, "temperature is inf; 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; an integer of at least 1"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k is 2.5; an integer of at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; above 0"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p is nan; above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5; above 0"),
        ({"temperature": 1.0, "draft": 2}, "draft goes with greedy decoding"),
        ({"cache_dtype": torch.float16}, "dtype is torch.float16"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(Decoder(CONFIG).eval(), **({"prompts": [[1]], "new_tokens": 1} | arguments))


def test_training_mode():
    with pytest.raises(ValueError, match=r"in training mode; call eval\(\) first"):
        generate(make(), [[1]], 1)
