"""Options of the plans of grouped GEMMs that are off until they were measured: multicast, panels of columns."""

import pytest
import torch

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import grouped_gemm as reference
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.product_options import product_options
from hunyuan_kernels.testing.specs.grouped_gemm import compare_grouped_gemm, compare_swiglu, make_arguments, offsets_of
from python_tests.backends import SIMULATED, needs_device_code

pytestmark = needs_device_code

CHOICES = [("multicast",), ("multicast", "column_panels")]
#: A tile and a row, nothing, a few, a warpgroup and some. Past the end rows of NaN. 8 k-blocks, the last one not whole:
#: more than the stages.
RAGGED, TAIL, DEPTH = [129, 0, 5, 70], 20, 460
ONE_EXPERT = [0, 333, 0]


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize(
    ("sizes", "columns", "transposed", "sms", "choice"),
    [
        # With an odd number of tiles side by side the last cluster has a block without columns.
        (RAGGED, 600, True, 4, ("multicast",)),
        (RAGGED, 512, False, 3, ("multicast", "column_panels")),
        (ONE_EXPERT, 1000, False, 2, ("multicast",)),
    ],
)
def test_grouped_gemm(backend, sizes, columns, transposed, sms, choice):
    arguments = make_arguments(sizes, columns, DEPTH, torch.bfloat16, 0, tail=TAIL, transposed=transposed)
    with backend(sms=sms) as gpu:
        with product_options(*choice):
            got = hk.grouped_gemm(**arguments)
        plain = hk.grouped_gemm(**arguments)
    (comparison,) = compare_grouped_gemm(arguments, got, reference.grouped_gemm(**arguments))
    assert comparison, comparison.message
    assert compare_exact("out", got, plain)
    shared, alone = gpu.reports
    assert shared.kernel == f"grouped_gemm_rows_256_bfloat16{'_across' if transposed else ''}_multicast"
    assert (shared.cluster, shared.grid) == ((2, 1, 1), (sms // 2 * 2, 1, 1))
    assert not alone.kernel.endswith("multicast"), "off again"


@pytest.mark.parametrize("backend", SIMULATED)
@pytest.mark.parametrize("choice", CHOICES, ids="+".join)
def test_grouped_swiglu(backend, choice):
    arguments = make_arguments([256, 0, 370], 2 * 300, DEPTH, torch.bfloat16, 0, tail=TAIL, name="gate_up")
    with backend(sms=2) as gpu, product_options(*choice):
        got = hk.grouped_swiglu(**arguments)
        again, preactivation = hk.grouped_swiglu(**arguments, return_preactivation=True)
    names = [f"grouped_gemm_swiglu{form}_multicast" for form in ("", "_preactivation")]
    assert [report.kernel for report in gpu.reports] == names
    (comparison,) = compare_swiglu(arguments, got, reference.grouped_swiglu(**arguments))
    assert comparison, comparison.message
    assert compare_exact("out of the training form", again, got)
    product = {"a": arguments["a"], "b": arguments["gate_up"], "expert_offsets": arguments["expert_offsets"]}
    (comparison,) = compare_grouped_gemm(product, preactivation, reference.grouped_gemm(**product))
    assert comparison, comparison.message


@pytest.mark.parametrize("choice", [*CHOICES, ("column_panels",)], ids="+".join)
def test_no_option_changes_bits(choice):
    arguments = make_arguments(RAGGED, 600, DEPTH, torch.bfloat16, 0, tail=TAIL)
    a, b, offsets = arguments.values()
    grad = torch.randn(a.shape[0], 600, generator=torch.Generator().manual_seed(1)).bfloat16()

    def results():
        yield hk.grouped_gemm(a, b, offsets)
        yield from hk.grouped_swiglu(a, b, offsets, return_preactivation=True)
        yield hk.grouped_swiglu(a, b, offsets)
        yield ops.grouped_gemm_dgrad(grad, b, offsets)
        yield ops.grouped_gemm_wgrad(grad, a, offsets, torch.float32)

    with hk.simulated_gpu(sms=2) as gpu:
        plain = list(results())
        usual = [report.kernel for report in gpu.reports]
        with product_options(*choice):
            for got, want in zip(results(), plain, strict=True):
                assert compare_exact("result", got, want)
    kernels = [report.kernel for report in gpu.reports][len(usual) :]
    assert (kernels == usual) == ("multicast" not in choice)


@pytest.mark.parametrize("values", [[0, 400, 200, 300], [0, -5, 2**31 - 1, 5], [-(2**31), 90, 80, 70]], ids=str)
def test_hostile_offsets_stay_in_bounds(values):
    a, b, _ = make_arguments([300, 0, 0], 520, 72, torch.bfloat16, 0).values()
    offsets = torch.tensor(values, dtype=torch.int32)
    with hk.simulated_gpu(sms=2) as gpu:
        plain = hk.grouped_gemm(a, b, offsets)
        with product_options("multicast"):
            assert compare_exact("out", hk.grouped_gemm(a, b, offsets), plain)
    assert gpu.reports[1].cluster == (2, 1, 1)


@pytest.mark.parametrize("sizes", [[400, 200, 0, 57], [256] * 4, [0, 777, 0, 0]], ids=["ragged", "balanced", "one"])
@pytest.mark.parametrize("columns", [512, 520])
def test_multicast_reads_rows_once_for_two_tiles(sizes, columns):
    depth = 192
    arguments = make_arguments(sizes, columns, depth, torch.bfloat16, 0)
    with hk.simulated_gpu(sms=4, check_races=False, split_warps=False) as gpu, product_options("multicast"):
        hk.grouped_gemm(**arguments)
        hk.grouped_swiglu(arguments["a"], arguments["b"], arguments["expert_offsets"])
    for report in gpu.reports:
        assert report.kernel.endswith("_multicast")
        across, rows = -(-columns // 256), sum(-(-size // 128) for size in sizes)
        lines = -(-across // 2) * 128 + across * 256  # of a, of b
        assert report.counters["tma_load_bytes"] == rows * lines * depth * 2
        halves = sum(-(-size // 64) for size in sizes)
        assert sum(report.counters["mma_flops"].values()) == 2 * 64 * halves * 256 * across * depth
        assert all(access["extra_wavefronts"] == 0 for access in report.counters["shared"].values())


def test_unknown_option():
    with (
        pytest.raises(RuntimeError, match=r"^force_product_options: options has 'twice'; allowed: multicast, column"),
        product_options("twice"),
    ):
        pass


def test_options_nest_and_end():
    arguments = make_arguments([200], 512, 64, torch.bfloat16, 0)
    with hk.simulated_gpu(sms=2) as gpu:
        with product_options("multicast"):
            with product_options():
                hk.grouped_gemm(**arguments)
            hk.grouped_gemm(**arguments)
        hk.grouped_gemm(arguments["a"], arguments["b"], offsets_of([200]))
    assert [report.kernel.endswith("_multicast") for report in gpu.reports] == [False, True, False]
