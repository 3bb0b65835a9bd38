"""Experts for transformers: ``register()``, then ``experts_implementation="hunyuan_kernels"``.

    import hunyuan_kernels.integrations.transformers as integration
    integration.register()
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="hunyuan_kernels")

Any model whose experts have transformers' interface: weights ``gate_up_proj [E, 2I, H]`` (gate, then up) and
``down_proj [E, H, I]``, used in place or laid out once by :func:`prepack`. Forward, backward, ``generate`` and
``torch.compile``. FP8 experts too, inference only.
"""

from typing import Any

import torch
from torch import Tensor, nn

import hunyuan_kernels as hk

NAME = "hunyuan_kernels"


def register() -> None:
    """Adds this implementation to transformers' experts interfaces; calling it again changes nothing.

    Raises:
        ModuleNotFoundError: transformers is missing, or older than its experts interfaces (5.23).
    """
    from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_forward)
    FP8ExpertsInterface.register(NAME, fp8_experts_forward)


def prepack(model: nn.Module) -> int:
    """Lays the weights of all experts out for the CPU, once and for good; returns how many layers it changed.

    For inference with few tokens on this implementation. The parameters are replaced (no second copy stays) by packed
    ones without gradient: such a model cannot be saved (``state_dict`` and ``save_pretrained`` raise a RuntimeError),
    trained, or run on another implementation. Layers that are packed already, FP8 experts, and layers on a GPU, which
    reads their weights as they are, stay so.

    Raises:
        ValueError: the model has no experts of this interface, uses another implementation, has hidden or intermediate
            columns that are no multiple of 16, or another dtype than bf16 and fp32. Nothing is changed then.
    """
    names = ("gate_up_proj", "down_proj")
    modules: list[Any] = list(model.modules())
    found = [m for m in modules if hasattr(m, "is_concatenated") and all(hasattr(m, name) for name in names)]
    if not found:
        raise ValueError(f"{NAME}: {type(model).__name__} has no experts with {' and '.join(names)}")
    for experts in found:
        _check(experts)
        if (implementation := experts.config._experts_implementation) != NAME:
            raise ValueError(f"{NAME}: the experts_implementation is {implementation!r}; set {NAME!r} before prepack")
    plain = [
        m
        for m in found
        if m.gate_up_proj.dim() == 3
        and m.gate_up_proj.dtype != torch.float8_e4m3fn
        and m.gate_up_proj.device.type == "cpu"
    ]
    for experts in plain:  # all are checked before the first one changes
        kind, (rows, hidden) = type(experts).__name__, experts.gate_up_proj.shape[1:]
        for columns, size in (("hidden", hidden), ("intermediate", rows // 2)):
            if size % 16:
                raise ValueError(
                    f"{NAME}: {kind} has {size} {columns} columns; a multiple of 16 is required for prepack"
                )
        if experts.gate_up_proj.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"{NAME}: {kind} has weights of {experts.gate_up_proj.dtype}; bfloat16 or float32 is required"
            )
    for experts in plain:
        for name in names:
            setattr(experts, name, nn.Parameter(hk.prepack(getattr(experts, name)), requires_grad=False))
        experts.register_state_dict_pre_hook(_refuse_state_dict)
    return len(plain)


def _refuse_state_dict(experts: nn.Module, prefix: str, _: bool) -> None:
    """save_pretrained would write weights in an order that no model reads."""
    name = prefix.removesuffix(".") or type(experts).__name__
    raise RuntimeError(
        f"{NAME}: the weights of {name} are packed by prepack and have no state_dict; save the model before prepack, "
        "or load it again"
    )


def _check(experts: Any) -> None:
    """Refuses experts of another form, before anything is computed."""
    required = {
        "has_gate": True,
        "has_bias": False,
        "has_post_expert_norm": False,
        "is_transposed": False,
        "is_concatenated": True,
    }
    for name, value in required.items():
        if getattr(experts, name) != value:
            raise ValueError(
                f"{NAME}: {type(experts).__name__}.{name} is {getattr(experts, name)}; {value} is required: choose "
                "another experts_implementation for this model"
            )


def _is_silu(function: Any) -> bool:
    from transformers.activations import SiLUActivation

    return isinstance(function, (nn.SiLU, SiLUActivation)) or function is torch.nn.functional.silu


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """``[T, H]`` tokens with ``[T, k]`` ids and weights to ``[T, H]``. Ids >= E (expert parallelism) have no expert."""
    from transformers.integrations.moe import _default_apply_gate

    _check(self)
    routing = hk.routing_from_ids(top_k_index, top_k_weights, self.num_experts)
    # Models with a gating of their own need not have an act_fn.
    if type(self)._apply_gate is _default_apply_gate and _is_silu(self.act_fn):
        y = hk.expert_mlp(hidden_states, routing, (self.gate_up_proj, self.down_proj))
    else:  # the model's own gating, between the two GEMMs
        rows = hk.dispatch(hidden_states, routing)
        gated = self._apply_gate(hk.grouped_gemm(rows, self.gate_up_proj, routing.expert_offsets))
        y = hk.grouped_gemm(gated, self.down_proj, routing.expert_offsets)
    return hk.combine(y, routing).to(hidden_states.dtype)


def fp8_experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """As :func:`experts_forward`, for transformers' ``FP8Experts``: e4m3 weights in blocks of 128 x 128 or per tensor.

    Scales are float32 or e8m0. Activations are quantized as they come (1 x 128) or, for the static scheme, with the
    largest of the stored scales.
    """
    _check(self)
    special = [name for name in ("gate_softcap", "swiglu_alpha", "limit") if getattr(self, name, None) is not None]
    if special or not _is_silu(self.act_fn):
        raise ValueError(f"{NAME}: FP8 experts with {special[0] if special else self.act_fn}; plain SwiGLU is required")
    if self.gate_up_proj.dtype != torch.float8_e4m3fn:
        raise ValueError(f"{NAME}: FP8 experts have weights of {self.gate_up_proj.dtype}; float8_e4m3fn is required")
    # float32 already, or powers of two in e8m0
    gate_up_scale, down_scale = (s.detach().float() for s in (self.gate_up_proj_scale_inv, self.down_proj_scale_inv))
    if self.block_size is None:
        gate_up_scale, down_scale = gate_up_scale.flatten(1), down_scale.flatten()
    elif tuple(self.block_size) != (128, 128) or self.intermediate_dim % 128:
        raise ValueError(
            f"{NAME}: FP8 experts have blocks of {tuple(self.block_size)} and {self.intermediate_dim} intermediate "
            "columns; (128, 128) and a multiple of 128 are required"
        )
    weights = (self.gate_up_proj.detach(), self.down_proj.detach(), gate_up_scale, down_scale)
    if self.activation_scheme == "static":
        static = (self.gate_up_proj_activation_scale.detach().max(), self.down_proj_activation_scale.detach().max())
        experts = hk.Fp8Experts(*weights, "static", *static)
    else:
        experts = hk.Fp8Experts(*weights, "block_1x128")
    routing = hk.routing_from_ids(top_k_index, top_k_weights, self.num_experts)
    return hk.combine(hk.expert_mlp(hidden_states, routing, experts), routing).to(hidden_states.dtype)
