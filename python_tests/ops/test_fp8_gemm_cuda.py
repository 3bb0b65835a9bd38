"""CUDA kernels of the stem fp8_gemm, simulated: shapes that reuse stages and slices, scales, wrong offsets."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.spec import all_specs
from hunyuan_kernels.testing.specs.grouped_gemm import offsets_of
from python_tests.backends import SIMULATED, needs_device_code

pytestmark = needs_device_code

E4M3 = torch.float8_e4m3fn
DTYPES = (torch.bfloat16, torch.float32)
SPECS = {spec.name: spec for spec in all_specs()}
#: Groups of many, no and few rows; rows of NaN, with scales of NaN, past the end.
SIZES, TAIL = [129, 0, 5, 70, 256], 130
#: Of 7 k-blocks, the last one not whole: more than the stages.
DEPTH = 830


def e4m3(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(E4M3)


def scale(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def blocks(size: int) -> int:
    return -(-size // 128)


def activations(rows: int, valid: int, kind: str) -> dict[str, Tensor]:
    a, a_scale = e4m3(rows, DEPTH).float(), scale(*{"static": (), "row": (rows,), "block": (rows, 7)}[kind])
    a[valid:] = float("nan")
    if kind == "block":  # as quantize_fp8 leaves them: M-major, the stride of a block a multiple of 4
        a_scale = torch.nn.functional.pad(a_scale.T, (0, -rows % 4 + 4)).T[:rows]
    if kind != "static":
        a_scale[valid:] = float("nan")
    return {"a": a.to(E4M3), "a_scale": a_scale}


def check(name: str, arguments: dict[str, Any], got: Any) -> None:
    spec = SPECS[name]
    for comparison in spec.compare(arguments, got, spec.reference(**arguments)):
        assert comparison, comparison.message


def kernels_of(gpu: Any) -> list[str]:
    return [report.kernel for report in gpu.reports]


#: Scales, columns and columns of a tile, dtype: every kernel, and every way through one.
ROWS = [
    *product([("row", "channel"), ("block", "block")], [(200, 128), (512, 256)], DTYPES),
    *product([("static", "tensor"), ("block", "channel"), ("static", "block")], [(200, 128)], DTYPES[:1]),
]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize(("kinds", "columns_and_tile", "out_dtype"), ROWS)
def test_grouped_gemm(backend, kinds, columns_and_tile, out_dtype):
    """Several tiles for each of the blocks, the last column tile not whole."""
    (columns, tile), experts, rows = columns_and_tile, len(SIZES), sum(SIZES) + TAIL
    shape = {"tensor": (experts,), "channel": (experts, columns), "block": (experts, blocks(columns), 7)}[kinds[1]]
    arguments = {
        **activations(rows, sum(SIZES), kinds[0]),
        "b": e4m3(experts, columns, DEPTH, seed=2),
        "b_scale": scale(*shape, seed=3),
        "expert_offsets": offsets_of(SIZES),
        "out_dtype": out_dtype,
    }
    with backend(sms=2) as gpu:
        got = hk.grouped_gemm_fp8(**arguments)
    check("grouped_gemm_fp8", arguments, got)
    assert not got[sum(SIZES) :].any()
    name = f"fp8_gemm_rows_{tile}_{str(out_dtype).removeprefix('torch.')}{'_blocks' if 'block' in kinds else ''}"
    assert kernels_of(gpu) == [name]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("kinds", [("static", "halves"), ("row", "channel"), ("block", "half blocks")], ids=" x ".join)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_grouped_swiglu(backend, kinds, out_dtype):
    """I = 200: gate and up have blocks of their own."""
    experts, rows, half = len(SIZES), sum(SIZES) + TAIL, 200
    shape = {"halves": (experts, 2), "channel": (experts, 2 * half), "half blocks": (experts, 2, 2, 7)}[kinds[1]]
    arguments = {
        **activations(rows, sum(SIZES), kinds[0]),
        "gate_up": e4m3(experts, 2 * half, DEPTH, seed=2),
        "b_scale": scale(*shape, seed=3) * DEPTH**-0.5,
        "expert_offsets": offsets_of(SIZES),
        "out_dtype": out_dtype,
    }
    with backend(sms=3):
        got = hk.grouped_swiglu_fp8(**arguments)
    check("grouped_swiglu_fp8", arguments, got)
    assert not got[sum(SIZES) :].any()


QUANTIZED = [
    (200, ("static", "halves")),  # I: one block of scales that is whole and one that is not; no whole 16 bytes: copied
    (200, ("block", "half blocks")),
    (144, ("row", "channel")),
    (128, ("block", "half blocks")),
]


def quantized_swiglu_arguments(half: int, kinds: tuple[str, str]) -> dict[str, Any]:
    experts, rows = len(SIZES), sum(SIZES) + TAIL
    shape = {"halves": (experts, 2), "channel": (experts, 2 * half), "half blocks": (experts, 2, blocks(half), 7)}
    return {
        **activations(rows, sum(SIZES), kinds[0]),
        "gate_up": e4m3(experts, 2 * half, DEPTH, seed=2),
        "b_scale": scale(*shape[kinds[1]], seed=3) * DEPTH**-0.5,
        "expert_offsets": offsets_of(SIZES),
    }


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize(("half", "kinds"), QUANTIZED)
@pytest.mark.parametrize("out_scale", [None, torch.tensor([0.0005])], ids=["fresh", "static"])
def test_quantized_swiglu(backend, half, kinds, out_scale):
    """The bits that quantize_fp8 makes of the fp32 result of the same sums, in one launch."""
    arguments, rows = quantized_swiglu_arguments(half, kinds), sum(SIZES) + TAIL
    with backend(sms=3) as gpu:
        exact = hk.grouped_swiglu_fp8(**arguments, out_dtype=torch.float32)
        before = len(gpu.reports)
        q, q_scale = hk.grouped_swiglu_fp8(**arguments, out_dtype=E4M3, out_scale=out_scale)
        (report,) = gpu.reports[before:]
    assert report.kernel == "fp8_gemm_swiglu_e4m3" + ("_blocks" if "block" in kinds else "")
    if out_scale is None:
        want = hk.quantize_fp8(exact, "block_1x128")
        assert q_scale.stride() == (1, -(-rows // 4) * 4)
        assert (q_scale[sum(SIZES) :] == 1).all()
    else:
        want = hk.quantize_fp8(exact, "tensor", out_scale.reshape(()))
        assert q.float().abs().amax() == 448, "nothing saturates"
    assert q.is_contiguous()
    assert compare_exact("q", q, want[0])
    assert compare_exact("scale", q_scale, want[1])
    check("grouped_swiglu_fp8", {**arguments, "out_dtype": E4M3, "out_scale": out_scale}, (q, q_scale))


def e4m3_swiglu_of(up: list[float], **options: Any) -> tuple[Tensor, Tensor]:
    """Of one row whose gate is 256 everywhere (silu(256) is 256), with these values of up: 256 * up."""
    gate_up = torch.zeros(1, 2 * len(up), 16)
    gate_up[0, : len(up), 0], gate_up[0, len(up) :, 0] = 256.0, torch.tensor(up)
    a = torch.zeros(1, 16)
    a[0, 0] = 1.0
    call = {"a": a.to(E4M3), "gate_up": gate_up.to(E4M3), "expert_offsets": offsets_of([1])}
    scales = {"a_scale": options.pop("a_scale", torch.tensor(1.0)), "b_scale": torch.ones(1)}
    return hk.grouped_swiglu_fp8(**call, **scales, out_dtype=E4M3, **options)


def test_quantized_swiglu_of_what_is_not_finite():
    """NaN and infinity have no part in a scale, infinity saturates, a block of small values has scale 1."""
    nan = float("nan")
    up = torch.full((130,), 1.75)
    up[0], up[1], up[2], up[128:] = nan, -3.5, 0.0, 0.4375
    with hk.simulated_gpu():
        q, q_scale = e4m3_swiglu_of(up.tolist())
        assert q_scale.tolist() == [[2.0, 0.25]]
        want = up * 128
        want[128:] = 448
        assert torch.equal(q[0].float().nan_to_num(nan=-1.0), want.nan_to_num(nan=-1.0))
        q, _ = e4m3_swiglu_of([1.0, -2.0, 0.0], out_scale=torch.tensor(2.0**-120))
        assert q.tolist() == [[448.0, -448.0, 0.0]]
        q, q_scale = e4m3_swiglu_of([1.0, -2.0], a_scale=torch.tensor(2.0**120))  # 256 * 2^120 squared
        assert (q.tolist(), q_scale.tolist()) == ([[448.0, -448.0]], [[1.0]])
        q, q_scale = e4m3_swiglu_of([1.0, -2.0], a_scale=torch.tensor(2.0**-80))
        assert (q.tolist(), q_scale.tolist()) == ([[0.0, 0.0]], [[1.0]])


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("kinds", [("row", "channel"), ("block", "block")], ids=" x ".join)
def test_dense(backend, kinds):
    rows, columns = 300, 400
    shape = {"channel": (columns,), "block": (blocks(columns), 7)}[kinds[1]]
    arguments = {**activations(rows, rows, kinds[0]), "b": e4m3(columns, DEPTH, seed=2)}
    arguments |= {"b_scale": scale(*shape, seed=3), "out_dtype": torch.float32}
    with backend(sms=2):
        got = hk.fp8_gemm(**arguments)
    check("fp8_gemm", arguments, got)


def test_nan_stays_in_its_row_and_column():
    a, b = e4m3(200, 300).float(), e4m3(140, 300, seed=2).float()
    a[7, 3] = b[130, 299] = float("nan")
    with hk.simulated_gpu():
        got = hk.fp8_gemm(a.to(E4M3), b.to(E4M3), scale(200), scale(140))
    want = torch.zeros(200, 140, dtype=torch.bool)
    want[7], want[:, 130] = True, True
    assert torch.equal(got.isnan(), want)


@pytest.mark.parametrize("ends", [[0, 1 << 30, -5, 90, 60], [-1, -1, 33, 2**31 - 1, 5], [50, 20, 0, 10, 95]])
def test_wrong_offsets_stay_in_bounds(ends: list[int]):
    """Group e ends at the largest of the offsets up to e + 1, within the rows."""
    rows = 95
    meant, top = [0], 0
    for end in ends[1:]:
        top = max(top, min(max(end, 0), rows))
        meant.append(top)
    call = {"a": e4m3(rows, 300), "b": e4m3(4, 72, 300, seed=2)}
    call |= {"a_scale": scale(rows, 3), "b_scale": scale(4, 1, 3, seed=3)}
    with hk.simulated_gpu(sms=2) as gpu:
        got = [hk.grouped_gemm_fp8(**call, expert_offsets=torch.tensor(o, dtype=torch.int32)) for o in (ends, meant)]
    assert gpu.findings == []
    assert compare_exact("out", *got)


def shifted(x: Tensor) -> Tensor:
    """The same values at an address that is no multiple of 16."""
    storage = torch.zeros(x.numel() + 1, dtype=torch.uint8)
    storage[1:] = x.view(torch.uint8).flatten()
    return storage[1:].view(E4M3).view(x.shape)


LAYOUTS: dict[str, Any] = {
    "rows further apart": lambda x: torch.cat([x.view(torch.uint8)] * 2, -1).view(E4M3)[..., : x.shape[-1]],
    "misaligned": shifted,
    "transposed": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("columns", "depth"), [(40, 80), (33, 77), (1, 1)])
def test_layouts(layout: str, columns: int, depth: int):
    call = {"a_scale": scale(22), "b_scale": scale(3, columns, seed=3), "expert_offsets": offsets_of([5, 0, 15])}
    a, b = e4m3(22, depth), e4m3(3, columns, depth, seed=2)
    with hk.simulated_gpu():
        want = hk.grouped_gemm_fp8(a.contiguous(), b.contiguous(), **call)
        got = hk.grouped_gemm_fp8(LAYOUTS[layout](a), LAYOUTS[layout](b), **call)
    assert got.is_contiguous()
    assert compare_exact("out", got, want)
    check("grouped_gemm_fp8", {"a": a, "b": b, **call, "out_dtype": torch.bfloat16}, got)


@pytest.mark.parametrize(
    ("experts", "rows", "columns", "depth"), [(0, 4, 6, 8), (2, 0, 6, 8), (2, 4, 0, 8), (2, 4, 6, 0)]
)
def test_empty(experts: int, rows: int, columns: int, depth: int):
    a, b, one = e4m3(rows, depth), e4m3(experts, columns, depth), torch.tensor(1.0)
    offsets, scales = offsets_of([rows // 2] * experts), torch.ones(experts)
    with hk.simulated_gpu():
        assert torch.equal(hk.grouped_gemm_fp8(a, b, offsets, one, scales).float(), torch.zeros(rows, columns))
        swiglu = hk.grouped_swiglu_fp8(a, b, offsets, one, scales)
        assert torch.equal(swiglu.float(), torch.zeros(rows, columns // 2))
        q, q_scale = hk.grouped_swiglu_fp8(a, b, offsets, one, scales, out_dtype=E4M3)
        assert torch.equal(q.float(), torch.zeros(rows, columns // 2))
        assert torch.equal(q_scale, torch.ones(rows, blocks(columns // 2)))
        if experts:
            dense = hk.fp8_gemm(a, b[0], one, one).float()
            assert dense.shape == (rows, columns)
            assert depth or not dense.any()


A, B, GROUPS, ONE = e4m3(4, 200), e4m3(2, 8, 200), offsets_of([3, 1]), torch.tensor(1.0)
TWO = torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hk.fp8_gemm(A.bfloat16(), B[0], ONE, ONE), "^fp8_gemm: a has dtype bfloat16; allowed: float8_e4m3fn"),
        (lambda: hk.fp8_gemm(A.to(torch.float8_e5m2), B[0], ONE, ONE), "^fp8_gemm: a has dtype float8_e5m2; allowed"),
        (lambda: hk.fp8_gemm(A, B[0].to(torch.float8_e4m3fnuz), ONE, ONE), "^fp8_gemm: b has dtype float8_e4m3fnuz"),
        (lambda: hk.fp8_gemm(A, B[0], ONE.to("meta"), ONE), "^fp8_gemm: a_scale is on device .*, but a is on cpu"),
        (lambda: hk.fp8_gemm(A, B[0], ONE, ONE.to("meta")), "^fp8_gemm: b_scale is on device .*, but b is on cpu"),
        (
            lambda: hk.grouped_gemm_fp8(A, B.to(torch.float8_e4m3fnuz), GROUPS, ONE, TWO),
            "^grouped_gemm_fp8: b has dtype float8_e4m3fnuz; allowed: float8_e4m3fn",
        ),
        (
            lambda: hk.grouped_gemm_fp8(A.to(torch.float8_e4m3fnuz), B, GROUPS, ONE, TWO),
            "^grouped_gemm_fp8: a has dtype float8_e4m3fnuz; allowed: float8_e4m3fn",
        ),
        (
            lambda: hk.grouped_swiglu_fp8(A, B.to(torch.float8_e5m2), GROUPS, ONE, TWO),
            "^grouped_swiglu_fp8: gate_up has dtype float8_e5m2; allowed: float8_e4m3fn",
        ),
        (
            lambda: hk.grouped_swiglu_fp8(A, B, GROUPS, ONE, torch.ones(2, 1, 2)),
            r"^grouped_swiglu_fp8: b_scale has shape \[2, 1, 2\]; allowed: .*\[2, 2, 1, 2\]",
        ),
        (lambda: hk.fp8_gemm(A, B, ONE, ONE), r"^fp8_gemm: b has shape \[2, 8, 200\]; 2 dimensions are required"),
        (lambda: hk.fp8_gemm(A[:, :7], B[0], ONE, ONE), r"^fp8_gemm: a has shape \[4, 7\]; required: .*\[any, 200\]"),
        (lambda: hk.fp8_gemm(A, B[0], torch.ones(3), ONE), r"^fp8_gemm: a_scale has shape \[3\]; allowed .*\[4, 2\]"),
        (lambda: hk.fp8_gemm(A, B[0], ONE, ONE.double()), "^fp8_gemm: b_scale has dtype float64; allowed: float32"),
        (lambda: hk.fp8_gemm(A, B[0], ONE, ONE, out_dtype=torch.half), "^fp8_gemm: out_dtype is float16; allowed"),
        (
            lambda: hk.grouped_gemm_fp8(A, B, GROUPS[:2], ONE, TWO),
            r"^grouped_gemm_fp8: expert_offsets has shape \[2\]; required: .*\[3\]",
        ),
        (lambda: hk.grouped_gemm_fp8(A, B, GROUPS, None, TWO), "^grouped_gemm_fp8: a_scale is None, but a has dtype"),
        (lambda: hk.grouped_swiglu_fp8(A, B[:, :7], GROUPS, ONE, TWO), "dimension 1 must be even"),
        (
            lambda: hk.grouped_swiglu_fp8(A, B, GROUPS, ONE, TWO, out_dtype=E4M3, out_scale=torch.ones(2)),
            r"^grouped_swiglu_fp8: out_scale has shape \[2\]; one element is required",
        ),
        (
            lambda: hk.grouped_swiglu_fp8(A, B, GROUPS, ONE, TWO, out_dtype=E4M3, out_scale=ONE.double()),
            "^grouped_swiglu_fp8: out_scale has dtype float64; allowed: float32",
        ),
    ],
)
def test_bad_input(call: Any, message: str):
    with hk.simulated_gpu() as gpu, pytest.raises(RuntimeError, match=message):
        call()
    assert gpu.reports == []


# ---- counters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[256] * 4, [400, 200, 133, 50], [0, 777, 0, 0]])
@pytest.mark.parametrize("columns", [264, 512])
def test_work_is_what_the_shapes_demand(sizes: list[int], columns: int):
    """Tensor core flops of whole warpgroups that have rows; bytes of whole tiles; one FFMA for each 128 of K."""
    depth, experts = 256, 4
    with hk.simulated_gpu(sms=4, check_races=False, split_warps=False) as gpu:
        hk.grouped_gemm_fp8(
            e4m3(sum(sizes), depth), e4m3(experts, columns, depth), offsets_of(sizes), ONE, torch.ones(experts)
        )
    (report,) = gpu.reports
    tile = 128 if "_128_" in report.kernel else 256
    across = -(-columns // tile)
    halves, tiles = (sum(-(-size // rows) for size in sizes) for rows in (64, 128))
    assert sum(report.counters["mma_flops"].values()) == 2 * 64 * halves * tile * across * depth
    assert report.counters["tma_load_bytes"] == tiles * across * (128 + tile) * depth
    assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())
