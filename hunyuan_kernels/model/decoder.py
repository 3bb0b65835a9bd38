"""The decoder: embedding, layers of attention and experts, tied output."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hunyuan_kernels as hk
from hunyuan_kernels.model.attention import Attention, KeyValue
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.moe import MoE
from hunyuan_kernels.model.rope import rope_tables


class Output(NamedTuple):
    """What a pass through the decoder gives."""

    #: ``[B, T, vocabulary_size]``
    logits: Tensor
    #: Scalar: mean over the layers, 1 when the experts of each layer are chosen evenly.
    balance_loss: Tensor
    #: One of each layer.
    routings: list[hk.Routing]


class Layer(nn.Module):
    """``h = x + attention(norm(x))``, ``h + moe(norm(h))``."""

    def __init__(self, config: Config, owns_key_value: bool) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config, owns_key_value)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        self.moe = MoE(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], shared: KeyValue | None, seed: int | None
    ) -> tuple[Tensor, KeyValue, Tensor, hk.Routing]:
        attended, key_value = self.attention(self.input_layernorm(x), rope, shared)
        x = x + attended
        x, balance_loss, routing = self.moe(self.post_attention_layernorm(x), residual=x, seed=seed)
        return x, key_value, balance_loss, routing


class Decoder(nn.Module):
    """Hunyuan-Large's architecture at any size: ``Decoder(Config(...))``.

    Weights are drawn from torch's default generator with a standard deviation of ``fan_in ** -0.5``; those that add to
    the residual stream are smaller by ``(2 num_layers) ** -0.5``, so that its variance does not grow with depth.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.empty(config.vocabulary_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config, config.owns_key_value(i)) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deviation = parameter.shape[-1] ** -0.5
                if name.endswith(("o_proj.weight", "experts_down", "shared_down")):
                    deviation *= (2 * config.num_layers) ** -0.5
                nn.init.normal_(parameter, std=deviation)

    def moe_layers(self) -> list[MoE]:
        """The mixtures of experts, first layer first."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def forward(self, tokens: Tensor, *, seed: int | None = None) -> Output:
        """Logits of the token after each of ``tokens [B, T]`` (int64).

        ``seed`` makes recycling reproducible; every layer gets one of its own from it. None draws them.
        """
        x = F.embedding(tokens, self.embed_tokens)
        rope = rope_tables(
            tokens.shape[1],
            self.config.head_dim,
            theta=self.config.rope_theta,
            alpha=self.config.rope_alpha,
            device=tokens.device,
        )
        key_value: KeyValue | None = None
        balance_losses, routings = [], []
        for i, layer in enumerate(self.layers):
            shared = None if self.config.owns_key_value(i) else key_value
            layer_seed = None if seed is None else seed * self.config.num_layers + i
            x, key_value, balance_loss, routing = layer(x, rope, shared, layer_seed)
            balance_losses.append(balance_loss)
            routings.append(routing)
        logits = F.linear(self.norm(x), self.embed_tokens)
        return Output(logits, torch.stack(balance_losses).mean(), routings)
