"""CUDA kernels of the stem grouped_gemm, simulated: shapes that reuse stages and slices, wrong offsets, layouts."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import grouped_gemm as reference
from hunyuan_kernels.simulator import SimulatedGpu
from hunyuan_kernels.testing.compare import Comparison, compare_bounded, compare_exact
from hunyuan_kernels.testing.specs.grouped_gemm import (
    DTYPES,
    compare_grouped_gemm,
    compare_swiglu,
    make_arguments,
    offsets_of,
)
from python_tests.backends import SIMULATED, needs_device_code

pytestmark = needs_device_code

#: Rows of few, no and many warpgroups: a tile and a row, less than a warpgroup, whole tiles; past the end rows of NaN.
SIZES, TAIL = [129, 0, 5, 70, 256], 130
#: Of 8 k-blocks, the last one not whole: more than the 4 or 6 stages.
DEPTH = 460


def gradient_of(a: Tensor, columns: int, rows: int) -> Tensor:
    grad = torch.randn(a.shape[0], columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    grad[rows:] = float("nan")
    return grad


def compare_dgrad(got: Tensor, grad: Tensor, b: Tensor, offsets: Tensor) -> Comparison:
    magnitude = reference.grouped_gemm(grad.abs(), b.mT.abs(), offsets)
    return compare_bounded("grad_a", got, reference.grouped_gemm(grad, b.mT, offsets), magnitude)


def compare_wgrad(got: Tensor, start: Tensor, grad: Tensor, a: Tensor, offsets: Tensor) -> Comparison:
    want = reference.grouped_gemm_wgrad_(start, grad, a, offsets)
    magnitude = reference.grouped_gemm_wgrad_(start.abs(), grad.abs(), a.abs(), offsets)
    return compare_bounded("grad_b", got, want, magnitude)


def kernels_of(gpu: SimulatedGpu) -> list[str]:
    return [report.kernel for report in gpu.reports]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("transposed", [False, True], ids=["[E,N,K]", "[E,K,N]"])
@pytest.mark.parametrize(("columns", "tile"), [(264, 128), (512, 256)])
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_grouped_gemm(backend, transposed, columns, tile, out_dtype):
    """Several tiles for each of the blocks, the last column tile not whole."""
    arguments = make_arguments(SIZES, columns, DEPTH, torch.bfloat16, 0, tail=TAIL, transposed=transposed)
    with backend(sms=2) as gpu:
        got = hk.grouped_gemm(**arguments, out_dtype=out_dtype)
    (comparison,) = compare_grouped_gemm(arguments, got, reference.grouped_gemm(**arguments))
    assert comparison, comparison.message
    name = f"grouped_gemm_rows_{tile}_{str(out_dtype).removeprefix('torch.')}{'_across' if transposed else ''}"
    assert kernels_of(gpu) == [name]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("transposed", [False, True], ids=["[E,2I,K]", "[E,K,2I]"])
def test_grouped_swiglu(backend, transposed):
    shapes = {"tail": TAIL, "transposed": transposed, "name": "gate_up"}
    arguments = make_arguments(SIZES, 2 * 200, DEPTH, torch.bfloat16, 0, **shapes)
    with backend(sms=3):
        got = hk.grouped_swiglu(**arguments)
        again, preactivation = hk.grouped_swiglu(**arguments, return_preactivation=True)
        product = hk.grouped_gemm(arguments["a"], arguments["gate_up"], arguments["expert_offsets"])
    (comparison,) = compare_swiglu(arguments, got, reference.grouped_swiglu(**arguments))
    assert comparison, comparison.message
    assert compare_exact("out of the training form", again, got)
    assert compare_exact("preactivation", preactivation, product)


#: Groups of few rows, columns, depth, SMs, [E,K,N] -> tokens of a tile and blocks of a cluster that the plan takes.
FEW_ROWS = [
    ([5, 0, 3, 1], 136, 1100, 2, False, (16, 1)),  # several tiles for each block
    ([40, 0, 70, 1], 136, 600, 8, True, (64, 1)),
    ([1, 0, 2], 72, 2100, 132, False, (16, 8)),
    ([3, 0, 9], 72, 1100, 8, True, (16, 2)),
    ([3, 0, 20, 1], 136, 2100, 8, True, (16, 1)),  # SwiGLU: clusters of 2, several tiles for each
    ([33], 600, 2100, 8, False, (64, 1)),
]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize(("sizes", "columns", "depth", "sms", "transposed", "tile"), FEW_ROWS)
def test_few_rows(backend, sizes, columns, depth, sms, transposed, tile):
    arguments = make_arguments(sizes, columns, depth, torch.bfloat16, 0, tail=20, transposed=transposed)
    want = reference.grouped_gemm(**arguments)
    swiglu = {"a": arguments["a"], "gate_up": arguments["b"], "expert_offsets": arguments["expert_offsets"]}
    with backend(sms=sms) as gpu:
        results = [hk.grouped_gemm(**arguments, out_dtype=dtype) for dtype in DTYPES]
        activated = hk.grouped_swiglu(**swiglu)
        again, preactivation = hk.grouped_swiglu(**swiglu, return_preactivation=True)
    suffix = "_across" if transposed else ""
    assert kernels_of(gpu)[:2] == [f"grouped_gemm_few_rows_{tile[0]}_{d}{suffix}" for d in ("bfloat16", "float32")]
    assert gpu.reports[0].cluster == (tile[1], 1, 1)
    for got in results:
        (comparison,) = compare_grouped_gemm(arguments, got, want)
        assert comparison, comparison.message
    (comparison,) = compare_swiglu(swiglu, activated, reference.grouped_swiglu(**swiglu))
    assert comparison, comparison.message
    assert compare_exact("out of the training form", again, activated)
    (comparison,) = compare_grouped_gemm(arguments, preactivation, want)
    assert comparison, comparison.message


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("transposed", [False, True], ids=["[E,N,K]", "[E,K,N]"])
def test_input_gradient(backend, transposed):
    arguments = make_arguments(SIZES, DEPTH, 264, torch.bfloat16, 0, tail=TAIL, transposed=transposed)
    a, b, offsets = arguments.values()
    grad = gradient_of(a, DEPTH, sum(SIZES))
    with backend(sms=2):
        got = ops.grouped_gemm_dgrad(grad, b, offsets)
    comparison = compare_dgrad(got, grad, b, offsets)
    assert comparison, comparison.message
    assert not got[sum(SIZES) :].any()


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_weight_gradient(backend, out_dtype):
    """Groups that end within a product, at the end of one, within a k-block and at its end; NaN rows past the last."""
    sizes = [320, 0, 5, 70, 48]
    a, b, offsets = make_arguments(sizes, 136, 264, torch.bfloat16, 0, tail=TAIL).values()
    grad = gradient_of(a, 136, sum(sizes))
    with backend(sms=2):
        got = ops.grouped_gemm_wgrad(grad, a, offsets, out_dtype)
    comparison = compare_wgrad(got, torch.zeros(b.shape), grad, a, offsets)
    assert comparison, comparison.message
    assert not got[1].any(), "an expert without rows has a gradient of exact zeros"


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("layout", ["[E,N,K]", "[E,K,N]", "odd"])
def test_weight_gradient_accumulates(backend, layout):
    a, b, offsets = make_arguments([75, 0, 17], 72, 77 if layout == "odd" else 76, torch.bfloat16, 0, tail=3).values()
    grad = gradient_of(a, 72, 92)
    start = torch.randn(b.shape, generator=torch.Generator().manual_seed(2))
    total = start.mT.contiguous().mT if layout == "[E,K,N]" else start.clone()
    with backend():
        hk.grouped_gemm_wgrad_(total, grad, a, offsets)
    comparison = compare_wgrad(total, start, grad, a, offsets)
    assert comparison, comparison.message
    assert torch.equal(total[1], start[1])


def test_weight_gradient_keeps_nan_in_its_expert():
    """A k-block that starts in one expert's rows ends in those of the next."""
    a, _, offsets = make_arguments([20, 30, 7], 72, 80, torch.bfloat16, 0).values()
    for operand in range(2):
        grad = gradient_of(a, 72, 57)
        poisoned = [grad, a.clone()]
        poisoned[operand][20:50] = float("nan")
        with hk.simulated_gpu():
            got = ops.grouped_gemm_wgrad(*poisoned, offsets)
        assert got[1].isnan().all()
        assert got[[0, 2]].isfinite().all()


