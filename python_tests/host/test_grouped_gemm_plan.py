"""What the host decides for the grouped GEMMs, before any device is involved."""

import re

import pytest
from hunyuan_kernels._C import plans
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_kernels._ops import ops
from python_tests.backends import needs_device_code

FORMS = list(plans.GroupedGemmForm)
Form = plans.GroupedGemmForm


def plan(form: str = "rows", **options: object) -> plans.GroupedGemmPlan:
    return plans.grouped_gemm(form=Form[form], **options)


def test_text_holds_everything() -> None:
    """The down projection of Hunyuan-Large, 8192 tokens."""
    lines = str(plan(experts=16, rows=8192, columns=6400, depth=18304)).splitlines()
    assert lines[0] == "grouped_gemm [8192, 18304] x [16, 6400, 18304] -> [8192, 6400] bfloat16"
    assert lines[2] == (
        "  tile 128 x 128 x 64: at most 4000 tiles; groups of equal size: 3200 tiles, 25 waves, 1.919e+12 flops, "
        "2.999e+10 bytes loaded, 3.674e+06 clocks, memory 1.964e+06 <- taken, panels of 8 tiles "
        "below each other"
    )
    assert lines[4] == (
        "  tile 16 x 128 x 64, depth over 2: at most 26350 tiles; groups of equal size: 25600 tiles, 388 waves, "
        "1.919e+12 flops, 1.35e+11 bytes loaded, 1.678e+07 clocks, memory 1.964e+06"
    )
    assert lines[-1] == "  grouped_gemm_rows_128_bfloat16 grid 132x1x1 block 384x1x1 shared 229632"
    assert len(lines) == 2 + 10
    gradient = plan("weight_gradient", experts=4, rows=100, columns=300, depth=500, out=plans.DType.float32)
    assert str(gradient).splitlines()[:3] == [
        "grouped_gemm_wgrad [100, 300]^T x [100, 500] -> [4, 300, 500] float32",
        "  tile 128 x 256 x 64: at most 24 tiles; groups of equal size: 24 tiles, 1 waves, 1.007e+08 flops, "
        "1.18e+06 bytes loaded, 3072 clocks, memory 0 <- taken, panels of 16 tiles below each "
        "other",
        "  tile 128 x 128 x 64: not possible: grouped_gemm_wgrad has tiles of 256 columns only",
    ]


def test_options_are_off_unless_they_are_asked_for() -> None:
    problem = {"experts": 4, "rows": 4096, "columns": 2048, "depth": 1024}
    usual, both = plan(**problem), plan(**problem, options="multicast,column_panels")
    assert "multicast" not in str(usual)
    assert (usual.taken.multicast, usual.column_panels) == (1, False)
    assert (both.taken.multicast, both.column_panels) == (2, True)
    lines = str(both).splitlines()
    assert lines[1].startswith("  tile 128 x 256 x 64, rows to 2 blocks by multicast: at most ")
    assert lines[1].endswith(" <- taken, panels of 4 tiles side by side")
    assert lines[2].endswith(", rows to 2 blocks by multicast: not possible: multicast was asked for")
    assert lines[3] == "  tile 128 x 256 x 64: not possible: multicast was asked for"
    launch = "  grouped_gemm_rows_256_bfloat16_multicast grid 132x1x1 block 384x1x1 cluster 2x1x1"
    assert lines[-1].startswith(launch)
    # Half of the rows' bytes: (64 + 256) for (128 + 256).
    assert both.taken.bytes * 384 == usual.candidates[0].bytes * 320
    # Of three tiles side by side the last one has a neighbour past the end.
    odd = plan(**{**problem, "columns": 3 * 256}, options="multicast")
    assert odd.taken.tiles == 4 * plan(**{**problem, "columns": 256}).candidates[0].tiles
    # An odd number of SMs.
    assert plan(**problem, sms=131, options="multicast").launches[0].grid == (130, 1, 1)
    with pytest.raises(RuntimeError, match=r"^grouped_gemm: options has 'multi'; allowed: multicast, column_panels"):
        plan(**problem, options="multi")


@pytest.mark.parametrize(
    ("form", "options", "why"),
    [
        ("rows", {"columns": 256}, "all columns are in one tile"),
        ("swiglu", {"columns": 256}, "all columns are in one tile"),
        ("rows", {"sms": 1}, "a cluster of two needs two SMs"),
        ("rows", {"out": plans.DType.float32}, "multicast has bfloat16 results only"),
        ("swiglu", {"across": True}, "grouped_swiglu with b across has no kernels with multicast"),
        ("weight_gradient", {}, "grouped_gemm_wgrad has no kernels with multicast"),
    ],
)
def test_where_there_is_no_multicast(form: str, options: dict, why: str) -> None:
    problem = {"experts": 2, "rows": 4000, "columns": 4096, "depth": 2048, **options}
    usual, asked = plan(form, **problem), plan(form, **problem, options="multicast")
    assert asked.launches[0].kernel == usual.launches[0].kernel
    first, second = str(asked).splitlines()[1:3]
    assert first == f"  tile 128 x 256 x 64, rows to 2 blocks by multicast: not possible: {why}"
    assert "tile 128 x 128 x 64, rows to 2 blocks by multicast: not possible: " in second


