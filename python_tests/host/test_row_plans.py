"""What the host decides for the kernels that go by rows (dispatch, combine, swiglu), before any device is involved."""

import re

import pytest
from hunyuan_kernels._C import plans
from hypothesis import given
from hypothesis import strategies as st

from hunyuan_kernels._ops import ops
from python_tests.backends import needs_device_code

MOVEMENTS = list(plans.RowMovement)
DTYPES = [plans.DType.bfloat16, plans.DType.float32]


def movement(name: str, rows: int, hidden: int, dtype: str = "bfloat16", **options: object) -> plans.RowMovementPlan:
    return plans.row_movement(
        movement=plans.RowMovement[name], dtype=plans.DType[dtype], rows=rows, hidden=hidden, **options
    )


def swiglu(rows: int, columns: int, dtype: str = "bfloat16", **options: object) -> plans.SwigluPlan:
    return plans.swiglu(dtype=plans.DType[dtype], rows=rows, columns=columns, **options)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (movement("dispatch", 4096, 6400), ["dispatch [4096, 6400]", "  dispatch_rows grid 4096x1x1 block 224x1x1"]),
        (
            movement("dispatch", 4096, 6400, "float8_e4m3fn"),
            ["dispatch [4096, 6400]", "  dispatch_rows grid 2048x1x1 block 128x2x1"],
        ),
        (
            movement("dispatch_fp8", 4096, 6400),
            ["dispatch_fp8 [4096, 6400]", "  dispatch_fp8_bfloat16 grid 3328x1x1 block 16x16x1"],
        ),
        (
            movement("combine", 4096, 6400, "float32"),
            ["combine [4096, 6400]", "  dispatch_combine_float32 grid 4096x1x1 block 256x1x1"],
        ),
        (
            movement("combine_backward", 100, 64),
            ["combine_backward [100, 64]", "  dispatch_combine_backward_bfloat16 grid 13x1x1 block 32x8x1"],
        ),
        (swiglu(4096, 18304), ["swiglu [4096, 18304]", "  swiglu_forward_bfloat16 grid 4096x1x1 block 256x1x1"]),
        (
            swiglu(7, 256, "float32", backward=True),
            ["swiglu_backward [7, 256]", "  swiglu_backward_float32 grid 1x1x1 block 32x7x1"],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value).splitlines()[0],
)
def test_text_holds_everything(plan, text) -> None:
    assert str(plan).splitlines() == text


@pytest.mark.parametrize("name", [m.name for m in MOVEMENTS])
def test_whole_vectors_only_where_every_row_has_them(name: str) -> None:
    def kernel(hidden: int, **options: object) -> str:
        return movement(name, 4, hidden, **options).launches[0].kernel

    assert not kernel(64).endswith("_any")
    assert kernel(64, alignment=8).endswith("_any")
    assert kernel(66).endswith("_any")
    assert not kernel(68, dtype="float32").endswith("_any")
    assert kernel(66, dtype="float32").endswith("_any")


def test_up_is_whole_where_gate_is() -> None:
    assert [swiglu(4, columns).launches[0].kernel for columns in (64, 68)] == [
        "swiglu_forward_bfloat16",
        "swiglu_forward_bfloat16_any",
    ]
    assert swiglu(4, 64, alignment=8).launches[0].kernel == "swiglu_forward_bfloat16_any"


def test_nothing_to_write_is_nothing_to_launch() -> None:
    for rows, columns in ((0, 8), (8, 0)):
        assert swiglu(rows, columns).launches == []
        assert all(movement(m.name, rows, columns).launches == [] for m in MOVEMENTS)


@given(
    movement=st.sampled_from(MOVEMENTS),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 10**6),
    columns=st.integers(1, 10**5),
    alignment=st.sampled_from([1, 4, 16, 256]),
)
def test_every_row_has_threads(movement, dtype, rows, columns, alignment) -> None:
    sizes = {"dtype": dtype, "rows": rows, "alignment": alignment}
    for plan in (
        plans.row_movement(movement=movement, hidden=columns, **sizes),
        plans.swiglu(columns=columns, **sizes),
        plans.swiglu(columns=columns, backward=True, **sizes),
    ):
        (launch,) = plan.launches
        threads, per_block, deep = launch.block
        fp8 = launch.kernel.startswith("dispatch_fp8")
        spans = -(-columns // 512) if fp8 else 1
        assert threads in (16, 32) if fp8 else threads % 32 == 0
        assert threads * per_block <= 256
        assert deep == 1
        assert launch.grid == (-(-rows // per_block) * spans, 1, 1)
        assert launch.cluster == (1, 1, 1)
        assert launch.programmatic


@needs_device_code
@pytest.mark.parametrize("columns", [64, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_code_has_the_kernels(dtype, columns) -> None:
    entries = {stem: re.findall(r"\.entry (\w+)\(", ops.device_ptx(stem)) for stem in ("dispatch", "swiglu")}
    sizes = {"dtype": dtype, "rows": 3}
    launches = [plans.row_movement(movement=m, hidden=columns, **sizes).launches[0] for m in MOVEMENTS]
    launches += [plans.swiglu(columns=columns, backward=b, **sizes).launches[0] for b in (False, True)]
    for launch in launches:
        assert launch.kernel in entries[launch.stem]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: movement("combine", 2**31, 6400),
            "combine: rows are 2147483648: 2147483648 blocks; at most 2^31 - 1 can be launched",
        ),
        (lambda: movement("dispatch_fp8", 2**31, 51200), "dispatch_fp8: rows are 2147483648: 13421772800 blocks"),
        (lambda: swiglu(2**31, 18304, backward=True), "swiglu_backward: rows are 2147483648: 2147483648 blocks"),
    ],
)
def test_what_no_launch_can_do(call, message) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        call()