def test_special_values_stay_in_their_row_and_column():
    arguments = make_arguments([4, 3], 40, 72, torch.bfloat16, 0)
    a, b = arguments["a"], arguments["b"]
    a[1, 3], a[5, 0], b[0, 33, 7], b[1, 0, 0] = float("nan"), float("inf"), float("-inf"), 2.0
    with hk.simulated_gpu():
        got = hk.grouped_gemm(**arguments)
    assert got[1].isnan().all()
    assert got[5].isinf().all()
    assert not got[[0, 2, 3]][:, 33].isfinite().any()
    rest = got[[0, 2, 3, 4, 6]]
    assert rest[:, [c for c in range(40) if c != 33]].isfinite().all()
    assert rest[3:].isfinite().all()


def test_more_experts_than_lanes():
    """The search for a tile's expert goes over several windows of 32, some of them without a tile."""
    sizes = [3 if e in (0, 31, 32, 100) else 0 for e in range(130)]
    arguments = make_arguments(sizes, 16, 72, torch.bfloat16, 0, tail=2)
    for sms in (1, 2, 8):
        with hk.simulated_gpu(sms=sms):
            got = hk.grouped_gemm(**arguments)
        (comparison,) = compare_grouped_gemm(arguments, got, reference.grouped_gemm(**arguments))
        assert comparison, comparison.message


