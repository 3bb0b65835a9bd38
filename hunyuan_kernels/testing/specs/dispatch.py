"""Cases, bounds and baselines of the stem ``dispatch``."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.ops.routing import Routing
from hunyuan_kernels.reference import dispatch as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded, compare_exact
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work
from hunyuan_kernels.testing.specs.quantize import eager_quantize
from hunyuan_kernels.testing.specs.routing import make_logits

FLOATS = (torch.bfloat16, torch.float32)
E4M3 = torch.float8_e4m3fn


class Layout(NamedTuple):
    """How tokens find their experts, in one word for labels."""

    label: str
    tokens: int
    experts: int
    top_k: int = 1
    capacity: int | None = None
    skew: str = "even"
    padding: int = 0

    def route(self, seed: int) -> Routing:
        logits = make_logits(self.tokens, self.experts, self.skew, torch.float32, seed)
        num_tokens = torch.tensor([self.tokens - self.padding], dtype=torch.int32)
        overflow = "recycle" if self.top_k == 1 else "drop"
        return hk.route(logits, self.top_k, capacity=self.capacity, overflow=overflow, seed=seed, num_tokens=num_tokens)


LAYOUTS = [
    Layout("no tokens", 0, 5),
    Layout("one token", 1, 5),
    Layout("recycled", 50, 5, capacity=11, skew="zipf"),
    Layout("some dropped", 50, 5, capacity=7),
    Layout("all dropped", 9, 4, capacity=0),
    Layout("one expert", 40, 16, skew="one expert"),
    Layout("3 choices, some dropped", 50, 5, top_k=3, capacity=11),
    Layout("2 choices, padding", 50, 5, top_k=2, padding=5),
    Layout("many tokens, padding", 300, 5, capacity=60, padding=20),
]
HIDDEN = (0, 1, 33, 256)


def make_rows(count: int, hidden: int, dtype: torch.dtype, seed: int, apart: bool = False) -> Tensor:
    """``[count, hidden]``; ``apart`` leaves NaN between the rows."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, hidden, generator=generator).to(dtype)
    if not apart:
        return values
    wide = torch.full((count, hidden + 5), float("nan"), dtype=torch.float32).to(dtype)
    wide[:, 2 : 2 + hidden] = values
    return wide[:, 2 : 2 + hidden]


def _dispatch_arguments(layout: Layout, hidden: int, dtype: torch.dtype, apart: bool, seed: int) -> Arguments:
    return {"x": make_rows(layout.tokens, hidden, dtype, seed, apart), "routing": layout.route(seed)}


def _combine_arguments(
    layout: Layout, hidden: int, dtype: torch.dtype, apart: bool, dense: tuple[str, ...], seed: int
) -> Arguments:
    routing = layout.route(seed)
    arguments: Arguments = {"y": make_rows(routing.token_ids.shape[0], hidden, dtype, seed, apart), "routing": routing}
    for number, name in enumerate(dense):
        arguments[name] = make_rows(layout.tokens, hidden, dtype, seed + 1 + number, apart)
    return arguments


