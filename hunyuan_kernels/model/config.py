"""Sizes of the decoder."""

from dataclasses import dataclass, fields, replace

_WHOLE = (
    "vocabulary_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "top_k",
    "cla_share_factor",
)
_POSITIVE = ("rope_theta", "rope_alpha", "norm_epsilon")
_LARGEST = 2**31 - 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Config:
    """Sizes of a Hunyuan-style decoder; the defaults are those of a byte-level model that trains on a CPU.

    Raises:
        ValueError: sizes that do not fit together.
    """

    vocabulary_size: int = 256
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    #: Grouped-query attention: this many heads of keys and values serve all heads of queries.
    num_key_value_heads: int = 2
    head_dim: int = 32
    #: Of each routed expert and of the shared one.
    intermediate_size: int = 128
    num_experts: int | tuple[int, ...] = 16
    #: Routed experts of each token. As ``num_experts``, one number for all layers or one for each.
    top_k: int | tuple[int, ...] = 1
    #: While training an expert takes at most this multiple of an even share of the assignments; None: no limit. In
    #: inference there is none.
    capacity_factor: float | None = 1.0
    #: What happens to assignments past the capacity: ``"recycle"`` or ``"drop"``.
    overflow: str = "recycle"
    #: Cross-layer attention: so many consecutive layers share the keys and values of the first of them; 1: none do.
    cla_share_factor: int = 2
    rope_theta: float = 1e4
    #: "Dynamic alpha": stretches the rotary base for contexts longer than those trained on; 1: plain RoPE.
    rope_alpha: float = 1.0
    norm_epsilon: float = 1e-5
    #: Whether the output projection is the embedding.
    tie_embeddings: bool = True
    #: Probabilities, while training: of dropping an attention weight, and an element of what a block adds to the
    #: residual stream.
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if field.name in _WHOLE and not all(type(n) is int and 1 <= n <= _LARGEST for n in numbers):
                raise ValueError(f"Config: {field.name} is {value!r}; an integer from 1 to {_LARGEST} is required")
            # Within these bounds theta * alpha ** (d / (d - 2)) neither overflows nor vanishes.
            if field.name in _POSITIVE and not (_is_number(value) and 1e-100 <= value <= 1e100):
                raise ValueError(f"Config: {field.name} is {value!r}; a positive number, 1e-100 to 1e100, is required")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"Config: num_heads is {self.num_heads}; a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}, is required"
            )
        if self.head_dim % 2 or self.head_dim < 4:
            raise ValueError(f"Config: head_dim is {self.head_dim}; an even number from 4 on is required (RoPE)")
        for name in ("num_experts", "top_k"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.num_layers:
                raise ValueError(f"Config: {name} has {len(value)} numbers; one for each of {self.num_layers} layers")
        by_layer = isinstance(self.num_experts, tuple) or isinstance(self.top_k, tuple)
        for layer in range(self.num_layers if by_layer else 1):
            if self.top_k_of(layer) > self.num_experts_of(layer):
                raise ValueError(f"Config: top_k is {self.top_k}; at most num_experts, {self.num_experts}, is allowed")
        for name in ("attention_dropout", "hidden_dropout"):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                raise ValueError(f"Config: {name} is {getattr(self, name)!r}; a probability below 1 is required")
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"Config: tie_embeddings is {self.tie_embeddings!r}; True or False is required")
        factor = self.capacity_factor
        if factor is not None and not (_is_number(factor) and 0 < factor <= _LARGEST):
            raise ValueError(
                f"Config: capacity_factor is {factor!r}; a positive number up to {_LARGEST} or None is allowed"
            )
        if self.overflow not in ("recycle", "drop"):
            raise ValueError(f"Config: overflow is {self.overflow!r}; allowed: 'recycle', 'drop'")

    def num_experts_of(self, layer: int) -> int:
        return self.num_experts[layer] if isinstance(self.num_experts, tuple) else self.num_experts

    def top_k_of(self, layer: int) -> int:
        return self.top_k[layer] if isinstance(self.top_k, tuple) else self.top_k

    def owns_key_value(self, layer: int) -> bool:
        """Whether the layer projects keys and values of its own, instead of reusing those of an earlier one."""
        return layer % self.cla_share_factor == 0

    def key_value_bytes_per_token(self, element_size: int = 2) -> int:
        """Of the cache: keys and values of the layers that own them."""
        owners = sum(self.owns_key_value(layer) for layer in range(self.num_layers))
        return 2 * self.num_key_value_heads * self.head_dim * owners * element_size

    def _parameters(self, active: bool) -> int:
        attention = 2 * self.hidden_size * self.num_heads * self.head_dim + 2 * self.head_dim
        key_value = 2 * self.hidden_size * self.num_key_value_heads * self.head_dim
        expert = 3 * self.hidden_size * self.intermediate_size
        total = ((1 if self.tie_embeddings else 2) * self.vocabulary_size + 1) * self.hidden_size
        for layer in range(self.num_layers):
            experts = self.top_k_of(layer) if active else self.num_experts_of(layer)
            gate, norms = self.num_experts_of(layer) * self.hidden_size, 2 * self.hidden_size
            total += attention + self.owns_key_value(layer) * key_value + norms + gate + (experts + 1) * expert
        return total

    @property
    def num_parameters(self) -> int:
        """All parameters; an embedding tied to the output counts once."""
        return self._parameters(active=False)

    @property
    def num_active_parameters(self) -> int:
        """Those that one token passes through: ``top_k`` of the routed experts."""
        return self._parameters(active=True)


_LARGE = Config(
    vocabulary_size=129024,
    hidden_size=6400,
    num_layers=64,
    num_heads=80,
    num_key_value_heads=8,
    head_dim=80,
    intermediate_size=18304,
    rope_alpha=1e3,
)

#: The published models, and a small one. Sources: the ``config.json`` of Tencent-Hunyuan-Large and Hunyuan-A13B.
PRESETS = {
    "hunyuan-large": _LARGE,
    "hunyuan-large-pretrain": replace(_LARGE, vocabulary_size=128512, rope_alpha=1e5),
    "hunyuan-a13b": Config(
        vocabulary_size=128167,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        num_experts=64,
        top_k=8,
        capacity_factor=None,
        overflow="drop",
        cla_share_factor=1,
        rope_alpha=1e3,
    ),
    "small": Config(),
}


def preset(name: str) -> Config:
    """The sizes of a model by its name.

    Raises:
        ValueError: no such name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: name is {name!r}; allowed: {', '.join(map(repr, PRESETS))}")
    return PRESETS[name]
