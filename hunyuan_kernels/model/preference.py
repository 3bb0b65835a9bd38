"""Learning from preferences: direct preference optimization with terms that hold on to the chosen answer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_probability(logits: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """``[B]``: of ``tokens [B, T]`` under the logits ``[B, T, V]`` before each, summed where ``counted [B, T]``.

    Tokens that do not count may be anything, such as -100.

    Raises:
        ValueError: shapes that differ, a ``counted`` that is not boolean, counted tokens outside the vocabulary.
    """
    if logits.shape[:-1] != tokens.shape or tokens.shape != counted.shape or counted.dtype != torch.bool:
        raise ValueError(
            f"log_probability: logits has shape {list(logits.shape)}, tokens {list(tokens.shape)} and counted "
            f"{counted.dtype} {list(counted.shape)}; required: [B, T, V], [B, T], and bool [B, T]"
        )
    tokens = tokens.where(counted, 0)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[-1]:
        raise ValueError(
            f"log_probability: counted tokens are {int(tokens.min())} to {int(tokens.max())}; allowed: 0 to "
            f"{logits.shape[-1] - 1}"
        )
    log_p = logits.float().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return log_p.where(counted, 0.0).sum(-1)


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

    Raises:
        ValueError: no pairs, shapes that differ, lengths below 1, ``beta`` or a weight out of its range.
    """
    tensors = {
        "chosen": chosen,
        "rejected": rejected,
        "reference_chosen": reference_chosen,
        "reference_rejected": reference_rejected,
        "chosen_lengths": chosen_lengths,
    }
    for name, tensor in tensors.items():
        if tensor.dim() != 1 or not len(tensor) or tensor.shape != chosen.shape:
            raise ValueError(
                f"dpo_loss: {name} has shape {list(tensor.shape)}, chosen {list(chosen.shape)}; required: [B], the "
                "same for all, with at least one pair"
            )
    if bool((chosen_lengths < 1).any()):
        raise ValueError(f"dpo_loss: chosen_lengths has {int(chosen_lengths.min())}; at least 1 is required")
    if not 0 < beta < math.inf:
        raise ValueError(f"dpo_loss: beta is {beta}; a positive number is required")
    for name, weight in (("sft_weight", sft_weight), ("likelihood_weight", likelihood_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"dpo_loss: {name} is {weight}; 0 or a positive number is required")
    gained, gained_rejected = chosen - reference_chosen, rejected - reference_rejected
    preference = -F.logsigmoid(beta * (gained - gained_rejected))
    return (preference - sft_weight * chosen / chosen_lengths + likelihood_weight * F.relu(-gained)).mean()
