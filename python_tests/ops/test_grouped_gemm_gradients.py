"""Gradients of grouped_gemm and grouped_swiglu, how they register with torch, and torch.compile."""

import pytest
import torch
from torch import Tensor

import hunyuan_kernels as hk
from hunyuan_kernels._ops import ops
from hunyuan_kernels.reference import grouped_gemm as reference
from hunyuan_kernels.testing.compare import compare_bounded, compare_exact
from hunyuan_kernels.testing.instruction_set import instruction_set, supported_instruction_sets
from hunyuan_kernels.testing.specs.grouped_gemm import DTYPES, make_arguments, offsets_of, swiglu_magnitude

every_instruction_set = pytest.mark.parametrize("isa", supported_instruction_sets())
SIZES = [5, 0, 30, 13]
TAIL = 3


def leaves(arguments: dict[str, Tensor]) -> list[Tensor]:
    return [t.requires_grad_() for t in arguments.values() if t.is_floating_point()]


def grad_like(out: Tensor, rows: int) -> Tensor:
    """A gradient whose rows past the last group are NaN: nothing may read them."""
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    grad[rows:] = float("nan")
    return grad


@every_instruction_set
@pytest.mark.parametrize("transposed", [False, True], ids=["[E,N,K]", "[E,K,N]"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_gradients_of_grouped_gemm(dtype: torch.dtype, out_dtype: torch.dtype, transposed: bool, isa: str):
    arguments = make_arguments(SIZES, 45, 70, dtype, 0, tail=TAIL, transposed=transposed)
    a, b = leaves(arguments)
    offsets, rows = arguments["expert_offsets"], sum(SIZES)
    with instruction_set(isa):
        out = hk.grouped_gemm(**arguments, out_dtype=out_dtype)
        grad = grad_like(out, rows)
        # On this thread, where the instruction set is forced: backward() of the engine runs CPU nodes here too.
        out.backward(grad)
    grad_a, grad_b = a.grad, b.grad
    assert grad_a is not None
    assert grad_b is not None
    assert grad_a.dtype == grad_b.dtype == dtype
    a, b = a.detach(), b.detach()
    want_a = reference.grouped_gemm(grad, b.mT, offsets)
    magnitude = reference.grouped_gemm(grad.abs(), b.mT.abs(), offsets)
    comparison = compare_bounded("grad_a", grad_a, want_a, magnitude)
    assert comparison, comparison.message
    zero = torch.zeros(b.shape)
    want_b = reference.grouped_gemm_wgrad_(zero, grad, a, offsets)
    comparison = compare_bounded(
        "grad_b", grad_b, want_b, reference.grouped_gemm_wgrad_(zero, grad.abs(), a.abs(), offsets)
    )
    assert comparison, comparison.message
    assert not grad_b[1].any(), "an expert without rows has a gradient of exact zeros"
    assert not grad_a[rows:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["public", "op without pre-activation", "with pre-activation"])
def test_gradients_of_grouped_swiglu(dtype: torch.dtype, form: str):
    """The chain of the pieces above, whichever form ran forward."""
    arguments = make_arguments(SIZES, 2 * 21, 70, dtype, 0, tail=TAIL, name="gate_up")
    a, gate_up = leaves(arguments)
    offsets, rows = arguments["expert_offsets"], sum(SIZES)
    preactivation_grad = None
    if form == "public":
        out = hk.grouped_swiglu(**arguments)
    elif form == "op without pre-activation":
        out = ops.grouped_swiglu(a, gate_up, offsets)
    else:
        out, preactivation = hk.grouped_swiglu(**arguments, return_preactivation=True)
        preactivation_grad = grad_like(preactivation, rows)
    grad_out = grad_like(out, rows)
    if preactivation_grad is None:
        out.backward(grad_out)
    else:
        torch.autograd.backward([out, preactivation], [grad_out, preactivation_grad])
    _, kept = hk.grouped_swiglu(a.detach(), gate_up.detach(), offsets, return_preactivation=True)
    grad = ops.swiglu_backward(grad_out, kept, offsets)
    if preactivation_grad is not None:
        grad = grad + preactivation_grad
    assert a.grad is not None
    assert gate_up.grad is not None
    assert compare_exact("grad_a", a.grad, ops.grouped_gemm_dgrad(grad, gate_up.detach(), offsets))
    assert compare_exact("grad_gate_up", gate_up.grad, ops.grouped_gemm_wgrad(grad, a.detach(), offsets))
    assert a.grad.isfinite().all()
    assert gate_up.grad.isfinite().all()


def test_gradients_of_grouped_swiglu_match_the_reference():
    arguments = make_arguments([9, 4], 2 * 21, 70, torch.float32, 0, name="gate_up")
    exact = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    got, want = leaves(arguments), leaves(exact)
    out, reference_out = hk.grouped_swiglu(**arguments), reference.grouped_swiglu(**exact)
    assert isinstance(reference_out, Tensor)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    reference_out.backward(grad.double())
    for name, x, y in zip(("a", "gate_up"), got, want, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_training_and_inference_agree_bit_for_bit():
    arguments = make_arguments([9, 4], 2 * 21, 70, torch.bfloat16, 0, name="gate_up")
    inference = hk.grouped_swiglu(**arguments)
    leaves(arguments)
    training = hk.grouped_swiglu(**arguments)
    assert training.requires_grad
    assert compare_exact("out", training.detach(), inference)
    with torch.no_grad():
        assert not hk.grouped_swiglu(**arguments).requires_grad


def test_only_the_gradients_that_are_asked_for():
    arguments = make_arguments([3, 2], 6, 10, torch.float32, 0)
    arguments["b"].requires_grad_()
    hk.grouped_gemm(**arguments).sum().backward()
    assert arguments["a"].grad is None
    assert arguments["b"].grad is not None


def test_nan_rows_of_one_expert_do_not_reach_another():
    arguments = make_arguments([3, 4], 6, 10, torch.bfloat16, 0)
    arguments["a"][:3] = float("nan")
    a, b = leaves(arguments)
    hk.grouped_gemm(**arguments).sum().backward()
    assert b.grad[0].isnan().all()
    assert b.grad[1].isfinite().all()
    assert a.grad.isfinite().all()


def test_gradcheck_of_the_references():
    offsets = offsets_of([2, 0, 3])
    a = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: reference.grouped_gemm(a, b, offsets), (a, b))
    assert torch.autograd.gradcheck(lambda a, b: reference.grouped_swiglu(a, b, offsets), (a, b))


def test_accumulates_over_calls():
    arguments = make_arguments([3, 0, 14], 20, 33, torch.bfloat16, 0, tail=2)
    a, offsets = arguments["a"], arguments["expert_offsets"]
    grad_out = grad_like(torch.empty(a.shape[0], 20, dtype=torch.bfloat16), 17)
    start = torch.randn(3, 20, 33)
    total = start.clone()
    for _ in range(3):
        hk.grouped_gemm_wgrad_(total, grad_out, a, offsets)
    want, magnitude = start.double(), start.double().abs()
    for _ in range(3):
        want = reference.grouped_gemm_wgrad_(want, grad_out, a, offsets)
        magnitude = reference.grouped_gemm_wgrad_(magnitude, grad_out.abs(), a.abs(), offsets)
    comparison = compare_bounded("grad_b", total, want, magnitude)
    assert comparison, comparison.message
    assert compare_exact("expert without rows", total[1], start[1])


# ---- torch ----------------------------------------------------------------------------------------------------------


def samples(dtype: torch.dtype) -> dict[str, tuple]:
    gemm = make_arguments([4, 0, 13], 10, 12, dtype, 0)
    swiglu = make_arguments([4, 0, 13], 10, 12, dtype, 0, name="gate_up")
    a, b, offsets = gemm.values()
    grad_out = torch.randn(17, 10).to(dtype)
    differentiable = [t.clone().requires_grad_() for t in (a, b)]
    return {
        "grouped_gemm": (*differentiable, offsets, torch.float32),
        "grouped_gemm_dgrad": (grad_out, b, offsets, dtype),
        "grouped_gemm_wgrad": (grad_out, a, offsets, torch.float32),
        "grouped_gemm_wgrad_": (torch.randn(3, 10, 12), grad_out, a, offsets),
        "grouped_swiglu": (*(t.clone().requires_grad_() for t in (swiglu["a"], swiglu["gate_up"])), offsets),
        "grouped_swiglu_preactivation": (
            *(t.clone().requires_grad_() for t in (swiglu["a"], swiglu["gate_up"])),
            offsets,
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(samples(torch.float32)))
def test_opcheck(name: str, dtype: torch.dtype):
    results = torch.library.opcheck(getattr(ops, name).default, samples(dtype)[name])
    assert set(results.values()) == {"SUCCESS"}, results


@pytest.mark.parametrize("op", [hk.grouped_gemm, hk.grouped_swiglu], ids=["grouped_gemm", "grouped_swiglu"])
def test_autocast(op):
    a, b, offsets = make_arguments([4, 13], 10, 12, torch.float32, 0).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = op(a, b, offsets)
    assert compare_exact("out", got, op(a.bfloat16(), b.bfloat16(), offsets))
    a.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        op(a, b, offsets).sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float32


def layer(a: Tensor, gate_up: Tensor, down: Tensor, offsets: Tensor) -> Tensor:
    return hk.grouped_gemm(hk.grouped_swiglu(a, gate_up, offsets), down, offsets)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool):
    a, gate_up, offsets = make_arguments([4, 13], 10, 12, torch.float32, 0).values()
    down = torch.randn(2, 12, 5)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for requires_grad in (False, True):
        eager, other = ([t.clone().requires_grad_(requires_grad) for t in (a, gate_up, down)] for _ in range(2))
        want, got = layer(*eager, offsets), compiled(*other, offsets)
        assert compare_exact("out", got.detach(), want.detach())
        if requires_grad:
            want.sum().backward()
            got.sum().backward()
            for x, y in zip(eager, other, strict=True):
                assert compare_exact("grad", y.grad, x.grad)


def test_magnitude_of_swiglu_is_a_bound():
    """The bound that the tests judge by: a relative error of 1e-3 in one sum must exceed it."""
    arguments = make_arguments([4], 10, 12, torch.float32, 0, name="gate_up")
    want = reference.grouped_swiglu(**arguments)
    wrong = reference.grouped_swiglu(**{**arguments, "a": arguments["a"] * 1.001})
    magnitude = swiglu_magnitude(**arguments, want=want)
    assert not compare_bounded("out", wrong.float(), want, magnitude)
    assert compare_bounded("out", want.float(), want, magnitude)
