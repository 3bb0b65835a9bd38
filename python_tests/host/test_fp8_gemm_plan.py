"""Plans of the stem fp8_gemm."""

import pytest
from hunyuan_kernels._C import plans


def test_tiles_of_256_where_they_fill_the_gpu():
    for rows, tile in ((4096, 256), (512, 128)):
        plan = plans.fp8_gemm(rows=rows, columns=4096, depth=4096)
        assert plan.taken.tile_columns == tile
        (launch,) = plan.launches
        assert launch.kernel == f"fp8_gemm_rows_{tile}_bfloat16"
        assert launch.grid == (min(132, plan.taken.tiles), 1, 1)
        assert f"128 x {tile} x 128" in next(line for line in str(plan).splitlines() if "<- taken" in line)


def test_swiglu_has_one_tile():
    plan = plans.fp8_gemm(
        experts=16, rows=64, columns=512, depth=256, swiglu=True, in_blocks=True, out=plans.DType.float32
    )
    assert [bool(c.illegal) for c in plan.candidates] == [False, True]
    assert plan.launches[0].kernel == "fp8_gemm_swiglu_float32_blocks"


def test_tiles_are_counted_for_any_distribution():
    plan = plans.fp8_gemm(experts=8, rows=100, columns=128, depth=128)
    assert plan.taken.tiles >= 9, "eight groups with a row each, and the rows past the last"
    assert plan.taken.likely_tiles == 8


def test_nothing_to_write():
    assert plans.fp8_gemm(rows=0, columns=128, depth=128).launches == []


@pytest.mark.parametrize("what", ["rows", "columns", "depth", "experts"])
def test_what_the_kernels_cannot_count(what):
    sizes = {"rows": 8, "columns": 8, "depth": 8, "experts": 2, what: 2**31}
    with pytest.raises(RuntimeError, match=r"^grouped_gemm_fp8: number of|^grouped_gemm_fp8: depth is 2147483648"):
        plans.fp8_gemm(**sizes)
