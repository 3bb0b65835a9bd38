"""The decoder: embedding, layers of attention and experts, output."""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import index
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hunyuan_kernels as hk
from hunyuan_kernels.model.attention import Append, Attention, Positions, causal_mask
from hunyuan_kernels.model.cache import Fp8KeyValue, KeyValue, KeyValueCache
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.linear import Linear, linear
from hunyuan_kernels.model.moe import MoE
from hunyuan_kernels.model.norm import RMSNorm
from hunyuan_kernels.model.rope import rope_of


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

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config, config.owns_key_value(layer))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon)
        self.moe = MoE(config, layer)
        self.hidden_dropout = config.hidden_dropout

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        shared: KeyValue | Fp8KeyValue | None = None,
        append: Append | None = None,
        seed: int | None = None,
    ) -> tuple[Tensor, KeyValue | Fp8KeyValue, Tensor, hk.Routing]:
        """The layer's output, its keys and values, and of its router the logits ``[B * T, E]`` and the routing."""
        attended, key_value = self.attention(self.input_layernorm(x), positions, shared, append)
        if self.training:
            attended = F.dropout(attended, self.hidden_dropout)
        x = x + attended
        x, router_logits, routing = self.moe(self.post_attention_layernorm(x), residual=x, seed=seed)
        return x, key_value, router_logits, routing


