"""grouped_gemm, grouped_gemm_wgrad_ and grouped_swiglu against their references, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels.reference import grouped_gemm as reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.specs.grouped_gemm import (
    DTYPES,
    SPECS,
    compare_grouped_gemm,
    make_arguments,
    offsets_of,
)

every_instruction_set = pytest.mark.parametrize("isa", supported_instruction_sets())
every_case = [pytest.param(spec, case, id=f"{spec.name}: {case.label}") for spec in SPECS for case in spec.cases()]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([0, 0, 1, 2, 5, 11, 12, 13, 24, 37]), min_size=1, max_size=5),
    rows=st.integers(0, 70),
    columns=st.integers(0, 600),
    tail=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
    isa=st.sampled_from(supported_instruction_sets()),
    seed=st.integers(0, 3),
)
def test_any_shape(sizes, rows, columns, tail, dtype, transposed, isa, seed):
    arguments = make_arguments(sizes, rows, columns, dtype, seed, tail=tail, transposed=transposed)
    want = reference.grouped_gemm(**arguments)
    with instruction_set(isa):
        for out_dtype in DTYPES:
            got = hk.grouped_gemm(**arguments, out_dtype=out_dtype)
            assert got.dtype == out_dtype
            (comparison,) = compare_grouped_gemm(arguments, got, want)
            assert comparison, comparison.message


@every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums_of_one_sign_do_not_drift(dtype: torch.dtype, isa: str):
    a, b = torch.full((3, 50_000), 1.0, dtype=dtype), torch.full((1, 5, 50_000), 1.0078125, dtype=dtype)
    with instruction_set(isa):
        got = hk.grouped_gemm(a, b, offsets_of([3]), out_dtype=torch.float32)
    assert torch.equal(got, torch.full((3, 5), 50_000 * 1.0078125))


@every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "alone"), [((400, 30), 17), ((3, 4), 2)], ids=["many rows", "few rows"])
def test_rows_do_not_depend_on_the_batch(sizes: tuple[int, int], alone: int, dtype: torch.dtype, isa: str):
    """Rows that are multiplied without their neighbours; 17 and more rows, or 2 to 8, take the same way."""
    first, second = sizes
    arguments = make_arguments([first, second], 50, 700, dtype, 0)
    a, b = arguments["a"], arguments["b"]
    with instruction_set(isa):
        together = hk.grouped_gemm(**arguments)
        for row in {0, 1, first - alone, first, first + second - alone}:
            group = [alone, 0] if row < first else [0, alone]
            got = hk.grouped_gemm(a[row : row + alone], b, offsets_of(group))
            assert compare_exact(f"row {row}", got, together[row : row + alone])


@every_instruction_set
def test_order_of_the_weights_does_not_change_bits(isa: str):
    arguments = make_arguments([15, 17], 40, 530, torch.bfloat16, 0)
    with instruction_set(isa):
        straight = hk.grouped_gemm(**arguments)
        transposed = hk.grouped_gemm(arguments["a"], arguments["b"].mT.contiguous().mT, arguments["expert_offsets"])
    assert compare_exact("out", transposed, straight)


@every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_stay_in_their_row_and_column(dtype: torch.dtype, isa: str):
    arguments = make_arguments([4, 3], 35, 40, dtype, 0)
    a, b = arguments["a"], arguments["b"]
    a[1, 3], a[5, 0], b[0, 33, 7], b[1, 0, 0] = float("nan"), float("inf"), float("-inf"), 2.0
    with instruction_set(isa):
        got = hk.grouped_gemm(**arguments)
    assert got[1].isnan().all()
    assert got[5].isinf().all()
    assert not got[[0, 2, 3]][:, 33].isfinite().any()
    rest = got[[0, 2, 3, 4, 6]]
    assert rest[:, [c for c in range(35) if c != 33]].isfinite().all()
    assert rest[3:].isfinite().all()


def strided_rows(a: Tensor) -> Tensor:
    """The same values with rows that lie further apart."""
    wide = torch.full((a.shape[0], a.shape[1] + 7), float("nan"), dtype=a.dtype)
    wide[:, 3 : 3 + a.shape[1]] = a
    return wide[:, 3 : 3 + a.shape[1]]


@pytest.mark.parametrize("layout", [strided_rows, lambda a: a.T.contiguous().T], ids=["strided rows", "transposed"])
def test_layout_of_the_activations_does_not_matter(layout):
    arguments = make_arguments([5, 17], 20, 45, torch.bfloat16, 0)
    want = hk.grouped_gemm(**arguments)
    assert compare_exact("out", hk.grouped_gemm(**{**arguments, "a": layout(arguments["a"])}), want)


def test_expanded_operands():
    row, matrix = torch.randn(1, 30), torch.randn(1, 11, 30)
    got = hk.grouped_gemm(row.expand(7, 30), matrix.expand(3, 11, 30), offsets_of([2, 1, 4]))
    want = (row.double() @ matrix[0].double().T).expand(7, 11)
    magnitude = (row.double().abs() @ matrix[0].double().abs().T).expand(7, 11)
    comparison = compare_bounded("out", got, want, magnitude)
    assert comparison, comparison.message


def test_expert_strides_past_two_to_the_31():
    """In memory that is reserved, but touched only where the weights are."""
    stride, experts, rows, columns = 2**31 + 8, 2, 9, 40
    storage = torch.empty(stride * (experts - 1) + rows * columns, dtype=torch.bfloat16)
    b = storage.as_strided((experts, rows, columns), (stride, columns, 1))
    small = make_arguments([2, 5], rows, columns, torch.bfloat16, 0)
    b.copy_(small["b"])
    assert compare_exact("out", hk.grouped_gemm(**{**small, "b": b}), hk.grouped_gemm(**small))


def test_offsets_may_be_strided():
    arguments = make_arguments([5, 17], 20, 45, torch.float32, 0)
    want = hk.grouped_gemm(**arguments)
    offsets = torch.stack([arguments["expert_offsets"], torch.full((3,), -1, dtype=torch.int32)], dim=1)[:, 0]
    assert not offsets.is_contiguous()
    assert compare_exact("out", hk.grouped_gemm(arguments["a"], arguments["b"], offsets), want)


@every_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_forms_of_swiglu_agree(dtype: torch.dtype, isa: str):
    arguments = make_arguments([5, 0, 30], 2 * 19, 300, dtype, 0, tail=2, name="gate_up")
    with instruction_set(isa):
        out = hk.grouped_swiglu(**arguments)
        again, preactivation = hk.grouped_swiglu(**arguments, return_preactivation=True)
        product = hk.grouped_gemm(arguments["a"], arguments["gate_up"], arguments["expert_offsets"])
    assert compare_exact("out", again, out)
    assert compare_exact("preactivation", preactivation, product)


@every_instruction_set
def test_swiglu_of_extreme_values(isa: str):
    """gate values through a product with the identity: saturation of the exponential, infinities and NaN."""
    gate = torch.tensor(
        [0.0, -0.0, 1e-30, -1e-30, 20, -20, 87, -87, 100, -100, 3e38, -3e38, torch.inf, -torch.inf, torch.nan]
    )
    up = torch.full_like(gate, 2.0)
    gate_up = torch.cat([gate, up]).view(1, -1, 1)
    with instruction_set(isa):
        got = hk.grouped_swiglu(torch.ones(1, 1), gate_up, offsets_of([1]))[0]
    want = 2 * torch.nn.functional.silu(gate)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-38, equal_nan=True)
