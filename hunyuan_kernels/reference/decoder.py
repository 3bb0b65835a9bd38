"""Specification of the decoder: one text by itself, without a cache, from the published tensors by their names.

Written from the order of Tencent's ``modeling_hunyuan.py``, head by head and expert by expert; shares no code with
``model``. Routing is without capacity, as the published code runs it. Names are those of transformers' packed form.
Everything is computed in the dtype that is asked for: fp64 for what is right, others for what plain PyTorch makes of
it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels.model.config import Config
from hunyuan_kernels.reference.moe import moe_from_routing


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight.to(x)


def rotate(x: Tensor, theta: float, alpha: float) -> Tensor:
    """RoPE of x ``[T, heads, d]``: elements i and i + d/2 by ``position * base^(-2i/d)``."""
    d = x.shape[-1]
    base = theta * alpha ** (d / (d - 2))
    angles = torch.arange(len(x)).double()[:, None, None] * base ** (-torch.arange(0, d, 2).double() / d)
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class LayerOutput(NamedTuple):
    """Of :func:`decoder_layer`."""

    #: ``[T, H]``
    y: Tensor
    #: ``[T, E]``
    router_logits: Tensor
    #: ``[T, k]``
    expert_ids: Tensor
    #: Before RoPE and norm, ``[T, groups, d]`` each: what following layers take over.
    key_value: tuple[Tensor, Tensor]


def decoder_layer(
    x: Tensor,
    weights: Mapping[str, Tensor],
    config: Config,
    *,
    top_k: int,
    key_value: tuple[Tensor, Tensor] | None = None,
    expert_ids: Tensor | None = None,
) -> LayerOutput:
    """One layer over a text ``x [T, H]``, in the dtype of x.

    ``key_value`` are those of an earlier layer (cross-layer attention). With ``expert_ids [T, k]`` tokens go to these
    experts, with the weights that the router gives them.
    """

    def project(rows: Tensor, name: str) -> Tensor:
        return rows @ weights[f"{name}.weight"].to(rows).T

    def norm(rows: Tensor, name: str) -> Tensor:
        return rms_norm(rows, weights[f"{name}.weight"], config.norm_epsilon)

    length, group_of = len(x), config.num_heads // config.num_key_value_heads
    normed = norm(x, "input_layernorm")
    if key_value is None:
        shape = (length, config.num_key_value_heads, config.head_dim)
        key_value = project(normed, "self_attn.k_proj").view(shape), project(normed, "self_attn.v_proj").view(shape)
    q = project(normed, "self_attn.q_proj").view(length, config.num_heads, config.head_dim)
    q = norm(rotate(q, config.rope_theta, config.rope_alpha), "self_attn.query_layernorm")
    k = norm(rotate(key_value[0], config.rope_theta, config.rope_alpha), "self_attn.key_layernorm")
    later = torch.ones(length, length).triu(1).bool()
    heads = []
    for head in range(config.num_heads):
        scores = q[:, head] @ k[:, head // group_of].T / config.head_dim**0.5
        heads.append(scores.masked_fill(later, float("-inf")).softmax(-1) @ key_value[1][:, head // group_of])
    x = x + project(torch.cat(heads, -1), "self_attn.o_proj")

    normed = norm(x, "post_attention_layernorm")
    gate = weights["mlp.gate.wg.weight"]
    router = torch.promote_types(x.dtype, gate.dtype)
    logits = normed.to(router) @ gate.to(router).T
    if expert_ids is None:
        expert_ids = logits.topk(top_k, -1).indices
    chosen = logits.softmax(-1).gather(1, expert_ids)
    if top_k > 1:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    experts = weights["mlp.experts.gate_up_proj"], weights["mlp.experts.down_proj"]
    hidden = F.silu(project(normed, "mlp.shared_mlp.gate_proj")) * project(normed, "mlp.shared_mlp.up_proj")
    y = x + project(hidden, "mlp.shared_mlp.down_proj")
    y = y + moe_from_routing(normed, expert_ids, chosen, torch.zeros_like(expert_ids), experts, dtype=x.dtype)
    return LayerOutput(y, logits, expert_ids, key_value)


def decoder(
    tokens: Tensor, weights: Mapping[str, Tensor], config: Config, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Logits ``[T, V]`` of one text ``[T]``."""
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[tokens].to(dtype)
    key_value = None
    for i in range(config.num_layers):
        prefix = f"model.layers.{i}."
        of_layer = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if config.owns_key_value(i):
            key_value = None
        out = decoder_layer(x, of_layer, config, top_k=config.top_k_of(i), key_value=key_value)
        x, key_value = out.y, out.key_value
    x = rms_norm(x, weights["model.norm.weight"], config.norm_epsilon)
    return x @ weights.get("lm_head.weight", embedding).to(dtype).T
