"""Training: parameter groups, learning rate, and the loop."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hunyuan_kernels.model.decoder import Decoder

#: Learning rate of the routed experts relative to all other parameters: with top-1 of 16 they see a sixteenth of the
#: tokens, a smaller batch. Value from the Hunyuan-Large report, arXiv 2411.02265, section 2.3.2.
EXPERT_LEARNING_RATE_RATIO = 0.31


def _check_range(op: str, largest: float = math.inf, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= largest or value == math.inf:  # NaN, too
            allowed = "a number from 0 on" if largest == math.inf else f"a number from 0 to {largest}"
            raise ValueError(f"{op}: {name} is {value}; {allowed} is required")


def parameter_groups(
    model: Decoder,
    learning_rate: float,
    *,
    expert_ratio: float = EXPERT_LEARNING_RATE_RATIO,
    weight_decay: float = 0.1,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: routed experts with their own learning rate, gains of norms without decay.

    Parameters that require no gradient, such as weights that are kept in FP8, are left out.

    Raises:
        ValueError: a rate, ratio or decay that is negative or not finite.
    """
    _check_range("parameter_groups", learning_rate=learning_rate, expert_ratio=expert_ratio, weight_decay=weight_decay)
    experts: list[Tensor] = []
    matrices: list[Tensor] = []
    gains: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(("experts_gate_up", "experts_down")):
            experts.append(parameter)
        else:
            (matrices if parameter.dim() > 1 else gains).append(parameter)
    return [
        {"params": experts, "lr": learning_rate * expert_ratio, "weight_decay": weight_decay},
        {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": gains, "lr": learning_rate, "weight_decay": 0.0},
    ]


def expert_learning_rate_ratio(batch: float, noise_batch: float, num_experts: int) -> float:
    r"""The learning rate for a batch spread over ``num_experts``, relative to that for the whole batch.

    .. math:: \epsilon(B) = 2 \epsilon_{max} \,/\, (\sqrt{B_{noise}/B} + \sqrt{B/B_{noise}}), \qquad
        \epsilon(B/n) \,/\, \epsilon(B)

    Equation 1 of the Hunyuan-Large report (arXiv 2411.02265). For :math:`B \ll B_{noise}` it is :math:`n^{-1/2}`, a
    quarter for 16 experts. The 0.31 that the report uses is :data:`EXPERT_LEARNING_RATE_RATIO`; it does not state a
    batch for which the equation gives that number.

    Raises:
        ValueError: an argument that is not positive and finite.
    """
    for name, value in (("batch", batch), ("noise_batch", noise_batch), ("num_experts", num_experts)):
        if not 0 < value < math.inf:
            raise ValueError(f"expert_learning_rate_ratio: {name} is {value}; a positive number is required")

    def relative(b: float) -> float:
        return 2 / (math.sqrt(noise_batch / b) + math.sqrt(b / noise_batch))

    return relative(batch / num_experts) / relative(batch)


def learning_rate_factor(
    step: int, steps: int, *, warmup: float = 0.05, anneal: float = 0.05, decayed: float = 0.15, final: float = 0.1
) -> float:
    """Linear warm-up, a cosine down to ``decayed``, and at the end a linear annealing to ``final``.

    ``warmup`` and ``anneal`` are shares of the steps. A tenth of the peak at the end of the last 5% is what the
    Hunyuan-Large report states; it does not state where the decay ends. Past the last step it stays as it is there.

    Raises:
        ValueError: no steps, a negative step, a share or factor outside 0 to 1, warm-up and annealing that overlap.
    """
    if steps < 1 or step < 0:
        raise ValueError(f"learning_rate_factor: step is {step} of {steps}; required: at least 0 of at least 1")
    _check_range("learning_rate_factor", 1, warmup=warmup, anneal=anneal, decayed=decayed, final=final)
    if warmup + anneal > 1:
        raise ValueError(f"learning_rate_factor: warmup is {warmup} and anneal {anneal}; together at most 1 is allowed")
    warm = max(1, int(warmup * steps))
    last = int(anneal * steps)
    if step < warm:
        return (step + 1) / warm
    if last and step >= steps - last:
        return decayed + (final - decayed) * min(1.0, (step - (steps - last) + 1) / last)
    progress = min(1.0, (step - warm) / max(1, steps - last - warm))
    return decayed + (1 - decayed) / 2 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Step:
    """What one step of training shows."""

    #: Cross-entropy in nats per token.
    loss: float
    balance_loss: float
    #: Shares of all assignments that lost their expert to the capacity: those left without one, those sent elsewhere.
    dropped: float
    recycled: float
    #: ``[num_layers, num_experts]``: what the router asked of each expert, relative to an even share. Layers with fewer
    #: experts end in zeros.
    demand: Tensor


def train(
    model: Decoder,
    batches: Iterable[Tensor],
    steps: int,
    *,
    learning_rate: float,
    balance_weight: float = 0.01,
    seed: int = 0,
) -> Iterator[Step]:
    """Trains on ``steps`` batches of tokens ``[B, T + 1]`` with AdamW, and yields after each.

    The loss is the cross-entropy of the next token plus ``balance_weight`` times the load balancing loss. ``seed`` is
    that of recycling.

    Raises:
        ValueError: with the first step: no steps, a learning rate or weight that is negative or not finite; a batch of
            another shape, without anything to predict, or with tokens outside the vocabulary. It changes no parameter.
    """
    if steps < 1:
        raise ValueError(f"train: steps is {steps}; at least 1 is required")
    _check_range("train", learning_rate=learning_rate, balance_weight=balance_weight)
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate), betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    model.train()
    for step, batch in zip(range(steps), batches, strict=False):
        if batch.dim() != 2 or batch.shape[0] < 1 or batch.shape[1] < 2:
            raise ValueError(f"train: batch has shape {list(batch.shape)}; required: [B, T + 1], B and T at least 1")
        if not 0 <= int(batch.min()) <= int(batch.max()) < model.config.vocabulary_size:
            raise ValueError(
                f"train: batch has tokens from {int(batch.min())} to {int(batch.max())}; allowed: 0 to "
                f"{model.config.vocabulary_size - 1}"
            )
        out = model(batch[:, :-1], seed=seed * steps + step)
        loss = F.cross_entropy(out.logits.flatten(0, 1), batch[:, 1:].flatten())
        (loss + balance_weight * out.balance_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        demand = [r.demand.float() for r in out.routings]
        assignments = float(sum(d.sum() for d in demand))
        yield Step(
            loss=loss.item(),
            balance_loss=out.balance_loss.item(),
            dropped=sum(int(r.num_dropped) for r in out.routings) / assignments,
            recycled=sum(int(r.num_recycled) for r in out.routings) / assignments,
            demand=pad_sequence([d / d.mean() for d in demand], batch_first=True),
        )