def test_bits_do_not_depend_on_the_machine():
    arguments = make_arguments(SIZES, 264, DEPTH, torch.bfloat16, 0)
    results = []
    for sms, options in ((1, {}), (5, {"seed": 3}), (132, {"latency": 1})):
        with hk.simulated_gpu(sms=sms, check_races=False, **options):
            results.append(hk.grouped_gemm(**arguments))
    for other in results[1:]:
        assert compare_exact("out", other, results[0])


HOSTILE = [
    [0, 50, 20, 60],
    [0, -5, 30, 40],
    [7, 9, 12, 15],
    [0, 10, 2**31 - 1, 5],
    [-(2**31), 2**31 - 1, -(2**31), 0],
    [0, 0, 0, -1],
    [90, 80, 70, 60],
]


@pytest.mark.parametrize(("rows", "few"), [(64, True), (900, False)])
@pytest.mark.parametrize("values", HOSTILE, ids=str)
def test_hostile_offsets_stay_in_bounds(values: list[int], rows: int, few: bool):
    """Group e ends at the largest offset so far, within 0 and S, and starts where the one before ends."""
    a, b, _ = make_arguments([rows, 0, 0], 48, 72, torch.bfloat16, 0).values()
    grad = gradient_of(a, 48, rows)
    ends = [0]
    for value in values[1:]:
        ends.append(max(ends[-1], min(max(value, 0), rows)))
    hostile, meant = torch.tensor(values, dtype=torch.int32), torch.tensor(ends, dtype=torch.int32)
    with hk.simulated_gpu(sms=1) as gpu:
        got = [
            [
                hk.grouped_gemm(a, b, o),
                hk.grouped_swiglu(a, b, o),
                ops.grouped_gemm_dgrad(grad, b, o),
                ops.grouped_gemm_wgrad(grad, a, o),
            ]
            for o in (hostile, meant)
        ]
    assert gpu.findings == []
    assert ("few_rows" in kernels_of(gpu)[0]) == few
    for x, y in zip(*got, strict=True):
        assert compare_exact("out", x, y)
    (comparison,) = compare_grouped_gemm(
        {"a": a, "b": b, "expert_offsets": meant}, got[0][0], reference.grouped_gemm(a, b, meant)
    )
    assert comparison, comparison.message


def shifted(x: Tensor) -> Tensor:
    """The same values at an address that is no multiple of 16."""
    storage = torch.full((x.numel() + 1,), float("nan"), dtype=x.dtype)
    storage[1:] = x.flatten()
    return storage[1:].view(x.shape)


