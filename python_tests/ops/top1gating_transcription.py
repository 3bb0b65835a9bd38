"""The published top-1 gating, transcribed step by step with the capacity as an argument.

Source: ``top1gating`` in ``modeling_hunyuan.py`` of Tencent-Hunyuan-Large, where the capacity is always the number of
tokens. It works on one-hot masks over slots; the order in which equal priorities keep their slots is unspecified there
and is token order here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def top1gating(logits: Tensor, capacity: int, random_routing: bool, generator: torch.Generator) -> dict[str, Tensor]:
    experts = logits.shape[1]
    gates = F.softmax(logits.float(), dim=1)
    chosen = torch.argmax(gates, dim=1)
    mask = F.one_hot(chosen, experts)
    exp_counts = mask.sum(dim=0)
    l_aux = experts * torch.sum(gates.mean(dim=0) * mask.float().mean(dim=0))

    # "top-k over tokens" of a 0/1 mask: `capacity` of the tokens of each expert keep it
    position = torch.cumsum(mask, dim=0) * mask
    mask = mask * (position <= capacity)
    kept = mask.sum(dim=1).bool()
    pool = torch.cat([torch.full((capacity - int(mask[:, e].sum()),), e) for e in range(experts)])
    if random_routing:
        dropped = torch.nonzero(~kept).flatten()
        shuffled = pool[torch.randperm(len(pool), generator=generator)]
        moved = dropped[: len(shuffled)]
        mask[moved, shuffled[: len(moved)]] = 1

    slot = torch.cumsum(mask, dim=0) - 1
    token_slot = (slot * mask).sum(dim=1)
    weight = (gates * mask).sum(dim=1)
    return {
        "l_aux": l_aux,
        "exp_counts": exp_counts,
        "kept": kept,
        "pool": pool,
        "expert": torch.where(mask.any(dim=1), mask.argmax(dim=1), -1),
        "slot": token_slot,
        "weight": weight,
    }
