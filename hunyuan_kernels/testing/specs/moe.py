"""Cases, bound and baselines of the stem ``moe``: the whole layer, and the row movements of a layer by themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import dispatch as dispatch_reference
from hunyuan_kernels.reference import fp8_gemm as fp8_reference
from hunyuan_kernels.reference import nf4_gemm as nf4_reference
from hunyuan_kernels.reference import routing as routing_reference
from hunyuan_kernels.reference.moe import moe_from_routing
from hunyuan_kernels.reference.quantize import quantize_fp8
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.dispatch import BENCH_LAYOUTS, LAYOUTS, Layout, gather_and_sum
from hunyuan_kernels.testing.specs.fp8_gemm import OUTPUT_UNITS
from hunyuan_kernels.testing.specs.grouped_gemm import EXPERT_PRODUCTS, make_weights
from hunyuan_kernels.testing.specs.routing import index_based_route, make_logits, naive_one_hot_route

E4M3 = torch.float8_e4m3fn
HIDDEN, INTERMEDIATE = 96, 40


def make_layer(
    tokens: int,
    experts: int,
    hidden: int,
    intermediate: int,
    dtype: torch.dtype,
    quantized: str | None,
    dense: tuple[str, ...],
    options: Arguments,
    seed: int,
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        return make_weights((shape[0], shape[1], shape[2]), dtype, generator)

    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    gate_up, down = weights(experts, 2 * intermediate, hidden), weights(experts, hidden, intermediate)
    arguments: Arguments = {
        "x": x,
        "gate": torch.randn(experts, hidden, generator=generator) / hidden**0.5,
        "experts": hk.Experts(gate_up, down) if quantized is None else _quantized(gate_up, down, quantized),
        **options,
    }
    if "shared" in dense:
        arguments["shared"] = hk.SharedExpert(
            weights(1, 2 * intermediate, hidden)[0], weights(1, hidden, intermediate)[0]
        )
    if "residual" in dense:
        arguments["residual"] = torch.randn(tokens, hidden, generator=generator).to(dtype)
    return arguments


def _quantized(gate_up: Tensor, down: Tensor, activations: str) -> hk.Fp8Experts | hk.Nf4Experts:
    """NF4 for "NF4", or FP8: scales as published (gate and up apart), or blocks with fresh activation scales."""
    if activations == "NF4":
        return hk.Nf4Experts(hk.quantize_nf4(gate_up), hk.quantize_nf4(down))
    experts, rows, hidden = gate_up.shape
    recipe = "block_128x128" if activations == "block_1x128" else "tensor"
    q, scale = hk.quantize_fp8(gate_up.reshape(experts * 2, rows // 2, hidden), recipe)
    q_down, down_scale = hk.quantize_fp8(down, recipe)
    # Nothing saturates: the specification does not round.
    static = torch.tensor(16.0 / 448) if activations == "static" else None
    gate_up_scale = scale.reshape(experts, 2, *scale.shape[1:])
    return hk.Fp8Experts(q.reshape(gate_up.shape), q_down, gate_up_scale, down_scale, activations, static, static)


_CASES: list[tuple[str, int, int, Arguments]] = [
    ("no tokens", 0, 8, {}),
    ("one token", 1, 8, {}),
    ("one expert", 20, 1, {}),
    ("more experts than tokens", 5, 33, {}),
    ("top 1", 90, 8, {}),
    ("recycled", 90, 8, {"capacity": 12, "seed": 3}),
    ("some dropped", 90, 8, {"capacity": 5, "seed": 3}),
    ("all dropped", 90, 8, {"capacity": 0, "seed": 3}),
    ("overflow dropped", 90, 8, {"capacity": 12, "overflow": "drop"}),
    ("top 3", 90, 8, {"top_k": 3}),
    (
        "top 3, capacity, padding",
        90,
        8,
        {"top_k": 3, "capacity": 20, "overflow": "drop", "num_tokens": torch.tensor([70], dtype=torch.int32)},
    ),
]


def _cases() -> list[Case]:
    cases = []
    for label, tokens, experts, options in _CASES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{label}, {str(dtype).removeprefix('torch.')}"
            for dense in ((), ("shared", "residual")):
                make = partial(make_layer, tokens, experts, HIDDEN, INTERMEDIATE, dtype, None, dense, options)
                cases.append(Case(", ".join([name, *dense]), make))
            for fp8 in ("none", "static", "block_1x128") if dtype == torch.bfloat16 else ():
                make = partial(make_layer, tokens, experts, 200, 130, dtype, fp8, (), options)
                cases.append(Case(f"{name}, FP8 experts, activations {fp8}", make))
            make = partial(make_layer, tokens, experts, 128, 64, dtype, "NF4", (), options)
            cases.append(Case(f"{name}, NF4 experts", make))
    return cases


# ---- specification --------------------------------------------------------------------------------------------------


def _route(arguments: Arguments) -> hk.Routing:
    """As the specification routes the logits that the layer computes."""
    x, gate = arguments["x"], arguments["gate"]
    names = ("capacity", "overflow", "seed", "num_tokens")
    options = {name: arguments[name] for name in names if name in arguments}
    return routing_reference.route(F.linear(x.to(gate.dtype), gate), arguments.get("top_k", 1), **options)


def _exact_operands(arguments: Arguments) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The routed experts' input and weights in fp64: what FP8 operands stand for."""
    x, experts = arguments["x"], arguments["experts"]
    if isinstance(experts, hk.Nf4Experts):
        return x.double(), (nf4_reference.dequantize_nf4(experts.gate_up), nf4_reference.dequantize_nf4(experts.down))
    if not isinstance(experts, hk.Fp8Experts):
        return x.double(), (experts.gate_up.double(), experts.down.double())
    gate_up = fp8_reference.dequantize_weights(experts.gate_up, experts.gate_up_scale, halves=True)
    down = fp8_reference.dequantize_weights(experts.down, experts.down_scale)
    if experts.activations == "none":
        return x.double(), (gate_up, down)
    recipe = "tensor" if experts.activations == "static" else "block_1x128"
    return fp8_reference.dequantize_activations(*quantize_fp8(x, recipe, experts.input_scale)), (gate_up, down)


