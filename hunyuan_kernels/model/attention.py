"""Grouped-query attention with cross-layer sharing of keys and values."""

import torch.nn.functional as F
from torch import Tensor, nn

from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.rope import apply_rope

#: Keys and values as projected, ``[B, T, num_key_value_heads, head_dim]`` each: before RoPE and norm.
KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal attention: RoPE, then an RMSNorm over each head of queries and keys, then softmax(q k / sqrt(d)) v.

    A layer that does not own keys and values takes the raw projections of an earlier layer, and applies RoPE and its
    own norm to the keys. Source: ``HunYuanAttention`` of Tencent's ``modeling_hunyuan.py`` (order of RoPE and norm
    included); cross-layer attention: arXiv 2405.12981.
    """

    def __init__(self, config: Config, owns_key_value: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
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

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], shared: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x ``[B, T, H]`` to the same shape, beside the raw keys and values for the layers that share them."""
        key_value = (self._heads(self.k_proj(x)), self._heads(self.v_proj(x))) if shared is None else shared
        key, value = key_value
        q = self.query_layernorm(apply_rope(self._heads(self.q_proj(x)), rope))
        k = self.key_layernorm(apply_rope(key, rope))
        q, k, v = (t.transpose(1, 2) for t in (q, k, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(out.transpose(1, 2).flatten(2)), key_value
