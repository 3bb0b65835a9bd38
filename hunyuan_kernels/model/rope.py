"""Rotary position embedding with Hunyuan's dynamic alpha."""

import torch
from torch import Tensor

from hunyuan_kernels.model.config import Config


def rope_tables(positions: Tensor, head_dim: int, *, theta: float = 1e4, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Cosines and sines of the rotation angles at ``positions [...]``, fp32 ``[..., head_dim]`` each.

    .. math:: \mathrm{base} = \theta\,\alpha^{d/(d-2)}, \qquad
        \mathrm{angle}_{p,i} = p\,\mathrm{base}^{-2i/d} \quad (i = 0 \dots d/2 - 1),

    both halves of the last dimension alike; :math:`\alpha = 1` is plain RoPE. Source:
    ``HunYuanDynamicNTKAlphaRotaryEmbedding`` of Tencent's ``modeling_hunyuan.py``. Angles are formed in fp64: at
    position 2^17 those of fp32 are off by up to 2^-7.
    """
    base = theta * alpha ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions.double().unsqueeze(-1) * base**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


def rope_of(config: Config, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`rope_tables` of a model."""
    cos, sin = rope_tables(positions, config.head_dim, theta=config.rope_theta, alpha=config.rope_alpha)
    return cos.to(dtype), sin.to(dtype)


def apply_rope(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates ``x [..., length, heads, head_dim]`` by position: element i is paired with ``i + head_dim / 2``."""
    cos, sin = (table.to(x.dtype).unsqueeze(-2) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)
