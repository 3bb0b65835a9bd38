"""Grouped-query attention with cross-layer sharing of keys and values."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hunyuan_kernels as hk
from hunyuan_kernels.model.cache import Fp8KeyValue, KeyValue
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.linear import Linear
from hunyuan_kernels.model.norm import RMSNorm
from hunyuan_kernels.model.rope import apply_rope

#: Takes keys and values of a pass, returns those of all passes: ``KeyValueCache.append`` of a layer.
Append = Callable[[Tensor, Tensor], KeyValue | Fp8KeyValue]

#: Up to so many tokens of a pass, the heads that share keys and values are rows of one product: those are read once.
#: With more tokens, scores and masks of all heads would take more memory than torch's attention by blocks does.
FEW_TOKENS = 16


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
        #: Heads of what ``qkv_proj`` makes, in this order: queries, then keys and values where they are owned.
        self.queries, self.shared = config.num_heads, config.num_key_value_heads if owns_key_value else 0
        self.qkv_proj = Linear(config.hidden_size, (self.queries + 2 * self.shared) * config.head_dim)
        self.o_proj = Linear(self.queries * config.head_dim, config.hidden_size)
        self.query_layernorm = RMSNorm(config.head_dim, config.norm_epsilon)
        self.key_layernorm = RMSNorm(config.head_dim, config.norm_epsilon)

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        shared: KeyValue | Fp8KeyValue | None = None,
        append: Append | None = None,
    ) -> tuple[Tensor, KeyValue | Fp8KeyValue]:
        """x ``[B, T, H]`` to the same shape, beside the keys and values for the layers that share them.

        In a layer that owns keys and values, ``append`` puts the new ones into a cache and returns all that it holds.
        """
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        rotated = apply_rope(heads[..., : self.queries + self.shared, :], positions.rope)
        normalized = self.query_layernorm.normalize(rotated).transpose(1, 2)
        if shared is None:
            values = heads[..., self.queries + self.shared :, :].transpose(1, 2)
            shared = normalized[:, self.queries :], values
            if append is not None:
                shared = append(*shared)
        queries = normalized[:, : self.queries] * self.query_layernorm.weight * self.key_layernorm.weight
        out = attend(queries, shared, positions, self.dropout if self.training else 0.0)
        return self.o_proj(out.transpose(1, 2).flatten(2)), shared


def attend(queries: Tensor, shared: KeyValue | Fp8KeyValue, positions: Positions, dropout: float = 0.0) -> Tensor:
    """Queries ``[B, heads, T, d]`` over keys and values ``[B, fewer heads, L, d]``, to the shape of the queries."""
    mask, tokens = positions.mask, queries.shape[2]
    causal = mask is None and positions.causal
    if causal or tokens > FEW_TOKENS:
        keys, values = shared.expanded(queries.dtype) if isinstance(shared, Fp8KeyValue) else shared
        return F.scaled_dot_product_attention(
            queries,
            keys.to(queries.dtype),
            values.to(queries.dtype),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
    # Heads of the same keys and values stand one behind the other: [B, heads, T, d] is [B, groups, heads * T, d].
    rows = queries.reshape(queries.shape[0], shared[0].shape[1], -1, queries.shape[3])
    if mask is not None:
        mask = mask.repeat(1, 1, rows.shape[2] // tokens, 1)
    if isinstance(shared, Fp8KeyValue):
        out = _attend_fp8(rows, shared, mask)
    else:
        keys, values = (t.to(rows.dtype) for t in shared)
        out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, dropout_p=dropout)
    return out.reshape(queries.shape)


def _attend_fp8(rows: Tensor, shared: Fp8KeyValue, mask: Tensor | None) -> Tensor:
    """Attention for few rows ``[B, groups, R, d]``: two grouped GEMMs that read the cache as it is, in e4m3.

    A group is one head of keys and values of one sequence. Probabilities are rounded to the dtype of the rows.
    """
    batch, groups, count, width = rows.shape
    offsets = torch.arange(batch * groups + 1, dtype=torch.int32, device=rows.device) * count
    keys, values = (t.flatten(0, 1) for t in (shared.keys, shared.values))  # [B * groups, L, d], no copies
    key_scale, value_scale = (t.flatten() for t in (shared.key_scale, shared.value_scale))
    scaled = (rows * width**-0.5).flatten(0, 2)
    scores = hk.grouped_gemm_fp8(scaled, keys, offsets, None, key_scale, out_dtype=torch.float32)
    if mask is not None:
        scores = scores.view(batch, groups, count, -1).masked_fill(~mask, float("-inf")).flatten(0, 2)
    probabilities = scores.softmax(-1).to(rows.dtype)
    out = hk.grouped_gemm_fp8(probabilities, values.mT, offsets, None, value_scale, out_dtype=rows.dtype)
    return out.view(rows.shape)


def causal_mask(positions: Tensor, length: int) -> Tensor:
    """``[B, 1, T, length]``: queries at ``positions [B, T]`` see the keys up to their own."""
    return (torch.arange(length, device=positions.device) <= positions.unsqueeze(-1)).unsqueeze(1)