LAYOUTS: dict[str, Any] = {
    "rows further apart": lambda a, b: (torch.cat([a, a], 1)[:, : a.shape[1]], torch.cat([b, b], 2)[..., : b.shape[2]]),
    "misaligned": lambda a, b: (shifted(a), shifted(b)),
    "transposed activations": lambda a, b: (a.T.contiguous().T, b),
    "one matrix for all experts": lambda a, b: (a, b[:1].expand(b.shape)),
    "strides of no matrix": lambda a, b: (a, torch.stack([b, b], 3)[..., 0]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("columns", "depth"), [(40, 72), (33, 77), (1, 1)])
def test_layouts(layout: str, columns: int, depth: int):
    arguments = make_arguments([5, 0, 17], columns, depth, torch.bfloat16, 0, tail=2)
    a, b = LAYOUTS[layout](arguments["a"], arguments["b"])
    arguments = {"a": a, "b": b, "expert_offsets": arguments["expert_offsets"]}
    grad = gradient_of(a, columns, 22)
    with hk.simulated_gpu():
        got = hk.grouped_gemm(**arguments)
        grad_a = ops.grouped_gemm_dgrad(grad, b, arguments["expert_offsets"])
        grad_b = ops.grouped_gemm_wgrad(grad, a, arguments["expert_offsets"])
    assert got.is_contiguous()
    (comparison,) = compare_grouped_gemm(arguments, got, reference.grouped_gemm(**arguments))
    assert comparison, comparison.message
    comparison = compare_dgrad(grad_a, grad, b, arguments["expert_offsets"])
    assert comparison, comparison.message
    comparison = compare_wgrad(grad_b, torch.zeros(b.shape), grad, a, arguments["expert_offsets"])
    assert comparison, comparison.message


def test_odd_sizes_for_many_rows():
    """Rows of results that are no multiple of 16 bytes, in whole tiles and at the end of groups."""
    sizes, columns, depth = [300, 0, 530], 2 * 77, 333
    arguments = make_arguments(sizes, columns, depth, torch.bfloat16, 0, tail=5)
    swiglu = {"a": arguments["a"], "gate_up": arguments["b"], "expert_offsets": arguments["expert_offsets"]}
    first = {**arguments, "b": arguments["b"][:, :77]}
    with hk.simulated_gpu(sms=1) as gpu:
        results = [hk.grouped_gemm(**first, out_dtype=dtype) for dtype in DTYPES]
        activated, preactivation = hk.grouped_swiglu(**swiglu, return_preactivation=True)
    assert not any("few_rows" in kernel for kernel in kernels_of(gpu))
    for got in results:
        (comparison,) = compare_grouped_gemm(first, got, reference.grouped_gemm(**first))
        assert comparison, comparison.message
    (comparison,) = compare_swiglu(swiglu, activated, reference.grouped_swiglu(**swiglu))
    assert comparison, comparison.message
    (comparison,) = compare_grouped_gemm(arguments, preactivation, reference.grouped_gemm(**arguments))
    assert comparison, comparison.message


def test_offsets_may_be_strided():
    arguments = make_arguments([5, 17], 24, 48, torch.bfloat16, 0)
    offsets = torch.stack([arguments["expert_offsets"], torch.full((3,), -1, dtype=torch.int32)], dim=1)[:, 0]
    with hk.simulated_gpu():
        want = hk.grouped_gemm(**arguments)
        assert compare_exact("out", hk.grouped_gemm(arguments["a"], arguments["b"], offsets), want)


@pytest.mark.parametrize("few", [True, False])
def test_expert_strides_past_two_to_the_31(few: bool):
    """The second expert's weights lie past 2^31 elements, of memory that is never touched in between."""
    stride, experts, lines, columns = 2**31 + 8, 2, 16, 40
    storage = torch.empty(stride * (experts - 1) + lines * columns, dtype=torch.bfloat16)
    b = storage.as_strided((experts, lines, columns), (stride, columns, 1))
    small = make_arguments([2, 5] if few else [384, 384], lines, columns, torch.bfloat16, 0)
    b.copy_(small["b"])
    a, offsets = small["a"], small["expert_offsets"]
    grad = gradient_of(a, lines, a.shape[0])
    with hk.simulated_gpu(sms=1) as gpu:
        far, near = (
            [hk.grouped_gemm(a, w, offsets), hk.grouped_swiglu(a, w, offsets), ops.grouped_gemm_dgrad(grad, w, offsets)]
            for w in (b, small["b"])
        )
    assert all(("few_rows" in kernel) == few for kernel in kernels_of(gpu))
    for x, y in zip(far, near, strict=True):
        assert compare_exact("out", x, y)


@pytest.mark.parametrize(
    ("experts", "rows", "columns", "depth"), [(0, 4, 6, 8), (2, 0, 6, 8), (2, 4, 0, 8), (2, 4, 6, 0)]
)
def test_empty(experts: int, rows: int, columns: int, depth: int):
    a, b = torch.randn(rows, depth).bfloat16(), torch.randn(experts, columns, depth).bfloat16()
    grad, offsets = torch.randn(rows, columns).bfloat16(), offsets_of([rows // 2] * experts)
    with hk.simulated_gpu():
        assert torch.equal(hk.grouped_gemm(a, b, offsets), torch.zeros(rows, columns, dtype=torch.bfloat16))
        assert torch.equal(hk.grouped_swiglu(a, b, offsets), torch.zeros(rows, columns // 2, dtype=torch.bfloat16))
        assert torch.equal(ops.grouped_gemm_dgrad(grad, b, offsets), torch.zeros(rows, depth, dtype=torch.bfloat16))
        grad_b = ops.grouped_gemm_wgrad(grad, a, offsets)
    assert grad_b.shape == (experts, columns, depth)
    assert rows or not grad_b.any()


def test_gradients_of_a_float32_result():
    """Autograd hands a float32 gradient over, which the products take rounded to bfloat16."""
    arguments = make_arguments([13, 0, 9], 40, 72, torch.bfloat16, 0)
    a, b, offsets = arguments.values()
    a.requires_grad_(), b.requires_grad_()
    grad = torch.randn(22, 40, generator=torch.Generator().manual_seed(1))
    with hk.simulated_gpu():
        hk.grouped_gemm(a, b, offsets, out_dtype=torch.float32).backward(grad)
    assert a.grad is not None
    assert b.grad is not None
    rounded = grad.bfloat16()
    comparison = compare_dgrad(a.grad, rounded, b.detach(), offsets)
    assert comparison, comparison.message
    comparison = compare_wgrad(b.grad, torch.zeros(b.shape), rounded, a.detach(), offsets)
    assert comparison, comparison.message


A, B, OFFSETS = torch.randn(5, 8).bfloat16(), torch.randn(2, 6, 8).bfloat16(), offsets_of([3, 2])
GRADIENT = torch.zeros(2, 6, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hk.grouped_gemm(A.float(), B.float(), OFFSETS),
            "^grouped_gemm: a has dtype float32; on a GPU: bfloat16",
        ),
        (lambda: hk.grouped_gemm(A, B.float(), OFFSETS), "^grouped_gemm: b has dtype float32; on a GPU: bfloat16"),
        (lambda: hk.grouped_gemm(A[:, :7], B, OFFSETS), r"^grouped_gemm: a has shape \[5, 7\]; required: .*\[any, 8\]"),
        (lambda: hk.grouped_gemm(A[0], B, OFFSETS), r"^grouped_gemm: a has shape \[8\]; 2 dimensions are required"),
        (lambda: hk.grouped_gemm(A, B[0], OFFSETS), r"^grouped_gemm: b has shape \[6, 8\]; 3 dimensions are required"),
        (
            lambda: hk.grouped_gemm(A, B, OFFSETS.long()),
            "^grouped_gemm: expert_offsets has dtype int64; allowed: int32",
        ),
        (
            lambda: hk.grouped_gemm(A, B, OFFSETS[:2]),
            r"^grouped_gemm: expert_offsets has shape \[2\]; required: .*\[3\]",
        ),
        (lambda: hk.grouped_gemm(A, B, OFFSETS, out_dtype=torch.half), "^grouped_gemm: out_dtype is float16; allowed"),
        (
            lambda: hk.grouped_swiglu(A, B[:, :5], OFFSETS),
            r"^grouped_swiglu: gate_up has shape \[2, 5, 8\]; dimension 1",
        ),
        (lambda: ops.grouped_gemm_dgrad(A, B, OFFSETS), r"^grouped_gemm_dgrad: grad_out has shape \[5, 8\]; required"),
        (
            lambda: ops.grouped_gemm_wgrad(A[:4], A, OFFSETS),
            r"^grouped_gemm_wgrad: a has shape \[5, 8\]; required: .*\[4, 8\]",
        ),
        (lambda: hk.grouped_gemm_wgrad_(B, A[:, :6], A, OFFSETS), "^grouped_gemm_wgrad_: grad_b has dtype bfloat16"),
        (
            lambda: hk.grouped_gemm_wgrad_(B[:1].float().expand(2, 6, 8), A[:, :6], A, OFFSETS),
            "^grouped_gemm_wgrad_: grad_b has strides that make elements share memory",
        ),
        (
            lambda: hk.grouped_gemm_wgrad_(GRADIENT, GRADIENT[0, :5].view(torch.bfloat16)[:, :6], A, OFFSETS),
            "^grouped_gemm_wgrad_: grad_b shares memory with grad_out",
        ),
    ],
)
def test_bad_input(call: Any, message: str):
    with hk.simulated_gpu() as gpu, pytest.raises(RuntimeError, match=message):
        call()
    assert gpu.reports == []


# ---- counters -------------------------------------------------------------------------------------------------------

#: Rows of each expert: for plans of many rows and of few.
LOADS = {
    "balanced": ([256] * 4, [1] * 8),
    "Zipf": ([330, 165, 110, 82, 66, 55, 47, 41], [34, 17, 11, 8, 7, 6, 5, 4]),
    "one expert": ([0, 777, 0, 0], [0, 0, 0, 90, 0, 0, 0, 0]),
}
#: Forms that multiply the rows of groups with matrices of weights, few or many.
PRODUCTS = ["forward", "swiglu", "swiglu for training", "input gradient"]


def run_product(form: str, sizes: list[int], columns: int, depth: int, sms: int) -> tuple[Any, int]:
    """What the one launch counted, and the columns of its result. Of ``columns`` lines of weights SwiGLU makes half."""
    a, b, offsets = make_arguments(sizes, columns, depth, torch.bfloat16, 0).values()
    with hk.simulated_gpu(sms=sms, check_races=False, split_warps=False) as gpu:
        if form == "forward":
            hk.grouped_gemm(a, b, offsets)
        elif form == "input gradient":
            ops.grouped_gemm_dgrad(a, b.mT.contiguous(), offsets)
        else:
            hk.grouped_swiglu(a, b, offsets, return_preactivation=form != "swiglu")
    (report,) = gpu.reports
    return report, columns // 2 if "swiglu" in form else columns


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(
    ("form", "columns"), [(form, columns) for form in PRODUCTS for columns in (304 if "swiglu" in form else 296, 512)]
)
def test_work_is_what_the_shapes_demand(form: str, load: str, columns: int):
    """Tensor core flops of whole warpgroups (64 rows) that have rows; bytes of whole tiles; no bank conflicts, where
    the results' last 64 columns are cut off, too."""
    sizes, depth = LOADS[load][0], 192
    report, results = run_product(form, sizes, columns, depth, sms=1 if "swiglu" in form else 4)
    assert "few_rows" not in report.kernel
    tile = 128 if "_128_" in report.kernel else 256
    across = -(-results // (tile // 2)) if "swiglu" in form else -(-results // tile)
    halves, tiles = (sum(-(-size // rows) for size in sizes) for rows in (64, 128))
    assert sum(report.counters["mma_flops"].values()) == 2 * 64 * halves * tile * across * depth
    assert report.counters["tma_load_bytes"] == tiles * across * (128 + tile) * depth * 2
    assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())
    # Rows leave once: by TMA in boxes of 64 rows that the group fills, otherwise by the threads.
    whole, parts = sum(size // 64 for size in sizes), 3 if form == "swiglu for training" else 1
    assert report.counters["tma_stores"] == whole * parts * -(-results // 64)
    assert report.counters["global_store_bytes"] == sum(size % 64 for size in sizes) * parts * results * 2


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("form", "sms", "cluster"), [*((form, 24, 1) for form in PRODUCTS), ("forward", 132, 2)])
def test_work_for_few_rows(form: str, load: str, sms: int, cluster: int):
    """Weights are loaded once for each tile of rows, whatever the cluster; no bank conflicts."""
    sizes, columns, depth = LOADS[load][1], 528, 2048
    report, results = run_product(form, sizes, columns, depth, sms)
    assert "few_rows" in report.kernel
    tokens = 64 if "_64" in report.kernel else 16
    assert report.cluster == (cluster, 1, 1)
    lines = 256 if "swiglu" in form else 128
    tiles = sum(-(-size // tokens) for size in sizes) * -(-columns // lines)
    assert sum(report.counters["mma_flops"].values()) == tiles * 2 * lines * tokens * depth
    assert report.counters["tma_load_bytes"] == tiles * (lines + tokens) * depth * 2
    parts = 3 if form == "swiglu for training" else 1
    assert report.counters["global_store_bytes"] == sum(sizes) * parts * results * 2
    assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())


@pytest.mark.parametrize("load", LOADS)
def test_weight_gradient_multiplies_only_what_has_rows(load: str):
    sizes, columns, depth = [64, 17, 0, 100] if load == "balanced" else LOADS[load][0], 200, 300
    a, _, offsets = make_arguments(sizes, columns, depth, torch.bfloat16, 0).values()
    with hk.simulated_gpu(check_races=False, split_warps=False) as gpu:
        ops.grouped_gemm_wgrad(gradient_of(a, columns, sum(sizes)), a, offsets)
    (report,) = gpu.reports
    tiles = -(-columns // 128) * -(-depth // 256)
    steps, blocks = (sum(-(-size // rows) for size in sizes) for rows in (16, 64))
    assert sum(report.counters["mma_flops"].values()) == tiles * 2 * 128 * 256 * 16 * steps
    assert report.counters["tma_load_bytes"] == tiles * (128 + 256) * blocks * 64 * 2
    assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())
