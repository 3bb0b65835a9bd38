"""The routed experts of a layer, from someone else's ids and weights, beside what other libraries make of them.

What ``experts_implementation="hunyuan_kernels"`` computes in transformers, on weights as they are and as ``prepack``
lays them out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hunyuan_kernels as hk
from hunyuan_kernels.reference.moe import moe_from_routing
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.providers import (
    TRANSFORMERS_EXPERTS,
    load,
    refuse_copies,
    vllm_experts,
    vllm_packed,
    zentorch_experts,
    zentorch_weights,
)
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.grouped_gemm import EXPERT_PRODUCTS, make_weights
from hunyuan_kernels.testing.specs.moe import layer_magnitude


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a layer's experts, and what others make of them without a copy."""

    plain: hk.Experts

    @cached_property
    def packed(self) -> hk.Experts:
        """Laid out by ``prepack``, once."""
        return hk.Experts(*map(hk.prepack, self.plain))

    @cached_property
    def theirs(self) -> Any:
        """The experts of transformers' ``hunyuan_v1_moe``."""
        load("transformers")
        try:
            from transformers import HunYuanMoEV1Config
            from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Experts
        except ImportError as error:
            raise NotImplementedError(f"this transformers has no hunyuan_v1_moe: {error}") from None
        experts, hidden, intermediate = self.plain.down.shape
        config = HunYuanMoEV1Config(hidden_size=hidden, intermediate_size=intermediate, num_experts=experts)
        with torch.device("meta"):
            module = HunYuanMoEV1Experts(config)
        module.gate_up_proj = nn.Parameter(self.plain.gate_up, requires_grad=False)
        module.down_proj = nn.Parameter(self.plain.down, requires_grad=False)
        return module

    @cached_property
    def for_zentorch(self) -> hk.Experts:
        """Copies, which zentorch reorders."""
        return hk.Experts(*map(zentorch_weights, self.plain))

    @cached_property
    def for_vllm(self) -> hk.Experts:
        """In vLLM's layout."""
        return hk.Experts(*map(vllm_packed, self.plain))


def _make(
    tokens: int,
    experts: int,
    hidden: int,
    intermediate: int,
    top_k: int,
    dtype: torch.dtype,
    sentinels: bool,
    packed: bool,
    seed: int,
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    weights, ids = logits.softmax(1).topk(top_k)
    if sentinels:
        ids = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, experts)
    gate_up = make_weights((experts, 2 * intermediate, hidden), dtype, generator)
    layer = Weights(hk.Experts(gate_up, make_weights((experts, hidden, intermediate), dtype, generator)))
    if packed:
        layer.packed  # noqa: B018 (before anything is timed)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    return {"x": x, "expert_ids": ids, "weights": weights / weights.sum(1, keepdim=True), "experts": layer}


_CASES = [
    ("no tokens", 0, 8, 2, False),
    ("one token", 1, 8, 8, False),
    ("one expert", 20, 1, 1, False),
    ("more experts than tokens", 5, 33, 3, False),
    ("top 3", 90, 8, 3, False),
    ("experts elsewhere", 90, 8, 3, True),
]

# label, tokens, experts, H, I, k
_BENCH: dict[str | None, list[tuple[str, int, int, int, int, int]]] = {
    None: [("16 experts, k 8, T 64", 64, 16, 512, 512, 8)],
    "hunyuan-large": [("2 of 16 experts, T 1", 1, 2, 6400, 18304, 1)],
    "hunyuan-a13b": [(f"16 of 64 experts, k 8, T {t}", t, 16, 4096, 3072, 8) for t in (1, 8, 512)],
}


