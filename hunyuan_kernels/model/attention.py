"""Grouped-query attention with cross-layer sharing of keys and values."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunyuan_kernels.model.cache import KeyValue
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.rope import apply_rope

#: Takes keys and values of a pass, returns those of all passes: ``KeyValueCache.append`` of a layer.
Append = Callable[[Tensor, Tensor], KeyValue]


class Positions(NamedTuple):
    """Where the tokens of a pass stand: made once, used by all layers."""

    #: Of RoPE, :func:`hunyuan_kernels.model.rope.rope_tables` of the positions.
    rope: tuple[Tensor, Tensor]
    #: ``[B, 1, T, L]``, true where a query may look at a key; None: see ``causal``.
    mask: Tensor | None = None
    #: Without a mask: whether query i sees the keys up to i (all keys, if not).
    causal: bool = True


class Attention(nn.Module):
    """Causal attention: RoPE, then an RMSNorm over each head of queries and keys, then softmax(q k / sqrt(d)) v.

    A layer that does not own keys and values takes the projections of an earlier layer, with a key norm of its own.
    RoPE and the norm's division by the root mean square are the same for all layers that share; only the gain w
    differs, and ``q . (w k) = (w q) . k``. So keys are rotated and normalized once, where they are projected, and each
    layer multiplies its gain into the queries: a cache holds one key and one value for all layers that share them.

    Source: ``HunYuanAttention`` of Tencent's ``modeling_hunyuan.py`` (order of RoPE and norm included); cross-layer
    attention: arXiv 2405.12981.
    """

    def __init__(self, config: Config, owns_key_value: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.queries_width = config.num_heads * config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, self.queries_width, bias=False)
        if owns_key_value:
            self.k_proj = nn.Linear(config.hidden_size, key_value_width, bias=False)
            self.v_proj = nn.Linear(config.hidden_size, key_value_width, bias=False)
        self.o_proj = nn.Linear(self.queries_width, config.hidden_size, bias=False)
        self.query_layernorm = nn.RMSNorm(config.head_dim, config.norm_epsilon)
        self.key_layernorm = nn.RMSNorm(config.head_dim, config.norm_epsilon)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.head_dim))

    def _project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> KeyValue:
        """Keys, rotated and divided by their root mean square, and values: ``[B, heads, T, head_dim]`` each."""
        keys = F.rms_norm(apply_rope(self._heads(self.k_proj(x)), rope), (self.head_dim,), eps=self.key_layernorm.eps)
        return keys.transpose(1, 2), self._heads(self.v_proj(x)).transpose(1, 2)

    def forward(
        self, x: Tensor, positions: Positions, shared: KeyValue | None = None, append: Append | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x ``[B, T, H]`` to the same shape, beside the keys and values for the layers that share them.

        In a layer that owns keys and values, ``append`` puts the new ones into a cache and returns all that it holds.
        """
        if shared is None:
            shared = self._project(x, positions.rope)
            if append is not None:
                shared = append(*shared)
        key, value = shared
        q = self.query_layernorm(apply_rope(self._heads(self.q_proj(x)), positions.rope))
        q = (q * self.key_layernorm.weight).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q,
            key.to(q.dtype),
            value.to(q.dtype),
            attn_mask=positions.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=positions.mask is None and positions.causal,
            enable_gqa=q.shape[1] != key.shape[1],
        )
        return self.o_proj(out.transpose(1, 2).flatten(2)), shared


def causal_mask(positions: Tensor, length: int) -> Tensor:
    """``[B, 1, T, length]``: queries at ``positions [B, T]`` see the keys up to their own."""
    return (torch.arange(length, device=positions.device) <= positions.unsqueeze(-1)).unsqueeze(1)
