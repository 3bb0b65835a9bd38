"""CUDA kernels for e4m3 weights under bf16 activations, simulated: every kernel, as they are and packed."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import fp8_gemm as reference
from hunyuan_kernels.reference import prepack as prepack_reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from hunyuan_kernels.testing.spec import all_specs
from hunyuan_kernels.testing.specs.fp8_gemm import absolute
from hunyuan_kernels.testing.specs.grouped_gemm import offsets_of
from python_tests.backends import SIMULATED, needs_device_code

pytestmark = needs_device_code

E4M3 = torch.float8_e4m3fn
SPECS = {spec.name: spec for spec in all_specs()}
#: Groups of many, one, no and few rows, and rows of NaN past the end.
SIZES, TAIL = [70, 0, 1, 17, 129], 20
#: Of 10 k-blocks, the last one not whole: more than the stages.
DEPTH = 1184
#: Two column tiles, the last one not whole; with SwiGLU for gate and up each.
COLUMNS = 176
packed_or_not = pytest.mark.parametrize("packed", [False, True], ids=["as they are", "packed"])


def e4m3(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(E4M3)


def bf16(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def scale(*shape: int, seed: int = 1) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1) * DEPTH**-0.5


def bits(weights: Tensor) -> Tensor:
    return weights.view(torch.uint8)


def check(name: str, arguments: dict[str, Any], got: Any) -> None:
    spec = SPECS[name]
    for comparison in spec.compare(arguments, got, spec.reference(**arguments)):
        assert comparison, comparison.message


def grouped(name: str, kind: str, sizes: list[int], columns: int, depth: int = DEPTH, tail: int = TAIL) -> Any:
    experts, rows, blocks = len(sizes), sum(sizes) + tail, -(-depth // 128)
    lines = columns * (2 if name == "gate_up" else 1)
    shapes = {
        "tensor": (experts,),
        "channel": (experts, lines),
        "block": (experts, -(-lines // 128), blocks),
        "halves": (experts, 2),
        "half blocks": (experts, 2, -(-columns // 128), blocks),
    }
    a = bf16(rows, depth)
    a[sum(sizes) :] = float("nan")
    return {
        "a": a,
        name: e4m3(experts, lines, depth, seed=2),
        "expert_offsets": offsets_of(sizes),
        "a_scale": None,
        "b_scale": scale(*shapes[kind], seed=3),
    }


@pytest.mark.parametrize("backend", SIMULATED)
@packed_or_not
@pytest.mark.parametrize(
    ("kind", "sizes", "tokens"),
    [("tensor", SIZES, 64), ("channel", [3, 0, 1, 17], 16), ("block", SIZES, 64), ("block", [3, 0, 1, 17], 16)],
)
def test_grouped_gemm(backend, packed, kind, sizes, tokens):
    """Several tiles for each of the blocks."""
    arguments = grouped("b", kind, sizes, COLUMNS) | {"out_dtype": torch.float32 if packed else torch.bfloat16}
    with backend(sms=2) as gpu:
        weights = hk.prepack(arguments["b"]) if packed else arguments["b"]
        got = hk.grouped_gemm_fp8(**arguments | {"b": weights})
    check("grouped_gemm_fp8", arguments, got)
    assert not got[sum(sizes) :].any()
    name = f"fp8_gemm_weight_only_{tokens}{'_packed' if packed else ''}{'_blocks' if kind == 'block' else ''}"
    assert [report.kernel for report in gpu.reports] == [name]


@pytest.mark.parametrize("backend", SIMULATED)
@packed_or_not
@pytest.mark.parametrize(
    ("kind", "sizes", "tokens"),
    [
        ("halves", SIZES, 64),
        ("channel", [3, 0, 1, 17], 16),
        ("half blocks", SIZES, 64),
        ("half blocks", [3, 0, 1, 17], 16),
    ],
)
def test_grouped_swiglu(backend, packed, kind, sizes, tokens):
    """I is no multiple of 128: gate and up have blocks of their own."""
    arguments = grouped("gate_up", kind, sizes, COLUMNS) | {"out_dtype": torch.float32 if packed else torch.bfloat16}
    with backend(sms=3) as gpu:
        weights = hk.prepack(arguments["gate_up"]) if packed else arguments["gate_up"]
        got = hk.grouped_swiglu_fp8(**arguments | {"gate_up": weights})
    check("grouped_swiglu_fp8", arguments, got)
    assert not got[sum(sizes) :].any()
    blocks = "_blocks" if kind == "half blocks" else ""
    name = f"fp8_gemm_weight_only_swiglu_{tokens}{'_packed' if packed else ''}{blocks}"
    assert [report.kernel for report in gpu.reports] == [name]


@pytest.mark.parametrize("backend", SIMULATED)
@packed_or_not
@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_divided_depth(backend, packed, cluster):
    """Blocks of a cluster have parts of K; of the last one a part is missing, or all."""
    depth = 128 * 4 * cluster + 32
    x, weight = bf16(9, depth), e4m3(144, depth, seed=2)
    for kind in ((144,), (2, -(-depth // 128))):
        call = {"x": x, "weight": weight, "weight_scale": scale(*kind)}
        with backend(sms=2 * cluster) as gpu:
            got = hk.fp8_linear(**call | ({"weight": hk.prepack(weight)} if packed else {}))
        check("fp8_linear", call, got)
        assert gpu.reports[0].cluster == (cluster, 1, 1)


@packed_or_not
@pytest.mark.parametrize("rows", [3, 40])
def test_all_patterns_of_e4m3(packed, rows):
    """Each weight by itself, with the scale of one and in blocks. A NaN reaches its column, whatever the rows hold."""
    weight = torch.arange(256, dtype=torch.uint8).repeat(2).view(E4M3).reshape(16, 32)
    weight = torch.nn.functional.pad(bits(weight), (0, 128)).view(E4M3)
    one = torch.eye(160).bfloat16()[:32]
    # NaN times zero is NaN: every row of a column with one. Without those the weights come out as they are.
    finite = weight.float().nan_to_num(0.0)
    for weight_scale in (torch.tensor(1.0), torch.ones(1, 2)):
        with hk.simulated_gpu():
            given = hk.prepack(weight) if packed else weight
            got = torch.cat([hk.fp8_linear(one[i : i + rows], given, weight_scale) for i in range(0, 32, rows)])
            plain = hk.prepack(finite.to(E4M3)) if packed else finite.to(E4M3)
            values = torch.cat([hk.fp8_linear(one[i : i + rows], plain, weight_scale) for i in range(0, 32, rows)])
        assert torch.equal(got.isnan(), weight.float().isnan().any(1).expand(32, 16))
        assert torch.equal(values.float(), finite[:, :32].T)


def test_order_of_packed_weights():
    patterns = torch.randint(0, 256, (3, 48, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    weights = patterns.view(E4M3)
    views = (weights, bits(weights).mT.contiguous().mT.view(E4M3), bits(weights).repeat(1, 2, 1).view(E4M3)[:, ::2])
    for given in (*views, weights[0], weights[:0]):
        with hk.simulated_gpu():
            packed = hk.prepack(given)
        assert packed.is_contiguous()
        assert torch.equal(bits(packed), bits(prepack_reference.prepack_for_gpu(given.contiguous())))
        assert torch.equal(bits(prepack_reference.unpack(packed)), bits(given.contiguous()))


def test_bf16_weights_are_copied_as_they_are():
    """A GPU reads them in the order that they have."""
    weights = bf16(2, 24, 40)
    for given in (weights, weights.mT, weights[:, ::3], weights[0], weights[:0]):
        with hk.simulated_gpu():
            packed = hk.prepack(given)
        assert packed.is_contiguous()
        assert packed.data_ptr() != given.data_ptr() or not given.numel()
        assert torch.equal(packed, given)


@packed_or_not
@pytest.mark.parametrize("out_scale", [None, torch.tensor([0.001])], ids=["fresh", "static"])
def test_quantized_swiglu(packed, out_scale):
    """The bits that quantize_fp8 makes of the fp32 result, in a launch of its own."""
    arguments = grouped("gate_up", "half blocks", SIZES, COLUMNS)
    with hk.simulated_gpu() as gpu:
        call = arguments | {"gate_up": hk.prepack(arguments["gate_up"]) if packed else arguments["gate_up"]}
        exact = hk.grouped_swiglu_fp8(**call, out_dtype=torch.float32)
        q, q_scale = hk.grouped_swiglu_fp8(**call, out_dtype=E4M3, out_scale=out_scale)
    assert len(gpu.reports) == 3
    recipe, static = ("block_1x128", None) if out_scale is None else ("tensor", out_scale.reshape(()))
    want = hk.quantize_fp8(exact, recipe, static)
    assert q.is_contiguous()
    assert compare_exact("q", q, want[0])
    assert compare_exact("scale", q_scale, want[1])


@pytest.mark.parametrize("kind", [(), (140,), (2, 3)], ids=["tensor", "channel", "block"])
def test_gradient_of_linear(kind):
    """With respect to x, weights and scales being constants; products of bf16 gradients and e4m3 weights."""
    weight, weight_scale, grad_out = e4m3(140, 320, seed=2), scale(*kind), bf16(9, 140, seed=6)
    x = bf16(9, 320).requires_grad_()
    with hk.simulated_gpu() as gpu:
        hk.fp8_linear(x, weight, weight_scale).backward(grad_out)
    assert [report.kernel.startswith("fp8_gemm_weight_only") for report in gpu.reports] == [True] * 2
    weights = reference.dequantize_weights(weight[None], weight_scale[None])[0]
    want, magnitude = grad_out.double() @ weights, grad_out.double().abs() @ weights.abs()
    assert x.grad is not None
    # Gradients that are multiplied by scales of channels are rounded to bf16 once more.
    rounded = 2**-9 * magnitude if kind == (140,) else 0
    assert ((x.grad.double() - want).abs() <= 2**-8 * want.abs() + 2**-20 * magnitude + rounded).all()


@packed_or_not
@pytest.mark.parametrize("ends", [[0, 1 << 30, -5, 90, 60], [-1, -1, 33, 2**31 - 1, 5], [50, 20, 0, 10, 95]])
def test_wrong_offsets_stay_in_bounds(packed, ends: list[int]):
    """Group e ends at the largest of the offsets up to e + 1, within the rows."""
    rows = 95
    meant, top = [0], 0
    for end in ends[1:]:
        top = max(top, min(max(end, 0), rows))
        meant.append(top)
    b = e4m3(4, 80, 320, seed=2)
    with hk.simulated_gpu(sms=2) as gpu:
        call = {"a": bf16(rows, 320), "b": hk.prepack(b) if packed else b, "a_scale": None, "b_scale": scale(4, 1, 3)}
        got = [hk.grouped_gemm_fp8(**call, expert_offsets=torch.tensor(o, dtype=torch.int32)) for o in (ends, meant)]
    assert gpu.findings == []
    assert compare_exact("out", *got)


@pytest.mark.parametrize(("columns", "depth"), [(40, 80), (33, 77), (1, 1), (130, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "misaligned", "rows further apart"])
def test_layouts(layout: str, columns: int, depth: int):
    """Weights as they are have any size and any strides."""
    a, b = bf16(22, depth), e4m3(3, columns, depth, seed=2)
    if layout == "transposed":
        given = bits(b).mT.contiguous().mT.view(E4M3)
    elif layout == "misaligned":
        given = torch.cat([bits(b).new_zeros(1), bits(b).flatten()])[1:].view(b.shape).view(E4M3)
    else:
        given = torch.cat([bits(b)] * 2, -1).view(E4M3)[..., :depth] if layout == "rows further apart" else b
    arguments = {"a": a, "b": b, "expert_offsets": offsets_of([5, 0, 15]), "a_scale": None, "b_scale": scale(3)}
    with hk.simulated_gpu():
        got = hk.grouped_gemm_fp8(**arguments | {"b": given})
    check("grouped_gemm_fp8", arguments | {"out_dtype": torch.bfloat16}, got)


@pytest.mark.parametrize(
    ("experts", "rows", "columns", "depth"), [(0, 4, 32, 32), (2, 0, 32, 32), (2, 4, 0, 32), (2, 4, 32, 0)]
)
@packed_or_not
def test_empty(packed, experts: int, rows: int, columns: int, depth: int):
    a, b, offsets = bf16(rows, depth), e4m3(experts, columns, depth), offsets_of([rows // 2] * experts)
    with hk.simulated_gpu():
        weights = hk.prepack(b) if packed else b
        got = hk.grouped_gemm_fp8(a, weights, offsets, None, torch.ones(experts))
        assert torch.equal(got.float(), torch.zeros(rows, columns))
        swiglu = hk.grouped_swiglu_fp8(a, weights, offsets, None, torch.ones(experts))
        assert torch.equal(swiglu.float(), torch.zeros(rows, columns // 2))
        if experts:
            dense = hk.fp8_linear(a, weights[0], torch.tensor(1.0))
            assert dense.shape == (rows, columns)
            assert depth or not dense.any()


def test_linear_shapes_bias_and_strided_scales():
    x, weight, bias = bf16(2, 3, 320), e4m3(140, 320, seed=2), bf16(140)
    for weight_scale in (scale(140), scale(2, 3)):
        spread = torch.stack([weight_scale, torch.full_like(weight_scale, float("nan"))], -1)[..., 0]
        with hk.simulated_gpu():
            got = hk.fp8_linear(x, weight, spread, bias)
            assert torch.equal(hk.fp8_linear(x[0, 0], weight, spread, bias), got[0, 0])
        check("fp8_linear", {"x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias}, got)


def test_rows_of_nan_stay_where_they_are():
    x = bf16(40, 320)
    x[7, 300] = float("nan")
    with hk.simulated_gpu():
        got = hk.fp8_linear(x, e4m3(140, 320, seed=2), scale(140))
    assert torch.equal(got.isnan().all(1), torch.arange(40) == 7)
    assert int(got.isnan().any(1).sum()) == 1


@packed_or_not
def test_moe(packed):
    """The whole layer with FP8 weights alone."""
    hidden, intermediate, experts = 96, 64, 4
    gate_up, down = e4m3(experts, 2 * intermediate, hidden), e4m3(experts, hidden, intermediate, seed=2)
    scales = torch.full((experts, 2), hidden**-0.5), torch.full((experts,), intermediate**-0.5)
    x, gate = bf16(23, hidden), torch.randn(experts, hidden, generator=torch.Generator().manual_seed(7))
    want = hk.moe(x, gate, hk.Fp8Experts(gate_up, down, *scales), top_k=2)
    with hk.simulated_gpu():
        weights = (hk.prepack(gate_up), hk.prepack(down)) if packed else (gate_up, down)
        got = hk.moe(x, gate, hk.Fp8Experts(*weights, *scales), top_k=2)
    assert isinstance(want, Tensor)
    torch.testing.assert_close(got, want)


X, W, WS = bf16(4, 64), e4m3(32, 64), torch.tensor(1.0)
EXPERTS, GROUPS, TWO = e4m3(2, 32, 64), offsets_of([3, 1]), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hk.fp8_linear(X.float(), W, WS), r"^fp8_linear: x has dtype float32; on a GPU: bfloat16. Convert"),
        (lambda: hk.fp8_linear(X, W.float(), WS), r"^fp8_linear: weight has dtype float32; allowed: float8_e4m3fn"),
        (lambda: hk.fp8_linear(X, EXPERTS, WS), r"^fp8_linear: weight has shape \[2, 32, 64\]; 2 dimensions"),
        (lambda: hk.fp8_linear(X[:, :7], W, WS), r"^fp8_linear: x has shape \[4, 7\]; required: .*\[any, 64\]"),
        (lambda: hk.fp8_linear(X, W, torch.ones(3)), r"^fp8_linear: weight_scale has shape \[3\]; allowed: .*\[32\]"),
        (lambda: hk.grouped_gemm_fp8(X, EXPERTS, GROUPS, WS, TWO), r"^grouped_gemm_fp8: a_scale is given, but a has"),
        (lambda: hk.grouped_gemm_fp8(X, EXPERTS, GROUPS[:2], None, TWO), r"^grouped_gemm_fp8: expert_offsets has"),
        (lambda: hk.grouped_swiglu_fp8(X, EXPERTS[:, :7], GROUPS, None, TWO), "dimension 1 must be even"),
        (
            lambda: hk.grouped_swiglu_fp8(X, hk.prepack(e4m3(2, 48, 64)), GROUPS, None, TWO),
            r"^grouped_swiglu_fp8: gate_up has packed shape .*I = 24 .*multiple of 16",
        ),
        (
            lambda: hk.fp8_linear(X, prepack_reference.prepack(W), WS),
            r"^fp8_linear: weight has shape \[2, 16, 16, 4\].*were packed for the CPU: call hunyuan_kernels.prepack",
        ),
        (lambda: hk.fp8_linear(X, hk.prepack(W)[:, ::2], WS), r"^fp8_linear: weight has shape .* are contiguous"),
        (lambda: hk.prepack(W.float()), r"^prepack: weights has dtype float32; allowed: bfloat16, float8_e4m3fn"),
        (
            lambda: hk.fp8_gemm(W, hk.prepack(W), WS, WS),
            r"^fp8_gemm: b has shape .*packed.* go with bfloat16 activations",
        ),
        (
            lambda: ops.fp8_linear_dgrad(X[:, :32], hk.prepack(W), WS),
            r"^fp8_linear_dgrad: weight has shape \[2, 2, 32, 16\], that of packed weights",
        ),
        (
            lambda: hk.grouped_swiglu_fp8(X, EXPERTS, GROUPS, None, TWO, out_dtype=E4M3, out_scale=TWO),
            r"^grouped_swiglu_fp8: out_scale has shape \[2\]; one element is required",
        ),
        (lambda: hk.prepack(W[:17]), r"^prepack: weights has shape \[17, 64\]; on a GPU N must be a multiple of 16"),
        (lambda: hk.prepack(W[:, :48]), r"^prepack: weights has shape \[32, 48\].* and K of 32"),
        (lambda: hk.prepack(W[0]), r"^prepack: weights has shape \[64\]; required: \[N, K\] or \[E, N, K\]"),
    ],
)
def test_bad_input(call: Any, message: str):
    with hk.simulated_gpu() as gpu, pytest.raises(RuntimeError, match=message):
        call()
    assert gpu.reports == []


def test_weights_packed_for_a_gpu_are_refused_on_the_cpu():
    packed = prepack_reference.prepack_for_gpu(W)
    with pytest.raises(RuntimeError, match=r"^fp8_linear: weight has shape \[2, 2, 32, 16\].*packed for a GPU"):
        hk.fp8_linear(X, packed, WS)


# ---- counters -------------------------------------------------------------------------------------------------------


@packed_or_not
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [16, 3, 0, 7], [60, 64, 64, 0]])
@pytest.mark.parametrize("name", ["b", "gate_up"])
def test_work_is_what_the_shapes_demand(packed, sizes: list[int], name: str):
    """Each byte of the weights of groups with rows is read once; no bank conflicts; flops of whole tiles."""
    columns, depth = 256, 512
    arguments = grouped(name, "tensor", sizes, columns, depth, 0)
    function = hk.grouped_gemm_fp8 if name == "b" else hk.grouped_swiglu_fp8
    with hk.simulated_gpu(sms=4, check_races=False, split_warps=False) as gpu:
        weights = hk.prepack(arguments[name]) if packed else arguments[name]
        got = function(**arguments | {name: weights})
    (report,) = gpu.reports
    with hk.simulated_gpu(sms=4, check_races=False, split_warps=False):
        assert torch.equal(got, function(**arguments)), "the same bits, packed or not"
    tokens = 16 if max(sizes) <= 16 else 64
    assert report.kernel.split("_packed")[0].endswith(f"_{tokens}")
    used, lines = sum(size > 0 for size in sizes), arguments[name].shape[1]
    weight_bytes, row_bytes = used * lines * depth, used * (columns // 128) * tokens * depth * 2
    assert report.counters["tma_load_bytes"] == weight_bytes + row_bytes
    assert sum(report.counters["mma_flops"].values()) == 2 * used * lines * tokens * depth
    assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())


def test_precision():
    """fp32 sums: as close to fp64 as bf16 products are."""
    x, weight = bf16(20, 4096).abs(), e4m3(128, 4096, seed=2).float().abs().to(E4M3)
    offsets, weight_scale = offsets_of([20]), torch.ones(1)
    with hk.simulated_gpu():
        got = hk.grouped_gemm_fp8(x, weight[None], offsets, None, weight_scale, out_dtype=torch.float32)
    want = reference.fp8_linear(x, weight, torch.tensor(1.0))
    assert compare_bounded("out", got, want, reference.fp8_linear(x, absolute(weight), torch.tensor(1.0)))
