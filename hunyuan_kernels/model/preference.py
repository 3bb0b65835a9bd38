"""Learning from preferences: direct preference optimization with terms that hold on to the chosen answer."""

import torch.nn.functional as F
from torch import Tensor


def log_probability(logits: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """``[B]``: of ``tokens [B, T]`` under the logits ``[B, T, V]`` before each, summed where ``counted [B, T]``."""
    log_p = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return (log_p * counted).sum(-1)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    chosen_lengths: Tensor,
    beta: float = 0.1,
    sft_weight: float = 0.0,
    likelihood_weight: float = 0.0,
) -> Tensor:
    r"""Scalar, the mean over pairs of answers, from the log probabilities ``[B]`` of whole answers.

    .. math:: -\log \sigma(\beta (\Delta_c - \Delta_r)) - w_{sft} \frac{\log p(c)}{|c|}
        + w_{likelihood} \max(0, -\Delta_c), \qquad \Delta = \log p - \log p_{reference}

    The second term keeps training on the chosen answer; the third keeps its likelihood from falling below that under
    the reference, which the first alone allows. Sources: DPO, arXiv 2305.18290; Hunyuan-Large's report, arXiv
    2411.02265, section 3.2, adds an SFT loss on the chosen answer (weights are not published); the third term is that
    of DPO-Positive, arXiv 2402.13228.
    """
    gained, gained_rejected = chosen - reference_chosen, rejected - reference_rejected
    preference = -F.logsigmoid(beta * (gained - gained_rejected))
    return (preference - sft_weight * chosen / chosen_lengths + likelihood_weight * F.relu(-gained)).mean()
