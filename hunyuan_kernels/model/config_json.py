"""``config.json``, as it is published beside the weights."""

from typing import Any

from hunyuan_kernels.model.config import Config

_NUMBERS = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}

#: Parts that other members of the family have otherwise; the last four change what is computed and no tensor's shape.
_REQUIRED = {
    "use_qk_norm": True,
    "use_mixed_mlp_moe": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "position_embedding_xdrope": False,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "group_limited_greedy": False,
}


def config_to_json(config: Config) -> dict[str, Any]:
    """The published ``config.json`` of these sizes."""
    kept = {theirs: getattr(config, ours) for ours, theirs in _NUMBERS.items()}
    per_layer = {"num_experts": config.num_experts, "moe_topk": config.top_k}
    return {
        "architectures": ["HunYuanForCausalLM" if config.cla_share_factor > 1 else "HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan" if config.cla_share_factor > 1 else "hunyuan_v1_moe",
        **kept,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in per_layer.items()},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": config.cla_share_factor > 1,
        "cla_share_factor": config.cla_share_factor,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if config.rope_alpha == 1
        else {"type": "dynamic", "alpha": config.rope_alpha, "factor": 1.0},
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "hidden_act": "silu",
        "attention_bias": False,
    }


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Of the rotary embedding: plain, or with a dynamic alpha."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"checkpoint: config.json has rope_scaling {rope!r}; an object or null is required")
    kind = rope.get("rope_type", rope.get("type", "default"))
    alpha = rope.get("alpha")
    known = kind == "dynamic" if alpha else kind in ("default", "dynamic") and rope.get("factor", 1.0) == 1
    if not known:
        raise ValueError(
            f"checkpoint: config.json has rope_scaling {rope!r}; type 'default', or 'dynamic' with alpha, is required"
        )
    return rope


def _head_dim(values: dict[str, Any]) -> Any:
    """As stated, else the share of a head in the hidden size."""
    if values.get("head_dim") is not None:
        return values["head_dim"]
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if type(hidden) is not int or type(heads) is not int or heads < 1 or hidden % heads:
        raise ValueError(
            f"checkpoint: config.json has no head_dim, and hidden_size {hidden!r} with num_attention_heads {heads!r}; "
            "a multiple of the heads is required then"
        )
    return hidden // heads


def config_from_json(values: dict[str, Any]) -> Config:
    """The sizes that a published ``config.json`` states.

    Raises:
        ValueError: a size is missing, or the model has a part that this one has not.
    """
    missing = [theirs for theirs in (*_NUMBERS.values(), "num_experts") if theirs not in values]
    if missing:
        raise ValueError(f"checkpoint: config.json lacks {', '.join(missing)}")
    for name, value in _REQUIRED.items():
        if values.get(name) not in (None, value):
            raise ValueError(f"checkpoint: config.json has {name} {values[name]!r}; {value!r} is required")
    numbers = {ours: values[theirs] for ours, theirs in _NUMBERS.items()}
    layers = numbers["num_layers"]
    shared = values.get("num_shared_expert", 1)
    if any(n != 1 for n in (shared if isinstance(shared, list) else [shared])):
        raise ValueError(f"checkpoint: config.json has num_shared_expert {shared!r}; 1 is required")
    rope = _rope(values)

    def by_layer(name: str) -> int | tuple[int, ...]:
        value = values.get(name, 1)
        if not isinstance(value, list):
            return value
        return value[0] if len(value) == layers and all(n == value[0] for n in value) else tuple(value)

    top_k = by_layer("moe_topk")
    recycle = top_k == 1
    return Config(
        **numbers,
        num_key_value_heads=values.get("num_key_value_heads") or numbers["num_heads"],
        head_dim=_head_dim(values),
        num_experts=by_layer("num_experts"),
        top_k=top_k,
        capacity_factor=1.0 if recycle else None,
        overflow="recycle" if recycle else "drop",
        cla_share_factor=values.get("cla_share_factor", 1) if values.get("use_cla") else 1,
        rope_theta=values.get("rope_theta") or rope.get("rope_theta", 1e4),
        rope_alpha=rope.get("alpha") or 1.0,
        norm_epsilon=values.get("rms_norm_eps", 1e-5),
        tie_embeddings=values.get("tie_word_embeddings", False),
        attention_dropout=values.get("attention_dropout", 0.0),
    )
