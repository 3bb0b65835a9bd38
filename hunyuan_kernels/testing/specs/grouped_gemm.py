"""Cases, baselines and comparison of the stem ``grouped_gemm``."""

from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import grouped_gemm as reference
from hunyuan_kernels.testing.compare import Comparison, compare_bounded
from hunyuan_kernels.testing.product_options import forced_options
from hunyuan_kernels.testing.spec import Arguments, Case, OpSpec, Work


def offsets_of(sizes: list[int]) -> Tensor:
    """``expert_offsets`` for groups of these sizes."""
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)


def make_weights(shape: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Weights ``[E, N, K]`` of the size that keeps activations near 1.

    The experts are rotations of one matrix: drawing hundreds of millions of numbers would take longer than the
    benchmark.
    """
    experts, rows, columns = shape
    one = (torch.randn(rows, columns, generator=generator) / max(1, columns) ** 0.5).to(dtype)
    weights = torch.empty(shape, dtype=dtype)
    for e in range(experts):
        weights[e] = one.roll(e, 0)
    return weights


def make_arguments(
    sizes: list[int],
    rows: int,
    columns: int,
    dtype: torch.dtype,
    seed: int,
    *,
    tail: int = 0,
    transposed: bool = False,
    name: str = "b",
) -> Arguments:
    """Groups of ``sizes`` rows of ``columns`` elements, weights of ``rows`` rows, ``tail`` rows of NaN past the groups.

    ``transposed`` lays the weights out as ``[E, K, N]``.
    """
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(sum(sizes) + tail, columns, generator=generator).to(dtype)
    a[sum(sizes) :] = float("nan")
    weights = make_weights((len(sizes), rows, columns), dtype, generator)
    if transposed:
        weights = weights.mT.contiguous().mT
    return {"a": a, name: weights, "expert_offsets": offsets_of(sizes)}


# label, group sizes, N (I for SwiGLU), K, rows past the end
_SHAPES: list[tuple[str, list[int], int, int, int]] = [
    ("no rows", [0, 0, 0], 8, 16, 0),
    ("only rows past the end", [0, 0], 8, 16, 3),
    ("one row", [1], 32, 64, 0),
    ("K 0", [2, 1], 5, 0, 1),
    ("N 0", [2, 1], 0, 5, 1),
    ("all ones", [1, 1], 1, 1, 0),
    ("tile", [12, 12], 32, 512, 0),
    ("tile + 1", [13, 0, 5], 33, 513, 2),
    ("tile - 1", [11, 23], 31, 255, 1),
    ("odd", [3, 0, 17, 1], 71, 77, 0),
    ("several k blocks", [7, 40], 48, 1100, 4),
    ("several row blocks", [800, 0, 3], 17, 40, 0),
    ("all rows to one expert", [0, 150, 0, 0], 64, 96, 0),
]
DTYPES = (torch.bfloat16, torch.float32)


def _cases(name: str, row_factor: int) -> list[Case]:
    cases = []
    for label, sizes, rows, columns, tail in _SHAPES:
        for dtype in DTYPES:
            for transposed in (False, True):

                def make(seed: int, d: Any = dtype, t: bool = transposed, s: Any = (sizes, rows, columns, tail)) -> Any:
                    return make_arguments(s[0], s[1] * row_factor, s[2], d, seed, tail=s[3], transposed=t, name=name)

                order = "[E,K,N]" if transposed else "[E,N,K]"
                cases.append(Case(f"{label}, {str(dtype).removeprefix('torch.')}, {order}", make))
    return cases


def grouped_gemm_cases() -> list[Case]:
    return _cases("b", 1)


def grouped_swiglu_cases() -> list[Case]:
    return _cases("gate_up", 2)


def wgrad_cases() -> list[Case]:
    def make_from(case: Case) -> Any:
        def make(seed: int) -> Arguments:
            arguments = case.make(seed)
            a, b, expert_offsets = arguments["a"], arguments["b"], arguments["expert_offsets"]
            generator = torch.Generator().manual_seed(seed + 1)
            grad_out = torch.randn(a.shape[0], b.shape[1], generator=generator).to(a.dtype)
            grad_out[int(expert_offsets[-1]) :] = float("nan")
            grad_b = torch.randn(b.shape, generator=generator).as_strided(b.shape, b.stride())
            return {"grad_b": grad_b, "grad_out": grad_out, "a": a, "expert_offsets": expert_offsets}

        return make

    return [Case(case.label, make_from(case)) for case in grouped_gemm_cases()]


# ---- comparison -----------------------------------------------------------------------------------------------------


def compare_grouped_gemm(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    magnitude = reference.grouped_gemm(arguments["a"].abs(), arguments["b"].abs(), arguments["expert_offsets"])
    return [compare_bounded("out", got, want, magnitude)]


def compare_wgrad(arguments: Arguments, got: Tensor, want: Tensor) -> list[Comparison]:
    magnitude = reference.grouped_gemm_wgrad_(**{k: v.abs() for k, v in arguments.items()})
    return [compare_bounded("grad_b", got, want, magnitude)]


def swiglu_magnitude(a: Tensor, gate_up: Tensor, expert_offsets: Tensor, want: Tensor) -> Tensor:
    """How errors of the sums reach the activation (``|silu'| <= 1.1``), and its own rounding."""
    gate, up = reference.grouped_gemm(a, gate_up, expert_offsets).chunk(2, dim=1)
    gate_sum, up_sum = reference.grouped_gemm(a.abs(), gate_up.abs(), expert_offsets).chunk(2, dim=1)
    return 1.1 * up.abs() * gate_sum + F.silu(gate).abs() * up_sum + want.abs()


def compare_swiglu(arguments: Arguments, got: Any, want: Any) -> list[Comparison]:
    operands = {k: v for k, v in arguments.items() if k != "return_preactivation"}
    if not arguments.get("return_preactivation"):
        return [compare_bounded("out", got, want, swiglu_magnitude(**operands, want=want))]
    magnitude = reference.grouped_gemm(operands["a"].abs(), operands["gate_up"].abs(), operands["expert_offsets"])
    return [
        compare_bounded("out", got[0], want[0], swiglu_magnitude(**operands, want=want[0])),
        compare_bounded("preactivation", got[1], want[1], magnitude),
    ]


# ---- benchmarks -----------------------------------------------------------------------------------------------------

# experts, N (2I for SwiGLU), K. Hunyuan-Large has 16 experts: 4 of them fit a small machine.
MODELS = {"hunyuan-large": (4, 36608, 6400), "hunyuan-a13b": (16, 6144, 4096), None: (16, 1024, 512)}
_GROUPS = {"hunyuan-large": (1, 8, 64), "hunyuan-a13b": (1, 8, 32, 128, 512), None: (16, 1, 128, 512)}


def _bench_cases(preset: str | None, name: str) -> list[Case]:
    experts, rows, columns = MODELS[preset]
    dtypes = DTYPES if preset is None else (torch.bfloat16,)
    cases = []
    for dtype in dtypes:
        for group in _GROUPS[preset]:

            def make(seed: int, g: int = group, d: Any = dtype) -> Arguments:
                return make_arguments([g] * experts, rows, columns, d, seed, name=name)

            label = f"{experts} experts x {group} rows, N {rows}, K {columns}, {str(dtype).removeprefix('torch.')}"
            cases.append(Case(label, make))
    return cases


def _work(arguments: Arguments, weights: Tensor, out_columns: int) -> Work:
    a, sizes = arguments["a"], arguments["expert_offsets"].diff()
    _, rows, columns = weights.shape
    used = int((sizes > 0).sum()) * rows * columns * weights.element_size()
    moved = used + a.element_size() * a.shape[0] * (columns + out_columns)
    return Work(flops=2.0 * int(sizes.sum()) * rows * columns, bytes=float(moved))


def _linear_per_expert(a: Tensor, b: Tensor, expert_offsets: Tensor) -> Tensor:
    out = a.new_zeros(a.shape[0], b.shape[1])
    for e, (start, end) in enumerate(pairwise(expert_offsets.tolist())):
        if end > start:
            out[start:end] = F.linear(a[start:end], b[e])
    return out


def _fp32_linear_per_expert(a: Tensor, b: Tensor, expert_offsets: Tensor) -> Tensor:
    """For CPUs without bf16 instructions, where PyTorch's bf16 products are slow."""
    if a.dtype == torch.float32:
        raise NotImplementedError("the operands are fp32 already")
    out = a.new_zeros(a.shape[0], b.shape[1])
    for e, (start, end) in enumerate(pairwise(expert_offsets.tolist())):
        if end > start:
            out[start:end] = F.linear(a[start:end].float(), b[e].float())
    return out


def _grouped_mm(a: Tensor, b: Tensor, expert_offsets: Tensor) -> Tensor:
    return F.grouped_mm(a, b.mT, offs=expert_offsets[1:])


#: What PyTorch offers for the rows of all experts.
EXPERT_PRODUCTS = {
    "F.linear per expert": _linear_per_expert,
    "F.grouped_mm": _grouped_mm,
    "F.linear in fp32": _fp32_linear_per_expert,
}


def _with_swiglu(multiply: Any) -> Any:
    def baseline(a: Tensor, gate_up: Tensor, expert_offsets: Tensor) -> Tensor:
        gate, up = multiply(a, gate_up, expert_offsets).chunk(2, dim=1)
        return F.silu(gate) * up

    return baseline


def _wgrad_per_expert(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    for e, (start, end) in enumerate(pairwise(expert_offsets.tolist())):
        if end > start:
            grad_b[e] += grad_out[start:end].T @ a[start:end]
    return grad_b


def _fp32_wgrad_per_expert(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    for e, (start, end) in enumerate(pairwise(expert_offsets.tolist())):
        if end > start:
            grad_b[e].addmm_(grad_out[start:end].float().T, a[start:end].float())
    return grad_b


def _wgrad(grad_b: Tensor, grad_out: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    hk.grouped_gemm_wgrad_(grad_b, grad_out, a, expert_offsets)
    return grad_b


def _wgrad_bench_cases(preset: str | None) -> list[Case]:
    """fp32 gradients: a small share of the model's experts."""
    experts, rows, columns = MODELS[preset]
    experts = max(1, experts // 8)

    def make_for(group: int) -> Any:
        def make(seed: int) -> Arguments:
            arguments = make_arguments([group] * experts, rows, columns, torch.bfloat16, seed)
            generator = torch.Generator().manual_seed(seed + 1)
            grad_out = torch.randn(group * experts, rows, generator=generator).bfloat16()
            grad_b = torch.zeros(experts, rows, columns)
            operands = {k: arguments[k] for k in ("a", "expert_offsets")}
            return {"grad_b": grad_b, "grad_out": grad_out, **operands}

        return make

    return [Case(f"{experts} experts x {g} rows, N {rows}, K {columns}, bfloat16", make_for(g)) for g in (32, 256)]


def _wgrad_work(arguments: Arguments) -> Work:
    grad_b, grad_out, a = arguments["grad_b"], arguments["grad_out"], arguments["a"]
    rows = int(arguments["expert_offsets"][-1])
    moved = 8.0 * grad_b.numel() + a.element_size() * a.shape[0] * (a.shape[1] + grad_out.shape[1])
    return Work(flops=2.0 * rows * a.shape[1] * grad_out.shape[1], bytes=moved)


def _sample_columns(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    """The first 128 columns of the output alone."""
    return {**arguments, "b": arguments["b"][:, :128]}, got[:, :128]


def _sample_wgrad(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    fewer = {"grad_b": arguments["grad_b"][:, :128], "grad_out": arguments["grad_out"][:, :128]}
    return {**arguments, **fewer}, got[:, :128]


def first_of_halves(rows: Tensor) -> Tensor:
    """The first 128 of the gate rows and of the up rows, which lie along dimension 1."""
    return torch.cat([half[:, :128] for half in rows.chunk(2, dim=1)], dim=1)


def _sample_swiglu(arguments: Arguments, got: Tensor) -> tuple[Arguments, Tensor]:
    return {**arguments, "gate_up": first_of_halves(arguments["gate_up"])}, got[:, :128]


def _is_bfloat16(arguments: Arguments) -> bool:
    return arguments["a"].dtype == torch.bfloat16


def _plan(form: str, weights: str) -> Any:
    """The plan of a product with the argument ``weights``, or of the weight gradient that it is."""

    def plan(arguments: Arguments, sms: int) -> object:
        from hunyuan_kernels._C import plans  # not part of what ops need

        a, b = arguments["a"], arguments[weights]
        (experts, columns, depth), out = b.shape, plans.DType[str(b.dtype).removeprefix("torch.")]
        options = {"experts": experts, "rows": a.shape[0], "columns": columns, "depth": depth, "out": out, "sms": sms}
        options["options"] = forced_options.get()
        return plans.grouped_gemm(form=plans.GroupedGemmForm[form], across=b.stride(2) != 1, **options)

    return plan


SPECS = [
    OpSpec(
        name="grouped_gemm",
        stem="grouped_gemm",
        function=hk.grouped_gemm,
        reference=reference.grouped_gemm,
        compare=compare_grouped_gemm,
        cases=grouped_gemm_cases,
        bench_cases=lambda preset: _bench_cases(preset, "b"),
        work=lambda arguments: _work(arguments, arguments["b"], arguments["b"].shape[1]),
        baselines=EXPERT_PRODUCTS,
        sample=_sample_columns,
        on_cuda=_is_bfloat16,
        plan=_plan("rows", "b"),
    ),
    OpSpec(
        name="grouped_gemm_wgrad_",
        stem="grouped_gemm",
        function=_wgrad,
        reference=reference.grouped_gemm_wgrad_,
        compare=compare_wgrad,
        cases=wgrad_cases,
        bench_cases=_wgrad_bench_cases,
        work=_wgrad_work,
        baselines={"matmul per expert": _wgrad_per_expert, "addmm_ in fp32": _fp32_wgrad_per_expert},
        sample=_sample_wgrad,
        on_cuda=_is_bfloat16,
        plan=_plan("weight_gradient", "grad_b"),
    ),
    OpSpec(
        name="grouped_swiglu",
        stem="grouped_gemm",
        function=hk.grouped_swiglu,
        reference=reference.grouped_swiglu,
        compare=compare_swiglu,
        cases=grouped_swiglu_cases,
        bench_cases=lambda preset: _bench_cases(preset, "gate_up"),
        work=lambda arguments: _work(arguments, arguments["gate_up"], arguments["gate_up"].shape[1] // 2),
        baselines={name: _with_swiglu(multiply) for name, multiply in EXPERT_PRODUCTS.items()},
        sample=_sample_swiglu,
        on_cuda=_is_bfloat16,
        plan=_plan("swiglu", "gate_up"),
    ),
]
