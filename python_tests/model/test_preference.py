"""Preferences: the loss by its formula, and that it moves a model."""

import math

import pytest
import torch

from hunyuan_kernels.model.preference import dpo_loss, log_probability
from python_tests.model.test_decoder import make


def test_formula():
    pairs = [torch.tensor(v) for v in ([-5.0, -8.0], [-6.0, -3.0], [-4.0, -9.0], [-7.0, -4.0])]
    lengths = torch.tensor([2, 4])
    margins = [(-5 + 4) - (-6 + 7), (-8 + 9) - (-3 + 4)]
    preference = [math.log(1 + math.exp(-0.5 * m)) for m in margins]
    want = sum(preference) / 2 + 0.3 * (5 / 2 + 8 / 4) / 2 + 0.7 * (1 + 0) / 2
    got = dpo_loss(*pairs, chosen_lengths=lengths, beta=0.5, sft_weight=0.3, likelihood_weight=0.7)
    assert float(got) == pytest.approx(want)


def test_oracle():
    """Every term, pair by pair, in Python's floats: also where the chosen answer has become less likely."""
    generator = torch.Generator().manual_seed(0)
    values = (-40 * torch.rand(4, 50, generator=generator)).requires_grad_()
    lengths = torch.randint(1, 30, (50,), generator=generator)
    beta, sft, likelihood = 0.2, 0.05, 0.3
    total = 0.0
    for c, r, reference_c, reference_r, n in zip(*values.tolist(), lengths.tolist(), strict=True):
        margin = beta * ((c - reference_c) - (r - reference_r))
        total += math.log1p(math.exp(-margin)) - sft * c / n + likelihood * max(0.0, reference_c - c)
    got = dpo_loss(*values, chosen_lengths=lengths, beta=beta, sft_weight=sft, likelihood_weight=likelihood)
    assert got.item() == pytest.approx(total / 50, rel=1e-5)
    by_chosen, by_rejected = torch.autograd.grad(got, values)[0][:2]
    assert (by_chosen < 0).all(), "all terms raise the chosen answer"
    assert (by_rejected > 0).all()


PAIR = torch.tensor([-5.0, -8.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0; a positive number"),
        ({"beta": float("nan")}, "beta is nan; a positive number"),
        ({"sft_weight": -1.0}, "sft_weight is -1.0; 0 or a positive number"),
        ({"likelihood_weight": float("inf")}, "likelihood_weight is inf; 0 or a positive number"),
        ({"chosen_lengths": torch.tensor([3, 0])}, "chosen_lengths has 0; at least 1"),
        ({"rejected": PAIR[:, None]}, r"rejected has shape \[2, 1\], chosen \[2\]; required: \[B\]"),
        ({"reference_chosen": PAIR[:1]}, r"reference_chosen has shape \[1\], chosen \[2\]"),
        ({"chosen": PAIR[:0]}, r"chosen has shape \[0\]"),
    ],
)
def test_bad_input(changes, message):
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    arguments = dict.fromkeys(names, PAIR) | {"chosen_lengths": torch.tensor([3, 4])} | changes
    with pytest.raises(ValueError, match=f"dpo_loss: {message}"):
        dpo_loss(**arguments)


def test_tokens_that_do_not_count_may_be_anything():
    logits = torch.randn(1, 3, 4)
    logits[0, 0, 0] = -torch.inf
    counted = torch.tensor([[False, True, True]])
    want = log_probability(logits, torch.tensor([[1, 2, 1]]), counted)
    for anything in (-100, 0, 99):
        assert torch.equal(log_probability(logits, torch.tensor([[anything, 2, 1]]), counted), want)
    assert log_probability(logits, torch.full((1, 3), -100), torch.zeros(1, 3, dtype=torch.bool)) == 0


@pytest.mark.parametrize(
    ("tokens", "counted", "message"),
    [
        ([[0, 2, 9]], [[True, True, True]], "counted tokens are 0 to 9; allowed: 0 to 3"),
        ([[0, 2, -100]], [[True, True, True]], "counted tokens are -100 to 2; allowed: 0 to 3"),
        ([[0, 2]], [[True, True]], r"logits has shape \[1, 3, 4\], tokens \[1, 2\]"),
        ([[0, 2, 1]], [[1, 1, 1]], r"counted torch.int64 \[1, 3\]; required: .* bool \[B, T\]"),
    ],
)
def test_bad_tokens(tokens, counted, message):
    with pytest.raises(ValueError, match=f"log_probability: .*{message}"):
        log_probability(torch.zeros(1, 3, 4), torch.tensor(tokens), torch.tensor(counted))


def test_log_probability_counts_the_answer_alone():
    logits = torch.zeros(1, 3, 4)
    logits[0, 1, 2] = math.log(5)
    got = log_probability(logits, torch.tensor([[0, 2, 1]]), torch.tensor([[False, True, True]]))
    assert got.tolist() == pytest.approx([math.log(5 / 8) - math.log(4)])


@pytest.mark.parametrize("weights", [{}, {"sft_weight": 0.1, "likelihood_weight": 1.0}], ids=["plain", "all terms"])
def test_a_toy_preference_is_learned(weights):
    """After the same question, sevens are preferred to threes."""
    model = make(overflow="drop", capacity_factor=None)
    question = torch.arange(8).view(2, 4)
    answers = [torch.cat((question, torch.full((2, 3), token)), 1) for token in (7, 3)]
    counted = (torch.arange(6) >= 3).expand(2, 6)

    def scores():
        return [log_probability(model(a[:, :-1]).logits, a[:, 1:], counted) for a in answers]

    with torch.no_grad():
        reference = scores()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        loss = dpo_loss(*scores(), *reference, chosen_lengths=counted.sum(1), **weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen, rejected = (now - before for now, before in zip(scores(), reference, strict=True))
    assert (chosen - rejected > 5).all()
    if weights:
        assert (chosen > 0).all(), "the chosen answer's own likelihood has not fallen"