class Decoder(nn.Module):
    """Hunyuan-Large's architecture at any size: ``Decoder(Config(...))``, ``Decoder(preset("hunyuan-a13b"))``.

    Weights are drawn from torch's default generator with a standard deviation of ``fan_in ** -0.5``; those that add to
    the residual stream are smaller by ``(2 num_layers) ** -0.5``, so that its variance does not grow with depth.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.empty(config.vocabulary_size, config.hidden_size))
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon)
        #: While training: layers keep their inputs alone, and compute the rest again for the backward pass.
        self.gradient_checkpointing = False
        #: Of weights that are kept in FP8: scales of weight and input by the published name of a layer.
        self.fp8_scales: dict[str, tuple[float, float]] = {}
        #: Whether :meth:`prepack` laid weights out.
        self.packed = False
        self.lm_head = None if config.tie_embeddings else nn.Parameter(torch.empty_like(self.embed_tokens))
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deviation = parameter.shape[-1] ** -0.5
                if name.endswith(("o_proj.weight", "experts_down", "shared_down")):
                    deviation *= (2 * config.num_layers) ** -0.5
                nn.init.normal_(parameter, std=deviation)

    def moe_layers(self) -> list[MoE]:
        """The mixtures of experts, first layer first."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    def train(self, mode: bool = True) -> "Decoder":
        """As for any module. Weights that are kept in FP8 are constants, all others learn.

        Raises:
            RuntimeError: weights that are packed, which gradients cannot pass; inputs that are rounded to FP8.
        """
        if mode and self.packed:
            raise RuntimeError(
                "Decoder: the weights are packed, for inference only; load the checkpoint again to train"
            )
        if mode and any(
            module.fp8 and module.fp8.input_scale is not None for module in self.modules() if isinstance(module, Linear)
        ):
            raise RuntimeError(
                "Decoder: the inputs of layers are rounded to e4m3 (fp8='static'), which has no gradient; load the "
                "checkpoint with fp8='none' to train what is not in FP8, or with fp8=None"
            )
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Values in FP8 mean nothing without their scales, which are not in there: refused before anything is loaded,
        strictly or not. The values that the model has already are fine."""
        lacking = [
            f"{prefix}{name}_scale"
            for name, own in self.named_parameters()
            if isinstance(given := state_dict.get(prefix + name), Tensor)
            and torch.float8_e4m3fn in (given.dtype, own.dtype)
            and not (given.dtype == own.dtype and torch.equal(given.view(torch.uint8), own.view(torch.uint8)))
        ]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise RuntimeError(
                f"Decoder: state_dict has other values than the model for weights in FP8 and lacks their scales: "
                f"{', '.join(lacking[:3])}{more}; checkpoints hold both: checkpoint.save(model, folder, 'fp8'), "
                "checkpoint.load(folder)"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def prepack(self) -> "Decoder":
        """Lays the weights out for their device's GEMMs, once and for good, one after the other; returns the model.

        For inference: a packed model cannot be trained or saved. Embedding, head and gates stay as they are, and so
        does a model that is packed already. A GPU has an order for weights in FP8 under inputs that are not; it reads
        all others as they are, and they stay so.

        Raises:
            ValueError: on a CPU, ``hidden_size``, ``intermediate_size`` or a projection's width is no multiple of 16.
        """
        on_cpu = self.embed_tokens.device.type == "cpu"
        sizes = {name: getattr(self.config, name) for name in ("hidden_size", "intermediate_size")}
        sizes["num_key_value_heads * head_dim"] = self.config.num_key_value_heads * self.config.head_dim
        for name, size in sizes.items():
            if on_cpu and size % 16:
                raise ValueError(f"Decoder: {name} is {size}; a multiple of 16 is required for prepack")
        if not self.packed:
            self.eval()
            changed = [module.prepack() for module in list(self.modules()) if isinstance(module, (Linear, MoE))]
            self.packed = any(changed)
        return self

    def make_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> KeyValueCache:
        """An empty cache beside the weights; of their dtype unless another is given."""
        dtype = self.embed_tokens.dtype if dtype is None else dtype
        return KeyValueCache(self.config, batch, capacity, dtype=dtype, device=self.embed_tokens.device)

    def _positions(self, tokens: Tensor, cache: KeyValueCache | None) -> Positions:
        count, dtype = tokens.shape[1], self.embed_tokens.dtype
        starts = [0] if cache is None else cache.lengths
        uniform = len(set(starts)) == 1
        if cache is not None and uniform and count == 1 and cache.length_after == starts[0] + 1:
            return Positions(cache.rope_of_token(starts[0], dtype), causal=False)  # no key comes after the only query
        steps = torch.arange(count, device=tokens.device)
        at = steps + starts[0] if uniform else steps + torch.tensor(starts, device=tokens.device).unsqueeze(1)
        rope = rope_of(self.config, at, dtype)
        if cache is None or (uniform and starts[0] == 0 and cache.length_after == count):
            return Positions(rope)
        return Positions(rope, causal_mask(at.expand(tokens.shape), cache.length_after))

    def _embed(self, tokens: Tensor, cache: KeyValueCache | None, num_tokens: Sequence[int] | None) -> Tensor:
        """Rows of the embedding. The arguments of a pass are checked here, before anything is computed or cached."""
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"Decoder: tokens is {tokens.dtype} {list(tokens.shape)}; required: int64 [B, T]")
        if cache is None and num_tokens is not None:
            raise ValueError(
                "Decoder: num_tokens goes with a cache; without one, later tokens change no earlier logits"
            )
        if cache is not None:
            if self.training or torch.is_grad_enabled():
                raise RuntimeError(
                    "Decoder: a cache has no gradients; call eval(), and the model under torch.no_grad()"
                )
            if cache.config != self.config:
                raise ValueError("Decoder: the cache is for another config; make_cache gives one for this model")
            counts = [tokens.shape[1]] * tokens.shape[0] if num_tokens is None else list(map(index, num_tokens))
            if len(counts) != tokens.shape[0] or not all(0 <= count <= tokens.shape[1] for count in counts):
                raise ValueError(
                    f"Decoder: num_tokens is {counts}; required: for each of {tokens.shape[0]} rows of tokens a number "
                    f"from 0 to {tokens.shape[1]}"
                )
            cache.begin(counts)
        try:
            return F.embedding(tokens, self.embed_tokens)
        except IndexError:
            raise ValueError(
                f"Decoder: tokens has numbers from {int(tokens.min())} to {int(tokens.max())}; allowed: 0 to "
                f"{self.config.vocabulary_size - 1}"
            ) from None

    def hidden(
        self,
        tokens: Tensor,
        *,
        seed: int | None = None,
        cache: KeyValueCache | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[hk.Routing]]:
        """The last layer's normalized output ``[B, T, H]``, with router logits and routings of all layers.

        Arguments as those of ``forward``.
        """
        x = self._embed(tokens, cache, num_tokens)
        positions = self._positions(tokens, cache)
        key_value: KeyValue | Fp8KeyValue | None = None
        router_logits, routings = [], []
        for i, layer in enumerate(self.layers):
            shared = None if self.config.owns_key_value(i) else key_value
            append = None if cache is None else partial(cache.append, i)
            layer_seed = None if seed is None else seed * self.config.num_layers + i
            arguments = (x, positions, shared, append, layer_seed)
            if self.gradient_checkpointing and self.training:
                x, key_value, logits, routing = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x, key_value, logits, routing = layer(*arguments)
            router_logits.append(logits)
            routings.append(routing)
        if cache is not None:
            cache.finish()
        return self.norm(x), router_logits, routings

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., vocabulary_size]``."""
        return linear(hidden, self.embed_tokens if self.lm_head is None else self.lm_head)

    def forward(
        self,
        tokens: Tensor,
        *,
        seed: int | None = None,
        cache: KeyValueCache | None = None,
        num_tokens: Sequence[int] | None = None,
    ) -> Output:
        """Logits of the token after each of ``tokens [B, T]`` (int64).

        ``seed`` makes recycling reproducible; every layer gets one of its own from it. None draws them. With a
        ``cache``, in inference alone, the tokens follow those that it holds and are added to it. Sequences of different
        lengths are padded at their end, with any token: ``num_tokens`` says how many of each row the cache takes.

        Raises:
            ValueError: tokens of another shape or dtype, or outside the vocabulary; a cache of another config or too
                small; numbers of tokens that do not fit. The cache then holds what it held.
            RuntimeError: a cache in training mode, or where gradients are recorded.
        """
        hidden, router_logits, routings = self.hidden(tokens, seed=seed, cache=cache, num_tokens=num_tokens)
        losses = [hk.load_balancing_loss(*of_layer) for of_layer in zip(router_logits, routings, strict=True)]
        return Output(self.logits(hidden), torch.stack(losses).mean(), routings)