def gradients_of_combine(grad_out: Tensor, y: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`combine` to the rows and to the routing weights, in one pass over both."""
    return ops.combine_backward(grad_out, y, routing.rows, routing.weights, routing.token_ids)


def _combine_backward_arguments(layout: Layout, hidden: int, dtype: torch.dtype, apart: bool, seed: int) -> Arguments:
    arguments = _combine_arguments(layout, hidden, dtype, apart, (), seed)
    return {"grad_out": make_rows(layout.tokens, hidden, dtype, seed + 3, apart), **arguments}


def _label(layout: Layout, hidden: int, dtype: torch.dtype, apart: bool) -> str:
    return f"{layout.label}, H {hidden}, {str(dtype).removeprefix('torch.')}" + (", rows apart" if apart else "")


def _cases_of(
    make: Callable[..., Arguments], dtypes: tuple[torch.dtype, ...] = FLOATS, hidden_sizes: tuple[int, ...] = HIDDEN
) -> list[Case]:
    return [
        Case(_label(layout, hidden, dtype, apart), partial(make, layout, hidden, dtype, apart))
        for layout in LAYOUTS
        for hidden in hidden_sizes
        for dtype in dtypes
        for apart in (False, True)
    ]


def _combine_cases() -> list[Case]:
    return [
        Case(
            ", ".join([_label(layout, hidden, dtype, apart), *dense]),
            partial(_combine_arguments, layout, hidden, dtype, apart, dense),
        )
        for layout in LAYOUTS
        for hidden in HIDDEN
        for dtype in FLOATS
        for apart, dense in ((False, ()), (True, ("residual",)), (hidden == 33, ("shared", "residual")))
    ]


def _dispatch_fp8_static_arguments(
    layout: Layout, hidden: int, dtype: torch.dtype, apart: bool, seed: int
) -> Arguments:
    return {**_dispatch_arguments(layout, hidden, dtype, apart, seed), "scale": torch.tensor([0.004])}


def _dispatch_fp8_cases() -> list[Case]:
    """Fresh scales, and a static one."""
    static = _cases_of(_dispatch_fp8_static_arguments, hidden_sizes=(33, 256))
    named = [Case(f"{case.label}, static scale", case.make) for case in static if "rows apart" not in case.label]
    return _cases_of(_dispatch_arguments) + named


def _compare_dispatch(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_exact("rows", got, want)]


def _compare_dispatch_fp8(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_exact(name, g, w) for name, g, w in zip(("q", "scale"), got, want, strict=True)]


def _compare_combine(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    sizes: Arguments = {name: value.abs() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return [compare_bounded("out", got, want, reference.combine(**sizes))]


def _compare_combine_backward(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    sizes: Arguments = {name: value.abs() for name, value in arguments.items() if isinstance(value, Tensor)}
    weights = arguments["routing"].weights.abs()
    magnitudes = reference.combine_backward(**sizes, routing=arguments["routing"]._replace(weights=weights))
    names = ("grad_y", "grad_weights")
    return [compare_bounded(*each) for each in zip(names, got, want, magnitudes, strict=True)]


# ---- benchmarks -----------------------------------------------------------------------------------------------------

# H, then layouts. Top-1 with a capacity factor of 1 and recycling; A13B has 8 choices out of 64 and no capacity.
_TOP_1 = [Layout(f"T {t}, E 16, k 1, C {t // 16}", t, 16, capacity=t // 16, skew="zipf") for t in (128, 2048, 8192)]
_TOP_8 = [Layout(f"T {t}, E 64, k 8", t, 64, top_k=8) for t in (1, 128, 2048)]
BENCH_LAYOUTS: dict[str | None, tuple[int, list[Layout]]] = {
    None: (1024, [_TOP_1[1], _TOP_1[0], _TOP_1[2], _TOP_8[1]]),
    "hunyuan-large": (6400, _TOP_1),
    "hunyuan-a13b": (4096, _TOP_8),
}


def _bench_cases(preset: str | None, make: Callable[..., Arguments], *options: Any) -> list[Case]:
    hidden, layouts = BENCH_LAYOUTS[preset]
    return [
        Case(
            _label(layout, hidden, torch.bfloat16, False),
            partial(make, layout, hidden, torch.bfloat16, False, *options),
        )
        for layout in layouts
    ]


def _rows_in_use(routing: Routing) -> int:
    return int(routing.expert_offsets[-1])


def _dispatch_work(out_size: float, arguments: Arguments) -> Work:
    """``out_size``: bytes written for each element. A token that several rows copy is read once."""
    x, routing = arguments["x"], arguments["routing"]
    read = int((routing.rows >= 0).any(1).sum()) * x.shape[1] * x.element_size()
    written = routing.token_ids.shape[0] * (x.shape[1] * out_size + 4.0)
    return Work(flops=0.0, bytes=read + written)


def _combine_work(arguments: Arguments) -> Work:
    y, routing = arguments["y"], arguments["routing"]
    tokens, hidden = routing.rows.shape[0], y.shape[1]
    dense = 1 + sum(name in arguments for name in ("shared", "residual"))
    moved = (_rows_in_use(routing) + dense * tokens) * hidden * y.element_size() + 8.0 * routing.rows.numel()
    return Work(flops=0.0, bytes=moved)


def _combine_backward_work(arguments: Arguments) -> Work:
    """Rows of ``y`` in use and the gradients of their tokens are read, all rows of ``grad_y`` written."""
    y, routing = arguments["y"], arguments["routing"]
    tokens = int((routing.rows >= 0).any(1).sum())
    moved = (_rows_in_use(routing) + tokens + y.shape[0]) * y.shape[1] * y.element_size()
    return Work(flops=2.0 * _rows_in_use(routing) * y.shape[1], bytes=moved + 12.0 * routing.rows.numel())


def index_select_rows(x: Tensor, routing: Routing) -> Tensor:
    """A plain gather, wrong (not zero) in rows that are not in use."""
    return x.index_select(0, routing.token_ids.clamp_min(0))


def _index_select_and_quantize(x: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    return eager_quantize(index_select_rows(x, routing), "block_1x128")


def gather_and_sum(y: Tensor, routing: Routing, shared: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Each choice's rows by index, weighted, summed in the dtype of ``y``."""
    weights = torch.where(routing.rows >= 0, routing.weights, 0.0).to(y.dtype)
    out = y.index_select(0, routing.rows[:, 0].clamp_min(0)) * weights[:, 0, None]
    for j in range(1, routing.rows.shape[1]):
        out = torch.addcmul(out, y.index_select(0, routing.rows[:, j].clamp_min(0)), weights[:, j, None])
    for dense in (shared, residual):
        out = out if dense is None else out + dense
    return out


def _index_add(y: Tensor, routing: Routing, shared: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Rows added to their tokens, as the experts' loop of transformers does."""
    used = _rows_in_use(routing)
    owner = routing.rows.flatten()
    weights = y.new_zeros(y.shape[0]).index_put(
        (owner[owner >= 0].long(),), routing.weights.flatten()[owner >= 0].to(y)
    )
    out = y.new_zeros(routing.rows.shape[0], y.shape[1]) if shared is None else shared.clone()
    out.index_add_(0, routing.token_ids[:used], y[:used] * weights[:used, None])
    return out if residual is None else out + residual


def gradients_by_gathers(grad_out: Tensor, y: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """Each row's gradient by index; the products with its row summed in the dtype of ``y``."""
    used, owner = _rows_in_use(routing), routing.rows.flatten()
    owned = owner[owner >= 0].long()
    rows = grad_out.index_select(0, routing.token_ids.clamp_min(0))
    weights = y.new_zeros(y.shape[0]).index_put((owned,), routing.weights.flatten()[owner >= 0].to(y))
    dots = torch.zeros_like(routing.weights).flatten()
    dots[owner >= 0] = torch.linalg.vecdot(rows, y).float()[owned]
    rows[used:] = 0
    return rows.mul_(weights[:, None]), dots.view_as(routing.weights)


SPECS = [
    OpSpec(
        name="dispatch",
        stem="dispatch",
        function=hk.dispatch,
        reference=reference.dispatch,
        compare=_compare_dispatch,
        cases=lambda: _cases_of(_dispatch_arguments, (*FLOATS, E4M3)),
        bench_cases=lambda preset: _bench_cases(preset, _dispatch_arguments),
        work=lambda arguments: _dispatch_work(arguments["x"].element_size(), arguments),
        baselines={"index_select": index_select_rows},
    ),
    OpSpec(
        name="dispatch_fp8",
        stem="dispatch",
        function=hk.dispatch_fp8,
        reference=reference.dispatch_fp8,
        compare=_compare_dispatch_fp8,
        cases=_dispatch_fp8_cases,
        bench_cases=lambda preset: _bench_cases(preset, _dispatch_arguments),
        work=partial(_dispatch_work, 1.0 + 4.0 / 128),
        baselines={"index_select, quantize": _index_select_and_quantize},
    ),
    OpSpec(
        name="combine",
        stem="dispatch",
        function=hk.combine,
        reference=reference.combine,
        compare=_compare_combine,
        cases=_combine_cases,
        bench_cases=lambda preset: _bench_cases(preset, _combine_arguments, ("shared", "residual")),
        work=_combine_work,
        baselines={"gather and sum": gather_and_sum, "index_add": _index_add},
    ),
    OpSpec(
        name="combine_backward",
        stem="dispatch",
        function=gradients_of_combine,
        reference=reference.combine_backward,
        compare=_compare_combine_backward,
        # 1160: sums over more than one warp
        cases=lambda: _cases_of(_combine_backward_arguments, hidden_sizes=(*HIDDEN, 1160)),
        bench_cases=lambda preset: _bench_cases(preset, _combine_backward_arguments),
        work=_combine_backward_work,
        baselines={"gathers": gradients_by_gathers},
    ),
]