def reference_moe(**arguments: Any) -> Tensor:
    """The layer in fp64. FP8 inputs and weights are taken for what they stand for; nothing else is rounded."""
    routing = _route(arguments)
    x, experts = _exact_operands(arguments)
    out = moe_from_routing(x, routing.expert_ids, routing.weights, routing.rows, experts)
    if (shared := arguments.get("shared")) is not None:  # reads the unquantized input
        everyone = torch.zeros(x.shape[0], 1, dtype=torch.int64)
        weights = (shared.gate_up.double()[None], shared.down.double()[None])
        out = out + moe_from_routing(arguments["x"].double(), everyone, everyone + 1.0, everyone, weights)
    return out if (residual := arguments.get("residual")) is None else out + residual.double()


def _mlp_magnitude(
    x: Tensor, gate_up: Tensor, down: Tensor, hidden_units: float, out_units: float, step: Tensor | float = 0.0
) -> Tensor:
    """What one expert's rounding errors are proportional to: those of two GEMMs, SwiGLU, the hidden activation
    (``hidden_units |h| + step``) and the output (``out_units |y|``), and of the weight that y is multiplied with."""
    gate, up = (x @ gate_up.T).chunk(2, dim=1)
    gate_sum, up_sum = (x.abs() @ gate_up.abs().T).chunk(2, dim=1)
    hidden = F.silu(gate) * up
    error = 1.1 * up.abs() * gate_sum + F.silu(gate).abs() * up_sum + (1.0 + hidden_units) * hidden.abs() + step
    return (error + hidden.abs()) @ down.abs().T + (8.0 + out_units) * (hidden @ down.T).abs()


def _hidden_step(x: Tensor, gate_up: Tensor, experts: hk.Fp8Experts) -> Tensor:
    """The unit of e4m3's subnormal numbers for the hidden activation of rows x, under the static or a fresh scale."""
    scale = experts.intermediate_scale
    if scale is None:
        gate, up = (x @ gate_up.T).chunk(2, dim=1)
        _, fresh = quantize_fp8((F.silu(gate) * up).float(), "block_1x128")
        scale = fp8_reference.spread(fresh, gate.shape[0], gate.shape[1], 1)
    return OUTPUT_UNITS[E4M3] * 2.0**-6 * scale.double()


def layer_magnitude(arguments: Arguments, routing: hk.Routing) -> Tensor:
    """What the rounding errors of ``x`` through ``experts`` (and ``shared``, ``residual``) are proportional to."""
    x, experts, units = arguments["x"].double(), arguments["experts"], OUTPUT_UNITS[arguments["x"].dtype]
    total = torch.zeros_like(x)
    if (shared := arguments.get("shared")) is not None:
        total += _mlp_magnitude(x, shared.gate_up.double(), shared.down.double(), units, units)
    if (residual := arguments.get("residual")) is not None:
        total += residual.double().abs()
    inputs, (gate_up, down) = _exact_operands(arguments)
    quantized = isinstance(experts, hk.Fp8Experts) and experts.activations != "none"
    hidden_units = OUTPUT_UNITS[E4M3] if quantized else units
    for e in range(gate_up.shape[0]):
        token, choice = torch.nonzero((routing.expert_ids == e) & (routing.rows >= 0), as_tuple=True)
        rows, weights = inputs[token], routing.weights[token, choice, None].double()
        step = _hidden_step(rows, gate_up[e], experts) if quantized else 0.0
        total.index_add_(0, token, weights * _mlp_magnitude(rows, gate_up[e], down[e], hidden_units, units, step))
    return total


