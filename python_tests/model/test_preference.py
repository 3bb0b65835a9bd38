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
