"""Sizes of the decoder."""

from dataclasses import dataclass, fields


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
    num_experts: int = 16
    top_k: int = 1
    #: While training an expert takes at most this multiple of an even share of the assignments; None: no limit. In
    #: inference there is none.
    capacity_factor: float | None = 1.0
    #: What happens to assignments past the capacity: ``"recycle"`` or ``"drop"``.
    overflow: str = "recycle"
    #: Cross-layer attention: so many consecutive layers share the keys and values of the first of them; 1: none do.
    cla_share_factor: int = 2
    rope_theta: float = 1e4
    #: Stretches the rotary base for contexts longer than those trained on; 1: not at all.
    rope_alpha: float = 1.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"Config: {field.name} is {value}; at least 1 is required")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"Config: num_heads is {self.num_heads}; a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}, is required"
            )
        if self.head_dim % 2 or self.head_dim < 4:
            raise ValueError(f"Config: head_dim is {self.head_dim}; an even number from 4 on is required (RoPE)")
        if self.top_k > self.num_experts:
            raise ValueError(f"Config: top_k is {self.top_k}; at most num_experts, {self.num_experts}, is allowed")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(f"Config: capacity_factor is {self.capacity_factor}; a positive number or None is allowed")
        if self.overflow not in ("recycle", "drop"):
            raise ValueError(f"Config: overflow is {self.overflow!r}; allowed: 'recycle', 'drop'")

    def owns_key_value(self, layer: int) -> bool:
        """Whether the layer projects keys and values of its own, instead of reusing those of an earlier one."""
        return layer % self.cla_share_factor == 0

    def _parameters(self, experts_per_layer: int) -> int:
        attention = 2 * self.hidden_size * self.num_heads * self.head_dim + 2 * self.head_dim
        key_value = 2 * self.hidden_size * self.num_key_value_heads * self.head_dim
        expert = 3 * self.hidden_size * self.intermediate_size
        gate, norms = self.num_experts * self.hidden_size, 2 * self.hidden_size
        layer = attention + norms + gate + (experts_per_layer + 1) * expert  # 1 shared
        owners = sum(self.owns_key_value(i) for i in range(self.num_layers))
        return (self.vocabulary_size + 1) * self.hidden_size + self.num_layers * layer + owners * key_value

    @property
    def num_parameters(self) -> int:
        """All parameters; the embedding counts once, being tied to the output."""
        return self._parameters(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """Those that one token passes through: ``top_k`` of the routed experts."""
        return self._parameters(self.top_k)