def test_the_wide_tile_is_taken_unless_it_leaves_sms_idle() -> None:
    balanced = {"experts": 16, "rows": 16 * 1024, "depth": 4096}
    assert plan(columns=132 * 256, **balanced).taken.tile_columns == 256
    assert plan(experts=1, rows=128, columns=132 * 128, depth=4096).taken.tile_columns == 128


@pytest.mark.parametrize(
    ("rows", "tokens", "cluster"),
    [(1, 16, 2), (16 * 16, 16, 2), (16 * 33, 64, 2), (16 * 128, 128, 0)],
)
def test_few_rows_take_their_kernels(rows: int, tokens: int, cluster: int) -> None:
    """The down projection of Hunyuan-Large. One token: 50 tiles, so two blocks share the depth of each."""
    taken = plan(experts=16, rows=rows, columns=6400, depth=18304).taken
    assert (taken.tile_rows, taken.cluster) == (tokens, cluster)


@pytest.mark.parametrize(
    ("form", "options", "kernel"),
    [
        ("swiglu", {}, "grouped_gemm_swiglu"),
        ("swiglu", {"across": True}, "grouped_gemm_swiglu_across"),
        ("swiglu_preactivation", {}, "grouped_gemm_swiglu_preactivation"),
        ("weight_gradient", {}, "grouped_gemm_wgrad_bfloat16"),
        ("rows", {"across": True, "out": plans.DType.float32}, "grouped_gemm_rows_256_float32_across"),
        ("rows", {"rows": 5}, "grouped_gemm_few_rows_16_bfloat16"),
        ("rows", {"rows": 100, "out": plans.DType.float32, "across": True}, "grouped_gemm_few_rows_64_float32_across"),
        ("swiglu_preactivation", {"rows": 5}, "grouped_gemm_few_rows_swiglu_16"),
    ],
)
def test_kernels(form: str, options: dict, kernel: str) -> None:
    (launch,) = plan(form, **{"experts": 2, "rows": 2000, "columns": 4096, "depth": 2048, **options}).launches
    assert launch.kernel == kernel
    assert launch.kernel.startswith(launch.stem)


def resident(sms: int, cluster: int) -> int:
    """Clusters of 4 and 8 blocks leave SMs of a GPC over; an H100's GPCs have 16 or 18."""
    blocks = max(1, cluster)
    return max(1, sms // blocks) if blocks <= 2 or sms < 16 else sms // 16 * 16 // blocks


def row_tiles(sizes: list[int], height: int) -> int:
    return sum(-(-size // height) for size in sizes)


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=20),
    tail=st.integers(0, 300),
    columns=st.integers(1, 2000),
    form=st.sampled_from(FORMS),
    sms=st.integers(1, 200),
)
def test_the_most_tiles_are_no_fewer_than_any_distribution_has(sizes, tail, columns, form, sms) -> None:
    """The grid never has blocks without a tile when groups are at their worst, and counts fit 32 bits."""
    rows = sum(sizes) + tail
    p = plans.grouped_gemm(form=form, experts=len(sizes), rows=rows, columns=2 * columns, depth=640, sms=sms)
    for candidate in p.candidates:
        if candidate.illegal:
            continue
        width, height = candidate.tile_columns, candidate.tile_rows
        if form is Form.weight_gradient:
            needed = len(sizes) * -(-2 * columns // 128) * -(-640 // width)
        elif form is Form.rows:
            needed = row_tiles([*sizes, tail], height) * -(-2 * columns // width)
        else:
            needed = row_tiles([*sizes, tail], height) * -(-columns // (width // 2))
        assert needed <= candidate.tiles
        assert candidate.waves == -(-candidate.likely_tiles // resident(sms, candidate.cluster))
    chosen = p.taken
    assert not chosen.illegal
    assert chosen.clocks == min(c.clocks for c in p.candidates if not c.illegal)
    blocks, clusters = max(1, chosen.cluster), min(resident(sms, chosen.cluster), chosen.tiles)
    assert [launch.grid for launch in p.launches] == ([(blocks * clusters, 1, 1)] if chosen.tiles else [])


@needs_device_code
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("out", [plans.DType.bfloat16, plans.DType.float32])
@pytest.mark.parametrize("columns", [256, 65536])
@pytest.mark.parametrize("rows", [9, 99, 9999])
@pytest.mark.parametrize("options", ["", "multicast"])
def test_the_device_code_has_the_kernels(form, across, out, columns, rows, options) -> None:
    if form in (Form.swiglu, Form.swiglu_preactivation):
        out = plans.DType.bfloat16
    sizes = {"experts": 3, "rows": rows, "columns": columns, "depth": 64}
    (launch,) = plans.grouped_gemm(form=form, **sizes, across=across, out=out, options=options).launches
    assert launch.kernel in re.findall(r"\.entry (\w+)\(", ops.device_ptx(launch.stem))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1, "rows": 2**31, "columns": 8, "depth": 8}, "number of rows is 2147483648; on a GPU at most"),
        ({"experts": 1, "rows": 8, "columns": 2**31, "depth": 8}, "number of columns is 2147483648"),
        ({"experts": 1, "rows": 8, "columns": 8, "depth": 2**31}, "depth is 2147483648"),
        ({"experts": 2**20, "rows": 2**30, "columns": 2**20, "depth": 8}, "number of tiles is "),
    ],
)
def test_what_no_launch_can_do(options: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"grouped_gemm: {message}")):
        plan(**options)