def _cases(packed: bool) -> list[Case]:
    return [
        Case(
            f"{label}, {str(dtype).removeprefix('torch.')}",
            partial(_make, tokens, experts, 96, 48, top_k, dtype, sentinels, packed),
        )
        for label, tokens, experts, top_k, sentinels in _CASES
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _bench_cases(packed: bool, preset: str | None) -> list[Case]:
    return [
        Case(
            f"{label}, H {hidden}, I {intermediate}, bfloat16",
            partial(_make, tokens, experts, hidden, intermediate, top_k, torch.bfloat16, False, packed),
        )
        for label, tokens, experts, hidden, intermediate, top_k in _BENCH[preset]
    ]


def _mlp(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: hk.Experts) -> Tensor:
    routing = hk.routing_from_ids(expert_ids, weights, experts.gate_up.shape[0])
    return hk.combine(hk.expert_mlp(x, routing, experts), routing)


def experts_from_ids(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
    """``routing_from_ids``, ``expert_mlp``, ``combine`` on weights as they are."""
    return _mlp(x, expert_ids, weights, experts.plain)


def experts_from_ids_packed(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
    """The same on weights of ``prepack``."""
    return _mlp(x, expert_ids, weights, experts.packed)


def _routing(arguments: Arguments) -> hk.Routing:
    """The assignments that a specification needs: those to experts that are here have a row."""
    ids, experts = arguments["expert_ids"], arguments["experts"].plain
    here = torch.where(ids < experts.gate_up.shape[0], 0, -1)
    return hk.Routing(ids, arguments["weights"], here, here, here, here, here, here)


def _reference(**arguments: Any) -> Tensor:
    routing = _routing(arguments)
    return moe_from_routing(
        arguments["x"], routing.expert_ids, routing.weights, routing.rows, arguments["experts"].plain
    )


def _compare(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    magnitude = layer_magnitude({"x": arguments["x"], "experts": arguments["experts"].plain}, _routing(arguments))
    return [compare_bounded("y", got, want, magnitude)]


def _work(arguments: Arguments) -> Work:
    x, ids, (gate_up, down) = arguments["x"], arguments["expert_ids"], arguments["experts"].plain
    one_expert = gate_up[0].numel() + down[0].numel()
    here = ids[ids < gate_up.shape[0]]
    weights = int(here.unique().numel()) * one_expert * down.element_size()
    return Work(2.0 * here.numel() * one_expert, float(weights + 2 * x.nbytes))


def _torch(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Assignments sorted by expert, ``multiply`` over the experts' rows, index_add."""

    def baseline(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
        gate_up, down = experts.plain
        ids = expert_ids.reshape(-1)
        ends = torch.bincount(ids, minlength=gate_up.shape[0] + 1)[: gate_up.shape[0]].cumsum(0)
        offsets = F.pad(ends, (1, 0)).int()
        order = ids.argsort(stable=True)[: int(offsets[-1])]  # experts that are elsewhere come last
        tokens = order // expert_ids.shape[1]
        gate, up = multiply(x.index_select(0, tokens), gate_up, offsets).chunk(2, dim=1)
        y = multiply(F.silu(gate) * up, down, offsets) * weights.reshape(-1, 1)[order].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, tokens, y)

    return baseline


def _zentorch(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
    return zentorch_experts(x, *experts.for_zentorch, weights, expert_ids)


def _vllm(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
    return vllm_experts(x, *experts.for_vllm, weights, expert_ids)


def _theirs(implementation: str) -> Callable[..., Tensor]:
    def baseline(x: Tensor, expert_ids: Tensor, weights: Tensor, experts: Weights) -> Tensor:
        refuse_copies(implementation, expert_ids.numel(), experts.plain.gate_up)
        module = experts.theirs
        module.config._experts_implementation = implementation
        return module(x, expert_ids, weights.to(x.dtype))

    return baseline


_PEERS = {
    "transformers": {f"transformers {name}": _theirs(name) for name in TRANSFORMERS_EXPERTS},
    "zentorch": {"zentorch fused_moe": _zentorch},
    "vllm": {"vllm cpu_fused_moe": _vllm},
}

SPECS = [
    OpSpec(
        name=function.__name__,
        stem="moe",
        function=function,
        reference=_reference,
        compare=_compare,
        cases=partial(_cases, packed),
        bench_cases=partial(_bench_cases, packed),
        work=_work,
        baselines={name: _torch(multiply) for name, multiply in EXPERT_PRODUCTS.items()},
        peers=_PEERS,
        on_cuda=on_cuda,
    )
    for function, packed, on_cuda in (
        (experts_from_ids, False, lambda arguments: arguments["x"].dtype == torch.bfloat16),
        (experts_from_ids_packed, True, lambda arguments: False),  # packed weights are for CPUs
    )
]
