"""Cases, bound and baselines of the stem ``swiglu``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hunyuan_kernels._ops import ops
from hunyuan_kernels.ops.swiglu import swiglu
from hunyuan_kernels.reference import swiglu as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work

DTYPES = (torch.bfloat16, torch.float32)


def make_preactivation(rows: int, columns: int, dtype: torch.dtype, seed: int, *, apart: bool = False) -> Tensor:
    """``[rows, 2 columns]``, magnitudes from about 1e-3 to 1e2; ``apart`` leaves NaN between the rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 2 * columns)
    values = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(1.5).exp()
    if not apart:
        return values.to(dtype)
    wide = torch.full((rows, 2 * columns + 5), float("nan"), dtype=dtype)
    wide[:, 2:-3] = values
    return wide[:, 2:-3]


def magnitude(x: Tensor, want: Tensor) -> Tensor:
    """What errors are proportional to: the result; and ``up`` where e^-gate overflows fp32, silu(gate) being smaller
    than 2^-121 there."""
    return want.abs() + 2.0**-100 * x.double().chunk(2, dim=1)[1].abs().nan_to_num(0.0, 0.0, 0.0)


def _arguments(rows: int, columns: int, used: int | None, dtype: torch.dtype, apart: bool, seed: int) -> Arguments:
    x = make_preactivation(rows, columns, dtype, seed, apart=apart)
    if used is None:
        return {"x": x}
    x[used:] = float("nan")
    return {"x": x, "expert_offsets": torch.tensor([0, used // 2, used // 2, used], dtype=torch.int32)}


def _case(rows: int, columns: int, used: int | None, dtype: torch.dtype, apart: bool = False) -> Case:
    label = f"S {rows}, I {columns}, {str(dtype).removeprefix('torch.')}"
    label += ("" if used is None else f", {used} rows in use") + (", rows apart" if apart else "")
    return Case(label, partial(_arguments, rows, columns, used, dtype, apart))


def _cases() -> list[Case]:
    sizes = [
        (0, 8, None),
        (3, 0, None),
        (1, 1, None),
        (7, 33, 5),
        (20, 256, 0),
        (20, 256, 20),
        (9, 2056, 8),
        (3, 4640, 2),
    ]
    return [_case(*size, dtype, apart) for size in sizes for dtype in DTYPES for apart in (False, True)]


def gradient_of_swiglu(grad_out: Tensor, preactivation: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    """Gradient of :func:`swiglu` to its argument."""
    return ops.swiglu_backward(grad_out, preactivation, expert_offsets)


def _with_grad_out(cases: list[Case]) -> list[Case]:
    def make_from(case: Case) -> Callable[[int], Arguments]:
        def make(seed: int) -> Arguments:
            arguments = case.make(seed)
            x = arguments.pop("x")
            generator = torch.Generator().manual_seed(seed + 1)
            grad_out = torch.randn(x.shape[0], x.shape[1] // 2, generator=generator).to(x.dtype)
            if (offsets := arguments.get("expert_offsets")) is not None:
                grad_out[int(offsets[-1]) :] = float("nan")
            return {"grad_out": grad_out, "preactivation": x, **arguments}

        return make

    return [Case(case.label, make_from(case)) for case in cases]


def _bench_cases(preset: str | None) -> list[Case]:
    columns = {"hunyuan-large": 18304, "hunyuan-a13b": 3072, None: 2048}[preset]
    return [_case(2048, columns, None, torch.bfloat16), _case(2048, columns, 1900, torch.bfloat16)]


def _compare(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    return [compare_bounded("out", got, want, magnitude(arguments["x"], want).nan_to_num(0.0))]


def compare_swiglu_backward(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    """The largest intermediate of each element: ``grad up (1 + |gate|)``, and ``grad gate``."""
    grad = arguments["grad_out"].double().abs()
    gate, up = arguments["preactivation"].double().abs().chunk(2, dim=1)
    largest = torch.cat([grad * up * (1 + gate), grad * gate], dim=1)
    return [compare_bounded("grad", got, want, largest.nan_to_num(0.0))]


def _work(arguments: Arguments) -> Work:
    x: Tensor = arguments["x"]
    offsets = arguments.get("expert_offsets")
    read = (x.shape[0] if offsets is None else int(offsets[-1])) * x.shape[1]
    return Work(flops=0.0, bytes=float(x.element_size() * (read + x.numel() // 2)))


def _backward_work(arguments: Arguments) -> Work:
    x, offsets = arguments["preactivation"], arguments.get("expert_offsets")
    read = (x.shape[0] if offsets is None else int(offsets[-1])) * (x.shape[1] + x.shape[1] // 2)
    return Work(flops=0.0, bytes=float(x.element_size() * (read + x.numel())))


def _eager(x: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    gate, up = x.chunk(2, dim=1)
    out = F.silu(gate) * up
    if expert_offsets is not None:
        out[int(expert_offsets[-1]) :] = 0
    return out


def _eager_backward(grad_out: Tensor, preactivation: Tensor, expert_offsets: Tensor | None = None) -> Tensor:
    used = preactivation.shape[0] if expert_offsets is None else int(expert_offsets[-1])
    gate, up = preactivation[:used].chunk(2, dim=1)
    grad, out = grad_out[:used], torch.zeros_like(preactivation)
    out[:used, : gate.shape[1]] = torch.ops.aten.silu_backward(grad * up, gate)
    out[:used, gate.shape[1] :] = grad * F.silu(gate)
    return out


SPECS = [
    OpSpec(
        name="swiglu",
        stem="swiglu",
        function=swiglu,
        reference=reference.swiglu,
        compare=_compare,
        cases=_cases,
        bench_cases=_bench_cases,
        work=_work,
        baselines={"F.silu * up": _eager},
    ),
    OpSpec(
        name="swiglu_backward",
        stem="swiglu",
        function=gradient_of_swiglu,
        reference=reference.swiglu_backward,
        compare=compare_swiglu_backward,
        cases=lambda: _with_grad_out(_cases()),
        bench_cases=lambda preset: _with_grad_out(_bench_cases(preset)),
        work=_backward_work,
        baselines={"silu_backward": _eager_backward},
    ),
]