def _compare(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_bounded("y", got, want, layer_magnitude(arguments, _route(arguments)))]


# ---- row movements --------------------------------------------------------------------------------------------------


def _movement_arguments(layout: Layout, hidden: int, dtype: torch.dtype, seed: int) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    return {
        "logits": make_logits(layout.tokens, layout.experts, layout.skew, torch.float32, seed),
        "x": torch.randn(layout.tokens, hidden, generator=generator).to(dtype),
        "top_k": layout.top_k,
        "capacity": layout.capacity,
        "overflow": "recycle" if layout.top_k == 1 else "drop",
        "seed": seed,
    }


def _movement_case(layout: Layout, hidden: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    label = f"{layout.label}, H {hidden}, {str(dtype).removeprefix('torch.')}"
    return Case(label, partial(_movement_arguments, layout, hidden, dtype))


def _movement_cases() -> list[Case]:
    dtypes = (torch.bfloat16, torch.float32)
    # The last one is more than one block of the routing kernel, and experts of more than one warp.
    layouts = [*LAYOUTS, Layout("recycled, many tokens", 600, 40, capacity=15, skew="zipf")]
    return [_movement_case(layout._replace(padding=0), 33, dtype) for layout in layouts for dtype in dtypes]


def _movement_bench_cases(preset: str | None) -> list[Case]:
    hidden, layouts = BENCH_LAYOUTS[preset]
    extra = [] if preset else [_movement_case(BENCH_LAYOUTS["hunyuan-large"][1][-1], 4096)]
    return [_movement_case(layout, hidden) for layout in layouts] + extra


def route_dispatch_combine(logits: Tensor, x: Tensor, top_k: int, **options: Any) -> Tensor:
    """The layer around experts that return their input: `route`, `dispatch`, `combine`."""
    routing = hk.route(logits, top_k, **options)
    return hk.combine(hk.dispatch(x, routing), routing)


def _reference_movement(logits: Tensor, x: Tensor, top_k: int, **options: Any) -> Tensor:
    routing = routing_reference.route(logits, top_k, **options)
    return dispatch_reference.combine(dispatch_reference.dispatch(x, routing), routing)


def _compare_movement(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    logits = arguments["logits"].double()
    spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True) if logits.numel() else 0.0
    sizes = {**arguments, "x": arguments["x"].abs()}
    # each weight errs by its softmax's rounding, which grows with the spread of the logits
    return [compare_bounded("out", got, want, (2.0 + spread) * _reference_movement(**sizes))]


def _movement_work(arguments: Arguments) -> Work:
    x, logits, top_k = arguments["x"], arguments["logits"], arguments["top_k"]
    tokens, experts = logits.shape
    rows = tokens * top_k if arguments["capacity"] is None else min(tokens * top_k, experts * arguments["capacity"])
    moved = (2 * tokens + 2 * rows) * x.shape[1] * x.element_size()
    return Work(flops=0.0, bytes=moved + logits.numel() * logits.element_size() + 36.0 * rows)


def _index_based_rows(logits: Tensor, top_k: int, options: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted assignments that have a row, weights, offsets."""
    _, weights, order, offsets = index_based_route(logits, top_k, **options)
    return order[: int(offsets[-1])], weights, offsets


def _movement_by_gathers(logits: Tensor, x: Tensor, top_k: int, **options: Any) -> Tensor:
    order, weights, offsets = _index_based_rows(logits, top_k, options)
    rows = x.index_select(0, order % max(1, x.shape[0]))
    inverse = torch.full((top_k * x.shape[0],), -1).index_put((order,), torch.arange(order.numel()))
    routing = hk.Routing(order, weights, inverse.view(top_k, -1).t(), order, offsets, order, order, order)
    return gather_and_sum(rows, routing)


def _add_to_tokens(rows: Tensor, order: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    return out.index_add_(0, order % max(1, out.shape[0]), rows * weights.t().flatten()[order, None].to(rows))


def _movement_by_index_add(logits: Tensor, x: Tensor, top_k: int, **options: Any) -> Tensor:
    order, weights, _ = _index_based_rows(logits, top_k, options)
    rows = x.index_select(0, order % max(1, x.shape[0]))
    return _add_to_tokens(rows, order, weights, torch.zeros_like(x))


def _naive_movement(logits: Tensor, x: Tensor, top_k: int, **options: Any) -> Tensor:
    """The published form: products with one-hot tensors [T, E, C], in fp32."""
    ids, weights, slots, before = naive_one_hot_route(logits, top_k, **options)
    capacity = options.get("capacity") or int(before.max())
    places = F.one_hot(ids * capacity + slots, logits.shape[1] * capacity).float()
    rows = torch.einsum("tks,th->sh", places, x.float())
    return torch.einsum("tks,tk,sh->th", places, weights, rows).to(x.dtype)


# ---- benchmarks of the layer ----------------------------------------------------------------------------------------

# label, tokens, experts, H, I, options. As many experts as fit a machine of 24 GiB beside the baselines' copies.
_BENCH: dict[str | None, list[tuple[str, int, int, int, int, Arguments]]] = {
    None: [("16 experts", 256, 16, 512, 512, {"capacity": 16, "seed": 0})],
    "hunyuan-large": [
        (f"2 of 16 experts, T {t}", t, 2, 6400, 18304, {"capacity": max(1, t // 2), "seed": 0}) for t in (1, 32)
    ],
    "hunyuan-a13b": [(f"16 of 64 experts, k 8, T {t}", t, 16, 4096, 3072, {"top_k": 8}) for t in (1, 64)],
}


def _bench_cases(preset: str | None) -> list[Case]:
    return [
        Case(
            f"{label}, H {hidden}, I {intermediate}, {name}",
            partial(make_layer, tokens, experts, hidden, intermediate, torch.bfloat16, quantized, (), options),
        )
        for label, tokens, experts, hidden, intermediate, options in _BENCH[preset]
        for name, quantized in (("bfloat16", None), ("FP8 (block_1x128)", "block_1x128"), ("NF4", "NF4"))
    ]


def _work(arguments: Arguments) -> Work:
    x, gate, experts = arguments["x"], arguments["gate"], arguments["experts"]
    routing = _route(arguments)
    if isinstance(experts, hk.Nf4Experts):
        one_expert = sum(blocks[0].numel() // 528 * 16 * 64 for blocks, _ in experts)
        size = sum(tensor[0].nbytes for weights in experts for tensor in weights)
    else:
        one_expert = experts.gate_up[0].numel() + experts.down[0].numel()
        size = one_expert * experts.down.element_size()
    used = int((routing.expert_offsets.diff() > 0).sum()) * size
    rows = int(routing.expert_offsets[-1])
    flops = 2.0 * rows * one_expert + 2.0 * gate.shape[0] * x.numel()
    return Work(flops=flops, bytes=used + 2.0 * x.numel() * x.element_size() + gate.numel() * gate.element_size())


def _layer(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Index-based gating, ``multiply`` over the experts' rows, index_add."""

    def baseline(x: Tensor, gate: Tensor, experts: Any, *, top_k: int = 1, **options: Any) -> Tensor:
        if not isinstance(experts, hk.Experts):
            raise NotImplementedError("PyTorch has no FP8 or NF4 experts on the CPU")
        order, weights, offsets = _index_based_rows(F.linear(x.to(gate.dtype), gate), top_k, options)
        rows = x.index_select(0, order % max(1, x.shape[0]))
        gate_part, up_part = multiply(rows, experts.gate_up, offsets).chunk(2, dim=1)
        return _add_to_tokens(
            multiply(F.silu(gate_part) * up_part, experts.down, offsets), order, weights, torch.zeros_like(x)
        )

    return baseline


def _on_cuda(arguments: Arguments) -> bool:
    return arguments["x"].dtype == torch.bfloat16 and not isinstance(arguments["experts"], hk.Nf4Experts)


SPECS = [
    OpSpec(
        name="moe",
        stem="moe",
        function=hk.moe,
        reference=reference_moe,
        compare=_compare,
        cases=_cases,
        bench_cases=_bench_cases,
        work=_work,
        baselines={name: _layer(multiply) for name, multiply in EXPERT_PRODUCTS.items()},
        on_cuda=_on_cuda,
    ),
    OpSpec(
        name="route_dispatch_combine",
        stem="moe",
        function=route_dispatch_combine,
        reference=_reference_movement,
        compare=_compare_movement,
        cases=_movement_cases,
        bench_cases=_movement_bench_cases,
        work=_movement_work,
        baselines={
            "index-based, gathers": _movement_by_gathers,
            "index-based, index_add": _movement_by_index_add,
            "naive one-hot": _naive_movement,
        },
    ),
]
