"""Generation: greedy and sampling, in batches, with prompt-lookup parallel decoding."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan_kernels.model.cache import KeyValueCache
from hunyuan_kernels.model.decoder import Decoder

#: Longest run of tokens whose earlier occurrence makes a draft.
LOOKUP_LENGTH = 3


@dataclass(frozen=True)
class Generated:
    """What came of :func:`generate`."""

    #: The new tokens of each prompt, without those of the prompt.
    tokens: list[list[int]]
    #: Passes through the model after the prompts, each over the whole batch.
    steps: int
    #: Of each sequence: the passes it took part in.
    sequence_steps: list[int]

    @property
    def tokens_per_step(self) -> float:
        """New tokens of a sequence in a pass, the first one (made from the prompt) left out; 1 without drafts."""
        made = sum(max(0, len(tokens) - 1) for tokens in self.tokens)
        return made / max(1, sum(self.sequence_steps))


def prompt_lookup(tokens: Sequence[int], count: int, longest: int = LOOKUP_LENGTH) -> list[int]:
    """Up to ``count`` tokens that may come next: those that followed the last tokens where they occurred before.

    The longest match counts, of ``longest`` tokens at most, and of equally long ones the last. Source: prompt lookup
    decoding, https://github.com/apoorvumang/prompt-lookup-decoding.
    """
    for length in range(min(longest, len(tokens) - 1), 0, -1):
        end = list(tokens[-length:])
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start] == end[0] and list(tokens[start : start + length]) == end:
                return list(tokens[start + length : start + length + count])
    return []


def sample(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """One token for each row of ``logits [..., V]``; the most likely one with a temperature of 0.

    ``top_k`` keeps so many of the likeliest tokens; ``top_p`` the fewest likeliest that have that probability together.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() - logits.amax(-1, keepdim=True)  # the largest stays finite under any temperature
    temperature = max(temperature, torch.finfo(torch.float32).tiny)
    probability, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        probability[..., top_k:] = 0
    before = probability.cumsum(-1) - probability
    left_out = before >= top_p * probability.sum(-1, keepdim=True)
    left_out[..., 0] = False  # also where top_p vanishes in fp32
    probability = probability.masked_fill(left_out, 0)
    chosen = torch.multinomial(probability.flatten(0, -2), 1, generator=generator)
    return order.gather(-1, chosen.view(*order.shape[:-1], 1)).squeeze(-1)


def _numbers(prompts: Iterable[Iterable[int]]) -> list[list[int]]:
    """Of tensors and arrays, too."""
    try:
        return [[operator.index(token) for token in prompt] for prompt in prompts]
    except TypeError:
        raise ValueError("generate: prompts is no sequence of texts, each a sequence of integers") from None


def _check(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    draft: int,
    chunk: int,
) -> None:
    if not prompts:
        raise ValueError("generate: prompts is empty; at least one is required")
    vocabulary = model.config.vocabulary_size
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: prompt {row} is empty; at least one token is required")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ValueError(f"generate: prompt {row} has tokens outside 0 to {vocabulary - 1}")
    for name, value, least in (("new_tokens", new_tokens, 1), ("draft", draft, 0), ("chunk", chunk, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"generate: {name} is {value}; an integer of at least {least} is required")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"generate: temperature is {temperature}; 0 (greedy) or a positive number is required")
    if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
        raise ValueError(f"generate: top_k is {top_k}; an integer of at least 1 or None is required")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p is {top_p}; above 0 and up to 1 is allowed")
    if draft and temperature:
        raise ValueError("generate: draft goes with greedy decoding; pass temperature=0, or draft=0")
    if model.training:
        raise ValueError("generate: the model is in training mode; call eval() first")


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


def prefill(model: Decoder, prompts: Sequence[Sequence[int]], cache: KeyValueCache, chunk: int) -> Tensor:
    """The prompts into the cache, ``chunk`` tokens of each at a time; the logits ``[B, V]`` after each prompt.

    Chunks bound the memory of activations and masks; the logits are computed for the last tokens alone.
    """
    last: list[Tensor | None] = [None] * len(prompts)
    for start in range(0, max(map(len, prompts)), chunk):
        parts = [prompt[start : start + chunk] for prompt in prompts]
        tokens = _padded(parts, model.embed_tokens.device)
        hidden, *_ = model.hidden(tokens, cache=cache, num_tokens=[len(part) for part in parts])
        for row, part in enumerate(parts):
            if part:
                last[row] = hidden[row, len(part) - 1]
    return model.logits(torch.stack([state for state in last if state is not None]))


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    draft: int = 0,
    stop: Sequence[int] = (),
    cache_dtype: torch.dtype | None = None,
    chunk: int = 512,
) -> Generated:
    """Continues each of ``prompts`` by up to ``new_tokens`` tokens, or to one of ``stop`` (which is kept).

    Args:
        temperature, top_k, top_p, generator: as :func:`sample` takes them; a temperature of 0 is greedy.
        draft: parallel decoding: so many tokens, guessed by :func:`prompt_lookup`, go through the model together with
            the one that is due. Guesses are kept up to the first that is not the model's own choice, and the model's
            choice follows them. Whatever was guessed, each token is the likeliest after all before it: the output is
            that of greedy decoding. (A pass over several tokens may round otherwise than one over a single token, so
            logits that agree to within rounding may be told apart otherwise.)
        cache_dtype: bf16, fp32 or float8_e4m3fn; None: that of the model.
        chunk: tokens of a prompt that are processed at once.

    Raises:
        ValueError: an argument out of its range, named.
    """
    prompts = _numbers(prompts)
    _check(model, prompts, new_tokens, temperature, top_k, top_p, draft, chunk)
    cache = model.make_cache(len(prompts), max(map(len, prompts)) + new_tokens, cache_dtype)
    texts = [list(prompt) for prompt in prompts]
    ends = [len(prompt) + new_tokens for prompt in prompts]
    steps = [0] * len(prompts)

    def open_rows() -> list[bool]:
        return [
            len(text) < end and not (len(text) > len(prompt) and text[-1] in stop)
            for text, end, prompt in zip(texts, ends, prompts, strict=True)
        ]

    first = sample(prefill(model, prompts, cache, chunk), temperature, top_k, top_p, generator)
    for text, token in zip(texts, first.tolist(), strict=True):
        text.append(token)
    passes = 0
    while any(running := open_rows()):
        # The last token of each text is not in the cache yet; its draft must fit before the end.
        drafts = [
            prompt_lookup(text, min(draft, end - len(text) - 1)) if go and draft else []
            for text, end, go in zip(texts, ends, running, strict=True)
        ]
        incoming = [[text[-1], *guess] if go else [] for text, guess, go in zip(texts, drafts, running, strict=True)]
        tokens = _padded(incoming, model.embed_tokens.device)
        hidden, *_ = model.hidden(tokens, cache=cache, num_tokens=[len(row) for row in incoming])
        choices = sample(model.logits(hidden), temperature, top_k, top_p, generator).tolist()
        for row, (text, guess) in enumerate(zip(texts, drafts, strict=True)):
            if not running[row]:
                continue
            steps[row] += 1
            for i in range(len(guess) + 1):
                text.append(choices[row][i])
                if text[-1] in stop or i == len(guess) or guess[i] != text[-1]:
                    break
        cache.truncate([min(n, len(text) - 1) for n, text in zip(cache.lengths, texts, strict=True)])
        passes += 1
    made = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    return Generated(made, passes, steps)
