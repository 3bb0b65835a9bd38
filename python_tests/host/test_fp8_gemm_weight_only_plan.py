"""Plans of e4m3 weights under bf16 activations."""

import pytest
from hunyuan_kernels._C import plans


def test_few_rows_take_small_tiles_and_a_cluster():
    plan = plans.fp8_weight_only(rows=8, columns=6400, depth=6400, packed=True)
    assert (plan.taken.tile_rows, plan.taken.tile_columns) == (16, 128)
    (launch,) = plan.launches
    assert launch.kernel == "fp8_gemm_weight_only_16_packed"
    assert launch.cluster == (plan.taken.cluster, 1, 1)
    assert plan.taken.memory_clocks == pytest.approx(6400 * 6400 / (3.35e12 / 1.755e9)), "a byte for each weight"
    assert "[8, 6400] bfloat16 x [6400, 6400] float8_e4m3fn packed -> [8, 6400] bfloat16, scales of columns" in str(
        plan
    )


def test_more_rows_take_tiles_of_64():
    plan = plans.fp8_weight_only(
        experts=16, rows=1024, columns=2 * 18304, depth=6400, swiglu=True, in_blocks=True, out=plans.DType.float32
    )
    assert (plan.taken.tile_rows, plan.taken.tile_columns) == (64, 256)
    assert plan.launches[0].kernel == "fp8_gemm_weight_only_swiglu_64_blocks"
    assert "float32, scales of blocks" in str(plan)


def test_little_depth_is_not_divided():
    plan = plans.fp8_weight_only(rows=1, columns=128, depth=1023)
    assert [bool(c.illegal) for c in plan.candidates] == [c.cluster > 1 for c in plan.candidates]


def test_nothing_to_write():
    assert plans.fp8_weight_only(rows=0, columns=128, depth=128).launches == []


@pytest.mark.parametrize("what", ["rows", "columns", "depth", "experts"])
def test_what_the_kernels_cannot_count(what):
    sizes = {"rows": 8, "columns": 16, "depth": 32, "experts": 2, what: 2**31}
    with pytest.raises(RuntimeError, match=r"^grouped_gemm_fp8: (number of|depth is 2147483648)"):
        plans.fp8_weight_only(**sizes, packed=True)
