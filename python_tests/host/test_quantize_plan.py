"""What the host decides for quantize_fp8, before any device is involved."""

import re

import pytest
from hunyuan_kernels._C import plans
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_kernels._ops import ops
from python_tests.backends import needs_device_code

RECIPES = list(plans.QuantizeRecipe)


def plan(recipe: str, rows: int, columns: int, dtype: str = "bfloat16", **options: object) -> plans.QuantizePlan:
    return plans.quantize(
        recipe=plans.QuantizeRecipe[recipe], dtype=plans.DType[dtype], rows=rows, columns=columns, **options
    )


@pytest.mark.parametrize(
    ("recipe", "dtype", "launches"),
    [
        ("row", "bfloat16", ["quantize_row_bfloat16 grid 4096x1x1 block 256x1x1"]),
        ("row", "float32", ["quantize_row_float32 grid 4096x1x1 block 512x1x1"]),
        ("block_1x128", "bfloat16", ["quantize_block_1x128_bfloat16 grid 12800x1x1 block 16x16x1"]),
        ("block_1x128", "float32", ["quantize_block_1x128_float32 grid 25600x1x1 block 32x8x1"]),
        ("block_128x128", "bfloat16", ["quantize_block_128x128_bfloat16 grid 1600x1x1 block 256x1x1"]),
        (
            "tensor",
            "bfloat16",
            [
                "quantize_tensor_amax_bfloat16 grid 528x1x1 block 256x1x1",
                "quantize_tensor_bfloat16 grid 528x1x1 block 256x1x1",
            ],
        ),
    ],
)
def test_launches(recipe: str, dtype: str, launches: list[str]) -> None:
    """Hunyuan-Large's hidden size, 4096 tokens."""
    assert [str(launch) for launch in plan(recipe, 4096, 6400, dtype).launches] == launches


def test_text_holds_everything() -> None:
    assert str(plan("tensor", 4096, 6400)).splitlines() == [
        "quantize_fp8 tensor [1, 4096, 6400]: 1 x 1600 regions per matrix, workspace 2112 bytes",
        "  quantize_tensor_amax_bfloat16 grid 528x1x1 block 256x1x1",
        "  quantize_tensor_bfloat16 grid 528x1x1 block 256x1x1",
    ]


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES])
def test_whole_vectors_only_where_every_row_has_them(recipe: str) -> None:
    def kernel(columns: int, **options: object) -> str:
        return plan(recipe, 4, columns, matrices=2, **options).launches[-1].kernel

    assert kernel(64).endswith("_bfloat16")
    assert kernel(64, dtype="float32").endswith("_float32")
    assert kernel(64, row_stride=72).endswith("_bfloat16")
    for odd in ({"row_stride": 68}, {"matrix_stride": 260}, {"alignment": 8}):
        assert kernel(64, **odd).endswith("_bfloat16_any"), odd
    assert plan(recipe, 4, 66, row_stride=72).launches[-1].kernel.endswith("_bfloat16_any")


def test_a_contiguous_tensor_is_one_row() -> None:
    contiguous, strided = plan("tensor", 100, 8), plan("tensor", 100, 8, row_stride=16)
    assert (contiguous.row_regions, contiguous.column_regions) == (1, 1)
    assert (strided.row_regions, strided.column_regions) == (100, 1)


@pytest.mark.parametrize("recipe", [recipe.name for recipe in RECIPES])
def test_nothing_to_write_is_nothing_to_launch(recipe: str) -> None:
    assert plan(recipe, 4, 8, matrices=0).launches == []
    assert plan(recipe, 0, 8, is_static=True).launches == []


def test_an_empty_matrix_has_a_scale() -> None:
    assert len(plan("tensor", 0, 8).launches) == 2
    assert len(plan("row", 3, 0).launches) == 1
    assert plan("block_1x128", 3, 0).launches == []


def test_a_static_scale_needs_no_maximum() -> None:
    assert [launch.kernel for launch in plan("tensor", 64, 64, is_static=True).launches] == ["quantize_tensor_bfloat16"]
    assert plan("tensor", 64, 64, is_static=True).workspace_bytes == 0


@given(
    recipe=st.sampled_from(RECIPES),
    dtype=st.sampled_from([plans.DType.bfloat16, plans.DType.float32]),
    matrices=st.integers(1, 200),
    rows=st.integers(1, 10**6),
    columns=st.integers(1, 10**5),
    padding=st.integers(0, 9),
    is_static=st.booleans(),
    sms=st.integers(1, 200),
)
def test_every_element_has_a_thread(recipe, dtype, matrices, rows, columns, padding, is_static, sms) -> None:
    p = plans.quantize(
        recipe=recipe,
        dtype=dtype,
        matrices=matrices,
        rows=rows,
        columns=columns,
        row_stride=columns + padding,
        is_static=is_static,
        sms=sms,
    )
    for launch in p.launches:
        threads, regions, deep = launch.block
        assert launch.grid[1:] == (matrices, 1)
        assert deep == 1
        assert threads * regions <= 512
        if recipe is not plans.QuantizeRecipe.tensor:  # its blocks walk over the pieces until none is left
            assert launch.grid[0] % p.column_regions == 0
            row_blocks = launch.grid[0] // p.column_regions
            assert (row_blocks - 1) * regions < p.row_regions <= row_blocks * regions
    grid = p.launches[0].grid
    if recipe is plans.QuantizeRecipe.tensor:
        assert len({(launch.grid, launch.block) for launch in p.launches}) == 1, "they share the list of maxima"
        assert p.workspace_bytes == (0 if is_static else 4 * grid[0] * matrices)
        assert grid[0] <= p.row_regions * p.column_regions
    else:
        assert p.workspace_bytes == 0


@needs_device_code
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [plans.DType.bfloat16, plans.DType.float32])
@pytest.mark.parametrize("columns", [64, 65])
def test_the_device_code_has_the_kernels(recipe, dtype, columns) -> None:
    entries = re.findall(r"\.entry (\w+)\(", ops.device_ptx("quantize"))
    for launch in plans.quantize(recipe=recipe, dtype=dtype, rows=3, columns=columns).launches:
        assert launch.kernel in entries


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            "row",
            {"rows": 3, "columns": 8, "matrices": 65536},
            "x has 65536 matrices; a launch can take 65535. Quantize",
        ),
        ("row", {"rows": 2**40, "columns": 2**13}, "x needs 1099511627776 blocks for a matrix; a launch can have"),
        ("tensor", {"rows": 2**31, "columns": 1, "row_stride": 2}, "x needs 2147483648 blocks for a matrix"),
    ],
)
def test_what_no_launch_can_do(recipe: str, options: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"quantize_fp8: {message}")):
        plan(recipe, **options)
