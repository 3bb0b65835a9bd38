"""The mixture-of-experts layer as a module."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hunyuan_kernels as hk
from hunyuan_kernels.model.config import Config
from hunyuan_kernels.model.linear import Fp8Holder, pack


class MoE(Fp8Holder):
    """1 shared and E routed SwiGLU experts: :func:`hunyuan_kernels.moe` with its weights.

    While training an expert takes ``ceil(capacity_factor * T * top_k / E)`` of the T tokens at most. In inference there
    is no capacity. ``fp8`` and ``shared_fp8``, when set, replace the routed and the shared experts: in inference, and
    with ``activations="none"`` also in training, as constants through which gradients pass. The weights that they
    replace have to be frozen then (``requires_grad_(False)``).
    """

    fp8_fields = ("fp8", "shared_fp8")

    def __init__(self, config: Config, layer: int = 0) -> None:
        super().__init__()
        self.config = config
        self.top_k = config.top_k_of(layer)
        hidden, intermediate, experts = config.hidden_size, config.intermediate_size, config.num_experts_of(layer)
        self.gate = nn.Parameter(torch.empty(experts, hidden))
        self.experts_gate_up = nn.Parameter(torch.empty(experts, 2 * intermediate, hidden))
        self.experts_down = nn.Parameter(torch.empty(experts, hidden, intermediate))
        self.shared_gate_up = nn.Parameter(torch.empty(2 * intermediate, hidden))
        self.shared_down = nn.Parameter(torch.empty(hidden, intermediate))
        self.fp8: hk.Fp8Experts | None = None
        self.shared_fp8: hk.Fp8Experts | None = None

    @property
    def experts(self) -> hk.Experts:
        return hk.Experts(self.experts_gate_up, self.experts_down)

    def capacity(self, tokens: int) -> int | None:
        """Rows of an expert at most, for so many tokens."""
        factor = self.config.capacity_factor
        if factor is None or not self.training:
            return None
        return min(tokens, math.ceil(factor * tokens * self.top_k / self.gate.shape[0]))

    def quantized_experts(self, activations: str = "none") -> hk.Fp8Experts:
        """The routed experts in FP8, to be set as ``fp8``. Gate and up are scaled apart.

        ``activations="none"`` quantizes the weights alone, with one scale for each matrix (as Hunyuan's published FP8
        checkpoints do); ``"block_1x128"`` weights in blocks of 128 x 128, and activations as they come.

        Raises:
            ValueError: other ``activations``.
        """
        recipes = {"none": "tensor", "block_1x128": "block_128x128"}
        if activations not in recipes:
            raise ValueError(f"MoE: activations is {activations!r}; allowed: {', '.join(map(repr, recipes))}")
        gate_up, down = (weights.detach() for weights in self.experts)
        halves = gate_up.unflatten(1, (2, -1)).flatten(0, 1)  # [2E, I, H]: a scale for gate and one for up
        gate_up_q, gate_up_scale = hk.quantize_fp8(halves, recipes[activations])
        down_q, down_scale = hk.quantize_fp8(down, recipes[activations])
        return hk.Fp8Experts(
            gate_up_q.view(gate_up.shape), down_q, gate_up_scale.unflatten(0, (-1, 2)), down_scale, activations
        )

    def prepack(self) -> bool:
        """Lays the weights out by :func:`pack`; for inference, and for good. Returns whether anything changed."""
        changed = False
        for kind, field in (("experts", "fp8"), ("shared", "shared_fp8")):
            fp8: hk.Fp8Experts | None = getattr(self, field)
            fp8_inputs = fp8 is not None and fp8.activations != "none"
            own: dict[str, Tensor] = {}  # of fp8
            for matrix in ("gate_up", "down"):
                name = f"{kind}_{matrix}"
                weight = self.get_parameter(name)
                packed = pack(weight, fp8_inputs)
                if packed is not weight:
                    setattr(self, name, nn.Parameter(packed, requires_grad=False))
                    changed = True
                if fp8 is None:
                    continue
                if packed.dtype != torch.float8_e4m3fn:  # FP8 ones beside the parameters
                    own[matrix] = pack(getattr(fp8, matrix), fp8_inputs)
                    changed |= own[matrix] is not getattr(fp8, matrix)
                else:
                    own[matrix] = packed.detach().unsqueeze(0) if kind == "shared" else packed.detach()
            if fp8 is not None:
                setattr(self, field, fp8._replace(gate_up=own["gate_up"], down=own["down"]))
        return changed

    def _check_trainable(self) -> None:
        for field, kind, fp8 in (("fp8", "experts", self.fp8), ("shared_fp8", "shared", self.shared_fp8)):
            if fp8 is None:
                continue
            if fp8.activations != "none":
                raise RuntimeError(
                    f"MoE: {field} has activations={fp8.activations!r}: what is rounded to e4m3 has no gradient; call "
                    f"eval(), set {field} to None, or use activations='none'"
                )
            for name in (f"{kind}_gate_up", f"{kind}_down"):
                if self.get_parameter(name).requires_grad:
                    raise RuntimeError(
                        f"MoE: {name} requires a gradient, but {field} computes in its place and has none; freeze it "
                        f"({name}.requires_grad_(False)), call eval(), or set {field} to None"
                    )

    def forward(self, x: Tensor, residual: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor, hk.Routing]:
        """x and residual ``[..., H]`` to ``residual + moe(x)``, the router's logits ``[T, E]``, and the routing.

        ``seed`` is that of recycling; None draws one.
        """
        if self.training:
            self._check_trainable()
        drop = self.training and self.config.hidden_dropout > 0
        y, logits, routing = hk.moe(
            x,
            self.gate,
            self.experts if self.fp8 is None else self.fp8,
            (self.shared_gate_up, self.shared_down) if self.shared_fp8 is None else self.shared_fp8,
            top_k=self.top_k,
            capacity=self.capacity(x.numel() // x.shape[-1]),
            overflow=self.config.overflow,
            seed=seed,
            residual=None if drop else residual,
            return_routing=True,
        )
        if drop:
            y = residual + F.dropout(y, self.config.hidden_dropout)
        return y, logits, routing
