"""The routed experts of a layer in training: the output, and the gradients of input and weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference.moe import moe_from_routing
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.fp8_gemm import OUTPUT_UNITS
from hunyuan_kernels.testing.specs.grouped_gemm import EXPERT_PRODUCTS, make_weights

_NAMES = ("y", "grad_x", "grad_gate_up", "grad_down")


def _make(
    tokens: int, experts: int, hidden: int, intermediate: int, top_k: int, dtype: torch.dtype, seed: int
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    weights, ids = torch.randn(tokens, experts, generator=generator).softmax(1).topk(top_k)
    gate_up = make_weights((experts, 2 * intermediate, hidden), dtype, generator)
    return {
        "x": torch.randn(tokens, hidden, generator=generator).to(dtype),
        "expert_ids": ids,
        "weights": weights,
        "experts": hk.Experts(gate_up, make_weights((experts, hidden, intermediate), dtype, generator)),
        "grad_out": torch.randn(tokens, hidden, generator=generator).to(dtype),
    }


_CASES = [("one token", 1, 4, 2), ("one expert", 20, 1, 1), ("more experts than tokens", 5, 17, 1), ("top 2", 60, 4, 2)]

# label, tokens, experts, H, I, k. A model's experts as far as 24 GiB hold them beside their gradients.
_BENCH: dict[str | None, list[tuple[str, int, int, int, int, int]]] = {
    None: [("16 experts, T 512", 512, 16, 256, 512, 1), ("16 experts, T 2048", 2048, 16, 1024, 4096, 1)],
    "hunyuan-large": [("1 of 16 experts, T 256", 256, 1, 6400, 18304, 1)],
    "hunyuan-a13b": [("8 of 64 experts, T 1024", 1024, 8, 4096, 3072, 1)],
}


def _cases() -> list[Case]:
    return [
        Case(f"{label}, {str(dtype).removeprefix('torch.')}", partial(_make, tokens, experts, 72, 40, top_k, dtype))
        for label, tokens, experts, top_k in _CASES
        for dtype in (torch.float32, torch.bfloat16)
    ]


def _bench_cases(preset: str | None) -> list[Case]:
    return [
        Case(
            f"{label}, H {hidden}, I {intermediate}, bfloat16",
            partial(_make, tokens, experts, hidden, intermediate, top_k, torch.bfloat16),
        )
        for label, tokens, experts, hidden, intermediate, top_k in _BENCH[preset]
    ]


def _gradients(layer: Callable[..., Tensor], x: Tensor, experts: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in (x, *experts)]
    y = layer(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, grad_out)


def expert_gradients(
    x: Tensor, expert_ids: Tensor, weights: Tensor, experts: hk.Experts, grad_out: Tensor
) -> tuple[Tensor, ...]:
    """``routing_from_ids``, ``expert_mlp``, ``combine``, and backward through the last two."""

    def layer(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        routing = hk.routing_from_ids(expert_ids, weights, gate_up.shape[0])
        return hk.combine(hk.expert_mlp(x, routing, (gate_up, down)), routing)

    return _gradients(layer, x, experts, grad_out)


def _reference(
    x: Tensor, expert_ids: Tensor, weights: Tensor, experts: hk.Experts, grad_out: Tensor
) -> tuple[Tensor, ...]:
    def layer(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return moe_from_routing(x, expert_ids, weights, torch.zeros_like(expert_ids), (gate_up, down))

    exact = [weight.double() for weight in experts]
    return _gradients(layer, x.double(), exact, grad_out.double())


def _magnitudes(arguments: Arguments) -> list[Tensor]:
    """What the errors of the four results are proportional to: those of a product (its sum of magnitudes) and of each
    tensor that is rounded on the way (``units`` times its magnitude), passed on by the derivatives of what follows.

    |silu'| <= 1.1 and |silu''| <= 0.5. Sums in fp32 and roundings count alike: the comparison has a factor for both.
    """
    x, grad_out = arguments["x"].double(), arguments["grad_out"].double()
    gate_up, down = (weight.double() for weight in arguments["experts"])
    units = OUTPUT_UNITS[arguments["x"].dtype]
    results = [torch.zeros_like(t) for t in (x, x, gate_up, down)]
    for e in range(gate_up.shape[0]):
        token, choice = torch.nonzero(arguments["expert_ids"] == e, as_tuple=True)
        weight, rows = arguments["weights"][token, choice, None].double(), x[token]
        gate, up = (rows @ gate_up[e].T).chunk(2, dim=1)
        gate_error, up_error = ((rows.abs() @ gate_up[e].abs().T) + units * (rows @ gate_up[e].T).abs()).chunk(2, dim=1)
        hidden, slope = F.silu(gate) * up, gate.sigmoid() * (1.0 + gate * (1.0 - gate.sigmoid()))
        hidden_error = 1.1 * up.abs() * gate_error + F.silu(gate).abs() * up_error + (1.0 + units) * hidden.abs()
        grad_y = weight * grad_out[token]
        grad_hidden = grad_y @ down[e]
        passed = (1.0 + units) * (grad_y.abs() @ down[e].abs()) + units * grad_hidden.abs()
        to_gate, to_up = grad_hidden * up * slope, grad_hidden * F.silu(gate)
        errors = [
            passed * (up * slope).abs() + grad_hidden.abs() * (1.1 * up_error + 0.5 * up.abs() * gate_error),
            passed * F.silu(gate).abs() + grad_hidden.abs() * 1.1 * gate_error,
        ]
        exact = torch.cat([to_gate, to_up], dim=1)
        error = torch.cat(errors, dim=1) + (4.0 + units) * exact.abs()
        y = hidden @ down[e].T
        y_error = (hidden_error + hidden.abs()) @ down[e].abs().T + (8.0 + units) * y.abs()
        results[0].index_add_(0, token, weight * y_error)
        rounded = (error + exact.abs()) @ gate_up[e].abs() + units * (exact @ gate_up[e]).abs()
        results[1].index_add_(0, token, rounded)
        results[2][e] = (error + exact.abs()).T @ rows.abs()
        results[3][e] = (1.0 + units) * grad_y.abs().T @ hidden.abs() + grad_y.abs().T @ hidden_error
    return results


def _compare(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    magnitudes = _magnitudes(arguments)
    return [compare_bounded(*of_one) for of_one in zip(_NAMES, got, want, magnitudes, strict=True)]


def _work(arguments: Arguments) -> Work:
    ids, experts = arguments["expert_ids"], arguments["experts"]
    one_expert, size = sum(weight[0].numel() for weight in experts), arguments["x"].element_size()
    weights = (int(ids.unique().numel()) + experts.down.shape[0]) * one_expert  # read, and their gradients written
    return Work(6.0 * ids.numel() * one_expert, float((weights + 4 * arguments["x"].numel()) * size))


def _with_autograd(multiply: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Gathered rows, ``multiply`` over the experts' rows, index_add, and what autograd makes of that."""

    def baseline(
        x: Tensor, expert_ids: Tensor, weights: Tensor, experts: hk.Experts, grad_out: Tensor
    ) -> tuple[Tensor, ...]:
        top_k, count = expert_ids.shape[1], experts.down.shape[0]
        order = expert_ids.flatten().argsort(stable=True)
        ends = expert_ids.flatten().bincount(minlength=count).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)

        def layer(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            rows = x.index_select(0, order // top_k)
            gate, up = multiply(rows, gate_up, offsets).chunk(2, dim=1)
            y = multiply(F.silu(gate) * up, down, offsets) * weights.flatten()[order, None].to(x)
            return torch.zeros_like(x).index_add(0, order // top_k, y)

        return _gradients(layer, x, experts, grad_out)

    return baseline


SPECS = [
    OpSpec(
        name="expert_gradients",
        stem="moe",
        function=expert_gradients,
        reference=_reference,
        compare=_compare,
        cases=_cases,
        bench_cases=_bench_cases,
        work=_work,
        baselines={name: _with_autograd(multiply) for name, multiply in EXPERT_PRODUCTS.items()},
        on_cuda=lambda arguments: arguments["x"].dtype == torch.bfloat16,
    )
]
